"""What a view says of a program: each part against the program itself."""

import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

import etpc
from docs.views import MODELS, view
from etpc.cli import main
from etpc.estimating.hlo import bytes_of
from etpc.plan import DEFAULT, PASSES
from etpc.viewing import View
from etpc.viewing import _patterns as patterns
from etpc.viewing._hlo import Origins
from etpc.viewing._model import Sources, Weights
from tests.marks import few
from tests.test_testing import check_schema


@pytest.fixture(scope="module")
def lstm():
    """A program that several passes change, its record, and how it is compiled anew."""
    cell = eqx.nn.LSTMCell(3, 4, key=jax.random.key(0))

    def step(cell, x, state):
        h, c = cell(x, state)
        return h, (h, c)

    def compiled(passes=None):
        options = dict(inputs=jnp.zeros(3), state=(jnp.zeros(4),) * 2, step=step, target="cpu")
        return etpc.compile(cell, etpc.ES_D_RTRL(decay=0.9), **options, passes=passes)

    program = compiled()
    return program, program.view().as_dict(), compiled


def lines_of(record, program):
    return [record["lines"][n]["text"] for n in record["programs"][program]["lines"]]


def printed(program):
    return [re.sub(" {2,}feeds", "  feeds", line) for line in str(program.ir).split("\n")]


def test_programs_are_those_that_are_compiled_with_the_first_passes(lstm):
    program, record, compiled = lstm
    assert [p["name"] for p in record["passes"]] == [p.name for p in DEFAULT]
    assert lines_of(record, record["first"]) == printed(compiled(()))
    assert lines_of(record, record["last"]) == printed(program)
    changed = [n for n, p in enumerate(record["passes"]) if p["before"] != p["after"]]
    assert len(changed) >= 3
    names = list(PASSES)
    for n in changed:
        each = record["passes"][n]
        assert lines_of(record, each["before"]) == printed(compiled(names[:n]))
        assert lines_of(record, each["after"]) == printed(compiled(names[: n + 1]))
        without = [name for name in names if name != each["name"]]
        assert lines_of(record, each["without"]) == printed(compiled(without))
        bytes_after = record["programs"][each["after"]]["bytes"]
        assert bytes_after == sum(node.bytes for node in compiled(names[: n + 1]).ir.traces)


def test_a_pass_is_described_by_its_docstring(lstm):
    found = {p["name"]: p for p in lstm[1]["passes"]}
    labels = {name: [point["label"] for point in p["points"]] for name, p in found.items()}
    assert all(p["words"] and p["words"][0].endswith(".") for p in found.values())
    assert labels["filtered"] == ["Pattern", "Proof", "Rewrite", ""]
    assert all("Proof" in " ".join(of) for of in labels.values())
    dropped = found["drop_unlasting"]["changes"]
    assert [c["path"] for c in dropped if c["bytes"]] == [".bias"]
    assert lstm[1]["weights"][dropped[0]["weights"][0]]["path"] == ".bias"


def test_a_pass_of_a_user_and_one_that_is_left_out():
    """What it says is its own docstring; the program that would be without it is that without passes."""

    def run(program):
        """Carries all in float64: a claim of mine."""
        nodes = {
            n: etpc.ir.TraceNode(n.form, n.blocks, n.feeds, jnp.float64) for n in program.traces
        }
        return program.replaced(nodes)

    mine = etpc.plan.Pass("mine", "carries all in float64", run)
    step = lambda w, x, h: (h, jnp.tanh(w * x + h))
    options = dict(inputs=jnp.zeros(2, jnp.float32), state=jnp.zeros(2, jnp.float32), step=step)
    program = etpc.compile(jnp.ones(2, jnp.float32), **options, passes=(mine,))
    first, *others = program.view(hlo=False).as_dict()["passes"]
    assert (first["name"], first["words"]) == ("mine", ["Carries all in float64: a claim of mine."])
    assert first["before"] == first["without"] != first["after"]
    assert [p["name"] for p in others] == list(PASSES)
    assert not any(p["ran"] for p in others)


def test_a_program_that_fits_into_memory_by_a_pass_alone_is_shown_without_it():
    step = lambda w, x, h: (h, 0.9 * h + w @ x)
    options = dict(inputs=jnp.zeros(30), state=jnp.zeros(20), step=step, memory=1000)
    program = etpc.compile(jnp.ones((20, 30)), **options)
    with pytest.raises(etpc.MemoryLimitError):
        etpc.compile(jnp.ones((20, 30)), **options, passes=())
    record = program.view(hlo=False).as_dict()
    found = next(p for p in record["passes"] if p["name"] == "filtered")
    bytes = [record["programs"][found[at]]["bytes"] for at in ("before", "after", "without")]
    assert bytes == [4800, 240, 4800]


