"""The list of what is not supported, in `docs/limits.md`, is what is not supported, point by point."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import sparse

import etpc
from etpc import ops
from tests.marks import few
from tests.zoo.control_flow import clipped

X, STATE = jnp.ones(2), jnp.zeros(3)
W = jnp.ones((3, 2))
PAGE = Path(__file__).parent.parent / "docs/limits.md"


def compiled(function, model=W, algo="d_rtrl"):
    step = lambda model, x, h: (function(model, x, h),) * 2
    return etpc.compile(model, algo, inputs=X, state=STATE, step=step)


def operations_without_a_derivative():
    def called_back(h):
        return jax.pure_callback(np.sin, h, h)

    for inside in (called_back, clipped):

        def looped(w, x, h, inside=inside):
            return lax.while_loop(lambda h: h.sum() < 9, lambda h: h + inside(h), h + w @ x)

        line = looped.__code__.co_firstlineno + 1
        words = rf"(?s)loop of unknown length at .*:{line}.*custom_jvp"
        with pytest.raises(etpc.UnsupportedError, match=words) as caught:
            compiled(looped)
        assert isinstance(caught.value, NotImplementedError)
        assert caught.value.code == "unbounded-loop"
        compiled(lambda w, x, h, f=looped: lax.stop_gradient(f(w, x, h)) + w @ x)

    @jax.custom_jvp
    def rule(h):
        return h

    @rule.defjvp
    def _(h, t):
        return h[0], lax.while_loop(
            lambda c: c[0] < h[0].sum(), lambda c: (c[0] + 1, c[1] / 2), (0.0, t[0])
        )[1]

    with pytest.raises(etpc.UnsupportedError, match=r"(?s)while_loop.*stop_gradient"):
        compiled(lambda w, x, h: rule(0.5 * h) + w @ x)
    for function in (called_back, lambda h: lax.clamp(-1.0, h, jnp.abs(h[0]))):
        with pytest.raises(etpc.UnsupportedError, match="JAX refuses"):
            compiled(lambda w, x, h, f=function: f(0.5 * h) + w @ x)


@jax.custom_vjp
def solved(h):
    return lax.while_loop(lambda h: jnp.abs(h).max() > 1.0, lambda h: h / 2, h)


solved.defvjp(
    lambda h: (solved(h), None),
    lambda _, g: (lax.while_loop(lambda g: jnp.abs(g).max() > 1.0, lambda g: g / 2, g),),
)


def backward_rules_without_a_transpose():
    for rule in (clipped, solved):
        words = r"(?s)custom_vjp.*test_limits\.py.*no transpose.*output"
        with pytest.raises(etpc.UnsupportedError, match=words) as caught:
            compiled(lambda w, x, h, rule=rule: rule(0.5 * h) + w @ x)
        assert caught.value.code == "no-transpose"

        def to_the_output(w, x, h, rule=rule):
            h = 0.5 * h + w @ x
            return rule(h), h

        xs = jnp.ones((40, 2))
        report = etpc.verify(
            W, xs, jnp.zeros(40), lambda y, t: (y**2).sum(), state=STATE, step=to_the_output
        )
        assert report.ok


def rewiring():
    places = jnp.array([[0, 1], [1, 0], [2, 1]])
    model = sparse.BCOO((jnp.ones(3), places), shape=(3, 2))
    program = compiled(lambda m, x, h: 0.5 * h + m @ x, model)
    other = sparse.BCOO((jnp.ones(3), places[::-1]), shape=(3, 2))
    program(model, X, program.init())
    with pytest.raises(etpc.InputError, match=r"\.indices.*connected.*Compile again"):
        program(other, X, program.init())
    with pytest.raises(RuntimeError, match=r"(?s)\.indices.*connected"):
        jax.block_until_ready(jax.jit(program)(other, X, program.init()))
    jax.block_until_ready(jax.jit(program)(model, X, program.init()))


def long_loops():
    def step(length):
        def function(w, x, h):
            return lax.fori_loop(0, length, lambda _, h: 0.9 * h + w @ jnp.tanh(h), h)

        return compiled(function, jnp.ones((3, 3)))

    assert {type(op.op.kind) for op in step(256).ops} == {ops.Contraction}
    (whole,) = step(257).ops
    assert isinstance(whole.op.kind, ops.Elementwise)
    assert whole.exact


def forward_mode():
    program = compiled(lambda w, x, h: 0.5 * h + w @ x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda w: program(w, X, program.init())[0], (W,), (W,))


def effects():
    def noisy(w, x, h):
        jax.debug.print("not printed {}", h)
        return 0.5 * h + w @ x

    program = compiled(noisy)
    run = program.value_and_grad(lambda y, t: (y**2).sum(), "sum")
    jax.block_until_ready(run(W, jnp.ones((3, 2)), jnp.zeros(3), program.init()))
    jax.effects_barrier()


CASES = {
    "Operations without a derivative in JAX": operations_without_a_derivative,
    "Backward rules without a transpose": backward_rules_without_a_transpose,
    "Rewiring": rewiring,
    "Long loops": long_loops,
    "Forward mode": forward_mode,
    "Effects": effects,
}


def test_the_list_is_complete():
    section = PAGE.read_text().split("## What is not supported yet")[1].split("\n## ")[0]
    assert re.findall(r"^- \*\*(.+?)\.\*\*", section, re.MULTILINE) == list(CASES)


@pytest.mark.parametrize("name", few(CASES, "Operations without a derivative in JAX"))
def test_each_point_is_so(name, capfd):
    CASES[name]()
    assert "not printed" not in capfd.readouterr().out
