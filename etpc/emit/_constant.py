"""Traces of a rank that is known before any data: where D and F depend on parameters alone.

Such a trace is `sum_t x_t (D_o^(T - t) F_o)^T`. For one output the sequences `D_o^n F_o` solve a
recurrence of order m, and outputs with the same D share it, so that there are at most m modes for
each D that differs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import Variable, canonicalise
from ..plan import OpPlan, Plan
from ._emit import _Emitter
from ._step import StepFunctions

KEY: Any = jax.dtypes.extended


def mode_counts(plan: Plan, parameters: Sequence[Any]) -> dict[int, int]:
    """For operations with a trace and a factor, by number: the rank that the trace cannot exceed.

    Left out where D or F depends on data, or D on a parameter of several elements, which training
    may change one by one.
    """
    step = StepFunctions(plan.analysis)
    traced = plan.analysis.step
    keys = [v for v in (*traced.inputs, *traced.state) if jnp.issubdtype(v.aval.dtype, KEY)]
    if keys or any(isinstance(a, jax.ShapeDtypeStruct) for a in parameters):
        return {}
    draw = np.random.default_rng(0)
    moved = [  # what is equal by chance differs there
        (1 - 0.3 * draw.uniform()) * a if v.is_float and v.size == 1 else a
        for v, a in zip(traced.parameters, parameters, strict=True)
    ]
    found: dict[int, int] = {}
    for p in plan.traced:
        if p.op.kind.data is None or not _constant(step, plan, p):
            continue
        transition = _transition(plan, step, p)
        counts = [_distinct(transition(list(given))) for given in (parameters, moved)]
        if None not in counts:
            found[p.op.number] = p.block * max(count or 0 for count in counts)
    return found


def _constant(step: StepFunctions, plan: Plan, p: OpPlan) -> bool:
    """Whether the transitions of an operation's states, and its F, depend on no data."""
    analysis = plan.analysis
    hidden, split = analysis.hidden, analysis.split
    own = np.unique(hidden.leaf_of(analysis.reach[p.op.number].states))
    leaves = [hidden.leaves[i] for i in own]
    place = [op.number for op in step.live].index(p.op.number)
    groups = [
        [v.aval for v in split.weights],
        [v.aval for v in split.others],
        [v.aval for v in analysis.step.inputs],
        [v.aval for v in analysis.step.state],
        [v.aval for v in step.saved_outputs],
    ]
    avals, treedef = jax.tree.flatten(groups)

    def jacobians(*flat):
        weights, others, x, state, saved = jax.tree.unflatten(treedef, flat)

        def new(leaf, values, delta):
            now = list(state)
            for i, value in zip(leaves, values, strict=True):
                now[i] = value
            deltas = [jnp.zeros(op.delta.shape, op.delta.dtype) for op in step.live]
            deltas[place] = delta
            return step.cut_leaves(weights, others, x, now, saved, deltas)[leaf]

        values = [state[i] for i in leaves]
        delta = jnp.zeros(p.op.delta.shape, p.op.delta.dtype)
        by_state, by_delta = [], []
        for leaf in leaves:
            out, pull = jax.vjp(lambda v, d, leaf=leaf: new(leaf, v, d), values, delta)
            one, other = pull(jnp.ones_like(out))
            by_state += one
            by_delta.append(other)
        return [*by_state, *by_delta]

    flat = canonicalise(jacobians, avals)
    sources: dict[Variable, frozenset[int]] = {v: frozenset([i]) for i, v in enumerate(flat.inputs)}
    for eqn in flat.equations:
        reads = frozenset().union(*(sources.get(v, frozenset()) for v in eqn.inputs))
        sources.update(dict.fromkeys(eqn.outputs, reads))
    known = len(split.weights) + len(split.others)
    transitions = len(leaves) ** 2
    single = _single(plan)
    for n, out in enumerate(flat.outputs):
        reads = sources.get(out, frozenset())
        if any(i >= known or (n < transitions and not single[i]) for i in reads):
            return False
    return True


def _single(plan: Plan) -> list[bool]:
    """For each effective weight and other value of the model: whether each float parameter that it
    depends on has one element."""
    split, step = plan.analysis.split, plan.analysis.step
    single = {v: v.size == 1 or not v.is_float for v in step.parameters}
    for eqn in split.prefix:
        here = all(single.get(v, True) for v in eqn.inputs)
        single.update(dict.fromkeys(eqn.outputs, here))
    return [single.get(v, True) for v in (*split.weights, *split.others)]


def _transition(plan: Plan, step: StepFunctions, p: OpPlan) -> Callable[[list[Any]], Array]:
    """D of one step, [P, o], as a function of the parameters."""
    emitter = _Emitter(plan, step)
    traced = plan.analysis.step

    def at(parameters: list[Any]) -> Array:
        weights, others = step.prefix(parameters)
        xs = [jnp.zeros((1, 1, *v.shape), v.aval.dtype) for v in traced.inputs]
        state = [jnp.zeros((1, *v.shape), v.aval.dtype) for v in traced.state]
        return emitter.factors_of(weights, others, xs, state)[p.op.number].transition[0, 0]

    return jax.jit(at)


def _distinct(array: Array) -> int | None:
    """How many columns differ by more than rounding; `None` where they are no numbers."""
    transition = np.asarray(array)
    if not np.isfinite(transition).all():
        return None
    size = np.abs(transition).max(initial=0) or 1.0
    steps = np.round(transition / size / (64 * np.finfo(transition.dtype).eps))
    return np.unique(steps, axis=1).shape[1]


__all__ = ["mode_counts"]
