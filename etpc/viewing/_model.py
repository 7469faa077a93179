"""The step of a model for a viewer: its values, its equations, and the lines of code that these come from."""

import ast
import dataclasses
import functools
import importlib.util
import linecache
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..analyse import Analysis
from ..plan import Plan
from ..trace import Equation, Variable, is_spike

INFIX = {"add": "+", "add_any": "+", "sub": "−", "mul": "·", "div": "/", "rem": "%"} | {
    "eq": "=", "ne": "≠", "lt": "<", "le": "≤", "gt": ">", "ge": "≥", "and": "∧", "or": "∨",
}  # fmt: skip


def type_text(aval: Any) -> str:
    """The dtype and the shape of an array."""
    return f"{aval.dtype}{list(aval.shape)}"


class Weights:
    """The float parameters of a model by their numbers, which are the same in all parts of a view."""

    def __init__(self, plan: Plan):
        self.leaves = plan.analysis.step.model_leaves
        self.number = {leaf: n for n, leaf in enumerate(self.leaves.floats)}
        self.by_path: dict[str, list[int]] = {}
        for p in plan.ops:
            self.by_path.setdefault(p.path, self.of_leaves(p.op.parameters))
        self.by_path |= {path: [n] for n, path in enumerate(self.leaves.float_avals)}

    def of_leaves(self, leaves: Sequence[int]) -> list[int]:
        """Those among the array leaves of the model."""
        return [self.number[leaf] for leaf in leaves if leaf in self.number]

    def of_path(self, path: str) -> list[int]:
        """Those of a parameter, or of all that an operation depends on, by its path."""
        return self.by_path.get(path, [])


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of a file, with its lines."""

    file: str
    name: str
    first: int
    last: int
    docstring: range = range(0)
    """The lines of its docstring, which are not shown."""


class Sources:
    """The functions that a step comes from, and the lines of them that it runs."""

    def __init__(self):
        self.functions: dict[Function, int] = {}
        self.lines: dict[tuple[str, int], int] = {}
        self._records: list[dict[str, Any]] = []

    def line(self, file: str, number: int) -> int:
        """The number of a line of a file in the view."""
        key = (file, number)
        if key not in self.lines:
            self.lines[key] = len(self.lines)
            function = next((f for f in _functions(file) if f.first <= number <= f.last), None)
            if function is None and linecache.getline(file, number):
                function = Function(file, "", number, number)
            place = None
            if function is not None:
                place = self.functions.setdefault(function, len(self.functions))
            self._records.append({"file": short(file), "line": number, "function": place})
        return self.lines[key]

    def as_dict(self) -> dict[str, Any]:
        functions = [
            {
                "file": short(f.file),
                "name": f.name,
                "code": [
                    {"line": n, "text": linecache.getline(f.file, n).rstrip("\n")}
                    for n in range(f.first, f.last + 1)
                    if n not in f.docstring
                ],
            }
            for f in self.functions
        ]
        return {"functions": functions, "lines": self._records}


@functools.lru_cache(256)
def _functions(file: str) -> tuple[Function, ...]:
    """The functions of a file, inner ones first; none where it cannot be read or is no Python."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    found: list[Function] = []

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}".lstrip(".")
            visit(child, name)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                last = child.end_lineno or child.lineno
                found.append(Function(file, name, child.lineno, last, _docstring(child)))

    visit(tree, "")
    return tuple(sorted(found, key=lambda f: f.last - f.first))


def _docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> range:
    first = node.body[0]
    if ast.get_docstring(node) is None or len(node.body) == 1:
        return range(0)
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


@functools.lru_cache(1024)
def short(file: str) -> str:
    """A file without the folders of the machine it lies on."""
    path = Path(file)
    known = [entry for entry in sys.path if entry and path.is_relative_to(entry)]
    roots = [Path.cwd(), *sorted(map(Path, known), key=lambda p: -len(p.parts))]
    parts = [path.relative_to(root) for root in roots if path.is_relative_to(root)]
    inside = [p for p in parts if "site-packages" not in p.parts]
    return min(inside, key=lambda p: len(p.parts)).as_posix() if inside else path.name


_PACKAGE = Path(__file__).parents[1]
_MODELS = tuple(str(_PACKAGE / name) for name in ("nn", "surrogate.py", "units.py"))
_LIBRARIES = ("jax", "jaxlib", "jaxtyping", "beartype", "equinox")


@functools.cache
def _is_tool(file: str) -> bool:
    """Whether a file is of what runs a model, and so no line of it is one of a model."""
    if file.startswith(
        ("<", *_MODELS)
    ):  # of `<...>` the lines are known in a session of Python or IPython
        return not linecache.getline(file, 1)
    found = map(importlib.util.find_spec, _LIBRARIES)
    folders = [str(Path(spec.origin).parent) for spec in found if spec is not None and spec.origin]
    if any(Path(file).is_relative_to(Path(folder) / "nn") for folder in folders):
        return Path(file).is_relative_to(Path(jax.__file__).parent)
    return any(Path(file).is_relative_to(folder) for folder in (*folders, _PACKAGE))


def places(equation: Equation, sources: Sources) -> tuple[int | None, int | None]:
    """The line of the user's code that an equation comes from, and the innermost one of a model, which may be of a
    library of layers."""
    match = re.match(r"(.*?):(\d+)(?::\d+)? \(", equation.source)
    of_user = None
    if match is not None:
        number = int(match[2])
        of_user = sources.line(_whole(equation, match[1], number), number)
    inner = ((file, line) for file, line, _ in equation.traceback.places if not _is_tool(file))
    file, line = next(inner, ("", 0))
    return of_user, sources.line(file, line) if linecache.getline(file, line) else of_user


