"""Comparison of an online gradient with backpropagation through time, parameter by parameter."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._errors import InputError, InputTypeError, checked_count, raise_together
from .algorithms import Algorithm
from .plan import UNMARKED
from .run import Program, compile
from .run._arguments import check_data, check_lead, check_tolerance, foreign
from .run._compile import fits, shapes_text
from .run._loss import (
    Loss,
    check_reduction,
    checked_weights,
    finite_where_masked,
    reduced,
    summed_in,
)
from .show import table
from .trace import Leaves, called, check_new_state, checked_call, initial_state, repeat

StepFunction = Callable[[Any, Any, Any], tuple[Any, Any]]


def bptt(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    *,
    state: Any = None,
    step: StepFunction | None = None,
    batch_size: int | None = None,
    reduction: str = "mean",
    window: int | None = None,
    mask: Any = None,
    has_aux: bool = False,
) -> tuple[Any, Any]:
    """Loss and gradient of a sequence by backpropagation through time: the plain reference.

    **Arguments:** as for [`etpc.verify`][]; `state` is that of one example. With `window`, it is
    truncated: after every so many steps the state is passed on without its derivative.

    **Returns** `(loss, grads)`, with the values that `value_and_grad` of a program gives. With
    `has_aux` it is `((loss, aux), grads)`, and `aux` has leading axes [T, B], or [T]. Both are added
    up in float32 at least, also where the model is less precise; parameters of low precision then
    have a gradient for each example until the end. The gradient may be differentiated in turn.

    **Raises** `etpc.InputError` and `etpc.InputTypeError`; `etpc.ModelError` where the step changes
    the structure, shape or dtype of the state.
    """
    check_reduction(reduction)
    window = checked_window(window)
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    loss = Loss.of(loss_fn, has_aux)
    check_data(xs, targets)
    mask = checked_weights("mask", mask, lead_of((xs, targets), batch_size))
    checked_call(model, step)
    start = initial_state(model) if state is None else state
    raise_together(foreign("state", start), InputTypeError)
    if batch_size is not None:
        start = jax.tree.map(lambda a: repeat(a, batch_size), start)
    batched = batch_size is not None
    try:
        check_lead(xs, targets, batch_size)
        value, grads, aux = _bptt(
            model, xs, targets, loss, start, step, mask, batched, reduction, window
        )
    except Exception as error:
        _blame_batch_axis(error, model, xs, state, step, batch_size)
        raise
    return ((value, aux) if has_aux else value), grads


def checked_window(window: Any) -> int | None:
    """A number of steps as an int. **Raises** `InputError` unless it is that or `None`."""
    why = "It is the number of steps after which the gradient is cut."
    return None if window is None else checked_count("window", window, why=why)


def _bptt(model, *arguments: Any, **options: Any):
    """Loss, gradient, and what the loss returns besides.

    NumPy's integers and flags in a model are numbers of its program, and not arrays to trace.
    """
    plain = lambda a: a.item() if isinstance(a, np.integer | np.bool_) else a
    return _compiled_bptt(jax.tree.map(plain, model), *arguments, **options)


@eqx.filter_jit
def _compiled_bptt(
    model,
    xs,
    targets,
    loss: Loss,
    start,
    step,
    mask,
    batched: bool,
    reduction: str = "mean",
    window: int | None = None,
):
    """Loss, gradient, and what the loss returns besides."""
    call = checked_call(model, step)
    is_low = lambda a: eqx.is_inexact_array(a) and a.dtype != summed_in(a.dtype)
    low, rest = eqx.partition(model, jax.tree.map(is_low, model))
    dtypes = jax.tree.map(lambda a: a.dtype, low)

    def sequence(model, start, data):
        state_leaves = Leaves.of(start, "state", numbers=True)

        def body(state, step_data):
            x, target, weight = step_data
            before, treedef = jax.tree.flatten(state)
            # Rounded here, so that JAX adds up the gradients of the steps before it rounds them.
            rounded = eqx.combine(jax.tree.map(jnp.astype, model[0], dtypes), model[1])
            # An `eqx.nn.State` may be used once: `state` itself stays, and another one goes in.
            again = lambda: call(rounded, x, treedef.unflatten(before))
            y, after = called(again, Leaves.of(x, "x", numbers=True), state_leaves)
            check_new_state(state_leaves, Leaves.of(after, "state", numbers=True))
            loss.check(y, target)
            after = [
                jnp.asarray(a, jnp.asarray(b).dtype)
                for a, b in zip(jax.tree.leaves(after), before, strict=True)
            ]
            return treedef.unflatten(after), loss(y, target, weight)

        after, (losses, aux) = jax.lax.scan(body, start, data)
        return losses.sum(), (after, aux)

    def total(model, start, data):
        if not batched:
            return sequence(model, start, data)
        low, rest = model
        # JAX adds up the gradients of a batch in the parameter's dtype: each example has its own.
        low = jax.tree.map(lambda a: jnp.broadcast_to(a, (*size, *a.shape)), low)
        many = jax.vmap(
            lambda low, s, example: sequence((low, rest), s, example),
            in_axes=(0, 0, 1),
            out_axes=(0, (0, 1)),
        )
        losses, rest_of = many(low, start, data)
        return losses.mean(), rest_of

    gradient = eqx.filter_value_and_grad(total, has_aux=True)
    start = jax.tree.map(lambda a: a if hasattr(a, "dtype") else jnp.asarray(a), start)
    sequences = jax.tree.map(lambda x: finite_where_masked(x, mask), xs), targets, mask
    steps, *size = lead_of(sequences, 1 if batched else None)
    wide = jax.tree.map(lambda a: a.astype(summed_in(a.dtype)), low), rest
    if window is None or window >= steps:
        (value, (_, aux)), grads = gradient(wide, start, sequences)
    else:
        value, grads, aux = _windows(gradient, wide, start, sequences, steps, window)
    value, (low_grads, grads) = reduced(reduction, (value, grads), mask, steps)
    return value, eqx.combine(jax.tree.map(jnp.astype, low_grads, dtypes), grads), aux


def _windows(gradient, model, start, data, steps: int, window: int):
    """The sums of loss and gradient over windows, each differentiated on its own."""

    def one_window(scan_carry, window_data):
        state, value, grads = scan_carry
        (more, (state, aux)), more_grads = gradient(model, state, window_data)
        return (state, value + more, jax.tree.map(jnp.add, grads, more_grads)), aux

    cut = steps - steps % window
    first = jax.tree.map(lambda a: a[:window], data)
    (value, _), grads = eqx.filter_eval_shape(gradient, model, start, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (value, grads))
    whole = jax.tree.map(lambda a: a[:cut].reshape(-1, window, *a.shape[1:]), data)
    after, aux = jax.lax.scan(one_window, (start, *zeros), whole)
    aux = jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), aux)
    if cut < steps:
        after, rest = one_window(after, jax.tree.map(lambda a: a[cut:], data))
        aux = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), aux, rest)
    return (*after[1:], aux)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of a comparison.

    `cosine`, `error` (the norm of the difference over the norm of the BPTT gradient) and `ratio`
    (the norm over that of the BPTT gradient) are `nan` where the BPTT gradient is zero; the cosine
    also where the other is. `claim` is what the program says, `held` whether it is so: `None`
    where nothing was claimed, or where zero gradients show nothing.
    """

    path: str
    cosine: float
    error: float
    ratio: float
    norm: float
    claim: str
    held: bool | None


