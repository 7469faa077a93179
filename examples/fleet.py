"""A fleet of 1,000 streams on a cluster whose machines fail, are taken back, and change in number.

Digits of scikit-learn are read row by row by 1,000 streams at once, on one set of weights, and a GRU learns from all of
them by D-RTRL. `learner.over` lays the streams over the devices of all processes, and Orbax writes each process's part
of the run: weights, optimiser, hidden states, eligibility traces, and the place in the data (Grain). Run without
arguments, the script plays a cluster on one machine:

1. a job trains from beginning to end, undisturbed, in one process;
2. a job of four processes times its checkpoints, trains, and loses one process without notice (SIGKILL);
3. three processes go on, with 1,000 streams on three devices; two are told to leave (SIGTERM, as schedulers do), upon
   which all save and end;
4. one process with eight devices goes on to the end.

It prints how long the others took to notice, which updates were lost, and what a checkpoint takes. The exit status says
whether the losses of 2, 3 and 4 together are those of 1.

    pip install orbax-checkpoint grain
    python examples/fleet.py                      # about a minute on 2 cores
    python examples/fleet.py --fault SIGSTOP      # the process hangs, and its connections stay open

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
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array
from sklearn.datasets import load_digits

import etpc

FAST = os.environ.get("ETPC_EXAMPLE_FAST") == "1"
STREAMS, NEURONS = 1000, 16
UPDATES, SAVE_EVERY = 60 if FAST else 200, 5
KILLED_AT, LEAVES_AT = 13, 20
PACE = 0.1
"""Seconds that an update waits for its data after SIGTERM, which JAX looks for once a second."""
HEARTBEAT = 10
"""Seconds without a sign of life after which JAX takes a process for dead, and ends the others; 100 by default."""
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


class Fleet:
    """What all processes of a job have: the learner on its mesh, the model, and the run, which checkpoints keep."""

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0))
        cell = eqx.nn.GRUCell(8, NEURONS, key=keys[0])
        model = Reader(cell, eqx.nn.Linear(NEURONS, 10, key=keys[1]))
        self.program = etpc.compile(model, etpc.D_RTRL(window=4), inputs=jnp.zeros(8))
        alone: Any = etpc.online(self.program, cross_entropy, optax.adam(3e-3), every=8)
        mesh = jax.make_mesh((jax.device_count(),), ("batch",))  # of all processes
        self.learner = alone.over(mesh)
        self.model = self.learner.place(model)
        self.opt_state, self.carry = self.learner.init(self.model, STREAMS)
        self.places = len(self.carry.fresh)  # 1,002 on three devices, which share them evenly
        part = self.places // jax.process_count()
        self.mine = np.arange(jax.process_index() * part, (jax.process_index() + 1) * part)

    def on(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.learner.mesh, PartitionSpec(*axes))

    def update(self, images: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> float:
        """One update, of the examples that the streams read next. Each process passes what its own streams read."""
        by_step = self.on(None, "batch")
        mine = chosen[np.minimum(self.mine, STREAMS - 1)]
        here = images[mine].swapaxes(0, 1), np.broadcast_to(labels[mine], (8, len(mine)))
        here = *here, np.broadcast_to(self.mine < STREAMS, (8, len(mine)))
        xs, targets, mask = (jax.make_array_from_process_local_data(by_step, a) for a in here)
        self.model, self.opt_state, self.carry, losses = self.learner.update(
            self.model, self.opt_state, self.carry, xs, targets, mask=mask
        )
        return float(losses[0])

    def saved(self, number: int, data: Any) -> ocp.args.Composite:
        """The run as Orbax writes it: arrays, each process what it has of them, and what says how to read them."""
        weights = eqx.filter(self.model, eqx.is_inexact_array)
        carry = etpc.portable(self.program, self.carry)
        about = {"number": number, "places": self.places, "program": carry.pop("program")}
        return ocp.args.Composite(
            run=ocp.args.StandardSave((weights, self.opt_state, carry)),
            about=ocp.args.JsonSave({**about, "data": data}),
        )

    def restore(self, manager: ocp.CheckpointManager, number: int) -> Any:
        """Go on where another job was, however many devices it had. Returns the place in the data."""
        in_words = ocp.args.Composite(about=ocp.args.JsonRestore())
        about = manager.restore(number, args=in_words)["about"]
        weights, rest = eqx.partition(self.model, eqx.is_inexact_array)
        places = about["places"]  # of the job that wrote it; these devices may not divide them
        by_stream = self.on() if places % jax.device_count() else self.on("batch")
        carry = etpc.portable(self.program, jax.eval_shape(lambda: self.program.init(places)))
        carry.pop("program")
        shape = lambda a, on: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on)
        like = (
            *jax.tree.map(lambda a: shape(a, self.on()), (weights, self.opt_state)),
            jax.tree.map(lambda a: shape(a, by_stream), carry),
        )
        args = ocp.args.Composite(run=ocp.args.StandardRestore(like))
        weights, self.opt_state, carry = manager.restore(number, args=args)["run"]
        self.model = eqx.combine(weights, rest)
        # Another rule or model is refused here; another device, or version of JAX, is not.
        restored = etpc.from_portable(self.program, {**carry, "program": about["program"]})
        if places != self.places:
            restored = etpc.take_streams(restored, slice(STREAMS))
            if self.places > STREAMS:  # those that fill the devices up
                rest = etpc.take_streams(self.carry, slice(STREAMS, None))
                restored = etpc.join_streams([restored, rest])
        self.carry = restored
        return about["data"]


def managed(folder: Path, every: int, in_background: bool = True) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        save_interval_steps=every, max_to_keep=2, enable_async_checkpointing=in_background
    )
    return ocp.CheckpointManager(folder, options=options)


def train(fleet: Fleet, folder: Path, fault: str, at: int) -> None:
    """Train from the last checkpoint in `folder`, or from the beginning. Every process of the job runs this.

    `losses.jsonl` gets a line for each update, its number and its loss; `events.jsonl` what happened, and when.

    - `fault`, `at`: a signal that this process sends itself after that update, as a cluster would.
    """

    def event(name: str, **what: Any) -> None:
        line = {"event": name, "time": time.time(), "process": jax.process_index(), **what}
        with (folder / "events.jsonl").open("a") as file:
            print(json.dumps(line), file=file)

    first = jax.process_index() == 0
    # Every process goes through the numbers of all examples and reads its own, so that the place in the data is the
    # same for all, however many there are.
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32).reshape(-1, 8, 8)
    order = grain.MapDataset.range(len(images)).shuffle(seed=0).repeat()
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # numbers alone, at once
    batches = iter(order.batch(STREAMS).to_iter_dataset(read))

    with managed(folder / "checkpoints", SAVE_EVERY) as manager:
        done = manager.latest_step() or 0
        if done:
            batches.set_state(fleet.restore(manager, done))
        for number in range(done + 1, UPDATES + 1):
            try:
                loss = fleet.update(images, labels, next(batches))
            except Exception:  # of the exchange between devices: another process is gone
                event("noticed")
                raise
            if number == done + 1:
                event("began", number=number)
            if first:
                with (folder / "losses.jsonl").open("a") as file:
                    print(json.dumps([number, loss]), file=file)
            if manager.should_save(number):  # as it is due, or the job has been told to leave
                start = time.perf_counter()
                manager.save(number, args=fleet.saved(number, batches.get_state()))
                event("saved", number=number, seconds=time.perf_counter() - start)
            if manager.reached_preemption(number):
                event("left", number=number)
                break
            if fault and number == at:
                event(fault, number=number)
                os.kill(os.getpid(), getattr(signal, fault))
            if number >= LEAVES_AT and jax.process_count() == 3:
                time.sleep(PACE)


def measure(fleet: Fleet, folder: Path, times: int = 3) -> None:
    """How long an update waits for its checkpoint, and until that is on the disk, with and without a background."""
    size = sum(
        a.nbytes
        for a in jax.tree.leaves((fleet.model, fleet.opt_state, fleet.carry))
        if eqx.is_array(a)
    )
    for name in ("synchronous", "asynchronous"):
        waited, whole = [], []
        with managed(folder / name, 1, name == "asynchronous") as manager:
            for number in range(times):
                start = time.perf_counter()
                manager.save(number, args=fleet.saved(number, {}))
                waited.append(time.perf_counter() - start)
                manager.wait_until_finished()
                whole.append(time.perf_counter() - start)
        if jax.process_index() == 0:
            found = {"bytes": size, "waited": min(waited[1:]), "whole": min(whole[1:])}
            (folder / f"{name}.json").write_text(json.dumps(found))


# --- the cluster ---


def start(folder: Path, processes: int, devices: int, *more: Any) -> list[subprocess.Popen[bytes]]:
    """A job of so many processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--folder",
        folder,
        "--processes",
        processes,
        *more,
    ]
    command = [str(part) for part in [*command, "--coordinator", coordinator, "--process"]]
    log = (folder / "log.txt").open("ab")  # of what JAX says when it ends a process
    return [
        subprocess.Popen([*command, str(n)], env=environment, stdout=log, stderr=log)
        for n in range(processes)
    ]


