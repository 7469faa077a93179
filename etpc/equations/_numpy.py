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
        arguments, name = ", ".join(map(self._print, expr.args)), type(expr).__name__
        return f"np.tensordot({arguments}, 1)" if name == "dot" else f"{name}({arguments})"


class Source:
    """The file of NumPy."""

    def __init__(self, rule: Rule):
        self.rule, self.lines = rule, list[str]()
        self.tables: dict[bytes, tuple[str, np.ndarray]] = {}
        self.printer = Code({"fully_qualified_modules": True, "allow_unknown_functions": True})
        self._begun: set[Array] = set()
        self._functions: set[str] = set()
        of, step = rule.step, rule.step.step
        inputs = step.with_begins(step.input_leaves.paths, "begins")
        self.given("parameters", step.model_leaves.paths, of.parameters)
        self.given("inputs", inputs, of.inputs)
        self.given("carry", step.state_paths, of.state)
        for array, values in of.values.items():
            self.line(f"{array.name} = {self.table(values)}")
        self.carried = [*rule.carried, *(later for _, later in rule.derivatives.passed.values())]
        for array in self.carried:
            self.line(f"{array.name} = carry[{array.name!r}]")
        for n, (title, _, equations) in enumerate(rule.sections):
            self.lines += ["", f"    # {in_one_line(title)}"] if equations else []
            for equation in equations:
                self.equation(equation)
            if n == 0:
                self.outputs()
        self.returned()

    def line(self, text: str) -> None:
        self.lines.append(f"    {text}")

    # --- what comes in and goes out ---

    def given(self, source: str, paths: Sequence[str], arrays: Sequence[Sequence[Array]]) -> None:
        for path, parts in zip(paths, arrays, strict=True):
            for array, part in _parts(parts):
                dtype = array.dtype and f", {array.dtype}"
                given = f"np.asarray({source}[{path!r}]{dtype}){part}.reshape({array.shape})"
                self.line(f"{array.name} = {given}")

    def outputs(self) -> None:
        step, leaves = self.rule.step, self.rule.step.step.output_leaves
        outputs = _by_path(leaves.paths, step.outputs_of, leaves.avals)
        self.line(f"y_of_step = {{{', '.join(outputs)}}}")
        self.line("gradient = dloss(y_of_step)")
        for path, parts in zip(leaves.paths, step.outputs_of, strict=True):
            for array, part in _parts(parts):
                if given := self.rule.derivatives.loss.get(array):
                    sign = "-" if part == ".imag" else ""  # of the conjugate
                    text = f"{sign}np.asarray(gradient[{path!r}]){part}.reshape(-1)"
                    self.line(f"{given.name} = {text}")

    def returned(self) -> None:
        step, of = self.rule.step, self.rule.step.step
        new = [*_by_path(of.state_paths, step.new_state, of.state_avals)]
        new += [f"{old.name!r}: {new.name}" for old, new in self.rule.carried.items()]
        new += [f"{of.name!r}: {of.name}" for of, _ in self.rule.derivatives.passed.values()]
        self.lines.append("")
        self.line(f"carry = {{{', '.join(new)}}}")
        gradients = list[str]()
        for i in of.model_leaves.floats:
            aval, path = of.model_leaves.avals[i], of.model_leaves.paths[i]
            parts = [self.rule.gradient.get(a) for a in step.parameters[i]]
            texts = [f"np.zeros({aval.shape})" if g is None else g.name for g in parts]
            gradients.append(f"{path!r}: {_whole(texts, aval.shape, '-')}")
        self.line(f"return y_of_step, carry, {{{', '.join(gradients)}}}")

    # --- equations ---

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
        names, codes = dict[Any, Any](), list[str]()
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
        target, whole = equation.target, [t.value for t in equation.terms if t.where is None]
        note = f"  # {equation.note}" if equation.note else ""
        zeros = f"np.zeros({target.shape}{target.dtype and f', {target.dtype}'})"
        begun = target in self._begun
        self._begun.add(target)
        if whole:
            text = " + ".join(map(self.code, whole))
            if not begun and not any(self._fills(value, target) for value in whole):
                text += f" + {zeros}"
            elif len(whole) == 1 and whole[0].is_Symbol:
                # Of a slice, a view: what is added to it below would be added to the other array too.
                text += ".copy()"
            self.line(f"{target.name} {'+=' if begun else '='} {text}{note}")
        elif not begun:
            self.line(f"{target.name} = {zeros}")
        for term in equation.terms:
            if term.where is not None:
                self.line(self.added(target, term.value, term.where) + note)

    def _fills(self, value: Any, target: Array) -> bool:
        """Whether an expression has the shape of what it is assigned to."""
        views = [self.rule.derivatives.views[s] for s in self.rule.derivatives.symbols(value)]
        if any(array.shape == target.shape for array, _ in views) or value.has(dot):
            return True
        fills = lambda array, at: len(array.shape) == at.ndim and np.unique(at).size == target.size
        return 1 not in target.shape and any(fills(*view) for view in views)

    def added(self, target: Array, value: Any, where: np.ndarray) -> str:
        once, index = np.unique(where).size == where.size, self.index(target.shape, where)
        if once and index is not None:
            return f"{target.name}{index} += {self.code(value)}"
        return f"np.add.at({target.name}.reshape(-1), {self.table(where)}, {self.code(value)})"

    def file(self, equations: str) -> str:
        """The whole file."""
        nodes, tables = self.rule.step.nodes, self.tables.values()
        define = lambda name, arguments, body: f"\n\ndef {name}({arguments}):\n    return {body}"
        own = [of for several in nodes.own.values() for of in several]
        written = [define(n, ", ".join(map(str, a)), self.code(value)) for n, a, value in own]
        arguments = lambda of: (
            "*a" if of.nargs is sp.S.Naturals0 else ", ".join("abc"[: max(of.nargs)])
        )
        known = [(n, *FUNCTIONS[n]) for n in FUNCTIONS if n in self._functions]
        carried = ", ".join(f"{a.name!r}: np.zeros({a.shape})" for a in self.carried)
        options: Any = dict(separator=", ", threshold=np.inf, floatmode="unique")
        parts = [
            *("# " + in_one_line(line) if line else "#" for line in equations.split("\n")),
            "import math\n\nimport numpy as np\n\nnan, inf = np.nan, np.inf",
            *(f"{name} = np.array({np.array2string(a, **options)})" for name, a in tables),
            *(f"{s} = {a!r}" for (_, a), s in nodes.constants.items()),
            *(define(n, arguments(of), body) for n, of, body in known),
            *written,
            define("traces", "", f"{{{carried}}}"),
            "\n\ndef step(parameters, inputs, carry, dloss):",
            *self.lines,
        ]
        return "\n".join(parts) + "\n"


def _parts(parts: Sequence[Array]) -> Iterator[tuple[Array, str]]:
    """Each array, and what attribute of a complex one it is."""
    yield from zip(parts, (".real", ".imag") if parts[1:] else ("",), strict=True)


def _whole(names: Sequence[str], shape: tuple[int, ...], sign: str = "+") -> str:
    whole = names[0] if len(names) == 1 else f"({names[0]} {sign} 1j * {names[1]})"
    return f"{whole}.reshape({tuple(shape)})"


def _by_path(
    paths: Sequence[str], arrays: Sequence[Sequence[Array]], avals: Sequence[Any]
) -> Iterator[str]:
    for path, parts, aval in zip(paths, arrays, avals, strict=True):
        yield f"{path!r}: {_whole([a.name for a in parts], aval.shape)}"
