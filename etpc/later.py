"""Names of a package that are imported when they are first asked for."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose modules `places` have names of it, split by spaces.

    What a compilation does not need is not loaded with the package then. For type checkers the package imports the same
    names under `TYPE_CHECKING`.
    """
    of_name = {name: place for place, joined in places.items() for name in joined.split()}

    def __getattr__(name: str) -> Any:
        if name not in of_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{of_name[name]}", package), name)
        setattr(sys.modules[package], name, value)  # so that it is found at once from now on
        return value

    return __getattr__
