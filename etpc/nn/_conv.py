"""Convolutions."""

from collections.abc import Sequence

import equinox as eqx
import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from etpc._errors import InputError
from etpc._jax import mark
from etpc.nn._init import (
    Initializer,
    float_dtype,
    initialise,
    kaiming_normal,
    optional,
    positive_int,
    zeros,
)

Padding = str | int | Sequence[int | Sequence[int]]


class Conv(eqx.Module):
    """A convolution over n spatial dimensions, plus a bias for each channel; both are marked.

    As in `equinox.nn.Conv`, channels come first and the kernel is not flipped.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> conv = nn.Conv(2, 1, 4, 3, padding="SAME", key=jax.random.key(0))
    >>> conv(jnp.ones((1, 8, 8))).shape
    (4, 8, 8)

    ```
    """

    weight: Float[Array, "O J *kernel"]
    bias: Float[Array, "O *ones"] | None
    num_spatial_dims: int = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    kernel_size: tuple[int, ...] = eqx.field(static=True)
    stride: tuple[int, ...] = eqx.field(static=True)
    padding: str | tuple[tuple[int, int], ...] = eqx.field(static=True)
    dilation: tuple[int, ...] = eqx.field(static=True)
    groups: int = eqx.field(static=True)

    def __init__(
        self,
        num_spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        *,
        weight_init: Initializer = kaiming_normal(),
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `num_spatial_dims`: n.
        - `in_channels`, `out_channels`: I and O.
        - `kernel_size`, `stride`, `dilation`: a number, or one for each spatial dimension.
        - `padding`: zeros around the input: `"SAME"`, `"SAME_LOWER"` or `"VALID"` as in
            `jax.lax.conv_general_dilated`, a number, or for each spatial dimension a number or a
            pair (before, after).
        - `groups`: how many groups the channels are split into; outputs see the inputs of their own
            group. It divides I and O.
        - `use_bias`: whether there is a bias, of shape `(O, 1, ...)`.
        - `weight_init`, `bias_init`: callables `(key, shape, dtype) -> array`; the weight's shape is
            `(O, I / groups, *kernel_size)`.
        - `dtype`: of the parameters; JAX's default float where None.
        - `key`: a PRNG key for the initial parameters.

        **Raises** `InputError` for a size below 1, a setting that does not fit the number of
        dimensions, channels that the groups do not divide, an unknown padding, a dtype that is not a
        float, or an initialiser that returns another shape or dtype.
        """
        n = self.num_spatial_dims = positive_int("num_spatial_dims", num_spatial_dims)
        self.in_channels = positive_int("in_channels", in_channels)
        self.out_channels = positive_int("out_channels", out_channels)
        self.kernel_size = _for_each("kernel_size", kernel_size, n)
        self.stride = _for_each("stride", stride, n)
        self.dilation = _for_each("dilation", dilation, n)
        self.padding = _padding(padding, n)
        self.groups = positive_int("groups", groups)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InputError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels="
                f"{out_channels}. This is because each group has as many channels as the others. Pass "
                "a common divisor."
            )
        dtype = float_dtype(dtype)
        weight_key, bias_key = jax.random.split(key)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight = initialise("weight_init", weight_init, weight_key, shape, dtype)
        shape = (self.out_channels, *[1] * n)
        self.bias = optional(use_bias, "bias_init", bias_init, bias_key, shape, dtype)

    def __call__(self, x: Float[Array, "I *space"]) -> Float[Array, "O *positions"]:
        """**Returns** the convolution of one example.

        **Raises** `InputError` where `x` does not have I channels and n spatial dimensions.
        """
        if x.ndim != self.num_spatial_dims + 1 or x.shape[0] != self.in_channels:
            space = ", ".join(f"n{axis + 1}" for axis in range(self.num_spatial_dims))
            raise InputError(
                f"{type(self).__name__} was called with x of shape {x.shape} where "
                f"({self.in_channels}, {space}) is needed. This is because a layer takes one time step "
                "of one example, with its channels first. Use `jax.vmap` for a batch and "
                "`jax.lax.scan` for time."
            )
        y = jax.lax.conv_general_dilated(
            x[None],
            mark(self.weight),
            self.stride,
            self.padding,
            rhs_dilation=self.dilation,
            feature_group_count=self.groups,
        )[0]
        return y if self.bias is None else y + mark(self.bias)


class Conv1d(Conv):
    """[`etpc.nn.Conv`][] over one spatial dimension."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        *,
        weight_init: Initializer = kaiming_normal(),
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        """As for [`etpc.nn.Conv`][], with `num_spatial_dims=1`."""
        super().__init__(
            1,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            use_bias,
            weight_init=weight_init,
            bias_init=bias_init,
            dtype=dtype,
            key=key,
        )


class Conv2d(Conv):
    """[`etpc.nn.Conv`][] over two spatial dimensions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        *,
        weight_init: Initializer = kaiming_normal(),
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        """As for [`etpc.nn.Conv`][], with `num_spatial_dims=2`."""
        super().__init__(
            2,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            use_bias,
            weight_init=weight_init,
            bias_init=bias_init,
            dtype=dtype,
            key=key,
        )


def _for_each(name: str, value: int | Sequence[int], n: int) -> tuple[int, ...]:
    """A setting for each spatial dimension."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * n
    if len(values) != n:
        raise InputError(
            f"{name}={value!r} has {len(values)} elements where there are {n} spatial dimensions. This "
            "is because it has one for each. Pass a number for all of them, or as many as there are."
        )
    return tuple(positive_int(name, v) for v in values)


def _padding(padding: Padding, n: int) -> str | tuple[tuple[int, int], ...]:
    """As `jax.lax.conv_general_dilated` takes it."""
    if isinstance(padding, str):
        if padding.upper() in ("SAME", "SAME_LOWER", "VALID"):
            return padding.upper()
    else:
        each = tuple(padding) if isinstance(padding, Sequence) else (padding,) * n
        pairs = tuple(tuple(p) if isinstance(p, Sequence) else (p, p) for p in each)
        whole = (isinstance(p, int | np.integer) and p >= 0 for pair in pairs for p in pair)
        if len(pairs) == n and all(len(pair) == 2 for pair in pairs) and all(whole):
            return tuple((int(before), int(after)) for before, after in pairs)
    raise InputError(
        f"padding={padding!r} is unknown. This is because it says how many zeros surround each of "
        f'{n} spatial dimensions. Pass "SAME", "SAME_LOWER", "VALID", an integer >= 0, or for each '
        "dimension such an integer or a pair (before, after) of them."
    )
