"""The equations of a program: shown, evaluated, and written as a file."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ..errors import InputError, UnsupportedError, raise_together
from ..files.record import record
from ..ir import TraceProgram
from ..trace import is_float, is_key
from ._lines import Lines, NotIndexed
from ._names import checked_names
from ._numpy import Source
from ._rule import Rule
from ._traces import ONE_PAIR
from ._write import as_latex, as_text


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What the equations give for a sequence, in NumPy."""

    outputs: Any
    """With a leading axis of time."""
    state: Any
    traces: Mapping[str, np.ndarray]
    """The traces at the end, by the names that `to_numpy` gives them."""
    gradient: Any
    """The gradient of the sum of the losses, like the model's float leaves."""


class Equations:
    """The equations of a program: the step, the recursion of each trace, the learning signals, and the gradient.

    Made by [`Program.equations`][etpc.Program.equations]. `print` shows them, and a notebook shows them as formulas.
    They are those of one example with a window of one step; the gradient is the same with any window.
    """

    def __init__(self, program: TraceProgram, path: str | None = None, names: Any = None):
        paths = sorted({op.path for op in program.analysis.ops})
        if path is not None and not any(path in p.split(", ") for p in paths):
            raise InputError(f"There is no weight {path!r}. The weights: {', '.join(paths)}.")
        self.path, self.rule = path, Rule(program, checked_names(names))
        self._lines = Lines(self.rule, path)

    def __str__(self) -> str:
        return as_text(self._lines)

    __repr__ = __str__

    def latex(self, *, indices: bool | None = None, width: int = 42) -> str:
        """The equations as LaTeX, to be pasted: headings, blocks of `align`, and a paragraph on notation.

        **Arguments:**

        - `indices`: whether elements of arrays are written, with indices, as papers on e-prop do, or whole arrays. By
            default it is so for e-prop, where arrays have no parts.
        - `width`: about how many letters wide a line may be; by default it fits a column of two.

        **Raises** `etpc.UnsupportedError` where indices are asked for, and arrays have parts.
        """
        if indices or (indices is None and self.rule.derivatives.of_eprop):
            try:
                return as_latex(Lines(self.rule, self.path, True), width)
            except NotIndexed as error:
                if indices:
                    raise UnsupportedError(
                        "There are no indices: an array has parts with equations of their own, or more than two axes. "
                        "Leave out `indices=`."
                    ) from error
        return as_latex(self._lines, width)

    def _repr_latex_(self) -> str:
        return self.latex()

    def as_dict(self) -> dict[str, Any]:
        """The equations ready for JSON: both sides of each in SymPy's `srepr`, under their headings."""
        sections: list[dict[str, Any]] = []
        for title, lines in self._lines.sections.items():
            of = [(sp.srepr(x.left), x.sign, sp.srepr(x.right), x.note) for x in lines]
            equations = [dict(left=a, sign=s, right=b, note=n) for a, s, b, n in of]
            sections.append({"title": title, "equations": equations})
        return record("etpc-equations/1", sections=sections, left_out=self._lines.left_out)

    def to_numpy(self) -> str:
        """A file of plain NumPy that runs the equations, and has them as comments.

        It has a function `step(parameters, inputs, carry, dloss) -> (outputs, carry, gradient)`. All but `dloss` are
        dictionaries of arrays by path, `carry` is the state with `traces()`, and `dloss(outputs)` gives the derivative
        of the loss by each output; by a complex one its conjugate, as `jax.grad` gives it.

        **Raises** `etpc.UnsupportedError` where a function of whole arrays cannot be written in NumPy, a trace has a
        rank, or there are PRNG keys.
        """
        return self._file(str(self))

    def _file(self, head: str) -> str:
        heading = "The equations can be printed, but not run, as NumPy does not compute all that the step does."
        raise_together(self._missing(), UnsupportedError, heading)
        return Source(self.rule).file(head)

    def _missing(self) -> Iterator[str]:
        """What cannot be written in NumPy."""
        step, calls = self.rule.step.step, self.rule.step.calls.values()
        for node, trace in self.rule.traces.items():
            if trace.meaning is ONE_PAIR and node.op.kind.groups > 1:
                yield (
                    f"The trace of {node.op.path} is one pair for each of {node.op.kind.groups} groups, and these are "
                    "the equations of one."
                )
            if trace.meaning.rank is not None and trace.meaning is not ONE_PAIR:
                yield (
                    f"The trace of {node.op.path} has a limited rank: a singular value decomposition reduces it after "
                    "each window, which is not an equation of a step."
                )
        for of in (step.model_leaves, step.input_leaves, step.state_leaves):
            keys = (p for p, a in zip(of.paths, of.avals, strict=True) if is_key(a))
            yield from (f"NumPy has no PRNG keys: {path}." for path in keys)
        outputs = ((eqn, v.aval.dtype) for eqn in step.equations for v in eqn.outputs if v.is_float)
        for eqn, dtype in (pair for pair in outputs if jnp.finfo(pair[1]).bits < 32):
            yield f"{eqn.primitive.name} at {eqn.source} rounds to {dtype}. Compute in float32."
            break
        for name in (f"{c.name} at {c.equation.source}" for c in calls if not c.is_known):
            yield f"{name} is no function of elements that is written. Write the step without it."

    def evaluate(
        self, model: Any, xs: Any, targets: Any, dloss: Callable[[Any, Any], Any], state: Any = None
    ) -> Evaluated:
        """Run the file that `to_numpy` writes over a sequence of one example.

        **Arguments:**

        - `model`: the model that was compiled, with these or other parameter values.
        - `xs`, `targets`: with a leading axis T.
        - `dloss`: `dloss(y, target)`, the derivative of the loss of one step by the output, such as `jax.grad(loss)`.
        - `state`: at the start; by default that of the model that was compiled.

        **Returns** [`Evaluated`][etpc.equations.Evaluated].

        **Raises** `etpc.UnsupportedError` as `to_numpy` does; `etpc.InputError` where the program was compiled for the
        shapes of a state and none is given.
        """
        step, module = self.rule.step.step, self._module
        of, outs, states = step.model_leaves, step.output_leaves, step.state_leaves
        named = lambda of, values: dict(zip(of.paths, values, strict=True))
        start = step.initial_state if state is None else states.split(state)
        if any(isinstance(a, jax.ShapeDtypeStruct) for a in start):
            raise InputError(
                "The program was compiled for the shapes of a state alone. Pass `state=` with its values."
            )
        added = {path: np.zeros(a.shape, a.dtype) for path, a in step.added}
        none, found, gradients = module["traces"](), list[list[Any]](), list[dict[str, Any]]()
        carries = [none | named(states, start) | added]

        def as_typed(y: Mapping[str, Any]) -> list[Any]:
            """Whole numbers and conditions are computed as numbers."""
            pairs = zip(outs.paths, outs.avals, strict=True)
            return [y[p] if is_float(a.dtype) else y[p].astype(a.dtype) for p, a in pairs]

        def by_output(target: Any, y: Mapping[str, Any]) -> dict[str, Any]:
            return named(outs, outs.split(dloss(outs.join(as_typed(y)), target)))

        parameters, inputs = named(of, of.split(model)), step.input_leaves.split(xs)

        def at_step(t: int, carry: dict[str, Any], counts: bool = True) -> Any:
            now = named(step.input_leaves, [a[t] for a in inputs])
            now |= {} if step.initial is None else {"begins": np.asarray(t == 0)}
            target = jax.tree.map(lambda a: a[t], targets)
            at_t = lambda y: {p: counts * g for p, g in by_output(target, y).items()}
            return module["step"](parameters, now, carry, at_t)

        for t in range(steps := len(inputs[0])):
            y, carry, gradient = at_step(t, carries[-1])
            carries.append(none | carry)
            found.append(as_typed(y))
            gradients.append(gradient)
        rule, window, begin = self.rule.derivatives, self.rule.program.window, 0
        if rule.through:
            gradients.clear()
        for at in range(0, steps, window.for_sequence(steps)) if rule.through else ():
            end, passed = min(at + window.for_sequence(steps), steps), dict[str, Any]()
            for t in reversed(range(begin, end)):
                carry = carries[t] | (none if t > begin else {}) | passed
                _, carry, gradient = at_step(t, carry, t >= at)
                gradients.append(gradient)
                passed = {later.name: carry[of.name] for of, later in rule.passed.values()}
            begin = max(end - window.behind, 0)
        carry, total = carries[-1], {p: sum(g[p] for g in gradients) for p in gradients[0]}
        return Evaluated(
            outs.join([np.stack(several) for several in zip(*found, strict=True)]),
            states.join([carry[p] for p in states.paths]),
            {array.name: carry[array.name] for array in self.rule.carried},
            of.tree_of_floats([total[of.paths[i]] for i in of.floats]),
        )

    @cached_property
    def _module(self) -> dict[str, Any]:
        """The file that is written, as it runs."""
        module: dict[str, Any] = {}
        exec(compile(self._file(""), "<equations>", "exec"), module)
        return module
