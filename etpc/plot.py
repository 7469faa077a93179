"""Charts of a program: how good its gradients are, its traces over time, and its memory.

Needs the extra `plot` (Matplotlib). Each function draws into new axes or into those that it is given,
and follows Matplotlib's style. The picture of a program's graph is in [`etpc.draw`][].
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._bptt import bptt
from ._compare import Report
from ._errors import InputError, SelectionError, UnsupportedError
from ._jax import is_spike
from .algorithms import Algorithm, resolve
from .plan import OpPlan, TracePlan
from .run import Program, compile
from .trace import StepFunction, shape_of

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "`etpc.plot` draws with Matplotlib, which is not installed. Install the extra `plot`, or "
        "Matplotlib itself."
    ) from error

SMALLEST = 1e-17
"""Where a relative error of zero is drawn, on an axis that has no zero."""


def gradient_agreement(
    reports: Report | Mapping[str, Report], *, axes: Sequence[Axes] | np.ndarray | None = None
) -> Figure:
    """Relative error and cosine of each parameter's gradient against BPTT.

    Squares are gradients that the program says are exact, circles all others. The line is the
    relative error up to which they count as exact. A parameter whose BPTT gradient is zero has no
    mark.

    **Arguments:**

    - `reports`: of [`etpc.verify`][]; of several, each with its label.
    - `axes`: two axes, for the relative error and for the cosine.

    **Returns** the figure.

    **Raises** `etpc.InputError` where there is no report, or the reports are of different
    parameters.
    """
    if isinstance(reports, Report):
        reports = {reports.program.algorithm.short: reports}
    paths = [row.path for row in next(iter(reports.values())).rows] if reports else []
    if not paths or any([r.path for r in report.rows] != paths for report in reports.values()):
        raise InputError(
            "gradient_agreement compares reports of the same parameters, and there are "
            f"{len(reports)} reports, of {sorted({r.path for p in reports.values() for r in p.rows})}. "
            "Pass reports of one model."
        )
    height = 1.4 + 0.4 * len(paths)
    errors, cosines = _axes(axes, 1, 2, sharey=True, figsize=(8, height))
    places = np.arange(len(paths))
    for n, (label, report) in enumerate(reports.items()):
        shift = 0.5 * ((n + 0.5) / len(reports) - 0.5)
        exact = np.array([row.claim == "exact" for row in report.rows])
        values = (
            np.maximum([row.error for row in report.rows], SMALLEST),
            np.array([row.cosine for row in report.rows]),
        )
        for ax, value in zip((errors, cosines), values, strict=True):
            for marker, which in (("o", ~exact), ("s", exact)):
                name = _plain(label) if marker == "o" else None
                ax.plot(value[which], (places + shift)[which], marker, color=f"C{n}", label=name)
    tolerance = max(report.tolerance for report in reports.values())
    errors.axvline(tolerance, color="grey", linestyle=":", linewidth=1)
    errors.set(xscale="log", xlabel="relative error", yticks=places)
    errors.set_yticklabels(list(map(_plain, paths)))
    errors.set_ylim(len(paths) - 0.5, -0.5)
    cosines.set(xlabel="cosine", yticks=places, ylim=errors.get_ylim())
    cosines.axvline(1.0, color="grey", linestyle=":", linewidth=1)
    figure = _figure(errors)
    marks = [
        Line2D([], [], marker=m, linestyle="", color="grey", label=text)
        for m, text in (("s", "said to be exact"), ("o", "approximate"))
    ]
    handles = [*marks, *(errors.get_legend_handles_labels()[0] if len(reports) > 1 else [])]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    return figure


def traces(
    program: Program,
    model: Any,
    xs: Any,
    op: int | str = 0,
    *,
    example: int = 0,
    units: int | Sequence[tuple[int, ...]] = 5,
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Eligibility traces over time, below the input and the spikes that make them.

    The model runs one example from the initial state. Shown are the inputs, the spikes of its
    neurons (the states that the operation reaches, where there are no spikes), and entries of the
    trace of one weight operation: of the whole trace, of a low-rank one as a product of its factors, or
    of both factors of a smoothed one.

    **Arguments:**

    - `xs`: inputs of T steps, `[T, ...]` or `[T, B, ...]`.
    - `op`: which one, by its place in `program.ops` or by the path of its parameter.
    - `example`: which, where `xs` has a batch axis.
    - `units`: how many entries, large ones at the last step; or their indices in the whole trace,
        such as `(i, m, o)`.
    - `axes`: three axes, one below the other; four for a smoothed trace.

    **Returns** the figure.

    **Raises** `etpc.SelectionError` where there is no such operation; `etpc.InputError` where the
    inputs do not fit.
    """
    p = _find(program, op)
    record = _recorder(program, model, _one_example(program, xs, example), p)
    names = _names(p)
    if isinstance(units, int):
        if units < 1:
            raise InputError(f"units must be at least 1, not {units}.")
        last = record([np.zeros(units, int)] * len(names)).last
        chosen = [_largest(entries, units) for entries in last]
    else:
        chosen = _by_array(units, p)
    run = record(
        [_flat(indices, shape, p) for indices, shape in zip(chosen, _shapes(p), strict=True)]
    )
    sizes = [1.0, 1.0, *(1.2 for _ in names)]
    count = len(sizes)
    drawn = _axes(axes, count, 1, sharex=True, height_ratios=sizes, figsize=(8, 1.7 * count))
    _raster(drawn[0], run.inputs, "inputs")
    _raster(drawn[1], run.active, run.what)
    for ax, values, indices, name in zip(drawn[2:], run.entries, chosen, names, strict=True):
        for k, index in enumerate(indices):
            ax.plot(np.arange(len(values)), values[:, k], label=str(list(map(int, index))))
        ax.set(ylabel=_plain(name), xlim=(-0.5, len(values) - 0.5))
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="entry")
    drawn[-1].set_xlabel("step")
    title = _plain(f"{p.path}, {p.kind}: trace of {', '.join(p.states)}")
    drawn[0].set_title(title, loc="left")
    return _figure(drawn[0])


