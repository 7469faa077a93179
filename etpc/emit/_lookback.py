"""The last steps of a stream, through which credit of the newest window goes back exactly.

The input of each step and the states before it are kept as they were; the steps are linearised there, with
the current weights. The traces stand at the first of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._forward import enter


class Steps(NamedTuple):
    """Steps that were taken, in order, with axes [n, B, ...]."""

    xs: list[Array]
    states: list[Array]
    """Before each step, all array leaves."""
    first: Array
    """Whether the stream begins with the step."""
    valid: Array
    """Whether it is a step of the stream at all."""

    def part(self, start: int | None, stop: int | None) -> "Steps":
        return jax.tree.map(lambda a: a[start:stop], self)

    def then(self, other: "Steps") -> "Steps":
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self, other)


def none_yet(
    xs: Sequence[jax.ShapeDtypeStruct], state: Sequence[Array], count: int
) -> tuple[Array, ...]:
    """What is carried of `count` steps when a stream begins, [B, n, ...]; `state` [B, ...]."""
    batch = state[0].shape[0]
    states = [jnp.repeat(s[:, None], count, 1) for s in state]
    inputs = [jnp.zeros((batch, count, *a.shape), a.dtype) for a in xs]
    return (*inputs, *states, *jnp.zeros((2, batch, count), bool))


def recent(past: tuple[Array, ...], xs: Sequence[Array], state: Sequence[Array]) -> Steps:
    """The steps that are carried. What is no step of the stream is a copy of the one to come, whose
    derivatives are finite wherever those of backpropagation are."""
    *stored, first, valid = (jnp.moveaxis(a, 1, 0) for a in past)
    coming = [*(x[0] for x in xs), *state]

    def filled(old: Array, new: Array) -> Array:
        mask = valid.reshape(*valid.shape, *[1] * (old.ndim - 2))
        return jnp.where(mask, old, new[None])

    full = [filled(old, new) for old, new in zip(stored, coming, strict=True)]
    return Steps(full[: len(xs)], full[len(xs) :], first, valid)


def window_steps(xs: Sequence[Array], states: Sequence[Array], fresh: Array) -> Steps:
    """The steps of a window."""
    steps = xs[0].shape[0]
    first = (np.arange(steps) == 0)[:, None] & fresh[None]
    return Steps(list(xs), list(states), first, jnp.ones_like(first))


def as_carried(steps: Steps) -> tuple[Array, ...]:
    """Steps as they are carried."""
    flat = (*steps.xs, *steps.states, steps.first, steps.valid)
    return tuple(jnp.moveaxis(a, 0, 1) for a in flat)


def entering(state: Sequence[Array], before: Sequence[Array], fresh: Array) -> list[Array]:
    """The state that a window begins with, as a function of that after the steps before."""
    return [enter(s, b, fresh) for s, b in zip(state, before, strict=True)]


__all__ = ["Steps", "as_carried", "entering", "none_yet", "recent", "window_steps"]
