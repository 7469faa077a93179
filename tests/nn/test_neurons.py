"""Every spiking neuron against its equations in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.nn.online import run
from tests.nn.reference import MODELS, SLOPE, simulate

RESETS = [(name, {}) for name in MODELS] + [
    (name, {"reset": "hard"}) for name in MODELS if "reset" in MODELS[name].arguments
]


def currents(name: str, steps: int, size: int) -> np.ndarray:
    mean, deviation = MODELS[name].drive
    return np.random.default_rng(0).normal(mean, deviation, (steps, size))


@pytest.mark.parametrize("refractory", [0, 3])
@pytest.mark.parametrize(("name", "changed"), RESETS)
def test_against_loops(name: str, changed: dict, refractory: int) -> None:
    model = MODELS[name]
    given = model.arguments | changed
    neuron = model.layer(3, **given, refractory=refractory * given["dt"])
    inputs = currents(name, 120, 3)
    spikes, states = run(neuron, inputs)
    expected, trace = simulate(model, inputs, refractory, **changed)
    np.testing.assert_array_equal(spikes, expected)
    assert (spikes.sum(0) > 2).all()
    assert (spikes.mean(0) < 0.8).all()
    if not isinstance(states, tuple):
        states = {"V": states}
    else:
        states = states._asdict()
        wait = states.pop("wait")
        assert (wait is None) == (refractory == 0)
        if wait is not None:
            assert wait.dtype == jnp.int32
            assert wait.max() == refractory
    assert states.keys() == trace.keys()
    for field, values in trace.items():
        np.testing.assert_allclose(states[field], values, rtol=1e-9, atol=1e-9, err_msg=field)


def test_refractory_neurons_wait_and_then_integrate() -> None:
    lif = nn.LIF(1, tau=10.0, reset="hard", refractory=2.5)  # three steps
    spikes, state = run(lif, np.full((12, 1), 100.0))
    assert spikes[:, 0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert state.wait[:, 0].tolist() == [0, 3, 2, 1, 0, 3, 2, 1, 0, 3, 2, 1]
    np.testing.assert_array_equal(state.V[1:4, 0], 0)


def test_a_soft_reset_that_stays_above_threshold_is_no_spike_while_refractory() -> None:
    lif = nn.LIF(1, refractory=2.0)
    high = lif.init_state()._replace(V=jnp.array([5.0]))
    assert lif.spike(high).tolist() == [1]
    spike, state = lif(jnp.zeros(1), high)
    assert spike.tolist() == lif.spike(state).tolist() == [0]
    assert state.V.tolist() == [4.0]
    slope = jax.grad(lambda V: lif.spike(state._replace(V=V)).sum())(state.V)
    assert slope.tolist() == [0]


def test_small_steps_of_the_resonator_keep_their_precision() -> None:
    # (exp(l dt) - 1) / l in float32 by its formula would be off by 10 %.
    neuron = nn.ResonateAndFire(1, tau=np.array(10.0), dt=1e-6, dtype=jnp.float32)
    _, state = neuron(jnp.ones(1, jnp.float32), neuron.init_state())
    np.testing.assert_allclose(state.x, [1e-6], rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_detached_reset_is_that_of_the_potential_alone(name: str) -> None:
    model, slopes = MODELS[name], []
    # Without a, the second variable follows the spikes and not the potential.
    given = {n: 0.0 if n == "a" else v for n, v in model.arguments.items()}
    for detach in (False, True):
        neuron = model.layer(1, **given, surrogate=SLOPE, detach_reset=detach)
        state = neuron.init_state()
        near = jnp.array([model.arguments["V_th"] + 0.1])

        def after(V, neuron=neuron, state=state):
            old = state._replace(V=V) if isinstance(state, tuple) else V
            new = neuron(jnp.zeros(1), old)[1]
            return new._asdict() if isinstance(new, tuple) else {"V": new}

        slopes.append(jax.jvp(after, (near,), (jnp.ones(1),))[1])
    whole, detached = slopes
    assert abs(whole["V"] - detached["V"]) > 1e-3
    for field in set(model.fields) - {"V", "x"}:
        assert abs(whole[field]) > 1e-6, field
        np.testing.assert_allclose(detached[field], whole[field], rtol=1e-12, err_msg=field)


def test_a_parameter_that_all_units_share_is_followed_unit_by_unit() -> None:
    alif = nn.ALIF(5, tau=np.array(4.0), beta=np.array(0.3))
    program = etpc.compile(alif, "d_rtrl", inputs=jnp.zeros(5))
    assert {op.path for op in program.ops} == {".tau", ".beta"}
    assert {op.block for op in program.ops} == {2}


@pytest.mark.parametrize("name", MODELS)
def test_defaults_spike(name: str) -> None:
    current = {"QIF": 20.0, "EIF": 10.0, "Izhikevich": 10.0, "ResonateAndFire": 0.35}.get(name, 5.0)
    spikes, _ = run(MODELS[name].layer(1), np.full((100, 1), current))
    assert 0 < spikes.sum() < 100
    assert not run(MODELS[name].layer(1), np.zeros((100, 1)))[0].any()


def test_state_of_another_structure(without_type_checks) -> None:
    plain, waiting, alif = nn.LIF(2), nn.LIF(2, refractory=1.0), nn.ALIF(2)
    for neuron, state, wanted in [
        (plain, waiting.init_state(), "of type Membrane where an array is needed"),
        (waiting, plain.init_state(), "where a Membrane of V, wait is needed"),
        (alif, plain.init_state(), "where a ALIFState of V, a is needed"),
        (alif, nn.ALIF(2, refractory=1.0).init_state(), "where a ALIFState of V, a is needed"),
    ]:
        with pytest.raises(ValueError, match=wanted):
            neuron(jnp.ones(2), state)
        with pytest.raises(ValueError, match=wanted):
            neuron.spike(state)
    with pytest.raises(ValueError, match=r"ALIF was called with a of shape \(3,\) where \(2,\)"):
        alif(jnp.ones(2), alif.init_state()._replace(a=jnp.ones(3)))
