"""The page on bad input says what happens."""

import pytest

from tests import bad_input


@pytest.mark.slow
def test_the_page_is_what_happens():
    written, found = bad_input.PAGE.read_text().splitlines(), bad_input.page().splitlines()
    assert written == found, "write it anew: python -m tests.bad_input"
