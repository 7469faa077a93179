"""What does a rule lose on a TPU, where products are computed from factors rounded to bfloat16?

The gradient of a sequence by each rule, with its products as a TPU computes them (`benchmarks.bfloat16`), against the
same program in float64. The products of the model are exact to float32 (highest) or rounded (default), and so are those
of traces and credit, which `etpc.Target(platform, precision=...)` says. The error of a parameter is that of its whole
gradient, relative; seeds draw weights and data. Nothing runs on a TPU.
"""

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console

import etpc
from benchmarks import bfloat16, cells, network
from benchmarks.network import loss
from benchmarks.table import Column, Table
from etpc.algorithms import Algorithm

WINDOW = 10
QUICK: Any = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
"""Options of XLA for programs that run a few times, whose time is that of their compilation."""
HIGHEST, TRACES, MODEL, DEFAULT = "highest", "traces", "model", "default"
SETTINGS = {
    HIGHEST: ("highest", "highest"),
    TRACES: ("highest", "default"),
    MODEL: (None, "highest"),
    DEFAULT: (None, "default"),
}
"""The precision of the model's products, `None` for a model that says none, and of those of traces and credit."""
HEADINGS = {HIGHEST: "none", TRACES: "traces", MODEL: "model", DEFAULT: "all"}

TABLE = Table(
    "What does a rule lose by products of bfloat16?",
    [
        Column("network", "network"),
        Column("rule", "rule"),
        *(
            column
            for key, heading in HEADINGS.items()
            for column in (
                Column(f"{key}_median", f"{heading}:\nmedian", ".1e"),
                Column(f"{key}_max", "max", ".1e"),
            )
        ),
    ],
    [
        "relative errors to the same program in float64: median and maximum over parameters and seeds.",
        "none: all products are of highest precision; traces: those of traces and credit are rounded.",
        "model: those of the forward pass are rounded, as of a model without a precision of its own; all: both.",
        "a dash: the rule does not apply to the network, or has no products but those of the model.",
        "a factor is rounded to 8 significant bits, a relative error of at most 3.9e-3.",
    ],
)

RULES: Mapping[str, Algorithm | None] = {
    "D-RTRL": etpc.D_RTRL(window=WINDOW),
    "D-RTRL, each step": etpc.D_RTRL(window=1),
    "ES-D-RTRL 0.9": etpc.ES_D_RTRL(decay=0.9, window=WINDOW),
    "ES-D-RTRL rank 4": etpc.ES_D_RTRL(rank=4, window=WINDOW),
    "CreditRTRL": etpc.CreditRTRL(window=WINDOW),
    "SnAp-2": etpc.SnAp(2),
    "RTRL": etpc.RTRL(window=WINDOW),
    "e-prop": etpc.EProp(window=WINDOW),
    "RFLO": etpc.RFLO(window=WINDOW),
    "OSTL": etpc.OSTL(window=WINDOW),
    "OTTT": etpc.OTTT(window=WINDOW),
    "OTPE": etpc.OTPE(window=WINDOW),
    "KF-RTRL": etpc.KFRTRL(window=WINDOW),
    "OK, rank 2": etpc.OK(2, window=WINDOW),
    "UORO": etpc.UORO(window=WINDOW),
    "TBPTT": etpc.TBPTT(2 * WINDOW, every=WINDOW),
    "BPTT": None,
}
FEW = {name: RULES[name] for name in ("D-RTRL", "OTPE", "BPTT")}
Draw = tuple[Any, Array, Array]
"""A network, inputs [T, B, I] and targets [T, B]."""


def draw(name: str, size: int, steps: int, batch: int, seed: int) -> Draw:
    """LIF neurons with a leaky readout, or GRU or LRU units with a linear one."""
    if name == "LIF":
        problem = network.Problem.make(size, steps, batch, seed)
        return problem.model, problem.xs, problem.targets
    example = cells.example(name, size, steps, batch, seed)
    return example.model, example.xs, example.targets


NETWORKS = ("LIF", "GRU", "LRU")


def run(
    console: Console,
    size: int,
    steps: int,
    batch: int,
    seeds: int,
    only: Collection[str] | None = None,
    rules: Mapping[str, Algorithm | None] = RULES,
) -> list[dict[str, Any]]:
    """A row for each network and rule."""
    console.print(f"\nprecision: N={size} B={batch} T={steps}")
    rows: list[dict[str, Any]] = []
    for name in (name for name in NETWORKS if only is None or name in only):
        with jax.enable_x64(True):
            like = draw(name, size, 1, batch, 0)[0]
        with jax.enable_x64(False):
            draws = [draw(name, size, steps, batch, seed) for seed in range(seeds)]
        with jax.enable_x64(True):
            exact = [_float64(drawn, like) for drawn in draws]
        for rule, algorithm in rules.items():
            row = {"network": name, "rule": rule, **errors(algorithm, draws, exact)}
            said = {
                key: f"{row[f'{key}_median']:.1e}" for key in SETTINGS if f"{key}_median" in row
            }
            console.print(f"  {name}, {rule}: {said or 'does not apply'}")
            rows.append(row)
    about = f"N={size} B={batch} T={steps} W={WINDOW}, {seeds} seeds"
    TABLE.show(console, rows, about)
    return [{"size": size, "batch": batch, "steps": steps, "seeds": seeds, **row} for row in rows]


