"""The model over a window: what feeds back step by step, and the rest for all steps at once.

Operations and states that depend on each other are a loop over the steps. What lies between such
loops, the products with weights above all, is computed for a whole window: the input of each layer
of a deep network passes through its weights as one product.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
from jax import Array, lax

from .._jax import Equation, Rule, Variable, derivative_added, evaluate, leading, prune
from .._jax.primitives import facts
from ..analyse import Analysis
from ..schedule import Schedule
from ._records import Arrays, Begins, Taken, Weights

Values = dict[Variable, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What is computed for all steps at once, and the states that are then run together."""

    batch: tuple[Equation, ...]
    leaves: tuple[int, ...]
    """The array leaves of the state that the loop runs; without any, there is no loop."""
    loop: tuple[Equation, ...]
    inputs: tuple[Variable, ...]
    """What the loop reads of the step's inputs and of earlier stages."""
    saved: tuple[Variable, ...]
    """What the loop saves beside the states: the results of heavy operations."""


class Rollout(NamedTuple):
    """What a model does over a window."""

    outputs: list[Array]
    """[W, B, ...]; empty if they were not asked for."""
    taken: Taken
    after: list[Array]
    """The states after each step, [W, B, ...]."""
    last: list[Array]
    """The states after the last step, [B, ...]."""


class Stored(NamedTuple):
    """The states before each step [W, B, ...], and whether the stream begins with the step [W, B]."""

    states: Arrays
    first: Array


class Forward:
    """The model over a window, in stages.

    - `saved`: the values that each step saves beside new states and outputs.
    - `acting`: the rule of one step of one example, from what is added where live operations act.
    - `schedule`: how the loops over steps are laid out.
    - `after`: what remains for the outputs after all stages; `passing`: for the transient states.
    """

    def __init__(
        self,
        analysis: Analysis,
        saved: tuple[Variable, ...],
        acting: Callable[[Arrays], Rule],
        schedule: Schedule,
    ):
        a = self.analysis = analysis
        self.saved, self.acting, self.schedule = saved, acting, schedule
        self.transient = a.hidden.new[a.hidden.stored :]
        self.stages, known = _stages(a, (*saved, *self.transient))
        self.after = prune(a.split.body, a.split.outputs, known=known)
        self.passing = prune(a.split.body, self.transient, known=known)

    def lines(self) -> list[str]:
        """What is done in which order, in words."""
        a = self.analysis
        paths = {op.equation: op.path for op in a.ops}
        lines: list[str] = []
        for stage in self.stages:
            weights = dict.fromkeys(paths[eqn] for eqn in stage.batch if eqn in paths)
            if weights:
                lines.append(f"for all steps at once: {', '.join(weights)}")
            if stage.leaves:
                states = ", ".join(a.step.state_paths[i] for i in stage.leaves)
                weights = dict.fromkeys(paths[eqn] for eqn in stage.loop if eqn in paths)
                lines.append(f"step by step: {states}{' by ' * bool(weights)}{', '.join(weights)}")
        return lines

    def __call__(
        self,
        weights: Weights,
        xs: Arrays,
        state: Arrays,
        outputs: bool,
        shifts: Arrays = (),
        stored: Stored | None = None,
        begins: Begins | None = None,
    ) -> Rollout:
        """The model over a window of a batch.

        - `weights`: they may be wider than the step has them; then their gradient is summed over steps as precisely.
        - `outputs`: whether outputs are wanted.
        - `shifts`: what is added where each live operation acts, [W, B, ...]; empty if nothing is.
        - `stored`: the states before each step, where they are known. The run then is a function of the
            state that it begins with, at these states.
        - `begins`: where streams begin anew, if some may.
        """
        a, fixed = self.analysis, fixed_values(self.analysis, weights)
        over: dict[Variable, Array] = dict(zip(a.step.inputs, xs, strict=True))
        last, after = list(state), list(state)
        lead = xs[0].shape[:2]
        for stage in self.stages:
            self._at_once(stage.batch, fixed, over, shifts, lead)
            if not stage.leaves:
                continue
            start = [state[i] for i in stage.leaves]
            reset, known = None if begins is None else begins.reset, None
            if stored is not None:
                known = Stored([stored.states[i] for i in stage.leaves], stored.first)
            inputs = [over[v] for v in stage.inputs], list(shifts), known, reset
            body = self._loop_body(stage, fixed, begins)
            end, (states, saved) = self.schedule.scan(body, start, inputs, length=lead[0])
            over.update(zip(stage.saved, saved, strict=True))
            # The new states one step later, so that the loop does not write the old ones as well.
            ended = [jnp.concatenate([a[None], b[:-1]]) for a, b in zip(start, states, strict=True)]
            old = _entered(stage, ended, known, reset, begins)
            for n, i in enumerate(stage.leaves):
                over[a.step.state[i]] = old[n]
                over[a.split.next_state[i]] = after[i] = states[n]
                last[i] = end[n]
        ys: list[Array] = []
        if outputs:
            self._at_once(self.after, fixed, over, shifts, lead)
            repeated = lambda value: jnp.broadcast_to(value, (*lead, *jnp.shape(value)))
            ys = [over[v] if v in over else repeated(fixed[v]) for v in a.split.outputs]
        before, saved = [over[v] for v in a.step.state], [over[v] for v in self.saved]
        self._at_once(self.passing, fixed, over, shifts, lead)
        transient = [over[v] for v in self.transient]
        before += map(jnp.zeros_like, transient)
        return Rollout(ys, Taken(xs, before, saved), [*after, *transient], last)

    def _loop_body(self, stage: Stage, fixed: Values, begins: Begins | None):
        """The body of the loop of a stage, from the states of a batch to the next ones, and what is kept."""
        old = [self.analysis.step.state[i] for i in stage.leaves]
        new = [self.analysis.split.next_state[i] for i in stage.leaves]

        def one(state: Arrays, values: Arrays, added: Arrays) -> tuple[list[Any], list[Any]]:
            env = narrowed(self.analysis, fixed, [*state, *values])
            env.update(zip((*stage.inputs, *old), (*values, *state), strict=True))
            evaluate(stage.loop, env, self.acting(added) if added else None)
            return [env[v] for v in new], [env[v] for v in stage.saved]

        def body(
            state: Arrays, inputs: tuple[Arrays, Arrays, Stored | None, Array | None]
        ) -> tuple[Any, Any]:
            values, added, stored, reset = inputs
            state = _entered(stage, state, stored, reset, begins)
            after, saved = jax.vmap(one)(state, values, added)
            return after, (after, saved)

        return body

    def _at_once(
        self,
        equations: Sequence[Equation],
        fixed: Values,
        over: dict[Variable, Array],
        shifts: Arrays,
        lead: tuple[int, ...],
    ) -> None:
        """Evaluate equations over the axes [W, B], into `over`."""
        if not equations:
            return
        computed = [v for eqn in equations for v in eqn.outputs]
        read = list(dict.fromkeys(v for eqn in equations for v in eqn.inputs if v in over))
        steps, batch = lead

        def one(values: Arrays, added: Arrays) -> list[Any]:
            env = narrowed(self.analysis, fixed, values)
            env.update(zip(read, values, strict=True))
            evaluate(equations, env, self.acting(added) if added else None)
            return [env[v] for v in computed]

        by_example = jax.vmap(one, axis_size=batch)
        arguments = [over[v] for v in read], list(shifts)
        if any(facts(eqn.primitive).by_step for eqn in equations):
            # Of a sparse product over [W, B], JAX makes an array of all entries for each vector.
            one_step = lambda _, step: (None, by_example(*step))
            values = lax.scan(one_step, None, arguments, length=steps)[1]
        else:
            values = jax.vmap(by_example, axis_size=steps)(*arguments)
        over.update(zip(computed, values, strict=True))


