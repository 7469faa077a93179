"""The dense layer with a weight of low rank."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from etpc._jax import mark
from etpc.nn._init import SCHEMES, DType, check_shape, float_dtype, positive_int


class LowRankLinear(eqx.Module):
    """`y = U (V x) + b`: a dense layer whose weight `W = U V` has rank R. All parameters are marked.

    The compiler reads the two products as one with the effective weight `U V`, whose trace is that
    of `eqx.nn.Linear`, and pulls the gradient back to both factors. So they are as exact as a
    `Linear` in the same place, and the trace is as large. With a trace for each factor, that of
    `V` would be cut where its product enters `U`, and nothing of it would be left. A model that runs
    on its own never forms `U V`.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> layer = nn.LowRankLinear(100, 50, rank=4, key=jax.random.key(0))
    >>> layer.U.shape, layer.V.shape, layer(jnp.ones(100)).shape
    ((50, 4), (4, 100), (50,))

    ```
    """

    U: Float[Array, "O R"]
    V: Float[Array, "R I"]
    bias: Float[Array, " O"] | None
    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        use_bias: bool = True,
        *,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: I and O, the lengths of `x` and `y`.
        - `rank`: R.
        - `use_bias`: whether there is a `b`.
        - `dtype`: of the parameters; JAX's default float where None.
        - `key`: a PRNG key for the initial parameters.

        **Raises** `InputError` for a size below 1, or a dtype that is not a float.
        """
        I = self.in_features = positive_int("in_features", in_features)
        O = self.out_features = positive_int("out_features", out_features)
        R = self.rank = positive_int("rank", rank)
        dtype = float_dtype(dtype)
        keys = jax.random.split(key)
        # So the elements of `U V` have the variance of those of `Linear`.
        self.U = SCHEMES["lecun_normal"](keys[0], (O, R), dtype)
        self.V = SCHEMES["kaiming_normal"](keys[1], (R, I), dtype)
        self.bias = jnp.zeros((O,), dtype) if use_bias else None

    def __call__(self, x: Float[Array, " I"]) -> Float[Array, " O"]:
        """**Returns** `U (V x) + b` for one example.

        **Raises** `InputError` where `x` has another shape than `(I,)`.
        """
        check_shape("LowRankLinear", "x", x, (self.in_features,))
        # Written from the right: XLA multiplies the merged factors faster in this layout on CPUs.
        y = (x @ mark(self.V).T) @ mark(self.U).T
        return y if self.bias is None else y + mark(self.bias)
