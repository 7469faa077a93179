"""Random step functions from a grammar: models that nobody would write, for faults that nobody thinks of.

A `Program` is data: some hidden state leaves, each with operations before its update, and what is read in the end.
`DrawnModel` runs it. Operations read from a pool of values (inputs, old states, earlier values, new states) and add
to it; a place in the pool is counted from the newest value, so that any operation can be taken out of a program and
the rest still runs.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.sparse import BCOO

import etpc
from tests.helpers import spike, spike_over, spike_vjp
from tests.models import COUPLINGS, Draw

STATES = ("vector", "stacked", "scalar", "delay", "ring", "counter", "noisy")
COMPLEX_STATES = ("complex",)
RULES = (
    *("leaky", "raw", "gated", "hard_reset", "soft_reset", "detached_reset", "tau", "replace"),
    *("where", "times", "normalised", "max", "mirror", "previous", "mixed_by_weight"),
    *("roll", "sort", "cumsum", "mean_free", "permute", "reverse", "lateral"),
    *("row_by_row", "one_column", "in_parts", "masked_write"),
    *("decay_scalar", "decay_minimum", "decay_where", "decay_exp", "decay_steps"),
)
NARROW = ("float32", "bfloat16", "float16")
DRAWN_FORMS = ("plain", "masked", "signed", "normalised", "low_rank")
FORMS = (*DRAWN_FORMS, "quantised", "softmax")
CONTRACTIONS = {  # how the effective weight (O, I) is laid out, and used
    "w_x": (lambda w: w, lambda x, w: w @ x),
    "x_w": (lambda w: w.T, lambda x, w: x @ w),
    "einsum": (lambda w: w, lambda x, w: jnp.einsum("oi,i->o", w, x)),
    "dot_transposed": (lambda w: w.T, lambda x, w: jnp.dot(w.T, x)),
    "batched": (lambda w: w.T[None], lambda x, w: jnp.einsum("gi,gio->go", x[None], w)[0]),
}
N_INT = 3  # integer inputs are 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation: adds a value to the pool."""

    kind: str
    a: int = 0  # the values that it reads, counted from the newest in the pool
    b: int = 0
    n: int = 2  # a size, or a number of sub-steps
    form: str = "plain"  # of a weight
    shared: bool = False  # takes the parameter of an earlier operation, if one fits
    low: str = ""  # a narrower type that its data is cast to, and its result from
    store: str = ""  # a narrower type of its parameter
    cast: str = ""  # a narrower type that its effective weight is cast to


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A hidden state, and how it is updated."""

    kind: str = "vector"
    n: int = 2
    k: int = 2  # rows, or a delay
    rule: str = "leaky"
    a: int = 0
    b: int = 0
    before: tuple[Op, ...] = ()  # computed before the update
    low: str = ""  # a narrower type that the state is stored in


@dataclasses.dataclass(frozen=True)
class Program:
    leaves: tuple[Leaf, ...] = (Leaf(),)
    after: tuple[Op, ...] = ()
    reads: tuple[int, ...] = (0,)  # what the output consists of
    readout: bool = True
    separate: bool = False  # the output is a tuple of values, with an integer
    pack: str = "tuple"
    n_in: int = 2
    seed: int = 0
    marks: int = 0  # which uses of parameters are marked: none, or every second one by this number
    weights: str = "all"  # which get a trace: all, or those that are marked

    @property
    def marked(self) -> frozenset[str]:
        """The names of the uses that are marked."""
        names = [
            f"{i}.{j}:{op.kind}"
            for i, leaf in enumerate(self.leaves)
            for j, op in enumerate(leaf.before)
            if op.kind not in UNMARKED
        ]
        names += [
            f"after.{j}:{op.kind}" for j, op in enumerate(self.after) if op.kind not in UNMARKED
        ]
        names += [f"s{i}" for i, leaf in enumerate(self.leaves) if leaf.kind != "complex"] + ["out"]
        odd = lambda name: hashlib.sha1(f"{self.marks} {name}".encode()).digest()[0] % 2
        return frozenset(name for name in names if self.marks and odd(name))

    @property
    def narrow(self):
        """Whether a type is narrower than float64."""
        return any(op.low or op.store or op.cast for op in self.ops) or any(
            leaf.low for leaf in self.leaves
        )

    @property
    def narrowest(self):
        """The type with the fewest digits."""
        used = {leaf.low for leaf in self.leaves}
        used |= {a for op in self.ops for a in (op.low, op.store, op.cast)}
        return max({*used, "float64"} - {""}, key=lambda name: jnp.finfo(name).eps)

    @property
    def widened(self):
        """The same in float64."""
        wide = lambda op: dataclasses.replace(op, low="", store="", cast="")
        leaves = tuple(
            dataclasses.replace(leaf, low="", before=tuple(map(wide, leaf.before)))
            for leaf in self.leaves
        )
        return dataclasses.replace(self, leaves=leaves, after=tuple(map(wide, self.after)))

    @property
    def ops(self):
        return (*(op for leaf in self.leaves for op in leaf.before), *self.after)

    def __str__(self):
        """What JAX traces of its step."""
        step = lambda x, state: run_step(self, Run(Parameters(self.seed)), x, state)
        return str(jax.make_jaxpr(step)(data(self, 1, at=0), initial_state(self)))


def base(name):
    """The operation or the state that a use of a parameter belongs to."""
    found = re.match(r"\d+\.\d+:\w+|after\.\d+:\w+|s\d+|out", name)
    assert found, name
    return found[0]


# Operations without parameters ---------------------------------------------------------------------------------------
#
# f(v) of a value of any shape, or f(v, w) of two values of one shape.


def along(f):
    """A function of a vector, on all elements of a value."""
    return lambda v: jnp.reshape(f(jnp.ravel(v)), v.shape)


def if_many(f):
    """Where a single element has a derivative that is zero by accident, nothing is done."""
    return lambda v: f(v) if v.size > 1 else jnp.tanh(v)


@jax.custom_jvp
def own_derivative(v):
    return jnp.round(2 * v) / 2


@own_derivative.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return own_derivative(v), jnp.cumsum(dv.ravel()).reshape(dv.shape) * jnp.exp(-(v**2))


@jax.custom_vjp
def own_transpose(v):
    return jnp.tanh(v[::-1])


own_transpose.defvjp(
    lambda v: (own_transpose(v), v), lambda v, g: ((g * (1.5 - jnp.tanh(v[::-1]) ** 2))[::-1],)
)


def linear_recurrence(decay, v):
    def join(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    return lax.associative_scan(join, (decay, v))[1]


def running(v):
    def body(h, x):
        h = 0.5 * h + jnp.tanh(x)
        return h, h * x

    return lax.scan(body, jnp.zeros((), v.dtype), v)[1]


def relaxed(v):
    return lax.fori_loop(0, 2, lambda _, u: u - 0.3 * jnp.tanh(jnp.roll(u, 1) + u), v)


def positive(v):
    return jnp.sum(v) > 0.117


def by_name(*functions):
    return {function.__name__: function for function in functions}


ONE = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": lambda v: jax.nn.relu(v + 0.0617),
    "softplus": jax.nn.softplus,
    "abs": lambda v: jnp.abs(v - 0.0523),
    "sin": jnp.sin,
    "bump": lambda v: jnp.exp(-(v**2)),
    "square": lambda v: v * jnp.tanh(v),
    "clip": lambda v: jnp.clip(v, -0.61, 0.73),
    "round": lambda v: v + 0.3 * jnp.round(3 * v),
    "straight_through": lambda v: v + lax.stop_gradient(jnp.round(2 * v) / 2 - v),
    "stop": lambda v: lax.stop_gradient(v),
    "stop_half": lambda v: 0.5 * v + 0.5 * lax.stop_gradient(v),
    "spike": lambda v: spike(v - 0.31),
    "spike_vjp": lambda v: spike_vjp(v - 0.27),
    "surrogate_by_stop": lambda v: (
        jax.nn.sigmoid(3 * v)
        + lax.stop_gradient((v > 0.11).astype(v.dtype) - jax.nn.sigmoid(3 * v))
    ),
    "roll": along(lambda v: jnp.roll(v, 1)),
    "reverse": along(lambda v: v[::-1]),
    "permute": along(COUPLINGS["permute"]),
    "transpose": jnp.transpose,
    "ravel": jnp.ravel,
    "swap_halves": along(lambda v: jnp.concatenate([v[len(v) // 2 :], v[: len(v) // 2]])),
    "every_second": lambda v: jnp.ravel(v)[::2],
    "head": lambda v: jnp.ravel(v)[0],
    "tail": lambda v: jnp.ravel(v)[-2:],
    "pad": lambda v: jnp.pad(jnp.ravel(v)[:3], (1, 0)),
    "mirrored": lambda v: jnp.concatenate([jnp.ravel(v)[:2], -jnp.ravel(v)[:2]]),
    "tile": lambda v: jnp.tile(jnp.ravel(v)[:2], (2, 1)),
    "repeat": lambda v: jnp.repeat(jnp.ravel(v)[:2], 2),
    "cumsum": along(lambda v: 0.6 * jnp.cumsum(v)),
    "cumsum_back": along(lambda v: 0.6 * lax.cumsum(v, reverse=True)),
    "cumprod": along(lambda v: jnp.cumprod(jnp.tanh(v) + 1.1)),
    "cummax": along(lambda v: lax.cummax(v)),
    "difference": along(lambda v: jnp.diff(v, prepend=0.1)),
    "sort": along(jnp.sort),
    "descending": along(lambda v: -jnp.sort(-v)),
    "top": lambda v: lax.top_k(jnp.ravel(v), min(2, v.size))[0],
    "mean_free": if_many(lambda v: v - jnp.mean(v)),
    "variance": if_many(lambda v: jnp.var(v)),
    "softmax": if_many(lambda v: jax.nn.softmax(jnp.ravel(v)).reshape(v.shape)),
    "log_sum_exp": lambda v: jax.nn.logsumexp(v),
    "unit": lambda v: v / jnp.sqrt(0.1 + jnp.sum(v**2)),
    "norm": lambda v: jnp.linalg.norm(jnp.ravel(v) + 0.211),
    "sum": jnp.sum,
    "row_sums": lambda v: jnp.sum(v, axis=-1) if v.ndim else v,
    "below_max": if_many(lambda v: v - 0.5 * jnp.max(v)),
    "above_min": if_many(lambda v: v - 0.5 * jnp.min(v)),
    "product_of_all": lambda v: jnp.prod(jnp.tanh(v) + 1.2),
    "winner": if_many(lambda v: v * (v == jnp.max(v))),
    "winner_by_argmax": along(lambda v: v * jax.nn.one_hot(jnp.argmax(v), len(v), dtype=v.dtype)),
    "lateral": along(COUPLINGS["lateral"]),
    "fixed_conv": along(lambda v: jnp.convolve(v, jnp.array([0.5, 0.3, -0.2]))[: len(v)]),
    "self_outer": lambda v: jnp.ravel(v)[:2, None] * jnp.ravel(v)[None, :2],
    "segments": lambda v: jax.ops.segment_sum(
        jnp.ravel(v), np.arange(v.size) % 2, num_segments=2, indices_are_sorted=False
    ),
    "set_one": along(lambda v: v.at[0].set(jnp.tanh(jnp.sum(v)))),
    "add_to_one": along(lambda v: v.at[-1].add(0.5 * v[0])),
    "checkpoint": jax.checkpoint(lambda v: jnp.tanh(v * v) + 0.3 * v),
    "jit": jax.jit(lambda v: jnp.tanh(v) - 0.2 * v),
    "nested_jit": jax.jit(lambda v: jax.jit(jnp.sin)(v) * jax.jit(jax.nn.sigmoid)(v)),
    "custom_jvp": own_derivative,
    "custom_vjp": along(own_transpose),
    "vmap": along(jax.vmap(lambda x: spike(x - 0.19) * x)),
    "vmap_cond": along(jax.vmap(lambda x: lax.cond(x > 0.13, jnp.sin, lambda x: 0.3 * x, x))),
    "associative_scan": along(lambda v: linear_recurrence(jnp.full_like(v, 0.6), v)),
    "map": along(lambda v: lax.map(lambda x: jnp.tanh(x) * x, v)),
    "scan": along(running),
    "scan_back": along(lambda v: running(v[::-1])[::-1]),
    "fori_loop": along(relaxed),
    "cond": along(lambda v: lax.cond(positive(v), jnp.tanh, lambda v: -0.5 * v[::-1], v)),
    "cond_stop": along(lambda v: lax.cond(positive(v), lax.stop_gradient, jnp.sin, v)),
    "gradient": along(lambda v: jax.grad(lambda u: jnp.sum(jnp.sin(u) * jnp.cumsum(u)))(v)),
    "jvp": along(lambda v: jax.jvp(jnp.tanh, (v,), (jnp.roll(v, 1),))[1]),
    "fft": along(lambda v: jnp.real(jnp.fft.fft(v))),
    "solve": along(lambda v: jnp.linalg.inv(jnp.outer(v, v) + 2 * jnp.eye(len(v))) @ v),
}


def guarded_switch(v):
    s = jnp.sum(v)
    which = jnp.clip(jnp.floor(s) + 1, 0, 2).astype(int)
    return lax.switch(
        which, [jnp.zeros_like, lambda v: v * jnp.sqrt(jnp.sum(v)), lambda v: v / jnp.sum(v)], v
    )


def guarded_twice(v):
    s = jnp.sum(v)
    inner = lambda v: lax.cond(
        jnp.sum(v) < 1.5, lambda v: v * jnp.sqrt(1.5 - jnp.sum(v)), lambda v: 0.3 * v, v
    )
    return lax.cond(s > 0.05, lambda v: inner(v) + jnp.log(jnp.sum(v)), lambda v: -v, v)


def guarded_loop(v):
    def body(h, x):
        h = lax.cond(x > 0.03, lambda: h + jnp.sqrt(x), lambda: 0.5 * h)
        return h, h

    return lax.scan(body, jnp.zeros((), v.dtype), v)[1]


def unit_or_zero(v, low):
    k = jax.nn.relu(v - low)
    return k / (jnp.linalg.norm(k) + 1e-3)


GUARDED = {  # data that is guarded against has no finite derivative in the branch that is not taken
    "guarded_sqrt": lambda v: lax.cond(
        jnp.sum(v) > 0.05, lambda v: v * jnp.sqrt(jnp.sum(v)), jnp.zeros_like, v
    ),
    "guarded_log": lambda v: lax.cond(
        jnp.sum(v) > 0.0, lambda v: jnp.log(jnp.sum(v)) + v, lambda v: 0.7 * v, v
    ),
    "guarded_divide": lambda v: lax.cond(
        jnp.max(v) > 0.5, lambda v: v / jnp.max(jax.nn.relu(v - 0.5)), lambda v: -0.4 * v, v
    ),
    "guarded_switch": guarded_switch,
    "guarded_twice": guarded_twice,
    "guarded_loop": along(guarded_loop),
    "double_where": lambda v: jnp.where(v > 0.1, jnp.sqrt(jnp.where(v > 0.1, v, 1.0)), 0.0),
    "unit_or_zero": along(lambda v: unit_or_zero(v, 0.4)),
    "unit_or_zero_often": along(lambda v: unit_or_zero(v, 1.2)),
}
ONE |= GUARDED
TWO = {
    "add": lambda v, w: v + w,
    "subtract": lambda v, w: 0.7 * v - 0.4 * w,
    "multiply": lambda v, w: v * w,
    "gate": lambda v, w: jax.nn.sigmoid(v) * w,
    "interpolate": lambda v, w: v + jax.nn.sigmoid(w) * (w - v),
    "where": lambda v, w: jnp.where(v > 0.117, v, w),
    "where_not": lambda v, w: jnp.where(w > 0.093, 0.5, v),
    "where_any": lambda v, w: jnp.where(positive(w), v, 0.3 * w),
    "maximum": lambda v, w: jnp.maximum(v, 0.9 * w),
    "divide": lambda v, w: v / (1 + w**2),
    "atan2": lambda v, w: jnp.arctan2(v, w + 2.3),
    "dot": lambda v, w: jnp.vdot(v, w),
    "outer": lambda v, w: jnp.outer(jnp.ravel(v)[:3], jnp.ravel(w)[:2]),
    "concatenate": lambda v, w: jnp.concatenate([jnp.ravel(v)[:2], jnp.ravel(w)[-2:]]),
    "stack": lambda v, w: jnp.stack([jnp.ravel(v)[:3], jnp.ravel(w)[:3]]),
    "attend": lambda v, w: (
        jax.nn.softmax(jnp.outer(jnp.ravel(v), jnp.ravel(v)), axis=0) @ jnp.ravel(w)
    ),
    "take_by_order": lambda v, w: jnp.ravel(v)[jnp.argsort(jnp.ravel(w))],
    "sort_pairs": lambda v, w: lax.sort([jnp.ravel(v), jnp.ravel(w)], num_keys=1)[1],
    "take_at_max": lambda v, w: jnp.ravel(v)[jnp.argmax(jnp.ravel(w))],
    "spike_over": lambda v, w: spike_over(v, 0.5 * w + 0.21),
    "recurrence": lambda v, w: linear_recurrence(
        jax.nn.sigmoid(jnp.ravel(v)), jnp.ravel(w)
    ).reshape(v.shape),
    "cond_two": lambda v, w: lax.cond(positive(v), lambda v, w: v * w, lambda v, w: w, v, w),
    "cond_choose": lambda v, w: lax.cond(positive(v), lambda: v, lambda: w),
    "scan_two": lambda v, w: lax.scan(
        lambda h, x: (jnp.tanh(h + x), None), jnp.ravel(v)[0], jnp.ravel(w)
    )[0],
    "vmap_two": lambda v, w: jax.vmap(lambda x, y: jnp.where(x > y + 0.07, x, x * y))(
        jnp.ravel(v), jnp.ravel(w)
    ),
}


def switch(v, i):
    return lax.switch(i % 3, [jnp.tanh, lambda v: 0.5 * v * v, lambda v: v - 0.3], v)


def branch_without_outputs(v, i):
    lax.cond(i > 0, lambda: (), lambda: ())
    return 0.9 * v


BY_NUMBER = {  # of a value and an integer, which comes from the input or the state
    "switch": switch,
    "take": lambda v, i: jnp.ravel(v)[i % v.size],
    "dynamic_slice": lambda v, i: lax.dynamic_slice(jnp.ravel(v), (i,), (min(2, v.size),)),
    "dynamic_roll": lambda v, i: jnp.roll(jnp.ravel(v), i),
    "where_number": lambda v, i: jnp.where(i > 0, v, jnp.tanh(-v)),
    "one_hot": lambda v, i: jnp.ravel(v) * jax.nn.one_hot(i % v.size, v.size, dtype=v.dtype),
    "set_at": lambda v, i: jnp.ravel(v).at[i % v.size].set(jnp.sin(jnp.ravel(v)[0])),
    "times_number": lambda v, i: v * (0.5 * i.astype(v.dtype) - 0.3),
    "while": lambda v, i: v * lax.while_loop(lambda n: n < i + 2, lambda n: 2 * n + 1, i),
    "branch_without_outputs": branch_without_outputs,
    "add_at": lambda v, i: jnp.ravel(v).at[i % v.size].add(0.4 * jnp.ravel(v)[-1]),
}

# Operations with weights ---------------------------------------------------------------------------------------------
#
# f(run, op, name, v, w): `run` makes parameters, and marks their uses.


def weight_of_form(draw, n_out, n_in, form, scale=0.9):
    """The parameters of an effective weight (O, I)."""
    w = draw.weight(n_out, n_in, scale)
    if form == "low_rank":
        a, b = draw.rng.normal(size=(n_out, 2)), draw.rng.normal(size=(2, n_in))
        return {"a": jnp.asarray(a), "b": jnp.asarray(scale * b / np.sqrt(2 * n_in))}
    if form == "normalised":
        return {"w": w, "g": jnp.asarray(scale * draw.rng.uniform(0.5, 1, (n_out, 1)))}
    return {"w": w}


def effective(p, form):
    """The effective weight of a form, (O, I); masks and signs are constants."""
    if form == "low_rank":
        return p["a"] @ p["b"]
    if form == "normalised":
        return p["g"] * p["w"] / jnp.sqrt(0.1 + jnp.sum(p["w"] ** 2, axis=1, keepdims=True))
    i = np.arange(p["w"].size).reshape(p["w"].shape)
    if form == "masked":
        return p["w"] * (i % 3 != 1)
    if form == "signed":
        return jnp.abs(p["w"]) * np.where(i % 4 == 2, -1.0, 1.0)
    if form == "quantised":
        return p["w"] + lax.stop_gradient(jnp.round(4 * p["w"]) / 4 - p["w"])
    if form == "softmax":
        return 1.5 * jax.nn.softmax(p["w"], axis=1)
    return p["w"]


def product(x, w):
    return w @ x


def rows(v):
    """A matrix: a vector is one row."""
    return v if v.ndim == 2 else jnp.ravel(v)[None]


def contraction(run, op, name, v, _):
    layout, use = CONTRACTIONS[op.kind]
    v = jnp.ravel(v)
    return run.use(name, use, v, layout(run.weight(name, op, op.n, v.size)))


def by_rows(use):
    """Each row of a matrix meets the same weight (O, I)."""

    def apply(run, op, name, v, _):
        v = rows(v)
        return run.use(name, use, v, run.weight(name, op, op.n, v.shape[1]))

    return apply


def by_groups(use):
    """Each row of a matrix meets a weight of its own (K, O, I)."""

    def apply(run, op, name, v, _):
        v = rows(v)
        w = run.weight(name, op, op.n * len(v), v.shape[1]).reshape(len(v), op.n, -1)
        return run.use(name, use, v, w)

    return apply


def by_data_weight(run, op, name, v, _):
    """The weight on the left or on the right of data with free dimensions of its own."""
    v = rows(v)
    w = run.weight(name, op, op.n, v.shape[0])
    return run.use(name, lambda x, w: jnp.einsum("oi,ik->ok", w, x), v, w)


def chain(run, op, name, v, _):
    """A low-rank product, written as two: they count as one."""
    v = jnp.ravel(v)
    a, b = run.weight(f"{name}.a", op, 2, v.size), run.weight(f"{name}.b", op, op.n, 2)
    return b @ (a @ v)


def convolution(stride=1, padding="SAME", dilation=1, groups=1, channels=False):
    def apply(run, op, name, v, _):
        def use(v, w):
            return lax.conv_general_dilated(
                v[None], w, (stride,), padding, rhs_dilation=(dilation,), feature_group_count=groups
            )[0]

        v = rows(v) if channels else jnp.ravel(v)[None]
        if groups > 1:
            v = jnp.concatenate([v, v[:, ::-1]])
        own = v.shape[0] // groups
        w = run.weight(name, op, op.n * groups, 2 * own).reshape(op.n * groups, own, 2)
        return run.use(name, use, v, w)

    return apply


def embedding(run, op, name, v, _):
    w = run.weight(name, op, N_INT, op.n)
    return run.use(name, lambda i, w: w[i], run.number(op.a) % N_INT, w)


def embedding_of_max(run, op, name, v, _):
    w = run.weight(name, op, max(v.size, 2), op.n)
    return run.use(name, lambda i, w: w[i], jnp.argmax(jnp.ravel(v)), w)


def embedding_of_two(run, op, name, v, _):
    """Two rows at once, one of which may lie outside the table."""
    i = jnp.stack([run.number(op.a) % N_INT, run.number(op.b) + 1]).astype(jnp.int32)
    w = run.weight(name, op, N_INT, op.n)
    use = lambda i, w: w.at[i].get(mode="fill", fill_value=0.0)
    return jnp.sum(run.use(name, use, i, w), axis=0)


def embedding_of_columns(run, op, name, v, _):
    i = jnp.argsort(jnp.ravel(v))[:2]
    w = run.weight(name, op, op.n, max(v.size, 2))
    return run.use(name, lambda i, w: jnp.take(w, i, axis=1), i, w)


def sparse(run, op, name, v, _):
    v = jnp.ravel(v)
    at = np.array([[o, i] for o in range(op.n) for i in range(v.size) if (o + i) % 3 != 1])
    at = at if len(at) else np.zeros((1, 2), int)
    values = jnp.ravel(run.weight(name, op, len(at), 1))

    def use(x, values):
        return BCOO((values, jnp.asarray(at)), shape=(op.n, v.size)) @ x

    return run.use(name, use, v, values)


def complex_weight(run, op, name, v, w):
    v = jnp.ravel(v)
    return complex_product(run, name, op, v, v[::-1], op.n)[op.a % 2]


def bilinear(run, op, name, v, w):
    """v W w: the second product is one of data."""
    v, w = jnp.ravel(v), jnp.ravel(w)
    return v * jnp.tanh(run.use(name, product, w, run.weight(name, op, v.size, w.size)))


def perceptron(run, op, name, v, _):
    v = jnp.ravel(v)
    hidden = jnp.tanh(run.use(name, product, v, run.weight(f"{name}.in", op, 2, v.size)))
    return run.use(name, product, hidden, run.weight(f"{name}.out", op, op.n, 2))


def element(f, low=0.6, high=1.2, scalar=False):
    """An element-wise operation f(v, w) with one weight for each element, or one for all."""

    def apply(run, op, name, v, _):
        return run.use(name, f, v, run.vector(name, op, () if scalar else v.shape, low, high))

    return apply


@jax.custom_jvp
def own_product(x, w):
    return jnp.tanh(w @ x)


@own_product.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    y = own_product(x, w)
    return y, (1.2 - y**2) * (w @ dx + dw @ x)


def opaque_product(run, op, name, v, _):
    """A weight inside a function with a derivative of its own: nothing in there is looked at."""
    v = jnp.ravel(v)
    return run.use(name, own_product, v, run.weight(name, op, op.n, v.size))


def summed_product(run, op, name, v, _):
    v = jnp.ravel(v)
    use = lambda v, w: w * v[None]
    return jnp.sum(run.use(name, use, v, run.weight(name, op, op.n, v.size)), axis=1)


def decay(run, op, name, v, w):
    a = jnp.exp(-1 / run.vector(name, op, v.shape, 1.0, 4.0))
    return run.use(name, jnp.multiply, v, a) + run.use(name, jnp.multiply, w, 1 - a)


MIX = {
    **dict.fromkeys(CONTRACTIONS, contraction),
    "rows": by_rows(lambda x, w: x @ w.T),
    "rows_einsum": by_rows(lambda x, w: jnp.einsum("ki,oi->ok", x, w)),
    "vmap_rows": by_rows(lambda x, w: jax.vmap(lambda row: w @ row)(x)),
    "groups": by_groups(lambda x, w: jnp.einsum("ki,koi->ko", x, w)),
    "vmap_groups": by_groups(jax.vmap(product)),
    "all_groups": by_groups(lambda x, w: jnp.tensordot(x, w, ((0, 1), (0, 2)))),
    "jit_product": by_rows(jax.jit(lambda x, w: x @ w.T)),
    "checkpoint_product": by_rows(jax.checkpoint(lambda x, w: x @ w.T)),
    "columns": by_data_weight,
    "chain": chain,
    "conv": convolution(),
    "conv_valid": convolution(padding=((1, 0),)),
    "conv_stride": convolution(stride=2),
    "conv_dilated": convolution(dilation=2),
    "conv_channels": convolution(channels=True),
    "conv_groups": convolution(groups=2),
    **by_name(
        *(embedding, embedding_of_max, embedding_of_two, embedding_of_columns, sparse),
        *(complex_weight, bilinear, perceptron),
    ),
}
ELEM = {
    "gain": element(jnp.multiply),
    "gain_scalar": element(jnp.multiply, scalar=True),
    "bias": element(jnp.add, -0.4, 0.4),
    "bias_scalar": element(jnp.add, -0.4, 0.4, scalar=True),
    "power": element(lambda v, w: (0.1 + jnp.abs(v)) ** w),
    "sin_gain": element(lambda v, w: jnp.sin(w * v)),
    "threshold": element(spike_over, 0.1, 0.4),
    "threshold_vjp": element(lambda v, w: spike_vjp(v - w), 0.1, 0.4),
    "leaky_relu": element(lambda v, w: jnp.where(v > 0.083, v, w * v), scalar=True),
    "clip_to": element(jnp.minimum, 0.1, 0.5),
    "divide_by": element(lambda v, w: v / w),
    "interpolate_by": element(lambda v, w: jnp.tanh(v) + w * (v - jnp.tanh(v)), 0.2, 0.8),
    "reset_to": element(lambda v, w: jnp.where(v > 0.137, w, v), 0.0, 0.3),
    "last_is": element(lambda v, w: jnp.ravel(v).at[-1].set(w), -0.5, 0.5, scalar=True),
    "append": element(lambda v, w: jnp.concatenate([jnp.ravel(v), w[None]]), -1, 1, scalar=True),
    **by_name(decay, summed_product, opaque_product),
}

# Weights inside control flow


def cond_one(run, op, name, v, w):
    """A weight in one branch."""
    v, w = jnp.ravel(v), jnp.ravel(w)
    m = run.weight(name, op, w.size, v.size)
    return lax.cond(positive(v), lambda: jnp.tanh(run.use(name, product, v, m)), lambda: w)


def cond_both(run, op, name, v, w):
    """A weight of its own in each branch."""
    v, w = jnp.ravel(v), jnp.ravel(w)
    of_v = run.weight(f"{name}.0", op, op.n, v.size)
    of_w = run.weight(f"{name}.1", op, op.n, w.size)
    return lax.cond(
        positive(w),
        lambda: run.use(name, lambda x, m: x @ m.T, w, of_w),
        lambda: jnp.sin(run.use(name, product, v, of_v)),
    )


def cond_same(run, op, name, v, w):
    """One weight in both branches, on different data."""
    v = jnp.ravel(v)
    m = run.weight(name, op, op.n, v.size)
    return lax.cond(
        positive(v),
        lambda: -jnp.tanh(run.use(name, product, v[::-1] * v, m)),
        lambda: run.use(name, product, v, m),
    )


def cond_gain(run, op, name, v, _):
    m = run.vector(name, op, v.shape, 0.6, 1.2)
    return lax.cond(positive(v), lambda: jnp.tanh(v), lambda: run.use(name, jnp.multiply, v, m))


def switch_weights(run, op, name, v, _):
    v = jnp.ravel(v)
    weights = [run.weight(f"{name}.{k}", op, v.size, v.size) for k in range(2)]
    use = lambda k: run.use(name, product, v, weights[k])
    return lax.switch(run.number(op.b) % 3, [lambda: use(0), lambda: jnp.tanh(use(1)), lambda: v])


def scan_weight(run, op, name, v, _):
    """Sub-steps of a recurrent network, one weight in each."""
    v = jnp.ravel(v)
    m = run.weight(name, op, v.size, v.size)

    def body(h, x):
        h = jnp.tanh(run.use(name, product, h, m) + x)
        return h, 0.5 * h

    return lax.scan(body, v, jnp.stack([v, 0.3 * v])[: op.n])[0]


def scan_outputs(run, op, name, v, w):
    """As above, but the data is that of the loop, and what is read are the outputs of the loop."""
    v, w = rows(v), jnp.ravel(w)
    m = run.weight(name, op, w.size, v.shape[1])

    def body(h, x):
        h = 0.6 * h + run.use(name, product, x, m)
        return h, jnp.sin(h)

    return lax.scan(body, w, v)[1]


def scan_gain(run, op, name, v, _):
    m = run.vector(name, op, v.shape, 0.6, 1.2)

    def body(h, x):
        return run.use(name, jnp.multiply, h, m) + 0.2 * x, None

    return lax.scan(body, v, jnp.stack([v, jnp.tanh(v)])[: op.n])[0]


def scan_layers(run, op, name, v, _):
    """A loop over layers: each sub-step has a weight of its own."""
    v = jnp.ravel(v)
    stack = run.weight(name, op, v.size * op.n, v.size).reshape(op.n, v.size, v.size)

    def body(h, w):
        return jnp.tanh(run.use(name, product, h, w)) - 0.1 * h, None

    return lax.scan(body, v, stack)[0]


def fori_weight(run, op, name, v, _):
    v = jnp.ravel(v)
    m = run.weight(name, op, v.size, v.size)
    body = lambda _, h: h + 0.5 * jnp.sin(run.use(name, lambda x, m: x @ m, h, m))
    return lax.fori_loop(0, op.n, body, v)


def map_weight(run, op, name, v, _):
    v = rows(v)
    m = run.weight(name, op, op.n, v.shape[1])
    return lax.map(lambda row: jnp.tanh(run.use(name, product, row, m)), v)


def nested_loops(run, op, name, v, w):
    """A loop with a branch in it, with a loop in that."""
    v = jnp.ravel(v)
    m = run.weight(name, op, v.size, v.size)

    def outer(h, x):
        def inner(h, x):
            return h + 0.3 * jnp.tanh(run.use(name, product, h * x, m)), None

        other = lambda: jnp.sin(run.use(name, product, h, m))
        return lax.cond(positive(h + x), other, lambda: lax.scan(inner, h, x[:2])[0]), None

    return lax.scan(outer, v, jnp.stack([v, jnp.tanh(v)])[: op.n])[0]


def energy(run, op, name, v, _):
    """A step down an energy: the weight is used forwards and, by `jax.grad`, backwards."""
    v = jnp.ravel(v)
    w = run.weight(name, op, op.n, v.size)
    return v - 0.3 * jax.grad(lambda u: jnp.sum(jnp.sin(w @ u)))(v)


def branch_by_row(run, op, name, v, _):
    """A branch by row, which `vmap` makes a selection: its data is not cut."""
    v = rows(v)
    w = run.weight(name, op, v.shape[1], v.shape[1])
    one = lambda x: lax.cond(x[0] > 0.117, lambda x: jnp.tanh(w @ x), lambda x: 0.4 * x, x)
    return jax.vmap(one)(v)


def guarded_gain(run, op, name, v, _):
    """The square root of a weight times data that may be negative, behind a branch."""
    m = jnp.exp(run.vector(name, op, (), -0.5, 0.5))
    s = jnp.sum(v)
    root = lambda: v * jnp.sqrt(run.use(name, jnp.multiply, s, m))
    return lax.cond(s > 0.05, root, lambda: jnp.zeros_like(v))


def guarded_by_weight(run, op, name, v, _):
    """The branch depends on what the weight gives."""
    t = run.use(name, jnp.multiply, jnp.sum(v), run.vector(name, op, (), 0.6, 1.2))
    return lax.cond(t > 0.05, lambda: v * jnp.log(t) + jnp.sqrt(t), lambda: 0.2 * v)


def guarded_product(run, op, name, v, _):
    v = jnp.ravel(v)
    m = run.weight(name, op, op.n, v.size)
    s = jnp.sum(v)
    use = lambda: jnp.sqrt(s) * run.use(name, product, v / s, m)
    return lax.cond(s > 0.05, use, lambda: jnp.zeros(op.n, v.dtype))


GUARDED_WEIGHTS = by_name(guarded_gain, guarded_by_weight, guarded_product)

# Connections: integer arrays of the model, of narrow types, in tables that are larger than those count


def integers(run, name, shape, high, dtype, seed):
    make = lambda: np.random.default_rng(seed).integers(0, high, shape).astype(dtype)
    return run.parameters.get(f"{name}.at", (shape, high, dtype), False, make)


def pairs(run, op, name, v, _):
    """Single entries of a matrix, by pairs of numbers: an effective weight for each element."""
    v = jnp.ravel(v)
    at = integers(run, name, (v.size, 2), 20, ("int8", "uint8", "int32")[op.b % 3], op.n)
    w = run.weight(name, op, 20, 20)
    numbers = lax.GatherDimensionNumbers((), (0, 1), (0, 1))
    return run.use(name, jnp.multiply, v, lax.gather(w, jnp.asarray(at), numbers, (1, 1)))


def embedding_of_bytes(run, op, name, v, _):
    """Rows of a table that is larger than its index type counts.

    Through `w[i]` alone: JAX's own gradients of `take` and `lax.gather` are wrong with such an index.
    """
    token = (run.number(op.a) % N_INT).astype(jnp.uint8) * jnp.uint8(85) + jnp.uint8(80)
    w = run.weight(name, op, 259, op.n)
    return run.use(name, lambda i, w: w[i], token, w)


def sparse_of_bytes(run, op, name, v, _):
    """A sparse matrix with narrow indices, times a matrix."""
    x = fit(v, (16, 2)) if v.ndim else jnp.broadcast_to(v, (16, 2))
    at = integers(run, name, (7, 2), 16, ("int8", "uint8", "int32")[op.b % 3], op.n)
    values = jnp.ravel(run.weight(name, op, 7, 1))

    def use(x, values):
        dtype = jnp.result_type(x, values)  # JAX has no derivative of a product of two types
        return BCOO((values.astype(dtype), jnp.asarray(at)), shape=(16, 16)) @ x.astype(dtype)

    y = run.use(name, use, x, values)
    return jnp.sum(y.reshape(4, 4, 2), axis=1)[: op.n]


def wired(run, op, name, v, _):
    """Data in an order that the model holds."""
    v = jnp.ravel(v)
    return jnp.tanh(v[jnp.asarray(integers(run, name, (v.size,), v.size, "int8", op.n))])


CONTROL = {
    **GUARDED_WEIGHTS,
    **by_name(pairs, embedding_of_bytes, sparse_of_bytes, wired),
    **by_name(
        *(nested_loops, energy, branch_by_row, cond_one, cond_both, cond_same, cond_gain),
        *(switch_weights, scan_weight, scan_outputs, scan_gain, scan_layers, fori_weight),
        map_weight,
    ),
}
WEIGHTED = {**MIX, **ELEM, **CONTROL}
KINDS = (*ONE, *TWO, *BY_NUMBER, *WEIGHTED)
FIXED_BRANCHES = tuple(kind for kind in KINDS if kind not in (*GUARDED, *GUARDED_WEIGHTS))
"""Those whose derivatives are finite in a branch that is not taken, too."""
UNMARKED = ("chain", "energy", "branch_by_row", "complex_weight")
"""Those whose weight has no mark."""
LARGEST = 6  # elements of a value in the pool

# The model -----------------------------------------------------------------------------------------------------------


class Parameters:
    """Those that are given, and others, which are made when they are first asked for, in the order of use."""

    def __init__(self, seed=0, made=(), shared=()):
        self.draw, self.made, self.first, self.shared = Draw(seed), dict(made), {}, dict(shared)

    def get(self, name, key, shared, make):
        if name not in self.made and name not in self.shared:
            if shared and key in self.first:
                self.shared[name] = self.first[key]
            else:
                self.first.setdefault(key, name)
                with jax.ensure_compile_time_eval():
                    self.made[name] = jax.tree.map(np.asarray, make())
        return self.made[self.shared.get(name, name)]


def stored(make, op: Op):
    return (lambda: jax.tree.map(lambda a: np.asarray(a, op.store), make())) if op.store else make


def cast(w, op: Op):
    return w.astype(op.cast) if op.cast else w


class Run:
    """One step: the pool and the parameters."""

    def __init__(self, parameters, marked=frozenset()):
        self.parameters, self.marked = parameters, marked
        self.pool, self.numbers = [], []

    # Values

    def add(self, value):
        self.pool.append(jnp.ravel(value)[:LARGEST] if value.size > LARGEST else value)

    def read(self, back):
        return self.pool[-1 - back % len(self.pool)]

    def number(self, back):
        return self.numbers[back % len(self.numbers)]

    def apply(self, op: Op, name):
        v, w = self.read(op.a), self.read(op.b)
        if op.low:
            v, w = v.astype(op.low), w.astype(op.low)
        if op.kind in ONE:
            out = ONE[op.kind](v)
        elif op.kind in BY_NUMBER:
            out = BY_NUMBER[op.kind](v, self.number(op.b))
        elif op.kind in TWO:
            out = TWO[op.kind](v, fit(w, v.shape))
        elif op.kind in ELEM:
            out = ELEM[op.kind](self, op, name, v, fit(w, v.shape))
        else:
            out = WEIGHTED[op.kind](self, op, name, v, w)
            # A product of a product with a weight, with nothing between, counts as one (`chain`).
            out = 1.1 * out if op.kind in MIX else out
        self.add(out.astype(float) if op.low else out)

    # Parameters

    def weight(self, name, op: Op, n_out, n_in):
        """An effective weight (O, I)."""
        form = op.form if op.form in DRAWN_FORMS else "plain"
        make = lambda: weight_of_form(self.parameters.draw, n_out, n_in, form)
        p = self.parameters.get(name, (n_out, n_in, form, op.store), op.shared, stored(make, op))
        return cast(effective(jax.tree.map(jnp.asarray, p), op.form), op)

    def vector(self, name, op: Op, shape, low, high):
        make = lambda: self.parameters.draw.rng.uniform(low, high, shape)
        key = shape, low, high, op.store
        return cast(jnp.asarray(self.parameters.get(name, key, op.shared, stored(make, op))), op)

    def use(self, name, fn, x, w):
        """What a weight and data give; `name` says whether the use is marked."""
        return fn(x, etpc.mark(w) if base(name) in self.marked else w)


def fit(v, shape):
    """A value of another shape, by movement alone."""
    if v.shape == shape:
        return v
    size = int(np.prod(shape))
    if v.ndim == 0:
        return jnp.broadcast_to(v, shape)
    v = jnp.ravel(v)
    if v.size < size:
        v = jnp.tile(v, -(-size // v.size))
    return v[:size].reshape(shape)


# States


def initial(leaf: Leaf):
    """The initial state; random, so that no derivative is zero by accident."""
    shapes = {"stacked": (leaf.k, leaf.n), "scalar": (), "delay": (leaf.k, leaf.n)}
    shapes["ring"] = leaf.k, leaf.n
    rng = Draw(leaf.n + 7 * leaf.k).rng
    value = rng.normal(0, 0.5, shapes.get(leaf.kind, (leaf.n,)))
    if leaf.kind == "complex":
        value = value + 1j * rng.normal(0, 0.5, value.shape)
    return {
        "ring": {"buffer": jnp.asarray(value), "i": jnp.asarray(leaf.n % leaf.k, jnp.int32)},
        "counter": (jnp.asarray(value), jnp.ones(value.shape, jnp.int32)),
        "noisy": (jnp.asarray(value), jax.random.key_data(jax.random.key(leaf.n))),
    }.get(leaf.kind, jnp.asarray(value))


def as_stored(leaf: Leaf, state):
    """A state in the type that it is stored in."""
    return as_type(state, leaf.low) if leaf.low else state


def as_type(tree, dtype):
    is_real = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: a.astype(dtype) if is_real(a) else a, tree)


def readable(leaf: Leaf, old):
    """The floats and the integers of an old state."""
    if leaf.kind == "delay":
        return [old[-1]], []
    if leaf.kind == "ring":
        return [old["buffer"][old["i"]]], [old["i"]]
    if leaf.kind == "counter":
        return [old[0]], [old[1][0]]
    if leaf.kind == "noisy":
        return [old[0]], []
    if leaf.kind == "complex":
        return [jnp.concatenate([old.real, old.imag])], []
    return [old], []


def blend(run: Run, name, leaf: Leaf, h, v, w):
    """h' of h and what drives it, v, and another value w."""
    rule = leaf.rule
    if rule in COUPLINGS:
        return 0.6 * along(COUPLINGS[rule])(h) + 0.4 * jnp.tanh(v)
    if rule == "tau":
        a = jnp.exp(-1 / run.vector(name, Op("tau"), h.shape, 1.0, 4.0))
        return run.use(name, jnp.multiply, h, a) + run.use(name, jnp.multiply, v, 1 - a)
    if rule.startswith("decay_"):
        return run.use(name, jnp.multiply, h, decay_of(run, name, rule, h.shape)) + v
    if rule == "mixed_by_weight":
        m = run.weight(name, Op("mixed"), h.size, h.size)
        u = run.use(name, product, jnp.ravel(h), m).reshape(h.shape)
        return 0.5 * h + 0.5 * jnp.tanh(u + v)
    if rule in ("hard_reset", "soft_reset", "detached_reset"):
        h = 0.7 * h + v
        z = spike(h - 0.41)
        return {
            "hard_reset": lambda: h * (1 - z),
            "soft_reset": lambda: h - 0.5 * z,
            "detached_reset": lambda: h - 0.5 * lax.stop_gradient(z),
        }[rule]()
    return {
        "raw": lambda: 0.6 * h + 0.5 * v,
        "gated": lambda: (1 - jax.nn.sigmoid(w)) * h + jax.nn.sigmoid(w) * jnp.tanh(v),
        "replace": lambda: jnp.tanh(v),
        "where": lambda: jnp.where(w > 0.071, 0.9 * h, jnp.tanh(v)),
        "times": lambda: h * jax.nn.sigmoid(v) + 0.1,
        "normalised": lambda: (0.7 * h + v) / jnp.sqrt(0.1 + jnp.sum((0.7 * h + v) ** 2)),
        "max": lambda: jnp.maximum(0.8 * h, jnp.tanh(v)),
    }.get(rule, lambda: 0.7 * h + 0.3 * jnp.tanh(v))()


