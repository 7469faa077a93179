"""The trace as filtered inputs, where outputs share their transitions: nothing is reduced."""

import dataclasses
import functools
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from .._jax import by_parts
from ..ops import summed
from ._defined import WHOLE_TRACE, Meaning
from ._full import Full
from ._pairs import grouped
from ._trace import Carry, Passage, Rows, Site, Trace, zeros
from ._transitions import apply, suffix_products

FEW = 8
"""Up to so many filtered inputs of a group are moved step by step, and more by products of matrices. The inputs of the
group are one array then, and XLA compiles two kernels fewer."""


@dataclasses.dataclass(frozen=True)
class Filtered(Trace):
    """`X' = D X + F x^T` once for each class of outputs, all of which have equal D and F, and so equal traces.

    The carry is X, [B, m, G, K, I] for K classes in a group. Axes of length one are left out, except that of inputs.
    """

    classes: tuple[tuple[int, ...], ...]
    """The class of each output of each group: G tuples of O numbers."""
    uniform: bool = False
    """Whether all outputs of all groups have equal transitions."""
    exact = True

    @property
    def held(self) -> str:
        return "the filtered inputs that outputs share"

    def meaning(self) -> Meaning:
        carried = np.take_along_axis(self.first, self._places, 1)
        return dataclasses.replace(WHOLE_TRACE, shared=tuple(carried.reshape(-1).tolist()))

    @cached_property
    def first(self) -> np.ndarray:
        """The number of one output of each class, counted over all groups; int [G, K]."""
        table = np.asarray(self.classes)
        starts = [np.unique(row, return_index=True)[1] for row in table]
        most = max(len(start) for start in starts)
        padded = [np.pad(start, (0, most - len(start)), "edge") for start in starts]
        return np.stack(padded) + table.shape[1] * np.arange(len(table))[:, None]

    @property
    def per_group(self) -> int:
        """K, how many classes a group has at most."""
        return self.first.shape[1]

    def count(self, block: int) -> int:
        """How many filtered inputs there are for each group, with so many states in a block."""
        return block * self.per_group

    def _axes(self, site: Site) -> tuple[int, ...]:
        return site.block, *self.first.shape, site.kind.inputs

    def init(self, site: Site, batch: int) -> Carry:
        # The inputs are last: a TPU pads the last axis to 128 places, and K is small.
        groups = (n for n in self.first.shape if n > 1)
        return zeros(batch, [(*site.states, *groups, site.kind.inputs)], site.dtype)

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        (factors,), first = passage.factors, self.first.reshape(-1)
        transition = factors.transition
        if transition.shape[-1] > 1:
            transition = transition[..., first[:1] if self.uniform else first]
        added = factors.immediate[..., first].astype(site.dtype)
        assert factors.x is not None
        last = self._at_end(site, transition, added, site.data(factors.x), carry[0])
        return (last.astype(site.dtype),)

    def _at_end(
        self,
        site: Site,
        transition: Inexact[Array, "W B P o"],
        added: Inexact[Array, "W B m GK"],
        x: Inexact[Array, "W B G I"],
        filtered: Array,
    ) -> Array:
        """The filtered inputs at the end of the window."""
        m, g, k, _ = self._axes(site)
        if len(x) == 1 or self.count(m) <= FEW:
            added = added.reshape(*added.shape[:3], g, k, 1)
            steps = transition, added, x[:, :, None, :, None]

            def step(old: Array, now: list[Array]) -> tuple[Array, None]:
                moves, new, x = (a.reshape(b.shape[1:]) for a, b in zip(now, steps, strict=True))
                moved = self._applied(site, moves, old)
                new = moved.reshape(old.shape) + (new * x).reshape(old.shape)
                return new.astype(old.dtype), None

            # Axes of length one would leave the layouts of the arrays open, and XLA copies them for the loop.
            narrow = [a.reshape(*a.shape[:2], *(n for n in a.shape[2:] if n > 1)) for a in steps]
            return site.schedule.scan(step, filtered, narrow)[0]
        move, whole = suffix_products(site.pairs, transition, range(m), site.schedule)
        moved = move(added).reshape(*added.shape[:3], g, k)
        sums = functools.partial(jnp.einsum, "wbmgk,wbgi->bmgki")
        new = by_parts(sums, moved, x)
        old = self._applied(site, whole, filtered)
        return (old.reshape(new.shape) + new).reshape(filtered.shape)

    def _applied(self, site: Site, transition: Inexact[Array, "B P o"], filtered: Array) -> Array:
        """A transition of one step or several, applied to the filtered inputs."""
        m, g, k, inputs = self._axes(site)
        if transition.shape[-1] > 1:  # each class has its own
            shape = (*transition.shape, inputs)
            transition = jnp.broadcast_to(transition[..., None], shape).reshape(*shape[:-2], -1)
        return apply(site.pairs, transition, filtered.reshape(-1, m, g * k * inputs))

    def past(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> list[Rows] | Array:
        """With one class: the filtered inputs, and the credit of their place in the block. With several: the gradient,
        a product of matrices for each class."""
        data = self._data(site, carry)
        if self.per_group == 1:
            return [(data[:, :, :, 0].swapaxes(0, 1), start.swapaxes(0, 1))]
        outputs, place = self._members
        # The padding, -1, reads the credit of the last output: a select, as that may be NaN.
        credit = jnp.where(outputs >= 0, start[..., outputs], jnp.zeros((), start.dtype))
        of_class = summed("bmgki,bmgkn->gikn", data, credit)
        by_place = of_class.reshape(*of_class.shape[:2], -1)
        return site.kind.gather(jnp.take_along_axis(by_place, place[:, None], 2))

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

    def _data(self, site: Site, carry: Carry) -> Inexact[Array, "B m G K I"]:
        return carry[0].reshape(-1, *self._axes(site))

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        """The trace that the filtered inputs stand for, in the shape of the whole trace."""
        data = self._data(site, carry)[0]  # [m, G, K, I]
        of_output = jnp.take_along_axis(data, self._places[None, ..., None], 2)
        return {"trace": Full().in_order(site, of_output.transpose(1, 3, 0, 2))}
