"""Products with transitions among the states of blocks.

A transition is an array [..., P, o]: a number for each of the site's `Pairs` and each of o outputs, where o is 1 if all
outputs have one block. How a product is written depends on the pairs alone: a block of one state needs none; of few
states, it is written out by columns; of many, it is a contraction, or tables say which pairs are multiplied.
"""

import functools
import string
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Inexact

from ..schedule import Schedule
from . import _in_parallel
from ._pairs import Pairs
from ._times import times

UNROLLED = 8
"""Sums of up to this many terms are written out."""


def paired(credit: Inexact[Array, "... m O"], block: Inexact[Array, "... m O"]) -> Array:
    """The products of credit and block states, summed over the states; [..., O]."""
    if not 0 < block.shape[-2] <= UNROLLED:
        return jnp.sum(times(credit, block), -2)
    return _contracted(credit, block, -2)


def identity(pairs: Pairs, dtype: Any) -> Inexact[Array, "P 1"]:
    """The transition that changes nothing."""
    return jnp.asarray(pairs.after == pairs.before, dtype)[:, None]


def compose(
    pairs: Pairs, later: Inexact[Array, "... P o"], earlier: Inexact[Array, "... P O"]
) -> Array:
    """The product of two transitions."""
    if not pairs.dense:
        return _by_table(later, earlier, *pairs.products)
    later, earlier = _square(later, pairs.m), _square(earlier, pairs.m)
    out = _contracted(later[..., None, :], earlier[..., None, :, :, :], -3)
    return out.reshape(*out.shape[:-3], pairs.after.size, out.shape[-1])


def apply(
    pairs: Pairs, transition: Inexact[Array, "... P o"], block: Inexact[Array, "... m O"]
) -> Array:
    """A transition applied to the block states of each output."""
    if pairs.m and pairs.dense:
        return _contracted(_square(transition, pairs.m), block[..., None, :, :], -2)
    return apply_columns(pairs, [transition], block)


def in_columns(pairs: Pairs, transition: Inexact[Array, "..."], axis: int = -2) -> list[Array]:
    """A transition, with its numbers along an axis, in the form that `apply_columns` takes: an array for each
    column, where that is faster."""
    # XLA's CPU backend vectorises no loop that reads one array in several places: 4x slower for two states.
    if pairs.dense and 1 < pairs.m <= UNROLLED:
        entries = _parts(transition, axis)
        return [jnp.stack(entries[c :: pairs.m], axis) for c in range(pairs.m)]
    return [transition]


def apply_columns(
    pairs: Pairs, columns: Sequence[Array], block: Inexact[Array, "..."], axis: int = -2
) -> Array:
    """`apply` for a transition in columns, to block states along an axis. The others are those of the transition,
    or have length one there."""
    m = pairs.m
    if not m:
        return block
    if len(columns) == m:
        return _sum_of_columns(columns, block, range(m), axis)
    (transition,) = columns
    if not pairs.dense:
        index, exists = pairs.into
        return _by_table(transition, block, index, pairs.before[index], exists, axis)
    return _contracted(_square(transition, m, axis), jnp.expand_dims(block, axis - 1), axis)


def apply_back(
    pairs: Pairs, transition: Inexact[Array, "... P o"], block: Inexact[Array, "... m O"]
) -> Array:
    """The transpose of a transition applied to the credit of the block states of each output."""
    if not pairs.dense:
        index, exists = pairs.out_of
        return _by_table(block, transition, pairs.after[index], index, exists)
    return _contracted(block[..., None, :], _square(transition, pairs.m), -3)


