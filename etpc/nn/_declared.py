"""Layers that are declared as fields: each with its default, its unit and its check.

```python
class LIF(Neuron):
    tau: Parameter = constant(20.0, "ms", positive=True)
    reset: Reset = option("soft")
```

is `LIF(size, *, tau=20.0, reset="soft", ...)`, whose `tau` is checked and converted when a layer is made.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import InitVar
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from etpc.nn._init import (
    DType,
    Parameter,
    Size,
    check_shape,
    constant_or_parameter,
    float_dtype,
    layer_shape,
    positive_number,
    used,
)


def constant(default: Any, unit: str = "1", *, positive: bool = False) -> Any:
    """A field for a fixed number, or for an array of trainable parameters; given in `unit` or as a
    quantity. Where the default is None, None stays None."""

    def checked(layer: "Units", name: str, value: Parameter) -> Parameter:
        shape, dtype = layer.shape, float_dtype(layer.dtype)
        return constant_or_parameter(name, value, shape, dtype, unit, positive=positive)

    return eqx.field(default=default, kw_only=True, metadata={"checked": checked})


def duration(default: float, check: Callable[..., float] = positive_number) -> Any:
    """A field for a fixed time (ms), above zero unless there is another check."""
    checked = lambda layer, name, value: check(name, value, "ms")
    return eqx.field(default=default, kw_only=True, static=True, metadata={"checked": checked})


def option(default: Any) -> Any:
    """A field for a setting, which is a part of the structure of the layer."""
    return eqx.field(default=default, kw_only=True, static=True)


class Units(eqx.Module):
    """A layer of units whose constants and parameters are shared by all, or one for each."""

    size: InitVar[Size]
    shape: tuple[int, ...] = eqx.field(init=False, static=True)
    dtype: DType = option(None)

    def __post_init__(self, size: Size):
        self.shape = layer_shape(size)
        self.dtype = float_dtype(self.dtype)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name, None)
            if "checked" in field.metadata and (value is not None or field.default is not None):
                setattr(self, field.name, field.metadata["checked"](self, field.name, value))

    def _check(self, **arrays: Array | None) -> None:
        """**Raises** `InputError` with the name of an array that has another shape than the layer."""
        for name, array in arrays.items():
            if array is not None:
                check_shape(type(self).__name__, name, array, self.shape)

    def _used(self, value: Parameter) -> Any:
        return used(value, self.shape)

    def _full(self, value: Parameter) -> Array:
        return jnp.full(self.shape, value, self.dtype)
