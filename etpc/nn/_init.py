"""Weight initialisers, and the checks and conversions that the constructors of `etpc.nn` share.

An initialiser is a function `(key, shape, dtype) -> array`. Weights have the layout of
`eqx.nn.Linear` and `eqx.nn.Conv`, `(out, in, ...)`: the fan-in is along axis 1, the fan-out along
axis 0.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray
from typing_extensions import TypeAliasType

from etpc.errors import InputError
from etpc.trace import mark

Initializer = TypeAliasType(
    "Initializer", Callable[[PRNGKeyArray, tuple[int, ...], DTypeLike], Array]
)
Layer = TypeVar("Layer")


Quantity: TypeAlias = Any
"""A quantity of `saiunit`, which only those who use it import."""

# Named, so that signatures show the names.
Number = TypeAliasType("Number", float | int | Quantity)
"""A fixed number."""
Parameter = TypeAliasType("Parameter", float | int | Quantity | np.ndarray | Array)
"""A number is a fixed constant, an array a trainable parameter."""
Size = TypeAliasType("Size", int | tuple[int, ...])
"""A number of units, or the shape of a layer of them."""
DType = TypeAliasType("DType", DTypeLike | None)
"""JAX's default float where None."""


AXES = {"in_axis": 1, "out_axis": 0}
SCHEMES: dict[str, Initializer] = {
    "kaiming_normal": initializers.he_normal(**AXES),
    "kaiming_uniform": initializers.he_uniform(**AXES),
    "lecun_normal": initializers.lecun_normal(**AXES),
    "xavier_normal": initializers.glorot_normal(**AXES),
    "xavier_uniform": initializers.glorot_uniform(**AXES),
    "orthogonal": initializers.orthogonal(column_axis=0),
    "normal": initializers.normal(1.0),
    "zeros": initializers.zeros,
}


def init(layer: Layer, scheme: str | Initializer, key: PRNGKeyArray, *, gain: float = 1.0) -> Layer:
    """The layer with new weights, and with biases of zero.

    A weight is an array of two axes or more in a field whose name begins with `weight`, such as
    `weight_hh` of a cell, whose gates are drawn together; a bias is in a field whose name begins with
    `bias`. All else, such as time constants, gains of norms and single recurrent weights, stays as it
    is.

    **Arguments:**

    - `layer`: a layer of `equinox.nn` or `etpc.nn`, or a model of such layers.
    - `scheme`: a function `(key, shape, dtype) -> array`, or the name of one, where the fan-in and the
        fan-out of a weight of shape `(O, I, ...)` are I and O times the size of the kernel, and the draws
        of names that end in `_normal` are cut at two standard deviations:
        - `"kaiming_normal"`, `"kaiming_uniform"`: of variance 2 / fan-in;
        - `"lecun_normal"`: of variance 1 / fan-in;
        - `"xavier_normal"`, `"xavier_uniform"`: of variance 2 / (fan-in + fan-out);
        - `"orthogonal"`: with orthonormal rows or columns;
        - `"normal"`: of variance 1;
        - `"zeros"`.
    - `key`: a PRNG key. That of the constructor may be used again, as its draws are replaced.
    - `gain`: a factor of the weights.

    **Returns** a layer of the same structure, shapes and dtypes.

    **Raises** `InputError` for a name that is unknown, a layer without a weight of two axes, or a
    function that returns another shape or dtype.

    ```pycon
    >>> import equinox as eqx, jax
    >>> from etpc import nn
    >>> key = jax.random.key(0)
    >>> linear = nn.init(eqx.nn.Linear(3, 2, key=key), "orthogonal", key)
    >>> (linear.weight @ linear.weight.T).round(5).tolist(), linear.bias.tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])

    ```

    **Source** He et al., "Delving deep into rectifiers", ICCV 2015, equation 10 (`kaiming`); Glorot &
    Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
    equations 12 and 16 (`xavier`); Saxe, McClelland & Ganguli, "Exact solutions to the nonlinear dynamics
    of learning in deep linear neural networks", ICLR 2014 (`orthogonal`).
    """
    if isinstance(scheme, str) and scheme not in SCHEMES:
        raise InputError(
            f"scheme={scheme!r} is unknown. Pass a function `(key, shape, dtype) -> array`, or one of "
            f"{', '.join(SCHEMES)}."
        )
    function = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    paths_and_leaves, structure = jax.tree.flatten_with_path(layer)

    def in_field(prefix: str, path: tuple[Any, ...], leaf: Any) -> bool:
        return eqx.is_inexact_array(leaf) and getattr(path[-1], "name", "").startswith(prefix)

    leaves = [
        jnp.zeros_like(leaf) if in_field("bias", path, leaf) else leaf
        for path, leaf in paths_and_leaves
    ]
    places = [
        n
        for n, (path, leaf) in enumerate(paths_and_leaves)
        if in_field("weight", path, leaf) and leaf.ndim > 1
    ]
    if not places:
        raise InputError(
            f"{type(layer).__name__} has no weight to draw. This is because no array of two axes or more is "
            "in a field whose name begins with `weight`. Set its arrays with `eqx.tree_at`."
        )
    for n, one in zip(places, jax.random.split(key, len(places)), strict=True):
        wanted = leaves[n]
        value = function(one, wanted.shape, wanted.dtype)
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise InputError(
                f"scheme returned {value.dtype}{list(value.shape)} where {wanted.dtype}"
                f"{list(wanted.shape)} is needed. This is because an initialiser is called as "
                "`init(key, shape, dtype)`. Return an array of that shape and dtype."
            )
        leaves[n] = gain * value
    return jax.tree.unflatten(structure, leaves)


def positive_int(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(
            f"{name} must be an integer >= 1, got {value!r}. This is because it is the length of "
            f"an array axis. Pass the number of units, such as {name}=128."
        )
    return int(value)


def set_lengths(layer: eqx.Module, **lengths: int) -> tuple[int, ...]:
    """Set fields that are lengths of axes, once they are checked; the lengths."""
    for name, value in lengths.items():
        setattr(layer, name, positive_int(name, value))
    return tuple(getattr(layer, name) for name in lengths)


def layer_shape(size: Size) -> tuple[int, ...]:
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


def float_dtype(dtype: DType) -> np.dtype:
    """`dtype`, or JAX's default: float64 where x64 is on, float32 elsewhere."""
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"dtype must be a real floating-point type, got {dtype}. This is because weights and "
            "states are differentiated. Pass `jnp.float32`, or None for the default."
        )
    return dtype


def check_callable(name: str, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    if not callable(function):
        raise InputError(
            f"{name} must be a function of an array, got {function!r}. This is because it is applied "
            "to the input of the units. Pass one such as `jnp.tanh`."
        )
    return function


def constant_or_parameter(
    name: str,
    value: Parameter,
    shape: tuple[int, ...],
    dtype: np.dtype,
    unit: str = "1",
    *,
    positive: bool = False,
) -> float | Array:
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


def used(value: Parameter, shape: tuple[int, ...]) -> Any:
    """A constant as it is, a parameter with the mark that says: this is a weight.

    A parameter that all units share is first broadcast over them. So it has one trace for each unit with
    that unit's states, and not one trace with the states of all units.
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
