"""Graphs of NIR, the neuromorphic intermediate representation, as models, and models as graphs."""

import contextlib
import copy
import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import nir  # pyright: ignore[reportMissingImports]
import numpy as np
from jax import Array

from etpc.errors import InputError, InputTypeError, ModelError, UnsupportedError, raise_together
from etpc.nn.dynamics import leak, reset_to
from etpc.surrogate import ReluGrad

from ._graph import Layout, Path, layout_of
from ._model import Held, Named, shape_text, written
from ._nir_values import parameters_of

Values = dict[str, Array]

# --- what the nodes compute -------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fires(surrogate: Callable[[Array], Array], x: Array) -> Array:
    """1 where `x > 0`, as NIR has it, with the derivative of a surrogate."""
    return (x > 0).astype(x.dtype)


@_fires.defjvp
def _fires_jvp(surrogate: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _fires(surrogate, x), jax.jvp(surrogate, (x,), (dx,))[1]


class Settings(NamedTuple):
    """How a graph is computed, step by step."""

    dt: float
    method: str
    surrogate: Callable[[Array], Array]


def _spike(p: Values, v: Array, settings: Settings) -> Array:
    # The argument of a surrogate is a distance in units of that from the reset to the threshold.
    gap = jax.lax.stop_gradient(p["v_threshold"] - p["v_reset"])
    return _fires(settings.surrogate, (v - p["v_threshold"]) / jnp.where(gap > 0, gap, 1))


def _leaky(p: Values, v: Array, current: Array, tau: Array, settings: Settings) -> Array:
    decay, gain = leak(settings.dt, tau, settings.method)
    return p["v_leak"] + decay * (v - p["v_leak"]) + gain * p["r"] * current


def _growth(x: Array) -> Array:
    """`(exp(x) - 1) / x`, also where x is 0."""
    small = jnp.abs(x) < 1e-5
    safe = jnp.where(small, 1, x)
    return jnp.where(small, 1 + x / 2 + x * x / 6, jnp.expm1(safe) / safe)


def _matrix(node: Any, p: Values, x: Array) -> Array:
    y = jnp.einsum("...oi,...i->...o", p["weight"], x)
    return y + _spread("bias", p["bias"], y) if "bias" in p else y


def _scaled(node: Any, p: Values, x: Array) -> Array:
    return _spread("scale", p["scale"], x) * x


def _spread(name: str, value: Array, x: Array) -> Array:
    if jnp.broadcast_shapes(value.shape, x.shape) != x.shape:
        raise ValueError(f"the {name} has the shape {list(value.shape)}, and meets {list(x.shape)}")
    return value


def _pair(value: Any, n: int) -> tuple[int, ...]:
    return tuple(int(v) for v in np.broadcast_to(np.asarray(value), (n,)))


def _convolution(node: Any, p: Values, x: Array) -> Array:
    n = p["weight"].ndim - 2
    if isinstance(node.padding, str):
        padding: Any = node.padding.upper()
    else:
        padding = [(a, a) for a in _pair(node.padding, n)]
    stride, dilation, groups = _pair(node.stride, n), _pair(node.dilation, n), int(node.groups)
    y = jax.lax.conv_general_dilated(
        x[None], p["weight"], stride, padding, rhs_dilation=dilation, feature_group_count=groups
    )[0]
    return y + _spread("bias", p["bias"].reshape(-1, *[1] * n), y) if "bias" in p else y


def _pool(node: Any, p: Values, x: Array) -> Array:
    window, stride, padding = (_pair(v, 2) for v in (node.kernel_size, node.stride, node.padding))
    ends = tuple((a, a) for a in padding)
    y = eqx.nn.Pool(jnp.zeros((), x.dtype), jax.lax.add, 2, window, stride, ends)(x)
    return y / math.prod(window) if isinstance(node, nir.AvgPool2d) else y


def _flatten(node: Any, p: Values, x: Array) -> Array:
    ends = int(node.start_dim), int(node.end_dim)
    first, last = (d + x.ndim if d < 0 else d for d in ends)
    if not 0 <= first <= last < x.ndim:
        raise ValueError(f"it has no dimensions from {ends[0]} to {ends[1]}")
    return x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :])


STATELESS: dict[type, Callable[[Any, Values, Array], Array]] = {
    nir.Linear: _matrix,
    nir.Affine: _matrix,
    nir.Scale: _scaled,
    nir.Conv1d: _convolution,
    nir.Conv2d: _convolution,
    nir.SumPool2d: _pool,
    nir.AvgPool2d: _pool,
    nir.Flatten: _flatten,
}

