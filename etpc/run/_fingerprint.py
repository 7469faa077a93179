"""A number for a program that is the same in every process, so that a carry knows its own."""

import hashlib
import re
from typing import Any

import numpy as np

from ..analyse import trace_dtype
from ..plan import Plan


def fingerprint(plan: Plan) -> str:
    """What a carry must agree on: the states, every use of a weight, and what reaches what.

    The same in every process, for the same model; the values of its parameters do not matter.
    """
    analysis = plan.analysis
    step = analysis.step
    digest = hashlib.sha256()

    def add(*parts: Any) -> None:
        # without where functions and objects are in the memory of this process
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", "\n".join(map(str, parts)))
        digest.update(text.encode() + b"\0")

    add(plan.algorithm, step.state_leaves.treedef)
    for leaves in (step.state_leaves, step.model_leaves):
        add(
            *(
                f"{p} {a.dtype}{list(a.shape)}"
                for p, a in zip(leaves.paths, leaves.avals, strict=True)
            )
        )
    for p, reach in zip(plan.ops, analysis.reach, strict=True):
        kind = p.op.kind
        add(p.path, kind.name, kind.groups, kind.inputs, kind.outputs, kind.data, p.op.operand)
        add(
            p.form,
            p.trace_shape,
            trace_dtype(analysis, p.op),
            p.shares,
            p.op.number in analysis.cut,
        )
        _add_pattern(digest, reach.block)
    for pattern in (analysis.transition, *analysis.immediate):
        _add_pattern(digest, pattern)
    for i in analysis.assumed:
        values = step.fixed[step.parameters[i]]
        add(i, values.dtype, values.shape)
        _add_numbers(digest, values)
    return digest.hexdigest()[:16]


def _add_pattern(digest: Any, pattern: Any) -> None:
    digest.update(repr(pattern.shape).encode())
    if not pattern.has_sorted_indices:
        pattern = pattern.sorted_indices()
    _add_numbers(digest, pattern.indptr)
    _add_numbers(digest, pattern.indices)


def _add_numbers(digest: Any, values: np.ndarray) -> None:
    """Integers or booleans of any type, a part at a time, as one type for all machines."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        digest.update(flat[start : start + (1 << 20)].astype("<i8").tobytes())


__all__ = ["fingerprint"]
