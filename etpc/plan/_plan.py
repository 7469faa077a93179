"""The plan of a trace program: what is carried for each weight operation, and how."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import networkx as nx

from .._errors import SelectionError, UnsupportedError, raise_together
from ..algorithms import Algorithm, Decay, TraceForm
from ..analyse import Analysis, WeightOp
from ._blocks import Colouring, Layout, block_rows, colouring, immediate_index, layout

AUTO_WINDOW = 16


@dataclasses.dataclass(frozen=True, eq=False)
class OpPlan:
    """What the program does with one weight operation."""

    op: WeightOp
    form: TraceForm | None
    """The form of its trace, or `None` if it has none."""
    layout: Any
    """The `Layout` of its blocks, or `None` if it has no trace."""
    immediate: Any
    """Where `F` lies in the compressed Jacobian, or `None`."""
    states: tuple[str, ...]
    exact: bool
    escapes: tuple[str, ...]
    reason: str
    """Why there is no trace; empty if there is one."""
    dtype: Any
    """Of the trace: at least float32, and complex where the operation is."""

    @property
    def path(self) -> str:
        return self.op.path

    @property
    def kind(self) -> str:
        return self.op.kind.name

    @property
    def block(self) -> int:
        """m, the largest number of states that one output has a lasting influence on."""
        return 0 if self.layout is None else self.layout.block

    @property
    def trace_shape(self) -> Any:
        """Shape of the trace of one example; one shape for each factor where it is factored."""
        kind, m = self.op.kind, self.block
        group = (kind.groups,) if kind.groups > 1 else ()
        if self.form is None:
            return ()
        if isinstance(self.form, Decay):
            return (*group, kind.inputs), (m, *group, kind.outputs)
        if kind.data is None:
            return (m, kind.outputs)
        if kind.links is not None:
            return (*group, m, kind.links.outputs.size)
        return (*group, kind.inputs, m, kind.outputs)

    @property
    def trace_size(self) -> int:
        """Numbers carried for one example."""
        if self.form is None:
            return 0
        if isinstance(self.form, Decay):
            return sum(math.prod(shape) for shape in self.trace_shape)
        return math.prod(self.trace_shape)

    @property
    def trace_bytes(self) -> int:
        """Bytes carried for one example."""
        size = jnp.dtype(self.dtype).itemsize * self.trace_size
        if isinstance(self.form, Decay):  # and how many steps the factors have seen
            size += jnp.finfo(self.dtype).dtype.itemsize
        return size

    def __repr__(self) -> str:
        return f"OpPlan({self.path}, {self.kind}, block={self.block}, exact={self.exact})"


@dataclasses.dataclass(frozen=True)
class Group:
    """Hidden states that share blocks, and the weight operations that reach them."""

    states: tuple[str, ...]
    ops: tuple[str, ...]
    block: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What is carried and how it is moved; the emitter reads nothing else."""

    analysis: Analysis
    algorithm: Algorithm
    ops: tuple[OpPlan, ...]
    """One for each weight operation, in order, traced or not."""
    groups: tuple[Group, ...]
    colours: Colouring
    window: int
    dtype: Any
    """Of the vector of states and its Jacobians: at least float32, so that long traces add up."""
    unused: tuple[str, ...]
    """Paths of float parameters that no operation reads."""

    @property
    def traced(self) -> tuple[OpPlan, ...]:
        return tuple(p for p in self.ops if p.form is not None)

    def __str__(self) -> str:
        rows = [f"plan for {self.algorithm}: {self.colours.count} vector-Jacobian products a step"]
        for p in self.ops:
            what = f"trace {p.trace_shape}" if p.form is not None else f"no trace: {p.reason}"
            rows.append(f"  {p.path} {p.kind}: {what}")
        return "\n".join(rows)


