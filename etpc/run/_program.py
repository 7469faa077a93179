"""A compiled trace program."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..emit import Window, emit
from ..errors import AlgorithmError, UnsupportedError, checked_count
from ..gradient.data import begins_of, checked_begins
from ..gradient.loss import Loss, check_reduction, finite_where_masked
from ..plan import Plan
from ..schedule import Target, target_of
from ..trace import StepFunction
from ._arguments import Arguments
from ._carry import Carry
from ._fingerprint import fingerprint
from ._predict import predictor
from ._runner import Data, Parameters, Runner
from ._shown import Shown

if TYPE_CHECKING:
    from ..equations import Equations
    from ..estimating.memory import Memory
    from ..viewing import View


KEPT = 8
"""How many losses a program keeps compiled: a loss that is made anew, such as a lambda in a loop, is another one."""


class Compiled:
    """What holds compiled functions. Nothing changes it, so that a copy is itself; it cannot be pickled."""

    def __copy__(self) -> "Compiled":
        return self

    def __deepcopy__(self, memo: Any) -> "Compiled":
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UnsupportedError(
            f"{type(self).__name__} holds compiled functions and cannot be pickled. Make it anew in the other process, "
            "by `etpc.compile` and `etpc.online`. A model, the state of its optimiser and a carry can be pickled, and "
            "saved by `etpc.save`."
        )


class Program(Compiled, Shown):
    """A trace program, called like the model with a carry in the place of the state.

    Made by [`etpc.compile`][]. `print(program)` shows each weight operation, what it reaches, its
    trace, and whether its gradient is exact.
    """

    def __init__(self, plan: Plan, window: Window[Any], step: StepFunction | None = None):
        super().__init__(plan)
        id = fingerprint(plan)
        self.arguments = Arguments(plan, id)
        self.runner = Runner(window, id)
        self._jit_fresh = jax.jit(self.runner.fresh, static_argnums=0)
        self._jit_reset = jax.jit(self.runner.reset)
        self._jit_scan = jax.jit(self.runner.scan)
        self._step = step
        self._predict = predictor(step, self.runner.step)
        self._compiled_for = functools.lru_cache(KEPT)(self._jit_value_and_grad)

    def for_target(self, target: str | Target | None) -> "Program":
        """The same model and rule, compiled for another target, as by `etpc.compile(..., target=)`.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` for what is no target.
        """
        plan = self.plan.again(target=target_of(target))
        return Program(plan, emit(plan.ir), self._step)

    # --- to look at ---

    def draw(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """The dependency graph as a picture, or written to a file.

        **Arguments:**

        - `path`: of the file, which ends in `.svg` or `.html`; or in `.graphml`, `.dot` or `.json` for the graph
            that other programs read. `None` for none.

        **Returns** the text of an SVG file, which notebooks show as the picture; with `path`, `None`.

        **Raises** `etpc.InputError` where the ending is another.
        """
        from ..draw import to_svg, write

        return to_svg(self) if path is None else write(self, path)

    def view(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        title: str = "",
        batch_size: int | None = None,
        hlo: bool = True,
        on: str | None = None,
    ) -> "View":
        """The compilation from end to end, as [one page](../viewer.md) that loads nothing: the lines of the model, the
        step, patterns, the graph, the trace program before and after each pass, and the instructions of its HLO.

        **Arguments:**

        - `path`: of a file to write, which ends in `.html`, or in `.json` for what the page shows; `None` for none.
        - `title`: of the page; by default the rule.
        - `batch_size`: of the window that is compiled for its HLO; `None` for one example.
        - `hlo`: whether it is compiled, which takes most of the time where a model is large.
        - `on`: a chip that it is compiled for, as [`etpc.estimate`][] takes it; the device of this process unless set.
            A TPU's compiler says how many cycles each instruction takes.

        **Returns** the [`View`][etpc.viewing.View], which notebooks show as the page; `.as_dict()` has its data.

        **Raises** `etpc.InputError` where the ending is another, and where `batch_size` is no int >= 1;
        what `etpc.estimate` raises for `on`.
        """
        from ..viewing import view

        return view(self, path, title=title, batch_size=batch_size, hlo=hlo, on=on)

    def _repr_html_(self) -> str:
        from ..draw import fragment

        return fragment(self)

    def equations(
        self, path: str | None = None, *, names: Mapping[float, str] | None = None
    ) -> "Equations":
        """Step, traces and gradient as [equations][etpc.equations.Equations]; with `path` what the gradient of one
        weight needs.

        They are those of this program, after its passes. Needs SymPy, which the extra `equations` installs. A number
        that the model has as an attribute, or its step reads from around it, has its name there; `names` has names of
        others, such as `{0.9: "alpha"}`.

        **Raises** `etpc.UnsupportedError` for rules that carry more than traces, such as `CreditRTRL` and `UORO`, or
        a random form that is no pairs of factors; `etpc.InputError` where there is no such weight, or a name that is
        none.
        """
        from ..equations import equations

        return equations(self.ir, path, names)

    def memory(self, batch_size: int | None = None, *, steps: int | None = None) -> "Memory":
        """Bytes of the carry: of each trace, of the state, of what else there is, in all.

        **Arguments:**

        - `batch_size`: as in `init`.
        - `steps`: of a sequence, such as those between two updates, whose gradient is compiled for the first device of
            this process, with a squared error, to see what it takes besides: `.temporary`. It is not run.

        **Raises** `etpc.InputError` where one is no int >= 1.
        """
        from ..estimating.memory import memory  # which reads programs

        return memory(self, batch_size, steps)

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON: as `etpc explain --json` prints it."""
        return super().as_dict() | {"carry_bytes": self.memory().total}

    def credit_lost(self, carry: Carry) -> float | None:
        """The part of the energy of credit that lies in no direction that is followed, on a running mean.

        For a program of [`CreditRTRL`][etpc.CreditRTRL], or another rule with directions:
        `E |lambda - V^T V lambda|^2 / E |lambda|^2` over the windows of `value_and_grad` and
        `etpc.online`, where `lambda` is the credit of the states at the start of a window. Where it is not
        small, take a larger `q`.

        **Returns** a number in [0, 1]; `None` where nothing escapes, no window had credit yet, or the
        directions keep no account of it.

        **Raises** `etpc.AlgorithmError` for another rule.
        """
        self.arguments.check_carry(carry)
        if self.ir.extension is None:
            raise AlgorithmError(
                f"{self.algorithm} follows no directions. Compile with a rule that does, such as "
                "CreditRTRL()."
            )
        return None if self.ir.extends is None else self.ir.extends.lost(carry.shared)

    def silent(self, model: Any, xs: Any, carry: Carry, *, mask: Any = None) -> tuple[str, ...]:
        """Which layers of neurons give no spike on a sequence; it runs the model and no traces.

        **Arguments:**

        - `model`, `xs`, `carry`: as in [`scan`][etpc.Program.scan]; the carry is left as it is.
        - `mask`: as in [`value_and_grad`][etpc.Program.value_and_grad]: where it is zero, an input that
            is not finite is read as zero.

        **Returns** a sentence for each spike function that gives no spike, with the path of the hidden state
        that it reads and its place in the code; nothing where all layers spike, or where there is no spike
        function. One inside a `lax.scan` of the model is not looked at.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` as `scan` does.
        """
        from ..trace import silent_layers

        parameters, leaves, mask, _ = self.arguments.of_call(model, xs, carry, mask=mask)
        leaves = [finite_where_masked(x, mask) for x in leaves]
        step = self.plan.step
        state = step.state_leaves.split(carry.state)
        return silent_layers(step, parameters, leaves, state, carry.batched)

    # --- to run ---

    def init(self, batch_size: int | None = None, *, model: Any = None) -> Carry:
        """A fresh carry: the initial state, and traces of zeros.

        **Arguments:**

        - `batch_size`: `None` for one example without a batch axis.
        - `model`: whose initial state it is; by default that of the model that was compiled. Where
            `model.init_state()` computes the state from parameters, the first step of a stream replaces
            the state of a fresh carry by that of the model it is called with, so that the parameters
            learn; the state that the carry shows until then is that of this argument.

        **Raises** `etpc.InputError` where `batch_size` is another thing than `None` or an int >= 1, and
        where the model is not of the structure that was compiled.
        """
        parameters = None if model is None else self.arguments.parameters(model)
        return self._jit_fresh(self._batch_size(batch_size), parameters)

    @staticmethod
    def _batch_size(size: Any) -> int | None:
        return None if size is None else checked_count("batch_size", size, "None or an int >= 1")

    def reset(self, carry: Carry, where: Any) -> Carry:
        """Let chosen examples of a batch begin a new stream; the other examples go on untouched.

        Their state is the initial one again, and their traces are zero, also where they were
        NaN. PRNG keys go on, so that noise does not repeat.

        **Arguments:**

        - `carry`: from `init` or from a call before.
        - `where`: booleans [B], which examples; one boolean if the carry has no batch axis.

        **Returns** the new carry. **Raises** `etpc.InputError` where `where` has another shape or no
        booleans.
        """
        self.arguments.check_carry(carry)
        where = checked_begins(
            "where", where, [jnp.shape(carry.fresh)], ["[B]" if carry.batched else "[]"]
        )
        return self._jit_reset(carry, where)

    def __call__(self, model: Any, x: Any, carry: Carry) -> tuple[Any, Carry]:
        """One step. `jax.grad` through it gives the online gradient of this step.

        **Arguments:**

        - `model`: the model that was compiled, with these or other parameter values.
        - `x`: the input of one step, with a leading axis B if the carry has one.
        - `carry`: from `init` or from a call before.

        **Returns** `(y, carry)`. Cotangents that reach the new carry are dropped, and the derivative by the
        one that goes in is zero: what its state owes to the steps before is in its traces.
        """
        # numbers by NumPy, which has a type for those that JAX's default type can't hold
        one_step = jax.tree.map(lambda a: (a if hasattr(a, "dtype") else np.asarray(a))[None], x)
        ys, carry = self.scan(model, one_step, carry)
        return jax.tree.map(lambda a: a[0], ys), carry

    def scan(self, model: Any, xs: Any, carry: Carry, *, begins: Any = None) -> tuple[Any, Carry]:
        """T steps as one window, or step by step where the rule has no other windows; differentiable like a call.

        **Arguments:** as for a call, and `xs` has a leading axis T, then B if the carry has one. `begins` as in
        [`value_and_grad`][etpc.Program.value_and_grad].

        **Returns** `(ys, carry)`, `ys` with the leading axes of `xs`. As with a call, no derivative passes
        through a carry, neither the one that goes in nor the new one.
        """
        call = self.arguments.of_call(model, xs, carry)
        begins = begins_of(begins, call.lead)
        outputs, carry = self._jit_scan(call.parameters, call.xs, carry, begins)
        return self.runner.step.output_leaves.join(outputs), carry

    def predict(self, model: Any, xs: Any, state: Any) -> tuple[Any, Any]:
        """Run the model alone over a sequence: no traces, and as much memory as the outputs take.

        The model may be one that differs from the compiled one in flags and numbers too, such as
        `eqx.nn.inference_mode(model)`: it is called as it is passed.

        **Arguments:**

        - `model`, `xs`: as for [`scan`][etpc.Program.scan].
        - `state`: a carry, of which only the hidden state is read, such as `program.init(batch_size)` or that
            of a training; or the state that a call before returned.

        **Returns** `(ys, state)`, `ys` with the leading axes of `xs`, and the hidden state at the end.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` as `scan` does, and where the state is not one of
        this model; `etpc.ModelError` where the step changes its structure.

        ```pycon
        >>> import etpc, jax.numpy as jnp
        >>> def step(w, x, h):
        ...     h = 0.5 * h + w * x
        ...     return h, h
        >>> program = etpc.compile(jnp.ones(()), inputs=jnp.ones(()), state=jnp.zeros(()), step=step)
        >>> ys, state = program.predict(jnp.ones(()), jnp.ones(3), program.init())
        >>> ys.tolist(), state.item()
        ([1.0, 1.5, 1.75], 1.75)

        ```
        """
        carry = self.arguments.carry_of(state)
        return self._predict(model, self.arguments.inputs(xs, carry), carry)

    def value_and_grad(
        self,
        loss_fn: Callable[[Any, Any], Any],
        reduction: str = "mean",
        *,
        has_aux: bool = False,
    ) -> "GradientFunction":
        """The loss of a sequence and its online gradient, in memory that does not grow with T.

        **Arguments:**

        - `loss_fn`: `loss_fn(y, target) -> scalar`, for one example at one step. A function, or an
            `eqx.Module` that may hold arrays; these are no parameters. Define it once: each new function,
            such as a lambda in a loop, is compiled anew, and a program keeps the last few.
        - `reduction`: `"mean"` over time and batch, or the `"sum"` over time and the mean over the
            batch.
        - `has_aux`: `loss_fn` returns `(scalar, aux)`, where `aux` is any PyTree of arrays, such as
            whether the example was classified correctly. It is not differentiated.

        **Returns** a function `(model, xs, targets, carry, *, mask=None, begins=None) -> ((loss, carry), grads)`,
        compiled. With `has_aux` it returns `((loss, (carry, aux)), grads)`, and `aux` has leading
        axes [T, B], or [T]. Its `.lower` takes the same arguments, arrays or `jax.ShapeDtypeStruct`s, and returns
        the `jax.stages.Lowered` of the call.

        - `xs`, `targets`: leading axis T, then B if the carry has one.
        - `mask`: [T, B], or [T] without a batch axis: the weight of the loss of each example at each
            step; booleans or real numbers. The mean is then `sum(mask * loss) / sum(mask)`, zero
            where all are zero, and the sum `sum(mask * loss) / B`. Where it is zero, neither loss
            nor gradient comes from there, be the output, the target or the loss NaN; an input that is
            not finite is read as zero there. The network still runs through padded steps; only their
            loss and gradient are dropped.
        - `begins`: booleans [T, B], or [T]: where a new stream begins with a step, such as an episode or the next of
            several sequences in one row. The state is the initial one there, and neither traces nor credit go back
            past it: the gradient is that of each stream alone. PRNG keys go on.
        - `grads`: the structure of the model, with `None` at leaves that are no float arrays. They have
            no derivative: `etpc.UnsupportedError` where one is asked for. The carry that goes in is data: its
            traces hold what its state owes to earlier steps, and there is no gradient by the state itself.

        The loss is at least float32, in which losses and gradients are added up.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`, before anything is computed.
        """
        check_reduction(reduction)
        return GradientFunction(self, Loss.of(loss_fn, has_aux), reduction)

    def _jit_value_and_grad(self, *loss_and_reduction: Any) -> Any:
        """The compiled function of the arrays of a loss and the other arguments.

        The structure of the loss is not an argument of it, because JAX keeps the structures of arguments, and so
        the functions in them, for as long as the process lives. When this function is dropped, so is the loss.
        """
        *static, reduction = loss_and_reduction

        def run(arrays: Any, parameters: Parameters, data: Data, carry: Carry) -> Any:
            data = data._replace(xs=[finite_where_masked(x, data.weights) for x in data.xs])
            loss = Loss(arrays, *static)
            value, grads, aux, carry_after = self.runner.value_and_grad(
                loss, reduction, parameters, data, carry
            )
            return value, carry_after(grads), grads, aux

        return jax.jit(run)


class GradientFunction:
    """The loss of a sequence and its online gradient. Made by
    [`Program.value_and_grad`][etpc.Program.value_and_grad]."""

    def __init__(self, program: Program, loss: Loss, reduction: str):
        self._program, self._loss = program, loss
        self._compiled = program._compiled_for(loss.static, loss.treedef, loss.has_aux, reduction)

    def __call__(
        self,
        model: Any,
        xs: Any,
        targets: Any,
        carry: Carry,
        *,
        mask: Any = None,
        begins: Any = None,
    ) -> tuple[tuple[Array, Any], Any]:
        arguments = self._arguments(model, xs, targets, carry, mask=mask, begins=begins)
        value, carry, grads, aux = self._compiled(*arguments)
        tree = self._program.runner.step.model_leaves.tree_of_floats(grads)
        return (value, (carry, aux) if self._loss.has_aux else carry), tree

    def lower(self, *arguments: Any, **options: Any) -> jax.stages.Lowered:
        """A call as JAX lowers it. Any array among the arguments may be a `jax.ShapeDtypeStruct`."""
        return self._compiled.lower(*self._arguments(*arguments, **options))

    def _arguments(
        self, model: Any, xs: Any, targets: Any, carry: Any, *, mask: Any = None, begins: Any = None
    ) -> tuple[Any, ...]:
        """The arguments of the compiled function, checked."""
        call = self._program.arguments.of_call(model, xs, carry, targets=targets, mask=mask)
        data = Data(call.xs, targets, call.mask, begins_of(begins, call.lead))
        return self._loss.arrays, call.parameters, data, carry


def without_past(program: Program, carry: Carry) -> Carry:
    """A carry with the same state, and the traces of a stream that begins there."""
    empty = program.reset(carry, jnp.ones(jnp.shape(carry.fresh), bool))
    return dataclasses.replace(empty, state=carry.state, fresh=carry.fresh)