def errors(
    algorithm: Algorithm | None, draws: Sequence[Draw], exact: Sequence[Draw]
) -> dict[str, Any]:
    """The median and the largest error with each setting, and the products of the program, all and rounded; nothing
    where the rule does not apply.

    - `algorithm`: `None` for BPTT, whose products are all those of the model.
    - `exact`: the draws in float64.
    """
    settings = {key: of for key, of in SETTINGS.items() if algorithm is not None or key != TRACES}
    try:
        with jax.enable_x64(True):
            want = _gradients(algorithm, exact, "highest", "highest")[0]
    except etpc.AlgorithmError:
        return {}
    row: dict[str, Any] = {}
    with jax.enable_x64(False):
        for key, (of_model, of_traces) in settings.items():
            got, counts = _gradients(algorithm, draws, of_model, of_traces)
            found = [e for a, b in zip(got, want, strict=True) for e in _errors(a, b)]
            row |= {f"{key}_median": statistics.median(found), f"{key}_max": max(found)}
            row[f"{key}_products"] = list(counts)
    return row


def _gradients(
    algorithm: Algorithm | None, draws: Sequence[Draw], of_model: str | None, of_traces: Any
) -> tuple[list[dict[str, np.ndarray]], tuple[int, int]]:
    """The gradients of all draws by one compiled function, and the products of its program, all and rounded."""
    model, xs, _ = draws[0]
    batch = xs.shape[1]
    with jax.default_matmul_precision(of_model):  # which the products of the model then have
        if algorithm is None:
            gradient = partial(_bptt, batch)
        else:
            target = etpc.Target("tpu", precision=of_traces)
            compiled = etpc.compile(model, algorithm, inputs=xs[0, 0], target=target)
            by_rule, carry = compiled.value_and_grad(loss, "sum"), compiled.init(batch)
            gradient = lambda model, xs, targets: by_rule(model, xs, targets, carry)[1]
        of_arrays = _of_arrays(gradient, model)
        arguments = [(_arrays(model), xs, targets) for model, xs, targets in draws]
        program, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arguments[0])
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shape)]
    rounded = jax.jit(partial(bfloat16.evaluate, program), compiler_options=QUICK)
    results = [rounded(jax.tree.leaves(given)) for given in arguments]
    grads = [dict(zip(names, map(np.asarray, found), strict=True)) for found in results]
    return grads, bfloat16.products(program)


def _bptt(batch: int, model: Any, xs: Array, targets: Array) -> Any:
    return etpc.bptt(model, xs, targets, loss, batch_size=batch, reduction="sum")[1]


def _of_arrays(gradient: Callable[[Any, Array, Array], Any], model: Any) -> Callable[..., Any]:
    static = eqx.partition(model, eqx.is_array)[1]
    return lambda arrays, xs, targets: _arrays(gradient(eqx.combine(arrays, static), xs, targets))


def _arrays(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_array)


def _float64(drawn: Draw, like: Any) -> Draw:
    """The same numbers, in a model that was made for float64."""
    wide = lambda a: (
        a.astype(jnp.promote_types(a.dtype, jnp.float64)) if eqx.is_inexact_array(a) else a
    )
    model, xs, targets = drawn
    leaves = [wide(leaf) for leaf in jax.tree.leaves(model)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), wide(xs), targets


def _errors(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> Iterator[float]:
    """Of each parameter that has a gradient."""
    for name, reference in want.items():
        norm = np.linalg.norm(reference)
        if norm > 0:
            yield float(np.linalg.norm(got[name] - reference) / norm)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: the medians of all rules, from the least to the most, and the rule that has that one."""
    headings = [HEADINGS[key] for key in SETTINGS]
    lines = [f"| network | {' | '.join(headings)} |", "| --- |" + " --- |" * len(headings)]
    for name in dict.fromkeys(row["network"] for row in rows):
        found = [name]
        for key in SETTINGS:
            of_rules = {
                row["rule"]: row[f"{key}_median"]
                for row in rows
                if row["network"] == name and f"{key}_median" in row
            }
            most = max(of_rules, key=lambda rule: of_rules[rule])
            found.append(f"{min(of_rules.values()):.1e} to {of_rules[most]:.1e} ({most})")
        lines.append(f"| {' | '.join(found)} |")
    return "\n".join(lines)
