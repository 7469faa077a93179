"""The cut steps of a window: their Jacobians, and the outputs as a function of states and operations."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .._jax import linear_transpose
from ..analyse import WeightOp, trace_dtype
from ..forms import Factors, times
from ..ir import Colouring, Columns, Layout, TraceProgram
from ._arrays import (
    joined,
    over_steps,
    rows_of,
    take,
    take_rows,
    unless,
    weighted,
    widened,
    zeros_over,
)
from ._forward import Rollout, narrowed
from ._output import StepOutput, StepSources
from ._records import Arrays, Cotangents, Taken, Weights
from ._step import StepFunctions

OutputPull = Callable[[Cotangents], tuple[StepSources]]
"""From the derivatives by the outputs of a window to those by all that outputs depend on in their own step."""
ByOp = dict[int, Array | None]
"""The data of live operations in canonical form, [W, B, G, I], by their numbers; `None` where one has none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Jacobians:
    """The compressed Jacobians of the cut steps: one row for each of C colours."""

    transition: list[Array]
    """D, for each part of the states [C, W, B, n]."""
    immediate: list[list[Array]]
    """F, for each live operation [C, W, B, outputs]; where it is read by columns, [C, W, B, n] for each part of
    the states."""


class CutSteps:
    """What a window needs of its cut steps, all at once."""

    def __init__(self, program: TraceProgram, step: StepFunctions):
        self.program, self.step = program, step
        self.output = StepOutput(step, program.paths)
        self.reads_old = program.paths.from_old_states

    def deltas(self, parts: Arrays) -> list[Array]:
        """Perturbations of zero of the live operations, [W, B, ...], spread over devices as the parts are."""
        lead = next(part[:, :, 0] for part in parts if part.shape[-1])
        return [zeros_over(lead, op.delta.shape, op.delta.dtype) for op in self.step.live]

    # --- outputs and data ---

    def differentiated(
        self, weights: Weights, rollout: Rollout
    ) -> tuple[list[Array], OutputPull, ByOp]:
        """The outputs, how they depend on their sources, and the data of live operations."""
        sources = self._sources(weights, rollout)
        return jax.vjp(lambda s: self._outputs(weights, rollout, s), sources, has_aux=True)

    def data(self, weights: Weights, rollout: Rollout) -> ByOp:
        """The data of live operations."""
        return self._outputs(weights, rollout, self._sources(weights, rollout))[1]

    def _sources(self, weights: Weights, rollout: Rollout) -> StepSources:
        """All that the outputs of a window depend on in their own step."""
        parts = over_steps(self.step.parts)
        old, new = parts(rollout.taken.state), parts(rollout.after)
        return StepSources(widened(weights.effective), old, new, self.deltas(old))

    def _outputs(
        self, weights: Weights, rollout: Rollout, sources: StepSources
    ) -> tuple[list[Array], ByOp]:
        analysis = self.step.analysis
        wide = dict(zip(analysis.split.weights, sources.weights, strict=True))

        def one(taken: Taken, old: Arrays, new: Arrays, deltas: Arrays):
            of_example = list(narrowed(analysis, wide, [*old, *taken.xs]).values())
            return self.output(weights, taken, StepSources(of_example, old, new, deltas))

        arguments = rollout.taken, sources.old, sources.new, sources.deltas
        outputs, data = over_steps(one)(*arguments)
        return outputs, {
            op.number: _canonical(op, x) for op, x in zip(self.step.live, data, strict=True)
        }

    # --- Jacobians ---

    def jacobians(self, weights: Weights, taken: Taken, first: Array) -> Jacobians:
        """The compressed Jacobians; nothing passes on from before a step that a stream begins with, [W, B]."""
        parts = over_steps(self.step.parts)(taken.state)
        dtype = self.step.dtype

        def cut(parts: Arrays, deltas: Arrays) -> list[Array]:
            one = lambda taken, old, deltas: self.step.cut(weights, taken, old, deltas)
            return over_steps(one)(taken, parts, deltas)

        deltas = self.deltas(parts)
        _, pull = jax.vjp(cut, parts, deltas)
        colours = self.program.compression.colours
        of_colour = colours.colour[None, :] == np.arange(colours.count)[:, None]
        bounds = np.cumsum([part.shape[-1] for part in parts])[:-1]
        seeds = [  # spread over devices as the parts
            jnp.asarray(seed, dtype)[:, None, None] + jnp.zeros_like(part)[None]
            for seed, part in zip(np.split(of_colour, bounds, 1), parts, strict=True)
        ]
        if colours.count == 1:
            one_product = pull([seed[0] for seed in seeds])
            transition, by_ops = jax.tree.map(lambda a: a[None], one_product)
        else:
            transition, by_ops = jax.vmap(pull)(seeds)
        immediate: list[list[Array]] = []
        for place, op in enumerate(self.step.live):
            columns = colours.columns.get(op.number)
            if columns is None:
                by_op = by_ops[place]
                compressed = [by_op.reshape(*by_op.shape[:3], -1)]
            else:
                pull_op = lambda bars, place=place: pull(bars)[1][place]
                compressed = _by_columns(columns, pull_op, parts, deltas[place])
            dtype = trace_dtype(self.program.analysis, op)
            immediate.append([j.astype(dtype) for j in compressed])
        return Jacobians([unless(first[None], j) for j in transition], immediate)

    def factors(
        self, jacobians: Jacobians, data: ByOp, begins: Array | None = None
    ) -> list[list[Factors]]:
        """What the window says of each feed of each trace; `begins` as in `Factors`."""
        transitions: dict[Layout, Array] = {}  # which traces share
        rows, compression = rows_of(jacobians.transition), self.program.compression
        by_node: list[list[Factors]] = []
        for node in self.program.traces:
            layout, factors = compression.layout(node.blocks), list[Factors]()
            if layout not in transitions:
                transitions[layout] = take_rows(rows, layout.transition)
            for feed in node.feeds:
                xs = [x for op in feed.ops if (x := data[op.number]) is not None]
                x = joined(xs, -1) if xs else None
                op = feed.ops[0]
                compressed = jacobians.immediate[self.step.live.index(op)]
                immediate = take(rows_of(compressed), compression.immediate(op, node.blocks))
                factors.append(Factors(x, immediate, transitions[layout], begins))
            by_node.append(factors)
        return by_node


