"""Rules for spiking networks without recurrent weights: OTTT, and OTPE, which extends it."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ..algorithms import Algorithm, Check, Choice, Context, checked_decay
from ..errors import AlgorithmError
from ..ops import Kind
from ._low_passed import low_passed_before_readouts
from ._presynaptic import Presynaptic


@dataclasses.dataclass(frozen=True, repr=False)
class OTTT(Algorithm):
    """Online training through time: the low-passed input, times the credit of the output within its step.

    `a' = decay a + x`, and the gradient of a step is `(L F) a^T`. A weight without data, such as a bias, has no trace,
    as in the source.

    **Cost:** I numbers for a weight matrix.

    - `decay`: the leak of the membranes, in (0, 1].

    **Source:** Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022
    (arXiv 2210.04195), OTTT_A: tracked presynaptic activities and instantaneous gradients, summed over the steps.
    Deviation: none with the update at the end of a sequence; each step's own (OTTT_O) is `every=1` of `etpc.online`.
    """

    decay: float = 0.5
    name: ClassVar[str] = "ottt"
    checks: ClassVar[Mapping[str, Check]] = {"decay": checked_decay}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backprop == "full":
            raise AlgorithmError(
                f"{self} asks for windows in which nothing is cut, and OTTT has the credit of single steps. Leave out "
                "backprop= and lookback=."
            )

    def trace_form(self, kind: Kind) -> Presynaptic | None:
        return None if kind.data is None else Presynaptic(self.decay)


@dataclasses.dataclass(frozen=True, repr=False)
class OTPE(Algorithm):
    """Online training with postsynaptic estimates: the trace of D-RTRL, low-passed as by the membrane after it.

    `R' = decay R + ds/dW`, and the gradient of a step is the credit of the spikes s times R. It is the source's where
    the spikes are a state of the model, so that their trace is `ds/dW`. Weights of the last layer have the trace of
    D-RTRL alone.

    **Cost:** 2·I·m·O numbers for a weight matrix, m the states of a neuron, the spike among them.

    - `decay`: the leak of the membranes of the next layer, in (0, 1].

    **Source:** Summe, Schaefer and Joshi, "Estimating post-synaptic effects for online training of feed-forward SNNs",
    arXiv 2311.16151, R-hat of each layer. Deviation: with one hidden layer none. With more, the source passes credit on
    to the layer below by a running mean of the surrogate derivative, and here it passes by that of the step: a form of
    trace says what meets credit, and not how credit goes on. The approximate OTPE of the source, one low-passed input
    times that mean, is left out for the same reason.
    """

    decay: float = 0.5
    name: ClassVar[str] = "otpe"
    checks: ClassVar[Mapping[str, Check]] = {"decay": checked_decay}

    def choose(self, context: Context) -> Choice:
        return low_passed_before_readouts(context, self.decay)
