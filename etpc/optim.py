"""Optax transformations for gradients that arrive step by step. Optax has to be installed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._errors import InputError


class GradientTrace(NamedTuple):
    """The state of [`trace_of_gradient`][etpc.optim.trace_of_gradient]: the decayed sum of past gradients."""

    trace: Any


def trace_of_gradient(decay: float) -> Any:
    """A trace of the gradient, which a reward turns into an update.

    The state is `G <- decay G + g`, for each parameter. The update is `reward * G`, where `reward` is a scalar
    that is passed to `update` by name: over a sequence, with the same weights, this adds up to
    `sum_t r_t sum_{s <= t} decay^(t - s) g_s`. Without a reward the update is `G`, as in TD(lambda).

    One state serves one stream: the gradient is that of a batch of one, or of a carry without a batch axis.

    **Arguments:**

    - `decay`: how much of the trace is left after a step, in [0, 1]. For a discount and a lambda, their product.

    **Returns** an `optax.GradientTransformationExtraArgs`, for use alone or in an `optax.chain`.

    **Raises** `etpc.InputError` where the decay lies outside [0, 1].

    **Source:** the third factor of reward-based e-prop, Bellec et al. 2020, doi:10.1038/s41467-020-17236-y;
    accumulating traces, Sutton and Barto, "Reinforcement Learning", 2018, section 12.2.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> optimizer = etpc.optim.trace_of_gradient(decay=0.5)
    >>> state = optimizer.init(jnp.zeros(2))
    >>> _, state = optimizer.update(jnp.array([4.0, 0.0]), state, reward=0.0)
    >>> update, state = optimizer.update(jnp.array([0.0, 1.0]), state, reward=3.0)
    >>> update.tolist()
    [6.0, 3.0]

    ```
    """
    import optax

    if not 0 <= decay <= 1:
        raise InputError(f"decay must lie in [0, 1], and is {decay!r}.")

    def init(parameters: Any) -> GradientTrace:
        return GradientTrace(jax.tree.map(jnp.zeros_like, parameters))

    def update(
        gradients: Any,
        state: GradientTrace,
        parameters: Any = None,
        *,
        reward: Any = None,
        **_: Any,
    ) -> tuple[Any, GradientTrace]:
        trace = jax.tree.map(
            lambda old, g: (decay * old + g).astype(old.dtype), state.trace, gradients
        )
        if reward is None:
            return trace, GradientTrace(trace)
        if jnp.shape(reward):
            raise InputError(
                f"reward has shape {list(jnp.shape(reward))}, and should be a scalar: one trace of the "
                "gradient serves one stream."
            )
        return jax.tree.map(lambda a: (reward * a).astype(a.dtype), trace), GradientTrace(trace)

    transformation: Any = optax.GradientTransformationExtraArgs
    return transformation(init, update)


__all__ = ["GradientTrace", "trace_of_gradient"]
