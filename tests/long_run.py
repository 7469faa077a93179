"""Draws models from the grammar for as long as is asked, and checks each one.

    python -m tests.long_run --minutes 60 --seed 1 --out run.jsonl

One line of JSON for each model: its signature, and the errors or the exception. A model that fails is made smaller
for as long as it fails in the same way; the smallest one is in its line too, as a `Program` and as text.
"""

import argparse
import collections
import functools
import json
import pathlib
import time
import traceback
import warnings

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

from tests import fast, grammar  # noqa: E402

TOLERANCE = 1e-9
CLEAR_EVERY = 200
"""Compiled code of many models exhausts the process's memory mappings."""


def outcome(program, seed=0, thorough=False, patterns=False):
    """What became of a model, and a word for how it failed (empty where it did not)."""
    try:
        check = (
            fast.check_patterns if patterns else functools.partial(fast.check, thorough=thorough)
        )
        found = check(program, seed)
    except fast.Dead as error:
        return {"dead": str(error)}, ""
    except Exception as error:  # whatever it is, the run goes on
        lines = traceback.format_exc().splitlines()
        place = next((line.strip() for line in reversed(lines) if "etpc/" in line), "")
        kind = f"{type(error).__name__} at {place}"
        return {"exception": f"{type(error).__name__}: {error}", "trace": lines[-30:]}, kind
    failed = [name for name, error in found.items() if not error < TOLERANCE]
    return {"errors": found}, " ".join(failed)


def smallest(program, failure, patterns, budget=150):
    def fails(candidate):
        return outcome(candidate, patterns=patterns)[1] == failure

    return grammar.shrink(program, fails, budget)


def main(minutes, seed, out, kinds, thorough_every, complex, patterns):
    rng = np.random.default_rng(seed)
    end, seen, counts = time.time() + 60 * minutes, set(), collections.Counter()
    failures = collections.Counter()
    with pathlib.Path(out).open("a") as file:
        while time.time() < end:
            program = grammar.random_program(rng, kinds=kinds, complex=complex)
            if program.signature in seen:
                continue
            seen.add(program.signature)
            begin = time.time()
            thorough = len(seen) % thorough_every == 0
            line, failure = outcome(program, thorough=thorough, patterns=patterns)
            line = {"signature": program.signature, "seconds": time.time() - begin} | line
            counts["dead" if "dead" in line else failure or "ok"] += 1
            if failure:
                failures[failure] += 1
                line |= {"failure": failure, "program": repr(program)}
                if failures[failure] <= 3:
                    small = smallest(program, failure, patterns)
                    line |= {"smallest": repr(small), "text": text(small)}
                print(
                    f"{failure}\n{line.get('smallest', '')}\n{line.get('text', '')}\n", flush=True
                )
            file.write(json.dumps(line) + "\n")
            file.flush()
            if len(seen) % CLEAR_EVERY == 0:
                jax.clear_caches()
                print(len(seen), dict(counts), flush=True)
    print(len(seen), dict(counts))


def text(program):
    try:
        return str(program)
    except Exception as error:
        return repr(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="long_run.jsonl")
    parser.add_argument("--kinds", nargs="*", default=grammar.KINDS, help="operations to draw")
    parser.add_argument("--thorough-every", type=int, default=5, help="with all windows")
    parser.add_argument("--complex", action="store_true", help="complex states too")
    parser.add_argument("--patterns", action="store_true", help="check the patterns alone")
    warnings.simplefilter("error")
    main(**vars(parser.parse_args()))