def decay_of(run: Run, name, rule, shape):
    """Decays that agree for some parameters and not for others."""
    one = rule in ("decay_scalar", "decay_exp")
    p = run.vector(name, Op(rule), () if one else shape, 0.3, 1.6)
    places = 0.1 * np.arange(int(np.prod(shape))).reshape(shape)
    return {
        "decay_scalar": lambda: jnp.full(shape, jax.nn.sigmoid(p)),
        "decay_minimum": lambda: jnp.minimum(p, 0.6),
        "decay_where": lambda: jnp.where(p > 0.2, 0.7, 0.5 * jnp.tanh(p)),
        "decay_exp": lambda: jnp.exp(-0.2 - jnp.tanh(jnp.round(p)) * places),
        "decay_steps": lambda: 0.4 + 0.2 * jnp.sign(p) + 0.2 * jax.nn.relu(jnp.tanh(p) - 0.5),
    }[rule]()


def rotating(run: Run, name, leaf: Leaf, h, v, w):
    """h' of a complex h; v and w are real."""
    v, w = (fit(u, h.shape) for u in (v, w))
    if leaf.rule in ("tau", "gated", "max"):
        p = run.vector(name, Op("polar"), (2, *h.shape), 0.5, 1.2)
        use = lambda h, p: h * jnp.exp(lax.complex(-0.5 * p[0], p[1]))
        h = run.use(name, use, h, p) + v
    elif leaf.rule == "mixed_by_weight":
        h = 0.6j * h + lax.complex(*complex_product(run, name, Op("mixed"), v, w, h.size))
    elif leaf.rule in ("where", "hard_reset"):
        h = jnp.where(jnp.abs(h) > w + 0.531, 0.5j * h, h) + 0.4 * v
    elif leaf.rule in ("normalised", "times"):
        h = 0.7 * h * jnp.exp(1j * v)
        h = h / jnp.sqrt(0.3 + jnp.sum(jnp.abs(h) ** 2))
    elif leaf.rule in ("roll", "permute", "reverse"):
        h = 0.6 * jnp.roll(h, 1) + lax.complex(v, 0.3 * w)
    elif leaf.rule in ("cumsum", "lateral", "mean_free"):
        h = 0.3j * jnp.cumsum(jnp.conj(h)) + v
    else:
        h = np.exp(-0.3 + 0.7j) * h + lax.complex(jnp.tanh(v), 0.5 * w)
    return h


