"""Spiking neurons whose membrane is not a leak: QIF, EIF, AdEx, Izhikevich, resonate-and-fire.

In the first four a spike is an upswing that diverges, so `V_th` only says where it is cut off, and how
far the last step goes beyond `V_th` says nothing about the input. Their reset is therefore the hard one.
"""

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from etpc.errors import InputError
from etpc.nn._declared import constant, option
from etpc.nn._init import Parameter, known
from etpc.nn.dynamics import (
    BELOW_THRESHOLD,
    Leaky,
    Membrane,
    Neuron,
    Plain,
    Reset,
    check_above,
    check_reset,
    leak,
    reset_to,
)


class QIF(Plain):
    """Quadratic integrate-and-fire neurons: `tau dV/dt = c (V - V_rest) (V - V_c) + R I`, a spike and
    a reset to `V_reset` where `V >= V_th`.

    One step from the stored potential `V` with the input current `I`:

    1. reset: `z = H((V - V_th) / (V_th - V_reset))`, `U = (1 - z) V + z V_reset`;
    2. Euler: `V' = U + dt / tau (c (U - V_rest) (U - V_c) + R I)`;
    3. spike: `z' = H((V' - V_th) / (V_th - V_reset))`.

    The state and its refractory period, numbers and arrays are as in [`LIF`][etpc.nn.LIF].

    **Arguments:**

    - `c`: curvature (1/mV). `V_c`: the critical potential, above which V runs away (mV).
    - the other arguments as for [`LIF`][etpc.nn.LIF].

    **Raises** `InputError` as `LIF` does, and for a `V_c` that is not above `V_rest`.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> qif = nn.QIF(2)
    >>> V = qif.init_state()
    >>> for _ in range(31):
    ...     spike, V = qif(jnp.array([2.0, 10.0]), V)
    >>> spike.tolist()
    [0.0, 1.0]

    ```

    **Source** Gerstner, Kistler, Naud & Paninski, "Neuronal Dynamics", Cambridge University Press
    2014, section 5.3.
    """

    tau: Parameter = constant(10.0, "ms", positive=True)
    V_th: Parameter = constant(-30.0, "mV")
    V_rest: Parameter = constant(-65.0, "mV")
    V_reset: Parameter = constant(-68.0, "mV")
    c: Parameter = constant(0.07, "1/mV", positive=True)
    V_c: Parameter = constant(-50.0, "mV")

    def __check_init__(self):
        check_above("V_c", self.V_c, "V_rest", self.V_rest, "V would run away from rest")

    def _advance(self, current: Array, state: Membrane) -> Membrane:
        V = state.V
        slope = self._used(self.c) * (V - self._used(self.V_rest)) * (V - self._used(self.V_c))
        steps = self.dt / self._used(self.tau)
        return state._replace(V=V + steps * (slope + self._used(self.R) * current))


class EIF(Plain):
    """Exponential integrate-and-fire neurons: `tau dV/dt = -(V - V_rest) + delta_T exp((V - V_T) /
    delta_T) + R I`, a spike and a reset to `V_reset` where `V >= V_th`.

    One step from the stored potential `V` with the input current `I`:

    1. reset: `z = H((V - V_th) / (V_th - V_reset))`, `U = (1 - z) V + z V_reset`;
    2. leak by its exact solution, with the rest held constant over the step, `d = exp(-dt / tau)`:
       `V' = V_rest + d (U - V_rest) + (1 - d) (delta_T exp((U - V_T) / delta_T) + R I)`;
    3. spike: `z' = H((V' - V_th) / (V_th - V_reset))`.

    Where V is close to `V_th`, one step of the exponential may go far beyond it: with long steps, take a
    `V_th` a few `delta_T` above `V_T`, as by default, or the surrogate derivative of the spikes is zero.
    The state and its refractory period, numbers and arrays are as in [`LIF`][etpc.nn.LIF].

    **Arguments:**

    - `delta_T`: sharpness of the upswing (mV). `V_T`: where it begins (mV).
    - the other arguments as for [`LIF`][etpc.nn.LIF].

    **Raises** `InputError` as `LIF` does, and for a `delta_T` that is not positive.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> eif = nn.EIF(2)
    >>> V = eif.init_state()
    >>> for _ in range(29):
    ...     spike, V = eif(jnp.array([1.0, 5.0]), V)
    >>> spike.tolist()
    [0.0, 1.0]

    ```

    **Source** Fourcaud-Trocmé, Hansel, van Vreeswijk & Brunel, "How spike generation mechanisms determine
    the neuronal response to fluctuating inputs", Journal of Neuroscience 23(37), 2003, whose `V_T`,
    `delta_T` and `V_reset` are the defaults.
    """

    tau: Parameter = constant(10.0, "ms", positive=True)
    V_th: Parameter = constant(-45.0, "mV")
    V_rest: Parameter = constant(-65.0, "mV")
    V_reset: Parameter = constant(-68.0, "mV")
    delta_T: Parameter = constant(3.48, "mV", positive=True)
    V_T: Parameter = constant(-59.9, "mV")

    def _advance(self, current: Array, state: Membrane) -> Membrane:
        upswing = _upswing(state.V, self._used(self.V_T), self._used(self.delta_T))
        V_rest = self._used(self.V_rest)
        return state._replace(V=self._leaked(state.V, V_rest, current, upswing))


