"""Sparsity patterns of a linear program, by abstract interpretation.

The program is the tangent part of a step. Each value that depends on a tangent input is described
by a boolean sparse matrix: which of the seeds (elements of the tangent inputs) each of its elements
can depend on. Element-wise operations join the patterns of their operands; data movement is run on element
numbers; reductions and contractions join over what they sum; branches are joined and loops run to a fixpoint.
An operation without a rule is dense, which is a superset of any pattern, and is recorded.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

from .._jax import Equation, Flat, Variable, prims
from .._jax.primitives import facts, named, register
from ..errors import InputError, MemoryLimitError
from ..trace import Known
from ._pattern import Pattern, TooDense, empty, everything, pick


@dataclasses.dataclass(frozen=True)
class Opaque:
    """An operation that has no rule and was taken as dense."""

    primitive: str
    source: str


def too_dense(entries: int, source: str) -> MemoryLimitError:
    return MemoryLimitError(
        f"The influence among hidden states would have {entries:,} entries, from {source}. This "
        "is because every state reaches every other there, and traces that keep it are larger "
        "still. Use D_RTRL or ES_D_RTRL, which cut at each weight; where an operation without a "
        "weight mixes all states, such as a mean over them, carry what it computes as a smaller "
        "state."
    )


class Interpreter:
    """Runs a canonical linear program on patterns.

    The last seed stands for no element. A value depends on it if a backward rule that is not linear lies
    between the value and the tangents.
    """

    def __init__(self, seeds: int):
        self.seeds = seeds
        self.nonlinear: dict[str, None] = {}
        """Source lines of backward rules that are not linear."""
        self.opaque: dict[Opaque, None] = {}
        self.unbounded: dict[str, None] = {}
        """Source lines of `while` loops that a derivative passes through."""

    def run(
        self, flat: Flat, inputs: Sequence[Pattern | None], known: Known | None = None
    ) -> list[Pattern | None]:
        """Patterns of the outputs from those of the inputs; `None` stands for an empty one."""
        env: dict[Variable, Pattern] = {}
        for v, pattern in zip(flat.inputs, inputs, strict=True):
            if pattern is not None and pattern.nnz:
                env[v] = pattern
        if known is None:
            known = Known(flat.equations, flat.constants)
        parts: dict[Variable, Sequence[Variable]] = {}
        """The operands that complex numbers were made of."""
        for eqn in flat.equations:
            operands = eqn.inputs
            if eqn.primitive is prims.complex_p:
                parts[eqn.outputs[0]] = operands
            elif eqn.primitive in (prims.real_p, prims.imag_p) and operands[0] in parts:
                operands = (parts[operands[0]][eqn.primitive is prims.imag_p],)
            patterns = [env.get(v) for v in operands]
            if all(p is None for p in patterns):
                continue
            infer = facts(eqn.primitive).pattern
            try:
                outs = infer(self, eqn, patterns, known) if infer is not None else None
                if outs is None:
                    outs = self.dense(eqn, patterns)
            except TooDense as error:
                raise too_dense(error.entries, f"{eqn.primitive.name} at {eqn.source}") from None
            self._check(eqn, outs)
            for v, out in zip(eqn.outputs, outs, strict=True):
                if out is not None and out.nnz and v.is_float:
                    env[v] = out
        return [env.get(v) for v in flat.outputs]

    def run_on_seeds(
        self, flat: Flat, sizes: Sequence[int], known: Known | None = None
    ) -> list[Pattern]:
        """Patterns of the outputs, where the elements of the last inputs, of these sizes, are the seeds."""
        eye = sp.csr_array(sp.eye_array(self.seeds, dtype=bool, format="csr"))
        units = [sp.csr_array(eye[a:b]) for a, b in itertools.pairwise(np.cumsum([0, *sizes]))]
        first = [None] * (len(flat.inputs) - len(sizes))
        patterns = self.run(flat, [*first, *units], known)
        return [
            empty(v.size, self.seeds) if pattern is None else pattern
            for v, pattern in zip(flat.outputs, patterns, strict=True)
        ]

    def _check(self, eqn: Equation, outs: Sequence[Pattern | None]) -> None:
        """**Raises** `InputError` where a rule gives patterns of the wrong shape."""
        shapes = [None if out is None else tuple(out.shape) for out in outs]
        wanted = [(v.size, self.seeds) for v in eqn.outputs]
        fits = [shape in (None, want) for shape, want in zip(shapes, wanted, strict=False)]
        if len(shapes) != len(wanted) or not all(fits):
            raise InputError(
                f"The pattern rule of {eqn.primitive.name} returns patterns of shapes {shapes}, and not "
                f"{wanted}, at {eqn.source}. This is because a rule gives one pattern for each result of the "
                "equation, with a row for each element and a column for each seed (`interpreter.seeds`), "
                "or `None` for a result without entries. Mend the rule."
            )

    def include(self, other: "Interpreter") -> None:
        """Record what another interpreter met."""
        self.opaque |= other.opaque
        self.nonlinear |= other.nonlinear
        self.unbounded |= other.unbounded

    def dense(self, eqn: Equation, patterns: Sequence[Pattern | None]) -> list[Pattern]:
        """Each element of the results depends on all that any element of an operand depends on."""
        self.opaque[Opaque(eqn.primitive.name, eqn.source)] = None
        row = everything(patterns)
        return [pick(row, np.zeros(v.size, np.int64)) for v in eqn.outputs]


Patterns = list[Pattern | None]
Results = Sequence[Pattern | None] | None
Rule = Callable[[Interpreter, Equation, Patterns, Known], Results]
"""How patterns pass through an operation: `rule(interpreter, equation, patterns, known)`.

- `interpreter`: the `Interpreter`, which has the number of `seeds` and `run`s an inner program.
- `equation`: its `inputs` and `outputs` have a `shape` and a `size`; `params` are those of JAX.
- `patterns`: one for each operand; `None` for one that depends on no seed.
- `known`: gives the value of an operand that neither a parameter nor data changes, such as an index, else
    `None`.

It returns a pattern for each result, `None` for a result without entries. Or it returns `None` alone if it does
not know, and then the results are dense. A pattern may have too many entries, and must not have too few.
"""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for primitives that JAX lists under these names."""

    def of_names(rule: Rule) -> Rule:
        register(named(*names), pattern=rule)
        return rule

    return of_names
