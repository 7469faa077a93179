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

from tests.peer.networks import Model, Weights


class PeerModel(brainstate.nn.Module):
    """A braintrace model: one `ParamState` for each weight, one `HiddenState` for each state.

    With `plain`, weights that are vectors are used as they are, through no operation of braintrace.
    """

    def __init__(self, network: type[Model], weights: Weights, plain: bool = False):
        super().__init__()
        self.network, self.names, self.plain = network, tuple(weights), plain
        for name, value in weights.items():
            setattr(self, name, brainstate.ParamState(jnp.asarray(value)))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        for name, size in self.network.sizes.items():
            shape = (size,) if batch_size is None else (batch_size, size)
            setattr(self, name, brainstate.HiddenState(jnp.zeros(shape)))

    def update(self, x: Array) -> Array:
        of_vector = (lambda w: w) if self.plain else braintrace.element_wise
        weights = (getattr(self, name).value for name in self.names)
        weights = [of_vector(w) if w.ndim == 1 else w for w in weights]
        state = {name: getattr(self, name).value for name in self.network.sizes}
        y, state = self.network.step(x, state, braintrace.matmul, *weights)
        for name, value in state.items():
            getattr(self, name).value = value
        return y


def peer_gradient(
    network: type[Model],
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
    plain: bool = False,
) -> Weights:
    """The peer's gradient of the loss, summed over time and averaged over the batch, one step per call.

    `xs` and `targets` have a leading axis T, then a batch axis if `xs` is of rank 3. A batch is computed in the
    peer's batched graph or, with `vmap`, by mapping the graph of one example. `n` is that of SnAp, and `modulator` [T]
    that of "three_factor"; `plain` is that of the model.
    """
    model = PeerModel(network, weights, plain)
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
