"""The benchmarks run, and what they compare is the same network."""

import re

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

import etpc
from benchmarks import (
    by_hand,
    cells,
    measure,
    network,
    newton,
    norse,
    peer,
    precision,
    quotes,
    record,
    report,
    scale,
    step,
)
from benchmarks.network import Problem
from tests.helpers import ROOT, distance, in_a_process

DECAY = 0.9


@pytest.fixture(scope="module", autouse=True)
def _as_the_peer_needs_it():
    """float32, and arrays of different rank may be added."""
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def problem() -> Problem:
    made = Problem.make(16, steps=20, batch=4)
    assert 0.05 < made.firing_rate() < 0.9
    return made


@pytest.mark.peer
def test_a_module_of_brainstate_has_the_gradients_of_the_same_network_in_equinox():
    pytest.importorskip("braintrace")
    rich = pytest.importorskip("rich.console")
    from benchmarks import interop

    rows = {row["name"]: row for row in interop.run(rich.Console(), 16, 20, 4, 1)}
    assert len(rows) == 6
    assert all(row["min_ms"] > 0 and row["error"] < 1e-5 for row in rows.values())


def test_norse_has_the_gradients_of_bptt_and_its_memory_grows():
    """Where Norse is installed, which no extra does."""
    pytest.importorskip("norse")
    rows = norse.speed(Console(), [16], 20, 4, 1)
    assert [row["error"] < 1e-5 for row in rows] == [True, True, False, True, True]
    sizes = [row["bytes"] for row in norse.memory(Console(), 16, (20, 200), 4)]
    assert sizes[5] > 8 * sizes[2]
    assert sizes[4] < 1.1 * sizes[1]


@pytest.mark.slow
def test_rounded_products_are_those_that_a_setting_leaves_to_be_rounded():
    rules = {name: precision.RULES[name] for name in ("ES-D-RTRL 0.9", "BPTT")}
    online, bptt = precision.run(Console(quiet=True), 8, 12, 2, 1, ["GRU"], rules)
    rounded = {key: online[f"{key}_products"] for key in precision.SETTINGS}
    (_, none), (_, traces), (_, model), (count, both) = rounded.values()
    assert (
        none == 0 < model < traces < both <= count
    )  # the model's derivative has the precision of the target
    assert online["highest_max"] < 1e-5 < online["traces_max"] < 0.1
    assert bptt["highest_max"] < 1e-5 < bptt["default_max"] < 0.1
    assert "traces_max" not in bptt  # all of its products are the model's
    assert "-" in precision.TABLE.markdown([bptt])


@pytest.mark.slow
def test_a_rule_that_does_not_apply_has_an_empty_row(monkeypatch):
    def refuses(*_, **__):
        raise etpc.AlgorithmError("It does not apply.")

    monkeypatch.setattr(etpc, "compile", refuses)
    (row,) = precision.run(Console(quiet=True), 8, 4, 2, 1, ["GRU"], {"D-RTRL": etpc.D_RTRL()})
    assert "highest_max" not in row
    assert "D-RTRL | - | - |" in precision.TABLE.markdown([row])


@pytest.mark.peer
def test_quick_run_writes_results(tmp_path):
    """As a reader runs it: in a process of its own, in float32."""
    path = tmp_path / "results.json"
    command = ["-m", "benchmarks", "--quick", "--json", path, "--plots", tmp_path]
    in_a_process(*command, JAX_ENABLE_X64="0")
    runs = {run.benchmark: run for run in record.load(path)}
    left_out = {"interop": peer.available(), "norse": norse.available()}
    left_out |= {"norse-memory": norse.available(), "accelerators": False}
    assert runs.keys() == report.TABLES.keys() - {n for n, there in left_out.items() if not there}
    for run in runs.values():
        assert {"device", "cpu", "cores", "python", "jax", "etpc"} <= run.environment.keys()
        assert run.command.startswith("python -m benchmarks --quick")
    rows = {row["name"]: row for row in runs["speed"].rows}
    assert all(row["min_ms"] > 0 for row in rows.values())
    assert rows["etpc D-RTRL W=10"]["error_rule"] < 1e-5
    assert rows["etpc D-RTRL W=10"]["error_bptt"] > 1e-3  # it does leave something out
    again = {row["name"]: row["again"] for row in runs["compile"].rows}
    assert again["etpc D-RTRL"] == 0
    for row in runs["memory"].rows:
        if "promised" in row:
            assert row["alias"] == row["promised"]
            assert row["growth"] < 1.5
    page = report.markdown(list(runs.values()))
    assert all(report.TABLES[name].title in page for name in runs)
    assert (tmp_path / "speed-32.svg").exists()


def test_a_run_takes_the_place_of_what_has_its_sizes():
    made = lambda what, *sizes: record.Run(what, [{"size": size} for size in sizes], what, {}, "")
    runs = [made("speed", 128, 512), made("cells", 128)]
    new = made("speed", 512, 1024)
    first, older, last = record.merged(runs, new)
    assert (first, older.rows, last) == (runs[1], [{"size": 128}], new)


QUOTES = list(quotes.quotes(quotes.Record(record.load())))
MEASURED = re.compile(
    r"(?<![\w.])\d[\d,.]*\s*(?:%|times|[mµ]?s|[KMG]iB)(?!\w)|(?<![\w.=])\d+\.\d+(?![\w.]*\d)"
)


