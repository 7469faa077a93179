"""What XLA makes of a program: the instructions of its optimised HLO, and where each of them comes from."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..run import Program
from ._model import Sources, Weights, short

BITS = re.compile(r"(?:pred|[a-z]+?)(\d+)")
ARRAY = re.compile(r"\b(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\]")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][\w\-]*)\((.*)")
CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
NO_WORK = frozenset("parameter constant tuple get-tuple-element bitcast after-all iota".split())  # noqa: SIM905
"""Instructions that are no kernel: they name or reshape what is there."""
FLOW, PRODUCTS = frozenset({"while", "call", "conditional"}), frozenset({"dot", "convolution"})
Equations = list[dict[str, Any]]
"""Those of the record of a step."""


class Instruction(NamedTuple):
    """One instruction of an HLO module; `rest` is what stands after the opcode: operands, attributes, metadata."""

    name: str
    type: str
    opcode: str
    rest: str


def squares(y: Any, _: Any) -> Any:
    """The loss that is compiled: the sum of squares of all outputs."""
    floats = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return sum((jnp.sum(jnp.abs(a) ** 2).astype(jnp.float32) for a in floats), jnp.float32(0))


def hlo_record(
    program: Program,
    weights: Weights,
    sources: Sources,
    equations: Equations,
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
    memory, kinds = compiled.memory_analysis(), ("argument", "output", "temp")
    sizes = {kind: int(getattr(memory, f"{kind}_size_in_bytes", 0)) for kind in kinds}
    about = dict(device=jax.devices()[0].device_kind, steps=steps, batch_size=batch_size)
    module = Module(compiled.as_text() or "", weights, sources, equations)
    return {**about, "bytes": sizes, **module.record()}


class Module:
    """The text of an optimised HLO module, taken apart."""

    def __init__(self, text: str, weights: Weights, sources: Sources, equations: Equations):
        self.weights = weights
        self.at: dict[tuple[int | None, str], list[int]] = {}
        """The weights that meet data on a line, by the line and the primitive; none where several equations are alike,
        as those of a loop over layers."""
        alike = Counter((e["line"], e["primitive"]) for e in equations)
        for e in equations:
            if e["ops"] and alike[e["line"], e["primitive"]] == 1:
                self.at[e["line"], e["primitive"]] = e["weights"]
        head, self.computations, self.entry = _parsed(text)
        known = {(short(file), line): n for (file, line), n in sources.lines.items()}
        places = _source_lines(head)
        self.lines = {frame: known.get((short(file), n)) for frame, (file, n) in places}
        self._of_name: dict[str, tuple[str, list[int]]] = {}

    def record(self) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for name, role, trips in self._reached():
            rows = [self._row(i) for i in self.computations[name] if i.opcode not in NO_WORK]
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
            for i in self.computations[name]:
                trips = TRIPS.search(i.rest)
                for kind, other in _called(i) if i.opcode in FLOW else ():
                    if other in self.computations and other not in seen and kind != "condition":
                        seen.add(other)
                        of = {"body": "loop", "to_apply": "call"}.get(kind, "branch")
                        queue.append((other, of, int(trips[1]) if trips else None))

    def _row(self, i: Instruction) -> dict[str, Any]:
        inner = [*self._inside(i)] if i.opcode not in FLOW else []
        weights, terms, lines = set[int](), dict[str, None](), dict[int, None]()
        for each in [i, *inner]:
            line = self._line(each)
            term, of = self._term(each, line)
            weights.update(of)
            terms |= dict.fromkeys([term] if term else [])
            lines |= dict.fromkeys([] if line is None else [line])
        counts = Counter(each.opcode for each in inner if each.opcode not in NO_WORK)
        match = OP_NAME.search(i.rest)
        type = textwrap.shorten(_without_layout(i.type), 100, placeholder=" …)")
        op_name = "" if terms or match is None else _unescaped(match[1])
        inside = [f"{n}× {name}" if n > 1 else name for name, n in counts.items()]
        found = dict(terms=[*terms], lines=[*lines], weights=sorted(weights), inside=inside)
        head = dict(name=i.name, opcode=i.opcode, type=type, bytes=bytes_of(i.type))
        return {**head, **found, "op_name": op_name}

    def _inside(self, i: Instruction, depth: int = 0) -> Iterator[Instruction]:
        for _, name in _called(i) if depth < 8 else ():
            for inner in self.computations.get(name, ()):
                yield inner
                yield from self._inside(inner, depth + 1)

    def _products(self, name: str) -> Iterator[dict[str, Any]]:
        types = {i.name: i.type for i in self.computations[name]}
        for i in self.computations[name]:
            library = re.search(r'custom_call_target="[^"]*(?:dot|gemm|conv)', i.rest)
            if i.opcode in PRODUCTS or library:
                arguments = re.findall(r"[\w.\-]+", i.rest.split(")")[0])
                of = [_without_layout(types[a]) for a in arguments if a in types]
                row, wanted = self._row(i), ("name", "type", "bytes", "terms", "lines", "weights")
                yield {key: row[key] for key in wanted} | {"of": of}

    def _line(self, i: Instruction) -> int | None:
        match = re.search(r"stack_frame_id=(\d+)", i.rest)
        return self.lines.get(int(match[1])) if match else None

    def _term(self, i: Instruction, line: int | None) -> tuple[str, list[int]]:
        """The term of the trace program that an instruction computes, or `forward` or `backward` where it is of the
        model; and the weights that it is about."""
        match = OP_NAME.search(i.rest)
        if match is None:
            return "", []
        name = match[1]
        if name not in self._of_name:
            self._of_name[name] = self._term_of(_unescaped(name))
        term, weights = self._of_name[name]
        if term or line is None:
            return term, weights
        of_model = "backward" if "transpose(" in name else "forward"
        return of_model, self.at.get((line, name.rpartition("/")[2]), [])

    def _term_of(self, name: str) -> tuple[str, list[int]]:
        for match in re.finditer(r"(?:^|[/(])(grad|trace) ", name):
            for end in re.finditer(r"[/)]|$", name[match.end() :]):
                path = name[match.end() : match.end() + end.start()]
                if path in self.weights.by_path:
                    return f"{match[1]} {path}", self.weights.of_path(path)
        of_carry = re.match(r"carry\.traces\['(.*)'\]\[\d+\]$", name)
        return "", self.weights.of_path(of_carry[1]) if of_carry else []


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
        if line[:1].strip() and line.endswith("{") and "->" in line:
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            entry = name if line.startswith("ENTRY") else entry
            inside = computations.setdefault(name, [])
        elif inside is None:
            head.append(line)
        elif match := INSTRUCTION.match(line):
            inside.append(Instruction(*match.groups()))
    return "\n".join(head), computations, entry


def _source_lines(head: str) -> Iterator[tuple[int, tuple[str, int]]]:
    """The file and the line of each stack frame, from the tables before the computations."""

    def table(name: str) -> dict[str, str]:
        match = re.search(rf"^{name}\n((?:\d+ .*\n?)+)", head, re.MULTILINE)
        return dict(line.split(" ", 1) for line in (match[1] if match else "").splitlines())

    def field(text: str, name: str) -> str:
        return dict(re.findall(r"(\w+)=(\d+)", text))[name]

    files, locations = table("FileNames"), table("FileLocations")
    for number, frame in table("StackFrames").items():
        at = locations[field(frame, "file_location_id")]
        file = _unescaped(files[field(at, "file_name_id")][1:-1])
        yield int(number), (file, int(field(at, "line")))


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
