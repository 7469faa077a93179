"""The loss of a sequence, its weights and its mean."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import is_complex, leading, result_type
from ..errors import InputError, InputTypeError
from .data import as_array


class Loss(eqx.Module):
    """A loss function as a PyTree: the arrays that it holds are data, the rest is the program's.

    `loss(y, target, weight) -> (loss, aux)`, where `aux` is `None` unless `has_aux`, and the loss is at
    least float32, in which it is added up. With a weight it is `weight * loss`. Where the weight is
    zero, neither the loss nor its derivative is read: what of `y` and `target` is not finite there is
    taken as zero, and no cotangent of `y` is passed on.

    - `name`: of the argument, as errors have it: `"loss_fn"`, or `"score"`, which needs no derivative.
    """

    arrays: tuple[Any, ...]
    static: tuple[Any, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)
    name: str = eqx.field(static=True, default="loss_fn")

    @classmethod
    def of(cls, loss_fn: Any, has_aux: bool, name: str = "loss_fn") -> "Loss":
        """**Raises** `InputTypeError` where `loss_fn` is no function, or cannot be hashed."""
        if not callable(loss_fn):
            raise InputTypeError(f"{name} must be a function (y, target), not {loss_fn!r}.")
        leaves, treedef = jax.tree.flatten(loss_fn)
        data = [eqx.is_array(leaf) or isinstance(leaf, np.ndarray) for leaf in leaves]
        arrays = tuple(jnp.asarray(a) if d else None for a, d in zip(leaves, data, strict=True))
        static = tuple(None if d else leaf for leaf, d in zip(leaves, data, strict=True))
        try:
            hash((static, treedef))
        except TypeError as error:
            raise InputTypeError(
                f"{name} is a {type(loss_fn).__name__}, which cannot be hashed ({error}). This is "
                "because what is no array is part of the compiled program. Make it a function, or an "
                "`eqx.Module`, whose arrays may be anything."
            ) from error
        return cls(arrays, static, treedef, bool(has_aux), name)

    def raw(self, *arguments: Any) -> Any:
        """Call the function itself. An error in it gets a note that says what it was called with."""
        leaves = [s if a is None else a for a, s in zip(self.arrays, self.static, strict=True)]
        try:
            return self.treedef.unflatten(leaves)(*arguments)
        except Exception as error:
            shapes = (", ".join(map(_shown, jax.tree.leaves(tree))) for tree in arguments)
            error.add_note(
                "etpc called {} with y {} and target {}: one example at one step, without axes "
                "for time and batch. Write it for these; the mean over examples and steps is taken "
                "by etpc.".format(self.name, *shapes)
            )
            raise

    def __call__(self, y: Any, target: Any, weight: Array | None = None) -> tuple[Array, Any]:
        if weight is None:
            return self._pair(self.raw(y, target))
        counts = weight.astype(bool)
        y, target = jax.tree.map(lambda a: _masked(a, counts), (y, target))
        loss, aux = self._pair(self.raw(y, target))
        weighted = weight.astype(loss.dtype) * loss
        return jnp.where(counts, weighted, jnp.zeros((), loss.dtype)), aux

    def _pair(self, result: Any) -> tuple[Array, Any]:
        loss, aux = result if self.has_aux else (result, None)
        loss = jnp.asarray(loss)
        return loss.astype(summed_in(loss.dtype)), aux

    def check(self, outputs: Any, targets: Any) -> jax.ShapeDtypeStruct:
        """The shape of the loss itself. **Raises** `InputError` unless it is one float, or one number of a score.

        - `outputs`, `targets`: shapes of one example at one step.
        """
        aval = _evaluated(self.raw, outputs, targets)
        if self.has_aux:
            if not (isinstance(aval, tuple) and len(aval) == 2):
                raise InputError(
                    f"With has_aux=True loss_fn must return a pair (loss, aux), and returns "
                    f"{_shown(aval)}."
                )
            aval, aux = aval
            foreign = [a for a in jax.tree.leaves(aux) if not hasattr(a, "shape")]
            if foreign:
                raise InputError(
                    f"The aux that loss_fn returns holds {foreign[0]!r}, and must be a PyTree of arrays."
                )
        unit = getattr(aval, "unit", None)
        if unit is not None:
            raise InputError(
                f"{self.name} returns a quantity in {unit}, and should return a plain number. Divide y and "
                "target by a unit, or take `.to_decimal(unit)` of the result."
            )
        is_score = self.name == "score"
        kinds = (jnp.floating, jnp.integer, jnp.bool_) if is_score else (jnp.floating,)
        is_one = getattr(aval, "shape", None) == ()
        if not is_one or not any(jnp.issubdtype(aval.dtype, kind) for kind in kinds):
            raise InputError(
                f"{self.name} must return one {'number' if is_score else 'float'} for one example at one step, "
                f"and returns {_shown(aval)}. {_advice(aval, is_score)}"
            )
        return aval


def _masked(a: Any, counts: Array) -> Any:
    """An array of `y` or `target`. Where it does not count, it is finite and has no derivative."""
    if not eqx.is_inexact_array(a):
        return a
    finite = jnp.where(jnp.isfinite(a), a, jnp.zeros((), a.dtype))
    return jnp.where(counts, a, lax.stop_gradient(finite))


def _evaluated(function: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of the arrays in a result. Other leaves of it, such as strings, are returned as they are.

    `eqx.filter_eval_shape` would keep the function for as long as the process lives.
    """
    is_data = lambda a: isinstance(a, jax.ShapeDtypeStruct) or eqx.is_array(a)
    arrays, rest = eqx.partition(arguments, is_data)
    kept = []

    def run(arrays: Any) -> Any:
        result = _with_arrays(function(*eqx.combine(arrays, rest)))
        data, others = eqx.partition(result, is_data)
        kept.append(others)
        return data

    return eqx.combine(jax.eval_shape(run, arrays), kept[0])


