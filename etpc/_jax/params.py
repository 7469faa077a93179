"""The parameters of JAX's equations, with types.

A new version of JAX changes names and layouts here, and no other module reads `eqn.params` by name. The one
exception are operations that only move data: `etpc.analyse._rules_moving` has a function for each, whose
keywords are the parameters.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
from jax.extend.core import primitives as prims

from ._program import Equation

Axes = tuple[int, ...]
Jaxpr = Any
"""A jaxpr, open or closed, which `flatten` takes."""


AnyEquation = Equation | jex.JaxprEqn
"""An equation of `flatten`, or of JAX."""


def _axes(axes: Sequence[Any]) -> Axes:
    return tuple(int(axis) for axis in axes)  # `vmap` leaves NumPy's integers


# --- programs inside of an equation ---


def is_jaxpr(value: Any) -> bool:
    """Whether a value is a traced function, with its constants or without."""
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)


def inner_jaxprs(eqn: AnyEquation) -> list[Jaxpr]:
    """All jaxprs of an equation: bodies of loops, branches, functions with derivatives of their own."""
    values: Iterator[Any] = itertools.chain.from_iterable(
        value if isinstance(value, tuple | list) else (value,) for value in eqn.params.values()
    )
    return [value for value in values if is_jaxpr(value)]


def grouped(eqn: AnyEquation) -> Jaxpr | None:
    """The body of an equation that only groups others, as `jit` does; `None` for other equations."""
    if eqn.primitive in (prims.jit_p, prims.remat_p):
        return eqn.params["jaxpr"]
    # `closed_call`, and `eval_jaxpr` of JAX 0.12: a call that has nothing but its body.
    return eqn.params["call_jaxpr"] if eqn.params.keys() == {"call_jaxpr"} else None


def custom_body(eqn: AnyEquation) -> Jaxpr | None:
    """The function itself, of a `custom_jvp` or `custom_vjp`; `None` for other equations."""
    if eqn.primitive in (prims.custom_jvp_call_p, prims.custom_vjp_call_p):
        return eqn.params["call_jaxpr"]
    return None


def is_used(jaxpr: Jaxpr) -> list[bool]:
    """Whether the results of a jaxpr depend on each of its inputs, as far as its equations tell."""
    body = getattr(jaxpr, "jaxpr", jaxpr)
    needed = {v for v in body.outvars if isinstance(v, jex.Var)}
    for eqn in reversed(body.eqns):
        if any(v in needed for v in eqn.outvars):
            needed.update(v for v in eqn.invars if isinstance(v, jex.Var))
    return [v in needed for v in body.invars]


def backward_rule(eqn: AnyEquation) -> Any:
    """The backward rule of a `custom_vjp`."""
    return eqn.params.get("bwd")


def branches(eqn: Equation) -> Sequence[Jaxpr]:
    """The branches of a `cond`, which its first operand numbers."""
    return eqn.params["branches"]


def sizes_of_parts(eqn: AnyEquation) -> Sequence[int]:
    """The sizes of the parts of a `split`."""
    return [int(size) for size in eqn.params["sizes"]]


class Scan(NamedTuple):
    """Operands are constants, then the carry, then the sequences; the results, the carry and sequences."""

    consts: int
    carry: int
    length: int
    reverse: bool
    body: Jaxpr


def scan(eqn: Equation) -> Scan:
    """The parameters of a `scan`."""
    params = eqn.params
    if "num_consts" in params:
        counts = params["num_consts"], params["num_carry"]
    else:  # from JAX 0.11 on
        consts, carry, _ = params["ft_in"].unpack()
        counts = len(consts), len(carry)
    return Scan(*counts, params["length"], params["reverse"], params["jaxpr"])


class While(NamedTuple):
    """Operands are the constants of the condition, then those of the body, then the carry."""

    cond_consts: int
    body_consts: int
    cond: Jaxpr
    body: Jaxpr


def while_loop(eqn: Equation) -> While:
    """The parameters of a `while`."""
    names = ("cond_nconsts", "body_nconsts", "cond_jaxpr", "body_jaxpr")
    return While(*(eqn.params[name] for name in names))


class ShardMap(NamedTuple):
    """Specs name the mesh axes that each leading axis of an operand or a result is split by."""

    body: Jaxpr
    mesh: Mapping[str, int]
    in_specs: Sequence[Any]
    out_specs: Sequence[Any]


def shard_map(eqn: Equation) -> ShardMap:
    """The parameters of a `shard_map`."""
    params = eqn.params
    return ShardMap(params["jaxpr"], params["mesh"].shape, params["in_specs"], params["out_specs"])


class LinearSolve(NamedTuple):
    """Operands are `consts` constants, of which the first `matvec_consts` are those of `matvec`, then `b`."""

    consts: int
    matvec_consts: int
    matvec: Jaxpr


def linear_solve(eqn: Equation) -> LinearSolve:
    """The parameters of a `linear_solve`, `A x = b`, where `matvec` is the product with A."""
    lengths = eqn.params["const_lengths"]
    return LinearSolve(sum(lengths), lengths.matvec, eqn.params["jaxprs"].matvec)


# --- contractions and convolutions ---


class ProductAxes(NamedTuple):
    """The axes of both operands that are summed, and those that are batched."""

    contract: tuple[Axes, Axes]
    batch: tuple[Axes, Axes]


def product(eqn: Equation) -> ProductAxes:
    """The axes of a `dot_general`, or of the product of a sparse matrix."""
    contract, batch = eqn.params["dimension_numbers"]
    return ProductAxes((_axes(contract[0]), _axes(contract[1])), (_axes(batch[0]), _axes(batch[1])))


def with_contraction(eqn: Equation, contract: tuple[Axes, Axes], **changes: Any) -> Equation:
    """A `dot_general` that sums other axes and batches none; `changes` are other fields of the equation."""
    params = {**eqn.params, "dimension_numbers": (contract, ((), ()))}
    return dataclasses.replace(eqn, params=params, **changes)


def operands_swapped(eqn: Equation) -> Equation:
    """A `dot_general` in which what is said of each of the two operands has changed places."""
    precision = eqn.params["precision"]
    if isinstance(precision, tuple):
        eqn = dataclasses.replace(eqn, params={**eqn.params, "precision": precision[::-1]})
    return dataclasses.replace(eqn, real=tuple(1 - n for n in eqn.real))


def has_algorithm(eqn: Equation) -> bool:
    """Whether a `dot_general` names an algorithm, which may treat its operands differently."""
    return isinstance(eqn.params["precision"], jax.lax.DotAlgorithm)


def sparse_shape(eqn: Equation) -> Axes:
    """The shape of the matrix in a product of a sparse matrix."""
    return tuple(eqn.params["lhs_spinfo"].shape)


class WindowAxis(NamedTuple):
    """One axis of a window that moves over an array."""

    stride: int
    padding: tuple[int, int]
    dilation: int
    window_dilation: int


class ConvolutionAxes(NamedTuple):
    """Specs are the axes of input, kernel and output: batch or output channel, channel, then positions."""

    input_spec: Axes
    kernel_spec: Axes
    output_spec: Axes
    windows: tuple[WindowAxis, ...]
    feature_groups: int
    batch_groups: int


def convolution(eqn: Equation) -> ConvolutionAxes:
    """The parameters of a `conv_general_dilated`."""
    params = eqn.params
    x, w, y = params["dimension_numbers"]
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    windows = itertools.starmap(WindowAxis, zip(*(params[name] for name in names), strict=True))
    groups = params["feature_group_count"], params["batch_group_count"]
    return ConvolutionAxes(_axes(x), _axes(w), _axes(y), tuple(windows), *groups)


# --- reductions ---


def reduced_axes(eqn: Equation) -> Axes:
    """The axes that a reduction sums over."""
    return _axes(eqn.params["axes"])


class Cumulative(NamedTuple):
    """The axis of a cumulative sum, and whether it starts at the end."""

    axis: int
    reverse: bool


def cumulative(eqn: Equation) -> Cumulative:
    """The parameters of a `cumsum` and the like."""
    return Cumulative(eqn.params["axis"], eqn.params["reverse"])


def window_sizes(eqn: Equation) -> Axes:
    """How many elements a window of a `reduce_window` has along each axis."""
    return _axes(eqn.params["window_dimensions"])


def windows(eqn: Equation) -> tuple[WindowAxis, ...]:
    """The axes of a `reduce_window`, or of its transpose."""
    params, ones = eqn.params, (1,) * len(eqn.params["window_dimensions"])
    columns = (
        params["window_strides"],
        params["padding"],
        params.get("base_dilation", ones),
        params.get("window_dilation", ones),
    )
    return tuple(itertools.starmap(WindowAxis, zip(*columns, strict=True)))


def summed_axes(eqn: Equation) -> Axes | None:
    """The axes that a `psum` sums over; `None` where these are of devices, or are summed in groups."""
    axes = eqn.params["axes"]
    if eqn.params["axis_index_groups"] is None and all(isinstance(a, int) for a in axes):
        return _axes(axes)
    return None


def fft_rank(eqn: Equation) -> int:
    """Over how many axes, the last ones, a Fourier transform goes."""
    return len(eqn.params["fft_lengths"])


def solves_from_left(eqn: Equation) -> bool:
    """Whether a `triangular_solve` is of `A x = b`, and not of `x A = b`."""
    return eqn.params["left_side"]


# --- reads and writes by index ---


class Gather(NamedTuple):
    """Where a `gather` reads: the axes of the operand that indices count, and those of the slices."""

    indexed: Axes
    collapsed: Axes
    offset: Axes
    """Axes of the result that are of the slices."""
    batched: Axes
    sizes: Axes
    clips: bool
    """Whether an index beyond the end reads the last row, and not a fill value."""


def gather(eqn: Equation) -> Gather:
    """The parameters of a `gather`."""
    dims = eqn.params["dimension_numbers"]
    return Gather(
        _axes(dims.start_index_map),
        _axes(dims.collapsed_slice_dims),
        _axes(dims.offset_dims),
        _axes(getattr(dims, "operand_batching_dims", ())),
        slice_sizes(eqn),
        eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP,
    )


def slice_sizes(eqn: Equation) -> Axes:
    """What a `gather` or a `dynamic_slice` reads along each axis of its operand."""
    return _axes(eqn.params["slice_sizes"])


def with_fill_value(eqn: Equation, value: int) -> Equation:
    """A `gather` that reads this value outside of its operand."""
    return dataclasses.replace(eqn, params={**eqn.params, "fill_value": value})


def scattered_axes(eqn: Equation) -> Axes:
    """The axes of the operand that the indices of a `scatter` count."""
    return _axes(eqn.params["dimension_numbers"].scatter_dims_to_operand_dims)


def as_scatter_add(eqn: Equation) -> Equation:
    """A `scatter` of any kind as one that adds."""
    params = {**eqn.params, "update_jaxpr": None, "update_consts": ()}
    return dataclasses.replace(eqn, primitive=prims.scatter_add_p, params=params)


# --- for texts and digests ---


def shown_name(eqn: Equation) -> str:
    """The name of a user's function, where an equation has one, or else of its primitive."""
    return str(eqn.params.get("name", eqn.primitive.name))


_NO_MEANING = {"name", "debug", "debug_info", "num_consts", "num_carry", "ft_in", "ft_out"}
"""Names for reports, and what has other names in other versions of JAX, which `scan` reads."""


def meaning(eqn: Equation) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The parameters that say what an equation computes, and how many operands of a `scan` are of which sort."""
    counts = scan(eqn)[:2] if eqn.primitive is prims.scan_p else ()
    return {k: v for k, v in eqn.params.items() if k not in _NO_MEANING}, counts
