"""The C of exported learners against JAX, step by step."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.device.agents import exported_agent, lives, lives_as_in_python
from tests.device.learners import CALLS, CASES, KEY, H, I, case, distance
from tests.marks import few
from tests.pages import ROOT

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
CFLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic"]


class Learner:
    """Exported functions as C, compiled for this machine, with the state that they have now."""

    def __init__(self, exported: Any, folder: Path):
        self.exported = exported
        sizes = exported.to_c(folder)
        library = folder / "learner.so"
        run(["cc", *CFLAGS, "-shared", "-fPIC", "learner.c", "-o", library.name, "-lm"], folder)
        self.library = ctypes.CDLL(str(library))
        arrays = [(name, a.dtype, (max(1, a.size),)) for name, a in exported.state.items()]
        layout = np.dtype([("id", np.uint32), *arrays], align=True)
        self.memory, self.work = np.zeros((), layout), np.zeros(sizes["work"], np.uint8)
        assert layout.itemsize == sizes["state"]
        self.library.learner_init(self._pointer(self.memory))

    @staticmethod
    def _pointer(array: np.ndarray) -> Any:
        return array.ctypes.data_as(ctypes.c_void_p)

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {
            name: self.memory[name].reshape(-1)[: a.size].reshape(a.shape).copy()
            for name, a in self.exported.state.items()
        }

    def call(self, function: str, **data: Any) -> dict[str, np.ndarray]:
        entry = self.exported.manifest["files"][f"{function}.mlirbc"]
        arguments = [a for a in entry["arguments"] if a["role"] != "state"]
        results = {
            r["name"]: np.zeros(r["shape"], r["dtype"])
            for r in entry["results"]
            if r["role"] != "state"
        }
        given = [np.ascontiguousarray(data[a["name"]], a["dtype"]) for a in arguments]
        pointers = map(self._pointer, [self.memory, self.work, *given, *results.values()])
        getattr(self.library, f"learner_{function}")(*pointers)
        return results


@pytest.mark.parametrize("name", few(CASES, "rule: d_rtrl", "mask"))
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
        for path, value in before.items():
            in_c.memory[path] = value.reshape(in_c.memory[path].shape)
        *state, losses = made.learner.update(*state, **made.call(k))[:4]
        kept = exported.state_of(*state)
        assert distance(in_c.call("update", **data)["losses"], losses) < 1e-5
        for path in made.compared(kept):
            assert distance(in_c.state[path], kept[path]) < 1e-5, (k, path)


def test_an_agent_acts_and_learns_as_in_python(tmp_path: Path) -> None:
    agent, functions = exported_agent()
    in_c = Learner(functions, tmp_path)
    actions = lives(lambda name, **data: in_c.call(name, **data).values())
    lives_as_in_python(agent, in_c.exported, actions, in_c.state)


def test_what_has_no_c_is_refused_by_its_name_and_line(tmp_path: Path) -> None:
    def sort(total: Any, x: Any) -> Any:
        return total, jax.lax.sort(x)

    def low(total: Any, x: Any) -> Any:
        return total, x.astype(jnp.bfloat16)

    for function, words in (
        (sort, r"stablehlo\.sort \(sort\) at .*test_c\.py:\d+"),
        (low, "is bfloat16"),
    ):
        functions = etpc.export_functions(jnp.zeros(3), f=(function, jnp.zeros(3)))
        with pytest.raises(etpc.UnsupportedError, match=f"There is no C for .*{words}"):
            functions.to_c(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_names_that_mean_something_in_c(tmp_path: Path) -> None:
    def double(state: Any, sum: Any, I: Any, i0: Any, λ: Any) -> Any:
        y = jnp.exp(sum) @ state["int"] + I + i0.sum() + λ
        return {"int": y}, {"y": y, "0": jnp.argmax(y)}

    data = {
        name: np.random.default_rng(n).random(4, np.float32) for n, name in enumerate(["I", "i0"])
    }
    data |= {"sum": np.eye(4, dtype=np.float32), "λ": np.float32(1)}
    arguments = [data[name] for name in ("sum", "I", "i0", "λ")]
    functions = etpc.export_functions({"int": jnp.arange(4.0)}, double=(double, *arguments))
    in_c, (state, outputs) = (
        Learner(functions, tmp_path),
        functions.double(functions.state, *arguments),
    )
    for a, b in zip(in_c.call("double", **data).values(), outputs, strict=True):
        assert distance(a, b) < 1e-6
    assert distance(in_c.state["['int']"], state["['int']"]) < 1e-6


def test_states_that_change_places_and_are_returned(tmp_path: Path) -> None:
    def turn(state: Any, x: Any) -> Any:
        a, b, c = state
        return (b, a + x, 2 * a), (a, c, a + x)

    def swap(state: Any) -> Any:
        a, b, c = state
        return (a, c, b), None

    start = (jnp.arange(3.0), jnp.ones(3), jnp.zeros(3))
    functions = etpc.export_functions(start, turn=(turn, jnp.zeros(3)), swap=(swap,))
    in_c, state = Learner(functions, tmp_path), start
    for k in range(4):
        x = np.full(3, k, np.float32)
        state, outputs = turn(state, x)
        for a, b in zip(in_c.call("turn", x=x).values(), outputs, strict=True):
            np.testing.assert_array_equal(a, b)
        state, _ = swap(state)
        in_c.call("swap")
        for a, b in zip(in_c.state.values(), state, strict=True):
            np.testing.assert_array_equal(a, b)


STREAM = """\
#include <stdio.h>
#include "learner.h"
static learner_state state;
static learner_work work;
int main(void) {
    learner_init(&state);
    for (int k = 0; k < 50; k++) {
        float x[3], target[6], loss[1];
        for (int i = 0; i < 3; i++) x[i] = (float)((7 * k + 3 * i) % 11) / 10;
        for (int i = 0; i < 6; i++) target[i] = (float)((5 * k + i) % 7) / 6;
        learner_update(&state, &work, x, target, loss);
        printf("%.5f\\n", (double)loss[0]);
    }
    return 0;
}
"""
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm")


def small() -> tuple[Any, str]:
    return case(nn.MinGRU(I, H, key=KEY)).exported(), STREAM


def agent() -> tuple[Any, str]:
    """The example, shorter."""
    source = (ROOT / "examples" / "on_device" / "agent.c").read_text()
    return exported_agent()[1], source.replace(
        "EPISODES = 4000, SHOWN = 250", "EPISODES = 1500, SHOWN = 25"
    )


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="there is no emulated Cortex-M4")
@pytest.mark.parametrize("example", [small, agent])
def test_a_cortex_m4_learns_the_same(
    example: Callable[[], tuple[Any, str]], tmp_path: Path
) -> None:
    functions, source = example()
    functions.to_c(tmp_path)
    (tmp_path / "main.c").write_text(source)
    start = ROOT / "examples" / "on_device"
    chip = "-mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard --specs=rdimon.specs"
    files = ["main.c", "learner.c", "-lm", "-o"]
    boot = [str(start / "cortex_m4.c"), "-T", str(start / "cortex_m4.ld")]
    run(["cc", *CFLAGS, *files, "host"], tmp_path)
    run(["arm-none-eabi-gcc", "-O2", *CFLAGS, *chip.split(), *boot, *files, "chip.elf"], tmp_path)
    board = "-M mps2-an386 -nographic -monitor none -serial none"
    emulated = f"{board} -semihosting-config enable=on,target=native -kernel chip.elf"
    there = run(["qemu-system-arm", *emulated.split()], tmp_path)
    assert there.split() == run(["./host"], tmp_path).split()
    assert len(set(there.split())) > 40


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
