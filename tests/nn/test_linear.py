"""The dense layer whose inputs have signs, and what all constructors check."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn
from tests.nn.online import KEY, Leaky, marks, normal, verify


def linear(in_features=3, out_features=2, **more):
    return nn.DaleLinear(in_features, out_features, excitatory=1, key=KEY, **more)


def test_default_dtype_follows_x64() -> None:
    assert linear().weight.dtype == jnp.float64
    with jax.enable_x64(False):
        assert linear().weight.dtype == jnp.float32


def test_an_ensemble_can_be_built_under_vmap() -> None:
    ensemble = eqx.filter_vmap(lambda key: nn.DaleLinear(3, 2, excitatory=1, key=key))(
        jax.random.split(KEY, 4)
    )
    assert ensemble.weight.shape == (4, 2, 3)


@pytest.mark.parametrize("name", ["in_features", "out_features"])
@pytest.mark.parametrize("value", [0, -3])
def test_size_out_of_range(name: str, value: int) -> None:
    sizes = {"in_features": 3, "out_features": 2, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be an integer >= 1, got {value}.*Pass"):
        linear(**sizes)


def test_wrong_types(without_type_checks) -> None:
    for value in (2.0, "2", True, None):
        with pytest.raises(ValueError, match="in_features must be an integer >= 1, got"):
            linear(value)


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_dtype_that_is_not_real(dtype: type) -> None:
    with pytest.raises(
        ValueError, match=r"dtype must be a real floating-point type, got .*float32"
    ):
        linear(dtype=dtype)


@pytest.mark.parametrize(("shape", "advice"), [((), "sizes"), ((4,), "sizes"), ((5, 3), r"vmap")])
def test_input_that_does_not_fit(shape: tuple[int, ...], advice: str, without_type_checks) -> None:
    with pytest.raises(
        ValueError, match=rf"DaleLinear was called with x of shape .* \(3,\) .*{advice}"
    ):
        linear()(jnp.ones(shape))


@pytest.mark.parametrize("excitatory", [0, 2, 5])
def test_dale(excitatory: int) -> None:
    dale = nn.DaleLinear(5, 3, excitatory=excitatory, key=KEY)
    weight, x = np.asarray(dale.weight), np.asarray(jax.random.normal(jax.random.key(1), (5,)))
    assert (weight < 0).any()
    assert (weight > 0).any()
    signs = np.where(np.arange(5) < excitatory, 1.0, -1.0)
    np.testing.assert_allclose(dale(jnp.asarray(x)), (np.abs(weight) * signs) @ x, rtol=1e-13)
    np.testing.assert_array_equal(np.sign(dale.effective_weight()), np.tile(signs, (3, 1)))
    grads = jax.grad(lambda dale: jnp.sum(dale(jnp.asarray(x))))(dale)
    np.testing.assert_allclose(grads.weight, np.sign(weight) * signs * x, rtol=1e-13)
    assert marks(dale, jnp.asarray(x)) == 1


@pytest.mark.parametrize("excitatory", [-1, 6, 2.5, True])
def test_dale_with_a_count_out_of_range(excitatory: int, without_type_checks) -> None:
    with pytest.raises(ValueError, match=r"excitatory must be an integer from 0 to in_features=5"):
        nn.DaleLinear(5, 3, excitatory=excitatory, key=KEY)


def test_initial_weights() -> None:
    expected = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)(KEY, (2, 3))
    np.testing.assert_array_equal(linear().weight, expected)


@pytest.mark.slow
def test_dale_in_a_network() -> None:
    dale = nn.DaleLinear(5, 3, excitatory=3, key=KEY)
    report = verify(nn.Sequential([dale, Leaky((3,))]), normal(11, 5))
    assert [(row.path, row.claim) for row in report.rows] == [(".layers[0].weight", "exact")]
