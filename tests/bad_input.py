"""Bad input, and what each gives: the cases of `docs/bad-input.md`, which this writes.

    python -m tests.bad_input

`tests/test_bad_input.py` checks that the page says what happens.
"""

import dataclasses
import hashlib
import inspect
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import etpc  # noqa: E402
from etpc import checkpoint as store  # noqa: E402
from tests import test_errors, test_online  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"
HEAD = """# Bad input

What was tried, and what it gave. This page is written by `python -m tests.bad_input`, and a test checks that it is what
happens: with 64-bit numbers, so that `float64` is in its messages where `float32` is in yours. Each error names the
place; `model.py:12` stands for a line of your code.
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """`call` raises, or returns what it gave, in words."""

    what: str
    call: Callable[[], str | None]


def contract(name):
    step, state, _ = test_errors.CONTRACT[name]
    w = {"w": test_errors.W}
    return lambda: etpc.compile(w, inputs=test_errors.X, state=state, step=step)


def argument(name):
    return test_errors.INPUTS[name][0]


def online(name):
    return test_online.BAD[name][0]


def compiled(**options):
    return lambda: test_errors.compiled(**options)


def large(**options):
    return lambda: etpc.compile(**test_errors.recurrent(options.pop("n", 4)), **options)


def no_function():
    etpc.compile({"w": test_errors.W}, inputs=test_errors.X, state=jnp.zeros(3))


def model_without_initial_state():
    etpc.compile({"w": test_errors.W}, inputs=test_errors.X, step=lambda m, x, s: (x, s))


def while_loop():
    def step(model, x, h):
        return h, test_errors.loop(model["rec"], h)

    etpc.compile({"rec": jnp.ones(3)}, inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)


def batch_of_inputs():
    etpc.compile(test_errors.Cell(test_errors.W), inputs=jnp.zeros((5, 2)))


def fraction_of_a_batch():
    inspect.unwrap(etpc.Program.init)(test_errors.compiled(), 1.5)


def checked(*lead, **options):
    given = jnp.zeros((*lead, 2)), jnp.zeros((*lead, 3)), test_errors.squared
    return lambda: etpc.verify(test_errors.Cell(test_errors.W), *given, **options)


def checkpoint(change=lambda content: content, like=None, save=None):
    """A load of a file that was changed after it was saved."""

    def call():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.etpc"
            etpc.save(path, {"w": jnp.arange(3.0)} if save is None else save())
            path.write_bytes(change(path.read_bytes()))
            etpc.load(path, {"w": jnp.zeros(3)} if like is None else like())

    return call


def foreign_header(content):
    """Another header, with its right checksum."""
    length = store._START.unpack_from(content)[2]
    text = b'{"leaves": 3}'
    start = store._START.pack(store._MAGIC, 1, len(text), hashlib.sha256(text).digest())
    return start + text + content[store._START.size + length :]


def placed(place):
    """A save into a folder where something was placed."""

    def call():
        with tempfile.TemporaryDirectory() as folder:
            place(Path(folder))
            etpc.save(Path(folder) / "run.etpc", {"w": jnp.zeros(3)})

    return call


def rewired():
    order = np.array([1, 2, 0])
    model = {"w": jnp.ones(3), "order": order}
    step = lambda m, x, h: (h[m["order"]] + m["w"] * x,) * 2
    program = etpc.compile(model, inputs=jnp.zeros(3), state=jnp.zeros(3), step=step)
    order[:] = [0, 1, 2]
    program(model, jnp.zeros(3), program.init())


def token(value):
    def call():
        step = lambda table, x, h: (table[x] + 0.5 * h,) * 2
        table, one = jnp.ones((256, 3)), jax.ShapeDtypeStruct((), "uint8")
        program = etpc.compile(table, inputs=one, state=jnp.zeros(3), step=step)
        program(table, value, program.init())

    return call


def inference():
    class Network(eqx.Module):
        w: jax.Array
        dropout: eqx.nn.Dropout

        def __call__(self, x, h):
            return (self.w * self.dropout(x, key=jax.random.key(0)) + 0.5 * h,) * 2

    model = Network(jnp.ones(3), eqx.nn.Dropout(0.5))
    program = etpc.compile(model, inputs=jnp.zeros(3), state=jnp.zeros(3))
    program(eqx.nn.inference_mode(model), jnp.zeros(3), program.init())


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def unsaved(tree, where="run.etpc"):
    def call():
        with tempfile.TemporaryDirectory() as folder:
            etpc.save(Path(folder) / where, tree)

    return call


# --- what is no error ---


def words(**found):
    """Which of some arrays are finite."""
    return ", ".join(
        f"{name}: {'finite' if np.isfinite(np.asarray(a)).all() else 'NaN'}"
        for name, a in found.items()
    )


def no_number(mask=None, reset=False):
    def call():
        xs, targets = test_online.data()
        xs = xs.at[2:, 1].set(jnp.nan)
        losses, grads, carry = test_online.gradient(
            test_online.RECURRENT, xs, targets, mask=None if mask is None else mask()
        )
        if reset:
            program = test_online.program_of(test_online.RECURRENT)
            carry = program.reset(carry, jnp.isnan(carry.state["h"]).any(-1))
        h = carry.state["h"]
        return words(
            **{"its state": h[1], "state of the others": h[np.array([0, 2])]},
            **({} if reset else {"loss": losses, "gradient": grads.win}),
        )

    return call


def bad_step():
    mask = np.ones((test_online.T, test_online.B), bool)
    mask[2:, 1] = False
    return mask


def masked_out():
    xs, targets = test_online.data()
    losses, grads, _ = test_online.gradient(
        test_online.RECURRENT, xs, targets, mask=np.zeros(xs.shape[:2], bool)
    )
    return f"loss {float(losses[0]):g}, largest gradient {float(jnp.abs(grads.win).max()):g}"


def killed():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.etpc"
        etpc.save(path, 1)
        (Path(folder) / ".run.etpc.saving").write_bytes(b"a part of another")
        before = etpc.load(path, 0)
        etpc.save(path, 2)
        return (
            f"the file holds version {before}; after the next save version {etpc.load(path, 0)}, "
            f"and the folder holds {', '.join(os.listdir(folder))}"
        )


SECTIONS = {
    "The model": [
        Case("a step that changes the structure of the state", contract("structure")),
        Case("a step that changes shapes and dtypes of states", contract("two at once")),
        Case("a step that changes what is no array", contract("static leaf")),
        Case("a step that returns the state alone", contract("no pair")),
        Case("a state without a float", contract("no float state")),
        Case(
            "a model that cannot be called",
            lambda: etpc.compile({"w": test_errors.W}, inputs=jnp.zeros(2), state=jnp.zeros(3)),
        ),
        Case("no initial state", model_without_initial_state),
        Case("a weight in a loop of unknown length", while_loop),
        Case("`inputs=` with a batch axis", batch_of_inputs),
    ],
    "Algorithms and weights": [
        Case("a decay of 0", lambda: etpc.ES_D_RTRL(decay=0.0)),
        Case("a decay that is NaN", lambda: etpc.ES_D_RTRL(decay=float("nan"))),
        Case("a rank of 0", lambda: etpc.ES_D_RTRL(rank=0)),
        Case("a window of 0", lambda: etpc.D_RTRL(window=0)),
        Case("an algorithm that is not there", compiled(algo="rtlr")),
        Case("a selector that selects nothing", compiled(weights=lambda m: ())),
        Case("a selector of what is no array", compiled(weights=lambda m: m.gain)),
        Case('`weights="marked"` where nothing is', compiled(weights="marked")),
        Case("traces of 32 GiB, by mistake", large(algo="rtrl", n=2048)),
        Case("a memory limit of -1", large(memory=-1)),
    ],
    "Calls of a program": [
        Case("an input of another shape", argument("shape")),
        Case("a batch where the carry has none", argument("batch where there is none")),
        Case("another batch size", argument("batch size")),
        Case("a complex input", argument("dtype")),
        Case("an input of another structure", argument("structure")),
        Case("no steps", argument("no steps")),
        Case("targets of another length", argument("targets")),
        Case("a mask of another shape", argument("mask")),
        Case("a loss that returns an array", argument("loss of an array")),
        Case("a loss that returns an int", argument("loss of an integer")),
        Case("a loss that returns a pair", argument("loss of a pair")),
        Case("a model of another structure", argument("structure of the model")),
        Case("a parameter of another shape", argument("shape of a parameter")),
        Case("a number of the model that is another", argument("a number of the model")),
        Case("a model after `eqx.nn.inference_mode`", inference),
        Case("connections that were written to in place", rewired),
        Case("a token that its type cannot hold", token(256)),
        Case("the carry of another program", argument("carry of another program")),
        Case("`init(0)`", lambda: test_errors.compiled().init(0)),
        Case("`init(1.5)`", fraction_of_a_batch),
    ],
    "Checks of a model": [
        Case("`batch_size=` forgotten in `verify`", checked(4, 5)),
        Case("`batch_size=` where there is no batch", checked(4, batch_size=4)),
        Case("a mask of another shape", checked(4, 5, batch_size=5, mask=jnp.ones(4))),
    ],
    "Training on a stream": [Case(name, online(name)) for name in test_online.BAD],
    "Checkpoints": [
        Case("a file that is cut short", checkpoint(lambda content: content[:-8])),
        Case("one bit of an array changed", checkpoint(flipped)),
        Case("a file of another kind", checkpoint(lambda content: b"PK" + content)),
        Case("an empty file", checkpoint(lambda content: b"")),
        Case("a header made by hand", checkpoint(foreign_header)),
        Case(
            "a link where a save writes first",
            placed(lambda folder: (folder / ".run.etpc.saving").symlink_to("other")),
        ),
        Case(
            "a pipe in the place of the file", placed(lambda folder: os.mkfifo(folder / "run.etpc"))
        ),
        Case("other shapes and leaves", checkpoint(like=lambda: {"w": jnp.zeros(4), "b": 0.0})),
        Case("another dtype", checkpoint(like=lambda: {"w": jnp.zeros(3, jnp.float32)})),
        Case(
            "a carry of another program",
            checkpoint(
                save=lambda: test_errors.compiled().init(),
                like=lambda: test_errors.compiled(algo=etpc.D_RTRL(window=3)).init(),
            ),
        ),
        Case("an array of objects", unsaved({"w": np.asarray([object()])})),
        Case(
            "a shape in the place of an array",
            unsaved({"w": jax.ShapeDtypeStruct((2,), "float32")}),
        ),
        Case("a folder that is not there", unsaved({}, "none/run.etpc")),
        Case("the process is killed while it saves", killed),
    ],
    "What is not a number": [
        Case("an input of one example is NaN from some step on", no_number()),
        Case("... and a `mask` of zero keeps these steps out", no_number(bad_step)),
        Case("... and `program.reset` sets the example back", no_number(reset=True)),
        Case("a `mask` of zeros alone", masked_out),
    ],
}


def outcome(case: Case) -> tuple[str, str]:
    """The name of the error, or nothing; and what it says."""
    try:
        found = case.call()
    except (etpc.EtpcError, OSError) as error:
        notes = [note for note in getattr(error, "__notes__", []) if "checkpoint" in note]
        return type(error).__name__, _plain(" ".join([str(error), *notes]))
    assert isinstance(found, str), f"{case.what}: nothing was raised"
    return "", _plain(found)


def _plain(text: str) -> str:
    """A message without what differs from run to run, and as a cell of a table."""
    text = re.sub(r"[^\s']*/((none/)?\.?run\.etpc)", r"\1", text)
    text = re.sub(r"[^\s(]*\.py:\d+(:\d+)?( \([^)]*\))?", "model.py:12", text)
    text = re.sub(r"program [0-9a-f]{16}", "program ...", text)
    return re.sub(r"([|*<])", r"\\\1", " ".join(text.split()))


def page() -> str:
    lines = [HEAD]
    for section, cases in SECTIONS.items():
        lines += [f"## {section}", "", "| what | gives |", "|---|---|"]
        for case in cases:
            error, text = outcome(case)
            lines.append(f"| {case.what} | {f'`{error}`: ' if error else ''}{text} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
