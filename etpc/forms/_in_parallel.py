"""Linear recurrences over the steps of a window by associative scans, as products of transitions are associative.

A loop takes one step after another, and each is some kernels that a small network does not fill. A scan of W steps is
about 2 log W kernels. It reads and writes what the loop does some four times.

A transition among m states is a list of its m * m numbers, row by row, each an array [W, B, o]: states along an axis
before the last one would fill two of eight rows of each register of a TPU.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax

from ._times import times

Arrays = Sequence[Array]


def applied(transition: Arrays, states: Arrays) -> list[Array]:
    """States after a transition."""
    m = len(states)
    rows = [[times(transition[a * m + b], states[b]) for b in range(m)] for a in range(m)]
    return [sum(terms[1:], terms[0]) for terms in rows]


def applied_back(credit: Arrays, transition: Arrays) -> list[Array]:
    """The credit of the states before a transition, from that of those after it."""
    m = len(credit)
    columns = [[times(credit[a], transition[a * m + b]) for a in range(m)] for b in range(m)]
    return [sum(terms[1:], terms[0]) for terms in columns]


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
        moved = applied(after, start)
        return composed(after, before), [a + b for a, b in zip(moved, more, strict=True)]

    return list(lax.associative_scan(join, (list(transition), list(added)))[1])


def passed_back(
    transition: Arrays, new: Arrays, old: Arrays | None
) -> tuple[list[Array], list[Array]]:
    """The credit of the states after each step, with that of all later steps, and of the states at the start.

    - `new`, `old`: the derivatives by the states after and before each step, each within its own step:

        earlier_t = D_t^T (new_t + earlier_{t+1}) + old_t
    """

    def join(first: tuple[Arrays, Arrays], then: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        (later, end), (before, more) = first, then
        back = applied_back(end, before)
        return composed(later, before), [a + b for a, b in zip(back, more, strict=True)]

    added = applied_back(new, transition)
    if old is not None:
        added = [a + b for a, b in zip(added, old, strict=True)]
    _, earlier = lax.associative_scan(join, (list(transition), added), reverse=True)
    after = [jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]) for a in earlier]
    return [a + b for a, b in zip(new, after, strict=True)], [a[0] for a in earlier]
