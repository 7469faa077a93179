"""Scalars: the elements of the arrays of a step, and functions of them."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import sympy as sp

from ..files.words import python_name
from ._functions import ELEMENTS, FUNCTIONS

RESERVED = "np math nan inf int float traces step parameters inputs carry dloss y_of_step gradient"
"""Names that have a meaning in the file of NumPy."""

Partials = dict[int, Any]
"""The derivative of one node by others."""
HERE, STORED, ACROSS, WHOLE, NEW = range(5)
"""How far derivatives pass: to new states; to those that the step stores; through all, and through products of weights
too that are not cut; through such products to new states."""
_STOPS = "source", "state", "transient"
STOPS = _STOPS, _STOPS[:2], _STOPS[:1], _STOPS[:1], _STOPS
"""The kinds of arrays that they are by, and at which they stop, but for products of weights."""
Ids = np.ndarray
"""An array of the numbers of nodes."""
Family = tuple[np.ndarray, Ids]
"""Nodes that are one expression of other elements: which of those that were asked for, and the elements of arrays that
each depends on, a row for each."""


@dataclasses.dataclass(eq=False)
class Array:
    """An array of real numbers with a name."""

    name: str
    """As Python has it."""
    shape: tuple[int, ...]
    first: int = 0
    """The node of its first element; the nodes of the other elements follow it."""
    nodes: Ids | None = None
    """What its elements are, where the step computes them one by one; of a weight as one operation uses it, those of
    the weight."""
    shown: str = ""
    """As people read it, where that is another name: `v'` for `v_new`."""
    kind: str = "value"
    """`"source"`: what is differentiated by; `"state"` and `"transient"`: a new state, which the step stores or not, at
    which derivatives stop or not; `"given"` and `"carried"`: what nothing is differentiated by, the latter a trace."""
    sums: "Sequence[Sums]" = ()
    """What it is the sum of."""
    tex: tuple[str, ...] = ()
    """What its name is made of, where that is more than one name: a letter, and what stands below it."""
    dtype: str = ""
    """As what NumPy holds it, where that is said: `int`, or `float` for conditions."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def ids(self) -> Ids:
        """The nodes of its elements."""
        return np.arange(self.first, self.first + self.size)

    @property
    def values(self) -> Ids:
        assert self.nodes is not None
        return self.nodes

    @property
    def text(self) -> str:
        return self.shown or self.name


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """`out[row] += sign * left * right` for each entry; both are nodes."""

    rows: np.ndarray
    left: Ids
    right: Ids
    sign: int = 1
    cut: bool = False
    """Whether derivatives stop here: a rule holds the data constant."""

    @functools.cached_property
    def of_row(self) -> dict[int, list[tuple[int, int]]]:
        """The factors of each row."""
        found: dict[int, list[tuple[int, int]]] = {}
        for row, left, right in np.stack([self.rows, self.left, self.right], 1).tolist():
            found.setdefault(row, []).append((left, right))
        return found


