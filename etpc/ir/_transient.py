"""Values of a step that count as new states, for traces that meet the credit of each step by themselves.

A trace that is smoothed meets the credit of new states. Where the output, or an operation of another group, reads a
value that depends on old states and on operations of the step, and no new state that is stored stands between, that
value is a new state too: it is read and not carried, and nothing follows it. The potential of a neuron that is reset
within its step is one. Of all values on the way it is the last one that the step stores, up to functions of it
alone; where none is stored, the first one that all of the influence has entered.
"""

import functools
from collections.abc import Iterator

from .._jax import Equation, Variable, prims, propagate
from .._jax.primitives import facts
from ..analyse import Analysis, by_equation, data_of, with_transient
from ._paths import OutputPaths, stops_gradient


def with_values(analysis: Analysis) -> Analysis:
    """The analysis with values of the step as transient states, if there are such."""
    found = dict(_Values(analysis).found())
    return with_transient(analysis, found) if found else analysis


class _Values:
    """The values of a step as influence passes through them."""

    def __init__(self, analysis: Analysis):
        self.analysis, a, hidden = analysis, analysis, analysis.hidden
        live, cut = by_equation(a.live), {op.equation for op in a.live if op.number in a.cut}
        self.given = OutputPaths(a, range(len(hidden.leaves))).forwarded.whole
        uncut = [eqn for eqn in a.split.body if eqn not in cut]
        of_old = propagate(uncut, hidden.old, stops_gradient)
        of_ops = propagate(uncut, [v for eqn in live for v in eqn.outputs], stops_gradient)
        self.mixed = of_old & of_ops
        self.made: dict[Variable, tuple[Equation, list[Variable]]] = {}
        """The equation of each value that influence reaches, and the operands by which it does."""
        self.above: dict[Variable, Variable | None] = dict.fromkeys(hidden.old)
        """For each value, the last one before it through which all influence on it passes, if there is one."""
        self.number = {v: n for n, v in enumerate(hidden.old)}
        for eqn in a.split.body:
            operands = [v for v in eqn.inputs if v in self.above and eqn not in cut]
            common = (
                None if eqn in live or not operands else functools.reduce(self._common, operands)
            )
            for v in eqn.outputs:
                if v in of_old or v in of_ops:
                    self.made[v], self.above[v] = (eqn, operands), common
                    self.number[v] = len(self.number)
        self.kept = set[Variable]()
        """The values that are new states, and those that such are functions of alone, or are packed of."""
        for new in hidden.new:
            self._store(new)
        self.kept |= self.given
        self._met = set[Variable]()

    def _common(self, a: Variable | None, b: Variable | None) -> Variable | None:
        """The last value through which all influence on two values passes; each counts as its own."""
        while a is not b and a is not None and b is not None:
            a, b = (self.above[a], b) if self.number[a] > self.number[b] else (a, self.above[b])
        return a if a is b else None

    def found(self) -> Iterator[tuple[Variable, str]]:
        """The values, and names for them."""
        a = self.analysis
        read = [data_of(op) for op in a.live if op.number in a.in_full]
        for v in (*a.split.outputs, *(v for v in read if v is not None)):
            for value in self._behind(v):
                yield value, f"the value at {self.made[value][0].source}"

    def _behind(self, v: Variable) -> Iterator[Variable]:
        """The values that count as new states on the way to one that is read."""
        if v not in self.mixed or v in self._met:
            return
        self._met.add(v)
        way, w = list[Variable](), v
        while w is not None:
            way += [w] if w in self.mixed else []
            w = self.above[w]
        value = next((w for w in way if w in self.kept), None)
        if value is None:
            value = way[-1]
            eqn, operands = self.made[value]
            apart = facts(eqn.primitive).data_movement or self.mixed.issuperset(operands)
            mixed = [w for w in operands if w in self.mixed]
            if apart and mixed:
                for w in mixed:
                    yield from self._behind(w)
                return
        if value not in self.given:
            yield value

    def _store(self, v: Variable) -> None:
        while True:
            self.kept.add(v)
            eqn, operands = self.made.get(v, (None, []))
            further = [w for w in dict.fromkeys(operands) if w not in self.kept]
            if eqn is None or not further:
                return
            if len(set(operands)) > 1:
                break
            (v,) = further
        for w in further if self._packs(eqn, operands) else ():
            self._store(w)

    def _packs(self, eqn: Equation, operands: list[Variable]) -> bool:
        """Whether each element of the result is of one operand alone."""
        if eqn.primitive is prims.add_p:
            made = [self.made.get(v, (None, []))[0] for v in operands]
            return all(e is not None and e.primitive is prims.pad_p for e in made)
        return facts(eqn.primitive).data_movement or eqn.primitive in (
            prims.complex_p,
            prims.select_n_p,
        )
