"""The C of exported learners against JAX, step by step."""

import shutil
from pathlib import Path

import jax
import pytest

from tests.device.in_c import Learner
from tests.device.learners import CALLS, CASES, distance
from tests.marks import few

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def _single():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("name", few(CASES, "rule: d_rtrl", "keys", "mask"))
def test_equals_jax(name: str, tmp_path: Path) -> None:
    """State and losses after each update, and the outputs of one step before it."""
    made = CASES[name]()
    exported = made.exported()
    in_c, state, kept = Learner(exported, tmp_path), made.start(), exported.state
    for k in range(CALLS):
        data = {name: a[k] for name, a in made.data.items()}
        _, outputs = exported.predict(kept, data["xs"][0])
        before = in_c.state
        for a, b in zip(in_c.call("predict", x=data["xs"][0]).values(), outputs, strict=True):
            assert distance(a, b) < 1e-5
        in_c.memory[()] = tuple(before[n].reshape(in_c.memory[n].shape) for n in before)
        *state, losses = made.learner.update(*state, **made.call(k))[:4]
        kept = exported.state_of(*state)
        assert distance(in_c.call("update", **data)["losses"], losses) < 1e-5
        for path in made.compared(kept):
            assert distance(in_c.state[path], kept[path]) < 1e-5, (k, path)