class AdExState(NamedTuple):
    """Potential (mV), adaptation current (nA) and, with a refractory period, its counter."""

    V: Float[Array, "*K"]
    w: Float[Array, "*K"]
    wait: Int[Array, "*K"] | None = None


class AdEx(Leaky):
    """Adaptive exponential integrate-and-fire neurons.

    ```text
    tau dV/dt   = -(V - V_rest) + delta_T exp((V - V_T) / delta_T) - R w + R I
    tau_w dw/dt = a (V - V_rest) - w
    at a spike (V >= V_th): V <- V_reset,  w <- w + b
    ```

    One step from the state `(V, w)`: the jumps, with `z = H((V - V_th) / (V_th - V_reset))`; then each
    equation by exponential Euler, as in [`EIF`][etpc.nn.EIF], with what it takes from the other held
    at its value after the jumps; then the new spike. The remarks there on `V_th` hold here too.

    The state is that before the jumps, so the last spikes are a function of it. Numbers and arrays are
    as in [`LIF`][etpc.nn.LIF].

    **Arguments:**

    - `delta_T`: sharpness of the upswing (mV). `V_T`: where it begins (mV).
    - `tau_w`: time constant of the adaptation (ms). `a`: how it follows the potential (microsiemens).
      `b`: what a spike adds to it (nA).
    - the other arguments as for [`LIF`][etpc.nn.LIF]. With `detach_reset`, the spike that adds to the
      adaptation is differentiated all the same.

    **Raises** `InputError` as `LIF` does, and for a `delta_T` or `tau_w` that is not positive.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> adex = nn.AdEx(1, b=0.2)
    >>> state, spikes = adex.init_state(), []
    >>> for _ in range(80):
    ...     spike, state = adex(jnp.array([1.2]), state)
    ...     spikes.append(int(spike[0]))
    >>> [t for t, spike in enumerate(spikes) if spike]
    [9, 22, 40, 67]

    ```

    **Source** Brette & Gerstner, "Adaptive exponential integrate-and-fire model as an effective description
    of neuronal activity", Journal of Neurophysiology 94(5), 2005, whose parameters are the defaults: `R` is
    1 / (30 nS) and `tau` 281 pF / (30 nS). There `V_th` is 20 mV, for a shorter step.
    """

    tau: Parameter = constant(281 / 30, "ms", positive=True)
    R: Parameter = constant(1000 / 30, "Mohm")
    V_th: Parameter = constant(-40.0, "mV")
    V_rest: Parameter = constant(-70.6, "mV")
    V_reset: Parameter = constant(-70.6, "mV")
    delta_T: Parameter = constant(2.0, "mV", positive=True)
    V_T: Parameter = constant(-50.4, "mV")
    tau_w: Parameter = constant(144.0, "ms", positive=True)
    a: Parameter = constant(0.004, "uS")
    b: Parameter = constant(0.0805, "nA")

    state_type: ClassVar[Any] = AdExState

    def _distance(self, state: AdExState) -> Array:
        return self._above(state.V)

    def _jump(self, state: AdExState, spike: Array, reset: Array) -> AdExState:
        w = state.w + spike * self._used(self.b)
        return state._replace(V=self._put_back(state.V, reset), w=w)

    def _advance(self, current: Array, state: AdExState) -> AdExState:
        V_rest = self._used(self.V_rest)
        decay_w, gain_w = leak(self.dt, self._used(self.tau_w))
        upswing = _upswing(state.V, self._used(self.V_T), self._used(self.delta_T))
        return state._replace(
            V=self._leaked(state.V, V_rest, current - state.w, upswing),
            w=decay_w * state.w + gain_w * self._used(self.a) * (state.V - V_rest),
        )


