"""`etpc.estimate`: programs of BPTT and rules on shapes, compiled for a chip, and what they take."""

import dataclasses
import functools
import math
import re
import time
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ..algorithms import Algorithm, resolve
from ..checking.compare import short_name
from ..errors import InputError, MemoryLimitError, checked_count
from ..gradient.bptt import bptt
from ..run import Program, check_optimizer, compile, online, updated
from ..trace import Leaves, StepFunction, shape_of
from .chips import Chip, Place, place, versions
from .compiled import Cost, compile_for, cost
from .memory import bytes_in, squares
from .results import ADVICE, Estimate, EstimatedRow

LAUNCH = 2e-6  # seconds that a kernel of a GPU takes at least, for what is said in words
COMPILATIONS = 6  # at most so many are made to find the largest batch of a row
DESCENT = types.SimpleNamespace(init=lambda _: (), update=lambda grads, state, _: (grads, state))


def estimate(
    model: Any,
    rules: Algorithm | str | Sequence[Algorithm | str] = ("d_rtrl", "es_d_rtrl"),
    *,
    on: str,
    inputs: Any,
    steps: int | Sequence[int],
    batch_size: int | None = None,
    optimiser: Any = None,
    every: int | None = None,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    targets: Any = None,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    mesh: Mapping[str, int] | None = None,
    largest_batch: bool = False,
) -> Estimate:
    """What BPTT and each rule take on a TPU or a GPU that is not there, as its compiler says: memory, cycles, kernels.

    An update is compiled for shapes, and nothing is run. A TPU needs the extra `tpu`, a GPU the extra `cuda`.

    **Arguments:**

    - `model`, `inputs`, `state`, `step`, `weights`: as in [`etpc.compile`][]. Floats of the model may be
        `jax.ShapeDtypeStruct`s.
    - `rules`: algorithms or their names.
    - `on`: `"cpu"`, or a kind of chip and how many: `"v5e:4x4"`, `"v5p:2x2x1"`, `"tpu7x"`, `"h100"`, `"a100:8"`.
    - `steps`: T, how many steps a call has; or several of them, to see how memory grows.
    - `batch_size`: B, of all devices together; `None` for one example without a batch axis.
    - `optimiser`: one of Optax, as in [`etpc.online`][]; plain descent unless set. What an update replaces is donated.
    - `every`: the number of steps between updates of the rules; T unless set. BPTT has one update.
    - `loss_fn`, `targets`: as in [`value_and_grad`][etpc.Program.value_and_grad], with the target of one step of one
        example, an array or a `jax.ShapeDtypeStruct`. The sum of the squares of all outputs unless set.
    - `mesh`: axes over which the batch is spread, such as `{"batch": 16}`, by averaged gradients; none unless set.
    - `largest_batch`: whether to search for the largest batch that fits, which takes up to 6 compilations more a row.

    **Returns** an [`Estimate`][etpc.Estimate]. What does not fit is a row that says so.

    **Raises** `etpc.InputError` for a chip or a topology that is not known; `etpc.UnsupportedError` where its compiler
    is not installed, or may not be loaded; and what `etpc.compile` and `etpc.online` raise.
    """
    check_optimizer("optimiser", optimiser := optimiser or DESCENT)
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    every = None if every is None else checked_count("every", every)
    lengths = [checked_count("steps", n) for n in np.atleast_1d(np.asarray(steps, object))]
    if wrong := [n for n in lengths if n % (every or n)]:
        raise InputError(f"steps={wrong[0]} is no multiple of every={every}.")
    if batch_size is None and (mesh or largest_batch):
        raise InputError("mesh= and largest_batch= need a batch axis. Pass batch_size=1, or more.")
    where, axes = place(on), dict(mesh or {})
    spread = math.prod(checked_count(f"mesh[{name!r}]", size) for name, size in axes.items())
    if spread > len(where.devices):
        more = f"Name more chips, such as on='{where.chip.name}:{[*where.chip.layouts, ''][-1]}'"
        if on == "cpu":
            more = f"Start with XLA_FLAGS=--xla_force_host_platform_device_count={spread}"
        there = f"on={on!r} has {len(where.devices)}"
        raise InputError(f"mesh={axes} needs {spread} devices, and {there}. {more}.")
    if (batch_size or spread) % spread:
        raise InputError(f"batch_size={batch_size} is no multiple of {spread}, as mesh= needs it.")
    called = dict(inputs=inputs, state=state, step=step, weights=weights)
    data = jax.tree.map(shape_of, (inputs, targets))
    how = loss_fn or squares, _averaged(optimiser, axes) if axes else optimiser, every, batch_size
    task = _Task(model, called, data, *how, where, axes)
    listed = [rules] if isinstance(rules, Algorithm | str) else rules
    contestants = [task.bptt("BPTT"), *(task.rule(resolve(rule)) for rule in listed)]
    rows: list[EstimatedRow] = []
    for n in lengths:
        found = [task.row(contestant, n, batch_size) for contestant in contestants]
        for contestant, row in zip(contestants, found, strict=True):
            if row.cycles and found[0].cycles:
                row = dataclasses.replace(row, to_bptt=row.cycles / found[0].cycles)
            if largest_batch and batch_size and row.over is not None:
                at = functools.partial(task.row, contestant, n)
                row = dataclasses.replace(row, largest=_largest(row, at, batch_size, spread))
            rows.append(row)
    chip = where.chip
    of_chip = chip.kind, spread, chip.memory, chip.bandwidth, chip.source
    return Estimate(tuple(rows), on, *of_chip, batch_size, versions(chip))