def complex_product(run: Run, name, op: Op, re, im, n_out):
    """The real and imaginary parts of a product with a complex weight."""
    w = run.weight(name, op, 2 * n_out, re.size).reshape(2, n_out, re.size)
    y = lax.complex(w[0], w[1]) @ lax.complex(re, im)
    return jnp.stack([y.real, y.imag])


def row_by_row(h, v, w):
    """Written in place: each row reads the new value of the one before."""
    for j in range(len(h)):
        h = h.at[j].set(0.7 * h[j] + 0.3 * jnp.tanh(v[j] + h[j - 1]))
    return h


def one_column(h, v, w):
    """The last elements are written, and the others stay."""
    return h.at[..., -1].set(0.6 * h[..., -1] + jnp.tanh(v[..., -1] * w[..., 0]))


def in_parts(h, v, w):
    """Two states in one array; the second reads the new value of the first."""
    half = len(h) // 2
    a, b = h[:half], h[half:]
    a = 0.7 * a + 0.3 * jnp.tanh(v[:half])
    b = 0.5 * b + 0.4 * fit(a, b.shape) * w[half:] if half else 0.5 * b
    return jnp.concatenate([a, b])


def masked_write(h, v, w):
    """Every second element is written, by a mask that is known."""
    mask = (np.arange(h.size) % 2 == 0).reshape(h.shape)
    return jnp.where(mask, 0.5 * h + jnp.tanh(v), h)


