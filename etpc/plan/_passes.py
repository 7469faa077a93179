"""The optimisations of a program. Each has a name and may be left out; none changes a gradient but for rounding."""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

from ..errors import InputError, InputTypeError, near

PASSES = {
    "drop_unlasting": "states that later steps read as cut data alone are left out of a trace",
    "drop_ended": "a weight whose influence ends with the step has no trace",
    "share_uses": "uses of one weight that reach the same states have one trace, the sum of theirs",
    "filtered": "outputs that are proved to move alike share filtered inputs",
    "holomorphic": "complex weights in complex states have complex derivatives, half as many numbers",
    "join_products": "products that are added up have one trace, with their data side by side",
    "pair_states": "the entries of two states are the parts of one complex number, overwritten in place",
    "repeat_blocks": "transitions that repeat from output to output are computed once",
    "by_columns": "the Jacobian of a parameter that many states share is read by columns",
    "choose_window": "a window has as many steps as take no more memory than the traces",
    "read_after": "in windows of one step, the gradient is read from the trace at the end of the step",
    "join_past": "under a decay, the past is added to the data of the first step, as both have one credit",
    "schedule": "on a CPU, loops over traces are cut into pieces that stay in a cache",
}
"""What each pass does, in the order in which they run."""


def checked_passes(passes: Collection[str] | None) -> frozenset[str]:
    """The names of the passes that run: all where `passes` is `None`.

    **Raises** `InputTypeError` for what is no collection of names, `InputError` for a name that no pass has.
    """
    if passes is None:
        return frozenset(PASSES)
    example = 'such as ("filtered", "read_after"); () leaves all out, and None takes all'
    given: Any = passes
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InputTypeError(f"passes= takes the names of passes, {example}, not {passes!r}.")
    unknown = [name for name in passes if name not in PASSES]
    if unknown:
        hint = near(str(unknown[0]), list(PASSES))
        raise InputError(
            f"There is no pass {unknown[0]!r}.{hint} passes= takes the names of passes, {example}. "
            f"The passes: {', '.join(PASSES)}."
        )
    return frozenset(passes)


class Change(NamedTuple):
    """What a pass did to one weight operation, or to the whole program."""

    path: str
    """Of the parameter; empty for the whole program."""
    text: str
    bytes: int = 0
    """By how many bytes the traces of one example are smaller."""


@dataclasses.dataclass(frozen=True)
class PassReport:
    """What one pass did to a program."""

    name: str
    does: str
    """What it does where it applies."""
    ran: bool
    """Whether it was among the passes that `etpc.compile` was asked for."""
    changes: tuple[Change, ...]
    """Empty where it found nothing to change."""

    @property
    def bytes(self) -> int:
        """By how many bytes the traces of one example are smaller."""
        return sum(change.bytes for change in self.changes)

    def __str__(self) -> str:
        saved = f", {self.bytes:,} bytes fewer for one example" if self.bytes else ""
        paths: dict[str, list[str]] = {}
        for change in self.changes:
            paths.setdefault(change.text, []).append(change.path or "the program")
        each = [f"  {', '.join(dict.fromkeys(of))}: {text}" for text, of in paths.items()]
        return "\n".join([f"{self.name}: {self.does}{saved}", *each])


class PassReports(tuple[PassReport, ...]):
    """What each pass did, in the order in which they ran."""

    @property
    def fired(self) -> tuple[str, ...]:
        """The names of the passes that changed something."""
        return tuple(report.name for report in self if report.changes)

    def __str__(self) -> str:
        idle = [report.name for report in self if report.ran and not report.changes]
        absent = [report.name for report in self if not report.ran]
        texts = [str(report) for report in self if report.changes]
        texts += [f"nothing to do: {', '.join(idle)}"] if idle else []
        texts += [f"left out: {', '.join(absent)}"] if absent else []
        return "\n".join(texts)

    __repr__ = __str__


__all__ = ["PASSES", "Change", "PassReport", "PassReports", "checked_passes"]
