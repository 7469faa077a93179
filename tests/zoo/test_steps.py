"""One-line steps: whatever operation the state, the data and the weights may meet in."""

import pytest

from tests.marks import few
from tests.zoo.check import check
from tests.zoo.steps import STEPS

OFTEN = (
    "weight_squared",
    "complex_state_conj_rec",
    "switch_by_state_int",
    "cond_in_scan",
    "emb_recurrent",
    "left_right_matrix_rec",
    "conv_rec_and_in",
    "merged_state_between",
    "weight_in_both_branches",
)


@pytest.mark.parametrize(
    "name",
    [
        *few((name for name, step in STEPS.items() if step.often), *OFTEN),
        *(pytest.param(n, marks=pytest.mark.long) for n, step in STEPS.items() if not step.often),
    ],
)
def test_steps(name):
    step = STEPS[name]
    check(step.parameters, step.inputs, step.state, step.function, exact=step.exact)


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
def test_windows_of_steps(name):
    step = STEPS[name]
    check(step.parameters, step.inputs, step.state, step.function, exact=step.exact, every=True)