@pytest.mark.parametrize("name", few(MODELS, "alif"))
def test_the_record_has_its_schema_and_says_what_the_program_does(name):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        shown = view(name)
    record, program = shown.as_dict(), shown.program
    check_schema(record)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    claims = {w["path"]: w["claim"] for w in record["weights"]}
    assert claims == {path: claim.claim for path, claim in program.claims.items()}
    for op, p in zip(record["ops"], program.plan.ops, strict=True):
        texts = [record["escapes"][n]["text"] for n in op["escapes"]]
        assert [*op["lost"], *texts] == list(p.escapes)
        assert (op["path"], op["bytes"], op["block"]) == (p.path, p.trace_bytes, p.block)
        assert [record["weights"][n]["path"] for n in op["weights"]] == p.path.split(", ")
    # Each escape is drawn, and from the state that it names.
    nodes, edges = record["graph"]["nodes"], record["graph"]["edges"]
    for escape in record["escapes"]:
        drawn = [edges[n] for n in escape["edges"]]
        source = escape["text"].split(" -> ")[0].removeprefix("hidden ")
        assert source in {nodes[edge["from"]]["path"] for edge in drawn}
        assert "escape" in {edge["kind"] for edge in drawn}
    # Each equation where a weight meets data has a line of the network, which has its text.
    lines, functions = record["sources"]["lines"], record["sources"]["functions"]
    for equation in record["step"]["equations"]:
        if equation["ops"]:
            assert equation["data"]
            line = lines[equation["line"]]
            assert line["file"] == "docs/views.py"
            texts = {c["line"]: c["text"] for c in functions[line["function"]]["code"]}
            assert re.search(r"self|layer", texts[line["line"]])
    assert not re.search(
        r'"/|\\\\/', json.dumps(record["sources"]["lines"])
    )  # no folder of this machine


@pytest.mark.parametrize("name", few(MODELS, "alif"))
def test_instructions_come_from_terms_and_lines(name):
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        record = view(name).as_dict()
    hlo = record["emitted"]["hlo"]
    instructions = [i for c in hlo["computations"] for i in c["instructions"]]
    terms = {term for i in instructions for term in i["terms"]}
    traced = {op["path"] for op in record["ops"] if op["bytes"]}
    assert {f"grad {path}" for path in traced} <= terms
    assert {term.removeprefix("trace ") for term in terms if term.startswith("trace ")} <= traced
    assert {"forward", "backward"} <= terms
    for i in instructions:
        of = {record["weights"][n]["path"] for n in i["weights"]}
        for term in i["terms"]:
            kind, _, path = term.partition(" ")
            assert kind in ("forward", "backward") or set(path.split(", ")) <= of
    files = {record["sources"]["lines"][n]["file"] for i in instructions for n in i["lines"]}
    assert files == {"docs/views.py"}
    loops = [c for c in hlo["computations"] if c["role"] == "loop"]
    assert loops
    assert {c["trips"] for c in loops} & {record["window"]}
    assert hlo["bytes"]["argument"] > record["emitted"]["carry_bytes"]


def test_equations_in_words():
    def step(m, x, h):
        h = jax.nn.sigmoid(m["a"]) * h - m["w"] @ jnp.concatenate([x, h]) + 2.5
        return -(h**3), h

    weights = {"a": jnp.zeros(2), "w": jnp.ones((2, 4))}
    program = etpc.compile(weights, inputs=jnp.zeros(2), state=jnp.zeros(2), step=step)
    found = program.view(hlo=False).as_dict()["step"]
    name = lambda part: found["variables"][part]["name"] if isinstance(part, int) else part
    said = {"".join(map(name, e["parts"])): e for e in found["equations"]}
    once = [text for text, e in said.items() if e["once"]]
    assert len(once) == 1
    assert re.fullmatch(r"v\d+ = logistic\(\['a'\]\)", once[0])
    (product,) = (e for text, e in said.items() if "dot_general" in text)
    assert [found["variables"][n]["kind"] for n in product["inputs"]] in (
        ["parameter", "value"],
        ["value", "parameter"],
    )
    assert product["weights"] == [1]
    assert any(re.fullmatch(r"state′ = v\d+ \+ 2\.5", text) for text in said)
    (power,) = (
        e for text, e in said.items() if re.fullmatch(r"v\d+ = integer_pow\(state′\)", text)
    )
    assert power["detail"] == "y=3"
    assert any(re.fullmatch(r"y = −v\d+", text) for text in said)


