"""A learning rule on a step: its equations, in order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..analyse import WeightOp
from ..errors import UnsupportedError
from ..forms import WHOLE_TRACE, Defined, Meaning
from ..ir import Direct, Through, TraceNode, TraceProgram, end_of
from ._derivatives import Derivatives, Equation, Term
from ._eprop import EProp
from ._nodes import ACROSS, HERE, Array
from ._traces import ONE_PAIR, CarriedArrays, Data

Section = tuple[str, str, list[Equation]]
"""A title, the paths of the weights that it is about, and equations."""


class Rule:
    """The equations of a trace program."""

    def __init__(self, program: TraceProgram, names: Mapping[float, str]):
        meanings = _meanings(program)
        self.program, self.analysis = program, program.analysis
        self.derivatives = d = Derivatives(program, names)
        self.step = d.step
        self.gradient: dict[Array, Array] = {}
        self.traces = {n: CarriedArrays(d, n, m, program.closed(n)) for n, m in meanings.items()}
        traces = [(node, [*trace.equations()]) for node, trace in self.traces.items()]
        gradients = [(op.path, [*self._gradient(op)]) for op in self.analysis.ops]
        step = [d.equation_of(*c) for c in (*self.step.once, *self.step.computed)]
        self.sections: list[Section] = [
            *(("the step", "", step), (_signals(program), "", d.credits))
        ]
        for node, equations in traces:
            paths = ", ".join(dict.fromkeys(op.path for op in node.ops))
            self.sections.append((f"the trace of {paths}: {node.form.held}", paths, equations))
        gradients += self._pulled_back()
        self.sections += [("the gradient of a step", *of) for of in gradients]
        if d.of_eprop:
            EProp(self)

    @property
    def carried(self) -> dict[Array, Array]:
        """The arrays that are carried beside the state, before and after the step."""
        return {old: new for trace in self.traces.values() for old, new in trace.arrays.items()}

    def _gradient(self, op: WeightOp) -> Iterator[Equation]:
        """The terms of a gradient in a step: credit past the new states, of these, and of the old ones."""
        d, program, node = self.derivatives, self.program, self.program.of_op(op)
        is_output = self.analysis.reach[op.number].role == "output"
        credit = {type(t.credit) for t in program.step_grads.get(op, ())}
        is_after = node is not None and program.step_grads[node.op] == (end_of(node),)
        if d.through or is_output or Direct in credit:
            given = [d.credit(s, *[ACROSS] * d.through) for s in d.sources(op)]
            yield from self._outer(op, given, "through" if d.through else "direct")
        if node is not None and (is_after or not self.traces[node].passes_back):
            yield from self._met(op, node, "after" if is_after else "through and past")
        elif Through in credit:
            yield from self._outer(op, [d.into(s, "c") for s in d.sources(op)], "through")
        if node is not None and not is_after:
            yield from self._met(op, node, "past")

    def _met(self, op: WeightOp, node: TraceNode, note: str) -> Iterator[Equation]:
        """What credit of states meets: after the step that of the new ones, and before it that of the old ones."""
        d, trace, first = self.derivatives, self.traces[node], node.feeds[0].ops
        line, after = trace.lines.get(trace.meaning.meets), note != "past"
        if line is not None and line.of == "uses":
            for part in range(len(d.weights(op)) if op in first else 0):  # others enter it too
                yield from self._added(op, part, trace.met(line, (op, part), after), note)
        elif line is not None:
            given = yield from trace.signals(line, after)
            yield from self._outer(op, given, note, trace.data(op, after))
        elif after:  # F of the step itself
            given = [d.into(s, "c") for s in d.sources(op)]
            yield from self._outer(op, given, "through", trace.data(op, after))

    def _added(
        self, op: WeightOp, part: int, terms: Iterable[Term], note: str
    ) -> Iterator[Equation]:
        """Terms of elements of a weight that are added to its gradient."""
        weight, at = self.derivatives.nodes.elements(self.step.value(op.weight)[part])
        at = np.arange(weight.size) if self.step.products[op].data else at.reshape(-1)
        target = self._gradient_of(weight)
        if found := [self.derivatives.term(target, t.value, at[t.where]) for t in terms]:
            yield Equation(target, found, note)

    def _gradient_of(self, weight: Array) -> Array:
        if weight not in self.gradient:
            text, tex = f"g_{weight.name}", ("g", weight.text)
            self.gradient[weight] = self.derivatives.array(text, weight.shape, *tex)
        return self.gradient[weight]

    def _outer(
        self, op: WeightOp, credit: Sequence[Array | None], note: str, data: Data | None = None
    ) -> Iterator[Equation]:
        """Credit of the output of an operation, times its data."""
        product, d = self.step.products[op], self.derivatives
        for part, weight in enumerate(d.weights(op)):
            terms, grid = list[Term](), product.grid
            for times in product.terms:
                given = credit[times.part]
                if times.weight is weight and given is not None:
                    of_data = d.data(times, grid) if data is None else data(times.data, grid)
                    value = times.sign * d.view(given, grid.rows) * of_data
                    terms.append(Term(value, grid.weights))
            yield from self._added(op, part, terms, note)

    def _pulled_back(self) -> Iterator[tuple[str, list[Equation]]]:
        """From effective weights to the parameters that they are computed from, by their paths."""
        leaves = zip(self.step.parameters, self.analysis.step.model_leaves.paths, strict=True)
        path_of = {array: path for parts, path in leaves for array in parts}
        for weight, gradient in [*self.gradient.items()]:
            jacobian = self.derivatives.jacobian(weight.ids, HERE) if weight.kind == "value" else {}
            for parameter in jacobian:
                terms = self.derivatives.back(jacobian, parameter, gradient)
                yield path_of[parameter], [Equation(self._gradient_of(parameter), terms)]


def _signals(program: TraceProgram) -> str:
    """The title of the learning signals."""
    window = program.window
    if window.credit == "step":
        return "the learning signals"
    before = f" and {window.behind} before it, whose losses do not count" * (window.behind > 0)
    return f"the learning signals, back through windows of {window.steps} steps{before}"


def _meanings(program: TraceProgram) -> dict[TraceNode, Meaning]:
    """What each trace means.

    **Raises** `UnsupportedError` for a rule whose equations are not written.
    """
    found, why = dict[TraceNode, Meaning](), ""
    if program.extends is not None:
        why = "it carries directions of states besides traces, which change from window to window"
    for node in program.traces:
        if not isinstance(node.form, Defined):
            why = (
                f"the form of the trace of {node.op.path}, {node.form}, does not say what it means"
            )
            continue
        meaning = node.form.meaning()
        found[node] = ONE_PAIR if meaning.drawn == ONE_PAIR.drawn else meaning
        if not (node.form.exact or meaning.drawn) and meaning == WHOLE_TRACE:
            why = f"the trace of {node.op.path} is random, and has a mean alone, that of RTRL"
    if why:
        what = "Compile with another rule, such as D_RTRL."
        raise UnsupportedError(
            f"The equations of {program.algorithm} cannot be written: {why}. {what}"
        )
    return found
