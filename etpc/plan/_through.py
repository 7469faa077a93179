"""Transitions inside blocks where nothing is cut, from the Jacobians of the cut step.

For states that are entered by no operation whose data depends on another operation of the same step, the
Jacobian of the uncut step is

    D + sum over operations F W X

with D and F of the cut step, and X the derivative of an operation's data by the old states. All three are
sparse where the sum is dense, and a trace that holds few states reads few entries of it. The rows of
other states are read of the uncut step itself.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from .._jax import Variable
from ..analyse import Analysis, WeightOp, analyse
from ..analyse._hidden import is_complex
from ..analyse._pattern import Pattern, pick
from ..ops import Kind, Sparse
from ..ops._kind import Factored
from ._blocks import Colouring, Index, colours_of
from ._pairs import MAX_TABLE


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """The products `F W X` of one operation, each for one entry of D.

    Of n entries that have some, the operation has at most r; [r, n] each.
    """

    op: WeightOp
    immediate: Index
    """Where F lies in the compressed one of the operation."""
    weight: Index
    """Where W lies in the flat weight."""
    data: Index
    """Where X lies in the compressed one."""
    entries: Index
    """Which of the n entries each of the compressed D is; [C, S]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Through:
    """What passes through the data of operations from one state of a block to another."""

    cut: Analysis
    """Of the step whose D and F are read."""
    apart: np.ndarray
    """Boolean over the S states: those whose rows are read of the uncut step."""
    inside: Pattern
    """New x old states: of the others, the transitions among the states of any one block."""
    transition: Pattern
    """Those, all of the cut step, and whole rows of what is read of the uncut one."""
    variables: tuple[Variable, ...]
    """What the operations read, one after the other."""
    colour: np.ndarray
    """The colour of each of their elements: those of one colour depend on no state in common."""
    terms: tuple[Terms, ...] = ()

    def of_cut(self, colours: Colouring) -> int:
        """How many colours are read of the cut step; the first ones."""
        return int(colours.colour[~self.apart].max(initial=-1)) + 1

    @property
    def count(self) -> int:
        """How many vector-Jacobian products read X."""
        return int(self.colour.max(initial=-1)) + 1


def through(analysis: Analysis, blocks: Sequence[Pattern]) -> Through | None:
    """What an uncut step passes on inside blocks; `None` where it is not such a sum."""
    inside = _inside(analysis.transition, blocks)
    if inside is None:
        return None
    cut = analyse(analysis.step)
    if [reach.role for reach in cut.reach] != [reach.role for reach in analysis.reach]:
        return None
    apart = _apart(cut)
    inside = _rows(inside, ~apart)
    reading = _reading(cut, apart)
    if not all(map(_is_plain, reading)):
        return None
    data = {_read_by(op): cut.reach[op.number].data for op in reading}
    colour = np.zeros(0, np.int64)
    if data:
        owner = np.repeat(np.arange(len(data)), [v.size for v in data])
        colour = colours_of(sp.csr_array(sp.vstack(list(data.values()), format="csr")), owner)
    combined: Pattern = sp.csr_array(cut.transition + inside + _rows(analysis.transition, apart))
    combined.sort_indices()
    return Through(cut, apart, inside, combined, tuple(data), colour)


def with_terms(passed: Through, colours: Colouring) -> Through | None:
    """With the terms of the sum, once the rows of D have colours; `None` where they are too many."""
    bounds = np.cumsum([0, *(v.size for v in passed.variables)])
    terms = []
    for op in _reading(passed.cut, passed.apart):
        paths = _paths(op, passed)
        if paths is None:
            return None
        begin = int(bounds[passed.variables.index(_read_by(op))])
        terms.append(_terms(op, paths, begin, passed, colours))
    return dataclasses.replace(passed, terms=tuple(terms))


def _inside(transition: Pattern, blocks: Sequence[Pattern]) -> Pattern | None:
    """The transitions among the states of any one block; `None` where blocks are large."""
    stacked: Pattern = sp.csr_array(sp.vstack(blocks, format="csr"))
    if (np.diff(stacked.indptr).astype(np.int64) ** 2).sum() > MAX_TABLE:
        return None
    inside: Pattern = sp.csr_array(transition.multiply(sp.csr_array(stacked.T @ stacked)))
    inside.eliminate_zeros()
    inside.sort_indices()
    return inside


def _rows(pattern: Pattern, selected: np.ndarray) -> Pattern:
    """A pattern with some of its rows, and the others empty."""
    masked: Pattern = sp.csr_array(pattern.multiply(selected[:, None]))
    masked.eliminate_zeros()
    masked.sort_indices()
    return masked


def _apart(cut: Analysis) -> np.ndarray:
    """The states entered by an operation whose data depends on another operation of the same step."""
    apart = np.zeros(cut.hidden.size, bool)
    for k in cut.cut:
        if cut.reach[k].reads_ops.any():
            apart |= np.diff(cut.immediate[k].indptr) > 0
    return apart


def _reading(cut: Analysis, apart: np.ndarray) -> list[WeightOp]:
    """The operations that enter other states, and have data that depends on old ones."""
    enter = [k for k in sorted(cut.cut) if np.diff(cut.immediate[k].indptr)[~apart].any()]
    return [cut.ops[k] for k in enter if cut.reach[k].data.nnz]


