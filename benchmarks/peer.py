"""Networks in braintrace, and the modes of its gradient: the reference network, on the same weights, and its
cells with a readout, with weights of their own.

- `"vmap"`, its default: one example is compiled, and the batch mapped over (`brainstate.nn.Vmap`
  over states made by `vmap_new_states`), one step per call.
- `"batch"`: the batch is an axis of the compiled graph, one step per call. The same gradient.
- `"window"`: the batch as before, and W steps per call (`vjp_method="multi-step"`, `MultiStepData`;
  for D-RTRL with `chunked_trace`, which is on by default). Inside a window the gradient is plain
  reverse mode, as in etpc with `backprop="full"`.

The loop over time is its `etrace_grad`, a `brainstate.transform.scan`; all of it, with the reset of
the states, is inside one `brainstate.transform.jit`, as in its tutorial.
"""

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax
import jax.extend
import jax.numpy as jnp
from jax import Array

from benchmarks import network
from benchmarks.network import Gradients, Problem

Mode = Literal["vmap", "batch", "window"]
MODES: tuple[Mode, ...] = get_args(Mode)


def available() -> bool:
    """Whether braintrace is installed."""
    return importlib.util.find_spec("braintrace") is not None


def build_model(problem: Problem) -> Any:
    """Its layers with the weights of the problem. The current is in mA, the potential in mV."""
    brainstate, braintools, u = _load("brainstate"), _load("braintools"), _load("brainunit")
    layers, neurons = _load("braintrace.nn"), _load("brainpy.state")
    ours = problem.model

    class Peer(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = layers.Linear(
                ours.hidden.in_features,
                problem.size,
                w_init=ours.hidden.weight.T * u.mA,
                b_init=ours.hidden.bias * u.mA,
            )
            self.neuron = neurons.LIF(
                problem.size,
                R=1.0 * u.ohm,
                tau=network.TAU * u.ms,
                V_th=network.V_TH * u.mV,
                V_reset=0.0 * u.mV,
                V_rest=0.0 * u.mV,
                spk_fun=braintools.surrogate.ReluGrad(),
                spk_reset="soft",
            )
            self.readout = layers.LeakyRateReadout(
                problem.size,
                network.N_OUT,
                tau=network.TAU_OUT * u.ms,
                w_init=ours.readout.weight.T,
            )

        def update(self, x: Array) -> Array:
            spikes = self.neuron.get_spike()
            spikes = self.neuron(self.linear(jnp.concatenate([x, spikes], axis=-1)))
            return self.readout(spikes)

    return Peer()


# The classes of its own cells, by the name of ours.
CELLS = {
    "VanillaRNN": "ValinaRNNCell",
    "GRU": "GRUCell",
    "MGU": "MGUCell",
    "LSTM": "LSTMCell",
    "MinGRU": "MiniGRU",
    "MinLSTM": "MiniLSTM",
}
# Of its neurons.
NEURONS = {
    "LIF": "LIF",
    "ALIF": "ALIF",
    "EIF": "ExpIF",
    "AdEx": "AdExIF",
}


def build_cell(name: str, size: int) -> Any:
    """The cell that we call so, and a linear readout, as [`benchmarks.cells`][] has them."""
    brainstate, layers, u = _load("brainstate"), _load("braintrace.nn"), _load("brainunit")

    class Peer(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            if name in CELLS:
                self.cell = getattr(layers, CELLS[name])(network.N_IN, size)
            else:
                current = layers.Linear(
                    network.N_IN + size,
                    size,
                    w_init=brainstate.nn.init.KaimingNormal(200.0, unit=u.mA),
                    b_init=brainstate.nn.init.ZeroInit(unit=u.mA),
                )
                self.current = current
                self.cell = getattr(_load("brainpy.state"), NEURONS[name])(size)
            self.readout = layers.Linear(size, network.N_OUT)

        def update(self, x: Array) -> Array:
            if name in CELLS:
                return self.readout(self.cell(x))
            spikes = self.cell.get_spike()
            return self.readout(self.cell(self.current(jnp.concatenate([x, spikes], axis=-1))))

    return Peer()


class Program:
    """A gradient of the peer as one compiled function of inputs and targets."""

    def __init__(
        self,
        build: Callable[[], Any],
        xs: Array,
        algorithm: str,
        mode: Mode,
        window: int = 1,
        **options: Any,
    ):
        brainstate, braintrace = _load("brainstate"), _load("braintrace")
        batch = xs.shape[1]
        if mode == "window":
            options["vjp_method"] = "multi-step"
        with _environment():
            model = build()
            learner = braintrace.compile(
                model, algorithm, xs[0], batch_size=batch, vmap=mode == "vmap", **options
            )
        entropy = _load("braintools").metric.softmax_cross_entropy_with_integer_labels

        def loss(x: Array, target: Array) -> Array:
            if mode == "window":
                return entropy(learner(braintrace.MultiStepData(x)), target).mean(axis=1)
            return entropy(learner(x), target).mean()

        @brainstate.transform.jit
        def run(xs: Array, targets: Array) -> Any:
            brainstate.nn.reset_all_states(model, batch_size=batch)
            learner.reset_state(batch_size=batch)
            return learner.etrace_grad(
                xs,
                targets,
                step_fn=loss,
                chunk_size=window,
                weights=model.states(brainstate.ParamState),
                reduction="sum",
            )

        self._run = run
        self._traced = False

    def __call__(self, xs: Array, targets: Array) -> Any:
        # The environment is read while the function is traced.
        with contextlib.nullcontext() if self._traced else _environment():
            grads = self._run(xs, targets)
        self._traced = True
        return grads

    def lowered(self, *shapes: Any) -> jax.stages.Lowered:
        with _environment():
            return self._run.lower(*shapes)

    def as_function(self, *arguments: Any) -> tuple[Callable[..., Any], list[jax.ShapeDtypeStruct]]:
        """A function of arrays that writes no states, and the shapes of these arrays: `jax.jit` takes no other one."""
        with _environment():
            closed, _ = _load("brainstate").transform.make_jaxpr(self._run)(*arguments)
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in closed.in_avals]
        return jax.extend.core.jaxpr_as_fun(closed), shapes


class Gradient:
    """A gradient of the reference network."""

    def __init__(
        self, problem: Problem, algorithm: str, mode: Mode, window: int = 1, **options: Any
    ):
        self._problem = problem
        build = lambda: build_model(problem)
        self._program = Program(build, problem.xs, algorithm, mode, window, **options)

    def __call__(self) -> Gradients:
        grads = self._program(self._problem.xs, self._problem.targets)
        linear, readout = grads["linear", "weight"], grads["readout", "W"]
        return {
            "hidden.weight": _number(linear["weight"]).T,
            "hidden.bias": _number(linear["bias"]),
            "readout.weight": _number(readout).T,
        }

    def lowered(self, steps: int | None = None) -> jax.stages.Lowered:
        """Its program, for a sequence of another length if wanted."""
        return self._program.lowered(*self._problem.shapes(steps))


def _load(module: str) -> Any:
    """One of its modules, which bring no types."""
    return importlib.import_module(module)


def _number(value: Any) -> Array:
    """A quantity without its unit."""
    return getattr(value, "mantissa", value)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    step = _load("brainstate").environ.context(dt=1.0 * _load("brainunit").ms)
    with warnings.catch_warnings(), step:
        # It says of each weight which states it does not follow.
        warnings.filterwarnings("ignore", "ETP primitive")
        yield
