"""Training on a stream: the weights move every few steps, and the traces go on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._errors import InputError, InputTypeError, raise_together, whole_number
from ._arguments import check_targets, checked_reset
from ._loss import (
    NO_LOSS,
    NO_REDUCTION,
    REDUCTIONS,
    Loss,
    checked_weights,
    finite_where_masked,
)
from ._program import Program
from ._spikes import warn_of_silence


class Online:
    """Updates on a stream. Made by [`etpc.online`][]."""

    def __init__(
        self,
        program: Program,
        loss_fn: Callable[[Any, Any], Any],
        optimizer: Any,
        every: int,
        reduction: str,
        has_aux: bool = False,
    ):
        self.program, self.loss_fn, self.optimizer = program, loss_fn, optimizer
        self.every, self.reduction, self.has_aux = every, reduction, has_aux
        self._loss = Loss.of(loss_fn, has_aux)
        self._jit_updates = jax.jit(self._updates)
        self._jit_restarted = jax.jit(program.reset)

    def init(self, model: Any, batch_size: int | None = None) -> tuple[Any, Any]:
        """The state of the optimizer, and a fresh carry.

        **Returns** `(opt_state, carry)`; the carry is `program.init(batch_size)`.
        """
        program = self.program
        floats, _ = self._split(program.arguments.parameters(model))
        opt_state = self.optimizer.init(program.runner.model_tree(floats))
        return opt_state, program.init(batch_size)

    def update(
        self,
        model: Any,
        opt_state: Any,
        carry: Any,
        xs: Any,
        targets: Any,
        *,
        mask: Any = None,
        reset: Any = None,
    ) -> tuple[Any, ...]:
        """T steps of the stream, and an update after every W of them, on the device in one go.

        **Arguments:**

        - `model`, `opt_state`, `carry`: from `init` or from an update before.
        - `xs`, `targets`: leading axis T, a multiple of W, then B if the carry has a batch axis.
        - `mask`: [T, B], the weight of the loss of each example at each step; booleans or real
            numbers. Where it is zero nothing comes from the loss, be the output, the target or the
            loss NaN, and an input that is not finite is read as zero, so that sequences may be padded
            with anything. The mean is then over the weights: `sum(mask * loss) / sum(mask)` for each
            update, and zero where all are zero. With `reduction="sum"` it is `sum(mask * loss) / B`.
            Where nothing is masked, an example that is NaN makes the gradient NaN, which is a sum
            over the batch; the states and traces of the others stay as they are, and
            `program.reset` sets that one back.
        - `reset`: booleans; True where an example begins a new stream (see
            [`Program.reset`][etpc.Program.reset]). [T, B] at any step, and then windows are one step
            long, which is slower, and another gradient where that depends on the window; or
            [T / W, B] at the first steps after updates alone.

        **Returns** `(model, opt_state, carry, losses)`, with the loss of each of the
        N = T / W updates, before it; and with `has_aux` as a fifth one what `loss_fn` returned
        besides, with leading axes [T, B], or [T].

        **Raises** `etpc.InputError` and `etpc.InputTypeError`, before anything is computed.
        """
        program = self.program
        parameters = program.arguments.parameters(model)
        program.arguments.check_carry(carry)
        leaves = program.arguments.inputs(xs, carry)
        check_targets(targets, leaves, carry.batched)
        lead = leaves[0].shape[: 2 if carry.batched else 1]
        if lead[0] % self.every:
            raise InputError(
                f"xs has {lead[0]} steps, and the weights move every {self.every}. Pass a multiple "
                f"of {self.every} steps; the carry goes on from call to call."
            )
        mask = checked_weights("mask", mask, lead)
        if reset is not None:
            by_update = lead[0] // self.every, *lead[1:]
            axes = ["[T, B]", "[T / W, B]"] if carry.batched else ["[T]", "[T / W]"]
            reset = checked_reset(reset, [lead, by_update], axes)
        floats, others = self._split(parameters)
        floats, opt_state, carry, losses, aux = self._jit_updates(
            self._loss, floats, others, opt_state, carry, leaves, targets, mask, reset
        )
        result = self._with_floats(model, floats), opt_state, carry, losses
        return (*result, aux) if self.has_aux else result

    def restarted(self, carry: Any) -> Any:
        """A carry with which all examples begin a new stream; see [`Program.reset`][etpc.Program.reset].

        **Returns** it. PRNG keys in the state go on, so that noise does not repeat.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` for another thing than a carry.
        """
        self.program.arguments.check_carry(carry)
        return self._jit_restarted(carry, jnp.ones(jnp.shape(carry.fresh), bool))

    def check(self, model: Any, carry: Any, xs: Any, *, mask: Any = None) -> tuple[str, ...]:
        """Warn where a layer of neurons gives no spike: its weights would not learn.

        Call it once, with the first inputs of a stream; it runs the model alone, and no traces.

        **Arguments:** as in `update`; the carry is left as it is.

        **Returns** what [`Program.silent`][etpc.Program.silent] does, after an
        `etpc.SilentNetworkWarning` where there is something.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`.
        """
        silent = self.program.silent(model, xs, carry, mask=mask)
        warn_of_silence(silent, stacklevel=2)
        return silent

    # --- the compiled part ---

    def _updates(
        self, loss, floats, others, opt_state, carry, xs, targets, mask, reset
    ) -> tuple[Any, ...]:
        program, every = self.program, self.every
        self._check_opt_state(floats, opt_state)
        batched_targets = (
            targets if carry.batched else jax.tree.map(lambda a: jnp.asarray(a)[:, None], targets)
        )
        program.runner.check_loss(loss, batched_targets)
        xs = [finite_where_masked(x, mask) for x in xs]
        steps = xs[0].shape[0]
        fine = reset is not None and every > 1 and reset.shape[0] == steps

        def body(training_state, piece):
            floats, opt_state, carry = training_state
            xs, targets, mask, reset = piece
            if every == 1:
                xs, targets, mask = jax.tree.map(lambda a: a[None], (xs, targets, mask))
            if reset is not None and not fine:
                carry = program.reset(carry, reset)
            parameters = self._join(floats, others)
            begins = reset if fine else None
            value, carry, grads, aux = program.runner.value_and_grad(
                loss, self.reduction, parameters, xs, targets, carry, mask, begins
            )
            tree = program.runner.model_tree
            changes, opt_state = self.optimizer.update(
                tree([g.conj() for g in grads]),  # JAX gives the conjugate of the steepest ascent
                opt_state,
                tree(floats),
            )
            floats = [
                a if change is None else a + change.astype(a.dtype)
                for a, change in zip(floats, self._floats_of(changes), strict=True)
            ]
            return (floats, opt_state, carry), (value, aux)

        def in_pieces(a):
            a = jnp.asarray(a)
            return a if every == 1 else a.reshape(steps // every, every, *a.shape[1:])

        pieces = jax.tree.map(in_pieces, (xs, targets, mask))
        reset = in_pieces(reset) if fine else reset
        after, (losses, aux) = lax.scan(body, (floats, opt_state, carry), (*pieces, reset))
        return (*after, losses, jax.tree.map(lambda a: a.reshape(steps, *a.shape[2:]), aux))

    # --- parameters ---

    def _split(self, parameters: list[Any]) -> tuple[list[Array], list[Any]]:
        """The floats, which are trained, and the rest."""
        chosen = self.program.runner.step.model_leaves.floats
        rest = [a for i, a in enumerate(parameters) if i not in chosen]
        return [parameters[i] for i in chosen], rest

    def _join(self, floats: list[Array], rest: list[Any]) -> list[Any]:
        leaves = self.program.runner.step.model_leaves
        trained, fixed = dict(zip(leaves.floats, floats, strict=True)), iter(rest)
        return [trained[i] if i in trained else next(fixed) for i in range(len(leaves.places))]

    def _floats_of(self, tree: Any) -> list[Any]:
        """The leaves of a tree of gradients."""
        leaves = self.program.runner.step.model_leaves
        flat = leaves.treedef.flatten_up_to(tree)
        return [flat[leaves.places[i]] for i in leaves.floats]

    def _with_floats(self, model: Any, floats: list[Array]) -> Any:
        leaves = self.program.runner.step.model_leaves
        flat = leaves.treedef.flatten_up_to(model)
        for i, value in zip(leaves.floats, floats, strict=True):
            flat[leaves.places[i]] = value
        return leaves.treedef.unflatten(flat)

    def _check_opt_state(self, floats: list[Array], opt_state: Any) -> None:
        wanted = jax.eval_shape(self.optimizer.init, self.program.runner.model_tree(floats))
        ours, theirs = (
            (jax.tree.structure(tree), [(a.shape, a.dtype) for a in jax.tree.leaves(tree)])
            for tree in (wanted, opt_state)
        )
        if ours != theirs:
            raise InputError(
                "opt_state is not one of this optimizer and this model. Make it by `init` of this "
                "`online`, or by `optimizer.init(eqx.filter(model, eqx.is_inexact_array))`."
            )


def online(
    program: Program,
    loss_fn: Callable[[Any, Any], Any],
    optimizer: Any,
    every: int = 1,
    *,
    reduction: str = "mean",
    has_aux: bool = False,
) -> Online:
    """Train on an endless stream: the weights are updated every W steps, in constant memory.

    State and traces are carried over from update to update, as in the papers; what they hold of
    the steps before an update was computed with stale weights.

    **Arguments:**

    - `program`: from [`etpc.compile`][].
    - `loss_fn`: `loss_fn(y, target) -> scalar`, for one example at one step. A learning signal that
        is no loss, a cotangent `c` of `y` that is computed elsewhere, is the target of
        `lambda y, c: jnp.vdot(c, y)`.
    - `optimizer`: anything with Optax's `init(parameters)` and
        `update(gradients, state, parameters)`. To clip gradients, chain it:
        `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. For complex parameters it
        gets the conjugate of JAX's gradient, the direction of steepest ascent.
    - `every`: W, the number of steps between updates.
    - `reduction`: the loss of an update is the `"mean"` over its steps and the batch, or the
        `"sum"` over its steps and the mean over the batch.
    - `has_aux`: `loss_fn` returns `(scalar, aux)`, where `aux` is any PyTree of arrays, such as
        whether the example was classified correctly or its spikes. It is not differentiated, and
        `update` returns it too.

    **Returns** an [`Online`][etpc.Online] with `init` and `update`.

    **Raises** `etpc.InputError`, `etpc.InputTypeError`.

    ```pycon
    >>> import etpc, jax.numpy as jnp, optax
    >>> def step(w, x, h):
    ...     h = 0.9 * h + w * x
    ...     return h, h
    >>> w = jnp.zeros(3)
    >>> program = etpc.compile(w, inputs=w, state=w, step=step)
    >>> learner = etpc.online(program, lambda y, t: jnp.sum((y - t) ** 2), optax.sgd(0.01), every=5)
    >>> opt_state, carry = learner.init(w, batch_size=2)
    >>> xs = targets = jnp.ones((100, 2, 3))  # T, B, I
    >>> w, opt_state, carry, losses = learner.update(w, opt_state, carry, xs, targets)
    >>> losses.shape, bool(losses[-1] < losses[0] / 10)
    ((20,), True)

    ```
    """
    problems = []
    steps = whole_number(every)
    if steps is None or steps < 1:
        problems.append(
            f"every must be an int >= 1, not {every!r}. It is the number of steps between updates."
        )
    if reduction not in REDUCTIONS:
        problems.append(NO_REDUCTION.format(reduction))
    raise_together(problems, InputError)
    assert steps is not None
    wrong = []
    if not isinstance(program, Program):
        wrong.append(f"program is a {type(program).__name__}. Pass what `etpc.compile` returns.")
    if not callable(loss_fn):
        wrong.append(NO_LOSS.format(loss_fn))
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        wrong.append(
            f"optimizer is {optimizer!r}, which has no `init` and `update`. Pass one of Optax's, "
            "such as `optax.adam(1e-3)`."
        )
    raise_together(wrong, InputTypeError)
    return Online(program, loss_fn, optimizer, steps, reduction, has_aux)


__all__ = ["Online", "online"]
