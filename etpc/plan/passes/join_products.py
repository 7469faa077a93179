"""Products that are added up before anything else is done with them have one factor F, carried once.

In `tanh(w @ x + r @ h + b)` what is added to either product is added to the sum. So `F` is the same, and a smoothed
trace is that of `[w, r]` with the data `[x, h]`. Whole traces are not joined, as they would be as large, and were as
fast apart.

- Pattern: traces of products with equal blocks, of a form that takes data side by side.
- Proof: the outputs are read through one sum alone, and each element is added at the same place.
- Rewrite: one trace, with one feed of several operations.
- It saves a third of the memory of a gated cell under a decay, and is 1.1x faster.
"""

import dataclasses
from collections.abc import Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..._jax import Equation, Variable, prims
from ...analyse import Analysis, WeightOp, entries_of
from ...ir import Change, Feed, TraceNode, TraceProgram
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    readers = _readers(program.analysis)
    groups: dict[Hashable, list[TraceNode]] = {}
    for node in program.traces:
        op, kind, alone = node.op, node.op.kind, len(node.ops) == 1
        is_product = kind.data is not None and kind.links is None
        if node.form.joins and is_product and program.closed(node) and alone:
            of_node = node.form, node.dtype, node.virtual, op.delta.dtype
            blocks = entries_of(node.blocks)
            key = (_sum_of(op, readers), kind.groups, kind.outputs, *of_node, blocks)
            groups.setdefault(key, []).append(node)
    for first, *others in groups.values():
        order = _added(first.op) if others else b""
        others = [node for node in others if _added(node.op) == order]
        if others:
            program = _joined(program, first, others)
    return program


def _joined(program: TraceProgram, first: TraceNode, others: list[TraceNode]) -> TraceProgram:
    nodes = [first, *others]
    new = dataclasses.replace(first, feeds=(Feed(tuple(node.op for node in nodes)),))
    traces = {first: (new,), **dict.fromkeys(others, ())}
    more = {node: new.bytes - first.bytes if node is others[0] else 0 for node in others}
    text = f"in the trace of {first.op.path}"
    changes = [Change(NAME, node.op.path, text, node.bytes - more[node]) for node in others]
    return program.regrouped(traces).noted(*changes)


def _readers(analysis: Analysis) -> Mapping[Variable, Sequence[Equation | None]]:
    """The equations that read each variable; `None` for an output or a new state."""
    readers: dict[Variable, list[Equation | None]] = {}
    for eqn in analysis.split.body:
        for v in eqn.inputs:
            readers.setdefault(v, []).append(eqn)
    for v in (*analysis.split.outputs, *analysis.split.next_state):
        readers.setdefault(v, []).append(None)
    return readers


def _sum_of(op: WeightOp, readers: Mapping[Variable, Sequence[Equation | None]]) -> Variable:
    """The last sum that the output of an operation is part of and is read through alone; the output itself if none."""
    v = op.equation.outputs[0]
    while len(reading := readers.get(v, [])) == 1:
        (eqn,) = reading
        if eqn is None or eqn.primitive not in _SUMS or eqn.outputs[0].aval != v.aval:
            break
        (v,) = eqn.outputs
    return v


def _added(op: WeightOp) -> bytes:
    """Where each element of the perturbation of an operation is added to its output."""
    with jax.ensure_compile_time_eval():
        order = jnp.arange(op.size).reshape(op.kind.groups, op.kind.outputs)
        zeros = jnp.zeros(op.equation.outputs[0].shape, order.dtype)
        (added,) = op.kind.shift_outputs([zeros], order)
        return np.asarray(added).tobytes()


_SUMS = (prims.add_p, prims.add_jaxvals_p)


NAME = "join_products"
JOIN_PRODUCTS = Pass(
    NAME, "products that are added up have one trace, with their data side by side", _run
)
