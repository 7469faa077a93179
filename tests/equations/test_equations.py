"""Equations against the program: what is printed is what runs, and what cannot be written says so."""

import contextlib
import dataclasses
import io
import json
import re
from collections import Counter
from xml.etree import ElementTree

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sympy = pytest.importorskip("sympy")

import etpc  # noqa: E402
from etpc import nn  # noqa: E402
from etpc.cli import main  # noqa: E402
from etpc.draw import fragment, to_svg  # noqa: E402
from etpc.equations._functions import INTEGERS, dot  # noqa: E402
from etpc.equations._write import Text, size  # noqa: E402
from etpc.errors import EtpcError  # noqa: E402
from tests import helpers  # noqa: E402
from tests.fuzz.check import Case, drawn  # noqa: E402
from tests.helpers import cell, loss, normal  # noqa: E402
from tests.marks import few  # noqa: E402
from tests.nn.test_networks import NETWORKS  # noqa: E402
from tests.pages import ROOT  # noqa: E402

T = 7
TOLERANCE = 1e-12
SPIKE = etpc.surrogate.ReluGrad()
DRAWN, SEED = range(40), 1
RULES = {
    "d_rtrl": etpc.D_RTRL(),
    "rtrl": etpc.RTRL(),
    "decay": etpc.ES_D_RTRL(decay=0.9),
    "everywhere": etpc.ES_D_RTRL(decay=(0.9, 0.7), everywhere=True),
}
CELLS = {
    "GRU": lambda: (eqx.nn.GRUCell(2, 3, key=jax.random.key(0)), jnp.zeros(3)),
    "LSTM": lambda: (eqx.nn.LSTMCell(2, 3, key=jax.random.key(0)), (jnp.zeros(3), jnp.zeros(3))),
}


class ALIF(eqx.Module):
    w: jax.Array
    r: jax.Array
    tau: jax.Array

    def init_state(self):
        return {"v": jnp.zeros(3), "a": jnp.zeros(3)}

    def __call__(self, x, state):
        v, a = state["v"], state["a"]
        z = SPIKE(v - 1 - 0.2 * a)
        alpha = jnp.exp(-1 / self.tau)
        v = alpha * v + self.w @ x + self.r @ z - z
        a = 0.95 * a + z
        return SPIKE(v - 1 - 0.2 * a), {"v": v, "a": a}


class Everything(eqx.Module):
    """A softmax, a norm, a sort, a look-up and products of states: none of it is element by element."""

    table: jax.Array
    w: jax.Array
    kernel: jax.Array
    gain: jax.Array

    def init_state(self):
        return jnp.full(4, 0.1)

    def __call__(self, i, h):
        mixed = jax.nn.softmax(h * self.gain) + jnp.roll(h, 1) / (1 + jnp.linalg.norm(h))
        near = jnp.convolve(h, self.kernel, mode="same") + jnp.cumsum(h) / 9 + jnp.sort(h) * h.max()
        solved = jnp.linalg.solve(3 * jnp.eye(4) + jnp.outer(h, h), h)  # it has one array twice
        h = jnp.tanh(self.w @ mixed + self.table[i] + near * (h @ h) + solved)
        return h[::-1] ** 2, h


class Packed(eqx.Module):
    """Two states in one leaf, of which the second reads the new first one."""

    w: jax.Array

    def init_state(self):
        return jnp.zeros(6)

    def __call__(self, x, state):
        v, a = state[:3], state[3:]
        v = 0.9 * v + self.w @ x - a
        drive = jnp.sin(v) * 2 + v**2
        state = jnp.concatenate([v, 0.5 * a + 0.1 * drive * v])
        return state * jnp.tanh(state), state


def alif():
    return ALIF(normal(3, 2), 0.5 * normal(3, 3, seed=1), jnp.array([2.0, 5.0, 9.0]))


def dloss(y, target):
    """The derivative of `loss` by the output."""
    return jax.grad(loss, allow_int=True)(y, target)


