"""Models of many kinds, each against backpropagation through time: cells, spiking networks, state-space models, hidden
states of every layout, control flow, and whatever operation a weight meets data in.

Where more is to be said of a program than the size of its blocks, the model has a test of its own.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse

import etpc
from etpc.nn import MinGRU
from tests.helpers import spike, spike_vjp
from tests.marks import few
from tests.zoo import cells, control_flow, layouts, spiking
from tests.zoo import weights as zoo
from tests.zoo.check import T, call, cell, check, integers, normal, weights

KEY = jax.random.key(0)
H = jnp.zeros(3)
W, W1, R, R1 = weights(3, 2), weights(3, 2, seed=1), weights(3, 3), weights(3, 3, seed=1)
LEAK = jnp.linspace(0.5, 1.0, 3)
SMOOTHED, EVERY = {"smoothed": True}, {"every": True}
ALL = SMOOTHED | EVERY
EDGES = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 2, 1, 0])
SPARSE = sparse.BCOO((weights(4), jnp.asarray([(0, 0), (0, 1), (1, 1), (2, 0)])), shape=(3, 3))
EINSUM = {  # shapes of the weight, the data and the state
    "goi,gi->go": ((2, 3, 2), (2, 2), (2, 3)),
    "oi,ti->to": ((3, 2), (2, 2), (2, 3)),
    "hdi,ti->thd": ((2, 2, 3), (2, 3), (2, 2, 2)),
    "goi,tgi->tgo": ((2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "o,i->oi": ((3,), (2,), (3, 2)),
    "i,i->": ((3,), (3,), ()),
    "ii,i->i": ((3, 3), (3,), (3,)),
    "ab,cb->ac": ((2, 3), (2, 3), (2, 2)),
}


def linear(n_in, n_out, **options):
    return eqx.nn.Linear(n_in, n_out, key=KEY, **options)


def complex_weights(*shape):
    return weights(*shape) + 1j * weights(*shape, seed=1)


def run(model, inputs=normal(2), state=H, step=call, *, exact=True, blocks=None, **options):
    """`check`; `blocks`: of how many states the traces are."""
    program = check(model, inputs, state, step, exact=exact, **options)
    assert blocks is None or {op.block for op in program.ops} == blocks


def drives(op, inputs=normal(2), *shape, **options):
    """An operation that drives a leaky state."""
    run(zoo.Leaky(op), inputs, jnp.zeros(shape or 3), **options)


def shared_layers():
    one, two = linear(3, 3), eqx.nn.Linear(3, 3, key=jax.random.key(1))
    return eqx.nn.Shared((one, two), lambda m: m[1].weight, lambda m: m[0].weight)


def step_of_shared_layers(model, x, h):
    one, two = model()
    h = jnp.tanh(0.5 * h + one(x))
    return two(h), h


def jitted(model, x, h):
    return eqx.filter_jit(call)(eqx.filter_jit(model), x, h)


def of_numpy(model, x, h):
    return jnp.tanh(h), 0.7 * h + model["w"] @ x


def permuted(model, x, h):
    return jnp.tanh(h), 0.7 * h[model["order"]] + model["w"] @ x


def lstm(bias):
    model = eqx.nn.LSTMCell(2, 3, use_bias=bias, key=KEY)
    # c; h is read by data that is cut, alone
    run(model, state=(H, H), step=cell, exact=False, blocks={1})


def wrapped(wrap):
    run(eqx.nn.GRUCell(2, 3, key=KEY), step=wrap(cell), exact=False)


def sandwich(before):
    after = eqx.nn.MLP(3, 1, 3, 1, jnp.tanh, key=jax.random.key(1))
    return cells.Sandwich(before, MinGRU(2, 3, key=KEY), after)


def stacked(cell, *sizes):
    """Two cells of one kind."""
    return eqx.filter_vmap(lambda key: cell(*sizes, key=key))(jax.random.split(KEY, 2))


def mamba():
    A_log = jnp.log(jnp.tile(jnp.arange(1.0, 3.0), (3, 1)))
    selective = cells.Selective(A_log, linear(3, 3), linear(3, 4, use_bias=False), jnp.ones(3))
    enter, leave = linear(2, 6, use_bias=False), linear(3, 2, use_bias=False)
    return cells.Mamba(enter, weights(3, 3), selective, leave)


def spectrum():
    """Of a real kernel."""
    kernel = complex_weights(3)
    return kernel.at[0].set(kernel[0].real).at[2].set(kernel[2].real)


def noise(make, **options):
    model = layouts.Noisy(W, weights(3), eqx.nn.Dropout(0.3))
    run(model, state=(H, make(3)), batched=False, **options)


def einsums():
    """All are parts of one model."""
    model = {e: zoo.Leaky(zoo.Einsum(weights(*w), e)) for e, (w, _, _) in EINSUM.items()}
    inputs = {e: normal(*data) for e, (_, data, _) in EINSUM.items()}
    state = {e: jnp.zeros(shape) for e, (_, _, shape) in EINSUM.items()}

    def step(m, x, h):
        both = {e: m[e](x[e], h[e]) for e in EINSUM}
        return {e: y for e, (y, _) in both.items()}, {e: new for e, (_, new) in both.items()}

    run(model, inputs, state, step)


def saturating(op, x, h):
    """Transitions differ, so that no smaller trace takes the place of the smoothed one."""
    h = 0.8 * jnp.tanh(h) + op(x)
    return h, h


def conv(kind, channels, **options):
    return kind(channels, channels, 3, padding="SAME", key=KEY, **options)


MODELS = {
    # cells
    "GRU": lambda: run(eqx.nn.GRUCell(2, 3, key=KEY), step=cell, exact=False, **ALL),
    "GRU without bias": lambda: run(
        eqx.nn.GRUCell(2, 3, use_bias=False, key=KEY), step=cell, exact=False, **SMOOTHED
    ),
    "LSTM": lambda: lstm(True),
    "LSTM without bias": lambda: lstm(False),
    "layer normalisation": lambda: run(
        cells.NormalisedLSTM(
            linear(2, 12), linear(3, 12, use_bias=False), eqx.nn.LayerNorm(12), eqx.nn.LayerNorm(3)
        ),
        state=(H + 0.1, weights(3)),
        exact=False,
    ),
    "MinGRU": lambda: run(MinGRU(2, 3, key=KEY), **ALL),
    "perceptron after a cell": lambda: run(sandwich(eqx.nn.Identity())),
    "layers by scan": lambda: run(
        cells.ResidualStack(stacked(MinGRU, 2, 2)), state=jnp.zeros((2, 2)), exact=False
    ),
    "second order": lambda: run(
        cells.FastWeights(weights(3, 2, 3), W, R), state=H + 0.1, exact=False
    ),
    "sLSTM": lambda: run(
        cells.SLSTM(weights(12, 2), weights(12, 3)), state=(H, H, H + 1.0, H), exact=False
    ),
    "mLSTM": lambda: run(
        cells.MLSTM(weights(3, 2, 2), weights(2, 2)),
        state=(jnp.zeros((2, 2)), jnp.zeros(2), jnp.zeros(())),
    ),
    "reservoir": lambda: run(
        cells.Reservoir(W, R, weights(3), weights(1, 3)), dead=(".enter", ".reservoir")
    ),
    "differentiable plasticity": lambda: run(
        cells.Plastic(R, R1, jnp.asarray(0.3), W), state=(H, jnp.zeros((3, 3))), exact=False
    ),
    "transition from the input": lambda: run(cells.InputDependentTransition(weights(3, 3, 2), W)),
    "memory": lambda: run(
        cells.Memory(weights(2, 2), weights(2, 2, seed=1), weights(2, 2, seed=2)),
        state=weights(3, 2, seed=3),
    ),
    "learned start": lambda: run(
        cells.LearnedStart(weights(3), W),
        (normal(2), jnp.arange(T) == 3),
        (H, jnp.zeros((), jnp.int32)),
    ),
    "competition": lambda: run(cells.Competition(W, jnp.linspace(0.1, 0.3, 3)), blocks={3}),
    "one cell twice": lambda: run(cells.TwiceACell(eqx.nn.GRUCell(2, 3, key=KEY)), exact=False),
    "one einsum of two weights": lambda: run(cells.ThreeFactors(W, weights(2, 2))),
    "products of outputs": lambda: run(cells.GatedProduct(W, W1), **SMOOTHED),
    "gap junctions": lambda: run(cells.GapJunctions(weights(4, 2), LEAK), state=jnp.zeros(4)),
    # spiking networks
    "surrogate by custom_jvp": lambda: run(spiking.lif(spike)),
    "surrogate by custom_vjp": lambda: run(spiking.lif(spike_vjp)),
    "straight-through surrogate": lambda: run(spiking.lif(spiking.spike_straight_through)),
    "hard reset": lambda: run(spiking.lif(hard=True)),
    "recurrent LIF": lambda: run(spiking.lif(recurrent=True), exact=False, **ALL),
    "spiking convolution": lambda: run(
        spiking.ConvSNN(
            eqx.nn.Conv2d(1, 2, 3, padding=1, key=KEY), eqx.nn.AvgPool2d(2, 2), linear(8, 2)
        ),
        normal(1, 4, 4),
        jnp.zeros((2, 4, 4)),
    ),
    "detached recurrence": lambda: run(spiking.EProp(W, R), state=(H, H)),
    "gates of ion channels": lambda: run(
        spiking.HodgkinHuxley(W, jnp.linspace(0.5, 2.0, 3)), state=(H, H + 0.1, H + 0.2)
    ),
    # state-space models
    "LRU with complex parameters": lambda: run(
        cells.ComplexLRU(
            jnp.linspace(0.5, 0.9, 3) * jnp.exp(0.7j), complex_weights(3, 2), complex_weights(1, 3)
        ),
        state=jnp.zeros(3, complex),
        **ALL,
    ),
    "Mamba": lambda: run(mamba(), state=(jnp.zeros((2, 3)), jnp.zeros((3, 2))), exact=False),
    "linear attention": lambda: run(
        cells.LinearAttention(weights(3, 2, 2, 2)), state=(jnp.zeros((2, 2, 2)), jnp.zeros((2, 2)))
    ),
    "delta rule": lambda: run(
        cells.DeltaRule(weights(3, 2, 2, 2), linear(2, 2), weights(1, 2, 2)),
        state=jnp.zeros((2, 2, 2)),
        **SMOOTHED,
    ),
    "attention over a cache": lambda: run(
        cells.CachedAttention(weights(2, 2), weights(2, 2, seed=1), W),
        state=(jnp.zeros((3, 2)), jnp.zeros((3, 3))),
    ),
    "Fourier layer": lambda: run(cells.Spectral(spectrum(), weights(4)), normal(4), jnp.zeros(4)),
    # layouts of states
    "membrane and adaptation in one array": lambda: run(
        layouts.Columns(W), state=jnp.zeros((3, 2)), blocks={2}
    ),
    "ring buffer": lambda: run(
        layouts.RingBuffer(W), state=(jnp.zeros((2, 3)), jnp.ones((), jnp.int32)), **ALL
    ),
    "ring buffer by slices": lambda: run(
        layouts.SlicedRingBuffer(W, (1, 3, 2)), state=(jnp.zeros((4, 3)), jnp.zeros((), jnp.int32))
    ),
    "learned delays": lambda: run(
        layouts.LearnedDelay(W, jnp.linspace(0.0, 2.0, 3)), state=jnp.zeros((3, 3))
    ),
    "a scalar for all": lambda: run(
        layouts.SharedScalar(W, jnp.asarray(0.5)), state=(H, jnp.zeros(()))
    ),
    "refractory counters": lambda: run(
        layouts.Refractory(weights(3, 2, scale=2.0)),
        state=(H, jnp.zeros(3, jnp.int32), jnp.zeros(3, bool)),
        **EVERY,
    ),
    "noise by a typed key": lambda: noise(jax.random.key, **EVERY),
    "noise by a raw key": lambda: noise(jax.random.PRNGKey),
    "leaves that change places": lambda: run(layouts.Swapped(W), state=(H, H)),
    "one flat vector": lambda: run(layouts.Packed(W, weights(2)), state=jnp.zeros(9), blocks={3}),
    "states and parameters of NumPy": lambda: run(
        {"w": np.asarray(W), "name": "net", "f": jnp.tanh}, state=np.zeros(3), step=of_numpy
    ),
    "order as a leaf of the model": lambda: run(
        {"w": weights(4, 2), "order": jnp.array([1, 0, 2, 3])}, state=jnp.zeros(4), step=permuted
    ),
    # control flow
    "leak in a loop": lambda: run(control_flow.LeakInLoop(W, LEAK), blocks={1}),
    "weight as a carry": lambda: run(control_flow.WeightAsCarry(W)),
    "loop over parameters": lambda: run(control_flow.Powers(R), normal(3)),
    "custom_vjp of a weight": lambda: run(control_flow.CustomProduct(W)),
    "custom_vjp on the way out": lambda: run(control_flow.ClippedCotangent(W)),
    "filter_custom_vjp": lambda: run(control_flow.Filtered(linear(2, 3), control_flow.filtered)),
    "filter_custom_jvp": lambda: run(control_flow.Filtered(linear(2, 3), control_flow.rounded)),
    "implicit derivatives": lambda: run(control_flow.Equilibrium(W, LEAK)),
    "jit": lambda: wrapped(eqx.filter_jit),
    "checkpoint": lambda: wrapped(eqx.filter_checkpoint),
    "jit and checkpoint": lambda: wrapped(lambda f: eqx.filter_jit(eqx.filter_checkpoint(f))),
    "jit of a model": lambda: run(
        control_flow.Threshold(W, jnp.linspace(0.2, 0.5, 3)), step=jitted
    ),
    "what changes nothing": lambda: run(control_flow.Effects(W)),
    "error_if": lambda: run(control_flow.Checked(W)),
    "matrix exponential": lambda: run(control_flow.Unitary(R, W), exact=False),
    "all at once": lambda: run(control_flow.Assembled(W, jnp.linspace(0.4, 0.8, 3))),
    # operations that weights meet data in
    "convolution with groups and dilation": lambda: drives(
        zoo.Dilated(weights(2, 1, 2, 2)), normal(2, 3, 3), 2, 4, 2
    ),
    "transposed convolution": lambda: drives(
        eqx.nn.ConvTranspose2d(2, 1, 2, stride=2, key=KEY), normal(2, 2, 2), 1, 4, 4
    ),
    "depthwise convolution of a state": lambda: run(
        zoo.Rolled(conv(eqx.nn.Conv1d, 2, groups=2, padding_mode="CIRCULAR")),
        normal(2, 4),
        jnp.zeros((2, 4)),
        exact=False,
    ),
    "transposed convolution of a state": lambda: run(
        zoo.Rolled(conv(eqx.nn.ConvTranspose1d, 1, use_bias=False)),
        normal(1, 4),
        jnp.zeros((1, 4)),
        exact=False,
    ),
    "embedding": lambda: drives(eqx.nn.Embedding(4, 3, key=KEY), integers(4), **EVERY),
    "gathers by data": lambda: drives(
        zoo.Take(weights(4, 3), weights(4, 4, 3), weights(3, 4)), integers(4, 2)
    ),
    "edges": lambda: drives(zoo.SegmentSum(weights(5), *EDGES, 3), normal(3)),
    "edges of a state": lambda: run(
        zoo.Rolled(zoo.SegmentSum(weights(5), *EDGES, 3)), normal(3), exact=False
    ),
    "sparse recurrence": lambda: run(
        zoo.Rolled(zoo.Sparse(SPARSE)), normal(3), H + 0.1, exact=False
    ),
    "weight normalisation": lambda: drives(eqx.nn.WeightNorm(linear(2, 3))),
    "signs and normalised rows": lambda: drives(
        zoo.Dale(W, jnp.array([[1.0, -1.0]] * 3)), dead=(".op.sign",)
    ),
    "weight of a network": lambda: drives(
        zoo.Hyper(weights(2), eqx.nn.MLP(2, 6, 2, 1, jnp.tanh, key=KEY))
    ),
    "Cayley transform": lambda: drives(zoo.Orthogonal(R), normal(3)),
    "slices of one matrix": lambda: run(zoo.Fused(weights(3, 7)), exact=False),
    "one matrix in and out": lambda: run(zoo.Tied(W)),
    "einsums": einsums,
    "grouped einsum, smoothed": lambda: run(
        zoo.Einsum(weights(2, 3, 2), "goi,gi->go"),
        normal(2, 2),
        jnp.zeros((2, 3)),
        saturating,
        **SMOOTHED,
    ),
    "ensemble": lambda: run(
        stacked(eqx.nn.GRUCell, 2, 3),
        state=jnp.zeros((2, 3)),
        step=eqx.filter_vmap(cell, in_axes=(eqx.if_array(0), None, 0)),
        exact=False,
        **SMOOTHED,
    ),
    "shared layers": lambda: run(shared_layers(), normal(3), step=step_of_shared_layers),
    "interpolated table": lambda: run(zoo.Interpolated(weights(5)), normal(3)),
    "mixture of experts": lambda: drives(zoo.Mixture(linear(2, 3), weights(3, 3, 2))),
}


@pytest.mark.parametrize("name", few(MODELS, "LSTM"))
def test_models(name):
    MODELS[name]()


@pytest.mark.slow
@pytest.mark.parametrize("mark", [etpc.mark, lambda w: etpc.mark(2.0 * w)])
def test_marked(mark):
    model = zoo.Leaky(zoo.Marked(W, weights(3), mark))
    check(model, normal(2), H, exact=True)
    program = etpc.compile(model, inputs=jnp.zeros(2), state=H, weights="marked")
    assert [op.path for op in program.ops] == [".op.weight"]
    assert "not marked" in program.untraced[".op.bias"]


@pytest.mark.slow
def test_nested_states():
    model = layouts.Nested(weights(2, 2), weights(3))
    program = check(model, normal(2), model.init_state(), exact=True)
    states = {state for op in program.ops for state in op.states}
    assert ".layers[0]['n'].v" in states
    assert ".layers[0]['s'].i" in states


@pytest.mark.slow
def test_states_without_influence():
    state = {"trace": jnp.zeros(2), "h": H, "fixed": H + 0.1, "sink": H, "empty": jnp.zeros(0)}
    program = check(layouts.Bystanders(W), normal(2), state)
    assert all("['fixed']" not in op.states for op in program.ops)


@pytest.mark.slow
def test_groups_of_states():
    model = layouts.Groups((weights(2, 2), W, weights(4, 2)))
    state = {"h": jnp.zeros(2), "v": H, "u": H, "line": jnp.zeros((3, 4))}
    program = check(model, normal(2), state, exact=True, smoothed=True)
    # of the line, the two places that a later step moves on
    assert sorted(op.block for op in program.ops) == [1, 2, 2]
    assert len(program.groups) == 3


@pytest.mark.slow
def test_perceptrons_around_a_cell():
    program = check(sandwich(eqx.nn.MLP(2, 2, 3, 1, jnp.tanh, key=KEY)), normal(2), H)
    assert {op.path for op in program.ops if op.exact} >= {".cell.weight_ih"}
    assert "only through .cell.weight_ih" in program.untraced[".before.layers[0].weight"]


@pytest.mark.slow
def test_scalar_parameters():
    program = check(cells.Scalars(W, jnp.asarray(0.4), jnp.asarray(1.3)), normal(2), H)
    assert {op.path for op in program.ops if op.exact} == {".weight", ".decay", ".gain"}
    assert any(not op.exact for op in program.plan.ops if op.path == ".gain")


@pytest.mark.slow
def test_leaves_of_every_kind():
    layers = eqx.nn.Sequential([linear(2, 3), eqx.nn.Lambda(jnp.tanh), eqx.nn.Identity()])
    norm, prelu = eqx.nn.RMSNorm(3), eqx.nn.PReLU(0.3)
    count, mask = jnp.asarray(2, jnp.int32), jnp.array([True, False, True])
    model = cells.Everything(
        layers, norm, prelu, KEY, count, mask, weights(2), jax.nn.silu, "net", None
    )
    program = check(model, normal(2), H, exact=True, dead=(".unused",))
    assert "no operation of the step depends on it" in program.untraced[".unused"]
