"""Charts of a program: how good its gradients are, its traces over time, what rules train and what memory they take.

Needs the extra `plot` (Matplotlib). Each function draws into new axes or into those that it is given,
and follows Matplotlib's style. The picture of a program's graph is in [`etpc.draw`][].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .checking.compare import Report
from .checking.suggest import Suggestion
from .errors import InputError, InputTypeError, SelectionError, checked_count, not_installed
from .estimating.estimate import Estimate
from .plan import OpPlan
from .run import Carry, Program
from .trace import is_spike

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(not_installed("`etpc.plot`", "Matplotlib", "plot")) from error

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
    parameters; `etpc.InputTypeError` for anything else.
    """
    for report in reports.values() if isinstance(reports, Mapping) else [reports]:
        if not isinstance(report, Report):
            raise InputTypeError(
                "gradient_agreement draws a report of `etpc.verify`, or a dict from labels to reports, and no "
                f"{type(report).__name__}. Run `etpc.verify` with each algorithm."
            )
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
    units: int = 5,
    axes: Sequence[Axes] | np.ndarray | None = None,
) -> Figure:
    """Eligibility traces over time, below the input and the spikes that make them.

    The model runs one example from the initial state. Shown are the inputs, the spikes of its
    neurons (the states that the operation reaches, where there are no spikes), and entries of the
    trace of one weight operation: of the whole trace, of a low-rank one as a product of its factors, or
    of both factors of a smoothed one.

    **Arguments:**

    - `xs`: inputs of T steps of one example, `[T, ...]`.
    - `op`: which one, by its place in `program.ops` or by the path of its parameter.
    - `units`: how many entries, large ones in the mean over the steps. The legend has their indices: the state, in
        the order of the title, then the output and the input of the weight, as far as the trace has these axes.
    - `axes`: three axes, one below the other; four for a smoothed trace.

    **Returns** the figure.

    **Raises** `etpc.SelectionError` where there is no such operation; `etpc.InputError` where the
    inputs do not fit.
    """
    p, units = _find(program, op), checked_count("units", units)
    step = program.plan.analysis.step
    assert p.node is not None
    place = program.ir.traces.index(p.node)
    functions = [e for e in step.equations if is_spike(e)]
    parameters = step.model_leaves.split(model)
    reached = [step.state_paths.index(path) for path in p.states]

    def carried(carry: Carry) -> list[Any]:
        return [*step.state_leaves.split(carry.state), *carry.filtered]

    def shown(carry: Carry) -> dict[str, jax.Array]:
        return program.plan.shown(p, carry.traces[place])

    start = program.init()
    leaves = program.arguments.inputs(xs, start)
    inputs = step.input_leaves.join(leaves)

    def added(before: Any, x: Any) -> tuple[Any, None]:
        carry, total = before
        _, carry = program(model, x, carry)
        sizes = jax.tree.map(jnp.abs, shown(carry))
        return (carry, jax.tree.map(jnp.add, total, sizes)), None

    zeros = jax.tree.map(jnp.zeros_like, shown(start))
    (_, total), _ = jax.lax.scan(added, (start, zeros), inputs)
    chosen = {name: _largest(np.asarray(array), units) for name, array in total.items()}

    def body(carry: Carry, x: Any) -> Any:
        leaves = step.with_begins(step.input_leaves.split(x), carry.fresh)
        env = step.values(parameters, leaves, carried(carry))
        spikes = [env[v].reshape(-1) for e in functions for v in e.outputs]
        _, carry = program(model, x, carry)
        states = carried(carry)
        entries = [a[tuple(np.transpose(chosen[name]))] for name, a in shown(carry).items()]
        return carry, (spikes, [states[i].reshape(-1) for i in reached], entries)

    _, recorded = jax.lax.scan(body, start, inputs)
    spikes, states, entries = jax.tree.map(np.asarray, recorded)
    spikes = _distinct(spikes)

    sizes = [1.0, 1.0, *(1.2 for _ in chosen)]
    count = len(sizes)
    drawn = _axes(axes, count, 1, sharex=True, height_ratios=sizes, figsize=(8, 1.7 * count))
    _raster(drawn[0], np.concatenate([x.reshape(len(x), -1) for x in leaves], 1), "inputs")
    what = "spikes" if spikes else ", ".join(p.states)
    _raster(drawn[1], np.concatenate(spikes or states, 1), what)
    for ax, values, (name, indices) in zip(drawn[2:], entries, chosen.items(), strict=True):
        for line, index in zip(values.T, indices, strict=True):
            ax.plot(np.arange(len(line)), line, label=str(list(index)))
        ax.set(ylabel=_plain(name), xlim=(-0.5, len(values) - 0.5))
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="entry")
    drawn[-1].set_xlabel("step")
    title = _plain(f"{p.path}, {p.kind}: trace of {', '.join(p.states)}")
    drawn[0].set_title(title, loc="left")
    return _figure(drawn[0])


