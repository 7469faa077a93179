"""The dense layer whose inputs have signs, and what all constructors check."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn
from tests.nn.online import KEY, marks


def linear(in_features=3, out_features=2, **more):
    return nn.DaleLinear(in_features, out_features, excitatory=1, key=KEY, **more)


def test_default_dtype_follows_x64() -> None:
    assert linear().weight.dtype == jnp.float64
    with jax.enable_x64(False):
        assert linear().weight.dtype == jnp.float32


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


def test_initial_weights() -> None:
    expected = jax.nn.initializers.he_normal(in_axis=1, out_axis=0)(KEY, (2, 3))
    np.testing.assert_array_equal(linear().weight, expected)
