"""A bar of progress on a terminal, for what takes a while."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """The items, with a bar of `tqdm` as they are taken, where it is installed and stderr is a terminal."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    return tqdm(items, desc=what, leave=False, disable=True if len(items) < 2 else None)
