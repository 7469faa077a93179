"""OSTL: online spatio-temporal learning."""

import dataclasses
from typing import ClassVar

from ..algorithms import Algorithm
from ..analyse import Analysis, Step, analyse
from ._layers import reading, within_layers


@dataclasses.dataclass(frozen=True, repr=False)
class OSTL(Algorithm):
    """Online spatio-temporal learning: RTRL within each layer, and no influence from one layer to another over time.

    A layer is a set of states that influence each other, at any number of steps. Operations whose data comes from
    another layer hold it constant in the trace; credit passes through them within its step. So units without
    recurrent weights get D-RTRL, one recurrent layer with a readout without memory gets RTRL, and the printed program
    says either. A product that reads its own layer and the one below at once, `W [x, h]`, is not cut: what it reads
    from below is followed too.

    **Cost:** I·m·O numbers for a weight matrix, where m goes up to all states of a layer.

    **Source:** Bohnstingl et al., "Online spatio-temporal learning in deep neural networks", IEEE TNNLS 34(11), 2023
    (arXiv 2007.12723): the eligibility traces of each layer, whose product with the learning signal is the gradient
    without the residual terms R between layers. Deviation: the layers are found in the program, and a readout with
    memory is one.
    """

    name: ClassVar[str] = "ostl"

    def analysis(self, step: Step) -> Analysis:
        """That of D-RTRL in which the operations within a layer are not cut."""
        found = analyse(step)
        return analyse(step, cut=found.cut - within_layers(found))

    def also(self, analysis: Analysis) -> str:
        asked = reading(analysis)
        cut = analysis.cut & asked
        return "D-RTRL of this model" if cut == asked else "" if cut else "RTRL of this model"
