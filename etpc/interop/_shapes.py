"""Steps of models that have a batch axis, a time axis or a key where a step of one example has none."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def batched(call: Step, axis: int = 0) -> Step:
    """The step of one example of a model that takes a batch.

    **Arguments:**

    - `call`: `call(model, xs, states) -> (ys, new_states)` of a batch.
    - `axis`: the batch axis of inputs, states and outputs.

    **Returns** a function for `step=`. The state to begin with is that of one example, without the batch axis.

    ```pycon
    >>> import jax.numpy as jnp, etpc
    >>> def call(w, xs, states):  # (B, I), (B, O)
    ...     states = 0.9 * states + xs @ w
    ...     return states, states
    >>> step = etpc.interop.batched(call)
    >>> program = etpc.compile(jnp.ones((3, 2)), inputs=jnp.zeros(3), state=jnp.zeros(2), step=step)

    ```
    """

    def step(model: Any, x: Any, state: Any) -> tuple[Any, Any]:
        y, new_state = call(model, _with_axis(x, axis), _with_axis(state, axis))
        return _without_axis(y, axis), _without_axis(new_state, axis)

    return step


def stepwise(call: Step, axis: int = 0) -> Step:
    """One step of a model that takes a sequence: a sequence of one step.

    **Arguments:**

    - `call`: `call(model, xs, state) -> (ys, last_state)` of a sequence.
    - `axis`: the time axis of inputs and outputs.

    **Returns** a function for `step=`.

    ```pycon
    >>> import jax, jax.numpy as jnp, etpc
    >>> def call(w, xs, state):  # (T, I), (O,)
    ...     state, ys = jax.lax.scan(lambda h, x: (0.9 * h + x @ w,) * 2, state, xs)
    ...     return ys, state
    >>> step = etpc.interop.stepwise(call)
    >>> program = etpc.compile(jnp.ones((3, 2)), inputs=jnp.zeros(3), state=jnp.zeros(2), step=step)

    ```
    """

    def step(model: Any, x: Any, state: Any) -> tuple[Any, Any]:
        y, new_state = call(model, _with_axis(x, axis), state)
        return _without_axis(y, axis), new_state

    return step


def keyed(call: Callable[..., tuple[Any, Any]]) -> Step:
    """The step of a model that draws random numbers: its key is a part of the state.

    **Arguments:**

    - `call`: `call(model, x, state, key) -> (y, new_state)`.

    **Returns** a function for `step=`, whose state is the pair `(state, key)`. Each step gets a key of its own, and in
    a batch each example.

    ```pycon
    >>> import jax, jax.numpy as jnp, etpc
    >>> def call(w, x, state, key):
    ...     state = 0.9 * state + x @ w + jax.random.normal(key, state.shape)
    ...     return state, state
    >>> state = (jnp.zeros(2), jax.random.key(0))
    >>> step = etpc.interop.keyed(call)
    >>> program = etpc.compile(jnp.ones((3, 2)), inputs=jnp.zeros(3), state=state, step=step)

    ```
    """

    def step(model: Any, x: Any, state: Any) -> tuple[Any, Any]:
        inner, key = state
        key, step_key = jax.random.split(key)
        y, inner = call(model, x, inner, step_key)
        return y, (inner, key)

    return step


def _with_axis(tree: Any, axis: int) -> Any:
    return jax.tree.map(lambda a: jnp.expand_dims(a, axis), tree)


def _without_axis(tree: Any, axis: int) -> Any:
    return jax.tree.map(lambda a: jnp.squeeze(a, axis), tree)
