"""The exceptions that `etpc` raises: one family, each also a built-in exception of the fitting kind."""

import difflib
import enum
import operator
import os
import sys
from collections.abc import Iterable
from typing import Any


class Code(enum.StrEnum):
    """What an error, or the reason of a claim, says, for programs: the text beside it may change, and a code may not.

    Each kind of error has a code; some have others, which say what to change. A code is its text, as
    `error.code == "no-float-state"`.
    """

    MODEL = "model"
    """`ModelError`"""
    NO_INITIAL_STATE = "no-initial-state"
    """`ModelError`: there is no `init_state()`, and `state=` was not given."""
    NO_FLOAT_STATE = "no-float-state"
    """`ModelError`: the state has no float, so that no weight has a lasting influence."""
    STATE_CHANGES = "state-changes"
    """`ModelError`: a step returns a state of another structure, shape or dtype."""
    UNSUPPORTED = "unsupported"
    """`UnsupportedError`"""
    EFFECTS = "effects"
    """`UnsupportedError`: a step writes a mutable array, or calls Python."""
    UNBOUNDED_LOOP = "unbounded-loop"
    """`UnsupportedError`: a derivative passes through a `while_loop` of unknown length."""
    NO_TRANSPOSE = "no-transpose"
    """`UnsupportedError`: the backward rule of a `custom_vjp` is not linear."""
    NO_DERIVATIVE = "no-derivative"
    """`UnsupportedError`: JAX does not differentiate or batch an operation."""
    REFUSED_JAXLIB = "refused-jaxlib"
    """`UnsupportedError`: this jaxlib computes wrong gradients."""
    SELECTION = "selection"
    """`SelectionError`"""
    ALGORITHM = "algorithm"
    """`AlgorithmError`"""
    UNKNOWN_ALGORITHM = "unknown-algorithm"
    """`AlgorithmError`: no algorithm has this name."""
    PASS_ORDER = "pass-order"
    """`InputError`, `AlgorithmError`: a pass has to run before another."""
    MEMORY_LIMIT = "memory-limit"
    """`MemoryLimitError`"""
    INPUT = "input"
    """`InputError`"""
    INPUT_TYPE = "input-type"
    """`InputTypeError`"""
    CHECKPOINT = "checkpoint"
    """`CheckpointError`"""
    VERIFICATION = "verification"
    """`VerificationError`"""
    COMMAND = "command"
    """The command line was given something that it cannot use."""

    NO_STATE_REACHED = "no-state-reached"
    """No trace: the weight reaches no hidden state, and its gradient is exact."""
    NOT_READ_LATER = "not-read-later"
    """No trace: no later step reads what it does to the states, and its gradient is exact."""
    READ_AS_CUT_DATA = "read-as-cut-data"
    """No trace: a later step reads what it does to the states as data alone that the rule cuts."""
    BEHIND_WEIGHTS = "behind-weights"
    """No trace: it acts on the states only through the data of other weights, which the rule cuts."""
    NOT_SELECTED = "not-selected"
    """No trace: `weights=` leaves it out."""
    NOT_MARKED = "not-marked"
    """No trace: it is not marked, where `weights="marked"`."""
    NO_FORM = "no-form"
    """No trace: the algorithm gives it none."""
    OTHER_FEEDBACK = "other-feedback"
    """Credit passes back by other weights than those of the model."""
    UNUSED = "unused"
    """Nothing that the step returns depends on the parameter."""
    ESCAPES = "escapes"
    """Influence leaves the trace through the data of a weight, which the rule cuts."""
    ESCAPES_LATER = "escapes-later"
    """Influence leaves the trace after the number of steps that the rule follows it."""
    REDUCED = "reduced"
    """The form of the trace leaves something out."""


class EtpcError(Exception):
    """Base of every error that `etpc` raises on purpose. Its `code` says which, for programs."""

    code: Code

    def __init__(self, *args: object, code: Code | None = None):
        super().__init__(*args)
        if code is not None:
            self.code = code


class ModelError(EtpcError, ValueError):
    """The model does not keep the contract `model(x, state) -> (y, new_state)`."""

    code = Code.MODEL


class UnsupportedError(EtpcError, NotImplementedError):
    """The model or the algorithm asks for something that `etpc` cannot do yet."""

    code = Code.UNSUPPORTED


class SelectionError(EtpcError, ValueError):
    """`weights=` selects nothing, or something that is not a parameter of the model."""

    code = Code.SELECTION


class AlgorithmError(EtpcError, ValueError):
    """An algorithm or one of its settings is unknown or out of range."""

    code = Code.ALGORITHM


class MemoryLimitError(EtpcError, MemoryError):
    """A program would take more memory than it may; raised before any of it is allocated."""

    code = Code.MEMORY_LIMIT


class InputError(EtpcError, ValueError):
    """An argument is out of range, or does not fit what a program was compiled for."""

    code = Code.INPUT


class InputTypeError(EtpcError, TypeError):
    """An argument is of the wrong type."""

    code = Code.INPUT_TYPE


class CheckpointError(EtpcError, ValueError):
    """A file is no whole checkpoint or does not fit, or a tree cannot be saved in one."""

    code = Code.CHECKPOINT


class VerificationError(EtpcError, ArithmeticError):
    """A gradient is not what the program claims, on this machine, in this dtype and at this size."""

    code = Code.VERIFICATION


class SilentNetworkWarning(UserWarning):
    """No neuron of a layer spikes, so that its weights get no useful gradient."""


class UncheckedWarning(UserWarning):
    """A gradient was to be checked, and nothing could be compared: that of BPTT was zero or not finite."""


def raise_together(
    problems: Iterable[str],
    error: type[EtpcError] = ModelError,
    heading: str = "",
    code: Code | None = None,
) -> None:
    """Raise `error` with all the problems of a stage, or return where there are none."""
    distinct = list(dict.fromkeys(problems))
    if not distinct:
        return
    if len(distinct) == 1 and not heading:
        raise error(distinct[0], code=code)
    lines = [heading or f"{len(distinct)} problems were found:"]
    lines += [f"  {i}. " + text.replace("\n", "\n     ") for i, text in enumerate(distinct, 1)]
    raise error("\n".join(lines), code=code)


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


def not_installed(what: str, package: str | None, extra: str) -> str:
    """Of what needs a package that is missing, what to do."""
    return f"{what} needs {package}, which is not installed. Run `pip install 'etpc[{extra}]'`."


def in_one_line(text: str) -> str:
    """A text with what ends a line, or is not shown, as escapes: it stays what it is inside a comment."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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
