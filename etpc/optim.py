"""What learning from a stream takes besides gradients: Optax transformations for gradients that arrive step by step,
which need Optax, and running statistics that observations and rewards are normalised by."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from .errors import InputError, checked_count


class GradientTrace(NamedTuple):
    """The state of [`trace_of_gradient`][etpc.optim.trace_of_gradient]: the decayed sum of past gradients."""

    trace: Any


def trace_of_gradient(decay: float) -> Any:
    """A trace of the gradient, which a reward turns into an update.

    The state is `G <- decay G + g`, for each parameter. The update is `reward * G`, where `reward` is a scalar
    that is passed to `update` by name: over a sequence, with the same weights, this adds up to
    `sum_t r_t sum_{s <= t} decay^(t - s) g_s`. Without a reward the update is `G`, as in TD(lambda).

    One state serves one stream: the gradient is that of a batch of one, or of a carry without a batch axis. Several
    streams have a state each, by `jax.vmap` of `update`. Where `reset`, a scalar that is passed to `update` by name,
    is true, an episode begins: nothing is left of the trace before `g` is added.

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

    _check_fraction("decay", decay)

    init = lambda parameters: GradientTrace(jax.tree.map(jnp.zeros_like, parameters))

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

        def moved(path: Any, old: Array, g: Array) -> Array:
            _check_shape(f"the gradient of {jax.tree_util.keystr(path)}", g, old.shape)
            # A product with zero would keep what is not finite.
            return jnp.where(reset, g, decay * old + g).astype(old.dtype)

        trace = jax.tree.map_with_path(moved, state.trace, gradients)
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
    return transformation(lambda parameters: optax.EmptyState(), update)


class RunningStatistics(eqx.Module):
    """Mean and variance of all samples so far, each entry by itself: a PyTree, for a `lax.scan` or a loop in Python.

    - `mean`, `variance`: of the samples, [*shape]; zero before the first one. The variance is the mean squared
        difference from the mean.
    - `count`: how many samples there were, as a float.
    - `lost`: what rounding has left out of these three, and the next update adds (compensated summation). So in
        float32 too the last of 10^12 samples counts as the first one does.

    Samples are taken one by one, or many at once, and none is kept. Squares are those of differences from the mean, so
    that a mean that is large beside the deviation does no harm in float32. A sample that is not finite makes its entry
    NaN from then on.

    **Arguments:**

    - `shape`: of a sample.

    **Source:** Welford 1962, doi:10.1080/00401706.1962.10490022, for one sample; Chan, Golub and LeVeque 1983,
    doi:10.1080/00031305.1983.10483115, for many. Observations are normalised so, each before it is used, in Elsayed,
    Vasan and Mahmood, "Streaming deep reinforcement learning finally works", 2024, arXiv 2410.14606.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> seen = etpc.optim.RunningStatistics(shape=(2,))
    >>> seen = seen.update(jnp.array([1.0, 5.0])).update(jnp.array([3.0, 5.0]))
    >>> seen.mean.tolist(), seen.variance.tolist()
    ([2.0, 5.0], [1.0, 0.0])
    >>> print(seen.normalise(jnp.array([3.0, 5.0])))  # by a deviation of 2 ** 0.5
    [0.70710677 0.        ]

    ```
    """

    mean: Array
    variance: Array
    count: Array
    lost: tuple[Array, Array, Array]

    def __init__(self, shape: tuple[int, ...] = ()):
        self.mean, self.variance, self.count = jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(())
        self.lost = self.mean, self.variance, self.count

    def update(self, samples: ArrayLike) -> "RunningStatistics":
        """With more samples: one, [*shape], or many, with any leading axes, such as streams or steps; also none.

        **Raises** `etpc.InputError` where the shape is another.
        """
        lead = self._lead("samples", samples)
        number = math.prod(lead)
        if not number:
            return self
        samples = jnp.asarray(samples, self.mean.dtype).reshape(number, *self.mean.shape)
        share = number / (self.count + self.lost[2] + number)
        apart = samples - self.mean[None]
        shift = apart.mean(0)
        spread = jnp.square(apart - shift[None]).mean(0) + (1 - share) * jnp.square(shift)
        more = share * shift, share * (spread - self.variance), jnp.full_like(self.count, number)
        old = self.mean, self.variance, self.count
        more = [a + lost for a, lost in zip(more, self.lost, strict=True)]
        new = [a + b for a, b in zip(old, more, strict=True)]
        lost = tuple(b - (after - a) for a, b, after in zip(old, more, new, strict=True))
        return eqx.tree_at(lambda s: (s.mean, s.variance, s.count, s.lost), self, (*new, lost))

    def _lead(self, name: str, x: ArrayLike) -> tuple[int, ...]:
        """The leading axes of samples."""
        shape, own = jnp.shape(x), self.mean.shape
        if shape[len(shape) - len(own) :] != own:
            raise InputError(
                f"{name} has shape {list(shape)}, and should end in that of a sample, {list(own)}."
            )
        return shape[: len(shape) - len(own)]

    @property
    def deviation(self) -> Array:
        """The standard deviation, [*shape]: the root of the unbiased variance, which counts as 1 before there are two
        samples, and of 1e-8 more."""
        unbiased = self.variance * (self.count / jnp.maximum(self.count - 1, 1))
        return jnp.sqrt(jnp.where(self.count < 2, 1.0, unbiased) + 1e-8)

    def normalise(self, x: ArrayLike) -> Array:
        """The difference of x from the mean in deviations, which count as 1 before there are two samples; x is one,
        or many with leading axes.

        **Raises** `etpc.InputError` where the shape is another.
        """
        self._lead("x", x)
        mean, deviation = (jnp.broadcast_to(a, jnp.shape(x)) for a in (self.mean, self.deviation))
        return (jnp.asarray(x, mean.dtype) - mean) / deviation


