"""Linear recurrences over the steps of a window by associative scans, as products of transitions are associative.

A loop takes one step after another, and each is some kernels that a small network does not fill. A scan of W steps is
about 2 log W kernels. It reads and writes what the loop does some four times.

A transition among m states is a list of its m * m numbers, row by row, each an array [W, B, o]: states along an axis
before the last one would fill two of eight rows of each register of a TPU.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array, lax

from ._times import times

Arrays = Sequence[Array]
_sums: Callable[[Arrays, Arrays], list[Array]] = lambda a, b: [
    x + y for x, y in zip(a, b, strict=True)
]


def applied(transition: Arrays, states: Arrays) -> list[Array]:
    """States after a transition."""
    m = len(states)
    rows = [[times(transition[a * m + b], states[b]) for b in range(m)] for a in range(m)]
    return [sum(terms[1:], terms[0]) for terms in rows]


def composed(later: Arrays, earlier: Arrays) -> list[Array]:
    """The product of two transitions."""
    m = math.isqrt(len(later))
    columns = [applied(later, earlier[b::m]) for b in range(m)]
    return [columns[b][a] for a in range(m) for b in range(m)]


def products(transition: Arrays) -> list[Array]:
    """The products of the transitions of each step and all later ones."""
    return lax.associative_scan(composed, list(transition), reverse=True)


def recurrence(transition: Arrays, added: Arrays) -> list[Array]:
    """The states after each step of `s' = D s + F`, from zero."""

    def join(first: tuple[Arrays, Arrays], then: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        (before, start), (after, more) = first, then
        return composed(after, before), _sums(applied(after, start), more)

    return list(lax.associative_scan(join, (list(transition), list(added)))[1])


def passed_back(
    transition: Arrays, new: Arrays, old: Arrays | None
) -> tuple[list[Array], list[Array]]:
    """The credit of the states after each step, with that of all later steps, and of the states at the start.

    - `new`, `old`: the derivatives by the states after and before each step, each within its own step:

        earlier_t = D_t^T (new_t + earlier_{t+1}) + old_t
    """
    m = len(new)

    def back(credit: Arrays, step: Arrays) -> list[Array]:
        columns = [[times(credit[a], step[a * m + b]) for a in range(m)] for b in range(m)]
        return [sum(terms[1:], terms[0]) for terms in columns]

    def join(first: tuple[Arrays, Arrays], then: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        (later, end), (before, more) = first, then
        return composed(later, before), _sums(back(end, before), more)

    added = back(new, transition)
    steps = list(transition), added if old is None else _sums(added, old)
    earlier = lax.associative_scan(join, steps, reverse=True)[1]
    after = [jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]) for a in earlier]
    return _sums(new, after), [a[0] for a in earlier]