IN_PLACE = by_name(row_by_row, one_column, in_parts, masked_write)


def update(run: Run, name, leaf: Leaf, old, olds, news):
    """The new state of a leaf."""
    if leaf.kind == "complex":
        new = rotating(run, name, leaf, old, run.read(leaf.a), run.read(leaf.b))
        run.add(readable(leaf, new)[0][0])
        return new
    floats, _ = readable(leaf, old)
    h = floats[0]
    v, w = fit(run.read(leaf.a), h.shape), fit(run.read(leaf.b), h.shape)
    if leaf.kind in ("vector", "stacked", "scalar"):
        if leaf.rule == "mirror" and news:
            return fit(news[leaf.a % len(news)], h.shape)
        if leaf.rule == "previous":
            return fit(olds[leaf.a % len(olds)], h.shape)
        if leaf.rule in IN_PLACE and h.ndim:
            new = IN_PLACE[leaf.rule](h, v, w)
            run.add(new)
            return new
    h = blend(run, name, leaf, h, v, w)
    if leaf.kind == "delay":
        rolled = jnp.roll(old, 1, axis=0).at[0].set(h)
        shifted = jnp.concatenate([h[None], old[:-1]])
        new = rolled if leaf.rule == "raw" else shifted
    elif leaf.kind == "ring":
        i, d = old["i"], leaf.k
        if leaf.rule == "raw":
            one_hot = jnp.arange(d)[:, None] == i
            buffer = jnp.where(one_hot, h[None], old["buffer"])
        else:
            buffer = old["buffer"].at[i].set(h)
        new = {"buffer": buffer, "i": (i + 1) % d}
    elif leaf.kind == "counter":
        quiet = old[1] > 0
        h = jnp.where(quiet, 0.9 * old[0], h)
        fired = h > 0.213
        new = h, jnp.where(fired, 2, jnp.maximum(old[1] - 1, 0)).astype(jnp.int32)
    elif leaf.kind == "noisy":
        key, now = jax.random.split(jax.random.wrap_key_data(old[1]))
        h = h + 0.2 * jax.random.normal(now, h.shape, h.dtype) * w
        new = h, jax.random.key_data(key)
    else:
        new = h
    run.add(h)
    return new


