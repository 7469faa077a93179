"""What is compiled, and how it is written down."""

import hashlib
import importlib.metadata
import re
from pathlib import Path

import jax
import jax.numpy as jnp

import etpc
from tests.helpers import loss
from tests.models import ALL_NAMED, data, named
from tests.passes.networks import INPUTS, networks

FILE = Path(__file__).parent / "programs.txt"
RELEASE = "0.10.2"
"""The release of JAX whose StableHLO is written down: another one traces and lowers in other ways."""
RULES = {
    "D-RTRL": etpc.D_RTRL(),
    "D-RTRL, each step": etpc.D_RTRL(window=1),
    "ES-D-RTRL 0.9": etpc.ES_D_RTRL(decay=0.9),
    "ES-D-RTRL rank 2": etpc.ES_D_RTRL(rank=2, window=2),
    "RTRL": etpc.RTRL(window=2),
    "look-back": etpc.D_RTRL(window=1, lookback=3),
}
OTHERS = ("complex cascade", "filters", "columns", "matrix", "tied")
NAMES = (*ALL_NAMED, *OTHERS)


def _network(name):
    """A model, options of `etpc.compile`, and inputs and targets of two steps and two examples."""
    if name in ALL_NAMED:
        model = named(name)
        xs, targets = data(model, T=2, B=2)
        return model, dict(inputs=xs[0, 0]), (xs, targets)
    model, state, step = networks()[name]
    options = dict(inputs=jnp.zeros(INPUTS), state=state, step=step)
    return model, options, (jnp.zeros((2, 2, INPUTS)), jnp.zeros((2, 2, 1)))


def sections(name):
    """The programs of a network, for each rule: what is printed, and a hash of a gradient of two steps as StableHLO."""
    model, options, arguments = _network(name)
    for rule, algorithm in RULES.items():
        program = etpc.compile(model, algorithm, **options, target="cpu")
        run = jax.jit(program.value_and_grad(loss))
        lowered = run.lower(model, *arguments, program.init(2)).as_text()
        code = hashlib.sha256(lowered.encode()).hexdigest()[:16]
        yield f"{name} | {rule}", f"{program.ir}\nStableHLO {code}"


def written():
    """What the file has of each program, by its heading."""
    parts = re.split(r"^## (.*)$", FILE.read_text(), flags=re.MULTILINE)[1:]
    return {head: text.strip() for head, text in zip(parts[::2], parts[1::2], strict=True)}


def same_release():
    return importlib.metadata.version("jax") == RELEASE


def without_code(text):
    return re.sub(r"\nStableHLO .*", "", text)
