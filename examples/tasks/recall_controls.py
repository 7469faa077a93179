"""Why a decay learns to recall where the gradient of BPTT does not: trainings that differ in one thing from it.

    python -m examples.tasks.recall_controls            # a table; some minutes on 2 cores

A decay keeps a product of two sums in place of a sum of products, so that what came in long ago is paired with how the
state takes in the present, and its credit does not fade as the state forgets. The controls take single parts away from
the decay, or give them to BPTT. All train the network of `recall` with its data and its optimiser.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

import etpc

from .arms import FAST, Task, evaluator, fast
from .recall import BATCH, SYMBOLS, TASK, UNITS, Network, batch

RATES = (3e-3, 1e-2, 3e-2)
Gradient = Callable[[Any, Any, Array], Any]
"""Of a model, a batch and a key."""
Change = Callable[[Any], Any]
"""Of the initial model."""


def loss(y: Array, target: Array) -> Array:
    return TASK.loss_fn(y, target)


def online(rule: Any, from_step: int = 0) -> Gradient:
    """That of a rule, whose traces begin at a step."""
    model = Network(jax.random.key(0))
    program = etpc.compile(model, rule, inputs=jnp.zeros(SYMBOLS + 1), batch_size=BATCH)
    value_and_grad = program.value_and_grad(loss, "sum")

    def gradient(model: Any, batch: Any, key: Array) -> Any:
        carry = program.init(BATCH)
        for x in batch[0][:from_step]:
            state = program(model, x, carry)[1].state
            carry = dataclasses.replace(program.init(BATCH), state=state)
        xs, targets, mask = (a[from_step:] for a in batch)
        return value_and_grad(model, xs, targets, carry, mask=mask)[1]

    return gradient


def sequence_loss(model: Any, first: Any, batch: Any) -> Array:
    """The loss, where step 0 has parameters of its own."""
    xs, targets, mask = batch

    def step(h: Array, x: Array) -> tuple[Array, Array]:
        y, h = jax.vmap(model)(x, h)
        return h, y

    h = jax.vmap(first)(xs[0], jnp.zeros((BATCH, UNITS)))[1]
    _, ys = jax.lax.scan(step, h, xs[1:])
    return (mask[1:] * jax.vmap(jax.vmap(loss))(ys, targets[1:])).sum() / BATCH


def parts(model: Any, batch: Any) -> tuple[Any, Any]:
    """The gradient of BPTT by the uses of the parameters in all later steps, and in step 0, where the symbol is."""
    later = eqx.filter_grad(lambda m: sequence_loss(m, model, batch))(model)
    return later, eqx.filter_grad(lambda m: sequence_loss(model, m, batch))(model)


def bptt(model: Any, batch: Any, key: Array) -> Any:
    return jax.tree.map(jnp.add, *parts(model, batch))


def louder(model: Any, batch: Any, key: Array) -> Any:
    """BPTT, with the gradient of step 0 as large as that of all other steps, for each parameter."""

    def scaled(later: Array, first: Array) -> Array:
        size = jnp.linalg.norm(first)
        return later + jnp.where(size > 0, first * jnp.linalg.norm(later) / size, 0)

    return jax.tree.map(scaled, *parts(model, batch))


def noisy(rule: Any) -> Gradient:
    """BPTT, with noise as large as what a rule differs from it, for each parameter."""
    gradient = online(rule)

    def with_noise(model: Any, batch: Any, key: Array) -> Any:
        exact, other = bptt(model, batch, key), gradient(model, batch, key)
        leaves, tree = jax.tree.flatten(exact)
        keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

        def drawn(a: Array, b: Array, key: Array) -> Array:
            noise = jax.random.normal(key, a.shape)
            return a + noise * jnp.linalg.norm(a - b) / jnp.linalg.norm(noise)

        return jax.tree.map(drawn, exact, other, keys)

    return with_noise


def only_step_0(rule: Any) -> Gradient:
    """What a rule loses where its traces begin after step 0, and the readout's own gradient."""
    whole, without = online(rule), online(rule, 1)

    def gradient(model: Any, batch: Any, key: Array) -> Any:
        one, other = whole(model, batch, key), without(model, batch, key)
        lost = jax.tree.map(jnp.subtract, one, other)
        return eqx.tree_at(lambda m: m.readout, lost, one.readout)

    return gradient


def scaled(rule: Any, factor: float) -> Gradient:
    """A rule whose gradient of the cell is multiplied by a number, as a normaliser would."""
    gradient = online(rule)

    def times(model: Any, batch: Any, key: Array) -> Any:
        found = gradient(model, batch, key)
        return eqx.tree_at(lambda m: m.cell, found, jax.tree.map(lambda a: factor * a, found.cell))

    return times


def remembering(model: Network) -> Network:
    """Its update gate is mostly shut at first, so that the state hardly fades."""
    shut = lambda bias: bias.at[UNITS : 2 * UNITS].add(4.0)
    return eqx.tree_at(lambda m: m.cell.bias, model, replace_fn=shut)