LEAKY, SPIKING = (nir.LI, nir.CubaLI), (nir.IF, nir.LIF, nir.CubaLIF)
NEURONS = (nir.I, *LEAKY, *SPIKING)
KNOWN = (*STATELESS, *NEURONS, nir.Threshold, nir.Delay, nir.Input, nir.Output)


def _start(node: Any, p: Values, shape: tuple[int, ...]) -> Values:
    """The state of a neuron before the first step: at rest, and without a spike."""
    rest = p.get("v_leak", p.get("v_reset", jnp.zeros_like(p["r"])))
    if isinstance(node, SPIKING):
        above = rest > p["v_threshold"]
        rest = jnp.minimum(jnp.where(above, p["v_reset"], rest), p["v_threshold"])
    rest = jnp.broadcast_to(rest, shape)
    return {"v": rest} | ({"i": jnp.zeros_like(rest)} if "w_in" in p else {})


def _output(node: Any, p: Values, state: Values, settings: Settings) -> Array:
    """What a neuron gave at the end of a step."""
    return _spike(p, state["v"], settings) if isinstance(node, SPIKING) else state["v"]


def _advance(node: Any, p: Values, state: Values, x: Array, settings: Settings) -> Values:
    """The state of a neuron after a step. It is that before the reset, which opens the next step."""
    v, dt, method = state["v"], settings.dt, settings.method
    if isinstance(node, SPIKING):
        v = reset_to("hard", v, p["v_threshold"], p["v_reset"], _spike(p, v, settings))
    if isinstance(node, nir.I | nir.IF):
        return {"v": v + dt * p["r"] * x}
    if not isinstance(node, nir.CubaLI | nir.CubaLIF):
        return {"v": _leaky(p, v, x, p["tau"], settings)}
    i, drive, tau = state["i"], p["w_in"] * x, p["tau_mem"]
    decay, gain = leak(dt, p["tau_syn"], method)
    new_i = decay * i + gain * drive
    if method == "euler":
        return {"v": _leaky(p, v, i, tau, settings), "i": new_i}
    # The current is `drive + (i - drive) exp(-t / tau_syn)` within the step.
    overlap = jnp.exp(-dt / tau) * (dt / tau) * _growth(dt / tau - dt / p["tau_syn"])
    v = _leaky(p, v, drive, tau, settings) + p["r"] * (i - drive) * overlap
    return {"v": v, "i": new_i}


# --- from a graph to a model ------------------------------------------------------------------------