def suffix_products(
    pairs: Pairs,
    transition: Inexact[Array, "W B P o"],
    entered: Sequence[int],
    schedule: Schedule = Schedule(),
) -> tuple[Callable[[Array], Array], Array]:
    """The product of the transitions after each step, and the product of all transitions of the window.

    The former is a function. It takes what each step adds, [W, B, m, O], and moves it on to the end of the
    window; what is added is zero at all places but `entered`. With three steps:

        eps_3 = D_3 D_2 D_1 eps_0 + D_3 D_2 F_1 x_1 + D_3 F_2 x_2 + F_3 x_3
        move, whole = suffix_products(pairs, [D_1, D_2, D_3], entered)
        whole               = D_3 D_2 D_1
        move([F_1, F_2, F_3]) = [D_3 D_2 F_1, D_3 F_2, F_3]

    The products are found from the last step back, `later <- later D_t`, and each is read before D_t enters it.
    """
    m = pairs.m
    if not m or transition.shape[0] == 1:
        return lambda added: added, transition[0]
    # With the zeros, the carry of the loop has the sharding that products with the transition have.
    last = identity(pairs, transition.dtype)[None] + jnp.zeros_like(transition[0])
    if pairs.dense and schedule.in_parallel(len(transition), m, last.size // m**2):
        inclusive = _in_parallel.products(_parts(transition, -2))
        ends = zip(inclusive, _parts(last, -2), strict=True)
        later = [jnp.concatenate([a[1:], b[None]]) for a, b in ends]
        columns = [jnp.stack(later[n::m], -2) for n in entered]
        move = lambda added: _sum_of_columns(columns, added, entered)
        return move, jnp.stack([a[0] for a in inclusive], -2)
    if pairs.dense and 1 < m <= UNROLLED:
        return _suffix_columns(
            _parts(transition, -2), _parts(_square(last, m), -2), entered, schedule
        )
    product, start, steps = functools.partial(compose, pairs), last, transition
    if m == 1:  # arrays without an axis of length one share their zeros with those of other loops
        product, start, steps = times, last[:, 0], transition[:, :, 0]
    back = lambda later, step: (product(later, step), later)
    total, suffixes = schedule.scan(back, start, steps, reverse=True)
    suffixes = suffixes.reshape(transition.shape)
    return functools.partial(apply, pairs, suffixes), total.reshape(last.shape)


def _suffix_columns(
    entries: Sequence[Inexact[Array, "W B o"]],
    last: Sequence[Inexact[Array, "B m o"]],
    entered: Sequence[int],
    schedule: Schedule,
) -> tuple[Callable[[Array], Array], Inexact[Array, "B P o"]]:
    """`suffix_products` of the entries of each transition, with products in columns, from those of the identity."""
    m = len(last)

    def back(later: list[Array], step: list[Array]) -> tuple[list[Array], list[Array]]:
        columns: list[Array] = []
        for b in range(m):
            terms = [times(later[c], step[c * m + b][..., None, :]) for c in range(m)]
            columns.append(sum(terms[1:], terms[0]))
        return columns, [later[n] for n in entered]

    # Each entry is an array of its own, and so is each column that is entered: XLA's CPU backend vectorises no loop
    # that reads one array in several places, and to put them together before it would be a pass.
    total, suffixes = schedule.scan(back, list(last), list(entries), reverse=True)
    whole = jnp.stack(total, -2)
    move = lambda added: _sum_of_columns(suffixes, added, entered)
    return move, whole.reshape(*whole.shape[:-3], m * m, whole.shape[-1])


def recurrence(
    pairs: Pairs,
    transition: Inexact[Array, "W B P o"],
    added: Inexact[Array, "W B m O"],
    start: Inexact[Array, "B m O"],
    schedule: Schedule,
    decay: float = 1.0,
) -> tuple[Inexact[Array, "B m O"], Inexact[Array, "W B m O"]]:
    """The block states of `eps' = a D eps + F`: the last ones, and those after each step."""
    m = pairs.m
    moved = lambda eps: eps if decay == 1 else jnp.asarray(decay, _real(eps)) * eps
    numbers = transition.shape[1] * transition.shape[3]
    parallel = pairs.dense and schedule.in_parallel(len(added), m, numbers)
    apart = m == 1 or (pairs.dense and m <= UNROLLED and schedule.carries_apart)
    if not parallel and not apart:

        def whole(eps: Array, inputs: tuple[Any, Array]) -> tuple[Array, Array]:
            columns, new = inputs
            eps = moved(apply_columns(pairs, columns, eps)) + new
            return eps, eps

        return schedule.scan(whole, start, (in_columns(pairs, transition), added))

    def by_state(eps: list[Array], inputs: tuple[list[Array], list[Array]]) -> tuple[Any, Any]:
        entries, new = inputs
        steps = zip(_in_parallel.applied(entries, eps), new, strict=True)
        eps = [moved(old) + new for old, new in steps]
        return eps, eps

    split = lambda a: [a[..., 0, :]] if m == 1 else _parts(a, -2)
    entries, states, new = map(split, (transition, start, added))
    if parallel:
        first, _ = by_state(states, ([a[0] for a in entries], [a[0] for a in new]))
        new = [a.at[0].set(b) for a, b in zip(new, first, strict=True)]
        rest = _in_parallel.recurrence([*map(moved, entries)], new)
        last = [a[-1] for a in rest]
    else:
        last, rest = schedule.scan(by_state, states, (entries, new))
    together = lambda a: a[0][..., None, :] if m == 1 else jnp.stack(a, -2)
    return together(last), together(rest)


# --- sums of products -------------------------------------------------------------------------------------------------


def _contracted(later: Array, earlier: Array, axis: int) -> Array:
    """The sum of `times(later, earlier)` over an axis; the other axes of one may have length one."""
    if later.shape[axis] <= UNROLLED:
        pairs = zip(_parts(later, axis), _parts(earlier, axis), strict=True)
        terms = [times(a, b) for a, b in pairs]
        return sum(terms[1:], terms[0])
    letters = string.ascii_letters[: later.ndim]
    lengths = dict(zip(letters, np.broadcast_shapes(later.shape, earlier.shape), strict=True))
    lengths.pop(letters[axis])
    # Axes of length one are left out before the conditional: XLA copies what enters it in another layout.
    names = [[c for c, n in zip(letters, a.shape, strict=True) if n != 1] for a in (later, earlier)]
    out = [c for c, n in lengths.items() if n != 1]
    contract = functools.partial(jnp.einsum, ",".join(map("".join, names)) + "->" + "".join(out))
    later, earlier = (a.reshape([n for n in a.shape if n != 1]) for a in (later, earlier))

    def guarded() -> Array:
        # In a dot, infinity times zero is NaN, where `times` gives zero. So factors that are not finite are left out,
        # and a second dot counts those that meet what is not zero.
        finite = jnp.isfinite(later)
        lost = contract((~finite).astype(later.dtype), (earlier != 0).astype(earlier.dtype))
        sums = contract(jnp.where(finite, later, 0), earlier)
        return jnp.where(lost == 0, sums, jnp.nan)

    sums = lax.cond(jnp.isfinite(later).all(), lambda: contract(later, earlier), guarded)
    return sums.reshape(*lengths.values())


def _sum_of_columns(
    columns: Sequence[Inexact[Array, "..."]],
    block: Inexact[Array, "..."],
    places: Sequence[int],
    axis: int = -2,
) -> Array:
    """The columns of a transition times the block states at their places."""
    terms = [
        times(column, lax.index_in_dim(block, n, axis + block.ndim))
        for n, column in zip(places, columns, strict=True)
    ]
    return sum(terms[1:], terms[0])


def _by_table(
    later: Array,
    earlier: Array,
    later_at: np.ndarray,
    earlier_at: np.ndarray,
    exists: np.ndarray,
    axis: int = -2,
) -> Array:
    """`out[n] = sum_k later[later_at[n, k]] earlier[earlier_at[n, k]]` over the terms that exist, along an axis."""
    (count, terms), after = exists.shape, (slice(None),) * (-1 - axis)
    if terms <= UNROLLED:
        parts = []
        for k in range(terms):
            part = times(later[..., later_at[:, k], *after], earlier[..., earlier_at[:, k], *after])
            if not exists[:, k].all():
                present = jnp.asarray(exists[:, k]).reshape(
                    *[1] * (part.ndim + axis), count, *[1] * len(after)
                )
                part = jnp.where(present | jnp.zeros_like(part, bool), part, 0)
            parts.append(part)
        return sum(parts[1:], parts[0])
    owner = np.broadcast_to(np.arange(count)[:, None], exists.shape)[exists]
    term = times(later[..., later_at[exists], *after], earlier[..., earlier_at[exists], *after])
    one = lax.slice_in_dim(term, 0, 1, axis=axis + term.ndim)
    shape = (*term.shape[:axis], count, *term.shape[term.ndim + axis + 1 :])
    zero = jnp.broadcast_to(jnp.zeros_like(one), shape)  # spread over devices as the terms
    return zero.at[..., owner, *after].add(term, indices_are_sorted=True)


def _parts(a: Array, axis: int) -> list[Array]:
    """The parts of an array along an axis, which they have no longer."""
    return [lax.index_in_dim(a, n, axis, keepdims=False) for n in range(a.shape[axis])]


def _real(a: Array) -> Any:
    return jnp.finfo(a.dtype).dtype


def _square(transition: Array, m: int, axis: int = -2) -> Array:
    """A transition that has all pairs, with its numbers along two axes in the place of one."""
    shape = transition.shape
    return transition.reshape(*shape[:axis], m, m, *shape[len(shape) + axis + 1 :])
