"""Modules of brainstate, and so of braintrace and brainpy.state, as models."""

from collections.abc import Callable, Iterable
from typing import Any

import brainstate  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp

from etpc.errors import InputError, InputTypeError, ModelError, raise_together
from etpc.trace import canonicalise, evaluate, prune

from ._model import (
    Adapted,
    Held,
    Named,
    all_paths,
    arrays,
    check_written,
    of_batch,
    same_form,
    shape_text,
    shared_paths,
    written,
)

_CLOCK = ("i",)
"""Where the number of the step is in the state, for layers that ask for it."""


def from_brainstate(
    module: Any, x: Any, *, call: Callable[[Any, Any], Any] | None = None
) -> Adapted:
    """The model of a `brainstate` module, layers of `braintrace.nn` and `brainpy.state` among them.

    The module is traced once and left as it was. Its `ParamState`s become the parameters; whatever other state
    a step writes becomes the hidden state, in both cases by the path of the state in the module, as in
    `.params.linear.weight`. States that a step only reads are constants, and so are plain arrays. Physical
    units stay. Of a random state the keys are a part of the hidden state, so that each example of
    a batch draws its own numbers. The environment, such as `dt`, is that of this call; a layer that
    asks it for the time `t` or the number `i` of the step has both counted in the state, from 0,
    unless you set them.

    A parameter that two layers share is one parameter, at the path where it is first met; all its paths are in
    `model.shared`.

    **Arguments:**

    - `module`: the module, initialised for one example: `brainstate.nn.init_all_states(module)`,
        without a batch size.
    - `x`: the input of one step of one example: arrays or shapes.
    - `call`: `call(module, x) -> y`, for modules that are called another way than `module(x)`.

    **Returns** the [model][etpc.interop.Adapted].

    **Raises** `etpc.ModelError` where the module is not initialised, where a state changes its
    shape, and where a step writes a parameter or normalises by the statistics of a batch; it names the path.
    """
    if not isinstance(module, brainstate.nn.Module):
        raise InputTypeError(
            f"from_brainstate takes a brainstate.nn.Module, not a {type(module).__name__}."
        )
    example = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a, x
    )
    example = arrays(example)
    clock = jnp.int32(0)
    traced = _trace(module, call, example, clock)
    states, changed = traced.get_states(example, clock), traced.get_write_states(example, clock)
    members = dict(brainstate.graph.states(module).items())
    parameters = {p: s for p, s in members.items() if isinstance(s, brainstate.ParamState)}
    shared = _shared(module, parameters)
    known = {id(state): path for path, state in members.items()}
    paths = [known.get(id(s)) or (f"{type(s).__name__}_{n}",) for n, s in enumerate(states)]
    raise_together(
        f"A step writes the parameter {all_paths(path, shared)}. A parameter stays as it is during a step: "
        "make it a brainstate.HiddenState if it is a part of the dynamics."
        for path, state in zip(paths, states, strict=True)
        if path in parameters and any(state is c for c in changed)
    )
    norms = tuple(vars(brainstate.nn)[f"BatchNorm{n}d"] for n in range(4))
    raise_together(
        (
            of_batch(written(path), "Convert the module in `brainstate.environ.context(fit=False)`")
            for path, node in brainstate.graph.nodes(module).items()
            if isinstance(node, norms) and any(node.running_mean is c for c in changed)
        ),
        ModelError,
    )
    hidden = {
        path: arrays(state.value)
        for path, state in zip(paths, states, strict=True)
        if any(state is c for c in changed)
    }
    constants = {path: state.value for path, state in zip(paths, states, strict=True)}
    params = Named.of({path: arrays(state.value) for path, state in parameters.items()})

    def pure(params: Named, x: Any, state: Named, clock: Any) -> tuple[Any, Named]:
        values = {**constants, **dict(params.items()), **dict(state.items())}
        after, y = traced.jaxpr_call([values[path] for path in paths], x, clock)
        new = dict(zip(paths, after, strict=True))
        return y, Named.of({path: new[path] for path in hidden})

    step, reads_clock = _frozen(pure, params, example, Named.of(hidden), clock)
    if reads_clock:
        hidden[_CLOCK] = clock
    return Adapted(params, step, Held(Named.of(hidden)), shared=shared)


