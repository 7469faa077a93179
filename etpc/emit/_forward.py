"""The model over a window: what feeds back step by step, and the rest for all steps at once.

Operations and states that depend on each other are a loop over the steps. What lies between such
loops, the products with weights above all, is computed for a whole window: the input of each layer
of a deep network passes through its weights as one product.
"""

import dataclasses
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
from jax import Array, lax

from .._jax import Equation, Rule, Variable, evaluate, prims, prune
from .._primitives import facts
from ..analyse import Analysis


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What is computed for all steps at once, and the states that are then run together."""

    batch: tuple[Equation, ...]
    leaves: tuple[int, ...]
    """Which array leaves of the state."""
    loop: tuple[Equation, ...]
    inputs: tuple[Variable, ...]
    """What the loop reads of the step's inputs and of earlier stages."""
    saved: tuple[Variable, ...]
    """What is saved of the loop beside the states: the results of heavy operations."""


class Rollout(NamedTuple):
    """What a model does over a window: arrays [W, B, ...], but for the last."""

    outputs: list[Array]
    """Empty where they are not asked for."""
    before: list[Array]
    """The states before each step."""
    after: list[Array]
    """And after it."""
    wanted: list[Array]
    last: list[Array]
    """The states in the end, [B, ...]."""


class Forward:
    """The model over a window, in stages.

    - `wanted`: what is asked of it beside new states and outputs: at each step, of one example.
    - `after`: what remains for the outputs after all stages.
    - `turned`: matrices [O, I] that depend on the model alone, and are multiplied with a vector of length
        I. With a batch of those, a product with [I, O] is faster, and its result needs no transpose.
    """

    def __init__(self, analysis: Analysis, wanted: tuple[Variable, ...]):
        a = self.analysis = analysis
        self.wanted = wanted
        self.stages, known = _stages(a, wanted)
        self.after = prune(a.split.body, a.split.outputs, known=known)
        fixed = {*a.split.weights, *a.split.others}
        equations = [eqn for stage in self.stages for eqn in (*stage.loop, *stage.batch)]
        operands = [(eqn, _matrix_operand(eqn, fixed)) for eqn in equations]
        turned = [eqn.inputs[operand] for eqn, operand in operands if operand is not None]
        self.turned = tuple(dict.fromkeys(turned))

    def lines(self) -> list[str]:
        """What is done in which order, in words."""
        a = self.analysis
        paths = {op.equation: op.path for op in a.ops}
        lines = []
        for stage in self.stages:
            weights = dict.fromkeys(paths[eqn] for eqn in stage.batch if eqn in paths)
            if weights:
                lines.append(f"for all steps at once: {', '.join(weights)}")
            if stage.leaves:
                states = ", ".join(a.step.state_leaves.paths[i] for i in stage.leaves)
                weights = dict.fromkeys(paths[eqn] for eqn in stage.loop if eqn in paths)
                lines.append(f"step by step: {states}{' by ' * bool(weights)}{', '.join(weights)}")
        return lines

    def copies(self, matrices: Iterable[Array]) -> list[Array]:
        """Those in `turned`, given in order, as the stages read them."""
        return [lax.optimization_barrier(lax.stop_gradient(w).T) for w in matrices]

    def __call__(
        self,
        fixed: dict[Variable, Any],
        copies: Sequence[Array],
        xs: Sequence[Array],
        state: Sequence[Array],
        outputs: bool,
        shifts: "Shifts | None" = None,
        stored: "Stored | None" = None,
    ) -> Rollout:
        """Run the model over a window of a batch.

        `fixed` has what does not change over the window; weights may be wider than the step has
        them, and then their gradient is summed over steps as precisely. `copies` may be empty; they
        pass on no derivative.
        """
        a = self.analysis
        over: dict[Variable, Array] = dict(zip(a.step.inputs, xs, strict=True))
        last: list[Any] = [None] * len(a.step.state)
        new_states: list[Any] = list(last)
        lead = xs[0].shape[:2]
        turning = _turning(dict(zip(self.turned, copies, strict=True))) if copies else None
        added, rule = ([], lambda _: turning) if shifts is None else shifts
        for stage in self.stages:
            _at_once(a, stage.batch, fixed, over, rule, added, lead)
            if stage.leaves:
                starts = [state[i] for i in stage.leaves]
                known = None
                if stored is not None:
                    known = Stored([stored.states[i] for i in stage.leaves], stored.first)
                inputs = [over[v] for v in stage.inputs]
                ends, (states, saved) = lax.scan(
                    _body(a, stage, fixed, rule), starts, (inputs, added, known), length=lead[0]
                )
                over.update(zip(stage.saved, saved, strict=True))
                for i, start, new, end in zip(stage.leaves, starts, states, ends, strict=True):
                    old = jnp.concatenate([start[None], new[:-1]])
                    if stored is not None:
                        old = enter(stored.states[i], old, stored.first)
                    over[a.step.state[i]] = old
                    over[a.split.next_state[i]] = new_states[i] = new
                    last[i] = end
        if outputs:
            _at_once(a, self.after, fixed, over, rule if shifts else _plain, added, lead)
        read = lambda v: over[v] if v in over else _repeated(fixed[v], lead)
        ys = [read(v) for v in a.split.outputs] if outputs else []
        before, wanted = [over[v] for v in a.step.state], [over[v] for v in self.wanted]
        return Rollout(ys, before, new_states, wanted, last)


