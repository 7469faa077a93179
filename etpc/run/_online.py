"""Training on a stream: the weights move every few steps, and the traces go on."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .._jax import Tracer
from ..errors import InputError, InputTypeError, checked_count, raise_together
from ..gradient.data import as_array, checked_begins, foreign
from ..gradient.loss import (
    Loss,
    check_reduction,
    finite_where_masked,
)
from ..trace import Leaves
from ._carry import Carry
from ._program import Compiled, Program
from ._runner import Data, Runner, SequenceGradient

if TYPE_CHECKING:
    from ..export.learner import Exported
    from ..scaling.mesh import OverMesh


class _Sum:
    """An optimizer that adds the gradients up in its state, and updates nothing."""

    def init(self, parameters: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, parameters)

    def update(self, grads: Any, sums: Any, parameters: Any = None, **_: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda _: None, grads), jax.tree.map(jnp.add, sums, grads)


class Training(NamedTuple):
    """What an update changes."""

    floats: list[Array]
    """The float leaves of the model."""
    opt_state: Any
    carry: Carry


class UpdateArguments(NamedTuple):
    """What the compiled part of `update` gets."""

    others: list[Any]
    """The array leaves of the model, with `None` in the places of those that are trained."""
    start: Training
    data: Data
    by_update: Array | None
    """Which examples begin a new stream with which update; `data.begins`, with which step."""

    def to_give_away(self, loss: Loss) -> "UpdateArguments":
        """With a copy of each array of `start` whose memory another argument has too, which XLA can't give away."""
        others = loss, self._replace(start=None)
        seen = {_memory_of(a) for a in jax.tree.leaves(others)}

        def own(a: Any) -> Any:
            if _memory_of(a) in seen:
                return jnp.copy(a)
            seen.add(_memory_of(a))
            return a

        return self._replace(start=jax.tree.map(own, self.start))


@dataclasses.dataclass(frozen=True, eq=False)
class ArgumentCache:
    """Skips the checks of arguments of `update` with the tree, shapes and dtypes of the last ones, and the same arrays
    where the model does not train them: checks take longer than a step of a small network."""

    tree: Any
    kinds: list[Any]
    """The type of each leaf that may have another value, and the other leaves themselves."""
    result: Any
    """The structure of `UpdateArguments`."""
    places: list[int]
    """Which leaf each leaf of `UpdateArguments` is."""

    @classmethod
    def of(
        cls, runner: Runner, given: tuple[Any, ...], arguments: UpdateArguments
    ) -> "ArgumentCache | None":
        """`None` where the compiled part gets other arrays than were given, or more has to be checked."""
        model = runner.step.model_leaves
        leaves, tree = jax.tree.flatten(given)
        place_of = {id(leaf): n for n, leaf in enumerate(leaves)}
        used, result = jax.tree.flatten(arguments)
        places = [place_of.get(id(leaf)) for leaf in used]
        plain = all(_is_plain(leaf) for leaf in used) and not model.static_arrays
        if not plain or None in places or len(set(places)) < len(places):
            return None
        fixed = set(range(len(model.static))) - {model.places[i] for i in model.floats}
        kinds = [
            leaf if n in fixed or not _is_plain(leaf) else leaf.aval
            for n, leaf in enumerate(leaves)
        ]
        return cls(tree, kinds, result, [n for n in places if n is not None])

    def arguments(self, given: tuple[Any, ...]) -> UpdateArguments | None:
        """Those of the compiled part; `None` where they have to be checked."""
        leaves, tree = jax.tree.flatten(given)
        if tree != self.tree:
            return None
        for leaf, kind in zip(leaves, self.kinds, strict=True):
            if leaf is not kind and not (_is_plain(leaf) and leaf.aval == kind):
                return None
        return jax.tree.unflatten(self.result, [leaves[n] for n in self.places])


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)


def _memory_of(leaf: Any) -> Any:
    """What two arrays share if one is a view of the other: where the first part of it is."""
    if not _is_plain(leaf) or not leaf.addressable_shards:
        return id(leaf)
    return leaf.addressable_shards[0].data.unsafe_buffer_pointer()


