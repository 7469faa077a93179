"""Pattern rules of element-wise operations and of data movement."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from .._jax import Equation, etp_p, nonlinear_p, split_p, stack_p, tile_p
from .._primitives import FACTS, register
from ._interpreter import Rule, rule
from ._pattern import empty, joined, numbering, pick, union


def _elementwise(interpreter, eqn, patterns, known):
    (out,) = eqn.outputs
    joins = []
    for v, pattern in zip(eqn.inputs, patterns, strict=True):
        if pattern is None:
            continue
        if v.shape == out.shape:
            joins.append(pattern)
        else:  # a scalar, or axes of length one
            joins.append(pick(pattern, np.broadcast_to(numbering(v.shape), out.shape)))
    return [union(joins)]


register([etp_p, *(p for p, record in FACTS.items() if record.element_wise)], pattern=_elementwise)


def _nonlinear(interpreter, eqn, patterns, known):
    interpreter.nonlinear[eqn.source] = None
    places = ([0], [interpreter.seeds - 1])
    mark = sp.csr_array((np.ones(1, bool), places), shape=(1, interpreter.seeds))
    present = [joined(p, (p.shape[0],), (0,)) for p in patterns if p is not None]
    return [pick(union([mark, *present]), np.zeros(v.size, np.int64)) for v in eqn.outputs]


register([nonlinear_p], pattern=_nonlinear)


def _moved(move: Callable[..., np.ndarray]) -> Rule:
    """A rule from what the operation does to an array of element numbers."""

    def rule(interpreter, eqn, patterns, known):
        index = move(numbering(eqn.inputs[0].shape), **eqn.params)
        return [pick(patterns[0], index)]

    return rule


def _broadcast(x, *, shape, broadcast_dimensions, **_):
    dims = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, x.shape, strict=True):
        dims[axis] = size
    return np.broadcast_to(x.reshape(dims), shape)


def _slice(x, *, start_indices, limit_indices, strides, **_):
    strides = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


rule("reshape")(_moved(lambda x, *, new_sizes, **_: x.reshape(new_sizes)))
rule("squeeze")(_moved(lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions))))
rule("transpose")(_moved(lambda x, *, permutation, **_: np.transpose(x, permutation)))
rule("rev")(_moved(lambda x, *, dimensions, **_: np.flip(x, tuple(dimensions))))
rule("broadcast_in_dim")(_moved(_broadcast))
rule("slice")(_moved(_slice))


def _together(join: Callable[[list[np.ndarray], Equation], np.ndarray]) -> Rule:
    """A rule for operations that put several arrays into one."""

    def rule(interpreter, eqn, patterns, known):
        parts, blocks, offset = [], [], 0
        for v, pattern in zip(eqn.inputs, patterns, strict=True):
            parts.append(numbering(v.shape) + offset)
            blocks.append(empty(v.size, interpreter.seeds) if pattern is None else pattern)
            offset += v.size
        stacked = sp.csr_array(sp.vstack(blocks, format="csr"))
        return [pick(stacked, join(parts, eqn))]

    return rule


rule("concatenate")(_together(lambda parts, eqn: np.concatenate(parts, eqn.params["dimension"])))


def _split(interpreter, eqn, patterns, known):
    index = numbering(eqn.inputs[0].shape)
    cuts = np.cumsum(eqn.params["sizes"])[:-1]
    return [pick(patterns[0], part) for part in np.split(index, cuts, eqn.params["axis"])]


_stack = _together(lambda parts, eqn: np.stack(parts, eqn.params["axis"]))
_tile = _moved(lambda x, *, reps, **_: np.tile(x, reps))

for _primitive, _unlisted in ((split_p, _split), (stack_p, _stack), (tile_p, _tile)):
    if _primitive is not None:
        register([_primitive], pattern=_unlisted)


@rule("pad")
def _pad(interpreter, eqn, patterns, known):
    (out,) = eqn.outputs
    operand, _ = eqn.inputs
    index = np.full(out.shape, -1)
    numbers = numbering(operand.shape)
    source, target = [], []
    for size, total, (low, _, inner) in zip(
        operand.shape, out.shape, eqn.params["padding_config"], strict=True
    ):
        places = low + np.arange(size) * (inner + 1)
        inside = (places >= 0) & (places < total)
        source.append(np.flatnonzero(inside))
        target.append(places[inside])
    index[np.ix_(*target)] = numbers[np.ix_(*source)]
    joins = [] if patterns[0] is None else [pick(patterns[0], index)]
    if patterns[1] is not None:
        joins.append(pick(patterns[1], np.where(index.reshape(-1) < 0, 0, -1)))
    return [union(joins)]
