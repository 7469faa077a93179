"""The gradient of a sequence in several versions of `etpc`, for airspeed velocity: `make bench-versions`.

The models, the data and the compiled functions are those of `benchmarks.cells`, under D-RTRL.
"""

import re
import sys
from pathlib import Path

# Last, so that `etpc` is the version that is installed, and not that of this folder.
sys.path.append(str(Path(__file__).parents[2]))

import jax

from benchmarks import cells
from etpc import D_RTRL

KERNEL = re.compile(r" (?:fusion|dot|convolution|custom-call)\(")


class Gradient:
    params = ("LIF", "GRU", "LSTM", "LRU")
    param_names = ("cell",)
    timeout = 300.0

    def setup(self, cell):
        self.problem = cells.example(cell, size=128, steps=50, batch=32)
        self.gradient = cells.Gradient(self.problem, D_RTRL())
        jax.block_until_ready(self.gradient())

    def time_gradient(self, cell):
        """Of all 50 steps, with the traces with which the stream goes on."""
        jax.block_until_ready(self.gradient())

    def track_carried_bytes(self, cell):
        return self.gradient.traces

    def track_kernels(self, cell):
        """Fusions, products, convolutions and calls of libraries in the compiled program."""
        return len(KERNEL.findall(self.gradient.compiled.as_text() or ""))


class Compilation:
    params, param_names, timeout = Gradient.params, Gradient.param_names, Gradient.timeout
    number, repeat, warmup_time = 1, (2, 3, 60.0), 0.0

    def setup(self, cell):
        self.problem = cells.example(cell, size=128, steps=50, batch=32)

    def time_compile(self, cell):
        """From a model to a compiled gradient, with empty caches."""
        jax.clear_caches()
        cells.Gradient(self.problem, D_RTRL())
