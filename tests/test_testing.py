"""`etpc.testing`, `etpc claims`, and the plugin of pytest."""

import json
import os
import threading
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import pytest

import etpc
from etpc import D_RTRL, TBPTT
from etpc.cli import main
from etpc.testing import add_claims, assert_exact, assert_gradient, read_claims, worse_claims
from tests import by_hand
from tests.checking.test_verify import Wrong, data, leaky, squared
from tests.helpers import loss

pytest_plugins = ["pytester"]

T, B = 20, 3


@pytest.mark.slow
def test_assert_gradient():
    model, (xs, targets) = by_hand.rate(), by_hand.sequence(T, B)
    options = dict(batch_size=B)
    right = by_hand.tbptt(model, xs, targets, steps=T)
    assert assert_gradient(right, model, xs, targets, loss, **options).equals == TBPTT(T)
    assert_gradient(right, model, xs, targets, loss, equals="rtrl", **options)  # as exact
    cut = by_hand.tbptt(model, xs, targets, steps=4)
    assert_gradient(cut, model, xs, targets, loss, equals=TBPTT(4), **options)
    with pytest.raises(
        AssertionError, match=r"should be that of BPTT\.[^$]*gradient of TBPTT\(4\)"
    ):
        assert_gradient(cut, model, xs, targets, loss, **options)
    with pytest.raises(AssertionError, match=r"should be that of D_RTRL"):
        assert_gradient(cut, model, xs, targets, loss, equals="d_rtrl", **options)
    zero = {path: 0 * g for path, g in right.items()}
    with pytest.raises(AssertionError, match="note: the BPTT gradient of"):
        assert_gradient(zero, model, 0 * xs, 0 * targets, loss, **options)


@pytest.mark.slow
def test_assert_exact():
    xs, targets = data()
    assert assert_exact(leaky(), xs, targets, squared).ok
    recurrent = leaky(rec=True)
    with pytest.raises(AssertionError, match=r"\.rec is approximate: .*-> \.rec ->"):
        assert_exact(recurrent, xs, targets, squared)
    assert_exact(recurrent, xs, targets, squared, parameters=[".out"])
    assert_exact(recurrent, xs, targets, squared, "rtrl")
    with pytest.raises(AssertionError, match="nothing was compared"):
        assert_exact(leaky(), xs[:5], targets[:5], squared, D_RTRL(window=5))
    with pytest.raises(AssertionError, match="A claim does not hold"):
        assert_exact(leaky(), xs, targets, squared, Wrong())
    with pytest.raises(etpc.InputError, match=r"no parameter '\.recc'"):
        assert_exact(leaky(), xs, targets, squared, parameters=[".recc"])


def test_a_text_is_no_list():
    xs, targets = data()
    with pytest.raises(
        etpc.InputTypeError, match=r"parameters must be a list of paths, not '\.out'"
    ):
        assert_exact(leaky(), xs, targets, squared, parameters=".out")


# --- claims ---


def claimed(**claims):
    return {
        "claims": {
            path: {"claim": claim, "left_out": list(left_out)}
            for path, (claim, *left_out) in claims.items()
        }
    }


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (("exact",), ("exact",), None),
        (("approximate", "a", "b"), ("exact",), None),
        (("approximate", "a", "b"), ("approximate", "b"), None),
        (("current step", "a"), ("approximate", "b"), None),
        (("unused", "no"), ("approximate", "b"), None),
        (("exact",), ("approximate", "a"), "w was exact, and is approximate: a"),
        (
            ("approximate", "a"),
            ("approximate", "a", "b"),
            "w was approximate, and is approximate: b",
        ),
        (("approximate", "a"), ("current step", "c"), "w was approximate, and is current step: c"),
        (("approximate", "a"), ("unused", "no"), "w was approximate, and is unused: no"),
    ],
)
def test_what_is_worse(before, now, text):
    found = worse_claims(claimed(w=before), claimed(w=now, new=("unused",)))
    assert found == ([] if text is None else [text])


