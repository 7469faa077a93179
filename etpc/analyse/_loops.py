"""Loops of unknown length, with a derivative in both modes.

- Pattern: a `while`, or a loop or a branch with one inside.
- Proof: the product with a loop's Jacobian is its tangent map. One tangent gives many columns of it, where the pattern
  of the loop says that they share no row.
- Rewrite: a function of the same values, whose derivative is that product; it is zero for what is not on the way to an
  output or a new state.
- Without it no derivative would come back through the loop, as the number of iterations is not known.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import scipy.sparse as sp

from .._jax import (
    ColumnTangents,
    Equation,
    Flat,
    Variable,
    canonicalise,
    is_checkpointed_loop,
    is_unbounded,
    partition,
    prims,
    with_reverse_mode,
)
from ..trace import Step
from ._interpreter import Interpreter, Opaque
from ._pattern import Pattern, colours_of


def differentiable(step: Step, dense: dict[Opaque, None]) -> tuple[Equation, ...]:
    """The equations of a step, in which loops of unknown length have a reverse mode.

    Where their derivative is taken, operations inside that have no pattern rule are added to `dense`.
    """
    to_state = _leading_to(step.next_state, step.equations)
    wanted = to_state | _leading_to(step.outputs, step.equations)
    _, of_data, _ = partition(step.equations, [*step.constants, *step.parameters])

    def with_both_modes(eqn: Equation) -> Equation:
        # The reverse mode of Equinox is enough on the way to the output alone, and for what no data enters.
        needed = eqn in of_data and not to_state.isdisjoint(eqn.outputs)
        if not is_unbounded(eqn) or (is_checkpointed_loop(eqn) and not needed):
            return eqn
        moves = [v in wanted for v in eqn.outputs]
        loop = with_reverse_mode(eqn, moves, functools.partial(_columns, dense))
        (call,) = canonicalise(loop, [v.aval for v in eqn.inputs]).equations
        return dataclasses.replace(eqn, primitive=call.primitive, params=call.params)

    return tuple(map(with_both_modes, step.equations))


def _leading_to(results: Sequence[Variable], equations: Sequence[Equation]) -> set[Variable]:
    """What some results depend on through floats, with a derivative."""
    found = {v for v in results if v.is_float}
    for eqn in reversed(equations):
        if eqn.primitive is not prims.stop_gradient_p and not found.isdisjoint(eqn.outputs):
            found.update(v for v in eqn.inputs if v.is_float)
    return found


def _columns(dense: dict[Opaque, None], tangents: Flat, sizes: Sequence[int]) -> ColumnTangents:
    """As few tangents as the pattern of a loop allows."""
    count = sum(sizes)
    interpreter = Interpreter(count + 1)
    with jax.ensure_compile_time_eval():  # the derivative of a loop is asked for under `jit`
        found = interpreter.run_on_seeds(tangents, sizes)
    dense.update(interpreter.opaque)
    patterns: list[Pattern] = [sp.csr_array(pattern[:, :count]) for pattern in found]
    stacked: Pattern = sp.csr_array(sp.vstack(patterns).T)
    colour = colours_of(stacked, np.repeat(np.arange(len(sizes)), sizes))
    owners = [np.full((colour.max() + 1, p.shape[0]), count) for p in patterns]
    for pattern, owner in zip(patterns, owners, strict=True):
        rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
        owner[colour[pattern.indices], rows] = pattern.indices
    return ColumnTangents(colour, owners)