class IzhikevichState(NamedTuple):
    """Potential (mV), recovery (mV/ms) and, with a refractory period, its counter."""

    V: Float[Array, "*K"]
    u: Float[Array, "*K"]
    wait: Int[Array, "*K"] | None = None


class Izhikevich(Neuron):
    """Izhikevich's neurons: two equations with the firing patterns of many cell types.

    ```text
    dV/dt = 0.04 V^2 + 5 V + 140 - u + I
    du/dt = a (b V - u)
    at a spike (V >= V_th): V <- c,  u <- u + d
    ```

    One step from the state `(V, u)`: the jumps, with `z = H((V - V_th) / (V_th - c))`; then both equations
    by Euler; then the new spike. The state is that before the jumps, so the last spikes are a function of
    it. It begins with V at `c` and u at `b c`, from where the source's program starts. Numbers and arrays are
    as in [`LIF`][etpc.nn.LIF].

    **Arguments:**

    - `a`: rate of the recovery (1/ms). `b`: how it follows the potential (1/ms).
    - `c`: the reset potential (mV). `d`: what a spike adds to the recovery (mV/ms).
    - `V_th`: where a spike is cut off (mV).
    - the other arguments as for [`LIF`][etpc.nn.LIF]; the surrogate gets `(V - V_th) / (V_th - c)`. With
      `detach_reset`, the spike that adds to the recovery is differentiated all the same.

    The input current of the layer has the unit mV/ms: it is divided by the capacitance.

    **Raises** `InputError` as `LIF` does, and for a `V_th` that is not above `c`.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> cell = nn.Izhikevich(1)  # regular spiking
    >>> state, spikes = cell.init_state(), []
    >>> for _ in range(100):
    ...     spike, state = cell(jnp.array([10.0]), state)
    ...     spikes.append(int(spike[0]))
    >>> [t for t, spike in enumerate(spikes) if spike]
    [4, 31, 78]

    ```

    **Source** Izhikevich, "Simple model of spiking neurons", IEEE Transactions on Neural Networks
    14(6), 2003, equations 1 to 3, with the parameters of regular spiking as defaults. The program
    printed there takes two half steps for V; here it is one, of `dt`.
    """

    a: Parameter = constant(0.02, "1/ms")
    b: Parameter = constant(0.2, "1/ms")
    c: Parameter = constant(-65.0, "mV")
    d: Parameter = constant(8.0, "mV/ms")
    V_th: Parameter = constant(30.0, "mV")

    state_type: ClassVar[Any] = IzhikevichState

    def __check_init__(self):
        check_above("V_th", self.V_th, "c", self.c, BELOW_THRESHOLD)

    def _rest(self) -> dict[str, Any]:
        return {"V": self.c, "u": self._full(self.b) * self._full(self.c)}

    def _distance(self, state: IzhikevichState) -> Array:
        V_th = self._used(self.V_th)
        return (state.V - V_th) / (V_th - self._used(self.c))

    def _jump(self, state: IzhikevichState, spike: Array, reset: Array) -> IzhikevichState:
        V = reset_to("hard", state.V, self._used(self.V_th), self._used(self.c), reset)
        return state._replace(V=V, u=state.u + spike * self._used(self.d))

    def _advance(self, current: Array, state: IzhikevichState) -> IzhikevichState:
        V, u = state.V, state.u
        return state._replace(
            V=V + self.dt * (0.04 * jnp.square(V) + 5 * V + 140 - u + current),
            u=u + self.dt * self._used(self.a) * (self._used(self.b) * V - u),
        )


class ResonatorState(NamedTuple):
    """The current-like and the voltage-like variable and, with a refractory period, the counter."""

    x: Float[Array, "*K"]
    V: Float[Array, "*K"]
    wait: Int[Array, "*K"] | None = None