@jax.custom_jvp
def superpose(value: Array, other: Array) -> Array:
    """`value`, with the tangents of both: two evaluations of one quantity, sources apart."""
    return value


@superpose.defjvp
def _superpose_jvp(primals, tangents):
    return primals[0], tangents[0] + tangents[1]


def enter(stored: Array, running: Array, first: Array) -> Array:
    """`stored`, with the derivatives of `running` but where `first`, whose axes lead."""
    if not jnp.issubdtype(stored.dtype, jnp.inexact):
        return stored
    mask = first.reshape(*first.shape, *[1] * (stored.ndim - first.ndim))
    return superpose(
        lax.stop_gradient(stored), jnp.where(mask, lax.stop_gradient(running), running)
    )


class Stored(NamedTuple):
    """States before each step, [W, B, ...], and at which steps [W, B] the stream begins."""

    states: Sequence[Array]
    first: Array


class Shifts(NamedTuple):
    """What is added where operations act, and how."""

    added: Sequence[Array]
    """[W, B, ...] each."""
    rule: Callable[[Sequence[Array]], Rule | None]
    """The rule of one step of one example, from what is added there."""


def _plain(added: Sequence[Array]) -> None:
    return None


def _body(a: Analysis, stage: Stage, fixed: dict[Variable, Any], rule: Callable[..., Rule | None]):
    old = [a.step.state[i] for i in stage.leaves]
    new = [a.split.next_state[i] for i in stage.leaves]

    def one(state, inputs):
        values, added = inputs
        of_example = narrowed(a, fixed, [*state, *values])
        env = {**of_example, **dict(zip(stage.inputs, values, strict=True))}
        env.update(zip(old, state, strict=True))
        evaluate(stage.loop, env, rule(added))
        return [env[v] for v in new], [env[v] for v in stage.saved]

    def body(state, inputs):
        values, added, stored = inputs
        if stored is not None:
            state = [enter(s, n, stored.first) for s, n in zip(stored.states, state, strict=True)]
        following, saved = jax.vmap(one)(state, (values, added))
        return following, (following, saved)

    return body


def _at_once(
    a: Analysis,
    equations: Sequence[Equation],
    fixed: dict[Variable, Any],
    over: dict,
    rule: Callable[..., Rule | None],
    added: Sequence[Array],
    lead: tuple[int, ...],
) -> None:
    """Evaluate equations over the axes [W, B], into `over`."""
    if not equations:
        return
    computed = [v for eqn in equations for v in eqn.outputs]
    read = list(dict.fromkeys(v for eqn in equations for v in eqn.inputs if v in over))
    steps, batch = lead

    def one(inputs):
        values, added = inputs
        env = {**narrowed(a, fixed, values), **dict(zip(read, values, strict=True))}
        evaluate(equations, env, rule(added))
        return [env[v] for v in computed]

    by_example = jax.vmap(one, axis_size=batch)
    arguments = [over[v] for v in read], list(added)
    if any(facts(eqn.primitive).by_step for eqn in equations):
        values = lax.scan(lambda _, step: (None, by_example(step)), None, arguments, length=steps)[
            1
        ]
    else:
        values = jax.vmap(by_example, axis_size=steps)(arguments)
    over.update(zip(computed, values, strict=True))


def narrowed(
    a: Analysis, fixed: Mapping[Variable, Any], of_example: Iterable[Any]
) -> dict[Variable, Any]:
    """Values that do not change, in the dtypes that the step has them in.

    JAX adds up the gradients that the examples of a batch give to one value in the dtype of that value. So a
    wider weight that meets data element by element is narrowed for each example apart, and its gradient
    is added up before that. `of_example` are arrays of this example.
    """
    direct = {op.weight for op in a.ops if op.kind.data is None}
    is_data = lambda x: x.size and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    own = next(filter(is_data, of_example), None)

    def narrow(v: Variable, value: Any) -> Any:
        if getattr(value, "dtype", None) in (None, v.aval.dtype):
            return value
        if v in direct and own is not None:
            element = lax.stop_gradient(jnp.ravel(own)[0])
            zero = jnp.where(element == element, jnp.zeros((), value.dtype), 0)
            value = value + jnp.broadcast_to(zero, value.shape)
        return value.astype(v.aval.dtype)

    return {v: narrow(v, value) for v, value in fixed.items()}


