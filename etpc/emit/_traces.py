"""How a trace moves through a window, and the gradient that it gives.

Axes: W steps, B examples, G groups, I inputs, m block states, O outputs of one group. A block's
outputs are flat, G * O, in the tables of the plan. Each form of trace has functions that move it
by the factors of a window, and one that says what it gives to the gradient; a trace is a tuple of
arrays with a leading batch axis.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Inexact

from ..algorithms import Decay, Full, LowRank
from ..plan import OpPlan, Pairs
from ._modes import leading
from ._pieces import over_examples, overwrite, read_and_overwrite
from ._transitions import apply, apply_back, compose, identity, times

WRITTEN_OUT = 32
"""Up to so many steps, and so many numbers of an output's block, a sum of outer products is written
out: as products of matrices they were two to four times slower on CPU."""

Trace = tuple[Array, ...]
Rows = tuple[Inexact[Array, "n B ..."], Inexact[Array, "n B ..."]]
"""Data and credit whose products, summed, are a gradient: as those of n steps are."""


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """What a window says of one weight operation."""

    x: Inexact[Array, "W B G I"] | None
    immediate: Inexact[Array, "W B m GO"]
    """F."""
    transition: Inexact[Array, "W B P o"]
    """D, a number for each of the plan's pairs; the last axis has length one where all outputs share a block."""


def suffix_products(pairs: Pairs, transition: Inexact[Array, "W B P o"]) -> tuple[Array, Array]:
    """The product of all transitions after each step, and the product of all."""
    last = identity(pairs, transition.dtype)[None] + jnp.zeros_like(transition[0])
    if transition.shape[0] == 1:
        return last[None], transition[0]

    def back(after, now):
        return compose(pairs, after, now), after

    whole, after = lax.scan(back, last, transition, reverse=True)
    return after, whole


def advance_element_wise(plan: OpPlan, sharing: Sequence[Factors], trace: Trace) -> Trace:
    """The trace of an operation without a factor: no larger than `F`, it is moved step by step."""
    (eps,) = trace

    def step(eps, now):
        transition, fed = now
        return apply(plan.layout.pairs, transition, eps) + sum(fed[1:], fed[0]), None

    start = eps.reshape(eps.shape[0], plan.block, plan.op.kind.outputs)
    given = sharing[0].transition, [factors.immediate for factors in sharing]
    return (lax.scan(step, start, given)[0].reshape(eps.shape),)


def advance_full(
    plan: OpPlan,
    sharing: Sequence[Factors],
    products: tuple[Array, Array],
    trace: Trace,
    start: Inexact[Array, "B m GO"] | None = None,
) -> tuple[Trace, Array | None]:
    """`eps_W = (prod D) eps_0 + sum_t x_t (prod_{after t} D) F_t`.

    `sharing` are the factors of all operations that the trace is for. Where the credit `start` is
    given, also `entries_full`, and the trace is overwritten: nothing reads it any more.
    """
    (eps,) = trace
    kind, m, pairs = plan.op.kind, plan.block, plan.layout.pairs
    batch = eps.shape[0]
    after, whole = products
    moved = [apply(pairs, after, factors.immediate) for factors in sharing]  # [W, B, m, GO] each
    xs = [_given(factors.x).astype(eps.dtype) for factors in sharing]
    g, i, o = kind.groups, kind.inputs, kind.outputs
    if kind.links is not None:
        entries = None if start is None else entries_full(plan, start, trace)
        for n, (x, each) in enumerate(zip(xs, moved, strict=True)):
            eps = _advance_links(plan, x, each, None if n else whole, eps)
        return (eps,), entries
    whole = whole.reshape(*whole.shape[:2], -1, o if whole.shape[-1] > 1 else 1)
    onward = jnp.moveaxis(whole, 2, 1)[:, :, None]  # [B, G or 1, 1, P, O or 1]
    steps = xs[0].shape[0] * len(xs)
    x = jnp.concatenate(xs).transpose(1, 2, 3, 0)  # [B, G, I, W]
    each = jnp.concatenate(moved).reshape(steps, batch, m, g, o)
    each = each.transpose(1, 3, 0, 2, 4).reshape(batch, g, steps, m * o)

    def update(eps, x, each, onward):
        if steps == 1 or (steps <= WRITTEN_OUT and m * o <= WRITTEN_OUT):
            terms = [x[..., t, None] * each[:, :, None, t] for t in range(steps)]
            fed = sum(terms[1:], terms[0])
        else:
            fed = x @ each if g > 1 else x[:, 0] @ each[:, 0]
        blocks = eps.reshape(*x.shape[:3], m, o)
        return apply(pairs, onward, blocks).reshape(eps.shape) + fed.reshape(eps.shape)

    given = [(x, 1), (each, 1), (onward, 1)] if g > i else [(x, 2), (each, None), (onward, None)]
    eps, axis = _flat(plan, eps)
    if start is None:
        eps, entries = overwrite(eps, axis, update, given), None
    else:
        eps, entries = read_and_overwrite(eps, axis, _spread(plan, start), update, given)
    return (eps.reshape(trace[0].shape),), entries


