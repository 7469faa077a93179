"""Pattern rules of one's own are checked where they are registered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import analyse
from etpc._jax.primitives import FACTS, facts
from etpc.errors import InputError, InputTypeError
from tests.analyse.test_patterns import LOOSE, TIGHT, pattern_of, sums_p

H = jnp.arange(4.0)


@pytest.fixture
def unregistered(monkeypatch):
    monkeypatch.setattr("etpc._jax.primitives.FACTS", dict(FACTS))


def sums_rule(interpreter, equation, patterns, known):
    """Row i of a cumulative sum joins rows 0 to i."""
    (x,) = equation.inputs
    rows, columns = np.tril_indices(x.size)
    return [analyse.select(rows, columns, x.size, patterns[0])]


def diagonal(interpreter, equation, patterns, known):
    return patterns


@pytest.mark.usefixtures("unregistered")
def test_a_registered_rule_makes_patterns_sparse():
    assert pattern_of(lambda h, i: sums_p.bind(h))[0].all()
    analyse.register_pattern(sums_p, sums_rule, sums_p.bind, H)
    pattern, analysis = pattern_of(lambda h, i: sums_p.bind(h))
    np.testing.assert_array_equal(pattern, np.tri(6, dtype=bool))
    assert analysis.findings.opaque == ()
    analyse.register_pattern(sums_p, sums_rule, sums_p.bind, H)  # a cell that is run once more
    with pytest.raises(ValueError, match="sums has a pattern already"):
        analyse.register_pattern(sums_p, lambda *args: sums_rule(*args), sums_p.bind, H)


FAULTS = {
    "a missing entry": (
        (diagonal, sums_p.bind, H),
        InputError,
        r"lacks 6 of 10 entries .*: \(1, 0\), \(2, 0\), \(2, 1\), \(3, 0\), \(3, 1\) and 1 more",
    ),
    "another function": ((sums_rule, jnp.sin, H), InputError, "was not checked"),
    "integers alone": ((sums_rule, jnp.abs, jnp.arange(3)), InputError, "was not checked"),
    "too few rows": (
        (lambda i, e, p, k: [p[0][:2]], sums_p.bind, H),
        InputError,
        r"rule of sums returns patterns of shapes \[\(2, 5\)\], and not \[\(4, 5\)\]",
    ),
    "too many patterns": (
        (lambda i, e, p, k: [p[0]] * 2, sums_p.bind, H),
        InputError,
        "rule of sums",
    ),
    "two arguments": ((lambda e, p: p, sums_p.bind, H), InputTypeError, "is called as `rule"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_rule_is_refused(name):
    arguments, error, match = FAULTS[name]
    with pytest.raises(error, match=match):
        analyse.register_pattern(sums_p, *arguments)
    assert facts(sums_p).pattern is None


def test_a_rule_is_for_a_primitive():
    with pytest.raises(InputTypeError, match="primitive"):
        analyse.register_pattern("sums", sums_rule, sums_p.bind, H)


@pytest.mark.parametrize("name", ["fft_of_rows", "einsum_batch", "custom_vjp_that_moves"])
def test_the_check_gives_the_pattern(name):
    pattern = analyse.check_pattern(lambda h: TIGHT[name](h, 0), jnp.zeros(6))
    np.testing.assert_array_equal(pattern, pattern_of(TIGHT[name])[0])


def test_several_arguments_results_and_types():
    def function(w, i, z):
        return {"a": w[i] * z, "b": jnp.sum(w), "n": i}

    pattern = analyse.check_pattern(function, jnp.ones(3), 1, jnp.ones(2) + 1j)
    of_w, real, imaginary = pattern[:, :3], pattern[:, 3:5], pattern[:, 5:]
    assert of_w.all()  # the index is data
    eye = np.tile(np.eye(2, dtype=bool), (2, 1))
    np.testing.assert_array_equal(real, [*eye, [False] * 2])
    np.testing.assert_array_equal(imaginary, [*eye, [False] * 2])


def test_the_check_knows_loose_patterns():
    assert etpc.analyse.check_pattern(lambda h: LOOSE["cancels"](h, 0), jnp.zeros(6)).sum() == 12
    assert jax.jacobian(lambda h: LOOSE["cancels"](h, 0))(jnp.ones(6)).astype(bool).sum() == 6
