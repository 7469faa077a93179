"""The carry of a stream, from call to call."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
from jax import Array


class TracesOf(tuple[tuple[Array, ...], ...]):
    """The arrays of each trace, with paths that name its weight: `carry.traces['.cell.weight_hh'][0]`."""

    weights: tuple[str, ...]

    def __new__(cls, traces: Iterable[Any], weights: tuple[str, ...]) -> "TracesOf":
        self = super().__new__(cls, traces)
        self.weights = weights
        return self

    def __getnewargs__(self) -> Any:
        return tuple(self), self.weights


jax.tree_util.register_pytree_with_keys(
    TracesOf,
    lambda t: ([*zip(map(jax.tree_util.DictKey, t.weights), t, strict=True)], t.weights),
    lambda weights, traces: TracesOf(traces, weights),
    lambda t: (tuple(t), t.weights),
)


class Carry(eqx.Module):
    """The hidden state and the eligibility traces of a stream. A PyTree of arrays.

    - `state`: the hidden state, with the structure that the model's state has (`None` at leaves
        that are no arrays), and a leading batch axis if the carry has one.
    - `traces`: the arrays of each trace, in the order of `program.ops`; uses of one weight that reach
        the same states share one.
    - `fresh`: whether the stream begins with the next step; a boolean for each example.
    - `program`: the digest of the program that the carry is of.
    - `batched`: whether it has a batch axis.
    - `shared`, `each`: of the directions along which escaping influence is followed, what the batch
        shares, which has no batch axis and outlives a reset, and what each example has; else empty.
    - `lookback`: the last steps, where the algorithm looks back through them; else empty.
    - `filtered`: data of products, filtered by the memory of what they enter, in the order of
        `program.plan.analysis.step.added`; else empty.
    """

    state: Any
    traces: tuple[tuple[Array, ...], ...]
    fresh: Array
    program: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True)
    shared: tuple[Array, ...] = ()
    each: tuple[Array, ...] = ()
    lookback: tuple[Array, ...] = ()
    filtered: tuple[Array, ...] = ()
