"""How do time and memory of Norse compare, on the same network?

The reference network with the same weights in Norse, where PyTorch's reverse mode computes its gradient, runs in
turns with BPTT and a program of etpc in one process, and the gradients are compared. It needs Norse beside what the
benchmarks need (`pip install norse`); no target of the Makefile does.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

import etpc
from benchmarks import measure, network
from benchmarks.network import Gradients, Problem
from benchmarks.table import Column, Table, mebibytes, ratio

WINDOW = 10
SPEED = Table(
    "How long does a gradient take in Norse?",
    [
        Column("name", "gradient"),
        Column("min_ms", "min\nms", ".2f"),
        Column("median_ms", "median\nms", ".2f"),
        Column("to_bptt", "time to\nBPTT", ratio),
        Column("error", "error", ".2g"),
    ],
    [
        "error: the largest of any weight, to the gradient that is named; for D-RTRL, of the hidden weights to BPTT.",
        "Norse: eager, as it runs by default.",
    ],
)
MEMORY = Table(
    "Do bytes grow with T in Norse?",
    [
        Column("name", "gradient"),
        Column("steps", "T", ","),
        Column("bytes", "MiB", mebibytes),
    ],
    [
        "etpc: temporary arrays of XLA. Norse: what PyTorch stores for the backward pass, weights left out."
    ],
)


class Norse:
    """The reference network of Norse's cells, and its gradient; the state is detached every `window` steps.

    Norse's neurons without a synaptic current, `LIFBoxCell`, take a step of `dt / tau` of the way to the input. Here it
    is `1 - exp(-dt / tau)`, the exact solution that etpc takes. Potentials are in units of the threshold, which
    is also what etpc's surrogate derivative gets.
    """

    def __init__(self, problem: Problem, window: int | None = None):
        torch, norse = _load("torch"), _load("norse.torch")
        reset = _load("norse.torch.functional.reset").reset_subtract
        self._torch, self._window, ours = torch, window, problem.model
        self._leak, self._leak_out = (
            1 - np.exp(-1 / tau) for tau in (network.TAU, network.TAU_OUT)
        )
        lif = norse.LIFBoxParameters(
            tau_mem_inv=torch.tensor(self._leak, dtype=torch.float32),
            v_th=torch.tensor(1.0),
            method="triangle",
            alpha=0.3,
            reset_method=reset,
        )
        leak_out = torch.tensor(self._leak_out, dtype=torch.float32)
        self.cell = norse.LIFBoxCell(lif, dt=1.0)
        self.readout_cell = norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=leak_out), dt=1.0)
        self.hidden = torch.nn.Linear(ours.hidden.in_features, problem.size)
        self.readout = torch.nn.Linear(problem.size, network.N_OUT, bias=False)
        with torch.no_grad():
            for parameter, array in (
                (self.hidden.weight, ours.hidden.weight),
                (self.hidden.bias, ours.hidden.bias),
                (self.readout.weight, ours.readout.weight),
            ):
                parameter.copy_(torch.tensor(np.asarray(array)))
        self._xs = torch.tensor(np.asarray(problem.xs))
        self._labels = torch.tensor(np.asarray(problem.targets), dtype=torch.int64)

    @property
    def weights(self) -> dict[str, Any]:
        return {
            "hidden.weight": self.hidden.weight,
            "hidden.bias": self.hidden.bias,
            "readout.weight": self.readout.weight,
        }

    def loss(self) -> Any:
        """Summed over the sequence; the state goes on from step to step."""
        torch = self._torch
        spikes = torch.zeros(self._xs.shape[1], self.hidden.out_features)
        state: Any = None
        readout_state: Any = None
        total = torch.zeros(())
        for n, (x, labels) in enumerate(zip(self._xs, self._labels, strict=True)):
            if self._window and n and n % self._window == 0:
                spikes = spikes.detach()
                state, readout_state = (
                    type(s)(*(a.detach() for a in s)) for s in (state, readout_state)
                )
            current = self.hidden(torch.cat([x, spikes], -1)) / network.V_TH
            spikes, state = self.cell(current, state)
            y, readout_state = self.readout_cell(
                self.readout(spikes) / self._leak_out, readout_state
            )
            total = total + torch.nn.functional.cross_entropy(y, labels)
        return total

    def __call__(self) -> Gradients:
        found = self._torch.autograd.grad(self.loss(), list(self.weights.values()))
        return {
            name: jnp.asarray(grad.numpy()) for name, grad in zip(self.weights, found, strict=True)
        }

    def stored(self) -> int:
        """Bytes that the forward pass stores for the backward pass."""
        own = {weight.untyped_storage().data_ptr() for weight in self.weights.values()}
        storages: dict[int, Any] = {}  # held, so that no address is used twice

        def pack(tensor: Any) -> Any:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with self._torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        return sum(storage.nbytes() for at, storage in storages.items() if at not in own)


def _load(name: str) -> Any:
    return importlib.import_module(name)


def available() -> bool:
    """Whether Norse is installed."""
    return importlib.util.find_spec("norse") is not None


def speed(
    console: Console, sizes: Sequence[int], steps: int, batch: int, repeats: int
) -> list[dict[str, Any]]:
    """A row for each size and gradient. Norse's equals that of BPTT, and with its state detached that of truncated
    BPTT."""
    rows = []
    for size in sizes:
        size_rows = _speed(console, size, steps, batch, repeats)
        rows += [{"size": size, "batch": batch, "steps": steps, **row} for row in size_rows]
    return rows


def _speed(
    console: Console, size: int, steps: int, batch: int, repeats: int
) -> list[dict[str, Any]]:
    problem = Problem.make(size, steps, batch)
    about = f"N={size} B={batch} T={steps}, {problem.firing_rate():.3f} spikes per neuron and step"
    bptt, truncated = network.bptt(problem), network.truncated_bptt(problem, WINDOW)
    online = network.online(problem, etpc.D_RTRL(window=WINDOW))
    ways: dict[str, tuple[Callable[[], Gradients], Callable[[], Gradients]]] = {
        "BPTT": (bptt, bptt),
        f"BPTT, {WINDOW} steps": (truncated, truncated),
        f"etpc D-RTRL W={WINDOW}": (online, bptt),
        "Norse, to BPTT": (Norse(problem), bptt),
        f"Norse, detached, to BPTT, {WINDOW} steps": (Norse(problem, WINDOW), truncated),
    }
    rows = []
    for name, (call, reference) in ways.items():
        wrong = measure.difference(call(), reference())
        kept = ["hidden.weight"] if name.startswith("etpc") else list(wrong)
        rows.append({"name": name, "error": max(wrong[key]["error"] for key in kept)})
    calls = [call for call, _ in ways.values()]
    for row, taken in zip(rows, measure.interleaved(calls, repeats), strict=True):
        row |= taken
        row["to_bptt"] = row["min_ms"] / rows[0]["min_ms"]
    SPEED.show(console, rows, about)
    return rows


def memory(
    console: Console, size: int, lengths: tuple[int, ...], batch: int
) -> list[dict[str, Any]]:
    """A row for each gradient and length."""
    rows = []
    for steps in lengths:
        problem = Problem.make(size, steps, batch)
        for name, gradient in (
            ("BPTT", network.bptt(problem)),
            (f"etpc D-RTRL W={WINDOW}", network.online(problem, etpc.D_RTRL(window=WINDOW))),
        ):
            stats = measure.memory(gradient.lowered().compile())
            rows.append({"name": name, "steps": steps, "bytes": stats["temp"]})
        rows.append({"name": "Norse", "steps": steps, "bytes": Norse(problem).stored()})
    MEMORY.show(console, rows, f"N={size} B={batch}")
    return [{"size": size, "batch": batch, **row} for row in rows]
