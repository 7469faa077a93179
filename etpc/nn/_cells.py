"""Recurrent cells that Equinox does not have.

In the first two, the gates read the last output through a matrix. There influence escapes: D-RTRL holds
the output that the matrix reads constant, so it is approximate, and RTRL is exact. No gate stands in
front of a matrix, as D-RTRL would cut what it does there.

In the other cells, each unit remembers itself alone. No matrix reads the hidden state, so nothing escapes a
trace of one number for each weight and unit: D-RTRL gives the gradient of BPTT. In a stack that holds for
the last such layer; the influence of the layers before it enters its states through a matrix, which
D-RTRL cuts.
"""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from etpc.nn._init import SCHEMES, DType, check_callable, check_shape, float_dtype, set_lengths
from etpc.trace import mark


class Cell(eqx.Module):
    """A cell whose state is its last output, with one weight of the input for all gates together."""

    weight_ih: eqx.AbstractVar[Float[Array, "G I"]]
    bias: eqx.AbstractVar[Float[Array, " G"] | None]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    gates: ClassVar[int]

    def init_state(self) -> Float[Array, " H"]:
        """**Returns** zeros."""
        return jnp.zeros(self.hidden_size, self.dtype)

    def __call__(
        self, x: Float[Array, " I"], h: Float[Array, " H"]
    ) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
        """**Returns** the output and the new state, which are equal.

        **Raises** `InputError` where `x` or `h` has another shape than `(I,)` and `(H,)`.
        """
        name = type(self).__name__
        check_shape(name, "x", x, (self.input_size,))
        check_shape(name, "h", h, (self.hidden_size,))
        drives = mark(self.weight_ih) @ x
        if self.bias is not None:
            drives = drives + mark(self.bias)
        h = self._next(jnp.split(drives, self.gates), h)
        return h, h

    @abc.abstractmethod
    def _next(self, drives: list[Array], h: Array) -> Array:
        """The new state, from what the input and the bias give to each gate, and the old state."""


class RecurrentCell(Cell):
    """A cell with one weight of the last output, too, for all gates together."""

    weight_ih: Float[Array, "G I"]
    weight_hh: Float[Array, "G H"]
    bias: Float[Array, " G"] | None

    def _from_state(self, h: Array) -> list[Array]:
        """What the last output gives to each gate."""
        return jnp.split(mark(self.weight_hh) @ h, self.gates)


def _begin(
    cell: Cell, inputs: int, units: int, use_bias: bool, dtype: DType, key: PRNGKeyArray
) -> None:
    """Set the fields that all cells have."""
    I, H = set_lengths(cell, input_size=inputs, hidden_size=units)
    dtype = cell.dtype = float_dtype(dtype)
    G, keys, drawn = cell.gates * H, jax.random.split(key), SCHEMES["lecun_normal"]
    cell.weight_ih = drawn(keys[0], (G, I), dtype)
    if isinstance(cell, RecurrentCell):
        cell.weight_hh = drawn(keys[1], (G, H), dtype)
    cell.bias = jnp.zeros((G,), dtype) if use_bias else None


class GatedCell(Cell):
    """A cell without settings of its own."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        use_bias: bool = True,
        *,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        _begin(self, input_size, hidden_size, use_bias, dtype, key)


class VanillaRNN(RecurrentCell):
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
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `input_size`, `hidden_size`: I and H, the lengths of `x` and `h`.
        - `use_bias`: whether there are biases, which are zero at first.
        - `activation`: f, a hashable function of an array that acts on each element.
        - `dtype`: of the parameters and the state; JAX's default float where None.
        - `key`: a PRNG key for the initial weights, which are of variance 1 / fan-in.

        **Raises** `InputError` for a size below 1, a dtype that is not a float, or an activation that
        cannot be called.
        """
        _begin(self, input_size, hidden_size, use_bias, dtype, key)
        self.activation = check_callable("activation", activation)

    def _next(self, drives: list[Array], h: Array) -> Array:
        return self.activation(drives[0] + self._from_state(h)[0])


