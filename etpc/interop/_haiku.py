"""Transformed functions of Haiku as models."""

import inspect
from typing import Any

import haiku as hk  # pyright: ignore[reportMissingImports]
import jax

from etpc.errors import InputError, InputTypeError, ModelError

from ._model import Adapted, Held, arrays, of_batch


def from_haiku(
    transformed: Any, params: Any, state: Any, *, variables: Any = None, key: Any = None
) -> Adapted:
    """The model of a transformed Haiku function that calls a recurrent core.

    **Arguments:**

    - `transformed`: from `hk.transform` or `hk.transform_with_state` of a function
        `(x, state) -> (y, new_state)`, with or without `hk.without_apply_rng`.
    - `params`: from `transformed.init`.
    - `state`: the core's state of one example, such as `core.initial_state(None)`.
    - `variables`: Haiku's own state, where `hk.transform_with_state` was used. It becomes a part of
        the hidden state.
    - `key`: for a function that draws random numbers. It becomes a part of the hidden state, and is split
        at each step; each example of a batch gets its own.

    **Returns** the [model][etpc.interop.Adapted]. Its `params` have the structure of Haiku, and go
    to `transformed.apply` as they are.

    **Raises** `etpc.InputError` where `variables` are missing or not wanted; a step `etpc.ModelError` where it
    normalises by the statistics of a batch.
    """
    stateful = isinstance(transformed, hk.TransformedWithState)
    if not stateful and not isinstance(transformed, hk.Transformed):
        raise InputTypeError(
            "from_haiku takes what `hk.transform` or `hk.transform_with_state` gives, not a "
            f"{type(transformed).__name__}."
        )
    if stateful != (variables is not None):
        raise InputError(
            "The function was transformed by `hk.transform_with_state`: pass the state that its `init` gave "
            "as `variables=`."
            if stateful
            else "variables= is for functions that `hk.transform_with_state` transformed."
        )
    if not jax.tree.leaves(params):
        raise InputError(
            "params holds no parameter. Pass what `transformed.init(key, x, state)` gives."
        )
    draws = "rng" in inspect.signature(transformed.apply).parameters
    plain = not stateful and key is None

    def step(params: Any, x: Any, state: Any) -> tuple[Any, Any]:
        parts = {"core": state} if plain else dict(state)
        args: list[Any] = [params]
        if stateful:
            args.append(parts["variables"])
        if draws:
            step_key = None
            if key is not None:
                parts["key"], step_key = jax.random.split(parts["key"])
            args.append(step_key)
        with hk.intercept_methods(_refuse_batches):
            out = transformed.apply(*args, x, parts["core"])
        if stateful:
            out, parts["variables"] = out
        y, parts["core"] = out
        return y, parts["core"] if plain else parts

    start: dict[str, Any] = {"core": arrays(state)}
    if stateful:
        start["variables"] = arrays(variables)
    if key is not None:
        start["key"] = key
    return Adapted(arrays(params), step, Held(start["core"] if plain else start))


def _refuse_batches(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """**Raises** `ModelError` where a layer uses the statistics of a batch."""
    if isinstance(context.module, hk.BatchNorm) and context.method_name == "__call__":
        given = inspect.signature(context.orig_method).bind(*args, **kwargs).arguments
        if given["is_training"] or given.get("test_local_stats"):
            name = context.module.module_name
            raise ModelError(of_batch(name, "Call it with `is_training=False`"))
    return call(*args, **kwargs)
