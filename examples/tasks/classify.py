"""Tasks with a fixed data set: sequences with a class each, and held-out ones for the test."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import PRNGKeyArray

from .arms import Batch, Task


class Examples(NamedTuple):
    """Sequences [T, N, ...], the class of each [N], and the steps that count [T, N]."""

    xs: np.ndarray
    labels: np.ndarray
    mask: np.ndarray


def classification(
    name: str,
    make_model: Callable[[PRNGKeyArray], Any],
    train: Examples,
    test: Examples,
    *,
    rate: float,
    updates: int,
    **settings: Any,
) -> Task:
    """The task of naming the class at each step that counts. Other `settings` are those of `Task`.

    Batches are drawn from `train` without an example twice, and the score is that on all of `test`.
    The learning rate falls from `rate` to zero, so that the score settles.
    """
    xs, labels, mask = (jnp.asarray(a) for a in train)
    size = settings.get("batch_size", 32)

    def batch(key: PRNGKeyArray) -> Batch:
        chosen = jax.random.choice(key, len(labels), (size,), replace=False)
        return prepared(xs[:, chosen], labels[chosen], mask[:, chosen])

    def fixed() -> list[Batch]:
        order = jax.random.permutation(jax.random.key(0), len(labels))
        parts = order[: len(labels) // size * size].reshape(-1, size)
        return [prepared(xs[:, part], labels[part], mask[:, part]) for part in parts]

    return Task(
        name=name,
        make_model=make_model,
        batch=batch,
        fixed=fixed,
        loss_fn=optax.softmax_cross_entropy_with_integer_labels,
        score=accuracy,
        chance=float(np.bincount(test.labels).max() / len(test.labels)),
        test=prepared(*(jnp.asarray(a) for a in test)),
        updates=updates,
        rate=rate,
        schedule=lambda rate: optax.cosine_decay_schedule(rate, updates),
        **settings,
    )


def prepared(xs: Array, labels: Array, mask: Array) -> Batch:
    """Floats, and the label at each step."""
    targets = jnp.broadcast_to(labels, mask.shape)
    return xs.astype(jnp.float32), targets, mask.astype(jnp.float32)


def accuracy(ys: Array, targets: Array, mask: Array) -> Array:
    """The answer is the class whose output is the largest on average over the steps that count."""
    answers = (ys * mask[:, :, None]).sum(0).argmax(-1)
    return (answers == targets[0]).mean()