def enter(stored: Array, running: Array, first: Array) -> Array:
    """The stored states, with the derivatives of the running ones; without any where `first` holds, whose
    axes lead."""
    if not jnp.issubdtype(stored.dtype, jnp.inexact):
        return stored
    stop = lax.stop_gradient
    running = jnp.where(leading(first, stored), stop(running), running)
    return derivative_added(stop(stored), running)


def _entered(
    stage: Stage, old: Arrays, stored: Stored | None, reset: Array | None, begins: Begins | None
) -> Arrays:
    """The states that steps begin with, from those that the last ones ended with."""
    if stored is not None:
        old = [enter(s, o, stored.first) for s, o in zip(stored.states, old, strict=True)]
    if begins is not None and reset is not None:
        old = [begins.entered(i, o, reset) for i, o in zip(stage.leaves, old, strict=True)]
    return old


def fixed_values(a: Analysis, weights: Weights) -> Values:
    """What does not change from step to step."""
    env: Values = dict(a.step.constants)
    env.update(zip(a.split.others, weights.others, strict=True))
    env.update(zip(a.split.weights, weights.effective, strict=True))
    return env


def narrowed(a: Analysis, fixed: Mapping[Variable, Any], of_example: Iterable[Any]) -> Values:
    """Values that do not change over the window, in the dtypes that the step has them in. `of_example` are arrays of
    this example."""
    direct = {op.weight for op in a.ops if op.kind.data is None}
    is_data = lambda x: x.size and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    own = next(filter(is_data, of_example), None)

    def narrow(v: Variable, value: Any) -> Any:
        if getattr(value, "dtype", None) in (None, v.aval.dtype):
            return value
        if v in direct and own is not None:
            # JAX adds up the gradients that a batch gives to one value in the dtype of that value. With a zero of the
            # example, a weight that meets data element by element is narrowed for each example apart, and its gradient
            # is added up in the wider dtype.
            element = lax.stop_gradient(jnp.ravel(own)[0])
            zero = jnp.where(element == element, jnp.zeros((), value.dtype), 0)
            value = value + jnp.broadcast_to(zero, value.shape)
        return value.astype(v.aval.dtype)

    return {v: narrow(v, value) for v, value in fixed.items()}


