"""Products of a sparse weight and data, with one trace entry for each element that is stored."""

import dataclasses
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import Equation, params, result_type
from .._jax.primitives import BCOO, register
from ._kind import Known, Links, Rearrangement, Values


@dataclasses.dataclass(frozen=True, eq=False)
class Sparse:
    """`bcoo_dot_general` of a sparse matrix, whose stored values are the weight, with data.

    G are the columns of the data, U the stored values; the positions are known at compile time.
    """

    name: str
    data: int
    groups: int
    inputs: int
    outputs: int
    links: Links
    axis: int
    """The dimension of the data that is summed."""
    to_output: Rearrangement

    @property
    def uses(self) -> Hashable:
        return self.groups, self.links.inputs.tobytes(), self.links.outputs.tobytes()

    def shift_inputs(self, values: Values, delta: Array) -> Values:
        return values

    def shift_outputs(self, outputs: Values, delta: Array) -> Values:
        (y,) = outputs
        return [y + self.to_output(delta).astype(y.dtype)]

    def factor(self, values: Values) -> Array:
        x = jnp.moveaxis(values[self.data], self.axis, -1)
        return x.reshape(self.groups, self.inputs)

    def contract(self, x: Array | None, delta: Array) -> Array:
        def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            x, delta = pair
            return total + (x[:, self.links.inputs] * delta[:, self.links.outputs]).sum(0), None

        assert x is not None
        x = x.reshape(-1, *x.shape[-2:])
        delta = delta.reshape(-1, *delta.shape[-2:])
        zero = jnp.zeros((self.links.inputs.size,), result_type(x, delta))
        return jax.lax.scan(add, zero, (x, delta))[0]

    def gather(self, entries: Array) -> Array:
        return entries.sum(0)


def sparse_product(equation: Equation, operand: int, known: Known) -> Sparse | None:
    """The canonical form of a `bcoo_dot_general` of a matrix without batch or dense dimensions."""
    values, indices, rhs = equation.inputs
    (contract, contract_rhs), batch = params.product(equation)
    shape = params.sparse_shape(equation)
    positions = known(indices)
    plain = values.shape == indices.shape[:1] and indices.shape[1:] == (2,)
    if operand != 0 or positions is None or not plain or len(contract) != 1 or any(map(len, batch)):
        return None
    summed = contract[0]
    # Positions outside the matrix are padding, and stand for nothing.
    if (positions < 0).any() or (positions >= np.asarray(shape)).any():
        return None
    rows, columns = shape[1 - summed], shape[summed]
    free = [size for axis, size in enumerate(rhs.shape) if axis != contract_rhs[0]]
    groups = int(np.prod(free, dtype=np.int64))
    return Sparse(
        name=equation.primitive.name,
        data=2,
        groups=groups,
        inputs=columns,
        outputs=rows,
        links=Links(
            positions[:, summed].astype(np.int32), positions[:, 1 - summed].astype(np.int32)
        ),
        axis=contract_rhs[0],
        to_output=Rearrangement((groups, rows), (1, 0), equation.outputs[0].shape),
    )


register([BCOO], kind=sparse_product)
