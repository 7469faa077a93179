"""Comparison of an online gradient with backpropagation through time, parameter by parameter."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ._errors import InputError
from ._jax import Equation, evaluate, is_step_function
from .algorithms import Algorithm
from .plan import UNMARKED
from .run import Program, compile
from .run._describe import table
from .trace import Leaves, repeat

StepFunction = Callable[[Any, Any, Any], tuple[Any, Any]]


def bptt(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Array],
    *,
    state: Any = None,
    step: StepFunction | None = None,
    batch_size: int | None = None,
    reduction: str = "sum",
    window: int | None = None,
) -> tuple[Array, Any]:
    """Loss and gradient of a sequence by backpropagation through time: the plain reference.

    **Arguments:** as for [`etpc.verify`][]; `state` is that of one example. With `window`, it is
    truncated: after every so many steps the state is passed on without its derivative.

    **Returns** `(loss, grads)`, as `value_and_grad` of a program gives them.
    """
    if reduction not in ("sum", "mean"):
        raise InputError(f'reduction must be "sum" or "mean", not {reduction!r}.')
    check_window(window)
    start = model.init_state() if state is None else state
    if batch_size is not None:
        start = jax.tree.map(lambda a: repeat(a, batch_size), start)
    return _bptt(
        model, xs, targets, loss_fn, start, step, batch_size is not None, reduction, window
    )


def check_window(window: Any) -> None:
    """**Raises** `InputError` unless `window` is `None` or a number of steps."""
    if window is None:
        return
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise InputError(
            f"window must be an int >= 1, not {window!r}. It is the number of steps after which "
            "the gradient is cut."
        )


@eqx.filter_jit
def _bptt(
    model,
    xs,
    targets,
    loss_fn,
    start,
    step,
    batched: bool,
    reduction: str = "sum",
    window: int | None = None,
):
    call = step if step is not None else lambda m, x, s: m(x, s)

    def sequence(model, start, xs, targets):
        def body(now, given):
            x, target = given
            y, after = call(model, x, now)
            after = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.asarray(b).dtype), after, now)
            return after, loss_fn(y, target)

        after, losses = jax.lax.scan(body, start, (xs, targets))
        return losses.sum(), after

    def total(model, start, xs, targets):
        if not batched:
            return sequence(model, start, xs, targets)
        many = jax.vmap(lambda s, x, t: sequence(model, s, x, t), in_axes=(0, 1, 1))
        losses, after = many(start, xs, targets)
        return losses.mean(), after

    gradient = eqx.filter_value_and_grad(total, has_aux=True)
    start = jax.tree.map(lambda a: a if hasattr(a, "dtype") else jnp.asarray(a), start)
    given = (xs, targets)
    steps = jax.tree.leaves(given)[0].shape[0]
    if window is None or window >= steps:
        (loss, _), grads = gradient(model, start, xs, targets)
    else:
        loss, grads = _windows(gradient, model, start, given, steps, window)
    if reduction == "mean":
        loss, grads = loss / steps, jax.tree.map(lambda g: g / steps, grads)
    return loss, grads


def _windows(gradient, model, start, given, steps: int, window: int):
    """The sums of loss and gradient over windows, each differentiated on its own."""

    def one_window(now, given):
        state, loss, grads = now
        (value, state), more = gradient(model, state, *given)
        return (state, loss + value, jax.tree.map(jnp.add, grads, more)), None

    cut = steps - steps % window
    first = jax.tree.map(lambda a: a[:window], given)
    (loss, _), grads = eqx.filter_eval_shape(gradient, model, start, *first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (loss, grads))
    whole = jax.tree.map(lambda a: a[:cut].reshape(-1, window, *a.shape[1:]), given)
    now, _ = jax.lax.scan(one_window, (start, *zeros), whole)
    if cut < steps:
        now, _ = one_window(now, jax.tree.map(lambda a: a[cut:], given))
    return now[1:]


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
    found = "ok" if ok else "NOT ok"
    if notes:
        found += ": the comparison is vacuous in part"
    lines = [f"note: {text}" for text in notes]
    return [*lines, f"{found}  (exact means a relative error of at most {tolerance:.0e})"]


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
    loss_fn: Callable[[Any, Any], Array],
    algo: Algorithm | str = "d_rtrl",
    *,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    batch_size: int | None = None,
    tolerance: float | None = None,
) -> Report:
    """Compare the gradient of an algorithm with BPTT, parameter by parameter.

    **Arguments:**

    - `model`, `algo`, `state`, `step`, `weights`: as in [`etpc.compile`][].
    - `xs`, `targets`: a sequence; leading axis T, then B where `batch_size` is given. Take T
        longer than the window (16 by default), or a fault of the traces stays hidden.
    - `loss_fn`: `loss_fn(y, target) -> scalar` for one example at one step.
    - `tolerance`: the largest relative error that counts as exact; by default 1e-9 in float64 and
        1e-3 in float32.

    **Returns** a [`Report`][etpc.Report]: `print` shows the table, `.ok` is the verdict.
    It is not ok where a claim of exactness does not hold, and where the comparison says nothing
    because a gradient is zero or no neuron of a layer spikes.
    """
    inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
    program = compile(model, algo, inputs=inputs, state=state, step=step, weights=weights)
    carry = program.init(batch_size)
    (loss, _), online = program.value_and_grad(loss_fn)(model, xs, targets, carry)
    start = full_state(program, carry)
    _, reference = _bptt(model, xs, targets, loss_fn, start, step, batch_size is not None)
    if tolerance is None:
        tolerance = default_tolerance(program)
    rows = compare_all(program, online, reference, tolerance)
    notes = doubts(program, model, xs, carry, rows)
    steps = jax.tree.leaves(xs)[0].shape[0]
    return Report(program, rows, notes, tolerance, float(loss), _remarks(program, steps))


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


def compare_all(program: Program, online: Any, reference: Any, tolerance: float) -> tuple[Row, ...]:
    """A row for each parameter."""
    got, want = (flat_gradients(program, tree) for tree in (online, reference))
    return tuple(
        compare_one(path, got[path], want[path], claim.claim, tolerance)
        for path, claim in program.claims.items()
    )


def compare_one(path: str, got: np.ndarray, want: np.ndarray, claim: str, tolerance: float) -> Row:
    """The row of one gradient, and whether its claim holds."""
    norm, size = float(np.linalg.norm(want)), float(np.linalg.norm(got))
    difference = float(np.linalg.norm(got - want))
    error = difference / norm if norm else float("nan")
    ratio = size / norm if norm else float("nan")
    cosine = float(got @ want) / (norm * size) if norm and size else float("nan")
    held: bool | None = None
    if claim in ("exact", "unused"):
        shows_nothing = claim == "exact" and size == 0
        held = error <= tolerance if norm else (None if shows_nothing else size == 0)
    return Row(path, cosine, error, ratio, norm, claim, held)


def _remarks(program: Program, steps: int) -> tuple[str, ...]:
    """What a reader may want to change."""
    plan, found = program.plan, []
    if steps <= plan.window and plan.traced:
        found.append(
            f"{steps} steps fit into one window ({plan.window}), so that no trace was read; take "
            "more, or a smaller `window=`"
        )
    unmarked = dict.fromkeys(p.path for p in plan.ops if p.reason == UNMARKED)
    if unmarked:
        found.append(
            f"{', '.join(unmarked)}: not marked, and so without a trace; leave weights= out to give "
            "every weight one"
        )
    return tuple(found)


def doubts(
    program: Program, model: Any, xs: Any, carry: Any, rows: tuple[Row, ...]
) -> tuple[str, ...]:
    """What makes a comparison say less than it seems to."""
    zero = [
        f"the BPTT gradient of {row.path} is zero on this sequence, so nothing is compared"
        for row in rows
        if row.norm == 0 and program.claims[row.path].claim != "unused"
    ]
    return (*_silent(program, model, xs, carry), *zero)


def _silent(program: Program, model: Any, xs: Any, carry: Any) -> list[str]:
    """Spike functions of the step that never give a spike, or always one, on a sequence."""
    step = program.plan.analysis.step
    functions: list[Equation] = [e for e in step.equations if is_step_function(e)]
    if not functions:
        return []
    parameters = step.model_leaves.split(model)

    def one(x, state):
        env = dict(step.constants)
        env.update(zip(step.parameters, parameters, strict=True))
        env.update(zip(step.inputs, x, strict=True))
        env.update(zip(step.state, state, strict=True))
        evaluate(step.equations, env)
        fired = [jnp.stack([jnp.any(env[v] != 0) for v in e.outputs]).any() for e in functions]
        return [env[v] for v in step.next_state], fired

    many = jax.vmap(one) if carry.batched else one

    def body(now, x):
        after, fired = many(x, now)
        return after, [jnp.any(f) for f in fired]

    state = step.state_leaves.split(carry.state)
    xs = [
        jnp.asarray(x, a.dtype)
        for x, a in zip(step.input_leaves.split(xs), step.input_leaves.avals, strict=True)
    ]
    _, fired = jax.jit(lambda s, x: jax.lax.scan(body, s, x))(state, xs)
    sources = dict.fromkeys(
        e.source for e, f in zip(functions, fired, strict=True) if not bool(np.any(f))
    )
    return [
        f"the spike function at {source} gives no spike on this sequence: the layer is silent"
        for source in sources
    ]


__all__ = ["Report", "Row", "bptt", "verify"]
