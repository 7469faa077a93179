"""A compiled program: its calls agree with each other, under JAX's transformations, and it can be read."""

import copy
import dataclasses
import functools
import inspect
import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc._jax import is_key
from etpc.analyse import analyse
from etpc.plan import plan
from etpc.trace import trace
from tests import helpers, test_online
from tests.helpers import arrays
from tests.marks import few

T, B, I, O = 6, 3, 2, 3
close = functools.partial(helpers.close, tolerance=1e-10)
ES = etpc.ES_D_RTRL(decay=0.7, window=2)
D = etpc.D_RTRL(window=2)


class Net(eqx.Module):
    """Recurrent, with noise from a key, an integer input, a counter, and a dict as output."""

    win: jax.Array
    rec: jax.Array
    bias: jax.Array
    out: jax.Array
    spare: jax.Array
    name: str = "net"

    def __call__(self, x, state):
        drive = self.win @ x["x"] + self.rec @ jnp.tanh(state["h"]) + x["flag"] * self.bias
        key, used = jax.random.split(state["key"])
        noise = jax.random.normal(used, (O,), state["h"].dtype)
        h = state["h"] * jnp.array([0.5, 0.6, 0.7]) + drive + jnp.asarray(0.1) * noise
        y = {"rate": self.out @ jnp.tanh(h), "count": state["count"]}
        return y, {"h": h, "key": key, "count": state["count"] + 1}

    def init_state(self):
        return {"h": jnp.zeros(O), "key": jax.random.key(3), "count": jnp.zeros((), jnp.int32)}


def build():
    rng = np.random.default_rng(0)
    shapes = [(O, I), (O, O), (O,), (1, O), (2,)]
    return Net(*(jnp.asarray(rng.normal(size=s)) for s in shapes))


MODEL = build()
ONE = {"x": jnp.zeros(I), "flag": jnp.zeros((), jnp.int32)}


def data(batch=None, steps=T, seed=1):
    rng = np.random.default_rng(seed)
    lead = (steps,) if batch is None else (steps, batch)
    xs = {
        "x": jnp.asarray(rng.normal(size=(*lead, I))),
        "flag": jnp.asarray(rng.integers(0, 3, lead), jnp.int32),
    }
    return xs, jnp.asarray(rng.normal(size=(*lead, 1)))


def loss(y, target):
    return jnp.sum((y["rate"] - target) ** 2)


@functools.cache
def program_of(algo=D):
    return etpc.compile(MODEL, algo, inputs=ONE)


def at(tree, t):
    return jax.tree.map(lambda a: a[t], tree)


# --- the same thing in several ways ---------------------------------------------------------------

