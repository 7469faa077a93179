"""Normalisation against its equations, Equinox and backpropagation through time."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.nn.online import (
    KEY,
    Leaky,
    as_a_user,
    exact,
    marks,
    normal,
    parameters,
    shuffled,
    verify,
)

EPS = 0.1
LAYERS = {
    nn.LayerNorm: (lambda **more: nn.LayerNorm((4, 3), EPS, **more), eqx.nn.LayerNorm((4, 3), EPS)),
    nn.RMSNorm: (lambda **more: nn.RMSNorm((4, 3), EPS, **more), eqx.nn.RMSNorm((4, 3), EPS)),
    nn.GroupNorm: (lambda **more: nn.GroupNorm(2, 4, EPS, **more), eqx.nn.GroupNorm(2, 4, EPS)),
}


def normalised(kind, x):
    if kind is nn.RMSNorm:
        return x / np.sqrt((x**2).sum() / x.size + EPS)
    parts = [x] if kind is nn.LayerNorm else [x[:2], x[2:]]
    return np.concatenate([(p - p.mean()) / np.sqrt(p.var() + EPS) for p in parts])


@pytest.mark.parametrize("kind", LAYERS)
def test_equation(kind) -> None:
    build, peer = LAYERS[kind]
    layer, x = shuffled(build()), normal(4, 3)
    weight, bias = (np.asarray(a).reshape(4, -1) for a in (layer.weight, layer.bias))
    expected = normalised(kind, np.asarray(x)) * weight + bias
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12)
    where = lambda m: (m.weight, m.bias)
    np.testing.assert_allclose(layer(x), eqx.tree_at(where, peer, where(layer))(x), rtol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_parameters(kind) -> None:
    build, _ = LAYERS[kind]
    layer, x = build(), normal(4, 3)
    np.testing.assert_array_equal(layer.weight, np.ones_like(layer.weight))
    np.testing.assert_array_equal(layer.bias, np.zeros_like(layer.bias))
    assert marks(layer, x) == parameters(layer) == 2
    without = (
        {"channelwise_affine": False}
        if kind is nn.GroupNorm
        else {"use_weight": False, "use_bias": False}
    )
    plain = build(**without)
    assert parameters(plain) == 0
    np.testing.assert_allclose(plain(x), layer(x), rtol=1e-14)


@pytest.mark.parametrize("kind", LAYERS)
def test_half_precision_is_computed_in_single(kind) -> None:
    layer, x = LAYERS[kind][0](dtype=jnp.bfloat16), normal(4, 3).astype(jnp.bfloat16)
    assert layer.weight.dtype == layer(x).dtype == jnp.bfloat16
    expected = normalised(kind, np.asarray(x, float))
    np.testing.assert_allclose(np.asarray(layer(x), float), expected, rtol=2**-8)


def test_group_norm_takes_any_number_of_dimensions() -> None:
    layer = nn.GroupNorm(2, 4)
    x = normal(4, 3, 2)
    np.testing.assert_allclose(layer(x), eqx.nn.GroupNorm(2, 4)(x), rtol=1e-12)
    np.testing.assert_allclose(layer(x[:, 0, 0]), layer(x[:, :1, :1])[:, 0, 0], rtol=1e-14)


@pytest.mark.parametrize(("kind", "block"), [(nn.LayerNorm, 4), (nn.RMSNorm, 4), (nn.GroupNorm, 2)])
def test_d_rtrl_is_exact_in_front_of_a_state(kind, block) -> None:
    norm = shuffled(kind(2, 4) if kind is nn.GroupNorm else kind(4))
    model = nn.Sequential([nn.Linear(3, 4, key=KEY), norm, Leaky((4,))])
    report = verify(model, normal(11, 3))
    assert len(exact(report)) == len(report.rows) == 4
    blocks = {op.path: op.block for op in report.program.ops}
    assert blocks[".layers[0].weight"] == block
    assert blocks[".layers[1].weight"] == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.LayerNorm(0), "shape must be an integer >= 1, got 0"),
        (lambda: nn.RMSNorm((2, -1)), "shape must be an integer >= 1, got -1"),
        (lambda: nn.LayerNorm(2, eps=0.0), "eps must be a finite number > 0, got 0.0"),
        (lambda: nn.RMSNorm(2, dtype=int), "dtype must be a real floating-point type, got int"),
        (lambda: nn.GroupNorm(0, 2), "groups must be an integer >= 1, got 0"),
        (lambda: nn.GroupNorm(2, 0), "channels must be an integer >= 1, got 0"),
        (lambda: nn.GroupNorm(2, 3), "groups=2 must divide channels=3"),
        (lambda: nn.GroupNorm(1, 2, eps=-1.0), "eps must be a finite number > 0, got -1.0"),
        (lambda: nn.GroupNorm(1, 2, dtype=complex), "dtype must be a real floating-point type"),
    ],
)
def test_arguments_out_of_range(build, message: str) -> None:
    with pytest.raises(etpc.InputError, match=message):
        build()


@pytest.mark.parametrize("kind", LAYERS)
def test_input_that_does_not_fit(kind, monkeypatch) -> None:
    as_a_user(monkeypatch)
    message = rf"{kind.__name__} was called with x of shape \(3, 3\) where \(4, 3\) is needed"
    with pytest.raises(etpc.InputError, match=message):
        LAYERS[kind][0]()(jnp.ones((3, 3)))
    with pytest.raises(etpc.InputError, match=r"called with x of shape \(\)"):
        LAYERS[kind][0]()(jnp.ones(()))
