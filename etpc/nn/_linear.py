"""Dense layers: one whose inputs have signs, and one with a weight of low rank."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from etpc.errors import InputError
from etpc.nn._init import SCHEMES, DType, check_shape, float_dtype, set_lengths
from etpc.trace import mark


class Projection(eqx.Module):
    """A layer without a state, from I inputs to O outputs."""

    in_features: int = eqx.field(static=True)
    out_features: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, " I"]) -> Float[Array, " O"]:
        """**Returns** `y` for one example.

        **Raises** `InputError` where `x` has another shape than `(I,)`.
        """
        check_shape(type(self).__name__, "x", x, (self.in_features,))
        return self._of(x)

    @abc.abstractmethod
    def _of(self, x: Array) -> Array:
        """The output for an input of the right shape."""


class DaleLinear(Projection):
    """`y = |W| s * x`, where each input has a sign: the first inputs excite all outputs, and the
    other inputs inhibit them, whatever is learnt (Dale's law).

    The stored weight is free and its absolute value is used. So the scale of an initialiser is kept,
    and the derivative is 1 or -1 everywhere; a weight that is moved across zero is reflected.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> dale = nn.DaleLinear(5, 2, excitatory=4, key=jax.random.key(0))
    >>> bool((dale.effective_weight()[:, :4] >= 0).all())
    True
    >>> bool((dale.effective_weight()[:, 4:] <= 0).all())
    True

    ```

    **Source** Song, Yang & Wang, "Training excitatory-inhibitory recurrent neural networks for
    cognitive tasks: a simple and flexible framework", PLoS Computational Biology 12(2), 2016, which
    rectifies the weight: there, one that is below zero has no derivative and stays there.
    """

    weight: Float[Array, "O I"]
    excitatory: int = eqx.field(static=True)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        excitatory: int,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_features`, `out_features`: I and O, the lengths of `x` and `y`.
        - `excitatory`: how many of the inputs excite, the first ones; from 0 to I.
        - `dtype`: of the weight; JAX's default float where None.
        - `key`: a PRNG key for the initial weight.

        **Raises** `InputError` for a size below 1, an `excitatory` that is out of range, or a dtype
        that is not a float.
        """
        shape = set_lengths(self, out_features=out_features, in_features=in_features)
        number = isinstance(excitatory, int | np.integer) and not isinstance(excitatory, bool)
        if not number or not 0 <= excitatory <= in_features:
            raise InputError(
                f"excitatory must be an integer from 0 to in_features={in_features}, got "
                f"{excitatory!r}. This is because it is the number of inputs, from the first, with "
                f"weights above zero. Pass a count, such as excitatory={4 * in_features // 5}."
            )
        self.excitatory = int(excitatory)
        self.weight = SCHEMES["kaiming_normal"](key, shape, float_dtype(dtype))

    def effective_weight(self) -> Float[Array, "O I"]:
        """**Returns** the weight that the input meets, with the sign of each input."""
        excites = jnp.arange(self.in_features) < self.excitatory
        size = jnp.abs(mark(self.weight))
        return jnp.where(excites[None, :], size, -size)

    def _of(self, x: Array) -> Array:
        return self.effective_weight() @ x


class LowRankLinear(Projection):
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

        - `rank`: R.
        - `use_bias`: whether there is a `b`.
        - the other arguments as for [`etpc.nn.DaleLinear`][].

        **Raises** `InputError` for a size below 1, or a dtype that is not a float.
        """
        lengths = dict(in_features=in_features, out_features=out_features, rank=rank)
        I, O, R = set_lengths(self, **lengths)
        dtype = float_dtype(dtype)
        keys = jax.random.split(key)
        # So the elements of `U V` have the variance of those of `Linear`.
        self.U = SCHEMES["lecun_normal"](keys[0], (O, R), dtype)
        self.V = SCHEMES["kaiming_normal"](keys[1], (R, I), dtype)
        self.bias = jnp.zeros((O,), dtype) if use_bias else None

    def _of(self, x: Array) -> Array:
        # Written from the right: XLA multiplies the merged factors faster in this layout on CPUs.
        y = (x @ mark(self.V).T) @ mark(self.U).T
        return y if self.bias is None else y + mark(self.bias)
