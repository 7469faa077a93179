"""A program as a record for JSON."""

from collections.abc import Mapping
from typing import Any

from ..files.record import record
from ..plan import Plan
from ._describe import Claims


def record_of(plan: Plan, claims: Claims, untraced: Mapping[str, str]) -> dict[str, Any]:
    """What a program says, as `etpc-program/1`."""
    weights = [
        {
            "path": p.path,
            "operation": p.kind,
            "source": p.op.equation.source,
            "states": p.states,
            "block": p.block,
            "trace_shape": p.trace_shape,
            "trace_bytes": p.trace_bytes,
            "exact": p.exact,
            "left_out": p.escapes,
            "choice": p.choice,
        }
        for p in plan.traced
    ]
    return record(
        "etpc-program/1",
        algorithm=str(plan.algorithm),
        window=plan.window,
        hidden_states=plan.analysis.hidden.paths,
        weights=weights,
        untraced=untraced,
        exact=all(claim.holds_exactly for claim in claims.values()),
        claims={path: claim.as_dict() for path, claim in claims.items()},
        ir=plan.ir.as_dict(),
    )
