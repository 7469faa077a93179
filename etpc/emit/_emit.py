"""A window of a trace program, as one differentiable function on arrays.

All arrays have axes [W, B, ...] here. A window runs the model forward, step by step; then
everything else is computed for all its steps at once: the Jacobians of the cut step, the outputs,
and, backwards, the learning signals. What remains sequential is element-wise code on blocks.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import promoting, result_type
from ..plan import OpPlan, Plan
from ..traces import Carry, Factors
from ..traces._transitions import apply_back, suffix_products, times
from ._forward import TURNED, Course, Forward
from ._gather import by_step, columns, rows, take, weighted, zeros_over
from ._step import StepFunctions

Arrays = Sequence[Array]
Sums = tuple[list[Array], dict[int, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Jacobians:
    """The compressed Jacobians of the cut step: one row for each of C colours."""

    transition: list[Array]
    """For each part of the states, [C, W, B, n]."""
    immediate: list[list[Array]]
    """For each live operation, [C, W, B, outputs]; in parts, [C, W, B, n], where it is read by columns."""


class Residuals(NamedTuple):
    """What the backward pass of a window needs of the forward one."""

    pull: Any
    """From cotangents of the outputs to those of weights, states and operations."""
    pull_inputs: Any
    """Likewise to those of the inputs; `None` where it is not asked for."""
    transition: list[Array]
    immediate: list[list[Array]]
    data: list[Array]
    traces: list[Carry]
    paths: dict[int, Any]
    """What each trace follows through the window."""
    blocks: dict[int, tuple[Array, Array]]
    """F and D of operations whose blocks are not closed."""
    fresh: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """The functions of an emitted program.

    - `prefix(parameters, steps) -> (weights, others)`: once for each call.
    - `run(weights, others, xs, state, traces, fresh) -> (ys, state, traces)`: a window; `fresh` [B]
        says where the stream begins with it, so that nothing was before. Differentiable by
        `weights`, where the derivative is the online gradient, and by `xs`: under "truncated" an
        input has the gradient of its own step, and under "exact" that of its window. By `xs` it
        costs more, and is done only where it is asked for.
    - `learn(weights, others, xs, state, traces, fresh, loss_of) -> (loss, aux, sums, state, traces)`:
        a window, `loss_of(ys) -> (loss, aux)` and the gradient of the loss by the weights. As it knows
        that the traces are
        read no more, they are overwritten. The gradient is in sums that several windows may add to,
        from `no_sums(weights)` to `gradient(sums)`: what traces give is added up in their own order
        of axes.
    """

    plan: Plan
    forward: Forward
    """How the model itself is run."""
    prefix: Callable[..., Any]
    run: Callable[..., Any]
    learn: Callable[..., Any]

    @promoting
    def no_sums(self, weights: Arrays) -> Sums:
        """Where `learn` begins."""
        entries: dict[int, Array] = {}
        for p in self.plan.carried:
            shape = jax.eval_shape(lambda p=p: _no_entries(p))
            if shape is not None:
                entries[p.op.number] = jnp.zeros(shape.shape, shape.dtype)
        return [jnp.zeros_like(w, sum_dtype(w)) for w in weights], entries

    @promoting
    def gradient(self, sums: Sums) -> list[Array]:
        """By the weights, at least in float32."""
        grads, entries = sums
        for p in self.plan.carried:
            if p.op.number in entries:
                gradient = p.trace.gathered(p.site, entries[p.op.number])
                grads = _accumulated(self.plan, grads, p, gradient)
        return list(grads)

    def fresh_traces(self, batch: int) -> list[Carry]:
        """Traces of a stream that begins, [B, ...]."""
        return [p.trace.init(p.site, batch) for p in self.plan.carried]

    def __str__(self) -> str:
        plan, split = self.plan, self.plan.analysis.split
        lines = [
            f"window of {plan.window} steps for {plan.algorithm}",
            f"  prefix: {len(split.prefix)} equations, once for a call",
            f"  run, learn: {len(split.body)} equations and {plan.colours}, at each step",
            *(f"    {line}" for line in self.forward.lines()),
            "  traces of one example",
        ]
        traces = jax.eval_shape(lambda: self.fresh_traces(1))
        for p, trace in zip(plan.carried, traces, strict=True):
            shapes = [f"{a.dtype.name}{list(a.shape[1:])}" for a in jax.tree.leaves(trace)]
            lines.append(f"    {p.path}: {' + '.join(shapes)}")
        return "\n".join(lines)


def emit(plan: Plan) -> Window:
    """Emit the functions of a plan."""
    step = StepFunctions(plan.analysis)
    emitter = Emitter(plan, step)

    def prefix(parameters, steps):
        return step.prefix(parameters, copies=steps >= TURNED and not emitter.exact)

    @jax.custom_vjp
    @promoting
    def run(*arguments):
        return emitter.forward(*arguments)[0]

    @promoting
    def forward(*arguments):
        by_inputs = any(x.perturbed for x in arguments[2])
        values = jax.tree.map(lambda a: a.value, arguments, is_leaf=lambda a: hasattr(a, "value"))
        out, residuals = emitter.forward(*values, by_inputs=by_inputs)
        return out, jax.tree_util.Partial(emitter.backward, residuals)

    @promoting
    def backward(back, cotangents):
        sums, xs, _ = back([_instantiated(ct) for ct in cotangents[0]])
        dtypes = [v.aval.dtype for v in plan.analysis.split.weights]
        weights = tuple(g.astype(dtype) for g, dtype in zip(sums, dtypes, strict=True))
        return weights, None, xs, None, None, None

    run.defvjp(forward, backward, symbolic_zeros=True)

    @promoting
    def learn(weights, others, xs, state, traces, fresh, loss_of):
        (ys, last), factors, residuals = emitter.window(weights, others, xs, state, traces, fresh)
        loss, pull, aux = jax.vjp(loss_of, ys, has_aux=True)
        (ys_bar,) = pull(jnp.ones_like(loss))
        grads, _, starts = emitter.backward(residuals, ys_bar, read_traces=False)
        traces, entries = emitter.advance(factors, traces, starts)
        return loss, aux, (list(grads), entries), last, traces

    return Window(plan, step.forward, prefix, run, learn)


def _instantiated(cotangent: Any) -> Any:
    zero: Any = jax.custom_derivatives.SymbolicZero
    if not isinstance(cotangent, zero):
        return cotangent
    if cotangent.dtype == jax.dtypes.float0:
        return np.zeros(cotangent.shape, jax.dtypes.float0)
    return jnp.zeros(cotangent.shape, cotangent.dtype)


class Emitter:
    """Makes the functions of a window."""

    def __init__(self, plan: Plan, step: StepFunctions):
        self.plan, self.step = plan, step
        self.exact = plan.algorithm.in_window == "exact"
        self.live = [plan.ops[op.number] for op in step.live]
        self.reads_old = step.reads_old_states()
        analysis = plan.analysis
        self.float_inputs = [i for i, v in enumerate(analysis.step.inputs) if v.is_float]

    # --- forward ---

    def forward(self, weights, others, xs, state, traces, fresh, by_inputs: bool = False):
        """Outputs, new state and new traces; and what the backward pass needs."""
        given = weights, others, xs, state, traces, fresh
        (ys, last), factors, residuals = self.window(*given, by_inputs=by_inputs)
        return (ys, last, self.advance(factors, traces)[0]), residuals

    def window(self, weights, others, xs, state, traces, fresh, by_inputs: bool = False):
        """Outputs and new state; what moves the traces; and what the backward pass needs."""
        course, pull = self._sequential(weights, others, xs, state, by_inputs)
        jacobians = self._jacobians(weights, others, xs, course, fresh)
        ys, read_pull, data = self._read(weights, others, xs, course)
        pull_inputs = None
        if self.exact:
            ys = course.outputs
        else:
            pull = read_pull
            if by_inputs:
                pull_inputs = self._by_inputs(weights, others, xs, course)
        factors = self._factors(jacobians, data)
        followed = [
            p.trace.follow(p.site, factors[p.op.number], trace)
            for p, trace in zip(self.plan.carried, traces, strict=True)
        ]
        paths = {
            p.op.number: path for p, (_, path) in zip(self.plan.carried, followed, strict=True)
        }
        blocks = {
            p.op.number: (factors[p.op.number].immediate, factors[p.op.number].transition)
            for p in self.plan.traced
            if not p.closed
        }
        residuals = Residuals(
            *(pull, pull_inputs, jacobians.transition, jacobians.immediate, data),
            *(list(traces), paths, blocks, fresh),
        )
        return (ys, course.last), (factors, [moved for moved, _ in followed]), residuals

    def jacobians_of(self, weights, others, xs, state) -> dict[int, Factors]:
        """The factors D and F of a window whose stream goes on."""
        course = self.step.run(weights, others, xs, state, outputs=False)
        goes_on = jnp.zeros(state[0].shape[0], bool)
        return self._factors(self._jacobians(weights, others, xs, course, goes_on), None)

    def _sequential(self, weights, others, xs, state, by_inputs: bool):
        """Run the model; under "exact" also how its outputs depend on weights, inputs and states."""
        step = self.step
        moved = self.float_inputs if by_inputs else []
        floats = self.plan.analysis.hidden.leaves

        if not self.exact:
            return step.run(weights, others, xs, state, outputs=False), None

        def through(weights, moving, start):
            begin = list(state)
            for i, value in zip(floats, start, strict=True):
                begin[i] = value
            inputs = list(xs)
            for i, value in zip(moved, moving, strict=True):
                inputs[i] = value
            course = step.run(weights, others, inputs, begin, outputs=True)
            return course.outputs, course

        _, pull, course = jax.vjp(
            through,
            [w.astype(sum_dtype(w)) for w in weights],
            [xs[i] for i in moved],
            [state[i] for i in floats],
            has_aux=True,
        )
        return course, pull

    def _parts(self, states) -> list[Array]:
        """The real vectors, [W, B, n] each, that make up the states."""
        dtype = self.plan.dtype
        return _over_time(lambda s: self.step.parts(s, dtype))(states)

    def _read(self, weights, others, xs, course: Course):
        """The outputs of a window at once, how they depend on states and operations, and data."""

        def read(weights, old, new, deltas):
            def one(x, state, kept, old, new, deltas):
                return self.step.read(weights, others, x, state, kept, old, new, deltas)

            return _over_time(one)(xs, course.before, course.wanted, old, new, deltas)

        old, new = self._parts(course.before), self._parts(course.after)
        deltas = self._deltas(old)
        return jax.vjp(read, list(weights), old, new, deltas, has_aux=True)

    def _by_inputs(self, weights, others, xs, course: Course):
        """How the output of each step depends on the input of that step, with the old state held."""

        def outputs(moving):
            inputs = list(xs)
            for i, value in zip(self.float_inputs, moving, strict=True):
                inputs[i] = value
            one = functools.partial(self.step.outputs, weights, others)
            return _over_time(one)(inputs, course.before)

        return jax.vjp(outputs, [xs[i] for i in self.float_inputs])[1]

    def _deltas(self, parts: Arrays, ops: Sequence[OpPlan] | None = None) -> list[Array]:
        lead = next(part[:, :, 0] for part in parts if part.shape[-1])
        ops = self.live if ops is None else ops
        return [zeros_over(lead, p.op.delta.shape, p.op.delta.dtype) for p in ops]

    def _jacobians(self, weights, others, xs, course: Course, fresh) -> Jacobians:
        parts = self._parts(course.before)
        dtype = self.plan.dtype

        def cut(parts, deltas):
            def one(x, state, kept, old, delta):
                return self.step.cut(weights, others, x, state, kept, old, delta, dtype)

            return _over_time(one)(xs, course.before, course.wanted, parts, deltas)

        _, pull = jax.vjp(cut, parts, self._deltas(parts))
        colours = self.plan.colours
        wanted = colours.colour[None, :] == np.arange(colours.count)[:, None]
        bounds = np.cumsum([part.shape[-1] for part in parts])[:-1]
        seeds = [  # spread over devices as the parts
            jnp.asarray(seed, dtype)[:, None, None] + jnp.zeros_like(part)[None]
            for seed, part in zip(np.split(wanted, bounds, 1), parts, strict=True)
        ]
        if colours.count == 1:
            one = pull([seed[0] for seed in seeds])
            transition, immediate = jax.tree.map(lambda a: a[None], one)
        else:
            transition, immediate = jax.vmap(pull)(seeds)
        compressed = []
        for place, p in enumerate(self.live):
            if p.op.number in colours.columns:
                own = self._by_columns(p, lambda bars, place=place: pull(bars)[1][place], parts)
            else:
                own = [immediate[place].reshape(*immediate[place].shape[:3], -1)]
            compressed.append([j.astype(p.dtype) for j in own])
        without_past = jax.vmap(lambda by_state: _without_past(by_state, fresh))
        return Jacobians([without_past(j) for j in transition], compressed)

    def _by_columns(self, p: OpPlan, pull, parts: Arrays) -> list[Array]:
        """The compressed `F` of an operation, [C, W, B, n] for each part of the states.

        `pull` takes cotangents of the new states to that of the operation.
        """
        given = self.plan.colours.columns[p.op.number]
        seeds = given.colour[None, :] == np.arange(given.count)[:, None]
        (zero,) = self._deltas(parts, [p])
        seeds = jnp.asarray(seeds, zero.dtype).reshape(-1, 1, 1, *zero.shape[2:]) + zero[None]
        push = jax.linear_transpose(pull, parts)
        if given.count == 1:
            found = [j[None] for j in push(seeds[0])[0]]
        else:
            found = jax.vmap(lambda seed: push(seed)[0])(seeds)

        def by_rows() -> list[Array]:
            """The same by reverse mode, which meets no derivative that nothing passes through."""
            bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])

            def row(state):
                bars = [
                    jnp.where(np.arange(a, b) == state, jnp.ones_like(part), 0)
                    for part, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
                ]
                bar = pull(bars)
                bar = bar.reshape(*bar.shape[:2], -1)
                mine = given.colour == np.arange(given.count)[:, None, None, None]
                return jnp.where(mine, bar, 0).sum(-1)

            whole = jnp.moveaxis(lax.map(row, np.arange(bounds[-1])), 0, -1)  # [C, W, B, S]
            return [
                whole[..., a:b].astype(part.dtype)
                for part, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
            ]

        finite = jnp.stack([jnp.isfinite(j).all() for j in found]).all()
        return lax.cond(finite, lambda: found, by_rows)

    def _factors(self, jacobians: Jacobians, data: Arrays | None) -> dict[int, Factors]:
        found, moves = {}, {}
        flat = rows(jacobians.transition)
        xs = [None] * len(self.live) if data is None else self._data_by_op(data)
        for place, p in enumerate(self.live):
            if p.layout is None or p.immediate is None:
                continue
            if p.layout not in moves:
                moves[p.layout] = take(flat, p.layout.transition)
            own = take(rows(jacobians.immediate[place]), p.immediate)
            found[p.op.number] = Factors(xs[place], own, moves[p.layout])
        return found

    def _data_by_op(self, data: Arrays) -> list[Array | None]:
        """For each live operation, its `x` in canonical form, [W, B, G, I]."""
        given = iter(data)
        out: list[Array | None] = []
        for p in self.live:
            kind = p.op.kind
            if kind.data is None:
                out.append(None)
                continue
            values: list[Any] = [None] * len(p.op.equation.inputs)

            def factor(x, kind=kind, values=values):
                return kind.factor([x if i == kind.data else v for i, v in enumerate(values)])

            x = _over_time(factor)(next(given))
            exact = jnp.issubdtype(x.dtype, jnp.inexact)
            out.append(x if exact else x.astype(p.op.delta.dtype))  # spikes may be booleans
        return out

    def advance(self, moves, traces: Sequence[Carry], starts=None):
        """The traces at the end of a window.

        Where `starts`, the credit of those at its start, is given by the number of the operation,
        also what the entries of those that have some give, and they are overwritten.
        """
        factors, followed = moves
        products, after, entries = {}, [], {}
        sharing: dict[int, list[Factors]] = {}
        for p in self.plan.traced:
            owner = p.op.number if p.shares is None else p.shares
            sharing.setdefault(owner, []).append(factors[p.op.number])
        for p, trace, moved in zip(self.plan.carried, traces, followed, strict=True):
            own = sharing[p.op.number]

            def transitions(layout=p.layout, own=own):
                if layout not in products:
                    products[layout] = suffix_products(layout.pairs, own[0].transition)
                return products[layout]

            start = None if starts is None else starts[p.op.number]
            now, read = p.trace.advance(p.site, own, transitions, trace, moved, start)
            after.append(now)
            if read is not None:
                entries[p.op.number] = read
        return after, entries

    # --- backward ---

    def backward(self, residuals: "Residuals", ys_bar, read_traces: bool = True):
        """Cotangents of weights and inputs, and the credit of each trace at the start.

        Without `read_traces`, what traces give entry by entry is left to `advance`.
        """
        r = residuals
        carried = {p.op.number: c for p, c in zip(self.plan.carried, r.traces, strict=True)}
        if self.exact:
            weights_bar, moving_bar, start = r.pull(ys_bar)
            signal_start = [_without_past(s[None], r.fresh)[0] for s in self._signals(start)]
            weights_bar, starts = _summable(weights_bar), {}
            for p in self.plan.carried:
                number, trace = p.op.number, carried[p.op.number]
                starts[number] = p.trace.start(p.site, take(signal_start, p.layout.states), trace)
                rows_of = p.trace.rows(p.site, starts[number], trace)
                weights_bar = self._past(weights_bar, p, starts[number], trace, read_traces)
                if rows_of:
                    weights_bar = _accumulated(
                        self.plan, weights_bar, p, self._product(p, *rows_of)
                    )
            return tuple(weights_bar), self._inputs(moving_bar), starts
        weights_bar, old, new, deltas = r.pull(ys_bar)
        moving_bar = [] if r.pull_inputs is None else r.pull_inputs(ys_bar)[0]
        old = [_without_past(part, r.fresh) for part in old]
        weights_bar, starts = _summable(weights_bar), {}
        xs = self._data_by_op(r.data)
        credit = _Credit(self, r, old, new)
        for place, p in enumerate(self.live):
            delta, number, past = deltas[place], p.op.number, []
            if p.form is None:
                here = self._into_op(r.immediate[place], new, p)
            else:
                signals = _OpSignals(credit, p, place)
                here, start = p.trace.credit(p.site, signals, r.paths.get(number, ()))
                if number in carried:
                    starts[number], trace = start, carried[number]
                    past = p.trace.rows(p.site, start, trace)
                    weights_bar = self._past(weights_bar, p, start, trace, read_traces)
            delta = delta + here.reshape(delta.shape)
            gradient = self._product(p, (xs[place], delta), *past)
            weights_bar = _accumulated(self.plan, weights_bar, p, gradient)
        return tuple(weights_bar), self._inputs(moving_bar), starts

    def _past(self, weights_bar, p: OpPlan, start, trace: Carry, read: bool) -> list[Array]:
        """The gradient with what a trace gives entry by entry, if it does and is to be read."""
        entries = p.trace.entries(p.site, start, trace) if read else None
        if entries is None:
            return weights_bar
        return _accumulated(self.plan, weights_bar, p, p.trace.gathered(p.site, entries))

    def _signals(self, start: Arrays) -> list[Array]:
        """Cotangents of the float leaves, as those of their parts; [B, n] each.

        That of a complex leaf is the derivative by its real part minus i times that by the other.
        """
        parts = self.plan.analysis.hidden.split([s.conj() for s in start])
        return [part.reshape(part.shape[0], -1).astype(self.plan.dtype) for part in parts]

    def _credit(self, transition, old, new) -> tuple[list[Array], list[Array]]:
        """Reverse mode through the cut steps: the credit of each new state, and of the start."""
        owners = columns(self.plan.colours.transition, new)

        def back(after, now):
            jacobian, by_old, by_new = now
            here = [n + a for n, a in zip(by_new, after, strict=True)]
            before = [
                o + weighted(here, owner, j)
                for o, j, owner in zip(by_old, jacobian, owners, strict=True)
            ]
            return before, here

        transition = [by_step(j) for j in transition]
        last = [jnp.zeros_like(part[0]) for part in new]
        start, credit = lax.scan(back, last, (transition, old, new), reverse=True)
        return credit, start

    def _into_op(self, immediate: Arrays, signal: Arrays, p: OpPlan) -> Array:
        """`F^T` on a signal."""
        by_columns = self.plan.colours.columns.get(p.op.number)
        if by_columns is not None:
            parts = [times(s[None], j) for j, s in zip(immediate, signal, strict=True)]
            return take(rows(parts), by_columns.entries).sum(-1)
        (own,) = immediate
        owner = self.plan.colours.immediate[p.op.number]
        if owner.at.shape[-1] == 0:
            return jnp.zeros(own.shape[1:], own.dtype)
        return weighted(signal, owner, own)

    def _product(self, p: OpPlan, *given: tuple[Array | None, Array]) -> Array:
        """The gradient of a weight from data and credit, [n, B, ...] each, as one product."""
        kind = p.op.kind
        delta = _stacked([d.reshape(*d.shape[:2], kind.groups, kind.outputs) for _, d in given])
        data = [
            x.reshape(*x.shape[:2], kind.groups, kind.inputs) for x, _ in given if x is not None
        ]
        if not data:
            return kind.contract(None, delta)
        x = _stacked(data)
        return kind.contract(x, delta.astype(result_type(x, delta)))

    def _inputs(self, moving_bar):
        """Cotangents of the inputs; `None` for those that are not differentiated."""
        given = dict(zip(self.float_inputs if moving_bar else (), moving_bar, strict=True))
        return [given.get(i) for i in range(len(self.plan.analysis.step.inputs))]


def sum_dtype(weight: Array) -> Any:
    """The dtype in which a gradient is summed over windows: at least float32."""
    return result_type(weight.dtype, jnp.float32)


def _summable(grads: Arrays) -> list[Array]:
    return [g.astype(sum_dtype(g)) for g in grads]


class _Credit:
    """The learning signals of a window, and their credit through the cut steps, once it is asked for."""

    def __init__(self, emitter: Emitter, residuals: Residuals, old: Arrays, new: Arrays):
        self.emitter, self.residuals, self.old, self.new = emitter, residuals, old, new

    @functools.cached_property
    def through(self) -> tuple[list[Array], list[Array]]:
        return self.emitter._credit(self.residuals.transition, self.old, self.new)


@dataclasses.dataclass(frozen=True, eq=False)
class _OpSignals:
    """Them, as one operation sees them."""

    credit: _Credit
    p: OpPlan
    place: int

    def new(self) -> Array:
        return take(self.credit.new, self.p.layout.states)

    def old(self) -> Array | None:
        reads = self.credit.emitter.reads_old
        return take(self.credit.old, self.p.layout.states) if reads else None

    def through(self) -> tuple[Array, Array]:
        credit, p, residuals = self.credit, self.p, self.credit.residuals
        if p.closed:
            by_step, start = credit.through
            here = credit.emitter._into_op(residuals.immediate[self.place], by_step, p)
            return here, take(start, p.layout.states)
        immediate, moves = residuals.blocks[p.op.number]
        at = p.layout.states
        here, start = _credit_within(
            p.layout.pairs, moves, take(credit.old, at), take(credit.new, at)
        )
        return times(here, immediate).sum(-2), start


def _credit_within(pairs, moves: Array, old: Array, new: Array) -> tuple[Array, Array]:
    """The credit of the block of each output, of each new state and of the start.

    For blocks that are not closed, where each output keeps to transitions inside its own.
    """

    def back(after, now):
        moves, by_old, by_new = now
        here = by_new + after
        return by_old + apply_back(pairs, moves, here), here

    start, credit = lax.scan(back, jnp.zeros_like(new[0]), (moves, old, new), reverse=True)
    return credit, start


def _no_entries(p: OpPlan) -> Array | None:
    """What `entries` of a trace is like."""
    credit = jnp.zeros((1, p.block, p.op.kind.groups * p.op.kind.outputs), p.dtype)
    carry = p.trace.init(p.site, 1)
    return p.trace.entries(p.site, p.trace.start(p.site, credit, carry), carry)


def _accumulated(plan: Plan, grads: Arrays, p: OpPlan, more: Array) -> list[Array]:
    """Gradients by the weights, with more of that of one operation's."""
    place = plan.analysis.split.weights.index(p.op.weight)
    dtype = grads[place].dtype
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        more = more.real
    new = list(grads)
    new[place] = grads[place] + more.astype(dtype)
    return new


def _without_past(by_state: Array, fresh: Array) -> Array:
    """Derivatives [W, B, ...] by old states, with none by a state that comes first.

    There a derivative may be no number, as that of a norm at zero is not, and no one asks for it.
    """
    first = np.arange(by_state.shape[0]) == 0
    where = first[:, None] & fresh[None]
    return jnp.where(where.reshape(*where.shape, *[1] * (by_state.ndim - 2)), 0, by_state)


def _stacked(arrays: Arrays) -> Array:
    dtype = result_type(*arrays)
    return arrays[0] if len(arrays) == 1 else jnp.concatenate([a.astype(dtype) for a in arrays])


def _over_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one example at one step, over the axes [W, B]."""
    return jax.vmap(jax.vmap(function))


__all__ = ["Emitter", "Window", "emit"]
