"""A program as text."""

from collections.abc import Iterable, Mapping

from ..ir import numbered
from ..plan import Claim, OpPlan, Plan, last_steps

Claims = Mapping[str, Claim]


def describe(plan: Plan, claims: Claims, untraced: Mapping[str, str]) -> str:
    """The text of `print(program)`: a row for each weight operation, and what is left out, with reasons."""
    hidden = plan.analysis.hidden
    # Where a pass has rewritten the step, the rule is that of the step before.
    of_rule = plan.algorithm.analysis(plan.step) if plan.analysis.derived else plan.analysis
    also = plan.algorithm.also(of_rule)
    head = [
        f"{plan.algorithm}" + (f"  ({also})" if also else ""),
        f"  {hidden.size} hidden states: " + ", ".join(hidden.paths),
        f"  window {plan.window}{_chosen(plan)}",
        "",
    ]
    lines = [*head, *table(COLUMNS, rows(plan, claims))]
    if not plan.traced:
        last = last_steps(plan.algorithm)
        lines += ["", f"no weight has a trace: nothing from before {last} enters a gradient"]
    names = numbered([p.path for p in plan.traced])
    several = {
        name: f"at {p.op.equation.source}"
        for name, p in zip(names, plan.traced, strict=True)
        if name != p.path
    }
    lines += _section("used more than once", _aligned(several))
    chosen = {name: p.choice for name, p in zip(names, plan.traced, strict=True) if p.choice}
    lines += _section("chosen", _aligned(chosen))
    left_out = each_once((text, p.path) for p in plan.ops for text in p.escapes)
    lines += _section("left out (influence that leaves the trace)", left_out)
    lines += _section("without a trace", _aligned(untraced))
    opaque = [f"{o.primitive} at {o.source}" for o in plan.analysis.findings.opaque]
    lines += _section("taken as dense (no rule for their sparsity)", opaque)
    return "\n".join(lines)


def _section(heading: str, entries: Iterable[str]) -> list[str]:
    """A heading and the lines below it; nothing where there are none."""
    below = [f"  {entry}" for entry in entries]
    return ["", heading, *below] if below else []


def _aligned(texts: Mapping[str, str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [f"{path:<{width}}  {text}" for path, text in texts.items()]


def _chosen(plan: Plan) -> str:
    if plan.algorithm.window != "auto":
        return ""
    if not plan.ir.window.divides:
        return " (chosen)"
    why = f": {plan.ir.window.why}" if plan.ir.window.why else ""
    return f", or a divisor of T near it (chosen{why})"


COLUMNS = ["weight", "operation", "reaches", "block", "trace", "bytes", "gradient"]


def rows(plan: Plan, claims: Claims) -> list[list[str]]:
    """A row for each traced weight operation, with the columns `COLUMNS`."""
    return [
        [
            name,
            p.kind,
            ", ".join(p.states),
            str(p.block),
            shape_text(p) if p.owns else "as above",
            f"{p.trace_bytes:,}",
            verdict(plan, p, claims),
        ]
        for name, p in zip(numbered([p.path for p in plan.traced]), plan.traced, strict=True)
    ]


def verdict(plan: Plan, p: OpPlan, claims: Claims) -> str:
    """The last column of the row of an operation: whether the gradient through it is exact."""
    if p.exact:
        paths = [plan.analysis.step.model_leaves.paths[i] for i in p.op.parameters]
        whole = all(claims[path].holds_exactly for path in paths if path in claims)
        return "exact" if whole else "exact in this use"
    return "approximate" if p.form is None or p.form.exact else p.form.verdict


def shape_text(p: OpPlan) -> str:
    """The trace's shape; its factors joined by `+`."""
    return " + ".join("x".join(map(str, shape)) for shape in p.shapes) or "none"


def each_once(texts: Iterable[tuple[str, str]]) -> list[str]:
    """Each text once, with the paths that it comes with."""
    paths_of: dict[str, list[str]] = {}
    for text, path in texts:
        paths_of.setdefault(text, []).append(path)
    return [f"{text}  (of {', '.join(dict.fromkeys(paths))})" for text, paths in paths_of.items()]


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Aligned text; columns of numbers to the right."""
    widths = [max(len(r[i]) for r in [columns, *rows]) for i in range(len(columns))]
    right = [all(r[i].replace(",", "").isdigit() for r in rows) for i in range(len(columns))]

    def line(cells: list[str]) -> str:
        parts = [
            c.rjust(w) if to_right else c.ljust(w)
            for c, w, to_right in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(parts).rstrip()

    return [line(columns), "  ".join("-" * w for w in widths), *map(line, rows)]
