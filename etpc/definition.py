"""The definition of each learning rule: dense, one step at a time, for any model.

This is what a rule means; the compiler does the same with less, in windows and in the forms of its traces. Let s be the
hidden states of one example as a real vector, w its effective weights, l the loss of a step, and

    eps' = D eps + F                D = ds'/ds and F = ds'/dw in the cut step
    g   += dl/dw + dl/ds eps        in the step as it is read

In the cut step of D-RTRL, the data of every operation that mixes positions and reaches a hidden state is constant. As
the step is read, such data is constant only as far as it depends on old states; it passes on the credit for what is new
in its own step. RTRL cuts nothing. ES-D-RTRL with a decay a carries two factors for each operation that is cut, whose
output is y, and has f X / c in the place of eps, where c' = a c + 1:

    X' = a X + dy/dw                f' = a D f + ds'/dy

With two decays, X has the first, f the second, and c the root of their product.
Unless it is asked for everywhere, an operation has eps where that takes no more memory than its factors, which is the
one thing that is asked of the compiler.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ._jax import Equation, Variable, evaluate, is_complex, is_key, prims, propagate
from ._jax.primitives import facts
from .algorithms import D_RTRL, ES_D_RTRL, RTRL, TBPTT, Algorithm, Decay, resolve
from .analyse import HiddenStates, Split, analyse, split
from .errors import UnsupportedError, checked_count
from .gradient.bptt import Objective, batch_axis_blamed, gradient_of
from .gradient.data import check_lead, one_step
from .gradient.loss import Loss, check_reduction, finite_where_masked, reduced
from .plan import Proofs, context
from .trace import Step, StepFunction, trace

Values = dict[Variable, Any]
Bind = Callable[[Equation, Sequence[Any]], list[Any]]
stop = lax.stop_gradient


def reference(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algo: Algorithm | str = "d_rtrl",
    *,
    state: Any = None,
    step: StepFunction | None = None,
    batch_size: int | None = None,
    mask: Any = None,
    begins: Any = None,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Loss and gradient of a sequence by the definition of a learning rule: dense, and slow.

    At each step it takes the Jacobian of all S states by all effective weights, so it is for small models. It shares
    with the compiler how a step is traced and what a weight operation is: no patterns, blocks or forms of traces. It
    asks the compiler which weights have whole traces under ES-D-RTRL without `everywhere`, and nothing else. Under
    `jax.jit` close over the model's integer arrays: what is sparse by unknown ones is not seen to be, and is not cut.

    **Arguments:** as for [`etpc.verify`][]. `algo` is [`D_RTRL`][etpc.D_RTRL] or [`RTRL`][etpc.RTRL], also with
    `backprop="full"` and a number as `window`; [`ES_D_RTRL`][etpc.ES_D_RTRL] with a decay, which with
    `everywhere=True` is that of the paper for each operation that mixes positions; or [`TBPTT`][etpc.TBPTT] in blocks.

    **Returns** `(loss, grads)`, as [`etpc.bptt`][] does.

    **Raises** `etpc.UnsupportedError` for another rule; `etpc.InputError`, `etpc.InputTypeError` and `etpc.ModelError`
    as [`etpc.bptt`][] does.

    **Source:** Wang et al., Nature Communications 2026, doi:10.1038/s41467-026-68453-w, for D-RTRL and ES-D-RTRL, with
    every path counted once; Williams and Zipser, Neural Computation 1(2), 1989, for RTRL.
    """
    rule = _defined(resolve(algo))
    check_reduction(reduction)
    batch_size = None if batch_size is None else checked_count("batch_size", batch_size)
    called: Any = dict(state=state, step=step, batch_size=batch_size)
    objective = Objective.of(model, xs, targets, loss_fn, **called, mask=mask, begins=begins)
    with batch_axis_blamed(model, xs, **called):
        check_lead(xs, targets, batch_size)
        if isinstance(rule, TBPTT):
            return gradient_of(model, objective, reduction, rule.steps)[:2]
        inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
        traced = trace(model, inputs, state, step)
    definition = Definition(traced, rule, objective.loss)
    leaves = traced.model_leaves
    parameters = leaves.split(model)

    @jax.jit
    def run(floats: Sequence[Array], start: list[Any], data: Any) -> tuple[Array, list[Array]]:
        prefix = lambda floats: definition.prefix(leaves.replaced(parameters, floats))
        weights, pull, others = jax.vjp(prefix, floats, has_aux=True)
        flat = definition.weights.flat(weights)
        of_example = lambda start, data: definition.gradient(flat, others, start, data)
        if objective.batched:
            sums = jax.vmap(of_example, in_axes=(0, 1))(start, data)
            sums = jax.tree.map(lambda a: a.mean(0), sums)
        else:
            sums = of_example(start, data)
        value, grad = reduced(reduction, sums, objective.mask, len(jax.tree.leaves(data)[0]))
        return value, pull(definition.weights.cotangents(grad))[0]

    mask = objective.mask
    data = jax.tree.map(lambda x: finite_where_masked(x, mask), xs), targets, mask, objective.begins
    start = traced.state_leaves.split(objective.start)
    value, grads = run([parameters[i] for i in leaves.floats], start, data)
    return value, leaves.tree_of_floats(grads)


