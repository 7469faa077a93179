"""Operations whose influence ends with the step: they carry nothing. `tests.passes` has their gradients."""

import jax
import jax.numpy as jnp
import pytest

import etpc
from tests.helpers import normal

T, I, N = 16, 4, 5
GATES = ("input", "forget", "output", "value")
ZEROS = jnp.zeros(N)


def lstm(m, x, state):
    """The output enters the next step through matrices alone, and so does the gate of the output."""
    h, c = state
    gate = lambda n: m[f"in_{n}"] @ x + m[f"rec_{n}"] @ h + m[f"bias_{n}"]
    i, f, o = (jax.nn.sigmoid(gate(n)) for n in GATES[:3])
    c = f * c + i * jnp.tanh(gate("value"))
    h = o * jnp.tanh(c)
    return jnp.sin(h), (h, c)


def peephole(m, x, state):
    """The next step reads the output past the matrices too."""
    y, (h, c) = lstm(m, x, state)
    return y, (h, c + 0.1 * m["bias_value"] * state[0])


def late(m, x, state):
    """The next output reads the state."""
    return jnp.sin(state[0]), lstm(m, x, state)[1]


MODEL = {f"in_{n}": normal(N, I, seed=k) for k, n in enumerate(GATES)}
MODEL |= {f"rec_{n}": normal(N, N, seed=5 + k) for k, n in enumerate(GATES)}
MODEL |= {f"bias_{n}": normal(N, seed=9 + k) for k, n in enumerate(GATES)}
OUTPUT = {f"['{part}_output']" for part in ("in", "rec", "bias")}


def compiled(rule, step=lstm, passes=None):
    options = {"state": (ZEROS, ZEROS), "step": step, "passes": passes}
    return etpc.compile(MODEL, rule, inputs=jnp.zeros(I), **options)


def ended(program):
    reason = "no later step reads what it does to the states"
    return {path for path, why in program.untraced.items() if why.startswith(reason)}


def test_the_output_gate_of_an_lstm_carries_nothing():
    program, whole = (compiled(etpc.D_RTRL(window=4), passes=passes) for passes in (None, ()))
    assert ended(program) == OUTPUT
    assert not ended(whole)
    assert sum(p.trace_bytes for p in program.ops) == 3 * (I * N + N * N + N) * 8
    for path, claim in program.claims.items():
        assert claim.claim == ("current step" if path in OUTPUT else "approximate")
        assert whole.claims[path].claim == "approximate"


@pytest.mark.parametrize("rule", [etpc.ES_D_RTRL(decay=0.9), etpc.ES_D_RTRL(rank=1)])
def test_under_other_rules(rule):
    assert ended(compiled(rule)) == OUTPUT


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        (etpc.RTRL(), lstm),
        (etpc.D_RTRL(backprop="full"), lstm),
        (etpc.D_RTRL(), peephole),
        (etpc.D_RTRL(), late),
    ],
)
def test_what_a_later_step_reads_is_carried(rule, step):
    assert not ended(compiled(rule, step))


def test_what_is_said():
    program = compiled(etpc.D_RTRL())
    text = " ".join(program.explain("['rec_output']").split())
    why = "no later step reads what it does to the states but as data that D_RTRL cuts"
    assert f"It has no trace: {why}; it gets the gradient of the current step" in text
    assert program.claims["['rec_output']"].reasons[0].code == "read-as-cut-data"
    assert "What is left out: hidden [0] -> ['rec_input'] -> hidden [0]" in text
    (left_out,) = (line for line in str(program).splitlines() if "-> ['rec_input'] ->" in line)
    assert "['rec_output']" in left_out


def test_what_is_exact_without_a_trace():
    """The next step does not read the second half of the state."""

    def step(m, x, h):
        h = jnp.concatenate([0.9 * h[:N] + m["first"] @ x, m["second"] @ x])
        return jnp.tanh(h), h

    model = {"first": normal(N, I), "second": normal(N, I, seed=1)}
    data = normal(T, I, seed=2), jnp.zeros((T, 2 * N)), lambda y, t: jnp.sum((y - t) ** 2)
    report = etpc.verify(model, *data, etpc.D_RTRL(window=4), state=jnp.zeros(2 * N), step=step)
    assert report.ok
    (second,) = (p for p in report.program.plan.ops if p.path == "['second']")
    assert second.code == "not-read-later"
    assert [p.path for p in report.program.ops] == ["['first']"]
    assert report.program.claims["['second']"].claim == "exact"
    assert "the gradient of each step is exact" in report.program.untraced["['second']"]


def test_a_network_whose_memory_is_in_its_matrix_carries_nothing():
    def step(m, x, h):
        h = jnp.tanh(m["in"] @ x + m["rec"] @ h)
        return jnp.sin(h), h

    model = {"in": normal(N, I), "rec": normal(N, N, seed=1)}
    program = etpc.compile(model, inputs=jnp.zeros(I), state=ZEROS, step=step)
    assert not program.ops
    assert "no weight has a trace" in str(program)
