"""What a gradient becomes by typical mistakes of those who write it by hand.

The gradient is that of the definition of a rule, of operations that act otherwise: the derivative of a spike is taken
elsewhere, or other data meets the credit of a weight. It shares nothing with the traces of a program; where it does not
give the program's gradient without a mistake, it is not used.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..algorithms import D_RTRL, Algorithm
from ..analyse import Analysis
from ..definition import Bind, Definition
from ..gradient.agreement import Vectors, flat_gradients
from ..gradient.bptt import Objective, gradient_of
from ..gradient.loss import Loss
from ..trace import Equation, is_spike
from ._trial import Trial

Arrays = list[Array]
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


class Mistakes:
    """The gradient of a sequence by BPTT or by D-RTRL, with mistakes or without one.

    - `analysis`: of the model's step, as D-RTRL has it.
    """

    def __init__(self, trial: Trial, analysis: Analysis):
        self.trial, step, loss = trial, analysis.step, trial.objective.loss
        uncut = dataclasses.replace(analysis, cut=frozenset(), in_full={})
        self.cut, self.plain = (Definition(a, {}, loss) for a in (analysis, uncut))
        spikes = {e: _read_by(e) for e in analysis.split.body if is_spike(e)}
        self.spikes = {e: place for e, place in spikes.items() if place is not None}
        ops = [op for op in analysis.ops if op.kind.data is not None]
        ops = [op for op in ops if len(op.equation.outputs) == 1]
        self.ops = {op.equation: (op.kind.data or 0, op.operand) for op in ops}
        self.inputs = step.with_begins(
            [jnp.asarray(a) for a in step.input_leaves.split(trial.xs)],
            jnp.zeros(trial.lead, bool).at[0].set(True),
        )
        longer = [jnp.concatenate([a, a[-1:]]) for a in self.inputs]
        nothing = Loss.of(lambda course, target: (jnp.zeros(()), course), has_aux=True)
        course = self.run(self._record, nothing, longer, None, None)[2]
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
        defined = self.cut if rule == D_RTRL() else self.plain

        def step(model: Any, x: Any, state: Arrays) -> tuple[Any, Any]:
            x, displaced, target, counts = x
            acting = defined.acting(self._displacing(displaced))
            at = acting.start(acting.step.model_leaves.split(model), x, state)
            return self._twice(acting, at, target, counts) if twice else acting.as_step(at)

        xs, loss = (self.inputs, displaced, targets, counts), self.trial.objective.loss
        grads = self.run(step, ITSELF if twice else loss, xs, targets, mask)[1]
        return flat_gradients(defined.step.model_leaves, grads)

    def run(self, step: Any, loss: Loss, xs: Any, targets: Any, mask: Any) -> tuple[Any, Any, Any]:
        """Loss, gradient and aux of BPTT of a step that takes the leaves of the state."""
        leaves = self.plain.step.state_leaves
        start = [jnp.asarray(a) for a in leaves.split(self.trial.carry.state)]
        batched = self.trial.batch_size is not None
        objective = Objective(xs, targets, mask, loss, start, step, batched)
        return gradient_of(self.trial.model, objective, self.trial.reduction)

    def _twice(self, rule: Definition, at: Any, target: Any, counts: Any) -> tuple[Array, Arrays]:
        """A step with its loss as the output, by signals that have some paths twice."""
        env, w, h = at

        def loss_of(outputs: Any) -> Array:
            y = rule.step.output_leaves.join(outputs)
            return self.trial.objective.loss(y, target, counts)[0]

        def of_each(more: Array) -> Array:
            """The loss, of new states to each of which something is added."""
            added = dict(zip(rule.new, rule.states.arrays(more), strict=True))

            def with_more(eqn: Equation, operands: Any) -> list[Any]:
                results = zip(eqn.outputs, rule.bind(eqn, operands), strict=True)
                return [a + added[v] if v in added else a for v, a in results]

            after, _ = rule.acting(with_more).evaluated(env, w, h)
            return loss_of([after[v] for v in rule.split.outputs])

        signals = jax.grad(of_each)(jnp.zeros_like(h))
        outputs, state = rule.outputs(env, w, stop(h), None, jnp.zeros_like(h))
        new = rule.cut_step(env, w, h, None)
        return loss_of(outputs) + stop(signals) @ new, rule.with_hidden(state, new)

    def _record(self, model: Any, x: Arrays, state: Arrays) -> tuple[Course, Arrays]:
        leaves, hidden = self.plain.step.model_leaves, self.plain.hidden.leaves
        env, new = self.plain.evaluated(*self.plain.start(leaves.split(model), x, state))
        read = [env[e.inputs[place]] for e, place in self.spikes.items()]
        data = [env[e.inputs[place]] for e, (place, _) in self.ops.items()]
        of = lambda leaves: [leaves[i] for i in hidden]
        return Course(read, data, of(state), of(new)), new

    def _displacing(self, displaced: Arrays) -> Bind:
        """How operations act whose derivative is taken elsewhere."""
        instead = dict(zip((*self.spikes, *self.ops), displaced, strict=True))

        def bind(eqn: Equation, values: Sequence[Any]) -> list[Any]:
            if eqn in self.spikes:
                place = self.spikes[eqn]
                function = lambda u: _bound(eqn, values, {place: u})
                u = values[place]
                # Zero, but for its derivative.
                _, along = jax.jvp(function, (instead[eqn],), (u - stop(u),))
                return [stop(function(u)) + along]
            if eqn in self.ops:
                place, weight = self.ops[eqn]
                of_data = _bound(eqn, values, {weight: stop(values[weight])})
                of_weight = _bound(eqn, values, {place: instead[eqn].astype(values[place].dtype)})
                return [of_data + of_weight - stop(of_weight)]
            return eqn.bind(*values)

        return bind

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


def _later(x: Array, first: Array | None = None) -> Array:
    """Each value one step later."""
    return jnp.concatenate([jnp.zeros_like(x[:1]) if first is None else first, x[:-1]])


def _bound(eqn: Equation, values: Sequence[Any], others: Mapping[int, Any]) -> Array:
    (result,) = eqn.bind(*(others.get(i, value) for i, value in enumerate(values)))
    return result


def _read_by(eqn: Equation) -> int | None:
    """Which operand a spike is a function of: the one float of its shape."""
    shape = eqn.outputs[0].shape
    places = [i for i, v in enumerate(eqn.inputs) if v.is_float and v.shape == shape]
    return places[0] if places and eqn.outputs[0].is_float and len(eqn.outputs) == 1 else None