def _trace(module: Any, call: Any, x: Any, clock: Any) -> Any:
    """The traced step of a module, as a function of its states."""

    def step(x: Any, i: Any) -> Any:
        around = {} if brainstate.environ.get("i", None) is not None else {"i": i}
        dt = brainstate.environ.get("dt", None)
        if dt is not None and brainstate.environ.get("t", None) is None:
            around["t"] = i * dt
        with brainstate.environ.context(**around):
            return module(x) if call is None else call(module, x)

    traced = brainstate.transform.StatefulFunction(step, return_only_write=False)
    before = {path: (s, s.value) for path, s in brainstate.graph.states(module).items()}
    try:
        return traced.make_jaxpr(x, clock)
    except ValueError as error:
        # It cannot put a state back whose unit was changed: that is done here.
        if "does not match with the origin tree structure" not in str(error):
            raise
        after = {path: state.value for path, (state, _) in before.items()}
        for state, value in before.values():
            state.value = value
        _check_state(
            Named.of({path: value for path, (_, value) in before.items()}), Named.of(after)
        )
        raise
    except AttributeError as error:
        where = [path for path, node in brainstate.graph.nodes(module).items() if node is error.obj]
        if not where:
            raise
        raise ModelError(
            f"The module{written(where[0])} has no {error.name!r}: it is not initialised. Call "
            "`brainstate.nn.init_all_states(module)` first, without a batch size."
        ) from error
    except KeyError as error:
        if "not found in environment" not in str(error):
            raise
        raise ModelError(
            f"A layer asks the environment for what is not there: {error.args[0].splitlines()[0]} Call "
            "`brainstate.environ.set(...)` first, or convert the module inside of "
            "`brainstate.environ.context(...)`."
        ) from error


def _frozen(
    function: Callable[..., Any], params: Named, x: Any, hidden: Named, clock: Any
) -> tuple[Callable[[Any, Any, Any], tuple[Any, Any]], bool]:
    """A step as the operations that it is now, and whether it reads the clock."""
    argument_leaves, structure = jax.tree.flatten((params, x, hidden, clock))
    avals = [jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in argument_leaves]
    outer: list[Any] = []

    def on_leaves(*leaves: Any) -> list[Any]:
        out = function(*jax.tree.unflatten(structure, leaves))
        _check_state(hidden, out[1])
        out_leaves, treedef = jax.tree.flatten(out)
        outer.append(treedef)
        return out_leaves

    flat = canonicalise(on_leaves, avals)
    equations = prune(flat.equations, flat.outputs)
    reads_clock = any(flat.inputs[-1] in eqn.inputs for eqn in equations)
    x_leaves, x_structure = jax.tree.flatten(x)

    def step(params: Any, x: Any, state: Any) -> tuple[Any, Any]:
        leaves, treedef = jax.tree.flatten(arrays(x))
        if treedef != x_structure or [a.shape for a in leaves] != [a.shape for a in x_leaves]:
            raise InputError(
                f"The model was made for an input of {shape_text(x_leaves)}, and was given "
                f"{shape_text(leaves)}. Convert the module again with such an input."
            )
        leaves = [a.astype(b.dtype) for a, b in zip(leaves, x_leaves, strict=True)]
        values = dict(state.items())
        current_clock = values.pop(_CLOCK, clock)
        arguments = jax.tree.leaves((params, leaves, Named.of(values), current_clock))
        env = evaluate(equations, flat.environment(arguments))
        y, new = jax.tree.unflatten(outer[0], [env[v] for v in flat.outputs])
        return y, Named.of({**dict(new.items()), _CLOCK: current_clock + 1}) if reads_clock else new

    return step, reads_clock


def _check_state(before: Named, after: Named) -> None:
    """**Raises** `ModelError` where a step changes what a state is like, with its path."""
    raise_together(
        f"A step changes the state {written(path)} from {_like(old)} to {_like(new)}. Initialise it as it "
        "stays: `brainstate.nn.init_all_states(module)` without a batch size, for an input of one example."
        for (path, old), (_, new) in zip(before.items(), after.items(), strict=True)
        # A unit may have several names, as nS/ms: equal structures, which print differently.
        if not same_form(old, new)
    )


def _like(value: Any) -> str:
    structure = jax.tree.structure(value)
    return shape_text(value) + ("" if structure.num_nodes == 1 else f" ({structure})")


def into_brainstate(model: Adapted, module: Any) -> None:
    """Write the parameters of a model into a `brainstate` module.

    **Arguments:**

    - `model`: from [`from_brainstate`][etpc.interop.from_brainstate], trained or not.
    - `module`: the module that it was made from, or another one with the same parameters.

    **Raises** `etpc.InputError` where the parameters of the two do not fit, with their paths;
    nothing is written then.
    """
    states = {
        path: state
        for path, state in brainstate.graph.states(module).items()
        if isinstance(state, brainstate.ParamState)
    }
    current = {path: arrays(state.value) for path, state in states.items()}
    values = check_written(current, model, _shared(module, states))
    for path, state in states.items():
        state.value = values[path]


def _shared(module: Any, first: Iterable[tuple[Any, ...]]) -> tuple[tuple[str, ...], ...]:
    """All paths of each parameter that the module holds at several."""

    def children(part: Any) -> Iterable[tuple[Any, Any]]:
        if isinstance(part, brainstate.graph.Node):
            hidden = getattr(part, "graph_invisible_attrs", ())
            return [(name, child) for name, child in vars(part).items() if name not in hidden]
        if isinstance(part, list | tuple):
            return enumerate(part)
        return part.items() if isinstance(part, dict) else ()

    return shared_paths(module, brainstate.ParamState, children, first)
