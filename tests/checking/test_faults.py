"""What a gradient becomes by a mistake is computed by the definition of the rule: without one, the gradient of it."""

import numpy as np
import pytest

from etpc import D_RTRL, TBPTT
from etpc.checking._faults import Mistakes
from etpc.checking._trial import Trial
from etpc.gradient.agreement import KnownGradient, agrees
from tests.helpers import loss
from tests.models import ALL_NAMED, data, named

T, B = 10, 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_NAMED)
def test_without_a_mistake_it_is_the_gradient_of_the_rule(name):
    model = named(name)
    trial = Trial(model, *data(model, T, B), loss, batch_size=B)
    program = trial.program("d_rtrl")
    mistakes = Mistakes(trial, program.plan.analysis)
    for rule, want in ((TBPTT(T), trial.bptt), (D_RTRL(), trial.online(program))):
        got = KnownGradient(mistakes.gradient(rule))
        assert any(np.abs(value).max(initial=0) > 1e-6 for value in got.values.values())
        for path in want.values:
            assert agrees(got, want, path, trial.tolerance, trial.dtype), (rule, path)