class NIRModel(eqx.Module):
    """A NIR graph as a model: `model(x, state) -> (y, new_state)`, one step of one example.

    `x` is the input, or a dict of them by name where the graph has more than one; `y` likewise.
    """

    params: Named
    """The arrays of each node, by its name, as in `.params.lif.tau`."""
    settings: Settings = eqx.field(static=True)
    _layout: Held = eqx.field(static=True, repr=False)
    _graph: Held = eqx.field(static=True, repr=False)

    def init_state(self) -> Named:
        """The state before the first step: neurons at rest, as the parameters are, and empty delays."""
        return _initial(self, self._layout.value)

    def __call__(self, x: Any, state: Named) -> tuple[Any, Named]:
        """One step of `dt`.

        **Returns** the output and the new state.

        **Raises** `etpc.ModelError` where what comes into a node does not fit it, with its name.
        """
        layout: Layout = self._layout.value
        params, before = _by_node(self.params), _by_node(state)
        names = [path[0] for path in layout.inputs]
        if len(names) > 1 and not (isinstance(x, Mapping) and set(x) == set(names)):
            received = (
                f"a dict of {', '.join(map(str, x))}" if isinstance(x, Mapping) else "no dict"
            )
            raise InputError(
                f"The graph has several inputs, {', '.join(names)}, and x is {received}. Pass a dict with "
                "an array for each of them."
            )
        after: dict[Path, Values] = {}
        values = {p: _read(before[p]["past"], layout.delays[p] - 1) for p in layout.late}
        last = {
            p: before[p]["last"]
            if "last" in before[p]
            else _output(layout.nodes[p], params[p], before[p], self.settings)
            for p in layout.read_back
        }

        def coming(path: Path) -> Array:
            if path in layout.inputs:
                return jnp.asarray(x if len(layout.inputs) == 1 else x[path[0]])
            several = [values[a] for a in layout.sources[path]]
            several += [last[a] for a in layout.back[path]]
            _check_equal(path, layout, several)
            return functools.reduce(jnp.add, several)

        for path in layout.order:
            node, p, incoming = layout.nodes[path], params.get(path, {}), coming(path)
            with _named(path, node, incoming):
                values[path], after[path] = self._node(path, p, before.get(path, {}), incoming)
        for path in layout.late:
            incoming = coming(path)
            with _named(path, layout.nodes[path], incoming):
                past = before[path]["past"]
                after[path] = {"past": jnp.concatenate([incoming[None], past[:-1]])}
        for path, parts in before.items():
            if "last" in parts:
                after[path] = {**after[path], "last": values[path]}
        new = Named.of({(*path, k): after[path][k] for path in before for k in before[path]})
        if len(layout.outputs) == 1:
            return values[layout.outputs[0]], new
        return {path[0]: values[path] for path in layout.outputs}, new

    def _node(self, path: Path, p: Values, state: Values, x: Array) -> tuple[Array, Values]:
        """The output of a node, and its new state."""
        layout: Layout = self._layout.value
        node = layout.nodes[path]
        if isinstance(node, NEURONS):
            _check_shape(x, state["v"].shape)
            state = _advance(node, p, state, x, self.settings)
            return _output(node, p, state, self.settings), state
        if isinstance(node, nir.Delay):
            steps = layout.delays[path]
            _check_shape(x, steps.shape)
            if "past" not in state:
                return x, {}
            line = jnp.concatenate([x[None], state["past"]])
            return _read(line, steps), {"past": line[:-1]}
        if isinstance(node, nir.Threshold):
            _check_shape(x, p["threshold"].shape)
            return _fires(self.settings.surrogate, x - p["threshold"]), {}
        if isinstance(node, nir.Input | nir.Output):
            shape = node.output_type["output"]
            if shape is not None:
                _check_shape(x, tuple(int(n) for n in np.atleast_1d(shape)))
            return x, {}
        return STATELESS[type(node)](node, p, x), {}


