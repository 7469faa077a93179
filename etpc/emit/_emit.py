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

from .._jax import linear_transpose, promoting, result_type, without_derivative
from .._tuning import tuning
from ..analyse import WeightOp, trace_dtype
from ..plan import Layout, OpPlan, Plan, TracePlan
from ..traces import Carry, Factors, Traces, suffix_products
from ._forward import Forward, Rollout, Stored, narrowed
from ._gather import of_each_example, rows, take, take_rows, zeros_over
from ._lookback import as_carried, none_yet, recent, window_steps
from ._passage import CutPassage, Followed, FollowedPassage, Products
from ._prefix import instantiated
from ._read import Reading
from ._signals import Credit, OpSignals, into_op
from ._step import StepFunctions
from ._uncut import Directed, Uncut, finite_where, sum_dtype, where_over

Arrays = Sequence[Array]
Sums = tuple[list[Array], dict[int, Array]]

REORDERED = 1 << 18
"""Bytes of what a trace gives, up to which it is added to the gradient of its weight window by window, if those are
not so short that this costs time: with sums of its own, XLA has more kernels to compile."""
NO_SECOND_DERIVATIVE = (
    "The gradient of a program is differentiated, as for a Hessian product, a gradient penalty or a "
    "learning rate that is learned over several updates. Its derivative would be wrong. This is because "
    "an online gradient holds traces and parts of the step constant. Where the gradient is meant as a "
    "constant, pass it through `jax.lax.stop_gradient`. For its derivative take `etpc.bptt`, whose "
    "gradient may be differentiated."
)
NOT_SHORT = 8
"""Steps of a window that is not short."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Jacobians:
    """The compressed Jacobians of the cut step: one row for each of C colours."""

    transition: list[Array]
    """For each part of the states, [C, W, B, n]."""
    immediate: list[list[Array]]
    """For each live operation, [C, W, B, outputs]; in parts, [C, W, B, n], where it is read by columns."""

    def within(self, first: Array, valid: Array) -> "Jacobians":
        """Those inside streams: nothing passes into a step that is the first, or from one that is no
        step of a stream."""
        return Jacobians(
            [where_over(~first[None], j) for j in self.transition],
            [[where_over(valid[None], j) for j in parts] for parts in self.immediate],
        )


class Starts(NamedTuple):
    """Credit at the start of a window."""

    of_trace: dict[int, Array]
    """Of each trace that is carried, by the number of its operation."""
    credit: Array | None
    """Of all states, [B, S], where directions are followed."""


class CutResiduals(NamedTuple):
    """What the backward pass needs besides, where windows are cut."""

    pull_inputs: Any
    """From cotangents of the outputs to those of the inputs; `None` where it is not asked for."""
    jacobians: Jacobians
    data: Sequence[Array]
    paths: dict[int, Any]
    """What each trace follows through the window."""
    blocks: dict[int, Factors]
    """Of operations whose blocks are not closed."""


class Residuals(NamedTuple):
    """What the backward pass of a window needs of the forward one."""

    pull: Any
    """From cotangents of the outputs to those of weights, states and operations, and where windows are
    not cut of inputs."""
    traces: Traces
    fresh: Array
    """Whether the stream begins where the traces are."""
    cut: CutResiduals | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """What moves the traces of a window."""

    factors: dict[int, Factors]
    followed: list[Any]
    """Each trace as its form followed the window."""
    along: "Directed | None"
    """What the window does along the directions that are followed, if some are."""
    past: tuple[Array, ...] | None = None
    """The steps that are behind after the window, where some are kept."""


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """The functions of an emitted program.

    - `prefix(parameters, steps) -> (weights, others)`: once for each call.
    - `run(weights, others, xs, state, traces, fresh) -> (ys, state, traces)`: a window; `fresh` [B]
        says where the stream begins with it, so that nothing was before. Differentiable by
        `weights`, where the derivative is the online gradient, and by `xs`: under "cut" an
        input has the gradient of its own step, and under "full" that of its window. By `xs` it
        costs more, and is done only where it is asked for.
    - `learn(weights, others, xs, state, traces, fresh, loss_of) -> (loss, aux, sums, state, traces)`:
        a window, `loss_of(ys) -> (loss, aux)` and the gradient of the loss by the weights. As it knows
        that the traces are read no more, they are overwritten. The gradient is in sums that several
        windows may add to, from `no_sums(weights, steps)` by `added(sums, more)` to `gradient(sums)`: what
        traces give is added up in their own order of axes where that is faster.
    """

    plan: Plan
    forward: Forward
    """How the model itself is run."""
    prefix: Callable[..., Any]
    run: Callable[..., Any]
    learn: Callable[..., Any]

    @promoting
    def no_sums(self, weights: Arrays, steps: int) -> Sums:
        """Where the sums of windows of so many steps begin."""
        entries: dict[int, Array] = {}
        for p in self.plan.carried:
            shape = jax.eval_shape(lambda p=p: _no_entries(p))
            if shape is None:
                continue
            if steps < NOT_SHORT or shape.size * shape.dtype.itemsize > REORDERED:
                entries[p.op.number] = jnp.zeros(shape.shape, shape.dtype)
        return [jnp.zeros_like(w, sum_dtype(w)) for w in weights], entries

    @promoting
    def added(self, sums: Sums, more: Sums) -> Sums:
        """With those of one more window."""
        (grads, entries), (new_grads, new_entries) = sums, more
        reordered = {n: a for n, a in new_entries.items() if n not in entries}
        new_grads = self._gathered(new_grads, reordered)
        entries = {n: a + new_entries[n] for n, a in entries.items()}
        return [a + b for a, b in zip(grads, new_grads, strict=True)], entries

    @promoting
    def gradient(self, sums: Sums) -> list[Array]:
        """By the weights, at least in float32."""
        return self._gathered(*sums)

    def _gathered(self, grads: Arrays, entries: dict[int, Array]) -> list[Array]:
        for p in self.plan.carried:
            if p.op.number in entries:
                gradient = p.form.gathered(p.site, entries[p.op.number])
                grads = _accumulated(self.plan, grads, p.op, gradient)
        return list(grads)

    def fresh_traces(self, batch: int) -> Traces:
        """Traces of a stream that begins, [B, ...]."""
        carries = [p.form.init(p.site, batch) for p in self.plan.carried]
        directions = self.plan.directions
        if directions is None:
            return Traces(carries)
        shared = directions.init(self.plan.analysis.hidden.size, self.plan.dtype)
        return Traces(carries, shared, self.fresh_each(batch))

    def fresh_each(self, batch: int) -> Carry:
        """What each example has of the directions when its stream begins, [B, ...]."""
        directions = self.plan.directions
        return (
            ()
            if directions is None
            else directions.each(self.plan.analysis.hidden.size, batch, self.plan.dtype)
        )

    def none_yet(self, state: Arrays) -> tuple[Array, ...]:
        """The steps behind a stream that begins with a state [B, ...]."""
        if not self.plan.behind:
            return ()
        return none_yet([v.aval for v in self.plan.analysis.step.inputs], state, self.plan.behind)

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
        for p, trace in zip(plan.carried, traces.carries, strict=True):
            shapes = [f"{a.dtype.name}{list(a.shape[1:])}" for a in jax.tree.leaves(trace)]
            lines.append(f"    {p.op.path}: {' + '.join(shapes)}")
        return "\n".join(lines)


def emit(plan: Plan) -> Window:
    """Emit the functions of a plan."""
    step = StepFunctions(plan.analysis)
    emitter = Emitter(plan, step)

    def prefix(parameters, steps):
        least = tuning().transpose_min_steps
        copies = least is not None and steps >= least and emitter.uncut is None
        return step.prefix(parameters, copies=copies)

    @jax.custom_vjp
    @promoting
    def run(*arguments):
        return emitter.forward(*arguments)[0]

    @promoting
    def forward(*arguments):
        by_inputs = any(x.perturbed for x in arguments[2])
        values = jax.tree.map(lambda a: a.value, arguments, is_leaf=lambda a: hasattr(a, "value"))
        out, residuals = emitter.forward(*values, by_inputs=by_inputs)
        if emitter.uncut is None or plan.behind or plan.directions is not None:
            residuals = without_derivative(residuals, NO_SECOND_DERIVATIVE)
        else:  # nothing but the traces is held constant
            traces = without_derivative(residuals.traces, NO_SECOND_DERIVATIVE)
            residuals = residuals._replace(traces=traces)
        return out, jax.tree_util.Partial(emitter.backward, residuals)

    @promoting
    def backward(pull, cotangents):
        sums, xs, _ = pull([instantiated(cotangent) for cotangent in cotangents[0]])
        dtypes = [v.aval.dtype for v in plan.analysis.split.weights]
        weights = tuple(g.astype(dtype) for g, dtype in zip(sums, dtypes, strict=True))
        return weights, None, xs, None, None, None

    run.defvjp(forward, backward, symbolic_zeros=True)

    @promoting
    def learn(weights, others, xs, state, traces, fresh, loss_of):
        (ys, last), moves, residuals = emitter.window(weights, others, xs, state, traces, fresh)
        loss, pull, aux = jax.vjp(loss_of, ys, has_aux=True)
        (ys_bar,) = pull(jnp.ones_like(loss))
        grads, _, starts = emitter.backward(residuals, ys_bar, read_traces=False)
        traces, entries = emitter.advance(moves, traces, starts)
        return loss, aux, (list(grads), entries), last, traces

    return Window(plan, step.forward, prefix, run, learn)


class Emitter:
    """Makes the functions of a window."""

    def __init__(self, plan: Plan, step: StepFunctions):
        self.plan, self.step = plan, step
        self.uncut = Uncut(plan, step) if plan.algorithm.backprop == "full" else None
        self.live = [plan.ops[op.number] for op in step.live]
        self.reading = Reading(step)
        self.reads_old = self.reading.reads_old_states()
        analysis = plan.analysis
        self.float_inputs = [i for i, v in enumerate(analysis.step.inputs) if v.is_float]
        self._entered = _entered(plan.traces)

    # --- forward ---

    def forward(self, weights, others, xs, state, traces, fresh, by_inputs: bool = False):
        """Outputs, new state and new traces; and what the backward pass needs."""
        arguments = weights, others, xs, state, traces, fresh
        (ys, last), moves, residuals = self.window(*arguments, by_inputs=by_inputs)
        return (ys, last, self.advance(moves, traces)[0]), residuals

    def window(self, weights, others, xs, state, traces: Traces, fresh, by_inputs: bool = False):
        """Outputs and new state; what moves the traces; and what the backward pass needs."""
        if self.plan.behind:
            return self._looking_back(weights, others, xs, state, traces, fresh, by_inputs)
        pull = along = None
        if self.uncut is None:
            rollout = self.step.run(weights, others, xs, state, outputs=False)
        else:
            moving = self._moving(by_inputs)
            rollout, pull = self.uncut(weights, others, xs, state, moving)
            if self.plan.directions is not None:
                along = self.uncut.along(rollout, pull, traces, fresh)
        jacobians = self._jacobians(weights, others, xs, rollout, fresh)
        ys, read_pull, data = self._read(weights, others, xs, rollout)
        factors = self._factors(jacobians, data)
        followed, paths = self._follow(factors, traces)
        moves = Moves(factors, followed, along)
        if pull is not None:
            return (rollout.outputs, rollout.last), moves, Residuals(pull, traces, fresh)
        cut = CutResiduals(
            self._by_inputs(weights, others, xs, rollout) if by_inputs else None,
            *(jacobians, data, paths),
            {p.op.number: factors[p.op.number] for p in self.plan.traces if not p.closed},
        )
        return (ys, rollout.last), moves, Residuals(read_pull, traces, fresh, cut)

    def _moving(self, by_inputs: bool) -> Sequence[int]:
        return self.float_inputs if by_inputs else ()

    def _follow(self, factors: dict[int, Factors], traces: Traces):
        """Each trace as its form follows the window, and by number what its credit needs of that."""
        pairs = [
            p.form.follow(p.site, factors[p.op.number], trace)
            for p, trace in zip(self.plan.carried, traces.carries, strict=True)
        ]
        paths = {p.op.number: path for p, (_, path) in zip(self.plan.carried, pairs, strict=True)}
        return [followed for followed, _ in pairs], paths

    def _looking_back(
        self, weights, others, xs, state, traces: Traces, fresh, by_inputs: bool = False
    ):
        """Likewise, where the traces are at the start of the steps behind: as many steps leave these as enter."""
        assert self.uncut is not None
        behind, count = recent(traces.past, xs, state), xs[0].shape[0]
        rollout, pull = self.uncut(
            weights, others, xs, state, self._moving(by_inputs), (behind, fresh)
        )
        steps = behind.then(window_steps(xs, rollout.before, fresh))
        leaving, past = steps.part(None, count), as_carried(steps.part(count, None))
        start, stored = [s[0] for s in leaving.states], Stored(leaving.states, leaving.first)
        fresh_start, along = leaving.first[0] | ~leaving.valid[0], None
        if self.plan.directions is None:
            old = self.step.run(weights, others, leaving.xs, start, outputs=False, stored=stored)
        else:
            old, old_pull = self.uncut(weights, others, leaving.xs, start, stored=stored)
            along = self.uncut.along(old, old_pull, traces, fresh_start, leaving.valid)
        jacobians = self._jacobians(weights, others, leaving.xs, old, fresh_start)
        jacobians = jacobians.within(leaving.first, leaving.valid)
        data = self._read(weights, others, leaving.xs, old)[2]
        counted = leaving.valid.astype(self.plan.dtype)
        factors = {
            number: factor.counting(counted)
            for number, factor in self._factors(jacobians, data).items()
        }
        moves = Moves(factors, self._follow(factors, traces)[0], along, past)
        return (rollout.outputs, rollout.last), moves, Residuals(pull, traces, fresh_start)

    def _parts(self, states) -> list[Array]:
        """The real vectors, [W, B, n] each, that make up the states."""
        dtype = self.plan.dtype
        return _over_time(lambda s: self.step.parts(s, dtype))(states)

    def _read(self, weights, others, xs, rollout: Rollout):
        """The outputs of a window at once, how they depend on states and operations, and data."""

        def read(weights, old, new, deltas):
            def one(x, state, saved, old, new, deltas):
                of_example = list(narrowed(analysis, wide(weights), [*old, *x]).values())
                return self.reading(of_example, others, x, state, saved, old, new, deltas)

            return _over_time(one)(xs, rollout.before, rollout.wanted, old, new, deltas)

        analysis = self.plan.analysis
        wide = lambda weights: dict(zip(analysis.split.weights, weights, strict=True))
        old, new = self._parts(rollout.before), self._parts(rollout.after)
        deltas = self._deltas(old)
        return jax.vjp(read, _summable(weights), old, new, deltas, has_aux=True)

    def _by_inputs(self, weights, others, xs, rollout: Rollout):
        """How the output of each step depends on the input of that step, with the old state held."""

        def outputs(moving):
            inputs = list(xs)
            for i, value in zip(self.float_inputs, moving, strict=True):
                inputs[i] = value
            outputs_of = functools.partial(self.step.outputs, weights, others)
            return _over_time(outputs_of)(inputs, rollout.before)

        return jax.vjp(outputs, [xs[i] for i in self.float_inputs])[1]

    def _deltas(self, parts: Arrays, ops: Sequence[OpPlan] | None = None) -> list[Array]:
        lead = next(part[:, :, 0] for part in parts if part.shape[-1])
        ops = self.live if ops is None else ops
        return [zeros_over(lead, p.op.delta.shape, p.op.delta.dtype) for p in ops]

    def _jacobians(self, weights, others, xs, rollout: Rollout, fresh) -> Jacobians:
        parts = self._parts(rollout.before)
        dtype = self.plan.dtype

        def cut(parts, deltas):
            def one(x, state, saved, old, delta):
                return self.step.cut(weights, others, x, state, saved, old, delta, dtype)

            return _over_time(one)(xs, rollout.before, rollout.wanted, parts, deltas)

        _, pull = jax.vjp(cut, parts, self._deltas(parts))
        colours = self.plan.colours
        of_colour = colours.colour[None, :] == np.arange(colours.count)[:, None]
        bounds = np.cumsum([part.shape[-1] for part in parts])[:-1]
        seeds = [  # spread over devices as the parts
            jnp.asarray(seed, dtype)[:, None, None] + jnp.zeros_like(part)[None]
            for seed, part in zip(np.split(of_colour, bounds, 1), parts, strict=True)
        ]
        if colours.count == 1:
            one_product = pull([seed[0] for seed in seeds])
            transition, immediate = jax.tree.map(lambda a: a[None], one_product)
        else:
            transition, immediate = jax.vmap(pull)(seeds)
        compressed = []
        for place, p in enumerate(self.live):
            if p.op.number in colours.columns:
                f = self._by_columns(p, lambda bars, place=place: pull(bars)[1][place], parts)
            else:
                f = [immediate[place].reshape(*immediate[place].shape[:3], -1)]
            dtype = trace_dtype(self.plan.analysis, p.op)
            compressed.append([j.astype(dtype) for j in f])
        without_past = jax.vmap(lambda by_state: _without_past(by_state, fresh))
        return Jacobians([without_past(j) for j in transition], compressed)

    def _by_columns(self, p: OpPlan, pull, parts: Arrays) -> list[Array]:
        """The compressed `F` of an operation, [C, W, B, n] for each part of the states.

        `pull` takes cotangents of the new states to that of the operation.
        """
        columns = self.plan.colours.columns[p.op.number]
        seeds = columns.colour[None, :] == np.arange(columns.count)[:, None]
        (zero,) = self._deltas(parts, [p])
        seeds = jnp.asarray(seeds, zero.dtype).reshape(-1, 1, 1, *zero.shape[2:]) + zero[None]
        push = linear_transpose(pull, parts)
        if columns.count == 1:
            products = [j[None] for j in push(seeds[0])[0]]
        else:
            products = jax.vmap(lambda seed: push(seed)[0])(seeds)

        def by_rows() -> list[Array]:
            """The same in reverse mode, which meets no derivative that nothing passes through."""
            bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])

            def row(state):
                bars = [
                    jnp.where(np.arange(a, b) == state, jnp.ones_like(part), 0)
                    for part, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
                ]
                bar = pull(bars)
                bar = bar.reshape(*bar.shape[:2], -1)
                of_colour = columns.colour == np.arange(columns.count)[:, None, None, None]
                return jnp.where(of_colour, bar, 0).sum(-1)

            compressed = jnp.moveaxis(lax.map(row, np.arange(bounds[-1])), 0, -1)  # [C, W, B, S]
            return [
                compressed[..., a:b].astype(part.dtype)
                for part, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
            ]

        finite = jnp.stack([jnp.isfinite(j).all() for j in products]).all()
        return lax.cond(finite, lambda: products, by_rows)

    def _factors(self, jacobians: Jacobians, data: Arrays | None) -> dict[int, Factors]:
        factors, transitions = {}, {}
        flat = rows(jacobians.transition)
        xs = [None] * len(self.live) if data is None else self._data_by_op(data)
        for place, p in enumerate(self.live):
            if p.trace is None:
                continue
            layout = p.trace.layout
            if layout not in transitions:
                transitions[layout] = take_rows(flat, layout.transition)
            immediate = take(rows(jacobians.immediate[place]), p.trace.immediate)
            factors[p.op.number] = Factors(xs[place], immediate, transitions[layout])
        return factors

    def _data_by_op(self, data: Arrays) -> list[Array | None]:
        """For each live operation, its `x` in canonical form, [W, B, G, I]."""
        remaining = iter(data)
        by_op: list[Array | None] = []
        for p in self.live:
            kind = p.op.kind
            if kind.data is None:
                by_op.append(None)
                continue
            values: list[Any] = [None] * len(p.op.equation.inputs)

            def factor(x, kind=kind, values=values):
                return kind.factor([x if i == kind.data else v for i, v in enumerate(values)])

            x = _over_time(factor)(next(remaining))
            exact = jnp.issubdtype(x.dtype, jnp.inexact)
            by_op.append(x if exact else x.astype(p.op.delta.dtype))  # spikes may be booleans
        return by_op

    def advance(self, moves: Moves, traces: Traces, starts: "Starts | None" = None):
        """The traces at the end of a window.

        Where the credit at its start is given, also what the entries of those that have some give, and
        they are overwritten.
        """
        products: dict[Any, Products] = {}
        carries, entries = list(traces.carries), {}
        sharing: dict[int, list[TracePlan]] = {}
        for p in self.plan.traces:
            sharing.setdefault(p.op.number if p.shares is None else p.shares, []).append(p)
        shared, each, along = traces.shared, traces.each, None
        directions, window = self.plan.directions, moves.along
        if directions is not None and window is not None:
            credit = None if starts is None else starts.credit
            transition, shared, each = directions.advance(
                *(shared, each, window.ends, window.chosen, window.starts, credit, window.push)
            )
            basis = directions.basis(traces.shared, traces.each)
            basis, by_start = of_each_example(basis, window.starts[:, 0, 0]), window.starts
            if window.keeps is not None:
                by_start = jnp.where(window.keeps[..., None], by_start, 0)
            along = Followed(basis, by_start, transition, window.deltas)
        carried = zip(self.plan.carried, traces.carries, moves.followed, strict=True)
        for n, (p, trace, followed) in enumerate(carried):
            ops = sharing[p.op.number]
            factors = [moves.factors[q.op.number] for q in ops]

            def transitions(layout=p.layout, factors=factors):
                if layout not in products:
                    transition, entered = factors[0].transition, self._entered[layout]
                    products[layout] = suffix_products(layout.pairs, transition, entered)
                return products[layout]

            passage: Any = CutPassage(p, factors, transitions)
            if p.directions is not None and along is not None:
                passage = FollowedPassage(passage, ops, along)
            start = None if starts is None else starts.of_trace[p.op.number]
            moved, read = p.form.advance(p.site, passage, trace, followed, start)
            carries[n] = moved
            if read is not None:
                entries[p.op.number] = read
        past = traces.past if moves.past is None else moves.past
        return Traces(carries, shared, each, past), entries

    # --- backward ---

    def backward(self, residuals: "Residuals", ys_bar, read_traces: bool = True):
        """Cotangents of weights and inputs, and the credit of each trace at the start.

        - `read_traces`: without it, what traces give entry by entry is left to `advance`."""
        if self.uncut is None:
            weights_bar, moving_bar, starts = self._backward_cut(residuals, ys_bar, read_traces)
        else:
            weights_bar, moving_bar, starts = self._backward_uncut(
                self.uncut, residuals, ys_bar, read_traces
            )
        return tuple(weights_bar), self._inputs(moving_bar), starts

    def _backward_cut(self, residuals: "Residuals", ys_bar, read_traces: bool):
        """Where the window is cut as the traces are: by learning signals and the Jacobians of the cut step."""
        cut, traces, fresh = residuals.cut, residuals.traces, residuals.fresh
        assert cut is not None
        carried = {p.op.number: c for p, c in zip(self.plan.carried, traces.carries, strict=True)}
        starts: dict[int, Array] = {}
        weights_bar, old, new, deltas = residuals.pull(ys_bar)
        moving_bar = [] if cut.pull_inputs is None else cut.pull_inputs(ys_bar)[0]
        old = [_without_past(part, fresh) for part in old] if self.reads_old else None
        weights_bar = _summable(weights_bar)
        xs = self._data_by_op(cut.data)
        credit = Credit(self.plan, cut.jacobians.transition, old, new)
        for place, p in enumerate(self.live):
            delta, number, past = deltas[place], p.op.number, []
            immediate, t = cut.jacobians.immediate[place], p.trace
            if t is None:
                op_credit = into_op(self.plan, immediate, new, p.op)
            else:
                signals = OpSignals(credit, t, immediate, cut.blocks.get(number))
                op_credit, start = t.form.credit(t.site, signals, cut.paths.get(number, ()))
                if number in carried:
                    starts[number], trace = start, carried[number]
                    past = t.form.rows(t.site, start, trace)
                    weights_bar = self._past(weights_bar, t, start, trace, read_traces)
            delta = delta + op_credit.reshape(delta.shape)
            gradient = self._product(p.op, (xs[place], delta), *past)
            weights_bar = _accumulated(self.plan, weights_bar, p.op, gradient)
        return weights_bar, moving_bar, Starts(starts, None)

    def _backward_uncut(self, uncut: Uncut, residuals: "Residuals", ys_bar, read_traces):
        """Where nothing is cut inside a window: by reverse mode, and the credit of the states at its start."""
        traces, fresh = residuals.traces, residuals.fresh
        ends: list[Array] = []  # a zero would meet derivatives that may be infinite
        if self.plan.directions is not None and not self.plan.behind:
            size = self.plan.analysis.hidden.size
            ends = uncut.split(zeros_over(fresh, (size,), self.plan.dtype))
        weights_bar, moving_bar, states_bar, _ = residuals.pull((ys_bar, ends))
        signals = uncut.signals(states_bar)
        credit = None
        if self.plan.directions is not None:
            credit = jnp.concatenate([finite_where(s, fresh) for s in signals], -1)
        signals = [_without_past(s[None], fresh)[0] for s in signals]
        weights_bar, starts = self._through_traces(
            _summable(weights_bar), traces, signals, credit, read_traces
        )
        return weights_bar, moving_bar, Starts(starts, credit)

    def _through_traces(
        self, weights_bar: list[Array], traces: Traces, signals: Arrays, credit, read: bool
    ) -> tuple[list[Array], dict[int, Array]]:
        """The gradient, with what traces give where the states have the credit `signals`, [B, n] for each
        part, or `credit` [B, S] where directions are followed; and the credit of each trace."""
        virtual = known = None
        directions, starts = self.plan.directions, {}
        if directions is not None:
            virtual = directions.coefficients(traces.shared, traces.each, credit)
            basis = of_each_example(directions.basis(traces.shared, traces.each), credit[:, 0])
            known = jnp.einsum("bq,bqs->bs", virtual, basis)
        for p, trace in zip(self.plan.carried, traces.carries, strict=True):
            of_block = take(signals, p.layout.states)
            if p.directions is not None and virtual is not None and known is not None:
                of_block = of_block - take([known], p.layout.states).astype(of_block.dtype)
                shape = (*virtual.shape, of_block.shape[-1])
                of_virtual = jnp.broadcast_to(virtual[..., None], shape)
                of_block = jnp.concatenate([of_block, of_virtual.astype(of_block.dtype)], 1)
            start = p.form.start(p.site, of_block, trace)
            starts[p.op.number] = start
            weights_bar = self._past(weights_bar, p, start, trace, read)
            rows_of = p.form.rows(p.site, start, trace)
            if rows_of:
                product = self._product(p.op, *rows_of)
                weights_bar = _accumulated(self.plan, weights_bar, p.op, product)
        return weights_bar, starts

    def _past(self, weights_bar, p: TracePlan, start, trace, read: bool) -> list[Array]:
        """The gradient with what a trace gives entry by entry, if it does and is to be read."""
        entries = p.form.entries(p.site, start, trace) if read else None
        if entries is None:
            return weights_bar
        return _accumulated(self.plan, weights_bar, p.op, p.form.gathered(p.site, entries))

    def _product(self, op: WeightOp, *pairs: tuple[Array | None, Array]) -> Array:
        """The gradient of a weight from data and credit, [n, B, ...] each, as one product."""
        kind = op.kind
        delta = _stacked([d.reshape(*d.shape[:2], kind.groups, kind.outputs) for _, d in pairs])
        data = [
            x.reshape(*x.shape[:2], kind.groups, kind.inputs) for x, _ in pairs if x is not None
        ]
        if not data:
            return kind.contract(None, delta)
        x = _stacked(data)
        return kind.contract(x, delta.astype(result_type(x, delta)))

    def _inputs(self, moving_bar):
        """Cotangents of the inputs; `None` for those that are not differentiated."""
        by_input = dict(zip(self.float_inputs if moving_bar else (), moving_bar, strict=True))
        return [by_input.get(i) for i in range(len(self.plan.analysis.step.inputs))]


def _entered(traces: Sequence[TracePlan]) -> dict[Layout, list[int]]:
    """The places of each layout's blocks that `F` of any of its operations enters."""
    entered: dict[Layout, set[int]] = {}
    for p in traces:
        mask = p.immediate.mask
        places = range(p.block) if mask is None else np.flatnonzero(mask.any(1)).tolist()
        entered.setdefault(p.layout, set()).update(places)
    return {layout: sorted(places) or [0] for layout, places in entered.items()}


