"""Products with transitions among the states of blocks.

A transition is an array [..., P, o]: a number for each of the site's `Pairs` and each of o outputs, where o is 1 if all
outputs have one block.

A derivative may be infinite or NaN where no influence arrives: for example that of a norm at zero, behind a relu
that gives zero. Backpropagation does not see it, as the relu passes nothing on, and a trace must not see it
either. So the product of two derivatives is zero where the earlier one is zero (`times`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Inexact

from ._pairs import Pairs

UNROLLED = 8
"""Sums of up to this many terms are written out."""


def times(later: Array, earlier: Array) -> Array:
    """`later * earlier`, element by element, and zero where `earlier` is zero."""
    product = later * earlier
    absent = lax.eq(earlier, lax.full_like(earlier, 0))
    if absent.shape != product.shape:
        absent = jnp.broadcast_to(absent, product.shape)
    # faster to trace than `jnp.where`
    return lax.select(absent, lax.full_like(product, 0), product)


def _contracted(contract: Callable[[Array, Array], Array], later: Array, earlier: Array) -> Array:
    """Sums of products as `times` gives them, as one contraction."""

    def guarded() -> Array:
        finite = jnp.isfinite(later)
        lost = contract((~finite).astype(later.dtype), (earlier != 0).astype(earlier.dtype))
        sums = contract(jnp.where(finite, later, 0), earlier)
        return jnp.where(lost == 0, sums, jnp.nan)

    return lax.cond(jnp.isfinite(later).all(), lambda: contract(later, earlier), guarded)


def identity(pairs: Pairs, dtype: Any) -> Inexact[Array, "P 1"]:
    """The transition that changes nothing."""
    return jnp.asarray(pairs.after == pairs.before, dtype)[:, None]


def compose(
    pairs: Pairs, later: Inexact[Array, "... P o"], earlier: Inexact[Array, "... P O"]
) -> Array:
    """The product of two transitions."""
    m = pairs.m
    if not pairs.dense:
        first, second, exists = pairs.products
        return _sum(later, first, earlier, second, exists)
    out = _compose_dense(_square(later, m), _square(earlier, m))
    return out.reshape(*out.shape[:-3], m * m, out.shape[-1])


def _compose_dense(
    later: Inexact[Array, "... m m o"], earlier: Inexact[Array, "... m m O"]
) -> Array:
    """`compose`, where all pairs are there."""
    m = later.shape[-2]
    if m == 1:
        return times(later, earlier)
    if m <= UNROLLED:
        rows = _parts(earlier, -3)
        terms = [times(later[..., c, None, :], row[..., None, :, :]) for c, row in enumerate(rows)]
        out = sum(terms[1:], terms[0])
    elif later.shape[-1] == 1 and earlier.shape[-1] == 1:
        out = _contracted(jnp.matmul, later[..., 0], earlier[..., 0])[..., None]
    else:
        later, earlier = jnp.broadcast_arrays(later, earlier)
        out = _contracted(lambda a, b: jnp.einsum("...aco,...cbo->...abo", a, b), later, earlier)
    return out


def paired(credit: Inexact[Array, "... m O"], block: Inexact[Array, "... m O"]) -> Array:
    """The products of credit and block states, summed over the states; [..., O]."""
    if not 0 < block.shape[-2] <= UNROLLED:
        return jnp.sum(times(credit, block), -2)
    terms = [times(c, b) for c, b in zip(_parts(credit, -2), _parts(block, -2), strict=True)]
    return sum(terms[1:], terms[0])


def apply(
    pairs: Pairs, transition: Inexact[Array, "... P o"], block: Inexact[Array, "... m O"]
) -> Array:
    """A transition applied to the block states of each output."""
    if pairs.dense and 1 < pairs.m <= UNROLLED:
        return _sum_of_columns(_parts(_square(transition, pairs.m), -2), block)
    return apply_columns(pairs, [transition], block)


def in_columns(pairs: Pairs, transition: Inexact[Array, "..."], axis: int = -2) -> list[Array]:
    """A transition, with its numbers along an axis, in the form that `apply_columns` takes: an array for each
    column, where that is faster.

    In a loop, XLA's CPU backend does not vectorise code that reads one array in several places.
    """
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
    if len(columns) == m > 1:
        return _sum_of_columns(columns, block, axis)
    (transition,) = columns
    if m == 1:
        return times(transition, block)
    if not pairs.dense:
        index, exists = pairs.into
        return _sum(transition, index, block, pairs.before[index], exists, axis)
    if axis == -2:
        return _apply_dense(m, transition[..., None], block[..., None])[..., 0]
    return _apply_dense(m, transition, block)


def _apply_dense(
    m: int, transition: Inexact[Array, "... P _ _"], block: Inexact[Array, "... m p q"]
) -> Array:
    """A transition that has all pairs, applied to block states; its last axes are those of the block or have length
    one, one of them at least."""
    square = transition.reshape(*transition.shape[:-3], m, m, *transition.shape[-2:])
    if square.shape[-2:] == (1, 1):
        flat = block.reshape(*block.shape[:-2], -1)
        return _contracted(jnp.matmul, square[..., 0, 0], flat).reshape(block.shape)
    along, square = ("p", square[..., 0]) if square.shape[-1] == 1 else ("q", square[..., 0, :])
    contract = lambda a, b: jnp.einsum(f"...ac{along},...cpq->...apq", a, b)
    return _contracted(contract, square, block)


def _sum_of_columns(
    columns: Sequence[Inexact[Array, "..."]], block: Inexact[Array, "..."], axis: int = -2
) -> Array:
    terms = [
        times(column, lax.index_in_dim(block, c, axis + block.ndim))
        for c, column in enumerate(columns)
    ]
    return sum(terms[1:], terms[0])


def _apply_at(
    pairs: Pairs,
    columns: Inexact[Array, "... mk o"],
    block: Inexact[Array, "... m O"],
    places: Sequence[int],
) -> Array:
    """`apply` for k columns of a transition, where block states are zero at all other places."""
    rectangle = columns.reshape(*columns.shape[:-2], pairs.m, len(places), columns.shape[-1])
    return _sum_of_columns(_parts(rectangle, -2), _at(block, -2, places))


def apply_back(
    pairs: Pairs, transition: Inexact[Array, "... P o"], block: Inexact[Array, "... m O"]
) -> Array:
    """The transpose of a transition applied to the credit of the block states of each output."""
    m = pairs.m
    if m == 1:
        return times(block, transition)
    if not pairs.dense:
        index, exists = pairs.out_of
        return _sum(block, pairs.after[index], transition, index, exists)
    square = _square(transition, m)
    if m <= UNROLLED:
        terms = [times(block[..., None, c, :], square[..., c, :, :]) for c in range(m)]
        return sum(terms[1:], terms[0])
    if square.shape[-1] == 1:
        transposed = lambda credit, moves: jnp.swapaxes(moves, -2, -1) @ credit
        return _contracted(transposed, block, square[..., 0])
    return _contracted(lambda a, b: jnp.einsum("...co,...cao->...ao", a, b), block, square)


def suffix_products(
    pairs: Pairs, transition: Inexact[Array, "W B P o"], entered: Sequence[int]
) -> tuple[Callable[[Array], Array], Array]:
    """The product of the transitions after each step, and that of all transitions of the window.

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
    last = identity(pairs, transition.dtype)[None] + jnp.zeros_like(transition[0])
    move = functools.partial(apply, pairs)
    if pairs.dense and 1 < m <= UNROLLED:
        suffixes, total = _suffix_columns(_parts(transition, -2), _square(last, m), entered)
        if len(entered) < m:  # no other column is needed
            move = functools.partial(_apply_at, pairs, places=entered)
        return functools.partial(move, suffixes), total
    # The shapes are chosen before the loop: a reshape inside it would keep XLA's CPU backend from vectorising it.
    if m == 1:  # arrays without an axis of length one share their zeros with those of other loops
        product, start, steps = times, last[:, 0], transition[:, :, 0]
    elif not pairs.dense:
        product, start, steps = functools.partial(compose, pairs), last, transition
    else:
        product, start, steps = _compose_dense, _square(last, m), _square(transition, m)
    back = lambda later, step: (product(later, step), later)
    total, suffixes = lax.scan(back, start, steps, reverse=True)
    suffixes = suffixes.reshape(transition.shape)
    return functools.partial(move, suffixes), total.reshape(last.shape)


