"""Operations of the C writer against JAX, on the edges of each dtype that they take; undefined behaviour is caught."""

import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc
from etpc.export.c._program import C_OF_NUMPY
from etpc.export.c._write import OPERATIONS
from tests.device.test_c import Learner
from tests.device.test_exported import text_of

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
SANITIZED = ("-O0", "-fsanitize=undefined,float-cast-overflow")

BOOL, FLOATS, COMPLEX = ("bool",), ("float32", "float64"), ("complex64", "complex128")
SIGNED, UNSIGNED = (tuple(f"{u}int{n}" for n in (8, 16, 32, 64)) for u in ("", "u"))
INTEGERS = SIGNED + UNSIGNED
REAL, NUMBERS, ALL = INTEGERS + FLOATS, INTEGERS + FLOATS + COMPLEX, tuple(C_OF_NUMPY)


def edges(dtype: str, finite: bool = False) -> np.ndarray:
    """Numbers at the limits of their own dtype and of others. XLA makes 0 of denormal ones, so there are none."""
    if dtype == "bool":
        return np.array([False, True])
    if dtype in INTEGERS:
        of = np.iinfo(dtype)
        numbers = {of.min, of.min + 1, -1, 0, 1, 2, 7, 8, 31, 32, 63, 64, of.max - 1, of.max}
        return np.array(sorted(n for n in numbers if of.min <= n <= of.max), dtype)
    of = np.finfo(dtype)
    if dtype in COMPLEX:
        parts = np.array([0, -0.0, 0.3, 1, -1.5, 8, -12, np.inf, -np.inf, np.nan], of.dtype)
        numbers = np.empty((10, 10), dtype)
        numbers.real, numbers.imag = parts[:, None], parts
        return numbers[:7, :7].reshape(-1) if finite else numbers.reshape(-1)
    sizes = [0, of.tiny, 0.3, 0.5, 1, 1.5, 2.5, 90, 127.5, 255.9, 300, 1e5]
    sizes += [*(2.0**n for n in (7, 8, 15, 16, 31, 32, 63, 64)), of.max, np.inf, np.nan]
    return np.array([*sizes, *(-x for x in sizes)], of.dtype)


def each(function: Any, dtypes: tuple[str, ...], count: int = 1, finite: bool = False) -> Any:
    """A function of arrays of one dtype, and for each dtype all combinations of edges."""
    grids = [np.meshgrid(*[edges(d, finite)] * count, indexing="ij") for d in dtypes]
    return function, [[a.reshape(-1) for a in grid] for grid in grids]


def at_places(places: Any) -> Any:
    x = jnp.arange(9.0)
    slices = [lax.dynamic_slice(x, (i,), (2,)) for i in places]
    updated = [lax.dynamic_update_slice(x, jnp.ones(2), (i,)) for i in places]
    return slices, updated, [x.at[places].get(mode=mode) for mode in ("clip", "fill")]


def written(places: Any) -> Any:
    """Numbers, and two side by side, of which one may be outside."""
    x, numbers = jnp.zeros(9), lax.ScatterDimensionNumbers((1,), (), (0,))
    updates = jnp.arange(2.0 * places.size).reshape(-1, 2)
    return x.at[places].add(1), lax.scatter_add(x, places[:, None], updates, numbers)


def rounded(a: Any) -> Any:
    """No mantissa leaves no way to write NaN: XLA gives NaN or infinity by its flags, so such numbers are left out."""
    bits = 8 if a.dtype == jnp.float32 else 11
    of_powers = lax.reduce_precision(jnp.where(jnp.isnan(a), 1, a), bits, 0)
    return [of_powers, *(lax.reduce_precision(a, bits, n) for n in (1, 7, 10, 23, 52, 60))]


def compared(a: Any, b: Any) -> Any:
    ordered = () if a.dtype.kind == "c" else (lax.lt, lax.le, lax.gt, lax.ge)
    zero = lax.full_like(a, 0)
    return [f(*of) for f in (lax.eq, lax.ne, *ordered) for of in ((a, b), (a, a), (a, zero))]


def chosen(a: Any, b: Any) -> Any:
    return jnp.where(a == b, a, b), lax.select(a != b, b, a)


