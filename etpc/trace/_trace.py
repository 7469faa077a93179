"""One step of a model as a canonical, flat program."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._jax import (
    Equation,
    Flat,
    Tracer,
    Variable,
    canonicalise,
    evaluate,
    flatten,
    propagate,
    without_prints,
)
from ..errors import Code, InputTypeError, ModelError, UnsupportedError, raise_together
from ._leaves import Leaves, frozen, paths_of
from .rewrites import REWRITES

StepFunction = Callable[[Any, Any, Any], tuple[Any, Any]]
"""How one step is called: `step(model, x, state) -> (y, new_state)`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The canonical program of one step of one example.

    `parameters`, `inputs` and `state` are all array leaves in order, floats or not. `equations` holds what the
    model computes, with `jit` and `remat` inlined. A step can be printed.
    """

    program: Flat
    """From parameters, inputs and state to outputs and new state."""
    model_leaves: Leaves
    input_leaves: Leaves
    state_leaves: Leaves
    output_leaves: Leaves
    initial_state: tuple[Any, ...]
    """The array leaves of the state of one example as given: values or shapes."""
    initial: Flat | None
    """From parameters to these leaves, where `init_state()` computes a float leaf from a float parameter.
    Then the step has one more input, `begins`, and where that is true it replaces the old state by the
    initial one: so such a parameter is a weight of the first step of a stream."""
    fixed: Mapping[Variable, np.ndarray]
    """Values of the model's integer and boolean arrays, where they are known: its connections."""
    added: tuple[tuple[str, jax.ShapeDtypeStruct], ...] = ()
    """Names and types of arrays that are carried after those of the state, and are zero where a stream begins."""
    call: StepFunction | None = None
    """How the step was called."""

    @property
    def state_paths(self) -> tuple[str, ...]:
        """Of all that is carried."""
        return (*self.state_leaves.paths, *(path for path, _ in self.added))

    @property
    def state_avals(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (*self.state_leaves.avals, *(aval for _, aval in self.added))

    @property
    def equations(self) -> tuple[Equation, ...]:
        return self.program.equations

    @property
    def constants(self) -> Mapping[Variable, Any]:
        return self.program.constants

    @property
    def parameters(self) -> tuple[Variable, ...]:
        return self.program.inputs[: len(self.model_leaves.avals)]

    @property
    def inputs(self) -> tuple[Variable, ...]:
        """The leaves of the input, and `begins` where the initial state is learned."""
        first = len(self.model_leaves.avals)
        return self.program.inputs[first : -len(self.state_avals)]

    @property
    def state(self) -> tuple[Variable, ...]:
        return self.program.inputs[-len(self.state_avals) :]

    @property
    def outputs(self) -> tuple[Variable, ...]:
        return self.program.outputs[: len(self.output_leaves.avals)]

    @property
    def next_state(self) -> tuple[Variable, ...]:
        return self.program.outputs[len(self.output_leaves.avals) :]

    def with_begins(self, inputs: Sequence[Any], begins: Any) -> list[Any]:
        """The values of `inputs`, from the leaves of the input and whether the stream begins."""
        return [*inputs] if self.initial is None else [*inputs, begins]

    def environment(
        self, parameters: Sequence[Any], inputs: Sequence[Any], state: Sequence[Any]
    ) -> dict[Variable, Any]:
        """The values that the equations start from."""
        env: dict[Variable, Any] = dict(self.constants)
        env.update(zip(self.parameters, parameters, strict=True))
        env.update(zip(self.inputs, inputs, strict=True))
        env.update(zip(self.state, state, strict=True))
        return env

    def values(
        self, parameters: Sequence[Any], inputs: Sequence[Any], state: Sequence[Any]
    ) -> dict[Variable, Any]:
        """The values of all variables in one step."""
        return evaluate(self.equations, self.environment(parameters, inputs, state))

    def __str__(self) -> str:
        input_paths = self.with_begins(self.input_leaves.paths, "whether the stream begins")
        groups = {
            "parameters": zip(self.model_leaves.paths, self.parameters, strict=True),
            "inputs": zip(input_paths, self.inputs, strict=True),
            "state": zip(self.state_paths, self.state, strict=True),
            "new state": zip(self.state_paths, self.next_state, strict=True),
            "outputs": zip(self.output_leaves.paths, self.outputs, strict=True),
        }
        lines = ["step"]
        for title, members in groups.items():
            lines += [f"  {title}: " + ", ".join(f"{path} = {v!r}" for path, v in members)]
        lines += [f"    {eqn!r}    # {eqn.source}" for eqn in self.equations]
        return "\n".join(lines)


def trace(model: Any, inputs: Any, state: Any = None, step: StepFunction | None = None) -> Step:
    """Trace one step of `model` on shapes alone.

    **Arguments:** as in [`etpc.compile`][].

    **Returns** the [`Step`][etpc.trace.Step].

    **Raises** `ModelError` where the state changes its structure, shape or dtype, or where there
    is no initial state.
    """
    call = checked_call(model, step)
    given = state is not None
    if not given:
        state = initial_state(model)
    model_leaves = Leaves.of(model, "model")
    input_leaves = Leaves.of(inputs, "x", numbers=True)
    state_leaves = Leaves.of(state, "state", numbers=True)
    _check_inputs(input_leaves)
    first, second = len(model_leaves.avals), len(model_leaves.avals) + len(input_leaves.avals)
    _check_state(state_leaves)
    initial, learned = (None, []) if given else _learned(model_leaves, state_leaves)
    flag = [] if initial is None else [jax.ShapeDtypeStruct((), bool)]
    kept: dict[str, Any] = {}

    def flat(*arrays: Any) -> list[Any]:
        m = model_leaves.join(arrays[:first])
        x, rest = input_leaves.join(arrays[first:second]), arrays[second:]
        begins, hidden = rest[: len(flag)], list(rest[len(flag) :])
        if learned:
            start = state_leaves.split(m.init_state())
            for i in learned:
                hidden[i] = jax.lax.select_n(*begins, hidden[i], start[i])

        def result() -> Any:
            return call(m, x, state_leaves.join(hidden))

        y, new_state = called(result, input_leaves, state_leaves)
        output_leaves = Leaves.of(y, "y", numbers=True)
        new_leaves = Leaves.of(new_state, "state", numbers=True)
        check_new_state(state_leaves, new_leaves)
        kept["output"] = output_leaves
        new = [jnp.asarray(v) for v in new_leaves.split(new_state)]
        return [jnp.asarray(v) for v in output_leaves.split(y)] + new

    avals = [*model_leaves.avals, *input_leaves.avals, *flag, *state_leaves.avals]
    jaxpr, effects = without_prints(jax.make_jaxpr(flat)(*avals))
    _check_effects(effects)
    program = flatten(jaxpr)
    parameters = program.inputs[:first]
    for rewrite in REWRITES:
        program = rewrite(program, parameters)
    constants = {v: frozen(a) for v, a in program.constants.items()}
    return Step(
        program=dataclasses.replace(program, constants=constants),
        model_leaves=model_leaves,
        input_leaves=input_leaves,
        state_leaves=state_leaves,
        output_leaves=kept["output"],
        initial_state=tuple(map(frozen, state_leaves.split(state))),
        initial=initial,
        fixed={
            v: frozen(np.asarray(leaf))
            for v, leaf in zip(parameters, model_leaves.split(model), strict=True)
            if _is_connection(leaf)
        },
        call=step,
    )


def fits(model: Any, inputs: Any, state: Any, step: StepFunction | None) -> bool:
    """Whether the model takes inputs of these shapes."""
    try:
        trace(model, inputs, state, step)
    except Exception:
        return False
    return True


def checked_call(model: Any, step: Any) -> StepFunction:
    """The function that runs one step, from what the user passed as `step=`."""
    if step is not None and not callable(step):
        raise InputTypeError(
            f"step must be a function `step(model, x, state) -> (y, new_state)`, not {step!r}."
        )
    if step is None and not callable(model):
        raise ModelError(
            f"A {type(model).__name__} is not callable. etpc calls `model(x, state) -> (y, "
            "new_state)`. Pass `step=lambda model, x, state: ...` to call it another way."
        )
    return (lambda m, x, s: m(x, s)) if step is None else cast(StepFunction, step)


def initial_state(model: Any) -> Any:
    make = getattr(model, "init_state", None)
    if make is None:
        raise ModelError(
            f"There is no initial state: a {type(model).__name__} has no `init_state()` and "
            "`state=` was not given. Pass `state=` with the hidden state of one example, and "
            "`step=` where it is not called as `model(x, state) -> (y, new_state)`.",
            code=Code.NO_INITIAL_STATE,
        )
    if not isinstance(model, eqx.Module):
        return make()
    try:  # at once: one by one, XLA compiles a program for each array of zeros
        return eqx.filter_jit(make)()
    except Exception:  # it may ask for values
        return make()


def _learned(model_leaves: Leaves, state_leaves: Leaves) -> tuple[Flat | None, list[int]]:
    """`init_state()` as a program of the parameters, and which leaves depend on a float parameter;
    `None` where none does, or where the function needs values and so cannot be traced."""

    def start(*arrays: Any) -> list[Any]:
        leaves = state_leaves.split(model_leaves.join(arrays).init_state())
        avals = state_leaves.avals
        return [
            v if jnp.issubdtype(a.dtype, jax.dtypes.extended) else jnp.asarray(v, a.dtype)
            for v, a in zip(leaves, avals, strict=True)
        ]

    try:
        flat = canonicalise(start, model_leaves.avals)
    except Exception:  # whatever a function that needs values raises
        return None, []
    moved = propagate(flat.equations, (flat.inputs[i] for i in model_leaves.floats))
    learned = [i for i in state_leaves.floats if flat.outputs[i] in moved]
    return (flat, learned) if learned else (None, [])


def called(call: Callable[[], Any], inputs: Leaves, state: Leaves) -> tuple[Any, Any]:
    """What one step returns. **Raises** `ModelError` unless it is `(y, new_state)`."""
    try:
        result = call()
    except Exception as error:
        input_text, state_text = (", ".join(map(_aval, leaves.avals)) for leaves in (inputs, state))
        error.add_note(
            f"etpc called the model with x {input_text} and state {state_text}: one step of one example, "
            "without axes for time and batch. Where these shapes are not meant, mend `inputs=` "
            "and `state=`, or pass `batch_size=` to what takes whole sequences."
        )
        if "unbound axis name" in str(error):
            error.add_note(
                "There is no axis of the batch in a step. Take a layer that needs the whole batch, such as "
                "`eqx.nn.BatchNorm` in training, with `inference=True`, or one that normalises each example, such as "
                "LayerNorm or GroupNorm."
            )
        if re.search(r"\bkeys?\b", str(error)):
            error.add_note(
                "Where a layer asks for a PRNG key, as dropout does, keep the key in the state and split it at "
                "each step: `etpc.interop.keyed(step)` makes such a step of `step(model, x, state, key)`."
            )
        raise
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ModelError(
            f"One step must return a pair `(y, new_state)`, and returned "
            f"{_describe(result)}. Return both, or pass `step=` that does; for a model that "
            "returns the new state alone, one that gives it twice."
        )
    return result


def _check_inputs(input_leaves: Leaves) -> None:
    if not input_leaves.avals:
        raise ModelError(
            "inputs= has no array. The number of steps is that of the input's leading axis, so a "
            "model that reads nothing still needs one: pass an unused input, such as "
            "`inputs=jnp.zeros(())`."
        )


def _check_effects(effects: list[tuple[str, str]]) -> None:
    """**Raises** `UnsupportedError` where a step has effects other than prints."""
    if effects:
        places = ", ".join(dict.fromkeys(f"{name} at {line}" for name, line in effects))
        raise UnsupportedError(
            f"The step does more than compute values: {places}. This is because it uses a mutable array "
            "(`jax.new_ref`), or calls back to Python by `io_callback`. A program evaluates a step more "
            "than once, and parts of it in another order, so that such an effect would not be that of "
            "the model. Compute with values, as `h = h.at[i].add(y)` does, and carry them in the state; use "
            "`jax.pure_callback` for a function that has no effect.",
            code=Code.EFFECTS,
        )


def _is_connection(leaf: Any) -> bool:
    """Whether a leaf of the model is an array of integers or booleans with values."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array | np.ndarray):
        return False
    return jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool


def _describe(result: Any) -> str:
    if isinstance(result, tuple):
        return f"a tuple of {len(result)}"
    if isinstance(result, jax.Array):
        return f"one array {result.dtype}{list(result.shape)}"
    return f"a {type(result).__name__}"


def _check_state(leaves: Leaves) -> None:
    if not leaves.floats:
        raise ModelError(
            "The state has no float leaf, so no weight can have an influence that lasts beyond a "
            f"step (leaves: {', '.join(leaves.paths) or 'none'}). Train such a model by "
            "`jax.grad` alone, or make the hidden state a float array.",
            code=Code.NO_FLOAT_STATE,
        )
    if not any(math.prod(leaves.avals[i].shape) for i in leaves.floats):
        shapes = ", ".join(f"{leaves.paths[i]}: {_aval(leaves.avals[i])}" for i in leaves.floats)
        raise ModelError(
            f"The float leaves of the state are empty ({shapes}), so no weight can have an influence "
            "that lasts beyond a step. Train such a model by `jax.grad` alone, or give the layer "
            "at least one neuron.",
            code=Code.NO_FLOAT_STATE,
        )


def check_new_state(old: Leaves, new: Leaves) -> None:
    remedy = "Return a state with the structure, shapes and dtypes of the one that came in."
    if old.treedef != new.treedef:
        raise ModelError(
            "The step changes the structure of the state.\n"
            f"  in:  {', '.join(old.paths)}  ({old.treedef})\n"
            f"  out: {', '.join(new.paths)}  ({new.treedef})\n{remedy}",
            code=Code.STATE_CHANGES,
        )
    problems = []
    for path, before, after in zip(old.paths, old.avals, new.avals, strict=True):
        if before.shape != after.shape or before.dtype != after.dtype:
            where = "the state" if path == "state" else f"state {path}"
            problems.append(
                f"The step changes {where} from {_aval(before)} to {_aval(after)}. {remedy}"
            )
    for i, (old_leaf, new_leaf) in enumerate(zip(old.static, new.static, strict=True)):
        if old_leaf is not new_leaf and old_leaf != new_leaf:
            path = paths_of(old.join(old.avals), "state")[i]
            problems.append(
                f"The step changes state {path}, which is no array and so part of the program, from "
                f"{old_leaf!r} to {new_leaf!r}. {remedy}"
            )
    raise_together(problems, code=Code.STATE_CHANGES)


def _aval(aval: jax.ShapeDtypeStruct) -> str:
    return f"{aval.dtype}{list(aval.shape)}"
