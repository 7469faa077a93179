"""The step as functions on arrays: the model over a window, and the cut step of one example.

The cut step holds the data of mixing operations constant: their outputs are those that the forward pass
saved, and a perturbation `delta` is added where each weight acts. Its Jacobians are `D` and `F`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .._jax import Equation, Rule, evaluate, of_real_parts, prune, real_parts, replaced
from ..analyse import Analysis, by_equation, shifted
from ..schedule import Schedule
from ._forward import Forward, Values, fixed_values
from ._prefix import prefix_rule
from ._records import Arrays, Taken, Weights


class StepFunctions:
    """One step of one example. A state is a list of all array leaves; its parts are real vectors.

    - `live`: the operations that reach a hidden state: each has a `delta`.
    - `saved`: those of them whose data is cut, so that the forward pass saves their outputs.
    - `forward`: the model over a window.
    """

    def __init__(self, analysis: Analysis, schedule: Schedule = Schedule()):
        a, body = analysis, analysis.split.body
        self.analysis, self.schedule = analysis, schedule
        self.dtype = a.hidden.dtype
        self.live = a.live
        self.saved = [op for op in self.live if op.number in a.cut]
        self.saved_equations = {op.equation: i for i, op in enumerate(self.saved)}
        self.live_by_equation = by_equation(self.live)
        saved = tuple(op.equation.outputs[0] for op in self.saved)
        self.forward = Forward(a, saved, self.acting, schedule)
        self._cut_body = prune(body, a.hidden.new, self.saved_equations)

    # --- parts and leaves ---

    def parts(self, state: Sequence[Any]) -> list[Array]:
        """The hidden states as real vectors that make up the S states."""
        return self._parts([state[i] for i in self.analysis.hidden.leaves])

    def _parts(self, leaves: Sequence[Any]) -> list[Array]:
        return [jnp.ravel(part).astype(self.dtype) for part in real_parts(leaves)]

    def leaves(self, parts: Arrays) -> list[Array]:
        """The leaves that are hidden states, from their parts."""
        hidden = self.analysis.hidden
        pairs = zip(parts, hidden.parts, strict=True)
        real = [part.reshape(aval.shape).astype(aval.dtype) for part, aval in pairs]
        return of_real_parts(real, hidden.avals)

    def with_parts(self, state: Sequence[Any], parts: Arrays) -> list[Any]:
        """A state whose hidden states have these parts."""
        return replaced(state, self.analysis.hidden.leaves, self.leaves(parts))

    # --- the model ---

    def prefix(self, parameters: Sequence[Any]) -> Weights:
        """What depends on parameters alone."""
        a = self.analysis
        env: Values = dict(a.step.constants)
        env.update(zip(a.step.parameters, parameters, strict=True))
        outputs = (*a.split.weights, *a.split.others)
        evaluate(prune(a.split.prefix, outputs), env, prefix_rule(self.schedule))
        return Weights(
            tuple(jnp.asarray(env[v]) for v in a.split.weights),
            tuple(env[v] for v in a.split.others),
        )

    def outputs(self, weights: Weights, x: Arrays, state: Arrays) -> list[Array]:
        """The output of the model at one step of one example."""
        outputs = self.analysis.split.outputs
        env = self.environment(weights, x, state)
        evaluate(prune(self.analysis.split.body, outputs), env)
        return [env[v] for v in outputs]

    def environment(self, weights: Weights, x: Arrays, state: Arrays) -> Values:
        """The values that the equations of a step start from."""
        a, env = self.analysis, fixed_values(self.analysis, weights)
        env.update(zip(a.step.inputs, x, strict=True))
        env.update(zip(a.step.state, state, strict=False))  # the values of transient ones follow
        return env

    # --- the cut step ---

    def cut(self, weights: Weights, taken: Taken, old: Arrays, deltas: Arrays) -> list[Array]:
        """The parts of the new states of the cut step, as a function of those of the old ones and of `deltas`."""
        env = self.environment(weights, taken.xs, self.with_parts(taken.state, old))
        evaluate(self._cut_body, env, self.acting(deltas, taken.saved))
        return self._parts([env[v] for v in self.analysis.hidden.new])

    def acting(self, deltas: Arrays, saved: Arrays | None = None) -> Rule:
        """The rule by which live operations are evaluated: `delta` is added where each acts.

        With `saved` it is the rule of the cut step: all weights are held constant, and the output of an
        operation whose data is cut is the saved one. For `y = w @ x + b`, where `x` is cut,

            w @ x    becomes    stop(saved) + delta_w
            y + b    becomes    y + (stop(b) + delta_b)
        """

        def rule(eqn: Equation, operands: list[Any]) -> list[Any] | None:
            ops = self.live_by_equation.get(eqn)
            if ops is None:
                return None
            of_ops = [deltas[self.live.index(op)] for op in ops]
            if saved is None:
                return shifted(ops, of_ops, operands, eqn.bind)
            stop = lax.stop_gradient
            if eqn in self.saved_equations:
                kept = [stop(saved[self.saved_equations[eqn]])]
                return shifted(ops, of_ops, operands, lambda *_: kept)
            held = list(operands)
            for op in ops:
                held[op.operand] = stop(held[op.operand])
            return shifted(ops, of_ops, held, eqn.bind)

        return rule
