"""The dense layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import etpc
from etpc import nn

KEY = jax.random.key(0)


def marks(fn, *args: jax.Array) -> int:
    """How many marks a function places."""
    return str(jax.make_jaxpr(fn)(*args)).count("= etp ")


def test_equation() -> None:
    linear = nn.Linear(3, 2, bias_init=nn.normal(1.0), key=KEY)
    x = jax.random.normal(jax.random.key(1), (3,))
    assert linear.bias is not None
    assert jnp.all(linear.bias != 0)
    expected = np.asarray(linear.weight) @ np.asarray(x) + np.asarray(linear.bias)
    for apply in (linear, eqx.filter_jit(linear)):
        np.testing.assert_allclose(apply(x), expected, rtol=1e-14)
    batch = jnp.stack([x, -x])
    np.testing.assert_allclose(jax.vmap(linear)(batch)[0], expected, rtol=1e-14)


def test_defaults() -> None:
    linear = nn.Linear(400, 300, key=KEY)
    assert linear.weight.shape == (300, 400)
    np.testing.assert_allclose(jnp.var(linear.weight), 2 / 400, rtol=0.03)
    np.testing.assert_array_equal(linear.bias, np.zeros(300))


def test_without_bias() -> None:
    linear = nn.Linear(3, 2, False, key=KEY)
    assert linear.bias is None
    np.testing.assert_array_equal(linear(jnp.zeros(3)), np.zeros(2))
    assert marks(linear, jnp.ones(3)) == 1


def test_parameters_are_marked() -> None:
    assert marks(nn.Linear(3, 2, key=KEY), jnp.ones(3)) == 2


def test_gradient() -> None:
    linear = nn.Linear(3, 2, key=KEY)
    x = jnp.array([1.0, -2.0, 0.5])
    grads = jax.grad(lambda linear: jnp.sum(linear(x) * jnp.array([1.0, 3.0])))(linear)
    np.testing.assert_allclose(grads.weight, np.outer([1.0, 3.0], x), rtol=1e-14)
    np.testing.assert_allclose(grads.bias, [1.0, 3.0], rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype(dtype: type) -> None:
    linear = nn.Linear(1, 1, dtype=dtype, key=KEY)
    assert linear(jnp.ones(1, dtype)).dtype == dtype
    assert linear.weight.dtype == dtype


def test_default_dtype_follows_x64() -> None:
    assert nn.Linear(1, 1, key=KEY).weight.dtype == jnp.float64
    with jax.enable_x64(False):
        assert nn.Linear(1, 1, key=KEY).weight.dtype == jnp.float32


def test_weight_and_bias_are_drawn_from_different_keys() -> None:
    linear = nn.Linear(1, 1, weight_init=nn.normal(1.0), bias_init=nn.normal(1.0), key=KEY)
    assert linear.bias is not None
    assert linear.weight[0, 0] != linear.bias[0]


def test_an_ensemble_can_be_built_under_vmap() -> None:
    ensemble = eqx.filter_vmap(lambda key: nn.Linear(3, 2, key=key))(jax.random.split(KEY, 4))
    assert ensemble.weight.shape == (4, 2, 3)


@pytest.mark.parametrize("name", ["in_features", "out_features"])
@pytest.mark.parametrize("value", [0, -3])
def test_size_out_of_range(name: str, value: int) -> None:
    sizes = {"in_features": 3, "out_features": 2, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be an integer >= 1, got {value}.*Pass"):
        nn.Linear(**sizes, key=KEY)


def test_wrong_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user runs it
    for value in (2.0, "2", True, None):
        with pytest.raises(ValueError, match="in_features must be an integer >= 1, got"):
            nn.Linear(value, 2, key=KEY)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_dtype_that_is_not_real(dtype: type) -> None:
    with pytest.raises(
        ValueError, match=r"dtype must be a real floating-point type, got .*float32"
    ):
        nn.Linear(3, 2, dtype=dtype, key=KEY)


@pytest.mark.parametrize("name", ["weight_init", "bias_init"])
@pytest.mark.parametrize(
    "init",
    [
        lambda key, shape, dtype: jnp.zeros((*shape, 1), dtype),
        lambda key, shape, dtype: jnp.zeros(shape, jnp.float32),
    ],
)
def test_initialiser_that_returns_something_else(name: str, init) -> None:
    with pytest.raises(ValueError, match=rf"{name} returned float.* where float64.* is needed"):
        nn.Linear(3, 2, key=KEY, **{name: init})


@pytest.mark.parametrize(("shape", "advice"), [((), "sizes"), ((4,), "sizes"), ((5, 3), r"vmap")])
def test_input_that_does_not_fit(
    shape: tuple[int, ...], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user runs it
    with pytest.raises(
        ValueError, match=rf"Linear was called with x of shape .* \(3,\) .*{advice}"
    ):
        nn.Linear(3, 2, key=KEY)(jnp.ones(shape))


@pytest.mark.parametrize("excitatory", [0, 2, 5])
def test_dale(excitatory: int) -> None:
    dale = nn.DaleLinear(5, 3, excitatory=excitatory, weight_init=nn.normal(1.0), key=KEY)
    weight, x = np.asarray(dale.weight), np.asarray(jax.random.normal(jax.random.key(1), (5,)))
    assert (weight < 0).any()
    assert (weight > 0).any()
    signs = np.where(np.arange(5) < excitatory, 1.0, -1.0)
    np.testing.assert_allclose(dale(jnp.asarray(x)), (np.abs(weight) * signs) @ x, rtol=1e-13)
    np.testing.assert_array_equal(np.sign(dale.effective_weight()), np.tile(signs, (3, 1)))
    grads = jax.grad(lambda dale: jnp.sum(dale(jnp.asarray(x))))(dale)
    np.testing.assert_allclose(grads.weight, np.sign(weight) * signs * x, rtol=1e-13)
    assert marks(dale, jnp.asarray(x)) == 1


def test_dale_in_a_network() -> None:
    dale = nn.DaleLinear(5, 3, excitatory=3, weight_init=nn.normal(1.0), key=KEY)

    def step(model, x, s):
        s = 0.7 * s + jnp.tanh(model(x))
        return s, s

    xs, targets = jax.random.normal(jax.random.key(1), (11, 5)), jnp.ones((11, 3))
    loss = lambda y, target: jnp.sum(jnp.square(y - target))
    given = {"state": jnp.zeros(3), "step": step}
    report = etpc.verify(dale, xs, targets, loss, etpc.D_RTRL(window=3), **given)
    assert report.ok, str(report)
    assert [(row.path, row.claim) for row in report.rows] == [(".weight", "exact")]


@pytest.mark.parametrize("excitatory", [-1, 6, 2.5, True])
def test_dale_with_a_count_out_of_range(excitatory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user runs it
    with pytest.raises(ValueError, match=r"excitatory must be an integer from 0 to in_features=5"):
        nn.DaleLinear(5, 3, excitatory=excitatory, key=KEY)


def test_dale_with_an_input_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user runs it
    with pytest.raises(ValueError, match=r"DaleLinear was called with x of shape \(4,\)"):
        nn.DaleLinear(5, 3, excitatory=3, key=KEY)(jnp.ones(4))
