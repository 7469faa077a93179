"""One trace: the recursions that its form means, and what credit of states gives with what they carry."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import sympy as sp

from ..analyse import WeightOp
from ..forms import Line, Meaning
from ..ir import TraceNode
from ._derivatives import Block, Derivatives, Equation, State, Term
from ._functions import dot
from ._nodes import NEW, WHOLE, Array
from ._products import Grid

Key = tuple[WeightOp, Any]
"""What a line has an array for: an operation, and a part of its weight or of its output, or an array of its data."""
REDUCED = {"e": "E", "f": "m", "X": "x"}
"""Of a trace of a rank: the letters of what is moved and what a step adds, before these are reduced to it."""
ONE_PAIR = Meaning(
    (Line("f", "outputs", moved=1.0), Line("F", "outputs"), Line("X", "inputs")),
    meets="f",
    data="X",
    rank=1,
    drawn="signs",
)
"""A trace that is one pair of factors. That of a step, F and x, is apart from it until both become one."""
Data = Callable[[Array | None, Grid], Any]
"""What stands in the place of data, for some uses."""
Summand = tuple[str, Array, np.ndarray, Callable[[Grid | None], Any]]
"""D, F or nothing for one; what it is the derivative by; the column of each output, where it has one; and what it is
multiplied with: for some uses, or all."""


class CarriedArrays:
    """What is carried for a trace."""

    def __init__(self, step: Derivatives, node: TraceNode, meaning: Meaning, closed: bool):
        self.step, self.node, self.meaning, self.closed = step, node, meaning, closed
        self.lines = {line.name: line for line in meaning.lines}
        whole = (Line(meaning.meets, "uses", moved=1.0),), ONE_PAIR.lines
        self.passes_back = step.through or (meaning.lines in whole and closed)
        """Whether credit passes back by D and F themselves."""
        self.arrays: dict[Array, Array] = {}
        """Those that are carried beside the state, before and after the step."""
        self.known: dict[tuple[Line, Key, Array | None], State] = {}
        self._signals: dict[tuple[int, bool], Array] = {}
        ends = np.cumsum([old.size for old, _ in step.states])[:-1]
        parts = zip(step.states, np.split(node.blocks.toarray(), ends, 1), strict=True)
        self._has = {state: has for state, has in parts if has.any()}
        """The states of the trace, and of which elements each output has one."""
        self.slots = {s[0]: np.where(has.any(1), has.argmax(1), -1) for s, has in self._has.items()}
        """For each state, which element an output has a lasting influence on, or -1."""
        self.each = all((has.sum(1) < 2).all() for has in self._has.values())
        """Whether that is one at most. Else the trace has all elements of each state."""

    def array(self, line: Line, key: Key, old: Array | None = None) -> State:
        """An array of a line, before and after the step; that of one state, where it has one for each."""
        if (line, key, old) not in self.known:
            (op, part), nodes = key, self.step.nodes
            weight = self.step.weights(op)[part if line.of == "uses" else 0]
            tex = line.name, *([] if old is None else [old.name]), weight.name
            tex += ("im",) * (line.of == "outputs" and part > 0)
            shape = self._held(line, key)[0].shape
            shape = shape if self.each or old is None else (old.size, *shape)
            kind = "given" if line.of == "steps" else "carried"
            before = nodes.array(nodes.name("_".join(tex)), shape, kind=kind, tex=tex)
            self.known[line, key, old] = before, (after := nodes.after(before, kind=kind))
            if line.name == "F":
                self.known[line, key, old] = before, before
                return before, before
            if self.meaning.rank is not None:
                tex = REDUCED[line.name], *tex[1:]
                total = nodes.array(nodes.name("_".join(tex)), shape, kind=kind, tex=tex)
                self.known[line, key, old] = before, total
            if old is None or old.kind != "given" or line.kept:  # nothing follows a transient state
                self.arrays[before] = after
        return self.known[line, key, old]

    def _held(self, line: Line, key: Key) -> tuple[Grid, Grid, np.ndarray]:
        """The uses, outputs or inputs that an array has entries for, all of them, and where each has its entry."""
        op, shared = key[0], self.meaning.shared
        size = {"inputs": op.kind.groups * op.kind.inputs, "outputs": op.size}.get(line.of, 1)
        grid = self.step.step.products[op].grid if line.of == "uses" else Grid.elements(size)
        if line.of == "outputs":
            grid = dataclasses.replace(grid, outputs=np.argsort(self._place_of_output(op)))
        if line.of != "uses" or shared is None or not self.each:
            return grid, grid, grid.number
        kept = grid.of_outputs(np.unique(shared))
        kept = kept.taken(np.ravel) if 1 in kept.shape else kept
        most = grid.inputs.max(initial=0) + 1
        keys = (kept.outputs * most + kept.inputs).reshape(-1)
        wanted = np.asarray(shared)[grid.outputs] * most + grid.inputs
        order, number = np.argsort(keys), np.arange(kept.number.size).reshape(kept.shape)
        place = order[np.searchsorted(keys[order], wanted)]
        return dataclasses.replace(kept, number=number), grid, place

    def _place_of_output(self, op: WeightOp) -> np.ndarray:
        """The place in the output of each output, counted over all groups."""
        grid, place = self.step.step.products[op].grid, np.full(op.size, -1)
        place[grid.outputs] = grid.rows
        return place

    @functools.cached_property
    def _order(self) -> tuple[Sequence[State], int]:
        """The states, and how far derivatives pass: a trace of a state that reads new ones reads the traces of these,
        which come before it, where the trace has them all."""
        waiting, found = [*self._has], list[State]()
        every = {new for _, new in self.step.states}
        reads = {new: every & self.step.jacobian(new.values, NEW).keys() for _, new in waiting}
        while waiting and self.each and self.closed:
            ready = [s for s in waiting if reads[s[1]] <= {new for _, new in found}]
            if not ready:
                break
            found.append(ready[0])
            waiting.remove(ready[0])
        return ([*self._has], WHOLE) if waiting else (found, NEW)

    # --- the recursions ---

    def equations(self) -> Iterator[Equation]:
        for line in self.meaning.lines:
            for key in self._keys(line):
                yield from self._recursion(line, key)
                if self.meaning.rank is not None and line.of == "uses":
                    yield from self._reduced(line, key)
        if self.meaning is ONE_PAIR:
            yield from self._one_pair()

    def _reduced(self, line: Line, key: Key) -> Iterator[Equation]:
        """A trace of a rank, from the sum of what is moved and what a step adds: of all states together."""
        totals = {old: self.step.view(self.array(line, key, old)[1]) for old in self.slots}
        reduce = sp.Function(self.meaning.drawn or "leading_modes", real=True)
        for old, total in totals.items():
            others = (value for value in totals.values() if value is not total)
            shown = reduce(self.meaning.rank, total, *others)
            before = self.array(line, key, old)[0]
            if before in self.arrays:
                yield Equation(self.arrays[before], [], shown=shown)

    def _one_pair(self) -> Iterator[Equation]:
        """The pair of a trace and that of a step as one: by random signs, and each with factors of one length."""
        view, weight = self.step.view, self.step.weights(self.node.op)[0].name
        of = {n: [a for (line, *_), a in self.known.items() if line.name == n] for n in "fFX"}
        pairs = [([m for _, m in of["f"]], [a for a, _ in of["X"]])]
        pairs += [([a for a, _ in of["F"]], [x for _, x in of["X"]])]
        sign, scale = list[Any](), list[Any]()
        for n, pair in enumerate(pairs, 1):
            lengths = (sp.Function("norm", real=True)(*map(view, arrays)) for arrays in pair)
            value = sp.sqrt(self.step.nodes.defined["ratio"](*lengths))
            drawn = self.step.nodes.defined["signs"](1)
            for letter, found, to in (("c", drawn, sign), ("p", value, scale)):
                array = self.step.array(f"{letter}_{n}_{weight}", (1,), letter, str(n), weight)
                yield Equation(array, [Term(found)])
                to.append(view(array))
        for (old, moved), (added, _) in zip(of["f"], of["F"], strict=True):
            summands = (
                c * view(a) / p for c, p, a in zip(sign, scale, (moved, added), strict=True)
            )
            yield Equation(self.arrays[old], [*map(Term, summands)])
        for old_and_x in of["X"]:
            summands = (c * p * view(a) for c, p, a in zip(sign, scale, old_and_x, strict=True))
            yield Equation(self.arrays[old_and_x[0]], [*map(Term, summands)])

    def _keys(self, line: Line) -> list[Key]:
        op, step = self.node.op, self.step
        if line.of == "uses":
            parts = range(1 if self.meaning.holomorphic else len(step.weights(op)))
            return [(op, part) for op in self.node.feeds[0].ops for part in parts]
        if line.of == "inputs":
            return [(o, x) for o in self.node.ops for x in step.step.products[o].data]
        return [(op, part) for part in range(len(step.sources(op)) if line.of == "outputs" else 1)]

    def _recursion(self, line: Line, key: Key) -> Iterator[Equation]:
        """What is kept of an array, D times what is carried, and what the step adds or another line has."""
        grid, plus, view = self._held(line, key)[0], self.lines.get(line.plus), self.step.view
        kept, moved = self.step.number(line.kept), self.step.number(line.moved)
        if line.of in ("inputs", "steps"):
            old, new = self.array(line, key)
            yield Equation(new, [Term(kept * view(old)), self._added(line, key, new)])
        # What is kept of a state's trace is no derivative, so that the chain rule does not pass it on.
        order, reach = ([*self._has], WHOLE) if line.kept else self._order
        for old, new in order if line.of in ("uses", "outputs") else ():
            target = self.array(line, key, old)[1]

            def times(line: Line, state: Array, scale: Any, after: bool = False) -> Any:
                array = self.array(line, key, state)[after]
                return self.slots[state], lambda g: scale * view(array, g and g.number)

            summands: list[Summand] = [("", old, *times(line, old, kept))] if line.kept else []
            if plus is not None:
                summands.append(("", old, *times(plus, old, 1, True)))
            if line.moved:
                summands += [("D", state, *times(line, state, moved)) for state in self.slots]
            if reach == NEW and plus is None:
                summands += [("D", of, *times(line, state, 1, True)) for state, of in order]
            is_apart = self.meaning is ONE_PAIR and line.name == "f"
            summands += self._entering(line, key) if plus is None and not is_apart else ()
            if self.each:
                terms = [*self._over_outputs((old, new), summands, grid, target, reach)]
            else:
                terms = yield from self._by_matrices((old, new), summands, grid)
            yield Equation(target, terms)

    def _added(self, line: Line, key: Key, new: Array) -> Term:
        """What is added to an array that no state is in."""
        if line.plus:
            return Term(self.step.view(self.array(self.lines[line.plus], key)[1]))
        if line.of == "steps":
            return Term(sp.Integer(1))
        product = self.step.step.products[key[0]]
        inputs, first = np.unique(product.grid.inputs, return_index=True)
        (at, *_) = (times.at for times in product.terms if times.data is key[1])
        value = self.step.view(key[1], at[product.grid.cols.reshape(-1)[first]])
        return self.step.term(new, value, inputs)

    def _entering(self, line: Line, key: Key) -> Iterator[Summand]:
        """F, times the data where a line is of uses."""
        (op, part), step, one = key, self.step, lambda _: sp.Integer(1)
        feeds = [feed.ops for feed in self.node.feeds]
        for first, op in [(ops[0], ops[feeds[0].index(op)]) for ops in feeds]:
            columns, sources = self._place_of_output(first), step.sources(first)
            if line.of == "outputs":
                yield "F", sources[part], columns, one
                continue
            for times in step.step.products[op].terms:
                if times.weight is step.weights(op)[part]:
                    data = lambda g, times=times: times.sign * step.data(times, g)
                    yield "F", sources[times.part], columns, data

    def _by_matrices(
        self, state: State, summands: Sequence[Summand], grid: Grid
    ) -> Generator[Equation, None, list[Term]]:
        """With whole Jacobians, by their names."""
        (old, new), view, moved, terms = state, self.step.view, sp.Integer(0), list[Term]()
        jacobian = self.step.jacobian(new.values, WHOLE)
        for letter, source, _, times in summands:
            if not letter:
                terms.append(Term(times(None)))
            elif source in jacobian:
                matrix = yield from self.step.matrix(letter, new, source)
                if letter == "D":
                    scale, array = times(None).as_coeff_Mul()
                    moved += scale * dot(view(matrix), array)
                    continue
                rows = np.add.outer(np.arange(old.size) * source.size, grid.rows)
                uses = dataclasses.replace(grid, cols=np.broadcast_to(grid.cols, rows.shape))
                terms.append(Term(view(matrix, rows) * times(uses)))
        has = self._has[state]
        if moved != 0 and not self.closed and not has.all():
            name = f"M_{old.name}_{self.step.weights(self.node.op)[0].name}"
            within = self.step.once((self.node, old), lambda: self.step.constant(name, has.T))
            moved *= view(within, np.add.outer(np.arange(old.size) * has.shape[0], grid.outputs))
        return [*([] if moved == 0 else [Term(moved)]), *terms]

    def _over_outputs(
        self, state: State, summands: Sequence[Summand], grid: Grid, target: Array, reach: int
    ) -> Iterator[Term]:
        """For each output, a sum of entries of Jacobians in its row and columns, times something of each use.

        Outputs whose sums are alike are one term.
        """
        rows, found = self.slots[state[0]], list[tuple[int, Any, np.ndarray, np.ndarray]]()
        same = [Block(every := np.arange(state[0].size), every, sp.Integer(1))]
        jacobian = self.step.jacobian(state[1].values, reach)
        for n, (letter, source, columns, _) in enumerate(summands):
            for b in jacobian.get(source, ()) if letter else same:
                most = int(b.cols.max(initial=0)) + 1
                keys, wanted = b.rows * most + b.cols, rows * most + columns
                again = np.arange(keys.size) - np.searchsorted(keys, keys)
                exists = (rows >= 0) & (columns >= 0) & (columns < most)
                for k in range(again.max() + 1):  # an entry may be a sum
                    kth = np.flatnonzero(again == k)
                    place = kth[np.minimum(np.searchsorted(keys[kth], wanted), kth.size - 1)]
                    found.append((n, b.value, place, exists & (keys[place] == wanted)))
        exist = np.stack([e for *_, e in found] or [np.zeros(rows.size, bool)], 1)
        which, first, of = np.unique(exist, axis=0, return_index=True, return_inverse=True)
        for n, used in sorted(enumerate(which), key=lambda pair: first[pair[0]]):
            part = grid.of_outputs(np.flatnonzero(of.reshape(-1) == n))
            sums: dict[int, Any] = {}
            for (k, value, place, _), is_in in zip(found, used, strict=False):
                if is_in and part.number.size:
                    sums[k] = sums.get(k, 0) + self.step.at(value, place[part.outputs])
            total = sum(sp.factor_terms(f) * summands[k][3](part) for k, f in sums.items())
            if total != 0:
                yield self.step.term(target, total, part.number)

    # --- what credit gives ---

    def met(self, line: Line, key: Key, after: bool) -> Iterator[Term]:
        """Credit of each state times an array, for its uses or its outputs."""
        (op, part), view, states = key, self.step.view, [*self.slots]
        _, grid, place = self._held(line, key)
        past = self.step.at_start if self.passes_back else self.step.credit
        for n, old in enumerate(states):
            given, sign = self.step.signals[old] if after else past(old), 1
            if self.meaning.holomorphic and part:  # by the imaginary part
                sign, old = (-1, states[n + 1]) if n % 2 == 0 else (1, states[n - 1])
                key = op, 0
            array = self.array(line, key, old)[after]
            if given is not None and self.each:
                used = grid.of_outputs(np.flatnonzero(self.slots[old] >= 0))
                value = view(given, self.slots[old][used.outputs])
                value *= sign * view(array, place.reshape(-1)[used.number])
                yield Term(value, used.weights)
            elif given is not None:
                yield Term(sign * dot(view(given), view(array)), grid.weights)

    def signals(self, line: Line, after: bool) -> Generator[Equation, None, list[Array | None]]:
        """Credit of the parts of the output: of states, times what is carried for outputs."""
        sources = self.step.sources(self.node.op)
        for part, source in enumerate(sources):
            terms = [*self.met(line, (self.node.op, part), after)]
            if terms and (part, after) not in self._signals:
                text, shape = f"s_{source.text}" + "_past" * (not after), (source.size,)
                array = self.step.array(text, shape, "s", source.text)
                self._signals[part, after] = array
                yield Equation(array, [self.step.term(array, *term) for term in terms])
        return [self._signals.get((part, after)) for part in range(len(sources))]

    def data(self, op: WeightOp, after: bool) -> Data | None:
        """What credit of outputs meets in the place of data, if that is carried."""
        of_data, over = (self.lines.get(n) for n in (self.meaning.data, self.meaning.over))
        if of_data is None:
            return None

        def data(x: Array | None, grid: Grid) -> Any:
            value = self.step.view(self.array(of_data, (op, x))[after], grid.inputs)
            if over is None:
                return value
            count = self.array(over, (self.node.op, 0))[after]
            below = self.step.view(count, np.zeros(grid.shape, int))
            return value / (below if after else self.step.nodes.defined["max"](below, 1))

        return data
