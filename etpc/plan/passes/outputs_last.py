"""On a TPU, a whole trace of dense products is carried with its outputs along the last axis.

- Pattern: a TPU; a whole trace of dense products, whose weight has its inputs last.
- Proof: none is needed, as the numbers are the same.
- Rewrite: a setting of the form.
- What a trace is multiplied with, D and the credit, has a number for each output. XLA repeats each along the 128
  lanes of a register where these are inputs. With outputs there, an update at each step of 128 GRU cells has 0.45x of a
  v5e's estimated cycles, one of GIF neurons 0.61x, and one of 32 GRU cells 0.70x.
"""

import dataclasses
from typing import Any

from ...forms import Full, Holomorphic
from ...ir import Change, TraceProgram
from ._pass import Pass
from .states_apart import STATES_APART


def _run(program: TraceProgram) -> TraceProgram:
    if program.target.platform != "tpu":
        return program
    new = {
        node: dataclasses.replace(node, form=_turned(node.form))
        for node in program.traces
        if isinstance(node.form, Full | Holomorphic)
        and node.site.inputs_last
        and node.site.kind.links is None
    }
    changes = [Change(NAME, node.op.path, "the outputs are the last axis") for node in new]
    return program.replaced(new).noted(*changes) if new else program


def _turned(form: Any) -> Any:
    if isinstance(form, Holomorphic):
        return dataclasses.replace(form, inner=_turned(form.inner))
    return dataclasses.replace(form, outputs_last=True)


NAME = "outputs_last"
OUTPUTS_LAST = Pass(
    NAME,
    "on a TPU, whole traces have the outputs of a layer along the last axis",
    _run,
    after=(*STATES_APART.after, STATES_APART.name, "pair_states"),
)
