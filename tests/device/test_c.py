"""The C of exported learners against JAX, step by step."""

import ctypes
import re
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

    def __init__(self, exported: Any, folder: Path, *flags: str):
        self.exported = exported
        sizes = exported.to_c(folder)
        library = folder / "learner.so"
        shared = [*CFLAGS, *flags, "-shared", "-fPIC", "learner.c", "-o", library.name, "-lm"]
        run(["cc", *shared], folder)
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


@pytest.mark.parametrize("name", few(CASES, "mask"))
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


@pytest.mark.slow
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


HEADERS = [f"#include <{h}.h>\n" for h in ("complex", "math", "stdbool", "stdint", "string")]
WORDS = ["int", "typeof", "nullptr", "class", "size_t", "I", "i0", "t12", "state", "work"]
COMMENTS = [
    "*/ float injected; /*",
    "*/*/",
    "//",
    "a\\\nb",
    "a\\",
    "??/\n*/",
    "\u202e",
    "\r*\u2028/",
]


@pytest.mark.slow
def test_names_are_neither_code_nor_words_of_c(tmp_path: Path) -> None:
    """All macros and functions of the headers, as this compiler has them, and names that would end a comment."""
    (tmp_path / "all.c").write_text("".join(HEADERS))
    macros = re.findall(r"#define ([a-zA-Z]\w*)", run(["cc", "-E", "-dM", "all.c"], tmp_path))
    functions = re.findall(r"\b([a-zA-Z]\w*) ?\(", run(["cc", "-E", "all.c"], tmp_path))
    words = sorted({*macros, *functions, *WORDS})
    assert len(words) > 300
    names = [*words, *COMMENTS, "λ", "", "id", "learner_state", "a__b", "a_b"]

    def double(state: Any, expf: Any, NAN: Any, i0: Any, work: Any, I: Any, λ: Any) -> Any:
        return state, [2 * x for x in (expf, NAN, i0, work, I, jnp.exp(λ))]

    code = "def move(state, x): return {name: a + x for name, a in state.items()}, None"
    exec(compile(code, "of/work@x@[ } *.py", "exec"), of_file := {})
    data = {name: np.float32(n) for n, name in enumerate(("expf", "NAN", "i0", "work", "I", "λ"))}
    functions = etpc.export_functions(
        {name: jnp.full(2, n) for n, name in enumerate(names)},
        double=(double, *data.values()),
        move=(of_file["move"], 1),
    )
    in_c = Learner(functions, tmp_path)
    for n, y in enumerate(in_c.call("double", **data).values()):
        assert distance(y, 2 * n if n < 5 else 2 * np.exp(5)) < 1e-6
    in_c.call("move", x=1)
    for name, value in in_c.state.items():
        assert (value == functions.state[name] + 1).all(), name
    header = (tmp_path / "learner.h").read_text()
    members = re.findall(r"^    \w+ (\w+)\[2\]; /\* .* \*/$", header, re.M)
    assert len({*members}) == len(names)
    assert "injected;" not in re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    assert "/* work@x@[ } *.py:1 */" in (tmp_path / "learner.c").read_text()


TWO = """\
#include "first.h"
#include "second_one.h"
static first_state a, b;
static second_one_state c;
static union { first_work first; second_one_work second; } work;
int main(void) {
    const float x[2] = {1, 2};
    float y[2], z[2];
    first_init(&a);
    second_one_init(&c);
    for (int i = 0; i < 3; i++) {
        first_turn(&a, &work.first, x, y);
        second_one_turn(&c, &work.second, x, z);
    }
    b = a; /* as from flash */
    return !(y[0] == 3 && z[1] == 6.25f && first_check(&b) && c.id == SECOND_ONE_ID && FIRST_ID != SECOND_ONE_ID);
}
"""


def test_two_learners_in_a_program_of_c_and_of_cpp(tmp_path: Path) -> None:
    def turn(state: Any, x: Any) -> Any:
        return state * 1j, x + (state * jnp.conj(state)).real.sum() / 2

    def exported(start: Any) -> etpc.ExportedFunctions:
        return etpc.export_functions(start, turn=(turn, jnp.ones(2)))

    exported(jnp.full(2, 1 + 1j)).to_c(tmp_path, "first")
    exported(jnp.full(2, 2 + 0.5j)).to_c(tmp_path, name="second_one")
    run(["cc", *CFLAGS, "-c", "first.c", "second_one.c"], tmp_path)
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
    for compiler in (["cc", *CFLAGS], ["c++", "-x", "c++", "-std=c++11", *strict]):
        if shutil.which(compiler[0]):
            (tmp_path / "main.c").write_text(TWO)
            run([*compiler, "-c", "main.c"], tmp_path)
            run(["cc", "main.o", "first.o", "second_one.o", "-lm", "-o", "both"], tmp_path)
            run(["./both"], tmp_path)
    symbols = run(["nm", "-g", "--defined-only", "second_one.o"], tmp_path).split()[2::3]
    assert {*symbols} == {f"second_one_{f}" for f in ("init", "check", "turn")}
    assert " b " not in run(["nm", "first.o"], tmp_path).lower()  # no memory of its own


def test_a_state_of_another_build_is_told(tmp_path: Path) -> None:
    """Another first value, another constant and another shape are another build; another line of the code is not."""

    def built(start: Any, scale: float, name: str = "learner") -> str:
        functions = etpc.export_functions(start, f=(lambda s, x: (s + x * scale, None), 1.0))
        functions.to_c(tmp_path, name)
        return re.findall(r"_ID (0x[0-9a-f]{8})u", (tmp_path / f"{name}.h").read_text())[0]

    first = built(jnp.zeros(3), 2.0)
    again = etpc.export_functions(jnp.zeros(3), f=(lambda s, x: (s + x * 2.0, None), 1.0))
    in_c = Learner(again, tmp_path)
    assert f"{int(in_c.memory['id']):#010x}" == first
    assert in_c.library.learner_check(in_c._pointer(in_c.memory)) & 1
    others = [built(jnp.ones(3), 2.0), built(jnp.zeros(3), 3.0), built(jnp.zeros(4), 2.0)]
    assert len({first, *others}) == 4
    for other in (*others, "0x00000000", "0xffffffff"):
        in_c.memory["id"] = int(other, 16)
        assert not in_c.library.learner_check(in_c._pointer(in_c.memory)) & 1
    source = (tmp_path / "learner.c").read_text()
    assert re.search(rf"/\* {Path(__file__).name}:\d+ \*/", source)
    for name in ("int", "two words", "a-b", "", "../x", "9", "NAN", "λ"):
        with pytest.raises(etpc.InputError, match="no files and functions of the name"):
            built(jnp.zeros(3), 2.0, name)


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
