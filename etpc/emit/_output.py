"""The output of a step as a function of all that a trace is multiplied with, each path counted once.

The gradient of the loss of a step is a sum over paths from each use of a weight, at this step or before,
to the output, in a step in which operations that reach a state read their data with old states held
constant. Sort the paths by the last new state on that part of them that precedes the data of an
operation. What leads to that state is `eps'`, the trace of the cut step; what follows is the learning
signal L at it, in which every path on to another new state is cut, and those through operations are not.
Paths without a new state are differentiated by the perturbation `delta` of the operation's output in the
same step, or by the old state that they come from, which meets the trace of the step before. So

    dl/dw = sum_t L_t eps'_t + (dl_t/d delta) x_t + (dl_t/d old) eps_{t-1}

and `StepOutput` evaluates the step so that one reverse pass gives all three.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import Equation, Variable, derivative_added, evaluate, prune
from ..analyse import data_of
from ..ir import OutputPaths
from ._forward import Values
from ._records import Arrays, Taken, Weights
from ._step import StepFunctions


class StepSources(NamedTuple):
    """What the output of a step is differentiated by; and its derivatives, as cotangents."""

    weights: Arrays
    old: Arrays
    """The parts of the old states."""
    new: Arrays
    """The parts of the new states."""
    deltas: Arrays
    """The perturbations of live operations."""


class StepOutput:
    """The output of one step of one example, as a function of states and of operations."""

    def __init__(self, step: StepFunctions, paths: OutputPaths):
        self.step, self.paths = step, paths

    def __call__(
        self, weights: Weights, taken: Taken, sources: StepSources
    ) -> tuple[list[Array], list[Array | None]]:
        """The output, and the data of each live operation; `None` where one has none.

        A new state is what `sources.new` says, also where the step forwards it into another array, so
        that the derivative by it is the learning signal. What reaches the output past the new states is
        differentiated by `sources.old` and `sources.deltas`. An operation whose data is cut, but depends on
        new states or on other outputs of its own step, passes on the influence of those: it crosses. That
        influence goes through the rest of the step unhindered, so a second evaluation carries it.
        """
        a, step, stop = self.step.analysis, self.step, lax.stop_gradient
        weights = weights._replace(effective=sources.weights)
        base = step.environment(weights, taken.xs, step.with_parts(taken.state, sources.old))
        first = self._run(base, taken, sources, self.paths)
        outputs = [first[v] for v in a.split.outputs]
        if self.paths.crossing:
            shared, held_state = first, step.with_parts(taken.state, [stop(p) for p in sources.old])
            if self.paths.held is not None:
                held = step.environment(weights, taken.xs, held_state)
                shared = self._run(held, taken, sources, self.paths.held)
            held_weights = weights._replace(effective=[stop(w) for w in sources.weights])
            still = step.environment(held_weights, taken.xs, held_state)
            second = self._crossed(still, taken, first, shared)
            outputs = [
                derivative_added(y, second[v]) if v.is_float else y
                for v, y in zip(a.split.outputs, outputs, strict=True)
            ]
        data = map(data_of, step.live)
        return outputs, [None if v is None else stop(first[v]) for v in data]

    def _forwarded(
        self, env: Values, taken: Taken, sources: StepSources, paths: OutputPaths
    ) -> "dict[Variable, Forwarded]":
        """What new states say of every variable that is one, or is forwarded into some.

        For `v' = concatenate(a, b)`, where `a` and `b` are computed in the step, `a` and `b` are slices of the
        new state, and what reads `a` reads that slice. So the transpose of all data movement gives for each element the
        sum of its copies in new states, and that of ones how many there are.
        """
        states, step = paths.forwarded, self.step
        leaves = step.leaves(sources.new)
        forwarded = {v: Forwarded(leaves[i], None) for v, i in states.new_states.items()}
        given = [eqn.inputs[i] for eqn, operands in states.origins for i in operands]
        given = [v for v in dict.fromkeys(given) if v not in forwarded]
        if not given:
            return forwarded
        places = [
            v for eqn, _ in states.origins for v in eqn.inputs if v not in (*given, *forwarded)
        ]
        body = prune(step.analysis.split.body, places, step.saved_equations)
        env = evaluate(body, dict(env), step.acting(sources.deltas, taken.saved))
        zero = lambda v: jnp.zeros(v.shape, v.aval.dtype)
        still = lambda v: lax.stop_gradient(env[v]) if v in env else zero(v)

        def copied(shifts: Arrays) -> dict[int, Array]:
            values = dict(zip(given, shifts, strict=True))
            ends: dict[int, Array] = {}
            for eqn, _ in reversed(states.origins):
                operands = (values[v] if v in values else still(v) for v in eqn.inputs)
                for v, out in zip(eqn.outputs, eqn.bind(*operands), strict=True):
                    if v in values:
                        values[v] = values[v] + out
                    elif v in states.new_states:
                        ends[states.new_states[v]] = out
            return ends

        ends, pull = jax.vjp(copied, [zero(v) for v in given])
        (totals,) = pull({i: leaves[i].astype(end.dtype) for i, end in ends.items()})
        (counts,) = pull(jax.tree.map(jnp.ones_like, ends))
        # A count of zero is one in the quotient: its derivative would be 0 / 0 = NaN, where `over` reads the value.
        for v, total, count in zip(given, totals, counts, strict=True):
            forwarded[v] = Forwarded(total / jnp.maximum(count.real, 1), count.real > 0)
        return forwarded

    def _run(self, env: Values, taken: Taken, sources: StepSources, paths: OutputPaths) -> Values:
        """Evaluate the cut step up to outputs and data, with the new states given."""
        cut = self.step.acting(sources.deltas, taken.saved)
        forwarded = self._forwarded(env, taken, sources, paths)

        def rule(eqn: Equation, operands: list[Any]) -> list[Any] | None:
            outputs = cut(eqn, operands)
            if any(v in forwarded for v in eqn.outputs):
                outputs = eqn.bind(*operands) if outputs is None else outputs
                outputs = [
                    forwarded[v].over(value) if v in forwarded else value
                    for v, value in zip(eqn.outputs, outputs, strict=True)
                ]
            return outputs

        given = {v: forwarded[v].value.astype(v.aval.dtype) for v in paths.forwarded.new_states}
        return evaluate(paths.body, {**env, **given}, rule)

    def _crossed(self, still: Values, taken: Taken, first: Values, shared: Values) -> Values:
        """Evaluate the step where all is held constant but the data of operations that cross, which is
        that of `shared`, or that of `first` where it is read in full."""
        step, stop, crossing = self.step, lax.stop_gradient, self.paths.crossing
        given = [eqn for eqn in step.saved_equations if eqn not in crossing]
        body = prune(step.analysis.split.body, step.analysis.split.outputs, given)

        def rule(eqn: Equation, operands: list[Any]) -> list[Any] | None:
            place = step.saved_equations.get(eqn)
            if place is None:
                return None
            saved = stop(taken.saved[place])
            if eqn not in crossing:
                return [saved]
            data = step.saved[place].kind.data
            assert data is not None
            v, full = eqn.inputs[data], step.analysis.in_full.get(step.saved[place].number)
            read = shared[v] if full is None else jnp.where(full.elements, first[v], shared[v])
            operands = [
                derivative_added(a, read) if i == data else a for i, a in enumerate(operands)
            ]
            return [derivative_added(saved, eqn.bind(*operands)[0])]

        return evaluate(body, still, rule)


@dataclasses.dataclass(frozen=True, eq=False)
class Forwarded:
    """The value that new states give to a variable."""

    value: Array
    where: Array | None
    """The elements that it is given for; `None` for all."""

    def over(self, value: Array) -> Array:
        """The value of the variable itself, with what is given in its place."""
        forwarded = self.value.astype(value.dtype)
        if self.where is None:
            return forwarded
        # an average of copies may be off by rounding: the derivative is that of the copies alone
        return derivative_added(lax.stop_gradient(value), jnp.where(self.where, forwarded, value))
