"""The equations of every spiking neuron, one neuron and one step at a time, without JAX.

`advance` and `jump` take and give the state as a list of numbers.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from etpc import nn
from etpc.surrogate import SuperSpike

SLOPE = SuperSpike(beta=0.5)  # zero nowhere


def at_threshold(p: dict, state: list[float]) -> bool:
    return state[0] >= p["V_th"]


class Model(NamedTuple):
    layer: Callable[..., Any]
    arguments: dict[str, float | str]
    """All parameters of the layer, each with a value that is not its default."""
    fields: tuple[str, ...]
    advance: Callable[[dict, float, list[float]], list[float]]
    jump: Callable[[dict, list[float]], list[float]]
    drive: tuple[float, float]
    """Mean and deviation of a current with which it spikes, and not always."""
    start: Callable[[dict], list[float]] = lambda p: [p["V_rest"]]
    threshold: Callable[[dict, list[float]], bool] = at_threshold


def simulate(
    model: Model, currents: np.ndarray, refractory: int = 0, **changed: float | str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Spikes and states, `[T, K]` each, where a spike holds the membrane for `refractory` steps."""
    p = model.arguments | changed
    T, K = currents.shape
    spikes, states = np.zeros((T, K)), {name: np.zeros((T, K)) for name in model.fields}
    for k in range(K):
        state, fired, wait = model.start(p), False, 0
        for t in range(T):
            wait = refractory if fired else max(wait - 1, 0)
            if fired:
                state = model.jump(p, state)
            after = model.advance(p, currents[t, k], state)
            if wait > 0:
                for i, name in enumerate(model.fields):
                    if name == "V" or model.layer is nn.ResonateAndFire:
                        after[i] = state[i]
            state = after
            fired = wait == 0 and model.threshold(p, state)
            spikes[t, k] = fired
            for name, value in zip(model.fields, state, strict=True):
                states[name][t, k] = value
    return spikes, states


def soft(p: dict, V: float, V_th: float) -> float:
    return V - (V_th - p["V_reset"]) if p["reset"] == "soft" else p["V_reset"]


def towards(dt: float, tau: float, value: float, goal: float) -> float:
    return goal + math.exp(-dt / tau) * (value - goal)


def lif_advance(p: dict, current: float, state: list[float]) -> list[float]:
    return [towards(p["dt"], p["tau"], state[0], p["V_rest"] + p["R"] * current)]


def alif_jump(p: dict, state: list[float]) -> list[float]:
    # The spike enters after the decay of the step.
    V, a = state
    return [soft(p, V, p["V_th"]), a + math.exp(p["dt"] / p["tau_a"])]


def alif_advance(p: dict, current: float, state: list[float]) -> list[float]:
    return [*lif_advance(p, current, state[:1]), math.exp(-p["dt"] / p["tau_a"]) * state[1]]


def gif_jump(p: dict, state: list[float]) -> list[float]:
    V, I1, I2, V_th = state
    return [
        soft(p, V, V_th),
        p["R1"] * I1 + p["A1"],
        p["R2"] * I2 + p["A2"],
        max(V_th, p["V_th_reset"]) + p["A_th"],
    ]


def gif_advance(p: dict, current: float, state: list[float]) -> list[float]:
    V, I1, I2, V_th = state
    rest = p["V_th"] + p["tau_th"] * p["a"] * (V - p["V_rest"])
    return [
        towards(p["dt"], p["tau"], V, p["V_rest"] + p["R"] * (current + I1 + I2)),
        towards(p["dt"], p["tau_I1"], I1, 0.0),
        towards(p["dt"], p["tau_I2"], I2, 0.0),
        towards(p["dt"], p["tau_th"], V_th, rest),
    ]


def qif_advance(p: dict, current: float, state: list[float]) -> list[float]:
    (V,) = state
    slope = p["c"] * (V - p["V_rest"]) * (V - p["V_c"]) + p["R"] * current
    return [V + p["dt"] * slope / p["tau"]]


def eif_advance(p: dict, current: float, state: list[float]) -> list[float]:
    (V,) = state
    upswing = p["delta_T"] * math.exp((V - p["V_T"]) / p["delta_T"])
    return [towards(p["dt"], p["tau"], V, p["V_rest"] + upswing + p["R"] * current)]


def adex_advance(p: dict, current: float, state: list[float]) -> list[float]:
    V, w = state
    goal = p["a"] * (V - p["V_rest"])
    return [*eif_advance(p, current - w, [V]), towards(p["dt"], p["tau_w"], w, goal)]


