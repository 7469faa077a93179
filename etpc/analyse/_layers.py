"""Which operations lie within a layer or after the last one; and other weights for credit to pass back by."""

import dataclasses
from typing import Any

import numpy as np
import scipy.sparse as sp
from jax import lax
from scipy.sparse import csgraph

from .._jax import Equation, Flat, in_place_of
from ..errors import AlgorithmError
from ..trace import Step
from ._analysis import Analysis, analyse
from ._escapes import Escape
from ._pattern import Pattern
from ._weights import WeightOp, data_of


def within_layers(analysis: Analysis) -> frozenset[int]:
    """The numbers of the operations whose data depends on what they did to the states at earlier steps.

    A layer is a set of states that influence each other, at any number of steps, with nothing cut.
    """
    flow, size = _flow(analysis), analysis.hidden.size
    count, label = csgraph.connected_components(flow, connection="strong")
    members = np.bincount(label, minlength=count)
    return frozenset(op.number for op in _mixing(analysis) if members[label[size + op.number]] > 1)


def readouts(analysis: Analysis) -> frozenset[int]:
    """The numbers of the operations that mix positions and influence the data of no such operation, at any step."""
    reached = _reached(analysis)
    return frozenset(op.number for op in _mixing(analysis) if not reached[op.number].any())


def with_random_feedback(step: Step, seed: int) -> Analysis:
    """The analysis of a step whose readouts pass credit back by fixed random weights in the place of their own.

    The values of the step are the same, and so are the gradients of the readouts. The random weights have the variance
    1 / I; credit passes by them to the states, and from the states of a readout to earlier steps. What has such credit
    is not exact, which its escapes say.

    **Raises** `AlgorithmError` where nothing gets credit through a readout.
    """
    plain = analyse(step)
    chosen = readouts(plain)
    upstream = _reached(plain)[:, list(chosen)].any(1)
    if not upstream.any():
        raise AlgorithmError(
            "No weight gets credit through a readout, so that random feedback would change nothing. This is because "
            "the output depends on the states by no product with a weight, or by one that holds its data constant. "
            'Leave out feedback="random", or choose a layer by `etpc.feedback(model, where, key)`.'
        )
    paths = ", ".join(dict.fromkeys(op.path for op in plain.ops if op.number in chosen))
    rng = np.random.default_rng(seed)
    made = {op.equation: _with_feedback(op, rng) for op in plain.ops if op.number in chosen}
    program = step.program
    constants = dict(program.constants)
    equations = list[Equation]()
    for eqn in program.equations:
        equations += made[eqn].equations if eqn in made else [eqn]
        constants.update(made[eqn].constants if eqn in made else {})
    program = dataclasses.replace(program, equations=tuple(equations), constants=constants)
    found = analyse(dataclasses.replace(step, program=program))
    other = Escape(f"credit through {paths}", (), "fixed random weights in their place")
    reach = tuple(
        dataclasses.replace(r, escapes=(*r.escapes, other)) if is_upstream else r
        for r, is_upstream in zip(found.reach, upstream.tolist(), strict=True)
    )
    return dataclasses.replace(found, reach=reach)


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
    reads = [r.reads if n in mixing else None for n, r in enumerate(reach)]
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


def _with_feedback(op: WeightOp, rng: Any) -> Flat:
    """The equation of an operation, with other weights on the way back."""
    eqn, stop, place = op.equation, lax.stop_gradient, op.kind.data
    weight = eqn.inputs[op.operand]
    drawn = rng.normal(size=weight.shape) / np.sqrt(op.kind.inputs)
    feedback = np.asarray(drawn, weight.aval.dtype)

    def passed(*values: Any) -> Any:
        held = [stop(x) if n == place else x for n, x in enumerate(values)]
        (back,) = eqn.bind(*(feedback if n == op.operand else x for n, x in enumerate(values)))
        return eqn.bind(*held)[0] + (back - stop(back))

    return in_place_of(eqn, passed)


__all__ = ["readouts", "with_random_feedback", "within_layers"]
