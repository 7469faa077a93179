"""e-prop: eligibility propagation."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..algorithms import Algorithm, Check, Choice, Context, checked_decay, checked_seed, one_of
from ..analyse import Analysis, Step, analyse
from ..errors import AlgorithmError
from ._layers import reading, readouts, with_random_feedback
from ._low_passed import low_passed_before_readouts

Feedback = Literal["symmetric", "random"]


@dataclasses.dataclass(frozen=True, repr=False)
class EProp(Algorithm):
    """e-prop: the trace of D-RTRL, which a leaky readout filters, and a learning signal of any feedback weights.

    `eps' = D eps + F x^T`, and `dE/dW = sum_t L_t kappa-filter(psi_t eps_t)`. The filter is the leak of the readout,
    which the trace follows: it has a row more for each state of the readout that a weight reaches. A readout without
    memory has no filter, and with symmetric feedback the rule is D-RTRL then, which the printed program says.

    **Cost:** I·(m + R)·O numbers for a weight matrix, R the states of the readout; 2·I·m·O with `kappa`.

    - `feedback`: `"symmetric"`: credit passes back by the weights of the readout. `"random"`: by fixed random weights
        B of variance 1 / I; no gradient that has such credit is exact. The model and its values are not changed.
        The readouts are the operations whose influence enters the data of no other; [`etpc.feedback`][] lets you choose
        the layer.
    - `kappa`: a decay in (0, 1]. The trace is low-passed with this number in the place of what the readout does. This
        is the source's where the spikes are a state, so that psi is in the trace; else psi of the current step
        multiplies the filtered trace.
    - `seed`: of B.

    **Source:** Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons", Nature
    Communications 11, 3625, 2020: equations 1 to 4 and, for a leaky readout, the filtered trace in Methods. Deviation:
    B has the shape of the readout, so that in a stack of layers it reaches the last one alone, and what lies between
    passes credit on by its own weights; its variance is ours. A leak that all readouts share is applied to the spikes,
    before the readout and before B.
    """

    feedback: Feedback = "symmetric"
    kappa: float | None = None
    seed: int = dataclasses.field(default=0, kw_only=True, repr=False)
    name: ClassVar[str] = "e_prop"
    checks: ClassVar[Mapping[str, Check]] = {
        "feedback": one_of("symmetric", "random"),
        "kappa": checked_decay,
        "seed": checked_seed,
    }

    def analysis(self, step: Step) -> Analysis:
        """That of D-RTRL in which the readouts are not cut, so that the trace follows their leak; or of the step with
        other weights on the way back, which answers for itself."""
        found = analyse(step)
        last = readouts(found)
        with_memory = [op.path for op in found.live if op.number in last]
        if self.feedback == "random":
            if self.kappa is not None and with_memory:
                raise AlgorithmError(
                    f"{self} gives two filters: kappa=, and the memory of the readout {', '.join(with_memory)}, which "
                    "random feedback passes through. Leave out kappa=."
                )
            return with_random_feedback(step, self.seed)
        if self.kappa is not None or not with_memory:
            return found
        return analyse(step, cut=found.cut - last)

    @property
    def main(self) -> dict[str, Any]:
        return {name: value for name, value in super().main.items() if value is not None}

    def choose(self, context: Context) -> Choice:
        if self.kappa is None:
            return super().choose(context)
        return low_passed_before_readouts(context, self.kappa)

    def also(self, analysis: Analysis) -> str:
        plain = self.feedback == "symmetric" and self.kappa is None
        return "D-RTRL of this model" if plain and reading(analysis) <= analysis.cut else ""