def _given(x: Array | None) -> Array:
    assert x is not None
    return x


def _advance_links(
    plan: OpPlan, x: Array, moved: Array, whole: Array | None, eps: Inexact[Array, "B *Gm U"]
) -> Array:
    """Likewise, where each entry belongs to a pair of an input and an output."""
    links = plan.op.kind.links
    batch, groups, m = eps.shape[0], plan.op.kind.groups, plan.block
    if whole is not None:
        each = whole.shape[-1] > 1
        whole = whole.reshape(*whole.shape[:2], groups if each else 1, -1)
        whole = whole[..., links.outputs] if each else whole
        onward = jnp.moveaxis(whole, 2, 1)  # [B, G or 1, P, U or 1]
        eps = apply(plan.layout.pairs, onward, eps.reshape(batch, groups, m, -1)).reshape(eps.shape)

    def add(total, now):
        x, moved = now  # [B, G, I], [B, m, G, O]
        moved = jnp.moveaxis(moved.reshape(batch, m, groups, -1), 2, 1)[..., links.outputs]
        return total + (x[:, :, None, links.inputs] * moved).reshape(total.shape), None

    return lax.scan(add, eps, (x, moved))[0]


def credit_within(
    pairs: Pairs,
    transition: Inexact[Array, "W B P o"],
    old: Inexact[Array, "W B m GO"],
    new: Inexact[Array, "W B m GO"],
) -> tuple[Array, Array]:
    """The credit of the block of each output, of each new state and of the start.

    For blocks that are not closed, where each output keeps to transitions inside its own.
    """

    def back(after, now):
        moves, by_old, by_new = now
        here = by_new + after
        return by_old + apply_back(pairs, moves, here), here

    start, credit = lax.scan(back, jnp.zeros_like(new[0]), (transition, old, new), reverse=True)
    return credit, start


def entries_full(plan: OpPlan, start: Inexact[Array, "B m GO"], trace: Trace) -> Array:
    """What the trace at the start of a window adds: `lambda_0 eps_0`, for each of its entries.

    `start` is the derivative by the block states at the start, all credit in the window included.
    """
    return over_examples(*_flat(plan, trace[0]), _spread(plan, start))


def no_entries(plan: OpPlan) -> Array:
    """Zeros, as `entries_full`."""
    return _flat(plan, jnp.zeros((1, *plan.trace_shape), plan.dtype))[0][0]


def gathered(plan: OpPlan, entries: Array) -> Array:
    """The gradient of the weight from `entries_full`."""
    kind, m = plan.op.kind, plan.block
    g, i, o = kind.groups, kind.inputs, kind.outputs
    if kind.links is not None:
        return kind.gather(entries.reshape(g, m, -1).sum(1))
    return kind.gather(entries.reshape(g, i, m, o).sum(2))


def _flat(plan: OpPlan, eps: Array) -> tuple[Array, int | None]:
    """A trace as passes go over it, and the axis that they may cut.

    Of a dense operation [B, I, m O], of one with links [B, m U], after G where there are several;
    of others [B, m O].
    """
    kind = plan.op.kind
    group = (kind.groups,) if kind.groups > 1 else ()
    if kind.data is None or kind.links is not None:
        return eps.reshape(eps.shape[0], *group, -1), None
    eps = eps.reshape(eps.shape[0], *group, kind.inputs, plan.block * kind.outputs)
    return eps, 2 if 1 < kind.groups <= kind.inputs else 1


def _spread(plan: OpPlan, start: Inexact[Array, "B m GO"]) -> Array:
    """Credit as it is multiplied with the entries of a flat trace."""
    kind, batch, g = plan.op.kind, start.shape[0], plan.op.kind.groups
    start = start.reshape(batch, plan.block, g, kind.outputs).swapaxes(1, 2)  # [B, G, m, O]
    if kind.links is not None:
        start = start[..., kind.links.outputs]
    each = (1,) if kind.data is not None and kind.links is None else ()
    group = (g,) if g > 1 else ()
    return start.reshape(batch, *group, *each, -1)


