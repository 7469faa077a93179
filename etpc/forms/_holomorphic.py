"""The whole trace of complex weights in complex states, as derivatives by complex numbers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact

from ._defined import WHOLE_TRACE, Meaning
from ._full import Full
from ._trace import Carry, Passage, Site, Trace


def _rows(a: Inexact[Array, "... m o"]) -> list[Array]:
    return [a[..., n, :] for n in range(a.shape[-2])]


@dataclasses.dataclass(frozen=True)
class Holomorphic(Trace):
    """The whole trace where complex states depend on a complex weight as holomorphic functions.

    Then the derivatives by the imaginary part of the weight are those by its real part times `i`, so that the trace
    holds one complex number for each use and complex state. For `h' = d h + w x`,

        eps' = d eps + x

    and the gradient of a loss with the derivatives L is `L_re eps_re + L_im eps_im` by the real part of the weight, and
    `L_im eps_re - L_re eps_im` by the imaginary part. JAX subtracts i times the latter from the
    former: `(L_re - i L_im) eps`.
    """

    real: tuple[int, ...]
    """The places of the block that are real parts."""
    imaginary: tuple[int, ...]
    """The places of the imaginary parts of the same states, in the same order."""
    inner: Full = Full()
    exact = True

    @property
    def held(self) -> str:
        return "one complex entry for each use and complex state"

    def meaning(self) -> Meaning:
        return dataclasses.replace(WHOLE_TRACE, holomorphic=True)

    def _complex(self, site: Site) -> Site:
        """The operation, with a block of complex states."""
        return dataclasses.replace(site, block=len(self.real), transitions=None)

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return self.inner.shapes(self._complex(site))

    def init(self, site: Site, batch: int) -> Carry:
        return self.inner.init(self._complex(site), batch)

    def past(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        return self.inner.past(self._complex(site), self._joined(start), carry)

    def read_end(self, site: Site, credit: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        return self.inner.read_end(self._complex(site), self._joined(credit), carry)

    def _joined(self, credit: Inexact[Array, "B m GO"]) -> Array:
        """The credit of complex states, from that of their parts."""
        credit = credit.real
        pairs = zip(self.real, self.imaginary, strict=True)
        return jnp.stack([lax.complex(credit[:, re], -credit[:, im]) for re, im in pairs], 1)

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        trace = self.inner.shown(self._complex(site), carry)["trace"]
        return {"trace": jnp.stack([trace.real, trace.imag], len(site.group))}

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        moved, whole = (functools.partial(of, site, passage) for of in (self._moved, self._whole))
        of_complex = dataclasses.replace(passage, moved=moved, whole=whole)
        return self.inner.move(self._complex(site), of_complex, path, carry, start)

    # A window hands over the derivatives of real and imaginary parts by the real part of a complex number, in rows and
    # columns of the block: those of the complex number by the other one are the former plus i times the latter.

    def _moved(self, site: Site, passage: Passage) -> list[list[Array]]:
        # F is a cotangent of a complex output, whose real part is the derivative by the real part.
        return [
            [self._of_parts([row for part in parts for row in _rows(part.real)], 2)]
            for parts in passage.moved()
        ]

    def _whole(self, site: Site, passage: Passage) -> Array:
        pairs, rows = site.pairs, _rows(passage.whole())
        places = zip(pairs.after, pairs.before, strict=True)
        entries = dict(zip(places, rows, strict=True))
        none = jnp.zeros_like(rows[0])
        square = []  # for each place before, [B, m / 2, o]
        for before in self.real:
            column = [entries.get((after, before), none) for after in range(pairs.m)]
            square.append(self._of_parts(column, 1))
        return jnp.stack(square, 2).reshape(len(none), -1, none.shape[-1])

    def _of_parts(self, rows: Sequence[Array], axis: int) -> Array:
        """Rows of the block, as those of complex numbers along a new axis."""
        pairs = zip(self.real, self.imaginary, strict=True)
        return jnp.stack([lax.complex(rows[re], rows[im]) for re, im in pairs], axis)
