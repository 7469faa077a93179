"""Traces of a rank that is known before any number, from the program of D and F alone.

A trace is `eps_o' = D_o eps_o + F_o x^T` for each output o. Outputs whose D and F are the same
scalars at each step, whatever those are, have the same trace of m rows: so its rank is at most m for
each pair (D, F) that differs, also while the weights move.

Where D and F depend on parameters and constants alone, the sequences `D_o^n F_o` solve a recurrence of
order m that outputs with the same D share: then the rank is at most m for each D that differs, as
long as the weights stay as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import canonicalise
from ..algorithms import Bound
from ..analyse._values import Numbering, Numbers, distinct_columns
from ..plan import Plan
from ._emit import Emitter
from ._step import StepFunctions


def rank_bounds(plan: Plan) -> dict[int, Bound]:
    """For operations with a trace and a factor, by number: what their rank cannot exceed."""
    emitter = Emitter(plan, StepFunctions(plan.analysis))
    step = plan.analysis.step
    ops = [p for p in plan.traces if p.op.kind.data is not None]
    groups = [step.parameters, step.inputs, step.state]
    avals, treedef = jax.tree.flatten([[v.aval for v in group] for group in groups])

    def tables(*flat: Any) -> Any:
        parameters, xs, state = jax.tree.unflatten(treedef, flat)
        weights, others = emitter.step.prefix(parameters)
        one_step = [jnp.asarray(x)[None, None] for x in xs], [jnp.asarray(s)[None] for s in state]
        factors = emitter.jacobians_of(weights, others, *one_step)
        return [
            [factors[p.op.number].transition[0, 0], factors[p.op.number].immediate[0, 0]]
            for p in ops
        ]

    if not ops:
        return {}
    flat = canonicalise(lambda *args: jax.tree.leaves(tables(*args)), avals)
    numbering = Numbering()
    n_parameters = len(step.parameters)
    inputs = [numbering.new(aval, data=i >= n_parameters) for i, aval in enumerate(avals)]
    numbers = iter(numbering.run(flat, inputs))
    return {p.op.number: _bound(p, next(numbers), next(numbers)) for p in ops}


def _bound(p: Any, transition: Numbers, immediate: Numbers) -> Bound:
    kind, m = p.op.kind, p.block
    outputs = kind.groups * kind.outputs
    tiled = np.tile(transition.at, outputs // transition.at.shape[-1])
    by_group = [
        [table.reshape(-1, kind.groups, kind.outputs)[:, g] for table in (tiled, immediate.at)]
        for g in range(kind.groups)
    ]
    rank = max(distinct_columns(tables) for tables in by_group)
    if transition.data or immediate.data:
        return Bound(m * rank, m * rank)
    return Bound(m * rank, m * max(distinct_columns([tiled]) for tiled, _ in by_group))


__all__ = ["rank_bounds"]
