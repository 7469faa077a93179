"""Which rank each low-rank trace gets: proved, or measured on a sample."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import AlgorithmError
from ..algorithms import ES_D_RTRL, PROBED, Full, LowRank, TraceForm
from ..emit import Bound, emit, rank_bounds
from ..plan import Choice, OpPlan, Plan
from ._program import Program

WINDOW = 16
"""Steps between two reductions of the traces of a sample."""


def choose_ranks(plan: Plan, model: Any, sample: Any) -> Choice:
    """The form of each trace of `ES_D_RTRL` with a rank or with `"auto"`.

    **Raises** `AlgorithmError` where a rank must be measured and there is no sample.
    """
    algorithm = plan.algorithm
    assert isinstance(algorithm, ES_D_RTRL)
    forms: dict[int, TraceForm] = {}
    reasons: dict[int, str] = {}
    bounds = rank_bounds(plan)
    measure = []
    for p in plan.traced:
        forms[p.op.number], reasons[p.op.number] = _form(p), ""
        form = algorithm.trace_form(p.op.kind)
        if not isinstance(form, LowRank):
            continue
        bound = bounds[p.op.number]
        if bound.fixed <= form.rank:
            asked = form.rank if isinstance(algorithm.decay_or_rank, int) else bound.fixed
            rank = min(asked, bound.rank)
            forms[p.op.number] = dataclasses.replace(form, rank=rank, exact=True)
            reasons[p.op.number] = f"rank {rank} holds all of it: {_why(bound)}"
        elif algorithm.decay_or_rank == "auto" and isinstance(p.form, LowRank):
            measure.append(p)
    if measure and sample is None:
        paths = ", ".join(dict.fromkeys(p.path for p in measure))
        raise AlgorithmError(
            f'decay_or_rank="auto" cannot prove a rank for the trace of {paths}. This is because '
            "its transitions depend on data. Pass sample=, the inputs of some steps of one example, "
            "to have the rank measured, or name one."
        )
    if measure:
        errors = _errors(plan, model, sample, measure)
        for p in measure:
            form, reason = _smallest(p, errors[p.op.number], algorithm.error)
            forms[p.op.number], reasons[p.op.number] = form, reason
    return Choice(plan.analysis.cut, forms, reasons)


def _why(bound: Bound) -> str:
    if bound.rank == bound.fixed:
        return "outputs have the same transitions, whatever the parameters are"
    return "its transitions depend on no data"


def _form(p: OpPlan) -> TraceForm:
    assert p.form is not None
    return p.form


def _smallest(p: OpPlan, errors: np.ndarray, wanted: float) -> tuple[TraceForm, str]:
    assert isinstance(p.form, LowRank)
    enough = np.flatnonzero(errors <= wanted)
    if not enough.size:
        return Full(), f"no rank up to {PROBED} keeps an error of {wanted:g}, so it is kept whole"
    rank = int(enough[0]) + 1
    reason = f"on the sample, rank {rank} leaves out {errors[rank - 1]:.2g} of it, of {wanted:g}"
    return dataclasses.replace(p.form, rank=rank), reason


def _errors(plan: Plan, model: Any, sample: Any, ops: list[OpPlan]) -> dict[int, np.ndarray]:
    """For each rank from 1 on, what a reduction to it leaves out, relative, on a sample."""
    program = Program(emit(plan))
    steps = jax.tree.leaves(sample)[0].shape[0] if jax.tree.leaves(sample) else 0
    if steps < 2:
        raise AlgorithmError(
            "sample= has fewer than two steps. Pass a sequence of inputs with a leading axis T."
        )
    carry = program.init()
    window = min(WINDOW, math.ceil(steps / 2))
    totals = {p.op.number: np.zeros(PROBED + 1) for p in ops}
    places = {p.op.number: n for n, p in enumerate(plan.carried)}
    for start in range(0, steps, window):
        xs = jax.tree.map(lambda a, at=slice(start, start + window): jnp.asarray(a)[at], sample)
        _, carry = program.scan(model, xs, carry)
        for p in ops:
            b = np.asarray(carry.traces[places[p.op.number]][1], complex)
            b = b.reshape(b.shape[0], p.block, -1, p.op.kind.outputs)  # [R, m, G, O]
            groups = b.transpose(2, 0, 1, 3).reshape(b.shape[2], b.shape[0], -1)
            squares = (np.linalg.svd(groups, compute_uv=False) ** 2).sum(0)
            beyond = np.append(np.cumsum(squares[::-1])[::-1], 0)  # left out by rank 0, 1, ...
            totals[p.op.number][: beyond.size] += beyond
    whole = {n: total[0] if total[0] > 0 else 1.0 for n, total in totals.items()}
    return {n: np.sqrt(total[1:PROBED] / whole[n]) for n, total in totals.items()}


__all__ = ["choose_ranks"]
