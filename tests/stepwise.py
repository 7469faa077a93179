"""References for many points of one model, from vector-Jacobian products of single steps: traced once, run in NumPy.

What `tests.oracle` defines, computed another way and for less:

- BPTT, by parameters, by the inputs and by the initial state: one vector-Jacobian product a step, backwards.
- The gradient of each step alone, its old state held constant: the same without what comes from later steps.
- D-RTRL in form "lambda", which does not depend on the window: so one window, in which no trace is needed. Going
  backwards, the adjoint of a state passes through the cut step C, and the loss of a step through the step E.

The step is traced once with its hooks as primitives, and C and E are ways to read the program that this gives.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from tests import evaluate

stop = jax.lax.stop_gradient
hook_p = jex.Primitive("hook")
hook_p.def_abstract_eval(lambda x, **_: x)


def hook(value, kind, name):
    return hook_p.bind(jnp.asarray(value), kind=kind, name=name)


class Recorded:
    """Hooks that leave their places in the program."""

    def mix(self, name, fn, x, w):
        x, w = hook(x, "x", name), hook(w, "w", name)
        return hook(fn(x, w), "y", name)

    def elem(self, name, fn, x, w):
        return fn(x, hook(w, "w", name))

    def state(self, name, value):
        return hook(value, "new", name)


def is_float(a):
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


class Split(NamedTuple):
    """A PyTree as its float arrays and the rest."""

    tree: Any
    floats: tuple[int, ...]
    static: tuple[Any, ...]

    @classmethod
    def of(cls, tree, keep=lambda a: eqx.is_array(a) or isinstance(a, np.ndarray)):
        leaves, treedef = jax.tree.flatten(tree)
        floats = tuple(i for i, a in enumerate(leaves) if keep(a) and is_float(a))
        static = tuple(None if i in floats else a for i, a in enumerate(leaves))
        return cls(treedef, floats, static)

    def values(self, tree):
        leaves = jax.tree.leaves(tree)
        return [leaves[i] for i in self.floats]

    def rest(self, tree):
        return [a for i, a in enumerate(jax.tree.leaves(tree)) if i not in self.floats]

    def join(self, floats, rest=None):
        leaves, floats = list(self.static), iter(floats)
        rest = None if rest is None else iter(rest)
        for i in range(len(leaves)):
            if i in self.floats:
                leaves[i] = next(floats)
            elif rest is not None:
                leaves[i] = next(rest)
        return jax.tree.unflatten(self.tree, leaves)


class Point(NamedTuple):
    """What a model is checked at: NumPy arrays with a first axis of points, of length one where all agree."""

    parameters: list  # the float leaves of the model
    xs: Any  # axes: points, T
    targets: list  # likewise
    state: Any


class Gradients(NamedTuple):
    """At each point (first axis)."""

    loss: Any
    parameters: list
    inputs: list  # of the float leaves of xs; axes: points, T


class Reference:
    """The references of a model.

    `untraced`: of an operation, whether it has no trace. `rounded`: of a state, whether it is stored in fewer bits:
    what is computed is then not what is stored, but a value on the way there, as a potential before its reset is.
    """

    def __init__(self, model, x, state, loss, untraced=None, rounded=None):
        never = lambda name: False
        self.model, self.x, self.state, self.loss = model, x, state, loss
        self.untraced, self.rounded = untraced or never, rounded or never
        self.of_model, self.of_state, self.of_x = map(Split.of, (model, state, x))

    # One step ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def full(self):
        """(parameters, x, state, target, adjoint) -> loss, new state, gradients of loss + adjoint . new state."""

        def call(parameters, x, state, target, adjoint):
            x_rest, s_rest = self.of_x.rest(x), self.of_state.rest(state)

            def step(parameters, x_floats, s_floats):
                model = self.of_model.join(parameters)
                x, s = self.of_x.join(x_floats, x_rest), self.of_state.join(s_floats, s_rest)
                y, new = model(x, s)
                return (self.loss(y, target), self.of_state.values(new)), new

            given = parameters, self.of_x.values(x), self.of_state.values(state)
            (loss, _), pull, new = jax.vjp(step, *given, has_aux=True)
            return loss, new, pull((jnp.ones_like(loss), adjoint))

        return evaluate.at_points(call)

    @functools.cached_property
    def hooked(self):
        """The step with its hooks, of the parameters, the input and the state."""

        def call(parameters, x, state):
            model = self.of_model.join(parameters)
            y, new = model.step(x, state, Recorded())
            return y, new

        given = self.of_model.values(self.model), self.x, self.state
        return jax.make_jaxpr(call, return_shape=True)(*given)

    def read(self, parameters, x, state, dual, on_hook):
        """The step by its recorded program; `on_hook(kind, name, value)` gives what a hook does.

        With `dual` there are two environments, and values are pairs (A, B), the same object where they agree.
        """
        closed, shape = self.hooked
        env = dict(zip(closed.jaxpr.constvars, ((c, c) for c in closed.consts), strict=True))
        given = jax.tree.leaves((parameters, x)), jax.tree.leaves(state)
        pairs = [(a, a) for a in given[0]]
        pairs += [(a, stop(a) if dual and is_float(a) else a) for a in given[1]]
        env.update(zip(closed.jaxpr.invars, pairs, strict=True))

        def value(v):
            return (v.val, v.val) if isinstance(v, jex.Literal) else env[v]

        for eqn in closed.jaxpr.eqns:
            pairs = [value(v) for v in eqn.invars]
            if eqn.primitive is hook_p:
                outs = [on_hook(eqn.params["kind"], eqn.params["name"], pairs[0])]
            else:
                params = eqn.primitive.get_bind_params(eqn.params)

                def bind(values, eqn=eqn, params=params):
                    out = eqn.primitive.bind(*values, **params)
                    return out if eqn.primitive.multiple_results else [out]

                a = bind([pair[0] for pair in pairs])
                same = all(pair[0] is pair[1] for pair in pairs)
                b = a if same else bind([pair[1] for pair in pairs])
                outs = list(zip(a, b, strict=True))
            env.update(zip(eqn.outvars, outs, strict=True))
        outputs = [value(v)[0] for v in closed.jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    def names(self, kind):
        hooks = [eqn for eqn in self.hooked[0].jaxpr.eqns if eqn.primitive is hook_p]
        return [eqn.params["name"] for eqn in hooks if eqn.params["kind"] == kind]

    @functools.cached_property
    def reaching(self):
        """(parameters, x, state, dy, adjoint) -> adjoint . d new state / d y_k, nothing cut."""

        def call(parameters, x, state, adjoint):
            rest = self.of_state.rest(state)
            hooks = [e for e in self.hooked[0].jaxpr.eqns if e.primitive is hook_p]
            avals = {e.params["name"]: e.outvars[0].aval for e in hooks if e.params["kind"] == "y"}

            def new_state(dy):
                def on_hook(kind, name, pair):
                    if kind != "y" or name not in dy:
                        return pair
                    out = pair[0] + dy[name]
                    return out, out

                s = self.of_state.join(self.of_state.values(state), rest)
                return self.of_state.values(self.read(parameters, x, s, False, on_hook)[1])

            zero = {k: jnp.zeros(a.shape, a.dtype) for k, a in avals.items() if is_float(a)}
            return jax.vjp(new_state, zero)[1](adjoint)[0]

        return evaluate.at_points(call)

    def reach(self, parameters, x, state):
        """The mixing operations that reach a state, at one of some points at least where that is finite."""
        rng = np.random.default_rng(0)
        n = len(parameters[0]) if parameters else 1
        adjoint = [like(rng, a, n) for a in self.of_state.values(self.state)]
        bars = self.reaching(parameters, x, state, adjoint)
        return frozenset(
            name for name, bar in bars.items() if np.any((bar != 0) & np.isfinite(bar))
        )

    def cut(self, to_state):
        """(parameters, x, state, target, adjoint) -> the loss, and what D-RTRL adds for one step."""

        def in_c(kind, name, pair):
            if (kind == "x" and is_float(pair[0])) or (kind == "w" and self.untraced(name)):
                a = stop(pair[0])
                return a, a
            return pair

        def in_e(kind, name, pair):
            if kind == "x" and name in to_state:
                return pair[1], pair[1]
            return (pair[0], pair[0]) if kind == "new" and not self.rounded(name) else pair

        def call(parameters, x, state, target, adjoint):
            rest = self.of_state.rest(state)

            def step(parameters, floats):
                s = self.of_state.join(floats, rest)
                new = self.read(parameters, x, s, False, in_c)[1]
                y = self.read(parameters, x, s, True, in_e)[0]
                return self.loss(y, target), self.of_state.values(new)

            (loss, _), pull = jax.vjp(step, parameters, self.of_state.values(state))
            return loss, *pull((jnp.ones_like(loss), adjoint))

        y = jax.tree.leaves(self.hooked[1][0])
        target = [np.zeros(a.shape, a.dtype) for a in y if is_float(a)]
        given = self.of_model.values(self.model), self.x, self.state, target
        return evaluate.at_points(call, (*given, evaluate.at(self.no_adjoint, 0)))

    # Sequences --------------------------------------------------------------------------------------------------------

    def forward(self, point: Point):
        """The states before each step, and the gradients of each step alone, added up."""
        states, state, alone, losses = [], point.state, [], []
        for x, target in _steps(point):
            states.append(state)
            loss, state, grads = self.full(point.parameters, x, state, target, self.no_adjoint)
            losses.append(loss)
            alone.append(grads)
        parameters = [sum(steps) for steps in zip(*(g[0] for g in alone), strict=True)]
        return states, Gradients(sum(losses), parameters, joined([g[1] for g in alone]))

    @functools.cached_property
    def no_adjoint(self):
        values = self.of_state.values(self.state)
        return [np.zeros((1, *np.shape(a)), np.result_type(a)) for a in values]

    def bptt(self, point: Point, states):
        def step(*given):
            loss, _, (grads, by_x, adjoint) = self.full(*given)
            return loss, grads, by_x, adjoint

        return self.backwards(point, states, step)

    def d_rtrl(self, point: Point, states, cut):
        def step(*given):
            loss, grads, adjoint = cut(*given)
            return loss, grads, [], adjoint

        return self.backwards(point, states, step)

    def backwards(self, point, states, step):
        adjoint, total, inputs, losses = self.no_adjoint, None, [], []
        for (x, target), state in reversed(list(zip(_steps(point), states, strict=True))):
            loss, grads, by_x, adjoint = step(point.parameters, x, state, target, adjoint)
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
            inputs.append(by_x)
            losses.append(loss)
        return Gradients(sum(losses[::-1]), total, joined(inputs[::-1]))


def joined(steps):
    """Lists of arrays of each step, as one list of arrays with axes points, T."""
    return [np.stack(evaluate.level(a), 1) for a in zip(*steps, strict=True)]


def like(rng, a, n):
    shape = n, *np.shape(a)
    value = rng.normal(size=shape)
    if np.iscomplexobj(a):
        value = value + 1j * rng.normal(size=shape)
    return np.asarray(value, np.result_type(a))


def _steps(point: Point):
    """The input and the target of each step."""
    T = jax.tree.leaves(point.xs)[0].shape[1]
    return [jax.tree.map(lambda a, t=t: a[:, t], (point.xs, point.targets)) for t in range(T)]
