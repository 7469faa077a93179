"""Kills a process that saves checkpoints, at random times, and looks at what is left.

    python -m tests.kill FOLDER KILLS

A child saves in a loop, version after version, and is killed; then the file must load and be one
version, whole. Prints one line of JSON. The process imports JAX and starts none of it, so that a
child is a fork and takes milliseconds.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np

import etpc

SIZE = 100_000


def tree(version):
    return {"version": version, "a": np.full(SIZE, version), "b": np.full((SIZE, 2), version)}


def child(path, version):
    while True:
        version += 1
        etpc.save(path, tree(version))


def killed_after(path, version, seconds):
    pid = os.fork()
    if pid == 0:
        child(path, version)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main(folder, kills):
    path, rng = Path(folder) / "run.etpc", random.Random(0)
    for _ in range(5):
        began = time.perf_counter()
        etpc.save(path, tree(0))
    longest = 6 * (time.perf_counter() - began)  # so that on a slow machine too some saves end
    version, while_saving, saved, most = 0, 0, 0, 0
    for _ in range(kills):
        killed_after(path, version, rng.uniform(0, longest))
        left = sorted(p.name for p in path.parent.iterdir())
        most = max(most, len(left))
        while_saving += left == [".run.etpc.saving", "run.etpc"]
        found = etpc.load(path, tree(0))
        assert found["version"] >= version, "an older version came back"
        assert (found["a"] == found["version"]).all(), "a mixture of versions"
        assert (found["b"] == found["version"]).all(), "a mixture of versions"
        saved += found["version"] - version
        version = found["version"]
    etpc.save(path, tree(version))
    left = sorted(p.name for p in path.parent.iterdir())
    report = {"kills": kills, "while_saving": while_saving, "saved": saved}
    print(json.dumps(report | {"most_files": most, "left": left}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of a fork where threads may be: here are none
    main(sys.argv[1], int(sys.argv[2]))
