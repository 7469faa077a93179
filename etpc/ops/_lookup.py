"""Reading rows of a weight by data: embedding, and other gathers."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from .._jax import Equation, params, prims
from .._jax.primitives import register
from ._kind import Factored, Known, Rearrangement, Values


@dataclasses.dataclass(frozen=True)
class Lookup(Factored):
    """A gather of whole rows: the product of the table with rows of a unit matrix.

    f are the rows that are read, i the rows of the table, o the elements of a row.
    """

    rows: tuple[int, ...]
    """The sizes of the dimensions that an index is for."""
    clip: bool
    dtype: Any

    def factor(self, values: Values) -> Array:
        index = jnp.asarray(values[self.data]).reshape(self.f, len(self.rows))
        number = jnp.zeros((self.f,), jnp.int32)
        inside = jnp.ones((self.f,), bool)
        for axis, size in enumerate(self.rows):
            axis_index = index[:, axis]
            clipped = jnp.clip(axis_index, 0, size - 1)
            inside &= axis_index == clipped
            number = number * size + clipped.astype(jnp.int32)
        one_hot = number[:, None] == jnp.arange(self.i, dtype=jnp.int32)[None, :]
        if not self.clip:
            one_hot &= inside[:, None]
        return one_hot.astype(self.dtype)


def lookup(equation: Equation, operand: int, known: Known) -> Lookup | None:
    """The canonical form of a `gather` that reads whole rows of a weight."""
    if operand != 0:
        return None
    dims = params.gather(equation)
    shape, rows = equation.inputs[0].shape, dims.indexed
    whole = all(
        size == (1 if axis in rows else n)
        for axis, (size, n) in enumerate(zip(dims.sizes, shape, strict=True))
    )
    if dims.batched or not whole:
        return None
    out = equation.outputs[0].shape
    kept = [axis for axis in range(len(shape)) if axis not in dims.collapsed]
    rest = [axis for axis in kept if axis not in rows]
    lead = [axis for axis in range(len(out)) if axis not in dims.offset]
    # [f, o] has the axes (*lead, *rest); a row dimension that is kept, and another dimension that is
    # collapsed, has length one
    place: dict[int, int] = {axis: n for n, axis in enumerate(lead)}
    place.update(
        (dims.offset[n], len(lead) + rest.index(axis))
        for n, axis in enumerate(kept)
        if axis in rest
    )
    order = tuple(place[axis] for axis in range(len(out)) if axis in place)
    return _rows_of(
        equation,
        data=1,
        rows=tuple(rows),
        f=math.prod(out[axis] for axis in lead),
        to_output=Rearrangement(
            (*(out[axis] for axis in lead), *(shape[axis] for axis in rest)), order, out
        ),
        clip=dims.clips,
    )


def slice_at(equation: Equation, operand: int, known: Known) -> Lookup | None:
    """The canonical form of a `dynamic_slice` that reads one row of a weight."""
    if operand != 0:
        return None
    shape, sizes = equation.inputs[0].shape, params.slice_sizes(equation)
    cut = [axis for axis, (n, size) in enumerate(zip(shape, sizes, strict=True)) if size < n]
    if len(cut) != 1 or sizes[cut[0]] != 1:
        return None
    out = equation.outputs[0].shape
    return _rows_of(
        equation,
        data=1 + cut[0],
        rows=tuple(cut),
        f=1,
        to_output=Rearrangement(out, tuple(range(len(out))), out),
        clip=True,
    )


def _rows_of(
    equation: Equation,
    data: int,
    rows: tuple[int, ...],
    f: int,
    to_output: Rearrangement,
    clip: bool,
) -> Lookup:
    shape = equation.inputs[0].shape
    rest = tuple(axis for axis in range(len(shape)) if axis not in rows)
    order = (*rows, *rest)
    sizes = tuple(shape[axis] for axis in rows)
    i = math.prod(sizes)
    return Lookup(
        name=equation.primitive.name,
        data=data,
        h=1,
        f=f,
        i=i,
        o=math.prod(shape) // max(i, 1),
        to_weight=Rearrangement(
            tuple(shape[axis] for axis in order),
            tuple(sorted(range(len(order)), key=lambda n: order[n])),
            shape,
        ),
        to_output=to_output,
        rows=sizes,
        clip=clip,
        dtype=equation.inputs[0].aval.dtype,
    )


register([prims.gather_p], kind=lookup)
register([prims.dynamic_slice_p], kind=slice_at)
