"""Convolution: a product of a kernel with the patches of an image."""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import Equation, params, prims
from .._jax.primitives import register
from ._kind import Factored, Known, Rearrangement, Values


class Axis(NamedTuple):
    """Which input element each kernel element meets at each output position, along one axis."""

    size: int
    kernel: int
    positions: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    """The dilation of the input."""
    kernel_dilation: int = 1

    def sources(self) -> tuple[np.ndarray, np.ndarray]:
        """For each output position and kernel element: the input element, and whether it exists."""
        dilated = (
            np.arange(self.positions)[:, None] * self.stride
            + np.arange(self.kernel)[None, :] * self.kernel_dilation
            - self.padding[0]
        )
        source = dilated // self.dilation
        return source, (dilated % self.dilation == 0) & (source >= 0) & (source < self.size)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Which input elements each kernel meets, along all axes of a convolution or a window."""

    axes: tuple[Axis, ...]
    batch: int = 1
    channels: int = 1
    groups: int = 1
    """The feature groups, h."""

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(axis.positions for axis in self.axes)

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(axis.kernel for axis in self.axes)

    def patches(self) -> tuple[np.ndarray, np.ndarray]:
        """Element numbers of an input [batch, channels, *shape], and which exist.

        Axes: group, batch, *positions, channel of the group, *kernel.
        """
        n = len(self.axes)
        group_channels = self.channels // self.groups
        dims = (self.groups, self.batch, *self.positions, group_channels, *self.kernel)
        lead = np.arange(self.batch)[None, :, None] * self.channels
        lead = lead + np.arange(self.channels).reshape(self.groups, 1, group_channels)
        index = lead.reshape(self.groups, self.batch, *[1] * n, group_channels, *[1] * n)
        exists = np.ones([1] * len(dims), bool)
        for number, axis in enumerate(self.axes):
            source, inside = axis.sources()
            place = [1] * len(dims)
            place[2 + number], place[3 + n + number] = source.shape
            index = index * axis.size + np.clip(source, 0, axis.size - 1).reshape(place)
            exists = exists & inside.reshape(place)
        return np.broadcast_to(index, dims), np.broadcast_to(exists, dims)


def geometry(equation: Equation) -> Geometry:
    """The geometry of a `conv_general_dilated`."""
    x, w, y, windows, groups, _ = params.convolution(equation)
    shapes = [v.shape for v in (*equation.inputs, *equation.outputs)]
    spatial = [[shape[a] for a in spec[2:]] for shape, spec in zip(shapes, (x, w, y), strict=True)]
    axes = zip(*spatial, windows, strict=True)
    return Geometry(
        tuple(Axis(size, kernel, positions, *window) for size, kernel, positions, window in axes),
        batch=shapes[0][x[0]],
        channels=shapes[0][x[1]],
        groups=groups,
    )


@dataclasses.dataclass(frozen=True)
class Convolution(Factored):
    """`conv_general_dilated` with any strides, dilations, padding and feature groups.

    h are the feature groups, f the examples and output positions, i the elements of a kernel for
    one output channel, and o the output channels of a group.
    """

    geometry: Geometry
    x_order: tuple[int, ...]

    def factor(self, values: Values) -> Array:
        x = values[self.data].transpose(self.x_order).reshape(-1)
        index, exists = self.geometry.patches()
        patches = x[jnp.asarray(index.reshape(self.groups, self.i))]
        exists = jnp.asarray(exists.reshape(self.groups, self.i))
        return jnp.where(exists, patches, jnp.zeros((), x.dtype))


def convolution(equation: Equation, operand: int, known: Known) -> Convolution | None:
    """The canonical form of a convolution with a kernel that is the weight."""
    x, w, y, *_, batch_groups = params.convolution(equation)
    if operand != 1 or batch_groups != 1:
        return None
    g = geometry(equation)
    kernel, out = equation.inputs[1].shape, equation.outputs[0].shape
    n = len(g.axes)
    channels = kernel[w[0]] // g.groups
    group_channels = g.channels // g.groups
    # [h, i = (channel, *kernel), o] to (output channel, input channel, *kernel), then to their axes
    before = (g.groups, group_channels, *g.kernel, channels)
    order = _placed([(0, n + 2), (1,), *((2 + a,) for a in range(n))], w)
    # [h, f = (example, *positions), o] to (example, channel, *positions), likewise
    after = (g.groups, g.batch, *g.positions, channels)
    out_order = _placed([(1,), (0, n + 2), *((2 + a,) for a in range(n))], y)
    return Convolution(
        name=equation.primitive.name,
        data=0,
        h=g.groups,
        f=g.batch * math.prod(g.positions),
        i=group_channels * math.prod(g.kernel),
        o=channels,
        to_weight=Rearrangement(before, order, kernel),
        to_output=Rearrangement(after, out_order, out),
        geometry=g,
        x_order=tuple(x),
    )


def _placed(logical: list[tuple[int, ...]], spec: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes where logical axis number n, made of several, is put at place spec[n]."""
    by_place = sorted(range(len(spec)), key=lambda n: spec[n])
    return tuple(axis for n in by_place for axis in logical[n])


register([prims.conv_general_dilated_p], kind=convolution)
