"""Checks of the settings of learning rules: each takes a name and a value, and returns the value to store."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import AlgorithmError, InputTypeError, checked_count, whole_number

Check = Callable[[str, Any], Any]


def check(rule: Any) -> None:
    """Check the settings of a rule by the `checks` of its classes, and store them as plain numbers.

    Scalars of NumPy and JAX become Python's, so that a rule prints and hashes alike.
    """
    for cls in reversed(type(rule).__mro__):
        for name, checked in vars(cls).get("checks", {}).items():
            object.__setattr__(rule, name, checked(name, getattr(rule, name)))


def count(why: str, *others: str | None, error: type[Exception] = AlgorithmError) -> Check:
    """An int of at least 1, or one of some other values; `why` says what it counts."""
    wanted = " or ".join([*(f'"{other}"' if other else "None" for other in others), "an int >= 1"])

    def checked(name: str, value: Any) -> Any:
        other = value is None or isinstance(value, str)
        return (
            value if other and value in others else checked_count(name, value, wanted, why, error)
        )

    return checked


def checked_decay(name: str, value: Any) -> float | None:
    """A decay of a trace, or `None`."""
    return None if value is None else _fraction(name, value)


def checked_decays(name: str, value: Any) -> float | tuple[float, float] | None:
    """A decay, those of data and of states, or `None`."""
    hint = " For a rank pass an int, such as ES_D_RTRL(rank=2)."
    if value is None:
        return None
    if not isinstance(value, tuple | list):
        return _fraction(name, value, hint)
    if len(value) != 2:
        raise AlgorithmError(
            f"{name} is one number, or that of the data and that of the states, and not {value!r}. Write "
            f"{name}=(0.9, 0.99)."
        )
    of_data, of_states = (_fraction(name, number, hint) for number in value)
    return of_data, of_states


def one_of(*choices: str) -> Check:
    """One of some words."""

    def checked(name: str, value: Any) -> Any:
        if value not in choices:
            wanted = " or ".join(f'"{choice}"' for choice in choices)
            raise AlgorithmError(f"{name} must be {wanted}, not {value!r}.")
        return value

    return checked


def checked_seed(name: str, value: Any) -> int:
    """A seed of random numbers."""
    number = whole_number(value)
    if number is None or number < 0:
        raise InputTypeError(f"{name} must be an int >= 0, not {value!r}.")
    return number


def _fraction(name: str, value: Any, hint: str = "") -> float:
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise InputTypeError(f"{name} must be a float in (0, 1], not {number!r}.")
    if not 0 < number <= 1:
        raise AlgorithmError(f"A {name} must lie in (0, 1], and {name} is {number}.{hint}")
    return float(number)


def checked_rank(name: str, value: Any) -> int | None:
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


def checked_flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool | np.bool_):
        raise InputTypeError(f"{name} must be True or False, not {value!r}.")
    return bool(value)


def _plain(value: Any) -> Any:
    """A scalar of NumPy or JAX as the Python number that it is."""
    number = whole_number(value)
    if number is not None:
        return number
    if getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating):
        return float(value)
    return value
