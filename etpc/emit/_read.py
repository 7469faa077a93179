"""The output of a step as a function of all that a trace is multiplied with, each path counted once.

The gradient of the loss of a step is a sum over paths from each use of a weight, at this step or before,
to the output, in a step in which operations that reach a state read their data with old states held
constant. Sort the paths by the last new state on that part of them that precedes the data of an
operation. What leads to that state is `eps'`, the trace of the cut step; what follows is the learning
signal L at it, in which every path on to another new state is cut, and those through operations are not.
Paths without a new state are differentiated by the perturbation `delta` of the operation's output in the
same step, or by the old state that they come from, which meets the trace of the step before. So

    dl/dw = sum_t L_t eps'_t + (dl_t/d delta) x_t + (dl_t/d old) eps_{t-1}

and `read` evaluates the step so that one reverse pass gives all three.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import Equation, Variable, evaluate, prims, propagate, prune, result_type
from .._primitives import facts
from ..analyse import Analysis, WeightOp
from ._forward import superpose
from ._step import Env, StepFunctions


def _is_move(eqn: Equation) -> bool:
    """Whether an operation moves values and does not change them."""
    if eqn.primitive is prims.convert_element_type_p:
        old, new = (v.aval.dtype for v in (*eqn.inputs, *eqn.outputs))
        return result_type(old, new) == new
    return facts(eqn.primitive).moves


def _stops(eqn: Equation, output: Variable) -> bool:
    return eqn.primitive is prims.stop_gradient_p


def _data(op: WeightOp) -> Variable:
    """What the weight of an operation is multiplied with."""
    assert op.kind.data is not None
    return op.equation.inputs[op.kind.data]


class Reading:
    """The output of one step of one example, as a function of states and of operations."""

    def __init__(self, step: StepFunctions):
        self.step = step
        a = step.analysis
        factors = [_data(op) for op in step.live if op.kind.data is not None]
        self._body = prune(a.split.body, [*a.split.outputs, *factors], step.saved_equations)
        self._moves = _moved_states(a)

    def __call__(
        self, weights, others, x, state, saved, old, new, deltas
    ) -> tuple[list[Array], list[Array]]:
        """The output, and the data `x` of each live operation that has some.

        `old` and `new` are the parts of old and new states. A new state is what `new` says, also
        where the step moves it on into another array, so that the derivative by `new` is the
        learning signal. What reaches the output past the new states is differentiated by `old` and
        `deltas`. An operation whose data is cut, but depends on new states or on other outputs of
        its own step, passes on the influence of those: it crosses. That influence goes through the
        rest of the step unhindered, so it is carried by a second evaluation.
        """
        a = self.step.analysis
        stop = lax.stop_gradient
        base = self.step.start(weights, others, x, self.step.with_parts(state, old))
        moved = self._moves.values(self.step.leaves(new), base, self.step, saved, deltas)
        first = self._run(base, saved, deltas, moved)
        outputs = [first[v] for v in a.split.outputs]
        if self.crossing:
            shared = first
            if any(
                _data(op) in self._by_old for op in self.step.saved if op.equation in self.crossing
            ):
                held = self.step.start(
                    weights, others, x, self.step.with_parts(state, [stop(p) for p in old])
                )
                shared = self._run(held, saved, deltas, moved)
            second = self._crossed(weights, others, x, state, saved, old, shared)
            outputs = [
                superpose(y, second[v]) if v.is_float else y
                for v, y in zip(a.split.outputs, outputs, strict=True)
            ]
        factors = [_data(op) for op in self.step.live if op.kind.data is not None]
        return outputs, [stop(first[v]) for v in factors]

    def _run(self, env: Env, saved, deltas, moved: "dict[Variable, Moved]") -> Env:
        perturb = self.step.perturbing(saved, deltas)

        def rule(eqn, values):
            outputs = perturb(eqn, values)
            if any(v in moved for v in eqn.outputs):
                outputs = eqn.bind(*values) if outputs is None else outputs
                outputs = [
                    moved[v].over(value) if v in moved else value
                    for v, value in zip(eqn.outputs, outputs, strict=True)
                ]
            return outputs

        return evaluate(self._body, dict(env), rule)

    def _crossed(self, weights, others, x, state, saved, old, shared: Env) -> Env:
        stop, crossing = lax.stop_gradient, self.crossing
        held = self.step.with_parts(state, [stop(p) for p in old])
        still = self.step.start([stop(w) for w in weights], others, x, held)
        body = prune(
            self.step.analysis.split.body,
            self.step.analysis.split.outputs,
            [eqn for eqn in self.step.saved_equations if eqn not in crossing],
        )

        def rule(eqn, values):
            place = self.step.saved_equations.get(eqn)
            if place is None:
                return None
            if eqn not in crossing:
                return [stop(saved[place])]
            data = self.step.saved[place].kind.data
            assert data is not None
            values = list(values)
            values[data] = superpose(values[data], shared[eqn.inputs[data]])
            return [superpose(stop(saved[place]), eqn.bind(*values)[0])]

        return evaluate(body, still, rule)

    @cached_property
    def crossing(self) -> frozenset[Equation]:
        """Equations of cut operations whose data depends on things of their own step."""
        live = (v for eqn in self.step.live_table for v in eqn.outputs if v.is_float)
        body = self.step.analysis.split.body
        touched = propagate(body, [*self._moves.variables, *live], _stops)
        return frozenset(op.equation for op in self.step.saved if _data(op) in touched)

    @cached_property
    def _by_old(self) -> Collection[Variable]:
        """What depends on old states past the new ones and past the operations that are cut."""
        a = self.step.analysis
        past = [eqn for eqn in self._body if eqn not in self.step.saved_equations]
        new = self._moves.new_states
        old = (a.step.state[i] for i in a.hidden.leaves)
        return propagate(past, old, lambda eqn, v: _stops(eqn, v) or v in new)

    def reads_old_states(self) -> bool:
        """Whether an output depends on old states past the new ones."""
        return any(v in self._by_old for v in self.step.analysis.split.outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """The value that new states give to a variable, and for which of its elements (`None`: all)."""

    value: Array
    where: Array | None

    def over(self, value: Array) -> Array:
        moved = self.value.astype(value.dtype)
        if self.where is None:
            return moved
        # an average of copies may be off by rounding: the derivative is that of the copies alone
        return superpose(lax.stop_gradient(value), jnp.where(self.where, moved, value))


@dataclasses.dataclass(frozen=True, eq=False)
class MovedStates:
    """Which variables of a step are new states, or are moved on into them unchanged."""

    new_states: Mapping[Variable, int]
    """Each variable that is a new state, and the number of its float leaf."""
    origins: tuple[tuple[Equation, tuple[int, ...]], ...]
    """Moves that end in new states, last first, and which of their operands are moved."""
    variables: frozenset[Variable]

    def values(
        self, leaves: Sequence[Array], env: Env, step: StepFunctions, saved, deltas
    ) -> dict[Variable, Moved]:
        """What the new states `leaves` say of every such variable."""
        moved = {v: Moved(leaves[i], None) for v, i in self.new_states.items()}
        if not self.origins:
            return moved
        places = [
            v
            for eqn, operands in self.origins
            for i, v in enumerate(eqn.inputs)
            if i not in operands
        ]
        body = prune(step.analysis.split.body, places, step.saved_equations)
        env = evaluate(body, dict(env), step.perturbing(saved, deltas))
        for eqn, operands in self.origins:
            for i in operands:
                if eqn.inputs[i] not in moved:
                    moved[eqn.inputs[i]] = _inverse(eqn, i, moved, env)
        return moved


def _inverse(eqn: Equation, operand: int, moved: Mapping[Variable, Moved], env: Env) -> Moved:
    """The operand of a move from its outputs: the transpose, averaged where values are repeated."""

    def move(value):
        values = [
            value if i == operand else _still(env.get(v), v) for i, v in enumerate(eqn.inputs)
        ]
        return eqn.bind(*values)

    v = eqn.inputs[operand]
    _, pull = jax.vjp(move, jnp.zeros(v.shape, v.aval.dtype))
    known, counts = [], []
    for out in eqn.outputs:
        zeros = jnp.zeros(out.shape, out.aval.dtype)
        if out not in moved:
            known.append(zeros)
            counts.append(zeros)
            continue
        source = moved[out]
        mask = jnp.ones(out.shape, bool) if source.where is None else source.where
        known.append(jnp.where(mask, source.value.astype(zeros.dtype), 0))
        counts.append(mask.astype(zeros.dtype))
    (count,), (total,) = pull(counts), pull(known)
    count = count.real
    return Moved(total / jnp.maximum(count, 1), count > 0)


def _still(value: Any, v: Variable) -> Any:
    return jnp.zeros(v.shape, v.aval.dtype) if value is None else lax.stop_gradient(value)


def _moved_states(a: Analysis) -> MovedStates:
    old: set[Variable] = {a.step.state[i] for i in a.hidden.leaves}
    fixed = {*a.step.constants, *a.split.weights, *a.split.others}
    for eqn in a.split.body:
        moving = [v for v in eqn.inputs if v.is_float and v not in fixed]
        if _is_move(eqn) and moving and all(v in old for v in moving):
            old.update(v for v in eqn.outputs if v.is_float)
    computed = {v for eqn in a.split.body for v in eqn.outputs}
    new_states: dict[Variable, int] = {}
    for number, i in enumerate(a.hidden.leaves):
        v = a.split.next_state[i]
        if v in computed and v not in new_states:
            new_states[v] = number
    reached = set(new_states)
    origins = []
    for eqn in reversed(a.split.body):
        if not _is_move(eqn) or not any(v in reached for v in eqn.outputs):
            continue
        operands = tuple(
            i for i, v in enumerate(eqn.inputs) if v.is_float and v in computed and v not in old
        )
        if operands:
            origins.append((eqn, operands))
            reached.update(eqn.inputs[i] for i in operands)
    return MovedStates(new_states, tuple(origins), frozenset(reached))


__all__ = ["Reading"]
