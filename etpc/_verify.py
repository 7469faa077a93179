"""Backpropagation through time, and how a gradient is compared with it, parameter by parameter."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._errors import InputError, InputTypeError, checked_count, raise_together
from ._jax import is_float
from .run import Program, compile
from .run._arguments import check_data, check_lead, foreign
from .run._compile import fits, shapes_text
from .run._loss import (
    Loss,
    check_reduction,
    checked_weights,
    finite_where_masked,
    reduced,
    summed_in,
)
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
    learned = state is None and _is_traceable(model)
    leaves = Leaves.of(start, "state", numbers=True)
    raise_together(foreign("state", leaves.split(start) or start), InputTypeError)
    if batch_size is not None:
        start = leaves.join([repeat(a, batch_size) for a in leaves.split(start)])
    batched = batch_size is not None
    try:
        check_lead(xs, targets, batch_size)
        value, grads, aux = _bptt(
            *(model, xs, targets, loss, start, step, mask, batched, reduction, window, learned)
        )
    except Exception as error:
        _blame_batch_axis(error, model, xs, state, step, batch_size)
        raise
    return ((value, aux) if has_aux else value), grads


def _is_traceable(model: Any) -> bool:
    """Whether `init_state()` is a function of the parameters that JAX can differentiate."""
    try:
        eqx.filter_eval_shape(lambda model: model.init_state(), model)
    except Exception:  # it may ask for values
        return False
    return True


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
    learned: bool = False,
):
    """Loss, gradient, and what the loss returns besides.

    - `learned`: whether streams begin with `model.init_state()`, as a function of the parameters, and
        `start` only says what is no float of it.
    """
    call = checked_call(model, step)
    is_low = lambda a: eqx.is_inexact_array(a) and a.dtype != summed_in(a.dtype)
    low, rest = eqx.partition(model, jax.tree.map(is_low, model))
    dtypes = jax.tree.map(lambda a: a.dtype, low)

    whole = Leaves.of(start, "state", numbers=True)

    def sequence(model, start, data):
        arrays, begins = start
        state_leaves = Leaves.of(whole.join(arrays), "state")
        # Rounded where it is used, so that JAX adds up the gradients of the steps before it rounds them.
        rounding = lambda: eqx.combine(jax.tree.map(jnp.astype, model[0], dtypes), model[1])
        if learned:
            arrays = [
                jnp.where(begins, a, old) if eqx.is_inexact_array(old) else old
                for a, old in zip(whole.split(rounding().init_state()), arrays, strict=True)
            ]

        def body(before, step_data):
            x, target, weight = step_data
            rounded = rounding()
            # Joined for each call: an `eqx.nn.State` may be used once.
            result = lambda: call(rounded, x, state_leaves.join(before))
            y, after = called(result, Leaves.of(x, "x", numbers=True), state_leaves)
            check_new_state(state_leaves, Leaves.of(after, "state", numbers=True))
            loss.check(y, target)
            after = [
                jnp.asarray(a, b.dtype)
                for a, b in zip(state_leaves.split(after), before, strict=True)
            ]
            return after, loss(y, target, weight)

        after, (losses, aux) = jax.lax.scan(body, arrays, data)
        return losses.sum(), ((after, jnp.zeros_like(begins)), aux)

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
    arrays = [a if hasattr(a, "dtype") else jnp.asarray(a) for a in whole.split(start)]
    sequences = jax.tree.map(lambda x: finite_where_masked(x, mask), xs), targets, mask
    steps, *size = lead_of(sequences, 1 if batched else None)
    wide = jax.tree.map(lambda a: a.astype(summed_in(a.dtype)), low), rest
    begin = arrays, jnp.ones(size, bool)
    if window is None or window >= steps:
        (value, (_, aux)), grads = gradient(wide, begin, sequences)
    else:
        value, grads, aux = _windows(gradient, wide, begin, sequences, steps, window)
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

    @classmethod
    def of(cls, path: str, got: np.ndarray, want: np.ndarray, claim: str) -> "Row":
        """The row of one gradient, without a verdict."""
        norm, size = float(np.linalg.norm(want)), float(np.linalg.norm(got))
        error = float(np.linalg.norm(got - want)) / norm if norm else float("nan")
        ratio = size / norm if norm else float("nan")
        cosine = float(got @ want) / (norm * size) if norm and size else float("nan")
        return cls(path, cosine, error, ratio, norm, claim, None)


class Gradient:
    """The gradient of each parameter, and how far rounding alone moves it.

    - `run`: from a model and a mask to the loss and the gradient, with the structure of the model.
    - `lead`: the leading axes [T, B], or [T], of the sequence.
    """

    def __init__(
        self,
        run: Callable[[Any, Any], tuple[Any, Any]],
        program: Program,
        model: Any,
        mask: Any,
        lead: tuple[int, ...],
    ):
        self._run, self._program = run, program
        self._model, self._mask, self._lead = model, mask, lead
        value, grads = run(model, mask)
        self.loss = float(value)
        self.values = flat_gradients(program, grads)
        self._noise: dict[str, float] | None = None

    def noise(self, path: str, unit: float) -> float:
        """How much the gradient of a parameter changes with the last digit of what it is computed from.

        Each parameter of the model, and the weight of the loss of each example at each step, is made
        larger or smaller by `unit` of itself. What remains of terms that cancel is then another
        number of the same size, while a gradient that is small for another reason hardly changes. The
        median of three such changes is taken, as one of them may let another neuron spike.
        """
        if self._noise is None:
            moved = [
                flat_gradients(self._program, self._run(*self._nearby(seed, unit))[1])
                for seed in range(3)
            ]
            self._noise = {
                path: float(np.median([np.linalg.norm(m[path] - value) for m in moved]))
                for path, value in self.values.items()
            }
        return self._noise[path]

    def _nearby(self, seed: int, unit: float) -> tuple[Any, Any]:
        """The model and the mask with their last digits changed at random."""
        rng = np.random.default_rng(seed)

        def near(a: Any, unit: float) -> Any:
            return a * jnp.asarray(1 + rng.choice([-unit, unit], a.shape), jnp.finfo(a.dtype).dtype)

        def near_parameter(a: Any) -> Any:
            a = jnp.asarray(a)
            return near(a, float(jnp.finfo(a.dtype).eps))

        arrays, rest = eqx.partition(self._model, eqx.is_inexact_array)
        mask = jnp.ones(self._lead) if self._mask is None else self._mask.astype(float)
        return eqx.combine(jax.tree.map(near_parameter, arrays), rest), near(mask, unit)


ROUNDING = 64
"""What rounding alone may make of a gradient, in units of the precision, relative to the gradient of all
parameters. A gradient is a sum of many products, rounded in another order by BPTT: that of a parameter
whose terms cancel is noise of a few units."""

NOISE = 16
"""What rounding alone may make of a gradient, relative to how much it and that of BPTT change with the last
digit of the parameters: the same computation in another order rounds as often, and traces more often."""


def compare_all(
    got: Gradient, want: Gradient, claims: Mapping[str, str], tolerance: float, precision: Any
) -> tuple[Row, ...]:
    """A row for each parameter, and whether its claim holds.

    It does where the relative error is at most `tolerance`, or where rounding explains the difference: it
    is small beside the gradient of all parameters, and no larger than what both gradients change by
    with the last digit of the parameters.
    """
    unit = float(jnp.finfo(precision).eps)
    whole = float(np.linalg.norm(np.concatenate([*want.values.values()])))
    rows = []
    for path, claim in claims.items():
        a, b = got.values[path], want.values[path]
        row = Row.of(path, a, b, claim)
        if claim in ("exact", "unused"):
            difference = float(np.linalg.norm(a - b))
            held = row.error <= tolerance or difference == 0
            if not held and difference <= min(ROUNDING * unit, tolerance) * whole:
                noise = got.noise(path, unit) + want.noise(path, unit)
                held = difference <= NOISE * noise
            vacuous = held and claim == "exact" and not row.norm
            row = dataclasses.replace(row, held=None if vacuous else held)
        rows.append(row)
    return tuple(rows)


def precision(program: Program) -> Any:
    """The least precise dtype in which the step of a program computes."""
    step = program.plan.analysis.step
    variables = [*step.program.inputs, *(v for e in step.equations for v in e.outputs)]
    dtypes = {v.aval.dtype for v in variables if is_float(v.aval.dtype)}
    return max(dtypes, key=lambda d: float(jnp.finfo(d).eps))


def default_tolerance(dtype: Any) -> float:
    """The largest relative error that counts as exact, of a gradient that is computed in a dtype.

    - float64: 1e-9. It leaves seven digits to rounding, and a fault of a trace is larger.
    - float32: 1e-3. It leaves four digits to rounding, which a recurrent network of some hundred
        steps takes.
    - Less: the root of the precision, 0.03 in float16 and 0.09 in bfloat16: half of the digits, as
        each step rounds the state and BPTT the credit of each step to three digits or two.
    """
    unit = float(jnp.finfo(dtype).eps)
    return 1e-9 if unit < 1e-15 else 1e-3 if unit < 1e-6 else unit**0.5


def doubts(program: Program, silent: tuple[str, ...], reference: Gradient) -> tuple[str, ...]:
    """What makes a comparison say less than it seems to, whatever the algorithm is."""
    zero = [
        f"the BPTT gradient of {path} is zero on this sequence, so nothing is compared"
        for path, value in reference.values.items()
        if not value.any() and program.claims[path].claim != "unused"
    ]
    return (*silent, *zero)


def first_read(program: Program, steps: int) -> int:
    """The first step of a sequence whose loss gives credit to a trace."""
    window = program.window_for(steps)
    return window * (program.plan.behind // window + 1)


def unread_traces(program: Program, steps: int, mask: Any) -> str | None:
    """Why no loss gives credit to a trace, so that its values are of no account; `None` where one does."""
    first = first_read(program, steps)
    if not program.plan.traced or (
        steps > first and (mask is None or bool((mask[first:] != 0).any()))
    ):
        return None
    kept = f" and lookback={program.algorithm.lookback}" if program.plan.behind else ""
    why = f"there are {steps}" if steps <= first else "no loss counts after them"
    return (
        f"no trace was read. With windows of {program.window_for(steps)} steps{kept}, the first {first} "
        f"need none, and {why}; take more steps, or a smaller `window=`"
    )


__all__ = ["Row", "bptt"]
