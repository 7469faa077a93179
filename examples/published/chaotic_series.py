"""The next value of three chaotic series, of which one coordinate is seen.

A network `h' = tanh(W h + U x + b)` of 64 units with a linear readout sees the Hénon map, the Mackey-Glass equation or
the Lorenz system, normalised to variance one, in eight streams with other initial values. The weights move at each
step (Adam, 1e-3), for 15,000 steps; states and traces begin anew every 200. The number is the mean squared error of the
prediction before the update, which is the normalised one: the mean of five records over the last 2,500 steps, each the
mean over 200 steps. TBPTT(25) updates every 25 steps. Initial weights are drawn as in the source, with another
generator; the random signs of KF-RTRL and UORO are the same for all seeds.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

import etpc
from etpc.algorithms import Algorithm

from .study import Case, Study, main

UNITS, STREAMS, STEPS, RESTART = 64, 8, 15_000, 200
LENGTH, SKIPPED = 20_065, 64  # what a series is normalised over, and where the stream begins in it
RECORDS, RECORD_EVERY, RECORD = 5, 500, 200

Series = Float[np.ndarray, "L B"]


class Network(eqx.Module):
    """All weights into the units as one matrix, as KF-RTRL has it."""

    weight: Float[Array, "N N+I+1"]
    readout: eqx.nn.Linear

    def __init__(
        self, key: PRNGKeyArray, inputs: int = 1, outputs: int | Literal["scalar"] = "scalar"
    ):
        weight_key, readout_key = jax.random.split(key)
        bound = UNITS**-0.5
        shape = UNITS, UNITS + inputs
        weight = jax.random.uniform(weight_key, shape, minval=-bound, maxval=bound)
        self.weight = jnp.pad(weight, ((0, 0), (0, 1)))  # no bias yet
        self.readout = eqx.nn.Linear(UNITS, outputs, key=readout_key)

    def init_state(self) -> Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: Float[Array, " I"], h: Array) -> tuple[Array, Array]:
        h = jnp.tanh(self.weight @ jnp.concatenate([h, x, jnp.ones(1)]))
        return self.readout(h), h


# --- the series ---


def henon(seed: int) -> Series:
    """`x' = 1 - 1.4 x^2 + y, y' = 0.3 x`; the seed changes nothing."""
    x, y, seen = 0.1 + 0.01 * np.arange(STREAMS), np.zeros(STREAMS), []
    for _ in range(LENGTH):
        seen.append(x)
        x, y = 1 - 1.4 * x**2 + y, 0.3 * x
    return np.stack(seen)


def mackey_glass(seed: int) -> Series:
    """`x' = x + 0.2 x_17 / (1 + x_17^10) - 0.1 x`, with the value of 17 steps before, the current one counted."""
    seen = list(1.2 + 0.2 * np.random.default_rng(seed).random((18, STREAMS)))
    for _ in range(LENGTH):
        late = seen[-17]
        seen.append(seen[-1] + 0.2 * late / (1 + late**10) - 0.1 * seen[-1])
    return np.stack(seen[18:])


def lorenz(seed: int) -> Series:
    """The first coordinate, at every second step of Euler's method with steps of 0.01."""
    x, y, z = 1 + 0.1 * np.random.default_rng(seed).normal(size=(3, STREAMS))
    seen = []
    for _ in range(100 + 2 * LENGTH):
        dx, dy, dz = 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z
        x, y, z = x + 0.01 * dx, y + 0.01 * dy, z + 0.01 * dz
        seen.append(x)
    return np.stack(seen[100::2])


# --- a run ---


def error(
    series: Callable[[int], Series], rule: Algorithm, every: int, steps: int, seed: int
) -> list[float]:
    """The normalised mean squared error at the end of a stream."""
    values = series(seed)
    values = (values - values.mean(0)) / values.std(0, ddof=1)
    xs, targets = values[SKIPPED : SKIPPED + steps], values[SKIPPED + 1 : SKIPPED + 1 + steps]
    losses = np.repeat(losses_of(xs, targets, rule, every, seed), every)
    return [at_the_end(losses, RECORD_EVERY)]


