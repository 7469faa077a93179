"""What is printed of the equations: what a gradient needs, with names for what stands in several lines."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import sympy as sp
from sympy.printing.str import sstr

from ..show import each_once
from ._derivatives import Equation, Term
from ._functions import ELEMENTS
from ._nodes import Array
from ._numpy import along, slice_of
from ._rule import Rule

LONG = 16
"""The least number of letters of what gets a name where several lines have it."""


SLOPE = " stands for the derivative of "


class Line(NamedTuple):
    """One equation, or a heading, in symbols that people read."""

    left: Any
    right: Any = None
    note: str = ""
    sign: str = "="


def _as_valued(value: Any) -> Any:
    """A value, without what it has for its derivative alone: `b - stop(b)`."""
    for stop in value.atoms(ELEMENTS["stop_gradient"]) if value.is_Add else ():
        if {*sp.Add.make_args(stop.args[0]), -stop} <= {*value.args}:
            value += stop - stop.args[0]
    return value


def functions_of(values: Iterable[Any]) -> set[str]:
    """The names of the functions in expressions."""
    return {type(f).__name__ for value in values for f in value.atoms(sp.Function)}


def base(symbol: Any) -> str:
    """The name of the array of a symbol, without what says which elements it is of."""
    return re.split(r"[\[#^]", str(symbol))[0]


class NotIndexed(Exception):
    """Arrays have parts, or more than two axes, for which there are no indices."""


class Lines:
    """The equations of a rule as lines.

    - `path`: of the weight whose gradient is asked for; `None` for all.
    - `indexed`: whether symbols of arrays have their indices, after a `#`.
    """

    def __init__(self, rule: Rule, path: str | None, indexed: bool = False):
        self.rule, self.path, self.indexed = rule, path, indexed
        self.arrays: dict[str, Array] = {}
        """Of each name that is printed."""
        self.letter = self._letters() if indexed else {}
        sections = self._needed()
        first = next(iter(sections))
        if indexed:
            self._without_products(sections, first)
            self._without_outputs(sections[first])
        sections = dict(self._with_names(sections))
        sections[first][:0] = self._functions(sections)
        every = [x for lines in sections.values() for x in lines]
        names = {base(s) for x in every for a in (x.left, x.right) for s in a.free_symbols}
        self.arrays = {name: a for name, a in self.arrays.items() if name in names}
        constants = [Line(s, sp.Float(a)) for (_, a), s in rule.step.nodes.constants.items()]
        self.scalars = {name for name, a in self.arrays.items() if a.size == 1}
        self.scalars |= {str(line.left) for line in constants}
        sections = {"constants": [x for x in constants if str(x.left) in names]} | sections
        self.sections = {title: lines for title, lines in sections.items() if lines}
        self.left_out = self._left_out()

    def _needed(self) -> dict[str, list[Line]]:
        """The lines that gradients need; of all weights, those that outputs and states need too."""
        rule, step, gradients = self.rule, self.rule.step, {*self.rule.gradient.values()}
        old_and_new = zip(step.state, step.new_state, strict=True)
        after = {old: new for parts in old_and_new for old, new in zip(*parts, strict=True)}
        after |= rule.carried | {given: y for y, given in rule.derivatives.loss.items()}
        after |= {later: of for of, later in rule.derivatives.passed.values()}
        sections, reads = dict[str, list[tuple[Array, Line]]](), dict[Array, set[Array]]()
        every = (a for parts in (*step.outputs_of, *step.new_state) for a in parts)
        waiting, needed = {*every} if self.path is None else set[Array](), set[Array]()
        for title, paths, equations in rule.sections:
            for equation in equations:
                target, of_path = equation.target, self.path in (None, *paths.split(", "))
                waiting |= {target} & gradients if of_path else set()
                for line in self._lines(equation):
                    sections.setdefault(title, []).append((target, line))
                    symbols = [s for s in line.right.free_symbols if base(s) in self.arrays]
                    reads.setdefault(target, set()).update(map(self._array_of, symbols))
        while waiting:
            needed.add(array := waiting.pop())
            waiting |= ({after.get(array, array)} | reads.get(array, set())) - needed
        kept = lambda pairs: [line for target, line in pairs if target in needed]
        return {title: kept(pairs) for title, pairs in sections.items()}

    # --- lines ---

    def _lines(self, equation: Equation) -> Iterator[Line]:
        """A line for each part of the target; `+=` where an earlier one gives some of its elements."""
        target, sides = equation.target, dict[tuple[str, bytes], dict[str, list[Any]]]()
        self.arrays[target.text] = target
        given = np.full(target.size, target in self.rule.gradient.values())
        terms = equation.terms if equation.shown is None else [Term(equation.shown)]
        every = np.arange(target.size).reshape(target.shape)
        for term in terms:
            at = every if term.where is None else term.where
            where, of = self._place(target, at), ""
            repeat = [np.unique(p).size < p.size for p in (at, *np.unravel_index(at, target.shape))]
            if repeat[0]:
                where, of = "", "sum"
            elif len(target.shape) > at.ndim and not any(repeat):
                of = "diag"
            key = where, (at if where else every).tobytes()
            value = self._shown(term.value, self._indices(target))
            sides.setdefault(key, {}).setdefault(of, []).append(value)
        for (where, places), sums in sides.items():
            total = {of: sp.Add(*values) for of, values in sums.items()}
            total = sum(sp.Function(of, real=True)(a) if of else a for of, a in total.items())
            at = np.frombuffer(places, int)
            sign = "+=" if given[at].any() else "="
            given[at] = True
            if self.indexed and (where or any(sums)):
                raise NotIndexed
            left = sp.Symbol(target.text + where + self._indices(target))
            yield Line(left, _as_valued(total), equation.note, sign)

    def _shown(self, value: Any, indices: str) -> Any:
        """An expression of views in symbols that people read."""
        views = self.rule.derivatives.views
        if self.indexed:  # the index that is summed over stands in both factors
            for product in value.atoms(sp.Function):
                if type(product).__name__ == "dot":
                    value = value.xreplace({product: self._sum_over(product, indices)})
        value = value.replace(ELEMENTS["with_derivative"], lambda a, _: a)
        symbols = (s for s in value.free_symbols if s in views)
        return value.xreplace({s: self._symbol(*views[s], indices) for s in symbols})

    def _symbol(self, array: Array, at: np.ndarray, indices: str = "") -> Any:
        """An array as an expression names it: `x^T` where it follows the columns of a matrix."""
        self.arrays[array.text] = array
        followed = along(array.shape, at) if len(array.shape) == 1 < array.size else []
        by_columns = bool(followed) and at.ndim > 1 and followed[0][0] == at.ndim - 1
        name = array.text + self._place(array, at)
        if not self.indexed:
            is_first = not by_columns and array.kind != "carried"
            return sp.Symbol(name + "^T" * by_columns, commutative=is_first)
        if "[" in name:
            raise NotIndexed
        letters = indices[-1:] if by_columns else indices[1 : 1 + len(array.shape)]
        name += f"#{letters}" if array.size > 1 else ""
        return sp.Symbol(name, commutative=array.kind != "carried")

    def _place(self, array: Array, at: np.ndarray) -> str:
        """Which elements of an array; empty where it is all of them."""
        flat = np.unravel_index(at.reshape(-1), array.shape)
        followed = along(array.shape, at) or [(0, places) for places in flat]
        repeats = lambda p, n: p.size % n == 0 and (p == np.tile(np.arange(n), p.size // n)).all()
        slices = [
            ":" if repeats(p, n) else str(p[0]) if axis is None else slice_of(p, n) or "..."
            for (axis, p), n in zip(followed, array.shape, strict=True)
        ]
        return "" if array.size == 1 or all(s == ":" for s in slices) else f"[{', '.join(slices)}]"

    # --- shorter ---

    def _without_outputs(self, step: list[Line]) -> None:
        """An output that is a state has its name."""
        loss = self.rule.derivatives.loss
        for output in (a for parts in self.rule.step.outputs_of for a in parts):
            for line in [x for x in step if base(x.left) == output.text and x.right.is_Symbol]:
                step.remove(line)
                given = loss.get(output, output)
                self.arrays[given.text] = replace(given, tex=("dl", base(line.right)))

    def _without_products(self, sections: dict[str, list[Line]], first: str) -> None:
        """What a product gives, if it is read once, stands where it is read."""
        for line in [x for x in sections[first] if self._array_of(x.left).tex[:1] == ("I",)]:
            reads = [x for own in sections.values() for x in own if x.right.has(line.left)]
            if len(reads) == 1 and line.sign == "=":
                sections[first].remove(line)
                (own,) = (own for own in sections.values() if reads[0] in own)
                right = reads[0].right.xreplace({line.left: line.right})
                own[own.index(reads[0])] = reads[0]._replace(right=right)

    def _with_names(self, sections: dict[str, list[Line]]) -> Iterator[tuple[str, list[Line]]]:
        """The lines with names for entries of D and F that stand in several."""
        (first, step), *others = sections.items()
        rest = [line for _, lines in others for line in lines]
        named: dict[Any, Any] = {}
        for value, tex in self._factors(step, rest).items():
            name = "_".join(tex) if tex[0] != "d" else "d{1}_d{2}".format(*tex)
            if len(sstr(value)) < LONG or not value.free_symbols or name in self.arrays:
                continue
            symbol = sp.Symbol(name + "#j" * self.indexed)
            replaced = [x._replace(right=self._replaced(x.right, value, symbol)) for x in rest]
            read = [symbol in x.right.free_symbols for x in replaced]
            if sum(read) > 1:
                named[value] = symbol
                self.arrays[name] = Array(name, (2,), tex=tex)
                rest = [b if is_in else a for a, b, is_in in zip(rest, replaced, read, strict=True)]
        yield first, step
        yield "what stands in several lines", [Line(s, value) for value, s in named.items()]
        left = iter(rest)
        yield from ((title, [*itertools.islice(left, len(lines))]) for title, lines in others)

    def _replaced(self, right: Any, value: Any, symbol: Any) -> Any:
        """An expression with a name for a value: of a factor of a term, or of a part of it."""
        terms = (term.args_cnc(split_1=False) for term in sp.Add.make_args(right))
        pairs = [(sp.Mul(*factors), sp.Mul(*rest)) for factors, rest in terms]
        named = lambda c: symbol if c == value else c.subs(value, symbol)
        return sp.Add(*(named(factor) * rest for factor, rest in pairs))

    def _array_of(self, symbol: Any) -> Array:
        return self.arrays[base(symbol)]

    def _factors(self, step: Sequence[Line], lines: Sequence[Line]) -> dict[Any, tuple[str, ...]]:
        """What may get a name: entries of D and F, which traces and data are multiplied with in the traces, and the
        derivatives of what the step computes by what it is computed from."""
        found: dict[Any, tuple[str, ...]] = {}
        for line in lines:
            to = self._array_of(line.left)
            is_trace = to.kind == "carried" and to.tex[2:]
            for term in sp.Add.make_args(line.right) if is_trace else ():
                parts: Any = term.args_cnc(split_1=False)
                factors, rest = parts
                if len(rest) == 1 and rest[0].is_Symbol:
                    of = self._array_of(rest[0])
                    by = of.tex[1] + "'" * of.text.endswith("'") if of.tex[2:] else to.tex[-1]
                    tex = "D" if of.tex[2:] else "F", to.tex[1], by
                    found.setdefault(sp.Mul(*factors), tex)
        for line in (x for x in step if "[" not in str(x.left)):
            for s in sorted(line.right.free_symbols, key=str):
                slope = sp.diff(line.right, s) if s.is_commutative else sp.Integer(0)
                found.setdefault(slope, ("d", base(line.left), base(s)))
        return found

    def _functions(self, sections: dict[str, list[Line]]) -> Iterator[Line]:
        """The functions that the model defines, as far as they are used."""
        own = self.rule.step.nodes.own.values()
        used = functions_of(line.right for lines in sections.values() for line in lines)
        used |= functions_of(v for several in own for name, _, v in several if name in used)
        for several in own:
            for name, arguments, value in several:
                note = "" if name == several[0][0] else f"{name}{SLOPE}{several[0][0]}"
                if name in used:
                    yield Line(sp.Function(name)(*arguments), value, note)

    # --- indices ---

    def _letters(self) -> dict[Array, str]:
        """The indices of arrays: k of readouts and what follows them, i of inputs, and j of all others."""
        rule, products = self.rule, self.rule.step.products
        readers, views = dict[Array, set[Array]](), rule.derivatives.views
        for equation in rule.sections[0][2]:
            values = [sp.sympify(equation.shown or 0), *(t.value for t in equation.terms)]
            for symbol in views.keys() & {s for value in values for s in value.free_symbols}:
                readers.setdefault(views[symbol][0], set()).add(equation.target)
        for old, new in rule.derivatives.states:
            readers.setdefault(new, set()).add(old)

        def behind(first: Sequence[Array]) -> set[Array]:
            found, waiting = set[Array](), {*first}
            while waiting:
                found |= waiting
                waiting = {r for a in waiting for r in readers.get(a, ())} - found
            return found

        reach = {op: behind(product.output) for op, product in products.items()}
        enters = lambda op, other: reach[op] & {*products[other].data}
        last = [o for o in products if not any(enters(o, p) for p in products)]
        last = [o for o in last if any(enters(p, o) for p in products)]
        letter = {a: "i" for parts in rule.step.inputs for a in parts}
        letter |= {a: "k" for op in last for a in reach[op]}
        letter |= {a: "kj" for a in rule.step.values if len(a.shape) == 2}
        for op in last:
            weights = {times.weight for times in products[op].terms}
            letter |= {a: "kj" for w in weights for a in (w, rule.gradient.get(w, w))}
        for array, call in rule.step.calls.items():
            of = [rule.step.nodes.elements(ids)[0] for ids in call.arguments]
            if any(letter.get(a) == "kj" for a in of):
                letter |= dict.fromkeys(behind([array]), "k")
        for node, trace in rule.traces.items():
            pair = "kj" if node.op in last else "ji"
            is_shared = products[node.op].data and trace.meaning.shared is not None
            for array in (a for pairs in trace.arrays.items() for a in pairs):
                letter[array] = (
                    pair if len(array.shape) == 2 else pair[bool(is_shared) or array.tex[0] == "X"]
                )
        letter |= {a: "k" for y, a in rule.derivatives.loss.items() if letter.get(y) == "k"}
        letter |= {c: letter[a] for c, a in rule.derivatives.credit_of.items() if a in letter}
        return letter

    def _indices(self, array: Array) -> str:
        """The indices of an array, after a sign."""
        letters = self.letter.get(array, "ji" if len(array.shape) == 2 else "j")
        return "#" + letters[: len(array.shape)] if self.indexed and array.size > 1 else ""

    def _sum_over(self, product: Any, indices: str) -> Any:
        """A product of whole arrays as a sum over an index."""
        views, (left, right) = self.rule.derivatives.views, product.args
        arrays = [next(views[s][0] for s in a.free_symbols if s in views) for a in (left, right)]
        shown = lambda value, letters: self._shown(value, f"#{letters}")
        if [len(a.shape) for a in arrays] == [2, 1]:
            over = "j" if self.letter.get(arrays[0]) == "kj" else "i"
            value = shown(left, indices[1:] + over) * shown(right, over)
        elif [len(a.shape) for a in arrays] == [1, 2]:
            over = "k" if self.letter.get(arrays[1]) == "kj" else "l"
            value = shown(left, over) * shown(right, over + indices[1:])
        else:
            raise NotIndexed
        return sp.Function(f"sum_{over}", real=True)(value)

    # --- what is left out ---

    def _left_out(self) -> list[str]:
        """Each path that is cut, once, with the weights that it is left out of."""
        rule, path = self.rule, self.path
        ops = [op for op in rule.analysis.ops if path is None or path in op.path.split(", ")]
        untraced = {*rule.analysis.live} - {op for node in rule.traces for op in node.ops}
        untraced = untraced if rule.derivatives.through else set()
        pairs = [("what was before a window", op.path) for op in ops if op in untraced]
        every = ((op, rule.analysis.reach[op.number].escapes) for op in ops if op not in untraced)
        pairs += [(str(e), op.path) for op, escapes in every for e in escapes]
        forms = {node.op.path: node.form.left_out for node in rule.program.traces}
        pairs += [(text, p) for p, text in forms.items() if text and path in (None, p)]
        return each_once(pairs)