def difference(found, wanted):
    """The largest difference of two gradients, in parts of the largest number of each parameter."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
    return max(np.abs(a - b).max(initial=0) / (1e-3 + np.abs(b).max(initial=0)) for a, b in pairs)


def run(program, model, xs, state=None):
    """The carry and the gradient of a program, and what its equations give for the same."""
    steps = len(jax.tree.leaves(xs)[0])
    targets = jnp.cos(2.0 * jnp.arange(steps))
    carry = (
        program.init() if state is None else eqx.tree_at(lambda c: c.state, program.init(), state)
    )
    (_, carry), grads = program.value_and_grad(loss, "sum")(model, xs, targets, carry)
    given = program.equations().evaluate(model, xs, targets, dloss, state)
    return carry, grads, given


@pytest.mark.parametrize("rule", few(RULES, "decay"))
@pytest.mark.parametrize("name", few(NETWORKS, "a synapse that rises, and a delay"))
def test_equations_of_layers_give_the_gradient_of_the_program(name, rule):
    layers, xs, *_ = NETWORKS[name]()
    model = nn.Sequential(layers)
    program = etpc.compile(model, RULES[rule], inputs=xs[0])
    _, grads, given = run(program, model, xs[:T])
    assert helpers.finite(grads)
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-3
    assert difference(given.gradient, grads) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["d_rtrl", "everywhere"])
def test_traces_of_a_gru_are_those_of_the_program(rule):
    model, state = CELLS["GRU"]()
    program = etpc.compile(model, RULES[rule], inputs=jnp.zeros(2), state=state, step=cell)
    carry, _, given = run(program, model, normal(T, 2))
    assert difference(given.state, carry.state) < TOLERANCE
    of_program = zip(program.ir.traces, carry.traces, strict=True)
    shown = (node.form.shown(program.ir.site(node), arrays) for node, arrays in of_program)
    wanted = [np.ravel(a) for arrays in shown for a in reversed(arrays.values())]
    found = [np.ravel(a) for name, a in given.traces.items() if not name.startswith("c_")]
    assert np.allclose(np.concatenate(found), np.concatenate(wanted), atol=1e-12)
    assert np.abs(np.concatenate(found)).min() > 1e-6


class Drawn(eqx.Module):
    """A step of drawn operations on arrays of three elements, none of which is of whole arrays."""

    weights: list[jax.Array]
    taus: list[jax.Array]
    seed: int = eqx.field(static=True)

    def init_state(self):
        return {"a": jnp.full(3, 0.1), "b": jnp.array([0.3, -0.2, 0.1]), "c": jnp.zeros(6)}

    def __call__(self, x, state):
        draw = np.random.default_rng(self.seed)
        a, b, c = state["a"], state["b"], state["c"]
        values = [a, b, c[:3], c[3:], self.weights[0] @ x, *self.taus]
        any_of = lambda: values[-min(draw.geometric(0.25), len(values))]
        unary = [
            *(jnp.tanh, jax.nn.sigmoid, jnp.sin, jnp.square, jnp.abs, SPIKE, jax.lax.stop_gradient),
            *(jax.nn.softplus, jax.nn.relu, lambda v: jnp.roll(v, 1), lambda v: v[::-1]),
            *(lambda v: jnp.exp(-jnp.square(v)), lambda v: 0.7 * v, lambda v: v / (1 + v**2)),
            lambda v: jnp.sqrt(1 + v**2),
        ]
        binary = [
            *(jnp.add, jnp.multiply, jnp.subtract, jnp.maximum, jnp.minimum),
            lambda v, w: jnp.where(v > 0, v, w),
            lambda v, w: jnp.concatenate([v[:2], w[2:]]),
            lambda v, w: v * (w > 0.1),
        ]
        for weight in self.weights[1:]:
            for _ in range(draw.integers(1, 4)):
                values.append(unary[draw.integers(len(unary))](any_of()))
                values.append(binary[draw.integers(len(binary))](any_of(), any_of()))
            values.append(weight @ values[-1])
        new = [
            0.9 * jnp.tanh(v) for v in (a + any_of(), any_of(), values[-1] - b, any_of() * c[:3])
        ]
        values += new  # what follows may read new states
        output = any_of() + any_of() * new[1] + new[2] - new[0]
        return output, {"a": new[0], "b": new[1], "c": jnp.concatenate(new[2:])}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", few(DRAWN))
def test_equations_of_drawn_models_give_the_gradient_of_the_program(seed, rule):
    draw = np.random.default_rng(100 + seed)
    weights = [jnp.asarray(draw.normal(size=(3, n)) / 2) for n in (2, 3, 3, 3)]
    model = Drawn(weights, [jnp.asarray(draw.normal(size=3)) for _ in range(2)], seed)
    program = etpc.compile(model, RULES[rule], inputs=jnp.zeros(2))
    carry, grads, given = run(program, model, normal(T, 2, seed=seed))
    assert helpers.finite(grads)
    assert difference(given.gradient, grads) < 1e-10
    assert difference(given.state, carry.state) < TOLERANCE


@jax.custom_jvp
def mean_of_many(*values):
    return sum(values) / len(values)


mean_of_many.defjvp(lambda xs, dots: (mean_of_many(*xs), xs[0] * dots[0] - 2 * dots[8]))


def both(new):
    return new, new


SHAPES = {
    "a bias for each row": (
        [normal(3, 2), normal(3, 1, seed=1)],
        jnp.zeros((3, 4)),
        lambda m, x, h: both(jnp.tanh(h / 2 + m[1] + (m[0] @ x)[:, None])),
    ),
    "outputs with several states": (
        [normal(3, 2), normal(3, 2, seed=1)],
        jnp.zeros((3, 3)),
        lambda m, x, h: both(0.9 * h + jnp.outer(m[0] @ x, m[1] @ x)),
    ),
    "a state that is a scalar": (
        [normal(3, 2), normal(3, seed=1)],
        [jnp.zeros(3), jnp.ones(())],
        lambda m, x, s: both([jnp.tanh(m[0] @ x + s[0] * s[1]), 0.9 * s[1] + m[1] @ s[0]]),
    ),
    "a state without elements": (
        [normal(3, 2)],
        [jnp.zeros(3), jnp.zeros(0)],
        lambda m, x, s: (s[0], [jnp.tanh(m[0] @ x + s[0] / 2), 2 * s[1]]),
    ),
    "complex outputs": (
        [normal(3, 2) + 1j * normal(3, 2, seed=1)],
        jnp.zeros(3, complex),
        lambda m, x, h: both(0.5j * h.conj() + m[0] @ x),
    ),
    "numbers and weights that are put into states": (
        [normal(3, 2), normal(2, seed=1)],
        [jnp.zeros(3), jnp.zeros(3, int)],
        lambda m, x, s: (
            s[0] * s[1],
            [
                jnp.tanh(m[0] @ x + s[0].at[1:].set(m[1])),
                jax.lax.dynamic_update_slice(s[1] + 1, jnp.array([5]), (1,)),
            ],
        ),
    ),
    "elements that do not exist": (
        [normal(3, 2)],
        jnp.zeros(3),
        lambda m, x, h: both(m[0] @ x + h.at[jnp.arange(1, 4)].get(mode="fill", fill_value=0.7)),
    ),
    "the largest number": (
        [normal(3, 2)],
        jnp.zeros(3),
        lambda m, x, h: both(jnp.maximum(jnp.tanh(m[0] @ x + h / 2), jnp.finfo(float).min)),
    ),
    "a function of many arguments": (
        [normal(3, 2)],
        jnp.zeros(3),
        lambda m, x, h: both(mean_of_many(*[jnp.tanh(m[0] @ x + h / 2)] * 9)),
    ),
    "a transition that is a sum": (
        [normal(3, 1), normal(1, 3, seed=1), normal(1, 2, seed=2)],
        jnp.zeros(1),
        lambda m, x, h: both(jnp.tanh(m[1] @ jnp.tanh(m[0] @ h) + m[2] @ x)),
    ),
    "the names of tables": (
        {f"AT_{n}": normal(3, 2, seed=n) for n in range(3)},
        jnp.zeros(3),
        lambda m, x, h: both(jnp.tanh(h[jnp.array([2, 0, 2])] / 2 + m["AT_0"] @ x + m["AT_1"] @ x)),
    ),
}


@pytest.mark.parametrize("rule", few(RULES, "d_rtrl"))
@pytest.mark.parametrize("name", SHAPES)
def test_equations_of_unusual_shapes_give_the_gradient_of_the_program(name, rule):
    model, state, step = SHAPES[name]
    program = etpc.compile(model, RULES[rule], inputs=jnp.zeros(2), state=state, step=step)
    carry, grads, given = run(program, model, normal(T, 2))
    assert difference(given.gradient, grads) < TOLERANCE
    assert difference(given.state, carry.state) < TOLERANCE


@pytest.mark.parametrize("rule", few(RULES))
def test_derivatives_at_kinks_are_those_of_jax(rule):
    def step(w, x, h):
        u = w * x  # whole numbers, at which each function has a kink
        kinks = jnp.abs(u) + jax.lax.clamp(0.0, u, 1.0) + jnp.maximum(u, 1.0) + jax.nn.relu(u - 1)
        h = h + jnp.where(u >= 0, u, 2 * u) + jnp.minimum(kinks, u) + kinks - jnp.sign(u)
        return h, h

    model, xs = jnp.array([1.0, 0.0, -1.0]), jnp.array([1.0, 0.0, 2.0, -1.0, 1.0, 0.0, 1.0])
    given = dict(inputs=jnp.zeros(()), state=jnp.zeros(3), step=step)
    _, grads, given = run(etpc.compile(model, RULES[rule], **given), model, xs, jnp.zeros(3))
    assert difference(given.gradient, grads) < TOLERANCE


@pytest.mark.parametrize("number", few(range(12)))
def test_equations_of_any_drawn_model_are_printed_or_refused(number):
    case = Case(dataclasses.replace(drawn(SEED, number), weights="all"))
    rule = [etpc.D_RTRL(window=1), etpc.RTRL(window=1), RULES["everywhere"]][number % 3]
    compiled = case.compile(rule)
    try:
        equations = compiled.equations()
    except etpc.UnsupportedError:
        return
    assert str(equations)
    assert equations.latex()
    with contextlib.suppress(etpc.UnsupportedError):
        equations.to_numpy()


@pytest.mark.parametrize("rule", few(RULES))
def test_what_is_not_computed_element_by_element_is_a_named_function(rule):
    model = Everything(
        normal(3, 4),
        0.5 * normal(4, 4, seed=1),
        0.3 * normal(3, seed=2),
        1 + 0.1 * normal(4, seed=3),
    )
    equations = etpc.compile(model, RULES[rule], inputs=jnp.zeros((), int)).equations()
    text = str(equations)
    for name in ("max", "sum", "sort", "cumsum"):
        assert f"{name}(" in text
    for called in (equations.to_numpy, lambda: run_equations(equations, model)):
        with pytest.raises(EtpcError, match=r"sort at .*test_equations\.py"):
            called()


def run_equations(equations, model):
    xs = jnp.array([0, 2, 1, 1, 0, 2])
    return equations.evaluate(model, xs, jnp.zeros(6), dloss)


WRITTEN = {
    "add": lambda n, m: n + m,
    "sub": lambda n, m: 3 - n - m,
    "mul": lambda n, m: n * m * 101,
    "neg": lambda n, m: -n - (n == m),
    "abs": lambda n, m: abs(n) + abs(m),
    "pow": lambda n, m: n**3 + m**2,
    "max": lambda n, m: jnp.maximum(n, m) + jnp.minimum(n, -m),
    "where": lambda n, m: jnp.where(n > m, m, n - 1) + jnp.sign(n),
    "clip": lambda n, m: jnp.clip(m, 3, 100) + n,
    "condition": lambda n, m: n + 100 * (m > 3).astype(n.dtype) + (m == 0),
    "narrow": lambda n, m: n.astype(jnp.int8) + m.astype(jnp.uint16).astype(n.dtype),
    "wide": lambda n, m: n.astype(jnp.int64) * 3 + m,
    "float": lambda n, m: n + (n.astype(float) * m.astype(float) * n.astype(float)).astype(n.dtype),
    "power": lambda n, m: n + (1.5 ** jnp.clip(m, 0, 3) * 7).astype(n.dtype),
    "part": lambda n, m: n.at[1:].set(m[1:]) + jnp.array([True, False, True]),
}
"""Operations on integers, which leave the range of any dtype on these data."""
LARGE = jnp.array([[-2.5, 1e20, jnp.nan], [300.7, -1e20, 70000.5], [1e9, -129.0, 0.9], [2, 7, 127]])


@pytest.mark.parametrize("dtype", few(INTEGERS, "uint8"))
def test_integers_are_those_of_the_program(dtype):
    state = {"h": jnp.zeros(3), "n": dict.fromkeys(WRITTEN, jnp.array([1, 2, 100], dtype))}

    def step(w, x, s):
        n = {name: of(s["n"][name], x["i"].astype(dtype)) for name, of in WRITTEN.items()}
        size = sum(a / 2.0 ** jnp.iinfo(dtype).bits for a in n.values())
        on = jnp.sin(x["on"][0].astype(float) + x["on"][1])
        h = s["h"] / 2 + jnp.tanh(w @ x["x"]) * (size + on)
        return h, {"h": h, "n": jax.tree.map(lambda a: a.astype(dtype), n)}

    xs = {"x": normal(8, 2), "i": jnp.tile(LARGE, (2, 1)), "on": normal(8, 2, 3) > 0}
    x = jax.tree.map(lambda a: a[0], xs)
    program = etpc.compile(normal(3, 2), inputs=x, state=state, step=step)
    carry, grads, given = run(program, normal(3, 2), xs, state)
    for name, n in carry.state["n"].items():
        assert np.array_equal(given.state["n"][name], n), name
    assert difference(given.gradient, grads) < TOLERANCE


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda h: (h * 4).astype(jnp.int32) // 3, "div at"),
        (lambda h: (h * 4).astype(jnp.int32) & 3, "and at"),
        (lambda h: (h * 4).astype(jnp.int32) << 3, "shift_left at"),
        (lambda h: (h * 4).astype(jnp.int32).sum(), "sum at"),
        (lambda h: (h * 4).astype(jnp.uint64), "convert_element_type at"),
        (lambda h: (h * 4).astype(jnp.int4), "convert_element_type at"),
        (lambda h: h.astype(jnp.bfloat16), "convert_element_type at"),
        (lambda h: jax.lax.reduce_precision(h, 8, 7), "precision at"),
    ],
)
def test_what_numpy_computes_otherwise_is_printed_and_not_run(of, said):
    step = lambda w, x, h: both(jnp.tanh(w @ x + h) * of(jax.lax.stop_gradient(h)).astype(float))
    program = etpc.compile(normal(3, 2), inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)
    assert "tanh" in str(program.equations())
    with pytest.raises(etpc.UnsupportedError, match=rf"{said} .*test_equations\.py"):
        program.equations().to_numpy()


def test_a_state_with_keys_is_printed_and_not_run():
    step = lambda w, x, s: (s[0], [jnp.tanh(w @ x + s[0]), s[1]])
    state = [jnp.zeros(3), jax.random.key(0)]
    program = etpc.compile(normal(3, 2), inputs=jnp.zeros(2), state=state, step=step)
    assert "tanh" in str(program.equations())
    with pytest.raises(EtpcError, match="keys"):
        program.equations().to_numpy()


@pytest.mark.parametrize("rule", few(RULES, "everywhere"))
def test_parts_of_one_leaf_may_read_one_another(rule):
    model = Packed(0.3 * normal(3, 2))
    program = etpc.compile(model, RULES[rule], inputs=jnp.zeros(2))
    _, grads, given = run(program, model, normal(T, 2))
    assert difference(given.gradient, grads) < TOLERANCE
    text = str(program.equations())
    assert "h'[0:3] = I_w + 0.9*h[0:3] - h[3:6]" in text
    assert "h'[3:6] = 0.5*h[3:6] + " in text
    assert "D_h_h[0:3, 0:3] = diag(0.9)" in text


@pytest.mark.parametrize("rule", few(RULES, "d_rtrl"))
def test_the_file_of_numpy_needs_no_jax_and_gives_the_gradient(rule):
    model = alif()
    program = etpc.compile(model, RULES[rule], inputs=jnp.zeros(2))
    xs = 3 * normal(T, 2)
    targets = jnp.cos(2.0 * jnp.arange(T))
    (_, _), grads = program.value_and_grad(loss, "sum")(model, xs, targets, program.init())
    source = program.equations().to_numpy()
    assert {line for line in source.split("\n") if line.startswith("import")} == {
        "import math",
        "import numpy as np",
    }
    module = {}
    exec(source, module)
    parameters = {
        ".w": np.asarray(model.w),
        ".r": np.asarray(model.r),
        ".tau": np.asarray(model.tau),
    }
    carry = {"['v']": np.zeros(3), "['a']": np.zeros(3), **module["traces"]()}
    total = dict.fromkeys(parameters, 0.0)
    for x, target in zip(np.asarray(xs), np.asarray(targets), strict=True):
        by_output = lambda y, target=target: {"y": 2 * (y["y"] - target)}
        _, carry, gradient = module["step"](parameters, {"x": x}, carry, by_output)
        total = {name: total[name] + gradient[name] for name in total}
    assert difference(total, {".w": grads.w, ".r": grads.r, ".tau": grads.tau}) < TOLERANCE


def test_parts_that_overlap_are_added():
    step = lambda w, x, h: (lambda h: (h[:2] + h[1:] ** 2, h))(jnp.tanh(w @ x + h / 2))
    program = etpc.compile(normal(3, 2), inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)
    text = str(program.equations())
    assert "L_h[0:2] = dl_dy\n" in text
    assert "L_h[1:3] += 2*dl_dy*h'[1:3]" in text


def test_an_adaptive_neuron_is_printed_as_its_paper_writes_it():
    """Bellec et al. 2020, equations 20 to 25, with the parts of the traces that this step has."""
    text = str(etpc.compile(alif(), inputs=jnp.zeros(2)).equations(".w"))
    for line in (
        "H(u) = [u >= 0]",
        "psi(u) = 0.3*max(1 - abs(u), 0)    (psi stands for the derivative of H)",
        "u = v - 0.2*a - 1",
        "I_r = r @ stop(z)",
        "a' = 0.95*a + z",
        "v' = I_r + I_w + alpha*v - z",
        "e_v_w' = (alpha - psi(u))*e_v_w + 0.2*psi(u)*e_a_w + x^T",
        "e_a_w' = (0.95 - 0.2*psi(u))*e_a_w + psi(u)*e_v_w",
        "L_v = dl_dy*psi(u_2)",
        "g_w += L_a*e_a_w' + L_v*e_v_w'",
        "hidden ['a'] -> .r -> hidden ['v']  (of .w)",
    ):
        assert line in text, (line, text)
    assert "the trace of .r" not in text


def test_numbers_are_printed_as_they_were_written():
    with jax.enable_x64(False):
        model = jax.tree.map(lambda a: a.astype(jnp.float32), alif())
        text = str(etpc.compile(model, inputs=jnp.zeros(2, jnp.float32)).equations())
    assert "0.95*a" in text
    assert "0.9499" not in text


def test_the_forms_of_traces_are_printed_as_what_they_are():
    readout = nn.LeakyRateReadout(3, 2, tau=5.0, key=jax.random.key(0))
    shared = etpc.compile(readout, inputs=jnp.zeros(3)).equations()
    assert "the filtered inputs that outputs share" in str(shared)
    model, state = CELLS["GRU"]()
    called = dict(inputs=jnp.zeros(2), state=state, step=cell)
    decayed = str(
        etpc.compile(model, etpc.ES_D_RTRL(decay=0.9, everywhere=True), **called).equations()
    )
    for text in (
        "X_weight_ih' = ",
        "c_weight_ih' = 0.9*c_weight_ih + 1",
        "smoothed with decay 0.9",
    ):
        assert text in decayed
    low_rank = etpc.compile(model, etpc.ES_D_RTRL(rank=2, everywhere=True), **called).equations()
    assert "2 pairs of factors" in str(low_rank)
    with pytest.raises(EtpcError, match="rank"):
        low_rank.evaluate(model, normal(T, 2), normal(T, 3), dloss)


def blocks_of(latex):
    return re.findall(r"\\begin\{align\}\n(.*?)\n\\end\{align\}", latex, re.DOTALL)


def test_the_formulas_of_the_page_are_those_that_it_prints():
    page = (ROOT / "docs" / "equations.md").read_text()
    shown = re.findall(r"^```math\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    printed = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    printed = [text for text in printed if r"\begin{align}" in text]
    assert len(shown) == len(printed) == 2
    for block, text in zip(shown, printed, strict=True):
        of_page = re.findall(r"begin\{align\*\}\n(.*?)\n\\end", block, re.DOTALL)
        assert of_page == [of.replace(r" \nonumber", "") for of in blocks_of(text)]


@pytest.mark.parametrize("rule", few(RULES))
@pytest.mark.parametrize("name", few(NETWORKS))
def test_the_formulas_of_layers_are_read_by_another_program(name, rule):
    convert = pytest.importorskip("latex2mathml.converter").convert
    layers, xs, *_ = NETWORKS[name]()
    equations = etpc.compile(nn.Sequential(layers), RULES[rule], inputs=xs[0]).equations()
    latex = equations.latex()
    for block in blocks_of(latex):
        block = "\\begin{align}" + block + "\\end{align}"
        assert convert(block).count("<mtr>") == block.count(r"\\") + 1
        assert block.count("{") == block.count("}")
        for left, right in (
            ("left(", "right)"),
            ("left|", "right|"),
            ("bigl(", "bigr)"),
            ("bigl|", "bigr|"),
        ):
            assert block.count("\\" + left) == block.count("\\" + right)
    assert r"\prime}^" not in latex  # a second superscript
    assert all(inline.count("{") == inline.count("}") for inline in re.findall(r"\$.*?\$", latex))


def test_equations_as_data_and_as_formulas():
    equations = etpc.compile(alif(), inputs=jnp.zeros(2)).equations()
    found = json.loads(json.dumps(equations.as_dict()))
    lines = [line for section in found["sections"] for line in section["equations"]]
    assert all(sympy.sympify(line["right"]) is not None for line in lines)
    assert all(text.endswith("(of .tau, .w, .r)") for text in found["left_out"])
    assert len({*found["left_out"]}) == len(found["left_out"]) == 2
    latex = equations.latex()
    assert latex.startswith("The step:\n\\begin{align}")
    assert r"$\psi$ stands for the derivative of $H$." in latex
    assert equations._repr_latex_() == latex


class Gated(eqx.Module):
    """Two adaptations, and a reset through a gate that one of them opens."""

    W: jax.Array
    R: jax.Array
    W_out: jax.Array
    alpha: float = eqx.field(static=True, default=0.9)
    rho_1: float = eqx.field(static=True, default=0.97)
    rho_2: float = eqx.field(static=True, default=0.75)
    beta: float = eqx.field(static=True, default=0.2)
    kappa: float = eqx.field(static=True, default=0.85)
    keep_z: bool = eqx.field(static=True, default=False)

    def init_state(self):
        state = {name: jnp.zeros(3) for name in ("v", "a_1", "a_2")} | {"y": jnp.zeros(2)}
        return state | ({"z": jnp.zeros(3)} if self.keep_z else {})

    def __call__(self, x, s):
        v, a_1, a_2 = s["v"], s["a_1"], s["a_2"]
        z = s["z"] if self.keep_z else SPIKE(v - 0.4 - self.beta * a_1)
        gate = jax.nn.sigmoid(a_2)
        v = self.alpha * v * (1 - gate * z) + self.W @ x + self.R @ z
        a_1 = self.rho_1 * a_1 + z
        a_2 = self.rho_2 * a_2 + (1 - self.rho_2) * jnp.maximum(v, 0) + 0.1 * jnp.abs(v)
        z = SPIKE(v - 0.4 - self.beta * a_1)
        y = self.W_out @ z if self.keep_z else self.kappa * s["y"] + self.W_out @ z
        state = {"v": v, "a_1": a_1, "a_2": a_2, "y": y}
        return y, state | ({"z": z} if self.keep_z else {})


def gated(**options):
    return Gated(normal(3, 2), 0.5 * normal(3, 3, seed=1), normal(2, 3, seed=2), **options)


def lines_of(text):
    return [line.strip() for line in text.split("\n")]


EPROP = {
    "symmetric": (etpc.EProp(), {}, "L_q_W_out = dl_dy_2 @ W_out"),
    "random": (etpc.EProp("random"), {}, "L_q_W_out = dl_dy_2 @ B"),
    "kappa": (etpc.EProp(kappa=0.85), {"keep_z": True}, "L_z = dl_dy_2 @ W_out"),
}


OF_COMPUTED = [
    "epsilon_a_1_W' = (rho_1 - beta*psi(u))*epsilon_a_1_W + psi(u)*epsilon_v_W",
    "e_W = psi(u_2)*(epsilon_v_W' - beta*epsilon_a_1_W')",
    "ebar_W' = kappa*ebar_W + e_W",
]
"""Where spikes are computed anew, and the readout leaks."""
OF_STORED = [
    "epsilon_a_1_W' = e_z_W + rho_1*epsilon_a_1_W",
    "e_z_W' = psi(u)*epsilon_v_W' - beta*psi(u)*epsilon_a_1_W'",
    "ebar_W' = e_z_W' + kappa*ebar_W",
]
"""Where they are a state."""


@pytest.mark.parametrize("name", EPROP)
def test_e_prop_is_printed_as_its_readers_know_it(name):
    """A learning signal for each neuron times a filtered eligibility trace, that of eligibility vectors."""
    rule, options, signal = EPROP[name]
    model, xs = gated(**options), 2 * normal(T, 2, seed=4)
    program = etpc.compile(model, rule, inputs=xs[0])
    equations = program.equations(".W")
    lines = lines_of(str(equations))
    assert signal in lines
    found = [line for line in lines if line.startswith(("epsilon_a_1", "e_", "ebar_"))]
    assert found == (OF_STORED if name == "kappa" else OF_COMPUTED)
    assert any(line.startswith("g_W += L_") and "*ebar_W'" in line for line in lines)
    latex = equations.latex().split("\n")
    matrix = "B_{jk}" if name == "random" else r"W_{\mathrm{out}, kj}"
    y = r"y_{k}^{\prime}"
    assert rf"L_{{j}} &= \sum_{{k}} {matrix} \, \left({y} - y_{{k}}^{{*}}\right)" in "\n".join(
        latex
    )
    assert (
        r"\frac{\mathrm{d} E}{\mathrm{d} W_{ji}} &\approx \sum_{t} L_{j} \, \bar{e}_{ji}^{\prime}"
        in latex
    )
    _, grads, given = run(program, model, xs)
    assert min(np.abs(g).max() for g in jax.tree.leaves(grads)) > 1e-3
    assert difference(given.gradient, grads) < 1e-9


class Attributes(dict):
    """A node whose keys are attributes, which may have any name."""


jax.tree_util.register_pytree_with_keys(
    Attributes,
    lambda node: ([(jax.tree_util.GetAttrKey(k), v) for k, v in node.items()], tuple(node)),
    lambda names, values: Attributes(zip(names, values, strict=True)),
)
LINE = "raise AssertionError('a name was run')"
NAMES = [
    *(f"w{end}    {LINE}{end}" for end in ("\n", "\r", "\r\n", "\0", "\x0b", "\x85", "\u2028")),
    *(f"{quote})\n{LINE}  #" for quote in ("'", '"', '"""', "\\")),
    *("ﬁ", "fi", "²", "x²", "৴", "lambda", "np", "float", "max", "a_b", "a__b", "", "<b>&amp;</b>"),
    *(r"\input{x}", "$x$", "a^2_~#%&{}", "*/", "-->", "]]>", "<0>"),
]