def packed(program: Program, values):
    names = [f"s{i}" for i in range(len(values))]
    if program.pack == "dict":
        return dict(zip(names, values, strict=True))
    if program.pack == "nested":
        return {"first": values[0], "rest": {"deep": tuple(values[1:])}}
    return tuple(values)


def initial_state(program: Program):
    return packed(program, [as_stored(leaf, initial(leaf)) for leaf in program.leaves])


def unpacked(program: Program, state):
    if program.pack == "dict":
        return [state[f"s{i}"] for i in range(len(program.leaves))]
    if program.pack == "nested":
        return [state["first"], *state["rest"]["deep"]]
    return list(state)


def run_step(program: Program, run: Run, x, state):
    olds = [as_type(old, float) for old in unpacked(program, state)]
    run.numbers.append(x["i"])
    run.add(x["x"])
    for leaf, old in zip(program.leaves, olds, strict=True):
        floats, numbers = readable(leaf, old)
        for value in floats:
            run.add(value)
        run.numbers += numbers
    values = [readable(leaf, old)[0][0] for leaf, old in zip(program.leaves, olds, strict=True)]
    news, floats = [], []
    for i, (leaf, old) in enumerate(zip(program.leaves, olds, strict=True)):
        for j, op in enumerate(leaf.before):
            run.apply(op, f"{i}.{j}:{op.kind}")
        new = update(run, f"s{i}", leaf, old, values, floats)
        news.append(as_stored(leaf, new))
        floats += [new] if leaf.kind in ("vector", "stacked", "scalar", "delay") else []
    for j, op in enumerate(program.after):
        run.apply(op, f"after.{j}:{op.kind}")
    if program.separate:
        y = {"values": tuple(run.read(back) for back in program.reads), "n": run.numbers[-1] + 1}
        return y, packed(program, news)
    y = jnp.concatenate([jnp.ravel(run.read(back)) for back in program.reads])
    if program.readout:
        w = run.weight("out", Op("out"), 2, y.size)
        y = run.use("out", product, y, w)
    return y, packed(program, news)


