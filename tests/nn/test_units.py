"""Layers whose parameters are given as `saiunit` quantities."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn

u = pytest.importorskip("saiunit")
KEY = jax.random.key(0)

# Of every layer: each parameter that has a unit, as a quantity in another scale than that of the layer.
MEMBRANE = {
    "tau": 0.02 * u.second,
    "R": 5000.0 * u.ohm * 1e3,
    "V_th": -0.05 * u.volt,
    "V_rest": -65000.0 * u.uvolt,
    "V_reset": -70 * u.mV,
    "dt": 500.0 * u.us,
    "refractory": 0.002 * u.second,
}
PLAIN = {
    "tau": 20.0,
    "R": 5.0,
    "V_th": -50.0,
    "V_rest": -65.0,
    "V_reset": -70.0,
    "dt": 0.5,
    "refractory": 2.0,
}
UPSWING = {"delta_T": 0.002 * u.volt, "V_T": -0.055 * u.volt}
PLAIN_UPSWING = {"delta_T": 2.0, "V_T": -55.0}
TIMES = {"tau_rise": 0.001 * u.second, "tau_decay": 4000.0 * u.us, "dt": 0.5 * u.ms}
LAYERS = [
    (nn.LIF, MEMBRANE, PLAIN),
    (
        nn.ALIF,
        MEMBRANE | {"tau_a": 0.1 * u.second, "beta": 300.0 * u.uvolt},
        PLAIN | {"tau_a": 100.0, "beta": 0.3},
    ),
    (
        nn.GIF,
        MEMBRANE
        | {"V_th_reset": -0.06 * u.volt, "A_th": 100.0 * u.uvolt, "a": 5.0 * u.Hz}
        | dict.fromkeys(("tau_th", "tau_I1", "tau_I2"), 0.03 * u.second)
        | {"A1": 200.0 * u.pA, "A2": -0.1 * u.nA, "R1": 0.5 * u.mV / u.mV},
        PLAIN
        | {"V_th_reset": -60.0, "A_th": 0.1, "a": 0.005, "tau_th": 30.0, "tau_I1": 30.0}
        | {"tau_I2": 30.0, "A1": 0.2, "A2": -0.1, "R1": 0.5},
    ),
    (
        nn.QIF,
        MEMBRANE | {"c": 80.0 / u.volt, "V_c": -0.052 * u.volt},
        PLAIN | {"c": 0.08, "V_c": -52.0},
    ),
    (nn.EIF, MEMBRANE | UPSWING, PLAIN | PLAIN_UPSWING),
    (
        nn.AdEx,
        MEMBRANE | UPSWING | {"tau_w": 0.1 * u.second, "a": 4.0 * u.nS, "b": 80.0 * u.pA},
        PLAIN | PLAIN_UPSWING | {"tau_w": 100.0, "a": 0.004, "b": 0.08},
    ),
    (
        nn.Izhikevich,
        {"a": 20.0 * u.Hz, "b": 0.2 / u.ms, "c": -0.06 * u.volt, "d": 6.0 * u.volt / u.second},
        {"a": 0.02, "b": 0.2, "c": -60.0, "d": 6.0},
    ),
    (
        nn.ResonateAndFire,
        {"tau": 0.02 * u.second, "omega": 500.0 * u.Hz, "V_th": 900.0 * u.uvolt},
        {"tau": 20.0, "omega": 0.5, "V_th": 0.9},
    ),
    (nn.ExponentialSynapse, {"tau": 0.004 * u.second}, {"tau": 4.0}),
    (nn.DualExponentialSynapse, TIMES, {"tau_rise": 1.0, "tau_decay": 4.0, "dt": 0.5}),
    (nn.COBA, {"E": -0.08 * u.volt}, {"E": -80.0}),
    (
        nn.ShortTermPlasticity,
        {"tau_f": 1.5 * u.second, "tau_d": 0.2 * u.second},
        {"tau_f": 1500.0, "tau_d": 200.0},
    ),
    (
        lambda O, **given: nn.LeakyRateReadout(3, O, key=KEY, **given),
        {"tau": 0.004 * u.second},
        {"tau": 4.0},
    ),
    (
        lambda O, **given: nn.MembraneReadout(3, O, key=KEY, **given),
        {"tau": 0.004 * u.second},
        {"tau": 4.0},
    ),
]
NAMES = [getattr(layer, "__name__", "readout") for layer, _, _ in LAYERS]


@pytest.mark.parametrize(("layer", "quantities", "numbers"), LAYERS, ids=NAMES)
def test_quantities_become_plain_numbers(layer, quantities: dict, numbers: dict) -> None:
    converted, plain = layer(2, **quantities), layer(2, **numbers)
    for name in quantities:
        value = getattr(converted, name)
        assert type(value) is float
        np.testing.assert_allclose(value, getattr(plain, name), rtol=1e-12, err_msg=name)


@pytest.mark.parametrize(("layer", "quantities", "numbers"), LAYERS, ids=NAMES)
def test_another_dimension(layer, quantities: dict, numbers: dict) -> None:
    for name in quantities:
        with pytest.raises(ValueError, match=rf"^{name} must be a .*got 3.* kg.*Pass a"):
            layer(2, **(numbers | {name: 3.0 * u.kilogram}))


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_quantity_of_an_array_is_a_parameter(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 0.02)
    for given in (values * u.second, jnp.asarray(values) * u.second):
        lif = nn.LIF(2, tau=given, dtype=jnp.float32)
        assert isinstance(lif.tau, jax.Array)
        assert lif.tau.dtype == jnp.float32
        np.testing.assert_allclose(lif.tau, np.full(shape, 20.0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"tau has shape \(3,\) where the layer has shape \(2,\)"):
        nn.LIF(2, tau=np.ones(3) * u.second)


def test_a_quantity_is_checked_as_its_number_is() -> None:
    with pytest.raises(ValueError, match=r"tau must be finite and > 0, got -20\.0"):
        nn.LIF(2, tau=-20.0 * u.ms)
    with pytest.raises(
        ValueError, match=r"V_th must be above V_reset, got V_th=-70.0 and V_reset=-60"
    ):
        nn.LIF(2, V_th=-70 * u.mV, V_reset=-0.06 * u.volt)


def test_the_words_of_the_error() -> None:
    with pytest.raises(
        ValueError,
        match=r"tau must be a quantity in ms, got 5\.?0? mV\. This is because .*, in any scale, or a "
        "plain number",
    ):
        nn.LIF(2, tau=5.0 * u.mV)
    with pytest.raises(ValueError, match=r"R1 must be a number without a dimension, got 5.* ms"):
        nn.GIF(2, R1=5.0 * u.ms)


@pytest.mark.slow
def test_saiunit_is_not_imported() -> None:
    code = "import sys; from etpc import nn; nn.LIF(2, tau=5.0); print('saiunit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