def memory(
    model: Any,
    inputs: Any,
    algos: Sequence[Algorithm | str] | Mapping[str, Algorithm | str] = ("d_rtrl", "es_d_rtrl"),
    *,
    steps: Sequence[int] = (10, 100, 1000),
    batch_size: int = 1,
    state: Any = None,
    step: StepFunction | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Bytes that a gradient takes against the number of steps, for BPTT and for programs.

    Beside parameters, sequence and gradients: what XLA allocates for temporaries, as it says of the
    compiled functions, and the carry of a program. Nothing runs. The loss is the sum of the squares
    of the outputs.

    **Arguments:**

    - `model`, `inputs`, `state`, `step`: as in [`etpc.compile`][].
    - `algos`: algorithms, or names of them, by label where it is a mapping.
    - `steps`: the lengths T to compile for.
    - `batch_size`: B.

    **Returns** the figure.

    **Raises** as [`etpc.compile`][]; `etpc.UnsupportedError` where a device does not tell.
    """
    if not isinstance(algos, Mapping):
        algos = {resolve(a).short: a for a in algos}
    arrays, static = eqx.partition(model, eqx.is_array)
    step_inputs = jax.tree.map(shape_of, inputs)

    def sequence(length: int) -> tuple[Any, Any]:
        lead = length, batch_size
        xs = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype), step_inputs)
        return xs, jax.ShapeDtypeStruct(lead, jnp.float32)

    def through_time(arrays: Any, xs: Any, targets: Any) -> Any:
        whole = eqx.combine(arrays, static)
        return bptt(whole, xs, targets, _squares, state=state, step=step, batch_size=batch_size)

    sizes = {"BPTT": [_temporary(jax.jit(through_time).lower(arrays, *sequence(t))) for t in steps]}
    for label, algo in algos.items():
        program = compile(model, algo, inputs=inputs, state=state, step=step, batch_size=batch_size)
        learn = program.value_and_grad(_squares)
        carry = jax.eval_shape(lambda p=program: p.init(batch_size))
        held = program.memory(batch_size).total

        def online(arrays: Any, xs: Any, targets: Any, carry: Any, learn: Any = learn) -> Any:
            return learn(eqx.combine(arrays, static), xs, targets, carry)

        jitted = jax.jit(online, donate_argnums=3)
        sizes[label] = [held + _temporary(jitted.lower(arrays, *sequence(t), carry)) for t in steps]
    (ax,) = _axes(None if ax is None else [ax], 1, 1, figsize=(6, 4))
    for (label, values), marker in zip(sizes.items(), "osv^D<>Pp*" * len(sizes), strict=False):
        ax.plot(list(steps), values, marker=marker, label=_plain(label))
    ax.set(xscale="log", yscale="log", xlabel="steps T", ylabel="bytes")
    ax.legend(frameon=False)
    return _figure(ax)


def _axes(axes: Any, rows: int, columns: int, **settings: Any) -> list[Axes]:
    """The axes to draw into, in one list: those that are given, or new ones."""
    if axes is None:
        axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", **settings)[1]
    flat = list(np.ravel(axes))
    if len(flat) != rows * columns:
        raise InputError(f"axes should be {rows * columns} axes, and are {len(flat)}.")
    return flat


def _plain(text: str) -> str:
    """A text that Matplotlib shows as it is, and does not read as mathematics between dollar signs."""
    return text.replace("$", r"\$") if plt.rcParams["text.parse_math"] else text


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def _squares(y: Any, target: Any) -> jax.Array:
    leaves = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return sum((jnp.sum(jnp.abs(a) ** 2) for a in leaves), jnp.zeros(()))


def _temporary(lowered: Any) -> int:
    stats = lowered.compile().memory_analysis()
    if stats is None:
        raise UnsupportedError(
            f"XLA does not say what memory a function takes on {jax.default_backend()}. Use the CPU "
            "for this chart."
        )
    return stats.temp_size_in_bytes


# --- traces ---


def _find(program: Program, op: int | str) -> OpPlan:
    paths = [p.path for p in program.ops]
    names = program.plan.analysis.step.model_leaves.paths
    if isinstance(op, str):
        wanted = op
        matches = [
            n
            for n, p in enumerate(program.ops)
            if wanted == p.path or wanted in (names[i] for i in p.op.parameters)
        ]
        op = matches[0] if matches else op
    if isinstance(op, str) or not 0 <= op < len(paths):
        raise SelectionError(
            f"The program has no traced operation {op!r}. It has {len(paths)}: {'; '.join(paths)}."
        )
    found = program.ops[op]
    if not found.shapes:
        raise SelectionError(
            f"The trace of operation {op}, {found.path}, is {_trace(found).form.held}. Choose another of "
            f"{'; '.join(paths)}."
        )
    return found


def _carried(program: Program, p: OpPlan) -> int:
    """The place of its trace, or of the one that holds it, among those that are carried."""
    owner = p.op.number if p.shares is None else p.shares
    return [q.op.number for q in program.plan.carried].index(owner)


def _one_example(program: Program, xs: Any, example: int) -> Any:
    expected = program.plan.analysis.step.input_leaves
    leaves, avals = expected.split(xs), expected.avals
    extra = {jnp.ndim(x) - len(a.shape) for x, a in zip(leaves, avals, strict=True)}
    if extra == {2}:
        sizes = {jnp.shape(x)[1] for x in leaves}
        if not 0 <= example < min(sizes):
            raise InputError(f"example is {example}, and xs has {min(sizes)} of them.")
        return jax.tree.map(lambda x: jnp.asarray(x)[:, example], xs)
    if extra != {1}:
        raise InputError(
            "xs should have the shape of the program's input with T, or T and B, before it; its leaves "
            f"have the shapes {', '.join(str(list(jnp.shape(x))) for x in leaves)}, and the input has "
            f"{', '.join(str(list(a.shape)) for a in avals)}."
        )
    return xs


def _trace(p: OpPlan) -> TracePlan:
    """The trace of an operation that has one."""
    assert p.trace is not None
    return p.trace


def _shown(p: OpPlan, trace: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    """The arrays to show of a trace of one example, by name."""
    return _trace(p).form.shown(_trace(p).site, trace)


def _entries(p: OpPlan, trace: tuple[jax.Array, ...]) -> list[jax.Array]:
    return list(_shown(p, trace).values())


def _arrays(p: OpPlan) -> dict[str, Any]:
    """Shapes of the arrays to show, by name."""

    def one() -> dict[str, jax.Array]:
        return _shown(p, tuple(a[0] for a in _trace(p).form.init(_trace(p).site, 1)))

    return jax.eval_shape(one)


def _shapes(p: OpPlan) -> list[tuple[int, ...]]:
    return [a.shape for a in _arrays(p).values()]


def _by_array(units: Sequence[tuple[int, ...]], p: OpPlan) -> list[list[tuple[int, ...]]]:
    """Indices into a whole trace as indices into each array that is shown."""
    if len(_arrays(p)) == 1:
        return [list(units)]
    split = len(p.shapes[0])  # [(G,) I] and [(m,) (G,) O]
    return [[u[:split] for u in units], [(*u[split:-1], *u[: split - 1], *u[-1:]) for u in units]]


def _names(p: OpPlan) -> list[str]:
    return list(_arrays(p))


def _largest(entries: np.ndarray, count: int) -> list[tuple[int, ...]]:
    """Indices of the largest entries, of different rows and columns as long as there are such."""
    order = np.argsort(-np.abs(entries).reshape(-1), kind="stable")
    indices = np.stack(np.unravel_index(order, entries.shape), 1)
    rows, columns = set(), set()
    first: list[int] = []
    for i, index in enumerate(indices):
        if entries.ndim > 1 and (
            (index[0] in rows and entries.shape[0] > 1) or index[-1] in columns
        ):
            continue
        rows.add(index[0])
        columns.add(index[-1])
        first.append(i)
        if len(first) == count:
            break
    rest = [i for i in range(min(2 * count, len(indices))) if i not in set(first)]
    return sorted(tuple(map(int, indices[i])) for i in [*first, *rest][:count])


def _flat(indices: Sequence[tuple[int, ...]], shape: tuple[int, ...], p: OpPlan) -> np.ndarray:
    """Indices into an array as indices into its entries in a row."""
    for index in indices:
        if len(index) != len(shape) or not all(
            0 <= i < n for i, n in zip(index, shape, strict=True)
        ):
            raise InputError(
                f"units has the index {tuple(index)}, and the trace of {p.path} that is shown has the "
                f"shape {shape}."
            )
    return np.array([np.ravel_multi_index(tuple(index), shape) for index in indices], int)


@dataclasses.dataclass(frozen=True)
class _Record:
    """What is recorded of one example at every step."""

    inputs: np.ndarray
    active: np.ndarray
    """Spikes, or states where there are none; `what` says which."""
    what: str
    entries: list[np.ndarray]
    last: list[np.ndarray]
    """All entries after the last step."""


def _recorder(
    program: Program, model: Any, xs: Any, p: OpPlan
) -> Callable[[Sequence[np.ndarray]], _Record]:
    """A function that runs the program and records some entries of each array that is shown."""
    step = program.plan.analysis.step
    number = _carried(program, p)
    functions = [e for e in step.equations if is_spike(e)]
    parameters = step.model_leaves.split(model)
    reached = [step.state_leaves.paths.index(path) for path in p.states]

    @jax.jit
    def run(xs: Any, chosen: list[jax.Array]) -> Any:
        def body(carry: Any, x: Any) -> Any:
            leaves = step.with_begins(step.input_leaves.split(x), carry.fresh)
            env = step.values(parameters, leaves, step.state_leaves.split(carry.state))
            spikes = [env[v].reshape(-1) for e in functions for v in e.outputs]
            _, carry = program(model, x, carry)
            arrays = _entries(p, carry.traces[number])
            shown = [a.reshape(-1)[i] for a, i in zip(arrays, chosen, strict=True)]
            states = step.state_leaves.split(carry.state)
            return carry, (spikes, [states[i].reshape(-1) for i in reached], shown)

        carry, recorded = jax.lax.scan(body, program.init(), xs)
        return recorded, _entries(p, carry.traces[number])

    leaves = [
        jnp.asarray(x, a.dtype)
        for x, a in zip(step.input_leaves.split(xs), step.input_leaves.avals, strict=True)
    ]
    inputs = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in leaves], 1)

    def record(chosen: Sequence[np.ndarray]) -> _Record:
        recorded, last = jax.tree.map(
            np.asarray, run(step.input_leaves.join(leaves), list(map(jnp.asarray, chosen)))
        )
        spikes, states, shown = recorded
        spikes = _distinct(spikes)
        what = "spikes" if spikes else ", ".join(p.states)
        return _Record(inputs, np.concatenate(spikes or states, 1), what, shown, last)

    return record


def _distinct(spikes: list[np.ndarray]) -> list[np.ndarray]:
    """Spikes without repetitions: a layer may read again, as its state, what another gave a step before."""
    kept: list[np.ndarray] = []
    for n, s in enumerate(spikes):
        later = [o for o in spikes[n + 1 :] if o.shape == s.shape]
        if not any(np.array_equal(s[1:], o[:-1]) or np.array_equal(s, o) for o in later):
            kept.append(s)
    return kept


def _raster(ax: Axes, values: np.ndarray, name: str) -> None:
    """Zeros and ones as dots, other values as an image; `values` has the axes T, units."""
    values = np.abs(values) if np.iscomplexobj(values) else values
    if np.isin(values, (0, 1)).all():
        times, units = np.nonzero(values)
        ax.plot(times, units, ".", markersize=2.5, color=plt.rcParams["text.color"])
    else:
        shown = ax.imshow(values.T, aspect="auto", interpolation="nearest", origin="lower")
        _figure(ax).colorbar(shown, ax=ax, pad=0.01)
    ax.set(ylabel=_plain(name), ylim=(-0.5, values.shape[1] - 0.5))


__all__ = ["gradient_agreement", "memory", "traces"]