RANK = etpc.ES_D_RTRL(rank=1, window=1)
SEVERAL_WAYS = {
    "D": D,
    "ES": ES,
    "RTRL": etpc.RTRL(window=2),
    "rank": RANK,
    "exact": etpc.D_RTRL(window=1, backprop="full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, B])
@pytest.mark.parametrize("algo", SEVERAL_WAYS.values(), ids=SEVERAL_WAYS)
def test_calls_scan_and_value_and_grad_agree(algo, batch):
    """Calls as a training loop of one's own has them: `jax.grad` around a `lax.scan` of calls."""
    program, (xs, targets) = program_of(algo), data(batch)
    start = program.init(batch)
    (value, carry), grads = program.value_and_grad(loss, "sum")(MODEL, xs, targets, start)
    assert isinstance(grads, Net)
    assert grads.name is None
    assert all(jnp.abs(g).max() > 1e-3 for g in arrays(grads)[:4])
    assert not grads.spare.any()
    parameters, rest = eqx.partition(MODEL, eqx.is_inexact_array)

    def calls(model, xs, carry):
        after, ys = jax.lax.scan(lambda c, x: program(model, x, c)[::-1], carry, xs)
        return ys, after

    # A scan is one window, which changes the gradient of the others.
    ways = (calls, program.scan) if algo in (D, ES, SEVERAL_WAYS["RTRL"]) else (calls,)
    outputs = []
    for run in ways:

        def total(parameters, run=run):
            ys, after = run(eqx.combine(parameters, rest), xs, start)
            return loss(ys, targets) / (batch or 1), (after, ys)

        (found, (after, ys)), found_grads = jax.value_and_grad(total, has_aux=True)(parameters)
        assert float(found) == pytest.approx(float(value), rel=1e-12)
        close(arrays(found_grads), arrays(grads))
        close(after, carry)
        outputs.append(ys)
    close(outputs[0], outputs[-1])
    assert set(outputs[0]) == {"rate", "count"}
    assert outputs[0]["rate"].shape == (*xs["flag"].shape, 1)


def test_the_model_runs_as_it_does_alone():
    program, (xs, _) = program_of(), data()
    ys, carry = program.scan(MODEL, xs, program.init())
    state = MODEL.init_state()
    for t in range(T):
        y, state = MODEL(at(xs, t), state)
        close(at(ys, t), y)
    close(carry.state, state)
    assert int(carry.state["count"]) == T


@pytest.mark.slow
def test_cotangents_of_a_carry_are_dropped():
    program, (xs, _) = program_of(), data()
    grads = eqx.filter_grad(
        lambda m: (
            sum(a.sum() for a in program(m, at(xs, 0), program.init())[1].traces[0])
            + program(m, at(xs, 0), program.init())[1].state["h"].sum()
        )
    )(MODEL)
    assert not any(g.any() for g in arrays(grads))


# --- transformations ------------------------------------------------------------------------------


@pytest.mark.slow
def test_vmap_of_one_stream_is_a_batch():
    program, (xs, targets) = program_of(), data(B)
    run = program.value_and_grad(loss, "sum")
    batched = program.init(B)
    (value, carry), grads = run(MODEL, xs, targets, batched)
    each = etpc.Carry(batched.state, batched.traces, batched.fresh, batched.program, False)
    (values, carries), many = jax.vmap(lambda x, t, c: run(MODEL, x, t, c), in_axes=(1, 1, 0))(
        xs, targets, each
    )
    assert float(values.mean()) == pytest.approx(float(value), rel=1e-12)
    close([g.mean(0) for g in arrays(many)], arrays(grads))
    close((carries.state, carries.traces), (carry.state, carry.traces))


def online_gradient(model, algo, steps):
    """Of a model whose transitions depend on data, so that a rank of one is an approximation."""
    program, (xs, targets) = test_online.program_of(model, algo), test_online.data(steps)
    run, carry = program.value_and_grad(test_online.loss), program.init(test_online.B)
    return program, xs, targets, run(model, xs, targets, carry)[1]


@pytest.mark.slow
def test_gradients_of_windows_in_a_scan():
    """`jax.grad` around a `lax.scan` of windows, which then are those of the program."""
    model, algo = test_online.RECURRENT, etpc.ES_D_RTRL(rank=1, window=2)
    program, xs, targets, expected = online_gradient(model, algo, 6)
    parameters, rest = eqx.partition(model, eqx.is_inexact_array)

    def total(parameters):
        def body(carry, given):
            ys, carry = program.scan(eqx.combine(parameters, rest), given[0], carry)
            return carry, jax.vmap(jax.vmap(test_online.loss))(ys, given[1]).mean()

        pieces = jax.tree.map(lambda a: a.reshape(3, 2, *a.shape[1:]), (xs, targets))
        return jax.lax.scan(body, program.init(test_online.B), pieces)[1].mean()

    grads = jax.jit(jax.grad(total))(parameters)
    close(jax.tree.leaves(grads), jax.tree.leaves(expected))
    other = online_gradient(model, RANK, 6)[-1]
    assert jnp.abs(other.rec - expected.rec).max() > 1e-6


# --- windows --------------------------------------------------------------------------------------


WINDOWS = {
    "D": (etpc.D_RTRL(), {20: 20, 26: 13, 37: 16, 48: 16, 10: 10}),
    "decay": (etpc.ES_D_RTRL(decay=0.9), {20: 20, 26: 13, 37: 16}),
    "given": (etpc.D_RTRL(window=16), {20: 16, 26: 16, 10: 10}),
    "exact": (etpc.D_RTRL(backprop="full"), {20: 16, 26: 16, 10: 10}),
    "rank": (etpc.ES_D_RTRL(rank=1), {20: 20, 26: 13, 37: 16, 10: 10}),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_window_for(case):
    """Near the one that is shown where windows are cut as the traces are."""
    algo, expected = WINDOWS[case]
    # A rank where the trace is no sum of filtered inputs, for which the window does not matter.
    net = test_online.RECURRENT if case == "rank" else None
    program = program_of(algo) if net is None else test_online.program_of(net, algo)
    assert "window 16" in str(program)
    assert {steps: program.window_for(steps) for steps in expected} == expected
    window_for = inspect.unwrap(etpc.Program.window_for)
    assert window_for(program, np.int64(26)) == expected[26]
    with pytest.raises(etpc.InputError, match="steps must be an int >= 1, not 0"):
        program.window_for(0)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "windows"), [("exact", (16, 10, 20)), ("rank", (20, 10, 16))])
def test_the_window_of_window_for_is_the_window_used(case, windows):
    """20 steps: full windows of 16 and 4, and not one of 20, nor two of 10; under a rank one of 20."""
    algo, expected = WINDOWS[case]
    assert windows[0] == expected[20]
    found, *others = (
        online_gradient(test_online.RECURRENT, rule, 20)[-1]
        for rule in (algo, *(dataclasses.replace(algo, window=w) for w in windows))
    )
    close(jax.tree.leaves(found), jax.tree.leaves(others[0]))
    for other in others[1:]:
        assert jnp.abs(found.rec - other.rec).max() > 1e-6


def test_each_example_of_a_batch_has_noise_of_its_own():
    carry = program_of().init(B)
    keys = np.asarray(jax.random.key_data(carry.state["key"]))
    assert len({tuple(k) for k in keys}) == B


@pytest.mark.parametrize("batch", [None, 5])
@pytest.mark.parametrize(
    ("algo", "row"),
    [
        *((algo, None) for algo in (D, ES, RANK, etpc.RTRL())),
        (etpc.D_RTRL(window=2, lookback=5), "last steps"),
        (etpc.TBPTT(5, every=2), "last steps"),
        (etpc.CreditRTRL(q=2), "directions"),
    ],
)
def test_memory_is_that_of_the_carry(algo, row, batch):
    program = program_of(algo)
    carry, memory = program.init(batch), program.memory(batch)
    traces = [sum(a.nbytes for a in trace) for trace in carry.traces]
    if row is None:
        assert [*memory.traces] == [*zip((op.path for op in program.ops), traces, strict=True)]
    # a key has no size that JAX promises
    state = carry.state["h"].nbytes + carry.state["count"].nbytes + carry.fresh.nbytes
    others = sum(
        a.nbytes
        for a in jax.tree.leaves((carry.shared, carry.each, carry.lookback))
        if not is_key(a)
    )
    assert memory.state == state
    assert memory.total == state + sum(traces) + others
    assert (memory.directions > 0) == (row == "directions")
    assert (memory.lookback > 0) == (row == "last steps")
    assert (row is None) or f"\n{row} " in str(memory)
    assert f"{memory.total:,} bytes" in str(memory)
    assert ("one example" if batch is None else "batch size 5") in str(memory)


# --- to look at -----------------------------------------------------------------------------------


def test_print():
    program = program_of()
    text = str(program)
    assert repr(program) == text
    assert "D_RTRL(window=2" in text
    assert "3 hidden states: ['h']" in text
    shapes = {}
    for op in program.ops:
        (row,) = [line for line in text.splitlines() if line.startswith(f"{op.path} ")]
        assert op.kind in row
        assert "x".join(map(str, op.trace_shape)) in row
        assert (op.states, op.block, op.exact) == (("['h']",), 1, False)
        shapes[op.path] = op.kind, op.trace_shape
    assert shapes.keys() == {".win", ".rec", ".bias"}
    assert shapes[".win"] == ("dot_general", (O, I))
    assert shapes[".bias"][1] == (O,)
    assert "hidden ['h'] -> .rec -> hidden ['h']" in text
    assert "approximate" in text
    assert "exact" in str(program_of(etpc.RTRL()))
    assert all(op.exact and op.block == O for op in program_of(etpc.RTRL()).ops)
    assert "decay 0.7" in str(program_of(ES))


def test_graph():
    graph = program_of().graph
    kinds = {kind: [] for kind in ("input", "parameter", "op", "state", "output")}
    for node, given in graph.nodes(data=True):
        kinds[given["kind"]].append(given["path"])
        assert node[0] == given["kind"]
    assert sorted(kinds["input"]) == ["['flag']", "['x']"]
    assert set(kinds["parameter"]) == {".win", ".rec", ".bias", ".out", ".spare"}
    assert kinds["state"] == ["['h']"]
    assert sorted(kinds["output"]) == ["['count']", "['rate']"]
    assert sorted(kinds["op"]) == [".bias", ".out", ".rec", ".win"]
    names = {given["path"]: n for n, given in graph.nodes(data=True) if given["kind"] == "op"}
    state = ("state", "['h']")
    assert graph.edges[state, names[".rec"]]["cut"] is True
    assert graph.edges[state, names[".out"]]["cut"] is False
    assert graph.edges[state, state]["cut"] is False
    assert graph.edges[names[".win"], state]["cut"] is False
    assert graph.edges[("input", "['x']"), names[".win"]]["cut"] is False
    assert not any(given["cut"] for *_, given in program_of(etpc.RTRL()).graph.edges(data=True))


def test_groups():
    def step(model, x, state):
        a, b, c = state
        a = 0.5 * a + model["w"] * x
        b = 0.5 * b + a
        c = 0.5 * c + model["v"] * x
        return a + b + c, (a, b, c)

    model = {"w": jnp.ones(2), "v": jnp.ones(2)}
    program = etpc.compile(model, inputs=jnp.zeros(2), state=(jnp.zeros(2),) * 3, step=step)
    found = [(g.states, g.ops, g.block) for g in program.groups]
    assert found == [(("[0]", "[1]"), ("['w']",), 2), (("[2]",), ("['v']",), 1)]


def test_stages_can_be_used_alone():
    step = trace(MODEL, ONE)
    text = str(step)
    for path in (".win", "['x']", "['h']", "['key']", "['rate']"):
        assert path in text
    assert "dot_general" in text
    assert "test_program.py" in text
    analysis = analyse(step)
    assert "analysis of 3 hidden states, D has 3 entries" in str(analysis)
    assert "escapes: hidden ['h'] -> .rec -> hidden ['h']" in str(analysis)
    made = plan(analysis, D)
    assert str(made).startswith("D_RTRL(window=2")
    assert "t0 = Full float64[3 x 1]  feeds (.win)" in str(made)
    assert "no trace for .out, dot_general: it reaches no hidden state" in str(made)
    assert "OpPlan(.win, dot_general, block=1, exact=False)" in repr(made.ops)


DECAY = etpc.ES_D_RTRL(decay=0.9)


@pytest.mark.parametrize("algo", few([etpc.D_RTRL(window=2), DECAY, etpc.ES_D_RTRL(rank=1)], DECAY))
def test_a_weight_without_inputs(algo):
    step = lambda m, x, h: (0.9 * h + m["none"] @ x[:0] + m["w"] @ x,) * 2
    model = {"none": jnp.zeros((5, 0)), "w": jnp.ones((5, 3))}
    xs = jnp.ones((6, 3))
    program = etpc.compile(model, algo, inputs=xs[0], state=jnp.zeros(5), step=step)
    run = program.value_and_grad(lambda y, t: jnp.sum(y**2), "sum")
    _, grads = run(model, xs, jnp.zeros(6), program.init())
    assert grads["none"].shape == (5, 0)
    assert jnp.abs(grads["w"]).min() > 0


@pytest.mark.parametrize("make", [test_online.program_of, test_online.learner_of])
def test_a_copy_is_itself_and_no_pickle(make):
    held = make() if make is test_online.program_of else make(test_online.program_of(), 2)
    assert copy.copy(held) is held
    assert copy.deepcopy({"held": held})["held"] is held
    with pytest.raises(
        etpc.UnsupportedError, match=r"cannot be pickled\. Make it anew .*etpc\.save"
    ):
        pickle.dumps(held)


def test_a_carry_that_is_donated_is_a_copy():
    """Of the state that was given, which may hold an array twice, and a key."""
    zero, key = jnp.zeros(2), jax.random.key(0)

    def step(w, x, state):
        a, b, key = state
        a = 0.5 * a + w * x
        return a + b, (a, 0.5 * b, key)

    program = etpc.compile(jnp.ones(2), inputs=zero, state=(zero, zero, key), step=step)
    run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2), "sum")
    donating = jax.jit(lambda w, xs, carry: run(w, xs, xs, carry), donate_argnums=2)
    xs = jnp.arange(6.0).reshape(3, 2)
    for _ in range(2):
        (loss, _), grads = donating(jnp.ones(2), xs, program.init())
    (expected, _), expected_grads = run(jnp.ones(2), xs, xs, program.init())
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(grads, expected_grads, rtol=1e-12)


