"""UORO, in windows, as directions that a user writes: the influence that escapes from the traces, as an unbiased
estimate of rank one.

Tallec and Ollivier, "Unbiased online recurrent optimization", arXiv 1702.05043, algorithm 1: with random signs nu,
`s' = rho_0 J s + rho_1 nu` and `theta' = theta / rho_0 + nu^T F / rho_1`, whose product has the influence as its mean.
Here, J and F are those of a window and `nu^T F` is a backward pass from its end; the block of each output is in the
trace of D-RTRL, and so known without noise; rho_1 is 1, and rho_0 keeps `J s` as long as nu. (Theirs balance the
lengths of s and theta. The mean is the same for all that do not depend on the signs of nu.)
"""

import dataclasses

import jax
import jax.numpy as jnp

from etpc.algorithms import Algorithm, Backprop, Choice
from etpc.algorithms.directions import Directions
from etpc.forms import Full


@dataclasses.dataclass(frozen=True)
class RandomDirection(Directions):
    """The batch shares the number of windows; each example has s and the last signs, [B, S]."""

    count: int = 1
    seed: int = 0

    @property
    def left_out(self):
        return "carried as an unbiased estimate of rank one"

    def init(self, size, batch, dtype):
        return (jnp.zeros((), jnp.int32),), (jnp.zeros((batch, size), dtype),) * 2

    def signs(self, number, shape):
        key = jax.random.fold_in(jax.random.key(self.seed), number)
        return jax.random.rademacher(key, shape)

    def ends(self, shared, each, states):
        nu = self.signs(shared[0], each[0].shape).astype(each[0].dtype)
        return nu[:, None], nu

    def basis(self, shared, each):
        return each[1][:, None]

    def coefficients(self, shared, each, credit):
        return jnp.sum(credit * each[0], 1, keepdims=True)

    def advance(self, shared, each, chosen, starts, credit, push):
        moved = push(each[0][:, None])
        length = jnp.linalg.norm(moved, axis=2, keepdims=True)
        some = length > 0
        rho = jnp.where(some, chosen.shape[1] ** 0.5 / jnp.where(some, length, 1), 1)
        return 1 / rho, (shared[0] + 1,), ((rho * moved)[:, 0] + chosen, chosen)


@dataclasses.dataclass(frozen=True)
class UORO(Algorithm):
    directions: Directions = RandomDirection()
    backprop: Backprop = dataclasses.field(default="full", kw_only=True)

    def choose(self, context):
        return Choice({op.number: Full() for op in context.ops}, extension=self.directions)
