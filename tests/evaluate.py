"""Runs JAX programs in NumPy, without compiling them: for programs that run a few times, on a handful of numbers.

`run(function)(*args)` traces `function` and evaluates its jaxpr one operation after the other. XLA takes a second to
compile what takes NumPy some milliseconds. An operation that is not in the table below is run by JAX itself. Values
are those of XLA up to rounding; `tests.test_grammar` compares the two.

Every value has a first axis of *points*: other arguments of the same program, evaluated together (`at_points`). It has
length one where a value is the same at all points. A branch is evaluated for the points that take it, so that nothing
is computed that the program would not compute at one point alone.
"""

import contextlib
import contextvars
import functools
import itertools
import math

import equinox as eqx
import jax
import jax.extend.core as jex
import ml_dtypes
import numpy as np
import scipy.special

RULES = {}
PREPARED = {}
"""From the identity of a jaxpr to the jaxpr and its instructions."""
MOST_PREPARED = 2000
_wide = contextvars.ContextVar("wide", default=False)
_random = contextvars.ContextVar("random", default=None)
WIDE = {
    **dict.fromkeys(map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32)), np.dtype(float)),
    np.dtype(np.complex64): np.dtype(complex),
}
EPS = np.finfo(float).eps
NARROW = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))


@contextlib.contextmanager
def wide():
    """Here no float is rounded to fewer bits than 64, whatever its type says.

    What two programs of narrow types have in common but for rounding agrees here as float64 does. Only a constant is
    converted as its type says: one of two programs may have been given it as a value.
    """
    with _setting(_wide, True):
        yield


@contextlib.contextmanager
def rounding_at_random(rng):
    """Here each result that is rounded is off by up to its rounding error, and so are the terms of a sum.

    What is computed several times differs by what rounding does to it (Monte Carlo arithmetic: Parker, 1997,
    "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic"). Constants stay as they are.
    """
    with _setting(_random, rng):
        yield


@contextlib.contextmanager
def _setting(variable, value):
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


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
        with np.errstate(all="ignore"):
            out = [a[0] for a in evaluate(jaxpr, [a[None] for a in leaves])]
        return eqx.combine(jax.tree.unflatten(shape, out), rest)

    return call


def at_points(function, like=None):
    """`function` of PyTrees of NumPy arrays, at several points: all arrays have a first axis of points.

    Traced once, with arguments as in the first call or as in `like`, which have no axis of points.
    """
    jaxpr = tree = None

    def call(*args):
        nonlocal jaxpr, tree
        if jaxpr is None:
            jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*(like or at(args, 0)))
            tree = jax.tree.structure(shape)
        with np.errstate(all="ignore"):
            out = evaluate(jaxpr, jax.tree.leaves(args))
        return jax.tree.unflatten(tree, out)

    return call


