"""Which cases of a parametrised test `make test` runs; continuous integration runs the others in turns."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """All `cases`, of which those after the first `count` are marked as slow."""
    cases = list(cases)
    return few(cases, *cases[:count])


def few(cases: Iterable[Any], *often: Any) -> list[Any]:
    """All `cases`, of which those that are not among `often` are marked as slow."""
    cases = list(cases)
    unknown = [case for case in often if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    marks = [() if case in often else pytest.mark.slow for case in cases]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)
        for case, mark in zip(cases, marks, strict=True)
    ]
