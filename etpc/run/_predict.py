"""The model alone, over a sequence: no traces, no window."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from .._jax import leading
from ..trace import Leaves, Step, StepFunction, called, check_new_state, checked_call
from ._carry import Carry

Predict = Callable[[Any, list[Array], Carry], tuple[Any, Any]]


def predictor(call: StepFunction | None, step: Step) -> Predict:
    """The compiled function of a model, a sequence and a carry that gives outputs and the last state.

    It calls the model as it is passed, and not the equations that were traced: so `eqx.nn.inference_mode` of the
    model that was compiled has its effect.
    """
    old = step.state_leaves

    def one_step(model: Any, x: list[Array], state: list[Array]) -> tuple[Any, list[Array]]:
        run = checked_call(model, call)
        y, new_state = called(
            lambda: run(model, step.input_leaves.join(x), old.join(state)), step.input_leaves, old
        )
        new = Leaves.of(new_state, "state", numbers=True)
        check_new_state(old, new)
        return jax.tree.map(jnp.asarray, y), [jnp.asarray(v) for v in new.split(new_state)]

    @eqx.filter_jit
    def predict(model: Any, xs: list[Array], carry: Carry) -> tuple[Any, Any]:
        state = old.split(carry.state)
        if step.initial is not None:  # streams begin with the state of the model that they run with
            begun = old.split(model.init_state())
            for i in old.floats:
                state[i] = jnp.where(leading(carry.fresh, state[i]), begun[i], state[i])
        run = lambda x, s: one_step(model, x, s)
        run = jax.vmap(run) if carry.batched else run

        def body(state: list[Array], x: list[Array]) -> tuple[list[Array], Any]:
            y, state = run(x, state)
            return state, y

        state, ys = jax.lax.scan(body, state, xs)
        return ys, old.join(state)

    return predict
