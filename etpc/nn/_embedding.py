"""The look-up table."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from etpc._errors import InputError
from etpc._jax import mark
from etpc.nn._init import Initializer, float_dtype, initialise, normal, positive_int


class Embedding(eqx.Module):
    """Row number `x` of a table, which is marked as a weight.

    ```pycon
    >>> import jax
    >>> from etpc import nn
    >>> embedding = nn.Embedding(10, 3, key=jax.random.key(0))
    >>> embedding(7).shape
    (3,)

    ```
    """

    weight: Float[Array, "rows O"]
    num_embeddings: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)

    def __init__(
        self,
        num_embeddings: int,
        embedding_size: int,
        *,
        weight_init: Initializer = normal(1.0),
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `num_embeddings`: the number of rows.
        - `embedding_size`: O, the length of a row.
        - `weight_init`: a callable `(key, shape, dtype) -> array`; the shape is `(rows, O)`.
        - `dtype`: of the weight; JAX's default float where None.
        - `key`: a PRNG key for the initial weight.

        **Raises** `InputError` for a size below 1, a dtype that is not a float, or an initialiser
        that returns another shape or dtype.
        """
        self.num_embeddings = positive_int("num_embeddings", num_embeddings)
        self.embedding_size = positive_int("embedding_size", embedding_size)
        shape = (self.num_embeddings, self.embedding_size)
        self.weight = initialise("weight_init", weight_init, key, shape, float_dtype(dtype))

    def __call__(self, x: int | Integer[Array, ""]) -> Float[Array, " O"]:
        """**Returns** row `x`. As in JAX, a negative index counts from the end, and one out of range
        reads the row that is nearest.

        **Raises** `InputError` where `x` is not one integer.
        """
        index = jnp.asarray(x)
        if index.shape != () or not jnp.issubdtype(index.dtype, jnp.integer):
            raise InputError(
                f"Embedding was called with x of type {index.dtype}{list(index.shape)} where one integer "
                "is needed. This is because it reads one row in one time step of one example. Use "
                "`jax.vmap` for several rows."
            )
        return mark(self.weight)[index]
