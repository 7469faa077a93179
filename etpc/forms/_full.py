"""The whole eligibility trace: one entry for every use of a weight and every block state."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Inexact

from .._jax import by_parts, is_complex, result_type
from ._defined import WHOLE_TRACE, Meaning
from ._times import times
from ._trace import Carry, Passage, Site, Trace, zeros
from ._transitions import UNROLLED, apply, apply_columns, in_columns


@dataclasses.dataclass(frozen=True)
class Full(Trace):
    """The whole eligibility trace, `eps' = D eps + F x^T`.

    The trace of a dense operation has the order of axes of its weight, [B, m, O, I] or [B, m, I, O], so that the
    gradient is not transposed. That of an operation with links is [B, m, U]; several groups are an axis G after B.
    The trace of an element-wise operation is [B, m, O].

    - `as_complex`: carry the entries of two states as the parts of one complex number, [B, O, I].
    - `apart`: carry the entries of each state of a dense operation as an array of its own, [B, O, I].
    - `outputs_last`: carry those of a dense operation as [B, m, I, O], whatever the order of the weight.
    """

    as_complex: bool = False
    apart: bool = False
    outputs_last: bool = False
    exact = True

    @property
    def held(self) -> str:
        return "one entry for each use and state"

    def meaning(self) -> Meaning:
        return WHOLE_TRACE

    def laid_out(self, site: Site) -> Site:
        """The site with the order of axes that the form has."""
        return dataclasses.replace(site, outputs_last=True) if self.outputs_last else site

    def turns(self, site: Site) -> bool:
        """Whether that is another order than that of the weight."""
        return self.outputs_last and site.inputs_last

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        site, kind = self.laid_out(site), site.kind
        if not site.factored:
            return ((*site.states, kind.outputs),)
        if kind.links is not None:
            return ((*site.group, *site.states, kind.links.outputs.size),)
        return ((*site.group, *site.states, *_ordered(site, kind.inputs, kind.outputs)),)

    def init(self, site: Site, batch: int) -> Carry:
        shapes, of_state = self.shapes(site), self.shapes(dataclasses.replace(site, block=1))
        if self.as_complex:
            return zeros(batch, of_state, result_type(site.dtype, jnp.complex64))
        return zeros(batch, of_state * site.block if self.apart else shapes, site.dtype)

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        states = _by_state(site, carry)
        trace = carry[0] if states is None else jnp.stack(states, len(site.group))
        return {"trace": trace.swapaxes(-2, -1) if self.turns(site) else trace}

    def pairs_states(self, site: Site) -> bool:
        """Whether the entries of the block's states can be the parts of complex numbers."""
        return self.parts_states(site) and site.block == 2 and not is_complex(site)

    def parts_states(self, site: Site) -> bool:
        """Whether the entries of the block's states can be arrays of their own."""
        is_dense = site.factored and site.kind.links is None
        return is_dense and 1 < site.block <= UNROLLED

    def past(self, site: Site, start: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        return _read(self.laid_out(site), start, carry)

    def reads_end(self, site: Site, batch: int) -> bool:
        """Of one example, XLA would compute the parts of a complex number a second time where they are read: 1.4 times
        the time on a CPU."""
        return batch > 1 or not self.as_complex

    def read_end(self, site: Site, credit: Inexact[Array, "B m GO"], carry: Carry) -> Array:
        return _read(self.laid_out(site), credit, carry, at_each_step=True)

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        if not site.factored:
            return (_element_wise(site, passage, carry[0]),)
        if site.kind.links is not None:
            return (_with_links(site, passage, carry[0]),)
        return _dense(self.laid_out(site), passage, carry)

    def in_order(self, site: Site, trace: Inexact[Array, "G I m O"]) -> Array:
        """The trace of one example, in the shape that it is carried in."""
        site = self.laid_out(site)
        trace = trace.transpose(0, 2, 3, 1) if site.inputs_last else trace.swapaxes(1, 2)
        return trace.reshape(self.shapes(site)[0])


def _ordered(site: Site, of_inputs: Any, of_outputs: Any) -> tuple[Any, Any]:
    """What belongs to inputs and outputs, in the order of the weight."""
    return (of_outputs, of_inputs) if site.inputs_last else (of_inputs, of_outputs)


def _element_wise(site: Site, passage: Passage, eps: Array) -> Array:
    """`eps_W = (prod D) eps_0 + sum_t (prod_{after t} D) F_t`."""
    whole = passage.whole()
    by_op = [_joined([part.sum(0) for part in parts], 1) for parts in passage.moved()]
    added = sum(by_op[1:], by_op[0])
    if site.block == 1:  # without the axis of length one, which may cost a copy
        return times(whole[:, 0], eps) + added[:, 0]
    start = eps.reshape(eps.shape[0], site.block, site.kind.outputs)
    return (apply(site.pairs, whole, start) + added).reshape(eps.shape)


def _joined(parts: Sequence[Array], axis: int) -> Array:
    """Parts along the states of the block as one array."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _dense(site: Site, passage: Passage, carry: Carry) -> Carry:
    """`eps_W = (prod D) eps_0 + sum_t x_t (prod_{after t} D) F_t`.

    For two steps of a layer `h' = d h + w x`, which has one group, one block state and F = 1:

        passage.xs      = [[x_1, x_2]]       one array [W, B, G, I] for each operation
        passage.moved() = [[[d_2, 1]]]       one part [W, B, m, G * O]: F_1, moved on by D_2, and F_2
        passage.whole() = d_2 d_1            [B, P, o]
        eps_2[o, i]     = d_2[o] d_1[o] eps_0[o, i] + d_2[o] x_1[i] + x_2[i]

    The sum over steps is one matrix product, [m * O, W] x [W, I], for each example and group. The update is
    done in pieces, in place.
    """
    kind, m, pairs, batch = site.kind, site.block, site.pairs, len(carry[0])
    g, i, o = kind.groups, kind.inputs, kind.outputs
    last = site.inputs_last
    moved = [_joined(parts, 2) for parts in passage.moved()]
    x = jnp.concatenate([site.data(x) for x in passage.xs])
    steps = len(x)
    x = x.transpose(1, 2, 0, 3)[:, :, None]  # [B, G, 1, W, I]
    added = jnp.concatenate(moved).reshape(steps, batch, m, g, o).transpose(1, 3, 2, 0, 4)
    whole = _by_entry(site, passage.whole())  # [B, G or 1, P, ...]
    left, right = _ordered(site, x, added)
    left = left.swapaxes(-2, -1)  # before the loop, in which products read it
    left, right, whole = (_without_ones(site, a) for a in (left, right, whole))

    few = site.schedule.adds_products(steps, m * o)

    def added_up(left: Array, right: Array) -> Array:
        if not few:  # the product of matrices is an array of the size of the trace; a sum is part of the update's loop
            return by_parts(jnp.matmul, left, right)
        at = lambda a, t, axis: lax.slice_in_dim(a, t, t + 1, axis=axis)
        terms = [at(left, t, -1) * at(right, t, -2) for t in range(steps)]
        return sum(terms[1:], terms[0])

    by_state = _by_state(site, carry) is not None

    def update(carry: Carry, left: Array, right: Array, *columns: Array) -> Carry:
        states = _by_state(site, carry)
        if m == 1:
            return (times(columns[0], carry[0]) + added_up(left, right),)
        if states is None:
            return (apply_columns(pairs, columns, carry[0], -3) + added_up(left, right),)
        # Element by element: XLA would copy the trace for an index into an array of all new entries.
        if few or len(carry) > 1:
            added = [added_up(_of_state(left, n), _of_state(right, n)) for n in range(m)]
        else:
            product = added_up(left, right)
            added = [_of_state(product, n) for n in range(m)]
        new: list[Array] = []
        for n in range(m):
            terms = [times(_of_state(c, n), eps) for c, eps in zip(columns, states, strict=True)]
            new.append(sum(terms[1:], terms[0]) + added[n])
        # An entry depends on all old ones at its place, and XLA overwrites an array only where it depends on no other
        # place: it would copy a trace [B, m, O, I] at every step.
        return tuple(new) if len(carry) > 1 else (lax.complex(*new),)

    columns = in_columns(pairs, whole, -3) if m > 1 else [whole]
    # Large traces are cut along groups, or along the first axis of the weight; on several devices along that of inputs,
    # as the other may be spread over these.
    by_group, axis = g > i, -1 if last and site.schedule.devices > 1 else -2
    place = lambda a: 1 if by_group else a.ndim + axis
    cut = [(left, axis == -2), (right, axis == -1), *((c, (axis == -2) == last) for c in columns)]
    operands = [(a, place(a) if by_group or has_axis else None) for a, has_axis in cut]
    at_once = steps == 1 and (
        m == 1 or by_state
    )  # one loop over the entries, which needs no memory
    axis = place(carry[0])
    return site.schedule.overwrite(carry, axis, update, operands, passage.after, at_once)


def _of_state(a: Inexact[Array, "... m p q"], n: int) -> Array:
    """What belongs to a state of the block, or to all of them where the axis has length one."""
    axis = a.ndim - 3
    return lax.index_in_dim(a, min(n, a.shape[axis] - 1), axis, keepdims=False)


def _by_state(site: Site, carry: Carry) -> Sequence[Array] | None:
    """The entries of each state, where they are not along an axis of one array."""
    trace, *others = carry
    if others:
        return carry
    is_pair = jnp.issubdtype(trace.dtype, jnp.complexfloating) and not is_complex(site)
    return (trace.real, trace.imag) if is_pair else None


def _without_ones(site: Site, a: Inexact[Array, "B G m ..."]) -> Array:
    """Without the axes of groups and states that the trace has not."""
    a = a[:, :, 0] if site.block == 1 else a
    return a[:, 0] if site.kind.groups == 1 else a


def _with_links(site: Site, passage: Passage, eps: Array) -> Array:
    """The same where each entry of the trace belongs to a pair of an input and an output."""
    links, old = site.kind.links, eps.reshape(len(eps), site.kind.groups, site.block, -1)
    assert links is not None
    eps = apply(site.pairs, _by_entry(site, passage.whole()), old).reshape(eps.shape)

    def add(total: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        x, moved = step  # [B, G, I], [B, m, G * O]
        new = x[:, :, None, links.inputs] * _by_entry(site, moved)
        return total + new.reshape(total.shape), None

    for x, parts in zip(passage.xs, passage.moved(), strict=True):
        steps = x.astype(eps.dtype), _joined(parts, 2)
        eps = site.schedule.scan(add, eps, steps, moves_traces=True)[0]
    return eps


def _by_entry(site: Site, a: Inexact[Array, "B n o"]) -> Inexact[Array, "B g n ..."]:
    """What each output has, or all share (o = 1), as it meets the entries of the trace: axes of groups, of states or
    transitions, and of the plane of the weight, one of which may have length one."""
    kind = site.kind
    if a.shape[-1] == 1:
        a = a[:, None]
    else:
        a = a.reshape(*a.shape[:2], kind.groups, kind.outputs).swapaxes(1, 2)
        a = a if kind.links is None else a[..., kind.links.outputs]
    is_matrix = site.factored and kind.links is None
    return jnp.expand_dims(a, -1 if site.inputs_last else -2) if is_matrix else a


def _read(
    site: Site, credit: Inexact[Array, "B m GO"], carry: Carry, at_each_step: bool = False
) -> Array:
    """The gradient of the weight from a trace and the credit of its block. `at_each_step`: in a window of one step."""
    signal = _without_ones(site, _by_entry(site, credit))  # as it is multiplied with the entries
    if site.block == 1:  # `times` compares each entry with zero
        is_real = jnp.issubdtype(site.dtype, jnp.floating)
        finite = operator.mul if is_real else times
        sums = (times, signal, carry, finite if at_each_step else None)
        return _gathered(site, site.schedule.sum_over_examples(*sums))
    axis = 1 + len(site.group) - signal.ndim
    at = lambda a, n: lax.index_in_dim(a, n, a.ndim + axis, keepdims=False)

    def product(signal: Array, *carry: Array) -> Array:
        if len(carry) == 1 and site.block > UNROLLED:
            return times(signal, carry[0]).sum(axis)
        # Without a reduction over the states, with which the loop takes up to twice as long on a CPU.
        states = _by_state(site, carry)
        eps = lambda n: at(carry[0], n) if states is None else states[n]
        terms = [times(at(signal, n), eps(n)) for n in range(site.block)]
        return sum(terms[1:], terms[0])

    finite = product if at_each_step else None
    return _gathered(site, site.schedule.sum_over_examples(product, signal, carry, finite))


def _gathered(site: Site, entries: Array) -> Array:
    """The gradient of the weight from that of each entry of the trace."""
    kind = site.kind
    g, i, o = kind.groups, kind.inputs, kind.outputs
    if kind.links is not None:
        return kind.gather(entries.reshape(g, -1))
    entries = entries.reshape(g, *_ordered(site, i, o))
    return kind.gather(entries.swapaxes(1, 2) if site.inputs_last else entries)
