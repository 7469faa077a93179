"""What constructors of layers refuse, whatever the layer is, and what each of them does alone."""

import inspect

import equinox as eqx
import jax
import numpy as np
import pytest
import scipy.sparse

import etpc
from etpc import nn
from etpc.surrogate import ReluGrad
from tests.nn.online import KEY, KINDS, SIZES, made

LINEAR = eqx.nn.Linear(4, 4, key=KEY)
ABOVE, POSITIVE = "V_th must be above V_reset, got V_th=", "must be finite and > 0"
RING = "r_min < r_max <= 1, got r_min="
WRONG = [
    (nn.LIF, {"size": (2, -1)}, "size must be an integer >= 1, got -1"),
    (nn.LIF, {"size": 2.0}, "size must be an integer >= 1, got 2.0"),
    (nn.LIF, {"tau": 0.0}, f"tau {POSITIVE}, got 0.0.*Pass"),
    (nn.LIF, {"tau": np.array([1.0, 2.0, 3.0, 0.0])}, f"tau {POSITIVE}"),
    (nn.LIF, {"tau": np.ones(3)}, r"tau has shape \(3,\) where the layer has shape \(4,\).*Pass"),
    (nn.LIF, {"tau": "fast"}, "tau must be a number or an array, got 'fast'"),
    (nn.LIF, {"R": np.ones((4, 1))}, r"R has shape \(4, 1\)"),
    (nn.LIF, {"R": float("nan")}, "R must be finite, got nan"),
    (nn.LIF, {"V_th": float("inf")}, "V_th must be finite, got inf"),
    (nn.LIF, {"V_th": None}, "V_th must be a number or an array, got None"),
    (nn.LIF, {"V_th": 0.0}, f"{ABOVE}0.0 and V_reset=0.0.*Raise"),
    (nn.LIF, {"V_rest": -float("inf")}, "V_rest must be finite, got -inf"),
    (nn.LIF, {"V_reset": np.array([0.0, 0.0, 0.0, np.nan])}, "V_reset must be finite"),
    (nn.LIF, {"V_reset": np.array([0.0, 0.0, 0.0, 2.0])}, f"{ABOVE}1.0"),
    (nn.LIF, {"dt": -1.0}, "dt must be a finite number > 0, got -1.0.*Pass"),
    (nn.LIF, {"dt": jax.numpy.array(1.0)}, "dt must be a finite number > 0, got Array"),
    (nn.LIF, {"reset": "none"}, 'reset=\'none\' is unknown.*"soft".*"hard"'),
    (nn.LIF, {"surrogate": ReluGrad}, "surrogate must be a spike function.*Pass an instance"),
    (nn.LIF, {"surrogate": 1.0}, "surrogate must be a spike function, got 1.0"),
    (nn.LIF, {"refractory": -1.0}, "refractory must be a finite number >= 0, got -1.0"),
    (nn.ALIF, {"V_th": 0.0}, f"{ABOVE}0.0 and V_reset=0.0"),
    (nn.ALIF, {"tau_a": 0.0}, f"tau_a {POSITIVE}"),
    (nn.GIF, {"A1": np.ones(3)}, r"A1 has shape \(3,\)"),
    (nn.GIF, {"tau_th": -1.0}, f"tau_th {POSITIVE}"),
    (nn.QIF, {"V_c": -65.0}, "V_c must be above V_rest, got V_c=-65.0 and V_rest=-65.0.*Raise"),
    (nn.EIF, {"delta_T": 0.0}, f"delta_T {POSITIVE}"),
    (nn.AdEx, {"V_reset": -30.0}, "V_th must be above V_reset"),
    (nn.Izhikevich, {"c": 30.0}, "V_th must be above c, got V_th=30.0 and c=30.0.*lower c"),
    (nn.ResonateAndFire, {"V_reset": 2.0}, "V_reset must not exceed V_th"),
    (nn.ResonateAndFire, {"V_th": 0.0}, f"V_th {POSITIVE}"),
    (nn.ExponentialSynapse, {"tau": 0.0}, f"tau {POSITIVE}"),
    (nn.DualExponentialSynapse, {"tau_rise": 5.0}, "tau_decay=5.0 and tau_rise=5.0"),
    (nn.COBA, {"E": np.ones(3)}, r"E has shape \(3,\)"),
    (nn.ShortTermPlasticity, {"U": 1.5}, r"U must be at most 1, got 1.5.*\(0, 1\]"),
    (nn.ShortTermPlasticity, {"U": 0.0}, f"U {POSITIVE}"),
    (nn.Delay, {"steps": np.array([1, -1, 1, 1])}, "steps must be integers >= 0"),
    (nn.Delay, {"steps": np.ones(4)}, r"steps must be integers.*np.round"),
    (nn.Delay, {"steps": np.ones(3, int)}, r"steps has shape \(3,\) where \(4,\) is needed"),
    (nn.Delay, {"steps": 0}, "steps are all zero.*Leave the delay out"),
    (nn.DelayedLinear, {"delays": np.ones((2, 3), int)}, r"delays has shape \(2, 3\)"),
    *((nn.DaleLinear, {"in_features": n}, "in_features must be an integer") for n in ("2", True)),
    *(
        (nn.DaleLinear, {"excitatory": n}, "excitatory must be an integer from 0 to in_features=4")
        for n in (-1, 5, 2.5, True)
    ),
    *(
        (kind, *case)
        for kind in (nn.LeakyRateReadout, nn.MembraneReadout)
        for case in (
            ({"tau": 0.0}, f"tau {POSITIVE}, got 0.0"),
            ({"tau": float("inf")}, f"tau {POSITIVE}, got inf"),
            ({"tau": np.array([1.0, 2.0, 3.0, -1.0])}, f"tau {POSITIVE}"),
            ({"tau": np.ones(3)}, r"tau has shape \(3,\) where the layer has shape \(4,\)"),
            ({"dt": 0.0}, "dt must be a finite number > 0, got 0.0"),
        )
    ),
    *(
        (kind, *case)
        for kind in (nn.LRU, nn.RTU)
        for case in (
            ({"r_min": 0.9, "r_max": 0.5}, f"{RING}0.9 and r_max=0.5"),
            ({"r_max": 1.5}, f"{RING}0.0 and r_max=1.5"),
            *(({"max_phase": phase}, "max_phase must be in") for phase in (0.0, 7.0)),
        )
    ),
    (nn.RTU, {"min_phase": 0.3, "max_phase": 0.2}, r"min_phase must be in \(0, max_phase\)"),
    (nn.S5, {"state_size": 5}, "state_size must be even, got 5"),
    (nn.S5, {"step_min": 0.0}, "step_min must be a finite number > 0"),
    (nn.S5, {"step_min": 2.0}, "step_min must not exceed step_max, got step_min=2.0"),
    *(
        (kind, {"dtype": "float16"}, "dtype must be float32 or float64, got float16")
        for kind in (nn.LRU, nn.RTU, nn.S5)
    ),
    *(
        (kind, {"activation": None}, r"activation must be a function .* got None")
        for kind in (nn.VanillaRNN, nn.IndRNN)
    ),
    (nn.Sequential, {"layers": []}, "layers must be callables, but there is none"),
    (nn.Sequential, {"layers": [LINEAR, 3]}, "layers must be callables, but layer 1 is 3"),
    (nn.Sequential, {"layers": [None]}, "layers must be callables, but layer 0 is None"),
    *(
        (nn.SparseLinear, {"connections": connections}, message)
        for connections, message in (
            *((density, f"connections must be .* got {density}") for density in (0.0, 1.5, True)),
            (1e-9, "connections has no connection"),
            *((wrong, "pair of index arrays, a") for wrong in (([0], [1], [2]), "all", None)),
            (([0], [4]), r"the pair \(0, 4\), outside"),
            (([-1], [0]), r"the pair \(-1, 0\), outside"),
            (([1, 0, 1], [2, 0, 2]), r"the pair \(1, 2\) more than once"),
            (([0, 1], [0]), r"a pair of int64\[2\] and int64\[1\]"),
            ((np.ones(1), np.ones(1)), "two integer arrays of one length"),
            (scipy.sparse.eye_array(3), r"a matrix of shape \(3, 3\) where \(4, 4\) is needed"),
        )
    ),
]
SIZE = "{name} must be an integer >= 1, got {value}"
REAL = (
    "dtype must be (a real floating-point type|float32 or float64), got {value.__name__}.*float32"
)
OF_ANY = [
    (kind, {name: value}, words.format(name=name, value=value))
    for kind in KINDS.values()
    for names, values, words in ((SIZES, (0, -3), SIZE), (("dtype",), (int, bool, complex), REAL))
    for name in inspect.signature(kind).parameters
    if name in names
    for value in values
]


@pytest.mark.parametrize(("kind", "arguments", "message"), WRONG + OF_ANY)
def test_arguments_out_of_range(kind, arguments, message, without_type_checks) -> None:
    with pytest.raises(etpc.InputError, match=message):
        made(kind, **arguments)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if "key" in inspect.signature(kind).parameters]
)
def test_an_ensemble_can_be_built_under_vmap(kind) -> None:
    many = eqx.filter_vmap(lambda key: made(kind, key=key))(jax.random.split(KEY, 2))
    floats = (jax.tree.leaves(eqx.filter(m, eqx.is_inexact_array)) for m in (many, made(kind)))
    assert all(a.shape == (2, *one.shape) for a, one in zip(*floats, strict=True))
