"""Layers with marked weights, in the conventions of `equinox.nn`, and initialisers for them."""

from etpc.nn._delay import Delay, DelayedLinear
from etpc.nn._init import (
    kaiming_normal,
    kaiming_uniform,
    normal,
    orthogonal,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from etpc.nn._linear import DaleLinear, Linear
from etpc.nn._neuron import ALIF, GIF, LIF
from etpc.nn._nonlinear import EIF, QIF, AdEx, Izhikevich, ResonateAndFire
from etpc.nn._readout import LeakyRateReadout, MembraneReadout
from etpc.nn._synapse import (
    COBA,
    CUBA,
    DualExponentialSynapse,
    ExponentialSynapse,
    ShortTermPlasticity,
)

__all__ = [
    "ALIF",
    "COBA",
    "CUBA",
    "EIF",
    "GIF",
    "LIF",
    "QIF",
    "AdEx",
    "DaleLinear",
    "Delay",
    "DelayedLinear",
    "DualExponentialSynapse",
    "ExponentialSynapse",
    "Izhikevich",
    "LeakyRateReadout",
    "Linear",
    "MembraneReadout",
    "ResonateAndFire",
    "ShortTermPlasticity",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "orthogonal",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
