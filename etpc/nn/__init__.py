"""Layers that Equinox does not have, with marked weights, and initial weights for all layers.

Dense, convolutional, embedding and normalisation layers, GRU and LSTM are those of `equinox.nn`.
"""

from etpc.nn._cells import MGU, IndRNN, MinGRU, MinLSTM, VanillaRNN
from etpc.nn._delay import Delay, DelayedLinear
from etpc.nn._feedback import feedback as feedback
from etpc.nn._from_data import init_from_data
from etpc.nn._init import init
from etpc.nn._linear import DaleLinear, LowRankLinear
from etpc.nn._neuron import ALIF, GIF, LIF
from etpc.nn._nonlinear import EIF, QIF, AdEx, Izhikevich, ResonateAndFire
from etpc.nn._readout import LeakyRateReadout, MembraneReadout, broadcast_readout
from etpc.nn._sequential import Sequential
from etpc.nn._sparse import SparseLinear
from etpc.nn._ssm import LRU, RTU, S5
from etpc.nn._synapse import (
    COBA,
    DualExponentialSynapse,
    ExponentialSynapse,
    ShortTermPlasticity,
)

__all__ = [
    "ALIF",
    "COBA",
    "EIF",
    "GIF",
    "LIF",
    "LRU",
    "MGU",
    "QIF",
    "RTU",
    "S5",
    "AdEx",
    "DaleLinear",
    "Delay",
    "DelayedLinear",
    "DualExponentialSynapse",
    "ExponentialSynapse",
    "IndRNN",
    "Izhikevich",
    "LeakyRateReadout",
    "LowRankLinear",
    "MembraneReadout",
    "MinGRU",
    "MinLSTM",
    "ResonateAndFire",
    "Sequential",
    "ShortTermPlasticity",
    "SparseLinear",
    "VanillaRNN",
    "broadcast_readout",
    "init",
    "init_from_data",
]