class RewardScale(eqx.Module):
    """Rewards in units of the deviation of their discounted sums: a PyTree, for a `lax.scan` or a loop in Python.

    - `returns`: the [statistics][etpc.optim.RunningStatistics] of `u_t = r_t + discount u_(t-1)`, over all steps and
        streams. Where an episode begins, the sum begins with 0.
    - `discounted`: that sum, of the episode that goes on; [], or [B].

    Rewards are scaled and not shifted: what is subtracted from each would change which policy is the best one.

    **Arguments:**

    - `discount`: of the agent, in [0, 1].
    - `batch_size`: the number B of streams; `None` for one without a batch axis.

    **Raises** `etpc.InputError` where the discount lies outside [0, 1], or the batch size is no int >= 1.

    **Source:** Elsayed, Vasan and Mahmood, "Streaming deep reinforcement learning finally works", 2024,
    arXiv 2410.14606. Deviation: there the sum begins anew with the last reward of an episode, and here after it.

    ```pycon
    >>> import etpc
    >>> scale = etpc.optim.RewardScale(discount=0.5)
    >>> for reward, over in ((2.0, False), (2.0, True), (4.0, False)):
    ...     scale = scale.update(reward, over)
    >>> scale.returns.mean.item()  # of 2, 3 and 4
    3.0
    >>> print(scale.normalise(4.0).round(3))
    4.0

    ```
    """

    discount: float = eqx.field(static=True)
    returns: RunningStatistics
    discounted: Array

    def __init__(self, discount: float, batch_size: int | None = None):
        _check_fraction("discount", discount)
        self.discount, self.returns = float(discount), RunningStatistics()
        lead = () if batch_size is None else (checked_count("batch_size", batch_size),)
        self.discounted = jnp.zeros(lead)

    def update(self, reward: ArrayLike, over: ArrayLike) -> "RewardScale":
        """With the reward of one more step, and whether the episode is over with it; both [], or [B].

        **Raises** `etpc.InputError` where one of them has another shape.
        """
        _check_shape("reward", reward, self.discounted.shape)
        _check_shape("over", over, self.discounted.shape)
        reward = jnp.asarray(reward, self.discounted.dtype)
        discounted = self.discount * self.discounted + reward
        after = self.returns.update(discounted), jnp.where(over, 0.0, discounted)
        return eqx.tree_at(lambda s: (s.returns, s.discounted), self, after)

    def normalise(self, reward: ArrayLike) -> Array:
        """A reward, or many, in units of the deviation."""
        return jnp.asarray(reward, self.discounted.dtype) / self.returns.deviation


def _check_fraction(name: str, value: Any) -> None:
    if not 0 <= _real(value) <= 1:
        raise InputError(f"{name} must lie in [0, 1], and is {value!r}.")


def _real(value: Any) -> float:
    """A real number as one of Python; of anything else NaN, which lies in no range."""
    try:
        return float(1.0 * value)
    except (TypeError, ValueError):
        return math.nan


def _check_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    if jnp.shape(value) != shape:
        raise InputError(
            f"{name} has shape {list(jnp.shape(value))}, and should have {list(shape)}."
        )


def _check_scalar(name: str, value: Any) -> None:
    if jnp.shape(value):
        raise InputError(
            f"{name} has shape {list(jnp.shape(value))}, and should be a scalar: one trace of the "
            "gradient serves one stream."
        )


__all__ = ["GradientTrace", "RewardScale", "RunningStatistics", "obgd", "trace_of_gradient"]
