"""What the numbers in the nodes of a NIR graph may be."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import nir  # pyright: ignore[reportMissingImports]
import numpy as np

from etpc.errors import InputError, raise_together
from etpc.trace import is_complex

from ._model import written

TIMES = ("tau", "tau_mem", "tau_syn")
PARAMETERS = (
    *("r", *TIMES, "v_leak", "v_threshold", "v_reset", "w_in"),
    *("threshold", "scale", "weight", "bias"),
)
LEAST = {"kernel_size": 1, "stride": 1, "dilation": 1, "groups": 1, "padding": 0}
"""The smallest value of each setting of a convolution or a pool."""
DIMENSIONS = {nir.Conv1d: 1, nir.Conv2d: 2, nir.SumPool2d: 2, nir.AvgPool2d: 2}
MOST = 2**31 - 1


def check_values(nodes: Mapping[tuple[str, ...], Any]) -> None:
    """**Raises** `InputError` with the names of the nodes whose numbers mean nothing."""
    raise_together(
        (
            f"The node {written(path)} ({type(node).__name__}) has {problem}"
            for path, node in nodes.items()
            for problem in _problems(node)
        ),
        InputError,
    )


def parameters_of(node: Any) -> dict[str, Any]:
    """The parameters of a node, in its own order. A bias may be missing."""
    values = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    absent = [name for name, value in values.items() if value is None and name == "bias"]
    return {n: v for n, v in values.items() if n in PARAMETERS and n not in absent}


def _problems(node: Any) -> Iterator[str]:
    shapes = {}
    for name, value in parameters_of(node).items():
        problem = _no_number(name, value)
        if problem:
            yield problem
        else:
            shapes[name] = np.shape(value)
    if "r" in shapes and len({s for s in shapes.values() if s}) > 1:  # a neuron
        text = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        yield f"parameters of several shapes: {text}. Give them one shape, or single numbers."
    dimensions = DIMENSIONS.get(type(node))
    if dimensions and len(shapes.get("weight", range(dimensions + 2))) != dimensions + 2:
        yield f"a weight of shape {list(shapes['weight'])}. Give it {dimensions + 2} axes."
    for name, least in LEAST.items():
        value = getattr(node, name, least)
        if name == "padding" and isinstance(value, str) and value in ("same", "valid"):
            continue
        count = 1 if name == "groups" else dimensions
        if not _whole(value, least) or np.shape(value) not in ((), (1,), (count,)):
            several = "a whole number" if count == 1 else f"{count} whole numbers, or one,"
            yield f"{name} = {value!r}. Give it {several} of at least {least}."
    if isinstance(node, nir.Delay):
        problem = _no_number("delay", node.delay, np.float64)
        if problem:
            yield problem


def _no_number(name: str, value: Any, dtype: Any = None) -> str | None:
    """What is wrong with the values of a parameter, in the precision that it is computed in."""
    array = np.asarray(value)
    if array.dtype == object or not jnp.issubdtype(array.dtype, jnp.number):
        return f"{name} = {value!r}. Give it an array of real numbers."
    if is_complex(array):
        return f"{name} of {array.dtype}. Give it real numbers."
    dtype = jnp.result_type(float) if dtype is None else dtype
    with np.errstate(over="ignore", under="ignore"):
        cast = array.astype(dtype)
    wrong = ~np.isfinite(cast) | (
        cast <= 0 if name in TIMES else cast < 0 if name == "delay" else False
    )
    if not wrong.any():
        return None
    place = f" at {list(map(int, np.argwhere(wrong)[0]))}" if array.ndim else ""
    wanted = {"delay": " of at least 0, in seconds", **dict.fromkeys(TIMES, " above 0, in seconds")}
    return (
        f"{name} = {cast[wrong][0]:g}{place} in {np.dtype(dtype)}. Give it finite numbers"
        f"{wanted.get(name, '')}."
    )


def _whole(value: Any, least: int) -> bool:
    """Whether a setting consists of whole numbers that can be counted to."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        return False
    return bool(np.all((array >= least) & (array <= MOST) & (array == np.round(array))))