def _stages(a: Analysis, saved: Sequence[Variable]) -> tuple[tuple[Stage, ...], set[Variable]]:
    """The stages, and what is known after them.

    Heavy operations are those that are worth doing for all steps at once: products, and all that have a
    trace. The depth of an equation or a state is the number of heavy operations outside of loops that lie
    before it, one after the other. In

        h' = tanh(w @ x + r @ h)    w @ x has depth 0, the loop of h (with r @ h in it) depth 1
        v' = 0.9 * v + u @ h'       u @ h' has depth 1, the loop of v depth 2

    The stage of depth d does the heavy operations of depth d - 1 for all steps at once, with what they
    need, and then runs the states of depth d in a loop: first `w @ x` and the loop of h, then `u @ h'` and
    the loop of v.
    """
    leaves = range(len(a.step.state))
    body = prune(a.split.body, [*a.split.next_state, *saved])
    heavy = {op.equation for op in a.ops} | {e for e in body if facts(e.primitive).heavy}
    depth, alone = _depths(a, body, heavy)
    fixed = {*a.step.constants, *a.split.weights, *a.split.others}
    over = set(a.step.inputs)
    stages: list[Stage] = []
    for level in range(max(depth.values(), default=0) + 2):
        heads = [v for eqn in alone.get(level - 1, ()) for v in eqn.outputs]
        batch = prune(body, heads, known=fixed | over)
        over.update(v for eqn in batch for v in eqn.outputs)
        looped = tuple(i for i in leaves if depth[i] == level)
        old, new = [a.step.state[i] for i in looped], [a.split.next_state[i] for i in looped]
        loop = prune(body, new, known={*fixed, *over, *old})
        ahead = _ahead(loop, over, fixed)
        over.update(v for eqn in ahead for v in eqn.outputs)
        moved = set(ahead)
        loop = tuple(eqn for eqn in loop if eqn not in moved)
        inputs = [v for v in (*(v for eqn in loop for v in eqn.inputs), *new) if v in over]
        kept = [v for eqn in loop if eqn in heavy for v in eqn.outputs if v not in new]
        over.update((*kept, *old, *new))
        if batch or ahead or looped:
            inputs = tuple(dict.fromkeys(inputs))
            stages.append(Stage((*batch, *ahead), looped, loop, inputs, tuple(kept)))
    return tuple(stages), fixed | over


def _depths(
    a: Analysis, body: Sequence[Equation], heavy: set[Equation]
) -> tuple[dict[int | Equation, int], dict[int, list[Equation]]]:
    """The depth of each equation and of each leaf of the state, by its number; and by depth the heavy
    equations outside of loops.

    What depends on each other is a strongly connected part of the graph of equations and leaves. A
    part of several has a state in it, and is a loop.
    """
    graph: nx.DiGraph[int | Equation] = nx.DiGraph()
    graph.add_nodes_from([*range(len(a.step.state)), *body])
    producers: dict[Variable, int | Equation] = {v: eqn for eqn in body for v in eqn.outputs}
    producers.update((v, i) for i, v in enumerate(a.step.state))
    for eqn in body:
        graph.add_edges_from((producers[v], eqn) for v in eqn.inputs if v in producers)
    for i, v in enumerate(a.split.next_state):
        if v in producers:
            graph.add_edge(producers[v], i)
    parts = nx.condensation(graph)
    members: dict[int, set[Any]] = {n: parts.nodes[n]["members"] for n in parts}
    depth: dict[int, int] = {}
    alone: dict[int, list[Equation]] = {}
    for part in nx.topological_sort(parts):
        before = parts.predecessors(part)
        depth[part] = max((depth[p] + (members[p] <= heavy) for p in before), default=0)
        if members[part] <= heavy:
            alone.setdefault(depth[part], []).extend(members[part])
    return {n: depth[part] for part in parts for n in members[part]}, alone


def _ahead(
    loop: Sequence[Equation],
    over: Collection[Variable],
    fixed: Collection[Variable],
) -> tuple[Equation, ...]:
    """What a loop computes from known values alone, if the result is no larger than they are."""
    known, ahead = {*over, *fixed}, list[Equation]()
    for eqn in loop:
        read = [v for v in eqn.inputs if v not in fixed]
        larger = sum(v.size for v in eqn.outputs) > sum(v.size for v in set(read))
        if read and not larger and all(v in known for v in read):
            known.update(eqn.outputs)
            ahead.append(eqn)
    return tuple(ahead)
