"""Layers with marked weights, in the conventions of `equinox.nn`, and initialisers for them."""

from etpc.nn._init import (
    kaiming_normal,
    kaiming_uniform,
    normal,
    orthogonal,
    xavier_normal,
    xavier_uniform,
    zeros,
)
from etpc.nn._linear import Linear
from etpc.nn._neuron import LIF
from etpc.nn._readout import LeakyRateReadout

__all__ = [
    "LIF",
    "LeakyRateReadout",
    "Linear",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "orthogonal",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
