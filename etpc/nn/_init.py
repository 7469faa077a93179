"""Weight initialisers, and the checks and conversions that the constructors of `etpc.nn` share.

An initialiser is a callable `(key, shape, dtype) -> array`. Weights have the layout of
`eqx.nn.Linear` and `eqx.nn.Conv`, `(out, in, ...)`: the fan-in is along axis 1, the fan-out along
axis 0.
"""

import sys
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn.initializers import normal as normal
from jax.nn.initializers import orthogonal as orthogonal
from jax.nn.initializers import variance_scaling
from jax.nn.initializers import zeros as zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from etpc._errors import InputError
from etpc._jax import mark

Initializer: TypeAlias = Callable[[PRNGKeyArray, tuple[int, ...], DTypeLike], Array]


@runtime_checkable
class Quantity(Protocol):
    """A quantity of `saiunit`, which is imported by those alone who use it."""

    @property
    def mantissa(self) -> Any: ...
    @property
    def unit(self) -> Any: ...


# A number is a fixed constant, an array a trainable parameter.
Number: TypeAlias = float | int | Quantity
Constant: TypeAlias = Number | np.ndarray | Array
# What becomes of a `Constant`.
Parameter: TypeAlias = float | Float[Array, "..."]


def kaiming_normal(scale: float = 2.0) -> Initializer:
    """Normal with variance `scale / fan_in`, truncated at two standard deviations.

    ```pycon
    >>> import jax
    >>> from etpc import nn
    >>> nn.kaiming_normal()(jax.random.key(0), (3, 4), "float32").shape
    (3, 4)

    ```

    **Source** He et al., "Delving deep into rectifiers", ICCV 2015, equation 10.
    """
    return _variance_scaling(scale, "fan_in", "truncated_normal")


def kaiming_uniform(scale: float = 2.0) -> Initializer:
    """Uniform on `[-a, a]` with `a = sqrt(3 * scale / fan_in)`, of variance `scale / fan_in`.

    **Source** He et al., "Delving deep into rectifiers", ICCV 2015, equation 10.
    """
    return _variance_scaling(scale, "fan_in", "uniform")


def xavier_normal(scale: float = 1.0) -> Initializer:
    """Normal with variance `2 * scale / (fan_in + fan_out)`, truncated at two standard deviations.

    **Source** Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 12.
    """
    return _variance_scaling(scale, "fan_avg", "truncated_normal")


def xavier_uniform(scale: float = 1.0) -> Initializer:
    """Uniform on `[-a, a]` with `a = sqrt(6 * scale / (fan_in + fan_out))`.

    **Source** Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, equation 16.
    """
    return _variance_scaling(scale, "fan_avg", "uniform")


def _variance_scaling(
    scale: float,
    mode: Literal["fan_in", "fan_avg"],
    distribution: Literal["truncated_normal", "uniform"],
) -> Initializer:
    positive_number("scale", scale)
    return variance_scaling(scale, mode, distribution, in_axis=1, out_axis=0)


def positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(
            f"{name} must be an integer >= 1, got {value!r}. This is because it is the length of "
            f"an array axis. Pass the number of units, such as {name}=128."
        )
    return int(value)


def layer_shape(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a layer that is given as a number of units or a shape."""
    return tuple(positive_int("size", n) for n in (size if isinstance(size, tuple) else (size,)))


def positive_number(name: str, value: Number, unit: str = "1") -> float:
    value = in_unit(name, value, unit)
    if not (isinstance(value, int | float | np.number) and 0 < value < np.inf):
        raise InputError(
            f"{name} must be a finite number > 0, got {value!r}. This is because it is a fixed "
            f"positive constant. Pass a Python number, such as {name}=1.0."
        )
    return float(value)


def float_dtype(dtype: DTypeLike | None) -> np.dtype:
    """`dtype`, or JAX's default: float64 where x64 is on, float32 elsewhere."""
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"dtype must be a real floating-point type, got {dtype}. This is because weights and "
            "states are differentiated. Pass `jnp.float32`, or None for the default."
        )
    return dtype


def initialise(
    name: str, init: Initializer, key: PRNGKeyArray, shape: tuple[int, ...], dtype: np.dtype
) -> Array:
    """Draw a weight, and check that `init` gave what was asked for."""
    value = init(key, shape, dtype)
    if value.shape != shape or value.dtype != dtype:
        raise InputError(
            f"{name} returned {value.dtype}{list(value.shape)} where {dtype}{list(shape)} is "
            "needed. This is because an initialiser is called as `init(key, shape, dtype)`. Return "
            "an array of that shape and dtype."
        )
    return value


