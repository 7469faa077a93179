"""Each class of the layers is abstract or final, and what an abstract one computes is overridden by none."""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module

import equinox as eqx
import pytest

from etpc import nn


def classes() -> Iterator[type]:
    for module in pkgutil.iter_modules(nn.__path__, f"{nn.__name__}."):
        for kind in vars(import_module(module.name)).values():
            is_here = inspect.isclass(kind) and kind.__module__ == module.name
            if is_here and issubclass(kind, eqx.Module):
                yield kind


def own(kind: type) -> set[str]:
    """The methods that a class itself gives, but for those of construction, which Equinox has its own rules for."""
    named = {
        name
        for name, value in vars(kind).items()
        if inspect.isroutine(value) or isinstance(value, property)
    }
    return named - {"__init__", "__check_init__", "__repr__"}


@pytest.mark.parametrize("kind", [*classes()])
def test_a_class_is_abstract_or_final(kind) -> None:
    assert "super()" not in inspect.getsource(kind)
    for base in kind.__mro__[1:]:
        if base.__module__.startswith(nn.__name__):
            assert base.__name__ not in nn.__all__, f"{base.__name__} is final"
            overridden = own(kind) & own(base) - base.__abstractmethods__
            assert not overridden, f"{overridden} of {base.__name__}"
