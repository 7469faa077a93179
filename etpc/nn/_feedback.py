"""Layers that pass credit back by other weights than their own."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from etpc.errors import SelectionError


class Feedback(eqx.Module):
    """A layer `layer(x, ...)`, whose input gets its credit through the weights of another one."""

    layer: Any
    back: Any

    def init_state(self) -> Any:
        return self.layer.init_state()

    def __call__(self, x: Any, *args: Any, **options: Any) -> Any:
        stop = lambda tree: jax.tree.map(
            lambda a: jax.lax.stop_gradient(a) if eqx.is_array(a) else a, tree
        )
        given = stop((args, options))
        own = self.layer(stop(x), *args, **options)
        back = stop(self.back)(x, *given[0], **given[1])
        passed = lambda a, b: a + (b - jax.lax.stop_gradient(b)) if eqx.is_inexact_array(a) else a
        return jax.tree.map(passed, own, back)


def feedback(model: Any, where: Callable[[Any], Any], key: PRNGKeyArray) -> Any:
    """A model whose readout passes credit back through fixed random weights.

    Its values are the same, and so are the gradients of the parameters of the readout. What the readout reads gets its
    credit by weights of variance 1 / I in the place of its own, as in random e-prop, RFLO and feedback alignment.

    - `where`: the layer or the layers, as in `lambda m: m.readout`: modules whose first argument is what gets the
        credit, such as `eqx.nn.Linear` and [`etpc.nn.LeakyRateReadout`][].
    - `key`: a PRNG key for the random weights. These are parameters of the returned model, and their gradient is zero.

    **Returns** the model with these layers replaced. It costs one product more for each layer. A claim of a program is
    about the returned model: `"exact"` is the gradient that reverse mode gives with this feedback.
    [`EProp`][etpc.EProp] and [`RFLO`][etpc.RFLO] have random feedback without a change of the model.

    **Raises** `SelectionError` where `where` returns something else than layers with a weight matrix.

    ```pycon
    >>> import equinox as eqx, etpc, jax, jax.numpy as jnp
    >>> layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    >>> other = etpc.feedback(layer, lambda m: m, jax.random.key(1))
    >>> x = jnp.ones(3)
    >>> bool(jnp.array_equal(layer(x), other(x)))
    True
    >>> bool(jnp.array_equal(jax.jacobian(other)(x), layer.weight))
    False

    ```

    **Source** Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep learning",
    Nature Communications 7, 13276, 2016; of recurrent networks Bellec et al. 2020 and Murray 2019.
    """
    keys = iter(jax.random.split(key, len(jax.tree.leaves(model)) + 1))

    def drawn(a: Any) -> Any:
        if not (eqx.is_inexact_array(a) and a.ndim > 1):
            return a
        return jax.random.normal(next(keys), a.shape, a.dtype) / jnp.sqrt(a[0].size).astype(a.dtype)

    def replaced(layer: Any) -> Feedback:
        arrays = [a for a in jax.tree.leaves(layer) if eqx.is_inexact_array(a) and a.ndim > 1]
        if not (isinstance(layer, eqx.Module) and callable(layer) and arrays):
            raise SelectionError(
                f"where= gives {type(layer).__name__}, which is no layer with a weight matrix. Return a module that is "
                "called with its input, such as `lambda m: m.readout`."
            )
        return Feedback(layer, jax.tree.map(drawn, layer))

    is_layer = lambda node: isinstance(node, eqx.Module)
    found = where(model)
    if is_layer(found) and found is model:
        return replaced(model)
    return eqx.tree_at(where, model, replace_fn=replaced)
