"""Layers whose parameters are given as `saiunit` quantities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpc import nn
from tests.helpers import in_a_process
from tests.nn.online import made

u = pytest.importorskip("saiunit")

# Each parameter that has a unit, as a quantity in another scale than that of the layer, and as a number.
MEMBRANE = {
    "tau": (0.02 * u.second, 20.0),
    "R": (5000.0 * u.ohm * 1e3, 5.0),
    "V_th": (-0.05 * u.volt, -50.0),
    "V_rest": (-65000.0 * u.uvolt, -65.0),
    "V_reset": (-70 * u.mV, -70.0),
    "dt": (500.0 * u.us, 0.5),
    "refractory": (0.002 * u.second, 2.0),
}
UPSWING = MEMBRANE | {"delta_T": (0.002 * u.volt, 2.0), "V_T": (-0.055 * u.volt, -55.0)}
OF_ADEX = {"tau_w": (0.1 * u.second, 100.0), "a": (4.0 * u.nS, 0.004), "b": (80.0 * u.pA, 0.08)}
OF_GIF = dict.fromkeys(("tau_th", "tau_I1", "tau_I2"), (0.03 * u.second, 30.0)) | {
    "V_th_reset": (-0.06 * u.volt, -60.0),
    "A_th": (100.0 * u.uvolt, 0.1),
    "a": (5.0 * u.Hz, 0.005),
    "A1": (200.0 * u.pA, 0.2),
    "A2": (-0.1 * u.nA, -0.1),
    "R1": (0.5 * u.mV / u.mV, 0.5),
}
OF_IZHIKEVICH = {
    "a": (20.0 * u.Hz, 0.02),
    "b": (0.2 / u.ms, 0.2),
    "c": (-0.06 * u.volt, -60.0),
    "d": (6.0 * u.volt / u.second, 6.0),
}
OF_RESONATOR = {
    "tau": (0.02 * u.second, 20.0),
    "omega": (500.0 * u.Hz, 0.5),
    "V_th": (900.0 * u.uvolt, 0.9),
}
TAU, DT = {"tau": (0.004 * u.second, 4.0)}, {"dt": (0.5 * u.ms, 0.5)}
RISE = {"tau_rise": (0.001 * u.second, 1.0), "tau_decay": (4000.0 * u.us, 4.0)}
LAYERS = [
    (nn.LIF, MEMBRANE),
    (nn.ALIF, MEMBRANE | {"tau_a": (0.1 * u.second, 100.0), "beta": (300.0 * u.uvolt, 0.3)}),
    (nn.GIF, MEMBRANE | OF_GIF),
    (nn.QIF, MEMBRANE | {"c": (80.0 / u.volt, 0.08), "V_c": (-0.052 * u.volt, -52.0)}),
    (nn.EIF, UPSWING),
    (nn.AdEx, UPSWING | OF_ADEX),
    (nn.Izhikevich, OF_IZHIKEVICH),
    (nn.ResonateAndFire, OF_RESONATOR),
    (nn.ExponentialSynapse, TAU),
    (nn.DualExponentialSynapse, RISE | DT),
    (nn.COBA, {"E": (-0.08 * u.volt, -80.0)}),
    (nn.ShortTermPlasticity, {"tau_f": (1.5 * u.second, 1500.0), "tau_d": (0.2 * u.second, 200.0)}),
    (nn.LeakyRateReadout, TAU),
    (nn.MembraneReadout, TAU),
]
BY_LAYER = pytest.mark.parametrize(("layer", "given"), LAYERS, ids=[k.__name__ for k, _ in LAYERS])


@BY_LAYER
def test_quantities_become_plain_numbers(layer, given: dict) -> None:
    converted, plain = (made(layer, **{n: both[i] for n, both in given.items()}) for i in (0, 1))
    for name in given:
        value = getattr(converted, name)
        assert type(value) is float
        np.testing.assert_allclose(value, getattr(plain, name), rtol=1e-12, err_msg=name)


@BY_LAYER
def test_another_dimension(layer, given: dict) -> None:
    numbers = {name: number for name, (_, number) in given.items()}
    for name in given:
        with pytest.raises(ValueError, match=rf"^{name} must be a .*got 3.* kg.*Pass a"):
            made(layer, **(numbers | {name: 3.0 * u.kilogram}))


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
    assert in_a_process("-c", code) == "False"
