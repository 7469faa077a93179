"""Spikes with surrogate derivatives.

A spiking neuron emits `H(x)`, the Heaviside step of the distance `x` of its membrane potential from
the threshold. The derivative of `H` is zero almost everywhere, so training puts a *surrogate*
`h(x)` in its place: the value stays the step, and `dH/dx := h(x)` (Neftci, Mostafa & Zenke,
"Surrogate gradient learning in spiking neural networks", IEEE Signal Processing Magazine 36(6),
2019).

A surrogate is a hashable value that is called like a function. Two surrogates of equal type and
parameters are equal, so that one may be a static field of an Equinox module.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from etpc.errors import InputError, InputTypeError

__all__ = [
    "Arctan",
    "Gaussian",
    "MultiGaussian",
    "ReluGrad",
    "Sigmoid",
    "SuperSpike",
    "Surrogate",
]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spike(surrogate: "Surrogate", x: Array) -> Array:
    return (x >= 0).astype(x.dtype)


@_spike.defjvp
def _spike_jvp(
    surrogate: "Surrogate", primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _spike(surrogate, x), surrogate.derivative(x) * dx


@dataclasses.dataclass(frozen=True)
class Surrogate(abc.ABC):
    """A Heaviside step whose derivative is replaced by `derivative`.

    Write a new one as a frozen dataclass with one method. Its parameters are finite numbers greater
    than zero.

    ```pycon
    >>> import dataclasses, jax
    >>> from etpc.surrogate import Surrogate
    >>> @dataclasses.dataclass(frozen=True)
    ... class Boxcar(Surrogate):
    ...     width: float = 0.5
    ...
    ...     def derivative(self, x):
    ...         return (abs(x) < self.width).astype(x.dtype)
    >>> print(Boxcar()(0.2), jax.grad(Boxcar())(0.2), jax.grad(Boxcar())(0.7))
    1.0 1.0 0.0

    ```
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int | float | np.number) and 0 < value < math.inf):
                raise InputError(
                    f"{type(self).__name__}: {field.name} must be a finite number > 0, got "
                    f"{value!r}. This is because it is a fixed width or height of the surrogate "
                    f"derivative. Pass a Python number, such as {field.name}=0.5."
                )
            # A NumPy scalar would promote a float32 membrane potential to float64.
            object.__setattr__(self, field.name, float(value))

    @abc.abstractmethod
    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The surrogate derivative h(x), element by element, in the dtype of `x`."""

    def __call__(self, x: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """Spike where `x >= 0`.

        `x` is the distance from the threshold, in units of the distance from reset to threshold.

        **Returns** 1 where `x >= 0` and 0 elsewhere, in the shape and dtype of `x`.

        **Raises** `InputTypeError` where `x` is not of a real floating-point dtype.
        """
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputTypeError(
                f"{type(self).__name__} was called with an array of dtype {x.dtype}, which has no "
                "derivative. This is because a surrogate takes a membrane potential, a real "
                "floating-point number. Convert the array, as in `x.astype(float)`."
            )
        return _spike(self, x)


@dataclasses.dataclass(frozen=True)
class ReluGrad(Surrogate):
    """A triangle: `h(x) = alpha * max(0, width - |x|)`.

    Defaults: `alpha = 0.3`, `width = 1.0`, the damped triangle of the source.

    ```pycon
    >>> import jax
    >>> from etpc.surrogate import ReluGrad
    >>> print(jax.grad(ReluGrad(alpha=0.5))(-0.5))
    0.25

    ```

    **Source** Esser et al., "Convolutional networks for fast, energy-efficient neuromorphic
    computing", PNAS 113(41), 2016, for the triangle; Bellec et al., "Long short-term memory and
    learning-to-learn in networks of spiking neurons", NeurIPS 2018, for the factor 0.3.
    """

    alpha: float = 0.3
    width: float = 1.0

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.alpha * jnp.maximum(self.width - jnp.abs(x), 0)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Surrogate):
    """The slope of a logistic curve: `h(x) = alpha * s(x) * (1 - s(x))` with `s(x) = 1 / (1 +
    exp(-alpha * x))`.

    Default: `alpha = 4.0`, with which `h(0) = 1`.

    **Source** Zenke & Vogels, "The remarkable robustness of surrogate gradient learning for
    instilling complex function in spiking neural networks", Neural Computation 33(4), 2021. Here
    `h` integrates to 1: it has the factor `alpha`.
    """

    alpha: float = 4.0

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # 1 - s(x) = s(-x), without cancellation.
        return self.alpha * jax.nn.sigmoid(self.alpha * x) * jax.nn.sigmoid(-self.alpha * x)


@dataclasses.dataclass(frozen=True)
class Arctan(Surrogate):
    """The slope of an arctangent: `h(x) = (alpha / 2) / (1 + (pi * alpha * x / 2)^2)`.

    Default: `alpha = 2.0`, which is the source's `1 / (1 + (pi * x)^2)`.

    **Source** Fang et al., "Incorporating learnable membrane time constant to enhance learning of
    spiking neural networks", ICCV 2021.
    """

    alpha: float = 2.0

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 0.5 * self.alpha / (1 + jnp.square(0.5 * math.pi * self.alpha * x))


@dataclasses.dataclass(frozen=True)
class SuperSpike(Surrogate):
    """The slope of a fast sigmoid: `h(x) = 1 / (1 + beta * |x|)^2`.

    Default: `beta = 10.0`. The source's `beta` is 1 per mV, for a threshold that is some mV above
    rest; here `x` is in units of the distance from reset to threshold.

    **Source** Zenke & Ganguli, "SuperSpike: Supervised learning in multilayer spiking neural
    networks", Neural Computation 30(6), 2018.
    """

    beta: float = 10.0

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return 1 / jnp.square(1 + self.beta * jnp.abs(x))


def _normal_pdf(x: Array, mean: float, std: float) -> Array:
    return jnp.exp(-0.5 * jnp.square((x - mean) / std)) / (math.sqrt(2 * math.pi) * std)


@dataclasses.dataclass(frozen=True)
class Gaussian(Surrogate):
    """A normal density: `h(x) = alpha * N(0, sigma)`, where `N(mean, std)` is the normal density
    at `x`.

    Defaults: `sigma = 0.5`, `alpha = 0.5`.

    **Source** Yin, Corradi & Bohté, "Accurate and efficient time-domain classification with
    adaptive spiking recurrent neural networks", Nature Machine Intelligence 3, 2021; `alpha` is the
    gradient scale of the authors' code.
    """

    sigma: float = 0.5
    alpha: float = 0.5

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.alpha * _normal_pdf(x, 0.0, self.sigma)


@dataclasses.dataclass(frozen=True)
class MultiGaussian(Surrogate):
    """A normal density with negative flanks.

    The derivative is `alpha * ((1 + h) N(0, sigma) - h N(sigma, s sigma) - h N(-sigma, s sigma))`,
    where `N(mean, std)` is the normal density at `x`.

    Defaults: `h = 0.15`, `s = 6.0`, `sigma = 0.5` as in the source, `alpha = 0.5` as in the
    authors' code.

    **Source** Yin, Corradi & Bohté, "Accurate and efficient time-domain classification with
    adaptive spiking recurrent neural networks", Nature Machine Intelligence 3, 2021.
    """

    h: float = 0.15
    s: float = 6.0
    sigma: float = 0.5
    alpha: float = 0.5

    def derivative(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        centre = _normal_pdf(x, 0.0, self.sigma)
        flanks = _normal_pdf(x, self.sigma, self.s * self.sigma) + _normal_pdf(
            x, -self.sigma, self.s * self.sigma
        )
        return self.alpha * ((1 + self.h) * centre - self.h * flanks)
