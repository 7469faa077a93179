"""Weights scaled until each layer of neurons fires at a given rate on a sample."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from etpc.errors import InputError, ModelError, checked_count, raise_together

if TYPE_CHECKING:  # layers do not import the compiler
    from etpc.trace import Equation, Step

Model = TypeVar("Model")

NEAR = 1.1
"""A rate within this factor of what was asked for ends the search for a layer's scale."""
ENOUGH = 2.0
"""A final rate that is off by more than this factor is an error."""
OCTAVES, HALVINGS, SWEEPS = 20, 12, 4


def init_from_data(
    model: Model,
    xs: Any,
    rate: float = 0.05,
    *,
    batch_size: int | None = None,
    state: Any = None,
    step: Callable[..., Any] | None = None,
) -> Model:
    """Scale the weights of a spiking network so that each of its layers fires at a given rate on a
    sample of the data.

    Layer by layer, in the order in which they are computed, the weights that drive a layer's neurons
    are multiplied by one number: those of each matrix product, convolution or look-up that is the
    last on the way to the spikes, recurrent ones among them, be there synapses between or not. Biases,
    readouts and everything else stay as they are. The layers need not be those of `etpc.nn`.

    **Arguments:**

    - `model`: a model as [`etpc.compile`][] takes it, with its initial weights.
    - `xs`: a typical sequence, with leading axes T, B, or T alone where `batch_size` is not given; as
        long as a few time constants of the neurons.
    - `rate`: the fraction of neurons and steps with a spike, in each layer; between 0 and 1.
    - `batch_size`, `state`, `step`: as in [`etpc.verify`][].

    **Returns** the model with the scaled weights. The rates are within a factor of 1.1 of `rate` where
    layers do not drive each other in a loop and the scale can be chosen so finely, and always within a
    factor of 2.

    **Raises** `etpc.ModelError` where the model has no spike function, or a layer has no weights in
    front of it; `etpc.InputError` for a rate out of range, and where a layer reaches it with no scale,
    as for inputs of zeros.

    **Source** Rossbroich, Gygax & Zenke, "Fluctuation-driven initialization for spiking neural network
    training", Neuromorphic Computing and Engineering 2(4), 2022, arXiv 2206.10226: weights that depend on
    the data, refined until firing rates reach a target. Layer by layer, with one factor for each that
    is searched on a sample, as in Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv
    1511.06422. Deviations: the target is the rate alone, and not the fluctuations of the membrane, so that
    it holds for any neuron; initial weights are not replaced by orthonormal ones.

    ```pycon
    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> from etpc import nn
    >>> model = nn.Sequential([eqx.nn.Linear(100, 64, key=jax.random.key(0)), nn.LIF(64)])
    >>> xs = 1.0 * jax.random.bernoulli(jax.random.key(1), 0.1, (200, 100))  # T, I
    >>> def firing_rate(model):
    ...     _, spikes = jax.lax.scan(lambda s, x: model(x, s)[::-1], model.init_state(), xs)
    ...     return float(spikes.mean())
    >>> firing_rate(model), round(firing_rate(nn.init_from_data(model, xs)), 2)
    (0.0, 0.05)

    ```
    """
    from etpc.gradient.data import one_step
    from etpc.trace import firing_rates, trace

    if not (isinstance(rate, int | float | np.number) and 0 < rate < 1):
        raise InputError(
            f"rate must lie between 0 and 1, not {rate!r}. It is the fraction of neurons and steps with a "
            "spike."
        )
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
    traced = trace(model, inputs, state, step)
    layers = _layers(traced)
    functions = [e for layer in layers for e in layer.functions]
    leaves = traced.model_leaves
    values = leaves.split(model)
    driven = {i: k for k, layer in enumerate(layers) for i in layer.weights}
    start = _initial_state(traced, batch_size)
    sample = [
        jnp.asarray(a, v.aval.dtype)
        for a, v in zip(traced.input_leaves.split(xs), traced.inputs, strict=False)
    ]
    of_layer = np.array([[e in layer.functions for e in functions] for layer in layers], float)
    of_layer /= of_layer.sum(1, keepdims=True)

    def scaled(values: Sequence[Any], scales: Any) -> list[Any]:
        return [
            (scales[driven[i]] * a).astype(a.dtype) if i in driven else a
            for i, a in enumerate(values)
        ]

    @jax.jit
    def measure(values: Any, scales: Any, sample: Any, start: Any) -> Any:
        parameters = scaled(values, scales)
        return firing_rates(traced, functions, parameters, sample, start, batch_size is not None)

    def rates(octaves: np.ndarray) -> np.ndarray:
        function_rates = measure(values, jnp.asarray(2.0**octaves, jnp.float32), sample, start)
        return of_layer @ np.asarray(function_rates, float)

    octaves = np.zeros(len(layers))
    reached = rates(octaves)
    for _ in range(SWEEPS):
        if all(_off(r, rate) <= NEAR for r in reached):
            break
        for k in range(len(layers)):
            octaves[k] = _searched(octaves, k, rates, rate)
        reached = rates(octaves)
    _check_rates(layers, reached, rate, leaves.paths)
    scaled_values = scaled(values, 2.0**octaves)
    floats = [jnp.asarray(scaled_values[i]) if i in driven else values[i] for i in leaves.floats]
    return leaves.with_floats(model, floats)


