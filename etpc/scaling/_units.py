"""Which axis of each array has the hidden units, so that XLA lays a layer out over devices by its outputs."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ..analyse import WeightOp
from ..run import Carry, Program

Axis = int | None


class _OneMore:
    """A kind of weight operation with one output more, by which the axes of outputs are found."""

    def __init__(self, kind: Any):
        self._kind = kind
        self.outputs = kind.outputs + 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)


@dataclasses.dataclass(frozen=True)
class Units:
    """The axis of units of each array; `None` for an array that every device has whole.

    - `devices`: how many share the units. An axis whose length they do not divide stays whole.
    """

    program: Program
    devices: int

    def of_state(self, shape: Sequence[int]) -> Axis:
        """Of a hidden state of one example."""
        return self._first(shape, range(len(shape)))

    def of_parameters(self) -> list[Axis]:
        """Of each array leaf of the model: a weight by its outputs, a readout by the units that it reads."""
        analysis = self.program.plan.analysis
        step, found = analysis.step, {}
        reaches = {p.op.number for p in self.program.ops}
        for op in sorted(analysis.ops, key=lambda op: op.kind.data is None):
            for place in op.parameters if op.number in reaches else ():
                found.setdefault(place, self._of_weight(op, step.model_leaves.avals[place].shape))
        sizes = {
            avals.shape[axis]
            for avals in step.state_leaves.avals
            if (axis := self.of_state(avals.shape)) is not None
        }
        for place, aval in enumerate(step.model_leaves.avals):
            reads = [n for n, size in enumerate(aval.shape) if size in sizes]
            found.setdefault(place, reads[-1] if reads else None)
        return [found[place] for place in range(len(step.model_leaves.avals))]

    def of_carry(self, carry: Carry) -> Any:
        """A carry with the axis of each array in its place, counted with the batch axis; -1 for none."""
        after = lambda axis: -1 if axis is None else axis + carry.batched
        state = lambda a: after(self.of_state(a.shape[carry.batched :]))
        nodes = zip(self.program.ir.traces, carry.traces, strict=True)
        axes = [after(axis) for node, own in nodes for axis in self._of_trace(node, len(own))]
        traces = jax.tree.unflatten(jax.tree.structure(carry.traces), axes)
        whole = jax.tree.map(lambda _: -1, carry)
        return dataclasses.replace(whole, state=jax.tree.map(state, carry.state), traces=traces)

    def _of_weight(self, op: WeightOp, shape: Sequence[int]) -> Axis:
        """Of a parameter that an operation reads: that of its outputs."""
        kind, effective = op.kind, op.weight.shape
        if kind.data is None:
            return self._first(shape, range(len(shape)))
        if len(shape) == 2 and sorted(shape) == sorted(effective):
            axis = 0 if getattr(kind, "inputs_last", False) else 1
            return self._first(shape, [axis if shape == effective else 1 - axis])
        return self._first(shape, [n for n, size in enumerate(shape) if size == kind.outputs])

    def _of_trace(self, node: Any, count: int) -> list[Axis]:
        """Of the arrays of one trace of an example."""
        site, more = node.site, dataclasses.replace(node.site, kind=_OneMore(node.site.kind))
        if node.site.factored and node.site.kind.links is not None:
            return [None] * count  # one entry for each connection
        shapes = [
            [a.shape[1:] for a in jax.eval_shape(lambda s=s: node.form.init(s, 1))]
            for s in (site, more)
        ]
        return [
            self._first(one, np.flatnonzero(np.not_equal(one, other)))
            for one, other in zip(*shapes, strict=True)
        ]

    def _first(self, shape: Sequence[int], axes: Iterable[Any]) -> Axis:
        """The first of some axes that the devices divide."""
        return next((int(n) for n in axes if shape[n] and shape[n] % self.devices == 0), None)