# --- which program a carry belongs to -------------------------------------------------------------


class Named(eqx.Module):
    """A state with a function in a static field, whose text names a place in memory."""

    h: jax.Array
    f: Any = eqx.field(static=True, default=jnp.tanh)
    g: Any = eqx.field(static=True, default_factory=lambda: lambda a: a)


@jax.custom_jvp
def soft(v):
    """Its rule calls it again."""
    return jnp.tanh(v)


soft.defjvp(lambda primals, tangents: (soft(*primals), (1 - soft(*primals) ** 2) * tangents[0]))


def damped(factor):
    """The identity, with a derivative of its own."""
    f = jax.custom_vjp(lambda v: v)
    f.defvjp(lambda v: (v, None), lambda _, ct: (factor * ct,))
    return f


def activation(
    v,
    spike=etpc.surrogate.ReluGrad(),
    identity=damped(0.5),
    gain=0.5,
    length=2,
    shift=(0.1, 0.2, 0.3, 0.4),
    swapped=False,
    reverse=False,
    branch=jnp.sin,
    key=3,
):
    """A loop, a branch, constants and rules of its own, each of which may be edited."""
    c, _ = jax.lax.scan(lambda c, _: (soft(gain * c), None), identity(v), None, length=length)
    d = jax.lax.cumsum(v + jnp.asarray(shift), reverse=reverse)
    c = jax.lax.cond(v[0] > 0, branch, jnp.cos, d - c if swapped else c - d)
    return c + spike(v) + jax.random.normal(jax.random.key(key), (4,))


