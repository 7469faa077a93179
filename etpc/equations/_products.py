"""Products of weights and data, entry by entry."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..analyse import WeightOp
from ..errors import UnsupportedError
from ..trace import Equation
from ._nodes import Array, Ids, Nodes, Sums


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The uses of the elements of a weight, in the order and the shape of the weight where each has one use."""

    rows: np.ndarray
    """The place in the output of each use."""
    cols: np.ndarray
    """The place in the data."""
    weights: np.ndarray
    """The element of the weight."""
    inputs: np.ndarray
    """The input, counted over all groups."""
    outputs: np.ndarray
    """The output, counted over all groups."""
    number: np.ndarray
    """The place of each use among all."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def taken(self, take: Any) -> "Grid":
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return Grid(*map(take, fields))

    def of_outputs(self, outputs: np.ndarray) -> "Grid":
        """The uses by some outputs, in rows and columns where these are whole."""
        is_in = np.isin(self.outputs, outputs)
        for axis in range(2 if len(self.shape) == 2 else 0):
            lines = is_in.any(1 - axis)
            if (np.expand_dims(lines, 1 - axis) == is_in).all():
                return self.taken(functools.partial(np.compress, lines, axis=axis))
        return self.taken(lambda a: a[is_in])

    @classmethod
    def elements(cls, size: int) -> "Grid":
        """That of an operation without data: each element by itself."""
        return cls(*(np.arange(size) for _ in dataclasses.fields(cls)))

    @classmethod
    def of(cls, op: WeightOp, shape: tuple[int, ...], place: np.ndarray) -> "Grid":
        """The uses of a weight; `place` is that of each of its elements in an array of this shape.

        **Raises** `UnsupportedError` where the operation is no sum of products of its weight and its data.
        """
        kind, eqn = op.kind, op.equation
        g, i, o, links = kind.groups, kind.inputs, kind.outputs, kind.links
        assert kind.data is not None
        data = eqn.inputs[kind.data]
        entries = (g, i, o) if links is None else (g, links.outputs.size)
        _, pull = jax.vjp(kind.gather, jnp.zeros(entries))
        weights = _integers(pull(1.0 + jnp.arange(op.weight.size).reshape(op.weight.shape))[0])
        group, *rest = (a.reshape(-1) for a in np.indices(entries))
        x, y = rest if links is None else (links.inputs[rest[0]], links.outputs[rest[0]])
        numbers = 1.0 + jnp.arange(g * o).reshape(g, o)
        (at,) = kind.shift_outputs([jnp.zeros(eqn.outputs[0].shape)], numbers)
        cols = group * i + x
        if data.is_float:
            count = 1.0 + jnp.arange(data.size).reshape(data.shape)
            given = [count if n == kind.data else None for n in range(len(eqn.inputs))]
            cols = _integers(kind.factor(given))[cols]
        outputs = group * o + y
        rows = np.argsort(_integers(at))[outputs]
        every = cls(rows, cols, weights, group * i + x, outputs, np.arange(rows.size))
        used = (cols >= 0) & (weights >= 0)  # there is no datum in what is padded
        every = every.taken(lambda a: a[used])
        order = np.argsort(place[every.weights], kind="stable")
        grid = dataclasses.replace(every, weights=place[every.weights]).taken(lambda a: a[order])
        if data.is_float and not _is_product(op, kind.data, every):
            raise UnsupportedError(
                f"{op} is not a sum of products of its weight and its data, so no equation is known for it."
            )
        grid = dataclasses.replace(grid, number=np.arange(grid.rows.size))
        whole = len(shape) == 2 and np.array_equal(grid.weights, np.arange(np.prod(shape)))
        return grid.taken(lambda a: a.reshape(shape)) if whole else grid


class Times(NamedTuple):
    """A weight times its data, or times one."""

    part: int
    """The part of the output that it is added to."""
    sign: int
    weight: Array
    data: Array | None = None
    at: np.ndarray = np.zeros(0, int)
    """The place of each column of the data."""


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """What a weight operation gives: for each real part of the output, a sum of products."""

    op: WeightOp
    output: Sequence[Array]
    """Of an operation without data, the weight as it uses it."""
    terms: Sequence[Times]
    grid: Grid
    held: bool = False
    """Whether the rule holds the data constant."""

    @property
    def data(self) -> list[Array]:
        """The arrays of the data."""
        return [*dict.fromkeys(t.data for t in self.terms if t.data is not None)]


def sums_of(
    eqn: Equation, operands: Sequence[Sequence[Ids]], part: int, nodes: Nodes, cut: bool
) -> tuple[Sums, ...]:
    """What a part of a function that adds up is the sum of: elements of one array, or products of those of two real
    ones. None where it is another function."""
    (first, *rest), (v, *others), name = operands, eqn.inputs, eqn.primitive.name
    adds = name in ("reduce_sum", "cumsum") and part < len(first)
    multiplies = name == "dot_general" and len(first) == len(rest[0]) == 1
    if not v.is_float or not (adds or multiplies):
        return ()
    with jax.ensure_compile_time_eval():
        numbers = [jnp.arange(1, o.size + 1, dtype=o.aval.dtype).reshape(o.shape) for o in others]
        zero = jnp.zeros(v.shape, jnp.finfo(v.aval.dtype).dtype)
        found = jax.jacobian(lambda a: eqn.bind(a, *numbers)[0])(zero)
    right = _integers(found).reshape(eqn.outputs[0].size, -1)
    rows, cols = np.nonzero(right >= 0)
    factors = rest[0][0].reshape(-1) if multiplies else np.array([nodes.number(1)])
    return (Sums(rows, first[part].reshape(-1)[cols], factors[right[rows, cols]], cut=cut),)


def _integers(found: Any) -> np.ndarray:
    """Numbers that were counted from 1, as places; -1 where there is none."""
    return np.asarray(found).round().astype(int).reshape(-1) - 1


def _is_product(op: WeightOp, data: int, grid: Grid) -> bool:
    """Whether the entries give what the operation gives, for some numbers."""
    eqn, draw = op.equation, np.random.default_rng(0)
    if len(eqn.inputs) > 2:
        return True
    w, x = (draw.normal(size=eqn.inputs[n].shape) for n in (op.operand, data))
    operands = [w if n == op.operand else x for n in range(2)]
    operands = [jnp.asarray(a, v.aval.dtype) for a, v in zip(operands, eqn.inputs, strict=True)]
    y = np.zeros(eqn.outputs[0].size)
    np.add.at(y, grid.rows, w.reshape(-1)[grid.weights] * x.reshape(-1)[grid.cols])
    tolerance = max(1e-4, 4 * float(jnp.finfo(eqn.outputs[0].aval.dtype).eps))
    with jax.default_matmul_precision("highest"):
        found = np.asarray(eqn.bind(*operands)[0]).reshape(-1)
    return bool(np.allclose(y, found, tolerance, tolerance))
