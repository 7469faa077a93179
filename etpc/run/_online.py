"""Training on a stream: the weights move every few steps, and the traces go on."""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from .._carry import Carry
from .._errors import InputError, InputTypeError, raise_together, whole_number
from ._arguments import check_targets, checked_reset
from ._loss import (
    NO_LOSS,
    NO_REDUCTION,
    REDUCTIONS,
    Loss,
    checked_weights,
    finite_where_masked,
    reduced,
)
from ._program import Program
from ._spikes import warn_of_silence


class RewardCarry(eqx.Module):
    """The carry of a stream whose rewards come late. A PyTree of arrays.

    - `stream`: the hidden state and the traces.
    - `gradients`: for each parameter, the decayed sum of past gradients of each example, with a
        leading batch axis if the stream has one; `None` at leaves that are no float arrays.
    """

    stream: Carry
    gradients: Any


class _Sum:
    """In the place of an optimizer: its state is the sum of the gradients, and nothing is updated."""

    def init(self, parameters: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, parameters)

    def update(self, grads: Any, sums: Any, parameters: Any = None, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda _: None, grads), jax.tree.map(jnp.add, sums, grads)


class Online:
    """Updates on a stream. Made by [`etpc.online`][]."""

    def __init__(
        self,
        program: Program,
        loss_fn: Callable[[Any, Any], Any],
        optimizer: Any,
        every: int,
        reduction: str,
        reward_decay: float | None,
        has_aux: bool = False,
    ):
        self.program, self.loss_fn, self.optimizer = program, loss_fn, optimizer
        self.every, self.reduction, self.reward_decay = every, reduction, reward_decay
        self.has_aux = has_aux
        self._loss = Loss.of(loss_fn, has_aux)
        self._jit_updates = jax.jit(self._updates)
        self._jit_restarted = jax.jit(self._restarted)

    def init(self, model: Any, batch_size: int | None = None) -> tuple[Any, Any]:
        """The state of the optimizer, and a fresh carry.

        **Returns** `(opt_state, carry)`; the carry is `program.init(batch_size)`, and with
        `reward_decay` a [`RewardCarry`][etpc.RewardCarry] of it.
        """
        program = self.program
        floats, _ = self._split(program.arguments.parameters(model))
        opt_state = self.optimizer.init(program.runner.model_tree(floats))
        carry: Any = program.init(batch_size)
        if self.reward_decay is not None:
            lead = () if batch_size is None else (batch_size,)
            zeros = [jnp.zeros((*lead, *jnp.shape(a)), a.dtype) for a in floats]
            carry = RewardCarry(carry, program.runner.model_tree(zeros))
        return opt_state, carry

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
        reward: Any = None,
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
        - `reward`: [T, B], with `reward_decay` alone: the third factor.

        **Returns** `(model, opt_state, carry, losses)`, with the loss of each of the
        N = T / W updates, before it; and with `has_aux` as a fifth one what `loss_fn` returned
        besides, with leading axes [T, B], or [T].

        **Raises** `etpc.InputError` and `etpc.InputTypeError`, before anything is computed.
        """
        program = self.program
        parameters = program.arguments.parameters(model)
        stream = self._stream(carry)
        program.arguments.check_carry(stream)
        leaves = program.arguments.inputs(xs, stream)
        check_targets(targets, leaves, stream.batched)
        lead = leaves[0].shape[: 2 if stream.batched else 1]
        if lead[0] % self.every:
            raise InputError(
                f"xs has {lead[0]} steps, and the weights move every {self.every}. Pass a multiple "
                f"of {self.every} steps; the carry goes on from call to call."
            )
        mask = checked_weights("mask", mask, lead)
        reward = checked_weights("reward", reward, lead)
        if (reward is None) != (self.reward_decay is None):
            raise InputError(
                "reward and reward_decay belong together: pass `reward=` to each update of an "
                "`online(..., reward_decay=)`, and to no other. A factor that comes with its own "
                "step is a `mask`."
            )
        if reset is not None:
            by_update = lead[0] // self.every, *lead[1:]
            axes = ["[T, B]", "[T / W, B]"] if stream.batched else ["[T]", "[T / W]"]
            reset = checked_reset(reset, [lead, by_update], axes)
        floats, others = self._split(parameters)
        floats, opt_state, carry, losses, aux = self._jit_updates(
            self._loss, floats, others, opt_state, carry, leaves, targets, mask, reset, reward
        )
        result = self._with_floats(model, floats), opt_state, carry, losses
        return (*result, aux) if self.has_aux else result

    def restarted(self, carry: Any) -> Any:
        """A carry with which all examples begin a new stream; see [`Program.reset`][etpc.Program.reset].

        **Returns** it. PRNG keys in the state go on, so that noise does not repeat.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` for another thing than a carry.
        """
        stream = self._stream(carry)
        self.program.arguments.check_carry(stream)
        return self._jit_restarted(carry, jnp.ones(jnp.shape(stream.fresh), bool))

    def check(
        self, model: Any, carry: Any, xs: Any, targets: Any = None, *, mask: Any = None
    ) -> tuple[str, ...]:
        """Warn where a layer of neurons gives no spike, and with `targets` compare gradients with BPTT.

        Call it once, with the first data of a stream. The weights of a silent layer would not learn; to
        find one, the model runs alone, without traces. With `targets` the gradients of the first
        updates are computed too, on this machine, in this dtype and at this batch size, and each that
        the program claims to be exact has to equal that of BPTT: the same steps, from the same hidden
        state. So many updates are taken that a trace is filled, moved on and read: three, or two where
        one has several windows. The data is taken again where it is shorter, and from the first loss on
        that `mask` lets count. A carry that is not fresh holds influence from before, which BPTT does not
        see: of such a one the hidden state is used, with traces of zeros. Delayed rewards are left out.
        It compiles one more program of updates, and BPTT of so many steps, which keeps them in memory.

        **Arguments:** as in `update`; the carry is left as it is.

        **Returns** what [`Program.silent`][etpc.Program.silent] does, after an
        `etpc.SilentNetworkWarning` where there is something; and with `targets` a sentence for each
        parameter whose gradient by BPTT is zero, so that it was not checked, after an
        `etpc.UncheckedWarning`.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`; `etpc.VerificationError`, with the
        parameter, the claim and the error, where a claim does not hold.
        """
        from .._check import (
            check_updates,
            warn_of_unchecked,
        )  # which compares programs, as this is one

        stream = self._stream(carry)
        silent = self.program.silent(model, xs, stream, mask=mask)
        warn_of_silence(silent, stacklevel=2)
        if targets is None:
            return silent
        unchecked = check_updates(self, model, stream, xs, targets, mask)
        warn_of_unchecked(unchecked, stacklevel=2)
        return (*silent, *unchecked)

    @functools.cached_property
    def _summing(self) -> "Online":
        """The same updates, which leave the weights as they are and add the gradients up."""
        return online(
            *(self.program, self.loss_fn, _Sum(), self.every),
            reduction="sum",
            has_aux=self.has_aux,
        )

    # --- the compiled part ---

    def _updates(
        self, loss, floats, others, opt_state, carry, xs, targets, mask, reset, reward
    ) -> tuple[Any, ...]:
        program, every = self.program, self.every
        self._check_opt_state(floats, opt_state)
        stream = self._stream(carry)
        batched_targets = (
            targets if stream.batched else jax.tree.map(lambda a: jnp.asarray(a)[:, None], targets)
        )
        program.runner.check_loss(loss, batched_targets)
        xs = [finite_where_masked(x, mask) for x in xs]
        steps = xs[0].shape[0]
        fine = reset is not None and every > 1 and reset.shape[0] == steps

        def body(training_state, piece):
            floats, opt_state, carry = training_state
            xs, targets, mask, reward, reset = piece
            if every == 1:
                xs, targets, mask, reward = jax.tree.map(
                    lambda a: a[None], (xs, targets, mask, reward)
                )
            if reset is not None and not fine:
                carry = self._restarted(carry, reset)
            parameters = self._join(floats, others)
            value, carry, grads, aux = self._gradient(
                loss, parameters, carry, xs, targets, mask, reward, reset if fine else None
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

        pieces = jax.tree.map(in_pieces, (xs, targets, mask, reward))
        reset = in_pieces(reset) if fine else reset
        after, (losses, aux) = lax.scan(body, (floats, opt_state, carry), (*pieces, reset))
        return (*after, losses, jax.tree.map(lambda a: a.reshape(steps, *a.shape[2:]), aux))

    def _gradient(self, loss: Loss, parameters, carry, xs, targets, mask, reward, reset):
        """Loss, carry and gradients of W steps, and what the loss returns besides.

        `reset` says which examples begin at which step.
        """
        program, stream = self.program, self._stream(carry)
        if reward is None:
            return program.runner.value_and_grad(
                loss, self.reduction, parameters, xs, targets, stream, mask, reset
            )
        late, after, weights = self._late(loss, parameters, carry, xs, targets, mask, reward, reset)
        value, stream, grads, aux = program.runner.value_and_grad(
            loss, "sum", parameters, xs, targets, stream, weights, reset
        )
        sums = value, jax.tree.map(jnp.add, grads, late)
        value, grads = reduced(self.reduction, sums, None, xs[0].shape[0])
        return value, RewardCarry(stream, after), grads, aux

    # --- rewards ---

    def _late(self, loss: Loss, parameters, carry: RewardCarry, xs, targets, mask, reward, reset):
        """What rewards make of the gradients of earlier steps.

        With `G_t = d_t G_{t-1} + g_t` of each example, where d is the decay, and zero where an
        example begins anew, `sum_t r_t G_t` is that of the steps before, `G_0 sum_t r_t d_1 .. d_t`,
        and of each step of these, `g_s sum_{t >= s} r_t d_{s+1} .. d_t`. The second one needs no
        gradient for each example: it is that of a loss with weights.

        **Returns** the first one, averaged over the batch, the gradients to carry on, and the
        weights.
        """
        program, stream = self.program, carry.stream
        decay = jnp.full_like(reward, self.reward_decay or 0.0, jnp.result_type(reward, float))
        if reset is not None:
            decay = jnp.where(reset, 0, decay)
        reward = reward.astype(decay.dtype)
        weights = jnp.ones_like(reward) if mask is None else mask.astype(decay.dtype)

        def back(later, step_values):
            reward, decay = step_values
            factor = reward + later
            return decay * factor, factor

        of_start, factors = lax.scan(back, jnp.zeros_like(reward[0]), (reward, decay), reverse=True)
        passed = lax.cumprod(jnp.concatenate([decay[1:], jnp.ones_like(decay[:1])]), reverse=True)
        past = self._floats_of(carry.gradients)

        def one(xs, targets, weights, reset, state, traces, fresh):
            own, each, past = traces
            alone = Carry(state, own, fresh, stream.program, False, stream.shared, each, past)
            return program.runner.value_and_grad(
                loss, "sum", parameters, xs, targets, alone, weights, reset
            )[2]

        sequences = xs, targets, passed * weights, reset
        per_example = stream.state, (stream.traces, stream.each, stream.past), stream.fresh
        if stream.batched:
            grads = jax.vmap(one, in_axes=(*[1] * 4, *[0] * 3))(*sequences, *per_example)
            late = [_times(of_start, g).mean(0) for g in past]
        else:
            grads = one(*sequences, *per_example)
            late = [_times(of_start, g) for g in past]
        kept = decay.prod(0)
        after = [_times(kept, g) + new for g, new in zip(past, grads, strict=True)]
        return late, program.runner.model_tree(after), factors * weights

    def _stream(self, carry: Any) -> Any:
        if self.reward_decay is None:
            return carry
        if not isinstance(carry, RewardCarry):
            raise InputTypeError(
                f"carry is a {type(carry).__name__}, and with reward_decay it should be the "
                "`etpc.RewardCarry` of `init` or of an update before."
            )
        return carry.stream

    def _restarted(self, carry: Any, where: Array) -> Any:
        if self.reward_decay is None:
            return self.program.reset(carry, where)
        gradients = jax.tree.map(lambda g: jnp.where(_over(where, g), 0, g), carry.gradients)
        return RewardCarry(self.program.reset(carry.stream, where), gradients)

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
    reward_decay: float | None = None,
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
    - `reward_decay`: for rewards that come later than what earned them: a number in [0, 1), and each
        update gets a `reward` for each example and step. The gradient is then
        `sum_t r_t G_t` with `G_t = reward_decay G_{t-1} + g_t` for each example, where `g_t` is the
        gradient of `mask * loss_fn` at step t; it is divided by B, and with `"mean"` by W. The carry
        holds G, one gradient for each example, as large as a trace of D-RTRL, and a step costs twice
        as much. The loss that is returned is weighted with the rewards too. Where a reward comes with
        its own step (three-factor rules without a delay), pass it as `mask`, with
        `reduction="sum"`, at no cost.
    - `has_aux`: `loss_fn` returns `(scalar, aux)`, where `aux` is any PyTree of arrays, such as
        whether the example was classified correctly or its spikes. It is not differentiated, and
        `update` returns it too.

    **Returns** an [`Online`][etpc.Online] with `init` and `update`.

    **Raises** `etpc.InputError`, `etpc.InputTypeError`.

    **Source:** the third factor is that of reward-based e-prop, Bellec et al. 2020,
    doi:10.1038/s41467-020-17236-y: there r is the error of the predicted reward, and the derivative
    of `loss_fn` is the learning signal of policy and value. Deviation: any program's traces.

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
    if reward_decay is not None and not (
        isinstance(reward_decay, numbers.Real)
        and not isinstance(reward_decay, bool)
        and math.isfinite(reward_decay)
        and 0 <= reward_decay < 1
    ):
        problems.append(f"reward_decay must lie in [0, 1), and is {reward_decay!r}.")
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
    decay = None if reward_decay is None else float(reward_decay)
    return Online(program, loss_fn, optimizer, steps, reduction, decay, has_aux)


def _times(by_example: Array, a: Array) -> Array:
    """A number for each example times its part of `a`; a zero gives zero where `a` is NaN, too."""
    factor = _over(by_example, a).astype(a.dtype)
    return jnp.where(factor == 0, 0, factor * a)


def _over(by_example: Array, a: Array) -> Array:
    """A number for each example, with axes of length one for the rest of `a`."""
    return by_example.reshape(*by_example.shape, *[1] * (a.ndim - by_example.ndim))


__all__ = ["Online", "RewardCarry", "online"]
