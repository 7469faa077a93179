"""How passes over a trace are laid out where XLA is left to do it: each is one operation on whole arrays."""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Inexact, Int

Operand = tuple[Array, int | None]
"""An array [B, ...], and the axis along which it is cut when the trace is; `None` where it is taken whole."""
Product = Callable[[Array, Array], Array]
"""Of a signal and a trace, or of parts of them along leading axes: the axes that it sums are counted from the last."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the loops over traces are laid out. No result depends on it but for rounding.

    - `devices`: over how many devices a batch may be spread.
    """

    devices: int = 1

    def sum_over_examples(
        self,
        product: Product,
        signal: Inexact[Array, "B ..."],
        trace: Inexact[Array, "B ..."],
        finite: Product | None = None,
    ) -> Inexact[Array, "..."]:
        """`product(signal, trace).sum(0)`.

        - `finite`: the same product where all of the signal is finite, in a window of one step, which runs so often
            that its time counts for more than XLA's; else `None`.

        A batch may be spread over devices, each of which holds a run of it and sums that first.
        """
        return product(signal, trace).sum(0)

    def overwrite(
        self,
        trace: Inexact[Array, "B ..."],
        axis: int,
        update: Callable[..., Array],
        operands: Sequence[Operand],
        zero: Int[Array, ""] | None = None,
        at_once: bool = False,
    ) -> Array:
        """`update(trace, *operands)`, in place: nothing is written before `zero` is known.

        - `axis`: of the trace, along which it may be cut, and each operand along its own.
        - `at_once`: nothing is gained by pieces.
        """
        return update(trace, *_all_after(zero, [a for a, _ in operands]))

    def adds_products(self, steps: int, outputs: int) -> bool:
        """Whether the outer products of so many steps, with so many numbers of all outputs' blocks, are added up one by
        one, and not as a product of matrices."""
        return steps == 1

    def stored(self, a: Array) -> Array:
        """An array that is written to memory before it is read, where XLA would compute it wherever it is read."""
        return a

    def __str__(self) -> str:
        return "whole traces at once"


def zero_after(*arrays: Array) -> Int[Array, ""]:
    """Zero, computed from arrays in a way that XLA does not see through.

    XLA overwrites an array in place only where every read of it is known to come before, and it
    knows that from data alone: `lax.optimization_barrier` is gone when it decides.
    """
    firsts = [a[(0,) * a.ndim] for a in arrays if a.size and jnp.issubdtype(a.dtype, jnp.inexact)]
    if not firsts:
        return jnp.zeros((), jnp.int32)
    # A sum is computed once. XLA would make anything else part of the loops that read it, once for each entry; also a
    # sum of one term.
    is_nan = jnp.stack([jnp.isnan(first) for first in (*firsts, firsts[0])])
    return jnp.minimum(is_nan.sum(dtype=jnp.int32), 0)


def _all_after(zero: Int[Array, ""] | None, arrays: list[Array]) -> list[Array]:
    """The same arrays, where the smallest one is known only after `zero` is."""
    sizes = {n: array.size for n, array in enumerate(arrays) if array.size}
    if zero is None or not sizes:
        return arrays
    smallest = min(sizes, key=lambda n: sizes[n])
    return [a + zero.astype(a.dtype) if n == smallest else a for n, a in enumerate(arrays)]


__all__ = ["Operand", "Product", "Schedule", "zero_after"]