class DrawnModel(eqx.Module):
    """A program with parameters."""

    parameters: dict[str, Any]
    program: Program = eqx.field(static=True)
    shared: tuple = eqx.field(static=True)

    def __init__(self, program: Program):
        made = Parameters(program.seed)
        trace(program, made)
        is_whole = lambda a: jnp.issubdtype(a.dtype, jnp.integer)
        self.parameters = jax.tree.map(lambda a: a if is_whole(a) else jnp.asarray(a), made.made)
        self.shared = tuple(made.shared.items())
        self.program = dataclasses.replace(program, seed=0)

    def init_state(self):
        return initial_state(self.program)

    def __call__(self, x, state):
        return self.run(Parameters(0, self.parameters, self.shared), x, state)

    def run(self, given: Parameters, x, state):
        return run_step(self.program, Run(given, self.program.marked), x, state)


class Apart(eqx.Module):
    """The same model, with parameters of their own for what is marked and for what is not."""

    marked: DrawnModel
    others: DrawnModel

    def __call__(self, x, state):
        program, shared = self.marked.program, dict(self.marked.shared)
        owner = lambda name: self.marked if base(name) in program.marked else self.others
        names = [*self.marked.parameters, *shared]
        made = {name: owner(name).parameters[shared.get(name, name)] for name in names}
        return self.marked.run(Parameters(0, made), x, state)


