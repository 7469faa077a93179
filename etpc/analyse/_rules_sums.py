"""Pattern rules of reductions, contractions and convolutions: they join over what they sum."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from .._jax import Equation, params
from .._jax.primitives import BCOO, register
from ..ops import Axis, Geometry, geometry
from ..trace import Known
from ._interpreter import Interpreter, Patterns, Results, rule
from ._pattern import afford, joined, numbering, pick, select, union


@rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    return [joined(patterns[0], eqn.inputs[0].shape, params.reduced_axes(eqn))]


@rule("cumsum", "cumlogsumexp", "cummax", "cummin", "cumprod")
def _cumulate(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    shape, (axis, reverse) = eqn.inputs[0].shape, params.cumulative(eqn)
    size = shape[axis]
    afford(math.prod(shape) * size)
    steps = np.tril(np.ones((size, size), bool))
    if reverse:
        steps = steps.T
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    eye = sp.eye_array
    mixing = sp.kron(sp.kron(eye(outer, dtype=bool), steps), eye(inner, dtype=bool), format="csr")
    return [sp.csr_array(sp.csr_array(mixing).astype(bool) @ patterns[0])]


@rule("dot_general")
def _dot_general(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    (out,) = eqn.outputs
    contract, batch = params.product(eqn)
    shapes = [v.shape for v in eqn.inputs]
    free = [
        [a for a in range(len(shapes[n])) if a not in contract[n] and a not in batch[n]]
        for n in (0, 1)
    ]
    joins = []
    for n, pattern in enumerate(patterns):
        shape, ones = shapes[n], [1] * len(free[1 - n])
        summed = joined(pattern, shape, contract[n])
        reduced = [1 if a in contract[n] else size for a, size in enumerate(shape)]
        index = numbering(reduced).transpose(*batch[n], *free[n], *contract[n])
        lead, own = ([shape[a] for a in axes[n]] for axes in (batch, free))
        index = index.reshape([*lead, *own, *ones] if n == 0 else [*lead, *ones, *own])
        joins.append(pick(summed, np.broadcast_to(index, out.shape)))
    return [union(joins)]


def _bcoo_dot_general(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    """A sparse matrix and a dense array, one dimension of each summed."""
    values, indices, rhs = eqn.inputs
    (out,) = eqn.outputs
    (contract, contract_rhs), batch = params.product(eqn)
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
    shape = params.sparse_shape(eqn)
    inside = (coords < np.asarray(shape)).all(1)
    stored = np.flatnonzero(inside)
    coords = coords[inside].astype(np.int64)  # its own type may be too narrow for element numbers
    row, column = coords[:, 1 - contract[0]], coords[:, contract[0]]
    rhs_rows = np.moveaxis(numbering(rhs.shape), contract_rhs[0], 0).reshape(shape[contract[0]], -1)
    free = rhs_rows.shape[1]
    target = (row[:, None] * free + np.arange(free)).reshape(-1)
    of_values = select(target, np.repeat(stored, free), out.size, patterns[0])
    of_data = select(target, rhs_rows[column].reshape(-1), out.size, patterns[2])
    return [union([of_values, of_data])]


@rule("conv_general_dilated")
def _convolution(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    x_spec, w_spec, y_spec, *_, batch_groups = params.convolution(eqn)
    if batch_groups != 1:
        return None
    (out,) = eqn.outputs
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
def _windows(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    """Each output reads a window of the operands."""
    (out,) = eqn.outputs
    places, reads = _window_places(eqn, eqn.inputs[0].shape, out.shape)
    return [union([select(places, reads, out.size, p) for p in patterns])]


@rule("select_and_scatter_add")
def _windows_transposed(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    """Each element of the source is added somewhere in its window: the gradient of a pool of maxima."""
    source, operand = eqn.inputs
    if patterns[1] is not None:
        return None
    places, reads = _window_places(eqn, operand.shape, source.shape)
    return [select(reads, places, operand.size, patterns[0])]


def _window_places(
    eqn: Equation, shape: Sequence[int], out_shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a window and an element that it reads, by number: all windows, and all elements."""
    sizes = zip(shape, params.window_sizes(eqn), out_shape, params.windows(eqn), strict=True)
    axes = tuple(Axis(n, kernel, positions, *window) for n, kernel, positions, window in sizes)
    index, exists = Geometry(axes).patches()
    size = math.prod(out_shape)
    place = np.broadcast_to(np.arange(size)[:, None], (size, index.size // max(size, 1)))
    valid = exists.reshape(place.shape)
    return place[valid], index.reshape(place.shape)[valid]


@rule("psum")
def _psum(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    """A sum over axes that `vmap` gave a name to. A sum over devices is dense."""
    axes = params.summed_axes(eqn)
    if axes is None:
        return None
    pairs = zip(eqn.inputs, patterns, strict=True)
    return [joined(p, v.shape, axes) for v, p in pairs]


register([BCOO], pattern=_bcoo_dot_general)