def _whole(equation: Equation, file: str, line: int) -> str:
    """The file of a source line, which JAX may have shortened, as Python knows it."""
    names = [name for name, number, _ in equation.traceback.places if number == line]
    return next((name for name in names if name.endswith(file)), file)


def step_record(plan: Plan, weights: Weights, sources: Sources) -> dict[str, Any]:
    """The values and the equations of a step, for JSON; their lines are added to the sources."""
    return _Steps(plan, weights, sources).record()


class _Steps:
    def __init__(self, plan: Plan, weights: Weights, sources: Sources):
        self.analysis: Analysis = plan.analysis
        self.plan, self.weights, self.sources = plan, weights, sources
        self.numbers: dict[Variable, int] = {}
        self.variables: list[dict[str, Any]] = []
        step = self.analysis.step
        for leaf, (path, v) in enumerate(
            zip(step.model_leaves.paths, step.parameters, strict=True)
        ):
            self.name(v, path, "parameter", weights.of_leaves([leaf]))
        inputs = step.with_begins(step.input_leaves.paths, "begins")
        for path, v in zip(inputs, step.inputs, strict=True):
            self.name(v, path, "input")
        for path, v in zip(step.state_paths, step.state, strict=True):
            self.name(v, path, "state")
        self.results: dict[Variable, list[str]] = {}
        for path, v in zip(step.state_paths, self.analysis.split.next_state, strict=True):
            self.results.setdefault(v, []).append(f"{path}′")
        for path, v in zip(step.output_leaves.paths, self.analysis.split.outputs, strict=True):
            self.results.setdefault(v, []).append(path)

    def name(self, v: Variable, name: str, kind: str, weights: Sequence[int] = ()) -> int:
        self.numbers[v] = len(self.variables)
        self.variables.append(
            {"name": name, "kind": kind, "type": type_text(v.aval), "weights": [*weights]}
        )
        return self.numbers[v]

    def number(self, v: Variable) -> int:
        """The number of a value that an equation reads."""
        if v in self.numbers:
            return self.numbers[v]
        constant = self.analysis.step.constants.get(v)
        return self.name(v, f"v{v.number}" if constant is None else _constant(constant), "constant")

    def record(self) -> dict[str, Any]:
        split = self.analysis.split
        ops: dict[Equation, list[int]] = {}
        for p in self.plan.ops:
            ops.setdefault(p.op.equation, []).append(p.op.number)
        equations = [self.equation(e, True, []) for e in split.prefix]
        equations += [self.equation(e, False, ops.get(e, [])) for e in split.body]
        results = [{"value": self.number(v), "names": names} for v, names in self.results.items()]
        return {"variables": self.variables, "equations": equations, "results": results}

    def equation(self, e: Equation, once: bool, ops: list[int]) -> dict[str, Any]:
        inputs = [self.number(v) for v in e.inputs]
        read = sorted({w for i in inputs if once for w in self.variables[i]["weights"]})
        outputs: list[int] = []
        for v in e.outputs:
            names = self.results.get(v, [])
            is_state = any(name.endswith("′") for name in names)
            kind = "state" if is_state else "output" if names else "value"
            outputs.append(self.name(v, names[0] if names else f"v{v.number}", kind, read))
        found = [w for n in ops for w in self.weights.of_leaves(self.plan.ops[n].op.parameters)]
        line, inner = places(e, self.sources)
        operands = [self.plan.ops[n].op.operand for n in ops]
        data = [i for n, i in enumerate(inputs) if n not in operands] if ops else []
        parts = [*_joined(outputs), " = ", *_right(e, inputs)]
        head = dict(once=once, primitive=e.primitive.name, parts=parts, detail=_detail(e))
        values = dict(inputs=inputs, outputs=outputs, ops=ops, data=data)
        of = dict(weights=sorted({*found, *read}), line=line, inner=inner)
        return {**head, **values, **of}


def _joined(parts: Sequence[Any]) -> list[Any]:
    return [p for n, part in enumerate(parts) for p in ([", ", part] if n else [part])]


def _right(e: Equation, inputs: list[int]) -> list[Any]:
    """The right side of an equation, as texts and the numbers of values."""
    name = {"etp": "mark"}.get(e.primitive.name, e.primitive.name)
    if name in INFIX and len(inputs) == 2:
        return [inputs[0], f" {INFIX[name]} ", inputs[1]]
    if name == "neg":
        return ["−", inputs[0]]
    if name == "convert_element_type":
        name = str(e.outputs[0].aval.dtype)
    if name.startswith("custom_jvp_call"):
        name = "spike" if is_spike(e) else "custom_jvp"
    return [f"{name}(", *_joined(inputs), ")"]


def _constant(value: Any) -> str:
    """A constant: its value where it is a single number or all its entries are equal, else its type."""
    if getattr(value, "dtype", None) is None or not np.issubdtype(value.dtype, np.number):
        return str(value) if np.ndim(value) == 0 else f"constant {type_text(value)}"
    array = np.asarray(value)
    if array.size and (array == array.flat[0]).all():
        return f"{array.flat[0].item():.6g}"
    return f"constant {type_text(array)}"


def _detail(e: Equation) -> str:
    """The parameters of an equation that have short values."""
    values = {name: value for name, value in e.params.items() if value or type(value) is int}
    texts = {name: str(value) for name, value in values.items()}
    shown = {name: text for name, text in texts.items() if len(text) <= 60 and "\n" not in text}
    return ", ".join(f"{name}={text}" for name, text in shown.items())
