"""A window of a trace program, as one differentiable function on arrays.

A window runs the model forward, step by step; then everything else is computed for all its steps at once:
the Jacobians of the cut steps, the outputs, and, backwards, the learning signals. What remains
sequential is element-wise code on blocks.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array

from .._jax import promoting, replaced, without_derivative
from ..forms import Carry, Traces
from ..ir import AtEnd, TraceNode, TraceProgram
from ._cut import CutSteps
from ._move import Mover, Moves
from ._prefix import instantiated
from ._records import Arrays, Bars, Span, Weights
from ._step import StepFunctions

NO_SECOND_DERIVATIVE = (
    "The gradient of a program is differentiated, as for a Hessian product, a gradient penalty or a "
    "learning rate that is learned over several updates. Its derivative would be wrong. This is because "
    "an online gradient holds traces and parts of the step constant. Where the gradient is meant as a "
    "constant, pass it through `jax.lax.stop_gradient`. For its derivative take `etpc.bptt`, whose "
    "gradient may be differentiated."
)
Residuals = TypeVar("Residuals")
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class ForwardWindow(Generic[Residuals]):
    """A window that was run forward."""

    outputs: list[Array]
    """[W, B, ...] each."""
    last: list[Array]
    """The state at the end."""
    moves: Moves
    residuals: Residuals
    """What the backward pass needs, beside the traces."""


class WindowResult(NamedTuple):
    """A window: outputs [W, B, ...], and the state and traces at its end."""

    outputs: list[Array]
    state: list[Array]
    traces: Traces


class WindowGradient(NamedTuple):
    """A window with its loss, and the gradient of that by the effective weights."""

    loss: Array
    aux: Any
    grads: list[Array]
    """By the effective weights, at least float32."""
    state: list[Array]
    moving: "Moving"
    """The traces, which are yet to be moved."""


ReadEnd = Callable[[TraceNode, Array], tuple[Carry, Array]]
"""A trace at the end of a window of one step, and the gradient that is read from it, from the credit of its block,
[1, B, m, GO]."""


class Moving(NamedTuple):
    """The traces at the start of a window, and what moves them to its end."""

    traces: Traces
    moves: Moves
    bars: Bars


class Window(Generic[Residuals]):
    """The functions of an emitted program.

    - `run(weights, span, traces)`: a window. It is differentiable by the effective weights, where the
        derivative is the online gradient, and by the inputs: under "cut" an input has the gradient of its
        own step, and under "full" that of its window. The derivative by inputs costs more, and is taken
        only where it is asked for.
    - `learn(weights, span, traces, loss_of)`: a window, `loss_of(outputs) -> (loss, aux)`, and the gradient
        of the loss.
    - `moved(moving, last)`: the traces at the end of a window of `learn`. They are overwritten in place once `last` is
        known: the arrays that are computed from the gradient of the window.
    """

    def __init__(
        self,
        program: TraceProgram,
        step: StepFunctions,
        forward: Callable[..., ForwardWindow[Residuals]],
        backward: Callable[..., Bars],
    ):
        """Where the credit of a window comes from is given by two functions of a `Window`.

        - `forward(window, weights, span, traces, wanted)` runs a window; `wanted` are the inputs that it will be
            differentiated by.
        - `backward(window, residuals, traces, outputs, read_end)`: the derivatives of the loss from those by the
            outputs; `read_end` gives a trace at the end of a window of one step, and what is read from it there.
        """
        self.program, self.step = program, step
        self.forward = functools.partial(forward, self)
        self.backward = functools.partial(backward, self)
        uncut = program.window.credit == "window"
        self.holds_steps = not uncut or program.window.behind > 0 or program.extends is not None
        """Whether the gradient holds parts of the steps constant, and not the traces alone."""
        self.cut = CutSteps(program, step)
        self.mover = Mover(program)
        self.float_inputs = [i for i, v in enumerate(program.analysis.step.inputs) if v.is_float]
        self.run = _differentiable(self)
        self.learn = self.emitted(self._learn)
        self.moved = self.emitted(self._moved)

    def emitted(self, function: Function) -> Function:
        """A function of the emitted program: traced under JAX's standard promotion. Products of traces, credit and
        Jacobians have the precision of the target; those of the model have it in their parameters."""

        @functools.wraps(function)
        def emitted(*args: Any) -> Any:
            with jax.default_matmul_precision(self.program.target.precision):
                return promoting(function)(*args)

        return cast(Function, emitted)

    def _learn(
        self,
        weights: Weights,
        span: Span,
        traces: Traces,
        loss_of: Callable[[list[Array]], tuple[Array, Any]],
    ) -> WindowGradient:
        course = self.forward(weights, span, traces)
        loss, pull, aux = jax.vjp(loss_of, course.outputs, has_aux=True)
        (outputs_bar,) = pull(jnp.ones_like(loss))
        read_end = functools.partial(self.mover.read_end, course.moves, traces)
        bars = self.backward(course.residuals, traces, outputs_bar, read_end)
        return WindowGradient(
            loss, aux, bars.weights, course.last, Moving(traces, course.moves, bars)
        )

    def _moved(self, moving: Moving, last: Sequence[Array]) -> Traces:
        return self.mover.move(
            moving.moves, moving.traces, moving.bars, self.program.schedule.after(*last)
        )

    def fresh_traces(self, batch: int) -> Traces:
        """The traces of a stream that begins, [B, ...]."""
        sites = map(self.program.site, self.program.traces)
        nodes = zip(self.program.traces, sites, strict=True)
        carries = [node.form.init(site, batch) for node, site in nodes]
        return Traces(carries, *self.fresh_extension(batch))

    def fresh_extension(self, batch: int) -> tuple[Carry, Carry]:
        """What the batch shares of an extension, and what each example has when its stream begins, [B, ...]."""
        extension, size = self.program.extends, self.program.analysis.hidden.size
        return ((), ()) if extension is None else extension.init(size, batch, self.step.dtype)

    def __str__(self) -> str:
        program, split = self.program, self.program.analysis.split
        lines = [
            f"window of {program.window.steps} steps for {program.algorithm}",
            f"  prefix: {len(split.prefix)} equations, once for a call",
            f"  run, learn: {len(split.body)} equations and {program.compression}, at each step",
            *(f"    {line}" for line in self.step.forward.lines()),
            "  traces of one example",
        ]
        for node in program.traces:
            carry = jax.eval_shape(lambda node=node: node.form.init(program.site(node), 1))
            shapes = [f"{a.dtype.name}{list(a.shape[1:])}" for a in carry]
            lines.append(f"    {node.op.path}: {' + '.join(shapes)}")
        return "\n".join(lines)

    def by_input(self, bars: Arrays) -> list[Array | None]:
        """The derivatives by each input, from those by all float inputs; none if there are none."""
        none = [None] * len(self.program.analysis.step.inputs)
        return replaced(none, self.float_inputs if bars else (), bars)


def _differentiable(window: Window[Any]) -> Callable[[Weights, Span, Traces], WindowResult]:
    """`Window.run`, whose derivative is the online gradient."""
    emitted = window.emitted

    def finished(course: ForwardWindow[Any], traces: Traces) -> WindowResult:
        return WindowResult(course.outputs, course.last, window.mover.move(course.moves, traces))

    def reads_end(span: Span) -> bool:
        terms = window.program.terms(*span.xs[0].shape[:2]).values()
        return any(isinstance(term.data, AtEnd) for of_op in terms for term in of_op)

    @jax.custom_vjp
    @emitted
    def run(weights: Weights, span: Span, traces: Traces) -> WindowResult:
        return finished(window.forward(weights, span, traces), traces)

    @emitted
    def forward(weights: Any, span: Any, traces: Any):
        # By symbolic zeros (`defvjp`) it is known whether inputs are perturbed: their derivative is computed only then.
        wanted = window.float_inputs if any(x.perturbed for x in span.xs) else ()
        is_primal = lambda a: hasattr(a, "perturbed")
        weights, span, traces = jax.tree.map(
            lambda a: a.value, (weights, span, traces), is_leaf=is_primal
        )
        course = window.forward(weights, span, traces, wanted)
        residuals = course.residuals
        if window.holds_steps:
            residuals = without_derivative(residuals, NO_SECOND_DERIVATIVE)
        result = finished(course, traces)
        # The traces at the end, which residuals would keep until the backward pass, only where it reads them.
        read = traces, result.traces if reads_end(span) else None
        return result, (residuals, *without_derivative(read, NO_SECOND_DERIVATIVE))

    @emitted
    def backward(kept: tuple[Any, Traces, Traces], cotangents: WindowResult):
        residuals, traces, last = kept
        outputs = [instantiated(a) for a in cotangents.outputs]
        read_end = functools.partial(window.mover.read_moved, last)
        bars = window.backward(residuals, traces, outputs, read_end)
        dtypes = [v.aval.dtype for v in window.program.analysis.split.weights]
        by_weights = tuple(g.astype(dtype) for g, dtype in zip(bars.weights, dtypes, strict=True))
        none: Any = None
        return Weights(by_weights, none), Span(bars.inputs, none, none), none

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run