def smooth(plan: OpPlan, factors: Factors, trace: Trace) -> tuple[Trace, tuple[Array, Array]]:
    """Move the factors of a decaying trace through a window.

    Also all values, 0 to W, of the second factor and of the normaliser.
    """
    decay, real = _decay(plan), jnp.finfo(factors.immediate.dtype).dtype
    count = plan.op.kind.groups * plan.op.kind.outputs
    eps_x, eps_f, norm = trace
    eps_f = eps_f.reshape(eps_f.shape[0], plan.block, count)

    def step(now: Sequence[Array], given: Sequence[Array]):
        immediate, transition = given
        following = (
            real.type(decay) * apply(plan.layout.pairs, transition, now[0]) + immediate,
            real.type(decay) * now[1] + 1,
        )
        return following, following

    start = (eps_f, norm)
    (last_f, last_norm), rest = lax.scan(step, start, (factors.immediate, factors.transition))
    path = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rest)
    x = _given(factors.x).astype(eps_x.dtype)
    powers = decay ** np.arange(x.shape[0], -1.0, -1.0)
    fed = jnp.tensordot(
        jnp.asarray(powers[1:], x.dtype), x, axes=1, precision=lax.Precision.HIGHEST
    )
    last_x = real.type(powers[0]) * eps_x + fed.reshape(eps_x.shape)
    return (last_x, last_f.reshape(trace[1].shape), last_norm), path


def _decay(plan: OpPlan) -> float:
    assert isinstance(plan.form, Decay)
    return float(plan.form.decay)


def credit_smooth(
    plan: OpPlan,
    new: Inexact[Array, "W B m GO"],
    old: Inexact[Array, "W B m GO"] | None,
    path: tuple[Array, Array],
) -> tuple[Inexact[Array, "W B GO"], Inexact[Array, "B GO"]]:
    """The credit of each step's data, and that of the first factor at the start of the window.

    The gradient is `sum_t eps_x,t (L_t eps_f,t) / c_t`, and what reaches past the new states, by the
    trace before. As `eps_x` is a sum of decayed data, the same decay on the credit, backwards in
    time, leaves a product with the data itself. `new` is the learning signal L, at the block states;
    `old` the derivative by the old states of each step past the new ones, or `None` where there is
    none.
    """
    eps_f, norm = path  # W + 1 values each
    credit = jnp.sum(times(new, eps_f[1:]), -2) / norm[1:, :, None]
    before = jnp.zeros_like(credit)
    if old is not None:
        before = jnp.sum(times(old, eps_f[:-1]), -2) / _positive(norm[:-1])[..., None]
    decay = jnp.finfo(credit.dtype).dtype.type(_decay(plan))

    def back(after, now):
        by_new, by_old = now
        here = by_new + after
        return by_old + decay * here, here

    start, here = lax.scan(back, jnp.zeros_like(credit[0]), (credit, before), reverse=True)
    return here, start


def past_smooth(start: Inexact[Array, "B GO"], trace: Trace) -> Rows:
    """The first factor of a decaying trace, and its credit."""
    return trace[0][None], start[None]


def past_smooth_whole(plan: OpPlan, start: Inexact[Array, "B m GO"], trace: Trace) -> Rows:
    """Likewise, from the credit `lambda_0` of the whole trace."""
    _, eps_f, norm = trace
    eps_f = eps_f.reshape(eps_f.shape[0], plan.block, plan.op.kind.groups * plan.op.kind.outputs)
    return past_smooth(jnp.sum(times(start, eps_f), -2) / _positive(norm)[:, None], trace)


