"""Primitives of other packages, as operations that the compiler knows.

These are the products of brainevent, which brainstate and braintrace use: of CSR, of rows with equally many values
(ELL) and of dense matrices, with data or with events. And braintrace's markers, such as `etp_mm`.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import sparse

from etpc.trace import Primitive, register_meaning


def _meaning(primitive: Primitive) -> Callable[..., Sequence[Array]] | None:
    if isinstance(primitive, getattr(sys.modules.get("braintrace"), "ETPPrimitive", ())):
        return primitive.impl
    return functools.partial(_product, primitive.name) if primitive.name in _PRODUCTS else None


def _product(
    name: str,
    weights: Array,
    *operands: Array,
    transpose: bool,
    weighted: bool = True,
    **params: Any,
) -> list[Array]:
    left, is_shared = [*operands], False
    matrix: Any = weights
    if "dense" not in name:
        columns = left.pop(0)
        is_shared = weights.size == 1 != columns.size  # one value for all connections
        values = jnp.ones(columns.size, weights.dtype) if is_shared else weights.reshape(-1)
        if "csr" in name:
            starts = left.pop(0)
            values = values[left.pop(0)] if "indexed" in name else values
            matrix = sparse.CSR((values, columns, starts), shape=params["shape"])
        else:
            rows = jnp.arange(params["shape"][0], dtype=columns.dtype)
            positions = jnp.repeat(rows, columns.shape[1]), columns.reshape(-1)
            matrix = sparse.COO((values, *positions), shape=params["shape"])
    data, *rest = left  # the rest is returned beside the product
    y = (matrix.T if transpose else matrix) @ _entering(data, weights, weighted)
    return [weights.reshape(()) * y if is_shared else y, *rest]


def _entering(data: Array, weights: Array, weighted: bool) -> Array:
    """Data; or as events, which of it is not zero, whose derivative by the data is 1, as brainevent has it."""

    @jax.custom_jvp
    def events(x: Array) -> Array:
        return (x != 0).astype(weights.dtype)

    @events.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return events(*primals), tangents[0].astype(weights.dtype)

    if not weighted:
        data = events(data) if jnp.issubdtype(data.dtype, jnp.floating) else data != 0
    return data.astype(weights.dtype)


_PRODUCTS = {
    *("csrmv", "csrmm", "binary_csrmv", "binary_csrmm"),
    *("binary_csrmv_indexed", "binary_csrmm_indexed"),
    *("ell_binary_matvec", "binary_fcnmm", "binary_densemv", "binary_densemm"),
}
register_meaning(_meaning)
