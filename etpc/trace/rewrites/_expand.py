"""Loops and branches that use weights are plain operations.

- Pattern: a short `scan`, a loop that Equinox differentiates by checkpoints, or a `cond`, where a weight meets data.
- Proof: a loop is its iterations; of a branch all sides are computed and one is chosen, as `vmap` does too.
- Rewrite: the equations inside, in the place of the one.
- Without it a weight operation inside would have no data, perturbation and trace for each iteration and branch.

A model may have a branch because an operation has no derivative elsewhere, as a square root has none
at zero. In a branch that is not taken, zero times an infinite derivative is NaN, and this NaN must not
leave the branch, in either direction of differentiation. A `select` on the branch's condition stops it: the
derivative of `select` by the side that is not chosen is zero, whatever its value is. There is one around all
that a trace is read from:

- data that enters the branch, and the data and the result of each weight operation in it;
- the weight itself, unless the operation is linear in it: then its derivative is a product of that data and
  of that cotangent, which are both zeros.

What a branch computes from parameters alone is the same at each step, and is not selected. Its equations are
marked, and where no derivative comes in, the prefix passes none on.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..._jax import Equation, Flat, Variable, canonicalise, flatten, params, prims, unrolled
from ..._jax.primitives import facts
from .._known import Known
from ._loops import written_out
from ._merge_products import merge_products

MAX_ITERATIONS = 256
MAX_EQUATIONS = 4096

Taken = Variable | None
"""A boolean of the program: whether the branch that an equation is in is taken. `None` outside of branches."""


def expand(flat: Flat, parameters: Collection[Variable]) -> Flat:
    return _Expansion(flat, parameters).run()


class _Expansion:
    def __init__(self, flat: Flat, parameters: Collection[Variable]):
        self.flat = flat
        self.constants: dict[Variable, Any] = dict(flat.constants)
        self.fixed: set[Variable] = {*flat.constants, *parameters}
        self.weights: set[Variable] = {v for v in parameters if v.is_float}
        self.alias: dict[Variable, Variable] = {}
        self.waiting: deque[tuple[Equation, Taken]] = deque((eqn, None) for eqn in flat.equations)
        self.kept: list[Equation] = []

    def run(self) -> Flat:
        while self.waiting:
            eqn, taken = self.waiting.popleft()
            eqn = dataclasses.replace(eqn, inputs=tuple(self.resolve(v) for v in eqn.inputs))
            is_fixed = all(v in self.fixed for v in eqn.inputs)
            uses_weights = any(v in self.weights for v in eqn.inputs)
            loop = None if is_fixed else self.written_out(eqn, uses_weights)
            if loop is not None:
                self.open(eqn, loop, taken)
            elif taken is not None and not is_fixed and eqn.primitive.name == "unvmap_any":
                self.limit_check(eqn, taken)
            elif uses_weights and not is_fixed:
                if eqn.primitive is prims.cond_p:
                    self.open_cond(eqn, taken)
                elif eqn.primitive is prims.scan_p and _is_short(eqn):
                    self.open(eqn, unrolled(eqn), taken)
                elif taken is not None:
                    self.guard(eqn, taken)
                else:
                    self.kept.append(eqn)
            else:
                in_branch = is_fixed and taken is not None
                self.kept.append(dataclasses.replace(eqn, in_branch=in_branch))
                if is_fixed:
                    self.fixed.update(eqn.outputs)
                    if uses_weights and eqn.primitive is not prims.stop_gradient_p:
                        self.weights.update(v for v in eqn.outputs if v.is_float)
        outputs = tuple(self.resolve(v) for v in self.flat.outputs)
        return Flat(tuple(self.kept), self.flat.inputs, outputs, self.constants)

    def resolve(self, v: Variable) -> Variable:
        while v in self.alias:
            v = self.alias[v]
        return v

    # --- what is put in the place of an equation ---

    def written_out(self, eqn: Equation, uses_weights: bool) -> Flat | None:
        """The iterations of a loop that Equinox differentiates by checkpoints; `None` for other equations, for
        loops that are too long, and for those whose length data decides where no weight enters."""
        known = lambda v: Known(self.kept, self.constants)(v)
        return written_out(eqn, known, MAX_ITERATIONS, MAX_EQUATIONS, uses_weights)

    def open(self, eqn: Equation, inner: Flat, taken: Taken) -> None:
        todo: list[tuple[Equation, Taken]] = []
        outputs = self.splice(todo, inner, eqn.inputs, taken)
        self.alias.update(zip(eqn.outputs, outputs, strict=True))
        self.waiting.extendleft(reversed(todo))

    def open_cond(self, eqn: Equation, taken: Taken) -> None:
        index, *operands = eqn.inputs
        todo: list[tuple[Equation, Taken]] = []
        branches = [flatten(branch) for branch in params.branches(eqn)]
        results: list[Variable] = []
        for number, branch in enumerate(branches):
            condition = [index] if taken is None else [index, taken]
            (branch_taken,) = self.inline(todo, eqn, _is_taken(number, len(branches)), condition)
            entering = [
                v
                if v in self.fixed or not v.is_float
                else self.inline(todo, eqn, _or_zero, [branch_taken, v])[0]
                for v in operands
            ]
            held = [
                inner for inner, v in zip(branch.inputs, operands, strict=True) if v in self.fixed
            ]
            results += self.splice(todo, merge_products(branch, held), entering, branch_taken)
        if len(branches) > 1:
            results = self.inline(todo, eqn, _choose(len(branches)), [index, *results])
        self.alias.update(zip(eqn.outputs, results, strict=True))
        self.waiting.extendleft(reversed(todo))

    def guard(self, eqn: Equation, taken: Variable) -> None:
        """Keep a weight operation of a branch, with a `select` before and after it: its data and its result
        are zero where the branch is not taken, and so is the weight, unless the operation is linear in it."""
        before: list[tuple[Equation, Taken]] = []
        known = facts(eqn.primitive)
        is_linear = known.linear or known.data_movement or known.kind is not None
        barred = lambda v: v in self.weights and not is_linear
        operands = [
            self.inline(before, eqn, _or_zero, [taken, v])[0]
            if v.is_float and (v not in self.fixed or barred(v))
            else v
            for v in eqn.inputs
        ]
        results = tuple(Variable(v.number, v.aval) for v in eqn.outputs)
        after: list[tuple[Equation, Taken]] = []
        for v, result in zip(eqn.outputs, results, strict=True):
            guarded = (
                self.inline(after, eqn, _or_zero, [taken, result])[0] if v.is_float else result
            )
            self.alias[v] = guarded
        for side, _ in before:
            self.kept.append(
                dataclasses.replace(side, inputs=tuple(self.resolve(v) for v in side.inputs))
            )
        operands = tuple(self.resolve(v) for v in operands)
        self.kept.append(dataclasses.replace(eqn, inputs=operands, outputs=results))
        self.waiting.extendleft(reversed(after))

    def limit_check(self, eqn: Equation, taken: Variable) -> None:
        """Let a check of Equinox in a branch, such as `eqx.error_if`, fail only if the branch is taken.

        All its checks ask by the primitive `unvmap_any` whether one example of a batch fails.
        """
        todo: list[tuple[Equation, Taken]] = []
        fails = self.inline(todo, eqn, jnp.logical_and, [*eqn.inputs, taken])
        todo.append((dataclasses.replace(eqn, inputs=tuple(fails)), None))
        self.waiting.extendleft(reversed(todo))

    def inline(
        self,
        todo: list[tuple[Equation, Taken]],
        eqn: Equation,
        function: Callable[..., Any],
        operands: Sequence[Variable],
    ) -> list[Variable]:
        """Add the equations of a function to `todo`, with the line of `eqn`; the variables of its results."""
        flat = canonicalise(function, [v.aval for v in operands])
        of_line = functools.partial(dataclasses.replace, source=eqn.source, traceback=eqn.traceback)
        flat = dataclasses.replace(flat, equations=tuple(map(of_line, flat.equations)))
        return self.splice(todo, flat, operands, None)

    def splice(
        self,
        todo: list[tuple[Equation, Taken]],
        inner: Flat,
        operands: Sequence[Variable],
        taken: Taken,
    ) -> list[Variable]:
        """Add the equations of a program to `todo`; the variables of its results."""
        self.constants.update(inner.constants)
        self.fixed.update(inner.constants)
        self.alias.update(zip(inner.inputs, operands, strict=True))
        todo += [(eqn, taken) for eqn in inner.equations]
        return list(inner.outputs)


def _is_short(eqn: Equation) -> bool:
    loop = params.scan(eqn)
    size = loop.length * len(flatten(loop.body).equations)
    return 0 < loop.length <= MAX_ITERATIONS and size <= MAX_EQUATIONS


def _is_taken(number: int, count: int) -> Callable[..., Any]:
    def taken(index: Any, around: Any = True) -> Any:
        return (jnp.clip(index, 0, count - 1) == number) & around

    return taken


def _or_zero(taken: Any, value: Any) -> Any:
    return jnp.where(taken, value, jnp.zeros_like(value))


def _choose(count: int) -> Callable[..., Any]:
    """A function of an index and the results of all branches, first branch first: the results of
    the branch with this index."""

    def choose(index: Any, *results: Any) -> list[Any]:
        which = jnp.clip(index, 0, count - 1).astype(bool if count == 2 else "int32")
        size = len(results) // count
        cases = [results[n * size : (n + 1) * size] for n in range(count)]
        return [jax.lax.select_n(which, *several) for several in zip(*cases, strict=True)]

    return choose