def izhikevich_advance(p: dict, current: float, state: list[float]) -> list[float]:
    V, u = state
    dV = 0.04 * V**2 + 5 * V + 140 - u + current
    return [V + p["dt"] * dV, u + p["dt"] * p["a"] * (p["b"] * V - u)]


def resonator_advance(p: dict, current: float, state: list[float]) -> list[float]:
    rate = complex(-1 / p["tau"], p["omega"])
    turn = cmath.exp(rate * p["dt"])
    z = turn * complex(*state) + current * (turn - 1) / rate
    return [z.real, z.imag]


MEMBRANE = {"dt": 0.8, "tau": 8.0, "R": 1.5, "V_th": 1.2, "V_rest": 0.1, "V_reset": -0.4}
CELL = {"dt": 0.8, "V_rest": -64.0, "V_reset": -67.0}

SOFT = MEMBRANE | {"reset": "soft"}
GIF = SOFT | {"V_th_reset": 1.4, "A_th": 0.1, "a": 0.01, "tau_th": 40.0, "tau_I1": 4.0}
GIF |= {"tau_I2": 30.0, "R1": 0.2, "R2": 0.9, "A1": 0.5, "A2": -0.3}
QIF = CELL | {"tau": 6.0, "R": 1.5, "V_th": -32.0, "c": 0.08, "V_c": -51.0}
EIF = CELL | {"tau": 6.0, "R": 1.5, "V_th": -47.0, "delta_T": 3.0, "V_T": -58.0}
ADEX = EIF | {"R": 20.0, "V_th": -45.0, "delta_T": 2.5, "V_T": -55.0}
ADEX |= {"tau_w": 40.0, "a": 0.006, "b": 0.1}
IZHIKEVICH = {"dt": 0.4, "a": 0.05, "b": 0.22, "c": -60.0, "d": 4.0, "V_th": 25.0}
RESONATOR = {"dt": 0.8, "tau": 15.0, "omega": 0.6, "V_th": 0.8, "V_reset": 0.1, "reset": "soft"}


def to_reset(p: dict, state: list[float]) -> list[float]:
    return [p["V_reset"]]


def resonator_jump(p: dict, state: list[float]) -> list[float]:
    return [state[0] if p["reset"] == "soft" else 0.0, soft(p, state[1], p["V_th"])]


MODELS = {
    "LIF": Model(
        *(nn.LIF, SOFT, ("V",), lif_advance, lambda p, s: [soft(p, s[0], p["V_th"])]),
        drive=(2.0, 2.0),
    ),
    "ALIF": Model(
        *(nn.ALIF, SOFT | {"tau_a": 30.0, "beta": 0.3}, ("V", "a"), alif_advance, alif_jump),
        drive=(2.0, 2.0),
        start=lambda p: [p["V_rest"], 0.0],
        threshold=lambda p, s: s[0] >= p["V_th"] + p["beta"] * s[1],
    ),
    "GIF": Model(
        *(nn.GIF, GIF, ("V", "I1", "I2", "V_th"), gif_advance, gif_jump),
        drive=(2.0, 2.0),
        start=lambda p: [p["V_rest"], 0.0, 0.0, p["V_th"]],
        threshold=lambda p, s: s[0] >= s[3],
    ),
    "QIF": Model(nn.QIF, QIF, ("V",), qif_advance, to_reset, (12.0, 8.0)),
    "EIF": Model(nn.EIF, EIF, ("V",), eif_advance, to_reset, (5.0, 4.0)),
    "AdEx": Model(
        *(nn.AdEx, ADEX, ("V", "w"), adex_advance, lambda p, s: [p["V_reset"], s[1] + p["b"]]),
        drive=(1.0, 1.0),
        start=lambda p: [p["V_rest"], 0.0],
    ),
    "Izhikevich": Model(
        *(nn.Izhikevich, IZHIKEVICH, ("V", "u"), izhikevich_advance),
        jump=lambda p, s: [p["c"], s[1] + p["d"]],
        drive=(15.0, 10.0),
        start=lambda p: [p["c"], p["b"] * p["c"]],
    ),
    "ResonateAndFire": Model(
        *(nn.ResonateAndFire, RESONATOR, ("x", "V"), resonator_advance, resonator_jump),
        drive=(0.1, 0.6),
        start=lambda p: [0.0, 0.0],
        threshold=lambda p, s: s[1] >= p["V_th"],
    ),
}
