"""What a pass is."""

import dataclasses
from collections.abc import Callable

from ...algorithms import Algorithm, Context
from ...analyse import Analysis
from ...forms import Full, Site
from ...ir import Change, TraceProgram


@dataclasses.dataclass(frozen=True)
class Pass:
    """An optimisation: a function from a trace program to one with the same gradients, but for rounding.

    - `name`: by which `passes=` takes it.
    - `does`: what it does where it applies, in words.
    - `after`: the names of passes that may not run after it, as what it proves or looks for would not be there.
    - `run`: takes a [`TraceProgram`][etpc.ir.TraceProgram] and returns one. It says what it changed by
        [`noted`][etpc.ir.TraceProgram.noted], and returns the program itself where it finds nothing to change.
    - `before`: takes the rule and what it chooses from, before it does, and returns the analysis of a step with the
        same gradients, by [`analyse`][etpc.analyse.analyse]; or the one that there is.
    """

    name: str
    does: str
    run: Callable[[TraceProgram], TraceProgram]
    after: tuple[str, ...] = ()
    before: Callable[[Algorithm, Context], Analysis] | None = None


def whole_traces_as(
    program: TraceProgram, form: Full, fits: Callable[[Site], bool], name: str, text: str
) -> TraceProgram:
    """The program with whole traces carried in another setting of their form where it `fits`; the pass of that name
    says so in the text."""
    found = [node for node in program.traces if node.form == Full() and fits(node.site)]
    new = {node: dataclasses.replace(node, form=form) for node in found}
    changes = [Change(name, node.op.path, text) for node in found]
    return program.replaced(new).noted(*changes) if new else program


REGROUPING = ("drop_ended", "share_uses", "filtered", "join_products")
"""Passes after which the operations of a trace have the terms of a plain one."""
