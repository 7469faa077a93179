"""Synapses: what a weighted sum of spikes becomes until it is a current into a neuron."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from etpc.errors import InputError
from etpc.nn._declared import Units, constant, duration, option
from etpc.nn._init import Number, Parameter, known
from etpc.nn.dynamics import check_above, leak


class ExponentialSynapse(Units):
    """Exponential synapses: `tau dg/dt = -g`, and each input adds to `g`, so
    `g' = exp(-dt / tau) g + x`. The output is the new state `g'`.

    The input is a weighted sum of spikes. Its weights give the unit of `g`: nA for a current into a
    neuron, microsiemens for a conductance, as [`COBA`][etpc.nn.COBA] takes it.

    A parameter given as a number is a fixed constant. One given as an array, of shape `()` or
    `size`, is a trainable parameter and marked as a weight. Each may be a `saiunit` quantity.

    **Arguments:**

    - `size`: the number of synapses K, or the shape of a layer of them.
    - `tau`: time constant (ms). `dt`: length of one step (ms).
    - `dtype`: of the state and of the trainable parameter; JAX's default float where None.

    **Raises** `InputError` for a size below 1, and for `tau` or `dt` that is not positive, does not
    fit or is a quantity of another dimension.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> synapse = nn.ExponentialSynapse(3, tau=5.0)
    >>> g, state = synapse(jnp.ones(3), synapse.init_state())
    >>> g.tolist()
    [1.0, 1.0, 1.0]

    ```

    **Source** Gerstner, Kistler, Naud & Paninski, "Neuronal Dynamics", Cambridge University Press
    2014, section 3.1.
    """

    tau: Parameter = constant(5.0, "ms", positive=True)
    dt: Number = duration(1.0)

    def init_state(self) -> Float[Array, "*K"]:
        """**Returns** zeros."""
        return jnp.zeros(self.shape, self.dtype)

    def __call__(
        self, x: Float[Array, "*K"], g: Float[Array, "*K"]
    ) -> tuple[Float[Array, "*K"], Float[Array, "*K"]]:
        """One step of `dt` with the input `x` from the state `g`.

        **Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `g` has another shape than the layer.
        """
        self._check(x=x, g=g)
        g = leak(self.dt, self._used(self.tau))[0] * g + x
        return g, g


class DualExponentialState(NamedTuple):
    """The two exponentials whose difference is the output."""

    rise: Float[Array, "*K"]
    decay: Float[Array, "*K"]


class DualExponentialSynapse(Units):
    """Synapses that rise and decay: an input `x` at time 0 gives `g(t) = A x (exp(-t / tau_decay) -
    exp(-t / tau_rise))`.

    Each exponential is a state `s' = exp(-dt / tau) s + x`, and the output is `A` times the difference
    of the new states. With `normalise`, `A` makes the peak of `g(t)` 1 for an input of 1; otherwise
    `A = 1`. The peak is that in continuous time; with long steps no step may fall on it.

    Numbers, arrays and units are as in [`ExponentialSynapse`][etpc.nn.ExponentialSynapse].

    **Arguments:**

    - `tau_rise`, `tau_decay`: time constants (ms).
    - `normalise`: whether the peak is 1 for an input of 1.
    - the other arguments as for `ExponentialSynapse`.

    **Raises** `InputError` as `ExponentialSynapse` does, and for a `tau_decay` that is not above
    `tau_rise`.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> synapse = nn.DualExponentialSynapse(1, tau_rise=1.0, tau_decay=10.0)
    >>> state = synapse.init_state()
    >>> for t in range(4):
    ...     g, state = synapse(jnp.array([float(t == 0)]), state)
    >>> print(f"{g[0]:.3f}")  # 3 ms after the spike
    0.992

    ```

    **Source** Roth & van Rossum, "Modeling synapses", in De Schutter (ed.), "Computational modeling
    methods for neuroscientists", MIT Press 2009, the difference of two exponentials and its
    normalisation.
    """

    tau_rise: Parameter = constant(1.0, "ms", positive=True)
    tau_decay: Parameter = constant(5.0, "ms", positive=True)
    normalise: bool = option(True)
    dt: Number = duration(1.0)

    def __check_init__(self):
        why = "the synapse would not rise first, and its peak would be undefined"
        check_above("tau_decay", self.tau_decay, "tau_rise", self.tau_rise, why)

    def init_state(self) -> DualExponentialState:
        """**Returns** zeros."""
        zero = jnp.zeros(self.shape, self.dtype)
        return DualExponentialState(zero, zero)

    def __call__(
        self, x: Float[Array, "*K"], state: DualExponentialState
    ) -> tuple[Float[Array, "*K"], DualExponentialState]:
        """One step of `dt` with the input `x` from `state`.

        **Returns** the output `g` and the new state.

        **Raises** `InputError` where `x` or a part of `state` has another shape than the layer.
        """
        self._check(x=x, **state._asdict())
        rise = leak(self.dt, self._used(self.tau_rise))[0] * state.rise + x
        decay = leak(self.dt, self._used(self.tau_decay))[0] * state.decay + x
        g = decay - rise
        if self.normalise:
            g = g / self._peak()
        return g, DualExponentialState(rise, decay)

    def _peak(self) -> Parameter:
        rise, decay = self._used(self.tau_rise), self._used(self.tau_decay)
        ratio = decay / rise
        xp = jnp if isinstance(ratio, jax.Array) else math
        time = decay * rise / (decay - rise) * xp.log(ratio)
        return xp.exp(-time / decay) - xp.exp(-time / rise)


class COBA(Units):
    """A conductance-based synapse: the current `g (E - V)` drives the potential towards the reversal
    potential `E`.

    A neuron holds its input current constant over a step. So `g R dt / tau` has to be well below 1, or
    the potential oscillates around `E`.

    **Arguments:**

    - `size`: the number of neurons K, or the shape of a layer of them.
    - `E`: the reversal potential (mV); an array, of shape `()` or `size`, is a trainable parameter.
    - `dtype`: of the trainable parameter; JAX's default float where None.

    **Raises** `InputError` for a size below 1, and for an `E` that is not finite, does not fit or is
    a quantity of another dimension.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> nn.COBA(2, E=-80.0)(jnp.array([0.1, 0.2]), jnp.array([-60.0, -90.0])).tolist()
    [-2.0, 2.0]

    ```

    **Source** Gerstner, Kistler, Naud & Paninski, "Neuronal Dynamics", Cambridge University Press
    2014, section 3.1, where the current has the opposite sign: it counts as outward.
    """

    E: Parameter = constant(0.0, "mV")

    def __call__(self, g: Float[Array, "*K"], V: Float[Array, "*K"]) -> Float[Array, "*K"]:
        """**Returns** the current (nA) into neurons at the potential `V` (mV) from a synapse with the
        conductance `g` (microsiemens).

        **Raises** `InputError` where `g` or `V` has another shape than the layer.
        """
        self._check(g=g, V=V)
        return g * (self._used(self.E) - V)


class PlasticityState(NamedTuple):
    """The utilisation `u` of the resources `x`, both from 0 to 1."""

    u: Float[Array, "*K"]
    x: Float[Array, "*K"]


class ShortTermPlasticity(Units):
    """Short-term facilitation and depression: each spike of a neuron has an efficacy between 0 and 1.

    ```text
    du/dt = -u / tau_f,  dx/dt = (1 - x) / tau_d
    at a spike: u <- u + U (1 - u),  then the efficacy is u x,  and x <- x - u x
    ```

    One step from the state `(u, x)` with the spikes `s`: both equations by their exact solution, then the
    jumps, each in proportion to `s`: `u' = u + U (1 - u) s`, the output `y = u' x s`, and `x' = x - y`. The
    output goes into the weights of a projection. The first spike has the efficacy `U`.

    Numbers, arrays and units are as in [`ExponentialSynapse`][etpc.nn.ExponentialSynapse].

    **Arguments:**

    - `size`: the number of presynaptic neurons K, or the shape of a layer of them.
    - `U`: the part of the resources that the first spike uses, above 0 and at most 1.
    - `tau_f`, `tau_d`: time constants of facilitation and of depression (ms).
    - the other arguments as for `ExponentialSynapse`.

    **Raises** `InputError` as `ExponentialSynapse` does, and for a `U` out of range.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> plasticity = nn.ShortTermPlasticity(1, U=0.5, tau_d=200.0)
    >>> state = plasticity.init_state()
    >>> for _ in range(3):
    ...     y, state = plasticity(jnp.ones(1), state)
    ...     print(f"{y[0]:.2f}")
    0.50
    0.38
    0.11

    ```

    **Source** Tsodyks, Pawelzik & Markram, "Neural networks with dynamic synapses", Neural
    Computation 10(4), 1998, for spikes in steps of `dt`.
    """

    U: Parameter = constant(0.2, positive=True)
    tau_f: Parameter = constant(1500.0, "ms", positive=True)
    tau_d: Parameter = constant(200.0, "ms", positive=True)
    dt: Number = duration(1.0)

    def __check_init__(self):
        if known(self.U) and np.any(np.asarray(self.U) > 1):
            raise InputError(
                f"U must be at most 1, got {self.U}. This is because it is the part of the resources "
                "that a spike uses. Pass a number or an array of values in (0, 1]."
            )

    def init_state(self) -> PlasticityState:
        """**Returns** no utilisation, and all resources."""
        return PlasticityState(jnp.zeros(self.shape, self.dtype), jnp.ones(self.shape, self.dtype))

    def __call__(
        self, spikes: Float[Array, "*K"], state: PlasticityState
    ) -> tuple[Float[Array, "*K"], PlasticityState]:
        """One step of `dt` with the presynaptic `spikes` from `state`.

        **Returns** the spikes, each times its efficacy, and the new state.

        **Raises** `InputError` where `spikes` or a part of `state` has another shape than the layer.
        """
        self._check(spikes=spikes, **state._asdict())
        u = leak(self.dt, self._used(self.tau_f))[0] * state.u
        x = 1 + leak(self.dt, self._used(self.tau_d))[0] * (state.x - 1)
        u = u + self._used(self.U) * (1 - u) * spikes
        y = u * x * spikes
        return y, PlasticityState(u, x - y)