def optional(
    wanted: bool,
    name: str,
    init: Initializer,
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Array | None:
    """A weight that a layer may be without, such as a bias."""
    return initialise(name, init, key, shape, dtype) if wanted else None


def check_callable(name: str, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    if not callable(function):
        raise InputError(
            f"{name} must be a function of an array, got {function!r}. This is because it is applied "
            "to the input of the units. Pass one such as `jnp.tanh`."
        )
    return function


def constant_or_parameter(
    name: str,
    value: Constant,
    shape: tuple[int, ...],
    dtype: np.dtype,
    unit: str = "1",
    *,
    positive: bool = False,
) -> Parameter:
    """A number stays a fixed Python float; an array becomes a parameter of type `dtype`.

    A quantity is converted to `unit` before.
    """
    value = in_unit(name, value, unit)
    if isinstance(value, np.ndarray | jax.Array):
        value = jnp.asarray(value, dtype)
        if value.shape not in ((), shape):
            raise InputError(
                f"{name} has shape {value.shape} where the layer has shape {shape}. This is "
                "because an array is a trainable parameter, one shared by all units or one for "
                f"each. Pass a number, an array of shape (), or one of shape {shape}."
            )
    elif isinstance(value, int | float | np.number):
        value = float(value)
    else:
        raise InputError(
            f"{name} must be a number or an array, got {value!r}. This is because a number is a fixed "
            "constant of the layer and an array a trainable parameter. Pass one of the two."
        )
    lowest, demand = (0, "finite and > 0") if positive else (-np.inf, "finite")
    if known(value) and not np.all((np.asarray(value) > lowest) & (np.asarray(value) < np.inf)):
        raise InputError(
            f"{name} must be {demand}, got {value}. This is because the equation of the layer is "
            "undefined otherwise. Pass a number or an array of such values."
        )
    return value


def in_unit(name: str, value: Any, unit: str) -> Any:
    """The number, or array, of a `saiunit` quantity in `unit`; anything else as it is.

    `unit` is a name of `saiunit`, a quotient of two such as "mV/ms", or "1" for no dimension.
    """
    saiunit = sys.modules.get("saiunit")  # imported by whoever made the quantity
    if saiunit is None or not isinstance(value, saiunit.Quantity):
        return value
    above, *below = (saiunit.UNITLESS if n == "1" else getattr(saiunit, n) for n in unit.split("/"))
    wanted = above / below[0] if below else above
    if not wanted.has_same_dim(value.unit):
        needed = "a number without a dimension" if unit == "1" else f"a quantity in {unit}"
        raise InputError(
            f"{name} must be {needed}, got {value}. This is because the equations of the layer are "
            f"in fixed units, to which a quantity is converted. Pass {needed}, in any scale, or "
            "a plain number."
        )
    number = value.to_decimal(wanted)
    # NumPy makes an array of no axes that is scaled a number.
    return np.asarray(number) if isinstance(value.mantissa, np.ndarray) else number


def known(*values: object) -> bool:
    """Whether values can be looked at: not in a traced constructor, as under `eqx.filter_vmap`."""
    return not any(isinstance(value, Tracer) for value in values)


def used(value: Parameter, shape: tuple[int, ...]) -> Parameter:
    """A constant as it is, a parameter with the mark that says: this is a weight.

    One that all units share is spread over them first. So its trace is one for each unit with that
    unit's states, and not one with the states of all.
    """
    return mark(jnp.broadcast_to(value, shape)) if isinstance(value, jax.Array) else value


def check_shape(layer: str, name: str, array: Array, shape: tuple[int, ...]) -> None:
    if jnp.shape(array) != shape:
        if jnp.ndim(array) > len(shape):
            advice = (
                "This is because a layer takes one time step of one example. Use `jax.vmap` for a "
                "batch and `jax.lax.scan` for time."
            )
        else:
            advice = "Make the sizes of the layers, of the input and of the state agree."
        raise InputError(
            f"{layer} was called with {name} of shape {jnp.shape(array)} where {shape} is needed. "
            f"{advice}"
        )
