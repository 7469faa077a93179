"""A job of two processes loses one of them, and goes on where it was on another machine.

Machines of a cluster fail, and those that are cheap are taken back with half a minute's notice. A run that
learns from a stream has more to lose than its weights: hidden states, eligibility traces, the optimiser's
state, and the place in the data. Orbax writes all of them, each process what it has of them, and Grain says
which examples come next. Run without arguments, the script plays this through on one machine:

1. a job trains from beginning to end, undisturbed;
2. another begins, and one of its two processes is killed (SIGKILL: no notice);
3. it is started again, and is told to leave (SIGTERM, as schedulers do), upon which both processes save;
4. one process with four devices goes on from there, on a mesh of another shape.

The exit status says whether the losses of 2, 3 and 4 together are those of 1.

    pip install orbax-checkpoint grain
    python examples/preempted.py                       # about a minute on 2 cores

On a cluster, start it for each process with `--cluster --folder DIR`, where DIR is on a disk that all processes
share, and start it again after each fault.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from sklearn.datasets import load_digits

import etpc

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"
NEURONS, BATCH, UPDATES, SAVE_EVERY = 32, 16, 30 if FAST else 120, 5
TOLERANCE = 1e-4  # of a loss: meshes of other shapes add up in another order


class Reader(eqx.Module):
    """A GRU that reads a row of pixels at each step, and says what digit it may be."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def init_state(self) -> Array:
        return jnp.zeros(NEURONS)

    def __call__(self, x: Array, h: Array) -> tuple[Array, Array]:
        h = self.cell(x, h)
        return self.readout(h), h


def cross_entropy(y: Array, label: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(y, label)


def train(folder: Path) -> int:
    """Train from the last checkpoint in `folder`, or from the beginning. Every process of the job runs this.

    The file `losses.jsonl` gets a line for each update: its number and its loss.
    """
    mesh = Mesh(jax.devices(), ("batch",))  # of all processes
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_example = NamedSharding(mesh, PartitionSpec("batch"))  # of a carry: axes B, ...
    by_step = NamedSharding(mesh, PartitionSpec(None, "batch"))  # of a sequence: axes T, B, ...
    part = BATCH // jax.process_count()
    mine = slice(jax.process_index() * part, (jax.process_index() + 1) * part)

    def spread(sharding: NamedSharding, local: Any) -> Any:
        """A global array from what each process has of it."""
        return jax.tree.map(
            lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), local
        )

    keys = jax.random.split(jax.random.key(0))
    model = Reader(eqx.nn.GRUCell(8, NEURONS, key=keys[0]), eqx.nn.Linear(NEURONS, 10, key=keys[1]))
    program = etpc.compile(model, etpc.D_RTRL(window=4), inputs=jnp.zeros(8))
    gradient = program.value_and_grad(cross_entropy)
    optimiser = optax.adam(3e-3)
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    weights = spread(everywhere, weights)
    run = (
        weights,
        spread(everywhere, optimiser.init(weights)),
        spread(by_example, program.init(part)),
    )

    @jax.jit
    def update(run: Any, xs: Array, labels: Array) -> Any:
        weights, opt_state, carry = run
        (loss, carry), grads = gradient(eqx.combine(weights, rest), xs, labels, carry)
        changes, opt_state = optimiser.update(grads, opt_state)
        moved = (eqx.apply_updates(weights, changes), opt_state)
        return (*jax.lax.with_sharding_constraint(moved, everywhere), carry), loss

    # Every process goes through the numbers of all examples and reads its own, so that the place in the data is the
    # same for all, however many there are.
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32).reshape(-1, 8, 8)
    order = grain.MapDataset.range(len(images)).shuffle(seed=0).repeat()
    batches = iter(order.batch(BATCH).to_iter_dataset())

    # In the background, a save would exchange something between processes beside the updates.
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=SAVE_EVERY, max_to_keep=2, enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(folder / "checkpoints", options=options) as manager:
        done = manager.latest_step() or 0
        if done:
            like = jax.tree.map(
                ocp.utils.to_shape_dtype_struct, run
            )  # with the shardings of this mesh
            saved = manager.restore(
                done,
                args=ocp.args.Composite(
                    run=ocp.args.StandardRestore(like),
                    data=ocp.args.JsonRestore(),
                    program=ocp.args.JsonRestore(),
                ),
            )
            if saved["program"] != {"id": program.init().program}:
                raise SystemExit("the traces in the checkpoint are those of another program")
            run = saved["run"]
            batches.set_state(saved["data"])
        for number in range(done + 1, UPDATES + 1):
            chosen = next(batches)[mine]
            xs = spread(by_step, images[chosen].swapaxes(0, 1))
            run, loss = update(run, xs, spread(by_step, np.broadcast_to(labels[chosen], (8, part))))
            if jax.process_index() == 0:
                with (folder / "losses.jsonl").open("a") as file:
                    print(json.dumps([number, float(loss)]), file=file)
            manager.save(  # where it is due, and where the job has been told to leave
                number,
                args=ocp.args.Composite(
                    run=ocp.args.StandardSave(run),
                    data=ocp.args.JsonSave(batches.get_state()),
                    program=ocp.args.JsonSave({"id": program.init().program}),
                ),
            )
            if manager.reached_preemption(number):
                print(f"process {jax.process_index()} was told to leave, after update {number}")
                break
    return 0


