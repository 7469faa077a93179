"""Does memory grow with T in jaxpike, and in a program of etpc of the same network?

jaxpike publishes a gradient of 256 steps in 64 MB (`unroll_checkpointed`: 700 inputs, 128 and 20 LIF neurons, batch
256, on a T4), where other libraries take 324 to 792. Here that network, as jaxpike makes it, is compiled on a CPU for
more and more steps, by its two unrolled gradients and by rules of etpc, with the same loss at each step. Nothing is
run. It needs jaxpike beside etpc (`make test-third-party` makes such an environment):

    .venv-third-party/bin/python -m benchmarks.jaxpike

Source: https://github.com/abdurrezzak/jaxpike, version 0.1.4, its README.
"""

import argparse
import importlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from rich.console import Console

import etpc
from benchmarks.table import Column, Table, mebibytes

INPUTS, HIDDEN, CLASSES, BATCH = 700, 128, 20, 256
LENGTHS = (256, 2_560, 25_600)
RULES = {
    "etpc, D-RTRL": etpc.D_RTRL(),
    "etpc, D-RTRL, each step": etpc.D_RTRL(window=1),
    "etpc, rank 4": etpc.ES_D_RTRL(rank=4),
    "etpc, a decay": etpc.ES_D_RTRL(decay=0.95),
}
TABLE = Table(
    "Does memory grow with T?",
    [
        Column("name", "gradient"),
        *(Column(f"{n}", f"T={n:,}\nMiB", mebibytes) for n in LENGTHS),
        Column("carry", "of it the carry\nMiB", mebibytes),
    ],
    [
        "Temporary arrays of XLA on a CPU, and the carry of a program; inputs and weights are left out."
    ],
)


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, target)


def step(net: Any, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """jaxpike's layers take and return the state first."""
    state, y = net(state, x)
    return y, state


def temporary(function: Any, *args: Any) -> int:
    arrays, rest = eqx.partition(args, lambda a: eqx.is_array(a) or hasattr(a, "shape"))
    run = jax.jit(lambda arrays: eqx.filter(function(*eqx.combine(arrays, rest)), eqx.is_array))
    found = run.lower(arrays).compile().memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes


def run(console: Console) -> list[dict[str, Any]]:
    jp: Any = importlib.import_module("jaxpike")
    keys = jax.random.split(jax.random.key(0))
    net = jp.Sequential(
        jp.Dense(INPUTS, HIDDEN, key=keys[0]),
        jp.LIF(tau=20.0),
        jp.Dense(HIDDEN, CLASSES, key=keys[1]),
        jp.LIF(tau=20.0),
    )
    gradients: dict[str, tuple[Any, int]] = {}
    for name in ("unroll", "unroll_checkpointed"):

        def total(net: Any, xs: Any, targets: Any, unroll: Any = getattr(jp, name)) -> jax.Array:
            ys, _ = unroll(net, xs)
            return loss(ys, jnp.broadcast_to(targets, ys.shape[:2])).mean()

        gradients[f"jaxpike, {name}"] = eqx.filter_grad(total), 0
    state = net.init_state((INPUTS,))
    for name, rule in RULES.items():
        program = etpc.compile(net, rule, inputs=jnp.zeros(INPUTS), state=state, step=step)
        gradient = program.value_and_grad(loss)

        def grads(net: Any, xs: Any, targets: Any, gradient=gradient, program=program) -> Any:
            targets = jnp.broadcast_to(targets, xs.shape[:2])
            return gradient(net, xs, targets, program.init(BATCH))[1]

        gradients[name] = grads, program.memory(BATCH).total
    rows: list[dict[str, Any]] = []
    for name, (function, carry) in gradients.items():
        row: dict[str, Any] = {"name": name, "carry": carry}
        for length in LENGTHS:
            xs = jax.ShapeDtypeStruct((length, BATCH, INPUTS), jnp.float32)
            row[f"{length}"] = temporary(function, net, xs, jax.ShapeDtypeStruct((BATCH,), int))
        rows.append(row)
    TABLE.show(console, rows)
    return rows


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(TABLE.markdown(run(Console(width=120))))