def suggestion(found: Suggestion, *, axes: Sequence[Axes] | np.ndarray | None = None) -> Figure:
    """Scores of the rules while they train, over the examples and over the seconds that they took.

    Each line is of the learning rate that the table has, and the mean over the seeds that were judged there; it ends in
    the score of the table, with its spread. The suggested rule has the thick one.

    **Arguments:**

    - `found`: from [`etpc.suggest`][].
    - `axes`: two axes.

    **Returns** the figure.

    **Raises** `etpc.InputError` where no rule has trained.
    """
    rows = [row for row in found.rows if row.curve]
    if not rows:
        raise InputError("No rule of the suggestion has trained. Give `etpc.suggest` more time.")
    by_examples, by_seconds = _axes(axes, 1, 2, sharey=True, figsize=(9, 3.5))
    for n, row in enumerate(rows):
        examples, seconds, scores = np.transpose(row.curve)
        style: dict[str, Any] = dict(color=f"C{n}", linewidth=3 if row.rule == found.rule else 1)
        by_examples.plot(examples, scores, "-o", markersize=3, label=_plain(row.name), **style)
        by_seconds.plot(seconds, scores, "-o", markersize=3, **style)
        if row.seeds:
            by_examples.errorbar(examples[-1], row.score, row.spread, fmt="none", ecolor=f"C{n}")
    by_examples.set(xlabel="examples", ylabel="held-out score", xscale="symlog")
    by_seconds.set(xlabel="seconds", xscale="symlog")
    figure = _figure(by_examples)
    handles = by_examples.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def estimate(found: Estimate, *, axes: Sequence[Axes] | np.ndarray | None = None) -> Figure:
    """Memory over the number of steps, for BPTT and each rule, below the line of what there is.

    A cross is a program that does not fit. Inputs and targets are in all bytes; dotted is what they take alone.

    **Arguments:**

    - `found`: from [`etpc.estimate`][], with several numbers of steps.
    - `axes`: one axis.

    **Returns** the figure.
    """
    (ax,) = _axes(axes, 1, 1, figsize=(6.5, 3.8))
    for n, name in enumerate(dict.fromkeys(row.name for row in found.rows)):
        rows = [row for row in found.rows if row.name == name and row.peak]
        ax.plot(
            [r.steps for r in rows], [r.peak or 0 for r in rows], color=f"C{n}", label=_plain(name)
        )
        for row in rows:
            ax.plot(row.steps, row.peak or 0, "o" if row.fits else "x", color=f"C{n}")
    data = sorted({(row.steps, row.data) for row in found.rows})
    ax.plot(*np.transpose(data), ":", color="grey", label="data alone")
    ax.axhline(found.memory, color="grey", linewidth=1, label=_plain(f"memory of {found.chip}"))
    ax.set(xscale="log", yscale="log", xlabel="steps", ylabel="bytes on each device")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
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


def _find(program: Program, op: int | str) -> OpPlan:
    names = program.plan.analysis.step.model_leaves.paths
    for n, p in enumerate(program.ops):
        if op in (n, p.path, *(names[i] for i in p.op.parameters)):
            return p
    paths = [p.path for p in program.ops]
    raise SelectionError(
        f"The program has no traced operation {op!r}. It has {len(paths)}: {'; '.join(paths)}."
    )


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


__all__ = ["estimate", "gradient_agreement", "suggestion", "traces"]