def of_leaves(names):
    """A program whose leaves have these names, and what it is run on."""
    model = Attributes({name: normal(2, 2, seed=n) for n, name in enumerate(names)})
    new = lambda w, x, h: Attributes({n: jnp.tanh(w[n] @ x[n] + h[n] / 2) for n in names})
    xs, state = (jax.tree.map(lambda _, s=s: normal(*s), model) for s in ((3, 2), (2,)))
    step = lambda w, x, h: (lambda h: (sum(h.values()), h))(new(w, x, h))
    x = jax.tree.map(lambda a: a[0], xs)
    return etpc.compile(model, inputs=x, state=state, step=step), model, xs, state


@pytest.mark.slow
def test_any_name_of_a_leaf_is_text():
    """In the file of NumPy, in formulas and in pictures."""
    program, model, xs, state = of_leaves(NAMES)
    carry, grads, given = run(program, model, xs, state)
    assert difference(given.gradient, grads) < TOLERANCE
    assert difference(given.state, carry.state) < TOLERANCE
    equations = program.equations()
    assert all(
        text.isprintable() for text in (*str(program).split("\n"), *str(equations).split("\n"))
    )
    latex = equations.latex()
    assert "input" not in re.findall(r"\\([a-z]+)", latex)
    assert not any(re.search(r"(?<!\\)[$#%]", block) for block in blocks_of(latex))
    plain = of_leaves([f"w{n}" for n in range(len(NAMES))])[0].equations().latex()
    of_names = lambda text: Counter(re.findall(r"(?<!\\)[$#%]", text))
    assert of_names(latex) == of_names(plain)  # those of headings and notes alone
    for picture in (to_svg(program), "<p>" + fragment(program) + "</p>"):
        assert {"b", "amp"}.isdisjoint(e.tag for e in ElementTree.fromstring(picture).iter())


