"""Sparsity patterns of a linear program, by abstract interpretation.

The program is the tangent part of a step. Each value that depends on a tangent input is described
by a boolean sparse matrix: which of the seeds (elements of the tangent inputs) each of its elements
can depend on. Element-wise operations join; data movement is run on element numbers; reductions and
contractions join over what they sum; branches are joined and loops run to a fixpoint. What has no
rule is dense, which is a superset of any truth, and is recorded.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from .._errors import MemoryLimitError
from .._jax import (
    Equation,
    Flat,
    Primitive,
    Variable,
    bcoo_dot_general_primitive,
    etp_p,
    flatten,
    nonlinear_p,
    prims,
    scan_counts,
    split_p,
    stack_p,
    tile_p,
    unrolled,
)
from ..ops._convolution import Geometry, geometry
from ._known import Known

UNROLLED = 2048
"""A loop of up to this many operations is followed from iteration to iteration."""

Pattern = Any
"""A boolean `scipy.sparse.csr_array`, elements x seeds."""


MAX_ENTRIES = 100_000_000
"""Patterns of more entries than this are not formed: about half a gigabyte each."""


class TooDense(Exception):
    """A pattern would have more than `MAX_ENTRIES` entries."""

    def __init__(self, entries: int):
        super().__init__(entries)
        self.entries = entries


def afford(entries: int | np.integer) -> None:
    """Raise `TooDense` before a pattern with so many entries is formed."""
    if entries > MAX_ENTRIES:
        raise TooDense(int(entries))


@dataclasses.dataclass(frozen=True)
class Opaque:
    """An operation that has no rule and was taken as dense."""

    primitive: str
    source: str


def empty(rows: int, seeds: int) -> Pattern:
    return sp.csr_array((rows, seeds), dtype=bool)


def union(patterns: Sequence[Pattern]) -> Pattern:
    total = patterns[0]
    for other in patterns[1:]:
        total = total + other
    return total


def pick(pattern: Pattern, index: np.ndarray) -> Pattern:
    """Rows of a pattern by number, flattened; -1 for an empty row."""
    index = np.asarray(index).reshape(-1)
    if index.size == pattern.shape[0] and np.array_equal(index, np.arange(index.size)):
        return pattern
    inside = index >= 0
    if inside.all():
        afford(np.diff(pattern.indptr)[index].sum())
        return pattern[index]
    return _select(np.flatnonzero(inside), index[inside], index.size, pattern)


def _select(rows: np.ndarray, columns: np.ndarray, size: int, pattern: Pattern) -> Pattern:
    """Row `rows[i]` of the result joins row `columns[i]` of `pattern`, for all i."""
    afford(np.diff(pattern.indptr)[columns].sum())
    ones = np.ones(rows.size, bool)
    chosen = sp.csr_array((ones, (rows, columns)), shape=(size, pattern.shape[0]))
    return sp.csr_array(chosen @ pattern)


def numbering(shape: Sequence[int]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype=np.int64).reshape(tuple(shape))


Axes = Sequence[int | np.integer]
"""`vmap` leaves NumPy integers."""


def joined(pattern: Pattern, shape: Sequence[int], axes: Axes) -> Pattern:
    """Join over axes; the result is that of an array without them."""
    if not axes:
        return pattern
    kept = [1 if a in axes else n for a, n in enumerate(shape)]
    target = np.broadcast_to(numbering(kept), tuple(shape)).reshape(-1)
    return _select(target, np.arange(target.size), math.prod(kept), pattern)


def spread(pattern: Pattern, shape: Sequence[int], axes: Axes) -> Pattern:
    """The pattern in which every position along `axes` has the joined dependence of all."""
    kept = [1 if a in axes else n for a, n in enumerate(shape)]
    return pick(joined(pattern, shape, axes), np.broadcast_to(numbering(kept), tuple(shape)))


def too_dense(entries: int, where: str) -> MemoryLimitError:
    return MemoryLimitError(
        f"The influence among hidden states would have {entries:,} entries, from {where}. This "
        "is because every state reaches every other there, and traces that keep it are larger "
        "still. Use D_RTRL or ES_D_RTRL, which cut at each weight; where an operation without a "
        "weight mixes all states, such as a mean over them, carry what it computes as a smaller "
        'state, or let algo="auto" with memory= choose.'
    )


class Interpreter:
    """Runs a canonical linear program on patterns.

    The last seed stands for no element: what depends on it has passed a backward rule that is not
    linear.
    """

    def __init__(self, seeds: int):
        self.seeds = seeds
        self.nonlinear: dict[str, None] = {}
        """Source lines of backward rules that are not linear."""
        self.opaque: dict[Opaque, None] = {}
        self.unbounded: dict[str, None] = {}
        """Source lines of `while` loops that a derivative passes through."""

    def run(
        self, flat: Flat, inputs: Sequence[Pattern | None], known: Known | None = None
    ) -> list[Pattern | None]:
        """Patterns of the outputs from those of the inputs; `None` stands for an empty one."""
        env: dict[Variable, Pattern] = {}
        for v, pattern in zip(flat.inputs, inputs, strict=True):
            if pattern is not None and pattern.nnz:
                env[v] = pattern
        if known is None:
            known = Known(flat.equations, flat.constants)
        for eqn in flat.equations:
            patterns = [env.get(v) for v in eqn.inputs]
            if all(p is None for p in patterns):
                continue
            rule = _RULES.get(eqn.primitive)
            if rule is None and eqn.primitive is bcoo_dot_general_primitive():
                rule = _bcoo_dot_general
            try:
                outs = rule(self, eqn, patterns, known) if rule is not None else None
                if outs is None:
                    outs = self.dense(eqn, patterns)
            except TooDense as error:
                raise too_dense(error.entries, f"{eqn.primitive.name} at {eqn.source}") from None
            for v, out in zip(eqn.outputs, outs, strict=True):
                if out is not None and out.nnz and v.is_float:
                    env[v] = out
        return [env.get(v) for v in flat.outputs]

    def dense(self, eqn: Equation, patterns: Sequence[Pattern | None]) -> list[Pattern]:
        self.opaque[Opaque(eqn.primitive.name, eqn.source)] = None
        present = [p for p in patterns if p is not None]
        everything = union([joined(p, (p.shape[0],), (0,)) for p in present])
        return [pick(everything, np.zeros(v.size, np.int64)) for v in eqn.outputs]


Rule = Callable[
    [Interpreter, Equation, "list[Pattern | None]", Known], "Sequence[Pattern | None] | None"
]
_RULES: dict[Primitive, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for name in names:
            primitive = getattr(prims, name + "_p", None)
            if primitive is None:
                continue
            if primitive in _RULES:
                raise ValueError(f"{name} has a rule already")
            _RULES[primitive] = rule
        return rule

    return register


# --- element-wise -------------------------------------------------------------------------------


@_rule(
    *(
        [
            "add",
            "add_jaxvals",
            "add_any",
            "sub",
            "mul",
            "div",
            "neg",
            "select_n",
            "convert_element_type",
            "reduce_precision",
        ]
    ),
    *(
        [
            "copy",
            "real",
            "imag",
            "conj",
            "complex",
            "integer_pow",
            "pow",
            "square",
            "sqrt",
            "clamp",
            "max",
            "min",
            "rem",
        ]
    ),
)
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


_RULES[etp_p] = _elementwise


def _nonlinear(interpreter, eqn, patterns, known):
    interpreter.nonlinear[eqn.source] = None
    places = ([0], [interpreter.seeds - 1])
    mark = sp.csr_array((np.ones(1, bool), places), shape=(1, interpreter.seeds))
    present = [joined(p, (p.shape[0],), (0,)) for p in patterns if p is not None]
    return [pick(union([mark, *present]), np.zeros(v.size, np.int64)) for v in eqn.outputs]


_RULES[nonlinear_p] = _nonlinear


# --- data movement ------------------------------------------------------------------------------


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


_rule("reshape")(_moved(lambda x, *, new_sizes, **_: x.reshape(new_sizes)))
_rule("squeeze")(_moved(lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions))))
_rule("transpose")(_moved(lambda x, *, permutation, **_: np.transpose(x, permutation)))
_rule("rev")(_moved(lambda x, *, dimensions, **_: np.flip(x, tuple(dimensions))))
_rule("broadcast_in_dim")(_moved(_broadcast))
_rule("slice")(_moved(_slice))


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


_rule("concatenate")(_together(lambda parts, eqn: np.concatenate(parts, eqn.params["dimension"])))


def _split(interpreter, eqn, patterns, known):
    index = numbering(eqn.inputs[0].shape)
    cuts = np.cumsum(eqn.params["sizes"])[:-1]
    return [pick(patterns[0], part) for part in np.split(index, cuts, eqn.params["axis"])]


_stack = _together(lambda parts, eqn: np.stack(parts, eqn.params["axis"]))
_tile = _moved(lambda x, *, reps, **_: np.tile(x, reps))

for _primitive, _unlisted in ((split_p, _split), (stack_p, _stack), (tile_p, _tile)):
    if _primitive is not None and _primitive not in _RULES:
        _RULES[_primitive] = _unlisted


@_rule("pad")
def _pad(interpreter, eqn, patterns, known):
    (out,) = eqn.outputs
    operand, _ = eqn.inputs
    index = np.full(out.shape, -1)
    whole = numbering(operand.shape)
    source, target = [], []
    for size, total, (low, _, inner) in zip(
        operand.shape, out.shape, eqn.params["padding_config"], strict=True
    ):
        places = low + np.arange(size) * (inner + 1)
        inside = (places >= 0) & (places < total)
        source.append(np.flatnonzero(inside))
        target.append(places[inside])
    index[np.ix_(*target)] = whole[np.ix_(*source)]
    joins = [] if patterns[0] is None else [pick(patterns[0], index)]
    if patterns[1] is not None:
        joins.append(pick(patterns[1], np.where(index.reshape(-1) < 0, 0, -1)))
    return [union(joins)]


# --- indexing -----------------------------------------------------------------------------------


def _run_on_numbers(eqn: Equation, operands: Sequence[Any]) -> np.ndarray:
    """The element numbers, from 0, that an indexing operation puts at each place of its output."""
    with jax.ensure_compile_time_eval():
        return np.asarray(np.asarray(eqn.bind(*operands)[0]) - 1)


@_rule("gather")
def _gather(interpreter, eqn, patterns, known):
    operand, indices = eqn.inputs
    if patterns[0] is None:
        return None
    pattern, at = patterns[0], known(indices)
    numbers = jnp.asarray(numbering(operand.shape) + 1, jnp.int32)
    if at is None:
        at = np.zeros(indices.shape, indices.aval.dtype)
        axes = eqn.params["dimension_numbers"].start_index_map
        pattern = spread(pattern, operand.shape, axes)
    filled = {**eqn.params, "fill_value": 0}
    moved = dataclasses.replace(eqn, params=filled)
    return [pick(pattern, _run_on_numbers(moved, [numbers, jnp.asarray(at)]))]


@_rule("dynamic_slice")
def _dynamic_slice(interpreter, eqn, patterns, known):
    operand, *starts = eqn.inputs
    if patterns[0] is None:
        return None
    pattern, sizes = patterns[0], eqn.params["slice_sizes"]
    at = []
    for axis, start in enumerate(starts):
        value = known(start)
        if value is None:
            if sizes[axis] < operand.shape[axis]:
                pattern = spread(pattern, operand.shape, (axis,))
            value = np.zeros((), np.int32)
        at.append(min(max(int(value), 0), operand.shape[axis] - sizes[axis]))
    window = tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))
    return [pick(pattern, numbering(operand.shape)[window])]


@_rule("dynamic_update_slice")
def _dynamic_update_slice(interpreter, eqn, patterns, known):
    operand, update, *starts = eqn.inputs
    (out,) = eqn.outputs
    at, loose = [], []
    for axis, start in enumerate(starts):
        value = known(start)
        if value is None:
            if update.shape[axis] < operand.shape[axis]:
                loose.append(axis)
            value = np.zeros((), np.int32)
        at.append(min(max(int(value), 0), operand.shape[axis] - update.shape[axis]))
    window = tuple(slice(a, a + n) for a, n in zip(at, update.shape, strict=True))
    index = np.full(out.shape, -1)
    index[window] = numbering(update.shape)
    joins = []
    if patterns[0] is not None:
        kept = numbering(out.shape)
        if not loose:
            kept[window] = -1
        joins.append(pick(patterns[0], kept))
    if patterns[1] is not None:
        joins.append(spread(pick(patterns[1], index), out.shape, loose))
    return [union(joins)]


@_rule("scatter", "scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max")
def _scatter(interpreter, eqn, patterns, known):
    indices = eqn.inputs[1]
    (out,) = eqn.outputs
    joins = [] if patterns[0] is None else [patterns[0]]
    if patterns[2] is not None:
        if out.size >= 1 << 24:  # element numbers must be exact in float32
            return None
        at, loose = known(indices), ()
        if at is None:
            at = np.zeros(indices.shape, indices.aval.dtype)
            loose = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
        placed = _landing(eqn, at)
        inside = placed >= 0
        pattern = _select(placed[inside], np.flatnonzero(inside), out.size, patterns[2])
        joins.append(spread(pattern, out.shape, loose))
    return [union(joins)] if joins else None


def _landing(eqn: Equation, at: np.ndarray) -> np.ndarray:
    """Where each update of a scatter lands: the transpose of the scatter, on element numbers."""
    operand, _, updates = eqn.inputs
    adder = dataclasses.replace(
        eqn,
        primitive=prims.scatter_add_p,
        params={**eqn.params, "update_jaxpr": None, "update_consts": ()},
    )
    with jax.ensure_compile_time_eval():
        zeros = jnp.zeros(operand.shape, jnp.float32)
        where = jnp.asarray(at)
        like = jax.ShapeDtypeStruct(updates.shape, jnp.float32)
        back = jax.linear_transpose(lambda u: adder.bind(zeros, where, u)[0], like)
        numbers = jnp.asarray(numbering(operand.shape) + 1, jnp.float32)
        (landed,) = back(numbers)
    return np.asarray(landed).astype(np.int64).reshape(-1) - 1


# --- reductions and contractions ----------------------------------------------------------------


@_rule("reduce_sum", "reduce_max", "reduce_min")
def _reduce(interpreter, eqn, patterns, known):
    return [joined(patterns[0], eqn.inputs[0].shape, eqn.params["axes"])]


@_rule("cumsum", "cumlogsumexp", "cummax", "cummin", "cumprod")
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


@_rule("dot_general")
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
    shape = eqn.params["lhs_spinfo"].shape
    inside = (at >= 0).all(1) & (at < np.asarray(shape)).all(1)
    stored = np.flatnonzero(inside)
    row, column = at[inside, 1 - contract[0]], at[inside, contract[0]]
    others = np.moveaxis(numbering(rhs.shape), contract_rhs[0], 0).reshape(shape[contract[0]], -1)
    free = others.shape[1]
    target = (row[:, None] * free + np.arange(free)).reshape(-1)
    joins = []
    if patterns[0] is not None:
        joins.append(_select(target, np.repeat(stored, free), out.size, patterns[0]))
    if patterns[2] is not None:
        joins.append(_select(target, others[column].reshape(-1), out.size, patterns[2]))
    return [union(joins)]


@_rule("conv_general_dilated")
def _convolution(interpreter, eqn, patterns, known):
    if eqn.params["batch_group_count"] != 1:
        return None
    (out,) = eqn.outputs
    x_spec, w_spec, y_spec = eqn.params["dimension_numbers"]
    g = geometry(eqn)
    n = len(g.shape)
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
        small = _select(place[real], read[real], math.prod(read.shape[:-1]), patterns[0])
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


@_rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", "select_and_gather_add")
def _windows(interpreter, eqn, patterns, known):
    """Each output reads a window of the operands."""
    params = eqn.params
    shape = eqn.inputs[0].shape
    n = len(shape)
    index, exists = Geometry(
        batch=1,
        channels=1,
        groups=1,
        shape=shape,
        kernel=tuple(params["window_dimensions"]),
        positions=eqn.outputs[0].shape,
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(p) for p in params["padding"]),
        lhs_dilation=tuple(params.get("base_dilation", (1,) * n)),
        rhs_dilation=tuple(params.get("window_dilation", (1,) * n)),
    ).patches()
    size = eqn.outputs[0].size
    place = np.broadcast_to(np.arange(size)[:, None], (size, index.size // max(size, 1)))
    real = exists.reshape(place.shape)
    read = index.reshape(place.shape)[real]
    joins = [_select(place[real], read, size, p) for p in patterns if p is not None]
    return [union(joins)]


# --- control flow -------------------------------------------------------------------------------


def _inside(flat: Flat, operands: Sequence[Variable], known: Known) -> Known:
    """What is known inside a program whose arguments are these operands."""
    given = zip(flat.inputs, operands, strict=False)
    values = {inner: known(outer) for inner, outer in given if not outer.is_float}
    values = {v: value for v, value in values.items() if value is not None}
    return Known(flat.equations, {**flat.constants, **values})


@_rule("cond")
def _cond(interpreter, eqn, patterns, known):
    results = []
    for branch in eqn.params["branches"]:
        flat = flatten(branch)
        results.append(interpreter.run(flat, patterns[1:], _inside(flat, eqn.inputs[1:], known)))
    outs: list[Pattern | None] = []
    for several in zip(*results, strict=True):
        present = [p for p in several if p is not None]
        outs.append(union(present) if present else None)
    return outs


def _fixpoint(
    interpreter: Interpreter, body: Callable, carry: list[Pattern | None]
) -> list[Pattern | None]:
    """The least patterns of a loop's carry that its body does not enlarge."""
    bound = sum(p.shape[0] for p in carry if p is not None) + len(carry)
    bound = (bound + 2) * (interpreter.seeds + 1)
    for _ in range(bound):
        after = body(carry)
        grown, changed = [], False
        for before, new in zip(carry, after, strict=True):
            if new is None or before is None:
                grown.append(before if new is None else new)
                changed |= new is not None
                continue
            both = before + new
            changed |= both.nnz > before.nnz
            grown.append(both)
        carry = grown
        if not changed:
            return carry
    raise AssertionError("a fixpoint over finite patterns did not end; this is a bug in etpc")


