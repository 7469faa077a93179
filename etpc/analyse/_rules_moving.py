"""Pattern rules of element-wise operations and of data movement."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from .._jax import Equation, Primitive, nonlinear_p, prims, split_p, stack_p, tile_p
from .._jax.primitives import FACTS, IDENTITIES, register
from ..trace import Known
from ._interpreter import Interpreter, Patterns, Results
from ._pattern import everything, numbering, pick, stacked, union

Ints = Sequence[Any]
"""Axes and sizes. `vmap` leaves NumPy integers among them."""
Numbers = Any
"""A NumPy array of element numbers, or a NumPy scalar, which NumPy makes of arrays without axes."""


def _elementwise(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    (out,) = eqn.outputs
    pairs = zip(eqn.inputs, patterns, strict=True)
    # what is repeated: a scalar, or axes of length one
    at = lambda v: np.broadcast_to(numbering(v.shape), out.shape)
    return [union([p if v.shape == out.shape else pick(p, at(v)) for v, p in pairs])]


def _select(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    """Each element of one case alone, where constants say which."""
    (out,), which = eqn.outputs, known.constant(eqn.inputs[0])
    if which is None:
        return _elementwise(interpreter, eqn, patterns, known)
    cases, places = np.broadcast_to(which, out.shape), numbering(out.shape)
    chosen = [np.where(cases == n, places, -1) for n in range(len(patterns) - 1)]
    pairs = zip(patterns[1:], chosen, strict=True)
    return [union([pick(p, at) for p, at in pairs])]


_SELECT = prims.select_n_p
_joining = [p for p, record in FACTS.items() if record.element_wise and p is not _SELECT]
register(_joining, pattern=_elementwise)
register([_SELECT], pattern=_select)


def _nonlinear(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    interpreter.nonlinear[eqn.source] = None
    places = ([0], [interpreter.seeds - 1])
    mark = sp.csr_array((np.ones(1, bool), places), shape=(1, interpreter.seeds))
    row = union([mark, everything(patterns)])
    return [pick(row, np.zeros(v.size, np.int64)) for v in eqn.outputs]


register([nonlinear_p], pattern=_nonlinear)


def _rearranging(primitive: Primitive | None, move: Callable[..., list[Numbers]]) -> None:
    """Register an operation that moves data, by what it does to NumPy arrays: patterns are moved as arrays of
    element numbers are."""

    def rule(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
        sizes = [v.size for v in eqn.inputs]
        starts = np.cumsum([0, *sizes[:-1]])
        pairs = zip(eqn.inputs, starts, strict=True)
        parts = [np.asarray(numbering(v.shape) + start) for v, start in pairs]  # not numbers
        whole = stacked(patterns, sizes, interpreter.seeds)
        return [pick(whole, np.asarray(moved)) for moved in move(*parts, **eqn.params)]

    if primitive is not None:
        register([primitive], rearranges=move, pattern=rule)


def _broadcast(x: Numbers, *, shape: Ints, broadcast_dimensions: Ints, **_: Any) -> list[Numbers]:
    dims = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        dims[axis] = size
    return [np.broadcast_to(x.reshape(dims), shape)]


def _slice(
    x: Numbers,
    *,
    start_indices: Ints,
    limit_indices: Ints,
    strides: Ints | None,
    **_: Any,
) -> list[Numbers]:
    steps: Ints = [1] * x.ndim if strides is None else strides
    return [x[tuple(map(slice, start_indices, limit_indices, steps))]]


def _reshape(x: Numbers, *, new_sizes: Ints, dimensions: Ints | None, **_: Any) -> list[Numbers]:
    return [(x if dimensions is None else np.transpose(x, dimensions)).reshape(new_sizes)]


def _pad(x: Numbers, value: Numbers, *, padding_config: Sequence[Ints], **_: Any) -> list[Numbers]:
    places = [
        low + np.arange(n) * (inner + 1)
        for n, (low, _, inner) in zip(x.shape, padding_config, strict=True)
    ]
    sizes = [
        low + high + n + max(n - 1, 0) * inner
        for n, (low, high, inner) in zip(x.shape, padding_config, strict=True)
    ]
    inside = [(at >= 0) & (at < size) for at, size in zip(places, sizes, strict=True)]
    out = np.full(sizes, value)
    target = [at[i] for at, i in zip(places, inside, strict=True)]
    out[np.ix_(*target)] = x[np.ix_(*map(np.flatnonzero, inside))]
    return [out]


for _primitive in IDENTITIES:
    _rearranging(_primitive, lambda *values, **_: list(values))
_rearranging(prims.reshape_p, _reshape)
_rearranging(prims.squeeze_p, lambda x, *, dimensions, **_: [np.squeeze(x, tuple(dimensions))])
_rearranging(prims.transpose_p, lambda x, *, permutation, **_: [np.transpose(x, permutation)])
_rearranging(prims.rev_p, lambda x, *, dimensions, **_: [np.flip(x, tuple(dimensions))])
_rearranging(prims.broadcast_in_dim_p, _broadcast)
_rearranging(prims.slice_p, _slice)
_rearranging(prims.pad_p, _pad)
_rearranging(prims.concatenate_p, lambda *parts, dimension, **_: [np.concatenate(parts, dimension)])
_rearranging(stack_p, lambda *parts, axis, **_: [np.stack(parts, axis)])
_rearranging(tile_p, lambda x, *, reps, **_: [np.tile(x, reps)])
_rearranging(split_p, lambda x, *, sizes, axis, **_: np.split(x, np.cumsum(sizes)[:-1], axis))
