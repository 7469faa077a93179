"""What a program claims of each parameter: one record, which all that is shown reads."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

import etpc
from etpc.cli import main
from tests import models
from tests.helpers import normal
from tests.marks import first

N = 3
STATE = jnp.zeros(N)
X = jnp.zeros(N)


MODEL = {
    "w": 0.5 * normal(N, N),
    "rec": 0.5 * normal(N, N, seed=1),
    "gain": normal(N, seed=2),
    "out": normal(2, N, seed=3),
    "spare": normal(2, seed=4),
    "steps": jnp.arange(2),
}


def step(m, x, h):
    h = jnp.tanh(m["gain"] * h + m["w"] @ x + m["rec"] @ h)
    return m["out"] @ h, h


def compiled(algo="d_rtrl", step=step, model=MODEL, **options):
    return etpc.compile(model, algo, inputs=X, state=STATE, step=step, **options)


def named(program):
    return {path: claim.claim for path, claim in program.claims.items()}


def test_every_float_parameter_has_its_claim():
    program = compiled()
    assert named(program) == {
        "['gain']": "approximate",
        "['out']": "exact",
        "['rec']": "approximate",
        "['spare']": "unused",
        "['w']": "approximate",
    }
    assert not program.exact
    assert list(program.claims) == [
        path
        for path, aval in zip(
            program.plan.analysis.step.model_leaves.paths,
            program.plan.analysis.step.model_leaves.avals,
            strict=True,
        )
        if jnp.issubdtype(aval.dtype, jnp.floating)
    ]
    assert all(claim == "exact" for claim in named(compiled("rtrl")).values() if claim != "unused")
    assert compiled("rtrl").exact


def test_reasons_are_data():
    claim = compiled().claims["['w']"]
    (reason,) = claim.reasons
    assert reason.kind == "escape"
    assert reason.escape is not None
    assert reason.escape.source == reason.escape.target == "hidden state"
    assert reason.escape.through == ("['rec']",)
    assert str(reason.escape) == reason.text
    assert reason.use is claim.uses[0]
    assert dataclasses.asdict(claim)["reasons"][0]["escape"]["through"] == ("['rec']",)
    reasons = compiled(etpc.ES_D_RTRL(decay=0.9)).claims["['w']"].reasons
    assert [(r.kind, r.code) for r in reasons] == [("form", "reduced"), ("escape", "escapes")]
    kinds = [r.kind for r in compiled(etpc.ES_D_RTRL(rank=1)).claims["['gain']"].reasons]
    assert kinds == ["escape"]  # element-wise: the form is the whole trace
    (reason,) = compiled(etpc.SnAp(1)).claims["['w']"].reasons
    assert reason.escape is not None
    assert reason.escape.steps == 1
    assert reason.code == "escapes-later"
    assert compiled().claims["['w']"].reasons[0].code is etpc.Code.ESCAPES
    assert [r.kind for r in compiled().claims["['spare']"].reasons] == ["unused"]
    assert compiled().claims["['out']"].reasons == ()


def test_no_trace_for_what_is_not_selected():
    program = compiled(weights=lambda m: m["w"])
    assert named(program)["['rec']"] == "current step"
    (reason,) = program.claims["['rec']"].reasons
    assert (reason.kind, reason.code) == ("untraced", "not-selected")
    assert not program.exact


def test_the_codes_of_operations_without_a_trace():
    def behind(m, x, h):
        h = 0.5 * h + m["rec"] @ jnp.tanh(m["w"] @ x)
        return m["out"] @ h, h

    def code(path, step, algo="d_rtrl", **options):
        (p,) = [p for p in compiled(algo, step, **options).plan.ops if p.path == f"['{path}']"]
        assert (p.node is None, p.reason != "") == (p.code is not None,) * 2
        return p.code

    assert code("w", step) is None
    assert code("out", step) == "no-state-reached"
    assert code("w", behind) == "behind-weights"
    marked = lambda m, x, h: step({**m, "w": etpc.mark(m["w"])}, x, h)
    assert code("rec", marked, weights="marked") == "not-marked"
    assert code("w", step, etpc.TBPTT(2)) == "no-form"


EXACT_STEP = "it reaches no hidden state; the gradient of each step is exact"
USE = "in one use (dot_general)"


def cut_to_steps(m, x, h):
    y = m["out"] @ h + (m["rec"] @ h)[:2]
    return y, jnp.tanh(m["gain"] * h + m["w"] @ x + m["rec"] @ h)


@pytest.mark.parametrize(
    ("algo", "claim", "back"),
    first(
        [
            ("d_rtrl", "current step", "the current step"),
            (etpc.TBPTT(1), "current step", "the current step"),
            (etpc.TBPTT(1, every=1), "current step", "the current step"),
            (etpc.D_RTRL(window=1, backprop="full"), "current step", "the current step"),
            (etpc.TBPTT(20), "approximate", "the last 20 steps"),
            (etpc.TBPTT(20, every=5), "approximate", "the last 20 steps"),
            (etpc.D_RTRL(window=5, backprop="full"), "approximate", "the last 5 steps"),
            (etpc.D_RTRL(lookback=8), "approximate", "the last 8 steps"),
        ]
    ),
    ids=str,
)
def test_weights_without_a_trace_are_claimed_alike_everywhere(algo, claim, back):
    """One weight reaches no hidden state, one does in one of two uses, one is in no operation, one is no float."""
    truncated = isinstance(algo, etpc.TBPTT)
    weights = None if truncated else lambda m: m["gain"]
    why = "TBPTT gives it none" if truncated else "it was not selected"
    program = compiled(algo, cut_to_steps, weights=weights)
    reason = f"{why}; it gets the gradient of {back}"
    assert program.claims["['w']"].left_out == program.claims["['rec']"].left_out == (reason,)
    assert {
        "['w']": reason,
        "['rec']": f"{USE} {EXACT_STEP}; {USE} {reason}",
        "['out']": EXACT_STEP,
        "['spare']": "no operation of the step depends on it; its gradient is zero",
    }.items() <= program.untraced.items()
    assert "['steps']" not in program.untraced
    assert str(program).count("the gradient of each step is exact") == 2
    assert (f"nothing from before {back} enters a gradient" in str(program)) == truncated
    assert reason in " ".join(program.explain("['rec']").split())
    xs, targets = normal(40, N, seed=5), normal(40, 2, seed=6)
    called = dict(state=STATE, step=cut_to_steps, weights=weights)
    loss = lambda y, t: jnp.sum((y - t) ** 2)
    found = etpc.verify(MODEL, xs, targets, loss, algo, **called)
    side = etpc.compare(MODEL, xs, targets, loss, [algo], **called)
    assert found.ok, str(found)
    assert side.ok, str(side)
    for rows in (found.rows, side.rows):
        claims = {row.path: row.claim for row in rows}
        assert claims == named(program)
        assert (claims["['w']"], claims["['rec']"], claims["['out']"]) == (claim, claim, "exact")


# --- several uses of one parameter ---


def marked_once(m, x, h):
    h = 0.5 * h + etpc.mark(m["w"]) @ x + m["w"] @ x[::-1]
    return h, h


def marked_in_an_effective_weight(m, x, h):
    h = 0.5 * h + etpc.mark(m["w"] * m["gain"][None]) @ x + jnp.tanh(m["w"]) @ x[::-1]
    return h, h


def selected_by_the_other(m, x, h):
    """A selector of `gain` takes the product, and not the other use of `w`."""
    h = 0.5 * h + (m["w"] * m["gain"][None]) @ x + m["w"] @ x[::-1]
    return h, h


USES = {
    "marked once": (marked_once, "marked"),
    "marked in an effective weight": (marked_in_an_effective_weight, "marked"),
    "selected with another": (selected_by_the_other, lambda m: m["gain"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("algo", ["d_rtrl", "rtrl"])
def test_a_use_without_a_trace(name, algo):
    use, weights = USES[name]
    program = compiled(algo, use, weights=weights)
    claim = program.claims["['w']"]
    assert claim.claim == "approximate"
    assert [r.kind for r in claim.reasons] == ["untraced"]
    assert [p.form is None for p in claim.uses].count(True) == 1
    assert "in one use" in program.untraced["['w']"]
    assert not program.exact
    # what is shown says so too
    assert "exact in this use" in str(program)
    assert "in one use" in str(program)
    assert "is used 2 times. Its gradient: approximate." in program.explain("['w']")
    xs, targets = normal(12, N, seed=6), normal(12, N, seed=7)
    report = etpc.verify(
        MODEL, xs, targets, models.loss, algo, state=STATE, step=use, weights=weights
    )
    row = next(row for row in report.rows if row.path == "['w']")
    assert (row.claim, row.held) == ("approximate", None)
    assert row.error > 1e-3  # and so it is
    whole = compiled(algo, use)
    assert whole.claims["['w']"].claim == "exact"
    assert whole.exact
    assert "['w']" not in whole.untraced


def test_a_use_that_reaches_no_state_needs_no_trace():
    def tied(m, x, h):
        h = 0.5 * h + m["w"] @ x
        return m["w"] @ h, h

    program = compiled(step=tied)
    assert program.claims["['w']"].claim == "exact"
    assert "['w']" not in program.untraced


def test_what_nothing_reads_in_the_end_is_unused():
    def idle(m, x, h):
        _ = m["w"] @ x
        lost = jnp.where(m["gain"] > 0, 1, 0)  # an integer: no derivative
        return h, 0.5 * h + m["rec"] @ x, lost

    def two(m, x, h):
        y, h, _ = idle(m, x, h)
        return y, h

    program = compiled(step=two)
    assert named(program)["['w']"] == "unused"
    assert named(program)["['rec']"] == "exact"
    assert program.exact


def test_a_program_without_a_trace_says_so():
    program = compiled(weights=lambda m: m["out"])
    assert not program.ops
    assert "no weight has a trace" in str(program)


# --- what is shown ---


def test_the_command_line_gives_the_claims(tmp_path, capsys, monkeypatch):
    (tmp_path / "shown.py").write_text(
        "import jax.numpy as jnp\n"
        "class Model:\n"
        "    pass\n"
        "import equinox as eqx\n"
        "class Leak(eqx.Module):\n"
        "    w: object\n"
        "    spare: object\n"
        "    def __init__(self):\n"
        "        self.w, self.spare = jnp.ones(2), jnp.ones(2)\n"
        "    def init_state(self):\n"
        "        return jnp.zeros(2)\n"
        "    def __call__(self, x, h):\n"
        "        h = 0.5 * h + self.w * x\n"
        "        return h, h\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["explain", "shown.py:Leak", "--inputs", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["exact"] is True
    found = {"schema": "etpc-claim/1", "path": ".w", "claim": "exact", "reasons": []}
    assert record["claims"][".w"] == found
    assert record["claims"][".spare"]["claim"] == "unused"
    assert record["claims"][".spare"]["reasons"][0]["kind"] == "unused"
