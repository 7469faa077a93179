"""Ranks that are proved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.algorithms import LowRank
from etpc.traces import Filtered
from tests.helpers import loss, normal, spike
from tests.marks import few

T, I, N = 12, 6, 5


XS = normal(T, I, seed=1)


stop = jax.lax.stop_gradient

DECAYS = np.array([0.9, 0.9, 0.7, 0.7, 0.7])


def leak(m, x, h):
    h = 0.9 * h + m["w"] @ x
    return jnp.tanh(h), h


def trained_leak(m, x, h):
    h = jax.nn.sigmoid(m["a"]) * h + m["w"] @ x
    return jnp.tanh(h), h


def two_leaks(m, x, h):
    h = jnp.asarray(DECAYS) * h + m["w"] @ x
    return jnp.tanh(h), h


def halves(m, x, h):
    """Two parameters that begin with the same value."""
    decay = jnp.concatenate([jnp.full(2, m["a"]), jnp.full(3, m["b"])])
    h = decay * h + m["w"] @ x
    return jnp.tanh(h), h


def detached(m, x, v):
    v = 0.9 * v * (1 - stop(spike(v - 1))) + m["w"] @ x
    return v * spike(v - 1), v


def detached_soft(m, x, v):
    v = 0.9 * (v - stop(spike(v - 1))) + m["w"] @ x
    return v * spike(v - 1), v


def soft(m, x, v):
    v = 0.9 * (v - spike(v - 1)) + m["w"] @ x
    return v * spike(v - 1), v


def synapse(m, x, s):
    g, v = s
    g = 0.8 * g + m["w"] @ x
    v = 0.9 * v + 0.1 * g
    return jnp.tanh(v), (g, v)


def gain(m, x, h):
    """F differs from neuron to neuron and is trained."""
    h = 0.9 * h + m["gain"] * (m["w"] @ x)
    return jnp.tanh(h), h


def gated_input(m, x, h):
    h = 0.9 * h + jax.nn.sigmoid(x[0]) * jnp.tanh(m["w"] @ x)
    return h, h


def each_its_own(m, x, h):
    h = m["each"] * h + m["w"] @ x
    return jnp.tanh(h), h


def below_a_spiking_layer(m, x, s):
    """The readout's trace is of rank one, that of the layer is not."""
    v, r = s
    v = 0.9 * (v - spike(v - 1)) + m["w"] @ x
    r = 0.8 * r + m["out"] @ spike(v - 1)
    return r, (v, r)


MODEL = {
    "w": normal(N, I),
    "out": normal(4, N, seed=2),
    "a": jnp.asarray(0.7),
    "b": jnp.asarray(0.7),
    "gain": jnp.linspace(0.5, 1.5, N),
    "each": jnp.full(N, 0.9),
}
ZEROS = jnp.zeros(N)
# the step, its state, and the rank of the trace of `w` that is proved
STEPS = {
    "leak": (leak, ZEROS, 1),
    "trained leak": (trained_leak, ZEROS, 1),
    "two leaks": (two_leaks, ZEROS, 2),
    "two equal parameters": (halves, ZEROS, 2),
    "a detached hard reset": (detached, ZEROS, None),
    "a detached soft reset": (detached_soft, ZEROS, 1),
    "a reset": (soft, ZEROS, None),
    "a synapse and a membrane": (synapse, (ZEROS, ZEROS), 2),
    "a gain for each neuron": (gain, ZEROS, None),
    "a gate from the input": (gated_input, ZEROS, None),
    "a trained leak for each neuron": (each_its_own, ZEROS, None),
    "a spiking layer": (below_a_spiking_layer, (ZEROS, jnp.zeros(4)), None),
}


def compiled(name, algo, **options):
    step, state, _ = STEPS[name]
    return etpc.compile(MODEL, algo, inputs=XS[0], state=state, step=step, weights="all", **options)


def gradient(program, window_of=XS):
    targets = jnp.full(len(window_of), 0.3)
    (_, carry), grads = program.value_and_grad(loss, "sum")(
        MODEL, window_of, targets, program.init()
    )
    return carry, grads


