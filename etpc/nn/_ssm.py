"""Linear recurrences with a complex diagonal: state-space layers.

No matrix reads the state on its way into the next one, so nothing escapes and D-RTRL gives the
gradient of BPTT, with a trace of one complex number for each weight and state. The output matrix
reads the state, but is followed by no state of its own layer. What scales a row of the input matrix
(a normalisation, a step) multiplies the product and not the matrix, and so keeps a trace of its own
under every rule.

Parameters are real arrays, as optimisers want them.
"""

import abc
import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from etpc.errors import InputError
from etpc.nn._init import (
    AXES,
    SCHEMES,
    DType,
    check_callable,
    check_shape,
    float_dtype,
    positive_number,
    set_lengths,
)
from etpc.trace import mark


class Diagonal(eqx.Module):
    """A layer of complex states, each of which has a transition of its own."""

    in_features: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    reals: ClassVar[int] = 1
    """How many of `state_size` a complex state stands for."""

    def init_state(self) -> Complex[Array, " N"]:
        """**Returns** zeros."""
        return jnp.zeros(self.state_size // self.reals, np.result_type(self.dtype, np.complex64))

    def __call__(
        self, x: Float[Array, " I"], h: Complex[Array, " N"]
    ) -> tuple[Float[Array, " O"], Complex[Array, " N"]]:
        """**Returns** the output `y` and the new state.

        **Raises** `InputError` where `x` or `h` has another shape than `(I,)` and `(N,)`.
        """
        check_shape(type(self).__name__, "x", x, (self.in_features,))
        check_shape(type(self).__name__, "h", h, (self.state_size // self.reals,))
        return self._next(x, h)

    @abc.abstractmethod
    def _next(self, x: Array, h: Array) -> tuple[Array, Array]:
        """The output and the new state."""


def _product(re: Array, im: Array, x: Array, dtype: np.dtype) -> Array:
    """The product of the complex matrix `re + i im`, whose parts are parameters, with a real vector."""
    return jax.lax.complex(mark(re), mark(im)) @ x.astype(dtype)


def _real_part(re: Array, im: Array, h: Array) -> Array:
    """The real part of the product of such a matrix with a complex vector."""
    return mark(re) @ h.real - mark(im) @ h.imag


class LRU(Diagonal):
    """The linear recurrent unit. Exact under D-RTRL.

    - `h' = λ * h + γ * (B x)`, with `λ = exp(-exp(nu_log) + i exp(theta_log))` and
      `γ = exp(gamma_log)`
    - `y = Re(C h') + D x`. The state `h` is complex.

    At first, λ is uniform on the ring between the radii `r_min` and `r_max`, with phases below
    `max_phase`, and `γ = sqrt(1 - |λ|^2)`, which gives states of unit variance for white noise.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> lru = nn.LRU(3, 2, 8, key=jax.random.key(0))
    >>> y, h = lru(jnp.ones(3), lru.init_state())
    >>> y.shape, h.shape
    ((2,), (8,))

    ```

    **Source** Orvieto et al., "Resurrecting recurrent neural networks for long sequences", ICML 2023,
    section 3 and appendix A. D is a matrix, as in equation 1; the code of the appendix has a diagonal.
    """

    nu_log: Float[Array, " N"]
    theta_log: Float[Array, " N"]
    gamma_log: Float[Array, " N"]
    B_re: Float[Array, "N I"]
    B_im: Float[Array, "N I"]
    C_re: Float[Array, "O N"]
    C_im: Float[Array, "O N"]
    D: Float[Array, "O I"]
    out_features: int = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        state_size: int,
        *,
        r_min: float | int = 0.0,
        r_max: float | int = 1.0,
        max_phase: float | int = 2 * np.pi,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: I and O, the lengths of `x` and `y`.
        - `state_size`: N, the number of complex states.
        - `r_min`, `r_max`: the radii of the ring, `0 <= r_min < r_max <= 1`.
        - `max_phase`: the largest phase (radian), in (0, 2π].
        - `dtype`: of the parameters, float32 or float64; JAX's default float where None.
        - `key`: a PRNG key for the initial parameters.

        **Raises** `InputError` for a size below 1, radii or a phase out of range, or a dtype without a
        complex counterpart.
        """
        lengths = dict(in_features=in_features, out_features=out_features, state_size=state_size)
        I, O, N = set_lengths(self, **lengths)
        self.dtype = _paired_dtype(dtype)
        keys = jax.random.split(key, 7)
        self.nu_log, self.theta_log = _ring(keys[:2], N, r_min, r_max, max_phase, self.dtype)
        nu = jnp.exp(self.nu_log)
        self.gamma_log = 0.5 * jnp.log(-jnp.expm1(-2 * nu))
        of_parts = initializers.variance_scaling(0.5, "fan_in", "truncated_normal", **AXES)
        self.B_re = of_parts(keys[2], (N, I), self.dtype)
        self.B_im = of_parts(keys[3], (N, I), self.dtype)
        self.C_re = SCHEMES["lecun_normal"](keys[4], (O, N), self.dtype)
        self.C_im = SCHEMES["lecun_normal"](keys[5], (O, N), self.dtype)
        self.D = SCHEMES["lecun_normal"](keys[6], (O, I), self.dtype)

    def _next(self, x: Array, h: Array) -> tuple[Array, Array]:
        nu, theta = jnp.exp(mark(self.nu_log)), jnp.exp(mark(self.theta_log))
        Bx = _product(self.B_re, self.B_im, x, h.dtype)
        scale = jnp.exp(mark(self.gamma_log)).astype(h.dtype)
        h = jnp.exp(jax.lax.complex(-nu, theta)) * h + scale * Bx
        return _real_part(self.C_re, self.C_im, h) + mark(self.D) @ x, h


class RTU(Diagonal):
    """The recurrent trace unit. Exact under D-RTRL.

    - linear: `h' = λ * h + γ * (W x)`, with the output `y = f([Re h', Im h'])`
    - non-linear: `h' = f(λ * h + γ * (W x))`, with the output `y = [Re h', Im h']`

    The state h is complex, and f acts on its real and its imaginary part. The eigenvalues are
    `λ = exp(-exp(nu_log) + i exp(theta_log))`, the scale is `γ = sqrt(1 - |λ|^2)`, and W is
    `W_re + i W_im`. Written with two real states `a + i b = h`, `g + i φ = λ`, this is
    `a' = g a - φ b + γ W_re x`, `b' = g b + φ a + γ W_im x`, as in the paper. The trace of the
    linear unit is one complex number for each entry of W, that of the non-linear unit two.

    At first, λ is uniform on the ring between the radii `r_min` and `r_max`, with phases below
    `max_phase`; or, with `min_phase`, of phases whose logarithms are uniform between the two.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> rtu = nn.RTU(3, 8, key=jax.random.key(0))
    >>> y, h = rtu(jnp.ones(3), rtu.init_state())
    >>> y.shape, h.shape
    ((16,), (8,))

    ```

    **Source** Elelimy, White, Bowling and White, "Real-time recurrent learning using trace units in
    reinforcement learning", NeurIPS 2024, arXiv 2409.01449, sections 3.1 and 3.2. Deviation: a small
    constant that the authors' code adds to γ is left out.
    """

    nu_log: Float[Array, " N"]
    theta_log: Float[Array, " N"]
    W_re: Float[Array, "N I"]
    W_im: Float[Array, "N I"]
    linear: bool = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        state_size: int,
        linear: bool = True,
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        r_min: float | int = 0.0,
        r_max: float | int = 1.0,
        max_phase: float | int = 2 * np.pi,
        min_phase: float | int | None = None,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `state_size`: N, the number of complex states. The output has the length 2N.
        - `linear`: whether `activation` is applied to the output alone, and not to the state.
        - `activation`: f, a function of one array.
        - `min_phase`: the smallest phase (radian), in (0, max_phase), for phases that are uniform on a
          logarithmic scale. Without it they are uniform in (0, max_phase).
        - the other arguments as for [`etpc.nn.LRU`][].

        **Raises** `InputError` as `LRU` does, and for an activation that is no function.
        """
        I, N = set_lengths(self, in_features=in_features, state_size=state_size)
        self.linear = bool(linear)
        self.activation = check_callable("activation", activation)
        self.dtype = _paired_dtype(dtype)
        keys = jax.random.split(key, 4)
        self.nu_log, self.theta_log = _ring(
            keys[:2], N, r_min, r_max, max_phase, self.dtype, min_phase
        )
        self.W_re = SCHEMES["lecun_normal"](keys[2], (N, I), self.dtype)
        self.W_im = SCHEMES["lecun_normal"](keys[3], (N, I), self.dtype)

    def _next(self, x: Array, h: Array) -> tuple[Array, Array]:
        nu, theta = jnp.exp(mark(self.nu_log)), jnp.exp(mark(self.theta_log))
        Wx = _product(self.W_re, self.W_im, x, h.dtype)
        scale = jnp.sqrt(-jnp.expm1(-2 * nu)).astype(h.dtype)
        h = jnp.exp(jax.lax.complex(-nu, theta)) * h + scale * Wx
        y = self.activation(jnp.concatenate([h.real, h.imag]))
        return y, h if self.linear else jax.lax.complex(*jnp.split(y, 2))


class S5(Diagonal):
    """A diagonal state-space layer: `dh/dt = Λ h + B x`, `y = 2 Re(C h) + D x`, with the input held
    constant over each step (zero-order hold). Exact under D-RTRL.

    - `h' = exp(Λ Δ) * h + (exp(Λ Δ) - 1) / Λ * (B x)`, with `Λ = -exp(log_decay) + i frequency`
      and the steps `Δ = exp(log_step)`, one for each state
    - `y = 2 Re(C h') + D x`

    A real system has its eigenvalues in conjugate pairs, so one state of each pair is kept:
    `state_size / 2` complex states stand for `state_size` real ones. At first Λ holds the
    eigenvalues of HiPPO-N, the normal part of the HiPPO-LegS matrix, and B and C are drawn for the
    dense system and rotated into its eigenvectors.

    **Source** Smith et al., "Simplified state space layers for sequence modeling", ICLR 2023,
    equations 4 to 6 and section 3. Deviations: the real part of Λ is minus an exponential, as in S4D
    (Gu et al., 2022), so that no update makes it unstable; D is a matrix; HiPPO-N is one block.
    """

    log_decay: Float[Array, " N"]
    frequency: Float[Array, " N"]
    log_step: Float[Array, " N"]
    B_re: Float[Array, "N I"]
    B_im: Float[Array, "N I"]
    C_re: Float[Array, "O N"]
    C_im: Float[Array, "O N"]
    D: Float[Array, "O I"]
    out_features: int = eqx.field(static=True)
    reals: ClassVar[int] = 2

    def __init__(
        self,
        in_features: int,
        out_features: int,
        state_size: int,
        *,
        step_min: float | int = 0.001,
        step_max: float | int = 0.1,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `state_size`: 2N, the number of states of the real system; even.
        - `step_min`, `step_max`: Δ is at first log-uniform between them, in the unit of time of Λ.
        - the other arguments as for [`etpc.nn.LRU`][].

        **Raises** `InputError` as `LRU` does, and for an odd `state_size` or steps out of range.
        """
        lengths = dict(in_features=in_features, out_features=out_features, state_size=state_size)
        I, O, P = set_lengths(self, **lengths)
        self.dtype = _paired_dtype(dtype)
        if P % 2:
            raise InputError(
                f"state_size must be even, got {P}. This is because eigenvalues come in conjugate "
                "pairs, of which one is kept. Pass an even number."
            )
        if not positive_number("step_min", step_min) <= positive_number("step_max", step_max):
            raise InputError(
                f"step_min must not exceed step_max, got step_min={step_min} and step_max={step_max}. "
                "This is because steps are drawn between them. Pass the smaller one as step_min."
            )
        keys = jax.random.split(key, 4)
        decay, frequency, vectors = _hippo_normal(P)
        self.log_decay = jnp.log(jnp.asarray(decay, self.dtype))
        self.frequency = jnp.asarray(frequency, self.dtype)
        spread = jax.random.uniform(keys[0], (P // 2,), self.dtype)
        self.log_step = math.log(step_min) + spread * math.log(step_max / step_min)
        B = SCHEMES["lecun_normal"](keys[1], (P, I), self.dtype)
        C = SCHEMES["lecun_normal"](keys[2], (O, P), self.dtype)
        parts = np.real(vectors), np.imag(vectors)
        turn_re, turn_im = (jnp.asarray(part, self.dtype) for part in parts)
        self.B_re, self.B_im = turn_re.T @ B, -turn_im.T @ B
        self.C_re, self.C_im = C @ turn_re, C @ turn_im
        self.D = SCHEMES["lecun_normal"](keys[3], (O, I), self.dtype)

    def _next(self, x: Array, h: Array) -> tuple[Array, Array]:
        rate = jax.lax.complex(-jnp.exp(mark(self.log_decay)), mark(self.frequency))
        turn = rate * jnp.exp(mark(self.log_step)).astype(rate.dtype)
        Bx = _product(self.B_re, self.B_im, x, h.dtype)
        h = jnp.exp(turn) * h + jnp.expm1(turn) / rate * Bx
        return 2 * _real_part(self.C_re, self.C_im, h) + mark(self.D) @ x, h


def _ring(
    keys: Array,
    size: int,
    r_min: float,
    r_max: float,
    max_phase: float,
    dtype: np.dtype,
    min_phase: float | None = None,
) -> tuple[Array, Array]:
    """`nu_log` and `theta_log` of eigenvalues `exp(-exp(nu_log) + i exp(theta_log))`, uniform on a ring.

    With `min_phase`, the logarithm of the phase is uniform in place of the phase.
    """
    if not 0 <= r_min < r_max <= 1:
        raise InputError(
            f"r_min and r_max must satisfy 0 <= r_min < r_max <= 1, got r_min={r_min} and "
            f"r_max={r_max}. This is because they are the moduli of stable eigenvalues. Pass radii "
            "inside the unit circle, such as r_min=0.9, r_max=0.999."
        )
    if not 0 < max_phase <= 2 * np.pi:
        raise InputError(
            f"max_phase must be in (0, 2π], got {max_phase}. This is because it bounds the phase "
            "of an eigenvalue. Pass an angle in radian, such as max_phase=0.3."
        )
    if min_phase is not None and not 0 < min_phase < max_phase:
        raise InputError(
            f"min_phase must be in (0, max_phase), got {min_phase} with max_phase={max_phase}. This is "
            "because phases are drawn between the two on a logarithmic scale. Pass an angle in radian, "
            "such as min_phase=0.01."
        )
    # Neither zero, whose logarithm is infinite, nor one.
    tiny = float(jnp.finfo(dtype).eps)
    radius, phase = (jax.random.uniform(k, (size,), dtype, minval=tiny) for k in keys)
    inner, outer = float(r_min) ** 2, float(r_max) ** 2
    nu = -0.5 * jnp.log(radius * (outer - inner) + inner)
    if min_phase is None:
        theta_log = jnp.log(float(max_phase) * phase)
    else:
        lowest = math.log(min_phase)
        theta_log = lowest + phase * (math.log(max_phase) - lowest)
    return jnp.log(nu), theta_log


def _hippo_normal(P: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decay rates, frequencies > 0 and eigenvectors [P, P/2] of HiPPO-N, one of each pair.

    The matrix is minus half the identity plus a skew-symmetric one (Smith et al., appendix B).
    """
    p = np.sqrt(np.arange(P) + 0.5)
    skew = np.triu(np.outer(p, p), 1)
    frequencies, vectors = np.linalg.eigh(-1j * (skew - skew.T))
    half = slice(P // 2, None)
    return np.full(P // 2, 0.5), frequencies[half], vectors[:, half]


def _paired_dtype(dtype: DType) -> np.dtype:
    """`dtype`, checked to have a complex type of the same precision."""
    real_dtype = float_dtype(dtype)
    if real_dtype not in (jnp.float32, jnp.float64):
        raise InputError(
            f"dtype must be float32 or float64, got {real_dtype}. This is because the state is complex, and "
            "there is no complex type of another precision. Pass `jnp.float32`."
        )
    return real_dtype