def _averaged(optimiser: Any, mesh: Mapping[str, int]) -> Any:
    """An optimiser that gets the mean of the gradients of all devices."""

    @functools.wraps(optimiser.update)
    def update(grads: Any, *more: Any, **known: Any) -> Any:
        return optimiser.update(jax.lax.pmean(grads, (*mesh,)), *more, **known)

    return types.SimpleNamespace(init=optimiser.init, update=update)


class _Contestant(NamedTuple):
    """A function of weights, optimiser state, carry, inputs and targets, that returns new ones of the first three."""

    name: str
    run: Callable[..., Any]
    program: Program | None = None
    refusal: str | None = None


@dataclasses.dataclass(frozen=True)
class _Task:
    """What is compiled, and where for."""

    model: Any
    called: dict[str, Any]
    data: Any
    """The shapes of input and target of one step of one example."""
    loss_fn: Any
    optimiser: Any
    every: int | None
    batch: int | None
    where: Place
    mesh: dict[str, int]

    @functools.cached_property
    def leaves(self) -> Leaves:
        return Leaves.of(self.model, "model")

    def bptt(self, name: str, window: int | None = None) -> _Contestant:
        """BPTT, or truncated BPTT in blocks."""
        how: Any = dict(state=self.called["state"], step=self.called["step"], window=window)

        def run(floats: Any, opt_state: Any, carry: Any, xs: Any, targets: Any) -> Any:
            model = self.leaves.with_floats(self.model, floats)
            size = None if self.batch is None else jax.tree.leaves(xs)[0].shape[1]
            loss, grads = bptt(model, xs, targets, self.loss_fn, batch_size=size, **how)
            floats = self.leaves.tree_of_floats(floats)
            after, opt_state = updated(self.optimiser, loss, grads, floats, opt_state)
            return self.leaves.floats_of(after), opt_state, None, loss

        return _Contestant(name, run)

    def rule(self, rule: Algorithm) -> _Contestant:
        """A rule, as the compiler makes it for the platform, or why it refuses it."""
        name, platform = short_name(rule), self.where.chip.platform
        if rule.in_blocks:
            return self.bptt(name, rule.lookback)
        try:
            program = compile(self.model, rule, **self.called, memory=1 << 62, target=platform)
        except MemoryLimitError as error:
            return _Contestant(name, lambda: None, refusal=str(error))

        def run(floats: Any, opt_state: Any, carry: Any, xs: Any, targets: Any) -> Any:
            every = self.every or jax.tree.leaves(xs)[0].shape[0]
            learner = online(program, self.loss_fn, self.optimiser, every)
            model = self.leaves.with_floats(self.model, floats)
            model, *after = learner.update(model, opt_state, carry, xs, targets)
            return self.leaves.floats_of(model), *after

        return _Contestant(name, run, program)

    def row(self, contestant: _Contestant, steps: int, batch: int | None) -> EstimatedRow:
        """What one contestant takes for sequences of some length."""
        name, run, program, refusal = contestant
        spread, chip, start = math.prod(self.mesh.values()), self.where.chip, time.perf_counter()
        floats = [self.leaves.avals[i] for i in self.leaves.floats]
        opt_state = jax.eval_shape(self.optimiser.init, self.leaves.tree_of_floats(floats))
        lead = (steps,) if batch is None else (steps, batch)
        data = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype), self.data)
        every, window, carried, carry = steps, None, 0, None
        if program is not None:
            every = self.every or steps
            window, carry = program.window_for(every), jax.eval_shape(lambda: program.init(batch))
            carried = program.memory(batch and batch // spread).total
        sizes = bytes_in(floats), bytes_in(opt_state), carried, bytes_in(data) // spread
        row, peak, found = EstimatedRow(name, steps, window, *sizes), sum(sizes), Cost()
        try:
            if refusal or peak > chip.memory:
                raise MemoryLimitError(refusal or "its arguments are larger than the memory")
            compiled = self.compiled(run, program, (floats, opt_state, carry, *data))
        except (jax.errors.JaxRuntimeError, MemoryLimitError) as error:
            said = str(error).splitlines()[0]
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in said:
                raise
            asked = re.search(r"(?:Used |\()([\d.]+)([KMGT])", said)  # bytes, as XLA says them
            needed = float(asked[1]) * 1024 ** (1 + "KMGT".index(asked[2])) if asked else 0
            peak = None if refusal else max(peak, round(needed))
            over = None if peak is None else max(1, peak - chip.memory)
            said = said[max(0, said.find("Ran out")) :].partition(". HLO module")[0]
            known: dict[str, Any] = dict(peak=peak, over=over, fits=False, refusal=said)
        else:
            found, memory, updates = cost(compiled), compiled.memory_analysis(), steps // every
            peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + found.temporary
            peak -= memory.alias_size_in_bytes
            moved = found.collectives.items()
            known = dict(
                **dict(temporary=found.temporary, peak=peak, over=peak - chip.memory),
                fits=peak <= chip.memory,
                cycles=found.cycles / steps if found.cycles else None,
                kernels=found.kernels / steps if chip.platform == "cuda" else None,
                collectives={kind: (n / updates, size / updates) for kind, (n, size) in moved},
                unknown_loops=len(found.unknown),
            )
        row = dataclasses.replace(row, **known, seconds=time.perf_counter() - start)
        return dataclasses.replace(row, limits=_limits(row, chip, found))

    def compiled(self, run: Any, program: Program | None, args: Any) -> Any:
        """An update, for one device; or for all of a mesh, each with its part of the batch and all weights."""
        donated: Any = dict(donate_argnums=(0, 1, 2))
        if not self.mesh:
            return compile_for(self.where, run, *args, **donated)
        shape, axes = (*self.mesh.values(),), (*self.mesh,)
        mesh = Mesh(np.array(self.where.devices[: math.prod(shape)]).reshape(shape), axes)
        carry, batch = args[2], jax.tree.leaves(args[3])[0].shape[1]
        larger = program and jax.eval_shape(lambda: program.init(2 * batch))
        spec = lambda a, b: PartitionSpec(*(axes if m != n else None for m, n in zip(a, b)))  # noqa: B905
        by_example = jax.tree.map(lambda a, b: spec(a.shape, b.shape), carry, larger)
        same, by_step = PartitionSpec(), PartitionSpec(None, axes)
        into, out = (same, same, by_example, by_step, by_step), (same, same, by_example, same)
        run = jax.shard_map(run, mesh=mesh, in_specs=into, out_specs=out, check_vma=False)
        return jax.jit(run, **donated).lower(*args).compile()


def _largest(
    row: EstimatedRow, at: Callable[[int], EstimatedRow], batch: int, unit: int
) -> tuple[int, int | None]:
    """The largest batch, a multiple of `unit`, that was found to fit, and the smallest that was not, to 1 in 64: by
    bisection, at what a line through the last two peaks says, and every third time in the middle."""
    fits, does_not, size, before = 0, None, batch // unit, (0, row.weights + row.moments)
    for tried in range(1 + COMPILATIONS):
        row = row if tried == 0 else at(size * unit)
        fits, does_not = (size, does_not) if row.fits else (fits, size)
        near, peak, over = max(1, fits // 64), row.peak or 0, row.over or 0
        if does_not and does_not - fits <= near:
            break
        slope = (peak - before[1]) / ((size - before[0]) or 1)
        before, guess = (size, peak), int(size - over / slope) if slope > 0 else 2 * size
        if does_not and tried % 3 == 2:
            guess = (fits + does_not) // 2
        size = max(fits + near, min(guess, does_not - near if does_not else guess))
    return fits * unit, does_not and does_not * unit


def _limits(row: EstimatedRow, chip: Chip, found: Cost) -> str:
    """What limits a row, in words, and what to change where it does not fit."""
    part, size = max(row.parts.items(), key=lambda item: item[1])
    words = [f"{size / row.peak:.0%} of its bytes are {part}"] if row.peak else []
    if not row.fits:
        said = f": {row.refusal}" if row.refusal else ""
        return "; ".join([f"it does not fit{said}", *words, *([ADVICE[part]] if row.peak else [])])
    if found.cycles:
        by_name: Counter[str] = Counter()
        for line, cycles in found.by_line.items():
            by_name[line.rpartition("/")[2]] += cycles
        ((name, cycles),) = by_name.most_common(1)
        words.append(f"{cycles / found.cycles:.0%} of its cycles are {name}")
    moved, launches = 0.0, (row.kernels or 0) * LAUNCH
    if chip.bandwidth and row.window and row.traces > max(chip.cache, found.fast):
        moved = 2 * row.traces / row.window / (1e9 * chip.bandwidth)
    if moved > launches:
        each = "step" if row.window == 1 else f"window of {row.window}"
        rate = f"{1e6 * moved:,.1f} us a step or more at {chip.bandwidth:,.0f} GB/s"
        words.append(f"to read and write the traces each {each} takes {rate}")
    elif launches:
        words.append(f"{1e6 * launches:,.0f} us a step if each kernel takes {1e6 * LAUNCH:.0f}")
    if row.unknown_loops:
        words.append(f"{row.unknown_loops} loops of unknown length count once")
    return "; ".join(words)