class ResonateAndFire(Neuron):
    """Resonate-and-fire neurons: `dz/dt = (-1 / tau + i omega) z + I`, a damped oscillation with
    `z = x + i V`, and a spike and a reset where `V >= V_th`.

    One step from the state `(x, V)` with the input current `I`, held constant over the step, with
    `l = -1 / tau + i omega`:

    1. reset, with `s = H((V - V_th) / V_th)`: `V - (V_th - V_reset) s` (`reset="soft"`), or
       `z` to `i V_reset` (`reset="hard"`);
    2. the exact solution: `z' = exp(l dt) z + I (exp(l dt) - 1) / l`;
    3. spike: `s' = H((V' - V_th) / V_th)`.

    The state is two real arrays and not a complex one: the spike and the reset take its parts, and
    real states have real gradients, which every optimiser takes.

    The state is that before the reset, so the last spikes are a function of it. Numbers and arrays are
    as in [`LIF`][etpc.nn.LIF].

    **Arguments:**

    - `tau`: time constant of the damping (ms). `omega`: angular frequency (rad/ms).
    - `V_th`: threshold of the voltage-like variable. `V_reset`: where a spike puts it. Both are in
      mV; the input current of the layer is in mV/ms.
    - the other arguments as for [`LIF`][etpc.nn.LIF]; the surrogate gets `(V - V_th) / V_th`. A refractory
      neuron keeps both variables.

    **Raises** `InputError` as `LIF` does, for a `V_th` that is not positive, and for a `V_reset` above
    `V_th`.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> cell = nn.ResonateAndFire(2, omega=0.5, tau=20.0)  # a period of 12.6 ms
    >>> state, spikes = cell.init_state(), 0
    >>> for t in range(20):  # a second pulse after half a period, and after a whole one
    ...     pulses = jnp.array([t in (0, 6), t in (0, 13)]) * 0.8
    ...     spike, state = cell(pulses, state)
    ...     spikes += spike
    >>> spikes.tolist()
    [0.0, 1.0]

    ```

    **Source** Izhikevich, "Resonate-and-fire neurons", Neural Networks 14(6-7), 2001. There the threshold
    is 1 and a spike puts `z` to `i`, onto the threshold (`V_th = V_reset = 1`, `reset="hard"`). The default
    here is the soft reset to 0 and thus, as in the other neurons, away from the threshold.
    """

    tau: Parameter = constant(20.0, "ms", positive=True)
    omega: Parameter = constant(0.5, "1/ms")
    V_th: Parameter = constant(1.0, "mV", positive=True)
    V_reset: Parameter = constant(0.0, "mV")
    reset: Reset = option("soft")

    state_type: ClassVar[Any] = ResonatorState
    held: ClassVar[tuple[str, ...]] = ("x", "V")

    def __check_init__(self):
        check_reset(self.reset)
        V_th, V_reset = self.V_th, self.V_reset
        if known(V_th, V_reset) and np.any(np.asarray(V_reset) > np.asarray(V_th)):
            raise InputError(
                f"V_reset must not exceed V_th, got V_reset={V_reset} and V_th={V_th}. This is "
                "because a reset must not take a neuron further above its threshold. Lower V_reset."
            )

    def _rest(self) -> dict[str, Any]:
        return {}

    def _distance(self, state: ResonatorState) -> Array:
        V_th = self._used(self.V_th)
        return (state.V - V_th) / V_th

    def _jump(self, state: ResonatorState, spike: Array, reset: Array) -> ResonatorState:
        V = reset_to(self.reset, state.V, self._used(self.V_th), self._used(self.V_reset), reset)
        return state._replace(x=state.x if self.reset == "soft" else (1 - reset) * state.x, V=V)

    def _advance(self, current: Array, state: ResonatorState) -> ResonatorState:
        x, V = state.x, state.V
        decay, lack = leak(self.dt, self._used(self.tau))
        rate, omega = -1 / self._used(self.tau), self._used(self.omega)
        # exp(l dt) and the input's gain (exp(l dt) - 1) / l, each by its real and imaginary part.
        angle = self.dt * omega
        xp = jnp if isinstance(angle, jax.Array) else math
        real, imag = decay * xp.cos(angle), decay * xp.sin(angle)
        lost = lack * xp.cos(angle) + 2 * xp.sin(angle / 2) ** 2  # 1 - real, also for small steps
        size = rate * rate + omega * omega
        gain_x = (imag * omega - lost * rate) / size
        gain_V = (imag * rate + lost * omega) / size
        return state._replace(
            x=real * x - imag * V + gain_x * current, V=imag * x + real * V + gain_V * current
        )


def _upswing(V: Array, V_T: Any, delta_T: Any) -> Array:
    return delta_T * jnp.exp((V - V_T) / delta_T)