HELD = {True: "yes", False: "NO", None: "-"}


def fidelity(row: Row) -> list[str]:
    """Cosine, error and ratio of a row, for a table."""
    return [f"{row.cosine:.6f}", f"{row.error:.2e}", f"{row.ratio:.4f}"]


def verdict(ok: bool, notes: tuple[str, ...], tolerance: float) -> list[str]:
    """The lines below a table."""
    outcome = "ok" if ok else "NOT ok"
    if notes:
        outcome += ": the comparison is vacuous in part"
    lines = [f"note: {text}" for text in notes]
    return [*lines, f"{outcome}  (exact means a relative error of at most {tolerance:.0e})"]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The result of [`etpc.verify`][]. `print` it for a table."""

    program: Program
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What makes the comparison say less than it seems to: zero gradients, silent neurons."""
    tolerance: float
    loss: float
    remarks: tuple[str, ...] = ()
    """What a reader may want to change; no doubts of the verdict."""

    @property
    def vacuous(self) -> bool:
        """Whether something that should have been compared was zero or silent."""
        return bool(self.notes)

    @property
    def ok(self) -> bool:
        """Whether every claim held, and none of them emptily."""
        return not self.vacuous and all(row.held is not False for row in self.rows)

    def __str__(self) -> str:
        columns = ["parameter", "cosine", "rel. error", "ratio", "norm", "claim", "held"]
        rows = [
            [row.path, *fidelity(row), f"{row.norm:.3e}", row.claim, HELD[row.held]]
            for row in self.rows
        ]
        head = f"{self.program.algorithm} against BPTT (loss {self.loss:.6g})"
        lines = [head, "", *table(columns, rows), ""]
        lines += [f"remark: {text}" for text in self.remarks]
        lines += verdict(self.ok, self.notes, self.tolerance)
        return "\n".join(lines)

    __repr__ = __str__


