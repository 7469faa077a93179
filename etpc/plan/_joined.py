"""Products that are added up before anything else is done with them have one factor F, carried once.

In `tanh(w @ x + r @ h + b)` what is added to either product is added to the sum. So `F` is the same, and a smoothed
trace is that of `[w, r]` with the data `[x, h]`. Whole traces are not joined, as they would be as large, and were as
fast apart.
"""

import dataclasses
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Equation, Variable, prims
from ..analyse import Analysis, WeightOp
from ..traces import Joined
from ._records import Sketch


def joined(
    analysis: Analysis, sketches: Sequence[Sketch], owners: Mapping[int, int]
) -> tuple[list[Sketch], dict[int, int]]:
    """The traces, where the first of those that are joined has the data of all; and for each of the others the number
    of that first one."""
    shared, readers = Counter(owners.values()), _readers(analysis)
    groups: dict[Hashable, list[Sketch]] = {}
    for t in sketches:
        op, kind, alone = t.op, t.op.kind, shared[owners[t.op.number]] == 1
        if t.form.joins and kind.data is not None and kind.links is None and t.closed and alone:
            blocks = (t.members.indptr.tobytes(), t.members.indices.tobytes())
            of_site = (t.form, t.site.dtype, t.site.block, t.directions, op.delta.dtype)
            key = (_sum_of(op, readers), kind.groups, kind.outputs, *of_site, *blocks)
            groups.setdefault(key, []).append(t)
    beside: dict[int, int] = {}
    first: dict[int, Sketch] = {}
    for own, *others in groups.values():
        order = _added(own.op) if others else b""
        others = [t for t in others if _added(t.op) == order]
        if others:
            kind = Joined((own.op.kind, *(t.op.kind for t in others)))
            site = dataclasses.replace(own.site, kind=kind)
            first[own.op.number] = dataclasses.replace(own, site=site)
            beside |= {t.op.number: own.op.number for t in others}
    return [first.get(t.op.number, t) for t in sketches], beside


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