class MGU(GatedCell, RecurrentCell):
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
    __init__ = GatedCell.__init__

    def _next(self, drives: list[Array], h: Array) -> Array:
        (xf, xn), (hf, hn) = drives, self._from_state(h)
        f = jax.nn.sigmoid(xf + hf)
        return h + f * (jnp.tanh(xn + f * hn) - h)


class MinGRU(GatedCell):
    """A GRU whose gate and candidate read the input alone. Exact under D-RTRL.

    - `z = sigmoid(W_z x + b_z)`, `n = W_n x + b_n`
    - `h' = (1 - z) * h + z * n`. The output is `h'`.

    `weight_ih` and `bias` hold both in the order z, n. The arguments are those of [`etpc.nn.VanillaRNN`][]
    but `activation`.

    ```pycon
    >>> import etpc, jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> cell = nn.MinGRU(3, 2, key=jax.random.key(0))
    >>> [op.exact for op in etpc.compile(cell, inputs=jnp.zeros(3)).ops]
    [True, True]

    ```

    **Source** Feng et al., "Were RNNs all we needed?", arXiv 2410.01201, 2024, section 3.1.
    """

    weight_ih: Float[Array, "G I"]
    bias: Float[Array, " G"] | None
    gates: ClassVar[int] = 2
    __init__ = GatedCell.__init__

    def _next(self, drives: list[Array], h: Array) -> Array:
        z, n = drives
        return h + jax.nn.sigmoid(z) * (n - h)


class MinLSTM(GatedCell):
    """An LSTM whose gates and candidate read the input alone, and whose gates add up to one. Exact
    under D-RTRL.

    - `f = sigmoid(W_f x + b_f)`, `i = sigmoid(W_i x + b_i)`, `n = W_n x + b_n`
    - `h' = (f * h + i * n) / (f + i)`. The output is `h'`.

    `weight_ih` and `bias` hold the three in the order f, i, n. The arguments are those of
    [`etpc.nn.VanillaRNN`][] but `activation`.

    **Source** Feng et al., "Were RNNs all we needed?", arXiv 2410.01201, 2024, section 3.2. The
    normalised gate is computed as `sigmoid(log f - log i)`, which is finite where both are zero.
    """

    weight_ih: Float[Array, "G I"]
    bias: Float[Array, " G"] | None
    gates: ClassVar[int] = 3
    __init__ = GatedCell.__init__

    def _next(self, drives: list[Array], h: Array) -> Array:
        f, i, n = drives
        return n + jax.nn.sigmoid(jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)) * (h - n)


class IndRNN(Cell):
    """Independent recurrent units: `h' = f(W_ih x + u * h + b)`. The output is `h'`. Exact under
    D-RTRL.

    **Source** Li et al., "Independently recurrent neural network (IndRNN): building a longer and
    deeper RNN", CVPR 2018, equation 2. At first `u` (`weight_hh`) is uniform on [0, 1). The paper clips
    it after each update so that gradients stay bounded; that is left to the optimiser.
    """

    weight_ih: Float[Array, "G I"]
    bias: Float[Array, " G"] | None
    weight_hh: Float[Array, " H"]
    activation: Callable[[Array], Array] = eqx.field(static=True)
    gates: ClassVar[int] = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        use_bias: bool = True,
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments** as for [`etpc.nn.VanillaRNN`][].

        **Raises** `InputError` as `VanillaRNN` does.
        """
        key, recurrent_key = jax.random.split(key)
        _begin(self, input_size, hidden_size, use_bias, dtype, key)
        self.weight_hh = jax.random.uniform(recurrent_key, (self.hidden_size,), self.dtype)
        self.activation = check_callable("activation", activation)

    def _next(self, drives: list[Array], h: Array) -> Array:
        return self.activation(drives[0] + mark(self.weight_hh) * h)
