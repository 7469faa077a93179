"""The networks of `networks.py` for the peer, braintrace on brainstate, and the gradients that it gives.

Import this module after `pytest.importorskip("braintrace")`.
"""

from collections.abc import Callable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tests.peer import networks
from tests.peer.networks import N_HIDDEN, N_OUT, Model, Weights, spike


class PeerModel(brainstate.nn.Module):
    """A braintrace model: one `ParamState` per weight, one `HiddenState` per state."""

    states: tuple[tuple[str, int], ...] = ()

    def __init__(self, weights: Weights):
        super().__init__()
        for name, value in weights.items():
            setattr(self, name, brainstate.ParamState(jnp.asarray(value)))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        for name, size in self.states:
            shape = (size,) if batch_size is None else (batch_size, size)
            setattr(self, name, brainstate.HiddenState(jnp.zeros(shape)))

    def matmul(self, x: Array, name: str) -> Array:
        return braintrace.matmul(x, getattr(self, name).value)


class PeerALIF(PeerModel):
    states = (("v", N_HIDDEN), ("a", N_HIDDEN), ("r", N_OUT))

    def update(self, x):
        v, a = self.v.value, self.a.value
        z = spike(v - 1.0 - 0.3 * a)
        self.a.value = 0.95 * a + z
        self.v.value = 0.9 * v - z + self.matmul(x, "w_in") + self.matmul(z, "w_rec")
        out = spike(self.v.value - 1.0 - 0.3 * self.a.value)
        self.r.value = 0.8 * self.r.value + self.matmul(out, "w_out")
        return self.r.value


class PeerConductance(PeerModel):
    states = (("g", N_HIDDEN), ("v", N_HIDDEN), ("r", N_OUT))

    def update(self, x):
        v = self.v.value
        z = spike(v - 1.0)
        self.g.value = 0.7 * self.g.value + self.matmul(x, "w_in") + self.matmul(z, "w_rec")
        self.v.value = 0.9 * v - z + 0.2 * self.g.value * (3.0 - v)
        self.r.value = 0.8 * self.r.value + self.matmul(spike(self.v.value - 1.0), "w_out")
        return self.r.value


class PeerRNN(PeerModel):
    states = (("h", N_HIDDEN), ("r", N_OUT))

    def update(self, x):
        h = self.h.value
        bias = braintrace.element_wise(self.bias.value)
        self.h.value = 0.7 * h + 0.3 * jnp.tanh(
            self.matmul(x, "w_in") + self.matmul(h, "w_rec") + bias
        )
        self.r.value = 0.8 * self.r.value + self.matmul(self.h.value, "w_out")
        return self.r.value


class PeerVanilla(PeerModel):
    states = (("h", N_HIDDEN),)

    def update(self, x):
        self.h.value = jnp.tanh(self.matmul(x, "w_in") + self.matmul(self.h.value, "w_rec"))
        return self.matmul(self.h.value, "w_out")


class PeerGated(PeerModel):
    states = (("h", N_HIDDEN), ("r", N_OUT))

    def update(self, x):
        h = self.h.value
        xh = jnp.concatenate([x, h], axis=-1)
        z = jax.nn.sigmoid(self.matmul(xh, "w_gate"))
        self.h.value = (1.0 - z) * h + z * jnp.tanh(self.matmul(xh, "w_cand"))
        self.r.value = 0.8 * self.r.value + self.matmul(self.h.value, "w_out")
        return self.r.value


class PeerLearnedLeak(PeerModel):
    states = (("v", N_HIDDEN),)

    def update(self, x):
        v = self.v.value
        leak = jax.nn.sigmoid(braintrace.element_wise(self.leak.value))
        threshold = braintrace.element_wise(self.threshold.value)
        z = spike(v - threshold)
        self.v.value = leak * v - z * threshold + self.matmul(x, "w_in")
        return spike(self.v.value - 1.0)


class PeerCascade(PeerModel):
    states = (("a", N_HIDDEN), ("b", N_HIDDEN), ("c", N_HIDDEN))

    def update(self, x):
        self.a.value = 0.7 * self.a.value + self.matmul(x, "w_in")
        self.b.value = jnp.tanh(self.a.value)
        self.c.value = jnp.sin(self.b.value)
        return self.c.value


