"""A whole trace that moves by transitions which are not those of the step."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact

from ._full import Full
from ._trace import Carry, Factors, Passage, Signals, Site, Trace
from ._transitions import apply_back, paired, suffix_products

WHOLE = Full()


class Recursion(Trace):
    """`eps' = D eps + F x`, where a form says what D and F are, and which credit meets the trace.

    A form gives `exact`, `site_of`, `step` and `taken`.
    """

    def site_of(self, site: Site) -> Site:
        """The site with the states of this trace, and the transitions among these."""
        raise NotImplementedError

    def step(
        self, site: Site, factors: Factors
    ) -> tuple[Inexact[Array, "W B P o"], Inexact[Array, "W B n GO"]]:
        """D and F of the states of this trace. D is zero where a stream begins."""
        raise NotImplementedError

    def taken(self, credit: Inexact[Array, "*n m GO"]) -> Inexact[Array, "*n n GO"]:
        """The credit of the states of this trace, from that of the block."""
        return credit

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return WHOLE.shapes(self.site_of(site))

    def init(self, site: Site, batch: int) -> Carry:
        return WHOLE.init(self.site_of(site), batch)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> Any:
        return self.step(site, factors)

    def read(
        self, site: Site, signals: Signals, path: Any, carry: Carry
    ) -> tuple[Array | None, Array]:
        if signals.at_start is not None:
            return None, self.taken(signals.at_start)
        new, old, pairs = signals.new(), signals.old(), self.site_of(site).pairs
        old = jnp.zeros_like(new) if old is None else old

        def back(later: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
            by_new, by_old, transition, immediate = step
            credit = by_new + later
            earlier = apply_back(pairs, transition, credit) + by_old
            return earlier, paired(credit, immediate)

        new, old = self.taken(new), self.taken(old)
        steps, none = (new, old, *path), jnp.zeros_like(new[0])
        start, credits = site.schedule.scan(back, none, steps, reverse=True)
        return credits, start

    def past(self, site: Site, start: Array, carry: Carry) -> Array:
        return WHOLE.past(self.site_of(site), start, carry)

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        site, (transition, immediate) = self.site_of(site), path
        move, whole = suffix_products(site.pairs, transition, range(site.block), site.schedule)
        added = move(immediate)
        own = dataclasses.replace(passage, moved=lambda: [[added]], whole=lambda: whole)
        return WHOLE.move(site, own, (), carry, start)


def where_no_stream_begins(factors: Factors, value: float, dtype: Any) -> Inexact[Array, "W B"]:
    """A number for each step, which is zero where a stream begins."""
    kept = jnp.full(factors.immediate.shape[:2], value, dtype)
    return kept if factors.begins is None else jnp.where(factors.begins, 0, kept)
