"""Pattern rules of branches and loops."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._jax import Equation, Flat, Variable, flatten, params, shard_map_p, unrolled
from .._jax.primitives import register
from ..trace import Known
from ._interpreter import Interpreter, Patterns, Results, rule
from ._pattern import Pattern, joined, numbering, pick, select, union

UNROLLED = 2048
"""A loop of up to this many operations is followed from iteration to iteration."""


def inside(flat: Flat, operands: Sequence[Variable], known: Known) -> Known:
    """The values that are known inside a program whose arguments are these operands."""
    pairs = zip(flat.inputs, operands, strict=False)
    values = {inner: known(outer) for inner, outer in pairs if not outer.is_float}
    values = {v: value for v, value in values.items() if value is not None}
    return Known(flat.equations, {**flat.constants, **values})


@rule("cond")
def _cond(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    results = []
    for branch in params.branches(eqn):
        flat = flatten(branch)
        results.append(interpreter.run(flat, patterns[1:], inside(flat, eqn.inputs[1:], known)))
    return list(map(union, zip(*results, strict=True)))


def _fixpoint(
    interpreter: Interpreter, body: Callable[[Patterns], Patterns], carry: Patterns
) -> Patterns:
    """The smallest patterns of a loop's carry that its body does not enlarge."""
    entries = lambda patterns: sum(p.nnz for p in patterns if p is not None)
    bound = sum(p.shape[0] for p in carry if p is not None) + len(carry)
    bound = (bound + 2) * (interpreter.seeds + 1)
    for _ in range(bound):
        grown = list(map(union, zip(carry, body(carry), strict=True)))
        if entries(grown) == entries(carry):
            return carry
        carry = grown
    raise AssertionError("a fixpoint over finite patterns did not end; this is a bug in etpc")


@rule("scan")
def _scan(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    n_consts, n_carry, length, _, loop = params.scan(eqn)
    flat = flatten(loop)
    consts, carry = patterns[:n_consts], patterns[n_consts : n_consts + n_carry]
    if 0 < length * len(flat.equations) <= UNROLLED:
        flat = unrolled(eqn)
        return interpreter.run(flat, patterns, inside(flat, eqn.inputs, known))
    known_inside = inside(flat, eqn.inputs[:n_consts], known)
    if length == 0:
        return [*carry, *([None] * (len(eqn.outputs) - n_carry))]
    sequences = zip(patterns, eqn.inputs, strict=True)
    slices = [joined(p, v.shape, (0,)) for p, v in [*sequences][n_consts + n_carry :]]

    def body(current: Patterns) -> Patterns:
        return interpreter.run(flat, [*consts, *current, *slices], known_inside)

    carry = _fixpoint(interpreter, lambda c: body(c)[:n_carry], list(carry))
    places = (np.broadcast_to(numbering(v.shape[1:]), v.shape) for v in eqn.outputs[n_carry:])
    return [*carry, *map(pick, body(carry)[n_carry:], places)]


def _shard_map(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    """Run the body for each device. Where devices exchange values, as in sums over them, the result is dense."""
    whole, mesh, in_specs, out_specs = params.shard_map(eqn)
    flat, by_device = flatten(whole), Interpreter(interpreter.seeds)
    specs = [*in_specs, *out_specs]
    names = dict.fromkeys(name for spec in specs for axes in _split_by(spec) for name in axes)
    outs: list[Pattern | None] = [None] * len(eqn.outputs)
    for place in np.ndindex(*(mesh[name] for name in names)):
        device = dict(zip(names, place, strict=True))
        local = [
            pick(p, _shard(v.shape, spec, mesh, device))
            for v, p, spec in zip(eqn.inputs, patterns, in_specs, strict=True)
        ]
        results = by_device.run(flat, local)
        interpreter.include(by_device)
        if by_device.opaque:
            return None
        for n, (v, part) in enumerate(zip(eqn.outputs, results, strict=True)):
            at = _shard(v.shape, out_specs[n], mesh, device)
            outs[n] = union([outs[n], select(at, np.arange(at.size), v.size, part)])
    return outs


def _split_by(spec: Any) -> list[tuple[str, ...]]:
    """The axes of the mesh that each leading axis of an array is split by."""
    return [() if a is None else a if isinstance(a, tuple) else (a,) for a in spec]


def _shard(
    shape: Sequence[int], spec: Any, mesh: Mapping[str, int], device: Mapping[str, int]
) -> np.ndarray:
    """The numbers of the elements that a device has."""
    numbers = numbering(shape)
    for axis, names in enumerate(_split_by(spec)):
        for name in names:  # the first is the slowest
            numbers = np.split(numbers, mesh[name], axis)[device[name]]
    return numbers.reshape(-1)


if shard_map_p is not None:
    register([shard_map_p], pattern=_shard_map)


@rule("while")
def _while(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    interpreter.unbounded[eqn.source] = None
    skip, n_consts, _, loop = params.while_loop(eqn)
    consts, carry = patterns[skip : skip + n_consts], patterns[skip + n_consts :]
    flat = flatten(loop)
    return _fixpoint(interpreter, lambda c: interpreter.run(flat, [*consts, *c]), list(carry))
