"""Writes the equations as a file of NumPy."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sympy as sp
from sympy.printing.numpy import NumPyPrinter

from ..errors import in_one_line
from ._derivatives import Equation
from ._functions import FUNCTIONS, dot
from ._nodes import Array
from ._rule import Rule


def along(shape: tuple[int, ...], at: np.ndarray) -> list[tuple[int | None, np.ndarray]] | None:
    """For each axis of an array, the axis of `at` that its places follow, and these.

    `at` are places in the flat array. The axis is `None` where there is one place for all, and so is all where places
    follow several axes. Those of `x^T` in a matrix follow its last axis.
    """
    found: list[tuple[int | None, np.ndarray]] = []
    first = 0
    for places in np.unravel_index(at, shape):
        if at.size > 1 and (places == places.flat[0]).all():
            found.append((None, places.reshape(-1)[:1]))
            continue
        for axis in range(first, at.ndim):
            lines = np.moveaxis(places, axis, 0).reshape(at.shape[axis], -1)
            if (lines == lines[:, :1]).all():
                found.append((axis, lines[:, 0]))
                first = axis + 1
                break
        else:
            return None
    return found


def slice_of(places: np.ndarray, size: int) -> str | None:
    """Places as a slice, if they are one."""
    step = int(places[1] - places[0]) if places.size > 1 else 1
    if step < 1 or (places != places[0] + step * np.arange(places.size)).any():
        return None
    whole = step == 1 and places.size == size
    return ":" if whole else f"{places[0]}:{places[-1] + 1}" + (f":{step}" if step > 1 else "")


class Code(NumPyPrinter):
    """Expressions in NumPy; numbers in full."""

    def _print_Float(self, expr: Any) -> str:
        return repr(float(expr))

    def _print_Function(self, expr: Any) -> str:
        name = type(expr).__name__
        arguments = ", ".join(self._print(a) for a in expr.args)
        return f"np.tensordot({arguments}, 1)" if name == "dot" else f"{name}({arguments})"


class Source:
    """The file of NumPy."""

    def __init__(self, rule: Rule):
        self.rule, self.lines = rule, list[str]()
        self.tables: dict[bytes, tuple[str, np.ndarray]] = {}
        self.printer = Code({"fully_qualified_modules": True, "allow_unknown_functions": True})
        self._begun: set[Array] = set()
        self._functions: set[str] = set()
        step = rule.step
        leaves = (step.step.model_leaves, step.step.input_leaves)
        inputs = step.step.with_begins(leaves[1].paths, "begins")
        for source, paths, arrays in (
            ("parameters", leaves[0].paths, step.parameters),
            ("inputs", inputs, step.inputs),
            ("carry", step.step.state_paths, step.state),
        ):
            for path, parts in zip(paths, arrays, strict=True):
                for array, part in _parts(parts):
                    dtype = array.dtype and f", {array.dtype}"
                    given = f"np.asarray({source}[{path!r}]{dtype}){part}"
                    self.line(f"{array.name} = {given}.reshape({array.shape})")
        for array, values in step.values.items():
            self.line(f"{array.name} = {self.table(values)}")
        for old in rule.carried:
            self.line(f"{old.name} = carry[{old.name!r}]")
        for n, (title, _, equations) in enumerate(rule.sections):
            if equations:
                self.lines += ["", f"    # {in_one_line(title)}"]
            for equation in equations:
                self.equation(equation)
            if n == 0:
                self.outputs()
        self.returned()

    def line(self, text: str) -> None:
        self.lines.append(f"    {text}")

    def outputs(self) -> None:
        step, leaves = self.rule.step, self.rule.step.step.output_leaves
        given = zip(leaves.paths, step.outputs_of, leaves.avals, strict=True)
        self.line(
            f"y_of_step = {{{', '.join(f'{p!r}: {_whole(a, v.shape)}' for p, a, v in given)}}}"
        )
        self.line("gradient = dloss(y_of_step)")
        for path, parts in zip(leaves.paths, step.outputs_of, strict=True):
            for array, part in _parts(parts):
                if array in self.rule.derivatives.loss:
                    sign = "-" if part == ".imag" else ""  # of the conjugate
                    text = f"{sign}np.asarray(gradient[{path!r}]){part}.reshape(-1)"
                    self.line(f"{self.rule.derivatives.loss[array].name} = {text}")

    def returned(self) -> None:
        step = self.rule.step
        model, of = step.step.model_leaves, step.step
        new = [
            f"{p!r}: {_whole(a, v.shape)}"
            for p, a, v in zip(of.state_paths, step.new_state, of.state_avals, strict=True)
        ]
        new += [f"{old.name!r}: {new.name}" for old, new in self.rule.carried.items()]
        self.lines.append("")
        self.line(f"carry = {{{', '.join(new)}}}")
        grads: list[str] = []
        for i in model.floats:
            parts = [self.rule.gradient.get(a) for a in step.parameters[i]]
            texts = [f"np.zeros({model.avals[i].shape})" if g is None else g.name for g in parts]
            whole = texts[0] if len(texts) == 1 else f"({texts[0]} - 1j * {texts[1]})"
            grads.append(f"{model.paths[i]!r}: {whole}.reshape({tuple(model.avals[i].shape)})")
        self.line(f"return y_of_step, carry, {{{', '.join(grads)}}}")

    def table(self, values: np.ndarray) -> str:
        """Constants that are written once, above all."""
        key = values.tobytes() + str((values.shape, values.dtype)).encode()
        if key not in self.tables:
            letter = "AT" if values.dtype.kind in "iub" else "TABLE"
            name = self.rule.step.nodes.name(f"{letter}_{len(self.tables)}")
            self.tables[key] = name, values
        return self.tables[key][0]

    def index(self, shape: tuple[int, ...], at: np.ndarray) -> str | None:
        """An index that gives elements of an array, along the axes of `at`."""
        followed = along(shape, at)
        if followed is None:
            return None
        tokens, axes = list[str](), 0
        for (axis, places), n in zip(followed, shape, strict=True):
            if axis is None:
                tokens.append(str(places[0]))
            else:
                tokens += ["None"] * (axis - axes if tokens else 0)
                tokens.append(slice_of(places, n) or self.table(places))
                axes = axis + 1
        tokens += ["None"] * (at.ndim - axes if axes else 0)
        if sum(t.startswith("AT") for t in tokens) > 1:
            return None
        return "" if all(t == ":" for t in tokens) else f"[{', '.join(tokens)}]"

    def code(self, value: Any) -> str:
        """An expression in NumPy."""
        names: dict[Any, Any] = {}
        codes: list[str] = []
        for symbol in self.rule.derivatives.symbols(value):
            array, at = self.rule.derivatives.views[symbol]
            index = "" if array.size == 1 else self.index(array.shape, at)
            index = f".reshape(-1)[{self.table(at)}]" if index is None else index
            names[symbol] = sp.Symbol(f"<{len(codes)}>")
            codes.append(array.name + index)
        value = value.xreplace(names)
        self._functions |= {type(f).__name__ for f in value.atoms(sp.Function)}
        text = str(self.printer.doprint(value)).replace("numpy.", "np.")
        return re.sub(r"<(\d+)>", lambda found: codes[int(found[1])], text)

    def equation(self, equation: Equation) -> None:
        target = equation.target
        whole = [t.value for t in equation.terms if t.where is None]
        note = f"  # {equation.note}" if equation.note else ""
        zeros = f"np.zeros({target.shape}{target.dtype and f', {target.dtype}'})"
        begun = target in self._begun
        self._begun.add(target)
        if whole:
            text = " + ".join(self.code(v) for v in whole)
            full = any(self._fills(v, target) for v in whole)
            text = text if full or begun else f"{text} + {zeros}"
            # A slice would be a view, and what is added to it below would be added to the other array too.
            text = f"{text}.copy()" if text == self.code(whole[0]) and whole[0].is_Symbol else text
            self.line(f"{target.name} {'+=' if begun else '='} {text}{note}")
        elif not begun:
            self.line(f"{target.name} = {zeros}")
        for term in equation.terms:
            if term.where is not None:
                self.line(self.added(target, term.value, term.where) + note)

    def _fills(self, value: Any, target: Array) -> bool:
        """Whether an expression has the shape of what it is assigned to."""
        if value.has(dot):
            return True
        views = (self.rule.derivatives.views[s] for s in self.rule.derivatives.symbols(value))
        axes = lambda array, at: {axis for axis, _ in along(array.shape, at) or enumerate(at.shape)}
        fills = lambda array, at: at.shape == target.shape and axes(array, at) >= {*range(at.ndim)}
        return any(
            fills(array, at) if array.size > 1 else array.shape == target.shape
            for array, at in views
        )

    def added(self, target: Array, value: Any, where: np.ndarray) -> str:
        once, index = np.unique(where).size == where.size, self.index(target.shape, where)
        if once and index is not None:
            return f"{target.name}{index} += {self.code(value)}"
        return f"np.add.at({target.name}.reshape(-1), {self.table(where)}, {self.code(value)})"

    def file(self, equations: str) -> str:
        """The whole file."""
        head = ["# " + in_one_line(line) if line else "#" for line in equations.split("\n")]
        own = [d for several in self.rule.step.nodes.own.values() for d in several]
        written = [
            f"def {n}({', '.join(map(str, a))}):\n    return {self.code(v)}" for n, a, v in own
        ]
        known = [
            f"def {name}({', '.join('abc'[: next(iter(of.nargs))])}):\n    return {body}"
            for name, (of, body) in FUNCTIONS.items()
            if name in self._functions
        ]
        array = lambda a: np.array2string(
            a, separator=", ", threshold=a.size + 1, floatmode="unique"
        )
        tables = [f"{name} = np.array({array(a)})" for name, a in self.tables.values()]
        carried = ", ".join(f"{a.name!r}: np.zeros({a.shape})" for a in self.rule.carried)
        parts = [
            *head,
            "import math\n\nimport numpy as np\n\nnan, inf = np.nan, np.inf",
            *tables,
            *(f"{s} = {a!r}" for (_, a), s in self.rule.step.nodes.constants.items()),
            *(f"\n\n{f}" for f in (*known, *written)),
            f"\n\ndef traces():\n    return {{{carried}}}",
            "\n\ndef step(parameters, inputs, carry, dloss):",
            *self.lines,
        ]
        return "\n".join(parts) + "\n"


def _parts(parts: Sequence[Array]) -> Iterator[tuple[Array, str]]:
    """Each array, and what attribute of a complex one it is."""
    yield from zip(parts, (".real", ".imag") if parts[1:] else ("",), strict=True)


def _whole(parts: Sequence[Array], shape: Any) -> str:
    names = [a.name for a in parts]
    whole = names[0] if len(names) == 1 else f"({names[0]} + 1j * {names[1]})"
    return f"{whole}.reshape({tuple(shape)})"
