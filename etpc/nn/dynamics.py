"""What layers with a state share: the decay of a step, and the spikes, resets and refractory period of neurons."""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from typing_extensions import TypeAliasType

from etpc.errors import InputError
from etpc.nn._declared import Units, constant, duration, option
from etpc.nn._init import Number, Parameter, in_unit, known
from etpc.surrogate import ReluGrad

Reset: TypeAlias = Literal["soft", "hard"]
Surrogate = TypeAliasType("Surrogate", Callable[[Array], Array])
# The state of a neuron: a membrane potential alone, or a named tuple of arrays.
State: TypeAlias = Any


def leak(dt: Number, tau: Parameter, method: str = "exact") -> tuple[Any, Any]:
    """The factor `exp(-dt / tau)` by which a state decays in a step, `1 - dt / tau` by the method "euler"; and what it
    lacks to 1."""
    steps = dt / tau
    if method == "euler":
        return 1 - steps, steps
    if isinstance(steps, jax.Array):
        return jnp.exp(-steps), -jnp.expm1(-steps)
    return math.exp(-steps), -math.expm1(-steps)


def reset_to(
    kind: Reset, V: Array, V_th: Parameter | Array, V_reset: Parameter, spike: Array
) -> Array:
    """`V` after the reset that `spike` calls for."""
    if kind == "soft":
        return V - (V_th - V_reset) * spike
    return (1 - spike) * V + spike * V_reset


def check_reset(reset: str) -> None:
    """**Raises** `InputError` for an unknown reset."""
    if reset not in ("soft", "hard"):
        raise InputError(
            f"reset={reset!r} is unknown. This is because a reset either subtracts or "
            'overwrites. Pass "soft" (to V - (V_th - V_reset)) or "hard" (to V_reset).'
        )


def check_above(name: str, upper: Parameter, below: str, lower: Parameter, why: str) -> None:
    """**Raises** `InputError` where a parameter is not above another one, with both names."""
    if known(upper, lower) and not np.all(np.asarray(upper) > np.asarray(lower)):
        raise InputError(
            f"{name} must be above {below}, got {name}={upper} and {below}={lower}. This is "
            f"because {why}. Raise {name} or lower {below}."
        )


def _period(name: str, value: Any, unit: str) -> float:
    value = in_unit(name, value, unit)
    if not (isinstance(value, int | float | np.number) and 0 <= value < np.inf):
        raise InputError(
            f"{name} must be a finite number >= 0, got {value!r}. This is because it "
            "is the time for which a neuron is held after a spike. Pass a number of ms, or 0."
        )
    return float(value)


class Membrane(NamedTuple):
    """The state of a neuron that is a membrane potential and, with a refractory period, a counter."""

    V: Float[Array, "*K"]
    wait: Int[Array, "*K"] | None = None