def _defined(rule: Algorithm) -> Algorithm:
    """**Raises** `UnsupportedError` unless the rule is one that is defined here."""
    windows = rule.backprop == "cut" or isinstance(rule.window, int)
    is_known = {
        D_RTRL: windows,
        RTRL: windows and getattr(rule, "rank", None) is None,
        ES_D_RTRL: rule.backprop == "cut" and getattr(rule, "decay", None) is not None,
        TBPTT: rule.in_blocks,
    }.get(type(rule), False)
    if not is_known or (rule.lookback is not None and not isinstance(rule, TBPTT)):
        raise UnsupportedError(
            f"etpc.reference has no definition of {rule}. It has D_RTRL() and RTRL(), with full windows of a "
            'number of steps too (`backprop="full", window=W`), ES_D_RTRL(decay=a) and TBPTT(K).'
        )
    return rule


class Vector(NamedTuple):
    """Float arrays as one real vector: a complex array is its real, then its imaginary part."""

    avals: Sequence[Any]
    dtype: Any

    @property
    def size(self) -> int:
        return sum(aval.size * (1 + is_complex(aval)) for aval in self.avals)

    def flat(self, arrays: Sequence[Any]) -> Array:
        parts = [p for a in arrays for p in ((a.real, a.imag) if is_complex(a) else (a,))]
        return jnp.concatenate([jnp.zeros(0, self.dtype), *(jnp.ravel(p) for p in parts)])

    def arrays(self, flat: Array) -> list[Array]:
        found, at = [], 0
        for aval in self.avals:
            parts = []
            for _ in range(1 + is_complex(aval)):
                part = flat[at : at + aval.size].reshape(aval.shape)
                parts.append(part.astype(jnp.finfo(aval.dtype).dtype))
                at += aval.size
            found.append(lax.complex(*parts) if is_complex(aval) else parts[0])
        return found

    def cotangents(self, flat: Array) -> list[Array]:
        """The derivative by the arrays, from that by the vector, as JAX has it: the conjugate for complex ones."""
        return [a.conj() for a in self.arrays(flat)]


class Trace(NamedTuple):
    """What is carried of one example beside its state."""

    whole: Array
    """eps [S, P], of all weights where they have no two factors."""
    factors: list[tuple[Array, Array]]
    """X [Y, P] and f [S, Y] of each operation with a decay."""
    normaliser: Array
    """c, the sum of the decays of the steps so far."""


def _begun(start: Any, before: Any, begins: Any) -> Any:
    """Arrays as a step reads them: those of `start`, or zeros, where a stream begins with it. PRNG keys go on."""
    if begins is None:
        return before
    start = jax.tree.map(jnp.zeros_like, before) if start is None else start
    new = lambda a, b: b if is_key(b) else jnp.where(begins, a, b)
    return jax.tree.map(new, start, before)