class Online(Compiled):
    """Updates on a stream. Made by [`etpc.online`][]."""

    def __init__(
        self,
        program: Program,
        loss_fn: Any,
        optimizer: Any,
        every: int,
        reduction: str,
        has_aux: bool = False,
        skip_nonfinite: bool = False,
    ):
        self.program, self.loss_fn, self.optimizer = program, loss_fn, optimizer
        self.every, self.reduction = every, reduction
        self.has_aux, self.skip_nonfinite = bool(has_aux), bool(skip_nonfinite)
        self._loss = Loss.of(loss_fn, has_aux)
        self._jit_updates = jax.jit(self._updates), jax.jit(self._updates, donate_argnums=2)
        """Without and with `donate`."""
        self._checked: ArgumentCache | None = None

    def init(self, model: Any, batch_size: int | None = None) -> tuple[Any, Any]:
        """The state of the optimizer, and a fresh carry.

        **Returns** `(opt_state, carry)`; the carry is `program.init(batch_size, model=model)`.
        """
        program = self.program
        floats, _ = self._split(program.arguments.parameters(model))
        opt_state = strong(self.optimizer.init(self._leaves.tree_of_floats(floats)))
        return opt_state, program.init(batch_size, model=model)

    def update(
        self,
        model: Any,
        opt_state: Any,
        carry: Any,
        xs: Any,
        targets: Any,
        *,
        mask: Any = None,
        begins: Any = None,
        donate: bool = False,
    ) -> tuple[Any, ...]:
        """T steps of the stream, and an update after every W of them, on the device in one go.

        **Arguments:**

        - `model`, `opt_state`, `carry`: from `init` or from an update before.
        - `xs`, `targets`: leading axis T, a multiple of W, then B if the carry has a batch axis.
        - `mask`: [T, B], the weight of the loss of each example at each step; booleans or real
            numbers. Where it is zero nothing comes from the loss, be the output, the target or the
            loss NaN, and an input that is not finite is read as zero, so that sequences may be padded
            with anything. The mean is then over the weights: `sum(mask * loss) / sum(mask)` for each
            update. With `reduction="sum"` it is `sum(mask * loss) / B`. An update in which all are
            zero has the loss zero, and leaves the parameters and the state of the optimizer as they
            are. The network still runs through padded steps; only their loss and gradient are dropped.
            Where nothing is masked, an example that is NaN makes the gradient NaN, which is a sum
            over the batch; the states and traces of the other examples stay as they are, and
            `program.reset` sets that one back. `skip_nonfinite` leaves it out.
        - `begins`: booleans; True where an example begins a new stream (see
            [`Program.reset`][etpc.Program.reset]). [T / W, B] at the first steps after updates alone; or [T, B] at
            any step, also inside a window, where it changes no rule. A trace that is not finite is set back
            by the former alone.
        - `donate`: whether the update may write its results over `opt_state`, `carry` and the floats of `model`,
            which are gone then: [half the memory](../scale.md#memory-of-an-update).

        **Returns** `(model, opt_state, carry, losses)`, with the loss of each of the
        N = T / W updates, before it, at least in float32; with `has_aux` also what `loss_fn` returned besides, with
        leading axes [T, B], or [T]; and with `skip_nonfinite` last, as booleans [N, B], or [N], which streams each
        update left out.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`, before anything is computed.
        """
        given = (model, opt_state, carry, xs, targets, mask, begins)
        try:
            arguments = None if self._checked is None else self._checked.arguments(given)
            if arguments is None:
                arguments = self._arguments(*given)
                self._checked = ArgumentCache.of(self.program.runner, given, arguments)
            if donate:
                arguments = arguments.to_give_away(self._loss)
            after = self._jit_updates[bool(donate)](self._loss, *arguments)
        except (RuntimeError, ValueError) as error:
            gone = (_is_plain(leaf) and leaf.is_deleted() for leaf in jax.tree.leaves(given))
            if "deleted" not in str(error) or not any(gone):
                raise
            raise InputError(
                "An array among the arguments of `update` was deleted. This is because it was given away, as by an "
                "`update` with donate=True, which writes its results over model, opt_state and carry. Go on with those "
                "that it returned; keep copies of what is needed besides, by `jax.tree.map(jnp.copy, ...)`; or leave "
                "donate= out."
            ) from error
        (floats, opt_state, carry), losses, aux, left_out = after
        more = [aux] * self.has_aux + [left_out] * self.skip_nonfinite
        return self._leaves.with_floats(model, floats), opt_state, carry, losses, *more

    def lower(self, *arguments: Any, donate: bool = False, **options: Any) -> jax.stages.Lowered:
        """A call of `update` as JAX lowers it, such as to see its memory before there is any data.

        **Arguments:** those of `update`; any array may be a `jax.ShapeDtypeStruct`, with a `sharding=` or without.

        **Returns** the `jax.stages.Lowered`: `.as_text()`, or `.compile().memory_analysis()`. What it compiles takes
        arrays in an order of its own.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` as `update` does.
        """
        return self._jit_updates[bool(donate)].lower(
            self._loss, *self._arguments(*arguments, **options)
        )

    def _arguments(
        self,
        model: Any,
        opt_state: Any,
        carry: Any,
        xs: Any,
        targets: Any,
        mask: Any = None,
        begins: Any = None,
    ) -> UpdateArguments:
        """The arguments of `update` as those of its compiled part, checked."""
        program = self.program
        raise_together(foreign("opt_state", opt_state), InputTypeError)
        call = program.arguments.of_call(model, xs, carry, targets=targets, mask=mask)
        if call.lead[0] % self.every:
            raise InputError(
                f"xs has {call.lead[0]} steps, and the weights move every {self.every}. Pass a multiple "
                f"of {self.every} steps; the carry goes on from call to call."
            )
        by_step = by_update = None
        if begins is not None:
            updates = call.lead[0] // self.every, *call.lead[1:]
            axes = ["[T, B]", "[T / W, B]"] if carry.batched else ["[T]", "[T / W]"]
            begins = checked_begins("begins", begins, [call.lead, updates], axes)
            by_step, by_update = (None, begins) if begins.shape == updates else (begins, None)
        floats, others = self._split(call.parameters)
        # Weak types would be lost in the first update, and all be compiled again for the second.
        start = strong(Training(floats, opt_state, carry))
        return UpdateArguments(others, start, Data(call.xs, targets, call.mask, by_step), by_update)

    def over(
        self, mesh: jax.sharding.Mesh, streams: str | None = "batch", hidden: str | None = None
    ) -> "OverMesh":
        """The same learner over [many devices](../scale.md).

        **Arguments:**

        - `mesh`: the devices, such as `jax.make_mesh((jax.device_count(),), ("batch",))`.
        - `streams`: the axis of the mesh along which devices have streams of their own. They add up the gradient once
            an update.
        - `hidden`: the axis along which devices have hidden units of their own: weights by their outputs, traces and
            states with them. What units read of each other is gathered; no trace moves.

        **Returns** an [`OverMesh`][etpc.OverMesh], with the methods of this one.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`.
        """
        from ..scaling.mesh import over  # which reads learners

        return over(self, mesh, streams, hidden)

    def restarted(self, carry: Any) -> Any:
        """A carry with which all examples begin a new stream; see [`Program.reset`][etpc.Program.reset].

        **Returns** it. PRNG keys in the state go on, so that noise does not repeat.

        **Raises** `etpc.InputError` and `etpc.InputTypeError` for another thing than a carry.
        """
        self.program.arguments.check_carry(carry)
        return self.program.reset(carry, jnp.ones(jnp.shape(carry.fresh), bool))

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
        see: of such a one the hidden state is used, with traces of zeros.
        It compiles one more program of updates, and BPTT of so many steps, which keeps them in memory.

        **Arguments:** as in `update`; the carry is left as it is.

        **Returns** what [`Program.silent`][etpc.Program.silent] does, after an
        `etpc.SilentNetworkWarning` where there is something; and with `targets` a sentence for each
        parameter whose gradient by BPTT is zero or not finite, so that it was not checked, after an
        `etpc.UncheckedWarning`.

        **Raises** `etpc.InputError` and `etpc.InputTypeError`; `etpc.VerificationError`, with the
        parameter, the claim and the error, where a claim does not hold.
        """
        from ._check import check_first

        return check_first(self, model, carry, xs, targets, mask, stacklevel=2)

    def export(
        self,
        model: Any,
        opt_state: Any,
        carry: Any,
        xs: Any,
        targets: Any,
        *,
        mask: Any = None,
        begins: Any = None,
        platforms: Sequence[str] = ("cpu",),
    ) -> "Exported":
        """One call of `update`, and one step of the model without learning, for where Python is not.

        **Arguments:**

        - `model`, `opt_state`, `carry`: as in `update`; their values are the first ones of the file.
        - `xs`, `targets`, `mask`, `begins`: as in `update`, of the shapes and dtypes that a call on the device gets:
            arrays or `jax.ShapeDtypeStruct`s. Where `mask` or `begins` is `None`, the file has no such argument.
        - `platforms`: of JAX, on which [`etpc.load_exported`][] may run it: "cpu", "cuda", "rocm", "tpu". The program
            is planned for them, whatever it was compiled for.

        **Returns** the [`Exported`][etpc.Exported], whose `save` writes a folder.

        **Raises** `etpc.UnsupportedError` where an update calls what is outside of StableHLO, which is named:
        a callback, or a custom call; `etpc.InputError` and `etpc.InputTypeError` as `update` does.
        """
        from ..export.learner import export_learner  # which reads learners

        data = (xs, targets, mask, begins)
        return export_learner(self, model, opt_state, carry, data, platforms)

    def summed(
        self, model: Any, carry: Carry, xs: Any, targets: Any, mask: Array | None
    ) -> tuple[Array, Any]:
        """The losses and the gradients of updates that leave the weights as they are, added up."""
        sums, _ = self._summing.init(model)
        _, sums, _, losses, *_ = self._summing.update(model, sums, carry, xs, targets, mask=mask)
        return losses.sum(), jax.tree.map(jnp.conj, sums)

    @functools.cached_property
    def _summing(self) -> "Online":
        program, loss_fn, every = self.program, self.loss_fn, self.every
        return Online(program, loss_fn, _Sum(), every, "sum", self.has_aux)

    # --- the compiled part ---

    def _updates(
        self,
        loss: Loss,
        others: list[Any],
        start: Training,
        data: Data,
        by_update: Array | None,
    ) -> tuple[Training, Array, Any, Array | None]:
        """All updates of a call: what is trained after them, and the loss and aux of each, and what it left out.

        - `others`: the array leaves of the model, with `None` in the places of those that are trained.
        - `by_update`: which examples begin a new stream with which update; `data.begins`, with which step.
        """
        program, every = self.program, self.every
        self._check_opt_state(start.floats, start.opt_state)
        batched = start.carry.batched
        with_batch = lambda a: a if batched else jnp.asarray(a)[:, None]
        program.runner.check_loss(loss, jax.tree.map(with_batch, data.targets))
        data = data._replace(xs=[finite_where_masked(x, data.weights) for x in data.xs])
        steps = data.xs[0].shape[0]

        def update(before: Training, piece: tuple[Data, Array | None]) -> tuple[Training, Any]:
            (floats, opt_state, carry), (data, restarted) = before, piece
            if every == 1:
                data = jax.tree.map(lambda a: a[None], data)
            if restarted is not None:
                carry = program.reset(carry, restarted)
            parameters = self._leaves.replaced(others, floats)

            def learn(reduction: str, data: Data, carry: Carry) -> SequenceGradient:
                return program.runner.value_and_grad(loss, reduction, parameters, data, carry)

            if self.skip_nonfinite:
                from ._left_out import of_finite_streams

                kept, aux = of_finite_streams(program.runner, learn, self.reduction, data, carry)
                value, grads, carry, left_out, counts = kept
                carry_after = lambda _, carry=carry: carry
            else:
                value, grads, aux, carry_after = learn(self.reduction, data, carry)
                left_out = None
                counts = None if data.weights is None else data.weights.astype(bool).any()
            value, grads, counts = self._of_all_devices(value, grads, counts, data, left_out)
            new = self._updated(floats, opt_state, value, grads)
            carry = carry_after(jax.tree.leaves(new))
            if counts is not None:  # where nothing counts, momentum moves nothing either
                new = jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, (floats, opt_state))
            floats, opt_state = new
            return Training(floats, opt_state, carry), (value, aux, left_out)

        def in_pieces(a: Any) -> Array:
            a = jnp.asarray(a)
            if every == 1:  # an axis of length one in the sequence would have XLA copy all of it
                return a
            return a.reshape(steps // every, every, *a.shape[1:])

        pieces = jax.tree.map(in_pieces, data), by_update
        if steps == every:  # in a loop the gradient would be differentiated with what is carried
            after, results = update(start, jax.tree.map(lambda a: a[0], pieces))
            losses, aux, left_out = jax.tree.map(lambda a: a[None], results)
        else:
            over = program.runner.by_step if every == 1 else lax.scan
            after, (losses, aux, left_out) = over(update, start, pieces)
        aux = jax.tree.map(lambda a: a.reshape(steps, *a.shape[2:]), aux)
        return after, losses, aux, left_out

    def _of_all_devices(
        self,
        value: Array,
        grads: list[Array],
        counts: Array | None,
        data: Data,
        left_out: Array | None,
    ) -> tuple[Array, list[Array], Array | None]:
        """Loss, gradients and whether they count, over the examples of all devices; here this one has them all."""
        return value, grads, counts

    def _updated(
        self, floats: list[Array], opt_state: Any, value: Array, grads: list[Array]
    ) -> tuple[list[Array], Any]:
        """The parameters and the state of the optimizer after an update."""
        tree = self._leaves.tree_of_floats
        new, opt_state = updated(self.optimizer, value, tree(grads), tree(floats), opt_state)
        return self._leaves.floats_of(new), opt_state

    # --- parameters ---

    @property
    def _leaves(self) -> Leaves:
        """Those of the model."""
        return self.program.runner.step.model_leaves

    def _split(self, parameters: list[Any]) -> tuple[list[Any], list[Any]]:
        """The floats, which are trained, and the rest, with `None` in the places of floats."""
        floats = [parameters[i] for i in self._leaves.floats]
        return floats, self._leaves.replaced(parameters, [None] * len(floats))

    def _check_opt_state(self, floats: list[Array], opt_state: Any) -> None:
        wanted = jax.eval_shape(self.optimizer.init, self._leaves.tree_of_floats(floats))
        ours, theirs = (
            (jax.tree.structure(tree), [(a.shape, a.dtype) for a in jax.tree.leaves(tree)])
            for tree in (wanted, opt_state)
        )
        if ours != theirs:
            raise InputError(
                "opt_state is not one of this optimizer and this model. Make it by `init` of this "
                "`online`, or by `optimizer.init(eqx.filter(model, eqx.is_inexact_array))`."
            )


def updated(
    optimizer: Any, value: Any, grads: Any, parameters: Any, opt_state: Any
) -> tuple[Any, Any]:
    """The parameters and the state of an optimizer after an update.

    **Raises** `InputError` where it asks for what an update does not have.
    """
    ascent = jax.tree.map(jnp.conj, grads)  # JAX gives the conjugate of the steepest ascent
    known = {"value": value, "grad": ascent}
    asked = inspect.signature(optimizer.update).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in asked):
        known = {p.name: known[p.name] for p in asked if p.name in known}
    try:
        changes, opt_state = optimizer.update(ascent, opt_state, parameters, **known)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"optimizer.update failed with {type(error).__name__}: {error}. It gets the "
            "gradients, its state and the parameters, and by keyword `value`, the loss, and "
            "`grad`, the gradients again. What it does not get is another evaluation of the loss "
            "(`value_fn`), as line searches need (`optax.lbfgs`): a step of a stream is taken "
            "once. Nor are the parameters wrapped, as `optax.lookahead` wants them."
        ) from error
    move = lambda a, change: a if change is None else a + change.astype(a.dtype)
    parameters = jax.tree.map(move, parameters, changes, is_leaf=lambda a: a is None)
    return parameters, strong(opt_state)


def check_optimizer(name: str, optimizer: Any) -> None:
    """**Raises** `InputTypeError` where an argument is no optimizer."""
    if not all(callable(getattr(optimizer, method, None)) for method in ("init", "update")):
        raise InputTypeError(
            f"{name} is {optimizer!r}, which has no `init` and `update`. Pass one of Optax's, "
            "such as `optax.adam(1e-3)`."
        )


def strong(tree: Any) -> Any:
    """Arrays of the dtypes that they have, where JAX took these to be weak."""
    weak = lambda a: getattr(a, "weak_type", False)
    return jax.tree.map(lambda a: as_array(a, a.dtype) if weak(a) else a, tree)


def online(
    program: Program,
    loss_fn: Callable[[Any, Any], Any],
    optimizer: Any,
    every: int = 1,
    *,
    reduction: str = "mean",
    has_aux: bool = False,
    skip_nonfinite: bool = False,
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
        `update(gradients, state, parameters)`. One that takes more by keyword gets `value`, the loss of
        the update, and `grad`, its gradients. Line searches, which ask for `value_fn`, and wrapped
        parameters (`optax.lookahead`) are refused. To clip gradients, chain it:
        `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))`. For complex parameters it
        gets the conjugate of JAX's gradient, the direction of steepest ascent.
    - `every`: W, the number of steps between updates.
    - `reduction`: the loss of an update is the `"mean"` over its steps and the batch, or the
        `"sum"` over its steps and the mean over the batch.
    - `has_aux`: `loss_fn` returns `(scalar, aux)`, where `aux` is any PyTree of arrays, such as
        whether the example was classified correctly or its spikes. It is not differentiated, and
        `update` returns it too.
    - `skip_nonfinite`: whether an update leaves out each stream, an example of the batch, whose loss or gradient is
        not finite in it, as a mask of zero does; state and traces of that stream begin anew. Where all are left out,
        parameters and optimizer state stay as they are. `update` returns which ones too.

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
    steps = checked_count("every", every, why="It is the number of steps between updates.")
    check_reduction(reduction)
    if not isinstance(program, Program):
        kind = type(program).__name__
        raise InputTypeError(f"program is a {kind}. Pass what `etpc.compile` returns.")
    check_optimizer("optimizer", optimizer)
    return Online(program, loss_fn, optimizer, steps, reduction, has_aux, skip_nonfinite)