def _summable(grads: Arrays) -> list[Array]:
    return [g.astype(sum_dtype(g)) for g in grads]


def _no_entries(p: TracePlan) -> Array | None:
    """What `entries` of a trace is like."""
    credit = jnp.zeros((1, p.site.block, p.site.count), p.dtype)
    carry = p.form.init(p.site, 1)
    return p.form.entries(p.site, p.form.start(p.site, credit, carry), carry)


def _accumulated(plan: Plan, grads: Arrays, op: WeightOp, added: Array) -> list[Array]:
    """Gradients by the weights, with a part of one operation's added."""
    place = plan.analysis.split.weights.index(op.weight)
    dtype = grads[place].dtype
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        added = added.real
    new = list(grads)
    new[place] = grads[place] + added.astype(dtype)
    return new


def _without_past(by_state: Array, fresh: Array) -> Array:
    """Derivatives [W, B, ...] by old states, with none by a state that comes first.

    There a derivative may be NaN, as that of a norm at zero is, and nothing reads it.
    """
    first = np.arange(by_state.shape[0]) == 0
    mask = first[:, None] & fresh[None]
    return jnp.where(mask.reshape(*mask.shape, *[1] * (by_state.ndim - 2)), 0, by_state)


def _stacked(arrays: Arrays) -> Array:
    dtype = result_type(*arrays)
    return arrays[0] if len(arrays) == 1 else jnp.concatenate([a.astype(dtype) for a in arrays])


def _over_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one example at one step, over the axes [W, B]."""
    return jax.vmap(jax.vmap(function))


__all__ = ["NO_SECOND_DERIVATIVE", "Emitter", "Window", "emit"]
