"""The functions of arrays and a carry that a program runs, for one example or a batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .._jax import is_float, leading, without_derivative
from ..emit import (
    NO_SECOND_DERIVATIVE,
    Begins,
    Moving,
    Span,
    Weights,
    Window,
    no_gradient,
    none_yet,
    sum_of_gradients,
)
from ..forms import Traces
from ..gradient.loss import Loss, over_windows, reduced, summed_in
from ..trace import repeat
from ._carry import Carry, TracesOf

Parameters = Sequence[Any]


class Data(NamedTuple):
    """A sequence with leading axes T and B, or T alone."""

    xs: list[Array]
    targets: Any
    weights: Array | None
    """Factors of the loss of each example at each step."""
    begins: Array | None = None
    """Whether an example begins a new stream with a step."""


class SequenceGradient(NamedTuple):
    """The loss of a sequence, the gradients of the float leaves, and what the loss returns besides."""

    value: Array
    grads: list[Array]
    aux: Any
    carry_after: Callable[[Sequence[Array]], Carry]
    """The carry after the sequence, from all arrays that are computed from the gradients: once they are known, the
    traces are overwritten."""


class Runner:
    """The functions of a program, which its jit-compiled parts and [`etpc.online`][] call.

    Parameters are the array leaves of the model, as [`Arguments`][etpc.run._arguments.Arguments] gives
    them; `xs` those of the input, with axes [T, B, ...], or [T, ...] where the carry has no batch axis.
    """

    def __init__(self, window: Window[Any], id: str):
        self.window, self.ir, self.id = window, window.program, id
        self.step = self.ir.analysis.step
        self.prefix = window.emitted(window.step.prefix)
        self.by_step = functools.partial(self.ir.schedule.scan, moves_traces=True)

    def fresh(self, batch_size: int | None, parameters: Parameters | None = None) -> Carry:
        """The carry of a stream that begins, with the initial state of a model with these parameters."""
        state = self.initial_state(parameters)
        size = 1 if batch_size is None else batch_size
        state = [v[None] if batch_size is None else repeat(v, batch_size) for v in state]
        traces = self.window.fresh_traces(size)._replace(lookback=none_yet(self.ir, state))
        return self.carry(state, traces, jnp.ones(size, bool), batch_size is not None)

    def reset(self, carry: Carry, where: Array) -> Carry:
        """The carry, with a new stream where `where` is true, [B] or []."""
        _, state, traces, fresh = self.enter([], carry)
        where = where if carry.batched else where[None]
        return self.carry(*self.restart(state, traces, fresh, where), carry.batched)

    def initial_state(self, parameters: Parameters | None = None) -> list[Any]:
        """All that is carried of one example that begins, with the initial state of a model with these parameters,
        or as compiled."""
        step = self.step
        added = [jnp.zeros(aval.shape, aval.dtype) for _, aval in step.added]
        if step.initial is not None and parameters is not None:
            return [*step.initial.run(parameters), *added]
        state: list[Any] = []
        for leaf, aval in zip(step.initial_state, step.state_leaves.avals, strict=True):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                state.append(jnp.zeros(aval.shape, aval.dtype))
            elif jnp.issubdtype(aval.dtype, jax.dtypes.extended):
                state.append(leaf)
            else:
                state.append(jnp.asarray(leaf, aval.dtype))
        return [*state, *added]

    def scan(
        self,
        parameters: Parameters,
        xs: list[Array],
        carry: Carry,
        begins: Array | None = None,
    ) -> tuple[list[Array], Carry]:
        weights = self.prefix(parameters)
        xs, *start = self.enter(xs, carry)
        begins = begins if begins is None or carry.batched else begins[:, None]
        initial = () if begins is None else self.initial_state(parameters)

        def one_window(scan_carry: Any, data: Any) -> tuple[Any, list[Array]]:
            (state, traces, fresh), (xs, later) = scan_carry, data
            first = Begins(fresh, later, initial)
            span = Span(self._with_begins(xs, first), state, first)
            ys, state, traces = self.window.run(weights, span, traces)
            return (state, traces, jnp.zeros_like(fresh)), ys

        steps = len(xs[0])
        window = 1 if self.ir.window.length == "step" else steps
        (state, traces, _), ys = over_windows(
            one_window, tuple(start), (xs, begins), steps, window, self.by_step
        )
        if not carry.batched:
            ys = [y[:, 0] for y in ys]
        return ys, self.leave(state, traces, carry)

    def _with_begins(self, xs: list[Array], begins: Begins) -> list[Array]:
        """The inputs of a window [W, B, ...], and whether a stream begins with each of its steps, if the
        program asks for that."""
        return self.step.with_begins(xs, begins.steps(xs[0].shape[0]))

    def restart(
        self, state: list[Any], traces: Traces, fresh: Array, where: Array
    ) -> tuple[list[Any], Traces, Array]:
        """State, traces and `fresh`, in which the examples in `where` begin a new stream. All have a batch axis."""

        def instead(value: Array, old: Array) -> Array:
            return jnp.where(leading(where, old), value, old)

        begins = Begins(where, initial=self.initial_state())
        state = [begins.entered(place, old, where) for place, old in enumerate(state)]
        # An integer, such as a form's counter for keys, goes on.
        zeroed = lambda a: instead(jnp.zeros((), a.dtype), a) if is_float(a.dtype) else a
        carries = [tuple(map(zeroed, carry)) for carry in traces.carries]
        _, begun = self.window.fresh_extension(fresh.shape[0])
        each = tuple(map(instead, begun, traces.each))
        past = traces.lookback
        if past:  # nothing of it is a step of the stream that begins
            past = (*past[:-1], past[-1] & ~where[:, None])
        return state, Traces(carries, traces.shared, each, past), fresh | where

    def value_and_grad(
        self,
        loss: Loss,
        reduction: str,
        parameters: Parameters,
        sequence: Data,
        carry: Carry,
    ) -> SequenceGradient:
        """The loss of a sequence and its online gradient."""
        xs, targets, weights, begins = sequence
        steps = len(xs[0])
        fixed, pull = self._prefix(parameters)
        xs, state, traces, fresh = self.enter(xs, carry)
        data = targets, weights, begins
        if not carry.batched:
            data = jax.tree.map(lambda a: jnp.asarray(a)[:, None], data)
        value_aval = self.check_loss(loss, data[0])
        batch = state[0].shape[0]

        def learned(scan_carry: Any, window_data: Any) -> tuple[Any, Moving, Any]:
            """A window, whose traces are yet to be moved."""
            state, traces, fresh, total, sums = scan_carry
            xs, (targets, weights, later) = window_data
            first = Begins(fresh, later, initial)
            xs = self._with_begins(xs, first)

            def loss_of(ys: list[Array]) -> tuple[Array, Any]:
                ys = self.step.output_leaves.join(ys)
                losses, aux = jax.vmap(jax.vmap(loss))(ys, targets, weights)
                return losses.sum() / batch, aux

            span = Span(xs, state, first)
            value, aux, more, state, moving = self.window.learn(fixed, span, traces, loss_of)
            sums = sum_of_gradients(sums, more)
            return (list(state), jnp.zeros_like(fresh), total + value, sums), moving, aux

        def one_window(scan_carry: Any, window_data: Any) -> tuple[Any, Any]:
            (state, fresh, total, sums), moving, aux = learned(scan_carry, window_data)
            traces = self.window.moved(moving, jax.tree.leaves(sums))
            return (state, traces, fresh, total, sums), aux

        window = self.ir.window.for_sequence(steps)
        initial = () if begins is None else self.initial_state(parameters)
        zero = jnp.zeros((), summed_in(value_aval.dtype))
        sums = no_gradient(fixed.effective)
        start = (state, traces, fresh, zero, sums)
        if steps == window:
            (state, _, value, sums), moving, aux = learned(start, (xs, data))
            moved = functools.partial(self.window.moved, moving)
        else:
            end, aux = over_windows(one_window, start, (xs, data), steps, window, self.by_step)
            state, traces, _, value, sums = end
            moved = lambda last, traces=traces: traces
        if not carry.batched:
            aux = jax.tree.map(lambda a: a[:, 0], aux)
        # Divided before they are rounded: the sum over a long sequence is beyond what float16 holds.
        value, grads = reduced(reduction, (value, sums), weights, steps)
        grads = without_derivative(_pulled(pull, fixed.effective, grads), NO_SECOND_DERIVATIVE)
        return SequenceGradient(
            value, grads, aux, lambda last: self.leave(state, moved(last), carry)
        )

    def _prefix(self, parameters: Parameters) -> tuple[Weights, Callable[..., tuple[list[Array]]]]:
        """The values that depend on the model alone, and the function that pulls gradients of the effective
        weights back to the floats of the model."""
        leaves = self.step.model_leaves

        def prefix(floats: list[Array]) -> Any:
            weights = self.prefix(leaves.replaced(parameters, floats))
            return weights.effective, weights.others

        floats = [parameters[i] for i in leaves.floats]
        effective, pull, others = jax.vjp(prefix, floats, has_aux=True)
        return Weights(effective, others), pull

    def check_loss(self, loss: Loss, targets: Any) -> jax.ShapeDtypeStruct:
        """The shape of the loss; targets have axes [T, B]."""
        outputs = self.step.output_leaves.join(self.step.output_leaves.avals)
        step_targets = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[2:], jnp.asarray(a).dtype), targets
        )
        return loss.check(outputs, step_targets)

    def enter(
        self, xs: Sequence[Array], carry: Carry
    ) -> tuple[list[Array], list[Any], Traces, Array]:
        """The arrays of a sequence and of a carry, with a batch axis where they have none."""
        state = [*self.step.state_leaves.split(carry.state), *carry.filtered]
        own, each, past = [tuple(t) for t in carry.traces], carry.each, carry.lookback
        fresh = carry.fresh
        if not carry.batched:
            xs = [x[:, None] for x in xs]
            state = [s[None] for s in state]
            own, each, past, fresh = jax.tree.map(lambda a: a[None], (own, each, past, fresh))
        return list(xs), state, Traces(own, carry.shared, each, past), fresh

    def leave(self, state: list[Any], traces: Traces, carry: Carry) -> Carry:
        """The carry after a call, of the kind that came in."""
        # False, in a way that XLA does not see through: a constant is not spread over devices as
        # the old array was, and the next call would be compiled for that.
        begun = jnp.minimum(jnp.atleast_1d(carry.fresh).astype(jnp.int8), 0) > 0
        return self.carry(state, traces, begun, carry.batched)

    def carry(self, state: list[Any], traces: Traces, fresh: Array, batched: bool) -> Carry:
        """A carry, from arrays with a batch axis; without one where it is not `batched`."""
        own = state, traces.carries, fresh, traces.each, traces.lookback
        if not batched:
            own = jax.tree.map(lambda a: a[0], own)
        state, carries, fresh, each, past = own
        leaves = dataclasses.replace(
            self.step.state_leaves, static=(None,) * len(self.step.state_leaves.static)
        )
        count = len(leaves.avals)
        rest = tuple(traces.shared), tuple(each), tuple(past), tuple(state[count:])
        # `eqx.tree_at` takes any empty tuple for the plain one.
        paths = tuple(node.op.path for node in self.ir.traces)
        named = TracesOf(map(tuple, carries), paths) if paths else ()
        return Carry(leaves.join(state[:count]), named, fresh, self.id, batched, *rest)


def _pulled(pull: Callable[..., Any], weights: Any, grads: list[Array]) -> list[Array]:
    """The gradient of the parameters from that of the effective weights.

    The gradient of a weight in low precision is more precise than the weight. It is pulled back in two parts: as
    it is rounded, and what rounding took away.
    """
    high = [g.astype(w.dtype) for g, w in zip(grads, weights, strict=True)]
    (moving,) = pull(tuple(high))
    if all(g.dtype == w.dtype for g, w in zip(grads, weights, strict=True)):
        return moving
    rest = [
        jnp.where(jnp.isfinite(h), g - h.astype(g.dtype), 0)
        for g, h in zip(grads, high, strict=True)
    ]
    (correction,) = pull(tuple(r.astype(w.dtype) for r, w in zip(rest, weights, strict=True)))
    return jax.tree.map(jnp.add, moving, correction)