def _with_arrays(result: Any) -> Any:
    """A result with arrays in the place of numbers. Leaves that are neither, such as strings, stay."""
    number = bool | int | float | complex | np.ndarray | np.generic
    return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, number) else a, result)


def _advice(aval: Any, is_score: bool) -> str:
    """Advice for a loss that is not one float, or a score that is not one number."""
    if aval is None:
        return "It ends without a value: add a `return`."
    if isinstance(aval, tuple) and len(aval) == 2 and not is_score:
        return "Pass has_aux=True for a loss_fn that returns (loss, aux)."
    dtype = getattr(aval, "dtype", None)
    if dtype is None:
        return "Return one number."
    if is_complex(aval):
        return "Take its real part, or its absolute value."
    if not is_score and not jnp.issubdtype(dtype, jnp.floating):
        return (
            "This is because it needs a derivative. Return a float that depends on y smoothly, such as "
            "a squared error, or a cross-entropy in the place of a count of errors."
        )
    return "Sum or average over the axes of y."


def _shown(aval: Any) -> str:
    if isinstance(aval, tuple):
        return f"({', '.join(map(_shown, aval))})"
    shape = getattr(aval, "shape", None)
    return f"{aval!r}" if shape is None else f"{aval.dtype}{list(shape)}"


def summed_in(dtype: Any) -> Any:
    """The dtype in which losses and gradients of this one are added up: at least float32."""
    return result_type(dtype, jnp.float32)


def check_reduction(reduction: Any) -> None:
    """**Raises** `InputError` unless it is one."""
    if not isinstance(reduction, str) or reduction not in ("mean", "sum"):
        raise InputError(f'reduction must be "sum" or "mean", not {reduction!r}.')


def reduced(reduction: str, sums: Any, mask: Array | None, steps: int) -> Any:
    """Loss and gradients, summed over time and averaged over the batch, as `reduction` says.

    - `mask`: [T, B] or [T], the weights that are in the sums.
    """
    if reduction == "sum":
        return sums
    if mask is None:
        return jax.tree.map(lambda a: a / steps, sums)
    batch = mask.shape[1] if mask.ndim == 2 else 1
    total = mask.sum(-1, dtype=float).sum() / batch  # in float32 a count of more than 2^24 stops
    scale = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    return jax.tree.map(lambda a: a * scale.astype(a.dtype), sums)


def checked_weights(name: str, weights: Any, lead: tuple[int, ...]) -> Any:
    """Weights of examples and steps as an array. **Raises** `InputError` where they are none."""
    if weights is None:
        return None
    weights = weights if hasattr(weights, "dtype") else np.asarray(weights)
    is_number = weights.dtype == bool or jnp.issubdtype(weights.dtype, jnp.number)
    if not is_number or is_complex(weights):
        raise InputError(f"{name} is {weights.dtype}, and should be booleans or real numbers.")
    weights = as_array(weights)
    axes = "[T, B]" if len(lead) == 2 else "[T]"
    if weights.shape != lead:
        raise InputError(
            f"{name} has shape {list(weights.shape)}, and should have {axes} = {list(lead)}, as "
            "the input does: one weight for each example at each step."
        )
    return weights


def finite_where_masked(x: Any, mask: Array | None) -> Any:
    """An input whose leading axes are those of the mask: zero where it is masked and not finite."""
    x = jnp.asarray(x)
    if mask is None or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    masked = leading(~mask.astype(bool), x)
    return jnp.where(masked & ~jnp.isfinite(x), jnp.zeros((), x.dtype), x)


def over_windows(
    one_window: Callable[..., Any],
    scan_carry: Any,
    data: Any,
    steps: int,
    window: int,
    by_step: Callable[..., tuple[Any, Any]] = jax.lax.scan,
) -> tuple[Any, Any]:
    """Run `one_window(scan_carry, data) -> (scan_carry, aux)` over a sequence, whose last window may be shorter.

    - `by_step`: the loop over windows of one step.
    """
    part = lambda start, stop: jax.tree.map(lambda a: a[start:stop], data)
    whole = steps // window
    cut = whole * window
    if whole == 1:  # and a shorter one
        scan_carry, aux = one_window(scan_carry, part(0, cut))
    elif window == 1:  # an axis of length one in the sequence would have XLA copy all of it

        def one_step(step_carry: Any, step_data: Any) -> tuple[Any, Any]:
            step_carry, aux = one_window(step_carry, jax.tree.map(lambda a: a[None], step_data))
            return step_carry, jax.tree.map(lambda a: a[0], aux)

        scan_carry, aux = by_step(one_step, scan_carry, data)
    else:
        stacked = jax.tree.map(lambda a: a[:cut].reshape(whole, window, *a.shape[1:]), data)
        scan_carry, aux = jax.lax.scan(one_window, scan_carry, stacked)
        aux = jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), aux)
    if cut < steps:
        scan_carry, rest = one_window(scan_carry, part(cut, steps))
        aux = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), aux, rest)
    return scan_carry, aux
