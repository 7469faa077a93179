"""An update in which each device has some of the streams, with one all-reduce of the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from ..run import Online


class Alike(Online):
    """A learner with the program, the loss, the optimizer and the settings of another one."""

    def __init__(self, learner: Online):
        settings = (learner.every, learner.reduction, learner.has_aux, learner.skip_nonfinite)
        super().__init__(learner.program, learner.loss_fn, learner.optimizer, *settings)


class PerDevice(Alike):
    """The updates of one device under `jax.shard_map`, which adds gradients up with the other devices.

    - `axis`, `devices`: the axis of the mesh, and how many devices it has.
    - `examples`: B, without those that fill the batch up.
    """

    def __init__(self, learner: Online, axis: str, devices: int, examples: int):
        super().__init__(learner)
        self.axis, self.devices, self.examples = axis, devices, examples

    def _of_all_devices(
        self,
        value: Array,
        grads: list[Array],
        counts: Array | None,
        data: Any,
        left_out: Array | None,
    ) -> tuple[Array, list[Array], Array | None]:
        """One `psum` of the gradients and the loss, and of the weights of the examples where they have some.

        A device has the mean over its own examples, which is rounded to the dtype of the weights. So it adds to the sum
        of all devices its mean times its share of the examples, and not a sum, which float16 may not hold.
        """
        steps, batch = data.xs[0].shape[:2]
        weighted = data.weights is not None or left_out is not None
        share = jnp.asarray(batch / self.examples, value.dtype)
        if self.reduction == "mean" and weighted:
            ones = jnp.ones((steps, batch), bool)
            weights = ones if data.weights is None else data.weights
            if left_out is not None:
                weights = jnp.where(left_out, jnp.zeros_like(weights), weights)
            share = weights.sum(0, dtype=value.dtype).sum() / (steps * batch)
        parts = [value, *grads]
        if counts is not None:  # a device that left all of its streams out may have NaN
            parts = [jnp.where(counts, a, jnp.zeros_like(a)) for a in parts]
        parts = [a * share.astype(a.dtype) for a in parts]
        any_counts = None if counts is None else counts.astype(value.dtype)
        total = share if self.reduction == "mean" and weighted else None
        parts, any_counts, total = lax.psum((parts, any_counts, total), self.axis)
        if total is not None:
            scale = jnp.where(total == 0, 0, 1 / jnp.where(total == 0, 1, total))
            parts = [a * scale.astype(a.dtype) for a in parts]
        return parts[0], parts[1:], None if any_counts is None else any_counts > 0


def updates(
    learner: Online, mesh: jax.sharding.Mesh, axis: str, examples: int, arguments: Any
) -> Any:
    """All updates of a call, each device with its part of the batch.

    - `arguments`: the loss and the other arguments of the compiled part of `update`.
    """
    by_example, by_step = P(axis), P(None, axis)
    start = type(arguments[2])(P(), P(), by_example)
    return jax.shard_map(
        PerDevice(learner, axis, mesh.shape[axis], examples)._updates,
        mesh=mesh,
        axis_names={axis},  # XLA lays what is in there out along another axis, that of hidden units
        in_specs=(P(), P(), start, by_step, by_step),
        out_specs=(start, P(), by_step, by_step),
        check_vma=False,
    )(*arguments)
