"""Surrogate derivatives against their formulas."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import surrogate
from etpc.surrogate import Arctan, Gaussian, MultiGaussian, ReluGrad, Sigmoid, SuperSpike, Surrogate
from tests.marks import few

GRID = np.linspace(-3.0, 3.0, 241)  # contains 0 and the corners of the triangles


def pdf(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# The defaults are written out, so that a change of one is seen.
CASES: list[tuple[Surrogate, Callable[[np.ndarray], np.ndarray]]] = [
    (ReluGrad(), lambda x: 0.3 * np.maximum(0, 1 - np.abs(x))),
    (ReluGrad(alpha=0.7, width=2.0), lambda x: 0.7 * np.maximum(0, 2 - np.abs(x))),
    (Sigmoid(), lambda x: 4 * logistic(4 * x) * (1 - logistic(4 * x))),
    (Sigmoid(alpha=1.5), lambda x: 1.5 * logistic(1.5 * x) * (1 - logistic(1.5 * x))),
    (Arctan(), lambda x: 1 / (1 + (np.pi * x) ** 2)),
    (Arctan(alpha=1.0), lambda x: 0.5 / (1 + (np.pi / 2 * x) ** 2)),
    (SuperSpike(), lambda x: (1 + 10 * np.abs(x)) ** -2),
    (SuperSpike(beta=3.0), lambda x: (1 + 3 * np.abs(x)) ** -2),
    (Gaussian(), lambda x: 0.5 * pdf(x, 0, 0.5)),
    (Gaussian(sigma=0.2, alpha=0.9), lambda x: 0.9 * pdf(x, 0, 0.2)),
    (
        MultiGaussian(),
        lambda x: 0.5 * (1.15 * pdf(x, 0, 0.5) - 0.15 * (pdf(x, 0.5, 3) + pdf(x, -0.5, 3))),
    ),
    (
        MultiGaussian(h=0.4, s=2.0, sigma=0.3, alpha=1.0),
        lambda x: 1.4 * pdf(x, 0, 0.3) - 0.4 * (pdf(x, 0.3, 0.6) + pdf(x, -0.3, 0.6)),
    ),
]
each_case = pytest.mark.parametrize(
    ("spike", "formula"), CASES, ids=[repr(spike) for spike, _ in CASES]
)
each_default = pytest.mark.parametrize("spike", [case[0] for case in CASES[::2]], ids=repr)


@each_case
def test_derivative_reaches_jvp_vjp_and_jit(
    spike: Surrogate, formula: Callable[[np.ndarray], np.ndarray]
) -> None:
    x = jnp.asarray(GRID, jnp.float64)
    direction = jnp.cos(x)
    expected = formula(GRID) * np.cos(GRID)
    _, forward = jax.jit(lambda x, dx: jax.jvp(spike, (x,), (dx,)))(x, direction)
    _, linear = jax.linearize(spike, x)
    _, pullback = jax.vjp(jax.jit(spike), x)
    for derivative in (forward, linear(direction), *pullback(direction)):
        np.testing.assert_allclose(derivative, expected, rtol=1e-12, atol=1e-15)


@each_default
@pytest.mark.parametrize("dtype", few([jnp.float32, jnp.float64, jnp.bfloat16], jnp.bfloat16))
def test_value_is_the_heaviside_step_in_the_dtype_of_x(spike: Surrogate, dtype: type) -> None:
    x = jnp.array([-jnp.inf, -2.0, -1e-30, -0.0, 0.0, 1e-30, 2.0, jnp.inf], dtype)
    for apply in (spike, jax.jit(spike), jax.vmap(spike)):
        y, dy = jax.jvp(apply, (x,), (jnp.ones_like(x),))
        assert y.dtype == dy.dtype == dtype
        np.testing.assert_array_equal(np.asarray(y, float), [0, 0, 0, 1, 1, 1, 1, 1])
        assert np.all(np.isfinite(np.asarray(dy, float)))


@each_default
def test_any_shape(spike: Surrogate) -> None:
    assert spike(0.5).shape == ()
    assert spike(jnp.zeros((2, 0, 3))).shape == (2, 0, 3)


def test_second_derivative_is_that_of_the_surrogate() -> None:
    second = jax.grad(jax.grad(SuperSpike(beta=3.0)))(0.5)
    np.testing.assert_allclose(second, -2 * 3 / (1 + 3 * 0.5) ** 3, rtol=1e-12)


def test_static_field_of_a_module_does_not_recompile() -> None:
    class Layer(eqx.Module):
        spike: Surrogate = eqx.field(static=True)

    traces = 0

    @jax.jit
    def run(layer: Layer, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return jax.grad(layer.spike)(x)

    slope = run(Layer(ReluGrad()), jnp.array(0.0))
    run(Layer(ReluGrad()), jnp.array(0.5))
    assert traces == 1
    assert run(Layer(ReluGrad(alpha=0.6)), jnp.array(0.0)) == 2 * slope
    assert traces == 2


def test_parameters_are_python_floats(without_type_checks) -> None:
    spike = ReluGrad(np.float64(2), 3)
    assert repr(spike) == "ReluGrad(alpha=2.0, width=3.0)"
    assert all(type(value) is float for value in dataclasses.astuple(spike))
    x = jnp.ones(2, jnp.float32)
    assert jax.grad(lambda x: Gaussian(np.float64(0.3))(x).sum())(x).dtype == jnp.float32


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize(
    ("kind", "name"), [(type(s), f.name) for s, _ in CASES[::2] for f in dataclasses.fields(s)]
)
def test_parameter_out_of_range(kind: type[Surrogate], name: str, value: float) -> None:
    message = rf"{kind.__name__}: {name} must be a finite number > 0, got {value}.*Pass a"
    with pytest.raises(ValueError, match=message):
        kind(**{name: value})


def test_wrong_types(without_type_checks) -> None:
    with pytest.raises(ValueError, match=r"alpha must be a finite number > 0, got Array.*fixed"):
        ReluGrad(alpha=jnp.array(0.3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"ReluGrad .* dtype int.*`x.astype\(float\)`"):
        ReluGrad()(jnp.arange(3))
    with pytest.raises(TypeError, match="dtype complex"):
        ReluGrad()(jnp.ones(3, complex))


def test_all_is_complete() -> None:
    public = {
        name
        for name, value in vars(surrogate).items()
        if isinstance(value, type) and issubclass(value, Surrogate)
    }
    assert set(surrogate.__all__) == public