def losses_of(
    xs: Series, targets: Series, rule: Algorithm, every: int, seed: int
) -> Float[np.ndarray, " L/every"]:
    """Of each update of a network that learns a stream."""
    fresh = np.zeros((len(xs) // every, STREAMS), bool)
    fresh[:: RESTART // every] = True
    model, learner = Network(jax.random.key(seed)), learner_of(rule, every)
    opt_state, carry = learner.init(model, STREAMS)
    seen = xs[:, :, None].astype(np.float32), targets.astype(np.float32)
    *_, losses = learner.update(model, opt_state, carry, *seen, begins=fresh)
    return np.asarray(losses)


def at_the_end(losses: Float[np.ndarray, " L"], every: int) -> float:
    """The mean of the last five records, one in so many steps, and each the mean of the steps up to then."""
    ends = range(len(losses) - every + 1, 0, -every)[:RECORDS]
    return float(np.mean([losses[max(end - RECORD, 0) : end].mean() for end in ends]))


@cache
def learner_of(rule: Algorithm, every: int) -> etpc.Online:
    """It is compiled once for all series and seeds."""
    program = etpc.compile(Network(jax.random.key(0)), rule, inputs=jnp.zeros(1))
    return etpc.online(program, squares, optax.adam(1e-3), every=every)


def squares(y: Array, target: Array) -> Array:
    return (y - target) ** 2


SERIES = {"Hénon": henon, "Mackey-Glass": mackey_glass, "Lorenz": lorenz}
PUBLISHED = {
    "RTRL": (0.0052, 0.0180, 0.0051),
    "SnAp(1)": (0.0052, 0.0050, 0.0024),
    "KF-RTRL": (0.0384, 0.0286, 0.0126),
    "RFLO": (0.0704, 0.0572, 0.0442),
    "UORO": (0.6583, 0.0497, 0.0425),
    "TBPTT(25)": (0.0311, 0.0080, 0.0054),
}
RULES = {
    "RTRL": etpc.RTRL(),
    "SnAp(1)": etpc.SnAp(1),
    "KF-RTRL": etpc.KFRTRL(),
    "RFLO": etpc.RFLO(0.9, "symmetric"),
    "UORO": etpc.UORO(),
    "TBPTT(25)": etpc.TBPTT(25),
    "D-RTRL": etpc.D_RTRL(),
    "D-RTRL, look-back 8": etpc.D_RTRL(window=1, lookback=8),
    "TBPTT(8) at each step": etpc.TBPTT(8, every=1),
    "RTRL, rank 4": etpc.RTRL(rank=4),
    "CreditRTRL, q = 4, rank 4": etpc.CreditRTRL(4, 4),
}
STUDY = Study(
    title="Chaotic series",
    source="Yi and Wang, Certified low-rank real-time recurrent learning for dense recurrent neural networks, 2026, "
    "[sketched-rtrl](https://github.com/sonaradarcn/sketched-rtrl), table 6",
    measure="normalised mean squared errors (less is better)",
    found="The published rules agree within the spread of the seeds, where KF-RTRL and UORO vary most. These "
    "two have what the current step adds exactly here, and mixed with noise in the source. D-RTRL is the "
    "immediate gradient in this network, as no unit keeps a state of its own. It is as good as SnAp(1), "
    "and no worse than the exact gradient of the source (0.0052, 0.0180, 0.0051): **these series do not "
    "need the credit in which the rules differ**. What the tables show is the harm of noise (UORO, "
    "KF-RTRL), of a leak that the network does not have (RFLO), and of fewer updates (TBPTT(25)). "
    "Look-back, rolling truncation, RTRL of rank 4 and CreditRTRL add little where there is little to add; "
    "CreditRTRL is slightly behind on the Hénon map. With exact RTRL one seed of five ends at 0.025 on the "
    "Mackey-Glass series and one at 0.032 on the Lorenz system, the others at 0.002 to 0.004. Such seeds are likely "
    "why the means of the source are larger for exact RTRL than for SnAp(1) there.\n\n"
    "Sketched RTRL, which the source proposes (0.0059, 0.0065 and 0.0038 with rank 4), is not among the rules here, "
    "for the cost of its step: it decomposes a matrix of units by units for each stream. The source measures 27 ms "
    "for it and 0.7 ms for exact RTRL with 64 units, 516 ms (rank 16) and 38 ms with 512 units, on a GPU; on two "
    "cores, that decomposition alone takes five times as long as a step of exact RTRL (64 units, eight streams). "
    "RTRL of rank 4 and CreditRTRL make do with products of small matrices.",
    cases=tuple(
        Case(
            task,
            (name,),
            partial(error, series, rule, 25 if name == "TBPTT(25)" else 1, STEPS),
            (PUBLISHED[name][place] if name in PUBLISHED else None,),
        )
        for place, (task, series) in enumerate(SERIES.items())
        for name, rule in RULES.items()
    ),
)

if __name__ == "__main__":
    main(STUDY)
