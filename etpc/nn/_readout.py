"""Readouts: layers that turn spikes into a continuous output."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from etpc._jax import mark
from etpc.nn._init import (
    Constant,
    Initializer,
    check_shape,
    constant_or_parameter,
    float_dtype,
    initialise,
    kaiming_normal,
    positive_int,
    positive_number,
    used,
)


class LeakyRateReadout(eqx.Module):
    """Leaky sums of weighted spikes: `r' = exp(-dt / tau) r + W x`. The output is the new state
    `r'`.

    `tau` given as a number is a fixed constant; as an array, of shape `()` or `(O,)`, it is a
    trainable parameter and marked as a weight.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> readout = nn.LeakyRateReadout(4, 2, tau=10.0, key=jax.random.key(0))
    >>> y, r = readout(jnp.ones(4), readout.init_state())
    >>> y.shape
    (2,)

    ```

    **Source** Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking
    neurons", Nature Communications 11, 2020, the leaky readout, without its bias; the same equation
    as braintrace's `LeakyRateReadout`.
    """

    weight: Float[Array, "O I"]
    tau: float | Float[Array, "..."]
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tau: Constant = 5.0,
        dt: float | int = 1.0,
        weight_init: Initializer = kaiming_normal(),
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: I and O, the lengths of `x` and `r`.
        - `tau`: time constant (ms). `dt`: length of one step (ms).
        - `weight_init`: a callable `(key, shape, dtype) -> array`; the weight's shape is `(O, I)`.
        - `dtype`: of the parameters and the state; JAX's default float where None.
        - `key`: a PRNG key for the initial weight.

        **Raises** `InputError` for a size below 1, `tau` or `dt` that is not positive, a `tau` that
        does not fit `(O,)`, a dtype that is not a float, or an initialiser that returns another
        shape or dtype.
        """
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        self.dtype = float_dtype(dtype)
        shape = (self.out_features, self.in_features)
        self.tau = constant_or_parameter("tau", tau, shape[:1], self.dtype, positive=True)
        self.dt = positive_number("dt", dt)
        self.weight = initialise("weight_init", weight_init, key, shape, self.dtype)

    def init_state(self) -> Float[Array, " O"]:
        """**Returns** zeros."""
        return jnp.zeros(self.out_features, self.dtype)

    def __call__(
        self, x: Float[Array, " I"], r: Float[Array, " O"]
    ) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
        """One step of `dt` with the input `x` from the state `r`.

        **Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `r` has another shape than `(I,)` and `(O,)`.
        """
        check_shape("LeakyRateReadout", "x", x, (self.in_features,))
        check_shape("LeakyRateReadout", "r", r, (self.out_features,))
        steps = self.dt / used(self.tau)
        decay = jnp.exp(-steps) if isinstance(steps, jax.Array) else math.exp(-steps)
        r = decay * r + mark(self.weight) @ x
        return r, r
