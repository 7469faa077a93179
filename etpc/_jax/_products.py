"""Products that have no kind and no pattern rule of their own, as products that have: of dense matrices, or of a BCOO.

These are JAX's products of COO and CSR, which saiunit uses too, and those of brainevent, which brainstate and
braintrace use: of CSR, of rows with equally many values (ELL) and of dense matrices, with data or with events.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def product_of(name: str) -> Callable[..., list[Array]] | None:
    """The function that a product of a matrix and data stands for, by the name of its primitive; `None` for any other
    operation."""
    if name not in _ENTRIES:
        return None
    entries, by_event = _ENTRIES[name], name.startswith(("binary_", "ell_binary_"))

    def product(weights: Array, *operands: Array, transpose: bool, **params: Any) -> list[Array]:
        shape = params["spinfo"].shape if "spinfo" in params else params.get("shape", weights.shape)
        order, rows, columns, data, *rest = entries(shape[0], *operands)
        data = _events(data, weights) if by_event and not params["weighted"] else data
        data = data.astype(weights.dtype)
        if rows is None or columns is None:
            return [(weights.T if transpose else weights) @ data]
        is_shared = weights.size == 1 != rows.size  # one value for all connections
        values = jnp.ones(rows.shape, weights.dtype) if is_shared else weights.reshape(-1)
        summed, kept = (rows, columns) if transpose else (columns, rows)
        shape = shape[::-1] if transpose else shape
        # Like JAX's own products: what is read beyond the end is the last element, what is written there is dropped.
        summed = jnp.clip(jnp.where(summed < 0, summed + shape[1], summed), 0, shape[1] - 1)
        y = _sparse_product(
            values if is_shared or order is None else values[order],
            jnp.stack([kept.astype(jnp.int32), summed.astype(jnp.int32)], 1),
            data,
            shape,
        )
        return [weights.reshape(()) * y if is_shared else y, *rest]

    return product


def _sparse_product(values: Array, positions: Array, data: Array, shape: tuple[int, ...]) -> Array:
    from jax.experimental import sparse  # which takes a while to import

    matrix = sparse.BCOO((values, positions), shape=shape)
    product: Any = sparse.bcoo_dot_general(matrix, data, dimension_numbers=(((1,), (0,)), ((), ())))
    return product


def _events(data: Array, weights: Array) -> Array:
    """Which elements are not zero, as numbers; their derivative by the data is 1, as brainevent has it."""

    @jax.custom_jvp
    def events(x: Array) -> Array:
        return (x != 0).astype(weights.dtype)

    @events.defjvp
    def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        return events(*primals), tangents[0].astype(weights.dtype)

    is_float = jnp.issubdtype(data.dtype, jnp.floating)
    return events(data) if is_float else data != 0


Entries = tuple[Array | None, Array | None, Array | None, Array, *tuple[Array, ...]]
"""In which order the values are stored, where it is not that of the rows; the row and the column of each, `None` of a
dense matrix; the data; and operands that the primitive returns beside the product."""


def _dense(count: int, data: Array) -> Entries:
    return None, None, None, data


def _coo(count: int, rows: Array, columns: Array, data: Array) -> Entries:
    return None, rows, columns, data


def _csr(count: int, columns: Array, starts: Array, data: Array, *rest: Array) -> Entries:
    # Values after the last row, which are padding, get a row beyond the end.
    rows = jnp.cumsum(jnp.zeros(columns.size, jnp.int32).at[starts].add(1)) - 1
    return None, rows, columns, data, *rest


def _csr_in_order(count: int, columns: Array, starts: Array, order: Array, *rest: Array) -> Entries:
    return order, *_csr(count, columns, starts, *rest)[1:]


def _ell(count: int, columns: Array, data: Array) -> Entries:
    return None, jnp.repeat(jnp.arange(count), columns.shape[1]), columns.reshape(-1), data


_ENTRIES: dict[str, Callable[..., Entries]] = {
    **dict.fromkeys(("coo_matvec", "coo_matmat"), _coo),
    **dict.fromkeys(("csr_matvec", "csr_matmat", "csrmv", "csrmm"), _csr),
    **dict.fromkeys(("binary_csrmv", "binary_csrmm"), _csr),
    **dict.fromkeys(("binary_csrmv_indexed", "binary_csrmm_indexed"), _csr_in_order),
    **dict.fromkeys(("ell_binary_matvec", "binary_fcnmm"), _ell),
    **dict.fromkeys(("binary_densemv", "binary_densemm"), _dense),
}
