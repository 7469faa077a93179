"""The definition of every learning rule: dense, one step at a time, for any model.

This is what a rule means; the compiler does the same with less, in windows and in the forms of its traces. Let s be the
hidden states of one example as a real vector. Each weight operation has an output y, which depends on its weight by
x = dy/dw, and l is the loss of a step. A rule says which data is held constant, and gives each operation a form, which
says by what recursion its trace is carried, as that of the whole trace is

    e' = D e + F x                  D = ds'/ds and F = ds'/dy in the cut step
    g += L e' + o e + d x           in the step as it is read

In the cut step, data that is held constant has no derivative. As the step is read, there are three credits: L of the
new states, each given the other new states; o of the old states and d of the operation, past the new states. Data that
is held constant passes on the credit for what is new in its own step: for new states, and for all of a value that
depends on old states and on operations, unless these states are of the operation's own group. RTRL cuts nothing. With
`backprop="full"` a window is differentiated as it is, and the credit of its first state meets what is carried there.

`Definition._step` is this; all else puts it over a sequence.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ._jax import (
    Equation,
    Variable,
    derivative_added,
    evaluate,
    is_complex,
    is_key,
    of_real_parts,
    prims,
    real_avals,
    real_parts,
    replaced,
)
from ._jax.primitives import facts
from .algorithms import TBPTT, Algorithm, resolve
from .analyse import Analysis, WeightOp, analyse, by_equation
from .errors import UnsupportedError, checked_count
from .forms import Defined, Full, Meaning, Trace
from .gradient.bptt import Objective, batch_axis_blamed, gradient_of
from .gradient.data import check_lead, one_step
from .gradient.loss import Loss, check_reduction, finite_where_masked, reduced
from .ir import TraceProgram, WindowSpec
from .plan import plan
from .trace import StepFunction, trace

Values = dict[Variable, Any]
Bind = Callable[[Equation, Sequence[Any]], list[Any]]
stop = lax.stop_gradient
EACH_STEP = WindowSpec(1, "step")


def reference(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algo: Algorithm | str = "d_rtrl",
    *,
    state: Any = None,
    step: StepFunction | None = None,
    batch_size: int | None = None,
    mask: Any = None,
    begins: Any = None,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Loss and gradient of a sequence by the definition of a learning rule: dense, and slow.

    At each step it takes the Jacobian of all S states by all effective weights, so it is for small models. It shares
    with the compiler how a step is traced, what a weight operation is, what a rule says of a step (which data is held
    constant, which values count as new states) and the form that it chooses for each operation. A form says what it
    means; how it is carried, read in windows and rewritten by passes is not asked. Under `jax.jit` close over the
    model's integer arrays: what is sparse by unknown ones is not seen to be, and is not cut.

    A rule that is random and unbiased has its mean, as KF-RTRL, OK and UORO. A trace of a rank is the best
    approximation of the rank, which a program finds to a few per cent.

    **Arguments:** as for [`etpc.verify`][].

    **Returns** `(loss, grads)`, as [`etpc.bptt`][] does.

    **Raises** `etpc.UnsupportedError` for a rule whose form of trace does not say what it means
    ([`etpc.forms.Defined`][etpc.forms.Defined]); `etpc.InputError`, `etpc.InputTypeError` and `etpc.ModelError` as
    [`etpc.bptt`][] does.

    **Source:** Wang et al., Nature Communications 2026, doi:10.1038/s41467-026-68453-w, for D-RTRL and ES-D-RTRL, with
    every path counted once; Williams and Zipser, Neural Computation 1(2), 1989, for RTRL; that of each rule.
    """
    rule = resolve(algo)
    check_reduction(reduction)
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    called: Any = dict(state=state, step=step, batch_size=batch_size)
    objective = Objective.of(model, xs, targets, loss_fn, **called, mask=mask, begins=begins)
    with batch_axis_blamed(model, xs, **called):
        check_lead(xs, targets, batch_size)
        if isinstance(rule, TBPTT) and rule.in_blocks:
            return gradient_of(model, objective, reduction, rule.steps)[:2]
        inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
        traced = trace(model, inputs, state, step)
    analysis = rule.analysis(traced)
    definition = Definition.of(plan(analysis, rule, passes=()).ir, objective.loss)
    if definition.reduces and rule.window == "auto":  # a pass chooses the window
        definition.window = plan(analysis, rule).ir.window
    leaves = traced.model_leaves
    parameters = leaves.split(model)
    one = lambda tree, axis: (
        tree if objective.batched else jax.tree.map(lambda a: jnp.expand_dims(a, axis), tree)
    )

    @jax.jit
    def run(floats: Sequence[Array], start: list[Any], data: Any) -> tuple[Array, list[Array]]:
        prefix = lambda floats: definition.prefix(leaves.replaced(parameters, floats))
        weights, pull, others = jax.vjp(prefix, floats, has_aux=True)
        flat = definition.weights.flat(weights)
        sums = definition.gradient(flat, others, one(start, 0), one(data, 1))
        value, grad = reduced(reduction, sums, objective.mask, len(jax.tree.leaves(data)[0]))
        return value, pull(definition.weights.cotangents(grad))[0]

    mask = objective.mask
    data = jax.tree.map(lambda x: finite_where_masked(x, mask), xs), targets, mask, objective.begins
    start = traced.state_leaves.split(objective.start)
    lead = jnp.shape(start[0])[:1] if objective.batched else ()
    start += [jnp.zeros((*lead, *aval.shape), aval.dtype) for _, aval in definition.step.added]
    value, grads = run([parameters[i] for i in leaves.floats], start, data)
    return value, leaves.tree_of_floats(grads)


