"""Which elements of a program's values are equal, whatever its arguments are.

Each element of a value has a number, and two elements have the same one only if they are the same
scalar: of one argument, of a constant, or the same function of such scalars, moved or repeated. What
an operation without a rule computes is new. So equal numbers are a proof that holds for all values
of the parameters and of the data; different numbers say nothing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Equation, Flat, Primitive, prune
from .._primitives import facts

LARGEST = 1 << 20
"""Elements of a larger array are not followed."""
HASHED = 1 << 12
"""So many scalars of one operation, at most, are compared with those of others."""


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of an array's elements."""

    at: np.ndarray
    """int64; -1 for elements that are not followed, each of which counts as different."""
    data: bool
    """Whether they may depend on data."""


class Numbering:
    """Runs a flat program on numbers."""

    def __init__(self) -> None:
        self._count = 0
        self._scalars: dict[Any, int] = {}

    def new(self, aval: Any, data: bool) -> Numbers:
        """An array all of whose elements are new."""
        size = int(np.prod(aval.shape, dtype=np.int64))
        if size > LARGEST:
            return Numbers(np.full(aval.shape, -1), data)
        self._count += size
        return Numbers(np.arange(self._count - size, self._count).reshape(aval.shape), data)

    def run(self, flat: Flat, inputs: Sequence[Numbers]) -> list[Numbers]:
        """The numbers of the outputs from those of the inputs."""
        env = dict(zip(flat.inputs, inputs, strict=True))
        env.update((v, self._constant(value)) for v, value in flat.constants.items())
        for eqn in prune(flat.equations, flat.outputs):
            operands = [env[v] for v in eqn.inputs]
            data = any(n.data for n in operands)
            rule = _rule_of(eqn.primitive)
            large = any(v.size > LARGEST for v in (*eqn.inputs, *eqn.outputs))
            if rule is None or large or any((n.at < 0).any() for n in operands):
                results = [self.new(v.aval, data) for v in eqn.outputs]
            else:
                results = [Numbers(at, data) for at in rule(self, eqn, [n.at for n in operands])]
            env.update(zip(eqn.outputs, results, strict=True))
        return [env[v] for v in flat.outputs]

    def _constant(self, value: Any) -> Numbers:
        if jnp.issubdtype(value.dtype, jax.dtypes.extended) or value.size > LARGEST:
            return self.new(value, data=False)
        array = np.asarray(value)
        rows = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8)
        return Numbers(self.scalars(("constant", str(array.dtype)), rows.T, array.shape), False)

    def scalars(self, operation: Any, operands: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Numbers of the same operation on each column of `operands`, [k, elements]."""
        columns, inverse = np.unique(operands, axis=1, return_inverse=True)
        count = columns.shape[1]
        if count > HASHED:
            numbers = np.arange(self._count, self._count + count)
            self._count += count
        else:
            numbers = np.array([self._scalar(operation, column) for column in columns.T], np.int64)
        return numbers[inverse.reshape(-1)].reshape(shape)

    def _scalar(self, operation: Any, operands: np.ndarray) -> int:
        key = operation, operands.tobytes()
        if key not in self._scalars:
            self._scalars[key] = self._count
            self._count += 1
        return self._scalars[key]


Rule = Callable[[Numbering, Equation, list[np.ndarray]], list[np.ndarray]]


def _element_wise(numbering: Numbering, eqn: Equation, operands: list[np.ndarray]) -> Any:
    shape = eqn.outputs[0].shape
    rows = np.stack([np.broadcast_to(at, shape).reshape(-1) for at in operands])
    settings = tuple(sorted((name, str(value)) for name, value in eqn.params.items()))
    return [numbering.scalars((eqn.primitive, settings), rows, shape)]


def _rule_of(primitive: Primitive) -> Rule | None:
    record = facts(primitive)
    if record.rearranges is not None:
        return lambda numbering, eqn, operands: record.rearranges(*operands, **eqn.params)
    return _element_wise if record.element_wise else None


def distinct_columns(tables: Sequence[np.ndarray]) -> int:
    """How many columns of tables of numbers [rows, columns], on top of each other, may differ."""
    columns = np.concatenate(tables)
    followed = (columns >= 0).all(0)
    different = np.unique(columns[:, followed], axis=1).shape[1]
    return int(different + (~followed).sum())


__all__ = ["Numbering", "Numbers", "distinct_columns"]
