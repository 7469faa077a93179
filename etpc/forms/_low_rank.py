"""The trace as R pairs of factors: its leading modes, chosen anew after each window."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact

from ._defined import WHOLE_TRACE, Meaning
from ._full import Full
from ._modes import combined, diagonal, leading
from ._trace import Carry, Passage, Rows, Site, Trace, zeros
from ._transitions import apply, paired


@dataclasses.dataclass(frozen=True)
class LowRank(Trace):
    """`sum_r a_r b_r^T` for each group, with a [B, R, G, I] and b [B, R, m, G, O].

    Modes are found from squares of pairs that are scaled first, so modes are lost that are smaller than the
    largest one times the root of the precision.
    """

    rank: int
    exact = False
    reduces = True

    @property
    def left_out(self) -> str:
        modes = "leading mode" if self.rank == 1 else f"{self.rank} leading modes"
        return f"after each window the trace is reduced to its {modes}"

    @property
    def verdict(self) -> str:
        return f"rank {self.rank}"

    @property
    def held(self) -> str:
        pairs = "one pair of factors" if self.rank == 1 else f"{self.rank} pairs of factors"
        return f"{pairs}, for its leading {'mode' if self.rank == 1 else 'modes'}"

    def meaning(self) -> Meaning:
        return dataclasses.replace(WHOLE_TRACE, rank=self.rank)

    def settle(self, site: Site) -> Trace:
        """The whole trace, where it cannot have a higher rank."""
        highest = min(site.kind.inputs, site.block * site.kind.outputs)
        return self if site.factored and self.rank < highest else Full()

    def init(self, site: Site, batch: int) -> Carry:
        right = (*site.states, *site.group, site.kind.outputs)
        shapes = (self.rank, *site.group, site.kind.inputs), (self.rank, *right)
        return zeros(batch, shapes, site.dtype)

    def past(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> list[Rows]:
        """The left modes, and their credit `lambda_0 b`."""
        a, b = carry[:2]
        b = b.reshape(b.shape[0], -1, site.block, site.count)
        return [(jnp.moveaxis(a, 1, 0), jnp.moveaxis(paired(start[:, None], b), 1, 0))]

    def all_pairs(
        self, site: Site, passage: Passage, carry: Carry
    ) -> tuple[Inexact[Array, "B Q G I"], Inexact[Array, "B Q m G O"]]:
        """All factor pairs at the end of a window: first the R of the trace, then one for each step."""
        kind, m = site.kind, site.block
        g, i, o = kind.groups, kind.inputs, kind.outputs
        (parts,), (x,) = passage.moved(), passage.xs
        a, b = carry[:2]
        batch, x = a.shape[0], jnp.moveaxis(x, 0, 1).astype(a.dtype)
        a = jnp.concatenate([a.reshape(batch, -1, g, i), x], 1)
        # The parts are written one by one: XLA would compute them inside the loop that joins them.
        zero = jnp.zeros_like(a[:, :, :1, :1], b.dtype)  # spread over devices as the trace
        pairs, first = jnp.broadcast_to(zero, (*a.shape[:2], m, g * o)), 0
        for part in parts:
            new = jnp.moveaxis(part, 0, 1).astype(b.dtype)
            pairs = lax.dynamic_update_slice(pairs, new, (0, self.rank, first, 0))
            first += part.shape[2]
        old = apply(site.pairs, passage.whole()[:, None], b.reshape(batch, -1, m, g * o))
        pairs = lax.dynamic_update_slice(pairs, old.astype(b.dtype), (0, 0, 0, 0))
        return a, pairs.reshape(*pairs.shape[:3], g, o)

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        """Add the factor pairs of a window to those of the trace, and keep the leading modes.

        All Q pairs together are `A B^T`. The span of its R leading left modes is found as `A c` by
        subspace iteration in the coordinates of the pairs, `c <- (B^T B*) (A^H A) c`, which needs two
        Gram matrices and no product of the size of the weight; then `A B^T` is projected onto that
        span.
        """
        pairs = _Pairs.scaled(*self.all_pairs(site, passage, carry), self.rank)
        a, b, size = pairs.a, pairs.b, pairs.size
        length, inverse = jnp.moveaxis(pairs.length, 0, -1), jnp.moveaxis(pairs.inverse, 0, -1)
        kind, m = site.kind, site.block
        # In products and sums: XLA loops eigendecompositions over a batch on accelerators, and on few CPU cores two
        # of them at the same time may wait for each other for ever.
        # With less precision the vectors are not orthonormal on accelerators.
        with jax.default_matmul_precision("highest"):
            c, image = leading(*pairs.grams, self.rank)
            left = combined(c * inverse, a)
            right = combined(length * image.conj(), b)
            by_group = functools.partial(_by_group, groups=kind.groups)
            new_a, new_b = by_group(left), by_group(right * size)
            new_b = new_b.reshape(*new_b.shape[:-1], m, kind.outputs)
            new = jnp.moveaxis(new_a, 1, 2), jnp.moveaxis(new_b, 1, 3)
        return tuple(array.reshape(old.shape) for array, old in zip(new, carry, strict=True))

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        """The sum of the pairs, in the shape of the whole trace."""
        left, right = carry[:2]  # [R, (G,) I] and [R, (m,) (G,) O]
        left = left.reshape(len(left), site.kind.groups, -1)
        right = right.reshape(len(right), site.block, site.kind.groups, -1)
        return {"trace": Full().in_order(site, jnp.einsum("rgi,rmgo->gimo", left, right))}


class _Pairs(NamedTuple):
    """The factor pairs of a trace, scaled so that all that is squared is of size one; n counts groups of examples."""

    a: Inexact[Array, "n Q I"]
    b: Inexact[Array, "n Q mO"]
    length: Inexact[Array, "n Q 1"]
    """Of each a."""
    inverse: Inexact[Array, "n Q 1"]
    """Zero where the length is."""
    grams: tuple[Inexact[Array, "n Q Q"], Inexact[Array, "n Q Q"]]
    """`A^H A` and `B^T B*`, of pairs whose a has the length one."""
    size: Inexact[Array, "n 1 1"]
    """What all `b` were divided by."""

    @classmethod
    def scaled(
        cls, a: Inexact[Array, "B Q G I"], b: Inexact[Array, "B Q m G O"], rank: int
    ) -> "_Pairs":
        """Arrays are scaled by powers of two; what makes a of length one is left to the Gram matrices, which are
        small. The first a, which were kept, have that length already."""
        # Without axes of length one, for which XLA copies what it multiplies. An array that is spread over devices is
        # reshaped by one axis at a time.
        a = lax.collapse(jnp.moveaxis(a, 2, 1), 0, 2)
        b = lax.collapse(lax.collapse(jnp.moveaxis(b, 3, 1), 3), 0, 2)
        largest = jnp.max(jnp.abs(a[:, rank:]), -1, keepdims=True, initial=0)
        of_kept = jnp.ones_like(a[:, :rank, :1], largest.dtype)
        scale = jnp.concatenate([of_kept, _or_one(_power_of_two(largest))], 1)
        a = a / scale
        # The power of two of each sum of pairs: two maxima would become one, which XLA computes number by number.
        powers = _power_of_two(jnp.max(jnp.abs(b) * scale, 1, keepdims=True, initial=0))
        size = _or_one(jnp.max(powers, -1, keepdims=True, initial=0))
        b = b * (scale / size)
        with jax.default_matmul_precision("highest"):
            gram_a = a.conj() @ a.swapaxes(-1, -2)
            gram_b = b @ b.conj().swapaxes(-1, -2)
        length = jnp.sqrt(diagonal(gram_a))[..., None]
        inverse = jnp.where(length > 0, 1 / length, jnp.zeros((), length.dtype))
        of_both = lambda factor: factor * factor.swapaxes(-1, -2)
        return cls(
            a, b, length, inverse, (gram_a * of_both(inverse), gram_b * of_both(length)), size
        )


def _by_group(array: Inexact[Array, "n ..."], groups: int) -> Inexact[Array, "B G ..."]:
    """With an axis of examples and one of groups."""
    return array.reshape(-1, groups, *array.shape[1:])


def _power_of_two(size: Inexact[Array, "..."]) -> Array:
    """The power of two next to a size."""
    return lax.reduce_precision(size, jnp.finfo(size.dtype).nexp, 0)


def _or_one(power: Inexact[Array, "..."]) -> Array:
    """A power of two, or one where it is zero or not finite."""
    return jnp.where((power > 0) & jnp.isfinite(power), power, jnp.ones((), power.dtype))
