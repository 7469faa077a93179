"""The step as functions on arrays: forward, and of one example cut and read.

*Forward* is the model itself, over a window. *Cut* holds the data of mixing operations constant: its outputs are
given, and a perturbation `delta` is added where each weight acts; its Jacobians are `D` and `F`.
*Read* gives the output `y` as a function of everything that an eligibility trace is multiplied
with, each path counted once; its derivatives are the learning signals.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import (
    Equation,
    Variable,
    etp_p,
    evaluate,
    prims,
    prune,
    result_type,
    split_p,
    stack_p,
    tile_p,
)
from ..analyse import Analysis, WeightOp
from ..analyse._analysis import by_equation
from ._forward import Course, Forward, Shifts, Stored, superpose

Env = dict[Variable, Any]


_MOVES = frozenset(
    [
        etp_p,
        *(p for p in (split_p, stack_p, tile_p) if p is not None),
        *(
            getattr(prims, name + "_p")
            for name in [
                "reshape",
                "transpose",
                "squeeze",
                "broadcast_in_dim",
                "rev",
                "slice",
                "concatenate",
                "pad",
                "copy",
                "convert_element_type",
                "dynamic_slice",
                "dynamic_update_slice",
                "gather",
                "scatter",
            ]
        ),
    ]
)
"""Operations that move values and do not change them, but for a conversion that rounds."""


def _is_move(eqn: Equation) -> bool:
    if eqn.primitive is prims.convert_element_type_p:
        old, new = (v.aval.dtype for v in (*eqn.inputs, *eqn.outputs))
        return result_type(old, new) == new
    return eqn.primitive in _MOVES


_SINGULAR = frozenset(
    getattr(prims, name + "_p")
    for name in (
        "sqrt",
        "rsqrt",
        "cbrt",
        "log",
        "log1p",
        "pow",
        "integer_pow",
        "div",
        "acos",
        "asin",
        "acosh",
        "atanh",
    )
)
"""Element-wise operations with a derivative that is infinite somewhere."""


def _zero_stays_zero(eqn: Equation, values: list[Any]) -> list[Any] | None:
    """The rule of the prefix: where no gradient comes in, none goes out, be the derivative infinite.

    The gradient of an effective weight is zero where the branch that reads it was never taken.
    """
    if eqn.primitive not in _SINGULAR:
        return None
    floats = [i for i, v in enumerate(eqn.inputs) if v.is_float]

    def bind(*given):  # all operands are arguments: a rule that closes over tracers would keep them
        return eqn.bind(*given)[0]

    def forward(*given):
        def of_floats(*moving):
            full = list(given)
            for i, value in zip(floats, moving, strict=True):
                full[i] = value
            return bind(*full)

        return jax.vjp(of_floats, *(given[i] for i in floats))

    def back(pull, bar):
        nothing = bar == 0
        bars: list[Any] = [None] * len(eqn.inputs)
        for i, g in zip(floats, pull(bar), strict=True):
            # of an operand that is a scalar, where nothing comes in at all
            where = nothing if g.shape == bar.shape else nothing.all()
            bars[i] = jnp.where(where, jnp.zeros_like(g), g)
        return tuple(bars)

    guarded = jax.custom_vjp(bind)
    guarded.defvjp(forward, back)
    return [guarded(*values)]


@dataclasses.dataclass(frozen=True, eq=False)
class StepFunctions:
    """One step of one example. States are lists of all array leaves unless called parts."""

    analysis: Analysis

    def __post_init__(self) -> None:
        a, body = self.analysis, self.analysis.split.body
        live = [op for op in a.ops if a.reach[op.number].role == "state"]
        saved = [op for op in live if op.number in a.cut]
        define = object.__setattr__
        define(self, "live", live)
        define(self, "saved", saved)
        define(self, "saved_outputs", [op.equation.outputs[0] for op in saved])
        define(self, "live_table", by_equation(live))
        define(self, "saved_equations", {op.equation: i for i, op in enumerate(saved)})
        new = [a.split.next_state[i] for i in a.hidden.leaves]
        factors = [op.equation.inputs[op.kind.data] for op in live if op.kind.data is not None]
        define(self, "forward", Forward(a, tuple(self.saved_outputs)))
        define(self, "cut_body", prune(body, new, self.saved_equations))
        define(self, "read_body", prune(body, [*a.split.outputs, *factors], self.saved_equations))
        define(self, "moves", _moved_states(a))

    live: list[WeightOp] = dataclasses.field(init=False)
    """Operations that reach a hidden state: each has a `delta`."""
    saved: list[WeightOp] = dataclasses.field(init=False)
    """Those of them whose data is cut: their outputs are kept from the forward pass."""
    saved_outputs: list[Variable] = dataclasses.field(init=False)
    live_table: Mapping[Equation, list[WeightOp]] = dataclasses.field(init=False)
    saved_equations: Mapping[Equation, int] = dataclasses.field(init=False)
    forward: Forward = dataclasses.field(init=False)
    cut_body: tuple[Equation, ...] = dataclasses.field(init=False)
    read_body: tuple[Equation, ...] = dataclasses.field(init=False)
    moves: "MovedStates" = dataclasses.field(init=False)

    # --- parts and leaves ---

    def parts(self, state: Sequence[Any], dtype: Any) -> list[Array]:
        """The float leaves as real vectors that make up the S states."""
        hidden = self.analysis.hidden
        parts = hidden.split([state[i] for i in hidden.leaves])
        return [jnp.ravel(part).astype(dtype) for part in parts]

    def leaves(self, parts: Sequence[Array]) -> list[Array]:
        """The float leaves from their parts."""
        hidden = self.analysis.hidden
        return hidden.join(
            [
                part.reshape(own.shape).astype(own.dtype)
                for part, own in zip(parts, hidden.parts, strict=True)
            ]
        )

    def with_parts(self, state: Sequence[Any], parts: Sequence[Array]) -> list[Any]:
        """A state whose float leaves have these parts."""
        leaves = list(state)
        for i, leaf in zip(self.analysis.hidden.leaves, self.leaves(parts), strict=True):
            leaves[i] = leaf
        return leaves

    # --- environments ---

    def prefix(
        self, parameters: Sequence[Array], copies: bool = False
    ) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
        """Effective weights, and the other values that depend on the model alone.

        With copies, those of some weights follow them, as `forward` reads them.
        """
        a = self.analysis
        env: Env = dict(a.step.constants)
        env.update(zip(a.step.parameters, parameters, strict=True))
        wanted = (*a.split.weights, *a.split.others)
        evaluate(prune(a.split.prefix, wanted), env, _zero_stays_zero)
        turned = [env[v] for v in self.forward.turned] if copies else []
        return (
            tuple(jnp.asarray(env[v]) for v in a.split.weights),
            (*(env[v] for v in a.split.others), *self.forward.copies(turned)),
        )

    def run(
        self, weights, others, xs, state, outputs: bool, shifts=(), stored: Stored | None = None
    ) -> Course:
        """The model over a window of a batch. What is wanted of it is what is saved.

        With outputs it is differentiated, and copies of weights pass on no derivative. `shifts`, one for
        each live operation or none, are added where it acts. With `stored`, states before each step are
        those, as a function of what they were made from.
        """
        copies = () if outputs else others[len(self.analysis.split.others) :]
        fixed = self._fixed(weights, others)
        if not shifts:
            return self.forward(fixed, copies, xs, state, outputs, stored=stored)
        added = Shifts(shifts, self._shifting)
        return self.forward(fixed, (), xs, state, outputs, added, stored)

    def _shifting(self, shifts):
        """The rule that adds something where each weight acts."""
        numbers = {op.number: i for i, op in enumerate(self.live)}

        def rule(eqn, values):
            here = self.live_table.get(eqn)
            if here is None:
                return None
            for op in here:
                values = op.kind.shift_inputs(values, shifts[numbers[op.number]])
            outputs = eqn.bind(*values)
            for op in here:
                outputs = op.kind.shift_outputs(outputs, shifts[numbers[op.number]])
            return outputs

        return rule

    def _fixed(self, weights, others) -> Env:
        a = self.analysis
        env: Env = dict(a.step.constants)
        env.update(zip(a.split.others, others[: len(a.split.others)], strict=True))
        env.update(zip(a.split.weights, weights, strict=True))
        return env

    def _start(self, weights, others, x, state) -> Env:
        a, env = self.analysis, self._fixed(weights, others)
        env.update(zip(a.step.inputs, x, strict=True))
        env.update(zip(a.step.state, state, strict=True))
        return env

    # --- cut and read ---

    def cut(self, weights, others, x, state, saved, old, deltas, dtype) -> list[Array]:
        """The parts of the new states of the cut step, from those of the old ones."""
        state = self.with_parts(state, old)
        return self.parts(self.cut_leaves(weights, others, x, state, saved, deltas), dtype)

    def cut_leaves(self, weights, others, x, state, saved, deltas) -> list[Any]:
        """The new state of the cut step; `None` for leaves that are no floats."""
        env = self._start(weights, others, x, state)
        evaluate(self.cut_body, env, self._perturbing(saved, deltas))
        return [env.get(v) for v in self.analysis.split.next_state]

    def outputs(self, weights, others, x, state) -> list[Array]:
        """The output of the model itself."""
        split = self.analysis.split
        env = self._start(weights, others, x, state)
        evaluate(prune(split.body, split.outputs), env)
        return [env[v] for v in split.outputs]

    def read(
        self, weights, others, x, state, saved, old, new, deltas
    ) -> tuple[list[Array], list[Array]]:
        """The output, and the data `x` of each live operation that has some.

        `old` and `new` are the parts of old and new states. A new state is what `new` says, also
        where the step moves it on into another array, so that the derivative by `new` is the
        learning signal. What reaches the output past the new states is differentiated by `old` and
        `deltas`. An operation whose data is cut, but depends on new states or on other outputs of
        its own step, passes on the influence of those: it crosses. That influence goes through the
        rest of the step unhindered, so it is carried by a second evaluation.
        """
        a = self.analysis
        stop = lax.stop_gradient
        base = self._start(weights, others, x, self.with_parts(state, old))
        moved = self.moves.values(self.leaves(new), base, self, saved, deltas)
        first = self._run(base, saved, deltas, moved)
        outputs = [first[v] for v in a.split.outputs]
        if self.crossing:
            held = self._start(weights, others, x, self.with_parts(state, [stop(p) for p in old]))
            shared = self._run(held, saved, deltas, moved)
            second = self._crossed(weights, others, x, state, saved, old, shared)
            outputs = [
                superpose(y, second[v]) if v.is_float else y
                for v, y in zip(a.split.outputs, outputs, strict=True)
            ]
        factors = [op.equation.inputs[op.kind.data] for op in self.live if op.kind.data is not None]
        return outputs, [stop(first[v]) for v in factors]

    def _run(self, env: Env, saved, deltas, moved: "dict[Variable, Moved]") -> Env:
        perturb = self._perturbing(saved, deltas)

        def rule(eqn, values):
            outputs = perturb(eqn, values)
            if any(v in moved for v in eqn.outputs):
                outputs = eqn.bind(*values) if outputs is None else outputs
                outputs = [
                    moved[v].over(value) if v in moved else value
                    for v, value in zip(eqn.outputs, outputs, strict=True)
                ]
            return outputs

        return evaluate(self.read_body, dict(env), rule)

    def _crossed(self, weights, others, x, state, saved, old, shared: Env) -> Env:
        stop, crossing = lax.stop_gradient, self.crossing
        held = self.with_parts(state, [stop(p) for p in old])
        still = self._start([stop(w) for w in weights], others, x, held)
        body = prune(
            self.analysis.split.body,
            self.analysis.split.outputs,
            [eqn for eqn in self.saved_equations if eqn not in crossing],
        )

        def rule(eqn, values):
            place = self.saved_equations.get(eqn)
            if place is None:
                return None
            if eqn not in crossing:
                return [stop(saved[place])]
            data = self.saved[place].kind.data
            values = list(values)
            values[data] = superpose(values[data], shared[eqn.inputs[data]])
            return [superpose(stop(saved[place]), eqn.bind(*values)[0])]

        return evaluate(body, still, rule)

    def _perturbing(self, saved, deltas):
        """The rule of the cut step: kept outputs in place of operations, `delta` where they act."""
        stop = lax.stop_gradient
        numbers = {op.number: i for i, op in enumerate(self.live)}

        def rule(eqn, values):
            here = self.live_table.get(eqn)
            if here is None:
                return None
            place = self.saved_equations.get(eqn)
            if place is None:
                values = list(values)
                for op in here:
                    values[op.operand] = stop(values[op.operand])
                    values = op.kind.shift_inputs(values, deltas[numbers[op.number]])
                outputs = eqn.bind(*values)
            else:
                outputs = [stop(saved[place])]
            for op in here:
                outputs = op.kind.shift_outputs(outputs, deltas[numbers[op.number]])
            return outputs

        return rule

    # --- what is known before any value ---

    @cached_property
    def crossing(self) -> frozenset[Equation]:
        """Equations of cut operations whose data depends on things of their own step."""
        touched = set(self.moves.variables)
        found = []
        for eqn in self.analysis.split.body:
            place = self.saved_equations.get(eqn)
            if place is not None and eqn.inputs[self.saved[place].kind.data] in touched:
                found.append(eqn)
            alive = eqn in self.live_table or any(v in touched for v in eqn.inputs)
            if alive and eqn.primitive is not prims.stop_gradient_p:
                touched.update(v for v in eqn.outputs if v.is_float)
        return frozenset(found)

    def reads_old_states(self) -> bool:
        """Whether an output depends on old states past the new ones."""
        a = self.analysis
        past = [eqn for eqn in self.read_body if eqn not in self.saved_equations]
        return self._past_new_states({a.step.state[i] for i in a.hidden.leaves}, past)

    def _past_new_states(self, touched: set[Variable], equations: Iterable[Equation]) -> bool:
        for eqn in equations:
            if eqn.primitive is not prims.stop_gradient_p and any(v in touched for v in eqn.inputs):
                new = self.moves.new_states
                touched.update(v for v in eqn.outputs if v.is_float and v not in new)
        return any(v in touched for v in self.analysis.split.outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """The value that new states give to a variable, and for which of its elements (`None`: all)."""

    value: Array
    where: Array | None

    def over(self, value: Array) -> Array:
        moved = self.value.astype(value.dtype)
        if self.where is None:
            return moved
        # an average of copies may be off by rounding: the derivative is that of the copies alone
        return superpose(lax.stop_gradient(value), jnp.where(self.where, moved, value))


@dataclasses.dataclass(frozen=True, eq=False)
class MovedStates:
    """Which variables of a step are new states, or are moved on into them unchanged."""

    new_states: Mapping[Variable, int]
    """Each variable that is a new state, and the number of its float leaf."""
    origins: tuple[tuple[Equation, tuple[int, ...]], ...]
    """Moves that end in new states, last first, and which of their operands are moved."""
    variables: frozenset[Variable]

    def values(
        self, leaves: Sequence[Array], env: Env, step: StepFunctions, saved, deltas
    ) -> dict[Variable, Moved]:
        """What the new states `leaves` say of every such variable."""
        moved = {v: Moved(leaves[i], None) for v, i in self.new_states.items()}
        if not self.origins:
            return moved
        places = [
            v
            for eqn, operands in self.origins
            for i, v in enumerate(eqn.inputs)
            if i not in operands
        ]
        body = prune(step.analysis.split.body, places, step.saved_equations)
        env = evaluate(body, dict(env), step._perturbing(saved, deltas))
        for eqn, operands in self.origins:
            for i in operands:
                if eqn.inputs[i] not in moved:
                    moved[eqn.inputs[i]] = _inverse(eqn, i, moved, env)
        return moved


def _inverse(eqn: Equation, operand: int, moved: Mapping[Variable, Moved], env: Env) -> Moved:
    """The operand of a move from its outputs: the transpose, averaged where values are repeated."""

    def move(value):
        values = [
            value if i == operand else _still(env.get(v), v) for i, v in enumerate(eqn.inputs)
        ]
        return eqn.bind(*values)

    v = eqn.inputs[operand]
    _, back = jax.vjp(move, jnp.zeros(v.shape, v.aval.dtype))
    known, counts = [], []
    for out in eqn.outputs:
        zeros = jnp.zeros(out.shape, out.aval.dtype)
        if out not in moved:
            known.append(zeros)
            counts.append(zeros)
            continue
        here = moved[out]
        one = jnp.ones(out.shape, bool) if here.where is None else here.where
        known.append(jnp.where(one, here.value.astype(zeros.dtype), 0))
        counts.append(one.astype(zeros.dtype))
    (count,), (total,) = back(counts), back(known)
    count = count.real
    return Moved(total / jnp.maximum(count, 1), count > 0)


def _still(value: Any, v: Variable) -> Any:
    return jnp.zeros(v.shape, v.aval.dtype) if value is None else lax.stop_gradient(value)


def _moved_states(a: Analysis) -> MovedStates:
    old: set[Variable] = {a.step.state[i] for i in a.hidden.leaves}
    fixed = {*a.step.constants, *a.split.weights, *a.split.others}
    for eqn in a.split.body:
        moving = [v for v in eqn.inputs if v.is_float and v not in fixed]
        if _is_move(eqn) and moving and all(v in old for v in moving):
            old.update(v for v in eqn.outputs if v.is_float)
    made = {v for eqn in a.split.body for v in eqn.outputs}
    new_states: dict[Variable, int] = {}
    for number, i in enumerate(a.hidden.leaves):
        v = a.split.next_state[i]
        if v in made and v not in new_states:
            new_states[v] = number
    reached = set(new_states)
    origins = []
    for eqn in reversed(a.split.body):
        if not _is_move(eqn) or not any(v in reached for v in eqn.outputs):
            continue
        operands = tuple(
            i for i, v in enumerate(eqn.inputs) if v.is_float and v in made and v not in old
        )
        if operands:
            origins.append((eqn, operands))
            reached.update(eqn.inputs[i] for i in operands)
    return MovedStates(new_states, tuple(origins), frozenset(reached))


__all__ = ["StepFunctions", "superpose"]