def at(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


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


def dtype_of(var):
    """The type of a variable's values here."""
    dtype = var.aval.dtype
    return WIDE.get(dtype, dtype) if _wide.get() else dtype


def evaluate(jaxpr, args):
    """The outputs of a jaxpr; all values have an axis of points."""
    inputs, constants, instructions, outputs, size = prepared(jaxpr)
    env = [None] * size
    for place, value in constants:
        env[place] = value
    for place, value in zip(inputs, args, strict=True):
        env[place] = widened(value)
    for apply, read, write, many in instructions:
        out = apply(*[env[place] for place in read])
        if many:
            for place, value in zip(write, out, strict=True):
                env[place] = value
        else:
            env[write[0]] = out
    return [env[place] for place in outputs]


def prepared(jaxpr):
    """The instructions of a jaxpr: a function for each equation, and places of values in a list.

    Calls are written out. What nothing reads is left out, and what depends on constants alone is computed here.
    Of these, `given` are moved or converted, and nothing else: they are as the program has them.
    """
    key = id(jaxpr), _wide.get(), _random.get() is not None
    if key in PREPARED:
        return PREPARED[key][1]
    if len(PREPARED) > MOST_PREPARED:
        PREPARED.clear()
    constants, equations, size = {}, [], 0

    def place(value=None):
        nonlocal size
        size += 1
        if value is not None:
            constants[size - 1] = value
        return size - 1

    def write_out(jaxpr, inputs):
        places = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

        def place_of(v):
            if not isinstance(v, jex.Literal):
                return places[v]
            return place(np.asarray(v.val, v.aval.dtype)[None])

        for eqn in jaxpr.eqns:
            read = [place_of(v) for v in eqn.invars]
            if eqn.primitive.name in INLINED:
                inner, consts = opened(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
                write = write_out(inner, [*consts, *read])
            else:
                write = [place() for _ in eqn.outvars]
                equations.append((eqn, read, write))
            places.update(zip(eqn.outvars, write, strict=True))
        return [place_of(v) for v in jaxpr.outvars]

    def opened(jaxpr):
        if not isinstance(jaxpr, jex.ClosedJaxpr):
            return jaxpr, []
        return jaxpr.jaxpr, [place(to_numpy(c)[None]) for c in jaxpr.consts]

    whole, consts = opened(jaxpr)
    inputs = [place() for _ in whole.invars]
    outputs = write_out(whole, [*consts, *inputs])
    needed, used = set(outputs), []
    for eqn, read, write in reversed(equations):
        if not needed.isdisjoint(write):
            needed.update(read)
            used.append((eqn, read, write))
    instructions, given = [], set(constants)
    for eqn, read, write in reversed(used):
        name, many = eqn.primitive.name, eqn.primitive.multiple_results
        if all(r in constants for r in read) and name not in LOOPS:
            as_given = name in CONVERTED and all(r in given for r in read)
            with _setting(_wide, _wide.get() and not as_given), _setting(_random, None):
                out = _instruction(eqn)(*(widened(constants[r]) for r in read))
            constants.update(zip(write, out if many else [out], strict=True))
            given.update(write if as_given else [])
        else:
            instructions.append((_instruction(eqn), read, write, many))
    constants = [(place, widened(value)) for place, value in constants.items()]
    result = inputs, constants, instructions, outputs, size
    PREPARED[key] = jaxpr, result
    return result


def widened(value):
    dtype = WIDE.get(value.dtype) if _wide.get() else None
    return value if dtype is None else value.astype(dtype)


def _instruction(eqn):
    apply = _exactly(eqn)
    if _random.get() is None or eqn.primitive.name in {*EXACT, *LOOPS}:
        return apply
    many, is_sum = eqn.primitive.multiple_results, eqn.primitive.name in SUMS

    def off(value):
        if is_key(value) or value.dtype.kind not in "fc":
            return value
        return value * (1 + EPS * _random.get().uniform(-1, 1, value.shape))

    def at_random(*values):
        out = apply(*map(off, values)) if is_sum else apply(*values)
        return list(map(off, out)) if many else off(out)

    return at_random


def _exactly(eqn):
    name = eqn.primitive.name
    if name in ELEMENT_WISE:
        apply = _element_wise(ELEMENT_WISE[name], eqn)
    else:
        apply = functools.partial(RULES.get(name, by_jax), eqn)
    narrow = any(v.aval.dtype in NARROW for v in (*eqn.invars, *eqn.outvars))
    if _wide.get() or not narrow or name in LOOPS or apply.func is by_jax:
        return apply
    many = eqn.primitive.multiple_results

    def rounded(*values):
        """In float32, and then rounded."""
        out = apply(*(v.astype(np.float32) if v.dtype in NARROW else v for v in values))
        out = out if many else [out]
        out = [np.asarray(a, v.aval.dtype) for a, v in zip(out, eqn.outvars, strict=True)]
        return out if many else out[0]

    return rounded


def points_of(values):
    return max((len(v) for v in values), default=1)


def level(values):
    """With first axes of one length."""
    n = points_of(values)
    return [v if len(v) == n else np.broadcast_to(v, (n, *v.shape[1:])) for v in values]


def each(rule):
    """A rule that knows one point, at each of them."""

    @functools.wraps(rule)
    def apply(eqn, *values):
        n = points_of(values)
        if n == 1:
            return rule(eqn, *values)
        outs = [rule(eqn, *(v if len(v) == 1 else v[k : k + 1] for v in values)) for k in range(n)]
        if eqn.primitive.multiple_results:
            return [np.concatenate(parts) for parts in zip(*outs, strict=True)]
        return np.concatenate(outs)

    return apply


@each
def by_jax(eqn, *values):
    """By JAX's own implementation, of values of the types that it expects, or of the wide ones in their place."""
    name, params = eqn.primitive.name, eqn.params
    if _wide.get() and any(v.aval.dtype in WIDE for v in eqn.invars):
        params = {key: _widened_parameter(name, value) for key, value in params.items()}
    values = [
        a[0] if is_key(a) else np.asarray(a[0], dtype_of(v))
        for a, v in zip(values, eqn.invars, strict=True)
    ]
    key = None
    if name in REMEMBERED:
        data = [np.asarray(jax.random.key_data(a)) if is_key(a) else a for a in values]
        key = name, str(params), *((a.shape, a.tobytes()) for a in data)
        if key in _remembered:
            return _remembered[key]
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(params))
    many = eqn.primitive.multiple_results
    out = [to_numpy(a) for a in (out if many else [out])]
    out = [
        (a if is_key(a) else np.asarray(a, dtype_of(v)))[None]
        for a, v in zip(out, eqn.outvars, strict=True)
    ]
    out = out if many else out[0]
    if key is not None:
        if len(_remembered) > 5000:
            _remembered.clear()
        _remembered[key] = out
    return out


def _widened_parameter(name, value):
    """A parameter of a primitive without narrow types."""
    if isinstance(value, (np.dtype, type)):
        return WIDE.get(np.dtype(value), value)
    if isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr)) or "bitcast" in name:
        raise NotImplementedError(f"{name} would be rounded")
    return value


