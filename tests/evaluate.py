"""Runs JAX programs in NumPy, without compiling them: for programs that run once, on a handful of numbers.

`run(function)(*args)` traces `function` and evaluates its jaxpr one operation after the other. XLA takes a second to
compile what takes NumPy some milliseconds. An operation that is not in the table below is run by JAX itself. Values
are those of XLA up to rounding; `tests.test_grammar` compares the two.
"""

import functools
import itertools
import math

import equinox as eqx
import jax
import jax.extend.core as jex
import numpy as np
import scipy.special

RULES = {}


def run(function):
    """`function`, from PyTrees to a PyTree, traced once for each structure of arguments, and evaluated in NumPy."""
    traced = {}

    def call(*args):
        arrays, static = eqx.partition(args, lambda a: eqx.is_array(a) and not is_key(a))
        leaves, tree = jax.tree.flatten(arrays)
        leaves = [to_numpy(a) for a in leaves]
        key = tree, tuple((a.shape, a.dtype) for a in leaves)
        if key not in traced:
            traced[key] = _trace(function, leaves, tree, static)
        jaxpr, shape, rest = traced[key]
        out = evaluate(jaxpr, (), leaves)
        return eqx.combine(jax.tree.unflatten(shape, out), rest)

    return call


def _trace(function, leaves, tree, static):
    result = None

    def flat(*leaves):
        nonlocal result
        out = function(*eqx.combine(jax.tree.unflatten(tree, leaves), static))
        out_arrays, rest = eqx.partition(out, eqx.is_array_like)
        out_leaves, shape = jax.tree.flatten(out_arrays)
        result = shape, rest
        return out_leaves

    jaxpr = jax.make_jaxpr(flat)(*leaves)
    return jaxpr, *result


def is_key(a):
    return jax.dtypes.issubdtype(getattr(a, "dtype", np.dtype(bool)), jax.dtypes.extended)


def to_numpy(a):
    return a if is_key(a) else np.asarray(a)