def test_a_path_that_is_no_weight_is_refused():
    with pytest.raises(etpc.InputError, match=r"no weight '\.q'"):
        etpc.compile(alif(), inputs=jnp.zeros(2)).equations(".q")


@pytest.mark.parametrize("option", ["", "--latex", "--numpy"])
def test_the_command_line_prints_equations(option, tmp_path, monkeypatch):
    (tmp_path / "lif_model.py").write_text(
        "import jax, equinox as eqx\nfrom etpc import nn\n"
        "def make(key):\n    return nn.Sequential([eqx.nn.Linear(2, 3, key=key), nn.LIF(3)])\n"
    )
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert (
            main(["equations", "lif_model.py:make", "--inputs", "2", *filter(None, [option])]) == 0
        )
    wanted = {"": "the learning signals", "--latex": r"\begin{align}", "--numpy": "def step("}[
        option
    ]
    assert wanted in printed.getvalue()


def test_a_gradient_prints_what_it_needs_and_nothing_else():
    model, xs = gated(), normal(T, 2)
    program = etpc.compile(model, inputs=xs[0])
    every, one = (str(program.equations(path)) for path in (None, ".W"))
    assert "g_R += " in every
    assert "g_W_out += " in every
    lines = lines_of(one)
    assert not any(re.match(r"[ge]_\S*(R|out)", line) for line in lines)
    assert "I_R = R @ stop(z)" in lines  # a state reads it
    assert "P_y" not in one
    named = {line.partition(" ")[0] for line in lines if " = " in line}
    read = " ".join(line.partition("= ")[2] for line in lines)
    for name in named - {"y_2", "psi(u)", "H(u)"}:
        assert re.search(rf"(?<!\w){re.escape(name.removesuffix(chr(39)))}(?!\w)", read), name
    for cut in ("['a_1'] -> .R", "['v'] -> .R"):
        assert sum(cut in line for line in lines) == 1


