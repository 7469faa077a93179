"""The text of `program.explain`."""

import textwrap

import jax
import jax.numpy as jnp

from ..analyse import Analysis
from ..errors import Code, SelectionError, near
from ..forms import Full
from ..ir import TraceNode
from ..plan import OpPlan, Plan
from ._costs import Costs
from ._describe import Claims, shape_text, table
from ._edits import edits
from ._graph import dependency_graph

BEHIND_ADVICE = (
    "SnAp and RTRL carry its influence on each state that it reaches, CreditRTRL() that along a few "
    'directions, and backprop="full" keeps it to the end of a window. A gate can act behind the weight, '
    "as in r * (U @ h) in place of U @ (r * h): then it has a trace."
)
"""What to do about a weight whose output only other weights read."""


def explain(plan: Plan, uncut: Analysis, path: str, claims: Claims, width: int) -> str:
    """The claim for the parameter at `path`, and its operations, in lines of at most `width`.

    `uncut` is an analysis that cuts all that mix.

    **Raises** `SelectionError` where no parameter has this path.
    """
    paths = plan.analysis.step.model_leaves.paths
    if path not in paths:
        known = ", ".join(plan.analysis.step.model_leaves.float_avals)
        dotted = [f".{path}"] if f".{path}" in paths else []
        raise SelectionError(
            f"The model has no parameter {path!r}.{near(path, dotted or paths)} Its parameters: {known}."
        )
    claim = claims.get(path)
    if claim is None:
        return _wrapped([f"{path}: it is no float, and has no gradient."], width)
    if not claim.uses:
        return _wrapped([f"{path}: {claim.reasons[0].text}."], width)
    costs = Costs(uncut, plan.algorithm.backprop)
    gradient = "Its gradient" if len(claim.uses) == 1 else "The gradient through it"
    texts = [_operation(plan, p, costs, gradient, width) for p in claim.uses]
    if len(texts) > 1:
        texts[0] = f"{path} is used {len(texts)} times. Its gradient: {claim.claim}.\n{texts[0]}"
    return "\n\n".join(texts)


def _operation(plan: Plan, p: OpPlan, costs: Costs, gradient: str, width: int) -> str:
    kind = p.op.kind
    size = f"{kind.inputs} x {kind.outputs}" if kind.links is None else f"{kind.links.inputs.size}"
    in_groups = f", in {kind.groups} groups" if kind.groups > 1 else ""
    text = [f"{p.path} meets data in {p.kind} at {p.op.equation.source}: {size} uses{in_groups}."]
    if p.node is None:
        text.append(f"It has no trace: {p.reason}.")
        if p.code is Code.BEHIND_WEIGHTS:
            text.append(BEHIND_ADVICE)
        if p.escapes:
            text.append("What is left out:")
        return "\n".join([_wrapped(text, width), *_left_out(plan, p, width)])
    states = f"{p.block} hidden state{'s' if p.block > 1 else ''}"
    text.append(
        f"Each of its outputs has a lasting influence on at most {states}, of {', '.join(p.states)}."
    )
    arrays = f"{p.node.form.held}, {_arrays_text(p, p.node)}"
    text.append(f"Its trace is {arrays}: {p.trace_bytes:,} bytes for one example.")
    if not p.owns and p.op in p.node.feeds[0].ops:
        text.append(
            "It is carried in the trace of another weight, as the products of both are added up."
        )
    elif not p.owns:
        text.append("It is added to the trace of another use of the same weight.")
    text += _smaller(plan, p, p.node)
    if p.choice:
        text.append(f"It was chosen so: {p.choice}.")
    if p.exact:
        text.append(f"{gradient} is exact: no influence leaves the trace.")
    else:
        text.append(f"{gradient} is approximate. What is left out:")
    lines = [_wrapped(text, width), *_left_out(plan, p, width)]
    rules = costs.by_rule(p.op)
    rows = [[name, f"{block:,}", f"{size:,}"] for name, (block, size) in rules.items()]
    lines += ["At most, for one example:"]
    lines += [f"  {row}" for row in table(["rule", "block", "bytes"], rows)]
    return "\n".join(lines)


def _arrays_text(p: OpPlan, node: TraceNode) -> str:
    """Shapes and dtype of the arrays that hold a trace; each with its own where a form carries several dtypes."""
    carry = jax.eval_shape(lambda: node.form.init(node.site, 1))
    dtypes = {a.dtype for a in carry}
    if len(dtypes) == 1 or tuple(a.shape[1:] for a in carry) != node.shapes:
        return f"{shape_text(p)} of {jnp.dtype(node.dtype).name}"
    return " + ".join(f"{'x'.join(map(str, a.shape[1:]))} of {a.dtype.name}" for a in carry)


def _left_out(plan: Plan, p: OpPlan, width: int) -> list[str]:
    """What is left out, and what would change that."""
    if not p.escapes:
        return []
    found = edits(dependency_graph(plan), plan.analysis.reach[p.op.number].escapes)
    changes = [_wrapped([edit], width) for edit in found]
    return [*(f"  {escape}" for escape in p.escapes), *changes]


def _smaller(plan: Plan, p: OpPlan, node: TraceNode) -> list[str]:
    """What was found where a smaller form of the same trace was looked for."""
    found = [c for c in plan.ir.changes if c.path == p.path and c.of_form]
    if found:
        saved = sum(change.bytes for change in found)
        return [f"That is {saved:,} bytes less than {Full().held}, which the rule gives it."]
    why = plan.ir.no_smaller.get(p.path) if type(node.form) is Full else None
    return [f"No smaller trace is known that holds all of it: {why}."] if why else []


def _wrapped(text: list[str], width: int) -> str:
    return textwrap.fill(" ".join(text), width, break_long_words=False, break_on_hyphens=False)