class Nodes:
    """The scalars of a step. Equal functions of equal arguments are one node."""

    def __init__(self) -> None:
        self._functions: dict[int, tuple[str, tuple[Any, ...]]] = {}
        self._number: dict[tuple[str, tuple[Any, ...]], int] = {}
        self._starts, self._arrays, self.first_free = [-1], list[Array | None]([None]), 0
        self.defined: dict[str, Callable[..., Any]] = dict(ELEMENTS)
        """Functions by name; those of the model are added."""
        self._expressions: dict[int, Any] = {}
        self._partials: dict[tuple[int, int], Partials] = {}
        self._symbols: dict[Any, int] = {}
        self.constants: dict[tuple[str, float], Any] = {}
        """The symbols of numbers that have a name."""
        self.names = {*RESERVED.split(), *FUNCTIONS}
        self.own: dict[Any, list[tuple[str, tuple[Any, ...], Any]]] = {}
        """Functions that the model defines, each followed by its derivatives: name, arguments and expression."""
        self.open: dict[Any, str] = {}
        """Those whose derivative is looked for, by their expressions."""

    def name(self, text: str, fallback: str = "q") -> str:
        """A name that nothing else has, and that Python takes."""
        found = text = python_name(text, fallback)
        for n in itertools.count(2):
            if found not in self.names:
                break
            found = f"{text}_{n}"
        self.names.add(found)
        return found

    def rename(self, array: Array, *tex: str) -> None:
        """Another name for an array, and what it is made of."""
        self.names.discard(array.name)
        array.name, array.tex = self.name("_".join(tex)), tex

    def array(self, name: str, shape: Sequence[int], **fields: Any) -> Array:
        """A new array."""
        array = Array(name, tuple(shape), self.first_free, **fields)
        self._starts.append(self.first_free)
        self._arrays.append(array)
        self.first_free += array.size
        return array

    def after(self, old: Array, **fields: Any) -> Array:
        """What an array becomes in the step."""
        fields |= dict(shown=old.name + "'", tex=old.tex, dtype=old.dtype)
        return self.array(self.name(old.name + "_new"), old.shape, **fields)

    def number(self, value: Any) -> int:
        """A number as it was written: 0.95 also where float32 rounds it."""
        is_int = isinstance(value, bool | np.bool_ | int | np.integer)
        if is_int or (abs(value) < 2**53 and float(value).is_integer()):
            return self.node("number", (sp.Integer(int(value)),))
        return self.node("number", (sp.sympify(float(str(value))),))

    def constant(self, name: str, value: float) -> Any:
        """A number by its name."""
        if (name, value) not in self.constants:
            self.constants[name, value] = sp.Symbol(self.name(name), real=True)
        return self.constants[name, value]

    def apply(self, name: str, *operands: Ids) -> Ids:
        """A function, element by element."""
        stacked = np.stack(np.broadcast_arrays(*operands), -1)
        rows, inverse = np.unique(stacked.reshape(-1, len(operands)), axis=0, return_inverse=True)
        ids = np.array([self.node(name, tuple(row)) for row in rows.tolist()], np.int64)
        return ids[inverse.reshape(-1)].reshape(stacked.shape[:-1])

    def node(self, name: str, arguments: tuple[Any, ...]) -> int:
        key = name, arguments
        if key not in self._number:
            if self._arrays[-1] is not None:
                self._starts.append(self.first_free)
                self._arrays.append(None)
            self._number[key], self._functions[self.first_free] = self.first_free, key
            self.first_free += 1
        return self._number[key]

    def element(self, node: int) -> tuple[Array, int] | None:
        """The array and the place of an element; `None` of a function."""
        array = self._arrays[bisect.bisect_right(self._starts, node) - 1]
        return None if array is None else (array, node - array.first)

    def elements(self, ids: Ids) -> tuple[Array, np.ndarray]:
        """The array that nodes are elements of, and their places in it."""
        found = self.element(int(ids.flat[0]))
        assert found is not None
        return found[0], np.asarray(ids - found[0].first)

    def operations(self, node: int) -> int:
        """How many functions an expression has."""
        if node not in self._functions:
            return 0
        name, arguments = self._functions[node]
        return 0 if name == "number" else 1 + sum(map(self.operations, arguments))

    def inside(self, name: str, ids: Ids, *more: Ids) -> Ids | None:
        """The arguments of nodes that are all one function; `None` where some is another one."""
        found = [self._functions.get(n, ("", ())) for n in ids.reshape(-1).tolist()]
        alike = found and not more and all(of == name for of, _ in found)
        return np.array([a for _, (a, *_) in found]).reshape(ids.shape) if alike else None

    # --- expressions and derivatives ---

    def expression(self, node: int) -> Any:
        """A node in symbols of the elements that it is computed from."""
        if node not in self._expressions:
            found = self.element(node)
            if found is not None:
                name = f"{found[0].name}[{found[1]}] {node}"
                self._expressions[node] = sp.Symbol(name, real=True)
                self._symbols[self._expressions[node]] = node
            else:
                name, arguments = self._functions[node]
                of = self.defined.get(name)
                given = [*map(self.expression, arguments)] if of is not None else arguments
                self._expressions[node] = given[0] if of is None else of(*given)
        return self._expressions[node]

    def partials(self, node: int, reach: int) -> Partials:
        """The derivative by sources and new states."""
        if (node, reach) not in self._partials:
            total: Partials = {}
            found = self.element(node)
            if found is None:
                self._through(total, node, reach)
            else:
                array, place = found
                if array.kind in STOPS[reach]:
                    total[node] = sp.Integer(1)
                elif array.nodes is not None:
                    self._through(total, int(array.nodes[place]), reach, node)
                for sign, left, right in self.factors(array, place, reach):
                    _add(total, sign * self.expression(right), self.partials(left, reach))
                    _add(total, sign * self.expression(left), self.partials(right, reach))
            self._partials[node, reach] = total
        return self._partials[node, reach]

    def _through(self, total: Partials, node: int, reach: int, named: int | None = None) -> None:
        """The derivative of an expression, in terms of its own value where that has a name."""
        value = self.expression(node)
        for symbol in sorted(self._symbols.keys() & value.free_symbols, key=str):
            inner = self.partials(self._symbols[symbol], reach)
            slope = sp.diff(value, symbol) if inner else 0
            if named is not None and slope != 0 and not (value.is_Add or value.is_Mul):
                slope = slope.xreplace({value: self.expression(named)})
            _add(total, slope, inner)

    def factors(self, array: Array, place: int, reach: int) -> Iterator[tuple[int, int, int]]:
        """The products that an element is the sum of, where derivatives pass through them: a sign and two nodes."""
        for sums in array.sums if reach in (WHOLE, NEW) or array.kind == "value" else ():
            for left, right in () if sums.cut else sums.of_row.get(place, ()):
                yield sums.sign, left, right

    # --- families ---

    def families(self, nodes: Ids, reach: int | None = None) -> list[Family]:
        """The nodes, by expression; or by derivative, where it is said how far that passes."""
        groups: dict[Any, tuple[list[int], list[list[int]]]] = {}
        for place, node in enumerate(nodes.reshape(-1).tolist()):
            signature, touched = self._signature(node, reach)
            where, rows = groups.setdefault(signature, ([], []))
            where.append(place)
            rows.append(touched)
        as_rows = lambda rows: np.array(rows, np.int64).reshape(len(rows), -1)
        return [(np.array(where), as_rows(rows)) for where, rows in groups.values()]

    def _signature(self, root: int, reach: int | None) -> tuple[tuple[Any, ...], list[int]]:
        """What is alike in nodes of one expression, and the elements of arrays that this one depends on."""
        order, signature, touched = dict[int, int](), list[Any](), list[int]()

        def visit(node: int) -> int:
            if node in order:
                return order[node]
            found = self.element(node)
            if found is None:
                name, arguments = self._functions[node]
                record = (name, arguments if name == "number" else tuple(map(visit, arguments)))
            else:
                array, place = found
                touched.append(node)
                inside: list[int] = []
                if reach is not None:
                    if array.nodes is not None and array.kind not in STOPS[reach]:
                        inside.append(visit(int(array.nodes[place])))
                    for _, *pair in self.factors(array, place, reach):
                        inside += map(visit, pair)
                record = (id(array), tuple(inside))
            signature.append(record)
            order[node] = len(order)
            return order[node]

        visit(root)
        return tuple(signature), touched


def _add(total: Partials, slope: Any, inner: Partials) -> None:
    """Add a derivative, times a factor; sums are left as sums of products, so that alike ones are found."""
    for source, derivative in inner.items() if slope != 0 else ():
        for addend in sp.Add.make_args(derivative):
            total[source] = total.get(source, 0) + slope * addend
