"""The exceptions that `etpc` raises: one family, each also a built-in exception of the fitting kind."""

import difflib
import operator
import os
import sys
from collections.abc import Iterable
from typing import Any


class EtpcError(Exception):
    """Base of every error that `etpc` raises on purpose."""


class ModelError(EtpcError, ValueError):
    """The model does not keep the contract `model(x, state) -> (y, new_state)`."""


class UnsupportedError(EtpcError, NotImplementedError):
    """The model or the algorithm asks for something that `etpc` cannot do yet."""


class SelectionError(EtpcError, ValueError):
    """`weights=` selects nothing, or something that is not a parameter of the model."""


class AlgorithmError(EtpcError, ValueError):
    """An algorithm or one of its settings is unknown or out of range."""


class MemoryLimitError(EtpcError, MemoryError):
    """A program would take more memory than it may; raised before any of it is allocated."""


class InputError(EtpcError, ValueError):
    """An argument is out of range, or does not fit what a program was compiled for."""


class InputTypeError(EtpcError, TypeError):
    """An argument is of the wrong type."""


class CheckpointError(EtpcError, ValueError):
    """A file is no whole checkpoint or does not fit, or a tree cannot be saved in one."""


class VerificationError(EtpcError, ArithmeticError):
    """A gradient is not what the program claims, on this machine, in this dtype and at this size."""


class SilentNetworkWarning(UserWarning):
    """No neuron of a layer spikes, so that its weights get no useful gradient."""


class UncheckedWarning(UserWarning):
    """A gradient was to be checked, and nothing could be compared: that of BPTT was zero or not finite."""


def raise_together(
    problems: Iterable[str], error: type[EtpcError] = ModelError, heading: str = ""
) -> None:
    """Raise `error` with all the problems of a stage, or return where there are none."""
    distinct = list(dict.fromkeys(problems))
    if not distinct:
        return
    if len(distinct) == 1 and not heading:
        raise error(distinct[0])
    lines = [heading or f"{len(distinct)} problems were found:"]
    lines += [f"  {i}. " + text.replace("\n", "\n     ") for i, text in enumerate(distinct, 1)]
    raise error("\n".join(lines))


def whole_number(value: Any) -> int | None:
    """An integer of any type, NumPy's and JAX's among them, as an int; `None` for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def checked_count(
    name: str, value: Any, wanted: str = "an int >= 1", why: str = "", error: Any = InputError
) -> int:
    """A number that counts something, as an int. **Raises** `error` where it is below one, or none."""
    count = whole_number(value)
    if count is None or count < 1:
        raise error(f"{name} must be {wanted}, not {value!r}.{why and f' {why}'}")
    return count


def checked_list(name: str, value: Any, what: str) -> list[Any]:
    """The members of an argument; none of `None`. **Raises** `InputTypeError` for a text, or where it is no list."""
    if isinstance(value, str) or not isinstance(value, Iterable | None):
        raise InputTypeError(f"{name} must be a list of {what}, not {value!r}. Pass [{value!r}].")
    return list(value or ())


def near(name: str, names: Iterable[str]) -> str:
    """A sentence with the names that are nearly `name`, or nothing."""
    matches = difflib.get_close_matches(name, list(names), n=2, cutoff=0.7)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def origin(definition: Any) -> tuple[str, str]:
    """Where a class or a function is defined, which tells a redefinition from another one: the file, or the module, and
    the qualified name. They are the same for a file that was loaded under two names.

    So a cell of a notebook that is run once more defines the same thing again.
    """
    module = getattr(definition, "__module__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    place = module if file is None else os.path.realpath(file)
    return place, getattr(definition, "__qualname__", repr(definition))
