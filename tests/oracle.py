r"""Dense references for online gradients: slow, small, and independent of the compiler.

A model has ``model.step(x, state, ops) -> (y, new_state)`` and sends every use of a parameter through ``ops``
(`tests.models.Plain`): ``ops.mix(name, fn, x, w)`` for an op that mixes positions (linear in the effective weight w),
``ops.elem(name, fn, x, w)`` for an element-wise one, and ``ops.state(name, value)`` for a new state value as soon as
it is computed. The hooks below cut, perturb and record there: nothing is analysed, the cuts are placed by hand, and
every Jacobian is dense.

Definitions
===========
``s = s_{t-1}`` and ``s' = s_t`` are all float states in one vector; ``y_k = op_k(x_k, w_k)`` is the output of op k.
Cuts concern derivatives only.

*Cut step* C: every mixing op reads ``stop(x_k)``. In C, ``D = ds'/ds`` and ``F_k = ds'/dy_k`` (mixing) or
``ds'/dw_k`` (element-wise). ``J_k = dy_k/dw_k`` (mixing) or the identity. Trace, for each entry of w_k and each
state: ``eps_t = D eps_{t-1} + F J``.

*Reaching a state.* A mixing op does if ``ds'/dy_k`` is not structurally zero in the uncut step, that is directly or
through other ops. Structurally: the union of the non-zeros at random points.

*Step E*: the step in two environments. In A old states are live, in B they are stopped; parameters are live in both.
New state values (``ops.state``) are those of A in both. A mixing op that reaches a state reads its input from B, in
both. An op that reaches only the output, and an element-wise op, reads the environment it is in. The loss is A's.

*Truncated D-RTRL*: ``G_k = sum_t L_t eps'_t + direct_w + direct_s eps_{t-1}``. A path in E from a weight or
an old state to the loss has a first part, up to where it enters a mixing op's input. Sort the paths by the *last* new
state value in that part. What leads there is ``eps'_t`` (the trace at the new state values, in C), what follows is
``L_t``: so an uncut path from one new state value into another is not in L_t, and a path through a mixing op is.
Paths whose first part has no new state value: ``direct_w`` from weights, entering any op; ``direct_s`` from old
states, entering only ops that reach nothing but the output. A use without a trace has ``eps_{t-1} = 0``. The result
does not depend on the window; the compiler computes it in another way, by reverse mode through E.

*ES-D-RTRL, decay a*, for mixing ops (element-wise ops keep eps): ``X_t = a X_{t-1} + J_t``, ``f_t = a D f_{t-1} +
F``, ``c_t = a c_{t-1} + 1``, ``hat_t = f_t X_t / c_t``. As J is linear in x_k, this is design section 4 with its
eps_x, eps_f and ``1 - a^t``. ``G_k = sum_t L_t f'_t X_t / c_t + direct_w + direct_s hat_{t-1}``, f' being f at the
new state values.

*In-window exact*: reverse mode through the uncut steps of a window, plus ``lambda eps_0`` (ES: ``lambda hat_0``) with
``lambda = d(sum l)/ds_0``, uncut.

Where the design leaves room, this is chosen:

- An element-wise op between an old state and a mixing op (``W @ (g * h)``): W's input is live in g, stopped in h.
- A value on the way from an old to a new state that is neither (v before its reset) is no new state value: what a
  mixing op reads of it is stopped in the old states and live in the ops' outputs of its own step.
- An op that reaches a state only through another op (``W2 @ tanh(W1 @ h)``) is cut like one that does directly, and
  so is an op that reaches a state and the output: on its way to the output, too, it reads old states stopped.
- An old state that is moved unchanged into a new one (the tail of a delay line) is new only if read from the new one.
- ES: ``direct_s`` (a readout of old states) meets the trace as step t-1 left it, normalised by c_{t-1}.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from tests import helpers
from tests.helpers import quickly

ALGORITHMS = ("bptt", "rtrl", "d_rtrl", "es_d_rtrl")
stop = jax.lax.stop_gradient


# Hooks ---------------------------------------------------------------------------------------------------------------


class Hook:
    """Perturbs each weight by ``dw`` and records what is used; ``cut`` stops the input of every mixing op."""

    def __init__(self, dw=None, dy=None, cut=False):
        self.dw, self.dy, self.cut = dw, dy, cut
        self.w, self.x, self.y, self.J, self.new = {}, {}, {}, {}, {}

    def weight(self, name, w):
        assert name not in self.w, f"op {name!r} is used twice: give each use a name"
        self.w[name] = w
        return w if self.dw is None else w + self.dw[name]

    def mix(self, name, fn, x, w):
        w = self.weight(name, w)
        self.x[name] = x
        if self.cut:
            x = stop(x)
        self.J[name] = lambda: jax.jacrev(lambda w: fn(x, w))(w)
        self.y[name] = fn(x, w)
        return self.y[name] if self.dy is None else self.y[name] + self.dy[name]

    def elem(self, name, fn, x, w):
        return fn(x, self.weight(name, w))

    def state(self, name, value):
        assert name not in self.new, f"state {name!r} is computed twice"
        self.new[name] = value
        return value


class Blocked(Hook):
    """For ``direct_s``: no way through a new state value, nor into a mixing op that reaches a state."""

    def __init__(self, to_state):
        super().__init__()
        self.to_state = to_state

    def mix(self, name, fn, x, w):
        return fn(stop(x) if name in self.to_state else x, w)

    def state(self, name, value):
        return stop(value)


class Segments(Hook):
    """The step, under a vmap over two copies of each value.

    The derivative of copy 0 has the paths that have not entered a mixing op so far, that of copy 1 has all. A new
    state value restarts the former as an independent leaf.
    """

    def __init__(self, dw, leaves, copy):
        super().__init__(dw)
        self.leaves, self.copy = leaves, copy

    def mix(self, name, fn, x, w):
        x = x if jnp.issubdtype(x.dtype, jnp.integer) else jnp.where(self.copy == 0, stop(x), x)
        return fn(x, self.weight(name, w))

    def state(self, name, value):
        entered = take(value, 1) - take(value, 0)  # zero, but for its derivative
        return stop(value) + self.leaves[name] + jnp.where(self.copy == 0, 0.0, 1.0) * entered


def take(value, copy):
    return jax.lax.all_gather(value, "copy")[copy]


def in_copies(run: Callable, copy_of_result: int):
    return jax.tree.map(lambda a: a[copy_of_result], jax.vmap(run, axis_name="copy")(jnp.arange(2)))


def at(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


# One step ------------------------------------------------------------------------------------------------------------


def is_float(a):
    return eqx.is_array(a) and jnp.issubdtype(a.dtype, jnp.floating)


def flat(state):
    """The float states as one real vector, and the way back; a complex one as its real and its imaginary part."""
    floats, rest = eqx.partition(state, lambda a: is_float(a) or jnp.iscomplexobj(a))
    leaves, tree = jax.tree.flatten(floats)
    parts = [jnp.stack([a.real, a.imag]) if jnp.iscomplexobj(a) else a for a in leaves]
    vector, unravel = ravel_pytree(parts)

    def unflat(v):
        joined = [
            jax.lax.complex(*part) if jnp.iscomplexobj(a) else part
            for a, part in zip(leaves, unravel(v), strict=True)
        ]
        return eqx.combine(jax.tree.unflatten(tree, joined), rest)

    return vector, unflat


def join(values: dict):
    return jnp.concatenate([jnp.ravel(v) for v in values.values()] or [jnp.zeros(0)])


def record(model, x, state) -> Hook:
    hook = Hook()
    model.step(x, state, hook)
    return hook


def weights(model, x, state):
    """The effective weights."""
    return record(model, x, state).w


def matrix(jacobian, rows):
    """{op: (rows, *shape)} as {op: (rows, size)}."""
    return {name: j.reshape(rows, math.prod(j.shape[1:])) for name, j in jacobian.items()}


class Pieces(NamedTuple):
    """Jacobians and gradients of one step; `E`: of the step E. Dictionaries by op."""

    J: dict  # dy_k/dw_k, (size y_k, size w_k); mixing ops only
    D: Any  # cut: ds'/ds
    F: dict  # cut: ds'/dy_k or ds'/dw_k
    D_new: Any  # the same two, of the new state values
    F_new: dict
    D_full: Any  # uncut: ds'/ds
    F_full: dict  # uncut: ds'/dw_k
    l_s_full: Any  # uncut: dl/ds
    l_w_full: dict  # uncut: dl/dw_k
    L: Any  # learning signal at the new state values
    direct_s: Any
    direct_w: dict


def step_pieces(model, x, state, target, loss_fn, to_state) -> Pieces:
    seen = record(model, x, state)
    s, unflat = flat(state)
    dw = {name: jnp.zeros_like(w) for name, w in seen.w.items()}
    dy = {name: jnp.zeros_like(y) for name, y in seen.y.items()}
    leaves = {name: jnp.zeros_like(v) for name, v in seen.new.items()}

    def cut(s, dy, dw):
        hook = Hook(dw, dy, cut=True)
        _, new = model.step(x, unflat(s), hook)
        return flat(new)[0], join(hook.new)

    def full(s, dw):
        y, new = model.step(x, unflat(s), Hook(dw))
        return flat(new)[0], loss_fn(y, target)

    def by_segments(leaves, dw):
        def run(copy):
            return model.step(x, state, Segments(dw, leaves, copy))[0]

        return loss_fn(in_copies(run, 1), target)

    def blocked(s):
        return loss_fn(model.step(x, unflat(s), Blocked(to_state))[0], target)

    rows = s.size, sum(v.size for v in seen.new.values())
    (D, F_mix, F_elem), (D_new, F_new_mix, F_new_elem) = jax.jacrev(cut, (0, 1, 2))(s, dy, dw)
    elem = [name for name in dw if name not in dy]
    F = matrix(F_mix | {k: F_elem[k] for k in elem}, rows[0])
    F_new = matrix(F_new_mix | {k: F_new_elem[k] for k in elem}, rows[1])
    (D_full, F_full), (l_s_full, l_w_full) = jax.jacrev(full, (0, 1))(s, dw)
    L, direct_w = jax.grad(by_segments, (0, 1))(leaves, dw)
    ravel = lambda d: {name: jnp.ravel(v) for name, v in d.items()}
    return Pieces(
        J={name: j().reshape(seen.y[name].size, -1) for name, j in seen.J.items()},
        D=D,
        F=F,
        D_new=D_new,
        F_new=F_new,
        D_full=D_full,
        F_full=matrix(F_full, rows[0]),
        l_s_full=l_s_full,
        l_w_full=ravel(l_w_full),
        L=join({name: L[name] for name in seen.new}),
        direct_s=jax.grad(blocked)(s),
        direct_w=ravel(direct_w),
    )


# Structure -----------------------------------------------------------------------------------------------------------


class Structure(NamedTuple):
    """Patterns by op: non-zeros at some of many random points, so subsets of what an analysis may find.

    y_k is to be read as w_k for element-wise ops.
    """

    D: np.ndarray  # bool (S, S): ds'/ds in the cut step
    F: dict[str, np.ndarray]  # bool (S, size y_k)
    block: dict[str, np.ndarray]  # bool (S, size y_k): N_k(o), F closed under D
    to_state: frozenset  # mixing ops that reach a state, directly or through other ops
    escapes: dict[str, tuple[str, ...]]  # the mixing ops that make op k inexact
    mixing: frozenset

    @property
    def exact(self):
        return {name: not through for name, through in self.escapes.items()}


def structure(model, x, state=None, points=12, seed=0, xs=None, spread=0.3) -> Structure:
    """At random points, or with the inputs `xs` (leading axis: points); `spread`: of the effective weights."""
    state = model.init_state() if state is None else state
    rng = np.random.default_rng(seed)
    points = points if xs is None else len(jax.tree.leaves(xs)[0])
    noise = lambda a, scale: scale * rng.normal(size=(points, *a.shape))
    w = eqx.filter_eval_shape(weights, model, x, state)
    dw = {name: noise(w, spread) for name, w in w.items()}
    if xs is None:
        xs = noise(x, 1.5) if is_float(x) else jnp.repeat(x[None], points, axis=0)
    jacobians = jacobians_at(model, state, xs, noise(flat(state)[0], 1.5), dw)
    nonzero = lambda j: np.any(np.asarray(j) != 0, axis=0)
    D, F, X_s, X_y, S_y = jax.tree.map(nonzero, jacobians)
    closed = D | np.eye(len(D), dtype=bool)
    while not np.array_equal(closed, closed @ closed):
        closed = closed @ closed
    block = {name: closed @ f for name, f in F.items()}
    to_state = frozenset(name for name, j in S_y.items() if j.any())
    escapes = {
        k: tuple(
            j
            for j in X_s
            if j in to_state and (X_y[j][k].any() or (X_s[j] @ block[k].any(1)).any())
        )
        for k in F
    }
    return Structure(D, F, block, to_state, escapes, frozenset(S_y))


@quickly
def jacobians_at(model, state, xs, s_points, dws):
    """What `structure` needs, at several points; integer states are those of a rollout."""
    rollout = jax.lax.scan(lambda s, x: (model.step(x, s, Hook())[1], s), state, xs)[1]

    def here(x, state, s, dw):
        unflat = flat(state)[1]
        dy = {name: jnp.zeros_like(y) for name, y in record(model, x, state).y.items()}

        def cut(s, dy, dw):
            hook = Hook(dw, dy, cut=True)
            new = model.step(x, unflat(s), hook)[1]
            return flat(new)[0], {k: jnp.ravel(a) for k, a in hook.x.items() if is_float(a)}

        def uncut(dy):
            return flat(model.step(x, unflat(s), Hook(dw, dy))[1])[0]

        def by_op(by_dy, by_dw, rows):
            return matrix({k: by_dy.get(k, by_dw[k]) for k in by_dw}, rows)

        (D, *F), x_by = jax.jacrev(cut, (0, 1, 2))(s, dy, dw)
        X_s = {j: by[0] for j, by in x_by.items()}
        X_y = {j: by_op(*by[1:], len(by[0])) for j, by in x_by.items()}
        S_y = matrix(jax.jacrev(uncut)(dy), s.size) if dy else {}
        return D, by_op(*F, s.size), X_s, X_y, S_y

    return jax.vmap(here)(xs, rollout, s_points, dws)


# Gradients -----------------------------------------------------------------------------------------------------------


def gradient(
    model,
    xs,
    targets,
    loss_fn,
    algo="bptt",
    *,
    state=None,
    decay=0.9,
    window=None,
    backprop="cut",
    batched=False,
    reduction="sum",
    by_op=False,
):
    """The gradient of ``mean_b sum_t loss_fn(y_t, target_t)``, with the model's structure (None at non-arrays).

    ``xs``, ``targets``: leading axis T, then B where ``batched``. ``window``: W, or None for T; it matters to what
    is exact in a window alone.
    ``by_op``: by op and effective weight, flat, in place of by parameter ("bptt" knows no ops; take "rtrl").
    """
    assert algo in ALGORITHMS
    T = len(jax.tree.leaves(xs)[0])
    scale = 1 / T if reduction == "mean" else 1.0
    state = model.init_state() if state is None else state
    examples = [(xs, targets)]
    if batched:
        B = jax.tree.leaves(xs)[0].shape[1]
        examples = [at((xs, targets), (slice(None), b)) for b in range(B)]
    one = bptt
    if algo != "bptt":
        options = dict(algo=algo, decay=decay, W=window or T, backprop=backprop)
        options["by_op"] = by_op
        one = functools.partial(online, **options)
    grads = [one(model, *example, loss_fn, state) for example in examples]
    return jax.tree.map(lambda *g: scale * sum(g) / len(g), *grads)


@quickly
def bptt(model, xs, targets, loss_fn, state):
    return helpers.bptt(model, xs, targets, state, loss=loss_fn)


def online(model, xs, targets, loss_fn, state, *, algo, decay, W, backprop, by_op):
    to_state = structure(model, at(xs, 0), state).to_state
    pieces = all_pieces(model, xs, targets, loss_fn, state, to_state)
    pieces = jax.tree.map(np.asarray, pieces)
    grads = combine(pieces, algo=algo, decay=decay, W=W, backprop=backprop)
    return grads if by_op else pull_back(model, at(xs, 0), state, grads)


def combine(pieces: Pieces, *, algo, decay=0.9, W=1, backprop="cut", untraced=frozenset()):
    """The gradient by op, from the pieces of all steps (NumPy, leading axis T)."""
    steps = [at(pieces, t) for t in range(len(pieces.D))]
    exact = backprop == "full" or algo == "rtrl"
    new = {"rtrl": RTRL, "d_rtrl": Full, "es_d_rtrl": lambda: Factors(decay)}[algo]
    traces = {k: new() if k in pieces.J or algo == "rtrl" else Full() for k in pieces.F}
    traces |= dict.fromkeys(untraced & traces.keys(), Untraced())
    return by_windows(steps, traces, W) if exact else learning_signals(steps, traces)


@quickly
def all_pieces(model, xs, targets, loss_fn, state, to_state):
    def body(s, x):
        return model.step(x, s, Hook())[1], s

    states = jax.lax.scan(body, state, xs)[1]
    one = lambda x, s, target: step_pieces(model, x, s, target, loss_fn, to_state)
    return jax.vmap(one)(xs, states, targets)


@quickly
def pull_back(model, x, state, grads):
    """From gradients by effective weight to gradients by parameter."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    w, vjp = jax.vjp(lambda params: weights(eqx.combine(params, static), x, state), params)
    return vjp({k: grads[k].reshape(w[k].shape) for k in w})[0]


