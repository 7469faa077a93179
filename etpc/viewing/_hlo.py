"""What XLA makes of a program: the instructions of its optimised HLO, and where each of them comes from."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax

from ..estimating.chips import place
from ..estimating.compiled import compile_for
from ..estimating.hlo import KERNELS, Instruction, bytes_of, parsed, unescaped
from ..estimating.memory import gradient_of
from ..run import Program
from ._model import Sources, Weights, short

NO_WORK = frozenset("parameter constant tuple get-tuple-element bitcast after-all iota".split())  # noqa: SIM905
"""Instructions that are no kernel: they name or reshape what is there."""
FLOW, PRODUCTS = frozenset({"while", "call", "conditional"}), frozenset({"dot", "convolution"})
Equations = list[dict[str, Any]]
"""Those of the record of a step."""


def hlo_record(
    program: Program, of: tuple[Weights, Sources, Equations], batch_size: int | None, on: str | None
) -> dict[str, Any]:
    """A window of a program, compiled for a chip or the first device of this process and taken apart, for JSON."""
    steps, carry = program.ir.window.steps, jax.eval_shape(lambda: program.init(batch_size))
    run, args = gradient_of(program, carry, steps)
    compiled = run.lower(*args).compile() if on is None else compile_for(place(on), run, *args)
    memory, kinds = compiled.memory_analysis(), ("argument", "output", "temp")
    sizes = {kind: int(getattr(memory, f"{kind}_size_in_bytes", 0)) for kind in kinds}
    device = jax.devices()[0].device_kind if on is None else place(on).chip.kind
    unit = None if on is None else {"tpu": "cycles", "cuda": "kernels"}.get(place(on).chip.platform)
    about = dict(device=device, steps=steps, batch_size=batch_size, bytes=sizes, unit=unit)
    origins = Origins(compiled.as_text() or "", *of)
    return {**about, **origins.record()}


class Origins:
    """Where the instructions of an optimised HLO module come from."""

    def __init__(self, text: str, weights: Weights, sources: Sources, equations: Equations):
        self.weights = weights
        self.at: dict[tuple[int | None, str], list[int]] = {}
        """The weights that meet data on a line, by the line and the primitive; none where several equations are alike,
        as those of a loop over layers."""
        alike = Counter((e["line"], e["primitive"]) for e in equations)
        for e in equations:
            if e["ops"] and alike[e["line"], e["primitive"]] == 1:
                self.at[e["line"], e["primitive"]] = e["weights"]
        self.module = parsed(text)
        self.computations = self.module.computations
        known = {(short(file), line): n for (file, line), n in sources.lines.items()}
        places = _source_lines(self.module.head)
        self.lines = {frame: known.get((short(file), n)) for frame, (file, n) in places}
        self._of_name: dict[str, tuple[str, list[int]]] = {}

    def record(self) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {}
        for name, role, trips, times in self._reached():
            rows = [self._row(i, times) for i in self.computations[name] if i.opcode not in NO_WORK]
            if any(row["opcode"] != "while" for row in rows):  # others only call a loop
                found[name] = {"name": name, "role": role, "trips": trips, "instructions": rows}
        products = [row for name in self.computations for row in self._products(name)]
        return {"computations": [*found.values()], "products": products}

    def _reached(self) -> Iterator[tuple[str, str, int | None, int]]:
        """The computations that run instruction by instruction: the entry, what it calls, bodies of loops; with the
        trips of a loop and of all loops around it, where one of unknown length counts once."""
        queue: list[tuple[str, str, int | None, int]] = [(self.module.entry, "entry", None, 1)]
        seen = {self.module.entry}
        while queue:
            name, role, trips, times = queue.pop(0)
            yield name, role, trips, times
            for i in self.computations[name]:
                trips = self.module.trips(i) if i.opcode == "while" else None
                for kind, other in i.called if i.opcode in FLOW else ():
                    if other in self.computations and other not in seen and kind != "condition":
                        seen.add(other)
                        of = {"body": "loop", "to_apply": "call"}.get(kind, "branch")
                        queue.append((other, of, trips, times * (trips or 1)))

    def _row(self, i: Instruction, times: int = 1) -> dict[str, Any]:
        inner = [*self._inside(i)] if i.opcode not in FLOW else []
        weights, terms, lines = set[int](), dict[str, None](), dict[int, None]()
        for each in [i, *inner]:
            line = self._line(each)
            term, of = self._term(each, line)
            weights.update(of)
            terms |= dict.fromkeys([term] if term else [])
            lines |= dict.fromkeys([] if line is None else [line])
        counts = Counter(each.opcode for each in inner if each.opcode not in NO_WORK)
        type = textwrap.shorten(_without_layout(i.type), 100, placeholder=" …)")
        op_name = "" if terms else i.op_name
        inside = [f"{n}× {name}" if n > 1 else name for name, n in counts.items()]
        found = dict(terms=[*terms], lines=[*lines], weights=sorted(weights), inside=inside)
        head = dict(name=i.name, opcode=i.opcode, type=type, bytes=bytes_of(i.type))
        kernels = bool(KERNELS.fullmatch(i.opcode))
        cost = dict(cycles=times * i.cycles, kernels=times * kernels)
        return {**head, **cost, **found, "op_name": op_name}

    def _inside(self, i: Instruction, depth: int = 0) -> Iterator[Instruction]:
        for _, name in i.called if depth < 8 else ():
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
        name = i.op_name
        if not name:
            return "", []
        if name not in self._of_name:
            self._of_name[name] = self._term_of(name)
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
        file = unescaped(files[field(at, "file_name_id")][1:-1])
        yield int(number), (file, int(field(at, "line")))


def _without_layout(type: str) -> str:
    return re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", type)
