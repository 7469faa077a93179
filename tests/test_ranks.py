"""Ranks that are proved, and certificates of what low-rank traces leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import etpc
from etpc.algorithms import Full, LowRank
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


def test_arguments():
    with pytest.raises(etpc.AlgorithmError, match="needs a rank"):
        etpc.ES_D_RTRL(decay=0.9, certificate=True)
    program = compiled("a reset", etpc.ES_D_RTRL(rank=2))
    with pytest.raises(etpc.AlgorithmError, match="certificate=True"):
        program.certificate(program.init())


# --- certificates ---


def gated(m, x, h):
    z, new = jnp.split(m["w2"] @ jnp.concatenate([x, stop(h)]), 2)
    z = jax.nn.sigmoid(z)
    h = (1 - z) * h + z * jnp.tanh(new)
    return h, h


def adaptive(m, x, s):
    v, a = s
    z = spike(v - 1 - a)
    v = 0.9 * v - z * (1 + a) + m["w"] @ x
    a = 0.95 * a + 0.2 * z
    return v * spike(v - 1 - a), (v, a)


CERTIFIED = {
    "a reset": (soft, jnp.zeros(8), "w"),
    "adaptive": (adaptive, (jnp.zeros(8), jnp.zeros(8)), "w"),
    "gated": (gated, jnp.zeros(8), "w2"),
}


@pytest.mark.slow
@given(
    name=st.sampled_from(sorted(CERTIFIED)),
    rank=st.integers(1, 4),
    window=st.sampled_from([1, 2, 5]),
    backprop=st.sampled_from(["cut", "full"]),
    batch=st.sampled_from([1, 3]),
    scale=st.sampled_from([0.3, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_a_certificate_is_never_violated(name, rank, window, backprop, batch, scale, seed):
    step, state, weight = CERTIFIED[name]
    model = {weight: scale * normal(*((8, 10) if weight == "w" else (16, 18)), seed=seed)}
    xs = normal(15, batch, 10, seed=seed + 1)
    grads, carries, programs = [], [], []
    for algo in (
        etpc.D_RTRL(window=window, backprop=backprop),
        etpc.ES_D_RTRL(rank=rank, window=window, backprop=backprop, certificate=True),
    ):
        program = etpc.compile(model, algo, inputs=xs[0, 0], state=state, step=step, weights="all")
        carry = program.init(batch_size=batch)
        run, total = program.value_and_grad(loss, "sum"), 0.0
        for half in (xs[:7], xs[7:]):  # a carry that is passed on
            (_, carry), grad = run(model, half, jnp.zeros((len(half), batch)), carry)
            total = total + np.asarray(grad[weight])
        programs.append(program)
        carries.append(carry)
        grads.append(total)
    bounds = programs[1].certificate(carries[1])
    if not bounds:  # the pairs and their bounds are no smaller than the whole trace, which is kept
        assert isinstance(programs[1].ops[0].form, Full)
        np.testing.assert_array_equal(*grads)
        return
    (bound,) = bounds
    whole, kept = (
        jax.vmap(lambda carry, p=p: p.plan.shown(p.ops[0].trace, carry)["trace"])(c.traces[0])
        for p, c in zip(programs, carries, strict=True)
    )
    off = np.linalg.norm(whole - kept, axis=-1).reshape(batch, programs[1].ops[0].block, -1)
    assert bound.trace.shape == off.shape
    assert (off <= np.asarray(bound.trace) * (1 + 1e-9) + 1e-13).all()
    error = np.linalg.norm(grads[1] - grads[0], axis=1)
    assert bound.gradient.shape == error.shape
    assert (error <= np.asarray(bound.gradient) * (1 + 1e-9) + 1e-12).all()


@pytest.mark.slow
def test_a_certificate_says_something():
    """It is no looser than a few times the error, and smaller with more modes."""
    step, state, _ = CERTIFIED["adaptive"]
    model, xs = {"w": normal(8, 10, seed=5)}, normal(30, 10, seed=6)
    bounds, errors = [], []
    targets = jnp.zeros(30)
    full = etpc.compile(model, etpc.D_RTRL(window=3), inputs=xs[0], state=state, step=step)
    exact = full.value_and_grad(loss, "sum")(model, xs, targets, full.init())[1]["w"]
    for rank in (1, 2, 4):
        algo = etpc.ES_D_RTRL(rank=rank, window=3, certificate=True)
        program = etpc.compile(model, algo, inputs=xs[0], state=state, step=step)
        run = program.value_and_grad(loss, "sum")
        (_, carry), grads = run(model, xs, targets, program.init())
        (bound,) = program.certificate(carry)
        assert bound.path == "['w']"
        errors.append(np.linalg.norm(grads["w"] - exact, axis=1).sum())
        bounds.append(float(bound.gradient.sum()))
        assert sum(a.nbytes for a in jax.tree.leaves(carry.traces)) == program.memory().total - (
            program.memory().state
        )
    assert bounds[0] > bounds[1] > bounds[2] > 0
    assert errors[0] > 1e-3
    for bound, error in zip(bounds, errors, strict=True):
        assert error <= bound < 30 * error
