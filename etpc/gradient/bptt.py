"""Backpropagation through time: the plain reference."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import is_key, with_loops_reversed
from ..errors import InputError, InputTypeError, checked_count, raise_together
from ..trace import (
    Leaves,
    StepFunction,
    called,
    check_new_state,
    checked_call,
    fits,
    initial_state,
    repeat,
)
from .data import begins_of, check_data, check_lead, foreign, lead_of, one_step, shapes_text
from .loss import (
    Loss,
    check_reduction,
    checked_weights,
    finite_where_masked,
    over_windows,
    reduced,
    summed_in,
)


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
    begins: Any = None,
    has_aux: bool = False,
) -> tuple[Any, Any]:
    """Loss and gradient of a sequence by backpropagation through time: the plain reference.

    **Arguments:** as for [`etpc.verify`][]; `state` is that of one example; `begins` as in `value_and_grad` of a
    [`Program`][etpc.Program.value_and_grad]. With `window`, it is
    truncated: after every so many steps the state is passed on without its derivative.

    **Returns** `(loss, grads)`, with the values that `value_and_grad` of a program gives. With
    `has_aux` it is `((loss, aux), grads)`, and `aux` has leading axes [T, B], or [T]. Both are added
    up in float32 at least, also where the model is less precise; parameters of low precision then
    have a gradient for each example until the end. The gradient may be differentiated in turn.

    **Raises** `etpc.InputError` and `etpc.InputTypeError`; `etpc.ModelError` where the step changes
    the structure, shape or dtype of the state.
    """
    check_reduction(reduction)
    if window is not None:
        why = "It is the number of steps after which the gradient is cut."
        window = checked_count("window", window, why=why)
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    called: Any = dict(state=state, step=step, batch_size=batch_size)
    data: Any = dict(mask=mask, begins=begins, has_aux=has_aux)
    objective = Objective.of(model, xs, targets, loss_fn, **called, **data)
    with batch_axis_blamed(model, xs, **called):
        check_lead(xs, targets, batch_size)
        value, grads, aux = gradient_of(model, objective, reduction, window)
    return ((value, aux) if has_aux else value), grads


def _is_traceable(model: Any) -> bool:
    """Whether `init_state()` is a function of the parameters that JAX can differentiate."""
    try:
        eqx.filter_eval_shape(lambda model: model.init_state(), model)
    except Exception:  # it may ask for values
        return False
    return True


class Objective(eqx.Module):
    """A sequence, and the loss that is differentiated over it.

    - `xs`, `targets`, `mask`: leading axes T, then B if it is `batched`.
    - `start`: the state in which streams begin, with an axis B if it is `batched`.
    - `learned`: whether they begin with `model.init_state()`, and so as a function of the parameters where JAX
        can differentiate it. Then `start` only says what is no float of it.
    - `begins`: [T, B] or [T], where a stream begins anew, or `None`.
    - `cuts`: [T], the steps to which the state is passed on without its derivative; `None` for none.
    """

    xs: Any
    targets: Any
    mask: Array | None
    loss: Loss
    start: Any
    step: StepFunction | None
    batched: bool
    learned: bool = False
    cuts: Array | None = None
    begins: Array | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        xs: Any,
        targets: Any,
        loss_fn: Any,
        *,
        state: Any = None,
        step: Any = None,
        batch_size: int | None = None,
        mask: Any = None,
        begins: Any = None,
        has_aux: bool = False,
    ) -> "Objective":
        """The objective of arguments as those of [`etpc.bptt`][], which are checked one by one."""
        loss = Loss.of(loss_fn, has_aux)
        check_data(xs, targets)
        lead = lead_of(xs, batch_size)
        mask = checked_weights("mask", mask, lead)
        begins = begins_of(begins, lead)
        checked_call(model, step)
        start = initial_state(model) if state is None else state
        leaves = Leaves.of(start, "state", numbers=True)
        raise_together(foreign("state", leaves.split(start) or start), InputTypeError)
        if batch_size is not None:
            start = leaves.join([repeat(a, batch_size) for a in leaves.split(start)])
        batched, learned = batch_size is not None, state is None
        return cls(xs, targets, mask, loss, start, step, batched, learned, begins=begins)


def gradient_of(
    model: Any, objective: Objective, reduction: str, window: int | None = None
) -> tuple[Array, Any, Any]:
    """Loss, gradient, and what the loss returns besides."""
    # NumPy's integers and flags in a model are numbers of its program, and not arrays to trace.
    plain = lambda a: a.item() if isinstance(a, np.integer | np.bool_) else a
    arguments = jax.tree.map(plain, model), objective, reduction, window
    try:
        return _compiled(*arguments)
    except ValueError as error:
        if "Reverse-mode differentiation does not work" not in str(error):
            raise
        return _compiled(*arguments, has_loops=True)


@eqx.filter_jit
def _compiled(
    model: Any, objective: Objective, reduction: str, window: int | None, has_loops: bool = False
) -> tuple[Array, Any, Any]:
    """`has_loops`: whether the step has loops of unknown length, of which JAX has no reverse mode."""
    loss, mask, start, batched = objective.loss, objective.mask, objective.start, objective.batched
    call = checked_call(model, objective.step)
    call = with_loops_reversed(call) if has_loops else call
    is_low = lambda a: eqx.is_inexact_array(a) and a.dtype != summed_in(a.dtype)
    low, rest = eqx.partition(model, jax.tree.map(is_low, model))
    dtypes = jax.tree.map(lambda a: a.dtype, low)
    learned = objective.learned and _is_traceable(model)  # once: it takes a millisecond

    whole = Leaves.of(start, "state", numbers=True)

    first = [a if is_key(a) or not batched else a[0] for a in whole.split(start)]

    def one_example(model: Any, start: Any, data: Any) -> tuple[Array, Any]:
        arrays, begins = start
        initial = first
        state_leaves = Leaves.of(whole.join(arrays), "state")
        # Rounded where it is used, so that JAX adds up the gradients of the steps before it rounds them.
        rounding = lambda: eqx.combine(jax.tree.map(jnp.astype, model[0], dtypes), model[1])
        if learned:
            new = whole.split(rounding().init_state())
            initial = [
                a if eqx.is_inexact_array(old) else old for a, old in zip(new, first, strict=True)
            ]
            arrays = [
                jnp.where(begins, a, old) if eqx.is_inexact_array(old) else old
                for a, old in zip(new, arrays, strict=True)
            ]

        def body(before: list[Array], step_data: Any) -> tuple[list[Array], Any]:
            x, target, weight, cut, begin = step_data
            if begin is not None:
                before = [
                    old if is_key(old) else jnp.where(begin, jnp.asarray(a, old.dtype), old)
                    for a, old in zip(initial, before, strict=True)
                ]
            if cut is not None:
                before = [
                    jnp.where(cut, jax.lax.stop_gradient(a), a) if eqx.is_inexact_array(a) else a
                    for a in before
                ]
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

    def total(model: Any, start: Any, data: Any) -> tuple[Array, Any]:
        if not batched:
            return one_example(model, start, data)
        low, rest = model
        # JAX adds up the gradients of a batch in the parameter's dtype: each example has its own.
        # As a list, for `vmap` takes a sparse matrix that has no values for one that has no axis to map.
        low, tree = jax.tree.flatten(low)
        low = [jnp.broadcast_to(a, (*size, *a.shape)) for a in low]
        many = jax.vmap(
            lambda low, start, data: one_example((tree.unflatten(low), rest), start, data),
            in_axes=(0, 0, (1, 1, 1, None, 1)),
            out_axes=(0, (0, 1)),
        )
        losses, rest_of = many(low, start, data)
        return losses.mean(), rest_of

    gradient = eqx.filter_value_and_grad(total, has_aux=True)
    arrays = [a if hasattr(a, "dtype") else jnp.asarray(a) for a in whole.split(start)]
    xs = jax.tree.map(lambda x: finite_where_masked(x, mask), objective.xs)
    data = xs, objective.targets, mask, objective.cuts, objective.begins
    steps, *size = lead_of(data, 1 if batched else None)
    wide = jax.tree.map(lambda a: a.astype(summed_in(a.dtype)), low), rest
    begin = arrays, jnp.ones(size, bool)
    if window is None or window >= steps:
        (value, (_, aux)), grads = gradient(wide, begin, data)
    else:
        value, grads, aux = _windows(gradient, wide, begin, data, steps, window)
    value, (low_grads, grads) = reduced(reduction, (value, grads), mask, steps)
    return value, eqx.combine(jax.tree.map(jnp.astype, low_grads, dtypes), grads), aux


def _windows(
    gradient: Callable[..., Any], model: Any, start: Any, data: Any, steps: int, window: int
) -> tuple[Array, Any, Any]:
    """The sums of loss and gradient over windows, each differentiated on its own."""

    def one_window(scan_carry: Any, window_data: Any) -> tuple[Any, Any]:
        state, value, grads = scan_carry
        (more, (state, aux)), more_grads = gradient(model, state, window_data)
        return (state, value + more, jax.tree.map(jnp.add, grads, more_grads)), aux

    first = jax.tree.map(lambda a: a[:window], data)
    (value, _), grads = eqx.filter_eval_shape(gradient, model, start, first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), (value, grads))
    (_, value, grads), aux = over_windows(one_window, (start, *zeros), data, steps, window)
    return value, grads, aux


@contextlib.contextmanager
def batch_axis_blamed(
    model: Any, xs: Any, *, state: Any, step: StepFunction | None, batch_size: int | None
) -> Iterator[None]:
    """Raise `InputError` in the place of an error if the model cannot take a step of `xs`, but can if its axes are
    read the other way: with a batch axis in the place of none, or without one."""
    try:
        yield
    except Exception as error:
        given, other = batch_size, 1 if batch_size is None else None  # 1 stands for any number
        if any(jnp.ndim(a) < (2 if given is None else 1) for a in jax.tree.leaves(xs)):
            raise
        inputs, instead = (
            jax.tree.map(partial(one_step, batch_size=b), xs) for b in (given, other)
        )
        if fits(model, inputs, state, step) or not fits(model, instead, state, step):
            raise
        shapes, read, wanted = (shapes_text(tree) for tree in (xs, inputs, instead))
        if given is None:
            size = jnp.shape(jax.tree.leaves(xs)[0])[1]
            raise InputError(
                f"xs has shape {shapes}, and as batch_size= is not given it is read as T steps of shape "
                f"{read}, which the model does not take; it takes {wanted}. Pass batch_size={size} if "
                "the second axis is the batch."
            ) from error
        raise InputError(
            f"xs has shape {shapes}, and as batch_size={given} is given it is read as T steps of B "
            f"examples of shape {read}, which the model does not take; it takes {wanted}. Leave "
            "batch_size= out if the data has no batch axis."
        ) from error
