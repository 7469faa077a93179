"""Models as graphs of NIR."""

import copy
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import nir  # pyright: ignore[reportMissingImports]
import numpy as np

from etpc import nn
from etpc.errors import (
    InputError,
    InputTypeError,
    ModelError,
    UnsupportedError,
    raise_together,
    whole_number,
)
from etpc.nn.dynamics import leak

from ._graph import check_graph
from ._model import written
from ._nir import NIRModel, from_nir
from ._nir_values import check_values

MS = 1e-3
"""The layers of `etpc.nn` count in ms, NIR in seconds."""


def to_nir(
    model: Any, *, input_shape: tuple[int, ...] | None = None, approximate: bool = False
) -> nir.NIRGraph:
    """The NIR graph of a model.

    NIR says what is computed in continuous time, and its neurons are put to `v_reset` by a spike. The
    length of a step, the method and the kind of reset are in the metadata of the graph, as `dt`
    (seconds), `method` and `reset`: [`from_nir`][etpc.interop.from_nir] with the same `dt` and
    `method` gives the outputs of the model.

    **Arguments:**

    - `model`: from [`from_nir`][etpc.interop.from_nir], trained or not; or an
        [`etpc.nn.Sequential`][] of `Linear`, `Conv1d` and `Conv2d` of `equinox.nn`, `DaleLinear`,
        `LowRankLinear`, `LIF`, `ExponentialSynapse`, `LeakyRateReadout`, `MembraneReadout` and
        `Delay`, or one of these layers.
    - `input_shape`: of one example, where the first layer does not say it, as a convolution.
    - `approximate`: whether to write a soft reset as a hard one, and to leave a refractory period out.
        The metadata say so, as `approximations`.

    **Returns** a `nir.NIRGraph`; `nir.write(path, graph)` writes it.

    **Raises** `etpc.UnsupportedError` for what NIR does not have, with the path of the layer, and `etpc.InputError` for
    numbers that [`from_nir`][etpc.interop.from_nir] would refuse.
    """
    if isinstance(model, NIRModel):
        return _written_back(model)
    if not isinstance(model, (nn.Sequential, *WRITERS)):
        raise InputTypeError(
            f"to_nir takes a model of `from_nir` or an etpc.nn.Sequential, not a {type(model).__name__}. "
            "What a model of your own computes is not known from its parts: write it as a NIR graph, and "
            "train the model that `from_nir` makes of it."
        )
    layers = model.layers if isinstance(model, nn.Sequential) else (model,)
    return _Writer(approximate).graph(layers, input_shape)


def _written_back(model: NIRModel) -> nir.NIRGraph:
    graph = copy.deepcopy(model._graph.value)
    for path, value in model.params.items():
        node = graph
        for name in path[:-1]:
            node = node.nodes[name]
        given, old = np.asarray(value), np.asarray(getattr(node, path[-1]))
        if given.shape != old.shape:
            raise InputError(
                f"The parameter {path[-1]} of the node {written(path[:-1])} has the shape {list(given.shape)}, and in "
                f"the graph that was read {list(old.shape)}. Change values alone."
            )
        setattr(node, path[-1], given.astype(old.dtype) if old.dtype.kind == "f" else given)
    check_graph(graph)
    kept = graph.metadata if isinstance(graph.metadata, dict) else {}
    graph.metadata = {
        **kept,
        "dt": model.settings.dt,
        "method": model.settings.method,
        "reset": "hard",
    }
    return graph