class PeerGRU(PeerModel):
    states = (("h", N_HIDDEN),)

    def update(self, x):
        h = self.h.value
        xh = jnp.concatenate([x, h], axis=-1)
        z = jax.nn.sigmoid(self.matmul(xh, "w_gate"))
        reset = jax.nn.sigmoid(self.matmul(xh, "w_reset"))
        cand = jnp.tanh(self.matmul(jnp.concatenate([x, reset * h], axis=-1), "w_cand"))
        self.h.value = (1.0 - z) * h + z * cand
        return self.matmul(self.h.value, "w_out")


class PeerPlainLeak(PeerModel):
    """`LearnedLeak` whose leak and threshold are used as they are, through no braintrace operation."""

    states = (("v", N_HIDDEN),)

    def update(self, x):
        v = self.v.value
        z = spike(v - self.threshold.value)
        self.v.value = (
            jax.nn.sigmoid(self.leak.value) * v - z * self.threshold.value + self.matmul(x, "w_in")
        )
        return spike(self.v.value - 1.0)


class PeerLSTM(PeerModel):
    states = (("c", N_HIDDEN), ("h", N_HIDDEN))

    def update(self, x):
        c, h = self.c.value, self.h.value
        xh = jnp.concatenate([x, h], axis=-1)
        i, g, f, o = (self.matmul(xh, name) for name in ("w_i", "w_g", "w_f", "w_o"))
        self.c.value = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        self.h.value = jax.nn.sigmoid(o) * jnp.tanh(self.c.value)
        return self.h.value


class PeerPermuted(PeerModel):
    states = (("h", N_HIDDEN),)

    def update(self, x):
        self.h.value = 0.9 * jnp.tanh(jnp.roll(self.h.value, 1, axis=-1)) + self.matmul(x, "w_in")
        return self.h.value


class PeerMeanFree(PeerModel):
    states = (("h", N_HIDDEN),)

    def update(self, x):
        h = self.h.value
        mean = jnp.mean(h, axis=-1, keepdims=True)
        self.h.value = 0.9 * (h - mean) + jnp.tanh(self.matmul(x, "w_in"))
        return self.h.value


PEERS: dict[type[Model], type[PeerModel]] = {
    networks.ALIF: PeerALIF,
    networks.Conductance: PeerConductance,
    networks.RNN: PeerRNN,
    networks.Vanilla: PeerVanilla,
    networks.Gated: PeerGated,
    networks.LearnedLeak: PeerLearnedLeak,
    networks.Cascade: PeerCascade,
    networks.GRU: PeerGRU,
    networks.LSTM: PeerLSTM,
    networks.Permuted: PeerPermuted,
    networks.MeanFree: PeerMeanFree,
}


# --- its gradients ---------------------------------------------------------------------------------------------------


def peer_gradient(
    network: type[Model] | type[PeerModel],
    weights: Weights,
    xs: np.ndarray,
    targets: np.ndarray,
    algo: str | type = "d_rtrl",
    decay: float | None = None,
    vjp_method: str = "single-step",
    *,
    loss: Callable[[Array, Array], Array],
    vmap: bool = False,
    n: int | None = None,
    modulator: np.ndarray | None = None,
) -> Weights:
    """The peer's gradient of the loss, summed over time and averaged over the batch, one step per call.

    `xs` and `targets` have a leading axis T, then a batch axis if `xs` is of rank 3. A batch is computed in the
    peer's batched graph or, with `vmap`, by mapping the graph of one example. `n` is that of SnAp, and `modulator` [T]
    that of "three_factor".
    """
    model = PEERS.get(network, network)(weights)
    options = {"vjp_method": vjp_method} | ({} if decay is None else {"decay_or_rank": decay})
    options |= {} if n is None else {"n": n}
    batch_size = xs.shape[1] if xs.ndim == 3 else None
    xs, targets = jnp.asarray(xs), jnp.asarray(targets)
    with jax.numpy_rank_promotion("allow"):
        learner = braintrace.compile(
            model, algo, xs[0], batch_size=batch_size, vmap=vmap, **options
        )

        def step_loss(x: Array, target: Array, *modulated: Array) -> Array:
            y = learner.update(x, modulator=modulated[0]) if modulated else learner(x)
            return loss(y, target) if batch_size is None else jnp.mean(jax.vmap(loss)(y, target))

        modulated = [] if modulator is None else [jnp.asarray(modulator)]
        grads = learner.etrace_grad(xs, targets, *modulated, step_fn=step_loss, reduction="sum")
    return {path[-1]: np.asarray(value) for path, value in grads.items()}