@contextlib.contextmanager
def _named(path: Path, node: Any, incoming: Any) -> Iterator[None]:
    """Errors within name the node."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The node {written(path)} ({type(node).__name__}) cannot take what comes in, "
            f"{shape_text(incoming)}. This is because {str(error).rstrip('.')}. Give it parameters and an input that "
            "fit each other."
        ) from error


def _check_shape(x: Array, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(f"its own shape is {list(shape)}")


def _check_equal(path: Path, layout: Layout, several: list[Array]) -> None:
    if len({a.shape for a in several}) > 1:
        named = zip((*layout.sources[path], *layout.back[path]), several, strict=True)
        raise ModelError(
            f"What comes into the node {written(path)} is to be summed, and has several shapes: "
            + ", ".join(f"{list(a.shape)} from {written(p)}" for p, a in named)
            + ". Give the nodes before it outputs of one shape."
        )


def _read(line: Array, steps: np.ndarray) -> Array:
    """Of each element of a line of values, newest first, that of its own delay."""
    return jnp.take_along_axis(line, steps[None], axis=0)[0]


def _by_node(tree: Named) -> dict[Path, Values]:
    by_node: dict[Path, Values] = {}
    for path, value in tree.items():
        by_node.setdefault(path[:-1], {})[path[-1]] = value
    return by_node


def _copied(graph: Any) -> Any:
    """A copy of a graph in which each name has a node of its own, as in a file."""
    copied = copy.deepcopy(graph)
    copied.nodes = {
        name: _copied(node) if isinstance(node, nir.NIRGraph) else copy.deepcopy(node)
        for name, node in copied.nodes.items()
    }
    return copied


def from_nir(
    graph: Any,
    *,
    dt: int | float,
    method: str = "exact",
    surrogate: Callable[[Array], Array] = ReluGrad(),
) -> NIRModel:
    """The model of a NIR graph, which says what is computed in continuous time.

    Inputs are held constant over a step. Neurons spike where `v > v_threshold`, and are then put to
    `v_reset`; before the first step they are at rest. What comes into a node from several others is
    summed. A cycle is broken at one edge, which hands on what its node gave in the step before, or zeros before the
    first step; a delay of at least one step breaks it as well. All float arrays of the
    nodes are parameters, except for delays and the settings of convolutions and pools.

    **Arguments:**

    - `graph`: a `nir.NIRGraph`, such as `nir.read` gives.
    - `dt`: the length of a step in seconds, the unit of all times in a graph.
    - `method`: `"exact"` solves the equations of a neuron for an input that is constant over the step, `"euler"` takes
        one explicit Euler step, in which all new values depend on old ones.
    - `surrogate`: the spike function, as those of `etpc.surrogate`; only its derivative is used.

    **Returns** the [`NIRModel`][etpc.interop.NIRModel].

    **Raises** `etpc.UnsupportedError` for a node that there is no equation for, and
    `etpc.InputError` for a graph that is not complete and for numbers that are not finite or out of range.
    Both name the nodes.
    """
    if not isinstance(graph, nir.NIRGraph):
        raise InputTypeError(f"from_nir takes a nir.NIRGraph, not a {type(graph).__name__}.")
    if isinstance(dt, bool) or not isinstance(dt, numbers.Real) or not 0 < dt < np.inf:
        raise InputError(f"dt must be a number of seconds above 0, not {dt!r}.")
    if method not in ("exact", "euler"):
        raise InputError(f'method must be "exact" or "euler", not {method!r}.')
    if not callable(surrogate):
        raise InputTypeError(
            f"surrogate must be a function of an array, such as those of `etpc.surrogate`, not {surrogate!r}."
        )
    graph = _copied(graph)
    settings = Settings(float(dt), method, surrogate)
    layout = layout_of(graph, settings.dt, KNOWN, NEURONS)
    _check_nodes(layout)
    params = {
        (*path, name): jnp.asarray(np.asarray(value), jnp.result_type(float))
        for path, node in layout.nodes.items()
        for name, value in parameters_of(node).items()
    }
    model = NIRModel(Named.of(params), settings, Held(layout), Held(graph))
    model.init_state()  # finds shapes that do not fit
    return model


def _initial(model: NIRModel, layout: Layout) -> Named:
    """The state before the first step."""
    params, dtype = _by_node(model.params), jnp.result_type(float)
    start: dict[Path, Values] = {}
    shapes: dict[Path, tuple[int, ...]] = {p: layout.delays[p].shape for p in layout.late}
    for path, node in layout.nodes.items():
        if isinstance(node, nir.Delay) and layout.delays[path].max(initial=0):
            steps = layout.delays[path]
            start[path] = {"past": jnp.zeros((steps.max(), *steps.shape), dtype)}
        elif isinstance(node, NEURONS) and params[path]["r"].ndim:
            shapes[path] = params[path]["r"].shape
    for path in layout.order:
        node, p = layout.nodes[path], params.get(path, {})
        incoming = jax.ShapeDtypeStruct(_coming(layout, path, shapes), dtype)
        with _named(path, node, incoming):
            if isinstance(node, NEURONS):
                # Parameters that are single numbers are shared by all neurons.
                start[path] = _start(node, p, p["r"].shape or incoming.shape)
            run = functools.partial(model._node, path)
            shapes[path] = jax.eval_shape(run, p, start.get(path, {}), incoming)[0].shape
    for path in layout.read_back:
        if not isinstance(layout.nodes[path], NEURONS):
            start[path] = {**start.get(path, {}), "last": jnp.zeros(shapes[path], dtype)}
    return Named.of({(*path, k): v for path, parts in start.items() for k, v in parts.items()})


def _coming(layout: Layout, path: Path, shapes: dict[Path, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of what comes into a node."""
    known = [shapes[a] for a in (*layout.sources[path], *layout.back[path]) if a in shapes]
    declared = layout.nodes[path].input_type["input"]
    if not known and declared is not None:
        return tuple(int(n) for n in np.atleast_1d(declared))
    if not known:
        raise InputError(
            f"The shape of what comes into the node {written(path)} is not known. Give the graph's inputs their "
            "shapes, and the neurons of a cycle parameters of their own shape."
        )
    return known[0]


def _check_nodes(layout: Layout) -> None:
    """**Raises** `UnsupportedError` for nodes whose settings NIR does not define."""
    problems = []
    for path, node in layout.nodes.items():
        if isinstance(node, nir.Conv1d | nir.Conv2d) and node.padding == "same":
            n = np.asarray(node.weight).ndim - 2
            if any(s != 1 for s in _pair(node.stride, n)):
                problems.append(
                    f'The node {written(path)} ({type(node).__name__}) has the padding "same" and a stride above 1, '
                    "for which NIR does not say how "
                    "much is padded. Give the padding as numbers."
                )
    raise_together(problems, UnsupportedError)
