"""`program.explain`: what it says of a parameter is what the program holds."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import etpc
from etpc import algorithms, forms
from tests.zoo.check import model


@model
def Model(x, state, up, rec, tau, out, idle):
    a, b = state
    a = jnp.tanh(tau) * a + up @ x
    b = 0.5 * b + jnp.tanh(rec @ b + a)
    return out @ b, (a, b)


MODEL = Model(jnp.ones((4, 3)), jnp.ones((4, 4)), jnp.ones(4), jnp.ones((2, 4)), jnp.ones(2))
STATE = (jnp.zeros(4), jnp.zeros(4))


@functools.cache
def compiled(algo="d_rtrl", **options):
    return etpc.compile(MODEL, algo, inputs=jnp.zeros(3), state=STATE, weights="all", **options)


def said(program, path):
    return " ".join(program.explain(path).split())


MEETS = r"\.up meets data in dot_general at .*test_explain\.py.* 3 x 4 uses"
TRACE = r"at most 2 hidden states, of \[0\], \[1\].* 2x4x3 of float64: 192 bytes for one example"
LEFT_OUT = r"approximate\. What is left out: hidden \[1\] -> \.rec -> hidden \[1\]"


@pytest.mark.parametrize(
    ("algo", "path", "words"),
    [
        ("d_rtrl", ".up", f"{MEETS}.*{TRACE}.*{LEFT_OUT}"),
        ("rtrl", ".rec", "exact: no influence leaves the trace"),
        ("es_d_rtrl", ".rec", r"two smoothed factors, 4 \+ 4 of float64: 72 bytes"),
        ("es_d_rtrl", ".rec", r"smoothed with decay 0\.99"),
        (
            etpc.ES_D_RTRL(rank=1),
            ".rec",
            r"one pair of factors, for its leading mode, 1x4 \+ 1x4 of",
        ),
        ("d_rtrl", ".out", "It has no trace: it reaches no hidden state"),
        ("d_rtrl", ".idle", r"^\.idle: no operation of the step .* on it; its gradient is zero\.$"),
    ],
)
def test_what_is_said_of_a_weight(algo, path, words):
    text = said(compiled(algo), path)
    assert re.search(words, text), text
    assert ("left out" in text) == ("approximate" in text)


@pytest.mark.parametrize(
    ("path", "rtrl", "snap", "d_rtrl"), [(".up", 5, 2, 2), (".rec", 4, 1, 1), (".tau", 5, 2, 2)]
)
def test_costs_are_those_of_the_other_rules(path, rtrl, snap, d_rtrl):
    """At most, and here just that: a dense layer passes on everything to all it reaches."""
    text = compiled().explain(path)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[-6:] if line.split()}
    for name, block in (("rtrl", rtrl), (etpc.SnAp(1), snap), ("d_rtrl", d_rtrl)):
        op = next(op for op in compiled(name).ops if op.path == path)
        label = {"rtrl": "RTRL", "d_rtrl": "D_RTRL"}.get(name, "SnAp(1)")
        assert op.block == block
        assert rows[label] == [str(op.block), f"{op.trace_bytes:,}"]
    if path != ".tau":
        op = next(op for op in compiled("es_d_rtrl").ops if op.path == path)
        assert rows["ES_D_RTRL(decay=0.99)"][1] == f"{op.trace_bytes:,}"


def test_a_program_that_cuts_nothing_tells_the_same_costs():
    table = lambda program: program.explain(".up").split("At most")[1]
    assert table(compiled("rtrl")) == table(compiled("d_rtrl"))


def test_a_weight_that_acts_through_other_weights_alone():
    """A gate before a matrix has no trace, and the advice holds: behind the matrix it has one."""

    def gated(before):
        def step(w, x, h):
            gate = w["gate"] @ x
            drive = w["rec"] @ (gate * h) if before else gate * (w["rec"] @ h)
            return h, jnp.tanh(drive + x)

        w = {"gate": jnp.ones((3, 3)), "rec": jnp.ones((3, 3))}
        return etpc.compile(w, inputs=jnp.zeros(3), state=jnp.zeros(3), step=step)

    text = said(gated(before=True), "['gate']")
    assert "It has no trace: it acts on the states only through ['rec'], where D_RTRL cuts" in text
    assert "r * (U @ h) in place of U @ (r * h)" in text
    assert "Its trace is one entry for each use" in said(gated(before=False), "['gate']")


BEHIND = (
    "it acts on the states only through ['gate'], ['value'], where {} cuts; it gets the gradient of the "
    "current step, unlike under SnAp and RTRL"
)
GIVEN_NONE = "TBPTT gives it none; it gets the gradient of the last 2 steps"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (etpc.D_RTRL(), BEHIND.format("D_RTRL")),
        (etpc.ES_D_RTRL(), BEHIND.format("ES_D_RTRL")),
        (etpc.TBPTT(2), GIVEN_NONE),
        *((rule, None) for rule in (etpc.CreditRTRL(2), etpc.SnAp(), etpc.RTRL())),
    ],
    ids=str,
)
def test_an_encoder_and_the_rules_that_give_it_credit(rule, reason):
    """What is said of the rules holds: the input of the first step is asked for by the loss of the last one alone."""

    def step(w, x, h):
        encoded = jnp.tanh(w["second"] @ jnp.tanh(w["first"] @ x))
        gate = jax.nn.sigmoid(w["gate"] @ encoded)
        return h.sum(), 0.9 * h + gate * (w["value"] @ encoded)

    w = {name: jnp.eye(3) + 0.1 for name in ("first", "second", "gate", "value")}
    program = etpc.compile(w, rule, inputs=jnp.zeros(3), state=jnp.zeros(3), step=step)
    xs, last = jnp.zeros((6, 3)).at[0].set(1), jnp.arange(6) == 5
    gradient = program.value_and_grad(lambda y, last: last * y**2)
    (_, carry), _ = gradient(w, xs, last, program.init())
    _, grads = gradient(w, xs, last, program.reset(carry, True))  # along the credit of the first
    for name in ("first", "second"):
        assert program.untraced.get(f"['{name}']") == reason
        assert bool(jnp.abs(grads[name]).max() > 1e-3) is (reason is None)
    if rule == etpc.TBPTT(2):
        assert "nothing from before the last 2 steps enters a gradient" in str(program)


def test_a_choice_is_told():
    class Reasoned(etpc.D_RTRL):
        def choose(self, context):
            forms = super().choose(context).forms
            return etpc.algorithms.Choice(forms, dict.fromkeys(forms, "a reason of its own"))

    assert "It was chosen so: a reason of its own." in said(compiled(Reasoned()), ".up")
    assert "\nchosen\n" in str(compiled(Reasoned()))


def test_shared_traces_are_told_of():
    def step(w, x, h):
        for _ in range(2):
            h = np.array([0.5, 0.6, 0.7]) * h + w @ jnp.tanh(h)
        return h, h

    program = etpc.compile(jnp.eye(3), inputs=jnp.zeros(()), state=jnp.zeros(3), step=step)
    first, second = program.explain("model").split("\n\n")
    assert "trace of another use" not in " ".join(first.split())
    assert "added to the trace of another use of the same weight" in " ".join(second.split())
    assert program.memory().traces == (("model", 3 * 3 * 8),)
    assert "as above" in str(program)


def test_uses_of_one_weight_are_told_apart():
    def step(w, x, h):
        h = 0.5 * h + w @ jnp.tanh(h)
        h = 0.5 * h + jnp.sin(w @ h)
        return h, h

    program = etpc.compile(jnp.eye(3), inputs=jnp.zeros(()), state=jnp.zeros(3), step=step)
    text = str(program)
    names = [line.split("  ")[0] for line in text.splitlines() if line.startswith("model")]
    assert names == ["model (1 of 2)", "model (2 of 2)"]
    places = [line for line in text.splitlines() if line.startswith("  model (")]
    first = step.__code__.co_firstlineno
    assert [f"{__file__}:{first + n}:" in line for n, line in enumerate(places, 1)] == [True, True]
    assert "(of model)" in text
    assert "used more than once" not in str(compiled())


def test_lines_are_as_long_as_asked_for():
    for width in (50, 100):
        text = compiled().explain(".rec", width).split("At most")[0]
        lines = [line for line in text.splitlines() if __file__ not in line]
        assert max(map(len, lines)) <= width
    assert len(compiled().explain(".rec", 50).splitlines()) > len(
        compiled().explain(".rec").splitlines()
    )
    with pytest.raises(etpc.InputError, match="width must be an int >= 1"):
        compiled().explain(".rec", 0)


def test_a_path_without_its_dot_is_suggested():
    with pytest.raises(etpc.SelectionError, match=r"no parameter 'rec'\. Did you mean \.rec\? Its"):
        compiled().explain("rec")
    with pytest.raises(etpc.SelectionError, match=r"Did you mean \.idle\?"):
        compiled().explain(".idel")


def test_no_large_pattern_is_formed_to_decide():
    """100,000 neurons, a million connections: each verdict is there in seconds."""
    size = 100_000
    key = jax.random.key(0)
    places = jax.random.randint(key, (1_000_000, 2), 0, size, jnp.int32)
    matrix = sparse.BCOO((jnp.ones(1_000_000, jnp.float32), places), shape=(size, size))
    step = lambda model, x, v: (0.9 * v + model["rec"] @ jnp.tanh(v) + model["in"] * x,) * 2
    model = {"rec": matrix, "in": jnp.ones(size, jnp.float32)}
    state = jnp.zeros(size, jnp.float32)
    program = etpc.compile(
        model, inputs=jnp.zeros((), jnp.float32), state=state, step=step, weights="all"
    )
    assert program.plan.analysis.transition.nnz == size
    text = said(program, "['rec'].data")
    assert "hidden state -> ['rec'].data -> hidden state" in text
    assert "RTRL 100,000 400,000,000,000" in text


# --- what would keep the influence that escapes ---

LAYERS = {"in": jnp.ones((4, 3)), "up": jnp.ones((4, 4)), "rec": jnp.ones((4, 4))}
PAIRS = {"in": LAYERS["in"], "rec": jnp.ones((2, 2, 2))}
ALONE = {"in": LAYERS["in"], "rec": jnp.ones(4)}
ONE, TWO = jnp.zeros(4), (jnp.zeros(4),) * 2


def synapse(m, x, state):
    """The membrane reads its current."""
    g, v = state
    g = 0.5 * g + m["rec"] @ jnp.tanh(v) + m["in"] @ x
    v = 0.9 * v + g
    return v, (g, v)


def leaky_readout(m, x, state):
    v, r = state
    v = 0.9 * v + m["in"] @ x
    r = 0.5 * r + m["up"] @ jnp.tanh(v)
    return r, (v, r)


def plain_readout(m, x, v):
    v = 0.9 * v + m["in"] @ x
    return m["up"] @ jnp.tanh(v), v


def filtered_readout(m, x, state):
    v, a = state
    v = 0.9 * v + m["in"] @ x
    a = 0.5 * a + jnp.tanh(v)
    return m["up"] @ a, (v, a)


def two_layers(m, x, state):
    a, b = state
    a = jnp.tanh(0.5 * a + m["in"] @ x)
    b = jnp.tanh(m["rec"] @ b + m["up"] @ a)
    return b, (a, b)


def blocks(m, x, h):
    read = jnp.einsum("gij,gj->gi", m["rec"], h.reshape(2, 2)).reshape(4)
    return (jnp.tanh(read + m["in"] @ x),) * 2


gru = lambda cell, x, h: (cell(x, h),) * 2
alone = lambda m, x, h: (jnp.tanh(m["rec"] * h + m["in"] @ x),) * 2
RECURRENT = "The next step reads {} through {}. Recurrence of each unit with itself alone"
READOUT = "Only the output reads {}. A readout without memory in its place keeps this influence."
GRU = eqx.nn.GRUCell(3, 4, key=jax.random.key(0))
ESCAPES = {
    "a GRU": (gru, GRU, ONE, ".weight_ih", RECURRENT.format("state", ".weight_hh")),
    "another state": (synapse, LAYERS, TWO, "['in']", RECURRENT.format("[1]", "['rec']")),
    "a leaky readout": (leaky_readout, LAYERS, TWO, "['in']", READOUT.format("[1]")),
    "one layer into another": (two_layers, LAYERS, TWO, "['in']", "[0] -> ['up'] -> hidden [1]"),
    "the layer above": (two_layers, LAYERS, TWO, "['rec']", "Recurrence of each unit"),
    "blocks": (blocks, PAIRS, ONE, "['in']", "etpc.nn.MinGRU, IndRNN or LRU"),
}
KEPT = {
    "a readout without memory": (plain_readout, LAYERS, ONE, "d_rtrl", None),
    "a filter": (filtered_readout, LAYERS, TWO, "d_rtrl", None),
    "blocks of two units": (blocks, PAIRS, ONE, "rtrl", 2),
    "each unit for itself": (alone, ALONE, ONE, "d_rtrl", 1),
}


def told(step, model, state, path, algo="d_rtrl"):
    program = etpc.compile(model, algo, inputs=jnp.zeros(3), state=state, step=step, weights="all")
    text = said(program, path)
    advice = "Recurrence of each unit" in text, "A readout without memory" in text
    return program, text, advice


@pytest.mark.parametrize("name", ESCAPES)
def test_what_lets_influence_escape_is_named(name):
    *given, words = ESCAPES[name]
    program, text, advice = told(*given)
    assert not program.exact
    assert words in text
    is_readout, is_layer = name == "a leaky readout", name == "one layer into another"
    assert advice == (not is_readout and not is_layer, is_readout)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_advised_is_exact(name):
    step, model, state, algo, block = KEPT[name]
    program, _, advice = told(step, model, state, "['in']", algo)
    assert program.exact
    assert advice == (False, False)
    assert block is None or {op.block for op in program.ops} == {block}


def test_snap_gives_no_advice():
    assert told(gru, GRU, ONE, ".weight_ih", etpc.SnAp(1))[2] == (False, False)


def test_arrays_of_several_dtypes_are_shown_with_theirs():
    """Of a form that does not say what it holds either."""

    class Rounded(forms.Trace):
        exact, left_out = False, "it is rounded"
        past = move = lambda self, site, *_: ()

        def init(self, site, batch):
            return jnp.zeros((batch, 3, 4), jnp.int8), jnp.zeros((batch, 4), site.dtype)

    class Rule(algorithms.Algorithm):
        def trace_form(self, kind):
            return Rounded()

    text = said(compiled(Rule()), ".up")
    assert "in the form Rounded, 3x4 of int8 + 4 of float64: 44 bytes for one example" in text
