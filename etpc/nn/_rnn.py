"""Recurrent cells whose gates read the last output through a matrix.

That matrix is where influence escapes: D-RTRL holds the output that it reads constant, so it is
approximate for each of these cells, and RTRL is exact. All gates act on their own unit. None stands
in front of a matrix, as D-RTRL would cut what it does there.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from etpc._jax import mark
from etpc.nn._init import (
    DType,
    Scheme,
    check_callable,
    check_shape,
    float_dtype,
    initialise,
    optional,
    positive_int,
)


class Cell(eqx.Module):
    """What these cells have in common: one weight of the input and one of the last output, for all
    gates together.
    """

    weight_ih: Float[Array, "G I"]
    weight_hh: Float[Array, "G H"]
    bias: Float[Array, " G"] | None
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    gates: ClassVar[int]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        use_bias: bool = True,
        *,
        weight_init: Scheme = "lecun_normal",
        recurrent_init: Scheme = "lecun_normal",
        bias_init: Scheme = "zeros",
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `input_size`, `hidden_size`: I and H, the lengths of `x` and `h`.
        - `use_bias`: whether there are biases.
        - `weight_init`, `recurrent_init`, `bias_init`: schemes as of [`etpc.nn.init`][], for
            `weight_ih`, `weight_hh` and the biases. They draw all gates at once.
        - `dtype`: of the parameters and the state; JAX's default float where None.
        - `key`: a PRNG key for the initial parameters.

        **Raises** `InputError` for a size below 1, a dtype that is not a float, or an initialiser
        that returns another shape or dtype.
        """
        self.input_size = positive_int("input_size", input_size)
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.dtype = float_dtype(dtype)
        keys = jax.random.split(key, 3)
        G, I, H = self.gates * self.hidden_size, self.input_size, self.hidden_size
        self.weight_ih = initialise("weight_init", weight_init, keys[0], (G, I), self.dtype)
        self.weight_hh = initialise("recurrent_init", recurrent_init, keys[1], (G, H), self.dtype)
        self.bias = optional(use_bias, "bias_init", bias_init, keys[2], (G,), self.dtype)

    def _drives(self, x: Array, h: Array) -> tuple[list[Array], list[Array]]:
        """What the input, with the bias, and the last output give to each gate."""
        name = type(self).__name__
        check_shape(name, "x", x, (self.input_size,))
        check_shape(name, "h", h, (self.hidden_size,))
        from_x = mark(self.weight_ih) @ x
        if self.bias is not None:
            from_x = from_x + mark(self.bias)
        from_h = mark(self.weight_hh) @ h
        return jnp.split(from_x, self.gates), jnp.split(from_h, self.gates)


class OutputCell(Cell):
    """A cell whose whole state is its last output."""

    __init__ = Cell.__init__

    def init_state(self) -> Float[Array, " H"]:
        """**Returns** zeros."""
        return jnp.zeros(self.hidden_size, self.dtype)


class VanillaRNN(OutputCell):
    """`h' = f(W_ih x + W_hh h + b)`. The output is `h'`.

    The matrix `W_hh` is the only memory, and D-RTRL cuts it: what is left is the gradient of the
    current step. Take RTRL or SnAp for this cell.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> cell = nn.VanillaRNN(3, 2, key=jax.random.key(0))
    >>> y, h = cell(jnp.ones(3), cell.init_state())
    >>> y.shape
    (2,)

    ```

    **Source** Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """

    activation: Callable[[Array], Array] = eqx.field(static=True)
    gates: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        use_bias: bool = True,
        *,
        activation: Callable[[Array], Array] = jnp.tanh,
        weight_init: Scheme = "lecun_normal",
        recurrent_init: Scheme = "lecun_normal",
        bias_init: Scheme = "zeros",
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `input_size`, `hidden_size`: I and H, the lengths of `x` and `h`.
        - `use_bias`: whether there is a `b`.
        - `activation`: f, a hashable function of an array that acts on each element.
        - `weight_init`, `recurrent_init`, `bias_init`: schemes as of [`etpc.nn.init`][], for
            `weight_ih`, `weight_hh` and `bias`.
        - `dtype`: of the parameters and the state; JAX's default float where None.
        - `key`: a PRNG key for the initial parameters.

        **Raises** `InputError` for a size below 1, a dtype that is not a float, an activation that
        cannot be called, or an initialiser that returns another shape or dtype.
        """
        super().__init__(
            input_size,
            hidden_size,
            use_bias,
            weight_init=weight_init,
            recurrent_init=recurrent_init,
            bias_init=bias_init,
            dtype=dtype,
            key=key,
        )
        self.activation = check_callable("activation", activation)

    def __call__(
        self, x: Float[Array, " I"], h: Float[Array, " H"]
    ) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
        """**Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `h` has another shape than `(I,)` and `(H,)`.
        """
        (x,), (h,) = self._drives(x, h)
        h = self.activation(x + h)
        return h, h


class MGU(OutputCell):
    """The minimal gated unit: a GRU with one gate for both of its tasks.

    - `f = sigmoid(W_if x + b_f + W_hf h)`, `n = tanh(W_in x + b_n + f * (W_hn h))`
    - `h' = (1 - f) * h + f * n`. The output is `h'`.

    `weight_ih`, `weight_hh` and `bias` hold the two gates in the order f, n. The arguments are those
    of [`etpc.nn.VanillaRNN`][] but `activation`.

    **Source** Zhou et al., "Minimal gated unit for recurrent neural networks", International Journal
    of Automation and Computing 13, 2016, with the gate behind the matrix, `f * (W_hn h)`, where the
    paper has `W_hn (f * h)`: what a gate does in front of a matrix is cut by D-RTRL.
    """

    gates: ClassVar[int] = 2
    __init__ = Cell.__init__

    def __call__(
        self, x: Float[Array, " I"], h: Float[Array, " H"]
    ) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
        """**Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `h` has another shape than `(I,)` and `(H,)`.
        """
        (xf, xn), (hf, hn) = self._drives(x, h)
        f = jax.nn.sigmoid(xf + hf)
        h = h + f * (jnp.tanh(xn + f * hn) - h)
        return h, h
