"""Layers that Equinox does not have, with marked weights, and initial weights for all layers.

Dense, convolutional, embedding and normalisation layers, GRU and LSTM are those of `equinox.nn`.
"""

from etpc.nn._cells import MGU, IndRNN, MinGRU, MinLSTM, VanillaRNN
from etpc.nn._delay import Delay, DelayedLinear
from etpc.nn._from_data import init_from_data
from etpc.nn._init import init
from etpc.nn._linear import DaleLinear
from etpc.nn._low_rank import LowRankLinear
from etpc.nn._neuron import ALIF, GIF, LIF
from etpc.nn._nonlinear import EIF, QIF, AdEx, Izhikevich, ResonateAndFire
from etpc.nn._readout import LeakyRateReadout, MembraneReadout, broadcast_readout
from etpc.nn._sequential import Sequential
from etpc.nn._sparse import SparseLinear
from etpc.nn._ssm import LRU, S5
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
    "LRU",
    "MGU",
    "QIF",
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

_EQUINOX = ["Linear", "Conv", "Conv1d", "Conv2d", "Embedding", "LayerNorm", "GroupNorm", "RMSNorm"]
_MOVED = {name: f"eqx.nn.{name}" for name in _EQUINOX} | {
    "GRU": "eqx.nn.GRUCell, called as `h = cell(x, h)`",
    "LSTM": "eqx.nn.LSTMCell, called as `h, c = cell(x, (h, c))`",
    "LSTMState": "a pair (h, c)",
}
_SCHEMES = [
    "kaiming_normal",
    "kaiming_uniform",
    "xavier_normal",
    "xavier_uniform",
    "orthogonal",
    "normal",
    "zeros",
]
_MOVED |= {name: f'etpc.nn.init(layer, "{name}", key)' for name in _SCHEMES}


def __getattr__(name: str):
    if name in _MOVED:
        raise AttributeError(f"etpc.nn has no {name}: use {_MOVED[name]}.")
    raise AttributeError(f"module 'etpc.nn' has no attribute {name!r}")