def _canonical(op: WeightOp, data: Array | None) -> Array | None:
    """The data of an operation at each step, in canonical form."""
    if data is None:
        return None
    places = range(len(op.equation.inputs))
    factor = lambda x: op.kind.factor([x if i == op.kind.data else None for i in places])
    x = over_steps(factor)(data)
    x = x.real if op.kind.data in op.equation.real else x
    is_inexact = jnp.issubdtype(x.dtype, jnp.inexact)
    return x if is_inexact else x.astype(op.delta.dtype)  # spikes may be booleans


def _by_columns(
    columns: Columns, pull: Callable[[Arrays], Array], parts: Arrays, zero: Array
) -> list[Array]:
    """The compressed `F` of an operation, [C, W, B, n] for each part of the states.

    `pull` takes cotangents of the new states to that of the operation, which is like `zero`.
    """
    seeds = columns.colour[None, :] == np.arange(columns.count)[:, None]
    seeds = jnp.asarray(seeds, zero.dtype).reshape(-1, 1, 1, *zero.shape[2:]) + zero[None]
    push = linear_transpose(pull, parts)  # forward mode, by the linearisation that `pull` has
    if columns.count == 1:
        products = [j[None] for j in push(seeds[0])[0]]
    else:
        products = jax.vmap(lambda seed: push(seed)[0])(seeds)
    bounds = np.cumsum([0, *(part.shape[-1] for part in parts)])
    places = list(zip(parts, itertools.pairwise(bounds), strict=True))

    def by_rows() -> list[Array]:
        """The same in reverse mode, which meets no derivative that nothing passes through."""

        def row(state: Array) -> Array:
            bar = pull(
                [
                    jnp.where(np.arange(a, b) == state, jnp.ones_like(part), 0)
                    for part, (a, b) in places
                ]
            )
            bar = bar.reshape(*bar.shape[:2], -1)
            of_colour = columns.colour == np.arange(columns.count)[:, None, None, None]
            return jnp.where(of_colour, bar, 0).sum(-1)

        # One row after the other: `vmap` would hold the cotangents of all S rows of the window at once.
        compressed = jnp.moveaxis(lax.map(row, np.arange(bounds[-1])), 0, -1)  # [C, W, B, S]
        return [compressed[..., a:b].astype(part.dtype) for part, (a, b) in places]

    finite = jnp.stack([jnp.isfinite(j).all() for j in products]).all()
    return lax.cond(finite, lambda: products, by_rows)


def into_op(colours: Colouring, op: WeightOp, immediate: Arrays, credit: Sequence[Array]) -> Array:
    """`F^T` on the credit of new states, [W, B, n] for each part: that of the output of an operation."""
    columns = colours.columns.get(op.number)
    if columns is not None:
        parts = [times(c[None], j) for j, c in zip(immediate, credit, strict=True)]
        return take(rows_of(parts), columns.entries).sum(-1)
    (jacobian,) = immediate
    owner = colours.immediate[op.number]
    if owner.at.shape[-1] == 0:
        return jnp.zeros(jacobian.shape[1:], jacobian.dtype)
    return weighted(credit, owner, jacobian)