def trace(program: Program, parameters):
    step = lambda x, state: run_step(program, Run(parameters), x, state)
    return jax.eval_shape(step, data(program, 1, at=0), initial_state(program))


def data(program: Program, T, seed=0, at=None):
    """Inputs, leading axis T."""
    rng = np.random.default_rng(program.seed + seed + 1)
    xs = {
        "x": jnp.asarray(rng.normal(0.3, 1, (T, program.n_in))),
        "i": jnp.asarray(rng.integers(0, N_INT, T), jnp.int32),
    }
    return xs if at is None else jax.tree.map(lambda a: a[at], xs)


# Drawing -------------------------------------------------------------------------------------------------------------


Choose = Callable[[Sequence], Any]


def draw_op(choose: Choose, kinds, narrow=False) -> Op:
    """With a weight in half of the cases."""
    groups = [[k for k in kinds if (k in WEIGHTED) == weighted] for weighted in (False, True)]
    types = {}
    if narrow and choose((False, True)):
        fields = (("low",), ("store",), ("cast",), ("low", "store"), ("low", "cast"))
        types = dict.fromkeys(choose(fields), choose(NARROW))
    return Op(
        kind=choose(choose([group for group in groups if group])),
        a=choose(NEAR),
        b=choose(NEAR),
        n=choose((1, 2, 3)),
        form=choose(FORMS),
        shared=choose((False, True)),
        **types,
    )


