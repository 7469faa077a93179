"""Pattern rules of branches and loops."""

from collections.abc import Callable, Sequence

import numpy as np

from .._jax import Flat, Variable, flatten, scan_counts, unrolled
from ..trace import Known
from ._interpreter import Interpreter, rule
from ._pattern import Pattern, joined, numbering, pick, union

UNROLLED = 2048
"""A loop of up to this many operations is followed from iteration to iteration."""


def _inside(flat: Flat, operands: Sequence[Variable], known: Known) -> Known:
    """What is known inside a program whose arguments are these operands."""
    pairs = zip(flat.inputs, operands, strict=False)
    values = {inner: known(outer) for inner, outer in pairs if not outer.is_float}
    values = {v: value for v, value in values.items() if value is not None}
    return Known(flat.equations, {**flat.constants, **values})


@rule("cond")
def _cond(interpreter, eqn, patterns, known):
    results = []
    for branch in eqn.params["branches"]:
        flat = flatten(branch)
        results.append(interpreter.run(flat, patterns[1:], _inside(flat, eqn.inputs[1:], known)))
    outs: list[Pattern | None] = []
    for alternatives in zip(*results, strict=True):
        present = [p for p in alternatives if p is not None]
        outs.append(union(present) if present else None)
    return outs


def _fixpoint(
    interpreter: Interpreter, body: Callable, carry: list[Pattern | None]
) -> list[Pattern | None]:
    """The least patterns of a loop's carry that its body does not enlarge."""
    bound = sum(p.shape[0] for p in carry if p is not None) + len(carry)
    bound = (bound + 2) * (interpreter.seeds + 1)
    for _ in range(bound):
        results = body(carry)
        grown, changed = [], False
        for old, new in zip(carry, results, strict=True):
            if new is None or old is None:
                grown.append(old if new is None else new)
                changed |= new is not None
                continue
            merged = old + new
            changed |= merged.nnz > old.nnz
            grown.append(merged)
        carry = grown
        if not changed:
            return carry
    raise AssertionError("a fixpoint over finite patterns did not end; this is a bug in etpc")


@rule("scan")
def _scan(interpreter, eqn, patterns, known):
    n_consts, n_carry = scan_counts(eqn)
    flat = flatten(eqn.params["jaxpr"])
    consts, carry = patterns[:n_consts], patterns[n_consts : n_consts + n_carry]
    length = eqn.params["length"]
    if 0 < length * len(flat.equations) <= UNROLLED:
        flat = unrolled(eqn)
        return interpreter.run(flat, patterns, _inside(flat, eqn.inputs, known))
    inside = _inside(flat, eqn.inputs[:n_consts], known)
    if length == 0:
        return [*carry, *([None] * (len(eqn.outputs) - n_carry))]
    slices = []
    for v, pattern in zip(
        eqn.inputs[n_consts + n_carry :], patterns[n_consts + n_carry :], strict=True
    ):
        slices.append(None if pattern is None else joined(pattern, v.shape, (0,)))

    def body(current):
        return interpreter.run(flat, [*consts, *current, *slices], inside)

    carry = _fixpoint(interpreter, lambda c: body(c)[:n_carry], list(carry))
    outs: list[Pattern | None] = list(carry)
    for v, pattern in zip(eqn.outputs[n_carry:], body(carry)[n_carry:], strict=True):
        index = np.broadcast_to(numbering(v.shape[1:]), v.shape)
        outs.append(None if pattern is None else pick(pattern, index))
    return outs


@rule("while")
def _while(interpreter, eqn, patterns, known):
    interpreter.unbounded[eqn.source] = None
    skip, n_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = patterns[skip : skip + n_consts], patterns[skip + n_consts :]
    flat = flatten(eqn.params["body_jaxpr"])
    return _fixpoint(interpreter, lambda c: interpreter.run(flat, [*consts, *c]), list(carry))
