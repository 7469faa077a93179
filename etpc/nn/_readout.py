"""Readouts: layers that turn spikes into a continuous output."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from etpc.nn._init import (
    SCHEMES,
    DType,
    Number,
    Parameter,
    check_shape,
    constant_or_parameter,
    float_dtype,
    positive_number,
    set_lengths,
    used,
)
from etpc.nn.dynamics import leak
from etpc.trace import mark


class Readout(eqx.Module):
    """Leaky sums of weighted inputs."""

    weight: Float[Array, "O I"]
    tau: Parameter
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def init_state(self) -> Float[Array, " O"]:
        """**Returns** zeros."""
        return jnp.zeros(self.out_features, self.dtype)

    def _decay(self, x: Array, **state: Array) -> tuple[Any, Any]:
        """What a step leaves of the state, and what that lacks to 1, once the shapes are checked."""
        name, shape = type(self).__name__, (self.out_features,)
        check_shape(name, "x", x, (self.in_features,))
        for part, array in state.items():
            check_shape(name, part, array, shape)
        return leak(self.dt, used(self.tau, shape))


def _begin(
    readout: Readout, inputs: int, outputs: int, tau: Parameter, dt: Number, dtype: DType, key: Any
) -> None:
    """Set the fields that all readouts have."""
    I, O = set_lengths(readout, in_features=inputs, out_features=outputs)
    dtype = readout.dtype = float_dtype(dtype)
    readout.tau = constant_or_parameter("tau", tau, (O,), dtype, "ms", positive=True)
    readout.dt = positive_number("dt", dt, "ms")
    readout.weight = SCHEMES["kaiming_normal"](key, (O, I), dtype)


class LeakyRateReadout(Readout):
    """Leaky sums of weighted spikes: `r' = exp(-dt / tau) r + W x`. The output is the new state
    `r'`.

    `tau` given as a number is a fixed constant; as an array, of shape `()` or `(O,)`, it is a
    trainable parameter and marked as a weight. Either may be a `saiunit` quantity, which is converted
    to ms.

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

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tau: Parameter = 5.0,
        dt: Number = 1.0,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: I and O, the lengths of `x` and `r`.
        - `tau`: time constant (ms). `dt`: length of one step (ms).
        - `dtype`: of the parameters and the state; JAX's default float where None.
        - `key`: a PRNG key for the initial weight.

        **Raises** `InputError` for a size below 1, `tau` or `dt` that is not positive or is a quantity
        other than a time, a `tau` that does not fit `(O,)`, or a dtype that is not a float.
        """
        _begin(self, in_features, out_features, tau, dt, dtype, key)

    def __call__(
        self, x: Float[Array, " I"], r: Float[Array, " O"]
    ) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
        """One step of `dt` with the input `x` from the state `r`.

        **Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `r` has another shape than `(I,)` and `(O,)`.
        """
        decay, _ = self._decay(x=x, r=r)
        r = decay * r + mark(self.weight) @ x
        return r, r


class MembraneReadout(Readout):
    """Membranes that do not spike: `tau dV/dt = -V + W x + b`, so `V' = d V + (1 - d) (W x + b)` with
    `d = exp(-dt / tau)`. The output is the new state `V'`.

    Unlike that of [`LeakyRateReadout`][etpc.nn.LeakyRateReadout], the input has the gain `1 - d`, and
    a constant input is reached for every `tau`.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> readout = nn.MembraneReadout(4, 2, tau=10.0, key=jax.random.key(0))
    >>> y, V = readout(jnp.ones(4), readout.init_state())
    >>> y.shape
    (2,)

    ```

    **Source** Gerstner, Kistler, Naud & Paninski, "Neuronal Dynamics", Cambridge University Press
    2014, section 1.3: the membrane of a leaky integrate-and-fire neuron, without its threshold.
    """

    bias: Float[Array, " O"] | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        *,
        tau: Parameter = 20.0,
        dt: Number = 1.0,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments** as for [`etpc.nn.LeakyRateReadout`][]; `use_bias`: whether there is a `b`.

        **Raises** `InputError` as `LeakyRateReadout` does.
        """
        _begin(self, in_features, out_features, tau, dt, dtype, jax.random.split(key)[0])
        self.bias = jnp.zeros(self.out_features, self.dtype) if use_bias else None

    def __call__(
        self, x: Float[Array, " I"], V: Float[Array, " O"]
    ) -> tuple[Float[Array, " O"], Float[Array, " O"]]:
        """One step of `dt` with the input `x` from the state `V`.

        **Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `V` has another shape than `(I,)` and `(O,)`.
        """
        decay, gain = self._decay(x=x, V=V)
        drive = mark(self.weight) @ x
        if self.bias is not None:
            drive = drive + mark(self.bias)
        V = decay * V + gain * drive
        return V, V


def broadcast_readout(
    weight: Float[Array, "O I"],
    feedback: Float[Array, "O I"],
    x: Float[Array, " I"],
    *,
    adaptive: bool = False,
) -> Float[Array, " O"]:
    """`y = W x`, through which the error goes back by other weights: the credit of `x` is `B^T dy`.

    With fixed random weights B this is the broadcast learning signal of e-prop; under D-RTRL with
    cut windows, each neuron then learns from `sum_k B_kj dy_k` and its eligibility trace. The
    gradient of W is that of `W x`. B has none; with `adaptive`, it has the gradient of W, so that
    the two become alike where an optimiser also lets both decay.

    A leaky readout filters the spikes: give it as `x` their low-passed values, `a' = k a + z`, one
    state for each neuron. `W a` is the leaky sum of `W z`, and the filter is then part of the trace.

    **Returns** `W x`.

    **Raises** `InputError` where `x` or B does not fit W.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> w, b = jnp.ones((2, 3)), jnp.arange(6.0).reshape(2, 3)
    >>> back = jax.vjp(lambda x: nn.broadcast_readout(w, b, x), jnp.ones(3))[1]
    >>> back(jnp.array([1.0, 0.0]))[0].tolist()
    [0.0, 1.0, 2.0]

    ```

    **Source** Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking
    neurons", Nature Communications 11, 3625, 2020: the learning signal, equation 4, random and adaptive
    e-prop. There, the adaptive one also lets the weights decay.
    """
    check_shape("broadcast_readout", "x", x, weight.shape[1:])
    check_shape("broadcast_readout", "feedback", feedback, weight.shape)
    feedback = mark(feedback) if adaptive else jax.lax.stop_gradient(feedback)
    back = feedback @ x
    return mark(weight) @ jax.lax.stop_gradient(x) + (back - jax.lax.stop_gradient(back))