REMEMBERED = {"random_bits", "random_split", "random_wrap", "random_unwrap", "random_fold_in"}
_remembered = {}
LOOPS = {"scan", "while", "cond"}
INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
INLINED |= {"custom_lin", "custom_jvp_call", "custom_vjp_call"}


def rule(*names):
    def register(function):
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def _element_wise(function, eqn):
    """Operands may be numbers where the result is an array."""
    rank = len(eqn.outvars[0].aval.shape)
    lower = [len(v.aval.shape) < rank for v in eqn.invars]
    dtype = dtype_of(eqn.outvars[0])
    return functools.partial(_apply, function, dtype, lower if any(lower) else None, rank)


def _apply(function, dtype, lower, rank, *values):
    if lower is not None:
        values = [
            v.reshape(len(v), *[1] * rank) if low else v
            for v, low in zip(values, lower, strict=True)
        ]
    out = function(*values)
    if out.dtype == dtype:
        return out
    return (out.real if out.dtype.kind == "c" and dtype.kind != "c" else out).astype(dtype)


def _divide(a, b):
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(a / b)
    return a / b


def _select(which, *cases):
    if len(cases) == 2:
        return np.where(which.astype(bool), cases[1], cases[0])
    out = cases[0]
    for k, case in enumerate(cases[1:], 1):
        out = np.where(which == k, case, out)
    return out


def _logical(name):
    logical, bitwise = getattr(np, f"logical_{name}"), getattr(np, f"bitwise_{name}")
    return lambda *values: (logical if values[0].dtype == bool else bitwise)(*values)


ELEMENT_WISE = {
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
    "one_minus_square": lambda x: (1 - x) * (1 + x),
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
    "select_n": _select,
    "convert_element_type": lambda x: x,
    **{name: _logical(name) for name in ("and", "or", "xor", "not")},
}


@rule("integer_pow")
def _(eqn, x):
    return np.asarray(x ** float(eqn.params["y"]) if x.dtype.kind == "f" else x ** eqn.params["y"])


@rule("reduce_precision")
def _(eqn, x):
    return x if _wide.get() else by_jax(eqn, x)


