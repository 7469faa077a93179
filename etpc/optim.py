"""Optax transformations for gradients that arrive step by step. Optax has to be installed."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .errors import InputError


class GradientTrace(NamedTuple):
    """The state of [`trace_of_gradient`][etpc.optim.trace_of_gradient]: the decayed sum of past gradients."""

    trace: Any


def trace_of_gradient(decay: float) -> Any:
    """A trace of the gradient, which a reward turns into an update.

    The state is `G <- decay G + g`, for each parameter. The update is `reward * G`, where `reward` is a scalar
    that is passed to `update` by name: over a sequence, with the same weights, this adds up to
    `sum_t r_t sum_{s <= t} decay^(t - s) g_s`. Without a reward the update is `G`, as in TD(lambda).

    One state serves one stream: the gradient is that of a batch of one, or of a carry without a batch axis. Where
    `reset`, a scalar that is passed to `update` by name, is true, an episode begins: nothing is left of the trace
    before `g` is added.

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

    if not 0 <= _real(decay) <= 1:
        raise InputError(f"decay must lie in [0, 1], and is {decay!r}.")

    def init(parameters: Any) -> GradientTrace:
        return GradientTrace(jax.tree.map(jnp.zeros_like, parameters))

    def update(
        gradients: Any,
        state: GradientTrace,
        parameters: Any = None,
        *,
        reward: Any = None,
        reset: Any = False,
        **_: Any,
    ) -> tuple[Any, GradientTrace]:
        _check_scalar("reset", reset)
        left = jnp.where(reset, 0.0, decay)
        trace = jax.tree.map(
            lambda old, g: (left * old + g).astype(old.dtype), state.trace, gradients
        )
        if reward is None:
            return trace, GradientTrace(trace)
        _check_scalar("reward", reward)
        return jax.tree.map(lambda a: (reward * a).astype(a.dtype), trace), GradientTrace(trace)

    transformation: Any = optax.GradientTransformationExtraArgs
    return transformation(init, update)


def obgd(step_size: float = 1.0, kappa: float = 2.0) -> Any:
    """Overshooting-bounded gradient descent: the step of TD(lambda), made smaller where it would overshoot.

    What comes in is the eligibility trace `z`, as [`trace_of_gradient`][etpc.optim.trace_of_gradient] gives it
    without a reward; `update` also takes the temporal-difference error `error`, a scalar, by name. What comes out is
    `a error z`, with `a = step_size / max(1, step_size kappa max(|error|, 1) ||z||_1)`, where the norm is that
    of all parameters together. It is added to the parameters: `z` is a trace of the gradient of what is to become
    larger where the error is positive, the value or the logarithm of the policy, and not of a loss.

    So a value that is linear in its parameters, with features of at most 1 in absolute value, changes by at most
    `min(|error|, 1) / kappa`: it does not overshoot its target where `kappa` is 1 or more.

    **Arguments:**

    - `step_size`: the step where it is not bounded, > 0.
    - `kappa`: how much smaller than the bound the step is, > 0. The paper has 2 for values and 3 for policies.

    **Returns** an `optax.GradientTransformationExtraArgs` without a state.

    **Raises** `etpc.InputError` where an argument is not a finite number > 0, and where `update` gets no scalar
    error.

    **Source:** Elsayed, Vasan and Mahmood, "Streaming deep reinforcement learning finally works", 2024,
    arXiv 2410.14606, algorithm 3 (ObGD). Deviation: there one optimiser holds the trace too.

    ```pycon
    >>> import etpc, jax.numpy as jnp, optax
    >>> optimizer = optax.chain(etpc.optim.trace_of_gradient(decay=0.5), etpc.optim.obgd(1.0, kappa=2.0))
    >>> state = optimizer.init(jnp.zeros(2))
    >>> update, state = optimizer.update(jnp.array([3.0, -1.0]), state, error=2.0)
    >>> update.tolist()  # 2 [3, -1] / (2 * 2 * 4)
    [0.375, -0.125]

    ```
    """
    import optax

    for name, value in (("step_size", step_size), ("kappa", kappa)):
        if not 0 < _real(value) < math.inf:
            raise InputError(f"{name} must be a finite number > 0, and is {value!r}.")

    def init(parameters: Any) -> Any:
        return optax.EmptyState()

    def update(
        traces: Any, state: Any, parameters: Any = None, *, error: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        if error is None:
            raise InputError(
                "obgd needs the temporal-difference error. Pass it by name: update(..., error=delta)."
            )
        _check_scalar("error", error)
        norm = sum(jnp.abs(z).sum() for z in jax.tree.leaves(traces))
        size = step_size / jnp.maximum(
            1.0, step_size * kappa * jnp.maximum(jnp.abs(error), 1.0) * norm
        )
        return jax.tree.map(lambda z: (size * error * z).astype(z.dtype), traces), state

    transformation: Any = optax.GradientTransformationExtraArgs
    return transformation(init, update)


def _real(value: Any) -> float:
    """A real number as one of Python; of anything else NaN, which lies in no range."""
    try:
        return float(1.0 * value)
    except (TypeError, ValueError):
        return math.nan


def _check_scalar(name: str, value: Any) -> None:
    if jnp.shape(value):
        raise InputError(
            f"{name} has shape {list(jnp.shape(value))}, and should be a scalar: one trace of the "
            "gradient serves one stream."
        )


__all__ = ["GradientTrace", "obgd", "trace_of_gradient"]
