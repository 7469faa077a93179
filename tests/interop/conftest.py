"""Other packages promote ranks, and warn about themselves: neither is an error here."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _as_the_packages_need_it() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
