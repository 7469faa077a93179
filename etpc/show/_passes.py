"""What each pass did to a program."""

import dataclasses

from ..ir import Change
from ..plan import DEFAULT, Plan


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
        if not self.changes:
            return f"{'nothing to do' if self.ran else 'left out'}: {self.name}"
        saved = f", {self.bytes:,} bytes fewer for one example" if self.bytes else ""
        paths: dict[str, list[str]] = {}
        for change in self.changes:
            paths.setdefault(change.text, []).append(change.path or "the program")
        each = [f"  {', '.join(dict.fromkeys(of))}: {text}" for text, of in paths.items()]
        return "\n".join([f"{self.name}: {self.does}{saved}", *each])


class PassReports(tuple[PassReport, ...]):
    """What each pass did, in the order in which they ran."""

    @classmethod
    def of(cls, plan: Plan) -> "PassReports":
        changes = lambda p: tuple(c for c in plan.ir.changes if c.by == p.name)
        every = dict.fromkeys((*plan.passes, *DEFAULT))
        return cls(PassReport(p.name, p.does, p in plan.passes, changes(p)) for p in every)

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
