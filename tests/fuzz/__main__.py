"""Draws models from the grammar for as long as is asked, and checks each one.

    python -m tests.long_run --seconds 3600 --processes 2 --out run      # goes on where it stopped
    python -m tests.long_run --out run --summary

The n-th structure of a seed is always the same. With `--check points` it is compiled once and checked at many points,
and with `narrow` in the types that it asks for (`tests.sweep`); with `rewired` its connections are changed in place;
with `windows` it is checked at one point with all windows, and with `patterns` for its patterns alone (`tests.fast`).
Each process writes one line of JSON for each structure: its signature, and the errors or the exception. One that fails
is made smaller for as long as it fails in the same way; the smallest one is in its line too.
"""

import argparse
import collections
import functools
import gc
import json
import multiprocessing
import pathlib
import time
import traceback
import warnings

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

from tests import evaluate, fast, grammar, sweep  # noqa: E402

TOLERANCE = 1e-9
ONE_POINT = {
    "windows": functools.partial(fast.check, thorough=True),
    "patterns": fast.check_patterns,
    "rewired": lambda program: {"rewired": sweep.check_rewired(program)},
}
CHECKS = ("points", "narrow", *ONE_POINT)
CLEAR_EVERY = 100
"""Compiled code of many models exhausts the process's memory mappings."""


def outcome(program, number, args):
    """What became of a structure, and a word for how it failed (empty where it did not)."""
    try:
        if args.check in ONE_POINT:
            result = sweep.Result(1, 0, 0, ONE_POINT[args.check](program), (), 0.0)
        elif args.check == "narrow":
            result = sweep.check_narrow(program)
        else:
            result = sweep.check(program, number, args.points, second=number % 4 == 0)
    except fast.Dead:
        return {"points": 0, "dead": 1, "unsettled": 0}, ""
    except Exception as error:  # whatever it is, the run goes on
        lines = traceback.format_exc().splitlines()
        place = next((line.strip() for line in reversed(lines) if "etpc/" in line), "")
        kind = f"{type(error).__name__} at {place}"
        return {"exception": f"{type(error).__name__}: {error}", "trace": lines[-30:]}, kind
    line = {"points": result.points, "dead": result.dead, "unsettled": result.unsettled}
    found = {
        name: error for name, error in result.errors.items() if name.split()[-1] not in args.skip
    }
    tolerance = 1 if args.check == "narrow" else TOLERANCE
    failed = [name for name, error in found.items() if not error < tolerance]
    return line | {"errors": found}, " ".join(failed)


def smallest(program, number, failure, args, budget=80):
    def fails(candidate):
        return outcome(candidate, number, args)[1] == failure

    return grammar.shrink(program, fails, budget)


def drawn(seed, number, args):
    rng = np.random.default_rng((seed, number))
    options = {"narrow": number % 3 == 1, "marks": number % 7 < 2, "complex": number % 11 == 0}
    kinds = args.kinds
    if args.check == "windows":
        kinds, options = [k for k in kinds if k in grammar.FIXED_BRANCHES], {"complex": True}
    elif args.check == "narrow":
        options = {"narrow": True}
    elif args.check == "rewired":
        kinds = [*grammar.CONNECTED] * 20 + [*kinds]
    return grammar.random_program(rng, kinds=kinds, **options)


def work(worker, args):
    """Every `args.processes`-th structure, into a file of its own, from where the file ends."""
    warnings.simplefilter("error")
    fast.treatment()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    path = pathlib.Path(args.out) / f"{args.seed}-{worker}of{args.processes}.jsonl"
    done = lines_of(path) if path.exists() else []
    number = done[-1]["number"] + args.processes if done else worker
    failures = collections.Counter(line["failure"] for line in done if line.get("failure"))
    end = time.time() + args.seconds
    with path.open("a") as file:
        while time.time() < end and number < args.structures:
            program = drawn(args.seed, number, args)
            begin = time.time(), time.process_time()
            line, failure = outcome(program, number, args)
            line |= {"wall": time.time() - begin[0], "cpu": time.process_time() - begin[1]}
            line = {"number": number, "signature": program.signature} | line
            if failure:
                failures[failure] += 1
                line |= {"failure": failure, "program": repr(program)}
                if failures[failure] <= args.shrunk:
                    small = smallest(program, number, failure, args)
                    line |= {"smallest": repr(small), "text": text(small)}
                print(f"{number}: {failure}\n{line.get('smallest', '')}\n", flush=True)
            file.write(json.dumps(line) + "\n")
            file.flush()
            number += args.processes
            if number // args.processes % CLEAR_EVERY == 0:
                jax.clear_caches()
                evaluate.PREPARED.clear()
                gc.collect()


def text(program):
    try:
        return str(program)
    except Exception as error:
        return repr(error)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(out):
    """Counts, times and the largest error of each property, of all files of a run."""
    lines = [
        line for path in sorted(pathlib.Path(out).glob("**/*.jsonl")) for line in lines_of(path)
    ]
    largest, failures = collections.Counter(), collections.defaultdict(list)
    for line in lines:
        if line.get("failure"):
            failures[line["failure"]].append(line["number"])
            continue
        for name, error in line.get("errors", {}).items():
            largest[name] = max(largest[name], error)
    good = [line for line in lines if not line.get("failure")]
    return {
        "structures": len(lines),
        "distinct structures": len({line["signature"] for line in lines}),
        "with a gradient": sum(line.get("points", 0) > 0 for line in lines),
        "models checked": sum(line.get("points", 0) for line in lines),
        "models without a finite gradient": sum(line.get("dead", 0) for line in lines),
        "models that rounding alone decides": sum(line.get("unsettled", 0) for line in lines),
        "models of structures without a failure": sum(line["points"] for line in good),
        "processor hours": sum(line["cpu"] for line in lines) / 3600,
        "largest error of an exact claim": max(
            (e for n, e in largest.items() if "exact" in n), default=0
        ),
        "largest errors": dict(largest),
        "failures": {failure: [len(numbers), numbers[:5]] for failure, numbers in failures.items()},
    }


def main(args):
    pathlib.Path(args.out).mkdir(exist_ok=True, parents=True)
    if not args.summary:
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(i, args)) for i in range(args.processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    print(json.dumps(summary(args.out), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--structures", type=int, default=1 << 40, help="draw no more than this")
    parser.add_argument("--points", type=int, default=40, help="models of each structure")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="long_run", help="a folder")
    parser.add_argument("--kinds", nargs="*", default=grammar.KINDS, help="operations to draw")
    parser.add_argument("--skip", nargs="*", default=[], help="properties not to look at")
    parser.add_argument("--shrunk", type=int, default=2, help="failures of one sort made smaller")
    parser.add_argument("--check", choices=CHECKS, default="points")
    parser.add_argument("--summary", action="store_true", help="of what is there")
    main(parser.parse_args())