def finish(folder: Path, jobs: list[subprocess.Popen[bytes]]) -> None:
    ended = [job.wait() for job in jobs]
    if any(ended):
        raise SystemExit(f"the job failed: {(folder / 'log.txt').read_text()[-3000:]}")


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def play(fault: str) -> int:
    with tempfile.TemporaryDirectory() as name:
        whole, faulty = Path(name) / "whole", Path(name) / "faulty"
        whole.mkdir()
        faulty.mkdir()
        finish(whole, start(whole, 1, 1))

        jobs = start(faulty, 4, 1, "--measure", "--fault", fault, "--at", KILLED_AT, "--victims", 3)
        ended: dict[int, float] = {}
        while len(ended) < 3:
            time.sleep(0.02)
            ended |= {
                n: time.time() for n in range(3) if n not in ended and jobs[n].poll() is not None
            }
        jobs[3].kill()
        jobs[3].wait()
        if not any(e["event"] == fault for e in lines(faulty / "events.jsonl")):
            raise SystemExit(f"the job failed: {(faulty / 'log.txt').read_text()[-3000:]}")
        killed = lines(faulty / "losses.jsonl")[-1][0]

        finish(
            faulty, start(faulty, 3, 1, "--fault", "SIGTERM", "--at", LEAVES_AT, "--victims", 1, 2)
        )
        left = lines(faulty / "losses.jsonl")[-1][0]
        finish(faulty, start(faulty, 1, 8))

        events = lines(faulty / "events.jsonl")
        wanted, found = dict(lines(whole / "losses.jsonl")), lines(faulty / "losses.jsonl")
        costs = {
            kind: json.loads((faulty / f"{kind}.json").read_text())
            for kind in ("synchronous", "asynchronous")
        }

    of = lambda name: [event for event in events if event["event"] == name]
    at = of(fault)[0]["time"]
    began = [event["number"] for event in of("began") if event["process"] == 0]
    noticed = [f"{event['time'] - at:.2f} s" for event in of("noticed")]
    told, gone = of("SIGTERM")[0], max(event["time"] for event in of("left"))
    report = f"""\
{STREAMS:,} streams; a process of 4 got {fault} after update {of(fault)[0]["number"]}
  the exchange failed in {len(noticed)} of 3 others: {", ".join(noticed) or "none"}
  JAX ended the last of them after {max(ended.values()) - at:.1f} s; heartbeat_timeout_seconds={HEARTBEAT}
  3 devices went on with update {began[1]}: {killed - began[1] + 1} updates were made again
two of 3 got SIGTERM after update {told["number"]}; all had saved and left after {left}
  that was {gone - told["time"]:.1f} s later
  8 devices went on with update {began[2]}"""
    print(report)
    for kind, cost in costs.items():
        waited, whole_ms = 1e3 * cost["waited"], 1e3 * cost["whole"]
        print(
            f"a checkpoint of {cost['bytes'] / 1e6:.1f} MB, {kind}: an update waits {waited:.0f} ms,"
        )
        print(f"  and it is on the disk after {whole_ms:.0f} ms")
    apart = max(abs(loss - wanted[number]) for number, loss in found)
    print(
        f"{len(wanted)} losses, from {wanted[1]:.3f} to {wanted[UPDATES]:.3f}; the largest difference: {apart:.1e}"
    )
    complete = {number for number, _ in found} == set(range(1, UPDATES + 1))
    resumed = began[1] % SAVE_EVERY == 1 and began[1] <= killed + 1 and began[2] == left + 1
    return 0 if complete and resumed and killed < left < UPDATES and apart < TOLERANCE else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="A fleet of streams on a cluster that changes.")
    parser.add_argument(
        "--fault", default="", help="what the fourth process gets: SIGKILL or SIGSTOP"
    )
    parser.add_argument("--folder", type=Path, help="for checkpoints and losses, shared by all")
    parser.add_argument("--coordinator", help="address:port of process 0")
    parser.add_argument("--processes", type=int, help="how many there are")
    parser.add_argument("--process", type=int, help="which one this is")
    parser.add_argument("--cluster", action="store_true", help="JAX asks the scheduler instead")
    parser.add_argument("--measure", action="store_true", help="time checkpoints first")
    parser.add_argument("--at", type=int, default=0, help="the update after which the fault comes")
    parser.add_argument(
        "--victims", type=int, nargs="*", default=[], help="the processes that get it"
    )
    args = parser.parse_args()
    if args.folder is None:
        return play(args.fault or "SIGKILL")
    # A killed process does not say so. The others wait for it in an exchange or as they end, until it has shown no sign
    # of life for so long.
    of = (
        {}
        if args.cluster
        else dict(
            coordinator_address=args.coordinator,
            num_processes=args.processes,
            process_id=args.process,
        )
    )
    jax.distributed.initialize(**of, heartbeat_timeout_seconds=HEARTBEAT)
    fleet = Fleet()
    if args.measure:
        measure(fleet, args.folder)
    train(fleet, args.folder, args.fault if args.process in args.victims else "", args.at)
    return 0


if __name__ == "__main__":
    sys.exit(main())