def immediate(F, p: Pieces, k):
    """F of the outputs, times dy_k/dw_k."""
    return F[k] @ p.J[k] if k in p.J else F[k]


class Full:
    """The trace of D-RTRL of one op: (S, size w_k), at the beginning of a step."""

    eps: Any = 0.0

    def value(self):
        return self.eps

    def at_new(self, p, k):
        return apply(p.D_new, self.eps) + immediate(p.F_new, p, k)

    def advance(self, p, k):
        self.eps = apply(p.D, self.eps) + immediate(p.F, p, k)


class RTRL(Full):
    def advance(self, p, k):
        self.eps = apply(p.D_full, self.eps) + p.F_full[k]


class Untraced(Full):
    def advance(self, p, k):
        """Nothing of this step lasts."""


class Factors:
    """The trace of ES-D-RTRL, decay form, of one op."""

    def __init__(self, decay):
        self.decay, self.X, self.f, self.c = decay, 0.0, 0.0, 0.0

    def value(self):
        return self.f @ self.X / self.c if self.c else 0.0

    def at_new(self, p, k):
        f = self.decay * apply(p.D_new, self.f) + p.F_new[k]
        return f @ (self.decay * self.X + p.J[k]) / (self.decay * self.c + 1)

    def advance(self, p, k):
        self.f = self.decay * apply(p.D, self.f) + p.F[k]
        self.X = self.decay * self.X + p.J[k]
        self.c = self.decay * self.c + 1


def apply(row_or_matrix, eps):
    """A product with a trace that may still be the zero it starts from."""
    return row_or_matrix @ eps if np.ndim(eps) else 0.0


def learning_signals(steps, traces):
    grads = dict.fromkeys(traces, 0.0)
    for p in steps:
        for k, trace in traces.items():
            grads[k] += p.L @ trace.at_new(p, k) + p.direct_w[k]
            grads[k] += apply(p.direct_s, trace.value())
            trace.advance(p, k)
    return grads


def by_windows(steps, traces, W):
    """Reverse mode inside each window of W steps, nothing cut, the trace for what was before it."""
    grads = dict.fromkeys(traces, 0.0)
    for start in range(0, len(steps), W):
        inside = steps[start : start + W]
        adjoint = np.zeros(len(inside[0].D))
        for p in reversed(inside):
            for k in traces:
                grads[k] += p.l_w_full[k] + adjoint @ p.F_full[k]
            adjoint = p.l_s_full + adjoint @ p.D_full
        for k, trace in traces.items():
            grads[k] += apply(adjoint, trace.value())
            for p in inside:
                trace.advance(p, k)
    return grads
