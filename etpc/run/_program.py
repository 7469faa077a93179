"""A compiled trace program."""

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
from jax import Array
from jaxtyping import Float

from .._errors import AlgorithmError, InputError, InputTypeError, checked_count, raise_together
from .._jax import Tracer
from ..analyse import Analysis, analyse
from ..emit import Window
from ..plan import Claim, Group, OpPlan, Plan, claims
from ..trace import Leaves, path_text, repeat
from ..traces import Traces
from ._describe import describe
from ._explain import explain
from ._graph import dependency_graph
from ._loss import (
    Loss,
    check_reduction,
    checked_weights,
    finite_where_masked,
    reduced,
)
from ._spikes import silent_layers
from ._window import window_for


class Carry(eqx.Module):
    """The hidden state and the eligibility traces of a stream. A PyTree of arrays.

    - `state`: the hidden state, with the structure that the model's state has (`None` at leaves
        that are no arrays), and a leading batch axis if the carry has one.
    - `traces`: the arrays of each trace, in the order of `program.ops`; uses of one weight that reach
        the same states share one.
    - `fresh`: whether the stream begins with the next step; a boolean for each example.
    - `shared`, `each`: of the directions along which escaping influence is followed, what the batch
        shares, which has no batch axis and outlives a reset, and what each example has; else empty.
    - `past`: the last steps, where the algorithm looks back through them; else empty.
    """

    state: Any
    traces: tuple[tuple[Array, ...], ...]
    fresh: Array
    program: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True)
    shared: tuple[Array, ...] = ()
    each: tuple[Array, ...] = ()
    past: tuple[Array, ...] = ()


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a carry holds."""

    traces: tuple[tuple[str, int], ...]
    """Path and bytes of each trace, in the order of the carry."""
    state: int
    batch_size: int | None
    directions: int = 0
    """Of the directions along which escaping influence is followed, beside their part of the traces."""
    past: int = 0
    """Of the last steps, where the algorithm looks back through them."""

    @property
    def total(self) -> int:
        return self.state + self.directions + self.past + sum(size for _, size in self.traces)

    def __str__(self) -> str:
        rows = [*self.traces, ("hidden state", self.state)]
        rows += [("directions", self.directions)] if self.directions else []
        rows += [("last steps", self.past)] if self.past else []
        rows.append(("total", self.total))
        width = max(len(path) for path, _ in rows)
        batch = "one example" if self.batch_size is None else f"batch size {self.batch_size}"
        lines = [f"{path:<{width}}  {size:>14,} bytes" for path, size in rows]
        return "\n".join([f"carry, {batch}", *lines])


@dataclasses.dataclass(frozen=True)
class Certificate:
    """How far a low-rank trace, and the gradient that it gave, can be from those of D-RTRL."""

    path: str
    trace: Float[Array, "*B m O"]
    """For each state and output, the norm over the inputs of what the trace left out is at most
    this. A group axis stands before O where the operation has groups."""
    gradient: Float[Array, " *G O"]
    """For each output, the norm over its inputs of the error of all gradients since `init`, added
    up, is at most this: those of `value_and_grad(..., reduction="sum")`, of the masked losses where
    there was a mask. With another reduction the bound is still that of the sums."""


class Program:
    """A trace program, called like the model with a carry in the place of the state.

    Made by [`etpc.compile`][]. `print(program)` shows each weight operation, what it reaches, its
    trace, and whether its gradient is exact.
    """

    def __init__(self, window: Window):
        self._window = window
        plan = window.plan
        self.plan: Plan = plan
        self._step = plan.analysis.step
        self._id = _fingerprint(plan)
        self._seen: dict[int, Any] = {}
        self._jit_scan = jax.jit(self._scan)
        self._jit_value_and_grad = jax.jit(self._masked_value_and_grad, static_argnums=1)

    # --- to look at ---

    @property
    def algorithm(self) -> Any:
        """The learning rule."""
        return self.plan.algorithm

    @property
    def ops(self) -> tuple[OpPlan, ...]:
        """One record for each traced weight operation: `path`, `kind`, `states`, `block`,
        `trace_shape`, `exact`, `escapes`."""
        return self.plan.traced

    @property
    def groups(self) -> tuple[Group, ...]:
        """Hidden states that share blocks, with the weights that reach them."""
        return self.plan.groups

    @cached_property
    def claims(self) -> Mapping[str, Claim]:
        """What is claimed of the gradient of each float parameter, by its path.

        A [`Claim`][etpc.Claim] says whether the gradient is exact, the reasons where it is not, and
        the operations in which the parameter is used. It holds for all values of the parameters,
        and for those that are the same over a stream: BPTT and traces differ where weights move.
        """
        return claims(self.plan)

    @property
    def exact(self) -> bool:
        """Whether every gradient is that of BPTT."""
        return all(claim.holds_exactly for claim in self.claims.values())

    @cached_property
    def untraced(self) -> Mapping[str, str]:
        """Paths of parameters without a trace, or with a use that reaches a hidden state and has
        none, each with the reason."""
        found: dict[str, str] = {}
        for path, claim in self.claims.items():
            without = [p.reason for p in claim.uses if p.form is None]
            if len(without) < len(claim.uses):
                missing = [r for r in claim.reasons if r.kind == "untraced" and r.use is not None]
                without = [f"in one use ({r.use.kind}) {r.text}" for r in missing if r.use]
                if not without:
                    continue
            unused = [reason.text for reason in claim.reasons if reason.kind == "unused"]
            found[path] = "; ".join(dict.fromkeys(without or unused))
        return found

    @cached_property
    def graph(self) -> "nx.DiGraph":
        """The dependency graph: inputs, parameters, weight operations, hidden states, outputs.

        Each node has `kind` and `path`; each edge has `cut`: whether the trace drops it.
        """
        return dependency_graph(self.plan)

    def draw(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """The dependency graph as a picture, or written to a file.

        **Arguments:**

        - `path`: of the file, which ends in `.svg`, `.html`, `.mmd` or `.mermaid`. `None` for none.

        **Returns** the text of an SVG file, which notebooks show as the picture; with `path`, `None`.

        **Raises** `etpc.InputError` where the ending is another.
        """
        from ..draw import to_svg, write

        return to_svg(self) if path is None else write(self, path)

    def _repr_html_(self) -> str:
        from ..draw._html import fragment

        return fragment(self)

    def explain(self, path: str, width: int = 100) -> str:
        """What the program does with one parameter, in sentences with numbers.

        What it reaches, its trace, whether the gradient is exact or the paths along which influence
        leaves, and what the trace would cost under other rules.

        **Arguments:**

        - `path`: a parameter path as `print(program)` shows them, such as `".cell.weight_hh"`.
        - `width`: of the lines at most, but for tables and long words.

        **Raises** `etpc.SelectionError` where the model has no such parameter, `etpc.InputError` for a
        width below 1.
        """
        width = checked_count("width", width)
        return explain(self.plan, self._all_cut, path, self.claims, width)

    @cached_property
    def _all_cut(self) -> Analysis:
        a = self.plan.analysis
        whole = a.cut == {op.number for op in a.ops if op.kind.mixes}
        return a if whole else analyse(a.step)

    def window_for(self, steps: int) -> int:
        """The window in which `value_and_grad` works on a sequence of so many steps.

        The window that `print(program)` shows, or all steps where there are fewer. Where that window
        was chosen and the gradient does not depend on it (no low-rank trace, and not
        `in_window="exact"`), it is one near it that divides `steps`, so that none are left over.
        """
        return window_for(self.plan, checked_count("steps", steps))

    def memory(self, batch_size: int | None = None) -> Memory:
        """Bytes of the carry: of each trace, of the state, of what else there is, in all."""
        batch_size = self._batch_size(batch_size)
        count = 1 if batch_size is None else batch_size
        traces = tuple((p.path, count * p.trace_bytes) for p in self.plan.carried)
        state = count * (_bytes(self._step.state_leaves.avals) + 1)  # one byte says if it is fresh
        carry = jax.eval_shape(lambda: self.init(batch_size))
        directions = _bytes([*carry.shared, *carry.each])
        return Memory(traces, state, batch_size, directions, _bytes(carry.past))

    def certificate(self, carry: Carry) -> tuple[Certificate, ...]:
        """Bounds of what low-rank traces left out, one for each; they hold always.

        For a program of `ES_D_RTRL(rank, certificate=True)`. What a reduction leaves out is moved on
        by the absolute values of the transitions, and adds up; multiplied with the credit of a window
        it bounds the error of the gradient. Measured, they are 2 to 10 times the error.
        """
        self._check_carry(carry)
        if not getattr(self.algorithm, "certificate", False):
            raise AlgorithmError(
                f"{self.algorithm} carries no bounds. Compile with "
                "ES_D_RTRL(rank, certificate=True)."
            )
        found = []
        for p, trace in zip(self.plan.carried, carry.traces, strict=True):
            bounds = p.trace.bounds(p.site, trace)
            if bounds is not None:
                off, gradient = bounds
                batch = off.shape[:1] if carry.batched else ()
                off = off.reshape(*batch, p.block, *p.site.group, p.op.kind.outputs)
                found.append(
                    Certificate(p.path, off, gradient.sum(0) if carry.batched else gradient)
                )
        return tuple(found)

    def credit_lost(self, carry: Carry) -> float | None:
        """The part of the energy of credit that lies in no direction that is followed, on a running mean.

        For a program of [`CreditRTRL`][etpc.CreditRTRL]: `E |lambda - V^T V lambda|^2 / E |lambda|^2`
        over the windows of `value_and_grad` and `etpc.online`, where `lambda` is the credit of the
        states at the start of a window. Where it is not small, take a larger `q`.

        **Returns** a number in [0, 1]; `None` where nothing escapes, or no window had credit yet.

        **Raises** `etpc.AlgorithmError` for another rule.
        """
        self._check_carry(carry)
        if not self.algorithm.follows:
            raise AlgorithmError(
                f"{self.algorithm} follows no directions. Compile with CreditRTRL()."
            )
        return None if self.plan.directions is None else self.plan.directions.lost(carry.shared)

    def silent(self, model: Any, xs: Any, carry: Carry, *, mask: Any = None) -> tuple[str, ...]:
        """Which layers of neurons give no spike on a sequence; it runs the model and no traces.

        **Arguments:**

        - `model`, `xs`, `carry`: as in [`scan`][etpc.Program.scan]; the carry is left as it is.
        - `mask`: as in [`value_and_grad`][etpc.Program.value_and_grad]: where it is zero, an input that
            is not finite is read as zero.

        **Returns** a sentence for each spike function that gives no spike, with its place in the code;
        nothing where all layers spike, or where there is no spike function. One inside a `lax.scan`
        of the model is not looked at.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` as `scan` does.
        """
        parameters = self._parameters(model)
        self._check_carry(carry)
        leaves = self._inputs(xs, carry)
        mask = checked_weights("mask", mask, leaves[0].shape[: 2 if carry.batched else 1])
        leaves = [finite_where_masked(x, mask) for x in leaves]
        state = self._step.state_leaves.split(carry.state)
        return silent_layers(self._step, parameters, leaves, state, carry.batched)

    def __str__(self) -> str:
        return describe(self.plan, self.claims, self.untraced)

    __repr__ = __str__

    # --- to run ---

    def init(self, batch_size: int | None = None) -> Carry:
        """A fresh carry: the initial state, and traces of zeros.

        **Arguments:**

        - `batch_size`: `None` for one example without a batch axis.

        **Raises** `etpc.InputError` where it is another thing than that or an int >= 1.
        """
        batch_size = self._batch_size(batch_size)
        state = self._initial_state()
        if batch_size is None:  # whoever donates a carry keeps the arrays it began with
            state = [jnp.copy(value) for value in state]
        else:
            state = [repeat(value, batch_size) for value in state]
        traces = self._window.fresh_traces(1 if batch_size is None else batch_size)
        batched = batch_size is not None
        of_batch = state if batched else [value[None] for value in state]
        traces = traces._replace(past=self._window.none_yet(of_batch))
        fresh = jnp.ones(batch_size if batched else (), bool)
        return self._carry(state, traces if batched else _without_batch(traces), fresh, batched)

    @staticmethod
    def _batch_size(given: Any) -> int | None:
        return None if given is None else checked_count("batch_size", given, "None or an int >= 1")

    def _initial_state(self) -> list[Any]:
        """The array leaves of the initial state of one example."""
        state = []
        for leaf, aval in zip(self._step.initial_state, self._step.state_leaves.avals, strict=True):
            if isinstance(leaf, jax.ShapeDtypeStruct):
                state.append(jnp.zeros(aval.shape, aval.dtype))
            elif jnp.issubdtype(aval.dtype, jax.dtypes.extended):
                state.append(leaf)
            else:
                state.append(jnp.asarray(leaf, aval.dtype))
        return state

    def reset(self, carry: Carry, where: Any) -> Carry:
        """Let chosen examples of a batch begin a new stream; the others go on untouched.

        Their state is the initial one again, and their traces are zero, also where they were not a
        number. PRNG keys go on, so that noise does not repeat. So do the bounds of
        [`certificate`][etpc.Program.certificate], which are of all gradients since `init`: where
        one of those was no number, neither is its bound.

        **Arguments:**

        - `carry`: from `init` or from a call before.
        - `where`: booleans [B], which examples; one boolean if the carry has no batch axis.

        **Returns** the new carry. **Raises** `etpc.InputError` where `where` has another shape or no
        booleans.
        """
        self._check_carry(carry)
        where = checked_reset(where, [jnp.shape(carry.fresh)], ["[B]" if carry.batched else "[]"])
        _, state, traces, fresh = self._enter([], carry)
        where = where if carry.batched else where[None]
        state, traces, fresh = self._restart(state, traces, fresh, where)
        if not carry.batched:
            state, traces, fresh = [s[0] for s in state], _without_batch(traces), fresh[0]
        return self._carry(state, traces, fresh, carry.batched)

    def __call__(self, model: Any, x: Any, carry: Carry) -> tuple[Any, Carry]:
        """One step. `jax.grad` through it gives the online gradient of this step.

        **Arguments:**

        - `model`: the model that was compiled, with these or other parameter values.
        - `x`: the input of one step, with a leading axis B if the carry has one.
        - `carry`: from `init` or from a call before.

        **Returns** `(y, carry)`. Cotangents that reach the carry are dropped.
        """
        # numbers by NumPy, which has a type for those that JAX's default type can't hold
        one_step = jax.tree.map(lambda a: (a if hasattr(a, "dtype") else np.asarray(a))[None], x)
        ys, carry = self.scan(model, one_step, carry)
        return jax.tree.map(lambda a: a[0], ys), carry

    def scan(self, model: Any, xs: Any, carry: Carry) -> tuple[Any, Carry]:
        """T steps as one window; differentiable like a call.

        **Arguments:** as for a call, and `xs` has a leading axis T, then B if the carry has one.

        **Returns** `(ys, carry)`, `ys` with the leading axes of `xs`.
        """
        parameters = self._parameters(model)
        self._check_carry(carry)
        leaves = self._inputs(xs, carry)
        outputs, carry = self._jit_scan(parameters, leaves, carry)
        return self._step.output_leaves.join(outputs), carry

    def value_and_grad(
        self,
        loss_fn: Callable[[Any, Any], Any],
        reduction: str = "mean",
        *,
        has_aux: bool = False,
    ) -> Callable[..., tuple[tuple[Array, Any], Any]]:
        """The loss of a sequence and its online gradient, in memory that does not grow with T.

        **Arguments:**

        - `loss_fn`: `loss_fn(y, target) -> scalar`, for one example at one step. A function, or an
            `eqx.Module` that may hold arrays; these are no parameters.
        - `reduction`: `"mean"` over time and batch, or the `"sum"` over time and the mean over the
            batch.
        - `has_aux`: `loss_fn` returns `(scalar, aux)`, where `aux` is any PyTree of arrays, such as
            whether the example was classified correctly. It is not differentiated.

        **Returns** a function `(model, xs, targets, carry, *, mask=None) -> ((loss, carry), grads)`,
        compiled. With `has_aux` it returns `((loss, (carry, aux)), grads)`, and `aux` has leading
        axes [T, B], or [T].

        - `xs`, `targets`: leading axis T, then B if the carry has one.
        - `mask`: [T, B], or [T] without a batch axis: the weight of the loss of each example at each
            step; booleans or real numbers. The mean is then `sum(mask * loss) / sum(mask)`, zero
            where all are zero, and the sum `sum(mask * loss) / B`. Where it is zero, neither loss
            nor gradient comes from there, be the output, the target or the loss NaN; an input that is
            not finite is read as zero there. The state moves on at such steps too.
        - `grads`: the structure of the model, with `None` at leaves that are no float arrays.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`, before anything is computed.
        """
        check_reduction(reduction)
        loss = Loss.of(loss_fn, has_aux)

        def run(
            model: Any, xs: Any, targets: Any, carry: Carry, *, mask: Any = None
        ) -> tuple[tuple[Array, Any], Any]:
            parameters = self._parameters(model)
            self._check_carry(carry)
            leaves = self._inputs(xs, carry)
            check_targets(targets, leaves, carry.batched)
            mask = checked_weights("mask", mask, leaves[0].shape[: 2 if carry.batched else 1])
            value, carry, grads, aux = self._jit_value_and_grad(
                loss, reduction, parameters, leaves, targets, carry, mask
            )
            return (value, (carry, aux) if has_aux else carry), self._model_tree(grads)

        return run

    # --- the compiled parts ---

    def _scan(self, parameters, xs, carry: Carry):
        weights, others = self._window.prefix(parameters, xs[0].shape[0])
        xs, state, traces, fresh = self._enter(xs, carry)
        ys, state, traces = self._window.run(weights, others, xs, state, traces, fresh)
        if not carry.batched:
            ys = [y[:, 0] for y in ys]
        return ys, self._leave(state, traces, carry)

    def _restart(self, state, traces, fresh, where: Array):
        """Arrays with a batch axis; those of examples in `where` as at the start of a stream."""

        def instead(value, old):
            return jnp.where(where.reshape(-1, *[1] * (old.ndim - 1)), value, old)

        state = [
            old if jnp.issubdtype(old.dtype, jax.dtypes.extended) else instead(value[None], old)
            for value, old in zip(self._initial_state(), state, strict=True)
        ]
        zeroed = lambda a: instead(jnp.zeros((), a.dtype), a)
        own = [
            p.trace.restart(p.site, trace, zeroed)
            for p, trace in zip(self.plan.carried, traces.own, strict=True)
        ]
        begun = self._window.fresh_each(fresh.shape[0])
        each = tuple(map(instead, begun, traces.each))
        past = traces.past
        if past:  # nothing of it is a step of the stream that begins
            past = (*past[:-1], past[-1] & ~where[:, None])
        return state, Traces(own, traces.shared, each, past), fresh | where

    def _masked_value_and_grad(self, loss, reduction, parameters, xs, targets, carry, mask):
        xs = [finite_where_masked(x, mask) for x in xs]
        return self._value_and_grad(loss, reduction, parameters, xs, targets, carry, mask)

    def _value_and_grad(
        self,
        loss: Loss,
        reduction: str,
        parameters,
        xs,
        targets,
        carry: Carry,
        weights=None,
        reset=None,
    ):
        """Loss, carry, gradients of the float leaves, and what the loss returns besides.

        `weights` and `reset` have axes [T, B], or [T] without a batch axis: what the losses are
        multiplied with, and which examples begin anew at which step; windows are one step then.
        """
        steps = _steps(xs, targets)
        floats = self._step.model_leaves.floats

        def prefix(moving):
            values = list(parameters)
            for i, value in zip(floats, moving, strict=True):
                values[i] = value
            return self._window.prefix(values, steps)

        effective, pull, others = jax.vjp(prefix, [parameters[i] for i in floats], has_aux=True)
        xs, state, traces, fresh = self._enter(xs, carry)
        given = targets, weights, reset
        if not carry.batched:
            given = jax.tree.map(lambda a: jnp.asarray(a)[:, None], given)
        value_aval = self._check_loss(loss, given[0])
        batch = _batch(state)

        def one_window(now, given):
            state, traces, fresh, total, sums = now
            xs, (targets, weights, reset) = given
            if reset is not None:
                state, traces, fresh = self._restart(state, traces, fresh, reset[0])

            def loss_of(ys):
                ys = self._step.output_leaves.join(ys)
                losses, aux = jax.vmap(jax.vmap(loss))(ys, targets, weights)
                return losses.sum() / batch, aux

            value, aux, more, state, traces = self._window.learn(
                effective, others, xs, state, traces, fresh, loss_of
            )
            sums = jax.tree.map(jnp.add, sums, more)
            after = list(state), traces, jnp.zeros_like(fresh), total + value, sums
            return after, aux

        window = self.window_for(steps) if reset is None else 1
        given = xs, given
        whole = steps // window
        zero = jnp.zeros((), value_aval.dtype)
        now = (state, traces, fresh, zero, self._window.no_sums(effective))
        cut = whole * window
        if whole == 1:
            now, aux = one_window(now, _slice(given, 0, cut))
        elif window == 1:  # an axis of length one in the sequence would have XLA copy all of it

            def one_step(now, given):
                now, aux = one_window(now, jax.tree.map(lambda a: a[None], given))
                return now, jax.tree.map(lambda a: a[0], aux)

            now, aux = jax.lax.scan(one_step, now, given)
        else:
            stacked = jax.tree.map(lambda a: a[:cut].reshape(whole, window, *a.shape[1:]), given)
            now, aux = jax.lax.scan(one_window, now, stacked)
            aux = jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), aux)
        if cut < steps:
            now, rest = one_window(now, _slice(given, cut, steps))
            aux = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), aux, rest)
        if not carry.batched:
            aux = jax.tree.map(lambda a: a[:, 0], aux)
        state, traces, _, value, sums = now
        moving = _pulled(pull, effective, self._window.gradient(sums))
        value, moving = reduced(reduction, (value, moving), weights, steps)
        return value, self._leave(state, traces, carry), moving, aux

    def _check_loss(self, loss: Loss, targets) -> jax.ShapeDtypeStruct:
        """The shape of the loss; targets have axes [T, B]."""
        outputs = self._step.output_leaves.join(self._step.output_leaves.avals)
        one = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[2:], jnp.asarray(a).dtype), targets
        )
        return loss.check(outputs, one)

    # --- arguments ---

    def _enter(self, xs, carry: Carry):
        """Arrays with axes [T, B, ...] and [B, ...]."""
        state = self._step.state_leaves.split(carry.state)
        own, each, past = [tuple(t) for t in carry.traces], carry.each, carry.past
        fresh = carry.fresh
        if not carry.batched:
            xs = [x[:, None] for x in xs]
            state = [s[None] for s in state]
            own, each, past, fresh = jax.tree.map(lambda a: a[None], (own, each, past, fresh))
        return list(xs), state, Traces(own, carry.shared, each, past), fresh

    def _leave(self, state, traces, carry: Carry) -> Carry:
        if not carry.batched:
            state, traces = [s[0] for s in state], _without_batch(traces)
        # False, in a way that XLA does not see through: a constant is not spread over devices as
        # the old array was, and the next call would be compiled for that.
        begun = jnp.minimum(carry.fresh.astype(jnp.int8), 0) > 0
        return self._carry(state, traces, begun, carry.batched)

    def _carry(self, state, traces: Traces, fresh: Array, batched: bool) -> Carry:
        leaves = dataclasses.replace(
            self._step.state_leaves, static=(None,) * len(self._step.state_leaves.static)
        )
        own = tuple(tuple(t) for t in traces.own)
        rest = tuple(traces.shared), tuple(traces.each), tuple(traces.past)
        return Carry(leaves.join(state), own, fresh, self._id, batched, *rest)

    def _model_tree(self, grads) -> Any:
        leaves = self._step.model_leaves
        filled: list[Any] = [None] * len(leaves.static)
        for i, value in zip(leaves.floats, grads, strict=True):
            filled[leaves.places[i]] = value
        return leaves.treedef.unflatten(filled)

    def _parameters(self, model: Any) -> list[Any]:
        """The array leaves of a model, checked against those that were compiled."""
        expected = self._step.model_leaves
        model, traced = self._with_numbers(model)
        given = Leaves.of(model, "model")
        if not _same(given.treedef, expected.treedef) or given.places != expected.places:
            ours, theirs = set(expected.paths), set(given.paths)
            missing, extra = sorted(ours - theirs), sorted(theirs - ours)
            leaves = dict(zip(given.paths, given.split(model), strict=True))
            if extra and not missing and all(isinstance(leaves[p], Tracer) for p in extra):
                raise InputError(
                    f"The model's numbers {', '.join(extra)} came in as arrays. This is because "
                    "`jax.jit` makes arrays of all leaves of its arguments. Use `eqx.filter_jit`."
                )
            detail = f" Missing: {', '.join(missing)}." if missing else ""
            detail += f" Not in the compiled one: {', '.join(extra)}." if extra else ""
            detail = detail or " Its static fields or the types of its nodes differ."
            raise InputError(
                "The model does not have the structure of the one that was compiled."
                f"{detail} Compile it again, or pass a model that differs in array values alone."
            )
        problems = [
            f"Parameter {path} is {_text(got)}, and was compiled as {_text(want)}. Compile again."
            for path, got, want in zip(given.paths, given.avals, expected.avals, strict=True)
            if (got.shape, got.dtype) != (want.shape, want.dtype)
        ]
        for n, (ours, theirs) in enumerate(zip(expected.static, given.static, strict=True)):
            if ours is not theirs and not _same(ours, theirs):
                path = jax.tree_util.tree_leaves_with_path(model)[n][0]
                problems.append(
                    f"The model holds {theirs!r} where {ours!r} was compiled in, at "
                    f"{path_text(path, 'model', model)}. Values that are no arrays are part of the "
                    "program, such as the flag that `eqx.nn.inference_mode` sets: compile again, or "
                    "make it an array."
                )
        pairs = zip(expected.static_arrays, given.static_arrays, strict=True)
        if not all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs):
            problems.append(
                "A NumPy array in a static field of the model has other values than when it was "
                "compiled. Static fields are part of the program: compile again, or make it a "
                "field that is not static."
            )
        values = expected.split(model)
        for i in self.plan.analysis.assumed:
            values[i] = self._connections(i, values[i], problems)
        raise_together(problems, InputError)
        values = [jnp.asarray(a) if isinstance(a, np.ndarray | np.generic) else a for a in values]
        for value, compiled in traced if values else ():
            message = f"The model holds another number where {compiled!r} was compiled in."
            values[0] = eqx.error_if(values[0], value != jnp.asarray(compiled), message)
        return values

    def _with_numbers(self, model: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        """The model with NumPy's integers and flags as they were compiled, where `eqx.filter_jit` made
        arrays of them; and these arrays, which are compared when the program runs."""
        expected = self._step.model_leaves
        leaves, treedef = jax.tree.flatten(model)
        numbers = [
            i
            for i, static in enumerate(expected.static)
            if isinstance(static, np.integer | np.bool_)
            and i < len(leaves)
            and isinstance(leaves[i], Tracer)
        ]
        traced = [(leaves[i], expected.static[i]) for i in numbers]
        for i in numbers:
            leaves[i] = expected.static[i]
        return (treedef.unflatten(leaves), traced) if numbers else (model, [])

    def _connections(self, i: int, given: Any, problems: list[str]) -> Any:
        """An integer array of the model that the traces were laid out for, checked to be that one.

        Inside a transformation its values are not known before the program runs, so they are
        compared there.
        """
        if given is self._seen.get(i):
            return given
        compiled = self._step.fixed[self._step.parameters[i]]
        message = (
            f"The values of {self._step.model_leaves.paths[i]} differ from those that were "
            "compiled. This is because integer arrays say what is connected with what, and the "
            "traces are laid out for that. Compile again with the new ones."
        )
        if isinstance(given, Tracer):
            return eqx.error_if(
                given, _checksum(given) != _checksum(jnp.asarray(compiled)), message
            )
        if np.shape(given) != compiled.shape or not np.array_equal(given, compiled):
            problems.append(message)
        elif isinstance(given, jax.Array):
            self._seen[i] = given  # what nobody can write to is compared once
        else:
            given = compiled  # and not what may be written to while the program runs
        return given

    def _check_carry(self, carry: Any) -> None:
        if not isinstance(carry, Carry):
            raise InputTypeError(
                f"carry is a {type(carry).__name__}. Pass the carry of `program.init(...)` or of a "
                "call before, not the model's state."
            )
        if carry.program != self._id:
            raise InputError(
                "This carry belongs to another program (another model, algorithm or selection of "
                "weights). Make one with this program's `init`."
            )

    def _inputs(self, xs: Any, carry: Carry) -> list[Array]:
        expected = self._step.input_leaves
        given = Leaves.of(xs, "x", numbers=True)
        if given.treedef != expected.treedef or given.places != expected.places:
            raise InputError(
                "The input does not have the structure that was compiled: it has leaves "
                f"{', '.join(given.paths)} ({given.treedef}), and the program {', '.join(expected.paths)} "
                f"({expected.treedef}). Pass inputs of the compiled structure, or compile again."
            )
        leaves = expected.split(xs)
        lead = 2 if carry.batched else 1
        axes = "[T, B]" if carry.batched else "[T]"
        values, problems, leads = [], [], set()
        batch = _batch(self._step.state_leaves.split(carry.state)) if carry.batched else None
        for path, leaf, aval in zip(expected.paths, leaves, expected.avals, strict=True):
            shape = jnp.shape(leaf)
            if len(shape) < lead or shape[lead:] != aval.shape:
                problems.append(
                    f"Input {path} has shape {list(shape)}, and should be {axes} + "
                    f"{list(aval.shape)}: the carry has {'a' if carry.batched else 'no'} batch axis."
                    f"{_advice(shape, aval.shape, carry.batched)}"
                )
            elif (problem := _cast_problem(leaf, aval.dtype)) is not None:
                problems.append(f"Input {path} {problem}")
            else:
                leads.add(shape[:lead])
                if batch is not None and shape[1] != batch:
                    problems.append(
                        f"Input {path} has shape {list(shape)}, read as {axes} + "
                        f"{list(aval.shape)}, a batch of {shape[1]}; the carry has {batch}. Where "
                        "the batch is the first axis of your data, swap it with time, as in "
                        "`xs.swapaxes(0, 1)`, in the targets too. Else make the carry by "
                        f"`init(batch_size={shape[1]})`."
                    )
            values.append(leaf)
        if len(leads) > 1:
            problems.append(f"The inputs disagree about their leading axes: {sorted(leads)}.")
        if any(lead_shape[0] == 0 for lead_shape in leads):
            problems.append("The input has no steps (T = 0).")
        raise_together(problems, InputError)
        return [
            v if isinstance(v, jax.Array) and v.dtype == a.dtype else jnp.asarray(v, a.dtype)
            for v, a in zip(values, expected.avals, strict=True)
        ]


def _pulled(pull: Callable[..., Any], weights: Any, grads: list[Array]) -> list[Array]:
    """The gradient of the parameters from that of the effective weights.

    A weight in low precision has a gradient that is more precise, which is passed on in two parts.
    """
    high = [g.astype(w.dtype) for g, w in zip(grads, weights, strict=True)]
    (moving,) = pull(tuple(high))
    if all(g.dtype == w.dtype for g, w in zip(grads, weights, strict=True)):
        return moving
    rest = [
        jnp.where(jnp.isfinite(h), g - h.astype(g.dtype), 0)
        for g, h in zip(grads, high, strict=True)
    ]
    (more,) = pull(tuple(r.astype(w.dtype) for r, w in zip(rest, weights, strict=True)))
    return jax.tree.map(jnp.add, moving, more)


def _cast_problem(given: Any, wanted: Any) -> str | None:
    """Why an input cannot be cast to the dtype that was compiled; `None` where it can.

    Integers are cast where no value changes. Floats are rounded, as by `astype`.
    """
    dtype = given.dtype if hasattr(given, "dtype") else np.asarray(given).dtype
    if dtype == wanted:
        return None
    convert = f"is {dtype}, and was compiled as {wanted}. Convert it."
    if any(jnp.issubdtype(d, jax.dtypes.extended) for d in (dtype, wanted)):
        return convert
    order = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    ranks = [
        next((i for i, kind in enumerate(order) if jnp.issubdtype(d, kind)), len(order))
        for d in (dtype, wanted)
    ]
    if ranks[0] > ranks[1]:
        return convert
    if not (jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(wanted, jnp.integer)):
        return None
    own, into = jnp.iinfo(dtype), jnp.iinfo(wanted)
    if into.min <= own.min and own.max <= into.max:
        return None
    remedy = f"Compile with `inputs=` of {dtype}, or of another type that holds all values"
    if isinstance(given, Tracer):
        return (
            f"is {dtype}, and was compiled as {wanted}, which does not hold all values of that "
            f"type; inside a transformation they are not known. {remedy}, or convert it yourself "
            f"where the values are known to fit: `.astype({str(wanted)!r})`."
        )
    if not np.size(given):
        return None
    least, most = int(given.min()), int(given.max())
    if into.min <= least and most <= into.max:
        return None
    return (
        f"is {dtype} with values from {least} to {most}, and was compiled as {wanted}, which holds "
        f"{into.min} to {into.max}: others would wrap around. {remedy}."
    )


def _advice(shape: tuple[int, ...], one: tuple[int, ...], batched: bool) -> str:
    """What to do about an input whose leading axes are not those of the carry."""
    if not batched and len(shape) == 2 + len(one) and shape[2:] == one:
        return f" Make the carry by `init(batch_size={shape[1]})`."
    if batched and len(shape) == 1 + len(one) and shape[1:] == one:
        return " Make the carry by `init()` for one example without a batch axis."
    return ""


def checked_reset(where: Any, shapes: list[tuple[int, ...]], axes: list[str]) -> Array:
    """`reset` or `where` as an array, if it has booleans and one of the shapes."""
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise InputError(
            f"A reset is {where.dtype}{list(where.shape)}, and should be booleans: True where an "
            "example begins a new stream."
        )
    if where.shape not in shapes:
        expected = " or ".join(f"{a} = {list(s)}" for a, s in zip(axes, shapes, strict=True))
        raise InputError(
            f"A reset has shape {list(where.shape)}, and should have {expected}: one boolean for "
            "each example."
        )
    return where


def _steps(xs: list[Array], targets: Any) -> int:
    leaves = xs or jax.tree.leaves(targets)
    return leaves[0].shape[0]


def check_targets(targets: Any, xs: list[Array], batched: bool) -> None:
    if not xs:
        return
    lead = xs[0].shape[: 2 if batched else 1]
    problems = [
        f"A target has shape {list(jnp.shape(leaf))}, and should begin with "
        f"{list(lead)}, as the input does ({'T, B' if batched else 'T'})."
        for leaf in jax.tree.leaves(targets)
        if jnp.shape(leaf)[: len(lead)] != lead
    ]
    raise_together(problems, InputError)


def _slice(tree: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda a: a[start:stop], tree)


def _batch(state: list[Array]) -> int:
    return state[0].shape[0]


def _bytes(arrays: Iterable[Any]) -> int:
    """Of arrays or their shapes, but for keys."""
    return sum(
        math.prod(a.shape) * jnp.dtype(a.dtype).itemsize
        for a in arrays
        if not jnp.issubdtype(a.dtype, jax.dtypes.extended)
    )


def _without_batch(traces: Traces) -> Traces:
    own, each, past = jax.tree.map(lambda a: a[0], (traces.own, traces.each, traces.past))
    return Traces(own, traces.shared, each, past)


def _text(aval: jax.ShapeDtypeStruct) -> str:
    return f"{aval.dtype}{list(aval.shape)}"


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # a leaf of unknown type may compare in any way
        return False


def _checksum(values: Array) -> Array:
    """A number that differs, as good as always, for arrays that differ."""
    if values.dtype.itemsize > 4:
        values = jnp.stack([values, values >> 32])
    words = values.astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(2654435761)
    mixed = (words ^ place) * jnp.uint32(2246822519)
    return jnp.sum((mixed ^ (mixed >> 15)) * jnp.uint32(3266489917), dtype=jnp.uint32)


def _fingerprint(plan: Plan) -> str:
    """What a carry must agree on: the states, every use of a weight, and what reaches what.

    The same in every process, for the same model; the values of its parameters do not matter.
    """
    analysis = plan.analysis
    step = analysis.step
    digest = hashlib.sha256()

    def add(*parts: Any) -> None:
        # without where functions and objects are in the memory of this process
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", "\n".join(map(str, parts)))
        digest.update(text.encode() + b"\0")

    add(plan.algorithm, step.state_leaves.treedef)
    for leaves in (step.state_leaves, step.model_leaves):
        add(*(f"{p} {_text(a)}" for p, a in zip(leaves.paths, leaves.avals, strict=True)))
    for p, reach in zip(plan.ops, analysis.reach, strict=True):
        kind = p.op.kind
        add(p.path, kind.name, kind.groups, kind.inputs, kind.outputs, kind.data, p.op.operand)
        add(p.form, p.trace_shape, p.dtype, p.shares, p.op.number in analysis.cut)
        _add_pattern(digest, reach.block)
    for pattern in (analysis.transition, *analysis.immediate):
        _add_pattern(digest, pattern)
    for i in analysis.assumed:
        values = step.fixed[step.parameters[i]]
        add(i, values.dtype, values.shape)
        _add_numbers(digest, values)
    return digest.hexdigest()[:16]


def _add_pattern(digest: Any, pattern: Any) -> None:
    digest.update(repr(pattern.shape).encode())
    if not pattern.has_sorted_indices:
        pattern = pattern.sorted_indices()
    _add_numbers(digest, pattern.indptr)
    _add_numbers(digest, pattern.indices)


def _add_numbers(digest: Any, values: np.ndarray) -> None:
    """Integers or booleans of any type, a part at a time, as one type for all machines."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        digest.update(flat[start : start + (1 << 20)].astype("<i8").tobytes())


__all__ = ["Carry", "Certificate", "Memory", "Program"]
