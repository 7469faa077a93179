"""What a gradient becomes by typical mistakes of those who write it by hand.

`Rewritten` computes the gradient of BPTT, or of D-RTRL, from the equations of a step in reverse mode, and can
replace where the derivative of a spike is taken and which data meets the credit of a weight. It shares nothing
with the traces of a program; where it does not give the program's gradient without a mistake, it is not used.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import Equation, Variable, evaluate, is_spike
from ..algorithms import D_RTRL, Algorithm
from ..gradient.agreement import Vectors, flat_gradients
from ..gradient.bptt import Objective, gradient_of
from ..gradient.loss import Loss
from ..run import Program
from ._trial import Trial

Arrays = list[Array]
Values = dict[Variable, Any]
Act = Callable[[Equation, list[Any]], "list[Any] | None"]
stop = lax.stop_gradient
ITSELF = Loss.of(lambda y, target: y, has_aux=False)
"""Of a step whose output is its loss."""


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """What the gradient of a rule becomes by a mistake, or as it is.

    - `kind`: as of a [`Fault`][etpc.Fault]. - `text`: the mistake, as the rest of a sentence that begins with the rule.
    """

    rule: Algorithm
    kind: str
    text: str
    values: Vectors


class Course(NamedTuple):
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

    Each kind of gradient is that of BPTT, of a step that has the values of the model's and perhaps other derivatives.

    - `program`: of the model under D-RTRL.
    """

    def __init__(self, trial: Trial, program: Program):
        self.trial, self.step = trial, program.plan.analysis.step
        a = program.plan.analysis
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
        self.inputs = self.step.with_begins(
            [jnp.asarray(a) for a in self.step.input_leaves.split(trial.xs)],
            jnp.zeros(trial.lead, bool).at[0].set(True),
        )
        longer = [jnp.concatenate([a, a[-1:]]) for a in self.inputs]
        nothing = Loss.of(lambda course, target: (jnp.zeros(()), course), has_aux=True)
        course = self._run(self._record, nothing, longer, None, None)[2]
        self.course = jax.tree.map(lambda a: a[:-1], course)
        self.after = jax.tree.map(lambda a: a[1:], course)
        """What the next step has; after the last, one with the same input again."""

    # --- gradients ---

    def gradient(
        self, rule: Algorithm, displaced: Arrays | None = None, twice: bool = False
    ) -> Vectors:
        """The gradient of each parameter.

        - `rule`: D-RTRL, or BPTT as another one.
        - `displaced`: what stands in the place of the `spikes` and `data` of the course.
        - `twice`: whether the learning signal of a state has the paths through other states of the same step,
            which are in the traces of those already.
        """
        if displaced is None:
            displaced = [*self.course.spikes, *self.course.data]
        targets, mask = jax.tree.map(jnp.asarray, self.trial.targets), self.trial.mask
        counts = jnp.ones(self.trial.lead, bool) if mask is None else mask != 0
        xs = self.inputs, displaced, targets, counts
        cut = rule == D_RTRL()
        step = self._twice if twice else self._cut_step if cut else self._plain_step
        loss = ITSELF if twice else self.trial.objective.loss
        grads = self._run(step, loss, xs, targets, mask)[1]
        return flat_gradients(self.step.model_leaves, grads)

    def _run(self, step: Any, loss: Loss, xs: Any, targets: Any, mask: Any) -> tuple[Any, Any, Any]:
        """Loss, gradient and aux of BPTT of a step that takes the leaves of the state."""
        start = [jnp.asarray(a) for a in self.step.state_leaves.split(self.trial.carry.state)]
        batched = self.trial.batch_size is not None
        objective = Objective(xs, targets, mask, loss, start, step, batched)
        return gradient_of(self.trial.model, objective, self.trial.reduction)

    def _record(self, model: Any, x: Arrays, state: Arrays) -> tuple[Course, Arrays]:
        env = evaluate(self.step.equations, self._environment(model, x, state))
        read = [env[e.inputs[place]] for e, place in self.spikes.items()]
        data = [env[e.inputs[place]] for e, (place, _) in self.ops.items()]
        new = [env[v] for v in self.step.next_state]
        of = lambda leaves: [leaves[i] for i in self.hidden]
        return Course(read, data, of(state), of(new)), new

    def _plain_step(self, model: Any, x: Any, state: Arrays) -> tuple[Any, Arrays]:
        """The step, but for what is displaced."""
        env, act = self._start(model, x, state)
        env = evaluate(self.step.equations, env, act)
        return self._output(env), [env[v] for v in self.step.next_state]

    def _cut_step(self, model: Any, x: Any, state: Arrays) -> tuple[Any, Arrays]:
        """With this step, the gradient of BPTT is that of D-RTRL."""
        env, act = self._start(model, x, state)
        after = evaluate(self.step.equations, dict(env), partial(self._cut, act))
        read = self._read(env, act, {v: after[v] for v in self.new_states}, {})
        return self._output(read), [after[v] for v in self.step.next_state]

    def _twice(self, model: Any, x: Any, state: Arrays) -> tuple[Array, Arrays]:
        """The same with the loss as its output, by signals that have some paths twice."""
        *_, target, counts = x
        env, act = self._start(model, x, state)
        after = evaluate(self.step.equations, dict(env), partial(self._cut, act))
        new = [after[v] for v in self.new_states]
        still = env | {v: _still(env[v]) for v in self.step.state}

        def loss_of(new: Values, more: Values) -> Array:
            y = self._output(self._read(still, act, new, more))
            return self.trial.objective.loss(y, target, counts)[0]

        def of_each(more: Arrays) -> Array:
            return loss_of({}, dict(zip(self.new_states, more, strict=True)))

        signals = jax.grad(of_each)([jnp.zeros_like(a) for a in new])
        loss = loss_of(dict(zip(self.new_states, map(stop, new), strict=True)), {})
        by_signals = (jnp.sum((stop(s) * a).real) for s, a in zip(signals, new, strict=True))
        return loss + sum(by_signals), [after[v] for v in self.step.next_state]

    def _start(self, model: Any, x: Any, state: Arrays) -> tuple[Values, Act]:
        """The values that the equations start from, and how they act with what is displaced."""
        x, displaced, *_ = x
        displaced = dict(zip((*self.spikes, *self.ops), displaced, strict=True))
        return self._environment(model, x, state), partial(self._act, displaced)

    def _environment(self, model: Any, x: Arrays, state: Arrays) -> Values:
        return self.step.environment(self.step.model_leaves.split(model), x, state)

    def _output(self, env: Values) -> Any:
        return self.step.output_leaves.join([env[v] for v in self.step.outputs])

    def _cut(self, act: Act, eqn: Equation, values: list[Any]) -> list[Any]:
        """The results of an equation whose data is held constant, if it is one that is cut."""
        place = self.cut.get(eqn)
        return _done(eqn, [stop(a) if i == place else a for i, a in enumerate(values)], act)

    def _read(self, env: Values, act: Act, new: Values, more: Values) -> Values:
        """The values of a step, of which the loss has the learning signals of D-RTRL, each path counted once.

        The data of an operation that is cut is constant. So the influence of new states on the output by such
        operations is followed apart: in `held`, where old states are constant, to their data; and from there on in
        `still`, where all else is constant.

        - `new`: what new states are; where it has none, they are computed, and `more` is added.
        """
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

    def _act(self, displaced: Mapping[Equation, Array], eqn: Equation, values: list[Any]) -> Any:
        """The results of an operation whose derivative is taken elsewhere; `None` for others."""
        if eqn in self.spikes:
            place = self.spikes[eqn]
            function = lambda u: _bound(eqn, values, {place: u})
            u = values[place]
            # Zero, but for its derivative.
            _, along = jax.jvp(function, (displaced[eqn],), (u - stop(u),))
            return [stop(function(u)) + along]
        if eqn in self.ops:
            place, weight = self.ops[eqn]
            of_data = _bound(eqn, values, {weight: stop(values[weight])})
            of_weight = _bound(eqn, values, {place: displaced[eqn].astype(values[place].dtype)})
            return [of_data + of_weight - stop(of_weight)]
        return None

    # --- what is displaced ---

    def variants(self, rule: Algorithm) -> Iterator[Variant]:
        """What the gradient of D-RTRL, or of BPTT, becomes by each mistake."""
        for text, data in (
            ("with the data of the step before", [_later(x) for x in self.course.data]),
            ("with the data of the step after", self.after.data),
        ):
            text = f"{text} in the place of that of its own step: shifted by one step"
            yield Variant(rule, "shift", text, self.gradient(rule, [*self.course.spikes, *data]))
        for where, spikes in self._displaced():
            text = f"with the spike's derivative taken {where}"
            yield Variant(rule, "spike", text, self.gradient(rule, [*spikes, *self.course.data]))
        if rule == D_RTRL():
            text = (
                "with a path counted twice: the learning signal of a state goes through other states of the same step, "
                "which is in their traces already"
            )
            yield Variant(rule, "twice", text, self.gradient(rule, twice=True))

    def _displaced(self) -> Iterator[tuple[str, Arrays]]:
        """Where else the derivative of spikes may be taken."""
        read = self.course.spikes
        if not read:
            return
        affine = [self._affine(u) for u in read]
        old, new = self.course.old, self.course.new
        # Where `u = a V + b`, with the state V of number n.
        moves: list[tuple[str, Callable[[Array, int, Array, Array], Array]]] = [
            ("before the step", lambda u, n, a, b: a * old[n] + b),
            ("after the step", lambda u, n, a, b: a * new[n] + b),
            ("after the reset", lambda u, n, a, b: jnp.where(u > 0, u + b, u)),
            ("after the reset", lambda u, n, a, b: jnp.where(u > 0, b, u)),
            ("itself, without its threshold", lambda u, n, a, b: u - b),
        ]
        for where, move in moves if any(affine) else []:
            pairs = zip(read, affine, strict=True)
            moved = [u if found is None else move(u, *found) for u, found in pairs]
            yield f"at the potential {where}", moved
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