def draw_leaf(choose: Choose, kinds, states, narrow=False) -> Leaf:
    kind = choose(states)
    low = narrow and kind != "complex" and choose((False, False, True))
    return Leaf(
        kind=kind,
        n=choose((1, 2, 3)),
        k=choose((1, 2, 3)),
        rule=choose(RULES),
        a=choose(NEAR),
        b=choose(NEAR),
        before=tuple(draw_op(choose, kinds, narrow) for _ in range(choose((0, 1, 1, 2, 2, 3)))),
        low=choose(NARROW) if low else "",
    )


def draw_program(choose: Choose, kinds=KINDS, complex=False, narrow=False, marks=False) -> Program:
    """A program; `choose` picks one of some things, the simplest first."""
    states = STATES + COMPLEX_STATES * complex
    leaves = tuple(draw_leaf(choose, kinds, states, narrow) for _ in range(choose((1, 2, 3))))
    program = Program(
        leaves=leaves,
        after=tuple(draw_op(choose, kinds, narrow) for _ in range(choose((0, 1, 2)))),
        reads=tuple(choose(NEAR) for _ in range(choose((1, 2)))),
        readout=choose((True, True, False)),
        separate=choose((False, False, False, True)),
        pack=choose(("tuple", "dict", "nested")),
        n_in=choose((1, 2, 3)),
        seed=choose(range(2**16)),
        marks=1 + choose(range(8)) if marks else 0,
        weights=choose(("all", "marked")) if marks else "all",
    )
    return program if is_step(program) else program.widened


def is_step(program: Program):
    """Not every operation of JAX takes narrow types."""
    if not program.narrow:
        return True
    try:
        trace(program, Parameters(program.seed))
    except (TypeError, ValueError, NotImplementedError, FutureWarning):
        return False
    return True


NEAR = (0, 0, 0, 1, 1, 2, 3, 4, 5, 6)


def random_program(rng: np.random.Generator, **options) -> Program:
    return draw_program(lambda options: options[rng.integers(len(options))], **options)


def simpler(program: Program):
    """Programs with less in them."""
    if len(program.leaves) > 1:
        for i in range(len(program.leaves)):
            yield dataclasses.replace(program, leaves=program.leaves[:i] + program.leaves[i + 1 :])
    for i, leaf in enumerate(program.leaves):
        for smaller in [*_shorter(leaf, "before"), *_plainer(leaf, Leaf(), ("before",))]:
            changed = (*program.leaves[:i], smaller, *program.leaves[i + 1 :])
            yield dataclasses.replace(program, leaves=changed)
    yield from _shorter(program, "after")
    if len(program.reads) > 1:
        for i in range(len(program.reads)):
            yield dataclasses.replace(program, reads=program.reads[:i] + program.reads[i + 1 :])
    yield from _plainer(program, Program(), ("leaves", "after", "seed"))


def _shorter(owner, field):
    ops = getattr(owner, field)
    for i, op in enumerate(ops):
        yield dataclasses.replace(owner, **{field: ops[:i] + ops[i + 1 :]})
        for smaller in _plainer(op, Op("tanh"), ()):
            yield dataclasses.replace(owner, **{field: (*ops[:i], smaller, *ops[i + 1 :])})


def _plainer(value, plain, kept):
    for field in dataclasses.fields(value):
        simple = getattr(plain, field.name)
        if field.name not in kept and getattr(value, field.name) != simple:
            yield dataclasses.replace(value, **{field.name: simple})


def shrink(program: Program, fails: Callable[[Program], bool], budget=150) -> Program:
    """The smallest program that is found to fail in the same way."""
    seen = {program}
    while budget > 0:
        for candidate in simpler(program):
            if candidate in seen or budget <= 0:
                continue
            seen.add(candidate)
            budget -= 1
            if fails(candidate):
                program = candidate
                break
        else:
            break
    return program
