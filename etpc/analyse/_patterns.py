"""The sparsity patterns of a cut step: its tangents as a program, and that program run on patterns."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._jax import (
    Equation,
    Flat,
    Variable,
    canonicalise,
    evaluate,
    forward_mode,
    of_real_parts,
    real_parts,
)
from ..trace import Known, Step

# the modules of rules register them
from . import (  # noqa: F401
    _rules_control,
    _rules_indexing,
    _rules_linear,
    _rules_moving,
    _rules_sums,
)
from ._hidden import HiddenStates
from ._interpreter import Interpreter
from ._pattern import Pattern
from ._weights import Split, by_equation, shifted

Arrays = list[Any]


def linearise(
    step: Step,
    parts: Split,
    hidden: HiddenStates,
    cut: Collection[int],
    wanted: Sequence[Variable],
) -> Flat:
    """The tangents of the new states, in parts, and then of the wanted values, as a program.

    Its arguments are parameters, inputs and state of the step, and the tangents: of the states, in
    parts, and of the perturbation of each operation. All of them are arguments, so that a derivative
    which is zero at one point hides nothing.
    """
    table = by_equation(parts.ops)
    zeros = [op.delta for op in parts.ops]

    def tangents(
        parameters: Arrays, inputs: Arrays, state: Arrays, state_dots: Arrays, delta_dots: Arrays
    ) -> Arrays:
        def moving(real: Arrays, deltas: Arrays) -> Arrays:
            env = step.environment(parameters, inputs, state)
            env.update(zip(hidden.old, of_real_parts(real, hidden.avals), strict=True))

            def rule(eqn: Equation, operands: list[Any]) -> list[Any]:
                ops = table.get(eqn, ())
                for op in ops:
                    if op.number in cut:
                        assert op.kind.data is not None
                        operands = list(operands)
                        operands[op.kind.data] = jax.lax.stop_gradient(operands[op.kind.data])
                return shifted(ops, [deltas[op.number] for op in ops], operands, forward_mode(eqn))

            evaluate((*parts.prefix, *parts.body), env, rule)
            return [*real_parts(env[v] for v in hidden.new), *(env[v] for v in wanted)]

        values = [state[i] for i in hidden.leaves[: hidden.stored]]
        values += [jnp.zeros(v.shape, v.aval.dtype) for v in hidden.old[len(values) :]]
        real = real_parts(values)
        primals = real, [jnp.zeros(a.shape, a.dtype) for a in zeros]
        return jax.jvp(moving, primals, (state_dots, delta_dots))[1]

    groups = [[v.aval for v in group] for group in (step.parameters, step.inputs, step.state)]
    avals, treedef = jax.tree.flatten([*groups, list(hidden.parts), zeros])
    return canonicalise(lambda *args: tangents(*jax.tree.unflatten(treedef, args)), avals)


def propagate(
    tangents: Flat, step: Step, sizes: Sequence[int]
) -> tuple[list[Pattern], Interpreter, frozenset[int]]:
    """Run `tangents`, whose last arguments, of these sizes, are tangents, on patterns.

    **Returns** a pattern for each output, elements x seeds; the interpreter; and the numbers of the arguments whose
    values the patterns rely on. The seeds are the elements of the tangents that come in, and a last one that stands for
    a backward rule that is not linear.
    """
    seeds = sum(sizes) + 1
    fixed = {
        argument: step.fixed[v]
        for argument, v in zip(tangents.inputs, step.parameters, strict=False)
        if v in step.fixed
    }
    known = Known(tangents.equations, tangents.constants, fixed)
    interpreter = Interpreter(seeds)
    patterns = interpreter.run_on_seeds(tangents, sizes, known)
    sources = known.sources()
    relied = frozenset(i for i, argument in enumerate(tangents.inputs) if argument in sources)
    return patterns, interpreter, relied
