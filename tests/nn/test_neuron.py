"""LIF neurons against their equations in closed form, and what all declared layers check."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn
from etpc.surrogate import ReluGrad, Sigmoid, SuperSpike

SLOPE = SuperSpike(beta=2.0)  # zero nowhere


def h(x: np.ndarray) -> np.ndarray:
    return (1 + 2 * np.abs(x)) ** -2


def test_spike_at_the_threshold_itself() -> None:
    np.testing.assert_array_equal(nn.LIF(3).spike(jnp.array([0.999, 1.0, 1.001])), [0, 1, 1])


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_derivatives(reset: str, detach: bool) -> None:
    V_th, V_reset = 1.2, -0.4
    lif = nn.LIF(
        4,
        tau=8.0,
        R=1.5,
        V_th=V_th,
        V_reset=V_reset,
        reset=reset,
        surrogate=SLOPE,
        detach_reset=detach,
    )
    old = np.array([-0.3, 0.9, 1.3, 2.5])
    current = np.array([0.4, -1.0, 2.0, 0.1])
    scale = V_th - V_reset
    z, dz = np.array([0.0, 0.0, 1.0, 1.0]), h((old - V_th) / scale) / scale
    keep = np.ones(4) if reset == "soft" else 1 - z
    drop = scale if reset == "soft" else old - V_reset
    transition = np.exp(-1 / 8) * (keep - (0.0 if detach else drop * dz))
    immediate = 1.5 * (1 - np.exp(-1 / 8)) * np.ones(4)

    arguments = jnp.asarray(current), jnp.asarray(old)
    dnew = h((np.asarray(lif(*arguments)[1]) - V_th) / scale) / scale
    by_spike, by_state = jax.jacobian(lif, argnums=(0, 1))(*arguments)
    expected = [immediate * dnew, transition * dnew], [immediate, transition]
    for found, diagonals in zip([*by_spike, *by_state], [*expected[0], *expected[1]], strict=True):
        np.testing.assert_allclose(found, np.diag(diagonals), rtol=1e-12, atol=1e-15)


def test_the_signature_names_its_types() -> None:
    text = str(inspect.signature(nn.ALIF))
    assert "tau_a: Parameter = 200.0" in text
    assert "dtype: DType = None" in text
    assert not any(word in text for word in ("Union", "numpy", "Protocol", "Quantity"))


def test_numbers_are_constants() -> None:
    lif = nn.LIF(3, tau=10, R=np.float64(2.0))
    assert not jax.tree.leaves(eqx.filter(lif, eqx.is_array))
    assert type(lif.tau) is type(lif.R) is float
    assert "etp" not in str(jax.make_jaxpr(lif)(jnp.ones(3), lif.init_state()))


PARAMETERS = {"tau": 8.0, "R": 1.5, "V_th": 1.2, "V_rest": 0.1, "V_reset": -0.4}


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("name", PARAMETERS)
def test_arrays_are_marked_parameters(name: str, reset: str, shape: tuple[int, ...]) -> None:
    fixed = nn.LIF(2, **PARAMETERS, reset=reset, surrogate=SLOPE)
    given = PARAMETERS | {name: np.full(shape, PARAMETERS[name])}
    lif = nn.LIF(2, **given, reset=reset, surrogate=SLOPE)
    leaves = jax.tree.leaves(eqx.filter(lif, eqx.is_array))
    assert [leaf.shape for leaf in leaves] == [shape]
    current, V = jnp.array([0.3, 2.0]), jnp.array([0.7, 1.4])
    assert "= etp " in str(jax.make_jaxpr(lif)(current, V))
    np.testing.assert_allclose(lif(current, V), fixed(current, V), rtol=1e-14)
    np.testing.assert_allclose(lif.init_state(), fixed.init_state(), rtol=1e-14)

    # The new V away from the threshold does not see the surrogate: finite differences of the
    # detached neuron are exact there.
    def new_V(value: jax.Array) -> jax.Array:
        detached = nn.LIF(2, **(given | {name: value}), reset=reset, detach_reset=True)
        return detached(current, V)[1]

    value = jnp.asarray(given[name])
    _, slope = jax.jvp(new_V, (value,), (jnp.ones_like(value),))
    expected = (new_V(value + 1e-5) - new_V(value - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, expected, rtol=1e-8, atol=1e-9)


def test_surrogate_gets_the_distance_in_units_of_reset_to_threshold() -> None:
    lif = nn.LIF(3, V_th=3.0, V_reset=-1.0, surrogate=lambda x: x)
    np.testing.assert_allclose(lif.spike(jnp.array([-1.0, 3.0, 5.0])), [-1, 0, 0.5], rtol=1e-14)


def test_defaults() -> None:
    lif = nn.LIF(3)
    assert (lif.tau, lif.R, lif.V_th, lif.V_rest, lif.V_reset, lif.dt) == (20, 1, 1, 0, 0, 1)
    assert (lif.reset, lif.detach_reset) == ("soft", False)
    assert lif.surrogate == ReluGrad()
    np.testing.assert_array_equal(nn.LIF(3, V_rest=-2.0).init_state(), [-2, -2, -2])


@pytest.mark.parametrize("size", [1, (1,), (2, 3), (1, 1, 4)])
def test_sizes(size: int | tuple[int, ...]) -> None:
    lif = nn.LIF(size)
    shape = size if isinstance(size, tuple) else (size,)
    V = lif.init_state()
    spike, V = lif(jnp.full(shape, 30.0), V)
    assert spike.shape == V.shape == shape
    np.testing.assert_array_equal(spike, np.ones(shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("tau", [np.float64(9.0), np.array([9.0])])
def test_dtype(dtype: type, tau: float | np.ndarray) -> None:
    lif = nn.LIF(1, tau=tau, dtype=dtype)
    V = lif.init_state()
    assert V.dtype == dtype
    spike, V = eqx.filter_jit(lif)(jnp.ones(1, dtype), V)
    assert spike.dtype == V.dtype == dtype


def test_small_steps_keep_their_precision() -> None:
    # 1 - exp(-1e-6) in float32 would be off by 5 %.
    lif = nn.LIF(1, tau=np.array([1e6]), dtype=jnp.float32)
    _, V = lif(jnp.ones(1, jnp.float32), lif.init_state())
    np.testing.assert_allclose(V, [1e-6], rtol=1e-5)


def test_compiled_once_for_equal_neurons() -> None:
    traces = 0

    @jax.jit
    def step(lif: nn.LIF, current: jax.Array, V: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return lif(current, V)[1]

    for surrogate in (ReluGrad(), ReluGrad(0.3), Sigmoid()):
        step(nn.LIF(2, surrogate=surrogate), jnp.ones(2), jnp.ones(2))
    assert traces == 2
    assert hash(nn.LIF(2)) == hash(nn.LIF(2))
    assert nn.LIF(2) == nn.LIF(2)


def test_can_be_built_under_vmap() -> None:
    taus = jnp.array([5.0, 10.0, 20.0])
    lifs = eqx.filter_vmap(lambda tau: nn.LIF(2, tau=tau))(taus)
    np.testing.assert_array_equal(lifs.tau, taus)
