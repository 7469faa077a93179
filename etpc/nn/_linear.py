"""The dense layer."""

import equinox as eqx
import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from etpc._jax import mark
from etpc.nn._init import (
    Initializer,
    check_shape,
    float_dtype,
    initialise,
    kaiming_normal,
    positive_int,
    zeros,
)


class Linear(eqx.Module):
    """`y = W x + b`, with both parameters marked as weights.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> linear = nn.Linear(3, 2, key=jax.random.key(0))
    >>> linear.weight.shape, linear(jnp.ones(3)).shape
    ((2, 3), (2,))

    ```
    """

    weight: Float[Array, "O I"]
    bias: Float[Array, " O"] | None
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        *,
        weight_init: Initializer = kaiming_normal(),
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: I and O, the lengths of `x` and `y`.
        - `use_bias`: whether there is a `b`.
        - `weight_init`, `bias_init`: callables `(key, shape, dtype) -> array`; the weight's shape
          is `(O, I)`.
        - `dtype`: of the parameters; JAX's default float where None.
        - `key`: a PRNG key for the initial parameters.

        **Raises** `InputError` for a size below 1, a dtype that is not a float, or an initialiser
        that returns another shape or dtype.
        """
        self.in_features = positive_int("in_features", in_features)
        self.out_features = positive_int("out_features", out_features)
        dtype = float_dtype(dtype)
        weight_key, bias_key = jax.random.split(key)
        shape = (self.out_features, self.in_features)
        self.weight = initialise("weight_init", weight_init, weight_key, shape, dtype)
        self.bias = (
            initialise("bias_init", bias_init, bias_key, shape[:1], dtype) if use_bias else None
        )

    def __call__(self, x: Float[Array, " I"]) -> Float[Array, " O"]:
        """**Returns** `W x + b` for one example.

        **Raises** `InputError` where `x` has another shape than `(I,)`.
        """
        check_shape("Linear", "x", x, (self.in_features,))
        y = mark(self.weight) @ x
        return y if self.bias is None else y + mark(self.bias)
