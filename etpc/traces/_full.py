"""The whole eligibility trace: one entry for every use of a weight and every block state."""

import dataclasses
from collections.abc import Hashable, Sequence

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact

from .._tuning import tuning
from ._pieces import over_examples, overwrite, read_and_overwrite
from ._trace import Carry, Passage, Site, Trace, zeros
from ._transitions import apply, apply_columns, in_columns, of_each, times


@dataclasses.dataclass(frozen=True)
class Full(Trace):
    """The whole eligibility trace, `eps' = D eps + F x^T`.

    The trace of a dense operation is [B, I, m, O], and that of one with links [B, m, U]; several groups are
    an axis G after B. The trace of an element-wise operation is [B, m, O].
    """

    start_alone = True
    skips = True

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        kind = site.kind
        if not site.factored:
            return ((*site.states, kind.outputs),)
        if kind.links is not None:
            return ((*site.group, *site.states, kind.links.outputs.size),)
        return ((*site.group, kind.inputs, *site.states, kind.outputs),)

    def init(self, site: Site, batch: int) -> Carry:
        return zeros(batch, self.shapes(site), site.dtype)

    def same(self, site: Site) -> Hashable:
        return getattr(site.kind, "uses", None)  # a kind may leave it out

    def entries(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        return over_examples(carry[0], _spread(site, start))

    def gathered(self, site: Site, entries: Array) -> Array:
        kind, m = site.kind, site.block
        g, i, o = kind.groups, kind.inputs, kind.outputs
        if kind.links is not None:
            return kind.gather(entries.reshape(g, m, -1).sum(1))
        return kind.gather(entries.reshape(g, i, m, o).sum(2))

    def advance(
        self,
        site: Site,
        passage: Passage,
        carry: Carry,
        followed: Carry,
        start: Array | None,
    ) -> tuple[Carry, Array | None]:
        if site.factored and site.kind.links is None:
            return _dense(site, passage, carry, start)
        entries = None if start is None else self.entries(site, start, carry)
        (eps,) = carry
        move = _with_links if site.factored else _element_wise
        return (move(site, passage, eps),), entries


def _element_wise(site: Site, passage: Passage, eps: Array) -> Array:
    """`eps_W = (prod D) eps_0 + sum_t (prod_{after t} D) F_t`."""
    start = eps.reshape(eps.shape[0], site.block, site.kind.outputs)
    added = [_joined([part.sum(0) for part in parts], 1) for parts in passage.moved()]
    end = apply(site.pairs, passage.whole(), start) + sum(added[1:], added[0])
    return end.reshape(eps.shape)


def _joined(parts: Sequence[Array], axis: int) -> Array:
    """Parts along the states of the block as one array."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _dense(
    site: Site,
    passage: Passage,
    carry: Carry,
    start: Inexact[Array, "B m GO"] | None,
) -> tuple[Carry, Array | None]:
    """`eps_W = (prod D) eps_0 + sum_t x_t (prod_{after t} D) F_t`.

    For two steps of a layer `h' = d h + w x`, which has one group, one block state and F = 1:

        passage.xs      = [[x_1, x_2]]       one array [W, B, G, I] for each operation
        passage.moved() = [[[d_2, 1]]]       one part [W, B, m, G * O]: F_1, moved on by D_2, and F_2
        passage.whole() = d_2 d_1            [B, P, o]
        eps_2[i, o]     = d_2[o] d_1[o] eps_0[i, o] + x_1[i] d_2[o] + x_2[i]

    The sum over steps is one matrix product, [I, W] x [W, m * O], for each example and group. The update is
    done in pieces, in place.
    """
    (eps,) = carry
    kind, m, pairs, batch = site.kind, site.block, site.pairs, eps.shape[0]
    xs = [x.astype(site.dtype) for x in passage.xs]
    moved = [_joined(parts, 2) for parts in passage.moved()]
    whole = of_each(passage.whole(), site.count)
    g, i, o = kind.groups, kind.inputs, kind.outputs
    whole = whole.reshape(*whole.shape[:2], -1, o if whole.shape[-1] > 1 else 1)
    transition = jnp.moveaxis(whole, 2, 1)[:, :, None]  # [B, G or 1, 1, P, O or 1]
    steps = xs[0].shape[0] * len(xs)
    x = jnp.concatenate(xs).transpose(1, 2, 3, 0)  # [B, G, I, W]
    added = jnp.concatenate(moved).reshape(steps, batch, m, g, o)
    added = added.transpose(1, 3, 0, 2, 4).reshape(batch, g, steps, *site.states, o)
    if g == 1:
        transition, x, added = transition[:, 0], x[:, 0], added[:, 0]
    step_axis = added.ndim - len(site.states) - 2  # the axis of steps

    def update(eps: Array, x: Array, added: Array, *columns: Array) -> Array:
        if steps == 1 or max(steps, m * o) <= tuning().outer_products:
            data = x[..., None] if m == 1 else x[..., None, None]
            at = lambda t: jnp.expand_dims(
                lax.index_in_dim(added, t, step_axis, keepdims=False), step_axis
            )
            terms = [
                lax.index_in_dim(data, t, step_axis + 1, keepdims=False) * at(t)
                for t in range(steps)
            ]
            increment = sum(terms[1:], terms[0])
        else:
            increment = (x @ added.reshape(*added.shape[: step_axis + 1], -1)).reshape(eps.shape)
        if m == 1:
            return times(columns[0][..., 0, :], eps) + increment
        return apply_columns(pairs, columns, eps) + increment

    columns = in_columns(pairs, transition, o)
    input_axis = 1 + len(site.group)  # the axis of inputs
    operands = [(x, input_axis), (added, None), *((column, None) for column in columns)]
    axis = input_axis
    if g > i:
        axis, operands = 1, [(a, 1) for a in (x, added, *columns)]
    at_once = steps == m == 1  # one loop over the entries, which needs no memory
    if start is None:
        eps, entries = overwrite(eps, axis, update, operands, at_once=at_once), None
    else:
        signal = _spread(site, start)
        eps, entries = read_and_overwrite(eps, axis, signal, update, operands, at_once)
    return (eps,), entries


def _with_links(site: Site, passage: Passage, eps: Array) -> Array:
    """The same where each entry of the trace belongs to a pair of an input and an output."""
    links, groups, m = site.kind.links, site.kind.groups, site.block
    assert links is not None
    batch, whole = eps.shape[0], of_each(passage.whole(), site.count)
    per_output = whole.shape[-1] > 1
    whole = whole.reshape(*whole.shape[:2], groups if per_output else 1, -1)
    whole = whole[..., links.outputs] if per_output else whole
    transition = jnp.moveaxis(whole, 2, 1)  # [B, G or 1, P, U or 1]
    eps = apply(site.pairs, transition, eps.reshape(batch, groups, m, -1)).reshape(eps.shape)

    def add(total: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        x, moved = step  # [B, G, I], [B, m, G, O]
        moved = jnp.moveaxis(moved.reshape(batch, m, groups, -1), 2, 1)[..., links.outputs]
        return total + (x[:, :, None, links.inputs] * moved).reshape(total.shape), None

    for x, parts in zip(passage.xs, passage.moved(), strict=True):
        eps = lax.scan(add, eps, (x.astype(eps.dtype), _joined(parts, 2)))[0]
    return eps


def _spread(site: Site, start: Inexact[Array, "B m GO"]) -> Array:
    """Credit as it is multiplied with the entries of a trace."""
    kind, batch, g = site.kind, start.shape[0], site.kind.groups
    start = start.reshape(batch, site.block, g, kind.outputs).swapaxes(1, 2)  # [B, G, m, O]
    if kind.links is not None:
        start = start[..., kind.links.outputs]
    input_axis = (1,) if site.factored and kind.links is None else ()
    return start.reshape(batch, *site.group, *input_axis, *site.states, -1)


__all__ = ["Full"]
