"""Checks of the data that a sequence is made of: inputs, targets, and where streams begin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, InputTypeError, raise_together


def as_array(value: Any, dtype: Any = None) -> Any:
    """A value as an array of JAX. A `jax.ShapeDtypeStruct` stays one."""
    if not isinstance(value, jax.ShapeDtypeStruct):
        return jnp.asarray(value, dtype)
    return value.update(dtype=value.dtype if dtype is None else dtype, weak_type=False)


def check_data(xs: Any, targets: Any) -> None:
    """**Raises** `InputTypeError` unless both are PyTrees of arrays, and `xs` has one."""
    problems = [*foreign("xs", xs), *foreign("targets", targets)]
    if not jax.tree.leaves(xs):
        problems.append(
            "xs has no array. Pass an array with a leading axis T, or a PyTree of them."
        )
    raise_together(problems, InputTypeError)


def foreign(name: str, tree: Any) -> list[str]:
    """A sentence for each leaf of a tree that is neither a number nor an array of numbers, booleans or keys."""
    return [
        f"{name} holds a {type(leaf).__name__}, {leaf!r}, and should hold arrays of numbers."
        for leaf in jax.tree.leaves(tree)
        if not _is_data(leaf)
    ]


def check_lead(xs: Any, targets: Any, batch_size: int | None) -> None:
    """**Raises** `InputError` unless all arrays of a sequence begin with the same T, then B."""
    count = 1 if batch_size is None else 2
    lead = jnp.shape(jax.tree.leaves(xs)[0])[:1] + (() if batch_size is None else (batch_size,))
    problems = [
        f"{name} has a leaf of shape {list(jnp.shape(leaf))}; it should begin with {'T, B'[: 3 * count - 2]} = "
        f"{list(lead)}, which are the steps of xs{' and batch_size' if count == 2 else ''}."
        for name, tree in (("xs", xs), ("targets", targets))
        for leaf in jax.tree.leaves(tree)
        if jnp.shape(leaf)[:count] != lead
    ]
    if lead[:1] == (0,):
        problems.append("The input has no steps (T = 0).")
    raise_together(problems, InputError)


def check_tolerance(tolerance: Any) -> None:
    """**Raises** `InputError` unless it is `None` or a number of at least zero."""
    if tolerance is not None and not (is_real(tolerance) and tolerance >= 0):
        raise InputError(f"tolerance must be None or a number >= 0, not {tolerance!r}.")


def is_real(value: Any) -> bool:
    """Whether a value is a number of Python or NumPy."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _is_data(leaf: Any) -> bool:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    kinds = (jax.dtypes.extended, jnp.bool_, jnp.number)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def check_targets(targets: Any, xs: list[Any], batched: bool) -> None:
    """**Raises** unless targets are arrays with the leading axes of the input, `InputTypeError` and `InputError`."""
    raise_together(foreign("targets", targets), InputTypeError)
    lead = xs[0].shape[: 2 if batched else 1]
    problems = [
        f"A target has shape {list(jnp.shape(leaf))}, and should begin with "
        f"{list(lead)}, as the input does ({'T, B' if batched else 'T'})."
        for leaf in jax.tree.leaves(targets)
        if jnp.shape(leaf)[: len(lead)] != lead
    ]
    raise_together(problems, InputError)


def lead_of(tree: Any, batch_size: int | None) -> tuple[int, ...]:
    """The leading axes [T, B], or [T], of a sequence."""
    return jnp.shape(jax.tree.leaves(tree)[0])[: 1 if batch_size is None else 2]


def one_step(leaf: Any, batch_size: int | None) -> jax.ShapeDtypeStruct:
    """The shape of one step of one example of a leaf of `xs`."""
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    lead = 1 if batch_size is None else 2
    if leaf.ndim < lead:
        raise InputError(
            f"xs has a leaf of shape {list(leaf.shape)}; it should begin with "
            f"{'T' if batch_size is None else 'T, B'}."
        )
    return jax.ShapeDtypeStruct(leaf.shape[lead:], leaf.dtype)


def shapes_text(tree: Any) -> str:
    """The shapes of the leaves of a tree."""
    return ", ".join(str(list(jnp.shape(leaf))) for leaf in jax.tree.leaves(tree))


def checked_begins(name: str, where: Any, shapes: list[tuple[int, ...]], axes: list[str]) -> Any:
    """`begins` or `where`, by its name, as an array, if it has booleans and one of the shapes."""
    where = where if hasattr(where, "dtype") else np.asarray(where)
    if where.dtype != bool:
        raise InputError(
            f"{name} is {where.dtype}{list(where.shape)}, and should be booleans: True where an "
            "example begins a new stream."
        )
    if where.shape not in shapes:
        expected = " or ".join(f"{a} = {list(s)}" for a, s in zip(axes, shapes, strict=True))
        raise InputError(
            f"{name} has shape {list(where.shape)}, and should have {expected}: one boolean for "
            "each example."
        )
    return as_array(where)


def begins_of(begins: Any, lead: tuple[int, ...]) -> Any:
    """`begins` as booleans with the leading axes of a sequence, if it is given."""
    axes = "[T, B]" if len(lead) == 2 else "[T]"
    return None if begins is None else checked_begins("begins", begins, [lead], [axes])
