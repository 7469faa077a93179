"""Operations whose influence ends with the step: they carry nothing, and their gradient is that of the whole trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.traces import Ended
from tests.helpers import WholeTraces, normal, online

T, B, I, N = 16, 2, 4, 5
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


def compiled(rule, step=lstm):
    return etpc.compile(MODEL, rule, inputs=jnp.zeros(I), state=(ZEROS, ZEROS), step=step)


def gradients(program):
    """In two calls, of which the second goes on with the carry."""
    xs, targets = normal(T, B, I, seed=20), jnp.full((T, B), 0.3)
    return online(program, MODEL, xs, targets, program.init(B), calls=2)


def ended(program):
    return {p.path for p in program.ops if isinstance(p.form, Ended)}


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 4])
def test_the_output_gate_of_an_lstm_carries_nothing(window):
    program, whole = (
        compiled(etpc.D_RTRL(window=window)),
        compiled(WholeTraces(window=window)),
    )
    assert ended(program) == OUTPUT
    assert not ended(whole)
    assert sum(p.trace_bytes for p in program.ops) == 3 * (I * N + N * N + N) * 8
    assert sum(p.trace_bytes for p in whole.ops) == 4 * (I * N + N * N + N) * 8
    one, other = gradients(program), gradients(whole)
    for name, g in other.items():
        assert np.abs(g).max() > 1e-3
        np.testing.assert_allclose(one[name], g, rtol=0, atol=1e-12 * np.abs(g).max())


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
    assert "its trace is nothing, as its influence ends with the step" in text
    assert f"{N * N * 8} bytes less than one entry for each use and state" in text
    rows = {line.split()[0]: line.split() for line in str(program).splitlines() if "dot_g" in line}
    assert rows["['rec_output']"][-3:] == ["none", "0", "approximate"]
    assert program.claims["['rec_output']"].claim == "approximate"