def verify(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algo: Algorithm | str = "d_rtrl",
    *,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    tolerance: float | None = None,
    reduction: str = "mean",
    mask: Any = None,
    has_aux: bool = False,
) -> Report:
    """Compare the gradient of an algorithm with BPTT, parameter by parameter.

    **Arguments:**

    - `model`, `algo`, `state`, `step`, `weights`: as in [`etpc.compile`][].
    - `xs`, `targets`: a sequence; leading axis T, then B where `batch_size` is given. Take T
        longer than the window (16 by default), or a fault of the traces stays hidden.
    - `loss_fn`, `reduction`, `mask`, `has_aux`: as in `value_and_grad` of a
        [`Program`][etpc.Program.value_and_grad].
    - `tolerance`: the largest relative error that counts as exact; by default 1e-9 in float64 and
        1e-3 in float32. What rounding alone explains counts as exact too: a difference of at most
        64 times the precision of the dtype, relative to the gradient of all parameters (and to
        `tolerance`, if that is smaller).

    **Returns** a [`Report`][etpc.Report]: `print` shows the table, `.ok` is the verdict.
    It is not ok where a claim of exactness does not hold, and where the comparison says nothing
    because a gradient is zero or no neuron of a layer spikes.

    **Raises** what `etpc.compile` and `value_and_grad` raise.
    """
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    check_tolerance(tolerance)
    check_data(xs, targets)
    mask = checked_weights("mask", mask, lead_of((xs, targets), batch_size))
    program = compiled_for(xs, batch_size, model, algo, state=state, step=step, weights=weights)
    carry = program.init(batch_size)
    run = program.value_and_grad(loss_fn, reduction, has_aux=has_aux)
    (value, _), online = run(model, xs, targets, carry, mask=mask)
    start = full_state(program, carry)
    loss, batched = Loss.of(loss_fn, has_aux), batch_size is not None
    _, reference, _ = _bptt(model, xs, targets, loss, start, step, mask, batched, reduction)
    if tolerance is None:
        tolerance = default_tolerance(program)
    rows = compare_all(program, online, reference, tolerance)
    notes = doubts(program, model, xs, carry, rows, mask)
    remarks = _remarks(program, lead_of(xs, batch_size)[0])
    return Report(program, rows, notes, tolerance, float(value), remarks)


def lead_of(tree: Any, batch_size: int | None) -> tuple[int, ...]:
    """The leading axes [T, B], or [T], of a sequence."""
    return jnp.shape(jax.tree.leaves(tree)[0])[: 1 if batch_size is None else 2]


def compiled_for(xs: Any, batch_size: int | None, model: Any, algo: Any, **options: Any) -> Program:
    """The program of a model for the steps of a sequence.

    **Raises** what `etpc.compile` raises; `InputError` where the sequence seems to have a batch axis
    and no batch size was given, or the other way round.
    """
    inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
    try:
        return compile(model, algo, inputs=inputs, batch_size=batch_size or 1, **options)
    except Exception as error:
        _blame_batch_axis(error, model, xs, options["state"], options["step"], batch_size)
        raise


def _blame_batch_axis(
    error: Exception, model: Any, xs: Any, state: Any, step: Any, batch_size: int | None
) -> None:
    """Raise `InputError` if the model cannot take a step of `xs`, but can if its axes are read the
    other way: with a batch axis in the place of none, or without one."""
    other = 1 if batch_size is None else None  # any number says that there is an axis
    if any(jnp.ndim(a) < (2 if batch_size is None else 1) for a in jax.tree.leaves(xs)):
        return
    inputs, instead = (
        jax.tree.map(lambda a, size=size: one_step(a, size), xs) for size in (batch_size, other)
    )
    if fits(model, inputs, state, step) or not fits(model, instead, state, step):
        return
    shapes, read, wanted = (shapes_text(tree) for tree in (xs, inputs, instead))
    if batch_size is None:
        size = jnp.shape(jax.tree.leaves(xs)[0])[1]
        raise InputError(
            f"xs has shape {shapes}, and as batch_size= is not given it is read as T steps of shape "
            f"{read}, which the model does not take; it takes {wanted}. Pass batch_size={size} if "
            "the second axis is the batch."
        ) from error
    raise InputError(
        f"xs has shape {shapes}, and as batch_size={batch_size} is given it is read as T steps of B "
        f"examples of shape {read}, which the model does not take; it takes {wanted}. Leave "
        "batch_size= out if the data has no batch axis."
    ) from error


