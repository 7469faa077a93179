"""The step as functions on arrays: the model over a window, and of one example the cut step.

The cut step holds the data of mixing operations constant: their outputs are given, and a perturbation
`delta` is added where each weight acts. Its Jacobians are `D` and `F`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .._jax import (
    Variable,
    evaluate,
    prune,
)
from ..analyse import Analysis, WeightOp
from ..analyse._weights import by_equation
from ._forward import Forward, Rollout, Shifts, Stored
from ._prefix import zero_stays_zero

Env = dict[Variable, Any]


class StepFunctions:
    """One step of one example. States are lists of all array leaves unless called parts.

    - `live`: the operations that reach a hidden state: each has a `delta`.
    - `saved`: those of them whose data is cut: their outputs are kept from the forward pass.
    """

    def __init__(self, analysis: Analysis):
        a, body = analysis, analysis.split.body
        self.analysis = analysis
        self.live: list[WeightOp] = [op for op in a.ops if a.reach[op.number].role == "state"]
        self.saved = [op for op in self.live if op.number in a.cut]
        self.saved_equations = {op.equation: i for i, op in enumerate(self.saved)}
        self.forward = Forward(a, tuple(op.equation.outputs[0] for op in self.saved))
        self.live_table = by_equation(self.live)
        new = [a.split.next_state[i] for i in a.hidden.leaves]
        self._cut_body = prune(body, new, self.saved_equations)

    # --- parts and leaves ---

    def parts(self, state: Sequence[Any], dtype: Any) -> list[Array]:
        """The float leaves as real vectors that make up the S states."""
        hidden = self.analysis.hidden
        parts = hidden.split([state[i] for i in hidden.leaves])
        return [jnp.ravel(part).astype(dtype) for part in parts]

    def leaves(self, parts: Sequence[Array]) -> list[Array]:
        """The float leaves from their parts."""
        hidden = self.analysis.hidden
        return hidden.join(
            [
                part.reshape(aval.shape).astype(aval.dtype)
                for part, aval in zip(parts, hidden.parts, strict=True)
            ]
        )

    def with_parts(self, state: Sequence[Any], parts: Sequence[Array]) -> list[Any]:
        """A state whose float leaves have these parts."""
        leaves = list(state)
        for i, leaf in zip(self.analysis.hidden.leaves, self.leaves(parts), strict=True):
            leaves[i] = leaf
        return leaves

    # --- environments ---

    def prefix(
        self, parameters: Sequence[Any], copies: bool = False
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Effective weights, and the other values that depend on the model alone.

        With copies, those of some weights follow them, as `forward` reads them.
        """
        a = self.analysis
        env: Env = dict(a.step.constants)
        env.update(zip(a.step.parameters, parameters, strict=True))
        outputs = (*a.split.weights, *a.split.others)
        evaluate(prune(a.split.prefix, outputs), env, zero_stays_zero)
        turned = [env[v] for v in self.forward.turned] if copies else []
        return (
            tuple(jnp.asarray(env[v]) for v in a.split.weights),
            (*(env[v] for v in a.split.others), *self.forward.copies(turned)),
        )

    def run(
        self, weights, others, xs, state, outputs: bool, shifts=(), stored: Stored | None = None
    ) -> Rollout:
        """The model over a window of a batch. What is wanted of it is what is saved.

        With outputs it is differentiated, and copies of weights pass on no derivative. `shifts`, one for
        each live operation or none, are added where it acts. With `stored`, states before each step are
        those, as a function of what they were made from.
        """
        copies = () if outputs else others[len(self.analysis.split.others) :]
        fixed = self._fixed(weights, others)
        if not shifts:
            return self.forward(fixed, copies, xs, state, outputs, stored=stored)
        added = Shifts(shifts, self._shifting)
        return self.forward(fixed, (), xs, state, outputs, added, stored)

    def _shifting(self, shifts):
        """The rule that adds something where each weight acts."""
        numbers = {op.number: i for i, op in enumerate(self.live)}

        def rule(eqn, values):
            ops = self.live_table.get(eqn)
            if ops is None:
                return None
            for op in ops:
                values = op.kind.shift_inputs(values, shifts[numbers[op.number]])
            outputs = eqn.bind(*values)
            for op in ops:
                outputs = op.kind.shift_outputs(outputs, shifts[numbers[op.number]])
            return outputs

        return rule

    def _fixed(self, weights, others) -> Env:
        a = self.analysis
        env: Env = dict(a.step.constants)
        env.update(zip(a.split.others, others[: len(a.split.others)], strict=True))
        env.update(zip(a.split.weights, weights, strict=True))
        return env

    def start(self, weights, others, x, state) -> Env:
        a, env = self.analysis, self._fixed(weights, others)
        env.update(zip(a.step.inputs, x, strict=True))
        env.update(zip(a.step.state, state, strict=True))
        return env

    # --- the cut step ---

    def cut(self, weights, others, x, state, saved, old, deltas, dtype) -> list[Array]:
        """The parts of the new states of the cut step, from those of the old ones."""
        state = self.with_parts(state, old)
        return self.parts(self.cut_leaves(weights, others, x, state, saved, deltas), dtype)

    def cut_leaves(self, weights, others, x, state, saved, deltas) -> list[Any]:
        """The new state of the cut step; `None` for leaves that are no floats."""
        env = self.start(weights, others, x, state)
        evaluate(self._cut_body, env, self.perturbing(saved, deltas))
        return [env.get(v) for v in self.analysis.split.next_state]

    def outputs(self, weights, others, x, state) -> list[Array]:
        """The output of the model itself."""
        outputs = self.analysis.split.outputs
        env = self.start(weights, others, x, state)
        evaluate(prune(self.analysis.split.body, outputs), env)
        return [env[v] for v in outputs]

    def perturbing(self, saved, deltas):
        """The rule of the cut step: kept outputs in place of operations, `delta` where they act."""
        stop = lax.stop_gradient
        numbers = {op.number: i for i, op in enumerate(self.live)}

        def rule(eqn, values):
            ops = self.live_table.get(eqn)
            if ops is None:
                return None
            place = self.saved_equations.get(eqn)
            if place is None:
                values = list(values)
                for op in ops:
                    values[op.operand] = stop(values[op.operand])
                    values = op.kind.shift_inputs(values, deltas[numbers[op.number]])
                outputs = eqn.bind(*values)
            else:
                outputs = [stop(saved[place])]
            for op in ops:
                outputs = op.kind.shift_outputs(outputs, deltas[numbers[op.number]])
            return outputs

        return rule


__all__ = ["StepFunctions"]
