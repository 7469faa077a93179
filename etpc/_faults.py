"""What a gradient becomes by typical mistakes of those who write it by hand.

`Rewritten` computes the gradient of BPTT, or of D-RTRL, from the equations of a step in reverse mode, and can
replace where the derivative of a spike is taken and which data meets the credit of a weight. It shares nothing
with the traces of a program; where it does not give the program's gradient without a mistake, it is not used.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ._agreement import Vectors, flat
from ._jax import Equation, Variable, evaluate, is_spike
from ._loss import Loss, reduced
from ._trial import Trial
from .run import Program

Arrays = list[Array]
Values = dict[Variable, Any]
Act = Callable[[Equation, list[Any]], "list[Any] | None"]
stop = lax.stop_gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """A gradient with a mistake in it."""

    kind: str
    text: str
    """What the mistake is, as the rest of a sentence that begins with the rule."""
    values: Vectors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """What one run of the model left, each with leading axes T, B (or T)."""

    spikes: Arrays
    """What the function of each spike reads."""
    data: Arrays
    """What the weight of each operation that has data is multiplied with."""
    old: Arrays
    """The float leaves of the state before each step."""
    new: Arrays
    """And after it."""


class Rewritten:
    """The gradient of a sequence, from the equations of its step.

    - `program`: of the model under D-RTRL.
    """

    def __init__(self, trial: Trial, program: Program):
        self.trial, self.step = trial, program.plan.analysis.step
        a = program.plan.analysis
        self.loss = Loss.of(trial.loss_fn, trial.has_aux)
        spikes = {e: _read_by(e) for e in self.step.equations if is_spike(e)}
        self.spikes = {e: place for e, place in spikes.items() if place is not None}
        ops = [op for op in a.ops if op.kind.data is not None and len(op.equation.outputs) == 1]
        self.ops = {op.equation: (op.kind.data or 0, op.operand) for op in ops}
        cut = {op.equation for op in ops if a.reach[op.number].role == "state"}
        self.cut = {equation: place for equation, (place, _) in self.ops.items() if equation in cut}
        self.hidden = [i for i, v in enumerate(self.step.state) if v.is_float]
        computed = {self.step.next_state[i] for i in self.hidden}
        given = {*self.step.program.inputs, *self.step.constants}
        self.new_states = tuple(sorted(computed - given, key=lambda v: v.number))
        arrays = self.step.model_leaves.split(trial.model)
        self._arrays = [jnp.asarray(a) for a in arrays]
        self._gradient = jax.jit(self._of_batch, static_argnames=("cut", "twice"))
        floats = [self._arrays[i] for i in self.step.model_leaves.floats]
        self._arguments = (floats, *self._sequence())
        course = jax.jit(self._record)(*self._arguments)
        self.course = jax.tree.map(lambda a: a[:-1], course)
        self.after = jax.tree.map(lambda a: a[1:], course)
        """What the next step has; after the last, one with the same input again."""

    # --- gradients ---

    def gradient(
        self,
        cut: bool,
        spikes: Arrays | None = None,
        data: Arrays | None = None,
        twice: bool = False,
    ) -> Vectors:
        """The gradient of each parameter.

        - `cut`: as D-RTRL cuts, else that of BPTT.
        - `spikes`, `data`: what stands in the place of those of the course.
        - `twice`: whether the learning signal of a state has the paths through other states of the same step,
            which are in the traces of those already.
        """
        spikes = self.course.spikes if spikes is None else spikes
        data = self.course.data if data is None else data
        grads = self._gradient(*self._arguments, spikes, data, cut=cut, twice=twice)
        grads = reduced(self.trial.reduction, grads, self.trial.mask, self.trial.steps)
        paths = self.step.model_leaves.float_avals
        return {path: flat(g) for path, g in zip(paths, grads, strict=True)}

    def _sequence(self) -> tuple[Any, Arrays]:
        """Inputs, targets and weights of the loss, with leading axes T, B (or T), and the state to begin with."""
        trial, step = self.trial, self.step
        xs = [jnp.asarray(a) for a in step.input_leaves.split(trial.xs)]
        first = jnp.zeros(trial.lead, bool).at[0].set(True)
        weights = jnp.ones(trial.lead) if trial.mask is None else trial.mask
        start = [jnp.asarray(a) for a in step.state_leaves.split(trial.carry.state)]
        targets = jax.tree.map(jnp.asarray, trial.targets)
        return (step.with_begins(xs, first), targets, weights), start

    def _of_batch(
        self,
        floats: Arrays,
        sequence: Any,
        start: Arrays,
        spikes: Arrays,
        data: Arrays,
        cut: bool,
        twice: bool,
    ) -> Arrays:
        one = partial(self._loss_of_example, cut=cut, twice=twice)

        def total(floats: Arrays) -> Array:
            now = (*sequence, spikes, data)
            if self.trial.batch_size is None:
                return one(floats, start, now)
            return jax.vmap(one, in_axes=(None, 0, 1))(floats, start, now).mean()

        return jax.grad(total)(floats)

    def _loss_of_example(
        self, floats: Arrays, start: Arrays, data: Any, cut: bool, twice: bool
    ) -> Array:
        def body(state: Arrays, now: Any) -> tuple[Arrays, Array]:
            x, target, weight, spikes, op_data = now
            spikes = dict(zip(self.spikes, spikes, strict=True))
            act = partial(self._act, spikes=spikes, data=dict(zip(self.ops, op_data, strict=True)))
            env = self._environment(floats, x, state)

            def loss_of(env: Values) -> Array:
                y = self.step.output_leaves.join([env[v] for v in self.step.outputs])
                return self.loss(y, target, weight)[0]

            if not cut:
                env = evaluate(self.step.equations, env, act)
                return [env[v] for v in self.step.next_state], loss_of(env)
            after = evaluate(self.step.equations, dict(env), partial(self._cut, act))
            new = {v: after[v] for v in self.new_states}
            if twice:
                still = self._environment(floats, x, list(map(_still, state)))

                def of_each(more: Arrays) -> Array:
                    added = dict(zip(self.new_states, more, strict=True))
                    return loss_of(self._read(still, act, {}, added))

                credit = jax.grad(of_each)([jnp.zeros_like(new[v]) for v in self.new_states])
                of_step = loss_of(self._read(still, act, {v: stop(a) for v, a in new.items()}))
                loss = of_step + sum(
                    jnp.sum((stop(c) * new[v]).real)
                    for v, c in zip(self.new_states, credit, strict=True)
                )
            else:
                loss = loss_of(self._read(env, act, new))
            return [after[v] for v in self.step.next_state], loss

        return lax.scan(body, start, data)[1].sum()

    def _cut(self, act: Act, eqn: Equation, values: list[Any]) -> list[Any]:
        """The results of an equation whose data is held constant, if it is one that is cut."""
        place = self.cut.get(eqn)
        return _done(eqn, [stop(a) if i == place else a for i, a in enumerate(values)], act)

    def _environment(self, floats: Arrays, x: Arrays, state: Arrays) -> Values:
        return self.step.environment(
            self.step.model_leaves.replaced(self._arrays, floats), x, state
        )

    def _read(self, env: Values, act: Act, new: Values, more: Values | None = None) -> Values:
        """The values of a step, of which the loss has the learning signals of D-RTRL, each path counted once.

        The data of an operation that is cut is constant. So the influence of new states on the output by such
        operations is followed apart: in `held`, where old states are constant, to their data; and from there on in
        `still`, where all else is constant.

        - `new`: what new states are; where it has none, they are computed, and `more` is added.
        """
        more = more or {}
        env, held = dict(env), dict(env)
        held.update((v, stop(env[v])) for v in self.step.state if v.is_float)
        still = {v: _still(jnp.asarray(a)) for v, a in env.items()}
        for eqn in self.step.equations:
            of_env, of_held, of_still = ([e[v] for v in eqn.inputs] for e in (env, held, still))
            place = self.cut.get(eqn)
            if place is not None:
                crossing = of_held[place]
                if jnp.issubdtype(crossing.dtype, jnp.inexact):
                    of_still[place] = of_still[place] + (crossing - stop(crossing))
                of_env[place], of_held[place] = stop(of_env[place]), stop(of_held[place])
            for values, read in ((env, of_env), (held, of_held)):
                results = zip(eqn.outputs, _done(eqn, read, act), strict=True)
                values.update((v, more[v] + a if v in more else new.get(v, a)) for v, a in results)
            still.update(zip(eqn.outputs, _done(eqn, of_still, act), strict=True))
        crossed = {v: still[v] - stop(still[v]) for v in self.step.outputs if v.is_float}
        return env | {v: env[v] + a for v, a in crossed.items()}

    def _act(
        self,
        eqn: Equation,
        values: list[Any],
        *,
        spikes: Mapping[Equation, Array],
        data: Mapping[Equation, Array],
    ) -> list[Any] | None:
        """The results of an operation whose derivative is taken elsewhere; `None` for others."""
        if eqn in spikes:
            place = self.spikes[eqn]
            function = lambda u: _bound(eqn, values, {place: u})
            u = values[place]
            # Zero, but for its derivative.
            _, along = jax.jvp(function, (spikes[eqn],), (u - stop(u),))
            return [stop(function(u)) + along]
        if eqn in data:
            place, weight = self.ops[eqn]
            of_data = _bound(eqn, values, {weight: stop(values[weight])})
            of_weight = _bound(eqn, values, {place: data[eqn].astype(values[place].dtype)})
            return [of_data + of_weight - stop(of_weight)]
        return None

    # --- the course, and what is displaced ---

    def _record(self, floats: Arrays, sequence: Any, start: Arrays) -> Course:
        xs, batched = sequence[0], self.trial.batch_size is not None
        xs = jax.tree.map(lambda x: jnp.concatenate([x, x[-1:]]), xs)

        def one(start: Arrays, x: Arrays) -> Course:
            def body(state: Arrays, x: Arrays) -> tuple[Arrays, Course]:
                env = evaluate(self.step.equations, self._environment(floats, x, state))
                read = [env[e.inputs[place]] for e, place in self.spikes.items()]
                data = [env[e.inputs[place]] for e, (place, _) in self.ops.items()]
                new = [env[v] for v in self.step.next_state]
                of = lambda leaves: [leaves[i] for i in self.hidden]
                return new, Course(read, data, of(state), of(new))

            return lax.scan(body, start, x)[1]

        return (jax.vmap(one, in_axes=(0, 1), out_axes=1) if batched else one)(start, xs)

    def variants(self, cut: bool) -> Iterator[Variant]:
        """What the gradient becomes by each mistake."""
        for text, data in (
            ("with the data of the step before", [_later(x) for x in self.course.data]),
            ("with the data of the step after", self.after.data),
        ):
            where = "in the place of that of its own step: shifted by one step"
            yield Variant("shift", f"{text} {where}", self.gradient(cut, data=data))
        for text, spikes in self._displaced():
            yield Variant(
                "spike", f"with the spike's derivative taken {text}", self.gradient(cut, spikes)
            )
        if cut:
            text = (
                "with a path counted twice: the learning signal of a state goes through other states of the same step, "
                "which is in their traces already"
            )
            yield Variant("twice", text, self.gradient(cut, twice=True))

    def _displaced(self) -> Iterator[tuple[str, Arrays]]:
        """Where else the derivative of spikes may be taken."""
        read = self.course.spikes
        if not read:
            return
        affine = [self._affine(u) for u in read]
        if any(found is not None for found in affine):

            def each(moved: Callable[..., Array]) -> Arrays:
                """Where `u = a V + b`, with the state V of a number, what `moved(u, number, a, b)` says."""
                pairs = zip(read, affine, strict=True)
                return [u if found is None else moved(u, *found) for u, found in pairs]

            at = lambda states: each(lambda u, number, a, b: a * states[number] + b)
            soft = each(lambda u, number, a, b: jnp.where(u > 0, u + b, u))
            hard = each(lambda u, number, a, b: jnp.where(u > 0, b, u))
            yield "at the potential before the step", at(self.course.old)
            yield "at the potential after the step", at(self.course.new)
            yield "at the potential after the reset", soft
            yield "at the potential after the reset", hard
            centred = each(lambda u, number, a, b: u - b)
            yield "at the potential itself, without its threshold", centred
        if len(read) > 1 and len({u.shape for u in read}) == 1:
            yield "at the potential of the other spike function of the step", [*read[1:], read[0]]
        yield "at the potential of the step before", [_later(u, u[:1]) for u in read]
        yield "at the potential of the step after", self.after.spikes

    def _affine(self, u: Array) -> tuple[int, Array, Array] | None:
        """The new state that a spike reads, and how: `u = a V + b`, with the same `a` and `b` at most steps.

        At a step in which a spike resets `V` it is not, so most others decide.
        """
        for place, V in enumerate(self.course.new):
            if V.shape != u.shape or not jnp.issubdtype(V.dtype, jnp.floating):
                continue
            quiet = np.asarray(u) < 0
            if quiet.sum() < 3:
                continue
            x, y = np.asarray(V, np.float64)[quiet], np.asarray(u, np.float64)[quiet]
            (a, b), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)
            close = np.abs(a * x + b - y) <= 1e-5 * np.abs(y).max()
            if a and close.all():
                return place, jnp.asarray(a, u.dtype), jnp.asarray(b, u.dtype)
        return None


def _still(leaf: Array) -> Array:
    """An array without its derivative, if it has one."""
    return stop(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


def _later(x: Array, first: Array | None = None) -> Array:
    """Each value one step later."""
    return jnp.concatenate([jnp.zeros_like(x[:1]) if first is None else first, x[:-1]])


def _bound(eqn: Equation, values: list[Any], others: Mapping[int, Any]) -> Array:
    (result,) = eqn.bind(*(others.get(i, value) for i, value in enumerate(values)))
    return result


def _done(eqn: Equation, values: list[Any], act: Act) -> list[Any]:
    results = act(eqn, values)
    return eqn.bind(*values) if results is None else results


def _read_by(eqn: Equation) -> int | None:
    """Which operand a spike is a function of: the one float of its shape."""
    shape = eqn.outputs[0].shape
    places = [i for i, v in enumerate(eqn.inputs) if v.is_float and v.shape == shape]
    return places[0] if places and eqn.outputs[0].is_float and len(eqn.outputs) == 1 else None