def share(task: Task, gradient: Gradient, of_step_0: Gradient, change: Change) -> float:
    """The norm of the part of the cell's gradient that step 0 adds, relative to the whole, at first."""
    model, key = change(Network(jax.random.key(0))), jax.random.key(1)
    norms = [
        optax.global_norm(jax.tree.leaves(found(model, task.batch(key), key).cell))
        for found in (of_step_0, gradient)
    ]
    return float(norms[0] / norms[1])


def trained(task: Task, gradient: Gradient, change: Change, rate: Array, seed: Array) -> Array:
    """The score after a training."""
    model_key, data_key = jax.random.split(jax.random.key(seed))
    weights, static = eqx.partition(change(Network(model_key)), eqx.is_inexact_array)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def update(before: Any, key: Array) -> tuple[Any, None]:
        weights, state = before
        model = eqx.combine(weights, static)
        grads = gradient(model, task.batch(key), jax.random.fold_in(key, 1))
        moves, state = optimiser.update(eqx.filter(grads, eqx.is_inexact_array), state)
        return (optax.apply_updates(weights, moves), state), None

    keys = jax.random.split(data_key, task.updates)
    (weights, _), _ = jax.lax.scan(update, (weights, optimiser.init(weights)), keys)
    return evaluator(task)(eqx.combine(weights, static))


def same(model: Any) -> Any:
    return model


LOUD = dataclasses.replace(TASK, batch=partial(batch, size=0.4))
LONG = dataclasses.replace(TASK, updates=2500)
DECAY = etpc.ES_D_RTRL(decay=0.99)
CONTROLS: dict[str, tuple[Task, Callable[[], Gradient], Change]] = {
    "BPTT": (TASK, lambda: bptt, same),
    "D-RTRL": (TASK, lambda: online(etpc.D_RTRL()), same),
    "a decay of 0.99": (TASK, lambda: online(DECAY), same),
    "a decay of 0.9": (TASK, lambda: online(etpc.ES_D_RTRL(decay=0.9)), same),
    "a decay of 0.5": (TASK, lambda: online(etpc.ES_D_RTRL(decay=0.5)), same),
    "0.99, traces begin after step 0": (TASK, lambda: online(DECAY, 1), same),
    "0.99, traces begin after step 8": (TASK, lambda: online(DECAY, 9), same),
    "0.99, what step 0 adds, alone": (TASK, lambda: only_step_0(DECAY), same),
    "0.99, the cell's gradient times 20": (TASK, lambda: scaled(DECAY, 20.0), same),
    "0.99, the cell's gradient divided by 20": (TASK, lambda: scaled(DECAY, 1 / 20), same),
    "0.99, noise four times as large": (LOUD, lambda: online(DECAY), same),
    "BPTT, noise four times as large": (LOUD, lambda: bptt, same),
    "BPTT and noise of the size of its difference from 0.99": (TASK, lambda: noisy(DECAY), same),
    "BPTT, step 0 as large as all others": (TASK, lambda: louder, same),
    "BPTT, update gate shut at first": (TASK, lambda: bptt, remembering),
    "D-RTRL, update gate shut at first": (TASK, lambda: online(etpc.D_RTRL()), remembering),
    "0.99, update gate shut at first": (TASK, lambda: online(DECAY), remembering),
    "BPTT, 2,500 updates": (LONG, lambda: bptt, same),
    "0.99, 2,500 updates": (LONG, lambda: online(DECAY), same),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Why a decay learns to recall.")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    seeds, rates = (1, RATES[:1]) if FAST else (args.seeds, RATES)
    print(f"| training | {' | '.join(f'rate {rate:g}' for rate in rates)} |")
    print("| --- |" + " ---: |" * len(rates))
    for name, (task, make, change) in list(CONTROLS.items())[: 2 if FAST else None]:
        task = fast(task) if FAST else task
        run = jax.jit(partial(trained, task, make(), change))
        cells = []
        for rate in rates:
            scores = [float(run(rate, jnp.asarray(seed))) for seed in range(seeds)]
            cells.append(f"{statistics.fmean(scores):.2f} ({min(scores):.2f} to {max(scores):.2f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\nWhat step 0 adds to the gradient of the cell, relative to the whole, at first:")
    first = lambda model, batch, key: parts(model, batch)[1]
    print(f"BPTT {share(TASK, bptt, first, same):.0e}", end=", ")
    print(f"with the gate shut {share(TASK, bptt, first, remembering):.0e}", end="")
    for decay in (0.5, 0.9, 0.99):
        rule = etpc.ES_D_RTRL(decay=decay)
        found = share(TASK, online(rule), only_step_0(rule), same)
        print(f", a decay of {decay:g} {found:.0e}", end="")
    print()


if __name__ == "__main__":
    main()
