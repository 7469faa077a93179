"""e-prop as its papers write it: a learning signal times an eligibility trace, which is made of eligibility vectors."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from ._derivatives import Equation, Term
from ._functions import dot
from ._nodes import Array

if TYPE_CHECKING:
    from ._rule import Rule

LETTERS = {"e": ("e", "epsilon"), "low": ("ebar", "epsilonbar")}
"""Of a trace that a learning signal meets itself, and of one that it meets times a slope: an eligibility vector."""


class EProp:
    """Names and lines of a rule that are those of e-prop."""

    def __init__(self, rule: "Rule"):
        self.rule, self.step = rule, rule.derivatives
        self.signals = {
            credit: self._signal(credit, new)
            for old, new in self.step.states
            if (credit := self.step.signals[old]) is not None
        }
        """Of the credit of a state: that of what reads it, and the derivative of this by the state; none of several."""
        for trace in rule.traces.values():
            for (line, _, old), arrays in trace.known.items():
                if line.name in LETTERS and line.of == "uses" and old is not None:
                    self._rename(line.name == trace.meaning.meets, old, *arrays)
        self.old = {new: old for old, new in rule.carried.items()}
        for _, _, equations in rule.sections:
            equations[:] = [e for equation in equations for e in self._written(equation)]

    def _signal(self, credit: Array, new: Array) -> tuple[Any, Any] | None:
        if self.step.credit_of.get(credit) is not new:
            return self.step.view(credit), sp.Integer(1)
        (terms,) = (e.terms for e in self.step.credits if e.target is credit)
        if len(terms) > 1 or terms[0].where is not None:
            return None
        value, views = terms[0].value, self.step.views
        is_credit = lambda s: s in views and views[s][0].tex[:1] in (("dl",), ("c",), ("L",))
        factors = [f for f in sp.Mul.make_args(value) if any(map(is_credit, f.free_symbols))]
        signal = sp.Mul(*factors)
        is_whole = signal == value
        return self.step.view(credit) if is_whole else signal, value / signal

    def _named(self, signal: Any, shape: tuple[int, ...]) -> Any:
        """A learning signal by its name."""
        arrays = [self.step.views[s][0] for s in self.step.symbols(signal)]
        text = next(a.tex[1] for a in arrays if a.tex[1:])
        if not signal.is_Symbol:
            array = self.step.array(f"L_{text}", shape, "L", text)
            self.step.credits.append(Equation(array, [Term(signal)]))
            return self.step.view(array)
        if arrays[0].tex[0] == "c":
            self.step.nodes.rename(arrays[0], "L", text)
        return signal

    def _rename(self, meets: bool, old: Array, before: Array, after: Array) -> None:
        letter, *of, weight = before.tex
        credit = self.step.signals[old]
        signal = None if credit is None else self.signals[credit]
        letter = LETTERS[letter][signal is None or signal[1] != 1]
        letter = "ebar" if letter == "e" and meets and old.tex[:1] == ("xbar",) else letter
        tex = letter, *(of if letter != "ebar" else ()), weight
        if tex != before.tex:
            self.step.nodes.rename(before, *tex)
            self.step.nodes.rename(after, *tex, "new")
            after.tex, after.shown = tex, before.name + "'"

    def _written(self, equation: Equation) -> Iterator[Equation]:
        target, terms = equation.target, equation.terms
        if not any(t.where is not None or t.value.has(dot) for t in terms):
            if target in self.old and target.tex[0] == "ebar":
                yield from self._filtered(equation)
            elif target in self.rule.gradient.values() and equation.note != "past":
                yield from self._credited(equation)
        yield equation

    def _eligibility(self, of: Array, value: Any) -> Generator[Equation, None, Any]:
        e = self.step.array(f"e_{of.tex[-1]}", of.shape, "e", of.tex[-1])
        yield Equation(e, [Term(sp.factor_terms(value))])
        return self.step.view(e)

    def _filtered(self, equation: Equation) -> Iterator[Equation]:
        """In a filtered trace, the eligibility trace by its name."""
        old, views = self.old[equation.target], self.step.views
        values = (sp.expand(term.value, deep=False) for term in equation.terms)
        addends = [a for value in values for a in sp.Add.make_args(value)]
        kept = [a for a in addends if any(views[s][0] is old for s in self.step.symbols(a))]
        rest = sp.Add(*(a for a in addends if a not in kept))
        if rest != 0 and not rest.is_Symbol:
            e = yield from self._eligibility(old, rest)
            equation.terms = [Term(sp.Add(*kept)), Term(e)]

    def _credited(self, equation: Equation) -> Iterator[Equation]:
        """In a gradient, one learning signal times the eligibility trace, a sum over states."""
        views, values = self.step.views, list[Any]()
        found = dict[Any, tuple[tuple[int, ...], np.ndarray]]()
        for term in equation.terms:
            of = [s for s in self.step.symbols(term.value) if views[s][0] in self.signals]
            signal = self.signals[views[of[0]][0]] if len(of) == 1 else None
            if signal is None:
                return
            credit, at = views[of[0]]
            found[signal[0], at.tobytes()] = credit.shape, at
            values.append(term.value.xreplace({of[0]: self.step.at(signal[1], at)}))
        total = sp.Add(*values)
        if len(found) == 1 and not total.is_Symbol:
            (((signal, _), (shape, at)),) = found.items()
            signal = self.step.once(("L", signal), lambda: self._named(signal, shape))
            e = yield from self._eligibility(equation.target, total)
            equation.terms = [Term(self.step.at(signal, at) * e)]
