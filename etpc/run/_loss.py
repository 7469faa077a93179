"""The loss of a sequence, its weights and its mean."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._errors import InputError, InputTypeError

REDUCTIONS = ("mean", "sum")
NO_REDUCTION = 'reduction must be "sum" or "mean", not {!r}.'
NO_LOSS = "loss_fn must be a function (y, target), not {!r}."


class Loss(eqx.Module):
    """A loss function as a PyTree: the arrays that it holds are data, the rest is the program's.

    `loss(y, target, weight) -> (loss, aux)`, where `aux` is `None` unless `has_aux`. With a weight
    it is `weight * loss`. Where the weight is zero, neither the loss nor its derivative is read: what
    of `y` and `target` is not finite there is taken as zero, and no cotangent of `y` is passed on.
    """

    arrays: tuple[Any, ...]
    static: tuple[Any, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)
    has_aux: bool = eqx.field(static=True)

    @classmethod
    def of(cls, loss_fn: Any, has_aux: bool) -> "Loss":
        """**Raises** `InputTypeError` where `loss_fn` is no function, or cannot be hashed."""
        if not callable(loss_fn):
            raise InputTypeError(NO_LOSS.format(loss_fn))
        leaves, treedef = jax.tree.flatten(loss_fn)
        data = [eqx.is_array(leaf) or isinstance(leaf, np.ndarray) for leaf in leaves]
        arrays = tuple(jnp.asarray(a) if d else None for a, d in zip(leaves, data, strict=True))
        static = tuple(None if d else leaf for leaf, d in zip(leaves, data, strict=True))
        try:
            hash((static, treedef))
        except TypeError as error:
            raise InputTypeError(
                f"loss_fn is a {type(loss_fn).__name__}, which cannot be hashed ({error}). This is "
                "because what is no array is part of the compiled program. Make it a function, or an "
                "`eqx.Module`, whose arrays may be anything."
            ) from error
        return cls(arrays, static, treedef, bool(has_aux))

    def raw(self, *arguments: Any) -> Any:
        """What the function itself returns."""
        leaves = [s if a is None else a for a, s in zip(self.arrays, self.static, strict=True)]
        return self.treedef.unflatten(leaves)(*arguments)

    def __call__(self, y: Any, target: Any, weight: Array | None = None) -> tuple[Array, Any]:
        if weight is None:
            return self._pair(self.raw(y, target))
        counts = weight != 0
        y, target = jax.tree.map(lambda a: _cut(a, counts), (y, target))
        loss, aux = self._pair(self.raw(y, target))
        weighted = weight.astype(loss.dtype) * loss
        return jnp.where(counts, weighted, jnp.zeros((), loss.dtype)), aux

    def _pair(self, result: Any) -> tuple[Array, Any]:
        return result if self.has_aux else (result, None)

    def check(self, outputs: Any, targets: Any) -> jax.ShapeDtypeStruct:
        """The shape of the loss itself. **Raises** `InputError` where it is no loss.

        - `outputs`, `targets`: shapes of one example at one step.
        """
        aval = jax.eval_shape(self.raw, outputs, targets)
        if self.has_aux:
            if not (isinstance(aval, tuple) and len(aval) == 2):
                raise InputError(
                    f"With has_aux=True loss_fn must return a pair (loss, aux), and returns "
                    f"{_shown(aval)}."
                )
            aval = aval[0]
        unit = getattr(aval, "unit", None)
        if unit is not None:
            raise InputError(
                f"loss_fn returns a quantity in {unit}, and a loss is a plain number. Divide y and "
                "target by a unit, or take `.to_decimal(unit)` of the loss."
            )
        if not _is_scalar(aval):
            pair = isinstance(aval, tuple) and len(aval) == 2 and not self.has_aux
            advice = (
                "Pass has_aux=True for a loss_fn that returns (loss, aux)."
                if pair
                else "Sum or average over the axes of y."
            )
            raise InputError(
                f"loss_fn must return one float for one example at one step, and returns "
                f"{_shown(aval)}. {advice}"
            )
        return aval


def _cut(a: Any, counts: Array) -> Any:
    """An array of `y` or `target`; without derivative, and finite, where it does not count."""
    if not eqx.is_inexact_array(a):
        return a
    finite = jnp.where(jnp.isfinite(a), a, jnp.zeros((), a.dtype))
    return jnp.where(counts, a, lax.stop_gradient(finite))


def _is_scalar(aval: Any) -> bool:
    return getattr(aval, "shape", None) == () and jnp.issubdtype(aval.dtype, jnp.floating)


def _shown(aval: Any) -> str:
    if isinstance(aval, tuple):
        return f"({', '.join(map(_shown, aval))})"
    shape = getattr(aval, "shape", None)
    return f"{aval!r}" if shape is None else f"{aval.dtype}{list(shape)}"


def check_reduction(reduction: Any) -> None:
    """**Raises** `InputError` unless it is one."""
    if reduction not in REDUCTIONS:
        raise InputError(NO_REDUCTION.format(reduction))


def reduced(reduction: str, sums: Any, mask: Array | None, steps: int) -> Any:
    """Loss and gradients, summed over time and averaged over the batch, as `reduction` says.

    - `mask`: [T, B] or [T], the weights that are in the sums.
    """
    if reduction == "sum":
        return sums
    if mask is None:
        return jax.tree.map(lambda a: a / steps, sums)
    batch = mask.shape[1] if mask.ndim == 2 else 1
    total = mask.sum(dtype=float) / batch
    scale = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
    return jax.tree.map(lambda a: a * scale.astype(a.dtype), sums)


def checked_weights(name: str, weights: Any, lead: tuple[int, ...]) -> Array | None:
    """Weights of examples and steps as an array. **Raises** `InputError` where they are none."""
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    axes = "[T, B]" if len(lead) == 2 else "[T]"
    if weights.shape != lead:
        raise InputError(
            f"{name} has shape {list(weights.shape)}, and should have {axes} = {list(lead)}, as "
            "the input does: one weight for each example at each step."
        )
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise InputError(f"{name} is {weights.dtype}, and should be booleans or real numbers.")
    return weights


def finite_where_masked(x: Any, mask: Array | None) -> Any:
    """An input whose leading axes are those of the mask: zero where it is masked and not finite."""
    x = jnp.asarray(x)
    if mask is None or not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    masked = (mask == 0).reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
    return jnp.where(masked & ~jnp.isfinite(x), jnp.zeros((), x.dtype), x)


__all__ = [
    "NO_LOSS",
    "NO_REDUCTION",
    "REDUCTIONS",
    "Loss",
    "check_reduction",
    "checked_weights",
    "finite_where_masked",
    "reduced",
]