class Definition:
    """One step of one example, as a function of real vectors of weights and of hidden states; and a rule on it."""

    def __init__(self, step: Step, rule: Any, loss: Loss):
        self.step, self.loss = step, loss
        self.split: Split = split(step)
        self.hidden = HiddenStates.of(step)
        dtype = jnp.result_type(self.hidden.dtype, *(v.aval.dtype for v in self.split.weights))
        dtype = jnp.finfo(dtype).dtype
        self.weights = Vector([v.aval for v in self.split.weights], dtype)
        self.states = Vector(self.hidden.avals, dtype)
        self.old = [step.state[i] for i in self.hidden.leaves]
        self.new = [self.split.next_state[i] for i in self.hidden.leaves]
        self.cut: dict[Equation, int] = {}
        """The equations of operations whose data is constant, and which operand that is."""
        for op in self.split.ops if self.hidden.read and not isinstance(rule, RTRL) else ():
            reached = propagate(self.split.body, op.equation.outputs, _stops)
            if op.kind.data is not None and not reached.isdisjoint(self.new):
                self.cut[op.equation] = op.kind.data
        self.bind: Bind = lambda eqn, operands: eqn.bind(*operands)
        """What an equation gives; a typical mistake is another one."""
        self.window = int(rule.window) if rule.backprop == "full" else None
        self.decays = Decay(getattr(rule, "decay", None) or 0.0).decays
        self.smoothed = self._smoothed(rule)
        self.outputs = [Vector([eqn.outputs[0].aval], dtype) for eqn in self.smoothed]
        """The output y of each operation with a decay."""

    def _smoothed(self, rule: Any) -> list[Equation]:
        """The operations that the rule gives a decay."""
        if not isinstance(rule, ES_D_RTRL):
            return []
        if rule.everywhere:
            return [*self.cut]
        chosen = rule.choose(context(Proofs.of(analyse(self.step), rule.backprop))).forms
        is_whole = lambda op: (form := chosen.get(op.number)) is not None and form.exact
        whole = {op.equation for op in self.split.ops if is_whole(op)}
        return [eqn for eqn in self.cut if eqn not in whole]

    def acting(self, bind: Bind) -> "Definition":
        """The same rule, of operations that act otherwise."""
        other = copy.copy(self)
        other.bind = bind
        return other

    # --- the rule ---

    def gradient(
        self, weights: Array, others: Sequence[Any], start: list[Any], data: Any
    ) -> tuple[Array, Array]:
        """The sum of the losses, and the derivative by the weights [P]."""
        xs, targets, mask, begins = data
        inputs = self.step.input_leaves.split(xs)
        steps = len(inputs[0])
        first = jnp.arange(steps) == 0
        inputs = self.step.with_begins(inputs, first if begins is None else first | begins)
        sequence = inputs, targets, mask, begins
        carry = start, self._no_trace(), jnp.zeros_like(weights)
        if self.window is None:
            one = lambda carry, data: self._step(weights, others, start, carry, data)
            carry, losses = lax.scan(one, carry, sequence)
            return losses.sum(), carry[-1]
        losses = []
        for at in range(0, steps, self.window):
            window = jax.tree.map(lambda a, end=at + self.window, at=at: a[at:end], sequence)
            carry, loss = self._window(weights, others, start, carry, window)
            losses.append(loss)
        return jnp.stack(losses).sum(), carry[-1]

    def _step(
        self, weights: Array, others: Sequence[Any], start: list[Any], carry: Any, data: Any
    ) -> Any:
        """One step of a rule that cuts; `start` is the state in which a stream begins."""
        state, trace, grad = carry
        state, trace = _begun(start, state, data[3]), _begun(None, trace, data[3])
        env = self._environment(others, data[0], state)
        h = self._hidden(env)

        def credit(past_new_states: bool) -> Any:
            def loss(w: Array, h: Array, ys: list[Array]) -> tuple[Array, Any]:
                outputs, new = self.read(env, w, h, ys, past_new_states)
                return self._loss_of(outputs, data), new

            return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(weights, h, self.zeros)

        (value, new), (by_weights, by_states, by_ys) = credit(False)
        grad = grad + by_weights + by_states @ trace.whole
        used = self._data_by_weights(env, weights, h) if self.smoothed else []
        moved = self._moved(trace, env, weights, h, used)
        if self.smoothed:
            _, (_, past_states, past_ys) = credit(True)
            for (x, f), (x_new, _), direct, by_y, past_y in zip(
                trace.factors, moved.factors, used, by_ys, past_ys, strict=True
            ):
                signal = self.decays[1] * (by_states - past_states) @ f + by_y - past_y
                grad = grad + signal @ x_new / moved.normaliser + past_y @ direct
                grad = grad + past_states @ f @ x / jnp.maximum(trace.normaliser, 1)
        return (new, moved, grad), value

    def _window(
        self, weights: Array, others: Sequence[Any], start: list[Any], carry: Any, window: Any
    ) -> Any:
        """A window with nothing cut; what came before it enters through its first state."""
        state, trace, grad = carry
        h = self.states.flat([state[i] for i in self.hidden.leaves])

        def loss(w: Array, h: Array) -> tuple[Array, Any]:
            def body(state: list[Any], data: Any) -> tuple[list[Any], Any]:
                state = _begun(start, state, data[3])
                env = self._environment(others, data[0], state)
                env, new = self.evaluated(env, w, self._hidden(env))
                outputs = [env[v] for v in self.split.outputs]
                return new, (self._loss_of(outputs, data), state)

            last, (losses, states) = lax.scan(body, self.with_hidden(state, h), window)
            return losses.sum(), (last, states)

        gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (value, (last, states)), (by_weights, by_states) = gradient(weights, h)

        def move(trace: Trace, step: Any) -> tuple[Trace, None]:
            inputs, state, begins = step
            env, trace = self._environment(others, inputs, state), _begun(None, trace, begins)
            return self._moved(trace, env, weights, self._hidden(env), []), None

        moved, _ = lax.scan(move, trace, (window[0], states, window[3]))
        return (last, moved, grad + by_weights + by_states @ trace.whole), value

    @property
    def zeros(self) -> list[Array]:
        """What is added to the output of each operation with a decay, so that there is a derivative by it."""
        return [jnp.zeros(y.size, y.dtype) for y in self.outputs]

    def _no_trace(self) -> Trace:
        states, weights = self.states.size, self.weights.size
        zeros = lambda *shape: jnp.zeros(shape, self.states.dtype)
        factors = [(zeros(y.size, weights), zeros(states, y.size)) for y in self.outputs]
        return Trace(zeros(states, weights), factors, zeros())

    def _moved(
        self, trace: Trace, env: Values, weights: Array, h: Array, used: list[Array]
    ) -> Trace:
        """The trace after a step; `used` is dy/dw of each operation with a decay."""
        jacobian = jax.jacrev(lambda *a: self.cut_step(env, *a), (0, 1, 2))
        immediate, transition, by_ys = jacobian(weights, h, self.zeros)
        factors = [
            (self.decays[0] * x + direct, self.decays[1] * transition @ f + by_y)
            for (x, f), direct, by_y in zip(trace.factors, used, by_ys, strict=True)
        ]
        whole = transition @ trace.whole + immediate
        return Trace(whole, factors, self.decays[2] * trace.normaliser + 1)

    def _loss_of(self, outputs: Sequence[Any], data: Any) -> Array:
        _, target, weight, _ = data
        return self.loss(self.step.output_leaves.join(outputs), target, weight)[0]

    # --- the step ---

    def cut_step(self, env: Values, weights: Array, h: Array, ys: list[Array]) -> Array:
        """The new hidden states; `ys` is added to what operations with a decay give."""

        def rule(eqn: Equation, operands: list[Any]) -> list[Any]:
            place = self.cut.get(eqn)
            return self._acting(
                eqn, [stop(a) if i == place else a for i, a in enumerate(operands)], ys
            )

        env = evaluate(self.split.body, self._at(env, weights, h), rule)
        return self.states.flat([env[v] for v in self.new])

    def read(
        self, env: Values, weights: Array, h: Array, ys: list[Array], past_new_states: bool
    ) -> tuple[list[Any], list[Any]]:
        """Outputs and new state, where data that is cut is constant as far as it depends on old states.

        The step is evaluated three times side by side. In the first two, the data of operations that are cut is
        constant; the second has old states constant, new ones as they are, and gives that data. In the third, all but
        that data is constant. With `past_new_states`, new states are constant in the first two.
        """
        live, held = self._at(env, weights, h), self._at(env, weights, stop(h))
        through = self._at(env, stop(weights), stop(h))
        new = self._new_states(evaluate(self.split.body, dict(through)))
        for eqn in self.split.body:
            operands, still, passed = (
                [env[v] for v in eqn.inputs] for env in (live, held, through)
            )
            if eqn in self.cut:
                place = self.cut[eqn]
                if eqn.inputs[place].is_float:
                    passed[place] = _joined(passed[place], still[place])
                operands[place] = still[place] = stop(operands[place])
            results, beside = self._acting(eqn, operands, ys), self._acting(eqn, still, ys)
            for v, value, other in zip(eqn.outputs, results, beside, strict=True):
                if v in new:
                    at_new = stop(value) if past_new_states else value
                    value, other = (jnp.where(new[v], at_new, a) for a in (value, other))
                live[v], held[v] = value, other
            through.update(zip(eqn.outputs, self.bind(eqn, passed), strict=True))
        outputs = [
            _joined(live[v], through[v]) if v.is_float else live[v] for v in self.split.outputs
        ]
        return outputs, self._stored(through)

    def _acting(self, eqn: Equation, operands: Sequence[Any], ys: list[Array]) -> list[Any]:
        """What an operation gives. One with a decay is a function of its output alone, and not of its weight."""
        if eqn not in self.smoothed:
            return self.bind(eqn, operands)
        place = self.smoothed.index(eqn)
        (added,) = self.outputs[place].arrays(ys[place])
        pairs = zip(eqn.inputs, operands, strict=True)
        (output,) = eqn.bind(*(stop(a) if v in self.split.weights else a for v, a in pairs))
        return [output + added]

    def _data_by_weights(self, env: Values, weights: Array, h: Array) -> list[Array]:
        """dy/dw [Y, P] of each operation with a decay, of the data that its weight meets."""
        env = evaluate(self.split.body, self._at(env, weights, h))

        def output(w: Array, eqn: Equation, y: Vector) -> Array:
            of_weights = dict(zip(self.split.weights, self.weights.arrays(w), strict=True))
            return y.flat(eqn.bind(*(of_weights.get(v, env[v]) for v in eqn.inputs)))

        places = zip(self.smoothed, self.outputs, strict=True)
        return [jax.jacrev(output)(weights, eqn, y) for eqn, y in places]

    def _new_states(self, env: Mapping[Variable, Any]) -> dict[Variable, Array]:
        """Which elements of each value that the step computes are new hidden states, or are moved on into such."""
        body, fixed = (
            self.split.body,
            {*self.step.constants, *self.split.weights, *self.split.others},
        )
        old = set(self.old)
        for eqn in body:
            moving = [v for v in eqn.inputs if v.is_float and v not in fixed]
            if _is_move(eqn) and moving and old.issuperset(moving):
                old.update(v for v in eqn.outputs if v.is_float)
        computed = {v for eqn in body for v in eqn.outputs}
        new = {v: jnp.ones(v.shape, bool) for v in self.new if v in computed}
        for eqn in reversed(body):
            if not _is_move(eqn) or new.keys().isdisjoint(eqn.outputs):
                continue
            masks = [new.get(v, jnp.zeros(v.shape, bool)).astype(v.aval.dtype) for v in eqn.outputs]
            for i, v in enumerate(eqn.inputs):
                if v.is_float and v in computed and v not in old:
                    operands = [stop(env[u]) for u in eqn.inputs]
                    move = lambda a, i=i, o=operands, e=eqn: e.bind(*o[:i], a, *o[i + 1 :])
                    (found,) = jax.vjp(move, operands[i])[1](masks)
                    new[v] = new.get(v, jnp.zeros(v.shape, bool)) | (found.real > 0)
        return new

    # --- values ---

    def prefix(self, parameters: Sequence[Any]) -> tuple[list[Array], list[Any]]:
        """What depends on parameters alone: the effective weights, and others."""
        env: Values = dict(self.step.constants)
        env.update(zip(self.step.parameters, parameters, strict=True))
        evaluate(self.split.prefix, env)
        weights = [jnp.asarray(env[v]) for v in self.split.weights]
        return weights, [env[v] for v in self.split.others]

    def start(
        self, parameters: Sequence[Any], inputs: Sequence[Any], state: Sequence[Any]
    ) -> tuple[Values, Array, Array]:
        """The values that a step starts from, and of these the weights and the hidden states as vectors."""
        weights, others = self.prefix(parameters)
        env = self._environment(others, inputs, state)
        return env, self.weights.flat(weights), self._hidden(env)

    def evaluated(self, env: Values, weights: Array, h: Array) -> tuple[Values, list[Any]]:
        """All values of a step in which nothing is cut, and its new state."""
        env = evaluate(self.split.body, self._at(env, weights, h), self.bind)
        return env, self._stored(env)

    def with_hidden(self, state: Sequence[Any], h: Array) -> list[Any]:
        """A state with other hidden states."""
        hidden = dict(zip(self.hidden.leaves, self.states.arrays(h), strict=True))
        return [hidden.get(i, leaf) for i, leaf in enumerate(state)]

    def _environment(
        self, others: Sequence[Any], inputs: Sequence[Any], state: Sequence[Any]
    ) -> Values:
        """The values that the equations of a step start from, but for the weights."""
        env: Values = dict(self.step.constants)
        env.update(zip(self.split.others, others, strict=True))
        env.update(zip(self.step.inputs, inputs, strict=True))
        env.update(zip(self.step.state, state, strict=True))
        return env

    def _at(self, env: Values, weights: Array, h: Array) -> Values:
        """The values that they start from, as a function of the weights and the hidden states."""
        of_weights = zip(self.split.weights, self.weights.arrays(weights), strict=True)
        return {
            **env,
            **dict(of_weights),
            **dict(zip(self.old, self.states.arrays(h), strict=True)),
        }

    def _hidden(self, env: Values) -> Array:
        return self.states.flat([env[v] for v in self.old])

    def _stored(self, env: Values) -> list[Any]:
        """The new state, in the dtypes of the old one."""
        return [
            env[v] if is_key(v.aval) else jnp.asarray(env[v], old.aval.dtype)
            for v, old in zip(self.split.next_state, self.step.state, strict=True)
        ]


@jax.custom_jvp
def _joined(value: Any, other: Any) -> Any:
    """`value`, with the derivatives of both: they are the same number, as functions of different things."""
    return value


@_joined.defjvp
def _(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[Any, Any]:
    return primals[0], jax.tree.map(jnp.add, *tangents)


def _stops(eqn: Equation, output: Variable) -> bool:
    return eqn.primitive is prims.stop_gradient_p


def _is_move(eqn: Equation) -> bool:
    """Whether an operation moves values and changes them at most by rounding, as a conversion between floats does."""
    if eqn.primitive is prims.convert_element_type_p:
        return eqn.inputs[0].is_float and eqn.outputs[0].is_float
    return facts(eqn.primitive).moves