# --- the faults ---


def start(folder: Path, processes: int, devices: int = 1) -> list[subprocess.Popen[bytes]]:
    """A job of so many processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, __file__, "--folder", str(folder), "--processes", str(processes)]
    command += ["--coordinator", coordinator, "--process"]
    return [subprocess.Popen([*command, str(n)], env=environment) for n in range(processes)]


def losses(folder: Path) -> list[tuple[int, float]]:
    path = folder / "losses.jsonl"
    return (
        [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    )


def wait_for(folder: Path, jobs: list[subprocess.Popen[bytes]], updates: int) -> None:
    """Wait until a job has made so many updates."""
    while len(losses(folder)) < updates:
        if any(job.poll() is not None for job in jobs):
            raise SystemExit("the job ended too early")
        time.sleep(0.02)


def finish(jobs: list[subprocess.Popen[bytes]]) -> None:
    if any(job.wait() for job in jobs):
        raise SystemExit("the job failed")


def play() -> int:
    with tempfile.TemporaryDirectory() as name:
        whole, faulty = Path(name) / "whole", Path(name) / "faulty"
        whole.mkdir()
        faulty.mkdir()
        finish(start(whole, processes=1, devices=2))

        jobs = start(faulty, processes=2)
        wait_for(faulty, jobs, 2 * SAVE_EVERY + 2)
        jobs[1].kill()
        for job in jobs:  # the other one waits for it in vain
            job.kill()
            job.wait()
        killed = losses(faulty)[-1][0]

        jobs = start(faulty, processes=2)
        wait_for(faulty, jobs, len(losses(faulty)) + 3)
        for job in jobs:
            job.send_signal(signal.SIGTERM)
        finish(jobs)
        left = losses(faulty)[-1][0]

        finish(start(faulty, processes=1, devices=4))
        wanted, found = dict(losses(whole)), losses(faulty)
    numbers = [number for number, _ in found]
    again = numbers[numbers.index(killed) + 1]
    print(
        f"killed after update {killed}, went on with {again}; left after {left}, went on with "
        f"{numbers[numbers.index(left) + 1]}"
    )
    apart = max(abs(loss - wanted[number]) for number, loss in found)
    print(
        f"{len(wanted)} losses, from {wanted[1]:.3f} to {wanted[UPDATES]:.3f}; the largest difference: {apart:.1e}"
    )
    complete = set(numbers) == set(range(1, UPDATES + 1))
    resumed = again % SAVE_EVERY == 1 and again <= killed + 1 and numbers.count(left) == 1
    return 0 if complete and resumed and killed < left < UPDATES and apart < TOLERANCE else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="A job that loses a process and goes on.")
    parser.add_argument(
        "--folder", type=Path, help="for checkpoints and losses, shared by all processes"
    )
    parser.add_argument("--coordinator", help="address:port of process 0")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which one this is")
    parser.add_argument("--cluster", action="store_true", help="JAX asks the scheduler instead")
    args = parser.parse_args()
    if args.folder is None:
        return play()
    if args.cluster:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    return train(args.folder)


if __name__ == "__main__":
    sys.exit(main())
