"""What a trace program carries: recursions, and what enters them."""

import dataclasses
from functools import cached_property
from typing import Any, cast

import jax.numpy as jnp
import numpy as np

from .._jax import result_type
from ..analyse import Pattern, WeightOp
from ..forms import Joined, Site, Trace, bytes_of
from ..ops import Kind


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """What enters a trace at each step: the data of one operation, or of several side by side, by one F."""

    ops: tuple[WeightOp, ...]
    """Operations that are added up before anything reads them; F is that of the first."""

    @property
    def kind(self) -> Kind:
        """The operation, with the data of all operations."""
        kinds = tuple(op.kind for op in self.ops)
        return kinds[0] if len(kinds) == 1 else cast(Kind, Joined(kinds))


@dataclasses.dataclass(frozen=True, eq=False)
class TraceNode:
    """One recursion that is carried."""

    form: Trace
    """What says what is carried of it, how that moves, and what it gives to the gradient."""
    blocks: Pattern
    """Outputs x states: the states that the trace of each output holds."""
    feeds: tuple[Feed, ...]
    """What enters it: one feed, or several of uses of one weight, whose traces are added up."""
    dtype: Any
    """What it is carried in: at least float32, and complex where the operations are. A pass may choose another one; it
    is computed in that of the operations at least."""
    virtual: int = 0
    """How many rows of an extension each output has after those of its block."""

    @property
    def ops(self) -> tuple[WeightOp, ...]:
        """The operations that the trace is for, feed by feed."""
        return tuple(op for feed in self.feeds for op in feed.ops)

    @property
    def op(self) -> WeightOp:
        """The first of them, by whose path the trace is known."""
        return self.feeds[0].ops[0]

    @property
    def left_out(self) -> str:
        """What the trace leaves out, by its form or as it is rounded, in words; empty where it is whole."""
        exact = result_type(self.op.delta.dtype, np.float32)
        is_rounded = jnp.finfo(self.dtype).bits < jnp.finfo(exact).bits
        rounded = f"carried in {jnp.dtype(self.dtype).name}, and so rounded after each window"
        reasons = ((not self.form.exact, self.form.left_out), (is_rounded, rounded))
        return "; ".join(text for applies, text in reasons if applies)

    @cached_property
    def block(self) -> int:
        """m, the most states that one output has."""
        return int(np.diff(self.blocks.indptr).max(initial=0))

    @cached_property
    def site(self) -> Site:
        """What the form knows of the operation, but for the transitions of the step."""
        return Site(self.feeds[0].kind, self.block + self.virtual, self.dtype)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the arrays that hold the trace of one example."""
        return self.form.shapes(self.site)

    @cached_property
    def bytes(self) -> int:
        """Bytes that are carried for one example."""
        return bytes_of(self.form, self.site)

    def __repr__(self) -> str:
        return f"TraceNode({form_text(self.form)}, {', '.join(op.path for op in self.ops)})"


def form_text(form: Any) -> str:
    """A form, with the settings that differ from their defaults."""
    fields = dataclasses.fields(form) if dataclasses.is_dataclass(form) else ()
    shown = [
        f"{f.name}={value!r}"
        for f in fields
        if (value := getattr(form, f.name)) != f.default and f.repr
    ]
    text = f"{type(form).__name__}({', '.join(shown)})" if shown else type(form).__name__
    return text if len(text) <= 40 else f"{type(form).__name__}(...)"
