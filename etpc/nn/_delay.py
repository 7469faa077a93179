"""Delays of signals, one for each neuron or for each connection."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from etpc.errors import InputError
from etpc.nn._init import SCHEMES, DType, check_shape, float_dtype, layer_shape, set_lengths
from etpc.trace import mark

Steps: TypeAlias = int | np.ndarray | Int[Array, "..."]


class Delay(eqx.Module):
    """Delayed signals: `y_k(t) = x_k(t - d_k)`, and 0 before the first input.

    The state is the last D inputs, newest first, where D is the largest delay. A step moves them on by
    one, and every output reads at its own place, which is fixed: so the compiler sees which
    input each output comes from.

    ```pycon
    >>> import jax.numpy as jnp, numpy as np
    >>> from etpc import nn
    >>> delay = nn.Delay(2, np.array([0, 2]))
    >>> state = delay.init_state()
    >>> for t in range(1, 5):
    ...     y, state = delay(jnp.full(2, float(t)), state)
    >>> y.tolist()
    [4.0, 2.0]

    ```
    """

    steps: Int[Array, "*K"]
    shape: tuple[int, ...] = eqx.field(static=True)
    longest: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, size: int | tuple[int, ...], steps: Steps, *, dtype: DType = None):
        """**Arguments:**

        - `size`: the number of signals K, or the shape of a layer of them.
        - `steps`: the delays d in steps, an integer or an array of integers of shape `size`.
        - `dtype`: of the state; JAX's default float where None.

        **Raises** `InputError` for a size below 1, and for delays that are no integers, do not fit
        `size`, are negative or are all zero.
        """
        self.shape = layer_shape(size)
        self.steps, self.longest = _delays("steps", steps, self.shape)
        self.dtype = float_dtype(dtype)

    def init_state(self) -> Float[Array, "D *K"]:
        """**Returns** zeros."""
        return jnp.zeros((self.longest, *self.shape), self.dtype)

    def __call__(
        self, x: Float[Array, "*K"], past: Float[Array, "D *K"]
    ) -> tuple[Float[Array, "*K"], Float[Array, "D *K"]]:
        """One step with the input `x` and the inputs before it.

        **Returns** the delayed signals and the new state.

        **Raises** `InputError` where `x` or `past` has another shape than the layer and its state.
        """
        check_shape("Delay", "x", x, self.shape)
        check_shape("Delay", "past", past, (self.longest, *self.shape))
        line = jnp.concatenate([x[None], past])
        return jnp.take_along_axis(line, self.steps[None], axis=0)[0], line[:-1]


class DelayedLinear(eqx.Module):
    """A projection with a delay for each connection: `y_o(t) = sum_i W_oi x_i(t - d_oi)`, where the
    inputs before the first one are 0.

    The state is the last D inputs, newest first, where D is the largest delay.

    ```pycon
    >>> import jax, jax.numpy as jnp, numpy as np
    >>> from etpc import nn
    >>> delays = np.array([[0, 1, 5], [2, 2, 2]])
    >>> projection = nn.DelayedLinear(3, 2, delays, key=jax.random.key(0))
    >>> y, state = projection(jnp.ones(3), projection.init_state())
    >>> y.shape, state.shape
    ((2,), (5, 3))

    ```

    """

    weight: Float[Array, "O I"]
    delays: Int[Array, "O I"]
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    longest: int = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        delays: Steps,
        *,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `delays`: the delays d in steps, an integer or an array of integers of shape `(O, I)`.
        - the other arguments as for [`etpc.nn.DaleLinear`][].

        **Raises** `InputError` for a size below 1, delays that `Delay` would refuse, or a dtype that
        is not a float.
        """
        shape = set_lengths(self, out_features=out_features, in_features=in_features)
        self.delays, self.longest = _delays("delays", delays, shape)
        self.weight = SCHEMES["kaiming_normal"](key, shape, float_dtype(dtype))

    def init_state(self) -> Float[Array, "D I"]:
        """**Returns** zeros."""
        return jnp.zeros((self.longest, self.in_features), self.weight.dtype)

    def __call__(
        self, x: Float[Array, " I"], past: Float[Array, "D I"]
    ) -> tuple[Float[Array, " O"], Float[Array, "D I"]]:
        """One step with the input `x` and the inputs before it.

        **Returns** the output and the new state.

        **Raises** `InputError` where `x` or `past` has another shape than `(I,)` and `(D, I)`.
        """
        check_shape("DelayedLinear", "x", x, (self.in_features,))
        check_shape("DelayedLinear", "past", past, (self.longest, self.in_features))
        line = jnp.concatenate([x[None], past])
        arrived = jnp.take_along_axis(line, self.delays, axis=0)
        # A contraction, and not a product and a sum: it mixes inputs, which is where D-RTRL cuts.
        return jax.vmap(jnp.dot)(mark(self.weight), arrived), line[:-1]


def _delays(name: str, value: Steps, shape: tuple[int, ...]) -> tuple[Array, int]:
    """Delays as an array of `shape`, and the largest."""
    delays = np.asarray(value)
    if not np.issubdtype(delays.dtype, np.integer) or np.any(delays < 0):
        raise InputError(
            f"{name} must be integers >= 0, got {value!r}. This is because a delay is a number of "
            "steps. Round a time divided by dt, as in `np.round(times / dt).astype(int)`."
        )
    if delays.shape not in ((), shape):
        raise InputError(
            f"{name} has shape {delays.shape} where {shape} is needed. This is because there is one "
            "delay for each connection. Pass an integer or an array of that shape."
        )
    longest = int(delays.max())
    if longest == 0:
        raise InputError(
            f"{name} are all zero. This is because then there is nothing to store. Leave the delay out."
        )
    return jnp.asarray(np.broadcast_to(delays, shape), jnp.int32), longest
