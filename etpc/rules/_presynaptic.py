"""The low-passed data alone."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..forms import (
    Carry,
    Factors,
    Line,
    Meaning,
    Passage,
    Rows,
    Signals,
    Site,
    Trace,
    where_no_stream_begins,
    zeros,
)


@dataclasses.dataclass(frozen=True)
class Presynaptic(Trace):
    """`a' = decay a + x`, [B, (G,) I], which is multiplied with the credit of the output of each step.

    For operations with data, in windows that are cut.
    """

    decay: float
    exact = False

    @property
    def left_out(self) -> str:
        return "the trace is the low-passed input alone"

    @property
    def verdict(self) -> str:
        return "presynaptic"

    @property
    def held(self) -> str:
        return "the low-passed input"

    def meaning(self) -> Meaning:
        return Meaning((Line("X", "inputs", kept=self.decay),), data="X")

    def init(self, site: Site, batch: int) -> Carry:
        return zeros(batch, [(*site.group, site.kind.inputs)], site.dtype)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> Any:
        real = jnp.finfo(site.dtype).dtype
        return factors.immediate, where_no_stream_begins(factors, self.decay, real)[..., None]

    def read(self, site: Site, signals: Signals, path: Any, carry: Carry) -> tuple[Array, Array]:
        new = signals.new()
        immediate, decay = path

        def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
            credit, decay = step
            credit = credit + later
            return decay * credit, credit

        now = jnp.sum(new * immediate, -2)
        start, credits = lax.scan(back, jnp.zeros_like(now[0]), (now, decay), reverse=True)
        return credits, start

    def past(self, site: Site, start: Array, carry: Carry) -> list[Rows]:
        return [(carry[0][None], start[None])]

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        def step(a: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
            x, decay = now
            return decay.reshape(-1, *[1] * (a.ndim - 1)) * a + x.reshape(a.shape), None

        return (lax.scan(step, carry[0], (site.data(passage.xs[0]), path[1]))[0],)
