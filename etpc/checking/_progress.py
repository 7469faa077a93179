"""A bar of progress on a terminal, for what takes a while."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def show(done: int, count: int, name: str) -> None:
    """A bar of progress, where stderr is a terminal; it goes where `count` is zero."""
    if sys.stderr is not None and sys.stderr.isatty():
        bar = f"[{'#' * done}{'.' * (count - done)}] {name}" if count else ""
        print(f"\r\x1b[K{bar}", end="", file=sys.stderr, flush=True)


def progress(items: Sequence[T], name: str) -> Iterator[T]:
    """The items, with a bar as they are taken, if there are several."""
    try:
        for done, item in enumerate(items):
            if len(items) > 1:
                show(done, len(items), f"{name}: {item}")
            yield item
    finally:
        if len(items) > 1:
            show(0, 0, "")
