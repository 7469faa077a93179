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


class DynamicSlice(eqx.Module):
    table: jax.Array

    def __call__(self, index):
        return lax.dynamic_slice_in_dim(self.table, index, 3)


class Scatter(eqx.Module):
    """The events of a step add their weight where they land."""

    weight: jax.Array
    size: int = eqx.field(static=True)

    def __call__(self, event):
        return jnp.zeros(self.size).at[event].add(self.weight)


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


class SparseData(eqx.Module):
    """The same, with its data as the parameter and its indices as part of the program."""

    data: jax.Array
    indices: tuple = eqx.field(static=True)
    shape: tuple = eqx.field(static=True)

    def __call__(self, x):
        return sparse.BCOO((self.data, jnp.asarray(self.indices)), shape=self.shape) @ x


class Einsum(eqx.Module):
    weight: jax.Array
    equation: str = eqx.field(static=True)

    def __call__(self, *data):
        return jnp.einsum(self.equation, self.weight, *data)


class FoldedLoRA(eqx.Module):
    """The product of the factors is added to the weight."""

    W: jax.Array
    A: jax.Array
    B: jax.Array

    def __call__(self, x):
        return (self.W + self.A @ self.B) @ x


class AppliedLoRA(eqx.Module):
    """Data pass through one factor and then through the other."""

    W: jax.Array
    A: jax.Array
    B: jax.Array

    def __call__(self, x):
        return self.W @ x + self.A @ (self.B @ x)


class Masked(eqx.Module):
    weight: jax.Array
    mask: np.ndarray

    def __call__(self, x):
        return jnp.where(self.mask, self.weight, 0.0) @ x


class Quantised(eqx.Module):
    """Four levels per unit, with a straight-through derivative."""

    weight: jax.Array

    def __call__(self, x):
        rounded = jnp.round(4 * self.weight) / 4
        return (self.weight + lax.stop_gradient(rounded - self.weight)) @ x


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


class Twice(eqx.Module):
    """One matrix is used twice in the recurrence."""

    weight: jax.Array

    def __call__(self, x, h):
        h = jnp.tanh(self.weight @ jnp.tanh(self.weight @ h) + x)
        return h, h


class Bilinear(eqx.Module):
    """Data on both sides of the weight."""

    weight: jax.Array

    def __call__(self, x):
        return jnp.stack([x @ W @ x for W in self.weight])


class Elementwise(eqx.Module):
    """Weights that meet data in operations that are not linear in them."""

    power: jax.Array
    floor: jax.Array
    slope: jax.Array
    shift: jax.Array

    def __call__(self, x, h):
        drive = jnp.abs(x) ** self.power + jnp.arctan2(x, self.shift)
        h = jnp.maximum(0.6 * h + drive, self.floor) / self.slope
        return jnp.logaddexp(h, self.shift), h


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