def _repeated(value: Any, lead: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(value, (*lead, *jnp.shape(value)))


def _stages(a: Analysis, wanted: Sequence[Variable]) -> tuple[tuple[Stage, ...], set[Variable]]:
    """The stages, and what is known after them.

    Heavy operations are those worth doing for all steps at once: products, and all that have a trace.
    The stage of a state, or of an equation, is how many of them that are in no loop lie before it, one
    after the other.
    """
    leaves = range(len(a.step.state))
    body = prune(a.split.body, [*a.split.next_state, *wanted])
    heavy = {op.equation for op in a.ops} | {e for e in body if facts(e.primitive).heavy}
    graph = nx.DiGraph()
    graph.add_nodes_from([*leaves, *body])
    producers: dict[Variable, Any] = {v: eqn for eqn in body for v in eqn.outputs}
    producers.update((v, i) for i, v in enumerate(a.step.state))
    for eqn in body:
        graph.add_edges_from((producers[v], eqn) for v in eqn.inputs if v in producers)
    for i, v in enumerate(a.split.next_state):
        if v in producers:
            graph.add_edge(producers[v], i)
    parts = nx.condensation(graph)
    members = {part: parts.nodes[part]["members"] for part in parts}
    depth: dict[Any, int] = {}  # of parts, and so of equations and leaves
    alone: dict[int, list[Equation]] = {}  # heavy ones in no loop, by their depth
    for part in nx.topological_sort(parts):
        predecessors = parts.predecessors(part)
        depth[part] = max((depth[p] + (members[p] <= heavy) for p in predecessors), default=0)
        if members[part] <= heavy:  # a part of several has a state in it
            alone.setdefault(depth[part], []).extend(members[part])
    leaf_depth = {n: depth[part] for part in parts for n in members[part] if isinstance(n, int)}
    fixed = {*a.step.constants, *a.split.weights, *a.split.others}
    over = set(a.step.inputs)
    stages = []
    for level in range(max(depth.values(), default=0) + 2):
        heads = [v for eqn in alone.get(level - 1, ()) for v in eqn.outputs]
        batch = prune(body, heads, known=fixed | over)
        over.update(v for eqn in batch for v in eqn.outputs)
        looped = tuple(i for i in leaves if leaf_depth[i] == level)
        old, new = [a.step.state[i] for i in looped], [a.split.next_state[i] for i in looped]
        loop = prune(body, new, known={*fixed, *over, *old})
        ahead = _ahead(loop, over, fixed)
        over.update(v for eqn in ahead for v in eqn.outputs)
        moved = set(ahead)
        loop = tuple(eqn for eqn in loop if eqn not in moved)
        inputs = [v for v in (*(v for eqn in loop for v in eqn.inputs), *new) if v in over]
        saved = [v for eqn in loop if eqn in heavy for v in eqn.outputs if v not in new]
        over.update((*saved, *old, *new))
        inputs, batch = tuple(dict.fromkeys(inputs)), (*batch, *ahead)
        if batch or looped:
            stages.append(Stage(batch, looped, loop, inputs, tuple(saved)))
    return tuple(stages), fixed | over


def _ahead(
    loop: Sequence[Equation],
    over: Collection[Variable],
    fixed: Collection[Variable],
) -> tuple[Equation, ...]:
    """What a loop computes from what is known, if the result is no larger than that."""
    known, ahead = {*over, *fixed}, []
    for eqn in loop:
        read = [v for v in eqn.inputs if v not in fixed]
        larger = sum(v.size for v in eqn.outputs) > sum(v.size for v in set(read))
        if read and not larger and all(v in known for v in read):
            known.update(eqn.outputs)
            ahead.append(eqn)
    return tuple(ahead)


def _matrix_operand(eqn: Equation, matrices: Container[Variable]) -> int | None:
    """Which operand of a product is one of some matrices [O, I], and meets a vector of length I."""
    if eqn.primitive is not prims.dot_general_p:
        return None
    precision = eqn.params["precision"]
    if isinstance(precision, jax.lax.DotAlgorithm):  # which may treat the operands differently
        return None
    contract, batch = eqn.params["dimension_numbers"]
    for n in (0, 1):
        w, x = eqn.inputs[n], eqn.inputs[1 - n]
        if w in matrices and (len(w.shape), len(x.shape)) == (2, 1) and not any(map(len, batch)):
            return n if tuple(contract[n]) == (1,) else None
    return None


def _turning(turned: dict[Variable, Array]) -> Rule:
    """The rule that reads such matrices as copies."""

    def rule(eqn, values):
        operand = _matrix_operand(eqn, turned)
        if operand is None:
            return None
        params, x = dict(eqn.params), values[1 - operand]
        params["dimension_numbers"] = ((0,), (0,)), ((), ())
        if operand == 0 and isinstance(params["precision"], tuple):
            params["precision"] = params["precision"][::-1]
        return [eqn.primitive.bind(x, turned[eqn.inputs[operand]], **params)]

    return rule


__all__ = ["Forward", "Rollout", "Shifts", "Stored", "enter", "narrowed", "superpose"]
