"""The trace as filtered inputs, where outputs share their transitions: nothing is reduced."""

import dataclasses
import functools
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Inexact

from .._jax import by_parts
from ..ops import summed
from ._full import Full
from ._pairs import grouped
from ._trace import Carry, Factors, Rows, Site, Trace, zeros
from ._transitions import apply, suffix_products, times

FEW = 8
"""Up to so many filtered inputs of a group are moved step by step, and more by products of matrices. The inputs of the
group are one array then, and XLA compiles two kernels fewer."""


@dataclasses.dataclass(frozen=True)
class Filtered(Trace):
    """`eps_o = sum_k X_k c_ko`, with inputs X_k that are filtered by the transitions that outputs share.

    The outputs of a class have equal transitions D. Each class carries `X' = D X + f x^T` for some columns f. A
    column is F itself, where F is equal in the class too; then c is one. Or it is a unit vector, for a place of the
    block at which F depends on no data; then c is the entry of F there in the last window. So the trace is exact in
    any precision, also while parameters move that D depends on, or F where it is equal. If parameters move that the
    entries c depend on, it is the trace of their last values. For example, with three outputs of one class and one
    state each, where F = g_o x:

        eps_o' = d eps_o + g_o x   is   X' = d X + x,   eps_o = X g_o      (columns = (0,), shared = False)

    The carry is X, [B, m, k, I, G, K] for k columns and K classes in a group, and c, [B, columns, G, O], if there
    are columns of the second kind. Axes of length one are left out, except that of inputs.
    """

    classes: tuple[tuple[int, ...], ...]
    """The class of each output of each group: G tuples of O numbers."""
    columns: tuple[int, ...] = ()
    """Places of the block at which F depends on no data, and differs in a class."""
    shared: bool = True
    """Whether F is equal in each class at some of the other places; then its column is the first one."""
    uniform: bool = False
    """Whether all outputs of all groups have equal transitions."""
    exact = True
    start_alone = True
    skips = True

    @property
    def held(self) -> str:
        return "the filtered inputs that outputs share"

    @cached_property
    def first(self) -> np.ndarray:
        """The number of one output of each class, counted over all groups; int [G, K]."""
        table = np.asarray(self.classes)
        starts = [np.unique(row, return_index=True)[1] for row in table]
        most = max(len(start) for start in starts)
        padded = [np.pad(start, (0, most - len(start)), "edge") for start in starts]
        return np.stack(padded) + table.shape[1] * np.arange(len(table))[:, None]

    def count(self, site: Site) -> int:
        """How many filtered inputs there are for each group."""
        return site.block * self._kept * self.first.shape[1]

    @property
    def _kept(self) -> int:
        """k, the number of columns."""
        return len(self.columns) + self.shared

    def _axes(self, site: Site) -> tuple[int, ...]:
        g, k = self.first.shape
        return site.block, self._kept, site.kind.inputs, g, k

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        m, kept, inputs, g, k = self._axes(site)
        axes = tuple(n for n in (m, kept) if n > 1), tuple(n for n in (g, k) if n > 1)
        filtered = (*axes[0], inputs, *axes[1])
        if not self.columns:
            return (filtered,)
        several = (len(self.columns),) if len(self.columns) > 1 else ()
        return filtered, (*several, *site.group, site.kind.outputs)

    def init(self, site: Site, batch: int) -> Carry:
        return zeros(batch, self.shapes(site), site.dtype)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> tuple[Carry, Any]:
        """The carry at the end of the window."""
        m, dtype = site.block, site.dtype
        first, immediate = self.first.reshape(-1), factors.immediate
        period = factors.transition.shape[-1]
        transition = factors.transition[..., (first[:1] if self.uniform else first) % period]
        of_class, places = immediate[..., first], np.arange(m).reshape(1, 1, m, 1)
        ones, zero = jnp.ones_like(of_class), jnp.zeros_like(of_class)
        added = [jnp.where(np.isin(places, self.columns), zero, of_class)] if self.shared else []
        added += [jnp.where(places == n, ones, zero) for n in self.columns]
        added = jnp.stack(added, 3).astype(dtype)  # [W, B, m, k, G * K]
        assert factors.x is not None
        last = self._at_end(site, transition, added, site.data(factors.x), carry[0])
        entries = [immediate[-1][:, list(self.columns)].reshape(a.shape) for a in carry[1:]]
        return (last.astype(dtype), *(a.astype(dtype) for a in entries)), ()

    def _at_end(
        self,
        site: Site,
        transition: Inexact[Array, "W B P o"],
        added: Inexact[Array, "W B m k GK"],
        x: Inexact[Array, "W B G I"],
        filtered: Array,
    ) -> Array:
        """The filtered inputs at the end of the window."""
        m, kept, inputs, g, k = self._axes(site)
        blocks = -1, m, kept * inputs * g * k
        added = added.reshape(*added.shape[:3], kept, 1, g, k)
        if len(x) == 1 or m * kept * k <= FEW:
            steps = transition, added, x.swapaxes(2, 3)[:, :, None, None, ..., None]

            def step(old: Array, now: list[Array]) -> tuple[Array, None]:
                moves, new, x = (a.reshape(b.shape[1:]) for a, b in zip(now, steps, strict=True))
                moved = apply(site.pairs, moves, old.reshape(blocks))
                new = moved.reshape(old.shape) + (new * x).reshape(old.shape)
                return new.astype(old.dtype), None

            # Axes of length one would leave the layouts of the arrays open, and XLA copies them for the loop.
            narrow = [a.reshape(*a.shape[:2], *(n for n in a.shape[2:] if n > 1)) for a in steps]
            return lax.scan(step, filtered, narrow)[0]
        entered = range(m) if self.shared else sorted(self.columns)
        move, whole = suffix_products(site.pairs, transition, entered)
        moved = move(added.reshape(*added.shape[:3], -1)).reshape(*added.shape[:3], kept, g, k)
        sums = functools.partial(jnp.einsum, "wbmkgc,wbgi->bmkigc", precision=lax.Precision.HIGHEST)
        new = by_parts(sums, moved, x)
        old = apply(site.pairs, whole, filtered.reshape(blocks))
        return (old.reshape(new.shape) + new).reshape(filtered.shape)

    def rows(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> list[Rows]:
        """With one class: the filtered inputs, and the credit of their place in the block."""
        if self.first.shape[1] > 1:
            return []
        data, credit = self._data(site, carry), self._credit(site, start, carry)
        (m, kept, inputs, g, _), batch = self._axes(site), len(start)
        data = data.transpose(1, 2, 0, 4, 3, 5).reshape(m * kept, batch, g, inputs)
        credit = credit.transpose(1, 2, 0, 3, 4).reshape(m * kept, batch, site.count)
        return [(data, credit)]

    def entries(
        self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry
    ) -> Inexact[Array, "G I O"] | None:
        """With several classes: the gradient, a product of matrices for each class."""
        g, classes = self.first.shape
        if classes == 1:
            return None
        data, credit = self._data(site, carry), self._credit(site, start, carry)
        outputs, place = self._members
        credit = credit.reshape(*credit.shape[:3], site.count)[..., outputs]
        credit = jnp.where(outputs >= 0, credit, jnp.zeros((), credit.dtype))
        of_class = summed("bmkigc,bmkgcn->gicn", data, credit, precision=lax.Precision.HIGHEST)
        by_place = of_class.reshape(g, site.kind.inputs, -1)
        return jnp.take_along_axis(by_place, place[:, None], 2)

    def gathered(self, site: Site, entries: Inexact[Array, "G I O"]) -> Array:
        return site.kind.gather(entries)

    @cached_property
    def _places(self) -> np.ndarray:
        """The class of each output as a place among those of its group; [G, O]."""
        names = [np.unique(row, return_inverse=True)[1] for row in self.classes]
        return np.stack([row.reshape(-1) for row in names])

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        """The outputs of each class, counted over all groups, [G, K, n], padded with -1; and the place of each
        output in the last two axes of that, [G, O]."""
        g, k = self.first.shape
        of_output = (self._places + k * np.arange(g)[:, None]).reshape(-1)
        outputs, exists = grouped(of_output, np.arange(of_output.size), g * k)
        place = np.zeros(of_output.size, np.int64)
        place[outputs[exists]] = np.flatnonzero(exists) % (exists.size // g)
        return np.where(exists, outputs, -1).reshape(g, k, -1), place.reshape(g, -1)

    def _data(self, site: Site, carry: Carry) -> Inexact[Array, "B m k I G K"]:
        return carry[0].reshape(-1, *self._axes(site))

    def _credit(
        self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry
    ) -> Inexact[Array, "B m k G O"]:
        """The credit of each column: that of its place in the block, times the entries of F that it stands for."""
        (m, _, _, g, _), batch = self._axes(site), len(start)
        credit = start.reshape(batch, m, 1, g, -1)
        of_column = [credit] if self.shared else []
        if self.columns:
            entries = carry[1].reshape(batch, 1, len(self.columns), g, -1)
            of_column.append(times(credit, entries))
        return jnp.concatenate(of_column, 2)

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        """The trace that the filtered inputs stand for, in the shape of the whole trace."""
        data = self._data(site, carry)[0]  # [m, k, I, G, K]
        of_output = jnp.take_along_axis(data, self._places[None, None, None], -1)
        ones = jnp.ones((self.shared, site.kind.groups, site.kind.outputs), site.dtype)
        entries = [carry[1].reshape(-1, *ones.shape[1:])] if self.columns else []
        trace = jnp.sum(times(jnp.concatenate([ones, *entries])[None, :, None], of_output), 1)
        return {"trace": Full().in_order(site, trace.transpose(2, 1, 0, 3))}


__all__ = ["Filtered"]
