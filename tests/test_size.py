"""Two ceilings of lines: of what a compilation needs, and of the package. Who raises one says in the commit what was
removed instead, and why that was not enough."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE, PACKAGE = 20_974, 44_851
TESTS = 43_600
NEEDED = """
import sys
import jax.numpy as jnp
import optax
import etpc

def step(w, x, h):
    h = jnp.tanh(w @ h + x)
    return h, h

w, xs, loss = jnp.eye(2), jnp.ones((3, 2)), lambda y, target: jnp.sum((y - target) ** 2)
of = dict(state=jnp.zeros(2), step=step)
program = etpc.compile(w, inputs=xs[0], **of)
etpc.online(program, loss, optax.sgd(0.1))
for compare in (etpc.verify, etpc.reference, etpc.bptt):
    compare(w, xs, xs, loss, **of)
files = {getattr(module, "__file__", None) or "" for module in [*sys.modules.values()]}
print(sum(open(file).read().count("\\n") for file in files if file.startswith(sys.argv[1]) and file.endswith(".py")))
"""
"""Prints the lines of all modules that these five functions load."""


def lines(folder: str) -> int:
    return sum(file.read_text().count("\n") for file in (ROOT / folder).rglob("*.py"))


def test_the_core_stays_below_its_ceiling() -> None:
    command = [sys.executable, "-c", NEEDED, f"{ROOT / 'etpc'}/"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(found.split()[-1]) <= CORE


def test_the_package_and_its_tests_stay_below_theirs() -> None:
    assert lines("etpc") <= PACKAGE
    assert lines("tests") <= TESTS
