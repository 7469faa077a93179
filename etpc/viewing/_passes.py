"""The trace program before and after each pass, and without it."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import EtpcError, MemoryLimitError
from ..ir import TraceProgram
from ..plan import DEFAULT, Pass, Plan
from ._model import Weights

UNLIMITED = 1 << 62
"""More bytes than any trace has: a program is shown without a pass also where it would not fit into memory."""


class Programs:
    """Trace programs as lines: each program once, and each line that several have once."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.records: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._line_numbers: dict[tuple[str, str], int] = {}

    def number(self, program: TraceProgram) -> int:
        """The number of a program; two that print alike have one."""
        text = str(program)
        if text not in self._numbers:
            self._numbers[text] = len(self.records)
            total = sum(node.bytes for node in program.traces)
            lines = _lines(program, text.split("\n"), self.weights)
            self.records.append({"bytes": total, "lines": [*map(self._line, lines)]})
        return self._numbers[text]

    def _line(self, line: dict[str, Any]) -> int:
        key = (line["key"], line["text"])
        if key not in self._line_numbers:
            self._line_numbers[key] = len(self.lines)
            self.lines.append(line)
        return self._line_numbers[key]


def _lines(program: TraceProgram, texts: list[str], weights: Weights) -> Iterator[dict[str, Any]]:
    """The lines that `print` shows of a program, each with what it is about, by which two programs are compared.

    Their order is that of `etpc.ir`: the target, traces, gradients, gradients of windows of one step, and the rest.
    """
    rest = iter(texts)
    named = lambda ops: sorted({w for op in ops for w in weights.of_leaves(op.parameters)})
    names = program.names()
    yield {"key": "target", "text": next(rest), "weights": []}
    for node in program.traces:
        text = re.sub(r" {2,}feeds ", "  feeds ", next(rest))
        key = f"trace {names[node.op]}"
        yield {"key": key, "text": text, "weights": named(node.ops), "bytes": node.bytes}
    for op in program.grads:
        yield {"key": f"grad {names[op]}", "text": next(rest), "weights": named([op])}
    alone = [op for op, terms in program.step_grads.items() if terms != program.grads[op]]
    if alone:
        yield {"key": "step", "text": next(rest), "weights": []}
    for op in alone:
        yield {"key": f"step {names[op]}", "text": next(rest), "weights": named([op])}
    zeros = [op for op, terms in program.zeros.items() if terms]
    for text in rest:
        first, _, more = text.partition(" ")
        key = f"zero {more.partition(':')[0]}" if first == "zero," else first
        yield {"key": key, "text": text, "weights": named(zeros) if first == "zero," else []}


def passes_record(plan: Plan, weights: Weights) -> dict[str, Any]:
    """Each pass with the numbers of the programs before and after it and of the one without it, for JSON."""
    programs, passes = Programs(weights), plan.passes
    program = _planned(plan, ())
    before = start = programs.number(program)
    final = programs.number(plan.ir)
    records: list[dict[str, Any]] = []
    for place, each in enumerate(passes):
        rewrites_step = each.before is not None
        program = _planned(plan, passes[: place + 1]) if rewrites_step else each.run(program)
        after = programs.number(program)
        without, why = (final, "") if after == before else _without(plan, each, programs)
        at = dict(before=before, after=after, without=without, why_not=why)
        changes = [
            dict(path=c.path, weights=weights.of_path(c.path), text=c.text, bytes=c.bytes)
            for c in plan.ir.changes
            if c.by == each.name
        ]
        records.append({**_described(each), "ran": True, **at, "changes": changes})
        before = after
    absent = [p for p in DEFAULT if p.name not in {q.name for q in passes}]
    left_out = dict(ran=False, before=final, after=final, without=final, why_not="", changes=[])
    records += [{**_described(p), **left_out} for p in absent]
    shown = {"lines": programs.lines, "programs": programs.records}
    return {"passes": records, **shown, "first": start, "last": final}


def _planned(plan: Plan, passes: tuple[Pass, ...]) -> TraceProgram:
    """The trace program of these passes."""
    again: Callable[..., Plan] = functools.partial(plan.again, target=plan.ir.target, passes=passes)
    try:
        return again().ir
    except MemoryLimitError:
        return again(memory=UNLIMITED).ir


def _without(plan: Plan, each: Pass, programs: Programs) -> tuple[int | None, str]:
    """The number of the program without a pass; or `None`, and why there is none."""
    try:
        return programs.number(_planned(plan, tuple(p for p in plan.passes if p is not each))), ""
    except EtpcError as error:
        return None, str(error)


def _described(each: Pass) -> dict[str, Any]:
    """A pass in words: the docstring of its module, or that of its function where it is none of the package."""
    module = sys.modules.get(getattr(each.run, "__module__", ""))
    document = module.__doc__ if each in DEFAULT and module is not None else each.run.__doc__
    heading, _, rest = inspect.cleandoc(document or each.does).partition("\n\n- ")
    points: list[dict[str, str]] = []
    for text in re.split(r"\n- ", rest) if rest else []:
        joined = " ".join(text.split())
        label, colon, body = joined.partition(": ")
        known = colon and label in ("Pattern", "Proof", "Rewrite", "Proof and rewrite")
        points.append({"label": label if known else "", "text": body if known else joined})
    words = [" ".join(part.split()) for part in heading.split("\n\n")]
    return {"name": each.name, "does": each.does, "words": words, "points": points}
