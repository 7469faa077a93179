"""What fixed-point traces and weights do to the learner of `drift.py`: its gradient, and its curve.

Rounding is done from outside, as a rule with a trace of its own and as a transformation of Optax. Each array has
integers of so many bits times one power of two, in which its largest number fits. Adam's moments and what is computed
within a step stay float32. A weight is rounded after each update, to the nearest number or at random, to one of the two
next to it, so that the mean is right. The learning rate of each is the best of three on two other streams.

    python -m examples.on_device.fixed_point            # tables and examples/out/fixed_point.svg; 2 minutes on 2 cores
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import Array

import etpc
from etpc import algorithms, forms

from .drift import (
    DRIFT,
    LAST,
    RATES,
    STEPS,
    STREAMS,
    Network,
    finished,
    plotted,
    squared,
    streams,
    trained_beforehand,
)

SETTINGS = {
    "float32": (None, None, False),
    "traces of 16 bits": (16, None, False),
    "traces of 8 bits": (8, None, False),
    "weights of 16 bits": (None, 16, False),
    "weights of 8 bits": (None, 8, False),
    "weights of 8 bits, at random": (None, 8, True),
    "both of 16 bits": (16, 16, False),
    "both of 8 bits": (8, 8, False),
    "both of 8 bits, at random": (8, 8, True),
}
"""The bits of traces and of weights, `None` for float32; and whether weights are rounded at random."""


def rounded(a: Array, bits: int, key: Array | None = None) -> Array:
    """Integers of so many bits times a power of two; with a key, each up or down at random."""
    unit = jnp.exp2(jnp.ceil(jnp.log2(jnp.max(jnp.abs(a)) + 1e-30)) - (bits - 1))
    noise = 0.5 if key is None else jax.random.uniform(key, a.shape)
    limit = 2.0 ** (bits - 1)
    return unit * jnp.clip(jnp.floor(a / unit + noise), -limit, limit - 1)


@dataclasses.dataclass(frozen=True)
class RoundedTrace(forms.Trace):
    """The trace of D-RTRL, rounded at the end of each window."""

    bits: int = 16
    inner: forms.Full = forms.Full()
    exact = False

    @property
    def left_out(self) -> str:
        return "the trace is rounded"

    def init(self, site: Any, batch: int) -> Any:
        return self.inner.init(site, batch)

    def past(self, site: Any, start: Any, carry: Any) -> Any:
        return self.inner.past(site, start, carry)

    def move(self, site: Any, passage: Any, path: Any, carry: Any, start: Any) -> Any:
        moved = self.inner.move(site, passage, path, carry, start)
        return tuple(rounded(a, self.bits) for a in moved)


@dataclasses.dataclass(frozen=True)
class Rounded(algorithms.Algorithm):
    """D-RTRL with rounded traces."""

    bits: int = 16

    def trace_form(self, kind: Any) -> forms.Trace:
        return RoundedTrace(self.bits)


def rounded_weights(bits: int, at_random: bool) -> optax.GradientTransformation:
    """To the end of a chain: the weights after an update are rounded."""

    def init(params: Any) -> Any:
        return jax.random.key(0)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        state, *keys = jax.random.split(state, 1 + len(jax.tree.leaves(updates)))
        each = jax.tree.unflatten(jax.tree.structure(updates), keys)

        def one(u: Array, w: Array, key: Array) -> Array:
            return rounded(w + u, bits, key if at_random else None) - w

        return jax.tree.map(one, updates, params, each), state

    return optax.GradientTransformation(init, update)


def errors(model: Network, setting: str) -> tuple[float, np.ndarray]:
    """The rate that was chosen, and the error of each step with it: [streams, steps]."""
    bits, of_weights, at_random = SETTINGS[setting]
    rule = etpc.D_RTRL() if bits is None else Rounded(bits)
    program = etpc.compile(model, rule, inputs=jnp.zeros(1))
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    rounding = () if of_weights is None else (rounded_weights(of_weights, at_random),)
    learner = etpc.online(program, squared, optax.chain(adam, *rounding))
    tuning, test = streams(100, 2, STEPS, DRIFT), streams(2, STREAMS, STEPS, DRIFT)
    xs, targets = (jnp.concatenate(pair, 1) for pair in zip(tuning, test, strict=True))

    @eqx.filter_jit
    def run(rate: Array) -> Array:
        def one(xs: Array, targets: Array) -> Array:
            opt_state, carry = learner.init(model)
            opt_state[0].hyperparams["learning_rate"] = rate
            return learner.update(model, opt_state, carry, xs, targets)[3]

        return jax.vmap(one, 1)(xs, targets)

    found = [np.asarray(run(jnp.float32(rate))) for rate in RATES]
    best = int(np.argmin([error[:2, DRIFT:].mean() for error in found]))
    return RATES[best], found[best][2:]


def main() -> None:
    model = trained_beforehand()
    xs, targets = streams(2, 1, 1000, 500)
    rules = [etpc.D_RTRL(window=1), Rounded(16, window=1), Rounded(8, window=1)]
    print(etpc.compare(model, xs[:, 0], targets[:, 0], squared, rules))
    print(f"\n{'mean square error of':<30} before  500 steps after   last")
    fig, axes = plt.subplots(figsize=(4.4, 3.6), layout="constrained")
    for name in SETTINGS:
        rate, error = errors(model, name)
        parts = error[:, DRIFT // 2 : DRIFT], error[:, DRIFT : DRIFT + 500], error[:, -LAST:]
        before, begun, last = (float(part.mean()) for part in parts)
        print(f"{name:<30} {before:6.3f} {begun:16.3f} {last:6.3f}  rate {rate:g}", flush=True)
        if name in ("float32", "both of 16 bits", "both of 8 bits", "both of 8 bits, at random"):
            plotted(axes, name, error)
    finished(fig, axes, "fixed_point.svg")


if __name__ == "__main__":
    main()
