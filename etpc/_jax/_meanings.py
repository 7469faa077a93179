"""What operations stand for that have no kind and no pattern rule of their own.

JAX's products of COO and CSR, which saiunit uses too, are those of a BCOO. What primitives of other packages stand for
is registered, by a module that is imported once the package itself has been.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.extend import source_info_util

from ._program import Primitive

Meaning = Callable[..., Sequence[Array]]
"""A function of the operands and, by name, of the parameters of an operation, which gives its results."""

FOREIGN: dict[str, str] = {}
"""The module that registers what the primitives of a package stand for, by the name of the package."""
_REGISTERED: list[Callable[[Primitive], Meaning | None]] = []


def register_meaning(meaning: Callable[[Primitive], Meaning | None]) -> None:
    """Add a function that says what a primitive stands for, `None` for one that it does not know."""
    _REGISTERED.append(meaning)
    source_info_util.register_exclusion(meaning.__code__.co_filename)  # no line of the user's


def meaning_of(primitive: Primitive) -> Meaning | None:
    """What a primitive stands for; `None` for most."""
    if primitive.name in ("coo_matvec", "coo_matmat", "csr_matvec", "csr_matmat"):
        return _sparse_product
    for package, module in FOREIGN.items():
        if package in sys.modules:
            importlib.import_module(module)
    return next((m for of in _REGISTERED if (m := of(primitive)) is not None), None)


def _sparse_product(
    values: Array, a: Array, b: Array, data: Array, *, transpose: bool, **params: Any
) -> list[Array]:
    """The product of a COO with the rows `a` and the columns `b`, or of a CSR with the columns `a` and starts `b`."""
    from jax.experimental import sparse  # which takes a while to import

    if "spinfo" in params:
        shape, kept, summed = params["spinfo"].shape, a, b
    else:
        # Values after the last row, which are padding, get a row beyond the end.
        rows = jnp.cumsum(jnp.zeros(a.size, jnp.int32).at[b].add(1)) - 1
        shape, kept, summed = params["shape"], rows, a
    if transpose:
        shape, kept, summed = shape[::-1], summed, kept
    # Like these products themselves: what is read beyond the end is the last element, what is written there is dropped.
    summed = jnp.clip(jnp.where(summed < 0, summed + shape[1], summed), 0, shape[1] - 1)
    positions = jnp.stack([kept.astype(jnp.int32), summed.astype(jnp.int32)], 1)
    matrix = sparse.BCOO((values, positions), shape=shape)
    y: Any = sparse.bcoo_dot_general(matrix, data, dimension_numbers=(((1,), (0,)), ((), ())))
    return [y]
