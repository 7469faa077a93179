"""The C of exported learners against JAX, step by step."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import etpc
from etpc import nn
from examples.on_device.to_c import Refused, write_c
from tests.device.learners import CALLS, CASES, KEY, H, I, case, distance
from tests.marks import few
from tests.pages import ROOT

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
CFLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-pedantic"]


class Learner:
    """An exported learner as C, compiled for this machine, with the state that it has now."""

    def __init__(self, exported: etpc.Exported, folder: Path):
        self.exported = exported
        self.sizes = write_c(exported, folder)
        library = folder / "learner.so"
        run(["cc", *CFLAGS, "-shared", "-fPIC", "learner.c", "-o", library.name, "-lm"], folder)
        self.library = ctypes.CDLL(str(library))
        fields = [(name, a.dtype, (max(1, a.size),)) for name, a in exported.state.items()]
        self.memory = np.zeros((), np.dtype(fields, align=True))
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
        pointers = map(self._pointer, [self.memory, *given, *results.values()])
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
        in_c.memory[()] = tuple(before[n].reshape(in_c.memory[n].shape) for n in before)
        *state, losses = made.learner.update(*state, **made.call(k))[:4]
        kept = exported.state_of(*state)
        assert distance(in_c.call("update", **data)["losses"], losses) < 1e-5
        for path in made.compared(kept):
            assert distance(in_c.state[path], kept[path]) < 1e-5, (k, path)


def test_an_operation_that_is_not_known_is_refused_by_its_name(tmp_path: Path) -> None:
    def sorting(y, t):
        return ((jax.numpy.sort(y) - t) ** 2).mean()

    exported = case(nn.MinGRU(I, H, key=KEY), loss=sorting).exported()
    with pytest.raises(Refused, match=r"stablehlo\.sort"):
        write_c(exported, tmp_path)


STREAM = """\
#include <stdio.h>
#include "learner.h"
static learner_state state;
int main(void) {
    learner_init(&state);
    for (int k = 0; k < 50; k++) {
        float x[3], target[6], loss[1];
        for (int i = 0; i < 3; i++) x[i] = (float)((7 * k + 3 * i) % 11) / 10;
        for (int i = 0; i < 6; i++) target[i] = (float)((5 * k + i) % 7) / 6;
        learner_update(&state, x, target, loss);
        printf("%.5f\\n", (double)loss[0]);
    }
    return 0;
}
"""
TOOLS = ("arm-none-eabi-gcc", "qemu-system-arm")


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="there is no emulated Cortex-M4")
def test_a_cortex_m4_learns_the_same(tmp_path: Path) -> None:
    write_c(case(nn.MinGRU(I, H, key=KEY)).exported(), tmp_path)
    (tmp_path / "main.c").write_text(STREAM)
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
