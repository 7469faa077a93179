"""Time and memory of the gradients of one model, with their error beside them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..algorithms import Algorithm
from ..checking.compare import short_name
from ..gradient.agreement import TOTAL, Nearness, flat_gradients, whole
from ..gradient.bptt import Objective, gradient_of
from ..run import Program
from ..trace import Leaves
from ._task import Data, Task


@dataclasses.dataclass(frozen=True)
class Timing:
    """One way to the gradient. Bytes are for the whole batch.

    - `step_ms`: the shortest time of a call, over its steps, in ms.
    - `compile_s`: from the Python functions to the executable, in s.
    - `carry_bytes`: what is passed on from call to call.
    - `temp_bytes`: what XLA allocates besides arguments and results; `None` where it does not say.
    - `error`, `cosine`: of all parameters as one vector, against BPTT.
    """

    name: str
    step_ms: float
    compile_s: float
    carry_bytes: int
    temp_bytes: int | None
    error: float
    cosine: float


class _Call:
    """A compiled gradient. Called again, it goes on with the carry that the last call returned."""

    def __init__(self, name: str, gradient: Callable[..., Any], model: Any, data: Data, carry: Any):
        # Integer arrays stay with the code: they say what is connected, and are no parameters.
        arrays, static = eqx.partition(model, eqx.is_inexact_array)

        def run(arrays: Any, xs: Any, targets: Any, carry: Any) -> tuple[Any, Any]:
            return gradient(eqx.combine(arrays, static), xs, targets, carry)

        self.name = name
        self._arguments = (arrays, data.xs, data.targets)
        # A copy, as it is donated: its arrays may be the user's, or one of them twice.
        self._carry = jax.tree.map(lambda a: jnp.array(a, copy=True), carry)
        self.carry_bytes = sum(a.nbytes for a in jax.tree.leaves(self._carry))
        start = time.perf_counter()
        lowered = jax.jit(run, donate_argnums=3).lower(*self._arguments, self._carry)
        self._compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start

    def __call__(self) -> Any:
        grads, self._carry = self._compiled(*self._arguments, self._carry)
        return grads

    @property
    def temp_bytes(self) -> int | None:
        stats: Any = self._compiled.memory_analysis()
        return None if stats is None else int(stats.temp_size_in_bytes)


def bench(
    task: Task,
    data: Data,
    algorithms: Sequence[Algorithm],
    *,
    memory: int | None = None,
    repeats: int = 10,
) -> list[Timing]:
    """Time the gradient of a sequence under BPTT, which is the first result, and algorithms.

    They take turns `repeats` times, so that what slows the machine down for a while slows all.
    """
    batch_size = data.batch_size or 1
    programs = [None if a.in_blocks else task.compile(a, memory, batch_size) for a in algorithms]
    calls = [_reverse("BPTT", None, task, data)]
    for algorithm, program in zip(algorithms, programs, strict=True):
        name = short_name(algorithm)
        if program is None:
            calls.append(_reverse(name, algorithm.lookback, task, data))
        else:
            calls.append(_online(name, program, task, data))
    leaves = Leaves.of(task.model, "model")
    grads = [whole(flat_gradients(leaves, call())) for call in calls]
    shortest = [float("inf")] * len(calls)
    for _ in range(repeats):
        for n, call in enumerate(calls):
            start = time.perf_counter()
            jax.block_until_ready(call())
            shortest[n] = min(shortest[n], time.perf_counter() - start)
    rows = [Nearness.of(TOTAL, got, grads[0]) for got in grads]
    return [
        Timing(
            *(call.name, 1e3 * seconds / data.steps, call.compile_s, call.carry_bytes),
            *(call.temp_bytes, row.error, row.cosine),
        )
        for call, row, seconds in zip(calls, rows, shortest, strict=True)
    ]


def _online(name: str, program: Program, task: Task, data: Data) -> _Call:
    run = program.value_and_grad(data.loss_fn, reduction="sum")

    def gradient(model: Any, xs: Any, targets: Any, carry: Any) -> tuple[Any, Any]:
        (_, carry), grads = run(model, xs, targets, carry)
        return grads, carry

    return _Call(name, gradient, task.model, data, program.init(data.batch_size))


def _reverse(name: str, window: int | None, task: Task, data: Data) -> _Call:
    """BPTT from the initial state, cut after each window if there is one."""
    options = dict(state=task.state, step=task.step, batch_size=data.batch_size)
    objective = Objective.of(task.model, data.xs, data.targets, data.loss_fn, **options)

    def gradient(model: Any, xs: Any, targets: Any, start: Any) -> tuple[Any, Any]:
        same = dataclasses.replace(objective, xs=xs, targets=targets, start=start)
        return gradient_of(model, same, "sum", window)[1], start

    return _Call(name, gradient, task.model, data, objective.start)
