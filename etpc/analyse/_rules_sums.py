"""Pattern rules of reductions, contractions and convolutions: they join over what they sum."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._primitives import BCOO, register
from ..ops import Axis, Geometry, geometry
from ._interpreter import rule
from ._pattern import afford, joined, numbering, pick, select, union


@rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(interpreter, eqn, patterns, known):
    return [joined(patterns[0], eqn.inputs[0].shape, eqn.params["axes"])]


@rule("cumsum", "cumlogsumexp", "cummax", "cummin", "cumprod")
def _cumulate(interpreter, eqn, patterns, known):
    shape, axis = eqn.inputs[0].shape, eqn.params["axis"]
    size = shape[axis]
    afford(math.prod(shape) * size)
    steps = np.tril(np.ones((size, size), bool))
    if eqn.params["reverse"]:
        steps = steps.T
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    eye = sp.eye_array
    mixing = sp.kron(sp.kron(eye(outer, dtype=bool), steps), eye(inner, dtype=bool), format="csr")
    return [sp.csr_array(sp.csr_array(mixing).astype(bool) @ patterns[0])]


@rule("dot_general")
def _dot_general(interpreter, eqn, patterns, known):
    (out,) = eqn.outputs
    contract, batch = eqn.params["dimension_numbers"]
    shapes = [v.shape for v in eqn.inputs]
    free = [
        [a for a in range(len(shapes[n])) if a not in contract[n] and a not in batch[n]]
        for n in (0, 1)
    ]
    joins = []
    for n, pattern in enumerate(patterns):
        if pattern is None:
            continue
        shape = shapes[n]
        summed = joined(pattern, shape, contract[n])
        reduced = [1 if a in contract[n] else size for a, size in enumerate(shape)]
        index = numbering(reduced).transpose(*batch[n], *free[n], *contract[n])
        index = index.reshape([shape[a] for a in (*batch[n], *free[n])])
        other_sizes = [1] * len(free[1 - n])
        lead = [shape[a] for a in batch[n]]
        free_sizes = [shape[a] for a in free[n]]
        index = index.reshape(
            [*lead, *free_sizes, *other_sizes] if n == 0 else [*lead, *other_sizes, *free_sizes]
        )
        joins.append(pick(summed, np.broadcast_to(index, out.shape)))
    return [union(joins)]


def _bcoo_dot_general(interpreter, eqn, patterns, known):
    """A sparse matrix and a dense array, one dimension of each summed."""
    values, indices, rhs = eqn.inputs
    (out,) = eqn.outputs
    (contract, contract_rhs), batch = eqn.params["dimension_numbers"]
    coords = known(indices)
    if (
        coords is None
        or values.shape != coords.shape[:1]
        or len(contract) != 1
        or any(map(len, batch))
    ):
        return None
    if (coords < 0).any():  # which JAX counts from the end, or not, as the platform has it
        return None
    shape = eqn.params["lhs_spinfo"].shape
    inside = (coords < np.asarray(shape)).all(1)
    stored = np.flatnonzero(inside)
    coords = coords[inside].astype(np.int64)  # its own type may be too narrow for element numbers
    row, column = coords[:, 1 - contract[0]], coords[:, contract[0]]
    rhs_rows = np.moveaxis(numbering(rhs.shape), contract_rhs[0], 0).reshape(shape[contract[0]], -1)
    free = rhs_rows.shape[1]
    target = (row[:, None] * free + np.arange(free)).reshape(-1)
    joins = []
    if patterns[0] is not None:
        joins.append(select(target, np.repeat(stored, free), out.size, patterns[0]))
    if patterns[2] is not None:
        joins.append(select(target, rhs_rows[column].reshape(-1), out.size, patterns[2]))
    return [union(joins)]


@rule("conv_general_dilated")
def _convolution(interpreter, eqn, patterns, known):
    if eqn.params["batch_group_count"] != 1:
        return None
    (out,) = eqn.outputs
    x_spec, w_spec, y_spec = eqn.params["dimension_numbers"]
    g = geometry(eqn)
    n = len(g.axes)
    index, exists = g.patches()  # group, batch, *positions, channel, *kernel
    per_group = out.shape[y_spec[1]] // g.groups
    joins = []
    y = np.transpose(numbering(out.shape), y_spec)  # batch, channel, *positions
    y = y.reshape(g.batch, g.groups, per_group, *g.positions)
    y = np.moveaxis(y, (1, 2), (0, -1))  # group, batch, *positions, channel
    if patterns[0] is not None:
        x = np.transpose(numbering(eqn.inputs[0].shape), x_spec).reshape(-1)
        # what one position reads is the same for all its output channels
        reads = x[index].reshape(*index.shape[: 2 + n], -1)
        valid = exists.reshape(reads.shape)
        place = np.broadcast_to(numbering(reads.shape[:-1])[..., None], reads.shape)
        summed = select(place[valid], reads[valid], math.prod(reads.shape[:-1]), patterns[0])
        owner = np.empty(out.size, np.int64)
        owner[y.reshape(-1)] = np.repeat(np.arange(math.prod(y.shape[:-1])), per_group)
        joins.append(pick(summed, owner))
    if patterns[1] is not None:
        kernel = eqn.inputs[1].shape
        summed = joined(patterns[1], kernel, [a for a in range(len(kernel)) if a != w_spec[0]])
        channel = np.empty(out.size, np.int64)
        channels = np.arange(g.groups * per_group).reshape(g.groups, *[1] * (1 + n), per_group)
        channel[y.reshape(-1)] = np.broadcast_to(channels, y.shape).reshape(-1)
        joins.append(pick(summed, channel))
    return [union(joins)]


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", "select_and_gather_add")
def _windows(interpreter, eqn, patterns, known):
    """Each output reads a window of the operands."""
    (out,) = eqn.outputs
    places, reads = _window_reads(eqn.params, eqn.inputs[0].shape, out.shape)
    return [union([select(places, reads, out.size, p) for p in patterns if p is not None])]


@rule("select_and_scatter_add")
def _windows_transposed(interpreter, eqn, patterns, known):
    """Each element of the source is added somewhere in its window: the gradient of a pool of maxima."""
    source, operand = eqn.inputs
    if patterns[1] is not None:
        return None
    places, reads = _window_reads(eqn.params, operand.shape, source.shape)
    return [select(reads, places, operand.size, patterns[0])]


def _window_reads(
    params: Mapping[str, Any], shape: Sequence[int], out_shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which window reads which element, as pairs of their numbers."""
    n = len(shape)
    axes = zip(
        shape,
        params["window_dimensions"],
        out_shape,
        params["window_strides"],
        params["padding"],
        params.get("base_dilation", (1,) * n),
        params.get("window_dilation", (1,) * n),
        strict=True,
    )
    index, exists = Geometry(tuple(Axis(*axis) for axis in axes)).patches()
    size = math.prod(out_shape)
    place = np.broadcast_to(np.arange(size)[:, None], (size, index.size // max(size, 1)))
    valid = exists.reshape(place.shape)
    return place[valid], index.reshape(place.shape)[valid]


@rule("psum")
def _psum(interpreter, eqn, patterns, known):
    """A sum over axes that `vmap` gave a name to; over devices, it is dense."""
    axes = eqn.params["axes"]
    if eqn.params["axis_index_groups"] is not None or not all(isinstance(a, int) for a in axes):
        return None
    pairs = zip(eqn.inputs, patterns, strict=True)
    return [None if p is None else joined(p, v.shape, axes) for v, p in pairs]


register([BCOO], pattern=_bcoo_dot_general)
