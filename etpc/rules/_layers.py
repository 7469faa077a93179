"""Which operations lie within a layer or after the last one; and other weights for credit to pass back by."""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse as sp
from jax import lax
from scipy.sparse import csgraph

from ..analyse import Analysis, Escape, Pattern, Step, WeightOp, analyse, commuted, data_of
from ..errors import AlgorithmError
from ..trace import Equation, Variable, in_place_of


def within_layers(analysis: Analysis) -> frozenset[int]:
    """The numbers of the operations whose data depends on what they did to the states at earlier steps.

    A layer is a set of states that influence each other, at any number of steps, with nothing cut.
    """
    flow, size = _flow(analysis), analysis.hidden.size
    count, label = csgraph.connected_components(flow, connection="strong")
    members = np.bincount(label, minlength=count)
    return frozenset(op.number for op in _mixing(analysis) if members[label[size + op.number]] > 1)


def reading(analysis: Analysis) -> frozenset[int]:
    """The numbers of the operations that mix positions, reach a state, and read what depends on states or on others:
    where it matters whether their data is held constant."""
    found = (op for op in analysis.live if op.kind.data is not None)
    return frozenset(op.number for op in found if analysis.reach[op.number].dependence.anything)


def before_readouts(analysis: Analysis) -> frozenset[int]:
    """The numbers of the operations that influence the data of an operation that mixes positions, at any step."""
    return frozenset(np.flatnonzero(_reached(analysis).any(1)).tolist())


def readouts(analysis: Analysis) -> frozenset[int]:
    """The numbers of the operations that mix positions and influence the data of no such operation, at any step."""
    return frozenset(op.number for op in _mixing(analysis)) - before_readouts(analysis)


def with_random_feedback(step: Step, seed: int) -> Analysis:
    """The analysis of a step whose readouts pass credit back by fixed random weights in the place of their own.

    The values of the step are the same, and so are the gradients of the readouts. The random weights have the variance
    1 / I; credit passes by them to the states, and from the states of a readout to earlier steps. What has such credit
    is not exact, which its escapes say.

    **Raises** `AlgorithmError` where nothing gets credit through a readout.
    """
    given, plain = step, analyse(step)
    # The memory of a readout comes before it, where it commutes: one filter, in the place of one for each output.
    filtered = lambda a: (commuted(a, op) for op in a.live if op.number in readouts(a))
    while found := next(filter(None, filtered(plain)), None):
        plain = analyse(found.step)
    step, chosen = plain.step, readouts(plain)
    reached = _reached(plain)[:, list(chosen)]
    upstream = [bool(row.any()) for row in reached]
    if not any(upstream):
        raise AlgorithmError(
            "No weight gets credit through a readout, so that random feedback would change nothing. This is because "
            "the output depends on the states by no product with a weight, or by one that holds its data constant. "
            'Leave out feedback="random", or choose a layer by `etpc.feedback(model, where, key)`.'
        )
    paths = ", ".join(dict.fromkeys(op.path for op in plain.ops if op.number in chosen))
    rng = np.random.default_rng(seed)
    made = {op.equation: _with_feedback(op, rng) for op in plain.ops if op.number in chosen}
    program = step.program
    equations = [new for eqn in program.equations for new in made.get(eqn, ([eqn], None))[0]]
    constants = dict(program.constants) | dict(weights for _, weights in made.values())
    program = dataclasses.replace(program, equations=tuple(equations), constants=constants)
    found = analyse(dataclasses.replace(step, program=program))
    other = Escape(f"credit through {paths}", (), "fixed random weights in their place")
    reach = tuple(
        dataclasses.replace(r, escapes=(*r.escapes, other)) if is_upstream else r
        for r, is_upstream in zip(found.reach, upstream, strict=True)
    )
    return dataclasses.replace(found, reach=reach, given=given)


def _mixing(analysis: Analysis) -> list[WeightOp]:
    """The operations with data that has a derivative, if an output depends on them."""
    ops = (op for op in analysis.ops if analysis.reach[op.number].role != "nothing")
    return [op for op in ops if (data := data_of(op)) is not None and data.is_float]


def _flow(analysis: Analysis) -> Pattern:
    """From states and operations to those that they influence directly, also through data that is cut."""
    transition = sp.csr_array(analysis.transition.T)
    reach, mixing = analysis.reach, {op.number for op in _mixing(analysis)}
    rows = [np.asarray(np.diff(pattern.indptr) > 0) for pattern in analysis.immediate]
    size, count = analysis.hidden.size, len(reach)
    to_states = np.array(rows, bool).reshape(count, size)
    reads = [r.dependence if n in mixing else None for n, r in enumerate(reach)]
    none = np.zeros(max(size, count), bool)
    from_states = np.array([none[:size] if r is None else r.states for r in reads], bool)
    from_ops = np.array([none[:count] if r is None else r.ops for r in reads], bool)
    blocks = [
        [transition, sp.csr_array(from_states.reshape(count, size).T)],
        [sp.csr_array(to_states), sp.csr_array(from_ops.reshape(count, count).T)],
    ]
    return sp.csr_array(sp.block_array(blocks))


def _reached(analysis: Analysis) -> np.ndarray:
    """Boolean: whether the operation of a row influences the data of that of a column."""
    flow, size = _flow(analysis), analysis.hidden.size
    count = len(analysis.ops)
    reached = np.zeros((count, count), bool)
    for n in range(count):
        order = csgraph.breadth_first_order(flow, size + n, return_predecessors=False)
        reached[n, order[(order >= size) & (order != size + n)] - size] = True
        reached[n, n] = bool(flow[order][:, [size + n]].nnz)
    return reached


def _with_feedback(op: WeightOp, rng: Any) -> tuple[list[Equation], tuple[Variable, np.ndarray]]:
    """The equation of an operation, with other weights on the way back, and these."""
    eqn, data = op.equation, data_of(op)
    assert data is not None
    like = lambda v: Variable(v.number, v.aval)
    stopped, other, own, back = map(like, (data, eqn.inputs[op.operand], *2 * eqn.outputs))
    swapped = lambda old, new: tuple(new if v is old else v for v in eqn.inputs)
    acting = lambda inputs, output: dataclasses.replace(eqn, inputs=inputs, outputs=(output,))
    stop: Any = lax.stop_gradient
    equations = [
        *in_place_of(acting((data,), stopped), stop).equations,
        acting(swapped(data, stopped), own),
        acting(swapped(op.weight, other), back),
        *in_place_of(acting((own, back), *eqn.outputs), lambda y, b: y + (b - stop(b))).equations,
    ]
    drawn = rng.normal(size=other.shape) / np.sqrt(op.kind.inputs)
    return equations, (other, np.asarray(drawn, other.aval.dtype))
