"""Random feedback local online learning (RFLO) for any cell, as a form that a user writes.

Murray, "Local online learning in recurrent networks with random feedback", eLife 8, e43299, 2019, equation 3. In a
leaky network, `h' = (1 - 1/tau) h + tanh(W h + U x) / tau`, the trace of a weight is `p' = (1 - 1/tau) p + F x^T`, with
F the immediate derivative. That is D-RTRL, which finds the leak in the network. This form is told the leak, whatever
the cell: each state of a block keeps that part of its trace, and passes nothing on to the others. So it also gives a
trace to cells whose states have no transition of their own, such as `h' = tanh(W h + U x)`. The random feedback is a
part of the model: `etpc.nn.broadcast_readout`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from etpc.algorithms import Algorithm
from etpc.forms import Carry, Factors, Full, Passage, Signals, Site, Trace
from etpc.ops import Kind


@dataclasses.dataclass(frozen=True)
class Leaking:
    """A window in which every state of a block keeps a fixed part of its trace at each step: a `Passage`."""

    site: Site
    factors: Sequence[Factors]
    xs: Sequence[Array]
    kept: float
    after: None = None

    def moved(self) -> Sequence[Sequence[Array]]:
        immediate = self.factors[0].immediate
        powers = self.kept ** jnp.arange(len(immediate) - 1, -1, -1, dtype=immediate.dtype)
        return [[powers[:, None, None, None] * immediate]]

    def whole(self) -> Array:
        pairs, (steps, batch) = self.site.pairs, self.factors[0].immediate.shape[:2]
        transition = self.kept**steps * jnp.asarray(pairs.after == pairs.before, self.site.dtype)
        return jnp.broadcast_to(transition[:, None], (batch, len(pairs.after), 1))


@dataclasses.dataclass(frozen=True)
class FixedLeak(Trace):
    kept: float
    inner: Full = Full()
    exact = False

    @property
    def left_out(self) -> str:
        return "each state is taken to keep a fixed part of its trace"

    @property
    def verdict(self) -> str:
        return "fixed leak"

    def init(self, site: Site, batch: int) -> Carry:
        return self.inner.init(site, batch)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> Array:
        return factors.immediate

    def read(self, site: Site, signals: Signals, path: Array, carry: Carry) -> Any:
        if signals.at_start is not None:
            return signals.through()
        new, old = signals.new(), signals.old()
        old = jnp.zeros_like(new) if old is None else old

        def back(later: Array, signal: tuple[Array, Array]) -> tuple[Array, Array]:
            of_new = signal[0] + later
            return self.kept * of_new + signal[1], of_new

        start, of_new = lax.scan(back, jnp.zeros_like(new[0]), (new, old), reverse=True)
        return jnp.sum(of_new * path, -2), start

    def past(self, site: Site, start: Array, carry: Carry) -> Array:
        return self.inner.past(site, start, carry)

    def move(self, site: Site, passage: Passage, path: Any, carry: Carry, start: Any) -> Carry:
        leaking = Leaking(site, passage.factors, passage.xs, self.kept)
        return self.inner.move(site, leaking, (), carry, start)


@dataclasses.dataclass(frozen=True)
class RFLO(Algorithm):
    """`kept`: `1 - 1/tau`, the part of a trace that is there after a step."""

    kept: float = 0.9

    def trace_form(self, kind: Kind) -> FixedLeak:
        return FixedLeak(self.kept)