@pytest.mark.parametrize("page", sorted({quote.page for quote in QUOTES}))
def test_numbers_on_pages_are_those_of_the_record(page):
    text = (ROOT / page).read_text()
    for quote in QUOTES:
        if quote.page == page:
            assert quote.written(text) == text, f"run `python -m benchmarks.pages`: {quote}"


def test_tables_of_scale_are_those_of_the_record():
    text = (ROOT / "docs/scale.md").read_text()
    assert scale.written(text, record.load()) == text, "run `python -m benchmarks.pages`"


@pytest.mark.parametrize(
    ("page", "section"),
    [
        (quotes.PAGE, r".*"),
        (quotes.COMPARISON, r"\n## How fast\?.*?\n## "),
        (quotes.README, r"\n## What else there is.*?\n## "),
    ],
)
def test_every_measured_number_is_in_a_quote(page, section):
    """Code and links apart, what has a unit or a decimal point is taken from the record."""
    whole = text = (ROOT / page).read_text()
    for quote in QUOTES:
        if quote.page == page:
            start, end = quote.found(whole)[0].span()
            text = text[:start] + "." * (end - start) + text[end:]
    (part,) = re.findall(section, text, re.DOTALL)[:1]
    part = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", part, flags=re.DOTALL)
    assert MEASURED.findall(part) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in by_hand.CELLS])
def test_rules_by_hand_are_those_of_the_programs(name):
    (cell,) = (c for c in by_hand.CELLS if c.name == name)
    with jax.enable_x64(
        True
    ):  # in float32 thirty updates make of rounding what depends on the machine
        row = step.compared(cell, 8, 30, 3, 1, {"etpc": etpc.D_RTRL()})
    assert row["error"] < 1e-9
    assert row["hand_bytes"] <= row["etpc_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("cell", ["LIF", "LRU"])
def test_bptt_by_hand_is_bptt(cell, checkpoint):
    """It is what every time is compared with."""
    with jax.enable_x64(True):
        drawn = cells.example(cell, 8, 10, 3)
        grads = by_hand.bptt(*drawn, network.loss, checkpoint=checkpoint)[1]
        assert (
            distance(grads, etpc.bptt(*drawn, network.loss, batch_size=3, reduction="sum")[1])
            < 1e-9
        )


def test_newton_iterations_give_the_states_of_a_loop():
    """One of a linear cell, and as many as are counted of others; a count too small leaves an error."""
    drives, h = jax.random.normal(jax.random.key(0), (40, 3, 2, 5)), jnp.full((2, 5), 0.3)
    for name, cell in newton.CELLS.items():
        found = newton.iterations(cell, 40)
        assert (found == 1) == name.startswith("leak")
        if found:
            states = newton.newton(cell.step, drives[:, : cell.drives], h, 40)
            right = newton.loop(cell.step, drives[:, : cell.drives], h)
            assert jnp.max(jnp.abs(states - right)) <= newton.TOLERANCE


def test_difference_is_relative_and_refuses_zeros():
    found = measure.difference({"w": jnp.array([3.0, 5.0])}, {"w": jnp.array([3.0, 4.0])})["w"]
    assert found["error"] == pytest.approx(0.2)
    assert found["cosine"] == pytest.approx(29 / (5 * 34**0.5))
    with pytest.raises(ValueError, match="zero"):
        measure.difference({"w": jnp.ones(2)}, {"w": jnp.zeros(2)})


@pytest.mark.slow
def test_silent_network_is_refused(problem):
    silent = Problem(problem.model, jnp.zeros_like(problem.xs), problem.targets)
    with pytest.raises(ValueError, match="No neuron spikes"):
        silent.firing_rate()


ES = etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=5)
WEIGHTS = ("hidden.weight", "readout.weight")
"""The peer smooths the trace of the bias too; etpc keeps it whole."""
OF_THE_PEER = [
    *(("d_rtrl", mode, {}, etpc.D_RTRL(window=5)) for mode in ("vmap", "batch")),
    *(("es_d_rtrl", mode, {"decay_or_rank": DECAY}, ES) for mode in ("vmap", "batch")),
    *(  # exact inside of each window
        ("d_rtrl", "window", {"window": w}, etpc.D_RTRL(window=w, backprop="full")) for w in (5, 20)
    ),
]


@pytest.mark.peer
@pytest.mark.parametrize(("name", "mode", "options", "rule"), OF_THE_PEER)
def test_peer_computes_the_same_gradients(problem, name, mode, options, rule):
    pytest.importorskip("braintrace")
    ours = network.online(problem, rule)()
    theirs = peer.Gradient(problem, name, mode, **options)()
    names = WEIGHTS if rule is ES else ("hidden.weight", "hidden.bias", "readout.weight")
    found = measure.difference(theirs, ours)
    assert max(found[name]["error"] for name in names) < 1e-5


@pytest.mark.peer
@pytest.mark.parametrize("cell", ["ALIF", "GRU"])
def test_cells_of_the_peer(cell, tmp_path):
    pytest.importorskip("braintrace")
    rows = cells.run(Console(quiet=True), [8], 6, 2, 1, [cell])
    times = {row["name"]: row["to_bptt"] for row in rows if row["cell"] == cell}
    assert {"braintrace D-RTRL", "braintrace ES-D-RTRL 0.9"} < set(times)
    assert all(0 < ratio < float("inf") for ratio in times.values())
    assert report.plots([record.Run("cells", rows, "", {})], tmp_path)