class Neuron(Units):
    """Spiking neurons. A subclass gives the equations, in the four methods at the end.

    The new state is the one *before* the reset that a spike calls for; that reset opens the next
    step. So the last spikes are a function of the state, `neuron.spike(state)`.

    The refractory period is a counter `wait` in the state: the number of steps, with the present
    one, for which the potential is held and no spike is given. It is an integer, which is carried and
    not differentiated.
    """

    dt: Number = duration(1.0)
    surrogate: Surrogate = option(ReluGrad())
    detach_reset: bool = option(False)
    refractory: Number = duration(0.0, _period)

    # Membrane or a named tuple with the fields `V` and `wait`, and what a refractory period holds.
    state_type: ClassVar[Any] = Membrane
    held: ClassVar[tuple[str, ...]] = ("V",)

    def __check_init__(self):
        if isinstance(self.surrogate, type) or not callable(self.surrogate):
            raise InputError(
                f"surrogate must be a spike function, got {self.surrogate!r}. This is because it is "
                "called as `surrogate(x)` with the distance of V from the threshold. Pass an instance, "
                "such as `etpc.surrogate.ReluGrad()`."
            )

    def init_state(self) -> State:
        """**Returns** the state at rest."""
        rest = self._rest()
        names = self.state_type._fields[:-1]
        state = self.state_type(*(self._full(rest.get(name, 0.0)) for name in names))
        if self.refractory:
            state = state._replace(wait=jnp.zeros(self.shape, jnp.int32))
        return self._packed(state)

    def spike(self, state: State) -> Float[Array, "*K"]:
        """**Returns** 1 where a neuron spikes in `state`, at or above the threshold and not
        refractory, and 0 elsewhere.

        **Raises** `InputError` where `state` is not one that `init_state` gives.
        """
        return self._spike(self._unpacked(state))

    def __call__(
        self, current: Float[Array, "*K"], state: State
    ) -> tuple[Float[Array, "*K"], State]:
        """One step of `dt` under the input `current` from `state`.

        **Returns** the spikes of this step and the new state, from which they can be read again as
        `neuron.spike(state)`.

        **Raises** `InputError` where `current` or a part of `state` has another shape than the layer.
        """
        old = self._unpacked(state)
        self._check(current=current, **old._asdict())
        spike = self._spike(old)
        before = self._jump(
            old, spike, jax.lax.stop_gradient(spike) if self.detach_reset else spike
        )
        new = self._advance(current, before)
        if old.wait is not None:
            # The tolerance is for a period that is a whole number of steps but for rounding.
            steps = math.ceil(self.refractory / self.dt - 1e-6)
            wait = jnp.where(spike > 0, steps, jnp.maximum(old.wait - 1, 0))
            kept = {n: jnp.where(wait > 0, getattr(before, n), getattr(new, n)) for n in self.held}
            new = new._replace(wait=wait, **kept)
        return self._spike(new), self._packed(new)

    def _spike(self, state: Any) -> Array:
        spike = self.surrogate(self._distance(state))
        return spike if state.wait is None else jnp.where(state.wait > 0, 0, spike)

    def _unpacked(self, state: State) -> Any:
        bare = self.state_type is Membrane and not self.refractory
        unpacked = Membrane(state) if bare else state
        fits = isinstance(unpacked, self.state_type) and isinstance(state, tuple) != bare
        if not fits or (unpacked.wait is None) == bool(self.refractory):
            names = self.state_type._fields if self.refractory else self.state_type._fields[:-1]
            wanted = "an array" if bare else f"a {self.state_type.__name__} of {', '.join(names)}"
            raise InputError(
                f"{type(self).__name__} was called with a state of type {type(state).__name__} where "
                f"{wanted} is needed. This is because the state of a neuron has the structure that "
                "`init_state()` gives it. Pass that, or the state that the step before returned."
            )
        return unpacked

    def _packed(self, state: Any) -> State:
        return state.V if self.state_type is Membrane and not self.refractory else state

    @abc.abstractmethod
    def _rest(self) -> dict[str, Any]:
        """The values at rest that are not zero, by the name of the variable."""

    @abc.abstractmethod
    def _distance(self, state: Any) -> Array:
        """What the surrogate gets: the distance from the threshold, without a unit."""

    @abc.abstractmethod
    def _jump(self, state: Any, spike: Array, reset: Array) -> Any:
        """The state after `spike`. `reset` is the spike that puts the potential back."""

    @abc.abstractmethod
    def _advance(self, current: Array, state: Any) -> Any:
        """The state after one step without a spike."""


BELOW_THRESHOLD = (
    "a reset has to take a neuron below its threshold, and the argument of the surrogate is divided "
    "by `V_th - V_reset`"
)


class Leaky(Neuron):
    """Neurons whose membrane has a rest, and is put back from a threshold by a hard reset, or by the one
    that an option `reset` names."""

    tau: Parameter = constant(20.0, "ms", positive=True)
    R: Parameter = constant(1.0, "Mohm")
    V_th: Parameter = constant(1.0, "mV")
    V_rest: Parameter = constant(0.0, "mV")
    V_reset: Parameter = constant(0.0, "mV")

    def __check_init__(self):
        check_above("V_th", self.V_th, "V_reset", self.V_reset, BELOW_THRESHOLD)
        check_reset(getattr(self, "reset", "hard"))

    def _rest(self) -> dict[str, Any]:
        return {"V": self.V_rest, "V_th": self.V_th}  # for those whose threshold is a state

    def _above(self, V: Array, raised: Array | None = None) -> Array:
        """The distance of V from the threshold, which may be raised, in units of that of the reset potential."""
        V_th = self._used(self.V_th)
        above = V - V_th if raised is None else V - V_th - raised
        return above / (V_th - self._used(self.V_reset))

    def _put_back(self, V: Array, reset: Array) -> Array:
        V_th, V_reset = self._used(self.V_th), self._used(self.V_reset)
        return reset_to(getattr(self, "reset", "hard"), V, V_th, V_reset, reset)

    def _leaked(self, V: Array, V_rest: Any, current: Array, upswing: Array | None = None) -> Array:
        """V after a step of `tau dV/dt = -(V - V_rest) + R I`, and an upswing, by the exact solution."""
        decay, gain = leak(self.dt, self._used(self.tau))
        R = self._used(self.R)
        driven = gain * R * current if upswing is None else gain * (upswing + R * current)
        return V_rest + decay * (V - V_rest) + driven


class Plain(Leaky):
    """Those whose state is the potential alone."""

    def _distance(self, state: Membrane) -> Array:
        return self._above(state.V)

    def _jump(self, state: Membrane, spike: Array, reset: Array) -> Membrane:
        return state._replace(V=self._put_back(state.V, reset))
