"""A compilation from end to end, as data for JSON and as one page of HTML."""

import json
import os
import re
from functools import cached_property
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, checked_count
from ..files.disk import replacing
from ..files.record import record
from ..plan import OpPlan
from ..run import Program
from ..show import shape_text, verdict
from ._graph import Drawn
from ._hlo import hlo_record
from ._model import Sources, Weights, short, step_record, type_text
from ._passes import passes_record
from ._patterns import pattern_record


class View:
    """A compilation from end to end: a page to look at, and what it shows as data. Made by `program.view()`.

    Notebooks show it as the page.
    """

    def __init__(
        self,
        program: Program,
        title: str = "",
        batch_size: int | None = None,
        hlo: bool = True,
        on: str | None = None,
    ):
        """See `program.view`."""
        self.program, self.title, self.hlo, self.on = program, title, hlo, on
        self.batch_size = None if batch_size is None else checked_count("batch_size", batch_size)

    def as_dict(self) -> dict[str, Any]:
        """All that the page shows, ready for JSON; `etpc.files.schema("etpc-view/1")` says what each field is."""
        return self._record

    @cached_property
    def _record(self) -> dict[str, Any]:
        program, plan = self.program, self.program.plan
        weights, sources = Weights(plan), Sources()
        step = step_record(plan, weights, sources)
        emitted = _emitted(program, self.batch_size)
        of = weights, sources, step["equations"]
        emitted["hlo"] = hlo_record(program, of, self.batch_size, self.on) if self.hlo else None
        hidden = plan.analysis.hidden
        states = zip(hidden.paths, hidden.avals, hidden.offsets, hidden.offsets[1:], strict=False)
        drawn = Drawn(program, weights)
        return record(
            "etpc-view/1",
            title=self.title or plan.algorithm.short,
            rule=str(plan.algorithm),
            target=str(plan.ir.target),
            window=plan.window,
            exact=program.exact,
            rewritten=plan.analysis.step is not plan.step,
            states=[
                {"path": path, "type": type_text(aval), "first": a, "size": b - a}
                for path, aval, a, b in states
            ],
            weights=_weights(program, weights),
            ops=[_op(program, p, weights, drawn) for p in plan.ops],
            escapes=drawn.escapes,
            step=step,
            sources=sources.as_dict(),
            patterns=pattern_record(plan),
            graph=drawn.record(),
            **passes_record(plan, weights),
            emitted=emitted,
        )

    def html(self) -> str:
        """The page: one file that loads nothing."""
        folder = resources.files(__package__ or "etpc.viewing")
        part = lambda name: (folder / name).read_text(encoding="utf-8")
        data = json.dumps(self.as_dict(), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        parts = {
            "title": escape(self.as_dict()["title"]),
            "style": part("viewer.css"),
            "script": part("viewer.js"),
            # Neither the end of a script nor a comment, whatever a name is.
            "data": data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        }
        return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], part("viewer.html"))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file that ends in `.html`, or the data to one that ends in `.json`.

        A file that is there is replaced once the new one is complete.

        **Raises** `etpc.InputError` for other endings; `OSError` where the file cannot be written.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (".html", ".json"):
            raise InputError(
                f"A view cannot be written to {path.name!r}: the format is not known from the ending {path.suffix!r}. "
                "Use .html for the page, or .json for what it shows."
            )
        text = self.html() if ending == ".html" else json.dumps(self.as_dict(), indent=1) + "\n"
        with replacing(path) as file:
            file.write(text.encode())

    def _repr_html_(self) -> str:
        frame = 'style="width: 100%; height: 46em; border: 1px solid #8886; border-radius: 6px"'
        return f'<iframe srcdoc="{escape(self.html())}" {frame}></iframe>'

    def __repr__(self) -> str:
        return f"View({self.title or self.program.plan.algorithm.short!r})"


def _weights(program: Program, weights: Weights) -> list[dict[str, Any]]:
    ops_of: dict[int, list[int]] = {}
    for p in program.plan.ops:
        for n in weights.of_leaves(p.op.parameters):
            ops_of.setdefault(n, []).append(p.op.number)
    avals = program.plan.analysis.step.model_leaves.float_avals
    records: list[dict[str, Any]] = []
    for n, (path, aval) in enumerate(avals.items()):
        claim = program.claims[path]
        reasons = [r.text for r in claim.reasons if r.kind != "escape"]
        head = dict(path=path, type=type_text(aval), claim=claim.claim)
        records.append({**head, "reasons": reasons, "ops": ops_of.get(n, [])})
    return records


def _op(program: Program, p: OpPlan, weights: Weights, drawn: Drawn) -> dict[str, Any]:
    plan = program.plan
    reach = plan.analysis.reach[p.op.number]
    place = re.sub(r"^(.*?)(?=:\d+)", lambda m: short(m[1]), p.op.equation.source)
    pairs = zip(p.escapes[len(p.lost) :], reach.escapes, strict=False)
    head = dict(number=p.op.number, path=p.path, weights=weights.of_leaves(p.op.parameters))
    meets = dict(kind=p.kind, source=place, role=reach.role, states=list(p.states))
    size = dict(block=p.block, outputs=p.op.size, bytes=p.trace_bytes)
    left_out = dict(escapes=[drawn.number(*pair) for pair in pairs], lost=list(p.lost))
    why = dict(choice=p.choice, no_smaller=plan.ir.no_smaller.get(p.path, ""), no_trace=p.reason)
    trace = dict(trace="", shape="", verdict="", shared=False)
    if p.node is not None:
        trace = dict(trace=p.node.form.held, shape=shape_text(p), shared=not p.owns)
        trace["verdict"] = verdict(plan, p, program.claims)
    return {**head, **meets, **size, "exact": p.exact, **trace, **why, **left_out}


def _emitted(program: Program, batch_size: int | None) -> dict[str, Any]:
    """What the window of a program does, in lines, and the bytes of its carry."""
    split = program.plan.analysis.split
    memory = program.memory(batch_size)
    text = str(program.runner.window).split("\n")
    count = dict(once=len(split.prefix), each_step=len(split.body))
    laid_out = dict(jacobians=str(program.ir.compression), schedule=str(program.ir.schedule))
    traces = sum(size for _, size in memory.traces)
    size = dict(carry_bytes=memory.total, trace_bytes=traces, state_bytes=memory.state)
    return {"text": text, **count, **laid_out, **size}
