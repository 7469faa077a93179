"""What passes through the data of operations inside blocks, which the Jacobian of the cut step lacks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..plan import Plan
from ..plan._through import Terms, Through
from ..traces._transitions import times
from ._gather import rows, take, take_rows, zeros_over
from ._step import StepFunctions


class ThroughData:
    """The sum of `F W X` over operations, as entries of the compressed D."""

    def __init__(self, plan: Plan, through: Through):
        self.plan, self.through = plan, through
        self.step = StepFunctions(through.cut)
        self.places = {op.number: place for place, op in enumerate(self.step.live)}

    def pulled(self, pull_of: Callable[[StepFunctions], Any], pull: Any, seeds: list[Array]) -> Any:
        """Cotangents of states and operations from seeds [C, W, B, n]: the first ones by the cut step."""
        count = self.through.of_cut(self.plan.colours)
        first, rest = ([seed[a:b] for seed in seeds] for a, b in ((0, count), (count, None)))
        by_cut = pulled(pull_of(self.step), first)
        if count == self.plan.colours.count:
            return by_cut
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), by_cut, pulled(pull, rest))

    def __call__(
        self, weights, others, xs, before: Sequence[Array], old: Sequence[Array], immediate
    ) -> list[Array]:
        """For each part of the states, [C, W, B, n].

        - `old`: the states before each step in parts, [W, B, n] each.
        - `immediate`: the compressed F of each live operation, in parts.
        """
        by_states = self._by_states(weights, others, xs, before, old)
        lead, products = next(part[:, :, 0] for part in old if part.shape[-1]), []
        for terms in self.through.terms:
            place = self.through.cut.split.weights.index(terms.op.weight)
            f = rows(immediate[self.places[terms.op.number]])
            products.append(self._products(terms, f, weights[place], by_states))
        bounds = np.cumsum([part.shape[-1] for part in old])[:-1]
        zero = zeros_over(lead, self.plan.colours.transition.at.shape, self.plan.dtype)
        dense = jnp.moveaxis(sum(products, zero), 2, 0)
        return jnp.split(dense, bounds, -1)

    def _products(self, terms: Terms, f: Sequence[Array], weight: Array, x: Sequence[Array]):
        """The sums of one operation, [W, B, C, S]."""
        into = take_rows(f, terms.immediate)
        w = take([weight.reshape(-1).astype(into.dtype)], terms.weight)
        sums = times(into * w[None, None], take_rows(x, terms.data)).sum(-2)
        return take_rows([sums], terms.entries)

    def _by_states(self, weights, others, xs, before, old) -> list[Array]:
        """The compressed X: its rows in parts, [W, B, n] each."""
        through, dtype = self.through, self.plan.dtype
        if not through.variables:
            return []

        def data(old):
            def one(x, state, old):
                state = self.step.with_parts(state, old)
                values = self.step.values(through.variables, weights, others, x, state)
                return jnp.concatenate([jnp.ravel(v).astype(dtype) for v in values])

            return jax.vmap(jax.vmap(one))(xs, before, old)

        values, pull = jax.vjp(data, list(old))
        of_colour = through.colour[None, :] == np.arange(through.count)[:, None]
        seeds = jnp.asarray(of_colour, dtype)[:, None, None] + jnp.zeros_like(values)[None]
        return rows(jax.vmap(pull)(seeds)[0])


def pulled(pull: Callable[[list[Array]], Any], seeds: list[Array]) -> Any:
    """`pull` of each of some seeds, [C, W, B, n]."""
    if seeds[0].shape[0] == 1:
        return jax.tree.map(lambda a: a[None], pull([seed[0] for seed in seeds]))
    return jax.vmap(pull)(seeds)


__all__ = ["ThroughData", "pulled"]
