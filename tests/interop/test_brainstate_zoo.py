"""Every neuron, synapse and cell of braintrace, brainstate and brainpy.state, against their own gradients."""

import pytest

pytest.importorskip("braintrace")

from tests.interop import brainstate_zoo as zoo
from tests.interop.tables import read

pytestmark = pytest.mark.peer

KINDS = zoo.kinds()
ROWS = {row[:2]: row for row in read(zoo.PAGE, zoo.MODULE)}
# The models of NEST have names in lower case.
PARAMETERS = [
    pytest.param(kind, id=kind.id, marks=[pytest.mark.long] if kind.name.islower() else [])
    for kind in KINDS
]


@pytest.fixture(autouse=True, scope="module")
def _in_64_bits():
    with zoo.in_64_bits():
        yield


@pytest.mark.parametrize("kind", PARAMETERS)
def test_gradients_are_right_or_refused(kind: zoo.Kind) -> None:
    assert ROWS[kind.package, kind.name] == zoo.row(kind)


def test_the_page_lists_these_classes_and_no_others() -> None:
    """But for the models of NEST, which brainpy.state had up to version 0.1."""
    here = {(kind.package, kind.name) for kind in KINDS}
    assert here <= set(ROWS)
    assert all(name.islower() for _, name in set(ROWS) - here)
