"""The layer with few connections."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse
from jaxtyping import Array, Float, Int, PRNGKeyArray

from etpc.errors import InputError
from etpc.nn._init import DType, float_dtype, known, set_lengths
from etpc.nn._linear import Projection
from etpc.trace import mark

Pair = tuple[np.ndarray, np.ndarray]
Indices = Sequence[int] | np.ndarray | Array
Matrix = scipy.sparse.sparray | scipy.sparse.spmatrix


class SparseLinear(Projection):
    """`y = W x + b` with U connections that are fixed; a weight for each of them, and `b`, are
    marked.

    The product is that of `jax.experimental.sparse.BCOO`, for which D-RTRL keeps one number for
    each connection and state of a block, and ES-D-RTRL factors as for `eqx.nn.Linear`. What
    `weight[u]` connects is `indices[u]`, a pair (output, input), in order.

    ```pycon
    >>> import jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> layer = nn.SparseLinear(3, 2, ([0, 1, 1], [2, 0, 1]), key=jax.random.key(0))
    >>> layer.weight.shape, layer(jnp.ones(3)).shape
    ((3,), (2,))

    ```
    """

    weight: Float[Array, " U"]
    bias: Float[Array, " O"] | None
    indices: Int[Array, "U 2"]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        connections: tuple[Indices, Indices] | Matrix | float | int,
        use_bias: bool = True,
        *,
        dtype: DType = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `connections`: which inputs feed which outputs. Either a pair of integer arrays (rows,
            columns): outputs and inputs. Or a matrix of `scipy.sparse` of shape `(O, I)`, with the
            initial weights as its stored values. Or a density in (0, 1], the probability of each
            connection, to be drawn with `key`. Weights that are not given are normal with variance
            `2 / fan_in`, the number of connections of the output.
        - `use_bias`: whether there is a `b`.
        - the other arguments as for [`etpc.nn.DaleLinear`][].

        **Raises** `InputError` for a size below 1, connections that are none, lie outside of the
        matrix or are given twice, or a dtype that is not a float.
        """
        I, O = set_lengths(self, in_features=in_features, out_features=out_features)
        dtype = float_dtype(dtype)
        keys = jax.random.split(key, 3)
        values = None
        if isinstance(connections, Matrix):
            matrix = scipy.sparse.coo_array(connections)
            if matrix.shape != (O, I):
                raise InputError(
                    f"connections is a matrix of shape {matrix.shape} where {(O, I)} is needed. This is "
                    "because rows are outputs and columns inputs. Pass its transpose, or other sizes."
                )
            rows, columns, values = matrix.row, matrix.col, matrix.data
        elif isinstance(connections, tuple) and len(connections) == 2:
            rows, columns = _integers(*connections)
        else:
            rows, columns = _drawn(connections, O, I, keys[2])
        order = _order(rows, columns, O, I)
        rows, columns = rows[order], columns[order]
        self.indices = jnp.asarray(np.stack([rows, columns], 1), jnp.int32)

        shape = rows.shape
        if values is not None:
            self.weight = jnp.asarray(values[order], dtype)
        else:
            fan_in = np.bincount(rows, minlength=O)[rows]
            scale = jnp.asarray(np.sqrt(2 / fan_in), dtype)
            self.weight = scale * jax.random.normal(keys[0], shape, dtype)
        self.bias = jnp.zeros((O,), dtype) if use_bias else None

    def _of(self, x: Array) -> Array:
        matrix = sparse.BCOO(
            (mark(self.weight), self.indices),
            shape=(self.out_features, self.in_features),
            indices_sorted=True,
            unique_indices=True,
        )
        y = matrix @ x
        return y if self.bias is None else y + mark(self.bias)


def _integers(rows: Indices, columns: Indices) -> Pair:
    rows, columns = np.asarray(rows), np.asarray(columns)
    whole = all(np.issubdtype(a.dtype, np.integer) and a.ndim == 1 for a in (rows, columns))
    if not whole or rows.shape != columns.shape:
        raise InputError(
            f"connections is a pair of {rows.dtype}{list(rows.shape)} and {columns.dtype}"
            f"{list(columns.shape)} where two integer arrays of one length are needed. This is because "
            "each connection has an output and an input. Pass (rows, columns)."
        )
    return rows, columns


def _drawn(density: Any, O: int, I: int, key: PRNGKeyArray) -> Pair:
    """Each connection with the same probability, in time and memory of their number."""
    if (
        isinstance(density, bool)
        or not isinstance(density, int | float | np.floating)
        or not 0 < density <= 1
    ):
        raise InputError(
            f"connections must be a pair of index arrays, a matrix of scipy.sparse, or a density in "
            f"(0, 1], got {density!r}. This is because they say which inputs feed which outputs. Pass "
            "one of the three."
        )
    if not known(key):
        raise InputError(
            "connections cannot be drawn where key is traced, as under `eqx.filter_vmap`. This is "
            "because their number depends on it. Draw (rows, columns) before, and pass those."
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    counts = rng.binomial(I, float(density), O)
    columns = [rng.choice(I, count, replace=False, shuffle=False) for count in counts]
    return np.repeat(np.arange(O), counts), np.concatenate(columns)


def _order(rows: np.ndarray, columns: np.ndarray, O: int, I: int) -> np.ndarray:
    """What sorts connections by row and column, after a check of them."""
    if rows.size == 0:
        raise InputError(
            "connections has no connection. This is because a layer without one has no weight. Pass at "
            "least one, or a higher density."
        )
    outside = (rows < 0) | (rows >= O) | (columns < 0) | (columns >= I)
    if outside.any():
        first = int(np.argmax(outside))
        raise InputError(
            f"connections has the pair {(int(rows[first]), int(columns[first]))}, outside of a matrix of shape "
            f"{(O, I)}. This is because rows are outputs and columns inputs. Pass indices in range."
        )
    place = rows.astype(np.int64) * I + columns.astype(np.int64)
    order = np.argsort(place, kind="stable")
    repeated = np.flatnonzero(np.diff(place[order]) == 0)
    if repeated.size:
        row, column = divmod(int(place[order][repeated[0]]), I)
        raise InputError(
            f"connections has the pair {(row, column)} more than once. This is because each connection "
            "has one weight. Pass each pair once."
        )
    return order
