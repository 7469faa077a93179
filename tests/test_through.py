"""A linear memory that all outputs of a product share commutes with the product: exact gradients through it.

The oracle is BPTT of the model itself, by `jax.grad`; and, where a rule leaves something out, BPTT of the step that the
rule sees and the definition.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc import nn
from etpc.plan import PASSES
from tests.helpers import distance, normal
from tests.marks import few, first

T, I, N, O, B = 11, 3, 5, 4, 2
TOLERANCE = 1e-12
stop = lax.stop_gradient
spike = etpc.surrogate.ReluGrad()
THROUGH = etpc.D_RTRL(through=True)
WITHOUT = tuple(name for name in PASSES if name != "commute")


def w(*shape, seed=0, scale=1.0):
    return scale * normal(*shape, seed=seed + 17) / shape[-1] ** 0.5


class Model(eqx.Module):
    """A step with parameters, an initial state, and inputs of some shape."""

    p: dict
    start: tuple = eqx.field(static=True)
    run: object = eqx.field(static=True)
    shape: tuple = eqx.field(static=True, default=(I,))

    def init_state(self):
        return jax.tree.map(
            lambda s: jnp.zeros(*s) if isinstance(s, tuple) else s,
            list(self.start),
            is_leaf=lambda s: isinstance(s, tuple),
        )

    def __call__(self, x, state):
        y, state = self.run(self.p, x, state)
        return y, list(state)


def lif(v, current, d=0.9):
    """Reset in its own step, by a constant."""
    v = d * v + current
    z = spike(v - 0.4)
    return z, v - stop(z)


def delayed(v, current, d=0.9):
    """The same in the style in which the reset comes a step later."""
    v = d * (v - stop(spike(v - 0.4))) + current
    return spike(v - 0.4), v


def readout(p, x, s, neuron=lif, leak=0.8):
    v, r = s
    z, v = neuron(v, p["w"] @ x)
    r = leak * r + p["o"] @ z
    return r, (v, r)


def learned_leak(p, x, s):
    return readout(p, x, s, leak=jax.nn.sigmoid(p["k"]))


def styled(p, x, s):
    return readout(p, x, s, neuron=delayed)


def two_classes(p, x, s):
    return readout(p, x, s, leak=jnp.array([0.8, 0.8, p["k"], p["k"]]))


def biased(p, x, s):
    v, r = s
    z, v = lif(v, p["w"] @ x)
    r = p["k"] * r + (p["o"] * jnp.array([[1.0, 0.0, 1.0, 1.0, 1.0]])) @ z + p["b"]
    return jnp.tanh(r), (v, r)


def read_twice(p, x, s):
    """The readout is read before and after its step, with and without another factor."""
    v, r = s
    z, v = lif(v, p["w"] @ x)
    new = 0.8 * r + p["o"] @ z
    return jnp.tanh(new) + jnp.sin(r) + 0.3 * jnp.cos(0.5 * new + x[0]), (v, new)


def encoder(p, x, s):
    """Weights before neurons that share a time constant, and a readout without memory."""
    (v,) = s
    z, v = lif(v, p["u"] @ jnp.tanh(p["w"] @ x), d=jax.nn.sigmoid(2 + p["k"]))
    return p["o"] @ z, (v,)


def lower(p, x, s):
    """Two spiking layers, and a readout without memory."""
    v, u = s
    z, v = lif(v, p["w"] @ x)
    z, u = lif(u, p["u"] @ z, d=0.85)
    return p["o"] @ z, (v, u)


def products(p, x, s):
    """A product of a product, which is kept apart as its output is read too."""
    v, r = s
    z, v = lif(v, p["w"] @ x)
    a = p["u"] @ z
    r = 0.8 * r + p["o"] @ a
    return r + a[:O], (v, r)


def chain(p, x, s):
    """Analog layers, each of which reads the potentials of the one before by a product."""
    v, u, r = s
    v = 0.9 * v + p["u"] @ jnp.tanh(p["w"] @ x)
    u = 0.7 * u + p["r"] @ v
    r = 0.8 * r + p["o"] @ u
    return r, (v, u, r)


def alpha(p, x, s):
    """A readout of two states, one after the other."""
    v, i, r = s
    z, v = lif(v, p["w"] @ x)
    i = 0.7 * i + p["o"] @ z
    r = 0.8 * r + i
    return r * jnp.tanh(i), (v, i, r)


def packed(p, x, s):
    """All states in one array, and the readout first."""
    (s,) = s
    r, v = s[:O], s[O:]
    z, v = lif(v, p["w"] @ x)
    r = 0.8 * r + p["o"] @ z
    return r, (jnp.concatenate([r, v]),)


def convolved(p, x, s):
    v, r = s
    z, v = lif(v, lax.conv(x[None, None], p["w"], (1,), "SAME")[0])
    r = 0.8 * r + lax.conv(z[None], p["o"], (1,), "SAME")[0]
    return r, (v, r)


def gathered(p, x, s):
    v, r = s
    z, v = lif(v, p["w"] @ x)
    r = 0.8 * r + p["o"] @ z[jnp.array([3, 3, 0, 1, 4])]
    return r, (v, r)


def complex_leak(p, x, s):
    """A real product into complex memory."""
    v, r = s
    z, v = lif(v, p["w"] @ x)
    r = jnp.exp(1j * p["k"] - 0.2) * r + p["o"] @ z
    return r.real * jnp.sin(r.imag), (v, r)


def complex_product(p, x, s):
    """A complex product of complex data."""
    v, r = s
    z, v = lif(v, p["w"] @ x)
    r = jnp.exp(1j * p["k"] - 0.2) * r + p["c"] @ (z * (1 + 0.5j))
    return r.real * jnp.sin(r.imag) + jnp.abs(r) ** 2, (v, r)


def complex_weight(p, x, s):
    """A complex product of real data, into memory that is conjugated at each step."""
    v, r = s
    z, v = lif(v, p["w"] @ x)
    r = jnp.exp(1j * p["k"] - 0.2) * r.conj() + p["c"] @ z
    return r.real * jnp.sin(r.imag), (v, r)


def batched(p, x, s):
    """A batch within the model."""
    v, r = s
    z, v = lif(v, x @ p["w"].T)
    r = 0.8 * r + z @ p["o"].T
    return r, (v, r)


def sparse(p, x, s):
    v, r = s
    z, v = lif(v, p["w"] @ x)
    r = 0.8 * r + p["sparse"](z)
    return r, (v, r)


def deep(p, x, s):
    """Two spiking layers and a leaky readout: what enters the first passes a non-linearity with memory behind it."""
    v, u, r = s
    z, v = lif(v, p["w"] @ x)
    z, u = lif(u, p["u"] @ z, d=0.85)
    r = 0.8 * r + p["o"] @ z
    return r, (v, u, r)


def recurrent(p, x, s):
    v, z, r = s
    z, v = lif(v, p["w"] @ x + p["r"] @ z)
    r = 0.8 * r + p["o"] @ z
    return r, (v, z, r)


def adaptive(p, x, s):
    """Neurons whose potential moves alike, with adaptation behind it."""
    v, a = s
    v = 0.9 * v + p["w"] @ x - stop(spike(v - 0.4))
    a = p["d"] * a + 0.3 * jnp.tanh(v)
    return p["o"] @ spike(v - a), (v, a)


def parameters():
    p = dict(w=2 * w(N, I), o=w(O, N, seed=1), u=1.5 * w(N, N, seed=2), k=jnp.asarray(0.7))
    return p | dict(b=w(O, seed=3), r=w(N, N, seed=4), d=jnp.linspace(0.6, 0.9, N))


def model(run, *start, shape=(I,), **more):
    return Model(parameters() | more, start, run, shape)


V, R = (N,), (O,)
C = ((O,), complex)
EXACT = {
    "a leaky readout": model(readout, (V,), (R,)),
    "the other style": model(styled, (V,), (R,)),
    "a learned leak": model(learned_leak, (V,), (R,)),
    "two classes": model(two_classes, (V,), (R,)),
    "bias and mask": model(biased, (V,), (R,)),
    "read twice": model(read_twice, (V,), (R,)),
    "an encoder": model(encoder, (V,)),
    "the lower layer": model(lower, (V,), (V,)),
    "chain": model(chain, (V,), (V,), (R,)),
    "products": model(products, (V,), (R,)),
    "two states": model(alpha, (V,), (R,), (R,)),
    "packed": model(packed, ((O + N,),)),
    "convolution": model(
        convolved,
        ((2, 6),),
        ((3, 6),),
        shape=(6,),
        w=w(2, 1, 3, scale=2.0),
        o=w(3, 2, 3, seed=1),
    ),
    "gathered": model(gathered, (V,), (R,)),
    "complex memory": model(complex_leak, (V,), C),
    "complex product": model(complex_product, (V,), C, c=w(O, N, seed=5) + 1j * w(O, N, seed=6)),
    "complex weight": model(complex_weight, (V,), C, c=w(O, N, seed=5) + 1j * w(O, N, seed=6)),
    "a batch within": model(batched, ((2, N),), ((2, O),), shape=(2, I)),
    "sparse": model(sparse, (V,), (R,), sparse=nn.SparseLinear(N, O, 0.7, key=jax.random.key(0))),
}
PARTLY = {
    "deep": model(deep, (V,), (V,), (R,)),
    "recurrent": model(recurrent, (V,), (V,), (R,)),
    "adaptive": model(adaptive, (V,), (V,)),
}


def loss(y, t):
    return jnp.sum(jnp.abs(y) ** 2 * t)


def data(net, batch=B):
    return 1.5 * normal(T, batch, *net.shape), 1 + normal(T, batch, seed=1) ** 2


BEGINS = np.zeros((T, B), bool)
BEGINS[4, 1] = BEGINS[7, 0] = True


@functools.cache
def wanted(name, begins=False):
    net = (EXACT | PARTLY)[name]
    options = dict(begins=jnp.asarray(BEGINS)) if begins else {}
    return etpc.bptt(net, *data(net), loss, batch_size=B, reduction="sum", **options)[1]


def program_of(net, rule, **options):
    return etpc.compile(net, rule, inputs=jnp.zeros(net.shape), **options)


def gradient(program, net, begins=False):
    options = dict(begins=jnp.asarray(BEGINS)) if begins else {}
    run = program.value_and_grad(loss, reduction="sum")
    return run(net, *data(net), program.init(B), **options)[1]


def exact(program):
    return {c.claim for c in program.claims.values()} - {"unused"} == {"exact"}


@pytest.mark.parametrize("name", few(EXACT, "packed"))
def test_the_gradient_is_that_of_bptt_and_says_so(name):
    net = EXACT[name]
    assert not exact(program_of(net, etpc.D_RTRL()))
    assert distance(gradient(program_of(net, etpc.D_RTRL()), net), wanted(name)) > 1e-3
    program = program_of(net, THROUGH)
    assert exact(program)
    assert distance(gradient(program, net), wanted(name)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "options"),
    few(
        [
            (name, options)
            for name in EXACT
            for options in (dict(window=1), dict(window=3), dict(window=3, backprop="full"))
        ],
        ("read twice", dict(window=3)),
    ),
)
def test_in_windows_of_any_length_with_streams_that_begin_inside(name, options):
    net = EXACT[name]
    program = program_of(net, etpc.D_RTRL(through=True, **options))
    assert distance(gradient(program, net, begins=True), wanted(name, True)) < TOLERANCE


UNCUT = {"e-prop": etpc.EProp(window=3), "RTRL": etpc.RTRL(window=3), "SnAp": etpc.SnAp(2)}


@pytest.mark.parametrize(
    ("name", "rule"),
    few(
        [(name, rule) for name in EXACT | PARTLY for rule in (*UNCUT, "D-RTRL")],
        ("recurrent", "e-prop"),
    ),
)
def test_as_a_pass_it_changes_no_gradient_and_no_claim(name, rule):
    net, algorithm = (EXACT | PARTLY)[name], (UNCUT | {"D-RTRL": etpc.D_RTRL(window=3)})[rule]
    program, other = program_of(net, algorithm), program_of(net, algorithm, passes=WITHOUT)
    alone = program_of(net, algorithm, passes=("commute",))
    for each in (program, alone):
        assert distance(gradient(each, net, True), gradient(other, net, True)) < TOLERANCE
        claims = [{path: c.claim for path, c in p.claims.items()} for p in (each, other)]
        assert claims[0] == claims[1]
    numbers = lambda p: p.memory().total
    assert numbers(program) <= numbers(other)


@pytest.mark.parametrize("rule", first([THROUGH, etpc.EProp()]), ids=str)
@pytest.mark.parametrize("name", few(["a learned leak", "two states", "packed"], "a learned leak"))
def test_float32_where_jax_promotes_no_dtype_by_itself(name, rule):
    narrow = lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a
    net, state = jax.tree.map(narrow, (EXACT[name], EXACT[name].init_state()))
    xs, ts = map(narrow, data(net))
    with jax.numpy_dtype_promotion("strict"):
        step = lambda model, x, s: model(x, s)
        program = etpc.compile(net, rule, inputs=xs[0, 0], state=state, step=step)
        got = program.value_and_grad(loss, "sum")(net, xs, ts, program.init(B))[1]
    assert distance(got, jax.tree.map(narrow, wanted(name))) < 1e-5


def test_where_it_is_smaller():
    """One number for each weight in the place of one for each output that it reaches."""
    fired = lambda name, rule: "commute" in program_of((EXACT | PARTLY)[name], rule).passes.fired
    assert fired("a leaky readout", etpc.EProp())
    assert fired("recurrent", etpc.EProp())
    assert not fired("adaptive", etpc.D_RTRL())
    assert not fired("a leaky readout", etpc.RTRL(rank=1))
    assert not fired("a leaky readout", etpc.D_RTRL())
    program = program_of(EXACT["a leaky readout"], etpc.EProp())
    assert dict(program.memory().traces)[".p['w']"] == 8 * N * I
    assert program.plan.step.added == ()
    assert [path for path, _ in program.plan.analysis.step.added] == [
        "filtered(.p['o'])",
        "filtered(.p['w'])",
    ]


# --- what is left out ---


@pytest.mark.parametrize("name", few(PARTLY, "adaptive"))
@pytest.mark.parametrize("options", first([dict(window=1), dict(window=3)]), ids=str)
def test_what_is_not_exact_says_so_and_is_the_definition(name, options):
    net, rule = PARTLY[name], etpc.D_RTRL(through=True, **options)
    program = program_of(net, rule)
    got = gradient(program, net, begins=True)
    defined = etpc.reference(
        *(net, *data(net), loss, rule),
        **dict(batch_size=B, reduction="sum", begins=jnp.asarray(BEGINS)),
    )[1]
    assert distance(got, defined) < TOLERANCE
    for path, claim in program.claims.items():
        leaf = lambda tree, path=path: tree.p[path.split("'")[1]]
        if claim.claim == "exact":
            assert distance(leaf(got), leaf(wanted(name, True))) < TOLERANCE
    approximate = {path for path, c in program.claims.items() if c.claim == "approximate"}
    assert approximate == {"deep": {".p['w']"}, "recurrent": {".p['w']", ".p['r']"}}.get(
        name, set()
    )


@pytest.mark.slow
def test_further_than_the_published_rule():
    """Of the weights before two layers with memory, the gradient is nearer to that of BPTT."""
    net = PARTLY["deep"]
    cosine = lambda a, b: jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    of = lambda rule: gradient(program_of(net, rule), net).p["w"]
    before, after = (cosine(of(r), wanted("deep").p["w"]) for r in (etpc.D_RTRL(), THROUGH))
    assert after > before


REWRITTEN = "adaptive", "recurrent", "the other style"


@pytest.mark.parametrize("name", few([*EXACT, *PARTLY], *REWRITTEN))
def test_the_step_that_the_rule_sees_has_the_gradient_of_the_model(name):
    """By BPTT of both; the values are the same."""
    net = (EXACT | PARTLY)[name]
    step = program_of(net, THROUGH, passes=()).plan.analysis.step
    leaves = step.model_leaves
    xs, ts = data(net, 1)
    start = [jnp.asarray(a) for a in step.state_leaves.split(net.init_state())]

    def total(net, start):
        parameters = leaves.split(net)

        def one(state, x):
            env = step.values(parameters, step.input_leaves.split(x[0]), state)
            y = step.output_leaves.join([env[v] for v in step.outputs])
            return [env[v] for v in step.next_state], loss(y, x[1])

        zeros = [jnp.zeros(a.shape, a.dtype) for _, a in step.added]
        return lax.scan(one, [*start, *zeros], (xs[:, 0], ts[:, 0]))[1].sum()

    def plain(net, start):
        def one(state, x):
            y, state = net(x[0], state)
            return state, loss(y, x[1])

        return lax.scan(one, start, (xs[:, 0], ts[:, 0]))[1].sum()

    start = [a + 0.1 * normal(*a.shape, seed=3) for a in start]
    got, right = (eqx.filter_value_and_grad(f)(net, start) for f in (total, plain))
    assert step.added or name == "adaptive"
    assert abs(got[0] - right[0]) < TOLERANCE * abs(right[0])
    assert distance(got[1], right[1]) < TOLERANCE


# --- where it is not done ---


def own_leaks(p, x, s):
    return readout(p, x, s, leak=jax.nn.sigmoid(p["b"]))


def one_differs(p, x, s):
    return readout(p, x, s, leak=jnp.array([0.8, 0.7, p["k"], 0.6]))


def of_data(p, x, s):
    return readout(p, x, s, leak=jax.nn.sigmoid(x[0]))


def live_reset(p, x, s):
    (v,) = s
    v = 0.9 * v + p["u"] @ jnp.tanh(p["w"] @ x)
    z = spike(v - 0.4)
    return p["o"] @ z, (v - z,)


def hard_reset(p, x, s):
    (v,) = s
    v = 0.9 * v + p["u"] @ jnp.tanh(p["w"] @ x)
    z = spike(v - 0.4)
    return p["o"] @ z, (v * (1 - stop(z)),)


APART = {
    "a leak of each": model(own_leaks, (V,), (R,)),
    "other constants": model(one_differs, (V,), (R,)),
    "of data": model(of_data, (V,), (R,)),
    "live reset": model(live_reset, (V,)),
    "hard reset": model(hard_reset, (V,)),
}


@pytest.mark.parametrize("name", few(APART, "live reset"))
def test_where_the_memory_does_not_commute(name):
    net = APART[name]
    program = program_of(net, THROUGH)
    assert program.plan.analysis.step.added == ()
    assert program.claims[".p['w']"].claim != "exact"
    plain = program_of(net, etpc.D_RTRL())
    assert distance(gradient(program, net), gradient(plain, net)) == 0
    for rule in UNCUT.values():
        each = program_of(net, rule)
        (report,) = [report for report in each.passes if report.name == "commute"]
        assert not {change.path for change in report.changes} & {".p['o']", ".p['u']"}


# --- weights that move ---


def test_what_was_summed_before_an_update_is_read_with_the_new_weights():
    """The trace that is not commuted keeps the weights of then; the outputs are those of the model."""
    net = EXACT["a leaky readout"]
    xs, ts = data(net)
    moved = eqx.tree_at(lambda n: n.p["o"], net, -net.p["o"])

    def second(program):
        run = program.value_and_grad(loss, reduction="sum")
        carry = run(net, xs, ts, program.init(B))[0][1]
        ys, _ = program.scan(moved, xs, carry)
        return run(moved, xs, ts, carry)[1], ys

    (new, ys), (old, others) = (
        second(program_of(net, etpc.EProp(), passes=passes)) for passes in (None, WITHOUT)
    )
    np.testing.assert_allclose(ys, others, rtol=1e-12)
    assert distance(new.p["w"], old.p["w"]) > 0.1
    assert distance(new.p["o"], old.p["o"]) < TOLERANCE
