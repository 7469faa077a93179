"""The entries of two states are carried as the parts of one complex number.

- Pattern: a whole trace of products, real, of two states.
- Proof: none is needed, as the numbers are the same.
- Rewrite: a setting of the form.
- An ALIF neuron is 1.6x faster at each step: XLA overwrites an array in place only where each entry depends on old
  entries at its own place.
"""

import dataclasses

from ...forms import Full
from ...ir import Change, TraceProgram
from ._pass import Pass


def _run(program: TraceProgram) -> TraceProgram:
    found = [
        node for node in program.traces if node.form == Full() and Full().pairs_states(node.site)
    ]
    new = {node: dataclasses.replace(node, form=Full(as_complex=True)) for node in found}
    changes = [Change(NAME, node.op.path, "two states as one complex number") for node in found]
    return program.replaced(new).noted(*changes) if new else program


NAME = "pair_states"
PAIR_STATES = Pass(
    NAME,
    "the entries of two states are the parts of one complex number, overwritten in place",
    _run,
    after=("drop_unlasting", "drop_ended", "share_uses", "filtered", "holomorphic"),
)