def wired(
    order=(1, 2, 3, 0), *, scale=1.0, twice=False, matrix=True, algo=D, weights="all", **edit
):
    """A program of four states that read each other in an order."""

    def step(m, x, state):
        h = m["a"] * state.h[m["order"]] + m["w"] @ x
        if twice:
            h = h + m["w"] @ x[::-1]
        if matrix:
            h = h + m["rec"] @ activation(state.h, **edit)
        return h, Named(h, state.f, state.g)

    model = {
        "a": scale * jnp.linspace(0.1, 0.4, 4),
        "w": scale * jnp.ones((4, 2)),
        "rec": scale * jnp.eye(4),
        "order": jnp.asarray(order),
    }
    if weights == "some":
        weights = lambda m: (m["a"], m["w"])
    return etpc.compile(
        model,
        algo,
        inputs=jnp.zeros(2),
        state=Named(jnp.zeros(4), g=lambda a: a),
        step=step,
        weights=weights,
    )


def program_id(program):
    return program.init().program


OTHERS = {
    "another order, with blocks of the same size": dict(order=(2, 3, 1, 0)),
    "another order, with smaller blocks": dict(order=(1, 0, 3, 2)),
    "a weight that is used twice": dict(twice=True),
    "without a matrix": dict(matrix=False),
    "a weight without a trace": dict(weights="some"),
    "another rule": dict(algo=ES),
    "another window": dict(algo=etpc.D_RTRL(window=3)),
    "another surrogate": dict(spike=etpc.surrogate.ReluGrad(width=0.5)),
    "another backward rule": dict(identity=damped(0.25)),
    "another number in a loop": dict(gain=0.25),
    "another length of a loop": dict(length=3),
    "another constant": dict(shift=(0.1, 0.2, 0.3, 0.5)),
    "operands swapped": dict(swapped=True),
    "another parameter of an operation": dict(reverse=True),
    "another branch": dict(branch=jnp.exp),
    "another key": dict(key=4),
}