def test_what_stands_in_several_lines_has_a_name_and_is_the_same():
    equations = etpc.compile(gated(), inputs=jnp.zeros(2)).equations()
    sections = equations._lines.sections
    named = {line.left: line.right for line in sections["what stands in several lines"]}
    assert {"D_v_v", "D_v_a_2"} <= {*map(str, named)}
    assert all(str(equations).count(f"{name}*") > 1 for name in named)
    lines = [line for title, own in sections.items() if "trace" in title for line in own]
    (of_w,) = [line.right for line in lines if str(line.left) == "e_v_W'"]
    (plain,) = [
        line.right
        for line in etpc.compile(gated(), inputs=jnp.zeros(2))
        .equations(".W")
        ._lines.sections["the trace of .W: one entry for each use and state"]
        if str(line.left) == "e_v_W'"
    ]
    for _ in named:  # one may be of another
        of_w = of_w.xreplace(named)
    assert sympy.expand(of_w - plain) == 0


KAPPA, V_TH = 0.85, 0.4


def in_closures(model, x, v):
    """A step whose numbers are around it: one of the module, one of this function."""
    leak = 0.9

    def step(model, x, v):
        v = leak * v + (1 - leak) * (model @ x) - V_TH * SPIKE(v - V_TH)
        return v * KAPPA, v

    return step(model, x, v) if x is not None else step


