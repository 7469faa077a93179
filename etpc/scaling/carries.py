"""Carries that are cut and joined by streams, and as other programs of the same model and rule can read them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, InputTypeError, UnsupportedError, raise_together
from ..forms import Full, Holomorphic, Trace
from ..run import Carry, Program


def take_streams(carry: Carry, which: Any) -> Carry:
    """The carry of some streams of a batch, such as those that go on elsewhere.

    **Arguments:**

    - `carry`: with a batch axis, B.
    - `which`: numbers of streams [n], in the order that they shall have; booleans [B]; or a slice.

    **Returns** a carry with a batch axis of n, of the same program.

    **Raises** `etpc.InputError` and `etpc.InputTypeError`.
    """
    count = _streams(carry)
    if not isinstance(which, slice):
        which = np.atleast_1d(np.asarray(which))
        kind = which.dtype.kind
        if kind not in "iub" or which.ndim != 1 or (kind == "b" and len(which) != count):
            raise InputError(
                f"`which` is {which.dtype}{list(which.shape)}, and should be numbers of streams, booleans [{count}], "
                "or a slice."
            )
        which = np.flatnonzero(which) if kind == "b" else which
        outside = [int(n) for n in which if not -count <= n < count]
        if outside:
            raise InputError(
                f"`which` has {outside}, and the carry has the streams 0 to {count - 1}."
            )
    taken = jax.tree.map(lambda a: a[which], dataclasses.replace(carry, shared=()))
    if len(taken.fresh) == 0:
        raise InputError("`which` chooses no stream, and a carry has at least one.")
    return dataclasses.replace(taken, shared=carry.shared)


def join_streams(carries: Sequence[Carry]) -> Carry:
    """The carry of the streams of several carries, such as a fleet and the streams that join it.

    **Arguments:**

    - `carries`: of one program, each with a batch axis.

    **Returns** a carry whose batch has the streams of the first, then of the second, and so on.

    **Raises** `etpc.InputError` and `etpc.InputTypeError`; `etpc.UnsupportedError` where the streams of each carry
    share directions, as under `CreditRTRL`, and these differ.
    """
    if isinstance(carries, Carry) or not carries:
        raise InputError("carries is empty or one carry. Pass a list of at least one.")
    first, *others = carries
    for carry in carries:
        _streams(carry)
    if any(carry.program != first.program for carry in others):
        raise InputError(
            "The carries are of several programs, whose arrays mean different things. Join those of one program; "
            "`etpc.portable` takes a carry from one to another where model and rule are the same."
        )
    shared = [jax.tree.leaves(carry.shared) for carry in carries]
    if any(not np.array_equal(a, b) for own in shared for a, b in zip(own, shared[0], strict=True)):
        raise UnsupportedError(
            "The carries follow directions that differ, which all streams of a batch share. Let those that join begin "
            "anew, by `program.init`, in a carry that was cut from the fleet's: `etpc.take_streams`, `program.reset`."
        )
    rows = [dataclasses.replace(carry, shared=()) for carry in carries]
    joined = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *rows)
    return dataclasses.replace(joined, shared=first.shared)


def portable(program: Program, carry: Carry) -> dict[str, Any]:
    """A carry as arrays by the paths of states and weights, with what the program is in words.

    A carry of its own is tied to the equations of its program, which another version of JAX, or the passes for another
    device, may write another way. This is not: `etpc.save` it, or give it to Orbax, and read it by
    [`etpc.from_portable`][] into a program of the same model and rule. An edit of the model's code that leaves all
    states, weights and shapes as they were is not noticed.

    **Arguments:**

    - `program`: that the carry is of.
    - `carry`: with or without a batch axis; or one of `jax.ShapeDtypeStruct`s.

    **Returns** a PyTree of dicts, arrays and text.

    **Raises** `etpc.InputError` and `etpc.InputTypeError`.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> step = lambda w, x, h: (0.9 * h + w * x,) * 2
    >>> one = etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=jnp.zeros(3), step=step)
    >>> other = etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=jnp.zeros(3), step=step, target="tpu")
    >>> _, carry = one(jnp.ones(3), jnp.ones(3), one.init())
    >>> etpc.save("fleet.etpc", etpc.portable(one, carry))
    >>> saved = etpc.load("fleet.etpc", like=etpc.portable(other, other.init()))
    >>> etpc.from_portable(other, saved).state.tolist()
    [1.0, 1.0, 1.0]

    ```
    """
    program.arguments.check_carry(carry)
    states = program.plan.analysis.step.state_leaves
    leaves = states.split(carry.state)
    batch = "with a batch axis" if carry.batched else "without a batch axis"
    lines = [f"{program.algorithm}, {batch}"]
    traces = {}
    for number, (node, own) in enumerate(zip(program.ir.traces, carry.traces, strict=True)):
        site, form = node.site, node.form
        of_states = program.plan.analysis.hidden.names(np.unique(node.blocks.indices))
        sizes = f"{site.kind.groups} x {site.kind.inputs} x {site.kind.outputs}"
        lines.append(
            f"{', '.join(op.path for op in node.ops)}: {site.kind.name} {sizes}, "
            f"{site.block} of {', '.join(of_states)}, {type(form).__name__}"
        )
        if isinstance(form := _layout(form), Full):
            show = lambda arrays, form=form, site=site: form.shown(site, arrays)["trace"]
            show = jax.vmap(show) if carry.batched else show
            is_shape = isinstance(own[0], jax.ShapeDtypeStruct)
            own = (jax.eval_shape(show, tuple(own)) if is_shape else show(tuple(own)),)
        traces[f"{number} {node.op.path}"] = list(own)
    rest = {name: list(getattr(carry, name)) for name in _REST}
    by_path = dict(zip(states.paths, leaves, strict=True))
    return dict(program=lines, state=by_path, traces=traces, fresh=carry.fresh) | rest


def from_portable(program: Program, tree: Any) -> Carry:
    """The carry of a program, from what [`etpc.portable`][] made of a carry of this or another one.

    **Arguments:**

    - `program`: of the same model and rule, whatever device or version of JAX it is for.
    - `tree`: with or without a batch axis, of any batch size.

    **Returns** the carry.

    **Raises** `etpc.InputError` with all differences: other states, weights, shapes or dtypes, another rule, or a trace
    that one of the programs carries in another form that cannot be read as this one.
    """
    if not isinstance(tree, dict) or not {"program", "state", "traces", "fresh", *_REST} == {*tree}:
        raise InputTypeError("The tree is not what `etpc.portable` returns.")
    shape = np.shape(tree["fresh"])
    like = jax.eval_shape(lambda: program.init(*shape))
    wanted = portable(program, like)
    raise_together(
        _differences(wanted, tree), InputError, "This is the carry of another model or rule."
    )
    traces = []
    for node, wanted_arrays, arrays in zip(
        program.ir.traces, like.traces, tree["traces"].values(), strict=True
    ):
        axis, form = len(node.site.group) + len(shape), _layout(node.form)
        if isinstance(form, Full) and form.apart:
            arrays = [jnp.take(arrays[0], n, axis) for n in range(len(wanted_arrays))]
        elif isinstance(form, Full) and form.as_complex:
            arrays = [jax.lax.complex(*(jnp.take(arrays[0], n, axis) for n in (0, 1)))]
        if isinstance(form, Full) and form.turns(node.site):
            arrays = [jnp.swapaxes(a, -2, -1) for a in arrays]
        traces.append(tuple(jnp.asarray(a) for a in arrays))
    leaves = [*tree["state"].values(), *jax.tree.leaves(traces), tree["fresh"]]
    leaves += [a for name in _REST for a in tree[name]]
    return jax.tree.unflatten(jax.tree.structure(like), map(jnp.asarray, leaves))


def _layout(form: Trace) -> Trace:
    """The form that says how the arrays of a trace lie: that of holomorphic states has another one inside."""
    return form.inner if isinstance(form, Holomorphic) else form


_REST = ("shared", "each", "lookback", "filtered")
"""What a carry has besides, under some rules."""


def _differences(wanted: Any, tree: Any) -> list[str]:
    """Where a tree has other text, paths, shapes or dtypes than a program asks for."""

    def described(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(path): a if isinstance(a, str) else f"{a.dtype}{list(a.shape)}"
            for path, a in jax.tree_util.tree_leaves_with_path(tree)
        }

    ours, theirs = described(wanted), described(tree)
    return [
        f"{where} is {theirs.get(where, 'not there')}, and the program has {ours.get(where, 'no such array')}."
        for where in dict.fromkeys([*ours, *theirs])
        if ours.get(where) != theirs.get(where)
    ]


def _streams(carry: Any) -> int:
    """How many streams a carry has. **Raises** where it has no batch axis."""
    if not isinstance(carry, Carry):
        raise InputTypeError(
            f"A carry is of type {type(carry).__name__}. Pass that of `program.init(batch_size)` or of an update."
        )
    if not carry.batched:
        raise InputError("The carry has no batch axis. Make one by `program.init(batch_size)`.")
    return len(carry.fresh)