@rule("round")
def _(eqn, x):
    if eqn.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return by_jax(eqn, x)
    return np.rint(x)


def _names(text):
    return set(text.split())


CONVERTED = _names(
    "convert_element_type broadcast_in_dim reshape squeeze expand_dims transpose slice"
)
EXACT = CONVERTED | _names(
    """neg sign abs floor ceil round max min real imag conj complex stop_gradient copy copy_p etp clamp select_n
    reduce_precision reduce_max reduce_min cummax cummin sort top_k rev concatenate stack unstack tile split pad
    dynamic_slice dynamic_update_slice gather scatter"""
)
"""What does not round, if its results are floats."""
SUMS = _names(
    """reduce_sum cumsum dot_general conv_general_dilated scatter-add scatter_add bcoo_dot_general
    bcoo_dot_general_sampled fft lu triangular_solve"""
)
"""What adds products or operands that no other operation has rounded."""


# Movement ------------------------------------------------------------------------------------------------------------


def every(n):
    return (slice(None),) * n


@rule("reshape", "squeeze", "expand_dims")
def _(eqn, x, *_):
    order = eqn.params.get("dimensions") if eqn.primitive.name == "reshape" else None
    x = x if order is None else np.transpose(x, (0, *(d + 1 for d in order)))
    return x.reshape(len(x), *eqn.outvars[0].aval.shape)


@rule("transpose")
def _(eqn, x):
    return np.transpose(x, (0, *(d + 1 for d in eqn.params["permutation"])))


@rule("broadcast_in_dim")
def _(eqn, x, *_):
    shape, dims = eqn.outvars[0].aval.shape, eqn.params["broadcast_dimensions"]
    full = [1] * len(shape)
    for axis, dim in enumerate(dims):
        full[dim] = x.shape[axis + 1]
    if is_key(x):
        return jax.numpy.broadcast_to(x.reshape(len(x), *full), (len(x), *shape))
    x = x.reshape(len(x), *full)
    return x if tuple(full) == shape else np.broadcast_to(x, (len(x), *shape))


@rule("rev")
def _(eqn, x):
    return np.flip(x, [d + 1 for d in eqn.params["dimensions"]])


@rule("slice")
def _(eqn, x):
    p = eqn.params
    strides = p["strides"] or (1,) * (x.ndim - 1)
    return x[(slice(None), *map(slice, p["start_indices"], p["limit_indices"], strides))]


@rule("concatenate")
def _(eqn, *values):
    return np.concatenate(level(values), eqn.params["dimension"] + 1)


@rule("stack")
def _(eqn, *values):
    return np.stack(level(values), eqn.params["axis"] + 1)


@rule("unstack")
def _(eqn, x):
    return list(np.moveaxis(x, eqn.params["axis"] + 1, 0))


@rule("tile")
def _(eqn, x):
    return np.tile(x, (1, *eqn.params["reps"]))


