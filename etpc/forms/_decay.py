"""The trace as one pair of factors, each smoothed over time with a decay."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Inexact

from .._jax import leading
from ._defined import Line, Meaning
from ._in_parallel import passed_back
from ._trace import Carry, Factors, Passage, Rows, Signals, Site, Trace, zeros
from ._transitions import paired, recurrence


@dataclasses.dataclass(frozen=True)
class Decay(Trace):
    """`eps_x' = a eps_x + x`, `eps_f' = b D eps_f + F`, and their normaliser `c' = sqrt(a b) c + 1`.

    `decay` is a, which b is too, or both. The carry is `eps_x` [B, I], `eps_f` [B, m, O], with G before I and O where
    there are several, and `c` [B].
    """

    decay: float | tuple[float, float]
    exact = False
    joins = True

    @property
    def decays(self) -> tuple[float, float, float]:
        """Of the data, of the states, and of the normaliser."""
        a, b = self.decay if isinstance(self.decay, tuple) else (self.decay, self.decay)
        return float(a), float(b), float(a) if a == b else math.sqrt(a * b)

    @property
    def left_out(self) -> str:
        return f"the trace is one pair of factors, smoothed with decay {self.decay}"

    @property
    def verdict(self) -> str:
        each = self.decay if isinstance(self.decay, tuple) else [self.decay]
        return "decay " + ", ".join(f"{decay:g}" for decay in each)

    @property
    def held(self) -> str:
        return "two smoothed factors"

    def meaning(self) -> Meaning:
        of_data, of_states, of_norm = self.decays
        lines = (
            Line("f", "outputs", moved=of_states),
            Line("X", "inputs", kept=of_data),
            Line("c", "steps", kept=of_norm),
        )
        return Meaning(lines, meets="f", data="X", over="c")

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        kind = site.kind
        return (*site.group, kind.inputs), (*site.states, *site.group, kind.outputs)

    def init(self, site: Site, batch: int) -> Carry:
        norm = jnp.zeros(batch, jnp.finfo(site.dtype).dtype)
        return (*zeros(batch, self.shapes(site), site.dtype), norm)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> Any:
        """The values of the second factor and the normaliser after 0 to W steps, the last of the former, and where
        streams begin."""
        eps_f, norm, (_, of_states, of_norm) = _state_factor(site, carry), carry[2], self.decays
        steps = factors.transition, factors.immediate
        last, rest = recurrence(site.pairs, *steps, eps_f, site.schedule, of_states)
        powers, weights = _decays(of_norm, len(rest), factors.begins)
        new = jnp.asarray(weights.sum(1), norm.dtype)
        norms = jnp.asarray(powers, norm.dtype) * norm[None] + new
        return jnp.concatenate([eps_f[None], rest]), norms, last, factors.begins

    def read(
        self, site: Site, signals: Signals, path: Any, carry: Carry
    ) -> tuple[Inexact[Array, "W B GO"] | None, Inexact[Array, "B GO"]]:
        """The credit of the output at each step, and that of the first factor at the start of the window.

        The gradient is `sum_t eps_x,t (L_t eps_f,t) / c_t`; credit that passes by the new states of a step is
        multiplied with the trace before it. As `eps_x` is a sum of decayed data, the credit is decayed in its
        place, backwards in time, and multiplied with the data itself.
        """
        if signals.at_start is not None:
            credit = paired(signals.at_start, _state_factor(site, carry))
            return None, credit / _positive(carry[2])[:, None]
        eps_f, norm, _, begins = path  # W + 1 values of the first two
        credit = paired(signals.new(), eps_f[1:]) / norm[1:, :, None]
        old, old_credit = signals.old(), jnp.zeros_like(credit)
        if old is not None:
            old_credit = paired(old, eps_f[:-1]) / _positive(norm[:-1])[..., None]
        decay = jnp.finfo(credit.dtype).dtype.type(self.decays[0])
        if site.schedule.in_parallel(len(credit), 1, credit.size // len(credit)):
            ends = False if begins is None else begins[..., None]
            decays, by_old = (jnp.where(ends, 0, a) for a in (decay, old_credit))
            decays = jnp.broadcast_to(decays, credit.shape)
            (total,), (start,) = passed_back([decays], [credit], [by_old])
            return total, start

        def back(later: Array, step: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
            by_new, by_old, begins = step
            total = by_new + later
            earlier = by_old + decay * total
            return earlier if begins is None else jnp.where(begins[:, None], 0, earlier), total

        none = jnp.zeros_like(credit[0])
        steps = credit, old_credit, begins
        start, credits = site.schedule.scan(back, none, steps, reverse=True)
        return credits, start

    def past(self, site: Site, start: Inexact[Array, "B GO"], carry: Carry) -> list[Rows]:
        return [(carry[0][None], start[None])]

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        (factors,), (_, norm, last, begins) = passage.factors, path
        assert factors.x is not None
        x = site.data(factors.x)
        powers, weights = _decays(self.decays[0], len(x), begins)
        last_weights = jnp.asarray(weights[-1], x.dtype)
        added = jnp.einsum("sb,sbgi->bgi", last_weights, x)
        kept = jnp.asarray(powers[-1], jnp.finfo(last.dtype).dtype)
        last_x = leading(kept, carry[0]) * carry[0]
        last_x += added.reshape(carry[0].shape)
        return last_x, last.reshape(carry[1].shape), norm[-1]

    def first_data(self, site: Site, carry: Carry) -> Array:
        """`a eps_x`: with no credit of old states, that of `eps_x` is `a` times the credit of the first step."""
        return (self.decays[0] * carry[0]).reshape(
            len(carry[0]), site.kind.groups, site.kind.inputs
        )

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        return {"input factor": carry[0], "state factor": carry[1]}


def _state_factor(site: Site, carry: Carry) -> Inexact[Array, "B m GO"]:
    return carry[1].reshape(len(carry[1]), site.block, site.count)


def _decays(decay: float, steps: int, begins: Bool[Array, "W B"] | None) -> tuple[Any, Any]:
    """By how much what was there before a window has decayed after 0 to W steps, [W + 1, B]; and what each step added,
    [W + 1, W, B], with a column for each of the steps 1 to W. Nothing is left of what was before a stream begins. B is
    one where none may begin."""
    powers = decay ** np.arange(steps + 1.0)
    ages = np.arange(steps + 1)[:, None] - np.arange(1, steps + 1)
    weights = np.where(ages >= 0, powers[np.maximum(ages, 0)], 0)[..., None]
    if begins is None:
        return powers[:, None], weights
    stream = jnp.cumsum(jnp.pad(begins, ((1, 0), (0, 0))), 0)
    alive = stream[:, None] == stream[None, 1:]
    return jnp.where(stream == 0, powers[:, None], 0), jnp.where(alive, weights, 0)


def _positive(norm: Array) -> Array:
    """The normaliser, or one where there is no past, as the trace is zero there."""
    return jnp.where(norm > 0, norm, jnp.ones((), norm.dtype))  # 0 / 0 would be NaN
