"""Data that goes on: batches to train on, and batches that are held out."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, InputTypeError, checked_count

SEEDS = 8
"""Of a stream, so many trainings of one rule at most see different data."""

HELD = 256, 8
"""So many examples are held out of a stream, in so many batches at most."""

PART = 4
"""One example of so many is held out of a single batch."""

KEPT = 2**30
"""So many bytes of an iterator are remembered; then it is gone through again."""

Batch = tuple[Any, Any, Any]
"""`xs`, `targets` and weights of the losses; `None` for equal ones where they are as the user gave them."""


class Data:
    """Batches by their numbers: of one batch, of an iterable of batches, or of a function of a key that draws one.

    - `first`: the one that gradients are measured on, as it was given.
    - `single`: whether there is no other.
    - `count`: how many are held out. The others are numbered in the order in which they are first asked for.
    - `repeats`: how many batches of an iterable are gone through again and again; 0 where all were new.

    **Raises** `InputError` and `InputTypeError` where it is none of these.
    """

    def __init__(self, data: Any, batch_size: int | None):
        self._size = 1 if batch_size is None else checked_count("batch_size", batch_size)
        self._lead = 1 if batch_size is None else 2
        self._draw = data if callable(data) else None
        batches = () if self._draw else [data] if isinstance(data, tuple) else data
        if isinstance(batches, str) or not isinstance(batches, Iterable):
            raise InputTypeError(
                f"data is a {type(data).__name__}. Pass a batch `(xs, targets)` or `(xs, targets, mask)`, an "
                "iterable of batches, or a function of a key that draws one."
            )
        self._more, self._ended = iter(batches), False
        self._kept, self.repeats = list[Batch](), 0
        self._numbers = dict[tuple[int, int], int]()
        self.first = self._get(0)
        self.count = min(-(-HELD[0] // self._size), HELD[1])
        if self._draw is None:
            self._fill(PART * self.count)
            self.count = min(self.count, max(1, len(self._kept) // PART))
        self.single = self._draw is None and len(self._kept) == 1

    @property
    def parted(self) -> bool:
        """Whether what is held out was not trained on."""
        return not self.single or self._parts[0][0] is not self._parts[0][1]

    @property
    def seeds(self) -> int:
        """How many trainings see different data, at most."""
        return len(self._parts) if self.single else SEEDS

    def training(self, seed: int, number: int) -> Batch:
        """What an update of a training with a seed is made of."""
        if self.single:
            return self._parts[seed % len(self._parts)][0]
        number = self._numbers.setdefault((seed, number), len(self._numbers))
        return self._weighted(self._get(self.count + number))

    def held(self, seed: int) -> list[Batch]:
        """What a training with a seed is judged on."""
        return [self._parts[seed % len(self._parts)][1]] if self.single else self._held

    @cached_property
    def _held(self) -> list[Batch]:
        """The batches that are held out, which are drawn once and judged on many times."""
        return [self._weighted(self._get(number)) for number in range(self.count)]

    @cached_property
    def _parts(self) -> list[tuple[Batch, Batch]]:
        """For each seed what is trained on and what is held out of a single batch: the same arrays with other weights,
        so that they are no other shapes."""
        xs, targets, mask = whole = self._weighted(self.first)
        counting = np.atleast_1d(np.asarray(mask.any(0)))
        number, count = np.cumsum(counting) - 1, int(counting.sum())
        if count < 2:
            return [(whole, whole)]
        out = [number % PART == seed for seed in range(min(PART, count))]
        of = lambda chosen: (xs, targets, jnp.where(chosen, mask, jnp.zeros_like(mask)))
        return [(of(~held), of(held)) for held in out]

    def _get(self, number: int) -> Batch:
        if self._draw is not None:
            return self._checked(self._draw(jax.random.fold_in(jax.random.key(0), number)))
        self._fill(number + 1)
        if number >= len(self._kept):
            self.repeats = len(self._kept) - self.count
            number = self.count + int(np.random.default_rng(number).integers(self.repeats))
        return self._kept[number]

    def _fill(self, count: int) -> None:
        """Take batches of an iterator until so many are remembered, it ends, or they are too large."""
        while len(self._kept) < count and not self._ended:
            if (found := next(self._more, None)) is not None:
                self._kept.append(self._checked(found))
            size = sum(np.asarray(a).nbytes for a in jax.tree.leaves(self._kept[:1]))
            self._ended = found is None or len(self._kept) * size > KEPT
        if not self._kept:
            raise InputError("data has no batch.")

    def _weighted(self, batch: Batch) -> Batch:
        xs, targets, mask = batch
        lead = jnp.shape(jax.tree.leaves(xs)[0])[: self._lead]
        return xs, targets, jnp.ones(lead) if mask is None else jnp.asarray(mask)

    def _checked(self, found: Any) -> Batch:
        """**Raises** unless it is a batch, of the shapes of the first one."""
        if not isinstance(found, tuple | list) or len(found) not in (2, 3):
            raise InputTypeError(
                f"A batch of data is a {type(found).__name__}. It should be `(xs, targets)` or `(xs, targets, mask)`."
            )
        xs, targets, mask = (*found, None)[:3]
        if hasattr(self, "first"):
            shapes, wanted = (
                jax.tree.map(jnp.shape, data) for data in ((xs, targets), self.first[:2])
            )
            if shapes != wanted:
                raise InputError(
                    f"A batch of data has xs and targets of shapes {shapes}, and the first one {wanted}. Fill them up "
                    "to one shape, with a mask that is zero there: each shape is compiled anew."
                )
        return xs, targets, mask
