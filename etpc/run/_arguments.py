"""Checks of the arguments of a program against what was compiled."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import Tracer, manual_axes
from ..errors import InputError, InputTypeError, UnsupportedError, raise_together
from ..gradient.data import as_array, check_targets
from ..gradient.loss import checked_weights
from ..plan import Plan
from ..trace import Leaves, paths_of
from ._carry import Carry


class Call(NamedTuple):
    """The arguments of a call, checked."""

    parameters: list[Any]
    """The array leaves of the model."""
    xs: list[Any]
    mask: Any
    lead: tuple[int, ...]
    """T and B, or T alone."""


class Arguments:
    """Checks the arguments of a program, and gives them as lists of arrays.

    - `id`: the program that a carry must be of.
    """

    def __init__(self, plan: Plan, id: str):
        self.plan, self.step, self.id = plan, plan.analysis.step, id
        self._seen: dict[int, Any] = {}

    def of_call(
        self, model: Any, xs: Any, carry: Any, *, targets: Any = None, mask: Any = None
    ) -> Call:
        """**Raises** `InputError` and `InputTypeError` where one does not fit the program or another."""
        parameters = self.parameters(model)
        self.check_carry(carry)
        leaves = self.inputs(xs, carry)
        check_targets(targets, leaves, carry.batched)
        lead = leaves[0].shape[: 2 if carry.batched else 1]
        return Call(parameters, leaves, checked_weights("mask", mask, lead), lead)

    def parameters(self, model: Any) -> list[Any]:
        """The array leaves of a model, checked against those that were compiled."""
        expected = self.step.model_leaves
        model, traced = self._with_numbers(model)
        received = Leaves.of(model, "model")
        if not _same(received.treedef, expected.treedef) or received.places != expected.places:
            ours, theirs = set(expected.paths), set(received.paths)
            missing, extra = sorted(ours - theirs), sorted(theirs - ours)
            leaves = dict(zip(received.paths, received.split(model), strict=True))
            if extra and not missing and all(isinstance(leaves[p], Tracer) for p in extra):
                raise InputError(
                    f"The model's numbers {', '.join(extra)} came in as arrays. This is because "
                    "`jax.jit` makes arrays of all leaves of its arguments. Use `eqx.filter_jit`."
                )
            if not missing and not extra and _is_filtered(received.static, expected.static):
                raise InputError(
                    "The model has `None` where numbers, functions and flags were compiled in. This is "
                    "because it went through `eqx.filter` or `eqx.partition`, which leave arrays alone. Put the "
                    "rest back by `eqx.combine(arrays, rest)`; or pass the model to a function under "
                    "`eqx.filter_jit`, which does both."
                )
            detail = f" Missing: {', '.join(missing)}." if missing else ""
            detail += f" Not in the compiled one: {', '.join(extra)}." if extra else ""
            detail = detail or " Its static fields or the types of its nodes differ."
            raise InputError(
                "The model does not have the structure of the one that was compiled."
                f"{detail} Compile it again, or pass a model that differs in array values alone."
            )
        problems = [
            f"Parameter {path} is {_text(got)}, and was compiled as {_text(want)}. Compile again."
            for path, got, want in zip(received.paths, received.avals, expected.avals, strict=True)
            if (got.shape, got.dtype) != (want.shape, want.dtype)
        ]
        for n, (ours, theirs) in enumerate(zip(expected.static, received.static, strict=True)):
            if ours is not theirs and not _same(ours, theirs):
                problems.append(
                    f"The model holds {theirs!r} where {ours!r} was compiled in, at "
                    f"{paths_of(model, 'model')[n]}. Values that are no arrays are part of the "
                    "program, such as the flag that `eqx.nn.inference_mode` sets: compile again, or "
                    "make it an array."
                )
        pairs = zip(expected.static_arrays, received.static_arrays, strict=True)
        if not all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs):
            problems.append(
                "A NumPy array in a static field of the model has other values than when it was "
                "compiled. Static fields are part of the program: compile again, or make it a "
                "field that is not static."
            )
        values = expected.split(model)
        for i in self.plan.analysis.findings.assumed:
            values[i] = self._connections(i, values[i], problems)
        raise_together(problems, InputError)
        values = [jnp.asarray(a) if isinstance(a, np.ndarray | np.generic) else a for a in values]
        for value, compiled in traced if values else ():
            message = f"The model holds another number where {compiled!r} was compiled in."
            values[0] = eqx.error_if(values[0], value != jnp.asarray(compiled), message)
        return values

    def _with_numbers(self, model: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        """The model with NumPy's integers and flags as they were compiled, where `eqx.filter_jit` made
        arrays of them; and these arrays, which are compared when the program runs."""
        expected = self.step.model_leaves
        leaves, treedef = jax.tree.flatten(model)
        numbers = [
            i
            for i, static in enumerate(expected.static)
            if isinstance(static, np.integer | np.bool_)
            and i < len(leaves)
            and isinstance(leaves[i], Tracer)
        ]
        traced = [(leaves[i], expected.static[i]) for i in numbers]
        for i in numbers:
            leaves[i] = expected.static[i]
        return (treedef.unflatten(leaves), traced) if numbers else (model, [])

    def _connections(self, i: int, values: Any, problems: list[str]) -> Any:
        """An integer array of the model that the traces were laid out for, checked to be that one.

        Inside a transformation its values are not known before the program runs, so they are
        compared there.
        """
        if values is self._seen.get(i) or isinstance(values, jax.ShapeDtypeStruct):
            return values
        compiled = self.step.fixed[self.step.parameters[i]]
        message = (
            f"The values of {self.step.model_leaves.paths[i]} differ from those that were "
            "compiled. This is because integer arrays say what is connected with what, and the "
            "traces are laid out for that. Compile again with the new ones."
        )
        if isinstance(values, Tracer):
            return eqx.error_if(
                values, _checksum(values) != _checksum(jnp.asarray(compiled)), message
            )
        if np.shape(values) != compiled.shape or not np.array_equal(values, compiled):
            problems.append(message)
        elif isinstance(values, jax.Array):
            self._seen[i] = values  # what nobody can write to is compared once
        else:
            values = compiled  # and not what may be written to while the program runs
        return values

    def check_carry(self, carry: Any) -> None:
        if not isinstance(carry, Carry):
            raise InputTypeError(
                f"carry is a {type(carry).__name__}. Pass the carry of `program.init(...)` or of a "
                "call before, not the model's state."
            )
        if carry.program != self.id:
            raise InputError(
                "This carry belongs to another program (another model, an edit of its code, another "
                "algorithm or selection of weights). Make one with this program's `init`."
            )

    def carry_of(self, state: Any) -> Carry:
        """A carry with this hidden state and without traces; of a carry, with its state."""
        expected = self.step.state_leaves
        hidden = state.state if isinstance(state, Carry) else state
        try:
            leaves = [jnp.asarray(leaf) for leaf in expected.split(hidden)]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The state is a {type(hidden).__name__} with another structure than that of the model, whose "
                f"leaves are {', '.join(expected.paths)}. Pass a carry, such as `program.init(batch_size)`, or the "
                "state that `predict` returned."
            ) from error
        lead = leaves[0].shape[: leaves[0].ndim - len(expected.avals[0].shape)]
        raise_together(
            [
                f"State {path} is {a.dtype}{list(a.shape)}, and should be {want.dtype}"
                f"{[*lead[:1], *want.shape]}."
                for path, a, want in zip(expected.paths, leaves, expected.avals, strict=True)
                if a.dtype != want.dtype or a.shape != (*lead[:1], *want.shape)
            ],
            InputError,
        )
        fresh = state.fresh if isinstance(state, Carry) else jnp.zeros(lead, bool)
        return Carry(expected.join(leaves), (), fresh, self.id, bool(lead))

    def inputs(self, xs: Any, carry: Carry) -> list[Any]:
        axes = manual_axes((xs, carry))
        if axes:
            raise UnsupportedError(
                f"The input or the carry varies over {', '.join(axes)}, an axis of `jax.shard_map` that "
                "checks what varies, and a program has constants and sums that do not say so. Pass "
                "`check_vma=False` to `jax.shard_map`, and take the mean of loss and gradient over the "
                "axis by `jax.lax.pmean`."
            )
        expected = self.step.input_leaves
        received = Leaves.of(xs, "x", numbers=True)
        if received.treedef != expected.treedef or received.places != expected.places:
            raise InputError(
                "The input does not have the structure that was compiled: it has leaves "
                f"{', '.join(received.paths)} ({received.treedef}), and the program {', '.join(expected.paths)} "
                f"({expected.treedef}). Pass inputs of the compiled structure, or compile again."
            )
        leaves = expected.split(xs)
        lead = 2 if carry.batched else 1
        axes = "[T, B]" if carry.batched else "[T]"
        values, problems, leads = [], [], set()
        batch = self.step.state_leaves.split(carry.state)[0].shape[0] if carry.batched else None
        for path, leaf, aval in zip(expected.paths, leaves, expected.avals, strict=True):
            shape = jnp.shape(leaf)
            if len(shape) < lead or shape[lead:] != aval.shape:
                problems.append(
                    f"Input {path} has shape {list(shape)}, and should be {axes} + "
                    f"{list(aval.shape)}: the carry has {'a' if carry.batched else 'no'} batch axis."
                    f"{_advice(shape, aval.shape, carry.batched)}"
                )
            elif (problem := _cast_problem(leaf, aval.dtype)) is not None:
                problems.append(f"Input {path} {problem}")
            else:
                leads.add(shape[:lead])
                if batch is not None and shape[1] != batch:
                    problems.append(
                        f"Input {path} has shape {list(shape)}, read as {axes} + "
                        f"{list(aval.shape)}, a batch of {shape[1]}; the carry has {batch}. Where "
                        "the batch is the first axis of your data, swap it with time, as in "
                        "`xs.swapaxes(0, 1)`, in the targets too. Else pass "
                        f"`batch_size={shape[1]}` {WHERE}."
                    )
            values.append(leaf)
        if len(leads) > 1:
            problems.append(f"The inputs disagree about their leading axes: {sorted(leads)}.")
        if any(lead_shape[0] == 0 for lead_shape in leads):
            problems.append("The input has no steps (T = 0).")
        raise_together(problems, InputError)
        return [
            v if isinstance(v, jax.Array) and v.dtype == a.dtype else as_array(v, a.dtype)
            for v, a in zip(values, expected.avals, strict=True)
        ]


def _cast_problem(leaf: Any, wanted: Any) -> str | None:
    """Why an input cannot be cast to the dtype that was compiled; `None` where it can.

    Integers are cast where no value changes. Floats are rounded, as by `astype`.
    """
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if dtype == wanted:
        return None
    convert = f"is {dtype}, and was compiled as {wanted}. Convert it."
    if any(jnp.issubdtype(d, jax.dtypes.extended) for d in (dtype, wanted)):
        return convert
    order = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    ranks = [
        next((i for i, kind in enumerate(order) if jnp.issubdtype(d, kind)), len(order))
        for d in (dtype, wanted)
    ]
    if ranks[0] > ranks[1]:
        return convert
    if not (jnp.issubdtype(dtype, jnp.integer) and jnp.issubdtype(wanted, jnp.integer)):
        return None
    source, target = jnp.iinfo(dtype), jnp.iinfo(wanted)
    if target.min <= source.min and source.max <= target.max:
        return None
    remedy = f"Compile with `inputs=` of {dtype}, or of another type that holds all values"
    if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
        return (
            f"is {dtype}, and was compiled as {wanted}, which does not hold all values of that "
            f"type; inside a transformation, and of a shape, they are not known. {remedy}, or convert it yourself "
            f"where the values are known to fit: `.astype({str(wanted)!r})`."
        )
    if not np.size(leaf):
        return None
    least, most = int(leaf.min()), int(leaf.max())
    if target.min <= least and most <= target.max:
        return None
    return (
        f"is {dtype} with values from {least} to {most}, and was compiled as {wanted}, which holds "
        f"{target.min} to {target.max}: others would wrap around. {remedy}."
    )


WHERE = "where the carry is made, in `init` or `etpc.fit`"


def _advice(shape: tuple[int, ...], one: tuple[int, ...], batched: bool) -> str:
    """Advice for an input whose leading axes are not those of the carry."""
    if not batched and len(shape) == 2 + len(one) and shape[2:] == one:
        return f" Pass `batch_size={shape[1]}` {WHERE}."
    if batched and len(shape) == 1 + len(one) and shape[1:] == one:
        return f" For one example without a batch axis leave `batch_size=` out {WHERE}."
    return ""


def _is_filtered(received: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    """Whether all that a model holds beside arrays is gone."""
    kept = [leaf for leaf in received if leaf is not None]
    return not kept and any(leaf is not None for leaf in expected)


def _text(aval: jax.ShapeDtypeStruct) -> str:
    return f"{aval.dtype}{list(aval.shape)}"


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # a leaf of unknown type may compare in any way
        return False


def _checksum(values: Array) -> Array:
    """A checksum of an integer array, which can be computed inside a transformation."""
    if values.dtype.itemsize > 4:
        values = jnp.stack([values, values >> 32])
    words = values.astype(jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(2654435761)
    mixed = (words ^ place) * jnp.uint32(2246822519)
    return jnp.sum((mixed ^ (mixed >> 15)) * jnp.uint32(3266489917), dtype=jnp.uint32)
