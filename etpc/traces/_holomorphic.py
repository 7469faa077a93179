"""The whole trace of complex weights in complex states, by the real part of the weight alone."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact

from ._full import Full
from ._trace import Carry, Passage, Site


@dataclasses.dataclass(frozen=True, eq=False)
class RealPassage:
    """A window, as it moves the derivatives by the real part of a weight.

    `F = f_re - i f_im` holds the derivatives by both parts of the operation's output, `w x`. The real part of the
    weight is multiplied with `Re x` in the one and with `Im x` in the other.
    """

    block: Passage

    @property
    def xs(self) -> Sequence[Array]:
        return [*(x.real for x in self.block.xs), *(x.imag for x in self._complex_data())]

    def moved(self) -> list[list[Array]]:
        moved = self.block.moved()
        by_imaginary = [
            [-part.imag for part in parts]
            for parts, x in zip(moved, self.block.xs, strict=False)
            if jnp.iscomplexobj(x)
        ]
        return [*([part.real for part in parts] for parts in moved), *by_imaginary]

    def whole(self) -> Array:
        return self.block.whole()

    @property
    def after(self) -> Array | None:
        return self.block.after

    def _complex_data(self) -> list[Array]:
        return [x for x in self.block.xs if jnp.iscomplexobj(x)]


@dataclasses.dataclass(frozen=True)
class Holomorphic(Full):
    """The whole trace where complex states depend on a complex weight as holomorphic functions.

    Then the derivatives by the imaginary part of the weight are those by its real part times `i`, so that the
    latter are enough. For one state, with `h' = d h + w x` and real data,

        D = [[Re d, -Im d], [Im d, Re d]],  eps' = D eps + [x, 0]

    and the gradient of a loss with the derivatives L is `L_re eps_re + L_im eps_im` by the real part of the weight, and
    `L_im eps_re - L_re eps_im` by the imaginary part.
    """

    real: tuple[int, ...] = ()
    """The places of the block that are real parts."""
    imaginary: tuple[int, ...] = ()
    """The places of the imaginary parts of the same states, in the same order."""
    start_alone = True
    skips = True

    @property
    def held(self) -> str:
        return "one real entry for each use and state: the derivatives by the weight's real part"

    def _real(self, site: Site) -> Site:
        """The operation, with a weight that is real."""
        return dataclasses.replace(site, dtype=jnp.finfo(site.dtype).dtype)

    def init(self, site: Site, batch: int) -> Carry:
        return super().init(self._real(site), batch)

    def entries(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        start, site = start.real, self._real(site)
        other = dict(zip(self.real + self.imaginary, self.imaginary + self.real, strict=True))
        signs = [1 if n in self.real else -1 for n in range(site.block)]
        rotated = [sign * start[:, other[n]] for n, sign in enumerate(signs)]
        by_real = super().entries(site, start, carry)
        by_imaginary = super().entries(site, jnp.stack(rotated, 1), carry)
        return lax.complex(by_real, -by_imaginary)  # as JAX has derivatives by complex numbers

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        return super().shown(self._real(site), carry)

    def advance(
        self,
        site: Site,
        passage: Passage,
        carry: Carry,
        followed: Carry,
        start: Array | None,
    ) -> Carry:
        return super().advance(self._real(site), RealPassage(passage), carry, followed, start)


__all__ = ["Holomorphic"]