def _initial_state(traced: "Step", batch_size: int | None) -> Sequence[Any]:
    """The array leaves that a stream begins with."""
    from etpc.trace import repeat

    start = traced.initial_state
    if any(isinstance(a, jax.ShapeDtypeStruct) for a in start):
        raise InputError("state= has shapes without values. Pass arrays that a stream begins with.")
    return start if batch_size is None else [repeat(a, batch_size) for a in start]


def _check_rates(
    layers: "list[_Layer]", reached: np.ndarray, rate: float, paths: Sequence[str]
) -> None:
    """**Raises** `InputError` where the rate of a layer is far from what was asked for."""
    raise_together(
        [
            f"The layer with the spike function at {layer.functions[-1].source} fires at {r:.3g} where "
            f"{rate:.3g} was asked for, and no scale of {', '.join(paths[i] for i in sorted(layer.weights))} "
            "brings it nearer. Pass a sample that drives it, longer than its time constants, or ask for "
            "another rate."
            for layer, r in zip(layers, reached, strict=True)
            if _off(r, rate) > ENOUGH
        ],
        InputError,
    )


def _off(reached: float, wanted: float) -> float:
    """By which factor a rate is off."""
    return float("inf") if reached <= 0 else max(reached / wanted, wanted / reached)


def _searched(
    octaves: np.ndarray, k: int, rates: Callable[[np.ndarray], np.ndarray], wanted: float
) -> float:
    """The binary logarithm of the scale of layer k with the nearest rate, the other scales
    fixed: first by octaves until the rate is bracketed, then by halving."""
    tried: dict[float, float] = {}

    def at(octave: float) -> float:
        if octave not in tried:
            trial = octaves.copy()
            trial[k] = octave
            tried[octave] = float(rates(trial)[k])
        return tried[octave]

    def best() -> float:
        return min(tried, key=lambda octave: _off(tried[octave], wanted))

    low = high = octaves[k]
    while at(high) < wanted and high < OCTAVES:
        low, high = high, high + 1
    while at(low) > wanted and low > -OCTAVES:
        low, high = low - 1, low
    for _ in range(HALVINGS):
        if _off(tried[best()], wanted) <= NEAR:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < wanted else (low, middle)
    return best()


class _Layer(NamedTuple):
    """Spike functions, and the parameters that drive them, by their number."""

    functions: "list[Equation]"
    weights: set[int]


def _layers(step: "Step") -> list[_Layer]:
    """The spike functions of a step with the weights that drive them, in the order of the step.

    A weight drives a spike function where its operation is the last but for others that mix nothing:
    a path leads from there to the function, in this step or through the state of later ones, and
    neither through another operation that mixes nor through another spike function.
    """
    from etpc.analyse import split
    from etpc.trace import propagate, spike_functions

    functions = spike_functions(step)
    if not functions:
        raise ModelError(
            "The model has no spike function, or has it inside a `lax.scan`. A spike function is one of "
            "`etpc.surrogate`, or a `jax.custom_jvp` whose output is a step of its input. Weights of other "
            "networks need no scale for their rates: draw them with `etpc.nn.init`."
        )
    parts = split(step)
    mixing = [op for op in parts.ops if op.kind.data is not None]
    ends = {id(op.equation) for op in mixing} | {id(e) for e in functions}
    carried = dict(zip(parts.next_state, step.state, strict=True))
    drivers: list[set[int]] = [set() for _ in functions]
    for op in mixing:
        seeds, touched = set(op.equation.outputs), set[Any]()
        while not seeds <= touched:
            touched = propagate(parts.body, seeds | touched, lambda eqn, v: id(eqn) in ends)
            seeds = {old for new, old in carried.items() if new in touched}
        for function, weights in zip(functions, drivers, strict=True):
            if any(v in touched for v in function.inputs):
                weights.update(op.parameters)
    lonely = dict.fromkeys(
        e.source for e, weights in zip(functions, drivers, strict=True) if not weights
    )
    raise_together(
        [
            f"The spike function at {source} has no weights in front of it that could be scaled. Put a "
            "layer such as `eqx.nn.Linear` between it and the input."
            for source in lonely
        ],
        ModelError,
    )
    layers: list[_Layer] = []
    for function, weights in zip(functions, drivers, strict=True):
        shared = [layer for layer in layers if weights & layer.weights]
        joined = _Layer(
            [*(e for layer in shared for e in layer.functions), function],
            weights.union(*(layer.weights for layer in shared)),
        )
        layers = [layer for layer in layers if layer not in shared] + [joined]
    order = {e: n for n, e in enumerate(step.equations)}
    # Where the new spikes are: after what computes them from the weights.
    return sorted(layers, key=lambda layer: max(order[e] for e in layer.functions))