def reduce_modes(
    plan: OpPlan,
    factors: Factors,
    products: tuple[Array, Array],
    trace: Trace,
    start: Inexact[Array, "B m GO"] | None = None,
) -> Trace:
    """Add the factor pairs of a window to those of a low-rank trace, and keep the leading modes.

    The trace is `sum_r a_r b_r^T` for each group, and all Q pairs together are `A B^T`. The span of
    its R leading left modes is found as `A c` by subspace iteration in the coordinates of the
    pairs, `c <- (B^T B*) (A^H A) c`, which needs two Gram matrices and no product of the size of the
    weight; then `A B^T` is projected onto that span. Written out in products and sums: XLA loops
    eigendecompositions over a batch on accelerators, and on few CPU cores two of them at the same
    time may wait for each other for ever.
    """
    form, pairs = plan.form, plan.layout.pairs
    assert isinstance(form, LowRank)
    kind, m = plan.op.kind, plan.block
    g, i, o = kind.groups, kind.inputs, kind.outputs
    after, whole = products
    a, b = trace[:2]
    batch = a.shape[0]
    moved = jnp.moveaxis(apply(pairs, after, factors.immediate), 0, 1)  # [B, W, m, GO]
    b = apply(pairs, whole[:, None], b.reshape(batch, -1, m, g * o))
    x = jnp.moveaxis(_given(factors.x), 0, 1).astype(a.dtype)
    a = jnp.concatenate([a.reshape(batch, -1, g, i), x], 1)  # [B, Q, G, I]
    b = jnp.concatenate([b, moved], 1).reshape(batch, -1, m, g, o)
    length = jnp.sqrt(jnp.sum(jnp.abs(a) ** 2, -1, keepdims=True))
    a, b = a / _positive(length), b * length[:, :, None]
    # with less the vectors are not orthonormal on accelerators
    with jax.default_matmul_precision("highest"):
        of_a = jnp.einsum("bqgi,brgi->bgqr", a.conj(), a)
        of_b = jnp.einsum("bqmgo,brmgo->bgqr", b, b.conj())
        c = leading(of_a, of_b, form.rank)
        kept = jnp.einsum("bqmgo,bgqr->brmgo", b, (of_a @ c).conj())
        new = [jnp.einsum("bqgi,bgqr->brgi", a, c), kept]
        if form.certificate:
            lost = _lost(of_a, b, b - jnp.einsum("bgqr,brmgo->bqmgo", c, kept))
            off, gradient = (bound.reshape(batch, -1, g * o) for bound in trace[2:])
            if start is not None:
                gradient = gradient + jnp.sum(times(jnp.abs(start), off), -2, keepdims=True)
            moved = apply(pairs, jnp.abs(whole), off)
            new += [moved + lost.reshape(moved.shape), gradient]
    return tuple(after.reshape(before.shape) for after, before in zip(new, trace, strict=True))


def _lost(
    of_a: Inexact[Array, "B G Q Q"],
    b: Inexact[Array, "B Q m G O"],
    rest: Inexact[Array, "B Q m G O"],
) -> Inexact[Array, "B m G O"]:
    """The norm of each column of `A rest^T`, which is what a reduction of `A b^T` leaves out, and of
    what rounding may add."""
    rounding = jnp.finfo(b.dtype).eps * b.shape[1]
    square = jnp.sum((rest.conj() * jnp.einsum("bgqr,brmgo->bqmgo", of_a, rest)).real, 1)
    square = jnp.maximum(square, 0) + rounding * jnp.sum(jnp.abs(rest) ** 2, 1)
    return jnp.sqrt(square) + rounding * jnp.sqrt(jnp.sum(jnp.abs(b) ** 2, 1))


def past_modes(plan: OpPlan, start: Inexact[Array, "B m GO"], trace: Trace) -> Rows:
    """The left modes of a low-rank trace, and their credit `lambda_0 b`."""
    a, b = trace[:2]
    b = b.reshape(b.shape[0], -1, plan.block, plan.op.kind.groups * plan.op.kind.outputs)
    return jnp.moveaxis(a, 1, 0), jnp.moveaxis(jnp.sum(times(start[:, None], b), -2), 1, 0)


def _positive(norm: Array) -> Array:
    """The normaliser; one where there is no past, and so no trace either."""
    return jnp.where(norm > 0, norm, jnp.ones((), norm.dtype))


def empty_trace(plan: OpPlan, batch: int) -> Trace:
    """The trace of a fresh carry."""
    if isinstance(plan.form, Full):
        return (jnp.zeros((batch, *plan.trace_shape), plan.dtype),)
    real = jnp.finfo(plan.dtype).dtype
    factors, bounds = plan.trace_shape[:2], plan.trace_shape[2:]
    if isinstance(plan.form, Decay):
        bounds = ((),)  # in its place, the normaliser
    return (
        *(jnp.zeros((batch, *shape), plan.dtype) for shape in factors),
        *(jnp.zeros((batch, *shape), real) for shape in bounds),
    )
