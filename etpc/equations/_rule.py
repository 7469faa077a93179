"""A learning rule on a step: its equations, in order."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import sympy as sp

from ..analyse import WeightOp
from ..errors import UnsupportedError
from ..forms import Defined, Line, Meaning
from ..ir import AtEnd, Carried, Direct, Steps, Through, TraceNode, TraceProgram
from ..ir import Product as GradientTerm
from ._functions import dot
from ._nodes import ACROSS, HERE, STORED, WHOLE, Array, Ids, Sums
from ._products import Grid, Product
from ._step import Step

State = tuple[Array, Array]
"""What is carried, before and after the step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Entries of a Jacobian: the derivative of elements `rows` by elements `cols` of one array."""

    rows: np.ndarray
    cols: np.ndarray
    value: Any


Jacobian = dict[Array, list[Block]]
Feed = tuple[WeightOp, Array, int, tuple[Array, np.ndarray] | None]
"""What enters a trace: the operation and the array that F is the derivative by, a sign, and data with its places."""
PAIRS = Line("f", "outputs", moved=1.0), Line("f", "outputs")
"""The second factors of a trace of a rank: those that are moved, and those that each step adds."""


Entries = tuple[list[Block], np.ndarray, Callable[[Grid], Any]]
"""Entries of a Jacobian, the column of each output, and what they are multiplied with."""


class Rule:
    """The equations of a trace program."""

    def __init__(self, program: TraceProgram):
        self.meaning = _meanings(program)
        self.program, self.analysis = program, program.analysis
        self.step = Step(program.analysis)
        self.nodes, hidden = self.step.nodes, self.step.hidden
        self.views: dict[Any, tuple[Array, np.ndarray]] = {}
        """The array of each symbol, and the places in it."""
        self._known: dict[Any, Any] = {}
        self.carried: dict[Array, Array] = {}
        """The arrays that are carried beside the state, before and after the step."""
        self.gradient: dict[Array, Array] = {}
        self.states: list[State] = [p for state in hidden for p in zip(*state, strict=True)]
        for place in program.paths.credited:
            for old, new in zip(*hidden[place], strict=True):
                new.kind = "transient" if old.kind == "given" else "state"
        self.loss = {
            a: self._array(f"dl_d{a.name}", a.shape)
            for v, parts in zip(self.analysis.split.outputs, self.step.outputs_of, strict=True)
            for a in parts
            if v.is_float
        }
        self.credits: list[Equation] = []
        self.signals = {old: self.credit(new) for old, new in self.states}
        traces = [(node, [*self._trace(node)]) for node in program.traces]
        gradients = {op: [*self._gradient(op)] for op in self.analysis.ops}
        step = [e for c in (*self.step.once, *self.step.computed) for e in self._of(*c)]
        self.sections: list[tuple[str, str | None, list[Equation]]] = [
            (f"the step, as {program.algorithm} takes it", None, step),
            ("the learning signals and other credit", None, self.credits),
        ]
        """Titles, the paths of the weights that they are about, and equations."""
        for node, equations in traces:
            paths = ", ".join(dict.fromkeys(op.path for op in node.ops))
            by = dict.fromkeys(c.by for c in program.changes if c.path in paths.split(", "))
            title = f"the trace of {paths}: {', '.join((node.form.held, *by))}"
            self.sections.append((title, paths, equations))
        for op, equations in gradients.items():
            self.sections.append(("the gradient of a step", op.path, equations))
        leaves = zip(self.step.parameters, program.analysis.step.model_leaves.paths, strict=True)
        path_of = {array: path for parts, path in leaves for array in parts}
        for parameter, equation in self._pulled_back():
            self.sections.append(("the gradient of a step", path_of[parameter], [equation]))

    def _array(self, text: str, shape: tuple[int, ...], shown: str = "") -> Array:
        return self.nodes.array(self.nodes.name(text), shape, kind="given", shown=shown)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    # --- expressions ---

    def view(self, array: Array, at: np.ndarray | None = None) -> Any:
        """A symbol for elements of an array, all by default."""
        at = np.arange(array.size).reshape(array.shape) if at is None else at
        if array.of is not None:
            array, at = self.nodes.elements(array.of[at])
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

    def _term(self, array: Array, value: Any, at: np.ndarray) -> Term:
        """Values for elements of an array: for all of them, in its shape, where they are that."""
        in_shape = np.arange(array.size).reshape(array.shape)
        if np.array_equal(at, in_shape):
            return Term(value)
        is_whole = np.array_equal(at.reshape(-1), np.arange(array.size)) and not value.has(dot)
        return Term(self.at(value, in_shape)) if is_whole else Term(value, at)

    # --- the step ---

    def _of(self, array: Array, places: np.ndarray | None) -> Iterator[Equation]:
        """What the step computes an array, or some of its elements, as."""
        if array.nodes is not None:
            nodes = array.nodes if places is None else array.nodes[places]
            pairs = [*self._families(nodes)]
            to = lambda where: where if places is None else places[where]
            yield Equation(array, [self._term(array, value, to(where)) for where, value in pairs])
            return
        for product in self.step.products.values():
            if array in product.output:
                part = product.output.index(array)
                terms = [self._times(product, *t[1:]) for t in product.terms if t[0] == part]
                yield Equation(array, terms)
                return
        terms = [term for sums in array.sums for term in self._sums(array, sums)]
        call = self.step.calls[array]
        given = [self.view(*self.nodes.elements(ids.reshape(-1))) for ids in call.arguments]
        yield Equation(array, terms, shown=sp.Function(call.name, real=True)(*given))

    def _families(self, nodes: Ids) -> Iterator[tuple[np.ndarray, Any]]:
        for family in self.nodes.families(nodes):
            value = self.nodes.expression(int(nodes[family.where[0]]))
            yield family.where, self._template(value, family.touched)

    def _sums(self, array: Array, sums: Sums) -> Iterator[Term]:
        for where, value in self._families(self.nodes.apply("mul", sums.left, sums.right)):
            yield self._term(array, value, sums.rows[where])

    def _times(self, product: Product, sign: int, weight: Array, data: Ids) -> Term:
        """A weight times its data."""
        (x, at), grid = self.nodes.elements(data), product.grid
        reads = self.analysis.reach[product.op.number].reads
        stops = product.held and bool(reads.states.any() or reads.ops.any())
        stop = self.nodes.defined["stop_gradient"] if stops else lambda a: a
        to = product.output[0].size, grid.rows
        return self._weighted(grid, weight, (x, at[grid.cols]), to, sign, stop)

    def _weighted(
        self,
        grid: Grid,
        weight: Array,
        given: tuple[Array, np.ndarray],
        to: tuple[int, np.ndarray],
        sign: int,
        stop: Callable[[Any], Any] = lambda a: a,
    ) -> Term:
        """Elements of an array, each times one of a weight, added up: a product of whole arrays where it is that."""
        (x, at), (size, rows) = given, to
        for axis in range(2 if len(grid.shape) == 2 else 0):
            line, whole = np.take(at, 0, axis), np.expand_dims(np.arange(size), 1 - axis)
            along = rows.shape[axis] == size and (rows == whole).all()
            if along and (at == np.expand_dims(line, axis)).all():
                factors = self.view(weight), stop(self.view(x, line))
                return Term(sign * dot(*factors[:: -1 if axis else 1]))
        return Term(sign * self.view(weight, grid.weights) * stop(self.view(x, at)), rows)

    # --- Jacobians and credit ---

    def jacobian(self, nodes: Ids, reach: int) -> Jacobian:
        """The derivative of some nodes by elements of arrays."""
        return self.once((nodes.tobytes(), reach), lambda: self._jacobian(nodes, reach))

    def _jacobian(self, nodes: Ids, reach: int) -> Jacobian:
        found: dict[Array, dict[Any, list[Block]]] = {}
        for family in self.nodes.families(nodes, reach):
            first = family.touched[0].tolist()
            partials = self.nodes.partials(int(nodes[family.where[0]]), reach)
            for source, value in partials.items():
                array, cols = self.nodes.elements(family.touched[:, first.index(source)])
                for addend in sp.Add.make_args(value):
                    block = Block(family.where, cols, self._template(addend, family.touched))
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

    def credit(self, of: Array, *reaches: int) -> Array | None:
        """The derivative of the loss of a step by an array.

        Paths end at new states. Past data that the rule holds constant, all count (`ACROSS`). Into that data old states
        count where it is read in full (`HERE`), and what the step does not store is no new state where it is not
        (`STORED`).
        """
        if not reaches:
            is_of_read = any(
                of is old or (of is new and new.kind == "transient") for old, new in self.states
            )
            reaches = (HERE,) if is_of_read else (HERE, STORED)
        return self.once((of, reaches), lambda: self._credit(of, reaches))

    def _credit(self, of: Array, reaches: tuple[int, ...]) -> Array | None:
        terms = list[Term]()
        apart = any(new.kind == "transient" for _, new in self.states)
        for reach in reaches if apart else reaches[:1]:
            passing = (reach,) if apart else reaches
            for output, given in self.loss.items() if reach != STORED else ():
                terms += self._back(self.jacobian(output.ids, reach), of, given)
            for product in self.step.products.values():
                for data in product.data(self.nodes):
                    jacobian, read = (
                        self.jacobian(data.ids, reach),
                        self._read(product, data, passing),
                    )
                    if of in jacobian and read.any():
                        given = self._of_data(product, data, (ACROSS,) if product.held else passing)
                        terms += [] if given is None else self._back(jacobian, of, given, read)
        return self._sum(of, terms, "c" if reaches == (ACROSS,) else "L")

    def _read(self, product: Product, data: Array, reaches: tuple[int, ...]) -> np.ndarray:
        """Which elements of data credit passes through so."""
        full = self.analysis.in_full.get(product.op.number)
        if not product.held or reaches in ((ACROSS,), (HERE, STORED)):
            return np.ones(data.size, bool)
        found = np.zeros(data.size, bool)
        for *_, ids in product.terms if full is not None else ():
            array, at = self.nodes.elements(ids)
            if array is data:
                found[at[full.elements.reshape(-1)]] = True
        return found if reaches == (HERE,) else ~found

    def _of_data(self, product: Product, data: Array, reaches: tuple[int, ...]) -> Array | None:
        """The credit of the data of a product, from that of its output."""
        terms: list[Term] = []
        for part, sign, weight, ids in product.terms:
            (array, at), grid = self.nodes.elements(ids), product.grid
            given = self.credit(product.output[part], *reaches) if array is data else None
            if given is not None:
                to = data.size, at[grid.cols]
                terms.append(self._weighted(grid, weight, (given, grid.rows), to, sign))
        return self._sum(data, terms, "c")

    def _back(
        self, jacobian: Jacobian, of: Array, credit: Array, rows: np.ndarray | None = None
    ) -> list[Term]:
        """The transpose of a Jacobian, or of some of its rows, on credit."""
        sums: dict[Any, list[Block]] = {}
        for block in jacobian.get(of, ()):
            used = np.arange(block.rows.size) if rows is None else np.flatnonzero(rows[block.rows])
            if used.size < block.rows.size:
                block = Block(block.rows[used], block.cols[used], self.at(block.value, used))
            if not used.size:
                continue
            sums.setdefault((block.rows.tobytes(), block.cols.tobytes()), []).append(block)
        total = lambda blocks: sp.factor_terms(sum(b.value for b in blocks))
        return [
            self._term(of, total(alike) * self.view(credit, alike[0].rows), alike[0].cols)
            for alike in sums.values()
        ]

    def _sum(self, of: Array, terms: list[Term], letter: str) -> Array | None:
        """An array with a name for a sum, which is added to the equations; the one that has it already."""
        if not terms:
            return None
        key = of, *((t.value, None if t.where is None else t.where.tobytes()) for t in terms)
        if key not in self._known:
            text = (of.text or self.nodes.elements(of.values)[0].text).replace("'", "")
            self._known[key] = self._array(f"{letter}_{text}", (of.size,))
            self.credits.append(Equation(self._known[key], terms))
        return self._known[key]

    def _into(self, of: Array, letter: str, more: Sequence[Term] = ()) -> Array | None:
        """`F^T`, or `D^T`, on the learning signals."""
        terms = [*more]
        for old, new in self.states:
            signal = self.signals[old]
            if signal is not None:
                terms += self._back(self.jacobian(new.values, WHOLE), of, signal)
        return self._sum(of, terms, letter)

    def _at_start(self, old: Array) -> Array | None:
        """The credit of an old state: `D^T` on the learning signals, and what passes the new states by."""
        past = self.credit(old)
        return self._into(old, "P", () if past is None else [Term(self.view(past))])

    # --- what a trace is of ---

    def sources(self, op: WeightOp) -> Sequence[Array]:
        """What F is the derivative by: the parts of the output of an operation, or the weight as it uses it."""
        product = self.step.products.get(op)
        return self.step.uses[op] if product is None else product.output

    def weights(self, op: WeightOp) -> list[Array]:
        """The parts of a weight."""
        return [self.nodes.elements(ids)[0] for ids in self.step.value(op.weight)]

    def grid(self, op: WeightOp) -> Grid:
        product = self.step.products.get(op)
        return Grid.elements(op.size) if product is None else product.grid

    def slots(self, node: TraceNode) -> dict[Array, np.ndarray] | None:
        """For each state of a trace, which element an output has a lasting influence on, or -1; `None` where it has one
        on several. Then a trace has all elements of each state."""
        blocks, slots = node.blocks, dict[Array, np.ndarray]()
        outputs = np.repeat(np.arange(node.op.size), np.diff(blocks.indptr))
        for (old, _), first in zip(self.states, self._offsets, strict=False):
            here = (blocks.indices >= first) & (blocks.indices < first + old.size)
            slots[old] = np.full(node.op.size, -1)
            slots[old][outputs[here]] = blocks.indices[here] - first
            if np.unique(outputs[here]).size < here.sum():
                return None
        return slots

    @property
    def _offsets(self) -> np.ndarray:
        return np.cumsum([0, *(old.size for old, _ in self.states)])

    def states_of(self, node: TraceNode) -> list[State]:
        """The states that a trace holds."""
        number = np.searchsorted(self._offsets, np.unique(node.blocks.indices), side="right") - 1
        return [self.states[n] for n in np.unique(number)]

    def _carry(
        self,
        node: TraceNode,
        line: Line,
        key: Any,
        text: str,
        shape: tuple[int, ...],
        old: Array | None = None,
    ) -> State:
        """An array that is carried for a trace, before and after the step; of a transient state only what is kept is."""
        key, kind = (node, line.name, key), "given" if line.of == "steps" else "carried"
        if key not in self._known:
            before = self.nodes.array(self.nodes.name(text), shape, kind=kind)
            after = self.nodes.array(
                self.nodes.name(before.name + "_new"), shape, kind=kind, shown=before.name + "'"
            )
            self._known[key] = before, after
            if old is None or old.kind != "given" or line.kept:
                self.carried[before] = after
        return self._known[key]

    def trace(self, node: TraceNode, line: Line, slot: int, part: int, old: Array) -> State:
        """The influence of a part of a weight on a state."""
        op = node.feeds[0].ops[slot]
        shape = self.held(node, op)[0].shape
        shape = shape if self.slots(node) is not None else (old.size, *shape)
        text = f"{line.name}_{old.name}_{self.weights(op)[part].name}"
        return self._carry(node, line, (slot, part, old), text, shape, old)

    def factor(self, node: TraceNode, line: Line, to: int, old: Array, more: str = "") -> State:
        """The influence of a part of the output on a state."""
        size = self.sources(node.op)[to].size
        shape = (size,) if self.slots(node) is not None else (old.size, size)
        text = (
            f"{line.name}_{old.name}_{self.weights(node.op)[0].name}" + ("_im" if to else "") + more
        )
        return self._carry(node, line, (to, old, more), text, shape, old)

    def data(self, node: TraceNode, line: Line, op: WeightOp, x: Array) -> State:
        """What is carried of data."""
        text, size = f"{line.name}_{self.weights(op)[0].name}", op.kind.groups * op.kind.inputs
        return self._carry(node, line, (op, x), text, (size,))

    def count(self, node: TraceNode, line: Line) -> State:
        """A number that is carried."""
        return self._carry(node, line, (), f"{line.name}_{self.weights(node.op)[0].name}", (1,))

    def held(self, node: TraceNode, op: WeightOp) -> tuple[Grid, np.ndarray]:
        """The uses that the trace has an entry for, and the place of the entry of each use."""
        grid, classes = self.grid(op), self.meaning[node].classes
        if classes is None or self.slots(node) is None:
            return grid, grid.number
        rows = np.asarray(classes)
        of_class = np.empty(rows.shape, int)
        for group, row in enumerate(rows):
            _, first, inverse = np.unique(row, return_index=True, return_inverse=True)
            of_class[group] = first[inverse.reshape(-1)] + group * rows.shape[1]
        kept = grid.of_outputs(np.unique(of_class))
        if 1 in kept.shape:
            kept = kept.taken(np.ravel)
        number = np.arange(kept.number.size).reshape(kept.shape)
        most = grid.inputs.max(initial=0) + 1
        keys = (kept.outputs * most + kept.inputs).reshape(-1)
        wanted = of_class.reshape(-1)[grid.outputs] * most + grid.inputs
        order = np.argsort(keys)
        place = order[np.searchsorted(keys[order], wanted)]
        return dataclasses.replace(kept, number=number), place

    # --- the recursion ---

    def _trace(self, node: TraceNode) -> Iterator[Equation]:
        meaning = self.meaning[node]
        if meaning.rank is not None:
            yield from self._pairs(node)
            return
        earlier = dict[str, Line]()
        for line in meaning.lines:
            yield from getattr(self, f"_of_{line.of}")(node, line, earlier.get(line.plus))
            earlier[line.name] = line

    def _of_uses(self, node: TraceNode, line: Line, plus: Line | None) -> Iterator[Equation]:
        parts = 1 if self.meaning[node].holomorphic else len(self.weights(node.op))
        for slot, op in enumerate(node.feeds[0].ops):
            for part in range(parts):
                feeds = [f for feed in node.feeds for f in self._feeds(feed.ops, slot, part)]
                of = lambda old, line=line, slot=slot, part=part: self.trace(
                    node, line, slot, part, old
                )
                more = None if plus is None else functools.partial(of, line=plus)
                yield from self._recursion(node, self.held(node, op)[0], of, feeds, line, more)

    def _of_outputs(self, node: TraceNode, line: Line, plus: Line | None) -> Iterator[Equation]:
        for to, source in enumerate(self.sources(node.op)):
            of = lambda old, line=line, to=to: self.factor(node, line, to, old)
            more = None if plus is None else functools.partial(of, line=plus)
            feeds: list[Feed] = [(node.op, source, 1, None)]
            yield from self._recursion(node, self._outputs_of(node), of, feeds, line, more)

    def _of_inputs(self, node: TraceNode, line: Line, plus: Line | None) -> Iterator[Equation]:
        for op, product in ((op, self.step.products[op]) for op in node.ops):
            inputs, first = np.unique(product.grid.inputs, return_index=True)
            for x, at in dict(self.nodes.elements(t[3]) for t in product.terms).items():
                old, new = self.data(node, line, op, x)
                value = self.view(x, at[product.grid.cols.reshape(-1)[first]])
                added = self._term(new, value, inputs)
                if plus is not None:
                    added = Term(self.view(self.data(node, plus, op, x)[1]))
                yield Equation(new, [Term(_number(line.kept) * self.view(old)), added])

    def _of_steps(self, node: TraceNode, line: Line, plus: Line | None) -> Iterator[Equation]:
        old, new = self.count(node, line)
        added = 1 if plus is None else self.view(self.count(node, plus)[1])
        yield Equation(new, [Term(_number(line.kept) * self.view(old) + added)])

    def _feeds(self, ops: Sequence[WeightOp], slot: int, part: int) -> Iterator[Feed]:
        first, op = ops[0], ops[slot]
        if op not in self.step.products:
            yield first, self.sources(first)[part], 1, None
            return
        for to, sign, weight, x in self.step.products[op].terms:
            if weight is self.weights(op)[part]:
                yield first, self.sources(first)[to], sign, self.nodes.elements(x)

    def _pairs(self, node: TraceNode) -> Iterator[Equation]:
        """The factors of pairs whose sum is the trace: D moves them, and each step adds one of F and the data."""
        (whole,), (moved, added) = self.meaning[node].lines, PAIRS
        for to, source in enumerate(self.sources(node.op)):
            grid = self._outputs_of(node)
            of = lambda old, to=to: self.factor(node, moved, to, old)
            yield from self._recursion(node, grid, of, [], moved)
            of = lambda old, to=to: self.factor(node, added, to, old, "_added")
            yield from self._recursion(node, grid, of, [(node.op, source, 1, None)], added)
        for x in self.step.products[node.op].data(self.nodes):
            old, new = self.data(node, Line("X", "inputs"), node.op, x)
            yield Equation(new, [Term(self.view(x))])
            for state, _ in self.states_of(node) if self.slots(node) is not None else ():
                pair = self.view(self.factor(node, moved, 0, state)[0]) * self.view(old)
                shown = sp.Function("sum", real=True)(pair)
                yield Equation(self.trace(node, whole, 0, 0, state)[0], [], shown=shown)

    def _outputs_of(self, node: TraceNode) -> Grid:
        order = np.argsort(self._place_of_output(node.op))
        return dataclasses.replace(Grid.elements(node.op.size), outputs=order)

    def _recursion(
        self,
        node: TraceNode,
        grid: Grid,
        of: Callable[[Array], State],
        feeds: Sequence[Feed],
        line: Line,
        plus: Callable[[Array], State] | None = None,
    ) -> Iterator[Equation]:
        """What is kept, D times what is held, and for each feed F times the data, or another array."""
        slots, kept, moved = self.slots(node), *map(_number, (line.kept, line.moved))
        for old, new in self.states_of(node):
            (own, target), terms, jacobian = of(old), list[Term](), self.jacobian(new.values, WHOLE)
            same = [Block(*2 * (np.arange(old.size),), sp.Integer(1))]
            entries: list[Entries] = []
            whole = [(kept, own)] if kept != 0 else []
            whole += [] if plus is None else [(1, plus(old)[1])]
            for scale, array in whole:
                if slots is not None:
                    times = lambda g, array=array, scale=scale: scale * self.view(array, g.number)
                    entries.append((same, slots[old], times))
                else:
                    terms.append(Term(scale * self.view(array)))
            for before, _ in self.states_of(node) if moved != 0 else ():
                trace, blocks = of(before)[0], jacobian.get(before, [])
                if slots is not None:
                    times = lambda g, trace=trace: moved * self.view(trace, g.number)
                    entries.append((blocks, slots[before], times))
                elif blocks:
                    matrix = yield from self._matrix("D", new, before)
                    value = moved * dot(self.view(matrix), self.view(trace))
                    terms.append(Term(self._within(node, old, grid) * value))
            for op, source, sign, data in feeds if plus is None else ():
                blocks = jacobian.get(source, [])
                x = lambda at, data=data: 1 if data is None else self.view(data[0], data[1][at])
                if slots is not None:
                    times = lambda g, sign=sign, x=x: sign * x(g.cols)
                    entries.append((blocks, self._place_of_output(op), times))
                elif blocks:
                    matrix = yield from self._matrix("F", new, source)
                    rows = np.add.outer(np.arange(old.size) * source.size, grid.rows)
                    cols = np.broadcast_to(grid.cols, rows.shape)
                    terms.append(Term(sign * self.view(matrix, rows) * x(cols)))
            if slots is not None:
                terms = [*self._over_outputs(slots[old], entries, grid, target)]
            yield Equation(target, terms)

    def _within(self, node: TraceNode, old: Array, grid: Grid) -> Any:
        """Where the trace of each output has which elements of a state, as an array; one where it has all it reaches."""
        if self.program.closed(node):
            return 1
        first = self._offsets[[old is a for a, _ in self.states].index(True)]
        has = node.blocks.toarray()[:, first : first + old.size].T.astype(float)

        def made() -> Array:
            array = self._array(f"M_{old.name}_{self.weights(node.op)[0].name}", has.shape)
            self.step.values[array] = has
            return array

        array = self.once((node, old, "within"), made)
        at = np.add.outer(np.arange(old.size) * node.op.size, grid.outputs)
        return 1 if has.all() else self.view(array, at)

    def _over_outputs(
        self,
        rows: np.ndarray,
        entries: Sequence[Entries],
        grid: Grid,
        target: Array,
    ) -> Iterator[Term]:
        """For each output o, a sum of entries of Jacobians at `(rows[o], cols[o])`, times something of each use of o.

        Outputs whose sums are alike are one term.
        """
        found: list[tuple[int, Any, np.ndarray, np.ndarray]] = []
        for number, (blocks, cols, _) in enumerate(entries):
            for b in blocks:
                most = int(b.cols.max(initial=0)) + 1
                keys, wanted = b.rows * most + b.cols, rows * most + cols
                place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
                exists = (rows >= 0) & (cols >= 0) & (cols < most) & (keys[place] == wanted)
                found.append((number, b.value, place, exists))
        exist = np.stack([e for *_, e in found] or [np.zeros(rows.size, bool)], 1)
        which, first, of = np.unique(exist, axis=0, return_index=True, return_inverse=True)
        for n, used in sorted(enumerate(which), key=lambda pair: first[pair[0]]):
            part = grid.of_outputs(np.flatnonzero(of.reshape(-1) == n))
            sums: dict[int, Any] = {}
            for (number, value, place, _), is_in in zip(found, used, strict=False):
                if is_in and part.number.size:
                    value = self.at(value, place[part.outputs])
                    sums[number] = sums.get(number, 0) + value
            total = sum(sp.factor_terms(f) * entries[k][2](part) for k, f in sums.items())
            if total != 0:
                yield self._term(target, total, part.number)

    def _matrix(self, letter: str, new: Array, source: Array) -> Any:
        """All of a Jacobian, by a name."""
        key = letter, new, source
        if key not in self._known:
            of = source.text or self.nodes.elements(source.values)[0].text
            name = f"{letter}_{new.text.replace(chr(39), '')}_{of}"
            array = self._known[key] = self._array(name, (new.size, source.size))
            blocks = self.jacobian(new.values, WHOLE).get(source, [])
            places = [b.rows * source.size + b.cols for b in blocks]
            pairs = zip(blocks, places, strict=True)
            yield Equation(array, [self._term(array, b.value, at) for b, at in pairs])
        return self._known[key]

    def _place_of_output(self, op: WeightOp) -> np.ndarray:
        """The place in the output of each output, counted over all groups."""
        grid, place = self.grid(op), np.full(op.size, -1)
        place[grid.outputs] = grid.rows
        return place

    # --- gradients ---

    def _gradient(self, op: WeightOp) -> Iterator[Equation]:
        """The terms of a gradient in a step."""
        is_read = self.analysis.reach[op.number].role == "output"
        direct = GradientTerm(Steps(op), Direct(op))
        for term in self.program.step_grads.get(op, (direct,) if is_read else ()):
            match term:
                case GradientTerm(_, Direct()):
                    given = [self.credit(s) for s in self.sources(op)]
                    yield from self._outer(op, given, "direct")
                case GradientTerm(Steps(_, past), Through(_, node)):
                    if node is None or self._passes_back(node):
                        given = [self._into(s, "c") for s in self.sources(op)]
                        yield from self._outer(op, given, "through")
                        if past is not None:
                            yield from self._of_trace(past.trace, past.slot, "past")
                    else:
                        yield from self._met(op, node, True)
                        yield from self._met(op, node, False)
                case GradientTerm(Carried(node, slot)) if self._passes_back(node):
                    yield from self._of_trace(node, slot, "past")
                case GradientTerm(AtEnd(node)):
                    place = node.ops.index(op) % len(node.feeds[0].ops)
                    yield from self._of_trace(node, place, "after")

    def _passes_back(self, node: TraceNode) -> bool:
        """Whether credit passes back by D and F themselves."""
        return self.meaning[node].is_whole and self.program.closed(node)

    def _met(self, op: WeightOp, node: TraceNode, after: bool) -> Iterator[Equation]:
        """What credit gives: after the step with the learning signals, and before it with what passes these by."""
        meaning = self.meaning[node]
        lines = {line.name: line for line in meaning.lines}
        met = lines.get(meaning.meets)
        if met is None or met.of == "outputs":
            yield from self._of_factors(
                op, node, met, lines.get(meaning.data), lines.get(meaning.over), after
            )
        elif op in node.feeds[0].ops:  # which have what enters by all feeds
            yield from self._of_trace(
                node, node.feeds[0].ops.index(op), "through and past" if after else "past"
            )

    def _added(
        self, op: WeightOp, part: int, terms: Sequence[tuple[Any, np.ndarray]], note: str
    ) -> Iterator[Equation]:
        """Values that are added to the gradient of a weight, each with its elements of the weight."""
        weight, at = self.nodes.elements(self.step.value(op.weight)[part])
        at = at.reshape(-1) if op not in self.step.products else np.arange(weight.size)
        target = self._gradient_of(weight)
        if terms:
            yield Equation(target, [self._term(target, v, at[w]) for v, w in terms], note)

    def _gradient_of(self, weight: Array) -> Array:
        if weight not in self.gradient:
            self.gradient[weight] = self._array(f"g_{weight.name}", weight.shape)
        return self.gradient[weight]

    def _outer(
        self,
        op: WeightOp,
        credit: Sequence[Array | None],
        note: str,
        data: Callable[[Array, Grid], Any] | None = None,
    ) -> Iterator[Equation]:
        """Credit of the output of an operation, times its data."""
        product, grid = self.step.products.get(op), self.grid(op)
        for part, weight in enumerate(self.weights(op)):
            terms: list[tuple[Any, np.ndarray]] = []
            if product is None and (given := credit[part]) is not None:
                terms.append((self.view(given), grid.weights))
            for to, sign, w, ids in () if product is None else product.terms:
                given, (x, at) = credit[to], self.nodes.elements(ids)
                if w is weight and given is not None:
                    of_data = self.view(x, at[grid.cols]) if data is None else data(x, grid)
                    terms.append((sign * self.view(given, grid.rows) * of_data, grid.weights))
            yield from self._added(op, part, terms, note)

    def _of_trace(self, node: TraceNode, slot: int, note: str) -> Iterator[Equation]:
        """What a trace of uses gives: before the step, where that is its past, or after it with the learning signals."""
        after = note != "past"
        past = self._at_start if self._passes_back(node) else self.credit
        op, states, slots = node.feeds[0].ops[slot], self.states_of(node), self.slots(node)
        (grid, place), meaning = (self.grid(op), self.held(node, op)[1]), self.meaning[node]
        (line,) = (line for line in meaning.lines if line.name == meaning.meets)
        for part in range(len(self.weights(op))):
            terms: list[tuple[Any, np.ndarray]] = []
            for n, (old, _) in enumerate(states):
                given, sign, of = self.signals[old] if after else past(old), 1, part
                if meaning.holomorphic and part:  # by the imaginary part
                    sign, of = -1 if n % 2 == 0 else 1, 0
                    old = states[n + (1 if n % 2 == 0 else -1)][0]
                trace = self.trace(node, line, slot, of, old)[after]
                if given is not None and slots is not None:
                    used = grid.of_outputs(np.flatnonzero(slots[old] >= 0))
                    number = place.reshape(-1)[used.number]
                    value = self.view(given, slots[old][used.outputs]) * self.view(trace, number)
                    terms.append((sign * value, used.weights))
                elif given is not None:
                    terms.append((sign * dot(self.view(given), self.view(trace)), grid.weights))
            yield from self._added(op, part, terms, note)

    def _of_factors(
        self,
        op: WeightOp,
        node: TraceNode,
        met: Line | None,
        of_data: Line | None,
        over: Line | None,
        after: bool,
    ) -> Iterator[Equation]:
        """What factors give: numbers of outputs and of inputs."""
        signals = list[Array | None]()
        for to, source in enumerate(self.sources(node.op)):
            if met is None:
                signals.append(self._into(source, "c") if after else None)
                continue
            known, terms = (node, to, after), [*self._signal(node, met, to, source, after)]
            if terms and known not in self._known:
                text = f"s_{source.text}" + ("" if after else "_past")
                self._known[known] = self._array(text, (source.size,))
                yield Equation(self._known[known], terms)
            signals.append(self._known[known] if terms else None)

        def data(x: Array, grid: Grid) -> Any:
            value = self.view(self.data(node, of_data, op, x)[after], grid.inputs)
            if over is None:
                return value
            below = self.view(self.count(node, over)[after], np.zeros(grid.shape, int))
            return value / (below if after else self.nodes.defined["max"](below, 1))

        note = "past" if not after else "through" if met is None else "through and past"
        yield from self._outer(op, signals, note, data if of_data is not None else None)

    def _signal(
        self, node: TraceNode, met: Line, to: int, source: Array, after: bool
    ) -> Iterator[Term]:
        """The learning signals times the second factor: a number for each output."""
        slots, place = self.slots(node), self._outputs_of(node).outputs
        for old, _ in self.states_of(node):
            given = self.signals[old] if after else self.credit(old)
            factor = self.factor(node, met, to, old)[after]
            if given is not None and slots is not None:
                where = np.flatnonzero(slots[old][place] >= 0)
                value = self.view(given, slots[old][place][where]) * self.view(factor, where)
                yield self._term(source, value, where)
            elif given is not None:
                yield Term(dot(self.view(given), self.view(factor)))

    def _pulled_back(self) -> Iterator[tuple[Array, Equation]]:
        """From effective weights to the parameters that they are computed from."""
        for weight, gradient in [*self.gradient.items()]:
            jacobian = self.jacobian(weight.ids, HERE) if weight.kind == "value" else {}
            for parameter in jacobian:
                terms = self._back(jacobian, parameter, gradient)
                yield parameter, Equation(self._gradient_of(parameter), terms)


def _number(value: float) -> Any:
    return sp.Integer(int(value)) if value == int(value) else sp.Float(value)


def _meanings(program: TraceProgram) -> dict[TraceNode, Meaning]:
    """What each trace means.

    **Raises** `UnsupportedError` for a rule whose equations are not written.
    """
    rule, found = program.algorithm, dict[TraceNode, Meaning]()
    why = ""
    if rule.backprop != "cut" or rule.lookback is not None:
        why = (
            "its credit passes back through whole windows, and these are the equations of one step"
        )
    elif program.extends is not None:
        why = (
            "it follows directions of states besides traces, and those change from window to window"
        )
    for node in program.traces:
        form = node.form
        if not isinstance(form, Defined):
            why = f"the form of the trace of {node.op.path}, {form}, does not say what it means"
            continue
        found[node] = form.meaning()
        if not form.exact and found[node].is_whole and found[node].rank is None:
            why = f"the trace of {node.op.path} is random, and only its mean has equations, those of RTRL"
    if why:
        raise UnsupportedError(
            f"The equations of {rule} cannot be written: {why}. Compile with another rule, such as D_RTRL."
        )
    return found
