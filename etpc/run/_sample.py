"""What an algorithm asks of a sample before it chooses."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import AlgorithmError
from ..traces import Carry, Site
from ._program import Program

WINDOW = 16
"""Steps between two looks at the traces of a sample."""


def traces(program: Program, model: Any, sample: Any) -> Iterator[dict[int, tuple[Site, Carry]]]:
    """The traces that are carried after each window of a sample, by the numbers of their operations."""
    steps, carry = _steps(sample), program.init()
    window = min(WINDOW, math.ceil(steps / 2))
    for start in range(0, steps, window):
        xs = jax.tree.map(lambda a, at=slice(start, start + window): jnp.asarray(a)[at], sample)
        _, carry = program.scan(model, xs, carry)
        carried = zip(program.plan.carried, carry.traces, strict=True)
        yield {p.op.number: (p.site, trace) for p, trace in carried}


DRAWS = 8
"""Random cotangents of the outputs of a sample."""


def credit(program: Program, model: Any, sample: Any) -> np.ndarray:
    """The singular values of the credit of the states at the start of each window of a sample, [S], from
    random cotangents of all outputs after it."""
    steps = _steps(sample)
    size = min(WINDOW, math.ceil(steps / 2))
    window, key = program.runner.window, jax.random.key(0)
    parameters = program.arguments.parameters(model)
    weights, others = window.prefix(parameters, steps)
    carry, credit_rows, ys = program.init(), [], None
    starts = []
    for start in range(0, steps - size + 1, size):
        xs = jax.tree.map(lambda a, at=slice(start, start + size): jnp.asarray(a)[at], sample)
        leaves, state, _, _ = program.runner.enter(program.arguments.inputs(xs, carry), carry)
        starts.append((leaves, state))
        ys, carry = program.scan(model, xs, carry)
    outputs = program.runner.step.output_leaves.split(ys)
    back = jax.jit(
        jax.vmap(
            lambda bars, ends, xs, state: window.credit(weights, others, xs, state, bars, ends),
            in_axes=(0, 0, None, None),
        )
    )
    ends = jnp.zeros((DRAWS, 1, program.plan.analysis.hidden.size), program.plan.dtype)
    for n, (xs, state) in enumerate(reversed(starts)):
        bars = [_random(jax.random.fold_in(key, n), y) for y in outputs]
        ends = back(bars, ends, xs, state)
        credit_rows.append(np.asarray(ends[:, 0]))
    values = np.zeros(ends.shape[-1])
    singular = np.linalg.svd(np.concatenate(credit_rows), compute_uv=False)
    values[: singular.size] = singular
    return values


def _random(key: Any, y: Any) -> Any:
    """Cotangents [draws, W, B, ...] of an output [W, ...]."""
    shape = (DRAWS, y.shape[0], 1, *y.shape[1:])
    if not jnp.issubdtype(y.dtype, jnp.inexact):
        return np.zeros(shape, jax.dtypes.float0)
    return jax.random.normal(key, shape, y.dtype)


def _steps(sample: Any) -> int:
    leaves = jax.tree.leaves(sample)
    steps = leaves[0].shape[0] if leaves else 0
    if steps < 2:
        raise AlgorithmError(
            "sample= has fewer than two steps. Pass a sequence of inputs with a leading axis T."
        )
    return steps


__all__ = ["credit", "traces"]
