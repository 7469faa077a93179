"""What a carry of a program takes, and a gradient beside it on the device that there is."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..errors import checked_count
from ..files.record import record
from ..run import Carry, Program
from ..trace import is_float, is_key


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a carry holds, and that a gradient takes beside it.

    - `traces`: path and bytes of each trace, in the order of the carry.
    - `state`: bytes of the hidden state, with a byte for each example that says whether its stream begins.
    - `batch_size`: B; `None` for one example.
    - `directions`: bytes of the directions along which escaping influence is followed, beside their rows in the traces.
    - `lookback`: bytes of the last steps, if the algorithm looks back through them.
    - `steps`, `temporary`: bytes that the gradient of so many steps takes beside its arguments and results; `None`
        where that was not asked for.
    """

    traces: tuple[tuple[str, int], ...]
    state: int
    batch_size: int | None
    directions: int = 0
    lookback: int = 0
    steps: int | None = None
    temporary: int | None = None

    @property
    def total(self) -> int:
        """Those of the carry."""
        return self.state + self.directions + self.lookback + sum(size for _, size in self.traces)

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON."""
        traces = [{"path": path, "bytes": size} for path, size in self.traces]
        fields = dict(state=self.state, directions=self.directions, lookback=self.lookback)
        size = dict(total=self.total, batch_size=self.batch_size)
        window = dict(steps=self.steps, temporary=self.temporary)
        return record("etpc-memory/1", traces=traces, **fields, **size, **window)

    def __str__(self) -> str:
        rows = [*self.traces, ("hidden state", self.state)]
        rows += [("directions", self.directions)] if self.directions else []
        rows += [("last steps", self.lookback)] if self.lookback else []
        rows.append(("total", self.total))
        rows += [(f"beside, {self.steps} steps", self.temporary)] if self.temporary else []
        width = max(len(path) for path, _ in rows)
        batch = "one example" if self.batch_size is None else f"batch size {self.batch_size}"
        lines = [f"{path:<{width}}  {size:>14,} bytes" for path, size in rows]
        return "\n".join([f"carry, {batch}", *lines])


def memory(program: Program, batch_size: int | None, steps: int | None) -> Memory:
    """What [`Program.memory`][etpc.Program.memory] does."""
    carry = jax.eval_shape(lambda: program.init(batch_size))
    count = math.prod(carry.fresh.shape)
    traces = tuple((node.op.path, count * node.bytes) for node in program.ir.traces)
    # one byte says if it is fresh
    state = count * (bytes_in(program.ir.analysis.step.state_avals) + 1)
    directions = bytes_in((carry.shared, carry.each))
    batch_size = count if carry.batched else None
    found = Memory(traces, state, batch_size, directions, bytes_in(carry.lookback))
    if steps is None:
        return found
    steps = checked_count("steps", steps)
    run, arguments = gradient_of(program, carry, steps)
    compiled: Any = run.lower(*arguments).compile()
    temporary = int(compiled.memory_analysis().temp_size_in_bytes)
    return dataclasses.replace(found, steps=steps, temporary=temporary)


def gradient_of(program: Program, carry: Carry, steps: int) -> tuple[Any, tuple[Any, ...]]:
    """The gradient of the squares of so many steps, as `value_and_grad` gives it, and the shapes of its arguments."""
    step, lead = program.ir.analysis.step, (steps, *carry.fresh.shape)
    xs = [jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype) for a in step.input_leaves.avals]
    model = step.model_leaves.join(step.model_leaves.avals)
    return program.value_and_grad(squares), (model, step.input_leaves.join(xs), None, carry)


def squares(y: Any, _: Any) -> Array:
    """The sum of the squares of all outputs that are floats."""
    outputs = map(jnp.asarray, jax.tree.leaves(y))
    floats = (a for a in outputs if is_float(a.dtype))
    squares = (jnp.sum(jnp.abs(a) ** 2).astype(jnp.float32) for a in floats)
    return sum(squares, jnp.zeros((), jnp.float32))


def bytes_in(tree: Any) -> int:
    """The bytes of arrays, given as arrays or as shapes, without those of PRNG keys."""
    arrays = [a for a in jax.tree.leaves(tree) if not is_key(a)]
    return sum(math.prod(a.shape) * jnp.dtype(a.dtype).itemsize for a in arrays)