@rule("split")
def _(eqn, x):
    return np.split(x, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"] + 1)


@rule("pad")
def _(eqn, x, value):
    config = eqn.params["padding_config"]
    n_points = points_of([x, value])
    value = value.reshape(-1, *[1] * (x.ndim - 1))
    shape = x.shape[1:]
    inner = [(n - 1) * (c[2] + 1) + 1 if n else 0 for n, c in zip(shape, config, strict=True)]
    spread = np.empty((n_points, *inner), x.dtype)
    spread[...] = value
    spread[(slice(None), *(slice(None, None, c[2] + 1) for c in config))] = x
    out = np.empty((n_points, *eqn.outvars[0].aval.shape), x.dtype)
    out[...] = value
    into, of = [slice(None)], [slice(None)]
    for n, (low, _, _), size in zip(inner, config, out.shape[1:], strict=True):
        into.append(slice(max(low, 0), max(min(low + n, size), 0)))
        of.append(slice(max(-low, 0), max(min(n, size - low), 0)))
    out[tuple(into)] = spread[tuple(of)]
    return out


def by_index(first):
    """For a rule in which the operands from `first` on are indices: one set of them for all points, or each alone."""

    def wrap(rule):
        alone = each(rule)

        @functools.wraps(rule)
        def apply(eqn, *values):
            return (rule if all(len(v) == 1 for v in values[first:]) else alone)(eqn, *values)

        return apply

    return wrap


def _clamped(starts, sizes, shape):
    return [int(np.clip(int(s[0]), 0, n - m)) for s, m, n in zip(starts, sizes, shape, strict=True)]


@rule("dynamic_slice")
@by_index(1)
def _(eqn, x, *starts):
    sizes = eqn.params["slice_sizes"]
    starts = _clamped(starts[: x.ndim - 1], sizes, x.shape[1:])
    return x[(slice(None), *(slice(s, s + m) for s, m in zip(starts, sizes, strict=True)))]


@rule("dynamic_update_slice")
@by_index(2)
def _(eqn, x, update, *starts):
    starts = _clamped(starts, update.shape[1:], x.shape[1:])
    x, update = level([x, update])
    out = np.array(x)
    where = (slice(s, s + m) for s, m in zip(starts, update.shape[1:], strict=True))
    out[(slice(None), *where)] = update
    return out


@rule("iota")
def _(eqn):
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    shape = [1] * len(aval.shape)
    shape[axis] = aval.shape[axis]
    count = np.arange(aval.shape[axis]).astype(dtype_of(eqn.outvars[0]))
    return np.broadcast_to(count.reshape(1, *shape), (1, *aval.shape))


@rule("gather")
@by_index(1)
def _(eqn, x, indices):
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    indices, shape = indices[0], x.shape[1:]
    out_shape = eqn.outvars[0].aval.shape
    batch_dims = [d for d in range(len(out_shape)) if d not in numbers.offset_dims]
    lead = indices.shape[:-1]
    starts = np.zeros((*lead, len(shape)), np.int64)
    starts[..., list(numbers.start_index_map)] = indices
    limit = np.array(shape) - np.array(sizes)
    filling = eqn.params["mode"] == jax.lax.GatherScatterMode.FILL_OR_DROP
    inside = np.all((starts >= 0) & (starts <= limit), axis=-1)
    starts = np.clip(starts, 0, limit)
    for at_x, at_i in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        own = [1] * len(lead)
        own[at_i] = lead[at_i]
        starts[..., at_x] = np.broadcast_to(np.arange(lead[at_i]).reshape(own), lead)
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(shape)) if d not in dropped]
    index = []
    for d in range(len(shape)):
        base = np.reshape(starts[..., d], (*lead, *[1] * len(kept)))
        if d in kept:
            own = [1] * len(kept)
            own[kept.index(d)] = sizes[d]
            base = base + np.arange(sizes[d]).reshape((1,) * len(lead) + tuple(own))
        index.append(base)
    full = (len(x), *lead, *(sizes[d] for d in kept))
    out = x[(slice(None), *index)] if index else x.reshape(len(x), *[1] * len(lead))
    out = np.broadcast_to(out, full)
    if filling and not inside.all():
        fill = eqn.params["fill_value"]
        if fill is None:
            fill = np.nan if x.dtype.kind in "fc" else np.iinfo(x.dtype).min
            fill = 0 if x.dtype.kind == "b" else fill
        out = np.where(
            np.reshape(inside, (*lead, *[1] * len(kept))), out, np.asarray(fill, x.dtype)
        )
    order = [0, *(d + 1 for d in (*batch_dims, *sorted(numbers.offset_dims)))]
    return np.moveaxis(out, list(range(out.ndim)), order).reshape(len(x), *out_shape)


@rule("scatter", "scatter-add", "scatter-mul", "scatter_add", "scatter_mul")
def _(eqn, x, indices, updates):
    alone = len(indices) > 1
    return (each(_scatter) if alone else _scatter)(eqn, x, indices, updates)