def _suffix_columns(
    entries: Sequence[Inexact[Array, "W B o"]],
    last: Inexact[Array, "B m m o"],
    entered: Sequence[int],
) -> tuple[Inexact[Array, "W B mk o"], Inexact[Array, "B P o"]]:
    """The k columns of the products after each step that are entered, and the product of all steps.

    Each entry of the transitions is an array of its own, and so is each column of the products: XLA's CPU backend
    vectorises no loop that reads one array in several places, and to put them together before it would be a pass.
    """
    m = last.shape[-2]

    def back(later: list[Array], step: list[Array]) -> tuple[list[Array], list[Array]]:
        columns: list[Array] = []
        for b in range(m):
            terms = [times(later[c], step[c * m + b][..., None, :]) for c in range(m)]
            columns.append(sum(terms[1:], terms[0]))
        return columns, [later[n] for n in entered]

    total, suffixes = lax.scan(back, _parts(last, -2), list(entries), reverse=True)

    def flat(columns: list[Array]) -> Array:
        lead, outputs = columns[0].shape[:-2], last.shape[-1]
        return jnp.stack(columns, -2).reshape(*lead, m * len(columns), outputs)

    return flat(suffixes), flat(total)


def recurrence(
    pairs: Pairs,
    transition: Inexact[Array, "W B P o"],
    added: Inexact[Array, "W B m O"],
    start: Inexact[Array, "B m O"],
    decay: float = 1.0,
) -> tuple[Inexact[Array, "B m O"], Inexact[Array, "W B m O"]]:
    """The block states of `eps' = a D eps + F`: the last ones, and those after each step."""
    squeezed = pairs.m == 1 and transition.shape[-1] == added.shape[-1]
    if squeezed:  # without the axis of length one, as in `suffix_products`
        move, moves, start, added = times, transition[:, :, 0], start[:, 0], added[:, :, 0]
    else:
        move, moves = functools.partial(apply, pairs), transition
        if transition.shape[-1] in (1, added.shape[-1]):
            move, moves = functools.partial(apply_columns, pairs), in_columns(pairs, transition)

    def step(eps: Array, inputs: tuple[Any, Array]) -> tuple[Array, Array]:
        moved, new = inputs
        eps = move(moved, eps)
        eps = (eps if decay == 1 else jnp.asarray(decay, _real(eps)) * eps) + new
        return eps, eps

    last, rest = lax.scan(step, start, (moves, added))
    return (last[:, None], rest[:, :, None]) if squeezed else (last, rest)


