"""The fraction of neurons of each layer that spike on a sequence."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import Equation, Variable, is_spike
from ..errors import SilentNetworkWarning
from ._trace import Step


def spike_functions(step: Step) -> list[Equation]:
    """The operations of a step that give spikes."""
    return [e for e in step.equations if is_spike(e)]


def firing_rates(
    step: Step,
    functions: Sequence[Equation],
    parameters: Sequence[Any],
    xs: Sequence[Any],
    state: Sequence[Any],
    batched: bool,
) -> Array:
    """The fraction of outputs of each spike function that are not zero, over time, batch and neurons.

    - `parameters`, `xs`, `state`: array leaves; those of `xs` begin with T, or T and B.
    """

    def one_example(x: list[Array], state: list[Array]) -> tuple[list[Array], Array]:
        env = step.values(parameters, step.with_begins(x, False), state)
        spiking = [jnp.stack([jnp.mean(env[v] != 0) for v in e.outputs]).mean() for e in functions]
        return [env[v] for v in step.next_state], jnp.stack(spiking)

    one_step = jax.vmap(one_example) if batched else one_example

    def body(state: list[Array], x: list[Array]) -> tuple[list[Array], Array]:
        state, rates = one_step(x, state)
        return state, rates.reshape(-1, len(functions)).mean(0)

    return lax.scan(body, list(state), list(xs))[1].mean(0)


def silent_layers(
    step: Step, parameters: Sequence[Any], xs: Sequence[Any], state: Sequence[Any], batched: bool
) -> tuple[str, ...]:
    """A sentence for each spike function that gives no spike on a sequence."""
    functions = spike_functions(step)
    if not functions:
        return ()
    rates = jax.jit(
        lambda parameters, xs, state: firing_rates(step, functions, parameters, xs, state, batched)
    )(list(parameters), list(xs), list(state))
    silent = [e for e, rate in zip(functions, rates, strict=True) if not float(rate) > 0]
    layers = dict.fromkeys((_layer(step, e), e.source) for e in silent)
    return tuple(
        f"the spike function of {layer}, at {source}, gives no spike on this sequence: the layer is silent"
        for layer, source in layers
    )


def _layer(step: Step, function: Equation) -> str:
    """The state whose spikes these are, by its path: the nearest state that the function reads."""
    paths = dict(zip([*step.next_state, *step.state], [*step.state_paths] * 2, strict=True))
    made_by = {v: e for e in step.equations for v in e.outputs}
    reached, seen = dict.fromkeys(function.inputs), set[Variable]()
    while reached:
        found = dict.fromkeys(f"hidden {paths[v]}" for v in reached if v in paths)
        if found:
            return " and ".join(found)
        seen.update(reached)
        before = [v for u in reached if u in made_by for v in made_by[u].inputs]
        reached = dict.fromkeys(v for v in before if v not in seen)
    return "no state"


def warn_of_silence(silent: Sequence[str], stacklevel: int) -> None:
    """Warn where a layer is silent."""
    if silent:
        warnings.warn(
            "; ".join(silent)
            + ". Its weights get no useful gradient. Scale them with `etpc.nn.init_from_data`.",
            SilentNetworkWarning,
            stacklevel=stacklevel + 1,
        )
