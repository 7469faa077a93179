"""`etpc.mark`: an identity under every transformation, and what it selects."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc._jax import etp_p
from tests.helpers import normal
from tests.zoo.check import model

W, V = normal(3, 2), normal(3, 2, seed=1)


def primitives(function, *args):
    return [eqn.primitive for eqn in jax.make_jaxpr(function)(*args).eqns]


def test_identity():
    for w in (W, W.astype(jnp.float32)):
        np.testing.assert_array_equal(etpc.mark(w), w)
        assert etpc.mark(w).dtype == w.dtype
    assert primitives(etpc.mark, W) == [etp_p]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "re"])
def test_derivatives_are_those_of_the_identity(wrap):
    function = wrap(etpc.mark)
    value, tangent = jax.jvp(function, (W,), (V,))
    np.testing.assert_array_equal(value, W)
    np.testing.assert_array_equal(tangent, V)
    value, pull = jax.vjp(function, W)
    np.testing.assert_array_equal(value, W)
    np.testing.assert_array_equal(pull(V)[0], V)
    np.testing.assert_array_equal(jax.linear_transpose(function, W)(V)[0], V)


def test_second_derivatives():
    hessian = jax.hessian(lambda w: jnp.sum(etpc.mark(w) ** 3))(W[0])
    np.testing.assert_allclose(hessian, jnp.diag(6 * W[0]), rtol=1e-14)


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap(axis):
    np.testing.assert_array_equal(jax.vmap(etpc.mark, axis, axis)(W), W)
    assert etp_p in primitives(jax.vmap(etpc.mark), W)


def test_it_is_no_part_of_the_compiled_code():
    text = jax.jit(lambda w: etpc.mark(w) + 1).lower(W).as_text()
    assert text.count("stablehlo.add") == 1
    assert "custom_call" not in text
    assert "etp" not in text.replace("etpc", "")


# --- what it selects ------------------------------------------------------------------------------


@model
def Network(x, h, win, rec, bias, out, name, mark):
    """Two layers; `win` and `out` are marked, `rec` and `bias` are not."""
    h = jnp.tanh(0.5 * h + mark(win) @ x + rec @ h + bias)
    return mark(out) @ h, h


def paths(weights=None, marks=True):
    mark = etpc.mark if marks else lambda w: w
    network = Network(normal(3, 2), normal(3, 3), normal(3), normal(1, 3), "network", mark)
    program = etpc.compile(network, inputs=jnp.zeros(2), state=jnp.zeros(3), weights=weights)
    return {op.path for op in program.ops}, dict(program.untraced)


def test_all_weights_get_traces_by_default():
    for weights in (None, "all"):
        traced, untraced = paths(weights)
        assert traced == {".win", ".rec", ".bias"}
        # Marked, but no state follows it.
        assert set(untraced) == {".out"}
        assert "reaches no hidden state" in untraced[".out"]
    assert paths(marks=False)[0] == {".win", ".rec", ".bias"}


def test_marked():
    traced, untraced = paths("marked")
    assert traced == {".win"}
    assert set(untraced) == {".rec", ".bias", ".out"}
    assert "not marked" in untraced[".rec"]
    assert "not marked" in untraced[".bias"]
    with pytest.raises(etpc.SelectionError, match=r"selects nothing.*etpc\.mark.*\"all\""):
        paths("marked", marks=False)


@pytest.mark.slow
def test_marks_that_reach_no_state():
    """A layer of Equinox below neurons, and a readout of `etpc.nn`, which marks its weight."""
    keys = jax.random.split(jax.random.key(0), 2)
    parts = (
        eqx.nn.Linear(4, 3, key=keys[0]),
        etpc.nn.LIF(3),
        etpc.nn.LowRankLinear(3, 2, 1, key=keys[1]),
    )
    model = etpc.nn.Sequential(parts)
    program = etpc.compile(model, inputs=jnp.zeros(4))
    assert {op.path for op in program.ops} >= {".layers[0].weight", ".layers[0].bias"}
    match = r"no weight a trace.*layers\[2\].*reach no hidden state.*layers\[0\]\.weight"
    with pytest.raises(etpc.SelectionError, match=match):
        etpc.compile(model, inputs=jnp.zeros(4), weights="marked")


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (lambda m: m.rec, {".rec"}),
        (lambda m: (m.rec, m.bias), {".rec", ".bias"}),
        (lambda m: [m.win, {"b": m.bias}], {".win", ".bias"}),
        (lambda m: m.out, set()),
    ],
)
def test_selector(select, expected):
    assert paths(select)[0] == expected


@pytest.mark.parametrize(
    ("select", "error", "words"),
    [
        (lambda m: (), etpc.SelectionError, "selects nothing.*lambda m"),
        (lambda m: None, etpc.SelectionError, "selects nothing.*Return one or more parameters"),
        (lambda m: m.name, etpc.SelectionError, r"selects \.name, which is no array"),
        (lambda m: 3.0, etpc.SelectionError, r"returned 3\.0, which is no parameter.*own leaves"),
        (lambda m: (m.rec, m.name), etpc.SelectionError, r"\.name"),
        (7, etpc.InputTypeError, 'None, "all", "marked" or a function.*7'),
        ("some", etpc.InputTypeError, "'some'"),
    ],
)
def test_selector_errors(select, error, words):
    with pytest.raises(error, match=words):
        paths(select)


def test_all_selector_problems_are_raised_together():
    with pytest.raises(etpc.SelectionError, match=r"(?s)2 problems.*\.name.*3\.0"):
        paths(lambda m: (m.name, 3.0))


def test_a_parameter_that_nothing_uses_cannot_be_selected():
    model = {"w": jnp.ones(2), "spare": jnp.ones(2)}

    def step(model, x, h):
        return h, 0.5 * h + model["w"] * x

    with pytest.raises(etpc.SelectionError, match=r"\['spare'\].*no operation.*[Rr]emove"):
        etpc.compile(
            model,
            inputs=jnp.zeros(2),
            state=jnp.zeros(2),
            step=step,
            weights=lambda m: (m["w"], m["spare"]),
        )


def test_marks_survive_transformations_of_the_weight_and_of_the_step():
    def step(model, x, h):
        effective = jax.vmap(lambda row: jnp.exp(row))(etpc.mark(model["w"]))
        h = jax.jit(lambda h: jax.checkpoint(jnp.tanh)(h + effective @ x + model["b"]))(h)
        return h, h

    model = {"w": W, "b": jnp.ones(3)}
    program = etpc.compile(
        model, inputs=jnp.zeros(2), state=jnp.zeros(3), step=step, weights="marked"
    )
    assert [(op.path, op.kind) for op in program.ops] == [("['w']", "dot_general")]
