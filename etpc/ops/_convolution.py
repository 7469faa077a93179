"""Convolution: a product of a kernel with the patches of an image."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from .._jax import Equation, prims
from ._kind import Factored, Known, Move, register_kind


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Which input element each kernel element meets at each output position."""

    batch: int
    channels: int
    groups: int
    """feature groups, h."""
    shape: tuple[int, ...]
    """of the input, without batch and channels"""
    kernel: tuple[int, ...]
    positions: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]

    def along(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """For each output position and kernel element along an axis: the input, and if it exists."""
        at = (
            np.arange(self.positions[axis])[:, None] * self.strides[axis]
            + np.arange(self.kernel[axis])[None, :] * self.rhs_dilation[axis]
            - self.padding[axis][0]
        )
        step = self.lhs_dilation[axis]
        source = at // step
        return source, (at % step == 0) & (source >= 0) & (source < self.shape[axis])

    def patches(self) -> tuple[np.ndarray, np.ndarray]:
        """Element numbers of an input [batch, channels, *shape], and which exist.

        Axes: group, batch, *positions, channel of the group, *kernel.
        """
        n = len(self.shape)
        own = self.channels // self.groups
        dims = (self.groups, self.batch, *self.positions, own, *self.kernel)
        lead = np.arange(self.batch)[None, :, None] * self.channels
        lead = lead + np.arange(self.channels).reshape(self.groups, 1, own)
        index = lead.reshape(self.groups, self.batch, *[1] * n, own, *[1] * n)
        exists = np.ones([1] * len(dims), bool)
        for axis in range(n):
            source, inside = self.along(axis)
            place = [1] * len(dims)
            place[2 + axis], place[3 + n + axis] = source.shape
            index = index * self.shape[axis] + np.clip(source, 0, self.shape[axis] - 1).reshape(
                place
            )
            exists = exists & inside.reshape(place)
        return np.broadcast_to(index, dims), np.broadcast_to(exists, dims)


def geometry(equation: Equation) -> Geometry:
    """The geometry of a `conv_general_dilated`."""
    params = equation.params
    x, w, y = params["dimension_numbers"]
    shapes = [v.shape for v in (*equation.inputs, *equation.outputs)]
    return Geometry(
        batch=shapes[0][x[0]],
        channels=shapes[0][x[1]],
        groups=params["feature_group_count"],
        shape=tuple(shapes[0][a] for a in x[2:]),
        kernel=tuple(shapes[1][a] for a in w[2:]),
        positions=tuple(shapes[2][a] for a in y[2:]),
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(p) for p in params["padding"]),
        lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
    )


@dataclasses.dataclass(frozen=True)
class Convolution(Factored):
    """`conv_general_dilated` with any strides, dilations, padding and feature groups.

    h are the feature groups, f the examples and output positions, i the elements of a kernel for
    one output channel, and o the output channels of a group.
    """

    geometry: Geometry
    x_order: tuple[int, ...]

    def factor(self, values):
        x = values[self.data].transpose(self.x_order).reshape(-1)
        index, exists = self.geometry.patches()
        patches = x[jnp.asarray(index.reshape(self.groups, self.i))]
        exists = jnp.asarray(exists.reshape(self.groups, self.i))
        return jnp.where(exists, patches, jnp.zeros((), x.dtype))


def convolution(equation: Equation, operand: int, known: Known) -> Convolution | None:
    """The canonical form of a convolution with a kernel that is the weight."""
    if operand != 1 or equation.params["batch_group_count"] != 1:
        return None
    g = geometry(equation)
    x, w, y = equation.params["dimension_numbers"]
    kernel, out = equation.inputs[1].shape, equation.outputs[0].shape
    n = len(g.shape)
    channels = kernel[w[0]] // g.groups
    own = g.channels // g.groups
    # [h, i = (channel, *kernel), o] to (output channel, input channel, *kernel), then to their axes
    before = (g.groups, own, *g.kernel, channels)
    order = _placed([(0, n + 2), (1,), *((2 + a,) for a in range(n))], w)
    # [h, f = (example, *positions), o] to (example, channel, *positions), likewise
    after = (g.groups, g.batch, *g.positions, channels)
    out_order = _placed([(1,), (0, n + 2), *((2 + a,) for a in range(n))], y)
    return Convolution(
        name=equation.primitive.name,
        data=0,
        h=g.groups,
        f=g.batch * math.prod(g.positions),
        i=own * math.prod(g.kernel),
        o=channels,
        to_weight=Move(before, order, kernel),
        to_output=Move(after, out_order, out),
        geometry=g,
        x_order=tuple(x),
    )


def _placed(logical: list[tuple[int, ...]], spec: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes where logical axis number n, made of several, is put at place spec[n]."""
    at = sorted(range(len(spec)), key=lambda n: spec[n])
    return tuple(axis for n in at for axis in logical[n])


register_kind(prims.conv_general_dilated_p, convolution)
