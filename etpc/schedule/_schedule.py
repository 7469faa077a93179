"""How passes over a trace are laid out where XLA is left to do it: each is one operation on whole arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array, lax
from jaxtyping import Inexact, Int

Operand = tuple[Array, int | None]
"""An array [B, ...], and the axis along which it is cut when the trace is; `None` where it is taken whole."""
Product = Callable[..., Array]
"""Of a signal and the arrays of a trace, or of parts of them along leading axes: the axes that it sums are counted from
the last."""
Body = Callable[[Any, Any], tuple[Any, Any]]
"""Of what a loop carries and what it reads at one step."""

FEW = 2
"""Products of transitions among more states than these are no associative scan: those of four states compile in two
minutes for an H100, and a loop in 20 seconds."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the loops over traces are laid out. No result depends on it but for rounding.

    - `devices`: over how many devices a batch may be spread.
    - `abreast`: of how many numbers at each step a linear recurrence over the steps of a window is an associative scan,
        at most; of more it is a loop. 0: all are loops.
    - `longest_loop`: and of how many steps it is a loop in any case.
    - `carries_apart`: whether a loop carries each state of blocks as an array of its own.
    """

    devices: int = 1
    _: dataclasses.KW_ONLY
    abreast: int = 0
    longest_loop: int = 0
    carries_apart: bool = False

    def in_parallel(self, steps: int, states: int, numbers: int) -> bool:
        """Whether a linear recurrence over so many steps is an associative scan: with so many numbers at each step, of
        blocks of so many states."""
        few = states <= FEW and states**2 * numbers <= self.abreast
        return few and steps > self.longest_loop

    def scan(
        self,
        body: Body,
        start: Any,
        xs: Any,
        length: int | None = None,
        reverse: bool = False,
        moves_traces: bool = False,
    ) -> tuple[Any, Any]:
        """`lax.scan` over the steps of a window, or over windows of one step, each of which `moves_traces`."""
        unroll = self.unroll(moves_traces)
        return lax.scan(body, start, xs, length=length, reverse=reverse, unroll=unroll)

    def unroll(self, moves_traces: bool) -> int:
        """How many steps, or windows of one step, the body of such a loop has."""
        return 1

    def sum_over_examples(
        self,
        product: Product,
        signal: Inexact[Array, "B ..."],
        trace: tuple[Array, ...],
        finite: Product | None = None,
    ) -> Inexact[Array, "..."]:
        """`product(signal, *trace).sum(0)`, of the arrays of a trace, [B, ...].

        - `finite`: the same product where all of the signal is finite, in a window of one step, which runs so often
            that its time counts for more than XLA's; else `None`.

        A batch may be spread over devices, each of which holds a run of it and sums that first.
        """
        return product(signal, *trace).sum(0)

    def overwrite(
        self,
        trace: tuple[Array, ...],
        axis: int,
        update: Callable[..., tuple[Array, ...]],
        operands: Sequence[Operand],
        zero: Int[Array, ""] | None = None,
        at_once: bool = False,
    ) -> tuple[Array, ...]:
        """`update(trace, *operands)`, in place: the arrays of a trace, [B, ...], of one shape.

        - `axis`: of these arrays, along which they may be cut, and each operand along its own.
        - `zero`: from `after`.
        - `at_once`: nothing is gained by pieces.
        """
        return update(trace, *(a for a, _ in operands))

    def adds_products(self, steps: int, outputs: int) -> bool:
        """Whether the outer products of so many steps, with so many numbers of all outputs' blocks, are added up one by
        one, and not as a product of matrices."""
        return steps == 1

    def after(self, *arrays: Array) -> Int[Array, ""] | None:
        """Zero, known once the arrays are, before which no trace is overwritten; `None` where XLA sees to that."""
        return None

    def varying(self, immediate: Array, like: Array) -> Array:
        """F of a window of one step, [1, B, m, GO], in a way that XLA does not know that it is constant where that
        would cost; `like` is an array of that shape that depends on data."""
        return immediate

    def stored(self, a: Array) -> Array:
        """An array that is written to memory before it is read, where XLA would compute it wherever it is read."""
        return a

    def __str__(self) -> str:
        return "whole traces at once"