def converted(a: Any) -> Any:
    return [a.astype(d) for d in (COMPLEX if a.dtype.kind == "c" else ALL)]


def bits(a: Any) -> Any:
    same = [d for d in REAL if np.dtype(d).itemsize == a.dtype.itemsize]
    return [lax.bitcast_convert_type(a, d) for d in same]


def products(a: Any) -> Any:
    """Sums of small numbers, so that their order makes no difference, and single products of all."""
    small = jnp.where(jnp.abs(a) < 100, a, 0) if a.dtype.kind in "fc" else a
    wide = {"int8": "int32", "uint8": "int64", "float32": "float64"}.get(a.dtype.name)
    return lax.dot(small, small[::-1], preferred_element_type=wide), a[:, None] @ a[None]


def reduced(a: Any) -> Any:
    return jnp.max(a), jnp.min(a), jnp.argmax(a), jnp.argmin(a), jnp.any(a), jnp.sum(a[3:4])


def windows(a: Any) -> Any:
    low = np.array(np.iinfo(a.dtype).min if a.dtype.kind in "iu" else -np.inf, a.dtype)
    return lax.reduce_window(a, low, lax.max, (3,), (2,), [(1, 2)], None, (2,))


def moved(a: Any) -> Any:
    rows = jnp.broadcast_to(a[:, None], (a.size, 3))
    parts = lax.pad(a, a[0], [(-1, 2, 1)]), rows[1:], rows.reshape(3, -1), rows.T, a[::-1]
    counted = lax.iota(a.dtype, 300) if a.dtype != bool else a
    constants = jnp.asarray(edges(a.dtype.name)), jnp.full(3, edges(a.dtype.name)[0])
    return jnp.concatenate([parts[0], a]), *parts, lax.optimization_barrier(a), counted, constants


def controlled(a: Any) -> Any:
    """A loop, branches, a function that is called, and one that is composed of others."""
    loop = lax.fori_loop(0, 3, lambda n, x: x[::-1] + n, a)
    branches = [jnp.negative, jnp.abs, jnp.sign]
    taken = [lax.switch(a[0].astype(int) + n, branches, a) for n in (-5, 0, 1, 2, 9)]
    return loop, taken, jnp.clip(a, 1, 2), lax.erf(a)


def nearest(way: str) -> Any:
    return lambda a: lax.round(a, lax.RoundingMethod[way])


def also_zero(function: Any) -> Any:
    return lambda a, b: (function(a, b), function(a, lax.full_like(a, 0)))


BITS = BOOL + INTEGERS
CASES = {
    **{n: each(f, NUMBERS, 2) for n, f in {
        "add": lax.add, "subtract": lax.sub, "multiply": lax.mul, "divide": lax.div,
    }.items()},
    **{n: each(f, BITS, 2) for n, f in {
        "and": lax.bitwise_and, "or": lax.bitwise_or, "xor": lax.bitwise_xor,
    }.items()},
    **{n: each(getattr(lax, n), INTEGERS, 2) for n in (
        "shift_left", "shift_right_logical", "shift_right_arithmetic",
    )},
    **{n: each(f, FLOATS + COMPLEX) for n, f in {
        "exponential": lax.exp, "exponential_minus_one": lax.expm1, "log": lax.log, "log_plus_one": lax.log1p,
        "logistic": lax.logistic, "sqrt": lax.sqrt, "rsqrt": lax.rsqrt, "sine": lax.sin, "cosine": lax.cos,
    }.items()},
    **{n: each(f, FLOATS) for n, f in {
        "is_finite": lax.is_finite, "cbrt": lax.cbrt, "floor": lax.floor, "ceil": lax.ceil, "reduce_precision": rounded,
        "round_nearest_even": nearest("TO_NEAREST_EVEN"), "round_nearest_afz": nearest("AWAY_FROM_ZERO"),
        "while": controlled,
    }.items()},
    **{n: each(f, FLOATS + COMPLEX, k, finite=True) for n, f, k in (  # else libraries of C differ
        ("tanh", lax.tanh, 1), ("tan", lax.tan, 1), ("power", lax.pow, 2),
    )},
    "remainder": each(lax.rem, REAL, 2), "clamp": each(lax.clamp, REAL, 3), "atan2": each(lax.atan2, FLOATS, 2),
    "maximum": each(also_zero(lax.max), BOOL + REAL, 2), "minimum": each(also_zero(lax.min), BOOL + REAL, 2),
    "compare": each(compared, ALL, 2), "select": each(chosen, ALL, 2), "convert": each(converted, ALL),
    "not": each(lax.bitwise_not, BITS), "negate": each(lax.neg, NUMBERS), "sign": each(lax.sign, NUMBERS),
    "abs": each(lax.abs, SIGNED + FLOATS + COMPLEX), "bitcast_convert": each(bits, REAL),
    "real": each(lax.real, COMPLEX), "imag": each(lax.imag, COMPLEX), "complex": each(lax.complex, FLOATS, 2),
    "dot_general": each(products, NUMBERS, finite=True), "reduce": each(reduced, BOOL + REAL),
    "reduce_window": each(windows, REAL), "gather": each(at_places, INTEGERS), "scatter": each(written, INTEGERS),
    "broadcast_in_dim": each(moved, ALL),
}  # fmt: skip
"""By an operation that is in each of them, a function of arrays of one dtype and the arrays."""


