"""Proofs that elements of a program's values are equal, whatever its arguments are.

Each element of a value has a number, and two elements have the same one only if they are the same
scalar: of one argument, of a constant, or the same function of such scalars, moved or repeated. The results of
an operation without a rule have new numbers. So equal numbers are a proof that holds for all values
of the parameters and of the data; different numbers say nothing.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Equation, Variable, prims
from .._jax.primitives import facts

LARGEST = 1 << 20
"""Arrays with more elements than this are not followed."""
HASHED = 1 << 12
"""Operations on more distinct scalars than this are not compared with others: their results are new."""


Numbers = np.ndarray
"""The numbers of an array's elements, int64; `UNFOLLOWED` for elements that are not followed. Each of those counts as
different from all others."""
UNFOLLOWED = -1


class Numbering:
    """Runs a flat program on numbers."""

    def __init__(self) -> None:
        self._count = 0
        self._scalars: dict[Any, int] = {}
        self._zero = np.zeros(1 << 10, bool)  # of each number: whether it is known to be zero
        self._zeros: dict[Any, Numbers] = {}

    def new(self, aval: Any) -> Numbers:
        """An array all of whose elements are new."""
        size = int(np.prod(aval.shape, dtype=np.int64))
        if size > LARGEST:
            return np.full(aval.shape, UNFOLLOWED, np.int64)
        return self._next(size).reshape(aval.shape)

    def constant(self, value: Any) -> Numbers:
        """An array whose values are known."""
        if jnp.issubdtype(value.dtype, jax.dtypes.extended) or value.size > LARGEST:
            return self.new(value)
        array = np.asarray(value)
        rows = np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8).T
        at = self._scalars_of(("constant", str(array.dtype)), rows).reshape(array.shape)
        self._zero[at[array == 0]] = True
        return at

    def zeros(self, aval: Any) -> Numbers:
        """An array of zeros."""
        if aval.dtype not in self._zeros:
            self._zeros[aval.dtype] = self.constant(np.zeros((), aval.dtype))
        return np.broadcast_to(self._zeros[aval.dtype], aval.shape)

    def is_zero(self, numbers: Numbers) -> np.ndarray:
        """A boolean for each element: whether it is known to be zero."""
        return np.asarray((numbers >= 0) & self._zero[numbers])

    def run(
        self,
        equations: Iterable[Equation],
        env: dict[Variable, Numbers],
        tangents: Container[Variable] = (),
    ) -> None:
        """Add the numbers of the equations' results to `env`, which has those of their operands.

        An equation that reads `tangents` is linear in them, so that its results are zero where they are zero.
        """
        for eqn in equations:
            operands, known = [env[v] for v in eqn.inputs], facts(eqn.primitive)
            followed = known.rearranges is not None or known.element_wise
            large = any(v.size > LARGEST for v in (*eqn.inputs, *eqn.outputs))
            are = [v in tangents for v in eqn.inputs]
            entering = [numbers for numbers, is_one in zip(operands, are, strict=True) if is_one]
            linear = (
                followed
                or known.data_movement
                or known.heavy
                or eqn.primitive is prims.reduce_sum_p
            )
            linear = linear and bool(entering) and all(v.is_float for v in eqn.outputs)
            if linear and all(self.is_zero(numbers).all() for numbers in entering):
                results = [self.zeros(v.aval) for v in eqn.outputs]
            elif not followed or large or any((numbers < 0).any() for numbers in operands):
                results = [self.new(v.aval) for v in eqn.outputs]
            elif known.rearranges is not None:
                results = known.rearranges(*operands, **eqn.params)
            else:
                result = self._element_wise(eqn, operands)
                results = [self._linear(eqn, operands, are, result) if linear else result]
            env.update(zip(eqn.outputs, results, strict=True))

    def _element_wise(self, eqn: Equation, operands: Sequence[Numbers]) -> Numbers:
        shape = eqn.outputs[0].shape
        settings = tuple(sorted((name, str(value)) for name, value in eqn.params.items()))
        same_shape = [np.broadcast_to(at, shape) for at in operands]
        return self.scalars((eqn.primitive, settings), same_shape)

    def _linear(
        self, eqn: Equation, operands: Sequence[Numbers], tangents: Sequence[bool], result: Numbers
    ) -> Numbers:
        """The result of an element-wise operation without the terms and products that are zero."""
        (v,) = eqn.outputs
        zero = [np.broadcast_to(self.is_zero(numbers), v.shape) for numbers in operands]
        if eqn.primitive in _SUMS and len(operands) == 2:
            second, first = (np.broadcast_to(numbers, v.shape) for numbers in operands[::-1])
            result = np.where(zero[1], first, result)
            if eqn.primitive is not prims.sub_p:
                result = np.where(zero[0], second, result)
        nothing = np.all([z for z, tangent in zip(zero, tangents, strict=True) if tangent], axis=0)
        return np.where(nothing, self.zeros(v.aval), result)

    def scalars(self, operation: Any, operands: Sequence[Numbers]) -> Numbers:
        """The same operation on each element of some arrays of one shape."""
        rows = np.stack([numbers.reshape(-1) for numbers in operands])
        return self._scalars_of(operation, rows).reshape(operands[0].shape)

    def _scalars_of(self, operation: Any, operands: np.ndarray) -> np.ndarray:
        """Numbers of the same operation on each column of `operands`, [k, elements]."""
        columns, inverse = np.unique(operands, axis=1, return_inverse=True)
        if columns.shape[1] > HASHED:
            numbers = self._next(columns.shape[1])
        else:
            numbers = np.array([self._scalar(operation, column) for column in columns.T], np.int64)
        return numbers[inverse.reshape(-1)]

    def _scalar(self, operation: Any, operands: np.ndarray) -> int:
        key = operation, operands.tobytes()
        if key not in self._scalars:
            self._scalars[key] = int(self._next(1)[0])
        return self._scalars[key]

    def _next(self, count: int) -> np.ndarray:
        """The next numbers that are free."""
        start, self._count = self._count, self._count + count
        if self._count > self._zero.size:
            self._zero = np.pad(self._zero, (0, self._count))
        return np.arange(start, self._count)


_SUMS = (prims.add_p, prims.sub_p, prims.add_jaxvals_p)