def op_of(program, path="['w']"):
    return next(p for p in program.ops if p.path == path and p.op.kind.data is not None)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_ranks_that_are_proved(name):
    step, state, rank = STEPS[name]
    program = compiled(name, etpc.ES_D_RTRL(rank=2, window=2))
    form = op_of(program).form
    if rank is None:
        assert form == LowRank(2)
        assert not op_of(program).exact
        return
    assert isinstance(form, Filtered)
    assert form.count(op_of(program).block) == rank
    exact = op_of(compiled(name, etpc.D_RTRL())).exact
    assert op_of(program).exact == exact
    _, grads = gradient(program)
    _, full = gradient(compiled(name, etpc.D_RTRL(window=2), passes=()))
    np.testing.assert_allclose(grads["w"], full["w"], rtol=0, atol=1e-9 * np.abs(full["w"]).max())
    if exact:
        targets = jnp.full(T, 0.3)
        _, bptt = etpc.bptt(MODEL, XS, targets, loss, state=state, step=step, reduction="sum")
        np.testing.assert_allclose(grads["w"], bptt["w"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "name", few([name for name, (_, _, rank) in STEPS.items() if rank], "a synapse and a membrane")
)
def test_a_trace_has_no_lower_rank(name):
    """As many filtered inputs as the trace of D-RTRL has singular values."""
    program = compiled(name, etpc.D_RTRL(window=3), passes=())
    carry, _ = gradient(program)
    carried = zip(program.plan.carried, carry.traces, strict=True)
    t, arrays = next(pair for pair in carried if pair[0].op.path == "['w']")
    trace = np.asarray(t.form.shown(t.site, arrays)["trace"])
    by_input = np.moveaxis(trace, trace.shape.index(I), 0).reshape(I, -1)
    sizes = np.linalg.svd(by_input, compute_uv=False)
    rank = 1 if name == "two equal parameters" else STEPS[name][2]
    assert (sizes > 1e-10 * sizes[0]).sum() == rank


# the decay of each neuron as a function of two scalars, and whether a rank of 2 is proved from it
C = np.linspace(0.1, 1.0, N)
DECAYS_OF = {
    "one scalar": (lambda a, b: jax.nn.sigmoid(a), True),
    "two scalars": (lambda a, b: jnp.concatenate([jnp.full(2, a), jnp.full(3, b)]), True),
    "two minima": (
        lambda a, b: jnp.concatenate(
            [jnp.full(2, jnp.minimum(a, 0.9)), jnp.full(3, jnp.minimum(b, 0.9))]
        ),
        True,
    ),
    "a softplus": (lambda a, b: jnp.exp(-1 / jax.nn.softplus(a)), True),
    "two constants": (lambda a, b: jax.nn.sigmoid(a) * DECAYS, True),
    "a mean": (lambda a, b: jnp.mean(jax.nn.sigmoid(jnp.stack([a, b]))), True),
    "clipped": (lambda a, b: jnp.clip(jnp.full(N, a), 0.0, 0.9), True),
    "moved around": (lambda a, b: jnp.roll(jnp.full((N, 1), jnp.tanh(a)).T[0], 1), True),
    "spread by a scalar": (lambda a, b: jnp.exp(-0.2 - a * C), False),
    "spread behind a step": (lambda a, b: jnp.where(a > 0, C, 0.9), False),
    "spread behind a relu": (lambda a, b: 0.9 - 0.5 * C * jax.nn.relu(a), False),
    "each a maximum": (lambda a, b: jnp.maximum(0.1 * a, C * (a > 1)) + 0.0 * b, False),
    "a product with zero": (lambda a, b: 0.9 + a * b * (C - C[0]) * 0.1, False),
    "rounded": (lambda a, b: 0.9 - 0.1 * jnp.round(a) * C, False),
}
POINTS = [(0.0, 0.0), (0.4, -0.7), (-0.6, 0.2), (5.0, 7.0), (0.3, 0.3)]


@pytest.mark.slow
@pytest.mark.parametrize("name", DECAYS_OF)
def test_a_rank_is_proved_for_all_parameters(name):
    """Compiled at one point, and compared with D-RTRL at others: zero, negative and equal ones too."""
    decay, proved = DECAYS_OF[name]

    def step(m, x, h):
        h = decay(m["a"], m["b"]) * h + m["w"] @ x
        return h, h

    def model(a, b):
        return {"a": jnp.asarray(a), "b": jnp.asarray(b), "w": MODEL["w"]}

    options = {"inputs": XS[0], "state": ZEROS, "step": step}
    for compiled_at in POINTS[:4:3]:
        low, full = (
            etpc.compile(model(*compiled_at), algo, passes=passes, **options)
            for algo, passes in (
                (etpc.ES_D_RTRL(rank=2, window=2), None),
                (etpc.D_RTRL(window=2), ()),
            )
        )
        assert op_of(low).exact is proved
        assert (op_of(low).form == LowRank(2)) is not proved
        errors = []
        for point in POINTS:
            grads = []
            for program in (low, full):
                run = program.value_and_grad(loss, "sum")
                targets = jnp.full(T, 0.3)
                grads.append(np.asarray(run(model(*point), XS, targets, program.init())[1]["w"]))
            errors.append(np.abs(grads[0] - grads[1]).max() / np.abs(grads[1]).max())
        assert bool(max(errors) < 1e-9) is proved


def test_the_readout_of_a_spiking_layer():
    program = compiled("a spiking layer", etpc.ES_D_RTRL(rank=2, window=2))
    assert isinstance(op_of(program, "['out']").form, Filtered)
    assert op_of(program, "['out']").exact
    assert "all outputs decay alike, so one filtered copy of the inputs replaces" in str(program)
