"""A spiking network that learns online and leaves as a NIR file, for neuromorphic tools and chips.

The network is a graph of NIR from the beginning: 20 inputs, 40 recurrent current-based neurons, a leaky
readout. `etpc.interop.from_nir` makes a model of it, which learns with an update every 10 steps to tell
two patterns of rates apart; `to_nir` writes it to a file. What is read back gives the same outputs.
Where jaxpike is installed, it reads layers of `etpc.nn`, and gives the same spikes.

    pip install nir jaxpike
    python examples/nir_export.py                       # about 30 seconds on 2 cores
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import etpc
from etpc import interop, nn

if importlib.util.find_spec("nir") is None:
    print("this example needs the package nir: pip install nir")
    sys.exit(0)

import nir  # pyright: ignore[reportMissingImports]

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"  # a few updates, to see that it runs
INPUTS, NEURONS, STEPS, BATCH = 20, 40, 50, 16
UPDATES = 5 if FAST else 60
DT = 1e-3  # seconds


def recurrent_network(rng: np.random.Generator) -> Any:
    """The graph before it learns anything."""
    ones = np.ones(NEURONS)
    draw = lambda out, into, scale: scale * rng.normal(size=(out, into)) / np.sqrt(into)
    nodes = {
        "input": nir.Input({"input": np.array([INPUTS])}),
        "in": nir.Affine(draw(NEURONS, INPUTS, 8.0), 0.3 * ones),
        "lif": nir.CubaLIF(
            tau_syn=5e-3 * ones,
            tau_mem=rng.uniform(5e-3, 3e-2, NEURONS),  # each neuron has its own
            r=ones,
            v_leak=0 * ones,
            v_threshold=0.5 * ones,
        ),
        "rec": nir.Linear(draw(NEURONS, NEURONS, 1.0)),
        "out": nir.Linear(draw(2, NEURONS, 1.0)),
        "readout": nir.LI(tau=np.full(2, 1e-2), r=np.full(2, 5.0), v_leak=np.zeros(2)),
        "output": nir.Output({"output": np.array([2])}),
    }
    edges = [("input", "in"), ("in", "lif"), ("lif", "rec"), ("rec", "lif")]
    return nir.NIRGraph(nodes, [*edges, ("lif", "out"), ("out", "readout"), ("readout", "output")])


def batch(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs [T, B, I] of which either half is more active, and which one [T, B]."""
    labels_key, spikes_key = jax.random.split(key)
    labels = jax.random.bernoulli(labels_key, shape=(BATCH,)).astype(int)
    rates = jnp.where(labels[:, None] == jnp.arange(INPUTS) // (INPUTS // 2), 0.3, 0.15)
    spikes = jax.random.bernoulli(spikes_key, rates, (STEPS, BATCH, INPUTS))
    return spikes.astype(float), jnp.broadcast_to(labels, (STEPS, BATCH))


def trained(model: Any, rule: str = "d_rtrl") -> tuple[Any, list[float]]:
    """The model after an online training of its matrices, and the loss of each batch."""
    xs = batch(jax.random.key(0))[0]
    loss = optax.softmax_cross_entropy_with_integer_labels
    matrices = lambda m: (m.params["in"].weight, m.params.rec.weight, m.params.out.weight)
    program = etpc.compile(model, rule, inputs=xs[0, 0], weights=matrices)
    # The time constants, thresholds and biases are parameters as well; here they stand still.
    still = eqx.tree_at(matrices, jax.tree.map(lambda _: True, model), replace_fn=lambda _: False)
    optimiser = optax.chain(optax.adam(3e-3), optax.masked(optax.set_to_zero(), still))
    learner = etpc.online(program, loss, optimiser, every=10)
    opt_state, carry = learner.init(model, batch_size=BATCH)
    losses = []
    for n in range(UPDATES):
        xs, labels = batch(jax.random.key(n))
        carry = program.init(BATCH)
        model, opt_state, carry, block_losses = learner.update(model, opt_state, carry, xs, labels)
        losses.append(float(jnp.mean(block_losses)))
    return model, losses


def outputs(model: Any, xs: jax.Array) -> jax.Array:
    """The outputs [T, O] for one sequence."""
    step = lambda state, x: model(x, state)[::-1]
    return jax.lax.scan(step, model.init_state(), xs)[1]


def main() -> int:
    model = interop.from_nir(recurrent_network(np.random.default_rng(0)), dt=DT)
    model, losses = trained(model)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {UPDATES} batches")

    xs = batch(jax.random.key(1000))[0][:, 0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.nir"
        nir.write(path, interop.to_nir(model))
        graph = nir.read(path)
        print(f"written and read: {path.stat().st_size:,} bytes, {len(graph.nodes)} nodes")
    meta = graph.metadata
    print(", ".join(f"{name} = {meta[name]}" for name in ("dt", "method", "reset")))
    again = interop.from_nir(graph, dt=float(meta["dt"]), method=str(meta["method"]))
    same = bool(jnp.allclose(outputs(again, xs), outputs(model, xs), rtol=1e-5, atol=1e-6))
    print(f"outputs of the file and of the model: {'equal' if same else 'DIFFERENT'}")

    if importlib.util.find_spec("jaxpike") is not None:
        same &= read_by_jaxpike(xs)
    return 0 if same and (FAST or losses[-1] < losses[0] / 2) else 1


def read_by_jaxpike(xs: jax.Array) -> bool:
    """A chain of layers, which is what jaxpike reads, with the spikes that it gives."""
    from jaxpike.nir import from_nir  # pyright: ignore[reportMissingImports]

    keys = jax.random.split(jax.random.key(0), 2)
    linear = eqx.nn.Linear(INPUTS, NEURONS, key=keys[0])
    layers = [
        nn.init(linear, "lecun_normal", keys[0], gain=20**0.5),
        nn.LIF(NEURONS, tau=5.0, reset="hard"),
        nn.init(eqx.nn.Linear(NEURONS, 2, key=keys[1]), "kaiming_normal", keys[1]),
        nn.LIF(2, tau=5.0, V_th=0.2, reset="hard"),
    ]
    model = nn.Sequential(layers)
    theirs = from_nir(interop.to_nir(model))
    state, spikes = theirs.init_state((INPUTS,)), []
    for x in xs:
        state, y = theirs(state, x)
        spikes.append(y)
    ours = outputs(model, xs)
    same = bool(jnp.array_equal(ours, jnp.stack(spikes)))
    print(
        f"spikes of jaxpike and here: {'equal' if same else 'DIFFERENT'}, {int(ours.sum())} of them"
    )
    return same and bool(ours.any())


if __name__ == "__main__":
    sys.exit(main())