def _read_by(op: WeightOp) -> Variable:
    return op.equation.inputs[op.kind.data]


def _is_plain(op: WeightOp) -> bool:
    """Whether the weights of an operation are real numbers, and lie where its kind says."""
    if any(is_complex(a) for a in (op.delta, op.weight.aval, _read_by(op).aval)):
        return False
    if isinstance(op.kind, Sparse):
        stored = _stored(op.kind)
        return np.unique(stored).size == stored.size
    return isinstance(op.kind, Factored)


def _stored(kind: Sparse) -> np.ndarray:
    """The number of the pair (input, output) of each stored weight."""
    return kind.links.inputs.astype(np.int64) * kind.outputs + kind.links.outputs


def _weight_at(kind: Kind, group: np.ndarray, i: np.ndarray, o: np.ndarray) -> np.ndarray:
    """Where the weights of some (group, input, output) lie in the flat weight; -1 where there is none."""
    if isinstance(kind, Sparse):
        at = np.full(kind.inputs * kind.outputs, -1, np.int64)
        at[_stored(kind)] = np.arange(kind.links.inputs.size)
        return at[i * kind.outputs + o]
    assert isinstance(kind, Factored)
    with jax.ensure_compile_time_eval():
        numbers = jnp.arange(kind.h * kind.i * kind.o, dtype=jnp.int32)
        at = np.argsort(np.asarray(kind.to_weight(numbers)).reshape(-1))
    return at[(group // kind.f * kind.i + i) * kind.o + o]


def _elements(op: WeightOp) -> np.ndarray:
    """The element of the data that each `x` [G, I] is, or -1; flat."""
    v = _read_by(op)
    with jax.ensure_compile_time_eval():
        numbers = jnp.arange(1, v.size + 1, dtype=jnp.int32).reshape(v.shape)
        operands = [numbers if n == op.kind.data else None for n in range(len(op.equation.inputs))]
        return np.asarray(op.kind.factor(operands)).reshape(-1).astype(np.int64) - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Paths:
    """Paths from an old state by data and an output to a new one, in the order of the entries of D."""

    entry: np.ndarray
    """Which transition inside blocks."""
    output: np.ndarray
    element: np.ndarray
    """Of the data."""
    weight: np.ndarray


def _paths(op: WeightOp, passed: Through) -> Paths | None:
    """The paths through an operation inside blocks; `None` where they are too many to list."""
    kind, inside = op.kind, passed.inside
    elements = _elements(op)
    immediate = passed.cut.immediate[op.number]
    data = sp.csc_array(pick(passed.cut.reach[op.number].data, elements))
    immediate.sort_indices()
    data.sort_indices()
    new = np.repeat(np.arange(inside.shape[0]), np.diff(inside.indptr))
    outputs, inputs = np.diff(immediate.indptr)[new], np.diff(data.indptr)[inside.indices]
    counts = outputs.astype(np.int64) * inputs
    if counts.sum() > MAX_TABLE:
        return None
    entry = np.repeat(np.arange(counts.size), counts)
    number = np.arange(entry.size) - np.repeat(np.cumsum(counts) - counts, counts)
    later, earlier = np.divmod(number, inputs[entry])
    output = immediate.indices[immediate.indptr[new[entry]] + later].astype(np.int64)
    data_entry = data.indices[data.indptr[inside.indices[entry]] + earlier].astype(np.int64)
    group = data_entry // kind.inputs
    same_group = group == output // kind.outputs
    entry, output, data_entry, group = (a[same_group] for a in (entry, output, data_entry, group))
    weight = _weight_at(kind, group, data_entry % kind.inputs, output % kind.outputs)
    exists = weight >= 0
    return Paths(*(a[exists] for a in (entry, output, elements[data_entry], weight)))


def _terms(op: WeightOp, paths: Paths, begin: int, passed: Through, colours: Colouring) -> Terms:
    """The tables of some paths; the data of the operation begins at a place among that of all."""
    inside, size = passed.inside, passed.inside.shape[0]
    new = np.repeat(np.arange(size), np.diff(inside.indptr))[paths.entry]
    old = inside.indices[paths.entry].astype(np.int64)
    by_columns = colours.columns.get(op.number)
    if by_columns is None:
        immediate = colours.colour[new] * op.size + paths.output
    else:
        immediate = by_columns.colour[paths.output] * size + new
    data = passed.colour[begin + paths.element] * size + old
    entries, column, counts = np.unique(paths.entry, return_inverse=True, return_counts=True)
    row = np.arange(column.size) - np.repeat(np.cumsum(counts) - counts, counts)

    def table(values: np.ndarray) -> Index:
        at = np.zeros((int(counts.max(initial=0)), entries.size), np.int64)
        present = np.zeros(at.shape, bool)
        at[row, column], present[row, column] = values, True
        return Index.of(at, present)

    entry_at = np.full((colours.count, size), -1, np.int64)
    first = np.cumsum(counts) - counts
    entry_at[colours.colour[new[first]], old[first]] = np.arange(entries.size)
    index = Index.of(np.maximum(entry_at, 0), entry_at >= 0)
    return Terms(op, table(immediate), table(paths.weight), table(data), index)


__all__ = ["Terms", "Through", "through", "with_terms"]