def _parts(a: Array, axis: int) -> list[Array]:
    """The parts of an array along an axis, which they have no longer."""
    return [lax.index_in_dim(a, n, axis, keepdims=False) for n in range(a.shape[axis])]


def _at(a: Array, axis: int, places: Sequence[int]) -> Array:
    """An array at some places of an axis."""
    return jnp.concatenate([lax.slice_in_dim(a, n, n + 1, axis=axis) for n in places], axis)


def _real(a: Array) -> Any:
    return jnp.finfo(a.dtype).dtype


def _square(transition: Array, m: int) -> Array:
    return transition.reshape(*transition.shape[:-2], m, m, transition.shape[-1])


def _sum(
    later: Array,
    later_at: np.ndarray,
    earlier: Array,
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
                shape = [1] * part.ndim
                shape[axis] = count
                present = jnp.asarray(exists[:, k]).reshape(shape)
                part = jnp.where(present | jnp.zeros_like(part, bool), part, 0)
            parts.append(part)
        return sum(parts[1:], parts[0])
    owner = np.broadcast_to(np.arange(count)[:, None], exists.shape)[exists]
    term = times(later[..., later_at[exists], *after], earlier[..., earlier_at[exists], *after])
    one = lax.slice_in_dim(term, 0, 1, axis=axis + term.ndim)
    shape = (*term.shape[:axis], count, *term.shape[term.ndim + axis + 1 :])
    zero = jnp.broadcast_to(jnp.zeros_like(one), shape)
    return zero.at[..., owner, *after].add(term, indices_are_sorted=True)


__all__ = [
    "apply",
    "apply_back",
    "apply_columns",
    "compose",
    "identity",
    "in_columns",
    "paired",
    "recurrence",
    "suffix_products",
    "times",
]
