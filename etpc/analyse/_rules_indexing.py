"""Pattern rules of reads and writes by index, known or not."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .._jax import Equation, Variable, params, scatter_sub_p
from .._jax.primitives import register
from ..trace import Known
from ._interpreter import Interpreter, Patterns, Results, rule
from ._pattern import numbering, pick, select, spread, union


def _window(
    shape: Sequence[int], sizes: Sequence[int], starts: Sequence[Variable], known: Known
) -> tuple[tuple[slice, ...], list[int]]:
    """Where a slice lies, from zero where its start is not known, and the axes along which it may lie elsewhere."""
    values = [known(start) for start in starts]
    axes = list(zip(values, shape, sizes, strict=True))
    offsets = [0 if value is None else min(max(int(value), 0), n - m) for value, n, m in axes]
    unknown = [axis for axis, (value, n, m) in enumerate(axes) if value is None and m < n]
    return tuple(slice(a, a + n) for a, n in zip(offsets, sizes, strict=True)), unknown


@rule("gather")
def _gather(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    operand, indices = eqn.inputs
    pattern, positions = patterns[0], known(indices)
    if positions is None:
        positions = np.zeros(indices.shape, indices.aval.dtype)
        pattern = spread(pattern, operand.shape, params.gather(eqn).indexed)
    with jax.ensure_compile_time_eval():  # the numbers of elements, and 0 where there is none
        numbers = jnp.asarray(numbering(operand.shape) + 1, jnp.int32)
        (moved,) = params.with_fill_value(eqn, 0).bind(numbers, jnp.asarray(positions))
    return [pick(pattern, np.asarray(moved) - 1)]


@rule("dynamic_slice")
def _dynamic_slice(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    operand, *starts = eqn.inputs
    window, unknown_axes = _window(operand.shape, params.slice_sizes(eqn), starts, known)
    pattern = spread(patterns[0], operand.shape, unknown_axes)
    return [pick(pattern, numbering(operand.shape)[window])]


@rule("dynamic_update_slice")
def _dynamic_update_slice(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    operand, update, *starts = eqn.inputs
    (out,) = eqn.outputs
    window, unknown_axes = _window(operand.shape, update.shape, starts, known)
    update_index = np.full(out.shape, -1)
    update_index[window] = numbering(update.shape)
    operand_index = numbering(out.shape)
    if not unknown_axes:
        operand_index[window] = -1
    placed = spread(pick(patterns[1], update_index), out.shape, unknown_axes)
    return [union([pick(patterns[0], operand_index), placed])]


@rule("scatter", "scatter_add", "scatter_mul", "scatter_min", "scatter_max")
def _scatter(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    indices = eqn.inputs[1]
    (out,) = eqn.outputs
    if patterns[2] is None:
        return patterns[:1]
    if out.size >= 1 << 24:  # element numbers must be exact in float32
        return None
    positions, unknown_axes = known(indices), ()
    if positions is None:
        positions = np.zeros(indices.shape, indices.aval.dtype)
        unknown_axes = params.scattered_axes(eqn)
    placed = _landing(eqn, positions)
    inside = placed >= 0
    pattern = select(placed[inside], np.flatnonzero(inside), out.size, patterns[2])
    return [union([patterns[0], spread(pattern, out.shape, unknown_axes)])]


def _landing(eqn: Equation, positions: np.ndarray) -> np.ndarray:
    """Where each update of a scatter lands: the transpose of the scatter, on element numbers."""
    operand, _, updates = eqn.inputs
    adder = params.as_scatter_add(eqn)
    with jax.ensure_compile_time_eval():
        zeros = jnp.zeros(operand.shape, jnp.float32)
        indices = jnp.asarray(positions)
        aval = jax.ShapeDtypeStruct(updates.shape, jnp.float32)
        transposed = jax.linear_transpose(lambda u: adder.bind(zeros, indices, u)[0], aval)
        numbers = jnp.asarray(numbering(operand.shape) + 1, jnp.float32)
        (landed,) = transposed(numbers)
    return np.asarray(landed).astype(np.int64).reshape(-1) - 1


if scatter_sub_p is not None:
    register([scatter_sub_p], pattern=_scatter)