def test_a_parameter_that_is_gone_is_worse():
    assert worse_claims(claimed(w=("exact",)), claimed(v=("exact",))) == [
        "w was exact, and is no parameter any more."
    ]


MODELS = """
import equinox as eqx
import jax
import jax.numpy as jnp


class Net(eqx.Module):
    win: jax.Array
    rec: jax.Array

    def init_state(self):
        return jnp.zeros(3)

    def __call__(self, x, h):
        h = 0.9 * h + self.win @ x + {rec}
        return h, h


def net():
    return Net(jnp.ones((3, 2)), jnp.ones(3)), jnp.zeros(2)
"""
EXACT, CUT = MODELS.format(rec="self.rec"), MODELS.format(rec="jnp.diag(self.rec) @ jnp.tanh(h)")


def misfits(record):
    """Records of claims with one field that is missing or another thing, and what is said of it."""
    models = record["models"]
    ((target, entry),) = models.items()
    yield record | {"schema": 1}, "*[[]'schema'] is 1*"
    yield {"schema": record["schema"]}, "*[[]'models'] is missing*"
    yield record | {"models": []}, "*[[]'models'] is [[][]]*"
    for name in ("algo", "inputs", "claims"):
        rest = {key: value for key, value in entry.items() if key != name}
        yield record | {"models": {target: rest}}, f"*[[]'{name}'] is missing*"
    for claim, said in (
        ({"claim": "exact"}, "'left_out'] is missing"),
        ({"claim": "perfect", "left_out": []}, "'claim'] is 'perfect'"),
        ({"claim": "exact", "left_out": [1]}, "'left_out'][[]0] is 1"),
    ):
        yield record | {"models": {target: entry | {"claims": {"w": claim}}}}, f"*[[]{said}*"


