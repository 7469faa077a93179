"""The settings of learning rules, declared with their checks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .._errors import AlgorithmError, InputTypeError, checked_count, whole_number

Check = Callable[[str, Any], Any]
"""Takes the name and the value of a setting, and returns the value as it is stored. It raises for a wrong one."""


def checked(check: Check) -> dict[str, Check]:
    """The metadata of a field whose value is to be checked; a subclass that has another default keeps the check."""
    return {"check": check}


def check(rule: Any) -> None:
    """Check all settings of a rule, and store them as plain numbers, so that it prints and hashes as such."""
    classes = [cls for cls in reversed(type(rule).__mro__) if dataclasses.is_dataclass(cls)]
    fields = [field for cls in classes for field in dataclasses.fields(cls)]
    checks = {field.name: field.metadata["check"] for field in fields if "check" in field.metadata}
    for name, checked_value in checks.items():
        object.__setattr__(rule, name, checked_value(name, getattr(rule, name)))


def count(why: str, *others: str | None, error: type[Exception] = AlgorithmError) -> Check:
    """An int of at least 1, or one of some other values; `why` says what it counts."""
    wanted = " or ".join([*(f'"{other}"' if other else "None" for other in others), "an int >= 1"])

    def of(name: str, value: Any) -> Any:
        other = value is None or isinstance(value, str)
        return (
            value if other and value in others else checked_count(name, value, wanted, why, error)
        )

    return of


def one_of(*values: str) -> Check:
    """One of some texts."""

    def of(name: str, value: Any) -> Any:
        if value not in values:
            wanted = " or ".join(f'"{text}"' for text in values)
            raise AlgorithmError(f"{name} must be {wanted}, not {value!r}.")
        return value

    return of


def fraction(zero: bool) -> Check:
    """A number in (0, 1], or in [0, 1]."""

    def of(name: str, value: Any) -> float:
        number = _plain(value)
        if not (isinstance(number, int | float) and 0 <= number <= 1 and (number or zero)):
            raise AlgorithmError(
                f"{name} must lie in {'[' if zero else '('}0, 1], and is {value!r}."
            )
        return float(number)

    return of


def decay(name: str, value: Any) -> float | None:
    """A decay of a trace, or `None`."""
    number = _plain(value)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputTypeError(f"decay must be a float in (0, 1], not {number!r}.")
    if not (math.isfinite(number) and 0 < number <= 1):
        raise AlgorithmError(
            f"A decay must lie in (0, 1], and decay is {number}. For a rank pass an int, such as "
            "ES_D_RTRL(rank=2)."
        )
    return float(number)


def rank(name: str, value: Any) -> int | None:
    """A rank of a trace, or `None`."""
    if value is None:
        return None
    number = whole_number(value)
    if number is None:
        hint = f" For a decay pass decay={value!r}." if isinstance(_plain(value), float) else ""
        raise InputTypeError(f"rank must be an int >= 1, not {value!r}.{hint}")
    if number < 1:
        raise AlgorithmError(
            f"rank={number} is less than 1, and a trace has at least one pair of factors. For a decay pass "
            "decay=, a float in (0, 1]."
        )
    return number


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX as the Python number that it is."""
    number = whole_number(value)
    if number is not None:
        return number
    if getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating):
        return float(value)
    return value


__all__ = ["check", "checked", "count", "decay", "fraction", "one_of", "rank"]
