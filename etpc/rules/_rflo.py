"""RFLO: random feedback local online learning."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ..algorithms import Algorithm, Check, checked_decay, checked_seed, one_of
from ..analyse import Analysis, Step
from ..ops import Kind
from ._eprop import Feedback
from ._fixed_leak import FixedLeak
from ._layers import with_random_feedback


@dataclasses.dataclass(frozen=True, repr=False)
class RFLO(Algorithm):
    """Random feedback local online learning: D-RTRL with a leak in the place of the Jacobian, and random feedback.

    `p' = kept p + F x^T`. In a leaky network, `h' = (1 - 1/tau) h + tanh(W h + U x) / tau`, D-RTRL finds this leak.
    This rule is told it, whatever the cell: each state keeps that part of its trace and passes nothing on to others,
    so that cells get a trace whose states have no transition of their own, such as `h' = tanh(W h + U x)`.

    **Cost:** I·m·O numbers for a weight matrix.

    - `kept`: `1 - 1/tau`, the part of a trace that is there after a step, in (0, 1].
    - `feedback`, `seed`: as for [`EProp`][etpc.EProp].

    **Source:** Murray, "Local online learning in recurrent networks with random feedback", eLife 8, e43299, 2019,
    equation 3. Deviation: the variance of the random weights is ours.
    """

    kept: float = 0.9
    feedback: Feedback = "random"
    seed: int = dataclasses.field(default=0, kw_only=True, repr=False)
    name: ClassVar[str] = "rflo"
    checks: ClassVar[Mapping[str, Check]] = {
        "kept": checked_decay,
        "feedback": one_of("random", "symmetric"),
        "seed": checked_seed,
    }

    def analysis(self, step: Step) -> Analysis:
        if self.feedback == "symmetric":
            return super().analysis(step)
        return with_random_feedback(step, self.seed)

    def trace_form(self, kind: Kind) -> FixedLeak:
        return FixedLeak(self.kept)
