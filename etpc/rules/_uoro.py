"""UORO: the influence that escapes from the traces, as an unbiased estimate of rank one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from ..algorithms import Algorithm, Backprop, Choice, Context
from ..forms import Carry, Full
from ._directions import Directions
from ._kronecker import KFRTRL
from ._random_pairs import random_signs


@dataclasses.dataclass(frozen=True)
class RandomDirection(Directions):
    """The batch shares the number of windows; each example has s and the last signs, [B, S]."""

    count: int = 1
    seed: int = 0
    unbiased: ClassVar[bool | None] = True

    @property
    def left_out(self) -> str:
        return "carried as an unbiased estimate of rank one"

    def init(self, size: int, batch: int, dtype: Any) -> tuple[Carry, Carry]:
        return (jnp.zeros((), jnp.int32),), (jnp.zeros((batch, size), dtype),) * 2

    def signs(self, number: Array, shape: tuple[int, ...]) -> Array:
        """-1 or 1 for each example and state."""
        return random_signs(self.seed, number, shape)

    def ends(self, shared: Carry, each: Carry, states: Array) -> tuple[Array, Array]:
        nu = self.signs(shared[0], each[0].shape).astype(each[0].dtype)
        return nu[:, None], nu

    def basis(self, shared: Carry, each: Carry) -> Array:
        return each[1][:, None]

    def coefficients(self, shared: Carry, each: Carry, credit: Array) -> Array:
        return jnp.sum(credit * each[0], 1, keepdims=True)

    def advance(
        self,
        shared: Carry,
        each: Carry,
        chosen: Any,
        starts: Array,
        credit: Array | None,
        push: Callable[[Array], Array],
    ) -> tuple[Array, Carry, Carry]:
        moved = push(each[0][:, None])
        # Zero where nothing of s is left, as where a stream began in the window: then no theta is either.
        shrink = jnp.linalg.norm(moved, axis=2, keepdims=True) / chosen.shape[1] ** 0.5
        moved = moved / jnp.where(shrink > 0, shrink, 1)
        return shrink, (shared[0] + 1,), (moved[:, 0] + chosen, chosen)


@dataclasses.dataclass(frozen=True, repr=False)
class UORO(Algorithm):
    """Unbiased online recurrent optimization: what escapes from the traces of D-RTRL, as an estimate of rank one.

    With random signs nu, `s' = rho_0 J s + rho_1 nu` and `theta' = theta / rho_0 + nu^T F / rho_1`, whose product has
    the influence as its mean. J and F are those of a window here, and `nu^T F` is a backward pass from its end.

    **Cost:** I·(m + 1)·O numbers for a weight matrix, and S for s; one forward and one backward pass more.

    - `seed`: of the signs.

    **Source:** Tallec and Ollivier, "Unbiased online recurrent optimization", ICLR 2018 (arXiv 1702.05043), algorithm
    1. Deviation: the block of each output is in the trace of D-RTRL, and so known without noise; rho_1 is 1, and rho_0
    keeps `J s` as long as nu, where theirs balance the lengths of s and theta. The mean is the same for all that do
    not depend on the signs of nu.
    """

    seed: int = dataclasses.field(default=0, kw_only=True, repr=False)
    backprop: Backprop = dataclasses.field(default="full", kw_only=True)
    name: ClassVar[str] = "uoro"
    checks: ClassVar[Mapping[str, Any]] = {"seed": KFRTRL.checks["seed"]}

    def choose(self, context: Context) -> Choice:
        forms = {op.number: Full() for op in context.ops}
        return Choice(forms, extension=RandomDirection(seed=self.seed))
