"""The command line: what it prints, its exit statuses, and what a mistake gets."""

import ast
import inspect
import io
import json
import re
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.cli import Task, _main, main
from etpc.cli._algorithm import parse
from etpc.cli._errors import CommandError
from etpc.cli._task import _shape, load_task, make_data, mean_square
from tests.checking.test_verify import Wrong
from tests.helpers import in_a_process

MODELS = """
import equinox as eqx
import jax
import jax.numpy as jnp

import etpc
from etpc.cli import Task


class Leaky(eqx.Module):
    win: jax.Array
    out: jax.Array
    decay: jax.Array

    def __init__(self, key=jax.random.key(0)):
        self.win = jax.random.normal(key, (3, 2))
        self.out = jax.random.normal(key, (2, 3))
        self.decay = jnp.zeros(3)

    def init_state(self):
        return 0.1 * self.decay  # zeros, with a derivative

    def __call__(self, x, h):
        h = jax.nn.sigmoid(self.decay) * h + self.win @ x
        return self.out @ jnp.tanh(h), h


def make(key=jax.random.key(0)):
    return Leaky(key), jnp.zeros(2)


class Makers:
    make = staticmethod(lambda: make())


def plain_step(w, x, h):
    h = w * h + x
    return h, h


def loss(y, target):
    return jnp.sum((y - target) ** 2)


def of_units(model=jnp.ones(3), inputs=jnp.zeros(3), *data, step=plain_step, **options):
    return Task(model, inputs, *data, state=jnp.ones(3), step=step, **options)


def task(batch=(), inputs=jnp.zeros(3)):
    xs = jnp.arange(40 * 3.0 * max(1, sum(batch))).reshape(40, *batch, 3) % 7 - 3
    return of_units(jnp.full(3, 0.5), inputs, xs, 0 * xs, loss)


def leaving(w, x, h):
    raise SystemExit("bye")


class Abort(BaseException):
    pass


def aborts():
    raise Abort


def leaves():
    raise SystemExit(0)


def raises():
    return make(1 // 0)


def misuses():
    etpc.mark(None)


def needs(width, depth=2):
    return width


seeded = lambda seed: make(jax.random.key(seed))
chatty = lambda: (print("hello"), make())[1]
silent = lambda: (eqx.tree_at(lambda m: m.out, Leaky(), jnp.zeros((2, 3))), jnp.zeros(2))
batched = lambda: task((4,))
no_inputs = lambda: task((4,), None)
half = lambda: of_units(loss_fn=loss)
no_xs = lambda: of_units(jnp.ones(3), jnp.zeros(3), None, jnp.zeros((5, 3)), loss)
odd = lambda: of_units(jnp.ones(3), jnp.zeros((2, 3, 3)), jnp.zeros((5, 3)))
spikes = lambda: of_units(step=lambda w, x, h: (h > 0, w * h + x))
refuses = lambda seed: 1 / (seed - 3)
leaves_later = lambda: of_units(step=leaving)
forgot = lambda: None
wrong_shape = lambda: (Leaky(), jnp.zeros(5))
weight = {"gew\u00efcht": jnp.ones(3)}
foreign = lambda: of_units(weight, step=lambda w, x, h: (0.9 * h + w["gew\u00efcht"] * x,) * 2)
model, nothing, a_task = Leaky(), None, task((4,))


@etpc.algorithms.register_algorithm
class Mine(etpc.RTRL):
    name = "mine"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with models, as the current one; what a command imports is forgotten after it."""
    (tmp_path / "tiny_models.py").write_text(MODELS)
    (tmp_path / "tiny_package").mkdir()
    (tmp_path / "tiny_package" / "__init__.py").write_text("")
    (tmp_path / "tiny_package" / "nets.py").write_text("from tiny_models import make\n")
    (tmp_path / "tiny_package" / "lacks.py").write_text("import no_such_library\n")
    (tmp_path / "unfinished.py").write_text("def make(:\n    pass\n")
    (tmp_path / "tiny_script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(etpc.algorithms._algorithm, "_NAMES", etpc.algorithms.registered())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if "tiny_" in name:
            del sys.modules[name]


def strict(text):
    """JSON as its standard has it, without NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def run(capsys, *argv):
    """Exit status and the two streams of a command."""
    status = main([str(a) for a in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- explain --------------------------------------------------------------------------------------


def leaky_program(algo="d_rtrl"):
    from tiny_models import Leaky  # pyright: ignore[reportMissingImports]

    return etpc.compile(Leaky(), algo, inputs=jnp.zeros(2))


@pytest.mark.slow
def test_explain(capsys):
    status, out, err = run(
        capsys, "explain", "tiny_models:make", "--algo", "es_d_rtrl:decay=0.5,everywhere=True"
    )
    assert (status, err) == (0, "")
    assert out == f"{leaky_program(etpc.ES_D_RTRL(decay=0.5, everywhere=True))}\n"
    assert "decay 0.5" in out


def test_explain_of_a_parameter(capsys):
    for argv in (
        "tiny_models:make .win",
        "tiny_models:model --inputs 2 .win",
        "--inputs 2 tiny_models:model .win",
        "tiny_models:model --inputs 2 .win --seed 0",
    ):
        found = run(capsys, "explain", *argv.split())
        assert found == (0, leaky_program().explain(".win") + "\n", "")
    record = strict(run(capsys, "explain", "tiny_models:make", ".win", "--json")[1])
    assert [w["path"] for w in record["weights"]] == [".win"]
    assert record["explanation"] == leaky_program().explain(".win")
    assert record["parameter"] == ".win"


def test_explain_with_the_trace_program_and_passes(capsys):
    call = ("explain", "tiny_models:make", "--ir", "--passes")
    status, out, _ = run(capsys, *call)
    program, passes = leaky_program(), leaky_program().passes
    assert (status, out) == (0, f"{program}\n\n{program.ir}\n\n{passes}\n")
    record = strict(run(capsys, *call, "--json")[1])
    assert [report["name"] for report in record["passes"]] == [report.name for report in passes]


def test_explain_as_json(capsys):
    status, out, _ = run(capsys, "explain", "tiny_models:make", "--json")
    program, record = leaky_program(), strict(out)
    assert status == 0
    assert record == {"model": "tiny_models:make", **strict(json.dumps(program.as_dict()))}
    assert record["schema"] == "etpc-program/1"
    assert record["algorithm"] == str(program.algorithm)
    assert record["hidden_states"] == ["state"]
    assert record["carry_bytes"] == program.memory().total
    assert record["untraced"] == dict(program.untraced)
    assert [w["path"] for w in record["weights"]] == [p.path for p in program.ops]
    first = record["weights"][[w["path"] for w in record["weights"]].index(".win")]
    assert (first["operation"], first["block"], first["exact"]) == ("dot_general", 1, True)
    assert first["trace_bytes"] == 3 * 2 * 8
    assert "tiny_models.py:" in first["source"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        "tiny_models.py:make",
        "./tiny_models.py:make",
        "tiny_package.nets:make",
        "tiny_models:Makers.make",
        "tiny_models:model --inputs 2",
        "tiny_models:Leaky --inputs 2",
        "tiny_models:Leaky --inputs float64[2]",
    ],
)
def test_targets(capsys, target):
    _, expected, _ = run(capsys, "explain", "tiny_models:make")
    assert run(capsys, "explain", *target.split()) == (0, expected, "")


@pytest.mark.slow
def test_a_rule_that_the_file_registers(capsys):
    for command in (
        "explain tiny_models.py:make --algo mine",
        "verify tiny_models.py:make --algo mine --steps 40",
        "bench tiny_models.py:make --algo mine,window=5 --steps 20 --repeats 1",
    ):
        status, out, err = run(capsys, *command.split())
        assert (status, err) == (0, "")
        assert "Mine(" in out


def test_the_seed_reaches_the_factory():
    made, seeded = (
        [load_task(f"tiny_models.py:{name}", None, seed).model.win for seed in (0, 1)]
        for name in ("make", "seeded")
    )
    assert jnp.array_equal(made[0], seeded[0])
    assert jnp.array_equal(made[1], seeded[1])
    assert not jnp.array_equal(made[0], made[1])


# --- verify ---------------------------------------------------------------------------------------


def test_verify(capsys):
    status, out, err = run(capsys, "verify", "tiny_models:make", "--steps", 40, "--batch", 2)
    assert (status, err) == (0, "")
    head, data, against, _, columns, *_, last = out.splitlines()
    assert head == "tiny_models:make: 40 steps, batch 2"
    assert data.startswith("random normal inputs (integers are 0 or 1), seed 0; the loss is a mean")
    assert against.startswith("against BPTT (loss ")
    assert columns.startswith("algorithm ")
    assert last == "ok  (exact means a relative error of at most 1e-09)"
    for name in ("D_RTRL()", "ES_D_RTRL(decay=0.99)", "TBPTT(10)", "TBPTT(1)"):
        assert f"\n{name} " in out


@pytest.mark.slow
def test_verify_as_json_is_the_comparison(capsys):
    argv = ["--algo", "d_rtrl", "--algo", "es_d_rtrl:decay=0.5", "--algo", "tbptt:3", "--json"]
    status, out, _ = run(capsys, "verify", "tiny_models:batched", *argv)
    record = strict(out)
    from tiny_models import batched, loss  # pyright: ignore[reportMissingImports]

    task = batched()
    algos = ["d_rtrl", etpc.ES_D_RTRL(decay=0.5), etpc.TBPTT(3)]
    options = dict(state=task.state, step=task.step, batch_size=4)
    expected = etpc.compare(task.model, task.xs, task.targets, loss, algos, **options)
    assert status == 0
    more = {"model": "tiny_models:batched", "steps": 40, "batch_size": 4}
    more |= {"data": "inputs of the task; its loss"}
    assert record == strict(json.dumps(expected.as_dict())) | more
    assert (record["ok"], record["notes"], record["against"]) == (True, [], "BPTT")
    assert record["results"][0]["total"]["error"] < 1e-9
    assert record["results"][2]["total"]["error"] > 1e-3


@pytest.mark.slow
def test_a_vacuous_comparison_fails(capsys):
    argv = ["tiny_models:silent", "--steps", 20, "--algo", "d_rtrl,window=5"]
    status, out, _ = run(capsys, "verify", *argv)
    assert status == 1
    assert "NOT ok: the comparison is vacuous in part" in out
    status, out, _ = run(capsys, "verify", *argv, "--json")
    record = strict(out)  # a cosine of nan is null
    assert status == 1
    assert record["ok"] is False
    assert record["notes"]
    assert record["results"][0]["parameters"][0]["cosine"] is None


@pytest.mark.slow
def test_a_claim_that_does_not_hold_fails(capsys, monkeypatch):
    monkeypatch.setitem(etpc.algorithms._algorithm._NAMES, "wrong", Wrong)
    status, out, _ = run(capsys, "verify", "tiny_models:make", "--algo", "wrong")
    assert status == 1
    assert " NO\n" in out
    assert "vacuous" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "steps", "batch"),
    [
        ("task", 40, None),
        ("task --steps 5", 5, None),
        ("batched --steps 5 --batch 2", 5, 2),
        ("no_inputs --steps 5", 5, 4),
        ("a_task --steps 5", 5, 4),
    ],
)
def test_data_of_a_task(capsys, argv, steps, batch):
    argv = f"tiny_models:{argv} --algo d_rtrl,window=2 --json"
    status, out, _ = run(capsys, "verify", *argv.split())
    record = strict(out)
    assert status == 0
    assert (record["steps"], record["batch_size"]) == (steps, batch)


def test_what_the_model_prints_does_not_mix_with_json(capsys):
    _, out, err = run(capsys, "explain", "tiny_models:chatty", "--json")
    strict(out)
    assert err == "hello\n"
    _, out, _ = run(capsys, "explain", "tiny_models:chatty")
    assert out.startswith("hello\n")


# --- bench ----------------------------------------------------------------------------------------

BENCH = ["tiny_models:make", "--steps", 20, "--batch", 2, "--repeats", 2]


@pytest.mark.slow
def test_bench_as_json(capsys):
    rules = ["d_rtrl,window=1", "d_rtrl,window=5", "es_d_rtrl:decay=0.5,everywhere=True", "tbptt:4"]
    argv = [*BENCH, *(part for rule in rules for part in ("--algo", rule)), "--json"]
    status, out, _ = run(capsys, "bench", *argv)
    record = strict(out)
    rows = {row["name"]: row for row in record["results"]}
    assert status == 0
    assert list(rows) == [
        *("BPTT", "D_RTRL(window=1)", "D_RTRL(window=5)"),
        *("ES_D_RTRL(decay=0.5, everywhere=True)", "TBPTT(4)"),
    ]
    for row in rows.values():
        assert row["step_ms"] > 0
        assert row["compile_s"] > 0
        assert row["temp_bytes"] > 0
    assert rows["BPTT"]["error"] == 0
    assert rows["D_RTRL(window=1)"]["error"] < 1e-9
    assert rows["D_RTRL(window=5)"]["error"] < 1e-9
    assert rows["ES_D_RTRL(decay=0.5, everywhere=True)"]["error"] > 1e-3
    assert rows["TBPTT(4)"]["error"] > 1e-3
    assert rows["BPTT"]["carry_bytes"] == 2 * 3 * 8
    assert rows["D_RTRL(window=1)"]["carry_bytes"] == leaky_program().memory(2).total
    assert record["repeats"] == 2
    assert record["device"].startswith("cpu")


@pytest.mark.slow
def test_bench(capsys):
    status, out, _ = run(capsys, "bench", *BENCH, "--algo", "d_rtrl")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "tiny_models:make: 20 steps, batch 2"
    assert "shortest of 2" in lines[2]
    assert lines[4].split()[:3] == ["gradient", "ms/step", "to"]
    assert [line.split()[0] for line in lines[6:]] == ["BPTT", "D_RTRL()"]
    assert lines[6].split()[2] == "1.00"


def test_bench_leaves_the_state_of_a_task_alone(capsys):
    argv = ["tiny_models:task", "--steps", 20, "--repeats", 1, "--algo", "d_rtrl", "--json"]
    status, out, err = run(capsys, "bench", *argv)
    assert (status, err) == (0, "")
    assert strict(out)["results"][1]["error"] < 1e-9


@pytest.mark.slow
def test_suggest(capsys):
    argv = ["suggest", "tiny_models:make", "--steps", 20, "--batch", 2]
    status, out, err = run(capsys, *argv, "--optimiser", "sgd:0.01", "--budget", 0.001)
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0] == "tiny_models:make: 20 steps, batch 2"
    assert lines[2] == "suggested: D_RTRL()"
    assert "Every gradient of D_RTRL() equals that of BPTT" in out
    status, out, err = run(capsys, *argv, "--time", 1e-9, "--every", 4, "--budget", 1e-9, "--json")
    record = strict(out)
    assert (status, err) == (1, "")
    assert record["schema"] == "etpc-suggestion/1"
    assert (record["steps"], record["batch_size"], record["rule"]) == (20, 2, None)
    assert [row["name"] for row in record["rows"]] == ["BPTT", "D_RTRL()"]
    assert record["lags"] == [[0, 4], [4, 12], [12, 16]]
    assert record["decided"] is False
    for wrong in ("adam", "adam:nan", "adam:0", "nothing:0.1"):
        status, _, err = run(capsys, *argv, "--optimiser", wrong)
        assert status == 2
        assert f"--optimiser {wrong}: write an optimiser of Optax" in err


def test_draw(capsys, monkeypatch, folder):
    def write(program, path):
        Path(path).write_text(str(program))

    module = types.ModuleType("etpc.draw")
    module.write = write  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "etpc.draw", module)
    argv = ["draw", "tiny_models:make", "--algo", "snap:1", "-o"]
    assert run(capsys, *argv, "graph.svg") == (0, "wrote graph.svg\n", "")
    assert (folder / "graph.svg").read_text().startswith("SnAp(n=1")
    status, out, _ = run(capsys, *argv, "graph.svg", "--json")
    written = {"schema": "etpc-draw/1", "model": "tiny_models:make", "written": "graph.svg"}
    assert (status, strict(out)) == (0, written)
    status, _, err = run(capsys, *argv, "no_folder/graph.svg")
    assert status == 2
    assert "no_folder/graph.svg cannot be written: No such file" in err


# --- on a terminal, and scripts ---


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Full(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device"), 2, "The answer cannot be written: No space left"),
        (BrokenPipeError(), 1, ""),  # it was read as far as the reader wanted
        (None, 2, "The answer cannot be written: stdout is closed"),
    ],
)
def test_an_answer_that_cannot_be_written(monkeypatch, capsys, error, status, said):
    """Its status is not the one of a claim that does not hold."""
    argv = ["verify", "tiny_models:silent", "--steps", "20", "--algo", "d_rtrl"]
    monkeypatch.setattr(sys, "stdout", None if error is None else Full(error))
    assert main(argv) == status
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    monkeypatch.setattr(sys, "stderr", Full(error) if error else None)
    assert main(["explain", "tiny_models:mke"]) == 2


def test_a_name_that_the_terminal_cannot_write(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["explain", "tiny_models:foreign"]) == 0
    assert b"['gew\\xefcht']" in written.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "doing"),
    [
        ("explain", "compiling"),
        ("verify --steps 20 --algo d_rtrl,window=5", "compiling and comparing"),
        ("bench --steps 3 --repeats 1", "compiling and timing"),
    ],
)
def test_says_on_a_terminal_what_it_does(capsys, monkeypatch, argv, doing):
    command, *rest = argv.split()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([command, "tiny_models:make", *rest, "--json"]) == 0
    err = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert err == f"{doing} tiny_models:make ...\n"
    strict(capsys.readouterr().out)


@pytest.mark.parametrize("columns", [40, 70, 200])
def test_sentences_are_as_wide_as_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    assert main(["explain", "tiny_models:make", ".win"]) == 0
    said = sys.stdout.getvalue().split("At most")[0]  # pyright: ignore[reportAttributeAccessIssue]
    lengths = [len(line) for line in said.splitlines()]
    # The place in the code is one long word.
    assert sum(length > columns for length in lengths) <= 1
    assert columns > 100 or max(lengths) > columns - 20
    assert max(lengths) <= max(100, max(map(len, said.split())))


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "no name": ("explain tiny_models", r"'tiny_models' does not name a model\. Write package"),
    "no module": ("explain tiny_modles:make", r"no module 'tiny_modles' in this folder.*tiny_mod"),
    "no submodule": ("explain tiny_package.nest:make", r"'nest' in tiny_package\. .*mean nets\?"),
    "a dot": ("explain .tiny_models:make", r"'\.tiny_models' is no name of a module"),
    "no file": ("explain tiny_model.py:make", r"no file tiny_model\.py\. .*mean tiny_models\.py\?"),
    "no such name": ("explain tiny_models:mak", r"no 'mak' in tiny_models\. Did you mean make"),
    "no attribute": ("explain tiny_models:Makers.mak", r"no 'mak' in tiny_models:Makers\. .*make"),
    "an import of its own": (
        "explain tiny_package.lacks:make",
        r"(?s)No module named 'no_such_library'.*at tiny_package.lacks\.py:1, in <module>:\n +import",
    ),
    "syntax": (
        "explain unfinished:make",
        r'(?s)unfinished\.py", line 1\n    def make\(:\n.*SyntaxError: invalid syntax',
    ),
    "a script": ("explain tiny_script:make", r"tiny_script calls sys\.exit.*__main__"),
    "a factory that raises": (
        "explain tiny_models:raises",
        r"(?s)ZeroDivisionError: .*at tiny_models\.py:\d+, in raises:\n    return make\(1 // 0\)",
    ),
    "a factory that misuses etpc": (
        "explain tiny_models:misuses",
        r"(?s)None.*at tiny_models\.py:\d+, in misuses:\n    etpc\.mark\(None\)",
    ),
    "an error inside the model": (
        "explain tiny_models:wrong_shape",
        r"(?s)TypeError: .*at tiny_models\.py:\d+, in __call__:\n    h = jax",
    ),
    "a factory with arguments": ("explain tiny_models:needs", r"needs width\. Only `key`"),
    "a factory that exits": (
        "verify tiny_models:leaves",
        r"tiny_models:leaves calls sys\.exit\(0\)",
    ),
    "a step that exits": ("verify tiny_models:leaves_later", r"calls sys\.exit\('bye'\)"),
    "a factory that aborts": (
        "verify tiny_models:aborts",
        r"Abort\n  at tiny_models\.py:\d+, in aborts",
    ),
    "a factory that forgets": ("explain tiny_models:forgot", r"forgot gives None"),
    "no model": ("explain tiny_models:nothing", r"nothing gives None"),
    "no inputs": ("explain tiny_models:model", r"does not say what the model reads.*--inputs 20"),
    "inputs": ("explain tiny_models:model --inputs 2x", r"--inputs 2x is no shape\. Write 20"),
    "dtype": ("explain tiny_models:model --inputs flaot32[2]", r"there is no dtype 'flaot32'"),
    "algorithm": ("explain tiny_models:make --algo d_rtlr", r"'d_rtlr'\. Did you mean d_rtrl"),
    "setting": ("explain tiny_models:make --algo snap,windw=2", r"'windw=2' is no .*mean window"),
    "value": ("explain tiny_models:make --algo d_rtrl:2", r"d_rtrl takes no value"),
    "no name of a value": (
        "explain tiny_models:make --algo es_d_rtrl:0.9",
        r"takes no value without a name.*decay, rank",
    ),
    "range": ("explain tiny_models:make --algo es_d_rtrl:decay=1.5", r"decay must lie in \(0, 1\]"),
    "tbptt without steps": ("verify tiny_models:make --algo tbptt", r"tbptt needs steps"),
    "parameter": ("explain tiny_models:make .wni", r"no parameter '\.wni'.*\.win"),
    "memory": ("verify tiny_models:make --memory 10", r"memory=10 allows no more"),
    "seed of claims": ("claims tiny_models:refuses -o x --seed 3", r"division by zero"),
    "memory of claims": ("claims tiny_models:make -o x --memory 10", r"memory=10 allows no more"),
    "half a task": ("verify tiny_models:half", r"both targets and loss_fn, or none"),
    "targets alone": ("verify tiny_models:no_xs", r"needs xs too"),
    "axes": ("verify tiny_models:odd", r"xs has a leaf of shape \[5, 3\]"),
    "outputs": ("verify tiny_models:spikes", r"no output that is a float.*etpc\.cli\.Task"),
    "too many steps": (
        "verify tiny_models:task --steps 41",
        r"xs has 40 steps, and 41 were asked for",
    ),
    "too large a batch": (
        "bench tiny_models:batched --batch 5",
        r"xs has 4 examples, and 5 were asked for",
    ),
    "a batch of none": ("verify tiny_models:task --batch 2", r"xs has no batch axis"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(capsys, case):
    argv, words = MISTAKES[case]
    status, out, err = run(capsys, *argv.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"etpc {argv.split()[0]}: error: ")
    assert "Traceback" not in err
    assert re.search(words, err), err


def test_traceback_on_request(capsys):
    status, _, err = run(capsys, "explain", "tiny_models:raises", "--traceback")
    assert status == 2
    assert err.startswith("Traceback")
    assert "in raises" in err.partition("etpc explain: error: ")[0]


def test_an_error_of_etpc_is_shown_in_full(capsys, monkeypatch):
    monkeypatch.setattr("etpc.cli._main.compare", int)
    status, out, err = run(capsys, "verify", "tiny_models:make", "--steps", 2)
    assert (status, out) == (3, "")
    assert err.startswith("Traceback")


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "explain",
        "train tiny_models:make",
        "draw tiny_models:make",
        "verify tiny_models:make --steps 0",
        "bench tiny_models:make --repeats x",
        "suggest tiny_models:make --time 0",
        "suggest tiny_models:make --budget long",
        "explain tiny_models:make --inputs 2 .win .out",
        "explain tiny_models:make --input-shape 2",
        "verify tiny_models:make --steps 20 .win",
    ],
)
def test_arguments(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv.split())
    assert caught.value.code == 2
    assert "usage: etpc" in capsys.readouterr().err


def read_by(function):
    """The options that a function of the command line reads, itself or in those that it passes them to."""
    nodes = [*ast.walk(ast.parse(inspect.getsource(function)))]
    is_arguments = lambda node: isinstance(node, ast.Name) and node.id == "arguments"
    calls = [n for n in nodes if isinstance(n, ast.Call) and any(map(is_arguments, n.args))]
    called = [vars(_main)[n.func.id] for n in calls if isinstance(n.func, ast.Name)]
    read = {n.attr for n in nodes if isinstance(n, ast.Attribute) and is_arguments(n.value)}
    return read.union(*map(read_by, called))


@pytest.mark.parametrize("command", _main.COMMANDS)
def test_every_option_is_read(command):
    output = ["-o", "x"] if command in _main.OUTPUTS else []
    output += ["--on", "cpu"] if command == "estimate" else []
    options = vars(_main._arguments([command, "tiny_models:make", *output]))
    assert options.keys() - {"command", "x64", "json", "traceback"} == read_by(
        _main.COMMANDS[command].run
    )


@pytest.mark.parametrize(
    "command", ["explain", "verify", "draw", "bench", "suggest", "estimate", None]
)
def test_help(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([*([] if command is None else [command]), "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"example: etpc {command or 'verify'} models.py:make" in out
    assert "exit status: 0" in out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"etpc {etpc.__version__}\n"


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        ("d_rtrl", etpc.D_RTRL()),
        ("D-RTRL", etpc.D_RTRL()),
        ("es_d_rtrl", etpc.ES_D_RTRL()),
        ("es_d_rtrl,decay=0.95", etpc.ES_D_RTRL(decay=0.95)),
        ("d_rtrl,window=4,lookback=8", etpc.D_RTRL(window=4, lookback=8)),
        ("rtrl:4", etpc.RTRL(rank=4)),
        ("credit", etpc.CreditRTRL()),
        ("credit:q=2,rank=None", etpc.CreditRTRL(q=2, rank=None)),
        ("es_d_rtrl:decay=0.95,window=10", etpc.ES_D_RTRL(decay=0.95, window=10)),
        ("es_d_rtrl:decay=0.9,everywhere=True", etpc.ES_D_RTRL(decay=0.9, everywhere=True)),
        ("es_d_rtrl:rank=4, window=8", etpc.ES_D_RTRL(rank=4, window=8)),
        ("d_rtrl,window=auto,backprop=full", etpc.D_RTRL(backprop="full")),
        ("snap:2", etpc.SnAp(2)),
        ("snap,n=3", etpc.SnAp(3)),
        ("rtrl", etpc.RTRL()),
        ("e-prop:random,seed=3", etpc.EProp("random", seed=3)),
        ("RFLO:0.8", etpc.RFLO(0.8)),
        ("kf-rtrl", etpc.KFRTRL()),
        ("pp-prop:decay=0.9", etpc.ES_D_RTRL(decay=0.9)),
        ("tbptt:7", etpc.TBPTT(7)),
        ("tbptt:8,every=2", etpc.TBPTT(8, every=2)),
    ],
)
def test_algorithms(text, algorithm):
    assert parse(text) == algorithm


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("20", (20,), "float64"),
        ("3,4", (3, 4), "float64"),
        ("float32[20]", (20,), "float32"),
        ("int32[3, 4]", (3, 4), "int32"),
        ("bool[2]", (2,), "bool"),
        ("float32[]", (), "float32"),
    ],
)
def test_shapes(text, shape, dtype):
    found = _shape(text)
    assert (found.shape, found.dtype) == (shape, dtype)


@pytest.mark.parametrize("text", ["", "x", "[20]", "20[", "-3", "3.5", "float32"])
def test_what_is_no_shape(text):
    with pytest.raises(CommandError, match="is no shape"):
        _shape(text)


@pytest.mark.slow
def test_random_data():
    def step(w, x, h):
        h = w * h + x["a"]
        return {"h": h, "spike": h > 0, "count": 3}, h

    inputs = {
        "a": jnp.zeros(3),
        "i": jax.ShapeDtypeStruct((2,), jnp.int32),
        "b": np.zeros((), bool),
        "c": jnp.zeros(2, jnp.complex64),
        "k": jax.random.key(0),
    }
    task = Task(jnp.ones(3), inputs, state=jnp.zeros(3), step=step)
    data = make_data(task, seed=0, steps=30, batch=4)
    assert (data.steps, data.batch_size) == (30, 4)
    shapes = {name: (x.shape, x.dtype) for name, x in data.xs.items() if name != "k"}
    assert shapes == {
        "a": ((30, 4, 3), "float64"),
        "i": ((30, 4, 2), "int32"),
        "b": ((30, 4), "bool"),
        "c": ((30, 4, 2), "complex64"),
    }
    assert set(np.unique(data.xs["i"])) == {0, 1}
    assert data.xs["k"].shape == (30, 4)
    assert [t.shape for t in data.targets] == [(30, 4, 3)]
    assert data.loss_fn is mean_square
    again, other = (make_data(task, seed=s, steps=30, batch=4) for s in (0, 1))
    assert jnp.array_equal(data.xs["a"], again.xs["a"])
    assert not jnp.array_equal(data.xs["a"], other.xs["a"])


def test_mean_square():
    y = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray(3 + 4j), "spike": jnp.asarray(True)}
    targets = [jnp.asarray([0.0, 4.0]), jnp.asarray(0j)]
    assert float(mean_square(y, targets)) == pytest.approx((1 + 4 + 25) / 3)


@pytest.mark.slow
def test_as_a_module():
    """In a process of its own, where float64 is off unless asked for."""
    command = ["-m", "etpc", "verify", "tiny_models:make", "--algo", "d_rtrl", "--x64", "--json"]
    record = strict(in_a_process(*command))
    assert record["tolerance"] == 1e-9
    assert record["results"][0]["total"]["error"] < 1e-12