def test_numbers_have_the_names_of_the_model_and_of_what_is_around_it():
    step = in_closures(None, None, None)
    given = dict(inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)
    program = etpc.compile(normal(3, 2), **given)
    lines = lines_of(str(program.equations()))
    assert {"leak = 0.9", "V_TH = 0.4", "KAPPA = 0.85"} <= {*lines}
    assert "h' = I_model*(1 - leak) + h*leak - V_TH*H(u)" in lines
    _, grads, given = run(program, normal(3, 2), normal(T, 2), jnp.zeros(3))
    assert difference(given.gradient, grads) < TOLERANCE


def test_numbers_have_the_names_that_are_given():
    program = etpc.compile(alif(), inputs=jnp.zeros(2))
    equations = program.equations(names={0.95: "rho", 0.2: "beta_a"})
    assert "a' = z + a*rho" in lines_of(str(equations))
    assert "u = v - a*beta_a - 1" in lines_of(str(equations))
    assert r"\beta_{a} \, a" in equations.latex()
    source = equations.to_numpy()
    assert "\nrho = 0.95\n" in source
    xs = 2 * normal(T, 2)
    targets = jnp.cos(2.0 * jnp.arange(T))
    given = equations.evaluate(alif(), xs, targets, dloss)
    plain = program.equations().evaluate(alif(), xs, targets, dloss)
    assert difference(given.gradient, plain.gradient) < TOLERANCE