def as_it_should_be(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Bit for bit, but for the rounding of floats, for the bits of NaN, and for the signs of complex zeros."""
    if wanted.dtype.kind in "biu":
        return got == wanted
    if wanted.dtype.kind == "c":
        sizes = np.where(np.isfinite(wanted), np.abs(wanted), 0)
        return near(got.real, wanted.real, sizes) & near(got.imag, wanted.imag, sizes)
    is_nan = np.isnan(got) & np.isnan(wanted)
    return near(got, wanted, 0) & (is_nan | (np.signbit(got) == np.signbit(wanted)))


def near(got: np.ndarray, wanted: np.ndarray, size: Any) -> np.ndarray:
    of = np.finfo(wanted.dtype)
    with np.errstate(all="ignore"):
        rounding = 1024 * of.eps * np.maximum(np.abs(wanted), size) + of.tiny
        close = np.abs(got - wanted) <= rounding
    return (got == wanted) | close | (np.isnan(got) & np.isnan(wanted))


@pytest.mark.slow
def test_edges(tmp_path: Path, capfd: Any) -> None:
    functions, data, wanted = {}, {}, []
    with jax.enable_x64(True):
        for name, (function, grids) in CASES.items():

            def one(state: Any, *xs: Any, function: Any = function, count: int = len(grids[0])):
                of_dtypes = [xs[n : n + count] for n in range(0, len(xs), count)]
                return state, [function(*arrays) for arrays in of_dtypes]

            arrays = [a for grid in grids for a in grid]
            functions[f"f_{name}"] = (one, *arrays)
            data[f"f_{name}"] = {f"x{n}": a for n, a in enumerate(arrays)}
            found = jax.tree_util.tree_leaves_with_path(jax.jit(one)(0, *arrays)[1])
            wanted += [(name, grids[path[0].idx], path[1:], np.asarray(y)) for path, y in found]
        exported = etpc.export_functions(jnp.zeros(1), **functions)
    in_c = Learner(exported, tmp_path, *SANITIZED)
    given = [y for name, arrays in data.items() for y in in_c.call(name, **arrays).values()]
    problems = list[Any]()
    for got, (name, grid, path, y) in zip(given, wanted, strict=True):
        wrong = np.flatnonzero(~as_it_should_be(got, y))[:3]
        of = [a for a in grid if a.shape == y.shape]
        shown = [(got.flat[k], y.flat[k], *(a[k] for a in of)) for k in wrong]
        problems += [(name, jax.tree_util.keystr(path), grid[0].dtype, shown)] if shown else []
    assert not problems, f"C, JAX, and of what: {problems}"
    assert "runtime error" not in capfd.readouterr().err
    texts = {name: text_of(code) for name, code in exported.modules.items()}
    for operation in OPERATIONS:
        own = texts.get(f"f_{operation.split('.')[1]}.mlirbc")
        name = operation.replace("func.", "")
        assert re.search(rf"\b{name}\b", own or "".join(texts.values())), operation
