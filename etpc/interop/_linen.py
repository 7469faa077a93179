"""Recurrent cells of Flax Linen as models."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as linen  # pyright: ignore[reportMissingImports]
import jax

from etpc.errors import InputError, InputTypeError, ModelError

from ._model import Adapted, Held, arrays, of_batch


def from_linen(
    cell: Any,
    params: Any,
    carry: Any,
    *,
    call: Callable[..., tuple[Any, Any]] | None = None,
) -> Adapted:
    """The model of a Flax Linen module that hands a carry on, such as a cell of `RNNCellBase`.

    **Arguments:**

    - `cell`: the module, called as `cell(carry, x) -> (carry, y)`.
    - `params`: from `cell.init`: `variables["params"]`, or all the variables. Collections other than
        `params`, such as running means, become a part of the hidden state.
    - `carry`: of one example, such as `cell.initialize_carry(key, x.shape)`.
    - `call`: `call(cell, carry, x) -> (carry, y)`, run on the bound module, for a module that is called another
        way.

    **Returns** the [model][etpc.interop.Adapted]. Its `params` have the structure of Flax: write them back as
    `{"params": model.params}`.

    **Raises** `etpc.InputError` where the variables hold no parameters; a step `etpc.ModelError` where it normalises by
    the statistics of a batch.
    """
    if not isinstance(cell, linen.Module):
        raise InputTypeError(f"from_linen takes a flax.linen.Module, not a {type(cell).__name__}.")
    if not isinstance(params, Mapping):
        raise InputTypeError(
            f"params must be a dict, as `cell.init(key, carry, x)` gives it, not {params!r}."
        )
    others: dict[str, Any] = {}
    if "params" in params and isinstance(params["params"], Mapping):
        others = {name: arrays(v) for name, v in params.items() if name != "params"}
        params = params["params"]
    if not jax.tree.leaves(params):
        raise InputError(
            "params holds no parameter: the module is not initialised. Pass what `cell.init(key, carry, x)` gives."
        )

    def step(params: Any, x: Any, state: Any) -> tuple[Any, Any]:
        variables = {name: state[name] for name in others}
        carry = state["carry"] if others else state
        with linen.intercept_methods(_refuse_batches):
            (carry, y), after = cell.apply(
                {"params": params, **variables}, carry, x, method=call, mutable=list(others)
            )
        return y, {"carry": carry, **{name: after[name] for name in others}} if others else carry

    start = arrays(carry)
    start = {"carry": start, **others} if others else start
    return Adapted(arrays(params), step, Held(start))


def _refuse_batches(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """**Raises** `ModelError` where a layer writes the statistics of a batch."""
    layer = context.module
    if not isinstance(layer, linen.BatchNorm) or context.method_name != "__call__":
        return call(*args, **kwargs)
    mean = lambda: layer.get_variable("batch_stats", "mean")
    before, y = mean(), call(*args, **kwargs)
    if mean() is not before:
        name = "." + ".".join(layer.path)
        raise ModelError(of_batch(name, "Call it with `use_running_average=True`"))
    return y
