"""Traces in bfloat16, by a pass that a user writes: half of the memory of D-RTRL, and what it costs.

    python examples/narrow.py

A trace is moved and read in float32, and rounded where it is carried from window to window, so that no weight is exact.
The gradient in float32 over 100 steps is compared with that of backpropagation through time in
float64, for whole traces and for those of this pass, in windows and step by step.
"""

import dataclasses
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etpc
from etpc import ir, nn, plan
from etpc.forms import Full

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"
INPUTS, UNITS, BATCH, STEPS = 10, 32, 8, 20 if FAST else 100


def narrow(dtype: Any = jnp.bfloat16) -> plan.Pass:
    """A pass by which all real traces of float32 are carried in fewer bytes.

    There is no complex number of so few bytes: what another pass carries as one is two real numbers again.
    """
    apart: dict[Any, Any] = {Full(as_complex=True): Full()}

    def run(program: ir.TraceProgram) -> ir.TraceProgram:
        found = [node for node in program.traces if node.dtype == jnp.float32]
        new = {
            node: dataclasses.replace(
                node, dtype=jnp.dtype(dtype), form=apart.get(node.form, node.form)
            )
            for node in found
        }
        text = f"in {jnp.dtype(dtype).name}"
        changes = [
            ir.Change("narrow", old.op.path, text, old.bytes - node.bytes)
            for old, node in new.items()
        ]
        return program.replaced(new).noted(*changes)

    return plan.Pass("narrow", "a trace is carried in fewer bytes", run)


class GRU(eqx.Module):
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def init_state(self) -> jax.Array:
        return jnp.zeros(UNITS)

    def __call__(self, x: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = self.cell(x, h)
        return self.readout(h), h


class Adaptive(eqx.Module):
    """Neurons with an adapting threshold, without recurrent weights: D-RTRL is exact."""

    weight: eqx.nn.Linear
    neuron: nn.ALIF
    readout: eqx.nn.Linear

    def init_state(self) -> Any:
        return self.neuron.init_state()

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        spikes, state = self.neuron(3.0 * self.weight(x), state)
        return self.readout(spikes), state


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((y - target) ** 2)


def models() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    gru = GRU(eqx.nn.GRUCell(INPUTS, UNITS, key=keys[0]), eqx.nn.Linear(UNITS, 2, key=keys[1]))
    linear = eqx.nn.Linear(INPUTS, UNITS, key=keys[2])
    alif = Adaptive(linear, nn.ALIF(UNITS), eqx.nn.Linear(UNITS, 2, key=keys[3]))
    return {"GRU": gru, "ALIF": alif}


def gradients(model: Any, rule: Any, passes: Any) -> tuple[Any, int, Any]:
    """The gradient, the bytes of the traces of one example, and the gradient of BPTT in float64."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
    targets = rng.normal(size=(STEPS, BATCH, 2)).astype(np.float32)
    program = etpc.compile(model, rule, inputs=xs[0, 0], passes=passes)
    _, grads = program.value_and_grad(loss)(model, xs, targets, program.init(BATCH))
    with jax.enable_x64(True):
        wide = lambda a: jnp.asarray(np.asarray(a), jnp.float64) if eqx.is_inexact_array(a) else a
        data = [jnp.asarray(a, jnp.float64) for a in (xs, targets)]
        state, model = (jax.tree.map(wide, tree) for tree in (model.init_state(), model))
        _, exact = etpc.bptt(model, data[0], data[1], loss, state=state, batch_size=BATCH)
    return grads, sum(size for _, size in program.memory().traces), exact


def error(found: Any, exact: Any) -> float:
    """The relative error of a whole gradient."""
    flat = lambda tree: np.concatenate(
        [np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)]
    )
    return float(np.linalg.norm(flat(found) - flat(exact)) / np.linalg.norm(flat(exact)))


def main() -> None:
    print(
        "| network | rule | bytes | with the pass | error to BPTT | with the pass | by the pass |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, model in models().items():
        for rule in (etpc.D_RTRL(), etpc.D_RTRL(window=1)):
            whole, size, exact = gradients(model, rule, None)
            rounded, fewer, _ = gradients(model, rule, (*plan.DEFAULT, narrow()))
            window = "each step" if rule.window == 1 else "windows"
            print(
                f"| {name} | {window} | {size:,} | {fewer:,} | {error(whole, exact):.1e} | "
                f"{error(rounded, exact):.1e} | {error(rounded, whole):.1e} |"
            )


if __name__ == "__main__":
    main()
