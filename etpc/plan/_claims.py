"""What a program says of the gradient of each parameter."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ..analyse import Escape
from ..errors import Code
from ..files.record import record
from ._plain import steps_back
from ._records import OpPlan, Plan

ClaimName = Literal["exact", "approximate", "current step", "unused"]


@dataclasses.dataclass(frozen=True)
class Reason:
    """One reason why a gradient is not exact.

    - `kind`: `"escape"`: influence leaves the trace along a path; `"form"`: the form or the dtype of the
        trace leaves something out; `"untraced"`: this use reaches a hidden state and has no trace;
        `"unused"`: nothing that the step returns depends on the parameter.
    - `text`: what is left out, in words.
    - `use`: the weight operation that it is about; `None` for a parameter without one.
    - `escape`: the path, where the kind is `"escape"`.
    - `code`: what the text says, for programs.
    """

    kind: Literal["escape", "form", "untraced", "unused"]
    text: str
    use: OpPlan | None = dataclasses.field(default=None, repr=False)
    escape: Escape | None = None
    code: Code = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a program says of the gradient of one parameter, for any values of the parameters.

    - `path`: of the parameter.
    - `claim`: `"exact"`: it equals that of BPTT; `"approximate"`: a trace follows it, or credit goes back to it
        through the last steps, and something is left out; `"current step"`: its influence on all later steps is
        left out; `"unused"`: it is zero.
    - `reasons`: why it is not exact; empty where it is.
    - `uses`: the weight operations in which it meets data, traced (`use.form` says how) or not.
    """

    path: str
    claim: ClaimName
    reasons: tuple[Reason, ...]
    uses: tuple[OpPlan, ...]

    @property
    def left_out(self) -> tuple[str, ...]:
        """The reasons in words."""
        return tuple(reason.text for reason in self.reasons)

    @property
    def holds_exactly(self) -> bool:
        """Whether the gradient is that of BPTT: `"exact"`, or zero because it is unused."""
        return self.claim in ("exact", "unused")

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON."""
        reasons = [{"kind": r.kind, "code": str(r.code), "text": r.text} for r in self.reasons]
        return record("etpc-claim/1", path=self.path, claim=self.claim, reasons=reasons)


WHOLE = Code.NO_STATE_REACHED, Code.NOT_READ_LATER, Code.UNUSED
"""Of operations without a trace whose gradient is that of BPTT."""
UNUSED = "no operation of the step depends on it; its gradient is zero"


def claims(plan: Plan) -> Mapping[str, Claim]:
    """The claim for each float parameter, by its path, in the model's order."""
    leaves = plan.analysis.step.model_leaves
    return {leaves.paths[i]: _claim(plan, i, leaves.paths[i]) for i in leaves.floats}


def _claim(plan: Plan, number: int, path: str) -> Claim:
    uses = tuple(p for p in plan.ops if number in p.op.parameters)
    relevant = [p for p in uses if plan.analysis.reach[p.op.number].role != "nothing"]
    if not relevant:
        text = "; ".join(dict.fromkeys(p.reason for p in uses)) or UNUSED
        return Claim(path, "unused", (Reason("unused", text, code=Code.UNUSED),), uses)
    reasons = tuple(reason for p in relevant for reason in reasons_of(plan, p))
    if not reasons:
        return Claim(path, "exact", (), uses)
    followed = steps_back(plan.algorithm) > 1 or any(p.node is not None for p in relevant)
    return Claim(path, "approximate" if followed else "current step", reasons, uses)


def reasons_of(plan: Plan, p: OpPlan) -> list[Reason]:
    """Why the gradient through one weight operation is not exact; empty where it is."""
    of_form = [Reason("form", text, p, code=Code.REDUCED) for text in p.lost]
    if p.node is None:
        if p.code is None or p.code in WHOLE:
            return of_form
        return [*of_form, Reason("untraced", p.reason, p, code=p.code)]
    pairs = zip(p.escapes[len(p.lost) :], plan.analysis.reach[p.op.number].escapes, strict=True)
    return of_form + [
        Reason("escape", text, p, escape, code=_code(escape)) for text, escape in pairs
    ]


def _code(escape: Escape) -> Code:
    if escape.steps is not None:
        return Code.ESCAPES_LATER
    return Code.ESCAPES if escape.through else Code.OTHER_FEEDBACK
