"""The trace as one pair of factors, each smoothed over time with a decay."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Inexact

from ._trace import Carry, Factors, Rows, Signals, Site, Trace, zeros
from ._transitions import paired, recurrence


@dataclasses.dataclass(frozen=True)
class Decay(Trace):
    """`eps_x' = a eps_x + x`, `eps_f' = a D eps_f + F`, and their normaliser `c' = a c + 1`.

    The carry is `eps_x` [B, I], `eps_f` [B, m, O], with G before I and O where there are several, and
    `c` [B].
    """

    decay: float
    exact = False
    joins = True

    @property
    def left_out(self) -> str:
        return f"the trace is one pair of factors, smoothed with decay {self.decay}"

    @property
    def verdict(self) -> str:
        return f"decay {self.decay:g}"

    @property
    def held(self) -> str:
        return "two smoothed factors"

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        kind = site.kind
        return (*site.group, kind.inputs), (*site.states, *site.group, kind.outputs)

    def init(self, site: Site, batch: int) -> Carry:
        norm = jnp.zeros(batch, jnp.finfo(site.dtype).dtype)
        return (*zeros(batch, self.shapes(site), site.dtype), norm)

    def follow(self, site: Site, factors: Factors, carry: Carry) -> tuple[Carry, Any]:
        """The carry at the end, and the values of the second factor and the normaliser after 0 to W steps."""
        decay, real = float(self.decay), jnp.finfo(factors.immediate.dtype).dtype
        eps_x, eps_f, norm = carry
        eps_f = eps_f.reshape(eps_f.shape[0], site.block, site.count)
        last_f, rest_f = recurrence(site.pairs, factors.transition, factors.immediate, eps_f, decay)
        powers, weights = _decays(decay, len(factors.immediate), factors.begins)
        norms = jnp.asarray(powers, norm.dtype) * norm[None] + jnp.asarray(
            weights.sum(1), norm.dtype
        )
        path = jnp.concatenate([eps_f[None], rest_f]), norms, factors.begins
        assert factors.x is not None
        x = site.data(factors.x)
        products = "sb,sb...->b..." if weights.shape[-1] > 1 else "sz,sb...->b..."
        last = jnp.asarray(weights[-1], x.dtype)
        added = jnp.einsum(products, last, x, precision=lax.Precision.HIGHEST)
        kept = jnp.asarray(powers[-1], real).reshape(-1, *[1] * (eps_x.ndim - 1))
        last_x = kept * eps_x + added.reshape(eps_x.shape)
        return (last_x, last_f.reshape(carry[1].shape), norms[-1]), path

    def credit(
        self, site: Site, signals: Signals, path: tuple[Array, Array, Array | None]
    ) -> tuple[Inexact[Array, "W B GO"], Inexact[Array, "B GO"]]:
        """The credit of the output at each step, and that of the first factor at the start of the window.

        The gradient is `sum_t eps_x,t (L_t eps_f,t) / c_t`; credit that passes by the new states of a step is
        multiplied with the trace before it. As `eps_x` is a sum of decayed data, the credit is decayed in its
        place, backwards in time, and multiplied with the data itself.
        """
        eps_f, norm, begins = path  # W + 1 values of the first two
        old = signals.old()
        credit = paired(signals.new(), eps_f[1:]) / norm[1:, :, None]
        old_credit = jnp.zeros_like(credit)
        if old is not None:
            old_credit = paired(old, eps_f[:-1]) / _positive(norm[:-1])[..., None]
        decay = jnp.finfo(credit.dtype).dtype.type(self.decay)

        def back(later: Array, step: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
            by_new, by_old, begins = step
            total = by_new + later
            earlier = by_old + decay * total
            if begins is not None:
                earlier = jnp.where(begins[:, None], 0, earlier)
            return earlier, total

        steps = credit, old_credit, begins
        start, credits = lax.scan(back, jnp.zeros_like(credit[0]), steps, reverse=True)
        return credits, start

    def start(self, site: Site, credit: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        _, eps_f, norm = carry
        eps_f = eps_f.reshape(eps_f.shape[0], site.block, site.count)
        return paired(credit, eps_f) / _positive(norm)[:, None]

    def rows(self, site: Site, start: Inexact[Array, "B GO"], carry: Carry) -> list[Rows]:
        return [(carry[0][None], start[None])]

    def first_data(self, site: Site, carry: Carry) -> Array:
        """`a eps_x`: with no credit of old states, that of `eps_x` is `a` times the credit of the first step."""
        return (self.decay * carry[0]).reshape(len(carry[0]), site.kind.groups, site.kind.inputs)

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        return {"input factor": carry[0], "state factor": carry[1]}


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
    return jnp.where(norm > 0, norm, jnp.ones((), norm.dtype))


__all__ = ["Decay"]