def _scatter(eqn, x, indices, updates):
    numbers = eqn.params["dimension_numbers"]
    indices, shape = indices[0], x.shape[1:]
    x, updates = level([x, updates])
    out = np.array(x)
    lead = indices.shape[:-1]
    window_dims = sorted(numbers.update_window_dims)
    scatter_dims = [d for d in range(updates.ndim - 1) if d not in window_dims]
    updates = np.transpose(updates, [0, *(d + 1 for d in (*scatter_dims, *window_dims))])
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(shape)) if d not in dropped]
    sizes = np.ones(len(shape), int)
    sizes[kept] = updates.shape[1 + len(lead) :]
    clip = eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP
    for index in itertools.product(*map(range, lead)):
        start = np.zeros(len(shape), int)
        start[list(numbers.scatter_dims_to_operand_dims)] = indices[index]
        for at_x, at_i in zip(
            numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
        ):
            start[at_x] = index[at_i]
        if clip:
            start = np.clip(start, 0, np.array(shape) - sizes)
        elif np.any(start < 0) or np.any(start + sizes > shape):
            continue
        where = (slice(None), *(slice(a, a + n) for a, n in zip(start, sizes, strict=True)))
        new = updates[(slice(None), *index)].reshape(out[where].shape)
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
        axes = tuple(d + 1 for d in eqn.params["axes"])
        return np.asarray(function(x, axis=axes), dtype_of(eqn.outvars[0]))

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
    return np.asarray(getattr(np, eqn.primitive.name)(x, axis + 1), dtype_of(eqn.outvars[0]))


