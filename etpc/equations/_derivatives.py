"""A step in symbols: its equations, its Jacobians, and the credit of what it computes."""

import dataclasses
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sympy as sp

from ..analyse import WeightOp
from ..ir import TraceProgram
from ._functions import dot
from ._names import is_close
from ._nodes import ACROSS, HERE, STORED, WHOLE, Array, Ids
from ._products import Grid, Product, Times
from ._step import Step

State = tuple[Array, Array]
"""What is carried, before and after the step."""


class Term(NamedTuple):
    """A summand of some elements of an array."""

    value: Any
    """An expression of views."""
    where: np.ndarray | None = None
    """The place of each value, added up where several have one; `None` for all places in order."""


@dataclasses.dataclass(eq=False)
class Equation:
    """An array, or a part of one, as a sum of terms."""

    target: Array
    terms: list[Term]
    note: str = ""
    shown: Any = None
    """What it is shown as, where that is shorter: a function of whole arrays."""


class Block(NamedTuple):
    """Entries of a Jacobian: the derivative of elements `rows` by elements `cols` of one array."""

    rows: np.ndarray
    cols: np.ndarray
    value: Any


Jacobian = dict[Array, list[Block]]


class Derivatives:
    """The equations of a step and its derivatives; credit that is asked for is added to `credits`."""

    def __init__(self, program: TraceProgram, names: Mapping[float, str]):
        self.through = program.window.credit == "window"
        """Whether credit passes back from step to step, with nothing cut."""
        self.analysis, self.step = program.analysis, Step(program.analysis, names)
        self.nodes, hidden = self.step.nodes, self.step.hidden
        self.of_eprop = program.algorithm.name == "e_prop" and not self.through
        self.views: dict[Any, tuple[Array, np.ndarray]] = {}
        """The array of each symbol, and the places in it."""
        self._known: dict[Any, Any] = {}
        self.states: list[State] = [p for state in hidden for p in zip(*state, strict=True)]
        for place in program.paths.credited:
            for old, new in zip(*hidden[place], strict=True):
                new.kind = "transient" if old.kind == "given" else "state"
        self.loss = {
            a: self.array(f"dl_d{a.name}", a.shape, "dl", a.text)
            for v, parts in zip(self.analysis.split.outputs, self.step.outputs_of, strict=True)
            for a in parts
            if v.is_float
        }
        self.credits: list[Equation] = []
        self.credit_of: dict[Array, Array] = {}
        """What an array is the credit of."""
        self.passed: dict[Array, State] = {}
        """The credit of an old state, which a window passes on to the step before, and that which the next step passes
        on to this one."""
        self.signals: dict[Array, Array | None] = {}
        if self.through:
            self._pass_back()
        else:
            self.signals = {old: self.credit(new) for old, new in self.states}

    def array(self, text: str, shape: tuple[int, ...], *tex: str) -> Array:
        return self.nodes.array(self.nodes.name(text), shape, kind="given", tex=tex)

    def constant(self, text: str, values: np.ndarray) -> Array:
        array = self.array(text, values.shape)
        self.step.values[array] = values.astype(float)
        return array

    def number(self, value: float) -> Any:
        """A number of a rule, by the name that the caller has for it; of e-prop it is kappa."""
        if value % 1 == 0:
            return sp.Integer(int(value))
        found = [n for given, n in self.step.names.items() if is_close(given, value)]
        text = next(iter(found), "kappa" if self.of_eprop else "")
        return self.nodes.constant(text, value) if text else sp.Float(value)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    # --- expressions ---

    def view(self, array: Array, at: np.ndarray | None = None) -> Any:
        """A symbol for elements of an array, all by default."""
        at = np.arange(array.size).reshape(array.shape) if at is None else at
        if array.kind == "source" and array.nodes is not None:
            array, at = self.nodes.elements(array.nodes[at])
        key = array, at.shape, at.tobytes()
        if key not in self._known:
            self._known[key] = sp.Symbol(f"{array.name}~{len(self.views):06d}", real=True)
            self.views[self._known[key]] = array, at
        return self._known[key]

    def symbols(self, value: Any) -> list[Any]:
        return sorted((s for s in value.free_symbols if s in self.views), key=str)

    def at(self, value: Any, entries: np.ndarray) -> Any:
        """An expression, at some of its entries."""
        take = lambda array, at: self.view(array, at.reshape(-1)[entries])
        return value.xreplace({s: take(*self.views[s]) for s in self.symbols(value)})

    def _template(self, value: Any, touched: np.ndarray) -> Any:
        """An expression of elements that one node depends on, for all nodes of a family."""
        found: dict[Any, Any] = {}
        for elements in touched.T:
            array, place = self.nodes.elements(elements)
            found[self.nodes.expression(int(elements[0]))] = self.view(array, place)
        return value.xreplace(found)

    def term(self, array: Array, value: Any, at: np.ndarray | None) -> Term:
        """Values for elements of an array: for all of them, in its shape, where they are that."""
        in_shape = np.arange(array.size).reshape(array.shape)
        if at is None or np.array_equal(at, in_shape):
            return Term(value)
        is_whole = np.array_equal(at.reshape(-1), np.arange(array.size)) and not value.has(dot)
        return Term(self.at(value, in_shape)) if is_whole else Term(value, at)

    def added(self, array: Array, value: Any, at: np.ndarray) -> Term:
        """Values that are added up in elements of an array; of a whole matrix times a vector, times a factor of each
        element, as their product."""
        for symbol in self.symbols(value):
            matrix, places = self.views[symbol]
            order, rest = np.argsort(places.reshape(-1)), value / symbol
            is_whole = np.array_equal(places.reshape(-1)[order], np.arange(matrix.size))
            for over in range(2 if len(matrix.shape) == 2 and is_whole else 0):
                entries = order.reshape(matrix.shape)
                to = np.expand_dims(np.arange(array.size), over)
                if to.size != entries.shape[1 - over] or (at.reshape(-1)[entries] != to).any():
                    continue
                vector, factor = self._along(rest, entries, over)
                if vector.free_symbols and factor != 0 and not rest.has(symbol):
                    factors = self.view(matrix), self.at(vector, np.take(entries, 0, 1 - over))
                    product = dot(*factors[:: 1 if over else -1])
                    return Term(product * self.at(factor, np.take(entries, 0, over)))
        return self.term(array, value, at)

    def _along(self, value: Any, entries: np.ndarray, axis: int) -> tuple[Any, Any]:
        """The factors that vary along an axis of entries alone, and those that do not; zero where some do otherwise."""
        along, across = sp.Integer(1), sp.Integer(1)
        varies = lambda at, axis: (at != np.take(at, [0], axis)).any()
        for factor in sp.Mul.make_args(value):
            views = [self.views[s][1].reshape(-1)[entries] for s in self.symbols(factor)]
            if views and not any(varies(at, 1 - axis) for at in views):
                along *= factor
            elif any(varies(at, axis) for at in views):
                return along, sp.Integer(0)
            else:
                across *= factor
        return along, across

    # --- the step ---

    def equation_of(self, array: Array, places: np.ndarray | None) -> Equation:
        """What the step computes an array, or some of its elements, as."""
        if array.nodes is not None:
            nodes = array.nodes if places is None else array.nodes[places]
            to = lambda where: where if places is None else places[where]
            return Equation(array, [self.term(array, a, to(at)) for at, a in self._families(nodes)])
        call, terms, apply = self.step.calls.get(array), list[Term](), self.nodes.apply
        for sums in array.sums:
            right = apply("stop_gradient", sums.right) if self._holds(array) else sums.right
            for at, value in self._families(apply("mul", sums.left, right)):
                terms.append(self.added(array, sums.sign * value, sums.rows[at]))
        if call is None or (call.is_known and any(term.value.has(dot) for term in terms)):
            return Equation(array, terms)
        given = [self.view(*self.nodes.elements(ids.reshape(-1))) for ids in call.arguments]
        return Equation(array, terms, shown=sp.Function(call.name, real=True)(*given))

    def _families(self, nodes: Ids) -> Iterator[tuple[np.ndarray, Any]]:
        for where, touched in self.nodes.families(nodes):
            yield where, self._template(self.nodes.expression(int(nodes[where[0]])), touched)

    def _holds(self, array: Array) -> bool:
        """Whether an array is a product whose data is held constant, and depends on states or operations."""
        held = (p.op.number for p in self.step.products.values() if p.held and array in p.output)
        return not self.through and any(self.analysis.reach[n].dependence.anything for n in held)

    def data(self, times: Times, grid: Grid) -> Any:
        """What a weight is multiplied with, for some uses."""
        return sp.Integer(1) if times.data is None else self.view(times.data, times.at[grid.cols])

    # --- Jacobians and credit ---

    def jacobian(self, nodes: Ids, reach: int) -> Jacobian:
        """The derivative of some nodes by elements of arrays."""
        return self.once((nodes.tobytes(), reach), lambda: self._jacobian(nodes, reach))

    def _jacobian(self, nodes: Ids, reach: int) -> Jacobian:
        found: dict[Array, dict[Any, list[Block]]] = {}
        for where, touched in self.nodes.families(nodes, reach):
            first = touched[0].tolist()
            for source, value in self.nodes.partials(int(nodes[where[0]]), reach).items():
                array, cols = self.nodes.elements(touched[:, first.index(source)])
                for addend in sp.Add.make_args(value):
                    block = Block(where, cols, self._template(addend, touched))
                    names = enumerate(self.symbols(block.value))
                    form = {s: sp.Symbol(f"{self.views[s][0].name}~{n}") for n, s in names}
                    of_form = found.setdefault(array, {}).setdefault(block.value.xreplace(form), [])
                    of_form.append(block)
        return {a: [*map(self._merged, forms.values())] for a, forms in found.items()}

    def _merged(self, blocks: Sequence[Block]) -> Block:
        """Blocks that differ in their elements alone as one, with its entries in rows and columns."""
        rows, cols = (np.concatenate([getattr(b, n) for b in blocks]) for n in ("rows", "cols"))
        order, value = np.lexsort((cols, rows)), blocks[0].value
        alike = zip(*(self.symbols(b.value) for b in blocks), strict=True)
        whole: dict[Any, Any] = {}
        for symbols in alike:
            at = np.concatenate([self.views[s][1] for s in symbols])
            whole[symbols[0]] = self.view(self.views[symbols[0]][0], at[order])
        return Block(rows[order], cols[order], value.xreplace(whole))

    def matrix(self, letter: str, new: Array, source: Array) -> Generator[Equation, None, Array]:
        """All of a Jacobian, by a name."""
        key = letter, new, source
        if key not in self._known:
            tex = letter, new.text.replace("'", ""), self._text(source)
            array = self._known[key] = self.array("_".join(tex), (new.size, source.size), *tex)
            blocks = self.jacobian(new.values, WHOLE).get(source, [])
            terms = [self.term(array, b.value, b.rows * source.size + b.cols) for b in blocks]
            yield Equation(array, terms)
        return self._known[key]

    def credit(self, of: Array, *reaches: int) -> Array | None:
        """The derivative of the loss of a step by an array.

        Paths end at new states. Past data that the rule holds constant, all count (`ACROSS`). Of what that data is, old
        states count where it is read in full (`HERE`), and elsewhere nothing is a new state but what the step stores
        (`STORED`).
        """
        reaches = reaches or ((HERE,) if of in dict(self.states) else (HERE, STORED))
        return self.once((of, reaches), lambda: self._credit(of, reaches))

    def _credit(self, of: Array, reaches: tuple[int, ...]) -> Array | None:
        return self._sum(of, self._paths(of, reaches), "c" if reaches == (ACROSS,) else "L")

    def _paths(self, of: Array, reaches: tuple[int, ...]) -> list[Term]:
        terms = list[Term]()
        differ = any(new.kind == "transient" for _, new in self.states)
        for passed in [(reach,) for reach in reaches] if differ else [reaches]:
            jacobian = lambda array, reach=passed[0]: self.jacobian(array.ids, reach)
            for output, given in self.loss.items() if passed != (STORED,) else ():
                terms += self.back(jacobian(output), of, given)
            for product in self.step.products.values():
                for data in product.data:
                    read = self._read(product, data, passed)
                    if of in jacobian(data) and read.any():
                        given = self._of_data(product, data, (ACROSS,) if product.held else passed)
                        terms += self.back(jacobian(data), of, given, read)
        return terms

    def _read(self, product: Product, data: Array, reaches: tuple[int, ...]) -> np.ndarray:
        """The elements of data through which credit passes so."""
        found, full = np.zeros(data.size, bool), self.analysis.in_full.get(product.op.number)
        if not product.held or reaches not in ((HERE,), (STORED,)):
            return ~found
        for times in product.terms:
            if times.data is data and full is not None:
                found[times.at[full.elements.reshape(-1)]] = True
        return found if reaches == (HERE,) else ~found

    def _of_data(self, product: Product, data: Array, reaches: tuple[int, ...]) -> Array | None:
        """The credit of the data of a product, from that of its output."""
        terms: list[Term] = []
        grid = product.grid
        for part, sign, weight, x, at in product.terms:
            given = self.credit(product.output[part], *reaches) if x is data else None
            if given is not None:
                value = sign * self.view(weight, grid.weights) * self.view(given, grid.rows)
                terms.append(self.added(data, value, at[grid.cols]))
        return self._sum(data, terms, "c")

    def back(
        self, jacobian: Jacobian, of: Array, credit: Array | None, read: np.ndarray | None = None
    ) -> list[Term]:
        """The transpose of a Jacobian on credit; of the rows that are read, if these are said."""
        sums: dict[Any, list[Block]] = {}
        if credit is None:
            return []
        for block in jacobian.get(of, ()):
            if read is not None and not read[block.rows].all():
                at = np.flatnonzero(read[block.rows])
                block = Block(block.rows[at], block.cols[at], self.at(block.value, at))
            if block.rows.size:
                sums.setdefault((block.rows.tobytes(), block.cols.tobytes()), []).append(block)
        terms = list[Term]()
        for blocks in sums.values():
            value = sp.factor_terms(sum(b.value for b in blocks))
            value *= self.view(credit, blocks[0].rows)
            terms.append(self.added(of, value, blocks[0].cols))
        return terms

    def _text(self, array: Array) -> str:
        """The name of an array; of a weight as one operation uses it, that of the weight."""
        return array.text or self.nodes.elements(array.values)[0].text

    def _sum(self, of: Array, terms: list[Term], letter: str) -> Array | None:
        """An array with a name for a sum, which is added to the equations; the one that is it already."""
        if not terms:
            return None
        text = self._text(of).replace("'", "")
        key = of, *((t.value, None if t.where is None else t.where.tobytes()) for t in terms)
        array, at = self.views.get(terms[0].value, (of, np.zeros(0)))
        is_credit = array in self.credit_of or array in self.loss.values()
        is_alone = len(terms) == 1 and terms[0].where is None and at.size == of.size
        if is_credit and is_alone and np.array_equal(at, array.ids - array.first):
            credited = self.credit_of.get(array)
            if credited is of or (letter == "L" and credited and array.tex[0] == "c"):
                self.nodes.rename(array, letter, text)
            return array
        if key not in self._known:
            self._known[key] = self.array(f"{letter}_{text}", (of.size,), letter, text)
            self.credits.append(Equation(self._known[key], terms))
            self.credit_of[self._known[key]] = of
        return self._known[key]

    def into(self, of: Array, letter: str, more: Sequence[Term] = ()) -> Array | None:
        """`F^T`, or `D^T`, on the learning signals."""
        terms = [*more]
        for old, new in self.states:
            terms += self.back(self.jacobian(new.values, WHOLE), of, self.signals[old])
        return self._sum(of, terms, letter)

    def _pass_back(self) -> None:
        """What the next step passes back is one more derivative of the loss of a step, by new states."""
        data = (x for product in self.step.products.values() for x in product.data)
        given = (*self.loss, *(new for _, new in self.states), *data)
        read = {a for of in given for a in self.jacobian(of.ids, ACROSS)}
        for old, new in (state for state in self.states if state[0] in read):
            before = self.array(f"P_{old.name}", (old.size,), "P", old.text)
            self.passed[old] = before, self.nodes.after(before, kind="given")
            self.loss[new] = self.passed[old][1]
        for old, (before, _) in self.passed.items():
            self.credits.append(Equation(before, self._paths(old, (ACROSS,))))

    def at_start(self, old: Array) -> Array | None:
        """The credit of an old state: `D^T` on the learning signals, and what passes the new states by."""
        if self.through:
            return self.passed[old][0] if old in self.passed else None
        past = self.credit(old)
        return self.into(old, "P", () if past is None else [Term(self.view(past))])

    def sources(self, op: WeightOp) -> Sequence[Array]:
        """What F is the derivative by: the parts of the output of an operation, or the weight as it uses it."""
        return self.step.products[op].output

    def weights(self, op: WeightOp) -> list[Array]:
        """The parts of a weight."""
        return [self.nodes.elements(ids)[0] for ids in self.step.value(op.weight)]
