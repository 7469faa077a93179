"""Each model of the catalogue compiles, its gradients are right, and the page says so."""

import pytest

from tests.interop.catalogue import CASES, Case
from tests.interop.check import outcome
from tests.interop.tables import read
from tests.interop.works_with import MODULE, PAGE

pytestmark = pytest.mark.third_party

ROWS = {row[:2]: row for row in read(PAGE, MODULE)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_are_right_and_claims_hold(case: Case) -> None:
    assert ROWS[case.package, case.name] == outcome(case)


def test_the_page_lists_these_models_and_no_others() -> None:
    missing = {(case.package, case.name) for case in CASES} - ROWS.keys()
    assert not missing
    packages = {package for package, _ in ROWS}
    installed = {case.package for case in CASES}
    assert {row for row in ROWS if row[0] in installed} == {(c.package, c.name) for c in CASES}
    if installed == packages:  # all are here
        assert len(CASES) >= 40
        assert len(packages) >= 8
