"""What a program holds beside its carry, as XLA lays it out: nothing as large as a trace, nothing that grows with T."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import etpc
from etpc.plan import PASSES
from tests.zoo.check import model

pytestmark = pytest.mark.slow

B, N, I, O = 16, 1024, 16, 2
"""So that the recurrent trace is many pieces, and much larger than the gradient; only compiled."""


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32) / shape[-1] ** 0.5


@model
def Leaky(x, V, rec, win, out):
    """One state for each neuron."""
    V = 0.9 * V + rec @ jnp.tanh(V) + win @ x
    return out @ jnp.tanh(V), V


@model
def Adaptive(x, state, rec, win, out):
    """A potential and a threshold that follows it."""
    V, a = state
    z = jnp.tanh(V - a)
    V, a = 0.9 * V + rec @ z + win @ x, 0.95 * a + 0.1 * z
    return out @ z, (V, a)


@model
def Reset(x, V, rec, win, out):
    """What a weight adds to a trace does not vary, so that XLA could compute the trace again where it is read."""
    z = jnp.tanh(V - 1)
    V = 0.9 * V - z + rec @ z + win @ x
    return out @ jnp.tanh(V), V


def build(cls, neurons=N):
    zero = jnp.zeros(neurons, jnp.float32)
    model = cls(normal(0, neurons, neurons), normal(1, neurons, I), normal(2, O, neurons))
    return model, (zero, zero) if cls is Adaptive else zero


def loss(y, target):
    return jnp.mean((y - target) ** 2)


def sequence(steps, batch=B):
    return tuple(jax.ShapeDtypeStruct((steps, batch, n), jnp.float32) for n in (I, O))


@functools.cache
def compiled(cls, window):
    net, state = build(cls)
    inputs = jax.ShapeDtypeStruct((I,), jnp.float32)
    whole = set(PASSES) - {"filtered"}
    rule = etpc.D_RTRL(window=window)
    return etpc.compile(net, rule, inputs=inputs, state=state, passes=whole)


@functools.cache
def of_gradient(cls, window, steps, donate=True, batch=B):
    """Bytes of the compiled `value_and_grad`, by use."""
    arrays, static = eqx.partition(build(cls)[0], eqx.is_array)
    program = compiled(cls, window)
    run = program.value_and_grad(loss, "sum")

    def call(arrays, xs, targets, carry):
        return run(eqx.combine(arrays, static), xs, targets, carry)

    carry = jax.eval_shape(lambda: program.init(batch))
    lowered = jax.jit(call, donate_argnums=3 if donate else ()).lower(
        arrays, *sequence(steps, batch), carry
    )
    return lowered.compile().memory_analysis()


def held(cls, window, steps, donate=True):
    """Bytes beside the arguments."""
    found = of_gradient(cls, window, steps, donate)
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


MODELS = pytest.mark.parametrize("cls", [Leaky, Adaptive])


@MODELS
@pytest.mark.parametrize("window", [1, 10, 25])
def test_a_donated_carry_is_overwritten(cls, window):
    memory, found = compiled(cls, window).memory(B), of_gradient(cls, window, 100)
    assert found.alias_size_in_bytes == pytest.approx(memory.total, rel=0.1)
    assert found.temp_size_in_bytes < max(size for _, size in memory.traces) / 2


@pytest.mark.parametrize("batch", [2, 8, 16])
def test_a_trace_that_is_read_after_it_has_moved_is_overwritten(batch):
    beside = of_gradient(Reset, 1, 5, batch=batch).temp_size_in_bytes
    of_weights = sum(a.nbytes for a in jax.tree.leaves(build(Reset)[0]))
    traces = compiled(Reset, 1).memory(batch).traces
    assert beside < of_weights + max(size for _, size in traces) / 2


@MODELS
def test_one_window_copies_no_trace_either(cls):
    assert of_gradient(cls, 10, 10).temp_size_in_bytes < compiled(cls, 10).memory(B).total / 2


@MODELS
def test_a_carry_that_is_kept_is_seen(cls):
    """So what is measured is the trace: where the old one has to stay, there is one more."""
    total = compiled(cls, 10).memory(B).total
    assert held(cls, 10, 100, donate=False) > 0.95 * total + held(cls, 10, 100)


@MODELS
def test_differentiating_a_scan_is_seen(cls):
    """The trace before a call is read after that call; the new one is beside it."""
    arrays, static = eqx.partition(build(cls)[0], eqx.is_array)
    program = compiled(cls, 10)

    def gradient(arrays, xs, carry):
        def total(arrays):
            ys, after = program.scan(eqx.combine(arrays, static), xs, carry)
            return jnp.sum(ys**2), after

        return jax.grad(total, has_aux=True)(arrays)

    carry = jax.eval_shape(lambda: program.init(B))
    lowered = jax.jit(gradient, donate_argnums=2).lower(arrays, sequence(10)[0], carry)
    found = lowered.compile().memory_analysis()
    assert found.temp_size_in_bytes > program.memory(B).total


@MODELS
@pytest.mark.parametrize("window", [1, 10])
def test_memory_does_not_grow_with_time(cls, window):
    short, long = (of_gradient(cls, window, steps).temp_size_in_bytes for steps in (40, 4000))
    assert long == pytest.approx(short, rel=0.1)


@model
def Gated(x, h, gates, new, out):
    """A gated recurrent unit, with one gate for keeping."""
    keep = jax.nn.sigmoid(gates @ jnp.concatenate([x, h]))
    h = keep * h + (1 - keep) * jnp.tanh(new @ jnp.concatenate([x, h]))
    return out @ h, h


@pytest.mark.parametrize("rule", [etpc.D_RTRL(), etpc.ES_D_RTRL(rank=4)], ids=["whole", "rank"])
@pytest.mark.parametrize("cls", [Leaky, Adaptive, Gated])
def test_what_is_said_of_a_window_is_what_an_update_takes(cls, rule):
    """With a loss and an optimizer of its own; where arrays are given away it takes less in all."""
    n, steps = 128, 16
    net, state = build(cls, n)
    if cls is Gated:
        net = Gated(*(normal(seed, n, I + n) for seed in (0, 1)), normal(2, O, n))
    program = etpc.compile(net, rule, inputs=jnp.zeros(I, jnp.float32), state=state)
    learner = etpc.online(program, loss, optax.adam(1e-3), every=steps)
    start = eqx.filter_eval_shape(learner.init, net, B)
    kept, given = (
        learner.lower(net, *start, *sequence(steps), donate=donate).compile().memory_analysis()
        for donate in (False, True)
    )
    memory = program.memory(B, steps=steps)
    assert memory.temporary == pytest.approx(kept.temp_size_in_bytes, rel=0.25)
    in_all = lambda m: m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    assert in_all(given) < in_all(kept) - memory.total / 3
    longer = program.memory(B, steps=2 * steps)
    assert longer.total == memory.total == program.memory(B).total
    assert str(memory).endswith(f"16 steps  {memory.temporary:>14,} bytes")


def test_that_of_backpropagation_through_time_does():
    model, state = build(Leaky)
    arrays, static = eqx.partition(model, eqx.is_array)

    def reference(arrays, xs, targets):
        model = eqx.combine(arrays, static)
        return etpc.bptt(model, xs, targets, loss, state=state, batch_size=B, reduction="sum")

    short, long = (
        jax.jit(reference).lower(arrays, *sequence(steps)).compile().memory_analysis()
        for steps in (40, 4000)
    )
    assert long.temp_size_in_bytes > 10 * short.temp_size_in_bytes


@pytest.mark.parametrize("batch", [3, None], ids=["batch", "one"])
def test_nothing_is_compiled_again(batch, caplog):
    """Neither with other weights, nor with a carry of a call or one whose arrays come from elsewhere."""
    model, state = build(Leaky, 8)
    lead = (6,) if batch is None else (6, batch)
    xs, targets = jnp.ones((*lead, I), jnp.float32), jnp.ones((*lead, O), jnp.float32)
    program = etpc.compile(model, etpc.D_RTRL(window=2), inputs=xs[(0,) * len(lead)], state=state)
    alone = program.value_and_grad(loss, "sum")
    runs = alone, jax.jit(alone), lambda model, xs, _, carry: program.scan(model, xs, carry)
    fresh = program.init(batch)

    starts = [fresh]
    for run in runs:
        out = run(model, xs, targets, fresh)
        starts += [one for one in jax.tree.leaves(out, is_leaf=is_carry) if is_carry(one)]
    starts += [jax.tree.map(lambda a: jnp.asarray(jax.device_get(a)), starts[-1])]
    other = jax.tree.map(lambda a: 0.9 * a, model)
    assert len(starts) == 5
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for run in runs:
            for start in starts:
                run(other, xs, targets, start)
        assert not caplog.messages
        program.scan(model, xs[:4], fresh)
        assert caplog.messages


def is_carry(node):
    return hasattr(node, "traces")
