"""The programs of today are those that were written down."""

import pytest

from tests.marks import few
from tests.replay.programs import NAMES, RULES, same_release, sections, without_code, written


def test_the_file_has_all_programs():
    assert list(written()) == [f"{name} | {rule}" for name in NAMES for rule in RULES]
    assert len(NAMES) == 30


@pytest.mark.parametrize("name", few(NAMES, "lif"))
def test_replay(name):
    """Who means to change programs writes the file anew, by `python -m tests.replay`, and reads its diff."""
    shown = (lambda text: text) if same_release() else without_code
    was = written()
    for head, text in sections(name):
        assert shown(text) == shown(was[head]), head
