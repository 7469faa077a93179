"""Loops that Equinox differentiates by checkpoints, written out.

`equinox.internal.while_loop(kind="checkpointed")`, in which solvers of differential equations run
the stages of a step, is a `while` in a `custom_vjp` whose backward rule runs another `while`. Neither
has a derivative that goes forward. Where the number of iterations has a bound that is known, the loop
is its iterations one after another, and those that may be beyond the end are branches.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._jax import (
    Equation,
    Flat,
    Tracer,
    Variable,
    canonicalise,
    flatten,
    is_checkpointed_loop,
    of_one_example,
    params,
    prims,
)


class _NoBound(Exception):
    """The number of iterations is not known, or too large."""


def written_out(
    eqn: Equation,
    known: Callable[[Variable], Any],
    max_iterations: int,
    max_equations: int,
    branches: bool,
) -> Flat | None:
    """A loop that Equinox differentiates by checkpoints, as plain operations.

    `None` for other equations, and for a loop without a known bound, or without a known number of iterations where
    there shall be no `branches`.

    `known` gives the value of an operand, and `None` where data or a parameter changes it.
    """
    if not is_checkpointed_loop(eqn):
        return None
    whole = flatten(params.custom_body(eqn))
    known_values = [known(v) for v in eqn.inputs]

    def loop(loop: Equation, operands: Sequence[Any]) -> list[Any]:
        skip, count, *programs = params.while_loop(loop)
        cond, body = map(flatten, programs)
        limit = min(max_iterations, max_equations // max(len(body.equations), 1))
        state = ended = list(operands[skip + count :])
        goes_on: Any = True
        for _ in range(limit + 1):
            (continues,) = run(cond, [*operands[:skip], *state])
            if np.ndim(continues):  # a plain loop under `vmap`, whose examples end one by one
                raise _NoBound
            if not isinstance(continues, Tracer):
                if not np.asarray(continues):
                    return ended
            elif not branches:
                raise _NoBound
            else:
                goes_on = continues if goes_on is True else goes_on & continues
            iterate = partial(run, body, [*operands[skip : skip + count], *state])
            if goes_on is True:
                state = ended = iterate()
            else:
                state, ended = _branch(goes_on, iterate, ended)
        raise _NoBound

    def rule(eqn: Equation, operands: list[Any]) -> list[Any] | None:
        if eqn.primitive is prims.while_p:
            return loop(eqn, operands)
        if (plain := of_one_example(eqn)) is not None:
            return run(plain, operands)
        if eqn.primitive is prims.and_p and any(_is_false(v) for v in operands):
            return [np.zeros(eqn.outputs[0].shape, bool)]
        if not any(isinstance(v, Tracer) for v in operands):
            with jax.ensure_compile_time_eval():
                return eqn.bind(*operands)
        return None

    def run(flat: Flat, operands: Sequence[Any]) -> list[Any]:
        return flat.run(operands, rule)

    def unrolled(*operands: Any) -> list[Any]:
        pairs = zip(known_values, operands, strict=True)
        return run(whole, [v if value is None else value for value, v in pairs])

    try:
        return canonicalise(unrolled, [v.aval for v in eqn.inputs])
    except _NoBound:
        return None


def _branch(
    goes_on: Any, iterate: Callable[[], list[Any]], ended: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Run an iteration if the loop goes on, which data decides.

    **Returns** the state from which the next iteration starts, and the state in which the loop ends if this was
    the last iteration. They differ in values that data does not change, such as the number of the iteration, from
    which the bound of the loop follows. In the first these are known, as if the iteration had run: if it had not,
    the next one does not run either, and may start from any state.
    """
    known: dict[int, Any] = {}

    def taken():
        state = iterate()
        known.update((i, v) for i, v in enumerate(state) if not isinstance(v, Tracer))
        return [jnp.asarray(v) for v in state]

    results = jax.lax.cond(goes_on, taken, lambda: [jnp.asarray(v) for v in ended])
    return [known.get(i, v) for i, v in enumerate(results)], results


def _is_false(value: Any) -> bool:
    return not isinstance(value, Tracer) and value.dtype == bool and not np.any(np.asarray(value))