@pytest.mark.parametrize(
    "names", [{0.9: "1a"}, {0.9: "a b"}, {"x": "a"}, {0.9: 3}, {float("nan"): "a"}]
)
def test_names_that_are_none_are_refused(names):
    with pytest.raises(etpc.InputError, match="names= has"):
        etpc.compile(alif(), inputs=jnp.zeros(2)).equations(names=names)


def test_lines_fit_a_column_and_products_are_told_apart():
    equations = etpc.compile(gated(), inputs=jnp.zeros(2)).equations(".W")
    for width in (42, 60):
        rows = [row for of in blocks_of(equations.latex(width=width)) for row in of.split("\\\\\n")]
        assert max(size(row.removesuffix(r" \nonumber ")) for row in rows) <= width + 4
    assert len(rows) < equations.latex(width=30).count("\\\\\n")
    latex = equations.latex()
    for part in (
        r"I_{W} &= W \, x",
        r"\alpha \, v \odot \left(1 - \mathrm{gate} \odot z\right)",
        r"e_{a_{1}, W}^{\prime}",
        r"\max\left(v^{\prime}, 0\right)",
        r"0.1 \, \left|v^{\prime}\right|",
        r"W_{\mathrm{out}}^{\top} \frac{\partial \ell}{\partial y_{2}}",
        r"Left out: $a_{1}$ $\to$ $R$ $\to$ $a_{2}$",
    ):
        assert part in latex, part


def test_indices_are_refused_where_arrays_have_parts():
    model, state = CELLS["GRU"]()
    program = etpc.compile(model, inputs=jnp.zeros(2), state=state, step=cell)
    with pytest.raises(etpc.UnsupportedError, match="indices"):
        program.equations().latex(indices=True)
    assert r"\scriptstyle [0:3]" in program.equations().latex()


def test_products_of_arrays_are_in_order():
    step = lambda m, x, h: both(jnp.tanh(m[1] @ jnp.sin(m[0] @ x) + h / 2))
    given = dict(inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)
    latex = etpc.compile([normal(4, 2), normal(3, 4)], etpc.RTRL(), **given).equations().latex()
    assert r"&= D_{h, h} \, e_{h, h_{0}} + " in latex
    assert r"e_{h, h_{0}}^{\prime\top} \frac{\partial \ell}{\partial y}" in latex
    a, b, w = sympy.symbols("a b w")
    printed = [Text().doprint(product) for product in (dot(w, a * b), dot(a - b, w))]
    assert printed == ["w @ (a*b)", "(a - b) @ w"]
