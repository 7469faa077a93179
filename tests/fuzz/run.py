"""Draws models from the grammar for as long as is asked, and checks each one.

    python -m tests.fuzz.run --seconds 300 --processes 2            # another seed each time; it is printed
    python -m tests.fuzz.run --seed 7 --number 12                   # one structure again

The n-th structure of a seed is always the same. One that fails is made smaller for as long as it fails in the same way,
and printed; then the command fails too.
"""

import argparse
import collections
import gc
import multiprocessing
import os
import random
import sys
import time
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0")
# JAX's derivative of a maximum compares it with the values. XLA may compute these a second time, and where it fuses
# a product and a sum in only one of the two, none is equal, and the derivative is NaN.
os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_max_isa=AVX"

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

from tests.fuzz.check import drawn, outcome, smallest  # noqa: E402

CLEAR_EVERY = 10
"""Compiled code of many models exhausts the process's memory mappings."""


def work(worker, args, results):
    """Every `args.processes`-th structure."""
    warnings.simplefilter("error")
    end, number = time.time() + args.seconds, worker
    while time.time() < end:
        program = drawn(args.seed, number)
        result, failure = outcome(program, number)
        if failure:
            small = smallest(program, number, failure)
            print(
                f"--seed {args.seed} --number {number}: {failure}\n{small}\n{small!r}\n", flush=True
            )
        results.put((result, failure))
        number += args.processes
        if number // args.processes % CLEAR_EVERY == 0:
            jax.clear_caches()
            gc.collect()
    results.put(None)


def summary(results):
    """Counts, and the largest error of each property."""
    largest = collections.Counter()
    for result, failure in results:
        for name, error in result.errors.items() if result and not failure else ():
            largest[name] = max(largest[name], error)
    failed = sum(bool(failure) for _, failure in results)
    points = sum(result.points for result, _ in results if result)
    lines = [f"{len(results)} structures, {points} models, {failed} structures failed"]
    lines += [f"  {name}: {error:.1e}" for name, error in sorted(largest.items())]
    return failed, "\n".join(lines)


def main(args):
    print(f"drawn with --seed {args.seed}", flush=True)
    if args.number is not None:
        program = drawn(args.seed, args.number)
        result, failure = outcome(program, args.number)
        print(program, result, failure, sep="\n")
        return bool(failure)
    context = multiprocessing.get_context("spawn")
    queue, results, running = context.Queue(), [], args.processes
    workers = [context.Process(target=work, args=(i, args, queue)) for i in range(running)]
    for worker in workers:
        worker.start()
    while running:
        found = queue.get()
        running -= found is None
        results += [] if found is None else [found]
    for worker in workers:
        worker.join()
    failed, text = summary(results)
    print(text)
    return failed > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--number", type=int, help="this structure alone")
    sys.exit(main(parser.parse_args()))
