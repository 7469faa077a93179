"""Values of a step that count as new states, for traces that meet the credit of each step by themselves.

A trace that is smoothed meets the credit of new states. Where the output, or an operation of another group, reads a
value that depends on old states and on operations of the step, and no new state that is stored stands between, that
value is a new state too: it is read and not carried, and nothing follows it. The potential of a neuron that is reset
within its step is one. Of all values on the way it is the last one that the step stores, up to functions of it
alone; where none is stored, the first one that all of the influence has entered.
"""

from collections.abc import Iterator
from typing import Any

from .._jax import Equation, Variable, prims
from .._jax.primitives import facts
from ..analyse import Analysis, by_equation, data_of, with_transient
from ._paths import OutputPaths


def with_values(analysis: Analysis) -> Analysis:
    """The analysis with values of the step as transient states, if there are such."""
    found = dict(_Values(analysis).found())
    return with_transient(analysis, found) if found else analysis


class _Values:
    """The values of a step as influence passes through them."""

    def __init__(self, analysis: Analysis):
        self.analysis, hidden = analysis, analysis.hidden
        a, live = analysis, by_equation(analysis.live)
        cut = {op.equation: op.kind.data for op in a.live if op.number in a.cut}
        self.given = OutputPaths(a, range(len(hidden.leaves))).moves.variables
        self.made: dict[Variable, tuple[Equation, list[Variable]]] = {}
        """The equation of each value that influence reaches, and the operands by which it does."""
        sources: dict[Variable, frozenset[Any]] = {v: frozenset([v]) for v in hidden.old}
        self.before: dict[Variable, dict[Variable, None]] = {v: {v: None} for v in hidden.old}
        """The values through which all influence on a value passes, in order, itself the last."""
        for eqn in a.split.body:
            if eqn.primitive is prims.stop_gradient_p:
                continue
            operands = [v for i, v in enumerate(eqn.inputs) if v in sources and i != cut.get(eqn)]
            of = frozenset[Any]().union(*(sources[v] for v in operands), live.get(eqn, ()))
            ways = [self.before[v] for v in operands] + [{}] * (eqn in live)
            for v in eqn.outputs if of else ():
                if v.is_float:
                    sources[v], self.made[v] = of, (eqn, operands)
                    self.before[v] = {w: None for w in ways[0] if all(w in o for o in ways)} | {
                        v: None
                    }
        old = frozenset(hidden.old)
        self.mixed = {v for v, of in sources.items() if of & old and of - old}
        self.kept = {v for new in hidden.new for v in self._stored(new)} | self.given

    def found(self) -> Iterator[tuple[Variable, str]]:
        """The values, and names for them."""
        a, seen = self.analysis, set[Variable]()
        read = [data_of(op) for op in a.live if op.number in a.in_full]
        for v in (*a.split.outputs, *(v for v in read if v is not None)):
            for value in self._behind(v):
                if value not in seen:
                    seen.add(value)
                    yield value, f"the value at {self.made[value][0].source}"

    def _behind(self, v: Variable) -> Iterator[Variable]:
        """The values that count as new states on the way to one that is read."""
        if v not in self.mixed:
            return
        way = [w for w in self.before[v] if w in self.mixed]
        value = next((w for w in reversed(way) if w in self.kept), None)
        if value is None:
            value = way[0]
            eqn, operands = self.made[value]
            apart = facts(eqn.primitive).moves or self.mixed.issuperset(operands)
            mixed = [w for w in operands if w in self.mixed]
            if apart and mixed:
                for w in mixed:
                    yield from self._behind(w)
                return
        if value not in self.given:
            yield value

    def _stored(self, v: Variable) -> Iterator[Variable]:
        """A value, and those that it is a function of alone, or is packed of."""
        while True:
            yield v
            eqn, operands = self.made.get(v, (None, []))
            if eqn is None or len(set(operands)) != 1:
                break
            (v,) = set(operands)
        if eqn is not None and self._packs(eqn, operands):
            for w in dict.fromkeys(operands):
                yield from self._stored(w)

    def _packs(self, eqn: Equation, operands: list[Variable]) -> bool:
        """Whether each element of the result is of one operand alone."""
        if eqn.primitive is prims.add_p:
            made = [self.made.get(v, (None, []))[0] for v in operands]
            return all(e is not None and e.primitive is prims.pad_p for e in made)
        return facts(eqn.primitive).moves or eqn.primitive in (prims.complex_p, prims.select_n_p)
