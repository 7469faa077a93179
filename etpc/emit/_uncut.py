"""The model over a window, nothing cut, as one function that is differentiated in reverse mode."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import linear_transpose, result_type
from ..plan import Plan
from ..traces import Traces
from ._forward import Rollout, Stored
from ._gather import of_each_example, zeros_over
from ._lookback import Steps, entering
from ._step import StepFunctions


class Directed(NamedTuple):
    """A window along the directions that are followed."""

    ends: Array
    """[B, q, S], or [1, q, S]."""
    chosen: Any
    starts: Array
    """[B, q, S]."""
    deltas: dict[int, Array]
    """[W, B, q, GO]."""
    push: Callable[[Array], Array]
    keeps: Array | None
    """[B, q]: what is not dropped; `None` for all."""


class Uncut:
    """Windows in which nothing is cut."""

    def __init__(self, plan: Plan, step: StepFunctions):
        self.plan, self.step = plan, step
        self.live = [plan.ops[op.number] for op in step.live]

    def __call__(
        self,
        weights: Sequence[Array],
        others: Sequence[Any],
        xs: Sequence[Array],
        state: Sequence[Array],
        by_inputs: Sequence[int] = (),
        behind: tuple[Steps, Array] | None = None,
        stored: Stored | None = None,
    ) -> tuple[Rollout, Callable[..., Any]]:
        """Run the model; and how its outputs depend on weights, some inputs and the states at the start.
        Where directions are followed, also on the outputs of operations; and there, how
        the states at its end do.

        - `behind`: the steps before the window, where the start is that of those, and whether a stream
            begins with the window.
        - `stored`: the states before each step, where they are known.
        """
        step, floats = self.step, self.plan.analysis.hidden.leaves
        along = self.plan.directions is not None and behind is None
        shifts = self._zeros(xs, state) if along else []
        origin = state if behind is None else [s[0] for s in behind[0].states]

        def through(weights, moving, start, shifts):
            begin = list(origin)
            for i, value in zip(floats, start, strict=True):
                begin[i] = value
            inputs = list(xs)
            for i, value in zip(by_inputs, moving, strict=True):
                inputs[i] = value
            if behind is not None:
                steps, fresh = behind
                known = Stored(steps.states, steps.first)
                past = step.run(weights, others, steps.xs, begin, outputs=False, stored=known)
                begin = entering(state, past.last, fresh)
            rollout = step.run(
                weights, others, inputs, begin, outputs=True, shifts=shifts, stored=stored
            )
            last = self.parts(rollout.last) if shifts else []
            return (rollout.outputs, last), rollout

        _, pull, rollout = jax.vjp(
            through,
            [w.astype(sum_dtype(w)) for w in weights],
            [xs[i] for i in by_inputs],
            [origin[i] for i in floats],
            shifts,
            has_aux=True,
        )
        return rollout, pull

    def along(self, rollout: Rollout, pull, traces: Traces, fresh, valid=None) -> Directed:
        """The window along the directions that are followed; `valid` [W, B] says which steps count."""
        directions = self.plan.directions
        assert directions is not None
        last = jnp.concatenate(self.parts(rollout.last), -1)
        ends, chosen = directions.ends(traces.shared, traces.each, last)
        zeros = jax.tree.map(jnp.zeros_like, rollout.outputs)

        def back(end: Array) -> tuple[list[Array], list[Array]]:
            """From a cotangent [B, S] of the states at the end."""
            _, _, start, deltas = pull((zeros, self.split(end)))
            if valid is not None:
                deltas = [where_over(valid, delta) for delta in deltas]
            return self.signals(start), deltas

        ends_of_each = of_each_example(ends, fresh)
        starts, deltas = jax.vmap(back, in_axes=1)(ends_of_each)
        starts = [finite_where(part.swapaxes(0, 1), fresh) for part in starts]
        if valid is not None:  # a window that begins before its stream has no past
            starts = [where_over(valid[0], part) for part in starts]

        def push(ahead: Array) -> Array:
            """Of perturbations [B, q, S] of the states at the start."""
            by_start = lambda end: jnp.concatenate(back(end)[0], -1)
            forward = linear_transpose(by_start, jnp.zeros_like(ends_of_each[:, 0]))
            return jax.vmap(lambda direction: forward(direction)[0], in_axes=1, out_axes=1)(ahead)

        of_op = {
            p.op.number: jnp.moveaxis(delta.reshape(*delta.shape[:3], -1), 0, 2)
            for p, delta in zip(self.live, deltas, strict=True)
            if p.trace is not None and p.trace.directions is not None
        }
        by_start = jnp.concatenate(starts, -1)
        keeps = directions.keeps(traces.shared, traces.each, by_start)
        if keeps is not None:
            for delta in of_op.values():
                keeps = keeps & jnp.isfinite(delta).all((0, 3))
            by_start = jnp.where(keeps[..., None], by_start, jnp.nan)
            of_op = {n: jnp.where(keeps[None, ..., None], a, 0) for n, a in of_op.items()}
        return Directed(ends, chosen, by_start, of_op, push, keeps)

    def split(self, states: Array) -> list[Array]:
        """A vector of all states, [B, S], in parts."""
        sizes = [math.prod(a.shape) for a in self.plan.analysis.hidden.parts]
        parts = jnp.split(states, np.cumsum(sizes)[:-1], -1)
        return [part.astype(self.plan.dtype) for part in parts]

    def parts(self, states) -> list[Array]:
        """The real vectors, [B, n] each, that make up the states at one time."""
        return jax.vmap(lambda s: self.step.parts(s, self.plan.dtype))(states)

    def signals(self, start: Sequence[Array]) -> list[Array]:
        """Cotangents of the float leaves, as those of their parts; [B, n] each.

        That of a complex leaf is the derivative by its real part minus i times that by the other.
        """
        parts = self.plan.analysis.hidden.split([s.conj() for s in start])
        return [part.reshape(part.shape[0], -1).astype(self.plan.dtype) for part in parts]

    def _zeros(self, xs, state) -> list[Array]:
        """Zeros, [W, B, ...], that are added where live operations act."""
        examples = next(part[:, 0] for part in self.parts(state) if part.shape[-1])
        lead = jnp.broadcast_to(jnp.zeros_like(examples)[None], (xs[0].shape[0], *examples.shape))
        return [zeros_over(lead, p.op.delta.shape, p.op.delta.dtype) for p in self.live]


def sum_dtype(weight: Array) -> Any:
    """The dtype in which a gradient is summed over windows: at least float32."""
    return result_type(weight.dtype, jnp.float32)


def where_over(mask: Array, a: Array) -> Array:
    """An array, and zero where the mask does not hold; the axes of the mask lead."""
    return jnp.where(mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim)), a, 0)


def finite_where(by_state: Array, fresh: Array) -> Array:
    """Derivatives [B, ...] by states; zero where one is not finite and its stream begins there."""
    mask = fresh.reshape(-1, *[1] * (by_state.ndim - 1)) & ~jnp.isfinite(by_state)
    return jnp.where(mask, 0, by_state)


__all__ = ["Directed", "Uncut", "finite_where", "sum_dtype", "where_over"]
