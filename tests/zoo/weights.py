"""Operations in which weights meet data, and ways to make a weight of parameters.

Each model is a leaky state that is driven by one operation, unless it says otherwise.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import sparse

from tests.zoo.check import weights


class Leaky(eqx.Module):
    """`h' = 0.7 h + op(x)`, `y = tanh(h')`."""

    op: Callable

    def __call__(self, x, h):
        h = 0.7 * h + self.op(x)
        return jnp.tanh(h), h


class Rolled(eqx.Module):
    """`h' = tanh(op(h) + x)`."""

    op: Callable

    def __call__(self, x, h):
        h = jnp.tanh(self.op(h) + x)
        return h, h


class ConvLSTM(eqx.Module):
    """Shi et al., 2015."""

    gates: eqx.nn.Conv1d
    peephole: jax.Array

    def __init__(self, channels, size, length, key):
        self.gates = eqx.nn.Conv1d(channels + size, 4 * size, 3, padding=1, key=key)
        self.peephole = weights(size, length)

    def __call__(self, x, state):
        h, c = state
        i, f, g, o = jnp.split(self.gates(jnp.concatenate([x, h])), 4)
        c = jax.nn.sigmoid(f + self.peephole * c) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, (h, c)


class Dilated(eqx.Module):
    """Groups, dilation and a padding of its own on each side, by `lax`."""

    kernel: jax.Array

    def __call__(self, x):
        return lax.conv_general_dilated(
            x[None],
            self.kernel,
            window_strides=(1, 2),
            padding=((2, 1), (0, 2)),
            rhs_dilation=(2, 1),
            feature_group_count=2,
        )[0]


class ChannelsLast(eqx.Module):
    kernel: jax.Array

    def __call__(self, x):
        return lax.conv_general_dilated(
            x[None],
            self.kernel,
            (1,),
            ((0, 1),),
            lhs_dilation=(2,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )[0]


class Convolve(eqx.Module):
    """`jnp.convolve` flips its kernel."""

    kernel: jax.Array

    def __call__(self, x):
        return jnp.convolve(x, self.kernel, mode="same")


class Take(eqx.Module):
    """Rows and entries of tables by the input's indices."""

    table: jax.Array
    pairs: jax.Array
    columns: jax.Array

    def __call__(self, index):
        rows = self.table[index].sum(0)
        one = self.pairs[index[0], index[1]]
        return rows + one + jnp.take(self.columns, index[0], axis=1)


class AlongAxis(eqx.Module):
    table: jax.Array

    def __call__(self, index):
        return jnp.take_along_axis(self.table, index[None, :], axis=0)[0]


class SegmentSum(eqx.Module):
    """Synapses as a list of edges, which is fixed."""

    weight: jax.Array
    source: np.ndarray
    sink: np.ndarray
    size: int = eqx.field(static=True)

    def __call__(self, x):
        return jax.ops.segment_sum(self.weight * x[self.source], self.sink, self.size)


class Sparse(eqx.Module):
    """A BCOO matrix with fixed indices."""

    matrix: sparse.BCOO

    def __call__(self, x):
        return self.matrix @ x


class Einsum(eqx.Module):
    weight: jax.Array
    equation: str = eqx.field(static=True)

    def __call__(self, *data):
        return jnp.einsum(self.equation, self.weight, *data)


class Dale(eqx.Module):
    """Signs are fixed, and rows sum to one."""

    weight: jax.Array
    sign: jax.Array

    def __call__(self, x):
        return (jax.nn.softmax(self.weight, axis=1) * lax.stop_gradient(self.sign)) @ x


class Hyper(eqx.Module):
    """The weight is made by another network of an embedding."""

    embedding: jax.Array
    make: eqx.nn.MLP

    def __call__(self, x):
        return self.make(self.embedding).reshape(3, 2) @ x


class Orthogonal(eqx.Module):
    """The Cayley transform of a skew matrix, through a linear solver."""

    weight: jax.Array

    def __call__(self, x):
        skew, eye = self.weight - self.weight.T, jnp.eye(len(self.weight))
        return jnp.linalg.solve(eye + skew, eye - skew) @ x


class Fused(eqx.Module):
    """One matrix, of which slices serve the input, the state and the output."""

    weight: jax.Array

    def __call__(self, x, h):
        enter, recurrent, leave = jnp.split(self.weight, [2, 5], axis=1)
        h = jnp.tanh(enter @ x + recurrent @ h)
        return leave.T @ h, h


class Tied(eqx.Module):
    """One matrix reads the input in and, transposed, the state out."""

    weight: jax.Array

    def __call__(self, x, h):
        h = 0.5 * h + self.weight @ x
        return jnp.tanh(h) @ self.weight, h


class Interpolated(eqx.Module):
    """A table of a function, interpolated at the state (KAN-like)."""

    values: jax.Array

    def __call__(self, x, h):
        grid = jnp.linspace(-2.0, 2.0, len(self.values))
        h = 0.5 * h + jnp.interp(x, grid, self.values) + 0.1 * jnp.interp(h, grid, self.values)
        return h, h


class Mixture(eqx.Module):
    """The input chooses one of several experts by its scores."""

    router: eqx.nn.Linear
    experts: jax.Array

    def __call__(self, x):
        score = jax.nn.softmax(self.router(x))
        best, index = lax.top_k(score, 1)
        return best[0] * (self.experts[index[0]] @ x)


class Marked(eqx.Module):
    """`mark` is wherever the user says."""

    weight: jax.Array
    bias: jax.Array
    mark: Callable

    def __call__(self, x):
        return self.mark(self.weight) @ x + self.bias
