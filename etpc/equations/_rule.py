"""A learning rule on a step: its equations, in order."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import sympy as sp

from ..analyse import WeightOp
from ..errors import UnsupportedError
from ..forms import Decay, Filtered, Full, Holomorphic, LowRank
from ..ir import AtEnd, Carried, Direct, Steps, Through, TraceNode, TraceProgram
from ..ir import Product as GradientTerm
from ._functions import dot
from ._nodes import ACROSS, HERE, WHOLE, Array, Ids, Sums
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


class Rule:
    """The equations of a trace program."""

    def __init__(self, program: TraceProgram):
        _check(program)
        self.program, self.analysis = program, program.analysis
        self.step = Step(program.analysis)
        self.nodes, leaves = self.step.nodes, program.analysis.hidden.leaves
        self.views: dict[Any, tuple[Array, np.ndarray]] = {}
        """The array of each symbol, and the places in it."""
        self._known: dict[Any, Any] = {}
        self.carried: dict[Array, Array] = {}
        """The arrays that are carried beside the state, before and after the step."""
        self.gradient: dict[Array, Array] = {}
        new = [a for leaf in leaves for a in self.step.new_state[leaf]]
        self.states: list[State] = [*zip(self.step.hidden, new, strict=True)]
        for place, leaf in enumerate(leaves):
            for array in self.step.new_state[leaf] if place in program.paths.credited else ():
                array.kind = "state"
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

    def credit(self, of: Array, whole: bool = False) -> Array | None:
        """The derivative of the loss of a step by an array; where it is not `whole`, paths end at new states.

        Past data that the rule holds constant, all paths count.
        """
        return self.once((of, whole), lambda: self._credit(of, whole))

    def _credit(self, of: Array, whole: bool) -> Array | None:
        terms, reach = list[Term](), ACROSS if whole else HERE
        for output, given in self.loss.items():
            terms += self._back(self.jacobian(output.ids, reach), of, given)
        is_old = of in self.step.hidden
        for product in self.step.products.values():
            for data in product.data(self.nodes):
                jacobian = self.jacobian(data.ids, reach)
                if of in jacobian and not (product.held and not whole and is_old):
                    given = self._of_data(product, data, whole or product.held)
                    terms += [] if given is None else self._back(jacobian, of, given)
        return self._sum(of, terms, "c" if whole else "L")

    def _of_data(self, product: Product, data: Array, whole: bool) -> Array | None:
        """The credit of the data of a product, from that of its output."""
        terms: list[Term] = []
        for part, sign, weight, ids in product.terms:
            (array, at), grid = self.nodes.elements(ids), product.grid
            given = self.credit(product.output[part], whole) if array is data else None
            if given is not None:
                to = data.size, at[grid.cols]
                terms.append(self._weighted(grid, weight, (given, grid.rows), to, sign))
        return self._sum(data, terms, "c")

    def _back(self, jacobian: Jacobian, of: Array, credit: Array) -> list[Term]:
        """The transpose of a Jacobian on credit."""
        sums: dict[Any, list[Block]] = {}
        for block in jacobian.get(of, ()):
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

    def _carry(self, node: TraceNode, key: Any, text: str, shape: tuple[int, ...]) -> State:
        """An array that is carried for a trace: before and after the step."""
        if (node, key) not in self._known:
            old = self._array(text, shape)
            self.carried[old] = self._array(old.name + "_new", shape, old.name + "'")
            self._known[node, key] = old, self.carried[old]
        return self._known[node, key]

    def trace(self, node: TraceNode, slot: int, part: int, old: Array) -> State:
        """The influence of a part of a weight on a state."""
        op = node.feeds[0].ops[slot]
        shape = self.held(node, op)[0].shape
        shape = shape if self.slots(node) is not None else (old.size, *shape)
        text = f"e_{old.name}_{self.weights(op)[part].name}"
        return self._carry(node, (slot, part, old), text, shape)

    def factor(self, node: TraceNode, to: int, old: Array, more: str = "") -> State:
        """The second factor of a trace with a decay or a rank."""
        size = self.sources(node.op)[to].size
        shape = (size,) if self.slots(node) is not None else (old.size, size)
        text = f"f_{old.name}_{self.weights(node.op)[0].name}" + ("_im" if to else "") + more
        return self._carry(node, (to, old, more), text, shape)

    def data(self, node: TraceNode, op: WeightOp, x: Array) -> State:
        """Its first factor."""
        text = f"X_{self.weights(op)[0].name}"
        return self._carry(node, (op, x), text, (op.kind.groups * op.kind.inputs,))

    def norm(self, node: TraceNode) -> State:
        """Its normaliser."""
        return self._carry(node, "norm", f"c_{self.weights(node.op)[0].name}", (1,))

    def held(self, node: TraceNode, op: WeightOp) -> tuple[Grid, np.ndarray]:
        """The uses that the trace has an entry for, and the place of the entry of each use."""
        grid, form = self.grid(op), node.form
        if not isinstance(form, Filtered) or self.slots(node) is None:
            return grid, grid.number
        rows = np.asarray(form.classes)
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
        if isinstance(node.form, Decay):
            yield from self._factors(node)
            return
        if isinstance(node.form, LowRank):
            yield from self._pairs(node)
            return
        parts = 1 if isinstance(node.form, Holomorphic) else len(self.weights(node.op))
        for slot, op in enumerate(node.feeds[0].ops):
            for part in range(parts):
                feeds = [f for feed in node.feeds for f in self._feeds(feed.ops, slot, part)]
                of = lambda old, slot=slot, part=part: self.trace(node, slot, part, old)
                yield from self._recursion(node, self.held(node, op)[0], of, feeds)

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
        for to, source in enumerate(self.sources(node.op)):
            grid = self._outputs_of(node)
            of = lambda old, to=to: self.factor(node, to, old)
            yield from self._recursion(node, grid, of, [])
            of = lambda old, to=to: self.factor(node, to, old, "_added")
            yield from self._recursion(node, grid, of, [(node.op, source, 1, None)], 0)
        for x in self.step.products[node.op].data(self.nodes):
            old, new = self.data(node, node.op, x)
            yield Equation(new, [Term(self.view(x))])
            for state, _ in self.states_of(node) if self.slots(node) is not None else ():
                pair = self.view(self.factor(node, 0, state)[0]) * self.view(old)
                shown = sp.Function("sum", real=True)(pair)
                yield Equation(self.trace(node, 0, 0, state)[0], [], shown=shown)

    def _outputs_of(self, node: TraceNode) -> Grid:
        order = np.argsort(self._place_of_output(node.op))
        return dataclasses.replace(Grid.elements(node.op.size), outputs=order)

    def _factors(self, node: TraceNode) -> Iterator[Equation]:
        assert isinstance(node.form, Decay)
        of_data, of_states, of_norm = map(sp.Float, node.form.decays)
        grid = self._outputs_of(node)
        for to, source in enumerate(self.sources(node.op)):
            of = lambda old, to=to: self.factor(node, to, old)
            yield from self._recursion(node, grid, of, [(node.op, source, 1, None)], of_states)
        for op, product in ((op, self.step.products[op]) for op in node.ops):
            inputs, first = np.unique(product.grid.inputs, return_index=True)
            for x, at in dict(self.nodes.elements(t[3]) for t in product.terms).items():
                old, new = self.data(node, op, x)
                value = self.view(x, at[product.grid.cols.reshape(-1)[first]])
                yield Equation(
                    new, [Term(of_data * self.view(old)), self._term(new, value, inputs)]
                )
        old, new = self.norm(node)
        yield Equation(new, [Term(of_norm * self.view(old) + 1)])

    def _recursion(
        self,
        node: TraceNode,
        grid: Grid,
        of: Callable[[Array], State],
        feeds: Sequence[Feed],
        scale: Any = 1,
    ) -> Iterator[Equation]:
        """`scale * D` times what is held, and for each feed F times the data."""
        slots = self.slots(node)
        for old, new in self.states_of(node):
            target, terms, jacobian = of(old)[1], list[Term](), self.jacobian(new.values, WHOLE)
            entries: list[tuple[list[Block], np.ndarray, Callable[[Grid], Any]]] = []
            for before, _ in self.states_of(node):
                trace, blocks = of(before)[0], jacobian.get(before, [])
                if slots is not None:
                    times = lambda g, trace=trace: scale * self.view(trace, g.number)
                    entries.append((blocks, slots[before], times))
                elif blocks and scale != 0:
                    matrix = yield from self._matrix("D", new, before)
                    terms.append(Term(scale * dot(self.view(matrix), self.view(trace))))
            for op, source, sign, data in feeds:
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

    def _over_outputs(
        self,
        rows: np.ndarray,
        entries: Sequence[tuple[list[Block], np.ndarray, Callable[[Grid], Any]]],
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
                    if node is None or not isinstance(node.form, Decay):
                        given = [self._into(s, "c") for s in self.sources(op)]
                        yield from self._outer(op, given, "through")
                        if past is not None:
                            yield from self._of_trace(past.trace, past.slot, False)
                    else:
                        yield from self._decayed(op, node, True)
                        yield from self._decayed(op, node, False)
                case GradientTerm(Carried(node, slot)) if not isinstance(node.form, Decay):
                    yield from self._of_trace(node, slot, False)
                case GradientTerm(AtEnd(node)):
                    place = node.ops.index(op) % len(node.feeds[0].ops)
                    yield from self._of_trace(node, place, True)

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

    def _of_trace(self, node: TraceNode, slot: int, after: bool) -> Iterator[Equation]:
        """What a trace gives: after the step with the learning signals, before it with the credit of old states."""
        op, states, slots = node.feeds[0].ops[slot], self.states_of(node), self.slots(node)
        grid, place = self.grid(op), self.held(node, op)[1]
        credit = self.signals if after else {old: self._at_start(old) for old, _ in states}
        for part in range(len(self.weights(op))):
            terms: list[tuple[Any, np.ndarray]] = []
            for n, (old, _) in enumerate(states):
                given, sign, of = credit[old], 1, part
                if isinstance(node.form, Holomorphic) and part:  # by the imaginary part
                    sign, of = -1 if n % 2 == 0 else 1, 0
                    old = states[n + (1 if n % 2 == 0 else -1)][0]
                trace = self.trace(node, slot, of, old)[after]
                if given is not None and slots is not None:
                    used = grid.of_outputs(np.flatnonzero(slots[old] >= 0))
                    number = place.reshape(-1)[used.number]
                    value = self.view(given, slots[old][used.outputs]) * self.view(trace, number)
                    terms.append((sign * value, used.weights))
                elif given is not None:
                    terms.append((sign * dot(self.view(given), self.view(trace)), grid.weights))
            yield from self._added(op, part, terms, "after" if after else "past")

    def _decayed(self, op: WeightOp, node: TraceNode, after: bool) -> Iterator[Equation]:
        """What two factors give: after the step with the learning signals, and before it with what passes these by."""
        signals, norm = list[Array | None](), self.norm(node)[after]
        for to, source in enumerate(self.sources(node.op)):
            known, terms = (node, to, after), [*self._signal(node, to, source, after)]
            if terms and known not in self._known:
                text = f"s_{source.text}" + ("" if after else "_past")
                self._known[known] = self._array(text, (source.size,))
                yield Equation(self._known[known], terms)
            signals.append(self._known[known] if terms else None)

        def data(x: Array, grid: Grid) -> Any:
            below = self.view(norm, np.zeros(grid.shape, int))
            below = below if after else self.nodes.defined["max"](below, 1)
            return self.view(self.data(node, op, x)[after], grid.inputs) / below

        yield from self._outer(op, signals, "through and past" if after else "past", data)

    def _signal(self, node: TraceNode, to: int, source: Array, after: bool) -> Iterator[Term]:
        """The learning signals times the second factor: a number for each output."""
        slots, place = self.slots(node), self._outputs_of(node).outputs
        for old, _ in self.states_of(node):
            given = self.signals[old] if after else self.credit(old)
            factor = self.factor(node, to, old)[after]
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


def _check(program: TraceProgram) -> None:
    """**Raises** `UnsupportedError` for a rule whose equations are not written."""
    rule = program.algorithm
    closed = all(map(program.closed, program.traces)) and program.extends is None
    if not closed or rule.backprop != "cut" or rule.lookback is not None:
        raise UnsupportedError(
            f"The equations of {rule} cannot be written, as its credit is not that of each step by itself, or it keeps "
            'a part of what a weight reaches. Compile with D_RTRL, RTRL or ES_D_RTRL and backprop="cut".'
        )
    for node in program.traces:
        if not isinstance(node.form, Decay | Filtered | Full | Holomorphic | LowRank):
            raise UnsupportedError(
                f"The equations of the trace of {node.op.path} cannot be written. Its form is {node.form}."
            )
