"""What 16 and 8 bits for weights and traces do to the gradient, and to learning: user code around a program.

An array is integers times one power of two, chosen so that its largest number fits. After each step the traces are
rounded so, and after each update the weights. The network, the streams and the rate are those of `drift.py`; the
gradients, the optimiser and the hidden state stay float32.

    python -m examples.on_device.fixed_point            # a table; 2 minutes on 2 cores
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

import etpc
from examples.on_device.drift import (
    DRIFT,
    LAST,
    STEPS,
    STREAMS,
    Network,
    squared,
    streams,
    trained_beforehand,
)

RATE = 3e-3
SETTINGS = [(32, 32), (16, 16), (8, 32), (32, 8), (8, 8)]
"""Bits of weights and of traces; 32 is float32."""


def rounded(tree: Any, bits: int, key: PRNGKeyArray | None = None) -> Any:
    """Arrays of fixed-point numbers: to the nearest, or with a key up or down at random, right on average."""
    if bits == 32:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    keys = [None] * len(leaves) if key is None else jax.random.split(key, len(leaves))

    def one(a: Array, key: PRNGKeyArray | None) -> Array:
        unit = jnp.exp2(jnp.ceil(jnp.log2(jnp.max(jnp.abs(a)) + 1e-30)) - (bits - 1))
        shift = 0.5 if key is None else jax.random.uniform(key, a.shape)
        most = 2.0 ** (bits - 1)
        return unit * jnp.clip(jnp.floor(a / unit + shift), -most, most - 1)

    return treedef.unflatten([one(a, k) for a, k in zip(leaves, keys, strict=True)])


def step_of(model: Network, trace_bits: int) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """A function that gives loss, gradient and carry of one step, with traces of so many bits; and a fresh carry."""
    program = etpc.compile(model, etpc.D_RTRL(window=1), inputs=jnp.zeros(1))
    value_and_grad = program.value_and_grad(squared)

    def step(model: Any, carry: Any, x: Array, target: Array, key: Any) -> Any:
        (loss, carry), grads = value_and_grad(model, x[None], target[None], carry)
        traces = rounded(carry.traces, trace_bits, key)
        return loss, grads, eqx.tree_at(lambda c: c.traces, carry, traces)

    return step, program.init


def error_of_gradient(model: Network, bits: tuple[int, int]) -> float:
    """The error of the gradient of a sequence with weights and traces of so many bits, relative to that of BPTT
    through the network as it is, which D-RTRL has too."""
    xs, targets = (a[:, 0] for a in streams(5, 1, 400, 200))
    step, init = step_of(model, bits[1])
    found = eqx.combine(rounded(eqx.filter(model, eqx.is_inexact_array), bits[0]), model)

    def body(before: Any, data: Any) -> Any:
        carry, sums = before
        _, grads, carry = step(found, carry, *data, None)
        return (carry, jax.tree.map(jnp.add, sums, grads)), None

    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    (_, sums), _ = jax.jit(lambda: lax.scan(body, (init(), zeros), (xs, targets)))()
    _, exact = etpc.bptt(model, xs, targets, squared)
    ours, theirs = (ravel_pytree(tree)[0] for tree in (sums, exact))
    return float(jnp.linalg.norm(ours / len(xs) - theirs) / jnp.linalg.norm(theirs))


def last_error(model: Network, bits: tuple[int, int], at_random: bool) -> float:
    """The mean error of all streams at their end, with weights and traces of so many bits."""
    (step, init), adam = step_of(model, bits[1]), optax.adam(RATE)
    floats, fixed = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def learn(xs: Array, targets: Array) -> Array:
        def body(before: Any, data: Any) -> Any:
            floats, opt_state, carry = before
            x, target, key = data
            one, two = jax.random.split(key) if at_random else (None, None)
            loss, grads, carry = step(eqx.combine(floats, fixed), carry, x, target, one)
            changes, opt_state = adam.update(grads, opt_state)
            floats = rounded(optax.apply_updates(floats, changes), bits[0], two)
            return (floats, opt_state, carry), loss

        start = rounded(floats, bits[0])
        keys = jax.random.split(jax.random.key(3), len(xs))
        return lax.scan(body, (start, adam.init(start), init()), (xs, targets, keys))[1]

    xs, targets = streams(2, STREAMS, STEPS, DRIFT)
    losses = [learn(xs[:, n], targets[:, n])[-LAST:].mean() for n in range(STREAMS)]
    return float(jnp.mean(jnp.stack(losses)))


def main() -> None:
    model = trained_beforehand()
    print(
        f"{'weights':>8} {'traces':>7} {'error of gradient':>18} {'last error, to nearest':>23} {'at random':>10}"
    )
    for bits in SETTINGS:
        error = error_of_gradient(model, bits)
        nearest, at_random = (last_error(model, bits, way) for way in (False, True))
        print(
            f"{bits[0]:8} {bits[1]:7} {error:18.1e} {nearest:23.3f} {at_random:10.3f}", flush=True
        )


if __name__ == "__main__":
    main()
