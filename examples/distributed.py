"""A batch spread over several processes: each holds its part of the examples and of their traces.

Digits of scikit-learn are read row by row by a recurrent network, and D-RTRL trains it. Each process
has a part of the batch; its traces never leave it, and what the processes exchange is the gradient.
Run without arguments, the script starts itself twice on this machine, trains the same network in one
process too, and compares: the exit status says whether the loss fell and the weights are the same.

    python examples/distributed.py                      # about 20 seconds on 2 cores

On a cluster it is started once for each process, with the address of the first one,

    python examples/distributed.py --coordinator node0:9000 --processes 4 --process 2

or, where JAX can ask the scheduler (SLURM, Open MPI, Kubernetes), with `--cluster` alone.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray
from sklearn.datasets import load_digits

import etpc

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"
ROWS, COLUMNS, NEURONS, BATCH = 8, 8, 32 if FAST else 128, 64
UPDATES = 20 if FAST else 200
TOLERANCE = 1e-5


class Reader(eqx.Module):
    """A GRU that reads a row of pixels at each step, and says what digit it may be."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, *, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(COLUMNS, NEURONS, key=k1)
        self.readout = eqx.nn.Linear(NEURONS, 10, key=k2)

    def init_state(self) -> Float[Array, " K"]:
        return jnp.zeros(NEURONS)

    def __call__(self, x: Float[Array, " 8"], h: Float[Array, " K"]) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h), h


def cross_entropy(y: Float[Array, " 10"], label: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, label)


def train() -> tuple[list[float], list[np.ndarray]]:
    """The losses and the trained weights. Every process of the job runs this."""
    process, processes = jax.process_index(), jax.process_count()
    if BATCH % jax.device_count():
        raise SystemExit(f"{jax.device_count()} devices do not divide a batch of {BATCH}")
    mesh = Mesh(jax.devices(), ("batch",))  # of all processes
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_example = NamedSharding(mesh, PartitionSpec("batch"))  # of a carry: axes B, ...
    by_step = NamedSharding(mesh, PartitionSpec(None, "batch"))  # of a sequence: axes T, B, ...

    def spread(sharding: NamedSharding, local: Any) -> Any:
        """A global array from what each process has of it."""
        return jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), local
        )

    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32).reshape(-1, ROWS, COLUMNS)
    local_slice = slice(process * BATCH // processes, (process + 1) * BATCH // processes)

    model = Reader(key=jax.random.key(0))
    program = etpc.compile(model, etpc.D_RTRL(window=4), inputs=jnp.zeros(COLUMNS))
    gradient = program.value_and_grad(cross_entropy)
    optimiser = optax.adam(3e-3)
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    weights = spread(everywhere, weights)
    opt_state = spread(everywhere, optimiser.init(weights))
    carry = fresh = spread(by_example, program.init(BATCH // processes))

    @jax.jit
    def update(weights: Any, opt_state: Any, carry: Any, xs: Array, targets: Array) -> Any:
        (loss, carry), grads = gradient(eqx.combine(weights, rest), xs, targets, carry)
        changes, opt_state = optimiser.update(grads, opt_state)
        weights, opt_state = jax.lax.with_sharding_constraint(
            (eqx.apply_updates(weights, changes), opt_state), everywhere
        )
        return weights, opt_state, carry, loss

    rng, losses = np.random.default_rng(0), []  # the same numbers in every process
    for _ in range(UPDATES):
        chosen = rng.choice(len(images), BATCH, replace=False)[local_slice]
        xs = spread(by_step, images[chosen].swapaxes(0, 1))
        targets = spread(by_step, np.broadcast_to(labels[chosen], (ROWS, len(chosen))))
        weights, opt_state, carry, loss = update(weights, opt_state, fresh, xs, targets)
        for a in jax.tree.leaves((carry.traces, carry.state)):
            assert a.sharding.is_equivalent_to(by_example, a.ndim), (a.shape, a.sharding)
        losses.append(float(loss))
    if process == 0 and processes > 1:
        traces = jax.tree.leaves(carry.traces)
        whole, held = sum(a.nbytes for a in traces), sum(local(a).nbytes for a in traces)
        print(f"{program}\n\n{processes} processes, {jax.device_count()} devices")
        print(f"traces of {BATCH} examples: {whole:,} bytes, {held:,} on each device")
    return losses, [local(a) for a in jax.tree.leaves(weights)]


def local(a: Array) -> np.ndarray:
    """What the first device of this process holds of an array."""
    return np.asarray(a.addressable_data(0))


def one_process(args: argparse.Namespace) -> int:
    """A process of a job: joins the others, trains, and leaves what it has in a file."""
    if args.cluster:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    losses, weights = train()
    gathered = multihost_utils.process_allgather(weights)
    same = all((a == a[0]).all() for a in gathered)
    if jax.process_index() == 0:
        report(losses)
        print(f"weights of all processes: {'identical' if same else 'DIFFERENT'}")
        if args.out is not None:
            np.savez(args.out, np.asarray(losses), *weights)
    return 0 if same else 1


def report(losses: list[float]) -> None:
    for n in range(0, UPDATES, UPDATES // 5):
        print(f"update {n:4d}   loss {losses[n]:.4f}")
    print(f"update {UPDATES - 1:4d}   loss {losses[-1]:.4f}")


def two_processes() -> int:
    """Start a job of two processes on this machine, and compare it with one process alone."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        out = Path(folder) / "out.npz"
        command = [sys.executable, __file__, "--coordinator", coordinator, "--processes", "2"]
        command += ["--out", str(out), "--process"]
        # On a machine with a GPU they would both take the same one.
        jax.config.update("jax_platforms", "cpu")
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        start = time.perf_counter()
        jobs = [subprocess.Popen([*command, str(n)], env=environment) for n in range(2)]
        while any(job.poll() is None for job in jobs) and not any(job.poll() for job in jobs):
            time.sleep(0.1)
        for job in jobs:  # where one has failed, the other would wait for it
            job.kill()
        if any(job.wait() for job in jobs):
            return 1
        print(f"{time.perf_counter() - start:.0f} s")
        with np.load(out) as saved:
            losses, *weights = saved.values()
    alone_losses, alone = train()
    apart = max(float(np.abs(a - b).max()) for a, b in zip(weights, alone, strict=True))
    print(f"largest difference of a weight from those of one process: {apart:.1e}")
    print(f"largest difference of a loss: {np.abs(losses - alone_losses).max():.1e}")
    fell = losses[-1] < (1.0 if FAST else 0.7) * losses[0]
    return 0 if fell and apart < TOLERANCE else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A batch spread over several processes.")
    parser.add_argument("--coordinator", help="address:port of process 0")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which one this is")
    parser.add_argument("--cluster", action="store_true", help="JAX asks the scheduler instead")
    parser.add_argument("--out", type=Path, help="file for the losses and weights")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.cluster or args.coordinator is not None:
        return one_process(args)
    return two_processes()


if __name__ == "__main__":
    sys.exit(main())
