"""The one release of jaxlib whose XLA computes wrong Jacobians of norms is refused."""

import importlib.metadata

import pytest

import etpc
from etpc.run import _fusion


@pytest.mark.parametrize(
    ("release", "platform", "right", "refused"),
    [
        (_fusion.AFFECTED, "cpu", False, True),
        (_fusion.AFFECTED, "cpu", True, False),  # the fusion is turned off
        (_fusion.AFFECTED, "cuda", False, False),
        ("0.10.1", "cpu", False, False),
    ],
)
def test_the_release_is_refused_on_cpus(monkeypatch, release, platform, right, refused):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: release)
    monkeypatch.setattr(_fusion, "_fuses_correctly", lambda: right)
    if not refused:
        _fusion.refuse_wrong_fusion(etpc.Target(platform))
        return
    with pytest.raises(etpc.UnsupportedError, match=r"pip install 'jaxlib!=0.10.2'"):
        etpc.compile(1.0, inputs=1.0, state=1.0, step=lambda w, x, h: (h, 0.5 * h + w * x))


def test_other_releases_are_right_where_that_one_is_wrong():
    """On 0.10.2 this fails, which is why it is not supported."""
    assert _fusion._fuses_correctly()
