"""Layers one after another."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from etpc.errors import InputError


class Sequential(eqx.Module):
    """Layers one after another, with and without state.

    A layer that has `init_state` is called as `layer(x, state) -> (y, new_state)`. An
    `eqx.nn.GRUCell` is called as `cell(x, h) -> h` and an `eqx.nn.LSTMCell` as
    `cell(x, (h, c)) -> (h, c)`: their states begin with zeros, and their output is the new `h`. The
    state of an `eqx.nn.Dropout` is a PRNG key, which is split at each step; evaluate by
    [`program.predict`][etpc.Program.predict] of `eqx.nn.inference_mode(model)`. Any other callable is
    called as `layer(x) -> y`: a module of Equinox, or a function such as `jax.nn.relu`.
    `eqx.nn.Sequential` has no way to pass these states.

    Reports name a state by the number of its layer, as `[0]` or `[3].V`. For names of your own, write a
    module whose state is a named tuple or a dict.

    ```pycon
    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> keys = jax.random.split(jax.random.key(0))
    >>> model = nn.Sequential(
    ...     [eqx.nn.GRUCell(3, 8, key=keys[0]), jnp.tanh, eqx.nn.Linear(8, 2, key=keys[1])]
    ... )
    >>> y, state = model(jnp.ones(3), model.init_state())
    >>> y.shape, [None if s is None else s.shape for s in state]
    ((2,), [(8,), None, None])

    ```
    """

    layers: tuple[Callable[..., Any], ...]

    def __init__(self, layers: Sequence[Callable[..., Any]]):
        """**Arguments:**

        - `layers`: callables, the first of which gets the input.

        **Raises** `InputError` where there is none, or one that cannot be called.
        """
        self.layers = tuple(layers)
        wrong = [n for n, layer in enumerate(self.layers) if not callable(layer)]
        if wrong or not self.layers:
            what = f"layer {wrong[0]} is {self.layers[wrong[0]]!r}" if wrong else "there is none"
            raise InputError(
                f"layers must be callables, but {what}. This is because each is called with the output "
                "of the one before. Pass layers, modules or functions."
            )

    def init_state(self) -> tuple[Any, ...]:
        """**Returns** the initial state of each layer, `None` for a layer without one."""
        return tuple(_initial_state(layer, n) for n, layer in enumerate(self.layers))

    def __call__(self, x: Any, state: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """**Returns** the output of the last layer, and the new state of each layer.

        **Raises** `InputError` where there are more or fewer states than layers.
        """
        if len(state) != len(self.layers):
            raise InputError(
                f"Sequential was called with {len(state)} states where it has {len(self.layers)} layers. "
                "This is because each layer has one, or None. Start from `init_state()`."
            )
        after = []
        for layer, layer_state in zip(self.layers, state, strict=True):
            if hasattr(layer, "init_state"):
                x, layer_state = layer(x, layer_state)
            elif isinstance(layer, eqx.nn.GRUCell):
                x = layer_state = layer(x, layer_state)
            elif isinstance(layer, eqx.nn.LSTMCell):
                x, _ = layer_state = layer(x, layer_state)
            elif isinstance(layer, eqx.nn.Dropout):
                layer_state, key = jax.random.split(layer_state)
                x = layer(x, key=key)
            else:
                x = layer(x)
            after.append(layer_state)
        return x, tuple(after)


def _initial_state(layer: Any, number: int) -> Any:
    if isinstance(layer, eqx.nn.Dropout):
        return jax.random.key(number)
    if isinstance(layer, eqx.nn.GRUCell | eqx.nn.LSTMCell):
        zero = jnp.zeros(layer.hidden_size, layer.weight_hh.dtype)
        return (zero, zero) if isinstance(layer, eqx.nn.LSTMCell) else zero
    return layer.init_state() if hasattr(layer, "init_state") else None
