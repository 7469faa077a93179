"""Loops and branches that use weights, as plain operations.

A weight operation inside a `scan` or a `cond` has its data, its perturbation and its trace at each
iteration or in each branch, so these must be visible: a short loop is unrolled, and of a branch all
sides are computed and one is chosen, which is what `vmap` makes of it too.
"""

import dataclasses
from collections import deque
from typing import Any

from .._jax import Equation, Flat, Variable, all_branches, flatten, prims, unrolled
from ._known import Known
from ._loops import written_out

MAX_ITERATIONS = 256
MAX_EQUATIONS = 4096


def expand(flat: Flat, parameters: tuple[Variable, ...]) -> Flat:
    """The program with its loops and branches expanded where weights meet data inside them.

    `parameters` are the arguments that are parameters, floats or not.
    """
    constants: dict[Variable, Any] = dict(flat.constants)
    fixed: set[Variable] = {*constants, *parameters}
    weights: set[Variable] = {v for v in parameters if v.is_float}
    alias: dict[Variable, Variable] = {}

    def resolve(v: Variable) -> Variable:
        while v in alias:
            v = alias[v]
        return v

    kept: list[Equation] = []
    waiting = deque(flat.equations)
    while waiting:
        eqn = waiting.popleft()
        operands = tuple(resolve(v) for v in eqn.inputs)
        is_fixed = all(v in fixed for v in operands)
        uses_weights = any(v in weights for v in operands)
        inner = None
        if not is_fixed:
            opened = dataclasses.replace(eqn, inputs=operands)
            inner = written_out(
                opened, lambda v: Known(kept, constants)(v), MAX_ITERATIONS, MAX_EQUATIONS
            )
            if inner is None and uses_weights:
                inner = _opened(eqn)
        if inner is not None:
            constants.update(inner.constants)
            fixed.update(inner.constants)
            alias.update(zip(inner.inputs, operands, strict=True))
            alias.update(zip(eqn.outputs, inner.outputs, strict=True))
            waiting.extendleft(reversed(inner.equations))
            continue
        kept.append(dataclasses.replace(eqn, inputs=operands))
        if is_fixed:
            fixed.update(eqn.outputs)
            if uses_weights and eqn.primitive is not prims.stop_gradient_p:
                weights.update(v for v in eqn.outputs if v.is_float)
    outputs = tuple(resolve(v) for v in flat.outputs)
    return Flat(tuple(kept), flat.inputs, outputs, constants)


def _opened(eqn: Equation) -> Flat | None:
    """A loop or branch as plain operations; `None` where it is none, or too long."""
    if eqn.primitive is prims.cond_p:
        return all_branches(eqn)
    if eqn.primitive is prims.scan_p:
        length = eqn.params["length"]
        size = length * len(flatten(eqn.params["jaxpr"]).equations)
        if 0 < length <= MAX_ITERATIONS and size <= MAX_EQUATIONS:
            return unrolled(eqn)
    return None


__all__ = ["expand"]
