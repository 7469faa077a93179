"""One-line steps: whatever operation the state, the data and the weights may meet in."""

import pytest

from tests.marks import few
from tests.zoo.check import check
from tests.zoo.steps import STEPS

SIZE = 8
OFTEN = ("complex_state_conj_rec", "emb_recurrent", "conv_rec_and_in", "weight_squared")


def groups():
    """Steps that are checked as parts of one model, so that less is compiled: all are exact, or none is."""
    found = {"often": OFTEN}
    for exact in (True, False):
        names = [n for n, step in STEPS.items() if step.exact == exact and n not in OFTEN]
        for start in range(0, len(names), SIZE):
            found[f"{'exact' if exact else 'others'} {start}"] = names[start : start + SIZE]
    return found


GROUPS = groups()


def together(names):
    """The parameters, inputs, state and step of a model of independent parts."""
    parts = {name: STEPS[name] for name in names}

    def step(m, x, h):
        both = {n: part.function(m[n], x[n], h[n]) for n, part in parts.items()}
        return {n: y for n, (y, _) in both.items()}, {n: new for n, (_, new) in both.items()}

    fields = ("parameters", "inputs", "state")
    return *({n: getattr(p, field) for n, p in parts.items()} for field in fields), step


@pytest.mark.parametrize("group", few(GROUPS, "often"))
def test_steps(group):
    names = GROUPS[group]
    check(*together(names), exact=STEPS[names[0]].exact)


@pytest.mark.long
@pytest.mark.parametrize("group", GROUPS)
def test_windows_of_steps(group):
    names = GROUPS[group]
    check(*together(names), exact=STEPS[names[0]].exact, every=True)
