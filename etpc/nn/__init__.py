"""Layers with marked weights, in the conventions of `equinox.nn`, and initialisers for them."""

from etpc.nn._conv import Conv, Conv1d, Conv2d
from etpc.nn._delay import Delay, DelayedLinear
from etpc.nn._diagonal import IndRNN, MinGRU, MinLSTM
from etpc.nn._embedding import Embedding
from etpc.nn._from_data import init_from_data
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
from etpc.nn._low_rank import LowRankLinear
from etpc.nn._neuron import ALIF, GIF, LIF
from etpc.nn._nonlinear import EIF, QIF, AdEx, Izhikevich, ResonateAndFire
from etpc.nn._norm import GroupNorm, LayerNorm, RMSNorm
from etpc.nn._readout import LeakyRateReadout, MembraneReadout, broadcast_readout
from etpc.nn._rnn import GRU, LSTM, MGU, LSTMState, VanillaRNN
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
    "GRU",
    "LIF",
    "LRU",
    "LSTM",
    "MGU",
    "QIF",
    "S5",
    "AdEx",
    "Conv",
    "Conv1d",
    "Conv2d",
    "DaleLinear",
    "Delay",
    "DelayedLinear",
    "DualExponentialSynapse",
    "Embedding",
    "ExponentialSynapse",
    "GroupNorm",
    "IndRNN",
    "Izhikevich",
    "LSTMState",
    "LayerNorm",
    "LeakyRateReadout",
    "Linear",
    "LowRankLinear",
    "MembraneReadout",
    "MinGRU",
    "MinLSTM",
    "RMSNorm",
    "ResonateAndFire",
    "Sequential",
    "ShortTermPlasticity",
    "SparseLinear",
    "VanillaRNN",
    "broadcast_readout",
    "init_from_data",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "orthogonal",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]
