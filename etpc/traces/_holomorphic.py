"""The whole trace of complex weights in complex states: one complex number where real ones would be two."""

import dataclasses
from collections.abc import Hashable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from ._full import Full
from ._pairs import Pairs
from ._trace import Carry, Passage, Site


@dataclasses.dataclass(frozen=True, eq=False)
class HolomorphicPassage:
    """A window as it moves complex states, from how it moves their real and imaginary parts."""

    block: Passage
    form: "Holomorphic"
    pairs: Pairs
    """The transitions that the block has."""

    @property
    def xs(self) -> Sequence[Array]:
        return self.block.xs

    def moved(self) -> list[list[Array]]:
        real = list(self.form.real)
        return [[jnp.concatenate(parts, 2)[:, :, real]] for parts in self.block.moved()]

    def whole(self) -> Array:
        whole, pairs = self.block.whole(), self.pairs  # [B, P, o]
        number = np.full((pairs.m, pairs.m), -1)
        number[pairs.after, pairs.before] = np.arange(pairs.after.size)

        def entries(after: tuple[int, ...]) -> Array:
            at = number[np.ix_(after, self.form.real)].reshape(-1)
            return jnp.where((at >= 0)[:, None], whole[:, at], jnp.zeros((), whole.dtype))

        return entries(self.form.real) + 1j * entries(self.form.imaginary)

    @property
    def after(self) -> Array | None:
        return self.block.after


@dataclasses.dataclass(frozen=True)
class Holomorphic(Full):
    """The whole trace where complex states depend on a complex weight as holomorphic functions.

    Then the derivative of the imaginary part of a state is that of its real part times `-i`, so that the trace of
    the real parts is enough. For one state, with `h' = d h + w x`, the derivatives by JAX's convention are

        D = [[Re d, -Im d], [Im d, Re d]],  F = [1, -i]      and      eps_re' = d eps_re + x,  eps_im = -i eps_re

    and the gradient of a loss with the derivatives L is `(L_re - i L_im) eps_re`.
    """

    real: tuple[int, ...] = ()
    """The places of the block that are real parts."""
    imaginary: tuple[int, ...] = ()
    """The places of the imaginary parts of the same states, in the same order."""
    start_alone = True
    skips = True

    @property
    def held(self) -> str:
        return "one complex entry for each use and complex state"

    def _complex(self, site: Site) -> Site:
        """The operation, with one state for the two parts of each."""
        return dataclasses.replace(site, block=len(self.real), transitions=None)

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return super().shapes(self._complex(site))

    def same(self, site: Site) -> Hashable:
        return super().same(self._complex(site))

    def entries(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        credit = start[:, list(self.real)] - 1j * start[:, list(self.imaginary)]
        return super().entries(self._complex(site), credit, carry)

    def gathered(self, site: Site, entries: Array) -> Array:
        return super().gathered(self._complex(site), entries)

    def advance(
        self,
        site: Site,
        passage: Passage,
        carry: Carry,
        followed: Carry,
        start: Array | None,
    ) -> Carry:
        of_states = HolomorphicPassage(passage, self, site.pairs)
        return super().advance(self._complex(site), of_states, carry, followed, start)


__all__ = ["Holomorphic"]
