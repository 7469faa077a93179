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
) -> tuple[Array, Any]:
    """Loss and gradient of a sequence by backpropagation through time: the plain reference.

    **Arguments:** as for [`etpc.verify`][]; `state` is that of one example.

    **Returns** `(loss, grads)`, as `value_and_grad` of a program gives them.
    """
    if reduction not in ("sum", "mean"):
        raise InputError(f'reduction must be "sum" or "mean", not {reduction!r}.')
    start = model.init_state() if state is None else state
    if batch_size is not None:
        start = jax.tree.map(lambda a: repeat(a, batch_size), start)
    return _bptt(model, xs, targets, loss_fn, start, step, batch_size is not None, reduction)


@eqx.filter_jit
def _bptt(model, xs, targets, loss_fn, start, step, batched: bool, reduction: str):
    call = step if step is not None else lambda m, x, s: m(x, s)

    def sequence(model, start, xs, targets):
        def body(now, given):
            x, target = given
            y, after = call(model, x, now)
            after = jax.tree.map(lambda a, b: jnp.asarray(a, jnp.asarray(b).dtype), after, now)
            return after, loss_fn(y, target)

        start = jax.tree.map(lambda a: a if hasattr(a, "dtype") else jnp.asarray(a), start)
        return jax.lax.scan(body, start, (xs, targets))[1].sum()

    def total(model):
        if not batched:
            return sequence(model, start, xs, targets)
        many = jax.vmap(lambda s, x, t: sequence(model, s, x, t), in_axes=(0, 1, 1))
        return many(start, xs, targets).mean()

    loss, grads = eqx.filter_value_and_grad(total)(model)
    if reduction == "mean":
        steps = jax.tree.leaves((xs, targets))[0].shape[0]
        loss, grads = loss / steps, jax.tree.map(lambda g: g / steps, grads)
    return loss, grads


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter of a comparison.

    `cosine` and `error` (the norm of the difference over the norm of the BPTT gradient) are `nan`
    where a gradient is zero. `claim` is what the program says, `held` whether it is so: `None`
    where nothing was claimed, or where zero gradients show nothing.
    """

    path: str
    cosine: float
    error: float
    norm: float
    claim: str
    held: bool | None


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The result of [`etpc.verify`][]. `print` it for a table."""

    program: Program
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What makes the comparison say less than it seems to: zero gradients, silent neurons."""
    tolerance: float
    loss: float

    @property
    def vacuous(self) -> bool:
        """Whether something that should have been compared was zero or silent."""
        return bool(self.notes)

    @property
    def ok(self) -> bool:
        """Whether every claim held, and none of them emptily."""
        return not self.vacuous and all(row.held is not False for row in self.rows)

    def __str__(self) -> str:
        columns = ["parameter", "cosine", "rel. error", "norm", "claim", "held"]
        held = {True: "yes", False: "NO", None: "-"}
        rows = [
            [
                row.path,
                f"{row.cosine:.6f}",
                f"{row.error:.2e}",
                f"{row.norm:.3e}",
                row.claim,
                held[row.held],
            ]
            for row in self.rows
        ]
        head = f"{self.program.algorithm} against BPTT (loss {self.loss:.6g})"
        verdict = "ok" if self.ok else "NOT ok"
        if self.vacuous:
            verdict += ": the comparison is vacuous in part"
        lines = [head, "", *table(columns, rows), ""]
        lines += [f"note: {text}" for text in self.notes]
        lines += [f"{verdict}  (exact means a relative error of at most {self.tolerance:.0e})"]
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

    **Returns** a [`Report`][etpc.verify.Report]: `print` shows the table, `.ok` is the verdict.
    It is not ok where a claim of exactness does not hold, and where the comparison says nothing
    because a gradient is zero or no neuron of a layer spikes.
    """
    inputs = jax.tree.map(lambda a: _one(a, batch_size), xs)
    program = compile(model, algo, inputs=inputs, state=state, step=step, weights=weights)
    carry = program.init(batch_size)
    (loss, _), online = program.value_and_grad(loss_fn)(model, xs, targets, carry)
    batched = batch_size is not None
    _, reference = _bptt(
        model, xs, targets, loss_fn, _full_state(program, carry), step, batched, "sum"
    )
    leaves = program.plan.analysis.step.model_leaves
    if tolerance is None:
        tolerance = 1e-9 if jnp.finfo(program.plan.dtype).bits == 64 else 1e-3
    rows, notes = [], []
    for i in leaves.floats:
        got, want = (_flat(tree, leaves, i) for tree in (online, reference))
        row = _compare(program, i, got, want, tolerance)
        rows.append(row)
        if row.norm == 0 and leaves.paths[i] not in program.plan.unused:
            notes.append(
                f"the BPTT gradient of {row.path} is zero on this sequence, so nothing is compared"
            )
    notes = [*_silent(program, model, xs, carry), *notes]
    return Report(program, tuple(rows), tuple(notes), tolerance, float(loss))


def _one(leaf: Any, batch_size: int | None) -> jax.ShapeDtypeStruct:
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    lead = 1 if batch_size is None else 2
    if leaf.ndim < lead:
        raise InputError(
            f"xs has a leaf of shape {list(leaf.shape)}; it should begin with "
            f"{'T' if batch_size is None else 'T, B'}."
        )
    return jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype)


def _full_state(program: Program, carry: Any) -> Any:
    leaves: Leaves = program.plan.analysis.step.state_leaves
    return leaves.join(leaves.split(carry.state))


def _flat(tree: Any, leaves: Leaves, i: int) -> np.ndarray:
    value = leaves.treedef.flatten_up_to(tree)[leaves.places[i]]
    return np.asarray(value, np.float64).reshape(-1)


def _compare(program: Program, i: int, got: np.ndarray, want: np.ndarray, tolerance) -> Row:
    path = program.plan.analysis.step.model_leaves.paths[i]
    own = [p for p in program.plan.ops if i in p.op.parameters]
    norm, size = float(np.linalg.norm(want)), float(np.linalg.norm(got))
    difference = float(np.linalg.norm(got - want))
    error = difference / norm if norm else float("nan")
    cosine = float(got @ want) / (norm * size) if norm and size else float("nan")
    exact = all(p.exact for p in own)
    if not own:
        claim = "unused"
    elif exact:
        claim = "exact"
    elif all(p.form is None for p in own):
        claim = "current step"
    else:
        claim = "approximate"
    held: bool | None = None
    if exact:
        held = error <= tolerance if norm else (None if own and size == 0 else size == 0)
    return Row(path, cosine, error, norm, claim, held)


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
