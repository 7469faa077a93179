"""Spiking neurons with a leaky membrane: LIF, and with adaptation ALIF and GIF."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from etpc.nn._declared import constant, option
from etpc.nn._init import Parameter
from etpc.nn.dynamics import Leaky, Membrane, Plain, Reset, leak, reset_to


class LIF(Plain):
    """Leaky integrate-and-fire neurons: `tau dV/dt = -(V - V_rest) + R I`, a spike and a reset
    where `V >= V_th`.

    One step from the stored potential `V` with the input current `I`, held constant over the step:

    1. reset: `z = H((V - V_th) / (V_th - V_reset))`, then `U = V - (V_th - V_reset) z`
       (`reset="soft"`) or `U = (1 - z) V + z V_reset` (`reset="hard"`);
    2. leak and input, by the exact solution: `V' = V_rest + d (U - V_rest) + (1 - d) R I` with
       `d = exp(-dt / tau)`;
    3. spike: `z' = H((V' - V_th) / (V_th - V_reset))`.

    The new state is `V'`, the potential *before* the reset that `z'` calls for; that reset opens
    the next step. So `V` is the whole state: the last spikes are a function of it (`lif.spike(V)`),
    and a recurrent layer needs no second state to feed them back.

    With a refractory period, for that time after a spike the potential stays at `U` and no spike is
    given. The state is then a named tuple of `V` and the counter `wait`, an integer: the number of
    steps, with the present one, for which a neuron is held.

    A parameter given as a number is a fixed constant. One given as an array, of shape `()` or
    `size`, is a trainable parameter and marked as a weight. Each may be a `saiunit` quantity, which is
    converted to a plain number or array in the unit that is named below.

    **Arguments:**

    - `size`: the number of neurons K, or the shape of a layer of them.
    - `tau`: membrane time constant (ms). `dt`: length of one step (ms).
    - `R`: membrane resistance (megaohm, so that a current in nA gives mV).
    - `V_th`, `V_rest`, `V_reset`: threshold, resting and reset potential (mV).
    - `reset`: `"soft"` subtracts `V_th - V_reset` at a spike; `"hard"` puts V to `V_reset`.
    - `surrogate`: the spike function, a hashable callable such as those of `etpc.surrogate`. It
      gets `(V - V_th) / (V_th - V_reset)`.
    - `detach_reset`: whether the spike in the reset of V is held constant under differentiation.
    - `refractory`: refractory period (ms), in whole steps, rounded up; none by default.
    - `dtype`: of the state and of the trainable parameters; JAX's default float where None.

    **Raises** `InputError` for a size below 1, a parameter that is not finite, does not fit
    `size` or is a quantity of another dimension, `tau` or `dt` that is not positive, a negative
    `refractory`, a threshold that is not above the reset potential, and an unknown `reset` or
    `surrogate`.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> lif = nn.LIF(2, tau=10.0)
    >>> V = lif.init_state()
    >>> for _ in range(7):
    ...     spike, V = lif(jnp.array([1.0, 2.0]), V)
    >>> spike.tolist()
    [0.0, 1.0]

    ```

    **Source** Gerstner, Kistler, Naud & Paninski, "Neuronal Dynamics", Cambridge University Press
    2014, section 1.3. The scheme with a soft reset is that of BrainPy's `LIF`; the hard reset
    differs in its derivative, `(1 - z) - (V - V_reset) dz/dV` here, where BrainPy keeps 1 in place
    of `1 - z`.
    """

    reset: Reset = option("soft")

    def _advance(self, current: Array, state: Membrane) -> Membrane:
        return state._replace(V=self._leaked(state.V, self._used(self.V_rest), current))


class ALIFState(NamedTuple):
    """Potential (mV), adaptation (spikes) and, with a refractory period, its counter."""

    V: Float[Array, "*K"]
    a: Float[Array, "*K"]
    wait: Int[Array, "*K"] | None = None


class ALIF(Leaky):
    """Leaky integrate-and-fire neurons whose threshold rises with each spike and decays again.

    One step from the state `(V, a)` with the input current `I`, held constant over the step; `d` and
    `rho` are `exp(-dt / tau)` and `exp(-dt / tau_a)`:

    1. reset: `z = H((V - V_th - beta a) / (V_th - V_reset))`, then `U = V - (V_th - V_reset) z`
       (`reset="soft"`) or `U = (1 - z) V + z V_reset` (`reset="hard"`);
    2. potential: `V' = V_rest + d (U - V_rest) + (1 - d) R I`;
    3. adaptation: `a' = rho a + z`, a leaky sum of the spikes;
    4. spike: `z' = H((V' - V_th - beta a') / (V_th - V_reset))`.

    As in [`LIF`][etpc.nn.LIF], the state is that before the reset, so the last spikes are a function
    of it, and a number is a fixed constant where an array is a trainable parameter.

    **Arguments:**

    - `tau_a`: time constant of the adaptation (ms).
    - `beta`: by how much one spike raises the threshold (mV).
    - `V_th`: the threshold without adaptation (mV).
    - the other arguments as for [`LIF`][etpc.nn.LIF]. With `detach_reset`, the spike that enters the
      adaptation is differentiated all the same, as in the source.

    **Raises** `InputError` as `LIF` does.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> alif = nn.ALIF(1, tau=10.0, tau_a=100.0, beta=0.5)
    >>> state, spikes = alif.init_state(), []
    >>> for _ in range(32):
    ...     spike, state = alif(jnp.array([3.0]), state)
    ...     spikes.append(int(spike[0]))
    >>> [t for t, spike in enumerate(spikes) if spike]  # ever longer intervals
    [4, 11, 19, 30]

    ```

    **Source** Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking
    neurons", Nature Communications 11, 2020, the LIF and ALIF neurons of the methods. There the input
    has the gain 1 in place of `(1 - d) R`, the reset is soft and `V_rest = V_reset = 0`.
    """

    tau_a: Parameter = constant(200.0, "ms", positive=True)
    beta: Parameter = constant(0.2, "mV")
    reset: Reset = option("soft")

    state_type: ClassVar[Any] = ALIFState

    def _distance(self, state: ALIFState) -> Array:
        return self._above(state.V, self._used(self.beta) * state.a)

    def _jump(self, state: ALIFState, spike: Array, reset: Array) -> ALIFState:
        rho, _ = leak(self.dt, self._used(self.tau_a))
        return state._replace(V=self._put_back(state.V, reset), a=rho * state.a + spike)

    def _advance(self, current: Array, state: ALIFState) -> ALIFState:
        return state._replace(V=self._leaked(state.V, self._used(self.V_rest), current))


class GIFState(NamedTuple):
    """Potential (mV), internal currents (nA), threshold (mV) and, with a refractory period, its
    counter."""

    V: Float[Array, "*K"]
    I1: Float[Array, "*K"]
    I2: Float[Array, "*K"]
    V_th: Float[Array, "*K"]
    wait: Int[Array, "*K"] | None = None


class GIF(Leaky):
    """Generalised integrate-and-fire neurons: two currents that a spike sets off, and a threshold
    that follows the potential and the spikes.

    ```text
    tau dV/dt = -(V - V_rest) + R (I + I1 + I2)
    dI_j/dt   = -I_j / tau_Ij
    dV_th/dt  = a (V - V_rest) - (V_th - V_inf) / tau_th
    at a spike: I_j <- R_j I_j + A_j,  V_th <- max(V_th, V_th_reset) + A_th,  V <- V_reset
    ```

    where `V_inf` is the argument `V_th`. One step from the state `(V, I1, I2, V_th)`: the jumps, where
    `z = H((V - V_th) / (V_inf - V_reset))`; then each equation by exponential Euler, with its inputs
    from the other equations held at their values after the jumps; then the new spike. The soft reset subtracts
    `V_th - V_reset` with the present threshold.

    As in [`LIF`][etpc.nn.LIF], the state is that before the jumps, so the last spikes are a function
    of it, and a number is a fixed constant where an array is a trainable parameter.

    **Arguments:**

    - `V_th`: where the threshold rests (mV). `V_th_reset`: the lowest threshold after a spike (mV);
      no bound where None. `A_th`: by how much a spike raises the threshold (mV).
    - `a`: how the threshold follows the potential (1/ms). `tau_th`: its time constant (ms).
    - `tau_I1`, `tau_I2`: time constants of the internal currents (ms).
    - `R1`, `R2`: the part of the currents that a spike leaves. `A1`, `A2`: what it adds (nA).
    - the other arguments as for [`LIF`][etpc.nn.LIF]. With `detach_reset`, the spike in the jumps of the
      currents and the threshold is differentiated all the same.

    **Raises** `InputError` as `LIF` does.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> gif = nn.GIF(1, tau_I2=100.0, A2=-0.5)  # a slow current against each spike
    >>> state, spikes = gif.init_state(), []
    >>> for _ in range(60):
    ...     spike, state = gif(jnp.array([4.0]), state)
    ...     spikes.append(int(spike[0]))
    >>> [t for t, spike in enumerate(spikes) if spike]
    [5, 12, 20, 29, 41, 54]

    ```

    **Source** Mihalaş & Niebur, "A generalized linear integrate-and-fire neural model produces
    diverse spiking behaviors", Neural Computation 21(3), 2009, section 2. Here the rates `k_j` and `b` are
    given as `1 / tau_Ij` and `1 / tau_th`. `A_th` is that of BrainPy's neuron for the
    delayed-match-to-sample task, whose `I1` is set to `A1` (`R1 = 0`) and to whose `I2` `A2` is added
    (`R2 = 1`), as by default here. In the source the reset is hard.
    """

    V_th_reset: Parameter | None = constant(None, "mV")
    A_th: Parameter = constant(0.0, "mV")
    a: Parameter = constant(0.0, "1/ms")
    tau_th: Parameter = constant(100.0, "ms", positive=True)
    tau_I1: Parameter = constant(5.0, "ms", positive=True)
    tau_I2: Parameter = constant(50.0, "ms", positive=True)
    R1: Parameter = constant(0.0)
    R2: Parameter = constant(1.0)
    A1: Parameter = constant(0.0, "nA")
    A2: Parameter = constant(0.0, "nA")
    reset: Reset = option("soft")

    state_type: ClassVar[Any] = GIFState

    def _distance(self, state: GIFState) -> Array:
        return (state.V - state.V_th) / (self._used(self.V_th) - self._used(self.V_reset))

    def _jump(self, state: GIFState, spike: Array, reset: Array) -> GIFState:
        V_th = state.V_th + spike * self._used(self.A_th)
        if self.V_th_reset is not None:
            V_th = V_th + spike * jnp.maximum(self._used(self.V_th_reset) - state.V_th, 0)
        return state._replace(
            V=reset_to(self.reset, state.V, state.V_th, self._used(self.V_reset), reset),
            I1=state.I1 + spike * ((self._used(self.R1) - 1) * state.I1 + self._used(self.A1)),
            I2=state.I2 + spike * ((self._used(self.R2) - 1) * state.I2 + self._used(self.A2)),
            V_th=V_th,
        )

    def _advance(self, current: Array, state: GIFState) -> GIFState:
        V_rest, V_inf = self._used(self.V_rest), self._used(self.V_th)
        decay_th, gain_th = leak(self.dt, self._used(self.tau_th))
        driven = gain_th * self._used(self.tau_th) * self._used(self.a) * (state.V - V_rest)
        return state._replace(
            V=self._leaked(state.V, V_rest, current + state.I1 + state.I2),
            I1=leak(self.dt, self._used(self.tau_I1))[0] * state.I1,
            I2=leak(self.dt, self._used(self.tau_I2))[0] * state.I2,
            V_th=V_inf + decay_th * (state.V_th - V_inf) + driven,
        )
