"""A linear memory that all outputs of a product share commutes with the product.

- Pattern: `r' = d r + W z`, where `d` is one number for all outputs: a leaky readout, or neurons with one time
  constant and a detached reset. In general, states of each output that move linearly and alike.
- Proof: `r = W q` with `q' = d q + z`. The entries of D and F among the states of an output are equal for all outputs
  of a class, and depend on parameters alone: as numbers they are the same for other data.
- Rewrite: the derivative of `r` by the weight and by its data is that of `W q`, and `q` is carried beside the state.
  The values of the step stay as they are, and so does the derivative of `r` by all else that enters it.
- What enters `z` has one more state, instead of one for each element of `r`, or instead of none where the product is
  cut. The weight needs no trace for `r`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jax import lax

from .._jax import (
    Equation,
    Flat,
    Variable,
    derivative_added,
    in_place_of,
    is_complex,
    prims,
    propagate,
    prune,
    result_type,
)
from ..trace import Step
from ._analysis import Analysis, analyse
from ._entries import Runs
from ._pattern import Pattern
from ._patterns import linearise
from ._patterns import propagate as patterns_of
from ._reach import closure
from ._weights import WeightOp, data_of

MOST = 8
"""An output with more states than this is not looked into, as each takes a run of the tangents."""
Row = tuple[int, ...]
"""The class of an output, and the numbers of the entries by which an element depends on its states and on itself."""


@dataclasses.dataclass(frozen=True, eq=False)
class Commuted:
    """A step in which a product acts on filtered data."""

    step: Step
    origin: dict[Equation, Equation]
    """The equation of the step before that an equation of this one is made from, where that is another."""


def through(analysis: Analysis) -> Analysis:
    """The analysis in which products act on filtered data, where their own data depends on states or operations, but on
    no state that they enter."""
    for op in reversed(analysis.live):
        reads = analysis.reach[op.number].dependence
        entered = sp.csr_array(analysis.immediate[op.number].T)
        behind = closure(entered, analysis.transition).indices
        if not reads.anything or reads.states[behind].any():
            continue
        found = commuted(analysis, op) if op.number in analysis.cut else None
        if found is not None:
            given = analysis.given or analysis.step
            return through(dataclasses.replace(analyse(found.step), given=given))
    return analysis


def commuted(analysis: Analysis, op: WeightOp, *, same: bool = False) -> Commuted | None:
    """The step in which the memory behind `op` is that of its data; `None` where that is not proved, or takes more than
    half as many copies of the data as there are outputs.

    `same`: what an operation holds constant stays so, that the gradient of the rule is the same. The data of earlier
    steps has no derivative then, where `op` holds its data, and what is read of old states alone has none on the way to
    data that is held.
    """
    data, eqn = data_of(op), op.equation
    others = [v for v in eqn.inputs if v.is_float and v not in (data, op.weight)]
    known = eqn in analysis.step.equations and len(eqn.outputs) == 1
    if data is None or not data.is_float or others or not known or eqn.outputs[0].size != op.size:
        return None
    rewriting = _Rewriting(analysis, op, same)
    return rewriting.made() if rewriting.look() else None


class _Rewriting:
    """What is proved of the states behind a product, and the equations of the step as they are written."""

    def __init__(self, analysis: Analysis, op: WeightOp, same: bool):
        self.analysis, self.op, self.same = analysis, op, same
        cut = op.number in analysis.cut
        self.held = same and cut and analysis.reach[op.number].dependence.anything
        self.step, self.hidden = analysis.step, analysis.hidden
        self.parts = len(self.hidden.parts)
        self.units = (1.0, 1j) if is_complex(op.delta) else (1.0,)
        numbers = (v.number for e in self.step.equations for v in e.outputs)
        self.count = itertools.count(max(numbers, default=0) + 1)
        self.equations: list[Equation] = []
        self.constants: dict[Variable, Any] = {}
        self.scalars: dict[int, Variable] = {}
        self.wanted: list[tuple[int, int, int]] = []
        """Of each of these: output of the tangents, run, element."""
        self.products: dict[tuple[Row, Any], Variable] = {}
        self.corrected: dict[tuple[Variable, bytes], Variable] = {}
        self.origin: dict[Equation, Equation] = {}
        self.new: dict[Row, Variable] = {}

    # --- the proof ---

    def look(self) -> bool:
        """Find the states of each output that move alike, and the values by their entries; whether there are any, and
        few classes of outputs."""
        a, op, size = self.analysis, self.op, self.hidden.size
        block = closure(sp.csr_array(a.immediate[op.number].T), a.transition)
        read = np.diff(sp.csc_array(a.transition).indptr) > 0
        once = np.bincount(block.indices, minlength=size)[block.indices] == 1
        kept = once & read[block.indices]
        self.lane = np.full(size, -1)
        """The output that each state is of; -1 where there is none."""
        self.lane[block.indices[kept]] = np.repeat(np.arange(op.size), np.diff(block.indptr))[kept]
        values = propagate(self.step.equations, [*self.hidden.old, *op.equation.outputs])
        every = (*self.hidden.old, *(v for eqn in self.step.equations for v in eqn.outputs))
        # In the order of the program: among equal entries the first is taken.
        self.values = [v for v in every if v.is_float and v in values]
        self.tangents = linearise(self.step, a.split, self.hidden, a.cut, self.values)
        sizes = [int(np.prod(part.shape)) for part in self.hidden.parts] + [o.size for o in a.ops]
        self.patterns, _, _ = patterns_of(self.tangents, self.step, sizes)
        self.first = sum(sizes[: self.parts + op.number])
        first = len(self.step.parameters)  # that a stream begins is no data
        data = range(first, first + len(self.step.input_leaves.avals))
        state = range(first + len(self.step.inputs), len(self.tangents.inputs) - len(sizes))
        self.runs = Runs(self.tangents, len(sizes), self.tangents.outputs, [*data, *state])
        while 0 < np.bincount(self.lane[self.lane >= 0]).max(initial=0) <= MOST:
            self._run()
            unlike = (self.lane >= 0) & ~self._alike()
            if not unlike.any():
                return self._classified()
            self.lane[unlike] = -1
        return False

    def _run(self) -> None:
        """The numbers of all values: one run for each state of an output, of all outputs at once, and one for the
        outputs, or two for complex ones."""
        members = np.flatnonzero(self.lane >= 0)
        order = members[np.argsort(self.lane[members], kind="stable")]
        self.slot = np.full(self.lane.size, -1)
        """The place of each state among those of its output."""
        starts = np.searchsorted(self.lane[order], self.lane[order])
        self.slot[order] = np.arange(len(order)) - starts
        self.slots = int(self.slot.max()) + 1
        bounds = self.hidden.part_bounds[1:-1]
        self.seeds: list[dict[int, np.ndarray]] = [
            {
                n: part
                for n, part in enumerate(np.split((self.slot == slot) * 1.0, bounds))
                if part.any()
            }
            for slot in range(self.slots)
        ]
        of_op = self.parts + self.op.number
        self.seeds += [{of_op: np.full(self.op.size, unit)} for unit in self.units]
        self.found = [self.runs.run(seeds) for seeds in self.seeds]
        again = [self.runs.run(seeds, again=True) for seeds in self.seeds]
        same = lambda a, b: np.where(a == b, a, -1).reshape(-1)
        pairs = [*zip(self.found, again, strict=True)]
        self.numbers = [
            np.stack([same(a[v], b[v]) for a, b in pairs]) for v in self.tangents.outputs
        ]
        """Of each output of the tangents: [runs, elements]; -1 where data changes the entry."""

    def _alike(self) -> np.ndarray:
        """Which states depend on states of their own output alone, by entries that no data changes, and are entered."""
        found = [self._of(n) for n in range(self.parts)]
        own, alike = (np.concatenate(each) for each in zip(*found, strict=True))
        inside = self.lane >= 0
        entered = np.diff(self.analysis.immediate[self.op.number].indptr) > 0
        among = self.analysis.transition.multiply(inside[:, None] & inside[None])
        moved = closure(sp.csr_array((entered & inside)[None]), sp.csr_array(among)).indices
        return alike & (own == self.lane) & np.isin(np.arange(inside.size), moved)

    def _of(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the elements of an output of the tangents: the output of the product that each depends on, -1 where none;
        and whether it is one alone, by entries that no data changes."""
        pattern: Pattern = self.patterns[place]
        lanes = np.full(pattern.shape[1], -1)
        lanes[: self.lane.size] = self.lane
        lanes[self.first : self.first + self.op.size] = np.arange(self.op.size)
        entries = lanes[pattern.indices]
        rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))[entries >= 0]
        most, least = np.full(pattern.shape[0], -1), np.full(pattern.shape[0], pattern.shape[1])
        np.maximum.at(most, rows, entries[entries >= 0])
        np.minimum.at(least, rows, entries[entries >= 0])
        return most, (most < 0) | ((most == least) & (self.numbers[place] >= 0).all(0))

    def _classified(self) -> bool:
        """Find the classes of outputs whose states move alike; whether they are few enough."""
        members = np.flatnonzero(self.lane >= 0)
        table = np.full((self.slots, len(self.seeds), self.op.size), -1)
        numbers = np.concatenate(self.numbers[: self.parts], axis=1)
        table[self.slot[members], :, self.lane[members]] = numbers[:, members].T
        flat = table.reshape(-1, self.op.size)
        columns, classes = np.unique(flat, axis=1, return_inverse=True)
        self.transition, self.of_lane = columns.reshape(*table.shape[:2], -1), classes.reshape(-1)
        """The numbers by which each state of a class moves, [slots, runs, classes]; and the class of each output."""
        count = self.transition.shape[2]
        return count == 1 or 2 * count <= self.op.size

    # --- the step ---

    def made(self) -> Commuted | None:
        """The step, or `None` where a new state comes from its old value and from the product by other than linear
        steps."""
        step, hidden, eqn = self.step, self.hidden, self.op.equation
        own = np.unique(hidden.leaf_of(np.flatnonzero(self.lane >= 0))).tolist()
        stored = {hidden.leaves[n]: n for n in own}
        self._linear()
        if not self.plain.issuperset(hidden.new[n] for n in own):
            return None
        self.data = data_of(self.op)
        assert self.data is not None
        dtype = result_type(jnp.float32, self.data.aval.dtype, self.op.delta.dtype)
        self.aval = jax.ShapeDtypeStruct(self.data.shape, dtype)
        places = np.argwhere((self.transition >= 0).any(1))
        self.old = {(slot, of_class): self._new(self.aval) for slot, of_class in places.tolist()}
        prefix, new = set(self.analysis.split.prefix), list[Variable]()
        for e in sorted(step.equations, key=lambda e: e not in prefix):
            if e is eqn:
                new = self._product(e)
            elif e in self.linear:
                self.equations.append(e)
            else:
                inputs = tuple(
                    self._with_filtered(v) if self._passes_on(e, v) else v for v in e.inputs
                )
                read = e if inputs == e.inputs else dataclasses.replace(e, inputs=inputs)
                self.origin[read] = e
                self.equations.append(read)
        outputs = [self._with_filtered(v) for v in step.outputs]
        next_state = [
            self._with_filtered(v, self._elsewhere(stored[n]))
            if n in stored
            else self._with_filtered(v)
            for n, v in enumerate(step.next_state)
        ]
        name = f"filtered({self.op.path})"
        taken = sum(path.startswith(name) for path, _ in step.added)
        numbered = (taken + n for n in range(len(self.old)))
        added = [(f"{name}<{n}>" if n else name, self.aval) for n in numbered]
        program = Flat(
            (*self._entries(), *self.equations),
            (*step.program.inputs, *self.old.values()),
            (*outputs, *next_state, *new),
            {**step.constants, **self.constants},
        )
        made = dataclasses.replace(step, program=program, added=(*step.added, *added))
        return Commuted(made, self.origin)

    def _linear(self) -> None:
        """Find the equations by which values depend on one output each, and these values, `plain`."""
        values = dict(zip(self.values, range(self.parts, len(self.patterns)), strict=True))
        self.of = {v: (*self._of(place), self.numbers[place]) for v, place in values.items()}
        self.plain = {v for v in self.hidden.old if self._depends(v)} | {*self.op.equation.outputs}
        self.linear = set[Equation]()
        for eqn in self.step.equations:
            moved = [v for v in eqn.outputs if self._depends(v)]
            entering = [v for v in eqn.inputs if self._depends(v)]
            if eqn is self.op.equation or not moved or not entering:
                continue
            if self.plain.issuperset(entering) and all(self.of[v][1].all() for v in moved):
                self.linear.add(eqn)
                self.plain.update(moved)

    def _passes_on(self, eqn: Equation, v: Variable) -> bool:
        """Whether an equation passes on a derivative by a value."""
        if eqn.primitive is prims.stop_gradient_p or not any(o.is_float for o in eqn.outputs):
            return False
        if not self.same or v not in self.plain:
            return True
        zero = self.runs.numbering.is_zero
        is_new = (~zero(self.of[v][2][self.slots :]) & (self.of[v][0] >= 0)).any()
        return bool(is_new) or not self.leading.isdisjoint(eqn.outputs)

    @functools.cached_property
    def leading(self) -> set[Variable]:
        """What an output or a new state depends on past the operations that hold their data."""
        cut = {op.equation for op in self.analysis.ops if op.number in self.analysis.cut}
        found = {*self.step.outputs, *self.step.next_state}
        for eqn in reversed(self.step.equations):
            passes = eqn not in cut and eqn.primitive is not prims.stop_gradient_p
            if passes and not found.isdisjoint(eqn.outputs):
                found.update(v for v in eqn.inputs if v.is_float)
        return found

    def _depends(self, v: Variable) -> bool:
        """Whether a value depends on the states or on the product."""
        return v in self.of and bool((self.of[v][0] >= 0).any())

    def _elsewhere(self, leaf: int) -> np.ndarray:
        """Which elements of a leaf of the hidden states are no states of an output."""
        first, count = self.hidden.offsets[leaf], self.hidden.new[leaf].size
        return self.lane[first : first + count] < 0

    def _new(self, aval: Any) -> Variable:
        return Variable(next(self.count), aval)

    def _add(self, function: Callable[..., Any], inputs: Sequence[Variable], aval: Any) -> Variable:
        """Add a function of some values; the variable of its result."""
        result = self._new(aval)
        flat = self._written(function, inputs, [result])
        self.equations += flat.equations
        return result

    def _written(
        self, function: Callable[..., Any], inputs: Sequence[Variable], outputs: Sequence[Variable]
    ) -> Flat:
        of = self.op.equation
        eqn = Equation(of.primitive, {}, tuple(inputs), tuple(outputs), of.source, of.traceback)
        flat = in_place_of(eqn, function)
        self.constants |= flat.constants
        return flat

    def _product(self, eqn: Equation) -> list[Variable]:
        """Write the product without a derivative; the filtered data after this step."""
        data, weight = data_of(self.op), self.op.weight
        assert data is not None
        self.data = self._with_filtered(data)
        stopped = {
            data: self._add(lax.stop_gradient, [self.data], data.aval),
            weight: self._add(lax.stop_gradient, [weight], weight.aval),
        }
        inputs = tuple(stopped.get(v, v) for v in eqn.inputs)
        self.equations.append(dataclasses.replace(eqn, inputs=inputs))
        rows: list[Row] = [(k, *self.transition[slot, :, k].tolist()) for slot, k in self.old]
        new = [self._combined(row, "real", held=False) for row in rows]
        self.new = dict(zip(rows, new, strict=True))
        return new

    def _filtered(self, row: Row, part: str) -> Variable:
        """The data that a product acts on: where it can be, what is carried."""
        same = [new for of, new in self.new.items() if of == row]
        if same and part == "real" and not self.held:
            return same[0]
        return self._combined(row, part, held=self.held)

    def _combined(self, row: Row, part: str, *, held: bool) -> Variable:
        """Filtered data and the data of this step, each times a part of its entry, added up."""
        of_class, *numbers = row
        terms: list[tuple[Variable, Variable | None, complex]] = []
        for run in np.flatnonzero(~self.runs.numbering.is_zero(np.array(numbers))).tolist():
            of_output = run >= self.slots
            unit = self.units[run - self.slots].conjugate() if of_output else 1.0
            value = self.data if of_output else self.old[run, of_class]
            assert value is not None
            if held and not of_output:
                value = self._add(lax.stop_gradient, [value], value.aval)
            entry = self._entry(numbers[run])
            if entry is not None or part == "real":  # one has no imaginary part
                terms.append((value, entry, unit))

        dtype = self.aval.dtype

        def combine(*values: Any) -> Any:
            filtered, entries = values[: len(terms)], iter(values[len(terms) :])
            total: list[Any] = []
            for (_, entry, unit), value in zip(terms, filtered, strict=True):
                factor = 1.0 if entry is None else getattr(next(entries), part)
                total.append(value.astype(dtype) * (jnp.asarray(factor, dtype) * unit))
            return functools.reduce(jnp.add, total or [jnp.zeros(self.aval.shape, dtype)])

        entries = [entry for _, entry, _ in terms if entry is not None]
        return self._add(combine, [*(value for value, _, _ in terms), *entries], self.aval)

    def _entry(self, number: int) -> Variable | None:
        """An entry of D or F as a value without a derivative; `None` for one."""
        places = ((n, np.argwhere(at == number)) for n, at in enumerate(self.numbers))
        place, (run, element) = next((n, at[0].tolist()) for n, at in places if len(at))
        dtype = self.tangents.outputs[place].aval.dtype
        if number == self.runs.numbering.constant(np.ones((), dtype)):
            return None
        if number not in self.scalars:
            self.scalars[number] = self._new(jax.ShapeDtypeStruct((), dtype))
            self.wanted.append((place, run, element))
        return self.scalars[number]

    def _entries(self) -> tuple[Equation, ...]:
        """The equations of the entries that are used."""
        zero, moving = self.runs.numbering.is_zero, self.runs.tangents
        inputs = (*self.step.parameters, *self.step.inputs, *self.step.state)

        def entries(*values: Any) -> list[Any]:
            found: dict[int, list[Any]] = {}
            for run in dict.fromkeys(run for _, run, _ in self.wanted):
                numbers = self.found[run]

                def rule(eqn: Equation, _: Any, numbers: Any = numbers) -> list[Any] | None:
                    moved = moving.issuperset(eqn.outputs) and all(
                        zero(numbers[v]).all() for v in eqn.outputs
                    )
                    return (
                        [jnp.zeros(v.shape, v.aval.dtype) for v in eqn.outputs] if moved else None
                    )

                seeds = [
                    np.reshape(self.seeds[run].get(n, np.zeros(v.size)), v.shape).astype(
                        v.aval.dtype
                    )
                    for n, v in enumerate(self.runs.seeds)
                ]
                found[run] = self.tangents.run([*values, *seeds], rule)
            picked = (found[run][place].reshape(-1)[at] for place, run, at in self.wanted)
            return [lax.stop_gradient(entry) for entry in picked]

        if not self.scalars:
            return ()
        flat = self._written(entries, inputs, [*self.scalars.values()])
        return prune(flat.equations, self.scalars.values())

    def _with_filtered(self, v: Variable, where: np.ndarray | None = None) -> Variable:
        """A value whose derivative by the product is that of the product of filtered data, of all elements or some."""
        if v not in self.plain:
            return v
        own, _, numbers = self.of[v]
        moved = (own >= 0) if where is None else (own >= 0) & where
        name = v, moved.tobytes()
        if not moved.any():
            return v
        if name not in self.corrected:
            rows: dict[Row, list[int]] = {}
            for e in np.flatnonzero(moved).tolist():
                row = (int(self.of_lane[own[e]]), *numbers[:, e].tolist())
                rows.setdefault(row, []).append(e)
            sources = []
            for elements in rows.values():
                source = np.full(v.size, -1)
                source[elements] = _positions(self.op)[own[elements]]
                sources.append(source.reshape(v.shape))

            def add(value: Any, *products: Any) -> Any:
                return derivative_added(
                    value, functools.reduce(jnp.add, map(_taken, products, sources))
                )

            products = [self._product_of(row, v.aval.dtype) for row in rows]
            self.corrected[name] = self._add(add, [v, *products], v.aval)
        return self.corrected[name]

    def _product_of(self, row: Row, dtype: Any) -> Variable:
        """The product of filtered data with the weight, which is to be added to a value of this dtype."""
        if (row, dtype) not in self.products:
            eqn, data = self.op.equation, data_of(self.op)
            assert data is not None
            products: list[Variable] = []
            for part in ("real", "imag")[: 1 + jnp.issubdtype(dtype, jnp.complexfloating)]:
                filtered = self._filtered(row, part)
                # Data may be of a narrower type than the weight, or real beside a complex one: its sums may not.
                of_data = result_type(data.aval.dtype, self.op.weight.aval.dtype)
                if filtered.aval.dtype != of_data:
                    aval = jax.ShapeDtypeStruct(data.shape, of_data)
                    filtered = self._add(
                        lambda value, to=of_data: value.astype(to), [filtered], aval
                    )
                made = dataclasses.replace(
                    eqn,
                    inputs=tuple(filtered if v is data else v for v in eqn.inputs),
                    outputs=(self._new(eqn.outputs[0].aval),),
                    real=tuple(n for n in eqn.real if eqn.inputs[n] is not data),
                )
                self.origin[made] = eqn
                self.equations.append(made)
                products += made.outputs

            def join(*of_parts: Any) -> Any:
                real = [a.real.astype(jnp.finfo(dtype).dtype) for a in of_parts]
                return real[0] if len(real) == 1 else lax.complex(*real)

            joined = jax.ShapeDtypeStruct(eqn.outputs[0].shape, dtype)
            same = len(products) == 1 and products[0].aval.dtype == dtype
            self.products[row, dtype] = products[0] if same else self._add(join, products, joined)
        return self.products[row, dtype]


def _taken(product: Any, source: np.ndarray) -> Any:
    """The elements of a product at the places in `source`, and zeros where that is -1."""
    flat, at = product.reshape(-1), source.reshape(-1)
    first = int(np.argmax(at >= 0))
    if np.array_equal(at[first : first + flat.size], np.arange(flat.size)):
        rest = at.size - first - flat.size
        if (at >= 0).sum() == flat.size:
            return (
                jnp.pad(flat, (first, rest)).reshape(source.shape)
                if rest or first
                else product.reshape(source.shape)
            )
    return jnp.where(source >= 0, flat[np.maximum(source, 0)], 0)


def _positions(op: WeightOp) -> np.ndarray:
    """Where each output of an operation lies in the array of its results."""
    (output,) = op.equation.outputs
    with jax.ensure_compile_time_eval():
        numbers = jnp.arange(op.size, dtype=jnp.float32).reshape(op.kind.groups, op.kind.outputs)
        zeros = jnp.zeros(output.shape, jnp.float32)
        return np.argsort(np.asarray(op.kind.shift_outputs([zeros], numbers)[0]).reshape(-1))
