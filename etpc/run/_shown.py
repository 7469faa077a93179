"""The part of a program that only shows its plan."""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..analyse import Analysis, analyse
from ..errors import checked_count
from ..ir import TraceProgram
from ..plan import Claim, Group, OpPlan, Plan, claims

if TYPE_CHECKING:
    from ..show import Graph, PassReports


class Shown:
    """A plan to look at: what is claimed of each gradient, what is carried, and why."""

    def __init__(self, plan: Plan):
        self.plan = plan

    @property
    def ir(self) -> TraceProgram:
        """The [trace program][etpc.ir.TraceProgram] after its passes: traces, and gradients as sums of terms."""
        return self.plan.ir

    @property
    def algorithm(self) -> Any:
        """The learning rule."""
        return self.plan.algorithm

    @property
    def ops(self) -> tuple[OpPlan, ...]:
        """One record for each traced weight operation: `path`, `kind`, `states`, `block`,
        `trace_shape`, `exact`, `escapes`."""
        return self.plan.traced

    @property
    def groups(self) -> tuple[Group, ...]:
        """Hidden states that share blocks, with the weights that reach them."""
        return self.plan.groups

    @cached_property
    def claims(self) -> Mapping[str, Claim]:
        """What is claimed of the gradient of each float parameter, by its path.

        A [`Claim`][etpc.Claim] says whether the gradient is exact, the reasons where it is not, and
        the operations in which the parameter is used. It holds for all values of the parameters,
        and for those that are the same over a stream: BPTT and traces differ where weights move.
        """
        return claims(self.plan)

    @property
    def exact(self) -> bool:
        """Whether every gradient is that of BPTT."""
        return all(claim.holds_exactly for claim in self.claims.values())

    @cached_property
    def untraced(self) -> Mapping[str, str]:
        """Paths of parameters without a trace, or with a use that reaches a hidden state and has
        none, each with the reason; with that of each use where they differ."""
        reasons: dict[str, str] = {}
        for path, claim in self.claims.items():
            uses = [p for p in claim.uses if p.node is None]
            if len(uses) < len(claim.uses):
                uses = [r.use for r in claim.reasons if r.kind == "untraced" and r.use is not None]
                if not uses:
                    continue
            differ = len(uses) < len(claim.uses) or len({p.reason for p in uses}) > 1
            texts = [f"in one use ({p.kind}) {p.reason}" if differ else p.reason for p in uses]
            texts = texts or [reason.text for reason in claim.reasons]
            reasons[path] = "; ".join(dict.fromkeys(texts))
        return reasons

    @cached_property
    def graph(self) -> "Graph":
        """The dependency graph: inputs, parameters, weight operations, hidden states, outputs.

        Each node has `kind` and `path`; each edge has `cut`: whether the trace drops it.
        """
        from ..show import dependency_graph

        return dependency_graph(self.plan)

    @cached_property
    def passes(self) -> "PassReports":
        """What each pass of the compiler did to this program: whether it ran, which weight operations it changed, and
        how many bytes of traces it saved for one example. `print(program.passes)` shows it."""
        from ..show import PassReports

        return PassReports.of(self.plan)

    def explain(self, path: str, width: int = 100) -> str:
        """What the program does with one parameter, in sentences with numbers.

        What it reaches, its trace, whether the gradient is exact or the paths along which influence
        leaves, and what the trace would cost under other rules.

        **Arguments:**

        - `path`: a parameter path as `print(program)` shows them, such as `".cell.weight_hh"`.
        - `width`: of the lines at most, but for tables and long words.

        **Raises** `etpc.SelectionError` where the model has no such parameter, `etpc.InputError` for a
        width below 1.
        """
        from ..show import explain

        width = checked_count("width", width)
        return explain(self.plan, self._all_cut, path, self.claims, width)

    @cached_property
    def _all_cut(self) -> Analysis:
        a = self.plan.analysis
        whole = a.cut == {op.number for op in a.ops if op.kind.data is not None}
        return a if whole else analyse(a.step)

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON: the algorithm, each traced operation, the claim for each parameter, and as `ir`
        the trace program: its traces, the terms of each gradient as texts, and the window."""
        from ..show import record_of

        return record_of(self.plan, self.claims, self.untraced)

    def window_for(self, steps: int) -> int:
        """The window in which `value_and_grad` works on a sequence of so many steps.

        The window that `print(program)` shows, or all steps where there are fewer. Where that window
        was chosen and the gradient does not depend on it (no trace that is reduced after each window, and not
        `backprop="full"`), it is one near it that divides `steps`, so that none are left over.
        """
        return self.ir.window.for_sequence(checked_count("steps", steps))

    def __str__(self) -> str:
        from ..show import describe

        return describe(self.plan, self.claims, self.untraced)

    __repr__ = __str__
