"""The traced step on scalars: named arrays, each computed by one or more equations."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ..analyse import Analysis, WeightOp
from ..errors import UnsupportedError
from ..files.source import assigned, statement_of
from ..files.words import python_name
from ..trace import (
    IDENTITIES,
    Equation,
    Variable,
    canonicalise,
    facts,
    flatten,
    is_complex,
    is_key,
    is_spike,
    params,
    prims,
    prune,
)
from ._functions import COMPLEX, ELEMENTS, INTEGERS, WITHIN, WRAPPING, function, parts_of
from ._names import in_names, is_close, numbers_of
from ._nodes import Array, Ids, Nodes, Sums
from ._products import Grid, Product, Times, sums_of

Parts = tuple[Ids, ...]
"""The nodes of a real array, or of the real and the imaginary part of a complex one."""
Arrays = tuple[Array, ...]


class Evaluation:
    """Runs equations on nodes."""

    def __init__(self, nodes: Nodes, known: dict[Variable, np.ndarray]):
        self.nodes, self.known = nodes, known
        self.env: dict[Variable, Parts] = {}

    def value(self, v: Variable) -> Parts:
        if v not in self.env:
            self.env[v] = self.constant(self.known[v])
        return self.env[v]

    def constant(self, value: np.ndarray) -> Parts:
        if np.iscomplexobj(value):
            return *self.constant(np.real(value)), *self.constant(np.imag(value))
        if value.size and (value == value.flat[0]).all():
            return (np.full(value.shape, self.nodes.number(value.flat[0])),)
        return (np.array([self.nodes.number(a) for a in value.flat]).reshape(value.shape),)

    def folded(self, equations: Iterable[Equation]) -> list[Equation]:
        """The equations whose results are not constants, which are evaluated."""
        found: list[Equation] = []
        for eqn in equations:
            values = [self.known.get(v) for v in eqn.inputs]
            if all(v is not None for v in values) and not any(is_key(v.aval) for v in eqn.outputs):
                with jax.ensure_compile_time_eval():
                    results = map(np.asarray, eqn.bind(*map(jnp.asarray, values)))
                    self.known.update(zip(eqn.outputs, results, strict=True))
            elif eqn.outputs:  # a conditional may have none that is used
                found.append(eqn)
        return found

    def run(self, equations: Iterable[Equation]) -> None:
        for eqn in equations:
            for v, parts in zip(eqn.outputs, self.outputs(eqn), strict=True):
                self.env[v] = self.kept(eqn, v, parts)

    def kept(self, eqn: Equation, v: Variable, parts: Parts) -> Parts:
        return parts

    def outputs(self, eqn: Equation) -> Sequence[Parts]:
        return self.applied(eqn, [self.value(v) for v in eqn.inputs])

    def applied(self, eqn: Equation, operands: Sequence[Parts]) -> Sequence[Parts]:
        moved, (out, *_) = self._moved(eqn, operands), eqn.outputs
        if moved is not None:
            return moved
        if not _is_written(eqn):
            return self.called(eqn, operands)
        found = self._computed(eqn, operands)
        if _is_integer(out) and eqn.primitive.name in WRAPPING:
            return [(self.nodes.apply(str(out.aval.dtype), found[0][0]),)]
        return found

    def _computed(self, eqn: Equation, operands: Sequence[Parts]) -> Sequence[Parts]:
        name, apply = eqn.primitive.name, self.nodes.apply
        if name == "pow":
            operands = [self._real(*pair) for pair in zip(eqn.inputs, operands, strict=True)]
        (first, *rest), is_of_complex = operands, any(len(parts) > 1 for parts in operands)
        if name == "convert_element_type":
            return [self._converted(eqn, first)]
        if name in ("real", "complex"):
            return [(first[0], *(parts[0] for parts in rest))]
        if name in ("imag", "conj"):
            return [(first[1],) if name == "imag" else (first[0], apply("neg", first[1]))]
        if name == "select_n" and len(rest) == 2:
            return [tuple(apply("select", first[0], *pair) for pair in zip(*rest, strict=True))]
        if name == "integer_pow" and not is_of_complex:
            return [(apply("pow", first[0], np.array(self.nodes.number(eqn.params["y"]))),)]
        if is_of_complex and name in COMPLEX:
            zero = np.array(self.nodes.number(0))
            pairs = [parts if len(parts) > 1 else (*parts, zero) for parts in operands]
            parts = range(2)
            for n in parts:
                self.nodes.defined.setdefault(f"{name}/{n}", parts_of(name, len(pairs))[n])
            return [tuple(apply(f"{name}/{n}", *(a for p in pairs for a in p)) for n in parts)]
        if not is_of_complex and name in ELEMENTS:
            return [(apply(name, *(parts[0] for parts in operands)),)]
        if not is_of_complex and params.custom_body(eqn) is not None and len(eqn.outputs) == 1:
            own = self._own(eqn)
            if own is not None:
                return [(apply(own, *(self.argument(parts[0]) for parts in operands)),)]
        return self.called(eqn, operands)

    def argument(self, ids: Ids) -> Ids:
        return ids

    def called(self, eqn: Equation, operands: Sequence[Parts]) -> Sequence[Parts]:
        raise OfWholeArrays

    def _moved(self, eqn: Equation, operands: Sequence[Parts]) -> Sequence[Parts] | None:
        """What an operation gives that moves elements to places that data does not say, or not at all."""
        if eqn.primitive in IDENTITIES or eqn.primitive is prims.copy_p:
            return operands
        floats = [v.is_float for v in (*eqn.inputs, *eqn.outputs)]
        if eqn.primitive is prims.convert_element_type_p and all(floats):
            return [self._converted(eqn, operands[0])]
        record, fill = facts(eqn.primitive), eqn.params.get("fill_value", 0)
        at = range(len(eqn.inputs))[_PLACED.get(eqn.primitive.name, slice(0))]
        places = {n: self.known[eqn.inputs[n]] for n in at if eqn.inputs[n] in self.known}
        if record.rearranges is None and (not at or len(places) < len(at)):
            return None
        if eqn.primitive is prims.gather_p:  # the number of no node
            eqn = dataclasses.replace(eqn, params={**eqn.params, "fill_value": -1})
        found, zero = list[list[Ids]](), self.nodes.number(0)
        second = lambda v, parts: np.full(v.shape, zero) if v.is_float else parts[0]
        both = [(*of, second(v, of)) for v, of in zip(eqn.inputs, operands, strict=True)]
        for part in range(max(map(len, operands), default=0)):
            ids = [parts[part] for parts in both]
            if record.rearranges is not None:
                found.append([np.asarray(a) for a in record.rearranges(*ids, **eqn.params)])
            else:
                with jax.ensure_compile_time_eval():
                    given = [jnp.asarray(places.get(n, i)) for n, i in enumerate(ids)]
                    moved = [np.asarray(a) for a in eqn.bind(*given)]
                none = self.nodes.number((np.real, np.imag)[part](fill or 0))
                found.append([np.where(a < 0, none, a) for a in moved])
        return [*zip(*found, strict=True)]

    def _converted(self, eqn: Equation, parts: Parts) -> Parts:
        (was,), (to,) = eqn.inputs, eqn.outputs
        parts = self._real(was, parts) if to.is_float else parts
        zero = np.array(self.nodes.number(0))
        if is_complex(to.aval):
            return parts if len(parts) == 2 else (*parts, np.broadcast_to(zero, to.shape))
        if to.aval.dtype == np.dtype(bool) and was.aval.dtype != np.dtype(bool):
            return (self.nodes.apply("ne", parts[0], zero),)
        if was.is_float and not to.is_float:
            return (self.nodes.apply(f"to_{to.aval.dtype}", parts[0]),)
        fits = _is_integer(was) and np.can_cast(was.aval.dtype, to.aval.dtype)
        if _is_integer(to) and not fits:
            return (self.nodes.apply(str(to.aval.dtype), parts[0]),)
        return parts[:1]

    def _real(self, v: Variable, parts: Parts) -> Parts:
        return (self.nodes.apply("real", parts[0]),) if _is_integer(v) else parts

    # --- functions that the model defines ---

    def _own(self, eqn: Equation) -> str | None:
        """The name of a function of elements with its own derivative; `None` where it is one of whole arrays."""
        names = [sp.Symbol(n, real=True) for n in "uvwabcdefghijklmnopqrst"[: len(eqn.inputs)]]
        nodes, name = self.nodes, ""
        try:
            value = self._element(flatten(params.custom_body(eqn)), eqn, names)
            if value in nodes.open:  # its derivative calls the function itself
                return nodes.open[value]
            name = nodes.name("H" if is_spike(eqn) else _name_of(eqn), "f")
            slopes = [nodes.name("psi" if is_spike(eqn) else f"d_{name}") for _ in names]
            of = [sp.Function(n, nargs=len(names), real=True) for n in slopes]
            nodes.open[value] = name
            nodes.defined[name] = function(name, *of)
            found = [self._element(_slope(eqn, n), eqn, names) for n in range(len(names))]
        except OfWholeArrays:
            return None
        finally:
            nodes.open = {v: n for v, n in nodes.open.items() if n != name}
        itself = sp.Function("itself")
        key = value, *(f.replace(nodes.defined[name], itself) for f in found)
        if key in nodes.own:
            nodes.names -= {name, *slopes}
            return nodes.own[key][0][0]
        pairs = zip([name, *slopes], [value, *found], strict=True)
        nodes.own[key] = [(n, tuple(names), expression) for n, expression in pairs]
        return name

    def _element(self, flat: Any, eqn: Equation, names: Sequence[Any]) -> Any:
        """A function of elements as an expression of its arguments."""
        inner = Evaluation(self.nodes, {v: np.asarray(a) for v, a in flat.constants.items()})
        arrays = [self.nodes.array("", v.shape) for v in flat.inputs]
        inner.env = {v: _ids((a,), v) for v, a in zip(flat.inputs, arrays, strict=True)}
        inner.run(inner.folded(prune(flat.equations, flat.outputs)))
        (ids,) = inner.value(flat.outputs[0])
        (_, touched), *others = self.nodes.families(ids)
        if ids.shape != eqn.outputs[0].shape or others:
            raise OfWholeArrays
        argument = dict(zip(arrays, names, strict=True))
        of_symbol: dict[Any, Any] = {}
        for nodes in touched.T:
            array, place = self.nodes.elements(nodes)
            if array not in argument or (array.size > 1 and (place != np.arange(ids.size)).any()):
                raise OfWholeArrays
            of_symbol[self.nodes.expression(int(nodes[0]))] = argument[array]
        return self.nodes.expression(int(ids.flat[0])).xreplace(of_symbol)


class Call(NamedTuple):
    """A function of whole arrays."""

    name: str
    equation: Equation
    arguments: list[Ids]
    is_known: bool
    """Whether it is written as a sum."""


class Step(Evaluation):
    """The named arrays of a step, in the order in which they are computed."""

    def __init__(self, analysis: Analysis, names: Mapping[float, str]):
        step, split, hidden = analysis.step, analysis.split, analysis.hidden
        given = {**step.constants, **step.fixed}
        known = {v: np.asarray(a) for v, a in given.items() if not is_key(v.aval)}
        super().__init__(Nodes(), known)
        self.analysis, self.step, self.names = analysis, step, names
        self.numbers = numbers_of(step.model_leaves.join(step.model_leaves.avals), step.call)
        self.computed: list[tuple[Array, np.ndarray | None]] = []
        """What is computed, in order: the elements of an array, or all."""
        self.products: dict[WeightOp, Product] = {}
        self.values: dict[Array, np.ndarray] = {}
        """Arrays of constants."""
        self.calls: dict[Array, Call] = {}
        """Functions of whole arrays."""
        self._defined: dict[bytes, Array] = {}
        self._in_body = False
        self.parameters = self._leaves(step.parameters, step.model_leaves.paths, "source")
        paths = step.with_begins(step.input_leaves.paths, "begins")
        self.inputs = self._leaves(step.inputs, paths, "given")
        self.state = self._leaves(step.state, step.state_paths, "source")
        self.new_state = [
            tuple(self.nodes.after(a, nodes=np.full(a.size, -1)) for a in of) for of in self.state
        ]
        every = [*split.prefix, *split.body]
        self._assigned = assigned(every)
        stored = [(self.state[i], self.new_state[i]) for i in hidden.leaves[: hidden.stored]]
        self.hidden = [*stored, *map(self._transient, hidden.new[hidden.stored :])]
        """The parts of each hidden state, before and after the step; of a transient one nothing is known before it."""
        after = (parts for _, parts in self.hidden)
        new = [*zip(hidden.new, after, strict=True)]
        new += zip(split.next_state, self.new_state, strict=True)
        self._read = Counter(v for eqn in every for v in eqn.inputs)
        self._read.update([*split.outputs, *split.next_state])
        self._ops: dict[Equation, list[WeightOp]] = {}
        for op in analysis.ops:
            self._ops.setdefault(op.equation, []).append(op)
        prefix, body = self.folded(split.prefix), self.folded(split.body)
        self._new_of: dict[Variable, Arrays] = {}
        for v, parts in new:
            if v.is_float and v not in step.state:
                self._new_of.setdefault(v, parts)
        given = (a.ids for of in (self.parameters, self.state) for parts in of for a in parts)
        self._given, self._becomes = np.concatenate([*given]), dict[Variable, Parts]()
        self.run(prefix)
        paths = {op.weight: "w_" + op.path for op in analysis.ops}
        for v in split.weights:
            text = self._assigned.get(v, paths.get(v, "w"))
            self.env[v] = tuple(self._parts(self.value(v), text))
        self.once, self.computed, self._in_body = self.computed, [], True
        self._becomes = self._moved_on(body)
        self.run(body)
        for v, parts in new:
            for array, ids in zip(parts, self.value(v), strict=True):
                self._is_new(array, array.ids, ids.reshape(-1))
        self.outputs_of = [
            tuple(self._output(v, p, ids, n) for n, ids in enumerate(self.value(v)))
            for v, p in zip(split.outputs, step.output_leaves.paths, strict=True)
        ]

    # --- names ---

    def _leaves(
        self, variables: Sequence[Variable], paths: Sequence[str], kind: str
    ) -> list[Arrays]:
        """Arrays for the leaves of a tree, each by the last part of its path where that is its own."""
        last_of = lambda p: "h" if p == "state" else re.split(r"\W+", p.rstrip("]'"))[-1]
        filtered = {path: last_of(path.partition(")")[0]) for path, _ in self.step.added}
        short = [f"q_{filtered[p]}" if p in filtered else last_of(p) for p in paths]
        found: list[Arrays] = []
        for v, path, last in zip(variables, paths, short, strict=True):
            own = short.count(last) == 1 and not last.isdigit() and last not in self.nodes.names
            name = self.nodes.name(last if own else path, "h")
            is_matrix = v in self.step.parameters and len(v.shape) == 2
            tex = ("xbar", filtered[path]) if path in filtered else ()
            fields = dict(kind=kind if v.is_float else "given", dtype=_held_as(v), tex=tex)
            shape = v.shape if is_matrix else (v.size,)
            found.append(tuple(self.nodes.array(name + s, shape, **fields) for s in _parts(v)))
            self.env[v] = _ids(found[-1], v)
        return found

    def _transient(self, v: Variable) -> tuple[Arrays, Arrays]:
        """The parts of a value that counts as a new state."""
        name = self.nodes.name(self._assigned.get(v, "q"))
        of = [self.nodes.array(name + s, (v.size,), kind="given") for s in _parts(v)]
        new = (self.nodes.array(a.name, a.shape, nodes=np.full(a.size, -1)) for a in of)
        return tuple(of), tuple(new)

    def _moved_on(self, equations: Sequence[Equation]) -> dict[Variable, Parts]:
        """The element of a new state that each element of a value is, or is moved on into; -1 where there is none."""
        ids, moves = dict[Variable, Parts](), list[tuple[Parts, Parts]]()

        def of(v: Variable) -> Parts:
            if v not in ids:
                ids[v] = _ids([self.nodes.array("", v.shape) for _ in _parts(v)], v)
            return ids[v]

        for eqn in equations:
            moved = self._moved(eqn, [*map(of, eqn.inputs)])
            moves += zip(map(of, eqn.outputs), moved or (), strict=moved is not None)
        becomes = np.full(self.nodes.first_free, -1)
        for v, arrays in self._new_of.items():
            given = _ids(arrays, v), of(v)
            for pair in (given, *reversed(moves)):
                for to, source in zip(*pair, strict=True):
                    is_new = to if pair is given else becomes[to]
                    here = (is_new >= 0) & (becomes[source] < 0)
                    becomes[source[here]] = is_new[here]
        return {v: tuple(becomes[places] for places in parts) for v, parts in ids.items()}

    def named(self, ids: Ids, text: str, dtype: str = "") -> Ids:
        """Values as elements of one array, which gets a name where they are not."""
        found = self.nodes.element(int(ids.flat[0])) if ids.size else None
        if found is None or not np.isin(ids, found[0].ids).all():
            key = ids.tobytes()
            if key not in self._defined:
                array = self._array(text, ids.shape, nodes=ids.reshape(-1), dtype=dtype)
                self._defined[key] = array
                self.computed.append((array, None))
            ids = self._defined[key].ids.reshape(ids.shape)
        return ids

    def _array(self, text: str, shape: tuple[int, ...], **fields: Any) -> Array:
        """An array that is computed: a matrix of what depends on parameters alone, or flat."""
        is_matrix = len(shape) == 2 and not self._in_body
        shape = shape if is_matrix else (int(np.prod(shape)),)
        return self.nodes.array(self.nodes.name(text, "f"), shape, **fields)

    def constant(self, value: np.ndarray) -> Parts:
        uniform = np.iscomplexobj(value) or value.size < 2 or (value == value.flat[0]).all()
        if uniform:
            return super().constant(value)
        value = value.astype(float) if value.dtype == np.dtype(bool) else value
        shape = value.shape if value.ndim == 2 else (value.size,)
        name = self.nodes.name("B" if value.ndim == 2 else "c")
        array = self.nodes.array(name, shape, kind="given")
        self.values[array] = value.reshape(shape)
        return (array.ids.reshape(value.shape),)

    def argument(self, ids: Ids) -> Ids:
        """What a spike is of, by a name: its derivative is of that too."""
        return self.named(ids, "u") if self.nodes.operations(int(ids.flat[0])) else ids

    def kept(self, eqn: Equation, v: Variable, parts: Parts) -> Parts:
        """The value of a variable, with names for new states and for what is used again."""
        found: list[Ids] = []
        for n, ids in enumerate(parts):
            ids = self._as_new_states(v, n, ids)
            again = self._read[v] > 1 or eqn.primitive.name in ("logistic", "tanh", "exp")
            few = max(map(self.nodes.operations, np.unique(ids).tolist()), default=0)
            if again and few > (v not in self._assigned):
                text = self._assigned.get(v, "q") + ("_im" if n else "")
                ids = self.named(ids, text, _held_as(v))
            found.append(ids)
        return tuple(found)

    def _as_new_states(self, v: Variable, part: int, ids: Ids) -> Ids:
        """The elements of new states by their names, wherever the step computes them."""
        if v not in self._becomes or (v not in self._new_of and np.isin(ids, self._given).all()):
            return ids
        number, found = self._becomes[v][part].reshape(-1), ids.reshape(-1).copy()
        for array in (a for parts in self._new_of.values() for a in parts):
            here = np.flatnonzero(np.isin(number, array.ids))
            self._is_new(array, number[here], found[here])
            found[here] = number[here]
        return found.reshape(v.shape)

    def _is_new(self, array: Array, to: Ids, ids: Ids) -> None:
        """What the step computes elements of a new state as, where that is not said yet."""
        left = (array.values[to - array.first] < 0) & (ids != to)
        places, first = np.unique(to[left] - array.first, return_index=True)
        if places.size or not array.size:
            array.values[places] = ids[left][first]
            self.computed.append((array, places))

    def _output(self, v: Variable, path: str, ids: Ids, part: int) -> Array:
        name = self.nodes.name(path + ("_im" if part else ""))
        array = self.nodes.array(name, (ids.size,), nodes=ids.reshape(-1), dtype=_held_as(v))
        self.computed.append((array, None))
        return array

    # --- weights and functions of whole arrays ---

    def _named(self, v: Variable, eqn: Equation) -> Any:
        """A constant of an equation by its name, or in symbols of other names."""
        value, symbol = float(self.known[v].flat[0]), self.nodes.constant
        for given, name in self.names.items():
            if is_close(given, value):
                return symbol(name, given)
            if abs(1 - given - value) < 1e-6 * value:
                return 1 - symbol(name, given)
        if v in self._assigned:
            return symbol(self._assigned[v], value)
        found = in_names(value, statement_of(eqn), self.numbers) if value else None
        if found is None or (value in (1, -1) and not found[1].is_Symbol):
            return None
        return found[1].xreplace({sp.Symbol(n): symbol(n, a) for n, a in found[0].items()})

    def outputs(self, eqn: Equation) -> Sequence[Parts]:
        for v in eqn.inputs:
            constant = self.known.get(v, np.zeros(0))
            if v.is_float and v not in self.env and constant.size and not is_complex(v.aval):
                alike = (constant == constant.flat[0]).all() and self._named(v, eqn)
                if alike:
                    self.env[v] = (np.full(v.shape, self.nodes.node("number", (alike,))),)
        ops = self._ops.get(eqn, [])
        operands = [self.value(v) for v in eqn.inputs]
        if self.step.added and _name_of(eqn) == "derivative_added":
            return [tuple(map(partial(self.nodes.apply, "with_derivative"), *operands))]
        for op in ops:
            if op.kind.data is not None and len(ops) > 1:
                raise UnsupportedError(
                    f"{op} has several weights, and no equation is known for it. Compute with one weight at a time."
                )
            if op.kind.data is not None:
                return self._product(op, operands)
            weights = [self.nodes.elements(ids)[0] for ids in operands[op.operand]]
            terms = [Times(part, 1, weight) for part, weight in enumerate(weights)]
            fields = [dict(kind="source", nodes=ids.reshape(-1)) for ids in operands[op.operand]]
            output = [self.nodes.array("", (op.size,), **of) for of in fields]
            self.products[op] = Product(op, output, terms, Grid.elements(op.size))
            operands[op.operand] = _ids(output, op.weight)
        return self.applied(eqn, operands)

    def _product(self, op: WeightOp, operands: Sequence[Parts]) -> list[Parts]:
        """The output of a product of a weight: names, for each real part a sum."""
        (out,), data = op.equation.outputs, op.kind.data
        assert data is not None
        weights = operands[op.operand]
        xs = self._parts(operands[data], "x")
        if not op.equation.inputs[data].is_float:
            xs = [self.named(self._one_hot(op, operands[data][0]), "one_hot")]
        (first, place), *_ = of_weights = [self.nodes.elements(w) for w in weights]
        text = first.text.removesuffix("_re")
        name, tex = (
            self.nodes.name("I_" + text),
            lambda part: ("I", text, *filter(None, [part[1:]])),
        )
        array = lambda s: self.nodes.array(name + s, (out.size,), kind="source", tex=tex(s))
        arrays = [*map(array, _parts(out))]
        terms = [
            Times((a + b) % 2, -1 if a and b else 1, w, *self.nodes.elements(x.reshape(-1)))
            for a, (w, _) in enumerate(of_weights)
            for b, x in enumerate(xs)
            if (a + b) % 2 < len(arrays)
        ]
        held = op.number in self.analysis.cut and op in self.analysis.live
        grid = Grid.of(op, first.shape, place.reshape(-1))
        self.products[op] = Product(op, arrays, terms, grid, held)
        rows, weights, cols = (a.reshape(-1) for a in (grid.rows, grid.weights, grid.cols))
        for part, sign, weight, x, at in terms:
            assert x is not None
            factors = weight.first + weights, x.first + at[cols]
            arrays[part].sums = (*arrays[part].sums, Sums(rows, *factors, sign, held))
        self.computed += [(array, None) for array in arrays]
        return [_ids(arrays, out)]

    def _parts(self, parts: Parts, text: str) -> list[Ids]:
        """The parts of a value by their names, without an imaginary one that is zero."""
        parts = parts if (parts[-1] != self.nodes.number(0)).any() else parts[:1]
        return [self.named(ids, text + ("_im" if n else "")) for n, ids in enumerate(parts)]

    def _one_hot(self, op: WeightOp, index: Ids) -> Ids:
        """The data of a look-up: one where the index says."""
        kind: Any = op.kind
        if len(getattr(kind, "rows", ())) != 1:
            raise UnsupportedError(f"No equation is known for {op}. Look rows up by one index.")
        rows, apply = np.array([self.nodes.number(n) for n in range(kind.inputs)]), self.nodes.apply
        index = index.reshape(-1, 1)
        return apply("eq", apply("clamp", rows[:1], index, rows[-1:]) if kind.clip else index, rows)

    def called(self, eqn: Equation, operands: Sequence[Parts]) -> Sequence[Parts]:
        """A function of whole arrays, by its name."""
        text = params.shown_name(eqn).removeprefix("reduce_").replace("dot_general", "product")
        text = python_name(text, "f")
        inner = [self.nodes.inside("stop_gradient", *parts) for parts in operands]
        if stopped := (eqn.primitive.name == "dot_general" and all(a is not None for a in inner)):
            operands = [(ids,) for ids in inner if ids is not None]
        pairs = zip(eqn.inputs, operands, strict=True)
        given = [ids for v, parts in pairs if v.is_float for ids in self._parts(parts, "q")]
        of = [self.nodes.elements(ids)[0] for ids in given] if text == "product" else []
        matrices = [a.text for a in of if len(a.shape) == 2]
        found: list[Parts] = []
        for v in eqn.outputs:
            tex = ("I", *matrices) if len(matrices) == 1 else ()
            arrays = [self._array(text + s, v.shape, tex=tex) for s in _parts(v)]
            for part, array in enumerate(arrays):
                array.sums = sums_of(eqn, operands, part, self.nodes, stopped)
                self.calls[array] = Call(text, eqn, given, bool(array.sums))
                array.sums = array.sums or self._opaque(array, given, v)
            self.computed += [(a, None) for a in arrays]
            found.append(_ids(arrays, v))
        return found

    def _opaque(self, array: Array, given: Sequence[Ids], v: Variable) -> list[Sums]:
        """The Jacobians of a function that no equation is known for: names alone."""
        found: list[Sums] = []
        for of in dict.fromkeys(self.nodes.elements(ids)[0] for ids in given if v.is_float):
            tex = "D", array.name, of.name
            name, shape = self.nodes.name("_".join(tex)), (array.size, of.size)
            jacobian = self.nodes.array(name, shape, kind="given", tex=tex)
            rows, columns = np.indices(jacobian.shape).reshape(2, -1)
            found.append(Sums(rows, of.ids[columns], jacobian.ids))
        return found


class OfWholeArrays(Exception):
    """An operation is no function of elements."""


def _parts(v: Variable) -> Sequence[str]:
    """What is added to the name of a value for each of its parts."""
    return ("_re", "_im") if is_complex(v.aval) else ("",)


def _ids(arrays: Iterable[Array], v: Variable) -> Parts:
    """The elements of arrays in the shape of a value, whose parts they are."""
    return tuple(a.ids.reshape(v.shape) for a in arrays)


def _slope(eqn: Equation, operand: int) -> Any:
    """The derivative of a function of elements by one of its arguments, by its own rule."""

    def slope(*operands: Any) -> list[Any]:
        at = operands[operand]
        of = lambda a: eqn.bind(*operands[:operand], a, *operands[operand + 1 :])[0]
        if not eqn.inputs[operand].is_float:
            return [jnp.zeros(eqn.outputs[0].shape)]
        if eqn.primitive is prims.custom_jvp_call_p:
            return [jax.jvp(of, (at,), (jnp.ones_like(at),))[1]]
        y, pull = jax.vjp(of, at)
        return [pull(jnp.ones_like(y))[0]]

    return canonicalise(slope, [v.aval for v in eqn.inputs])


def _name_of(eqn: Equation) -> str:
    """The name that a function has in the code that defines it."""
    body = getattr(params.custom_body(eqn), "jaxpr", None)
    found = getattr(getattr(body, "debug_info", None), "func_name", "")
    return found if found.isidentifier() else "f"


def _is_integer(v: Variable) -> bool:
    return not v.is_float and v.aval.dtype != np.dtype(bool)


def _held_as(v: Variable) -> str:
    """As what NumPy holds a value, where that is said."""
    if v.aval.dtype == np.dtype(bool):
        return "float"
    return "int" if str(v.aval.dtype) in INTEGERS else ""


def _is_written(eqn: Equation) -> bool:
    """Whether an operation, as far as it is one of integers, is written: those on bits and divisions are not."""
    integers = [v for v in (*eqn.inputs, *eqn.outputs) if _is_integer(v)]
    is_known = eqn.primitive.name in (*WRAPPING, *WITHIN) or not any(map(_is_integer, eqn.outputs))
    return is_known and all(str(v.aval.dtype) in INTEGERS for v in integers)


_PLACED = {"gather": slice(1, 2), "scatter": slice(1, 2), "dynamic_slice": slice(1, None)}
_PLACED["dynamic_update_slice"] = slice(2, None)
"""Operations that move elements, and which operands say to what places."""
