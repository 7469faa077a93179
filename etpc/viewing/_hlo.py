"""What XLA makes of a program: the instructions of its optimised HLO, and where each of them comes from."""

import dataclasses
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..run import Program
from ._model import Sources, Weights, short

BITS = re.compile(r"(?:pred|[a-z]+?)(\d+)")
ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\]")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = ")
CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NO_WORK = frozenset("parameter constant tuple get-tuple-element bitcast after-all iota".split())  # noqa: SIM905
"""Instructions that are no kernel: they name or reshape what is there."""
PRODUCTS = frozenset({"dot", "convolution"})


@dataclasses.dataclass
class Instruction:
    """One instruction of an HLO module."""

    name: str
    type: str
    opcode: str
    rest: str
    """What stands after the opcode: operands, attributes, metadata."""


def squares(y: Any, _: Any) -> Any:
    """The loss that is compiled: the sum of squares of all outputs."""
    floats = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return sum((jnp.sum(jnp.abs(a) ** 2).astype(jnp.float32) for a in floats), jnp.float32(0))


def hlo_record(
    program: Program,
    weights: Weights,
    sources: Sources,
    equations: list[dict[str, Any]],
    batch_size: int | None,
) -> dict[str, Any]:
    """A window of a program, compiled for the first device of this process and taken apart, for JSON."""
    step, steps = program.plan.step, program.ir.window.steps
    lead = (steps,) if batch_size is None else (steps, batch_size)
    avals = [jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype) for a in step.input_leaves.avals]
    lowered = program.value_and_grad(squares).lower(
        step.model_leaves.join(step.model_leaves.avals),
        step.input_leaves.join(avals),
        jax.ShapeDtypeStruct(lead, jnp.float32),
        jax.eval_shape(lambda: program.init(batch_size)),
    )
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    sizes = {
        name: int(getattr(memory, f"{name}_size_in_bytes", 0))
        for name in ("argument", "output", "temp")
    }
    module = Module(compiled.as_text() or "", weights, sources, equations)
    return {
        "device": jax.devices()[0].device_kind,
        "steps": steps,
        "batch_size": batch_size,
        "bytes": sizes,
        **module.record(),
    }


class Module:
    """The text of an optimised HLO module, taken apart."""

    def __init__(
        self, text: str, weights: Weights, sources: Sources, equations: list[dict[str, Any]]
    ):
        self.weights = weights
        self.known = {(short(file), line): n for (file, line), n in sources.lines.items()}
        self.at: dict[tuple[int | None, str], list[int]] = {}
        """The weights that meet data on a line, by the line and the primitive; none where several equations are alike,
        as those of a loop over layers."""
        alike = Counter((e["line"], e["primitive"]) for e in equations)
        for e in equations:
            if e["ops"] and alike[e["line"], e["primitive"]] == 1:
                self.at[e["line"], e["primitive"]] = e["weights"]
        head, self.computations, self.entry = _parsed(text)
        self._lines = dict(_source_lines(head))
        self._of_name: dict[str, tuple[str, list[int]]] = {}

    def record(self) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for name, role, trips in self._reached():
            instructions = self.computations[name]
            rows = [self._row(i) for i in instructions if i.opcode not in NO_WORK]
            if any(row["opcode"] != "while" for row in rows):  # others only call a loop
                found[name] = {"name": name, "role": role, "trips": trips, "instructions": rows}
        products = [row for name in self.computations for row in self._products(name)]
        return {"computations": [*found.values()], "products": products}

    def _reached(self) -> Iterator[tuple[str, str, int | None]]:
        """The computations that run instruction by instruction: the entry, what it calls, bodies of loops."""
        queue: list[tuple[str, str, int | None]] = [(self.entry, "entry", None)]
        seen = {self.entry}
        while queue:
            name, role, trips = queue.pop(0)
            yield name, role, trips
            for i in self.computations.get(name, []):
                if i.opcode not in ("while", "call", "conditional"):
                    continue
                match = TRIPS.search(i.rest)
                trips = int(match[1]) if match else None
                for kind, other in _called(i):
                    if other in self.computations and other not in seen and kind != "condition":
                        seen.add(other)
                        role = {"body": "loop", "to_apply": "call"}.get(kind, "branch")
                        queue.append((other, role, trips if role == "loop" else None))

    def _row(self, i: Instruction) -> dict[str, Any]:
        inner = [*self._inside(i)] if i.opcode not in ("while", "call", "conditional") else []
        weights, terms, lines = set[int](), dict[str, None](), dict[int, None]()
        for each in [i, *inner]:
            line = self._line(each)
            term, of = self._term(each, line)
            weights.update(of)
            terms |= dict.fromkeys([term] if term else [])
            lines |= dict.fromkeys([] if line is None else [line])
        counts: dict[str, int] = {}
        for each in inner:
            if each.opcode not in NO_WORK:
                counts[each.opcode] = counts.get(each.opcode, 0) + 1
        match = OP_NAME.search(i.rest)
        return {
            "name": i.name,
            "opcode": i.opcode,
            "type": textwrap.shorten(_without_layout(i.type), 100, placeholder=" …)"),
            "bytes": bytes_of(i.type),
            "op_name": "" if terms or match is None else _unescaped(match[1]),
            "inside": [f"{n}× {name}" if n > 1 else name for name, n in counts.items()],
            "terms": [*terms],
            "lines": [*lines],
            "weights": sorted(weights),
        }

    def _inside(self, i: Instruction, depth: int = 0) -> Iterator[Instruction]:
        for _, name in _called(i) if depth < 8 else ():
            for inner in self.computations.get(name, ()):
                yield inner
                yield from self._inside(inner, depth + 1)

    def _products(self, name: str) -> Iterator[dict[str, Any]]:
        types = {i.name: i.type for i in self.computations[name]}
        for i in self.computations[name]:
            library = i.opcode == "custom-call" and re.search(
                r'target="[^"]*(?:dot|gemm|conv)', i.rest
            )
            if i.opcode in PRODUCTS or library:
                row = self._row(i)
                arguments = re.findall(r"%?([\w.\-]+)", i.rest.split(")")[0])
                of = [_without_layout(types[a]) for a in arguments if a in types]
                wanted = ("name", "type", "bytes", "terms", "lines", "weights")
                yield {key: row[key] for key in wanted} | {"of": of}

    def _line(self, i: Instruction) -> int | None:
        match = re.search(r"stack_frame_id=(\d+)", i.rest)
        if match is not None:
            place = self._lines.get(int(match[1]))
        else:
            old = re.search(r'source_file="((?:[^"\\]|\\.)*)" source_line=(\d+)', i.rest)
            place = (_unescaped(old[1]), int(old[2])) if old else None
        return self.known.get((short(place[0]), place[1])) if place else None

    def _term(self, i: Instruction, line: int | None) -> tuple[str, list[int]]:
        """The term of the trace program that an instruction computes, or `step` and `credit` for the model forward and
        back; and the weights that it is about."""
        match = OP_NAME.search(i.rest)
        if match is None:
            return "", []
        name = match[1]
        if name not in self._of_name:
            self._of_name[name] = self._term_of(_unescaped(name))
        term, weights = self._of_name[name]
        if term or line is None:
            return term, weights
        of_model = "credit" if "transpose(" in name else "step"
        return of_model, self.at.get((line, name.rpartition("/")[2]), [])

    def _term_of(self, name: str) -> tuple[str, list[int]]:
        for match in re.finditer(r"(?:^|[/(])(grad|trace) ", name):
            for end in re.finditer(r"[/)]|$", name[match.end() :]):
                path = name[match.end() : match.end() + end.start()]
                if path in self.weights.by_path:
                    return f"{match[1]} {path}", self.weights.of_path(path)
        if match := re.match(r"carry\.traces\['(.*)'\]\[\d+\]$", name):
            return "", self.weights.of_path(match[1])
        return "", []


