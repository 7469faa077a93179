"""Modules of Flax NNX as models."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx  # pyright: ignore[reportMissingImports]

from etpc.errors import InputTypeError, ModelError, raise_together

from ._model import (
    Adapted,
    Held,
    Named,
    all_paths,
    arrays,
    check_written,
    of_batch,
    shape_text,
    shared_paths,
    written,
)

_CARRY = ("carry",)


def from_nnx(
    module: Any,
    x: Any,
    *,
    carry: Any = None,
    call: Callable[..., Any] | None = None,
) -> Adapted:
    """The model of a Flax NNX module.

    Its `nnx.Param`s become the parameters, and the other variables that a step writes become the hidden state, in both
    cases by the path of the variable in the module, as in `.params.cell.hf.kernel`. Variables that a step
    only reads are constants, except for the keys of random streams that are drawn from: each
    example of a batch has its own. The module is left as it was. A parameter that two modules share is one
    parameter, at the path where it is first met; all its paths are in `model.shared`.

    **Arguments:**

    - `module`: the module, called as `module(x) -> y`, or, where there is a carry, as
        `module(carry, x) -> (carry, y)`.
    - `x`: the input of one step of one example: arrays or shapes.
    - `carry`: of one example. Of an `nnx.RNNCellBase` it is `module.initialize_carry(x.shape)` where it is not given.
    - `call`: `call(module, x) -> y` or `call(module, carry, x) -> (carry, y)`, for modules that are
        called another way.

    **Returns** the [model][etpc.interop.Adapted]. It also holds the carry, as `state.carry`.

    **Raises** `etpc.ModelError` where a step changes a state's shape or writes a parameter, and where it normalises by
    the statistics of a batch; it names the path.
    """
    if not isinstance(module, nnx.Module):
        raise InputTypeError(f"from_nnx takes a flax.nnx.Module, not a {type(module).__name__}.")
    if carry is None and isinstance(module, nnx.RNNCellBase):
        carry = module.initialize_carry(jnp.shape(x), nnx.Rngs(0))
    graph, parameters, rest = nnx.split(module, nnx.Param, ...)
    params = Named.of(_values(parameters))
    others = _values(rest)
    has_carry = carry is not None
    invoke = call or (lambda module, *args: module(*args))

    def run(params: Named, x: Any, variables: dict[Any, Any]) -> tuple[Any, dict[Any, Any], Any]:
        copy = nnx.merge(graph, _state(parameters, dict(params.items())), _state(rest, variables))
        out = invoke(copy, variables[_CARRY], x) if has_carry else invoke(copy, x)
        after, y = out if has_carry else (None, out)
        _, kept, new = nnx.split(copy, nnx.Param, ...)
        new = _values(new)
        return y, {**new, _CARRY: after} if has_carry else new, _values(kept)

    start = {**others, _CARRY: arrays(carry)} if has_carry else others
    shared = _shared(module, dict(params.items()))
    changed = _changed(run, params, x, start, shared)
    raise_together(
        (
            of_batch(written(path), "Call `module.eval()` before")
            for path, part in nnx.iter_modules(module)
            if isinstance(part, nnx.BatchNorm) and (*path, "mean") in changed
        ),
        ModelError,
    )
    hidden = {path: start[path] for path in start if path in changed}
    constants = {path: value for path, value in others.items() if path not in changed}

    def step(params: Any, x: Any, state: Any) -> tuple[Any, Any]:
        y, new, _ = run(params, x, {**constants, **dict(state.items())})
        return y, Named.of({path: new[path] for path in hidden})

    return Adapted(params, step, Held(Named.of(hidden)), shared=shared)


def into_nnx(model: Adapted, module: Any) -> None:
    """Write the parameters of a model into an NNX module.

    **Arguments:**

    - `model`: from [`from_nnx`][etpc.interop.from_nnx], trained or not.
    - `module`: the module that it was made from, or another one with the same parameters.

    **Raises** `etpc.InputError` where the parameters of the two do not fit, with their paths;
    nothing is written then.
    """
    state = nnx.state(module, nnx.Param)
    current = _values(state)
    nnx.update(module, _state(state, check_written(current, model, _shared(module, current))))


def _shared(module: Any, first: Iterable[tuple[Any, ...]]) -> tuple[tuple[str, ...], ...]:
    """All paths of each parameter that the module holds at several."""

    def children(part: Any) -> Iterable[tuple[Any, Any]]:
        return nnx.iter_children(part) if nnx.graph.is_node(part) else ()

    return shared_paths(module, nnx.Param, children, first)


def _values(state: Any) -> dict[tuple[Any, ...], Any]:
    """The values of variables by path."""
    return {path: arrays(v.get_value()) for path, v in nnx.to_flat_state(state)}


def _state(state: Any, values: dict[tuple[Any, ...], Any]) -> Any:
    """Variables with other values."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, v.replace(values[path])) for path, v in flat])


def _changed(
    run: Any, params: Named, x: Any, start: dict[Any, Any], shared: tuple[tuple[str, ...], ...]
) -> set[Any]:
    """The paths of what a step writes. **Raises** `ModelError` where it writes what it may not."""
    changed: set[Any] = set()
    remedy = "A parameter stays as it is during a step: make it another nnx.Variable."

    def traced(params: Named, x: Any, values: list[Any]) -> None:
        before = dict(zip(start, values, strict=True))
        _, after, kept = run(params, x, before)
        same = lambda old, new: (
            [id(a) for a in jax.tree.leaves(old)] == [id(a) for a in jax.tree.leaves(new)]
        )
        problems = [
            f"A step writes the parameter {all_paths(p, shared)}. {remedy}"
            for p, old in params.items()
            if not same(old, kept.get(p))
        ]
        problems += [
            f"A step makes a new variable, {written(p)}. Make it when the module is made."
            for p in after
            if p not in start
        ]
        problems += [
            f"A step changes the state {written(p)} from {old} to {new}. Let it begin as it stays."
            for p in start
            if p in after
            if (old := shape_text(before[p])) != (new := shape_text(after[p]))
        ]
        raise_together(problems, ModelError)
        changed.update(p for p in start if p == _CARRY or not same(before[p], after.get(p)))

    jax.eval_shape(traced, params, x, list(start.values()))
    streams = {p[:-1] for p in changed if p[-1:] == ("count",)}
    return changed | {p for p in start if p[-1:] == ("key",) and p[:-1] in streams}
