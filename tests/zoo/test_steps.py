"""One-line steps: whatever operation the state, the data and the weights may meet in."""

import pytest

from tests.zoo.check import check
from tests.zoo.steps import STEPS


@pytest.mark.parametrize(
    "name",
    [name if s.often else pytest.param(name, marks=pytest.mark.long) for name, s in STEPS.items()],
)
def test_steps(name):
    step = STEPS[name]
    check(step.parameters, step.inputs, step.state, step.function, exact=step.exact)


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
def test_windows_of_steps(name):
    step = STEPS[name]
    check(step.parameters, step.inputs, step.state, step.function, exact=step.exact, every=True)