def _called(i: Instruction) -> list[tuple[str, str]]:
    found = [(kind, name) for kind, name in CALLED.findall(i.rest)]
    branches = BRANCHES.search(i.rest)
    names = branches[1].split(",") if branches else []
    return found + [("branch", name.strip().lstrip("%")) for name in names]


def _parsed(text: str) -> tuple[str, dict[str, list[Instruction]], str]:
    """What stands before the computations, these by name, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    head: list[str] = []
    entry, inside = "", None
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) or (
            line and line[0].isalpha() and line.endswith("{") and "->" in line
        ):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            entry = name if line.startswith("ENTRY") else entry
            inside = computations.setdefault(name, [])
        elif inside is None:
            head.append(line)
        elif match := INSTRUCTION.match(line):
            type, rest = _type_of(line[match.end() :])
            opcode, _, rest = rest.partition("(")
            inside.append(Instruction(match[2], type, opcode.strip(), rest))
    return "\n".join(head), computations, entry


def _type_of(text: str) -> tuple[str, str]:
    """A type, which may be a tuple, and what follows it."""
    if not text.startswith("("):
        type, _, rest = text.partition(" ")
        return type, rest
    depth = 0
    for n, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: n + 1], text[n + 2 :]
    return text, ""


def _source_lines(head: str) -> Iterator[tuple[int, tuple[str, int]]]:
    """The file and the line of each stack frame, from the tables before the computations."""
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in head.splitlines():
        if match := re.match(r"(\d+) (.*)", line):
            table[int(match[1])] = match[2]
        elif line:
            table = tables.setdefault(line.strip(), {})
    locations: dict[int, tuple[str, int]] = {}
    for number, text in tables.get("FileLocations", {}).items():
        fields = dict(re.findall(r"(\w+)=(\d+)", text))
        file = tables.get("FileNames", {}).get(int(fields["file_name_id"]), '""')
        locations[number] = (_unescaped(file.strip('"')), int(fields["line"]))
    for number, text in tables.get("StackFrames", {}).items():
        fields = dict(re.findall(r"(\w+)=(\d+)", text))
        place = locations.get(int(fields["file_location_id"]))
        if place is not None:
            yield number, place


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _without_layout(type: str) -> str:
    return re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", type)


def bytes_of(type: str) -> int:
    """The bytes of an array, or of all of a tuple, by the type as HLO writes it."""
    total = 0
    for dtype, shape in ARRAY.findall(type):
        match = BITS.match(dtype)
        bits = 8 if dtype == "pred" else int(match[1]) if match else 0
        total += math.prod(int(n.strip("<=")) for n in shape.split(",") if n) * bits // 8
    return total