@rule("cumsum", "cumprod", "cummax", "cummin")
def _(eqn, x):
    axis = eqn.params["axis"] + 1
    ufunc = {"cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum}
    x = np.flip(x, axis) if eqn.params["reverse"] else x
    out = ufunc[eqn.primitive.name].accumulate(x, axis)
    return np.flip(out, axis) if eqn.params["reverse"] else out


@rule("sort")
def _(eqn, *values):
    axis, keys = eqn.params["dimension"] + 1, eqn.params["num_keys"]
    values = level(values)
    if keys != 1:
        return by_jax(eqn, *values)
    order = np.argsort(values[0], axis=axis, kind="stable")
    return [np.take_along_axis(v, order, axis) for v in values]


@rule("top_k")
def _(eqn, x):
    axis = eqn.params.get("axis", x.ndim - 2) + 1
    order = np.argsort(-x, axis=axis, kind="stable")
    order = np.take(order, np.arange(eqn.params["k"]), axis)
    return [np.take_along_axis(x, order, axis), order.astype(np.int32)]


@rule("dot_general")
def _(eqn, a, b):
    (a_sum, b_sum), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    a_free = [d for d in range(a.ndim - 1) if d not in a_sum and d not in a_batch]
    b_free = [d for d in range(b.ndim - 1) if d not in b_sum and d not in b_batch]
    a_shape, b_shape = a.shape[1:], b.shape[1:]
    batch = [a_shape[d] for d in a_batch]
    k = math.prod(a_shape[d] for d in a_sum)
    n_left, n_right = (
        math.prod(s[d] for d in f) for s, f in ((a_shape, a_free), (b_shape, b_free))
    )
    shape = points_of([a, b]), *eqn.outvars[0].aval.shape
    if 0 in (k, *shape):
        return np.zeros(shape, dtype_of(eqn.outvars[0]))
    left = np.transpose(a, [0, *(d + 1 for d in (*a_batch, *a_free, *a_sum))])
    right = np.transpose(b, [0, *(d + 1 for d in (*b_batch, *b_sum, *b_free))])
    left = left.reshape(len(a), *batch, n_left, k)
    right = right.reshape(len(b), *batch, k, n_right)
    return np.asarray((left @ right).reshape(shape), dtype_of(eqn.outvars[0]))


@rule("conv_general_dilated")
def _(eqn, x, w):
    p = eqn.params
    if p["batch_group_count"] != 1:
        return by_jax(eqn, x, w)
    numbers = p["dimension_numbers"]
    x, w = level([x, w])
    n = len(x)
    x = np.transpose(x, [0, *(d + 1 for d in numbers.lhs_spec)])
    w = np.transpose(w, [0, *(d + 1 for d in numbers.rhs_spec)])
    x, w = _dilated(x, p["lhs_dilation"]), _dilated(w, p["rhs_dilation"])
    for d, (low, high) in enumerate(p["padding"], 3):
        x = np.pad(x, [(0, 0)] * d + [(max(low, 0), max(high, 0))] + [(0, 0)] * (x.ndim - d - 1))
        x = np.take(x, np.arange(max(-low, 0), x.shape[d] - max(-high, 0)), d)
    shape = [eqn.outvars[0].aval.shape[d] for d in numbers.out_spec]
    groups = p["feature_group_count"]
    x = x.reshape(n, x.shape[1], groups, -1, *x.shape[3:])
    w = w.reshape(n, groups, -1, *w.shape[2:])
    out = np.zeros((n, shape[0], groups, w.shape[2], *shape[2:]), dtype_of(eqn.outvars[0]))
    for place in itertools.product(*map(range, w.shape[4:])):
        if 0 in shape:
            break
        strided = zip(place, p["window_strides"], shape[2:], strict=True)
        window = tuple(slice(a, a + stride * (m - 1) + 1, stride) for a, stride, m in strided)
        part, kernel = x[(*every(4), *window)], w[(*every(4), *place)]
        out += np.einsum("nbgi...,ngoi->nbgo...", part, kernel)
    out = out.reshape(n, *shape)
    return np.transpose(out, [0, *(d + 1 for d in np.argsort(numbers.out_spec))])


def _dilated(x, factors):
    """With zeros between the elements of the spatial axes."""
    spatial = [(n - 1) * f + 1 if n else 0 for n, f in zip(x.shape[3:], factors, strict=True)]
    out = np.zeros([*x.shape[:3], *spatial], x.dtype)
    out[(*every(3), *(slice(None, None, f) for f in factors))] = x
    return out


# Calls and control flow ----------------------------------------------------------------------------------------------


@rule("cond")
def _(eqn, which, *values):
    branches = eqn.params["branches"]
    which = np.clip(which, 0, len(branches) - 1).astype(int)
    taken = np.unique(which)
    if len(taken) == 1:
        return evaluate(branches[taken[0]], values)
    whole = [None] * len(eqn.outvars)
    for branch in taken:
        places = np.flatnonzero(which == branch)
        outs = evaluate(branches[branch], [v if len(v) == 1 else v[places] for v in values])
        for i, out in enumerate(outs):
            if whole[i] is None:
                whole[i] = np.empty((len(which), *out.shape[1:]), out.dtype)
            whole[i][places] = out
    return whole


@rule("while")
@each
def _(eqn, *values):
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    test, body, carry = values[:n], values[n : n + m], list(values[n + m :])
    while (go := np.asarray(evaluate(p["cond_jaxpr"], [*test, *carry])[0])).any():
        new = evaluate(p["body_jaxpr"], [*body, *carry])
        # Under vmap each example has a condition of its own.
        carry = [
            np.where(go.reshape(go.shape + (1,) * (a.ndim - go.ndim)), b, a)
            for a, b in zip(carry, new, strict=True)
        ]
    return carry


@rule("custom_linear_solve")
def _(eqn, *values):
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    start = lengths.matvec + lengths.vecmat
    consts = values[start : start + lengths.solve]
    return evaluate(jaxprs.solve, [*consts, *values[sum(lengths) :]])


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
        result = evaluate(p["jaxpr"], [*consts, *carry, *(x[:, t] for x in xs)])
        carry = result[:m]
        outs.append(result[m:])
    outs = outs[::-1] if p["reverse"] else outs
    stacked = [
        _stack([o[i] for o in outs]) if outs else np.zeros((1, *v.aval.shape), dtype_of(v))
        for i, v in enumerate(eqn.outvars[m:])
    ]
    return [*carry, *stacked]


def _stack(steps):
    if is_key(steps[0]):
        return jax.numpy.stack(steps, 1)  # nothing about keys differs between points
    return np.stack(level(steps), 1)