def evaluate(jaxpr, consts, args):
    if isinstance(jaxpr, jex.ClosedJaxpr):
        jaxpr, consts = jaxpr.jaxpr, jaxpr.consts
    env = dict(zip(jaxpr.constvars, [to_numpy(c) for c in consts], strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v):
        return np.asarray(v.val, v.aval.dtype) if isinstance(v, jex.Literal) else env[v]

    with np.errstate(all="ignore"):
        for eqn in jaxpr.eqns:
            values = [read(v) for v in eqn.invars]
            rule = RULES.get(eqn.primitive.name)
            out = by_jax(eqn, values) if rule is None else rule(eqn, *values)
            if not eqn.primitive.multiple_results:
                out = [out]
            for v, value in zip(eqn.outvars, out, strict=True):
                env[v] = value
    return [read(v) for v in jaxpr.outvars]


def by_jax(eqn, values):
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return jax.tree.map(to_numpy, out)


def rule(*names):
    def register(function):
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def element_wise(functions):
    for name, function in functions.items():
        RULES[name] = functools.partial(_element_wise, function)


def _element_wise(function, eqn, *values):
    return np.asarray(function(*values), eqn.outvars[0].aval.dtype)


def _divide(a, b):
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(a / b)
    return a / b


element_wise(
    {
        "add": np.add,
        "add_any": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": _divide,
        "rem": np.fmod,
        "neg": np.negative,
        "sign": np.sign,
        "abs": np.abs,
        "floor": np.floor,
        "ceil": np.ceil,
        "max": np.maximum,
        "min": np.minimum,
        "pow": np.power,
        "exp": np.exp,
        "exp2": np.exp2,
        "expm1": np.expm1,
        "log": np.log,
        "log1p": np.log1p,
        "sqrt": np.sqrt,
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "cbrt": np.cbrt,
        "square": np.square,
        "sin": np.sin,
        "cos": np.cos,
        "tan": np.tan,
        "atan2": np.arctan2,
        "sinh": np.sinh,
        "cosh": np.cosh,
        "tanh": np.tanh,
        "logistic": scipy.special.expit,
        "erf": scipy.special.erf,
        "erf_inv": scipy.special.erfinv,
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "is_finite": np.isfinite,
        "real": np.real,
        "imag": np.imag,
        "conj": np.conj,
        "complex": lambda a, b: a + 1j * b,
        "stop_gradient": lambda x: x,
        "copy": lambda x: x,
        "copy_p": lambda x: x,  # both names have been seen
        "etp": lambda x: x,
        "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    }
)


@rule("and", "or", "xor", "not")
def _(eqn, *values):
    name = eqn.primitive.name
    logical = values[0].dtype == bool
    prefix = "logical_" if logical else "bitwise_"
    return np.asarray(getattr(np, prefix + name)(*values))


@rule("integer_pow")
def _(eqn, x):
    return np.asarray(x ** float(eqn.params["y"]) if x.dtype.kind == "f" else x ** eqn.params["y"])


@rule("convert_element_type")
def _(eqn, x):
    dtype = eqn.outvars[0].aval.dtype
    return np.asarray(x.real if x.dtype.kind == "c" and dtype.kind != "c" else x, dtype)


@rule("select_n")
def _(eqn, which, *cases):
    if len(cases) == 2:
        return np.where(which.astype(bool), cases[1], cases[0])
    which = np.broadcast_to(which, cases[0].shape)
    return np.choose(which, cases)


# Movement ------------------------------------------------------------------------------------------------------------


@rule("reshape", "squeeze", "expand_dims")
def _(eqn, x, *_):
    order = eqn.params.get("dimensions") if eqn.primitive.name == "reshape" else None
    x = x if order is None else np.transpose(x, order)
    return np.reshape(x, eqn.outvars[0].aval.shape)


@rule("transpose")
def _(eqn, x):
    return np.transpose(x, eqn.params["permutation"])


@rule("broadcast_in_dim")
def _(eqn, x, *_):
    shape, dims = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
    full = [1] * len(shape)
    for axis, dim in enumerate(dims):
        full[dim] = x.shape[axis]
    return np.broadcast_to(x.reshape(full), shape)


@rule("rev")
def _(eqn, x):
    return np.flip(x, eqn.params["dimensions"])


@rule("slice")
def _(eqn, x):
    p = eqn.params
    strides = p["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, p["start_indices"], p["limit_indices"], strides))]


@rule("concatenate")
def _(eqn, *values):
    return np.concatenate(values, eqn.params["dimension"])


@rule("split")
def _(eqn, x):
    return np.split(x, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"])


@rule("pad")
def _(eqn, x, value):
    config = eqn.params["padding_config"]
    inner = [(n - 1) * (c[2] + 1) + 1 if n else 0 for n, c in zip(x.shape, config, strict=True)]
    spread = np.full(inner, value, x.dtype)
    spread[tuple(slice(None, None, c[2] + 1) for c in config)] = x
    out = np.full(eqn.outvars[0].aval.shape, value, x.dtype)
    into, of = [], []
    for n, (low, _, _), size in zip(inner, config, out.shape, strict=True):
        into.append(slice(max(low, 0), max(min(low + n, size), 0)))
        of.append(slice(max(-low, 0), max(min(n, size - low), 0)))
    out[tuple(into)] = spread[tuple(of)]
    return out


def _clamped(starts, sizes, shape):
    return [int(np.clip(s, 0, n - m)) for s, m, n in zip(starts, sizes, shape, strict=True)]


@rule("dynamic_slice")
def _(eqn, x, *starts):
    sizes = eqn.params["slice_sizes"]
    starts = _clamped(starts[: x.ndim], sizes, x.shape)
    return x[tuple(slice(s, s + m) for s, m in zip(starts, sizes, strict=True))]


@rule("dynamic_update_slice")
def _(eqn, x, update, *starts):
    starts = _clamped(starts, update.shape, x.shape)
    out = np.array(x)
    out[tuple(slice(s, s + m) for s, m in zip(starts, update.shape, strict=True))] = update
    return out


@rule("iota")
def _(eqn):
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    shape = [1] * len(aval.shape)
    shape[axis] = aval.shape[axis]
    return np.broadcast_to(np.arange(aval.shape[axis], dtype=aval.dtype).reshape(shape), aval.shape)


@rule("gather")
def _(eqn, x, indices):
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    out_shape = eqn.outvars[0].aval.shape
    batch_dims = [d for d in range(len(out_shape)) if d not in numbers.offset_dims]
    lead = indices.shape[:-1]
    starts = np.zeros((*lead, x.ndim), np.int64)
    starts[..., list(numbers.start_index_map)] = indices
    limit = np.array(x.shape) - np.array(sizes)
    mode = eqn.params["mode"]
    filling = mode == jax.lax.GatherScatterMode.FILL_OR_DROP
    inside = np.all((starts >= 0) & (starts <= limit), axis=-1)
    starts = np.clip(starts, 0, limit)
    for at_x, at_i in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        shape = [1] * len(lead)
        shape[at_i] = lead[at_i]
        starts[..., at_x] = np.broadcast_to(np.arange(lead[at_i]).reshape(shape), lead)
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(x.ndim) if d not in dropped]
    index = []
    for d in range(x.ndim):
        base = np.reshape(starts[..., d], (*lead, *[1] * len(kept)))
        if d in kept:
            shape = [1] * len(kept)
            shape[kept.index(d)] = sizes[d]
            base = base + np.arange(sizes[d]).reshape((1,) * len(lead) + tuple(shape))
        index.append(base)
    out = x[tuple(index)] if index else np.broadcast_to(x, lead)
    out = np.broadcast_to(out, (*lead, *(sizes[d] for d in kept)))
    if filling and not inside.all():
        fill = eqn.params["fill_value"]
        if fill is None:
            fill = np.nan if x.dtype.kind in "fc" else np.iinfo(x.dtype).min
            fill = 0 if x.dtype.kind == "b" else fill
        out = np.where(
            np.reshape(inside, (*lead, *[1] * len(kept))), out, np.asarray(fill, x.dtype)
        )
    return np.moveaxis(
        out, list(range(out.ndim)), [*batch_dims, *sorted(numbers.offset_dims)]
    ).reshape(out_shape)


@rule("scatter", "scatter-add", "scatter-mul", "scatter_add", "scatter_mul")
def _(eqn, x, indices, updates):
    numbers = eqn.params["dimension_numbers"]
    out = np.array(x)
    lead = indices.shape[:-1]
    window_dims = sorted(numbers.update_window_dims)
    scatter_dims = [d for d in range(updates.ndim) if d not in window_dims]
    updates = np.transpose(updates, [*scatter_dims, *window_dims])
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(x.ndim) if d not in dropped]
    sizes = np.ones(x.ndim, int)
    sizes[kept] = updates.shape[len(lead) :]
    clip = eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP
    for at in itertools.product(*map(range, lead)):
        start = np.zeros(x.ndim, int)
        start[list(numbers.scatter_dims_to_operand_dims)] = indices[at]
        for at_x, at_i in zip(
            numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
        ):
            start[at_x] = at[at_i]
        if clip:
            start = np.clip(start, 0, np.array(x.shape) - sizes)
        elif np.any(start < 0) or np.any(start + sizes > x.shape):
            continue
        where = tuple(slice(a, a + n) for a, n in zip(start, sizes, strict=True))
        new = updates[at].reshape(out[where].shape)
        if "add" in eqn.primitive.name:
            out[where] += new
        elif "mul" in eqn.primitive.name:
            out[where] *= new
        else:
            out[where] = new
    return out


# Reductions ----------------------------------------------------------------------------------------------------------


def reduction(function):
    def apply(eqn, x):
        axes = tuple(eqn.params["axes"])
        return np.asarray(function(x, axis=axes), eqn.outvars[0].aval.dtype)

    return apply


RULES |= {
    "reduce_sum": reduction(np.sum),
    "reduce_prod": reduction(np.prod),
    "reduce_max": reduction(np.max),
    "reduce_min": reduction(np.min),
    "reduce_and": reduction(np.all),
    "reduce_or": reduction(np.any),
}


@rule("argmax", "argmin")
def _(eqn, x):
    (axis,) = eqn.params["axes"]
    return np.asarray(getattr(np, eqn.primitive.name)(x, axis), eqn.outvars[0].aval.dtype)


@rule("cumsum", "cumprod", "cummax", "cummin")
def _(eqn, x):
    axis = eqn.params["axis"]
    ufunc = {"cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum}
    x = np.flip(x, axis) if eqn.params["reverse"] else x
    out = ufunc[eqn.primitive.name].accumulate(x, axis)
    return np.flip(out, axis) if eqn.params["reverse"] else out


@rule("sort")
def _(eqn, *values):
    axis, keys = eqn.params["dimension"], eqn.params["num_keys"]
    if keys != 1:
        return by_jax(eqn, values)
    order = np.argsort(values[0], axis=axis, kind="stable")
    return [np.take_along_axis(v, order, axis) for v in values]


@rule("dot_general")
def _(eqn, a, b):
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_free = [d for d in range(a.ndim) if d not in a_sum and d not in a_batch]
    b_free = [d for d in range(b.ndim) if d not in b_sum and d not in b_batch]
    batch = [a.shape[d] for d in a_batch]
    k = math.prod(a.shape[d] for d in a_sum)
    left = np.transpose(a, [*a_batch, *a_free, *a_sum]).reshape(*batch, -1, k)
    right = np.transpose(b, [*b_batch, *b_sum, *b_free])
    right = right.reshape(*batch, k, math.prod(b.shape[d] for d in b_free))
    if k == 0:
        return np.zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype)
    left = left.reshape(*batch, math.prod(a.shape[d] for d in a_free), k)
    return np.asarray((left @ right).reshape(eqn.outvars[0].aval.shape))


# Calls and control flow ----------------------------------------------------------------------------------------------


@rule("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_lin")
def _(eqn, *values):
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return evaluate(inner, (), values)


@rule("custom_jvp_call", "custom_vjp_call")
def _(eqn, *values):
    return evaluate(eqn.params["call_jaxpr"], (), values)


@rule("cond")
def _(eqn, which, *values):
    branches = eqn.params["branches"]
    return evaluate(branches[int(np.clip(which, 0, len(branches) - 1))], (), values)


@rule("while")
def _(eqn, *values):
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    test, body, carry = values[:n], values[n : n + m], list(values[n + m :])
    while (go := np.asarray(evaluate(p["cond_jaxpr"], (), [*test, *carry])[0])).any():
        new = evaluate(p["body_jaxpr"], (), [*body, *carry])
        # Under vmap each example has a condition of its own.
        carry = [
            np.where(go.reshape(go.shape + (1,) * (a.ndim - go.ndim)), b, a)
            for a, b in zip(carry, new, strict=True)
        ]
    return carry


@rule("scan")
def _(eqn, *values):
    p = eqn.params
    if "num_consts" in p:
        n, m = p["num_consts"], p["num_carry"]
    else:
        consts, carry, _ = p["ft_in"].unpack()
        n, m = len(consts), len(carry)
    consts, carry, xs = list(values[:n]), list(values[n : n + m]), values[n + m :]
    outs = []
    for t in range(p["length"]):
        t = p["length"] - 1 - t if p["reverse"] else t
        result = evaluate(p["jaxpr"], (), [*consts, *carry, *(x[t] for x in xs)])
        carry = result[:m]
        outs.append(result[m:])
    outs = outs[::-1] if p["reverse"] else outs
    stacked = [
        np.stack([o[i] for o in outs]) if outs else np.zeros(v.aval.shape, v.aval.dtype)
        for i, v in enumerate(eqn.outvars[m:])
    ]
    return [*carry, *stacked]
