"""The model over a window in stages, against the model step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

from etpc.analyse import analyse
from etpc.emit._step import StepFunctions
from etpc.trace import trace
from tests.helpers import normal

T, B, I, N = 20, 3, 4, 6


def deep(p, x, state):
    """A recurrent layer, one that only follows it, and a filter of its product with a weight."""
    h, v, r = state
    h = jnp.tanh(0.5 * h + p["rec"] @ h + p["first"] @ x)
    v = 0.9 * v + p["second"] @ h
    r = 0.8 * r + jnp.tanh(v) @ p["last"]
    return {"r": r, "h": h}, (h, v, r)


def looped_back(p, x, state):
    """The first layer hears of the second a step later, so that all is one loop."""
    a, b = state
    a = jnp.tanh(p["first"] @ x + p["rec"] @ b)
    b = 0.5 * b + p["second"] @ a
    return b, (a, b)


def weights_as_states(p, x, state):
    """A weight is a state and an output as it is."""
    h, _ = state
    h = jnp.tanh(p["first"] @ x + h)
    return (h, p["rec"]), (h, p["second"])


def precisions(p, x, state):
    """Products that say how exact each of their operands is."""
    exact = jax.lax.Precision.HIGHEST, jax.lax.Precision.DEFAULT
    fed = jax.lax.dot_general(p["first"], x, (((1,), (0,)), ((), ())), precision=exact)
    h, _ = state
    return h, (jnp.tanh(fed + p["rec"] @ h), fed)


ZERO = jnp.zeros(N)
MODELS = {
    "deep": (deep, (ZERO, ZERO, jnp.zeros(2))),
    "looped back": (looped_back, (ZERO, ZERO)),
    "weights as states": (weights_as_states, (ZERO, jnp.zeros((N, N)))),
    "precisions": (precisions, (ZERO, ZERO)),
}


def parameters():
    shapes = {"first": (N, I), "rec": (N, N), "second": (N, N), "last": (N, 2)}
    return {name: 0.4 * normal(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}


def functions(name):
    step, state = MODELS[name]
    traced = trace(parameters(), jnp.zeros(I), state, step)
    return StepFunctions(analyse(traced)), traced


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "outputs"), [(1, True), (T, False), (T, True)])
@pytest.mark.parametrize("name", MODELS)
def test_a_window_is_its_steps(name, outputs, steps):
    """`tests.zoo` has states of other types, and values that are passed on."""
    step, state = MODELS[name]
    run, traced = functions(name)
    p, xs = parameters(), normal(steps, B, I, seed=9)
    state = jax.tree.map(lambda a: jnp.repeat(a[None], B, 0), state)

    def one(now, x):
        y, new = jax.vmap(step, (None, 0, 0))(p, x, now)
        return new, (y, now, new)

    @jax.jit
    def window(p, state):
        weights = run.prefix(traced.model_leaves.split(p))
        found = run.forward(weights, [xs], traced.state_leaves.split(state), outputs)
        return (found.outputs, found.taken.state, found.after, found.last), found.taken.saved

    last, (ys, olds, news) = jax.jit(lambda state: jax.lax.scan(one, state, xs))(state)
    ours, saved = window(p, state)
    expected = ys if outputs else [], olds, news, last
    for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    by_path = {op.path: value for op, value in zip(run.saved, saved, strict=True)}
    assert by_path["['first']"].shape == (steps, B, N)


def paths(run, equations):
    return [op.path for eqn in equations for op in run.analysis.ops if op.equation is eqn]


def test_a_deep_network_is_run_layer_by_layer():
    run, _ = functions("deep")
    stages = run.forward.stages
    loops = [(stage.leaves, paths(run, stage.loop)) for stage in stages if stage.leaves]
    assert loops == [((0,), ["['rec']"]), ((1,), []), ((2,), [])]
    assert [paths(run, stage.batch) for stage in stages if stage.batch] == [
        ["['first']"],
        ["['second']"],
        ["['last']"],
    ]


def test_the_order_in_words():
    assert functions("deep")[0].forward.lines() == [
        "for all steps at once: ['first']",
        "step by step: [0] by ['rec']",
        "for all steps at once: ['second']",
        "step by step: [1]",
        "for all steps at once: ['last']",
        "step by step: [2]",
    ]


def test_what_feeds_back_is_one_loop():
    run, _ = functions("looped back")
    (loop,) = [stage for stage in run.forward.stages if stage.leaves]
    assert loop.leaves == (0, 1)
    assert sorted(paths(run, loop.loop)) == ["['rec']", "['second']"]


def test_what_grows_stays_in_the_loop():
    """Values that are small before they are spread out are not kept for a whole window."""

    def spread(w, x, h):
        return h, 0.5 * h + w @ jnp.tanh(h) * jnp.repeat(x, N)

    traced = trace(0.1 * normal(N, N), jnp.zeros(1), ZERO, spread)
    (stage,) = [s for s in StepFunctions(analyse(traced)).forward.stages if s.leaves]
    assert sum(v.size for v in stage.inputs) == 1


def test_products_with_a_batch_have_the_examples_first():
    """A transpose of each result would be a pass over it, or a loop that XLA does not vectorise."""
    run, traced = functions("deep")
    weights = run.prefix(traced.model_leaves.split(parameters()))
    text = str(
        jax.make_jaxpr(lambda xs, state: run.forward(weights, xs, state, True).after)(
            [jnp.zeros((T, B, I))], [jnp.zeros((B, n)) for n in (N, N, 2)]
        )
    )
    assert text.count("dot_general[") == 4
    assert "transpose[" not in text


def test_operands_that_change_places_are_read_as_exactly():
    run, traced = functions("precisions")
    weights = run.prefix(traced.model_leaves.split(parameters()))
    text = str(
        jax.make_jaxpr(lambda xs, state: run.forward(weights, xs, state, False).after)(
            [jnp.zeros((T, B, I))], [jnp.zeros((B, N))] * 2
        )
    )
    assert "Precision.DEFAULT, Precision.HIGHEST" in text.replace("\n", " ").replace("  ", " ")


@pytest.mark.slow
def test_sparse_products_are_done_step_by_step():
    """JAX makes an array of all entries for each vector: for a window it would be as large as all its
    steps."""
    size, steps = 100, 64
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((size, size)) < 0.2, rng.normal(size=(size, size)), 0)
    model = sparse.BCOO.fromdense(jnp.asarray(dense))

    def step(m, x, h):
        return h, 0.5 * h + jnp.tanh(m @ x)

    traced = trace(model, jnp.zeros(size), jnp.zeros(size), step)
    run = StepFunctions(analyse(traced))
    assert [stage.leaves for stage in run.forward.stages if stage.batch] == [(0,)]
    weights = run.prefix(traced.model_leaves.split(model))

    @jax.jit
    def news(xs, h):
        return run.forward(weights, [xs], [h], False).after[0]

    xs, h = normal(steps, B, size), jnp.zeros((B, size))
    compiled = news.lower(xs, h).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < steps * B * model.nse * 8 / 4
    now = h
    for x, found in zip(xs, news(xs, h), strict=True):
        now = 0.5 * now + jnp.tanh(x @ dense.T)
        np.testing.assert_allclose(found, now, rtol=1e-12, atol=1e-12)
