"""Pattern rules of reductions, contractions and convolutions: they join over what they sum."""

import math

import numpy as np
import scipy.sparse as sp

from .._primitives import BCOO, register
from ..ops._convolution import Axis, Geometry, geometry
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
        small = joined(pattern, shape, contract[n])
        kept = [1 if a in contract[n] else size for a, size in enumerate(shape)]
        index = numbering(kept).transpose(*batch[n], *free[n], *contract[n])
        index = index.reshape([shape[a] for a in (*batch[n], *free[n])])
        other = [1] * len(free[1 - n])
        dims = [shape[a] for a in batch[n]]
        own = [shape[a] for a in free[n]]
        index = index.reshape([*dims, *own, *other] if n == 0 else [*dims, *other, *own])
        joins.append(pick(small, np.broadcast_to(index, out.shape)))
    return [union(joins)]


def _bcoo_dot_general(interpreter, eqn, patterns, known):
    """A sparse matrix and a dense array, one dimension of each summed."""
    values, indices, rhs = eqn.inputs
    (out,) = eqn.outputs
    (contract, contract_rhs), batch = eqn.params["dimension_numbers"]
    at = known(indices)
    if at is None or values.shape != at.shape[:1] or len(contract) != 1 or any(map(len, batch)):
        return None
    if (at < 0).any():  # which JAX counts from the end, or not, as the platform has it
        return None
    shape = eqn.params["lhs_spinfo"].shape
    inside = (at < np.asarray(shape)).all(1)
    stored = np.flatnonzero(inside)
    at = at[inside].astype(np.int64)  # its own type may be too narrow for element numbers
    row, column = at[:, 1 - contract[0]], at[:, contract[0]]
    others = np.moveaxis(numbering(rhs.shape), contract_rhs[0], 0).reshape(shape[contract[0]], -1)
    free = others.shape[1]
    target = (row[:, None] * free + np.arange(free)).reshape(-1)
    joins = []
    if patterns[0] is not None:
        joins.append(select(target, np.repeat(stored, free), out.size, patterns[0]))
    if patterns[2] is not None:
        joins.append(select(target, others[column].reshape(-1), out.size, patterns[2]))
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
    own = out.shape[y_spec[1]] // g.groups
    joins = []
    y = np.transpose(numbering(out.shape), y_spec)  # batch, channel, *positions
    y = y.reshape(g.batch, g.groups, own, *g.positions)
    y = np.moveaxis(y, (1, 2), (0, -1))  # group, batch, *positions, channel
    if patterns[0] is not None:
        x = np.transpose(numbering(eqn.inputs[0].shape), x_spec).reshape(-1)
        # what one position reads is the same for all its output channels
        read = x[index].reshape(*index.shape[: 2 + n], -1)
        real = exists.reshape(read.shape)
        place = np.broadcast_to(numbering(read.shape[:-1])[..., None], read.shape)
        small = select(place[real], read[real], math.prod(read.shape[:-1]), patterns[0])
        owner = np.empty(out.size, np.int64)
        owner[y.reshape(-1)] = np.repeat(np.arange(math.prod(y.shape[:-1])), own)
        joins.append(pick(small, owner))
    if patterns[1] is not None:
        kernel = eqn.inputs[1].shape
        small = joined(patterns[1], kernel, [a for a in range(len(kernel)) if a != w_spec[0]])
        channel = np.empty(out.size, np.int64)
        channels = np.arange(g.groups * own).reshape(g.groups, *[1] * (1 + n), own)
        channel[y.reshape(-1)] = np.broadcast_to(channels, y.shape).reshape(-1)
        joins.append(pick(small, channel))
    return [union(joins)]


@rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", "select_and_gather_add")
def _windows(interpreter, eqn, patterns, known):
    """Each output reads a window of the operands."""
    params = eqn.params
    shape = eqn.inputs[0].shape
    n = len(shape)
    axes = zip(
        shape,
        params["window_dimensions"],
        eqn.outputs[0].shape,
        params["window_strides"],
        params["padding"],
        params.get("base_dilation", (1,) * n),
        params.get("window_dilation", (1,) * n),
        strict=True,
    )
    index, exists = Geometry(tuple(Axis(*axis) for axis in axes)).patches()
    size = eqn.outputs[0].size
    place = np.broadcast_to(np.arange(size)[:, None], (size, index.size // max(size, 1)))
    real = exists.reshape(place.shape)
    read = index.reshape(place.shape)[real]
    joins = [select(place[real], read, size, p) for p in patterns if p is not None]
    return [union(joins)]


register([BCOO], pattern=_bcoo_dot_general)
