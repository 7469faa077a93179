"""Dense Jacobians of each step of a sequence, for rules that are more than their definition in `etpc.definition`.

They are by all parameters, as one vector [P], and by all hidden states, as one vector [S].
"""

from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import etpc
from etpc.definition import Definition
from etpc.gradient.loss import Loss
from etpc.trace import trace
from tests.helpers import loss, quickly


class Jacobians(NamedTuple):
    """Of one step; `full`: with nothing cut."""

    D: np.ndarray  # ds'/ds
    F: np.ndarray  # ds'/dp
    D_full: np.ndarray
    F_full: np.ndarray
    l_s: np.ndarray  # dl/ds
    l_p: np.ndarray  # dl/dp


def jacobians(model, xs, targets) -> list[Jacobians]:
    """Those of one example, from its initial state."""
    found = jax.tree.map(np.asarray, _jacobians(model, xs, targets))
    return [jax.tree.map(lambda a, t=t: a[t], found) for t in range(len(found.D))]


@quickly
def _jacobians(model, xs, targets):
    step = trace(model, jax.tree.map(lambda a: a[0], xs), None, None)
    definition = Definition(step, etpc.D_RTRL(), Loss.of(loss, False))
    hidden = definition.hidden.leaves
    floats, rest = eqx.partition(model, eqx.is_inexact_array)
    p, unravel = ravel_pytree(floats)

    def cut(p, h, x, state):
        parameters = step.model_leaves.split(eqx.combine(unravel(p), rest))
        weights, others = definition.prefix(parameters)
        env = definition._environment(others, step.input_leaves.split(x), state)
        return definition.cut_step(env, definition.weights.flat(weights), h, [])

    def full(p, h, x, target, state):
        state = list(state)
        for i, value in zip(hidden, definition.states.arrays(h), strict=True):
            state[i] = value
        y, new = eqx.combine(unravel(p), rest)(x, step.state_leaves.join(state))
        new = step.state_leaves.split(new)
        return definition.states.flat([new[i] for i in hidden]), loss(y, target), new

    def body(state, step_data):
        x, target = step_data
        h = definition.states.flat([state[i] for i in hidden])
        F, D = jax.jacrev(cut, (0, 1))(p, h, x, state)
        both = lambda *args: full(*args)[:2]
        (F_full, D_full), (l_p, l_s) = jax.jacrev(both, (0, 1))(p, h, x, target, state)
        return full(p, h, x, target, state)[2], Jacobians(D, F, D_full, F_full, l_s, l_p)

    return jax.lax.scan(body, step.state_leaves.split(model.init_state()), (xs, targets))[1]


def of_parameters(model, gradient):
    """A gradient [P] with the structure of the model."""
    return ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[1](gradient)