@_rule("scan")
def _scan(interpreter, eqn, patterns, known):
    n_consts, n_carry = scan_counts(eqn)
    flat = flatten(eqn.params["jaxpr"])
    consts, carry = patterns[:n_consts], patterns[n_consts : n_consts + n_carry]
    length = eqn.params["length"]
    if 0 < length * len(flat.equations) <= UNROLLED:
        flat = unrolled(eqn)
        return interpreter.run(flat, patterns, _inside(flat, eqn.inputs, known))
    inside = _inside(flat, eqn.inputs[:n_consts], known)
    if length == 0:
        return [*carry, *([None] * (len(eqn.outputs) - n_carry))]
    slices = []
    for v, pattern in zip(
        eqn.inputs[n_consts + n_carry :], patterns[n_consts + n_carry :], strict=True
    ):
        slices.append(None if pattern is None else joined(pattern, v.shape, (0,)))

    def body(current):
        return interpreter.run(flat, [*consts, *current, *slices], inside)

    carry = _fixpoint(interpreter, lambda c: body(c)[:n_carry], list(carry))
    outs: list[Pattern | None] = list(carry)
    for v, pattern in zip(eqn.outputs[n_carry:], body(carry)[n_carry:], strict=True):
        index = np.broadcast_to(numbering(v.shape[1:]), v.shape)
        outs.append(None if pattern is None else pick(pattern, index))
    return outs


@_rule("while")
def _while(interpreter, eqn, patterns, known):
    interpreter.unbounded[eqn.source] = None
    skip, n_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = patterns[skip : skip + n_consts], patterns[skip + n_consts :]
    flat = flatten(eqn.params["body_jaxpr"])
    return _fixpoint(interpreter, lambda c: interpreter.run(flat, [*consts, *c]), list(carry))


__all__ = [
    "Interpreter",
    "Opaque",
    "Pattern",
    "TooDense",
    "afford",
    "empty",
    "numbering",
    "pick",
    "too_dense",
    "union",
]
