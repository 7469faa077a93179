"""Spiking neurons."""

import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from etpc._errors import InputError
from etpc.nn._init import (
    Constant,
    check_shape,
    constant_or_parameter,
    float_dtype,
    known,
    positive_int,
    positive_number,
    used,
)
from etpc.surrogate import ReluGrad


class LIF(eqx.Module):
    """Leaky integrate-and-fire neurons: `tau dV/dt = -(V - V_rest) + R I`, a spike and a reset
    where `V >= V_th`.

    One step from the stored potential `V` with the input current `I`, held constant over the step:

    1. reset: `z = H((V - V_th) / (V_th - V_reset))`, then `U = V - (V_th - V_reset) z`
       (`reset="soft"`) or `U = (1 - z) V + z V_reset` (`reset="hard"`);
    2. leak and input: `V' = V_rest + d (U - V_rest) + (1 - d) R I`. With `integration="exp_euler"`,
       `d = exp(-dt / tau)`, which is the exact solution; with `"euler"`, `d = 1 - dt / tau`;
    3. spike: `z' = H((V' - V_th) / (V_th - V_reset))`.

    The new state is `V'`, the potential *before* the reset that `z'` calls for; that reset opens
    the next step. So `V` is the whole state: the last spikes are a function of it (`lif.spike(V)`),
    and a recurrent layer needs no second state to feed them back.

    A parameter given as a number is a fixed constant. One given as an array, of shape `()` or
    `size`, is a trainable parameter and marked as a weight.

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

    tau: float | Float[Array, "..."]
    R: float | Float[Array, "..."]
    V_th: float | Float[Array, "..."]
    V_rest: float | Float[Array, "..."]
    V_reset: float | Float[Array, "..."]
    shape: tuple[int, ...] = eqx.field(static=True)
    reset: Literal["soft", "hard"] = eqx.field(static=True)
    dt: float = eqx.field(static=True)
    surrogate: Callable[[Array], Array] = eqx.field(static=True)
    detach_reset: bool = eqx.field(static=True)
    integration: Literal["exp_euler", "euler"] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        size: int | tuple[int, ...],
        *,
        tau: Constant = 20.0,
        R: Constant = 1.0,
        V_th: Constant = 1.0,
        V_rest: Constant = 0.0,
        V_reset: Constant = 0.0,
        reset: Literal["soft", "hard"] = "soft",
        dt: float | int = 1.0,
        surrogate: Callable[[Array], Array] = ReluGrad(),
        detach_reset: bool = False,
        integration: Literal["exp_euler", "euler"] = "exp_euler",
        dtype: DTypeLike | None = None,
    ):
        """**Arguments:**

        - `size`: the number of neurons K, or the shape of a layer of them.
        - `tau`: membrane time constant (ms). `dt`: length of one step (ms).
        - `R`: membrane resistance (megaohm, so that a current in nA gives mV).
        - `V_th`, `V_rest`, `V_reset`: threshold, resting and reset potential (mV).
        - `reset`: `"soft"` subtracts `V_th - V_reset` at a spike; `"hard"` puts V to `V_reset`.
        - `surrogate`: the spike function, a hashable callable such as those of `etpc.surrogate`. It
          gets `(V - V_th) / (V_th - V_reset)`.
        - `detach_reset`: whether the spike in the reset is held constant under differentiation.
        - `integration`: `"exp_euler"` or `"euler"`, as above.
        - `dtype`: of the state and of the trainable parameters; JAX's default float where None.

        **Raises** `InputError` for a size below 1, a parameter that is not finite or does not fit
        `size`, `tau` or `dt` that is not positive, a threshold that is not above the reset
        potential, and an unknown `reset`, `integration` or `surrogate`.
        """
        sizes = size if isinstance(size, tuple) else (size,)
        self.shape = tuple(positive_int("size", n) for n in sizes)
        self.dtype = float_dtype(dtype)
        self.tau = constant_or_parameter("tau", tau, self.shape, self.dtype, positive=True)
        self.R = constant_or_parameter("R", R, self.shape, self.dtype)
        self.V_th = constant_or_parameter("V_th", V_th, self.shape, self.dtype)
        self.V_rest = constant_or_parameter("V_rest", V_rest, self.shape, self.dtype)
        self.V_reset = constant_or_parameter("V_reset", V_reset, self.shape, self.dtype)
        self.dt = positive_number("dt", dt)
        self.reset = reset
        self.surrogate = surrogate
        self.detach_reset = detach_reset
        self.integration = integration

        if known(self.V_th, self.V_reset) and not np.all(
            np.asarray(self.V_th) > np.asarray(self.V_reset)
        ):
            raise InputError(
                f"V_th must be above V_reset, got V_th={self.V_th} and V_reset={self.V_reset}. This "
                "is because a reset has to take a neuron below its threshold, and the argument of "
                "the surrogate is divided by `V_th - V_reset`. Raise V_th or lower V_reset."
            )
        if isinstance(surrogate, type) or not callable(surrogate):
            raise InputError(
                f"surrogate must be a spike function, got {surrogate!r}. This is because it is called "
                "as `surrogate(x)` with the distance of V from the threshold. Pass an instance, such "
                "as `etpc.surrogate.ReluGrad()`."
            )
        if reset not in ("soft", "hard"):
            raise InputError(
                f"reset={reset!r} is unknown. This is because a reset either subtracts or "
                'overwrites. Pass "soft" (to V - (V_th - V_reset)) or "hard" (to V_reset).'
            )
        if integration not in ("exp_euler", "euler"):
            raise InputError(
                f"integration={integration!r} is unknown. This is because there are two schemes. "
                'Pass "exp_euler" (exact for a constant current) or "euler".'
            )
        if integration == "euler" and known(self.tau) and np.any(np.asarray(self.tau) < self.dt):
            raise InputError(
                f"dt must not exceed tau with integration='euler', got dt={self.dt} and "
                f"tau={self.tau}. This is because V would oscillate: the leak factor `1 - dt / tau` "
                "is negative. Pass a smaller dt or integration='exp_euler'."
            )

    def init_state(self) -> Float[Array, "*K"]:
        """**Returns** the resting potential (mV) of every neuron."""
        return jnp.full(self.shape, self.V_rest, self.dtype)

    def spike(self, V: Float[Array, "*K"]) -> Float[Array, "*K"]:
        """**Returns** 1 where the potential `V` (mV) is at or above the threshold and 0 elsewhere."""
        V_th, V_reset = used(self.V_th), used(self.V_reset)
        return self.surrogate((V - V_th) / (V_th - V_reset))

    def __call__(
        self, current: Float[Array, "*K"], V: Float[Array, "*K"]
    ) -> tuple[Float[Array, "*K"], Float[Array, "*K"]]:
        """One step of `dt` under the input `current` (nA) from the potential `V` (mV).

        **Returns** the spikes of this step and the new `V`, from which they can be read again as
        `lif.spike(V)`.

        **Raises** `InputError` where `current` or `V` has another shape than the layer.
        """
        check_shape("LIF", "current", current, self.shape)
        check_shape("LIF", "V", V, self.shape)
        decay, gain = self._leak()
        V_rest = used(self.V_rest)
        V = V_rest + decay * (self._after_reset(V) - V_rest) + gain * used(self.R) * current
        return self.spike(V), V

    def _after_reset(self, V: Array) -> Array:
        spike = self.spike(V)
        if self.detach_reset:
            spike = jax.lax.stop_gradient(spike)
        V_reset = used(self.V_reset)
        if self.reset == "soft":
            return V - (used(self.V_th) - V_reset) * spike
        return (1 - spike) * V + spike * V_reset

    def _leak(self) -> tuple[float | Array, float | Array]:
        """The factor by which a potential decays in a step, and what it lacks to 1."""
        steps = self.dt / used(self.tau)
        if self.integration == "euler":
            return 1 - steps, steps
        if isinstance(steps, jax.Array):
            return jnp.exp(-steps), -jnp.expm1(-steps)
        return math.exp(-steps), -math.expm1(-steps)
