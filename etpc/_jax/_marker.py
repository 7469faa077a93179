"""The primitive behind `etpc.mark`, and values whose derivative is refused, or is added to."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir

from ..errors import UnsupportedError
from ._program import Primitive, is_float

etp_p = Primitive("etp")
etp_p.def_impl(lambda x: x)
etp_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(etp_p, lambda ctx, x: [x])
ad.deflinear2(etp_p, lambda ct, x: [ct])
batching.defvectorized(etp_p)


def mark(weight: jax.Array | np.ndarray) -> jax.Array:
    """Mark a weight, where it is used, as one that learns by an eligibility trace where not all do.

    An identity: the marked value equals `weight`, at no cost when the model runs on its own. It
    survives `jit`, `vmap` and `grad`. Whatever operation consumes the marked value, or something
    computed from it and other parameters alone, is an ETP weight operation.
    `etpc.compile(..., weights="marked")` gives a trace to those alone; by default every weight that
    reaches a hidden state has one.

    **Arguments:**

    - `weight`: a float array of any shape.

    **Returns** the same array.

    ```pycon
    >>> import jax.numpy as jnp, etpc
    >>> etpc.mark(jnp.ones(3)).shape
    (3,)

    ```
    """
    return etp_p.bind(jnp.asarray(weight))


no_derivative_p = Primitive("no_derivative")
"""Stands for the derivative of a value that has none, and raises where it is read."""


def _raise_no_derivative(*_: Any, message: str, **__: Any) -> Any:
    raise UnsupportedError(message)


no_derivative_p.def_impl(_raise_no_derivative)
no_derivative_p.def_abstract_eval(lambda tangent, message: tangent)
mlir.register_lowering(no_derivative_p, _raise_no_derivative)
ad.deflinear2(no_derivative_p, _raise_no_derivative)
batching.defvectorized(no_derivative_p)


def without_derivative(tree: Any, message: str) -> Any:
    """The same values; an `UnsupportedError` with this message where their derivative is asked for.

    The derivatives of other values that are computed beside them stay as they are.
    """

    @jax.custom_jvp
    def same(value: Any) -> Any:
        return value

    @same.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        return primals[0], no_derivative_p.bind(tangents[0], message=message)

    has_derivative = lambda a: hasattr(a, "dtype") and is_float(a.dtype)
    return jax.tree.map(lambda a: same(a) if has_derivative(a) else a, tree)


@jax.custom_jvp
def derivative_added(value: Any, other: Any) -> Any:
    """A value that has the derivative of another one besides its own: the two may be one quantity, as functions of
    different things."""
    # `value + (other - stop_gradient(other))` rounds, and is NaN where `other` is infinite.
    return value


derivative_added.defjvp(lambda values, tangents: (values[0], tangents[0] + tangents[1]))