class _Writer:
    """Writes layers one after another, and collects what cannot be written."""

    def __init__(self, approximate: bool):
        self.approximate = approximate
        self.problems: list[str] = []
        self.approximations: list[str] = []
        self.steps: dict[float, str] = {}

    def graph(self, layers: tuple[Any, ...], input_shape: Any) -> nir.NIRGraph:
        shape = _input_shape(layers[0]) if input_shape is None else input_shape
        if shape is None:
            raise InputError(
                "The shape of the input is not known from the first layer, "
                f"a {type(layers[0]).__name__}. Pass `input_shape=`, without axes for time and batch."
            )
        if not isinstance(shape, tuple | list | np.ndarray) or not all(
            (whole_number(n) or 0) >= 1 for n in shape
        ):
            raise InputError(f"input_shape must be a tuple of ints >= 1, not {shape!r}.")
        inputs: Any = np.array([int(n) for n in shape], int)
        nodes: dict[str, Any] = {"input": nir.Input(input_type=inputs)}
        for n, layer in enumerate(layers):
            nodes |= {f"{n}_{name}": node for name, node in self.nodes(n, layer)}
        raise_together(self.problems, UnsupportedError)
        check_values({(name,): node for name, node in nodes.items()})
        if len(self.steps) > 1:
            raise UnsupportedError(
                "A NIR graph is run with one step, and the layers have several: "
                + ", ".join(f"{value} in {where}" for value, where in self.steps.items())
                + ". Give all layers the same."
            )
        unknown: Any = None
        nodes["output"] = nir.Output(output_type=unknown)
        names = list(nodes)
        metadata: dict[str, Any] = {"reset": "hard", "method": "exact"}
        if self.steps:
            metadata["dt"] = next(iter(self.steps)) * MS
        if self.approximations:
            metadata["approximations"] = " ".join(self.approximations)
        try:
            graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)), metadata)
            # Its own inference of shapes knows square kernels alone.
            model = from_nir(graph, dt=metadata.get("dt", MS))
            jax.eval_shape(lambda s: model(jnp.zeros(shape), s), model.init_state())
        except (ValueError, ModelError) as error:
            raise UnsupportedError(
                f"The package `nir` finds other shapes than the model has, and would not read the graph: {error}"
            ) from error
        return graph

    def nodes(self, n: int, layer: Any) -> list[tuple[str, Any]]:
        """The nodes of a layer, one after another."""
        where = f".layers[{n}]"
        if type(layer) in WRITERS:
            return WRITERS[type(layer)](self, where, layer)
        name = getattr(layer, "__name__", type(layer).__name__)
        self.problems.append(
            f"{where} is {name}, for which NIR has no node. What can be written: "
            f"{', '.join(kind.__name__ for kind in WRITERS)}."
        )
        return []

    def linear(self, where: str, layer: Any) -> list[tuple[str, Any]]:
        if isinstance(layer, eqx.nn.Linear):
            weight = np.asarray(layer.weight)
            if "scalar" in (layer.in_features, layer.out_features):
                self.problems.append(f'{where} is between scalars. Give it 1 in place of "scalar".')
        else:
            # What the layer makes of each unit vector, less the bias.
            dtype = next(v.dtype for v in vars(layer).values() if hasattr(v, "dtype"))
            eye = jnp.eye(layer.in_features, dtype=dtype)
            weight = np.asarray(jax.vmap(layer)(eye) - layer(jnp.zeros_like(eye[0]))).T
        return [_matrix(weight, getattr(layer, "bias", None))]

    def conv(self, where: str, layer: eqx.nn.Conv) -> list[tuple[str, Any]]:
        n = layer.num_spatial_dims
        if layer.padding_mode != "ZEROS":
            self.problems.append(
                f"{where} has the padding mode {layer.padding_mode}, and NIR pads with zeros."
            )
        padding: Any = layer.padding
        if isinstance(padding, str):
            if padding == "SAME_LOWER" or (padding == "SAME" and set(layer.stride) != {1}):
                self.problems.append(
                    f"{where} has the padding {padding} and the stride {layer.stride}, which NIR does not have. "
                    "Give the padding as numbers."
                )
            padding = padding.lower()
        elif any(a != b for a, b in padding):
            self.problems.append(
                f"{where} has the padding {padding}, and NIR one number for both ends of a dimension."
            )
        else:
            padding = tuple(a for a, _ in padding)
        weight = np.asarray(layer.weight)
        bias = np.zeros(len(weight)) if layer.bias is None else np.asarray(layer.bias).reshape(-1)
        one = (lambda v: v if isinstance(v, str) else v[0]) if n == 1 else (lambda v: v)
        make: Any = nir.Conv1d if n == 1 else nir.Conv2d
        node = make(
            input_shape=None,
            weight=weight,
            stride=one(layer.stride),
            padding=one(padding),
            dilation=one(layer.dilation),
            groups=layer.groups,
            bias=bias,
        )
        return [("conv", node)]

    def lif(self, where: str, layer: nn.LIF) -> list[tuple[str, Any]]:
        self.steps.setdefault(layer.dt, where)
        if layer.reset == "soft":
            self._approximate(
                f"{where} has a soft reset, which subtracts the threshold, and is written with a hard one, which "
                "puts the potential to V_reset."
            )
        if layer.refractory:
            self._approximate(
                f"{where} has a refractory period of {layer.refractory:g} ms, and is written without."
            )
        full = lambda value: np.array(np.broadcast_to(np.asarray(value, layer.dtype), layer.shape))
        node = nir.LIF(
            tau=full(layer.tau) * MS,
            r=full(layer.R),
            v_leak=full(layer.V_rest),
            v_threshold=full(layer.V_th),
            v_reset=full(layer.V_reset),
        )
        return [("lif", node)]

    def _approximate(self, what: str) -> None:
        if self.approximate:
            self.approximations.append(what)
        else:
            self.problems.append(
                f"{what} NIR has neurons of this kind alone: change the layer, or pass `approximate=True` where this "
                "is near enough."
            )

    def _filter(self, where: str, layer: Any, size: tuple[int, ...], gain: bool) -> Any:
        """A leaky integrator: `v' = d v + x`, or with `gain` `v' = d v + (1 - d) x`."""
        self.steps.setdefault(layer.dt, where)
        tau = jnp.full(size, layer.tau, layer.dtype)
        r = jnp.ones_like(tau) if gain else 1 / leak(layer.dt, tau)[1]
        return nir.LI(tau=np.asarray(tau) * MS, r=np.asarray(r), v_leak=np.zeros_like(tau))

    def synapse(self, where: str, layer: Any) -> list[tuple[str, Any]]:
        return [("synapse", self._filter(where, layer, layer.shape, gain=False))]

    def readout(self, where: str, layer: Any) -> list[tuple[str, Any]]:
        gain = isinstance(layer, nn.MembraneReadout)
        matrix = _matrix(np.asarray(layer.weight), getattr(layer, "bias", None))
        return [matrix, ("li", self._filter(where, layer, layer.weight.shape[:1], gain))]

    def delay(self, where: str, layer: nn.Delay) -> list[tuple[str, Any]]:
        if not self.steps:
            self.problems.append(
                f"{where} counts in steps, and no layer before it says how long a step is. Put it behind one "
                "with a `dt`, such as a LIF."
            )
            return []
        steps = np.broadcast_to(np.asarray(layer.steps), layer.shape)
        return [("delay", nir.Delay(steps * next(iter(self.steps)) * MS))]


def _matrix(weight: np.ndarray, bias: Any) -> tuple[str, Any]:
    return "linear", nir.Linear(weight) if bias is None else nir.Affine(weight, np.asarray(bias))


WRITERS: dict[type, Any] = {
    eqx.nn.Linear: _Writer.linear,
    nn.DaleLinear: _Writer.linear,
    nn.LowRankLinear: _Writer.linear,
    eqx.nn.Conv1d: _Writer.conv,
    eqx.nn.Conv2d: _Writer.conv,
    nn.LIF: _Writer.lif,
    nn.ExponentialSynapse: _Writer.synapse,
    nn.LeakyRateReadout: _Writer.readout,
    nn.MembraneReadout: _Writer.readout,
    nn.Delay: _Writer.delay,
}


def _input_shape(layer: Any) -> tuple[int, ...] | None:
    if isinstance(getattr(layer, "in_features", None), int):
        return (layer.in_features,)
    return getattr(layer, "shape", None)
