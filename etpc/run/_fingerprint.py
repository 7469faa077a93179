"""A number for a program that is the same in every process, so that a carry knows its own."""

import dataclasses
import enum
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .._jax import Flat, Tracer, Variable, flatten, is_key, params, prune
from ..analyse import trace_dtype
from ..plan import Plan


def fingerprint(plan: Plan) -> str:
    """A digest of all that a carry depends on: the equations of a step and the constants in them, the states,
    every use of a weight, and what reaches what.

    The same in every process, for the same model; the values of its parameters do not matter, nor do
    the names and places of its functions. Another version of JAX may trace a model into other
    equations.
    """
    analysis, nodes = plan.ir.analysis, plan.ir.traces
    step = analysis.step
    digest = hashlib.sha256()

    def add(*parts: Any) -> None:
        # without where functions and objects are in the memory of this process
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", "\n".join(map(str, parts)))
        digest.update(text.encode() + b"\0")

    add(plan.algorithm, step.state_leaves.treedef, _program(step.program))
    add(_program(analysis.tangents))  # in which the rules of custom derivatives are
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
        place = None if p.node is None else (nodes.index(p.node), p.node.ops.index(p.op))
        add(p.form, p.trace_shape, trace_dtype(analysis, p.op), place, p.op.number in analysis.cut)
        _add_pattern(digest, reach.block)
    for pattern in (analysis.transition, *analysis.immediate):
        _add_pattern(digest, pattern)
    for i in analysis.findings.assumed:
        values = step.fixed[step.parameters[i]]
        add(i, values.dtype, values.shape)
        _add_numbers(digest, values)
    return digest.hexdigest()[:16]


def _program(flat: Flat) -> str:
    """A digest of the equations that the outputs need, with variables numbered in order of appearance."""
    digest = hashlib.sha256()
    numbers = {v: f"v{n}" for n, v in enumerate(flat.inputs)}

    def name(variable: Variable) -> str:
        if variable in flat.constants:
            return _canonical(flat.constants[variable])
        return numbers.setdefault(variable, f"v{len(numbers)}")

    def add(kind: str, *lists: Any) -> None:
        digest.update(f"{kind}{[' '.join(map(name, variables)) for variables in lists]}\0".encode())

    add(_shapes(flat.inputs), flat.inputs)
    for eqn in prune(flat.equations, flat.outputs):
        meaning, counts = params.meaning(eqn)
        text = f"{eqn.primitive.name}{_canonical(meaning)}{counts}"
        add(text + _shapes(eqn.outputs), eqn.inputs, eqn.outputs)
    add("outputs", flat.outputs)
    return digest.hexdigest()


def _shapes(variables: Any) -> str:
    return " ".join(f"{v.aval.dtype}{list(v.shape)}" for v in variables)


def _canonical(value: Any) -> str:
    """A text that is the same in every process; functions and the like have only their type."""
    kind = type(value).__name__

    def each(values: Any) -> list[str]:
        return [_canonical(item) for item in values]

    if params.is_jaxpr(value):
        return _program(flatten(value))
    if isinstance(value, jax.Array) and is_key(value):
        return f"{value.dtype} {_canonical(jax.random.key_data(value))}"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        text = f"{value.dtype}{list(value.shape)}"
        if isinstance(value, jax.Array) and (
            isinstance(value, Tracer) or not value.is_fully_addressable
        ):
            return text  # its values are not known in this process
        array = np.ascontiguousarray(value)  # a part of another array may be strided
        content = array.reshape(-1).view(np.uint8).data if array.nbytes else b""
        return text + hashlib.sha256(content).hexdigest()
    if isinstance(value, enum.Enum):
        return f"{kind}.{value.name}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype):
        return repr(value)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Mapping):
        return f"{kind}{sorted(zip(map(str, value), each(value.values()), strict=True))}"
    if isinstance(value, tuple | list):
        return f"{kind}{each(value)}"
    if isinstance(value, set | frozenset):
        return f"{kind}{sorted(each(value))}"
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return f"{kind}{names}{each(getattr(value, name) for name in names)}"
    return kind


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
