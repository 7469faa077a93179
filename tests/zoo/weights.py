"""Operations in which weights meet data, and ways to make a weight of parameters.

Each model is a leaky state that is driven by one operation, unless it says otherwise.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.check import layer, model


@model
def Leaky(x, h, op):
    """`h' = 0.7 h + op(x)`, `y = tanh(h')`."""
    h = 0.7 * h + op(x)
    return jnp.tanh(h), h


@model
def Rolled(x, h, op):
    """`h' = tanh(op(h) + x)`."""
    h = jnp.tanh(op(h) + x)
    return h, h


@layer
def Dilated(x, kernel):
    """Groups, dilation and a padding of its own on each side, by `lax`."""
    return lax.conv_general_dilated(
        x[None],
        kernel,
        window_strides=(1, 2),
        padding=((2, 1), (0, 2)),
        rhs_dilation=(2, 1),
        feature_group_count=2,
    )[0]


@layer
def Take(index, table, pairs, columns):
    """Rows and entries of tables by the input's indices."""
    rows = table[index].sum(0)
    one = pairs[index[0], index[1]]
    return rows + one + jnp.take(columns, index[0], axis=1)


@layer
def SegmentSum(x, weight, source, sink, size):
    """Synapses as a list of edges, which is fixed."""
    return jax.ops.segment_sum(weight * x[source], sink, size)


@layer
def Sparse(x, matrix):
    """A BCOO matrix with fixed indices."""
    return matrix @ x


@layer
def Einsum(x, weight, equation):
    return jnp.einsum(equation, weight, x)


@layer
def Dale(x, weight, sign):
    """Signs are fixed, and rows sum to one."""
    return (jax.nn.softmax(weight, axis=1) * lax.stop_gradient(sign)) @ x


@layer
def Hyper(x, embedding, make):
    """The weight is made by another network of an embedding."""
    return make(embedding).reshape(3, 2) @ x


@layer
def Orthogonal(x, weight):
    """The Cayley transform of a skew matrix, through a linear solver."""
    skew, eye = weight - weight.T, jnp.eye(len(weight))
    return jnp.linalg.solve(eye + skew, eye - skew) @ x


@model
def Fused(x, h, weight):
    """One matrix, of which slices serve the input, the state and the output."""
    enter, recurrent, leave = jnp.split(weight, [2, 5], axis=1)
    h = jnp.tanh(enter @ x + recurrent @ h)
    return leave.T @ h, h


@model
def Tied(x, h, weight):
    """One matrix reads the input in and, transposed, the state out."""
    h = 0.5 * h + weight @ x
    return jnp.tanh(h) @ weight, h


@model
def Interpolated(x, h, values):
    """A table of a function, interpolated at the state (KAN-like)."""
    grid = jnp.linspace(-2.0, 2.0, len(values))
    h = 0.5 * h + jnp.interp(x, grid, values) + 0.1 * jnp.interp(h, grid, values)
    return h, h


@layer
def Mixture(x, router, experts):
    """The input chooses one of several experts by its scores."""
    score = jax.nn.softmax(router(x))
    best, index = lax.top_k(score, 1)
    return best[0] * (experts[index[0]] @ x)


@layer
def Marked(x, weight, bias, mark):
    """`mark` is wherever the user says."""
    return mark(weight) @ x + bias