@functools.cache
def wired_once():
    return wired()


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_the_carry_of_another_program_is_refused(case):
    program, other = wired_once(), wired(**OTHERS[case])
    with pytest.raises(
        etpc.InputError, match=r"carry belongs to another program.*this program's `init`"
    ):
        program.arguments.check_carry(other.init())


def test_constants_of_any_layout_are_told_apart_by_their_values():
    """The parts of a complex one are strided."""

    def of_constant(a):
        step = lambda w, x, h: ((a @ (h + w * x)).real.sum(), 0.5 * h + w * x)
        return program_id(
            etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=jnp.zeros(3), step=step)
        )

    constant = np.array([[0.5, 0.3j, 1.0], [-0.2, 0.4 + 0.1j, 2.0]])
    same = of_constant(constant)
    assert (
        same
        == of_constant(np.asfortranarray(constant))
        == of_constant(np.repeat(constant, 2, 0)[::2])
    )
    assert same != of_constant(constant.conj())
    assert same != of_constant(np.repeat(constant.real, 2, 1)[:, ::2])


@pytest.mark.slow
def test_a_carry_of_the_same_program_compiled_again():
    """With other values of the parameters too, other function objects, and in another process."""
    found = {program_id(p) for p in (wired(), wired(scale=-3.0), wired(identity=damped(0.5)))}
    for seed in ("1", "2"):
        code = "import tests.conftest; from tests.test_program import *; print(program_id(wired()))"
        found.add(helpers.in_a_process("-c", code, PYTHONHASHSEED=seed))
    assert len(found) == 1