def default_tolerance(program: Program) -> float:
    """The largest relative error that counts as exact."""
    return 1e-9 if jnp.finfo(program.plan.dtype).bits == 64 else 1e-3


def one_step(leaf: Any, batch_size: int | None) -> jax.ShapeDtypeStruct:
    """The shape of one step of one example of a leaf of `xs`."""
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    lead = 1 if batch_size is None else 2
    if leaf.ndim < lead:
        raise InputError(
            f"xs has a leaf of shape {list(leaf.shape)}; it should begin with "
            f"{'T' if batch_size is None else 'T, B'}."
        )
    return jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype)


def full_state(program: Program, carry: Any) -> Any:
    """The hidden state of a carry, with the leaves that are no arrays."""
    leaves: Leaves = program.plan.analysis.step.state_leaves
    return leaves.join(leaves.split(carry.state))


def flat_gradients(program: Program, tree: Any) -> dict[str, np.ndarray]:
    """The gradient of each parameter as a vector of real numbers, by path."""
    leaves = program.plan.analysis.step.model_leaves
    values = leaves.treedef.flatten_up_to(tree)
    return {leaves.paths[i]: _flat(values[leaves.places[i]]) for i in leaves.floats}


def _flat(value: Any) -> np.ndarray:
    parts = (np.real(value), np.imag(value)) if np.iscomplexobj(value) else (value,)
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])


ROUNDING = 64
"""What rounding alone may make of a gradient, in units of the precision of the dtype, relative to the
gradient of all parameters. A gradient is a sum of many products, rounded in another order by BPTT: that
of a parameter whose terms cancel is noise of a few units."""


def rounding(program: Program, reference: Any, tolerance: float) -> float:
    """The norm of a difference that rounding alone explains; none below what was asked for."""
    whole = np.linalg.norm(np.concatenate([*flat_gradients(program, reference).values()]))
    unit = float(jnp.finfo(program.plan.dtype).eps)
    return min(ROUNDING * unit, tolerance) * float(whole)


def compare_all(program: Program, online: Any, reference: Any, tolerance: float) -> tuple[Row, ...]:
    """A row for each parameter."""
    got, want = (flat_gradients(program, tree) for tree in (online, reference))
    noise = rounding(program, reference, tolerance)
    return tuple(
        compare_one(path, got[path], want[path], claim.claim, tolerance, noise)
        for path, claim in program.claims.items()
    )


def compare_one(
    path: str, got: np.ndarray, want: np.ndarray, claim: str, tolerance: float, noise: float = 0.0
) -> Row:
    """The row of one gradient, and whether its claim holds.

    - `noise`: the norm of a difference that rounding alone explains.
    """
    norm, size = float(np.linalg.norm(want)), float(np.linalg.norm(got))
    difference = float(np.linalg.norm(got - want))
    error = difference / norm if norm else float("nan")
    ratio = size / norm if norm else float("nan")
    cosine = float(got @ want) / (norm * size) if norm and size else float("nan")
    held: bool | None = None
    if claim in ("exact", "unused"):
        held = error <= tolerance or difference <= noise
        if held and claim == "exact" and not norm:
            held = None
    return Row(path, cosine, error, ratio, norm, claim, held)


def _remarks(program: Program, steps: int) -> tuple[str, ...]:
    """What a reader may want to change."""
    plan, remarks = program.plan, []
    window = program.window_for(steps)
    if steps <= window and plan.traced:
        remarks.append(
            f"{steps} steps fit into one window ({window}), so that no trace was read; take more, or "
            "a smaller `window=`"
        )
    unmarked = dict.fromkeys(p.path for p in plan.ops if p.reason.startswith(UNMARKED))
    if unmarked:
        remarks.append(
            f"{', '.join(unmarked)}: not marked, and so without a trace; leave weights= out to give "
            "every weight one"
        )
    return tuple(remarks)


def doubts(
    program: Program, model: Any, xs: Any, carry: Any, rows: tuple[Row, ...], mask: Any = None
) -> tuple[str, ...]:
    """What makes a comparison say less than it seems to."""
    zero = [
        f"the BPTT gradient of {row.path} is zero on this sequence, so nothing is compared"
        for row in rows
        if row.norm == 0 and program.claims[row.path].claim != "unused"
    ]
    return (*program.silent(model, xs, carry, mask=mask), *zero)


__all__ = ["Report", "Row", "bptt", "verify"]
