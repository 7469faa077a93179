"""The carry of a stream, from call to call."""

from typing import Any

import equinox as eqx
from jax import Array


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
    - `past`: the last steps, where the algorithm looks back through them; else empty.
    """

    state: Any
    traces: tuple[tuple[Array, ...], ...]
    fresh: Array
    program: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True)
    shared: tuple[Array, ...] = ()
    each: tuple[Array, ...] = ()
    past: tuple[Array, ...] = ()
