"""Normalisation of one example, with marked gain and bias."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from etpc._errors import InputError
from etpc._jax import mark
from etpc.nn._init import check_shape, float_dtype, positive_int, positive_number


class Norm(eqx.Module):
    """What `LayerNorm` and `RMSNorm` have in common."""

    weight: Float[Array, "*shape"] | None
    bias: Float[Array, "*shape"] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        shape: int | tuple[int, ...],
        eps: float = 1e-5,
        use_weight: bool = True,
        use_bias: bool = True,
        *,
        dtype: DTypeLike | None = None,
    ):
        """**Arguments:**

        - `shape`: of `x`.
        - `eps`: what is added under the root.
        - `use_weight`, `use_bias`: whether there is a gain, at first one, and a bias, at first zero.
        - `dtype`: of the parameters; JAX's default float where None.

        **Raises** `InputError` for a size below 1, an `eps` that is not positive, or a dtype that is
        not a float.
        """
        sizes = shape if isinstance(shape, tuple) else (shape,)
        self.shape = tuple(positive_int("shape", n) for n in sizes)
        self.eps = positive_number("eps", eps)
        dtype = float_dtype(dtype)
        self.weight = jnp.ones(self.shape, dtype) if use_weight else None
        self.bias = jnp.zeros(self.shape, dtype) if use_bias else None

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """**Returns** the normalised `x`, of the same type; it is computed in float32 at least.

        **Raises** `InputError` where `x` has another shape.
        """
        check_shape(type(self).__name__, "x", x, self.shape)
        return _scaled(self._normalised(_wide(x)), self.weight, self.bias).astype(x.dtype)

    @abc.abstractmethod
    def _normalised(self, x: Array) -> Array: ...


class LayerNorm(Norm):
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, over all of `x`.

    Built as `LayerNorm(shape, eps, use_weight, use_bias, dtype=dtype)`, as in Equinox.

    Every output depends on every input. Where it feeds a matrix, this costs nothing; where it feeds
    hidden states directly, each weight before it reaches all of them, and its trace is as many times
    larger.

    ```pycon
    >>> import jax.numpy as jnp
    >>> from etpc import nn
    >>> nn.LayerNorm(2)(jnp.array([1.0, 3.0])).round(3).tolist()
    [-1.0, 1.0]

    ```

    **Source** Ba et al., "Layer normalization", arXiv 1607.06450, 2016, equation 4; the same as
    `equinox.nn.LayerNorm`.
    """

    __init__ = Norm.__init__

    def _normalised(self, x: Array) -> Array:
        return _standard(x, tuple(range(x.ndim)), self.eps)


class RMSNorm(Norm):
    """`x / sqrt(mean(x^2) + eps) * weight + bias`, over all of `x`.

    Built as `RMSNorm(shape, eps, use_weight, use_bias, dtype=dtype)`, as in Equinox.

    Every output depends on every input, as with [`etpc.nn.LayerNorm`][].

    **Source** Zhang & Sennrich, "Root mean square layer normalization", NeurIPS 2019, equation 4; the
    same as `equinox.nn.RMSNorm`.
    """

    __init__ = Norm.__init__

    def _normalised(self, x: Array) -> Array:
        return x * jax.lax.rsqrt(jnp.mean(x**2, keepdims=True) + self.eps)


class GroupNorm(eqx.Module):
    """`LayerNorm` of each group of channels, with a gain and a bias for each channel.

    Outputs depend on the inputs of their own group, as with [`etpc.nn.LayerNorm`][].

    **Source** Wu & He, "Group normalization", ECCV 2018, equations 1, 2 and 7; the same as
    `equinox.nn.GroupNorm`.
    """

    weight: Float[Array, " C"] | None
    bias: Float[Array, " C"] | None
    groups: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        groups: int,
        channels: int,
        eps: float = 1e-5,
        channelwise_affine: bool = True,
        *,
        dtype: DTypeLike | None = None,
    ):
        """**Arguments:**

        - `groups`: how many groups of equal size the channels are split into.
        - `channels`: C, the length of the first axis of `x`.
        - `eps`: what is added under the root.
        - `channelwise_affine`: whether there is a gain, at first one, and a bias, at first zero.
        - `dtype`: of the parameters; JAX's default float where None.

        **Raises** `InputError` for a size below 1, channels that the groups do not divide, an `eps`
        that is not positive, or a dtype that is not a float.
        """
        self.groups = positive_int("groups", groups)
        self.channels = positive_int("channels", channels)
        self.eps = positive_number("eps", eps)
        if self.channels % self.groups:
            raise InputError(
                f"groups={groups} must divide channels={channels}. This is because each group has as "
                "many channels as the others. Pass a divisor."
            )
        dtype = float_dtype(dtype)
        self.weight = jnp.ones(self.channels, dtype) if channelwise_affine else None
        self.bias = jnp.zeros(self.channels, dtype) if channelwise_affine else None

    def __call__(self, x: Float[Array, "C *space"]) -> Float[Array, "C *space"]:
        """**Returns** the normalised `x`, of the same type; it is computed in float32 at least.

        **Raises** `InputError` where `x` does not have C channels.
        """
        check_shape("GroupNorm", "x", x, (self.channels, *jnp.shape(x)[1:]))
        grouped = _wide(x).reshape(self.groups, -1)
        y = _standard(grouped, (1,), self.eps).reshape(x.shape)
        along = (self.channels, *[1] * (x.ndim - 1))
        weight, bias = (None if a is None else a.reshape(along) for a in (self.weight, self.bias))
        return _scaled(y, weight, bias).astype(x.dtype)


def _wide(x: Array) -> Array:
    return x.astype(np.promote_types(x.dtype, np.float32))


def _standard(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    x = x - jnp.mean(x, axes, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x**2, axes, keepdims=True) + eps)


def _scaled(x: Array, weight: Array | None, bias: Array | None) -> Array:
    if weight is not None:
        x = mark(weight).astype(x.dtype) * x
    return x if bias is None else x + mark(bias).astype(x.dtype)
