"""BPTT and dense references of the online rules for the models of `networks.py`, in plain JAX and step by step.

They know what the networks are: `w_out` is the only product whose data are values of its own step; the data of all
others are inputs and values of the step before. Each takes one sequence, or a batch of them on the second axis.
"""

import functools as ft
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from tests.helpers import loss_of_sequence
from tests.peer.networks import Dense, Model, Weights

Loss = Callable[[Array, Array], Array]


def squared_error(y: Array, target: Array) -> Array:
    return 0.5 * jnp.sum((y - target) ** 2)


def cross_entropy(y: Array, target: Array) -> Array:
    """Of the softmax of `y` with the softmax of `target`."""
    return -jnp.sum(jax.nn.softmax(target) * jax.nn.log_softmax(y))


def by_name(grads: Model) -> Weights:
    """Gradients of a model's structure, by weight name."""
    return {name: np.asarray(value) for name, value in vars(grads).items()}


def _averaged(gradient: Callable[..., Model]) -> Callable[..., Weights]:
    """Average a gradient of one sequence over a batch, if there is one, and name its weights."""

    @ft.wraps(gradient)
    def over_batch(
        model: Model, xs: np.ndarray, targets: np.ndarray, loss: Loss, *options: float | str
    ) -> Weights:
        if xs.ndim == 2:
            xs, targets = xs[:, None], targets[:, None]
        sequences = jax.jit(
            jax.vmap(lambda x, target: gradient(model, x, target, loss, *options), in_axes=1)
        )
        return by_name(jax.tree.map(lambda g: jnp.mean(g, axis=0), sequences(xs, targets)))

    return over_batch


@_averaged
def bptt(model: Model, xs: Array, targets: Array, loss: Loss, stop: bool = False) -> Model:
    """The true gradient of the loss, summed over time; with `stop` that of each step alone."""
    total = lambda m: loss_of_sequence(m, xs, targets, m.init_state(), loss=loss, stop=stop)
    return jax.grad(total)(model)


def immediate(*given) -> Weights:
    """The gradient of every step alone, its old state a constant: what a parameter without a trace gets."""
    return bptt(*given, True)


def cut(
    *free: str, shifts: Mapping[str, Array] | None = None, data: dict[str, Array] | None = None
) -> Dense:
    """A `dense` that holds the data of every product but the `free` ones constant.

    It adds `shifts` to the products and leaves their data in `data`.
    """

    def dense(name: str, x: Array, w: Array) -> Array:
        x = x if name in free else jax.lax.stop_gradient(x)
        if data is not None:
            data[name] = x
        return x @ w + (0.0 if shifts is None else shifts[name])

    return dense


@_averaged
def d_rtrl(model: Model, xs: Array, targets: Array, loss: Loss, backprop: str = "cut") -> Model:
    """D-RTRL with the whole influence matrix `∂s_t/∂θ` of the cut step.

    `truncated` holds the old states that a product reads constant when it takes the learning signal; `exact` does not.
    """
    state, unravel = ravel_pytree(model.init_state())
    theta, rebuild = ravel_pytree(model)
    signal_options = {"cut": {"dense": cut("w_out")}, "full": {}}[backprop]

    def new_state(state: Array, theta: Array, x: Array) -> Array:
        return ravel_pytree(rebuild(theta)(x, unravel(state), dense=cut())[1])[0]

    def step_loss(state: Array, theta: Array, x: Array, target: Array) -> Array:
        return loss(rebuild(theta)(x, unravel(state), **signal_options)[0], target)

    def step(carry: tuple[Array, Array, Array], x_and_target: tuple[Array, Array]):
        (state, trace, total), (x, target) = carry, x_and_target
        signal, immediate = jax.grad(step_loss, argnums=(0, 1))(state, theta, x, target)
        transition, injected = jax.jacfwd(new_state, argnums=(0, 1))(state, theta, x)
        carry = (
            new_state(state, theta, x),
            transition @ trace + injected,
            total + immediate + signal @ trace,
        )
        return carry, None

    init = (state, jnp.zeros((state.size, theta.size)), jnp.zeros(theta.size))
    return rebuild(jax.lax.scan(step, init, (xs, targets))[0][2])


@_averaged
def es_d_rtrl(model: Model, xs: Array, targets: Array, loss: Loss, decay: float) -> Model:
    """ES-D-RTRL in its decay form, as the paper has it, for the products of data and weight; NaN for other weights.

    `L_t·ε_f,t` is written out as `α λ_t·ε_f,t-1 + (1-α) ∂ℓ_t/∂δ_k`, where `λ_t` and `∂ℓ_t/∂δ_k` are gradients of the
    step with respect to its old state and to a shift of the product, so that every path counts once.
    """
    state, unravel = ravel_pytree(model.init_state())
    model(xs[0], model.init_state(), dense=cut(data=(data := {})))
    shifts = {name: jnp.zeros(getattr(model, name).shape[1]) for name in data}
    x_traces = jax.tree.map(jnp.zeros_like, data)
    f_traces = {name: jnp.zeros((state.size, shift.size)) for name, shift in shifts.items()}
    total = {name: jnp.zeros_like(getattr(model, name)) for name in data}

    def new_state(
        state: Array, shifts: dict[str, Array], x: Array
    ) -> tuple[Array, dict[str, Array]]:
        dense = cut(shifts=shifts, data=(data := {}))
        return ravel_pytree(model(x, unravel(state), dense=dense)[1])[0], data

    def step_loss(state: Array, shifts: dict[str, Array], x: Array, target: Array) -> Array:
        return loss(model(x, unravel(state), dense=cut("w_out", shifts=shifts))[0], target)

    def step(carry: tuple, t_x_target: tuple[Array, Array, Array]) -> tuple[tuple, None]:
        (state, x_traces, f_traces, total), (t, x, target) = carry, t_x_target
        signal, shift_signals = jax.grad(step_loss, argnums=(0, 1))(state, shifts, x, target)
        (transition, injected), data = jax.jacfwd(new_state, (0, 1), has_aux=True)(state, shifts, x)
        state = new_state(state, shifts, x)[0]
        x_traces = {k: decay * x_traces[k] + data[k] for k in data}
        credit = {k: decay * signal @ f_traces[k] + (1.0 - decay) * shift_signals[k] for k in data}
        f_traces = {k: decay * transition @ f_traces[k] + (1.0 - decay) * injected[k] for k in data}
        total = {k: total[k] + jnp.outer(x_traces[k], credit[k]) / (1.0 - decay**t) for k in data}
        return (state, x_traces, f_traces, total), None

    init = (state, x_traces, f_traces, total)
    total = jax.lax.scan(step, init, (jnp.arange(1, len(xs) + 1), xs, targets))[0][3]
    return type(model)(
        **{name: total.get(name, jnp.full_like(w, jnp.nan)) for name, w in vars(model).items()}
    )