# --- patterns ---


def dense(record):
    """The pattern that strips stand for."""
    shape = (-(-record["rows"] // record["scale"]), -(-record["columns"] // record["scale"]))
    found = np.zeros(shape, int)
    for row, column, width, height, shift in record["strips"]:
        for i in range(height):
            found[row + i, column + i * shift : column + i * shift + width] += 1
    return found


@given(
    st.integers(0, 2**32 - 1), st.sampled_from(["any", "diagonal", "blocks", "reversed", "band"])
)
def test_strips_are_the_pattern(seed, kind):
    random = np.random.default_rng(seed)
    n, m = random.integers(1, 12, 2)
    i, j = np.indices((n, m))
    matrix = {
        "any": random.random((n, m)) < random.random(),
        "diagonal": (i == j) | (i + 3 == j),
        "blocks": i // 3 == j // 3,
        "reversed": i + j == m - 1,
        "band": abs(i - j) < 2,
    }[kind]
    record = patterns.strips(sp.csr_array(matrix))
    assert (dense(record) == matrix).all()  # each entry once
    assert record["entries"] == matrix.sum()


def test_strips_are_few_for_what_networks_have():
    count = lambda matrix: len(patterns.strips(sp.csr_array(matrix))["strips"])
    assert count(np.eye(1000, dtype=bool)) == 1
    assert count(np.ones((200, 100), bool)) == 1
    assert count(np.kron(np.eye(4), np.ones((50, 50))).astype(bool)) == 4
    assert count(np.tile(np.eye(100, dtype=bool), (2, 2))) == 3


def test_a_pattern_with_too_many_strips_is_coarser(monkeypatch):
    monkeypatch.setattr(patterns, "MOST", 20)
    matrix = np.random.default_rng(0).random((60, 50)) < 0.1
    record = patterns.strips(sp.csr_array(matrix))
    assert record["scale"] > 1
    assert len(record["strips"]) <= 20
    row, column = np.nonzero(matrix)
    wanted = np.zeros_like(dense(record))
    wanted[row // record["scale"], column // record["scale"]] = 1
    assert (dense(record) == wanted).all()


# --- HLO ---

HLO = """HloModule jit_run, is_scheduled=true

FileNames
1 "/models/a.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%fused (p: f32[4,2], q: f32[2]) -> f32[4] {
  %p = f32[4,2]{1,0} parameter(0)
  %q = f32[2]{0} parameter(1)
  ROOT %dot.1 = f32[4]{0} dot(%p, %q), metadata={op_name="dot_general" stack_frame_id=1}
}

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}) parameter(0)
  %gte = f32[4]{0} get-tuple-element(%arg), index=1
  %mul.1 = f32[4]{0} multiply(%gte, %gte), metadata={op_name="jit(run)/vmap(jvp(trace ['a/b\\'<script>']))/mul"}, CYCLES
  ROOT %t = (s32[], f32[4]{0}) tuple(%gte, %mul.1)
}

ENTRY %main (a: f32[4,2], b: f32[2]) -> f32[4] {
  %a = f32[4,2]{1,0} parameter(0)
  %b = f32[2]{0} parameter(1), metadata={op_name="carry.traces['w'][0]"}
  %f.1 = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused
  %while.1 = (s32[], /*index=1*/f32[4]{0}) while(%t), body=%body, backend_config={"known_trip_count":{"n":"16"}}
  ROOT %add.1 = f32[4]{0} add(%f.1, %f.1), metadata={op_name="jit(run)/grad w/add" stack_frame_id=1}
}
"""


@pytest.mark.parametrize("marked", ["%", ""])  # newer versions of XLA leave it out
def test_a_module_is_taken_apart(marked):
    weights = Weights.__new__(Weights)
    weights.by_path = {"w": [0], "['a/b'<script>']": [1]}
    sources = Sources()
    line = sources.line("/models/a.py", 7)
    equations = [{"ops": [0], "line": line, "primitive": "dot_general", "weights": [2]}]
    text = HLO.replace("%", marked).replace("CYCLES", 'backend_config={"estimated_cycles":"7"}')
    found = Origins(text, weights, sources, equations).record()
    entry, body = found["computations"]
    assert [i["name"] for i in entry["instructions"]] == ["f.1", "while.1", "add.1"]
    fusion, loop, add = entry["instructions"]
    assert (fusion["inside"], fusion["terms"], fusion["weights"]) == (["dot"], ["forward"], [2])
    assert fusion["lines"] == add["lines"] == [line]
    assert (add["terms"], add["weights"], add["bytes"]) == (["grad w"], [0], 16)
    assert (loop["type"], loop["bytes"]) == ("(s32[], f32[4])", 20)
    assert (body["role"], body["trips"]) == ("loop", 16)
    assert [(i["terms"], i["weights"]) for i in body["instructions"]] == [
        (["trace ['a/b'<script>']"], [1])
    ]
    assert [(i["cycles"], i["kernels"]) for i in body["instructions"]] == [(16 * 7, 0)]
    assert [(i["cycles"], i["kernels"]) for i in entry["instructions"]] == [(0, 1), (0, 0), (0, 0)]
    (product,) = found["products"]
    assert (product["of"], product["type"]) == (["f32[4,2]", "f32[2]"], "f32[4]")


def test_one_line_of_several_operations_says_of_no_weight():
    """As that of a loop over layers."""
    sources = Sources()
    line = sources.line("/models/a.py", 7)
    one = {"ops": [0], "line": line, "primitive": "dot_general", "weights": [0]}
    module = Origins(HLO, Weights.__new__(Weights), sources, [one, {**one, "weights": [1]}])
    assert not module.at


def test_bytes():
    assert bytes_of("f32[2,3]{1,0}") == 24
    assert bytes_of("(pred[4], /*index=1*/bf16[8]{0}, c64[], s4[8], token[])") == 4 + 16 + 8 + 4


# --- files ---

MODEL = """
import jax.numpy as jnp
from etpc.cli import Task

def make():
    step = lambda w, x, h: (h, 0.9 * h + w @ x)
    return Task(jnp.ones((2, 3)), jnp.zeros(3), state=jnp.zeros(2), step=step)
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "viewed.py").write_text(MODEL)
    return tmp_path


@pytest.mark.slow
def test_the_command(model, capsys):
    assert main(["view", "viewed.py:make", "--inputs", "3", "es_d_rtrl:decay=0.9"]) == 0
    assert capsys.readouterr().out == "wrote view.html\n"
    assert (model / "view.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["view", "viewed.py:make", "--json", "--no-hlo", "-o", "view.json"]) == 0
    said, written = (
        json.loads(t) for t in (capsys.readouterr().out, (model / "view.json").read_text())
    )
    check_schema(said)
    assert (said.pop("model"), said.pop("written")) == ("viewed.py:make", "view.json")
    assert said == written
    assert (written["title"], written["emitted"]["hlo"]) == ("viewed.py:make", None)
    assert main(["view", "viewed.py:make", "--algo", "rtrl", "--batch", "4", "-o", "b.json"]) == 0
    record = json.loads((model / "b.json").read_text())
    assert record["rule"].startswith("RTRL")
    assert record["emitted"]["hlo"]["batch_size"] == 4
    assert main(["view", "viewed.py:make", "-o", "view.svg"]) == 2
    assert "view.svg" in capsys.readouterr().err
    assert main(["view", "viewed.py:make", "--no-hlo", "-o", "no_folder/view.html"]) == 2
    assert "no_folder/view.html cannot be written: No such file" in capsys.readouterr().err


def test_a_view_of_a_program(tmp_path):
    step = lambda w, x, h: (h, 0.9 * h + w * x)
    program = etpc.compile(jnp.ones(2), inputs=jnp.zeros(2), state=jnp.zeros(2), step=step)
    shown = program.view(tmp_path / "page.html", hlo=False)
    assert isinstance(shown, View)
    page = (tmp_path / "page.html").read_text()
    assert page == shown.html()
    assert not re.search(r"\{\{\w+\}\}", page)
    assert shown._repr_html_().startswith("<iframe srcdoc=")
    assert repr(shown) == "View('D_RTRL')"
    with pytest.raises(etpc.InputError, match=r"'page\.svg': the format is not known.*\.html"):
        program.view(tmp_path / "page.svg", hlo=False)
    with pytest.raises(etpc.InputError, match="batch_size"):
        program.view(batch_size=0)
