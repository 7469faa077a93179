"""A window of a trace program, as one differentiable function on arrays.

All arrays have axes [W, B, ...] here. A window runs the model forward, step by step; then
everything else is computed for all its steps at once: the Jacobians of the cut step, the outputs,
and, backwards, the learning signals. What remains sequential is element-wise code on blocks.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import promoting, result_type
from ..algorithms import Decay, Full, LowRank
from ..plan import OpPlan, Plan
from ._forward import TURNED, Course, Forward
from ._gather import columns, rows, take, zeros_over
from ._step import StepFunctions
from ._traces import (
    Factors,
    Trace,
    advance_element_wise,
    advance_full,
    credit_smooth,
    credit_within,
    empty_trace,
    entries_full,
    gathered,
    no_entries,
    past_modes,
    past_smooth,
    past_smooth_whole,
    reduce_modes,
    smooth,
    suffix_products,
)
from ._transitions import times

Arrays = Sequence[Array]
Sums = tuple[list[Array], dict[int, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Jacobians:
    """The compressed Jacobians of the cut step: one row for each of C colours."""

    transition: list[Array]
    """For each part of the states, [W, B, C, n]."""
    immediate: list[list[Array]]
    """For each live operation, [W, B, C, outputs]; in parts, [W, B, C, n], where it is read by columns."""


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

    def no_sums(self, weights: Arrays) -> Sums:
        """Where `learn` begins."""
        full = {p.op.number: no_entries(p) for p in self.plan.carried if isinstance(p.form, Full)}
        return [jnp.zeros_like(w, sum_dtype(w)) for w in weights], full

    @promoting
    def gradient(self, sums: Sums) -> list[Array]:
        """By the weights, at least in float32."""
        grads, entries = sums
        for p in self.plan.carried:
            if p.op.number in entries:
                grads = _accumulated(self.plan, grads, p, gathered(p, entries[p.op.number]))
        return list(grads)

    def fresh_traces(self, batch: int) -> list[Trace]:
        """Traces of a stream that begins, [B, ...]."""
        return [empty_trace(p, batch) for p in self.plan.carried]

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
        self.reads_output = [step.reads_output_of(op) for op in step.live]
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
        smoothed = [
            smooth(p, factors[p.op.number], trace) if isinstance(p.form, Decay) else (None, ())
            for p, trace in zip(self.plan.carried, traces, strict=True)
        ]
        paths = {
            p.op.number: path for p, (_, path) in zip(self.plan.carried, smoothed, strict=True)
        }
        blocks = {
            p.op.number: (factors[p.op.number].immediate, factors[p.op.number].transition)
            for p in self.plan.traced
            if not p.closed
        }
        residuals = (
            *(pull, pull_inputs, jacobians.transition, jacobians.immediate, data),
            *(traces, paths, blocks, fresh),
        )
        return (ys, course.last), (factors, [trace for trace, _ in smoothed]), residuals

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
            compressed.append([jnp.moveaxis(j, 0, 2).astype(p.dtype) for j in own])
        return Jacobians(
            [_without_past(jnp.moveaxis(j, 0, 2), fresh) for j in transition], compressed
        )

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

    def advance(self, moves, traces: Sequence[Trace], starts=None):
        """The traces at the end of a window.

        Where `starts`, the credit of those at its start, is given by the number of the operation,
        also what the entries of the full ones give, and they are overwritten.
        """
        factors, smoothed = moves
        products, after, entries = {}, [], {}
        sharing: dict[int, list[Factors]] = {}
        for p in self.plan.traced:
            owner = p.op.number if p.shares is None else p.shares
            sharing.setdefault(owner, []).append(factors[p.op.number])
        for p, trace, moved in zip(self.plan.carried, traces, smoothed, strict=True):
            own, number = sharing[p.op.number], p.op.number
            start = None if starts is None else starts[number]
            if p.op.kind.data is None:
                moved = advance_element_wise(p, own, trace)
                if start is not None:
                    entries[number] = entries_full(p, start, trace)
            elif not isinstance(p.form, Decay):
                if p.layout not in products:
                    products[p.layout] = suffix_products(p.layout.pairs, own[0].transition)
                whole = products[p.layout]
                if isinstance(p.form, LowRank):
                    moved = reduce_modes(p, own[0], whole, trace, start)
                else:
                    moved, read = advance_full(p, own, whole, trace, start)
                    if start is not None:
                        entries[number] = read
            after.append(moved)
        return after, entries

    # --- backward ---

    def backward(self, residuals, ys_bar, read_traces: bool = True):
        """Cotangents of weights and inputs, and the credit of each trace at the start.

        Without `read_traces`, what full traces give is left to `advance`.
        """
        pull, pull_inputs, transition, immediate, data, traces, smoothed, blocks, fresh = residuals
        if self.exact:
            weights_bar, moving_bar, start = pull(ys_bar)
            signal_start = [_without_past(s[None], fresh)[0] for s in self._signals(start)]
            starts = {p.op.number: take(signal_start, p.layout.states) for p in self.plan.carried}
            weights_bar = _summable(weights_bar)
            for p, trace in zip(self.plan.carried, traces, strict=True):
                given = p, starts[p.op.number], trace
                if isinstance(p.form, Full):
                    if not read_traces:
                        continue
                    gradient = gathered(p, entries_full(*given))
                else:
                    past = past_modes if isinstance(p.form, LowRank) else past_smooth_whole
                    gradient = self._product(p, past(*given))
                weights_bar = _accumulated(self.plan, weights_bar, p, gradient)
            return tuple(weights_bar), self._inputs(moving_bar), starts
        weights_bar, old, new, deltas = pull(ys_bar)
        moving_bar = [] if pull_inputs is None else pull_inputs(ys_bar)[0]
        old = [_without_past(part, fresh) for part in old]
        weights_bar = _summable(weights_bar)
        xs = self._data_by_op(data)
        credit, start = new, []
        if any(not isinstance(p.form, Decay) and p.closed for p in self.plan.traced):
            credit, start = self._credit(transition, old, new)
        carried = dict(zip([p.op.number for p in self.plan.carried], traces, strict=True))
        starts = {}
        for place, p in enumerate(self.live):
            delta, number, past = deltas[place], p.op.number, []
            if p.form is None:
                delta = delta + self._into_op(immediate[place], new, p).reshape(delta.shape)
            elif isinstance(p.form, Decay):
                at = p.layout.states
                by_old = take(old, at) if self.reads_old else None
                here, starts[number] = credit_smooth(p, take(new, at), by_old, smoothed[number])
                here = here.reshape(delta.shape)
                delta = delta + here if self.reads_output[place] else here
                past = [past_smooth(starts[number], carried[number])]
            elif p.closed:
                starts[number] = take(start, p.layout.states)
                delta = delta + self._into_op(immediate[place], credit, p).reshape(delta.shape)
            else:
                own, moves = blocks[number]
                at = p.layout.states
                here, starts[number] = credit_within(
                    p.layout.pairs, moves, take(old, at), take(new, at)
                )
                delta = delta + times(here, own).sum(-2).reshape(delta.shape)
            if isinstance(p.form, LowRank):
                past = [past_modes(p, starts[number], carried[number])]
            elif isinstance(p.form, Full) and number in carried and read_traces:
                read = entries_full(p, starts[number], carried[number])
                weights_bar = _accumulated(self.plan, weights_bar, p, gathered(p, read))
            gradient = self._product(p, (xs[place], delta), *past)
            weights_bar = _accumulated(self.plan, weights_bar, p, gradient)
        return tuple(weights_bar), self._inputs(moving_bar), starts

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
                o + times(take(here, owner), j).sum(-2)
                for o, j, owner in zip(by_old, jacobian, owners, strict=True)
            ]
            return before, here

        last = [jnp.zeros_like(part[0]) for part in new]
        start, credit = lax.scan(back, last, (transition, old, new), reverse=True)
        return credit, start

    def _into_op(self, immediate: Arrays, signal: Arrays, p: OpPlan) -> Array:
        """`F^T` on a signal."""
        by_columns = self.plan.colours.columns.get(p.op.number)
        if by_columns is not None:
            parts = [times(s[:, :, None], j) for j, s in zip(immediate, signal, strict=True)]
            return take(rows(parts), by_columns.entries).sum(-1)
        (own,) = immediate
        owner = self.plan.colours.immediate[p.op.number]
        if owner.at.shape[-1] == 0:
            return jnp.zeros((*own.shape[:2], own.shape[-1]), own.dtype)
        return times(take(signal, owner), own).sum(-2)

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
    return jnp.promote_types(weight.dtype, jnp.float32)


def _summable(grads: Arrays) -> list[Array]:
    return [g.astype(sum_dtype(g)) for g in grads]


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