def test_claims_of_several_at_once(tmp_path):
    """Each is added to what is there, and none is lost."""
    path = tmp_path / "claims.json"
    entry = {"algo": "rtrl", "inputs": None, **claimed(w=("exact",))}
    threads = [
        threading.Thread(target=add_claims, args=(path, str(n), entry), daemon=True)
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert read_claims(path) == {str(n): entry for n in range(8)}
    assert os.listdir(tmp_path) == ["claims.json"]


def test_claims_that_cannot_be_written(pytester, capsys):
    """The file keeps those of other models where the disk is full, and where it is of something else."""
    resource = pytest.importorskip("resource")
    pytester.makepyfile(full=EXACT)
    assert main(["claims", "full.py:net", "-o", "claims.json"]) == 0
    before = Path("claims.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert main(["claims", "./full.py:net", "-o", "claims.json"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Path("claims.json").read_bytes() == before
    os.mkfifo("pipe")
    Path("other.json").write_text("{}")
    for name, said in (("pipe", "not a regular file"), ("other.json", "no file of claims")):
        assert main(["claims", "full.py:net", "-o", name]) == 2
        assert said in capsys.readouterr().err
    assert Path("other.json").read_text() == "{}"


def test_claims_and_the_plugin(pytester, capsys):
    """Of a model that is edited so that a claim gets worse, and back."""
    pytester.makepyfile(models_of_claims=EXACT)
    target = "models_of_claims.py:net"
    assert main(["claims", target, "-o", "claims.json"]) == 0
    out = capsys.readouterr().out
    assert "wrote claims.json" in out
    record = json.loads(Path("claims.json").read_text())
    assert record["schema"] == "etpc-claims/1"
    assert record["models"][target]["claims"][".win"] == {"claim": "exact", "left_out": []}
    rtrl = f"claims ./{target} --algo rtrl --inputs 2 -o claims.json --json"
    assert main(rtrl.split()) == 0
    both = json.loads(capsys.readouterr().out)
    assert both == json.loads(Path("claims.json").read_text())
    assert list(both["models"]) == [target, f"./{target}"]
    assert both["models"][f"./{target}"]["inputs"] == "2"

    run = lambda *args: pytester.runpytest_inprocess(
        "-p", "pytest_etpc", "-p", "no:cacheprovider", *args
    )
    run("--etpc-claims=claims.json", "-q").assert_outcomes(passed=2)
    pytester.makepyfile(models_of_claims=CUT)
    result = run("--etpc-claims=claims.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*.win was exact, and is approximate: *",
            f"*If that is meant, write the file anew: etpc claims {target} -o claims.json",
        ]
    )
    for name, text, said in (
        ("none.json", None, "*there is no such file*"),
        ("other.json", "{}", "*is no file of claims*"),
        ("old.json", '{"schema": "etpc-claims/0"}', "*has the schema 'etpc-claims/0'*"),
        *(
            (f"{n}.json", json.dumps(found), said)
            for n, (found, said) in enumerate(misfits(record))
        ),
        ("deep.json", "[" * 100_000, "*no file of claims: it is no JSON*"),
    ):
        if text is not None:
            Path(name).write_text(text)
        result = run(f"--etpc-claims={name}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([said])


def test_records_are_ready_for_json():
    model = eqx.tree_at(lambda m: m.rec, leaky(rec=True), jnp.eye(4))
    program = etpc.compile(model, inputs=jnp.zeros(3))
    records = {
        "etpc-program/1": program.as_dict(),
        "etpc-claim/1": program.claims[".rec"].as_dict(),
        "etpc-memory/1": program.memory(2).as_dict(),
    }
    for schema, record in records.items():
        assert record["schema"] == schema
        assert json.loads(json.dumps(record, allow_nan=False)) == record
    claim = records["etpc-claim/1"]
    assert (claim["path"], claim["claim"]) == (".rec", "approximate")
    assert [r["text"] for r in claim["reasons"]] == [r.text for r in program.claims[".rec"].reasons]
    assert records["etpc-program/1"]["claims"][".rec"] == claim
    assert records["etpc-memory/1"]["total"] == program.memory(2).total
    assert sum(t["bytes"] for t in records["etpc-memory/1"]["traces"]) < program.memory(2).total


# --- schemas of what is written ---


def described(value, form, defined):
    """Whether a schema names each field of a value, so that it says of all what they are."""
    form = defined[form["$ref"].rpartition("/")[2]] if "$ref" in form else form
    if isinstance(value, list):
        return all(described(member, form["items"], defined) for member in value)
    if not isinstance(value, dict) or form == {"type": "object"}:
        return True
    rest, known = form.get("additionalProperties"), form.get("properties", {})
    inner = [(part, known.get(key, rest)) for key, part in value.items()]
    return all(schema and described(part, schema, defined) for part, schema in inner)


def check_schema(record):
    """Against the schema that its name gives, which is one, by an independent validator."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = etpc.files.schema(record["schema"])
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(record, schema)
    assert described(record, schema, schema.get("$defs", {}))
    return jsonschema.Draft202012Validator(schema).is_valid


@pytest.mark.slow
def test_what_is_written_has_its_schema(pytester, capsys):
    pytester.makepyfile(models_of_claims=EXACT)
    target = "models_of_claims.py:net"
    assert main(["claims", target, "-o", "claims.json"]) == 0
    record = json.loads(Path("claims.json").read_text())
    is_valid = check_schema(record)
    for wrong, said in misfits(record):  # what is refused, the schema refuses too
        assert not is_valid(wrong), said
    capsys.readouterr()
    assert main(["draw", target, "-o", "graph.svg", "--json"]) == 0
    check_schema(json.loads(capsys.readouterr().out))
    assert main(["export", target, "-o", "learner", "--every", "2"]) == 0
    check_schema(json.loads(Path("learner/manifest.json").read_text()))
    with pytest.raises(etpc.InputError, match=r"no schema 'etpc-claims/2', but etpc-claims/1, "):
        etpc.files.schema("etpc-claims/2")