def plan(analysis: Analysis, algorithm: Algorithm, weights: Any = None) -> Plan:
    """Choose the traces of a program.

    **Arguments:**

    - `analysis`: from [`etpc.analyse.analyse`][], made with the algorithm's `cut`.
    - `algorithm`: the learning rule.
    - `weights`: `None`, `"all"`, `"marked"`, or a set of parameter paths.

    **Raises** `SelectionError` where nothing is selected; `UnsupportedError` where a derivative
    passes through a loop of unknown length.
    """
    raise_together(
        [
            f"A derivative passes through the `while_loop` at {source}. This is because it changes "
            "what depends on a hidden state or a weight, and as the number of its iterations is "
            "not known it has no reverse-mode derivative. Use `lax.fori_loop` with fixed bounds or "
            "`lax.scan`, or `lax.stop_gradient` on what enters the loop."
            for source in analysis.unbounded
        ],
        UnsupportedError,
    )
    chosen = _chosen(analysis, weights)
    with_state = [op.number for op in analysis.ops if analysis.immediate[op.number].nnz]
    colours = colouring(analysis, with_state)
    dtype = jnp.result_type(jnp.float32, *(part.dtype for part in analysis.hidden.parts))
    layouts: dict[tuple[tuple[int, ...], bytes], Layout] = {}
    ops = []
    for op, reach in zip(analysis.ops, analysis.reach, strict=True):
        rows = block_rows(reach.block)
        states = analysis.hidden.names(reach.states)
        form: TraceForm | None = None
        reason = ""
        if reach.role != "state":
            reason = {
                "output": "it reaches no hidden state; the gradient of each step is exact",
                "nothing": "it reaches neither a hidden state nor an output",
            }[reach.role]
        elif op.number not in chosen:
            reason = "it was not selected; it gets the gradient of the current step"
        elif not reach.block.nnz:
            reason = (
                "its output enters hidden states through other weights alone; it gets the "
                "gradient of the current step"
            )
        else:
            form = algorithm.trace_form(op.kind)
        table = index = None
        if form is not None:
            key = (rows.shape, rows.tobytes())
            if key not in layouts:
                layouts[key] = layout(rows, analysis.transition, colours)
            table = layouts[key]
            index = immediate_index(rows, analysis.immediate[op.number], colours)
        escapes = reach.escapes
        if form is not None and not form.exact:
            escapes = (form.left_out, *escapes)
        traceless = reach.role == "state" and form is None
        ops.append(
            OpPlan(
                op,
                form,
                table,
                index,
                states,
                not escapes and not traceless,
                escapes,
                reason,
                jnp.result_type(dtype, op.delta.dtype),
            )
        )
    window = AUTO_WINDOW if algorithm.window == "auto" else int(algorithm.window)
    used = {i for op in analysis.ops for i in op.parameters}
    paths = analysis.step.model_leaves.paths
    unused = tuple(paths[i] for i in analysis.step.model_leaves.floats if i not in used)
    return Plan(
        analysis,
        algorithm,
        tuple(ops),
        _groups(ops, analysis),
        colours,
        window,
        dtype,
        unused,
    )


def _chosen(analysis: Analysis, weights: Any) -> set[int]:
    ops = analysis.ops
    if weights is None:
        marked = {op.number for op in ops if op.marked}
        return marked or {op.number for op in ops}
    if weights == "all":
        return {op.number for op in ops}
    if weights == "marked":
        marked = {op.number for op in ops if op.marked}
        if ops and not marked:
            raise SelectionError(
                'weights="marked" selects nothing: no weight passes through `etpc.mark`. Mark the '
                'weights where they are used, or pass weights="all" or a selector.'
            )
        return marked
    paths = analysis.step.model_leaves.paths
    numbers = {paths.index(path): path for path in sorted(weights)}
    chosen = {op.number for op in ops if any(i in numbers for i in op.parameters)}
    missing = [p for i, p in numbers.items() if not any(i in op.parameters for op in ops)]
    raise_together(
        [
            f"weights= selects {path}, which no operation of the step uses. Remove it from the "
            "selector, or use it in the model."
            for path in missing
        ],
        SelectionError,
    )
    return chosen


def _groups(ops: list[OpPlan], analysis: Analysis) -> tuple[Group, ...]:
    graph: nx.Graph = nx.Graph()
    for p in ops:
        if p.form is not None:
            nx.add_path(graph, p.states)
            graph.add_nodes_from(p.states)
    order = {path: i for i, path in enumerate(analysis.hidden.paths)}
    components = [sorted(c, key=order.__getitem__) for c in nx.connected_components(graph)]
    groups = []
    for states in sorted(components, key=lambda c: order[c[0]]):
        members = [p for p in ops if p.form is not None and p.states[0] in states]
        names = tuple(dict.fromkeys(p.path for p in members))
        groups.append(Group(tuple(states), names, max(p.block for p in members)))
    return tuple(groups)


__all__ = ["Group", "OpPlan", "Plan", "plan"]