class Vector(NamedTuple):
    """Float arrays as one real vector: a complex array is its real, then its imaginary part."""

    avals: Sequence[Any]
    dtype: Any

    @property
    def size(self) -> int:
        return sum(part.size for part in real_avals(self.avals))

    def flat(self, arrays: Sequence[Any]) -> Array:
        parts = map(jnp.ravel, real_parts(arrays))
        return jnp.concatenate([jnp.zeros(0, self.dtype), *parts])

    def arrays(self, flat: Array) -> list[Array]:
        parts, at = list[Array](), 0
        for aval in real_avals(self.avals):
            parts.append(flat[at : at + aval.size].reshape(aval.shape).astype(aval.dtype))
            at += aval.size
        return of_real_parts(parts, self.avals)

    def cotangents(self, flat: Array) -> list[Array]:
        """The derivative by the arrays, from that by the vector, as JAX has it: the conjugate for complex ones."""
        return [a.conj() for a in self.arrays(flat)]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A weight operation that reaches a state, and what its trace means.

    Its output y is that of its equation; where it has no data, it is the weight itself.
    """

    op: WeightOp
    meaning: Meaning | None
    """`None` if it has no trace."""
    rows: int
    """How many directions of credit its trace is followed along, after the states."""
    output: Vector
    weight: slice
    """Its weight in the vector of all weights."""
    block: np.ndarray | None
    """Which states its trace has for each output, [S, Y]; `None` if it has all that it ever reaches."""
    units: np.ndarray | None
    """For a trace of a rank: dy/dw for data that is one at one input, [G, I, Y, P]."""

    @property
    def by_output(self) -> bool:
        """Whether the trace of each output is apart: e is [S, Y, P], and else [S, P]."""
        return self.block is not None or self.units is not None


class StepOf(NamedTuple):
    """A step, as one operation sees it."""

    D: Array
    """[S, S]."""
    F: Array
    """[S, Y]."""
    x: Array
    """dy/dw, [Y, P]."""


class Credit(NamedTuple):
    """The derivatives of the loss of a step, past all else that is given."""

    weights: Array
    """By the weights, of operations that reach no state."""
    new: Array
    """By the new states: L [S]."""
    old: Array
    """By the old states, past the new ones: o [S]."""
    direct: list[Array]
    """By the output of each operation that reaches a state, past the new states: d [Y]."""


def _begun(start: Any, before: Any, begins: Any) -> Any:
    """Arrays as a step reads them: those of `start`, or zeros, where a stream begins with it. PRNG keys go on."""
    if begins is None:
        return before
    start = jax.tree.map(jnp.zeros_like, before) if start is None else start
    new = lambda a, b: b if is_key(b) else jnp.where(begins, a, b)
    return jax.tree.map(new, start, before)


class Definition:
    """One step of one example, as a function of real vectors of weights and of hidden states; and a rule on it."""

    def __init__(
        self,
        analysis: Analysis,
        forms: Mapping[WeightOp, Trace],
        loss: Loss,
        window: WindowSpec = EACH_STEP,
        rows: Mapping[WeightOp, int] = MappingProxyType({}),
        directions: Any = None,
    ):
        """`forms` are those of the operations that have a trace, `rows` how many directions of credit one is followed
        along, `window` how credit flows: that of each step by default."""
        self.analysis, self.loss, self.window = analysis, loss, window
        self.step, self.split, self.hidden = analysis.step, analysis.split, analysis.hidden
        self.directions = directions
        dtype = jnp.result_type(self.hidden.dtype, *(v.aval.dtype for v in self.split.weights))
        self.dtype: Any = jnp.finfo(dtype).dtype
        self.weights = Vector([v.aval for v in self.split.weights], self.dtype)
        self.states = Vector(self.hidden.avals, self.dtype)
        self.old, self.new = self.hidden.old, self.hidden.new
        cut = [op for op in analysis.live if op.number in analysis.cut]
        self.cut = {op.equation: op.kind.data or 0 for op in cut}
        """The equations of operations whose data is constant, and which operand that is."""
        full = analysis.in_full
        self.in_full = {op.equation: full[op.number].elements for op in cut if op.number in full}
        """Of these, which elements of the data are read in full."""
        self.bind: Bind = lambda eqn, operands: eqn.bind(*operands)
        """What an equation gives; a typical mistake is another one."""
        self.operations = [self._operation(op, forms.get(op), rows) for op in analysis.live]
        self._of_equation = by_equation(analysis.live)
        self._place = {of.op: place for place, of in enumerate(self.operations)}

    @classmethod
    def of(cls, program: TraceProgram, loss: Loss) -> "Definition":
        """That of a program as its rule has it, before passes."""
        analysis, found = program.analysis, cast(Any, program.extends)
        forms = {op: node.form for node in program.traces for op in node.ops}
        rows = {op: node.virtual for node in program.traces for op in node.ops}
        if found is not None and (found.unbiased is None or program.window.behind):
            raise UnsupportedError(
                f"etpc.reference has no definition of {program.algorithm}, which carries more than traces: "
                f"{type(found).__name__}. It knows those along directions of states, without lookback=."
            )
        if found is not None and found.unbiased:  # the mean is the whole influence
            analysis, found, rows = analyse(analysis.step, cut=False), None, {}
            forms = dict.fromkeys(analysis.live, Full())
        return cls(analysis, forms, loss, program.window, rows, found)

    def _operation(
        self, op: WeightOp, form: Trace | None, rows: Mapping[WeightOp, int]
    ) -> Operation:
        if form is not None and not isinstance(form, Defined):
            raise UnsupportedError(
                f"The form of the trace of {op.path}, {type(form).__name__}, does not say what it means, so there is "
                "no definition to compute. Give it a method `meaning`, which returns an `etpc.forms.Meaning`."
            )
        meaning = None if form is None else form.meaning()
        read = op.equation.outputs[0] if op.kind.data is not None else op.weight
        output, place = Vector([read.aval], self.dtype), self.split.weights.index(op.weight)
        before = Vector(self.weights.avals[:place], self.dtype).size
        weight = slice(before, before + Vector([op.weight.aval], self.dtype).size)
        reach, block, units = self.analysis.reach[op.number], None, None
        at = _places(op)
        if meaning is not None and not reach.closed:
            block = reach.block.toarray()[at].T
            block = np.concatenate([block] * (1 + is_complex(read.aval)), 1)
        if meaning is not None and meaning.rank is not None and not meaning.drawn:
            units = _units(op)[:, :, at]
        return Operation(op, meaning, rows.get(op, 0), output, weight, block, units)

    @property
    def reduces(self) -> bool:
        """Whether the gradient depends on the windows after which traces are reduced."""
        return any(of.units is not None for of in self.operations)

    def acting(self, bind: Bind) -> "Definition":
        """The same rule, of operations that act otherwise."""
        other = copy.copy(self)
        other.bind = bind
        return other

    # --- a sequence ---

    def gradient(
        self, weights: Array, others: Sequence[Any], start: list[Any], data: Any
    ) -> tuple[Array, Array]:
        """The sum of the losses and the derivative by the weights [P], as means over a batch.

        `start` has a leading axis B; `data`, which are inputs, targets, mask and where streams begin, T and B.
        """
        xs, targets, mask, begins = data
        inputs = self.step.input_leaves.split(xs)
        steps, batch = inputs[0].shape[:2]
        first = jnp.broadcast_to((jnp.arange(steps) == 0)[:, None], (steps, batch))
        inputs = self.step.with_begins(inputs, first if begins is None else first | begins)
        sequence, given = (inputs, targets, mask, begins), Given(weights, others, start)
        repeated = lambda a: jnp.broadcast_to(a, (batch, *jnp.shape(a)))
        traces = jax.tree.map(repeated, [self._no_trace(of) for of in self.operations])
        carry = list(start), traces, jnp.zeros((batch, weights.size), self.dtype)
        if self.window.credit == "window":
            value, grad = self._in_windows(given, carry, sequence)
        else:
            value, length = (
                jnp.zeros(()),
                self.window.for_sequence(steps) if self.reduces else steps,
            )
            for at in range(0, steps, length):
                window = _part(sequence, at, at + length)
                carry, losses = lax.scan(
                    functools.partial(_each(self._step, 0, 0), given), carry, window
                )
                if self.reduces:
                    carry = carry[0], jax.vmap(self._reduced)(carry[1]), carry[2]
                value = value + losses.sum()
            grad = carry[2]
        return value / batch, grad.mean(0)

    def _step(self, given: "Given", carry: Any, data: Any) -> tuple[Any, Array]:
        """One step of one example: the credit of the step, and what it meets."""
        state, traces, grad = carry
        env, traces = self._entered(given, state, traces, data)
        (value, new), credit = self.credit(env, given.weights, data)
        grad, moved = grad + credit.weights, []
        seen = self.seen(env, given.weights)
        for of, at, direct, before in zip(
            self.operations, seen, credit.direct, traces, strict=True
        ):
            moved.append(self._moved(of, at, before))
            past = self._met(of, credit.old, before)
            now = (
                (credit.new @ at.F) @ at.x
                if of.meaning is None
                else self._met(of, credit.new, moved[-1], at)
            )
            grad = grad.at[of.weight].add(now + past + direct @ at.x)
        return (new, moved, grad), value

    def _in_windows(self, given: "Given", carry: Any, sequence: Any) -> tuple[Array, Array]:
        """Windows with nothing cut. The credit of the first state meets what is carried there.

        With look-back credit passes through some steps before a window too, and the first state is that before these.
        """
        state, traces, grad = carry
        (steps, batch), begin, value = sequence[0][0].shape[:2], 0, jnp.zeros(())
        length, d = self.window.for_sequence(steps), self.directions
        along = ((), ()) if d is None else d.init(self.states.size, batch, self.dtype)
        for at in range(0, steps, length):
            end = min(at + length, steps)
            window, counts = _part(sequence, begin, end), jnp.arange(begin, end) >= at
            of_window = _each(self._uncut, 0, 1, None)
            losses, states, by_weights, credit = of_window(given, state, window, counts)
            value, grad = value + losses.sum(), grad + by_weights
            whole = credit if d is None else self._along(credit, *along)
            for of, before in zip(self.operations, traces, strict=True):
                met = jax.vmap(functools.partial(self._met, of))
                grad = grad.at[:, of.weight].add(met(whole if of.rows else credit, before))
            leave = max(end - self.window.behind, 0)
            leaving, taken = _part(sequence, begin, leave), [a[:, : leave - begin] for a in states]
            moved, seen = _each(self._move, 0, 1, 0)(given, traces, leaving, taken)
            if d is not None:
                moved, along = self._follow(
                    given, (state, leaving), (traces, moved, seen), along, credit
                )
            traces = jax.vmap(self._reduced)(moved) if self.reduces else moved
            state, begin = [a[:, leave - begin] for a in states], leave
        return value, grad

    def _uncut(
        self, given: "Given", state: list[Any], window: Any, counts: Array
    ) -> tuple[Array, list[Any], Array, Array]:
        """A window with nothing cut: its loss, of the steps that count, the states before each step and after the last,
        and the derivatives by the weights and by the first state."""

        def loss(w: Array, h: Array) -> tuple[Array, Any]:
            last, (losses, states) = self._run(given._replace(weights=w), state, h, window, None)
            joined = lambda a, b: jnp.concatenate([a, b[None]])
            return jnp.where(counts, losses, 0).sum(), jax.tree.map(joined, states, last)

        gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (value, states), by = gradient(given.weights, self._of_state(state))
        return value, states, *by

    def _run(self, given: "Given", state: list[Any], h: Array, window: Any, ys: Any) -> Any:
        """The last state of a window, the loss of each step and the states before each."""

        def body(state: list[Any], step: Any) -> tuple[list[Any], Any]:
            data, ys = step
            env, _ = self._entered(given, state, (), data)
            act = lambda eqn, operands: self._acting(eqn, operands, ys)
            env = evaluate(self.split.body, self._at(env, given.weights, self._hidden(env)), act)
            value = self._loss_of([env[v] for v in self.split.outputs], data)
            return self._stored(env), (value, state)

        return lax.scan(body, self.with_hidden(state, h), (window, ys))

    def _entered(
        self, given: "Given", state: list[Any], traces: Any, data: Any
    ) -> tuple[Values, Any]:
        """The values that a step starts from, and the traces; both anew where a stream begins."""
        state, traces = _begun(given.start, state, data[3]), _begun(None, traces, data[3])
        return self._environment(given.others, data[0], state), traces

    def _move(self, given: "Given", traces: Any, window: Any, states: list[Any]) -> tuple[Any, Any]:
        """The traces after a window, and each step as the operations see it."""

        def move(traces: Any, step: Any) -> tuple[Any, Any]:
            data, state = step
            env, traces = self._entered(given, state, traces, data)
            seen = self.seen(env, given.weights)
            triples = zip(self.operations, seen, traces, strict=True)
            return [self._moved(of, at, trace) for of, at, trace in triples], [at.x for at in seen]

        return lax.scan(move, traces, (window, states))

    # --- influence along directions ---

    def _along(self, credit: Array, shared: Any, each: Any) -> Array:
        """Credit [B, S] with that along the directions apart, [B, S + q]: the influence on these is carried whole."""
        assert self.directions is not None
        by_direction = self.directions.coefficients(shared, each, credit)
        basis = self.directions.basis(shared, each) + jnp.zeros_like(credit)[:, None]
        return jnp.concatenate(
            [credit - jnp.einsum("bq,bqs->bs", by_direction, basis), by_direction], 1
        )

    def _follow(
        self, given: "Given", entered: Any, carried: Any, along: tuple[Any, Any], credit: Array
    ) -> tuple[list[Any], tuple[Any, Any]]:
        """The rows of traces after a window: `Z' = N Z + (Lambda - N V) e + sum_t V' (prod_{after t} J) F_t x_t`,
        nothing cut, with `Lambda = V' prod J` and the transition N that the directions say."""
        d, (before, moved, xs), size = self.directions, carried, self.states.size
        assert d is not None
        last, through, by_outputs = _each(self._jacobians, 0, 1)(given, *entered)
        ends, chosen = d.ends(*along, last)
        ends, basis = (a + jnp.zeros_like(last)[:, None] for a in (ends, d.basis(*along)))
        starts = ends @ through
        kept = d.keeps(*along, starts)
        kept = jnp.ones(starts.shape[:2], bool) if kept is None else kept
        push = lambda ahead: jnp.einsum("bsr,bqr->bqs", through, ahead)
        dropped = jnp.where(kept[..., None], starts, jnp.nan)
        transition, shared, each = d.advance(*along, chosen, dropped, credit, push)
        beyond = jnp.where(kept[..., None], starts, 0) - transition @ basis
        found = []
        for of, old, new, x, by_output in zip(
            self.operations, before, moved, xs, by_outputs, strict=True
        ):
            if of.rows:
                e, rows = old["e"][:, :size], old["e"][:, size:]
                into = jnp.einsum("bqs,bswy->bqwy", ends, by_output)
                into = jnp.where(kept[..., None, None], into, 0)
                out = "bqyp" if of.by_output else "bqp"
                rows = (
                    jnp.einsum("bqr,br...->bq...", transition, rows)
                    + jnp.einsum("bqs,bs...->bq...", beyond, e)
                    + jnp.einsum(f"bqwy,bwyp->{out}", into, x)
                )
                new = {"e": jnp.concatenate([new["e"][:, :size], rows], 1)}
            found.append(new)
        return found, (shared, each)

    def _jacobians(
        self, given: "Given", state: list[Any], window: Any
    ) -> tuple[Array, Array, list[Array]]:
        """The last state of a window with nothing cut, its derivative by the first, [S, S], and by what is added to the
        output of each operation at each step, [S, W, Y]."""
        steps, h = len(window[0][0]), self._of_state(state)
        zeros = [jnp.zeros((steps, of.output.size), self.dtype) for of in self.operations]
        last = lambda h, ys: self._of_state(self._run(given, state, h, window, ys)[0])
        return last(h, zeros), *jax.jacrev(last, (0, 1))(h, zeros)

    # --- a trace ---

    def _no_trace(self, of: Operation) -> dict[str, Array]:
        weights, states = of.weight.stop - of.weight.start, self.states.size
        shapes = {
            "uses": (states + of.rows, *[of.output.size] * of.by_output, weights),
            "outputs": (states, of.output.size),
            "inputs": (of.output.size, weights),
            "steps": (),
        }
        lines = () if of.meaning is None else of.meaning.lines
        return {line.name: jnp.zeros(shapes[line.of], self.dtype) for line in lines}

    def _moved(self, of: Operation, at: "StepOf", trace: dict[str, Array]) -> dict[str, Array]:
        """A trace after a step."""
        new: dict[str, Array] = {}
        enters = "sy,yp->syp" if of.by_output else "sy,yp->sp"
        adds = {
            "uses": jnp.einsum(enters, at.F, at.x),
            "outputs": at.F,
            "inputs": at.x,
            "steps": 1.0,
        }
        for line in () if of.meaning is None else of.meaning.lines:
            old, size = trace[line.name], self.states.size
            rows = old[size:] if of.rows else None  # these are moved at the end of a window
            old = old if rows is None else old[:size]
            value = line.kept * old + (new[line.plus] if line.plus else adds[line.of])
            if line.moved:
                value = value + line.moved * jnp.einsum("sr,r...->s...", at.D, old)
            if of.block is not None:
                value = jnp.where(
                    of.block.reshape(*of.block.shape, *[1] * (value.ndim - 2)), value, 0
                )
            new[line.name] = value if rows is None else jnp.concatenate([value, rows])
        return new

    def _met(
        self, of: Operation, credit: Array, trace: dict[str, Array], at: "StepOf | None" = None
    ) -> Array:
        """What credit of states gives to the gradient of the weight, [P]; `at` is the step of new states."""
        weights, meaning = of.weight.stop - of.weight.start, of.meaning
        if meaning is None or (at is None and not meaning.meets):
            return jnp.zeros(weights, self.dtype)
        met = at.F if at is not None and not meaning.meets else trace[meaning.meets]
        found = jnp.tensordot(credit, met, 1)
        if meaning.data:
            found = found @ trace[meaning.data]
        if meaning.over:
            found = found / jnp.maximum(trace[meaning.over], 1)
        return found.reshape(-1, weights).sum(0)

    def _reduced(self, traces: list[dict[str, Array]]) -> list[dict[str, Array]]:
        """Each trace of a rank as its leading modes."""

        def reduced(of: Operation, e: Array) -> Array:
            assert of.meaning is not None
            assert of.units is not None
            units, is_wide = of.units, is_complex(of.output.avals[0])
            if is_wide:  # the derivative by a complex weight, as the linear function that it is
                e = e.reshape(len(e), 2, -1, 2, e.shape[-1] // 2).sum(1)
                e = e[:, :, 0] - 1j * e[:, :, 1]
            matrices = jnp.einsum("syp,giyp->gisy", e, units)
            flat = matrices.reshape(*matrices.shape[:2], -1)
            left, sizes, right = jnp.linalg.svd(flat, full_matrices=False)
            count = of.meaning.rank
            flat = (left[..., :count] * sizes[:, None, :count]) @ right[:, :count]
            e = jnp.einsum("gisy,giyp->syp", flat.reshape(matrices.shape), units)
            if is_wide:
                e = jnp.concatenate([e.real, -e.imag], -1)
                e = jnp.concatenate([e, jnp.zeros_like(e)], 1)
            return e

        pairs = zip(self.operations, traces, strict=True)
        return [t if of.units is None else {"e": reduced(of, t["e"])} for of, t in pairs]

    # --- a step ---

    def seen(self, env: Values, weights: Array) -> "list[StepOf]":
        """A step, as each operation sees it."""
        h, ys = self._hidden(env), self.zeros
        D, by_outputs = jax.jacrev(lambda *a: self.cut_step(env, weights, *a), (0, 1))(h, ys)
        plain = evaluate(self.split.body, self._at(env, weights, h), self.bind)
        pairs = zip(self.operations, by_outputs, strict=True)
        return [StepOf(D, F, self._data(of, plain, weights)) for of, F in pairs]

    def _data(self, of: Operation, env: Values, weights: Array) -> Array:
        """dy/dw of an operation, [Y, P], with the data that its weight meets."""
        op, size = of.op, of.output.size
        if op.kind.data is None:
            return jnp.eye(size, dtype=self.dtype)

        def output(w: Array) -> Array:
            (weight,) = Vector([op.weight.aval], self.dtype).arrays(w)
            values = (
                weight if i == op.operand else env[v] for i, v in enumerate(op.equation.inputs)
            )
            return of.output.flat(self.bind(op.equation, [*values]))

        return jax.jacrev(output)(weights[of.weight])

    def cut_step(self, env: Values, weights: Array, h: Array, ys: list[Array] | None) -> Array:
        """The new hidden states; `ys` is added to what each operation gives."""

        def rule(eqn: Equation, operands: list[Any]) -> list[Any]:
            place = self.cut.get(eqn)
            held = [stop(a) if i == place else a for i, a in enumerate(operands)]
            return self._acting(eqn, held, ys)

        env = evaluate(self.split.body, self._at(env, weights, h), rule)
        return self.states.flat([env[v] for v in self.new])

    def credit(self, env: Values, weights: Array, data: Any) -> tuple[tuple[Array, Any], Credit]:
        """The loss of a step and the new state, and the credit of all that the loss depends on."""

        def loss(w: Array, n: Array, h: Array, ys: list[Array]) -> tuple[Array, Any]:
            outputs, new = self.outputs(env, w, h, ys, n)
            return self._loss_of(outputs, data), new

        h = self._hidden(env)
        gradient = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
        of_loss, by = gradient(weights, jnp.zeros_like(h), h, self.zeros)
        return of_loss, Credit(*by)

    def outputs(
        self, env: Values, weights: Array, h: Array, ys: list[Array] | None, more: Array | None
    ) -> tuple[list[Any], list[Any]]:
        """Outputs and new state, where data that is cut is constant as far as it depends on old states.

        The step is evaluated three times side by side. In the first two, the data of operations that are cut is
        constant; the second has old states constant, new ones as they are, and gives that data but for what is read in
        full. In the third, all but that data is constant. With `more`, new states are constants to which it is added.
        """
        live, held = self._at(env, weights, h), self._at(env, weights, stop(h))
        through = self._at(env, stop(weights), stop(h))
        values = evaluate(self.split.body, dict(through), self.bind)
        count = len(self.new) if self.hidden.reach_output else 0  # else no operation reaches them
        new = self._new_states(values, self.new[:count], more)
        kept = self._new_states(values, self.new[: min(count, self.hidden.stored)], more)
        for eqn in self.split.body:
            operands, still, passed = (
                [env[v] for v in eqn.inputs] for env in (live, held, through)
            )
            if eqn in self.cut:
                place = self.cut[eqn]
                if eqn.inputs[place].is_float:
                    full = self.in_full.get(eqn, False)
                    data = jnp.where(full, operands[place], still[place])
                    passed[place] = derivative_added(passed[place], data)
                operands[place] = still[place] = stop(operands[place])
            results, beside = self._acting(eqn, operands, ys), self._acting(eqn, still, ys)
            for v, value, other in zip(eqn.outputs, results, beside, strict=True):
                live[v] = new[v](value, value) if v in new else value
                held[v] = kept[v](value, other) if v in kept else other
            through.update(zip(eqn.outputs, self.bind(eqn, passed), strict=True))
        outputs = [
            derivative_added(live[v], through[v]) if v.is_float else live[v]
            for v in self.split.outputs
        ]
        return outputs, self._stored(through)

    def _acting(self, eqn: Equation, operands: Sequence[Any], ys: list[Array] | None) -> list[Any]:
        """What an operation gives: a function of its output alone, and not of its weight, where `ys` is given."""
        ops = self._of_equation.get(eqn, ()) if ys is not None else ()
        operands = list(operands)
        added = {}
        for op in ops:
            place = self._place[op]
            (more,) = self.operations[place].output.arrays((ys or [])[place])
            operands[op.operand] = stop(operands[op.operand])
            if op.kind.data is None:
                operands[op.operand] = operands[op.operand] + more
            else:
                added[0] = more
        results = self.bind(eqn, operands)
        return [a + added[n] if n in added else a for n, a in enumerate(results)]

    @property
    def zeros(self) -> list[Array]:
        """What is added to the output of each operation, so that there is a derivative by it."""
        return [jnp.zeros(of.output.size, self.dtype) for of in self.operations]

    def _new_states(
        self, env: Mapping[Variable, Any], states: Sequence[Variable], more: Array | None
    ) -> "dict[Variable, Callable[[Array, Array], Array]]":
        """For each value that the step computes and that is a new state, or is moved on into some, what takes its
        place, from the value and what it is where it is no new state."""
        body, old = self.split.body, set(self.old)
        fixed = {*self.step.constants, *self.split.weights, *self.split.others}
        for eqn in body:
            moving = [v for v in eqn.inputs if v.is_float and v not in fixed]
            if _is_data_movement(eqn) and moving and old.issuperset(moving):
                old.update(v for v in eqn.outputs if v.is_float)
        computed = {v for eqn in body for v in eqn.outputs}
        shifts = self.states.arrays(
            jnp.zeros(self.states.size, self.dtype) if more is None else more
        )
        of_state = {
            v: shift for v, shift in reversed([*zip(self.new, shifts, strict=True)]) if v in states
        }
        total = {v: shift for v, shift in of_state.items() if v in computed}
        copies = {v: jnp.ones_like(shift) for v, shift in total.items()}
        for eqn in reversed(body):
            if not _is_data_movement(eqn) or total.keys().isdisjoint(eqn.outputs):
                continue
            zero = lambda v: jnp.zeros(v.shape, v.aval.dtype)
            for i, v in enumerate(eqn.inputs):
                if v.is_float and v in computed and v not in old and v not in of_state:
                    operands = [stop(env[u]) for u in eqn.inputs]
                    move = lambda a, i=i, o=operands, e=eqn: e.bind(*o[:i], a, *o[i + 1 :])
                    _, pull = jax.vjp(move, operands[i])
                    for found in (total, copies):
                        bars = [found.get(u, zero(u)).astype(u.aval.dtype) for u in eqn.outputs]
                        found[v] = found.get(v, zero(v)) + pull(bars)[0]

        def given(v: Variable) -> Callable[[Array, Array], Array]:
            is_new, shift = copies[v].real > 0, total[v] / jnp.maximum(copies[v].real, 1)
            instead = lambda a: a if more is None else stop(a) + shift.astype(a.dtype)
            return lambda value, other: jnp.where(is_new, instead(value), other)

        return {v: given(v) for v in total}

    def _loss_of(self, outputs: Sequence[Any], data: Any) -> Array:
        _, target, weight, _ = data
        return self.loss(self.step.output_leaves.join(outputs), target, weight)[0]

    # --- a step with other derivatives ---

    def as_step(self, at: tuple[Values, Array, Array]) -> tuple[Any, list[Any]]:
        """Output and new state of a step from `start`: with the values of the model's, and such derivatives that BPTT
        gives the gradient of the rule, if all its traces are whole."""
        outputs, new = self.outputs(*at, None, None)
        return self.step.output_leaves.join(outputs), self.with_hidden(
            new, self.cut_step(*at, None)
        )

    # --- values ---

    def prefix(self, parameters: Sequence[Any]) -> tuple[list[Array], list[Any]]:
        """What depends on parameters alone: the effective weights, and others."""
        env: Values = dict(self.step.constants)
        env.update(zip(self.step.parameters, parameters, strict=True))
        evaluate(self.split.prefix, env)
        weights = [jnp.asarray(env[v]) for v in self.split.weights]
        return weights, [env[v] for v in self.split.others]

    def start(
        self, parameters: Sequence[Any], inputs: Sequence[Any], state: Sequence[Any]
    ) -> tuple[Values, Array, Array]:
        """The values that a step starts from, and of these the weights and the hidden states as vectors."""
        weights, others = self.prefix(parameters)
        env = self._environment(others, inputs, state)
        return env, self.weights.flat(weights), self._hidden(env)

    def evaluated(self, env: Values, weights: Array, h: Array) -> tuple[Values, list[Any]]:
        """All values of a step in which nothing is cut, and its new state."""
        env = evaluate(self.split.body, self._at(env, weights, h), self.bind)
        return env, self._stored(env)

    def with_hidden(self, state: Sequence[Any], h: Array) -> list[Any]:
        """A state with other hidden states."""
        return replaced(state, self.hidden.leaves, self.states.arrays(h))

    def _environment(
        self, others: Sequence[Any], inputs: Sequence[Any], state: Sequence[Any]
    ) -> Values:
        """The values that the equations of a step start from, but for the weights."""
        env: Values = dict(self.step.constants)
        env.update(zip(self.split.others, others, strict=True))
        env.update(zip(self.step.inputs, inputs, strict=True))
        env.update(
            (v, jnp.zeros(v.shape, v.aval.dtype)) for v in self.old
        )  # transient ones keep them
        env.update(zip(self.step.state, state, strict=True))
        return env

    def _at(self, env: Values, weights: Array, h: Array) -> Values:
        """The values that they start from, as a function of the weights and the hidden states."""
        of_weights = zip(self.split.weights, self.weights.arrays(weights), strict=True)
        return {
            **env,
            **dict(of_weights),
            **dict(zip(self.old, self.states.arrays(h), strict=True)),
        }

    def _hidden(self, env: Values) -> Array:
        return self.states.flat([env[v] for v in self.old])

    def _of_state(self, state: Sequence[Any]) -> Array:
        return self.states.flat([state[i] for i in self.hidden.leaves])

    def _stored(self, env: Values) -> list[Any]:
        """The new state, in the dtypes of the old one."""
        return [
            env[v] if is_key(v.aval) else jnp.asarray(env[v], old.aval.dtype)
            for v, old in zip(self.split.next_state, self.step.state, strict=True)
        ]


class Given(NamedTuple):
    """What is the same at all steps; `start` is the state in which a stream begins."""

    weights: Any
    others: Any
    start: Any


def _each(of_example: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
    """A function of what is given and more, for a batch: the axes of examples are these."""
    return jax.vmap(of_example, in_axes=(Given(None, None, 0), *axes))


def _part(sequence: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda a: a[start:stop], sequence)


def _places(op: WeightOp) -> np.ndarray:
    """The number of each element of the output of an operation, in the order of the kind."""
    order = np.arange(op.size)
    if op.kind.data is None:
        return order
    with jax.ensure_compile_time_eval():
        zeros = jnp.zeros(op.equation.outputs[0].shape, int)
        (placed,) = op.kind.shift_outputs([zeros], jnp.asarray(order).reshape(op.delta.shape))
        return np.asarray(placed).reshape(-1)


def _units(op: WeightOp) -> np.ndarray:
    """Where each input of each group meets the weight for each output: [G, I, Y, P]."""
    kind = op.kind
    with jax.ensure_compile_time_eval():
        inputs = jnp.eye(kind.groups * kind.inputs).reshape(-1, 1, kind.groups, kind.inputs)
        outputs = jnp.eye(op.size).reshape(-1, 1, kind.groups, kind.outputs)
        met = jax.vmap(jax.vmap(kind.contract, (None, 0)), (0, None))(inputs, outputs)
    return np.asarray(met).reshape(kind.groups, kind.inputs, op.size, -1)


def _is_data_movement(eqn: Equation) -> bool:
    """Whether an operation changes values at most by rounding, as a conversion between floats does."""
    if eqn.primitive is prims.convert_element_type_p:
        return eqn.inputs[0].is_float and eqn.outputs[0].is_float
    return facts(eqn.primitive).data_movement
