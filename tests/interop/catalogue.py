"""Models that nobody here wrote, from the packages that have them, each with the wrapper that it takes.

A builder gives `Model(model, xs, state, step)`. A model needs no wrapper (`step` is `None`), an adapter of
`etpc.interop` (which is then one line), or a function of a few lines, which the table counts.
"""

import importlib.util
import inspect
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from etpc import interop
from tests.zoo.check import normal

N = 4
KEY = jax.random.key(0)


class Model(NamedTuple):
    """A model in 64 bits, a sequence of inputs, its initial state, and how it is called."""

    model: Any
    xs: Any
    state: Any
    step: Any = None
    adapter: str | None = None


class Case(NamedTuple):
    """One model of a package, and what is different about it."""

    package: str
    name: str
    build: Callable[[], Model]
    dead: tuple[str, ...] = ()
    """Parameters that have no gradient, because the model does not use them or is invariant under them."""
    tolerance: float = 1e-9
    """Larger only where a package computes in 32 bits whatever it is given."""

    @property
    def id(self) -> str:
        return f"{self.package}: {self.name}"


CASES: list[Case] = []


def case(package, name, *, needs=None, **options):
    """Registers a builder, where its package is installed."""

    def register(build):
        if importlib.util.find_spec(needs or package) is not None:
            CASES.append(Case(package, name, build, **options))
        return build

    return register


def double(tree):
    """A tree in 64 bits: most packages draw their parameters in 32."""

    def cast(leaf):
        if not eqx.is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        wide = jnp.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else jnp.float64
        return leaf.astype(wide)

    return jax.tree.map(cast, tree)


def lines(step) -> int:
    """The number of lines of a wrapper's body."""
    if step is None:
        return 0
    step = inspect.unwrap(getattr(step, "wrapped", step))
    if step.__name__ == "<lambda>":
        return 1
    return len(textwrap.dedent(inspect.getsource(step)).strip().splitlines()) - 1


# --- Equinox: (x, state) -> state ---------------------------------------------------------------


def equinox_step(cell, x, state):
    state = cell(x, state)
    return jax.tree.leaves(state)[0], state


@case("equinox", "nn.GRUCell")
def _():
    return Model(eqx.nn.GRUCell(3, N, key=KEY), normal(3), jnp.zeros(N), equinox_step)


@case("equinox", "nn.LSTMCell")
def _():
    state = (jnp.zeros(N), jnp.zeros(N))
    return Model(eqx.nn.LSTMCell(3, N, key=KEY), normal(3), state, equinox_step)


# --- rnn-jax: (x, state) -> (state, y) ----------------------------------------------------------


def state_first(cell, x, state):
    state, y = cell(x, state)
    return y, state


def rnn_jax(name, states, *, module="rnn_jax.cells", **options):
    @case("rnn-jax", name, needs="rnn_jax")
    def _():
        cell = getattr(importlib.import_module(module), name)
        return Model(double(cell(3, key=KEY, **options)), normal(3), states, state_first)


H = jnp.zeros(N)
VANILLA = "rnn_jax.cells.vanilla"
rnn_jax("ElmanRNNCell", (H,), hdim=N, nonlinearity=jnp.tanh)
rnn_jax("LeakyElmanCell", (H,), module=VANILLA, hdim=N, nonlinearity=jnp.tanh, leak_rate=0.3)
rnn_jax("IndRNNCell", (H,), hdim=N, nonlinearity=jnp.tanh)
rnn_jax("LongShortTermMemory", (H, H), hdim=N)
rnn_jax("LongShortTermMemoryCell", (H, H), hdim=N)
rnn_jax("GatedRecurrentUnit", (H,), hdim=N)
rnn_jax("AntiSymmetricRNNCell", (H,), hdim=N, stepsize=0.1, diffusion=0.1, nonlinearity=jnp.tanh)
rnn_jax(
    "GatedAntiSymmetricRNNCell", (H,), hdim=N, stepsize=0.1, diffusion=0.1, nonlinearity=jnp.tanh
)
rnn_jax(
    "CoupledOscillatoryRNNCell", (H, H), hdim=N, gamma=1.0, eps=0.5, dt=0.1, nonlinearity=jnp.tanh
)
rnn_jax("UnitaryEvolutionRNNCell", (H + (0.5 + 0.5j),), hdim=N)
rnn_jax(
    "ClockWorkRNNCell",
    (jnp.zeros(2), jnp.zeros(2), jnp.zeros(1, jnp.int64)),
    block_sizes=2,
    periods=(1, 2),
    nonlinearity=jnp.tanh,
)


# --- memax: sequences with a flag for their start, whose states are given for every step ---------


def memax_step(model, x, state):
    states, y = model(state, (x[None], jnp.zeros(1, bool)))
    return y[0], model.latest_recurrent_state(states)


def memax(name, module, *, dead=(), tolerance=1e-9, **options):
    @case("memax", name, dead=dead, tolerance=tolerance)
    def _():
        cell = getattr(importlib.import_module(f"memax.equinox.{module}"), name)
        model = double(cell(**options, key=KEY))
        return Model(model, normal(N), double(model.initialize_carry()), memax_step)


memax("Elman", "set_actions.elman", hidden_size=N, recurrent_size=N)
memax("GRU", "set_actions.gru", recurrent_size=N)
memax("LSTM", "set_actions.lstm", recurrent_size=N)
memax("MGU", "set_actions.mgu", recurrent_size=N)
memax(
    "Spherical",
    "set_actions.spherical",
    recurrent_size=N,
    hidden_size=N,
    dead=(".algebra.algebra.initial_state",),
)
memax("LinearRecurrent", "semigroups.lrnn", recurrent_size=N)
memax("LRU", "semigroups.lru", recurrent_size=N, hidden_size=N)
memax("S6", "semigroups.s6", recurrent_size=N, hidden_size=N)
memax("FART", "semigroups.fart", recurrent_size=N, hidden_size=N)
memax("FWP", "semigroups.fwp", recurrent_size=N, hidden_size=N)
memax("DeltaNet", "semigroups.delta", recurrent_size=N, hidden_size=N)
memax("GDN", "semigroups.gdn", recurrent_size=N, hidden_size=N)
memax("FFM", "semigroups.ffm", hidden_size=N, trace_size=3, context_size=2, tolerance=1e-5)


# --- jaxpike: (state, x) -> (state, y) -------------------------------------------------------------


def reversed_step(layer, x, state):
    state, y = layer(state, x)
    return y, state


def jaxpike(name, scale=1.0, **options):
    @case("jaxpike", name)
    def _():
        import jaxpike as jp

        jp.neurons.STATE_DTYPE = jnp.float64  # else its states stay in 32 bits
        # No neuron is silent in six steps if a step is long.
        neuron = getattr(jp, name)(**options)
        net = double(jp.Sequential(jp.Dense(3, N, key=KEY, gain=scale), neuron))
        return Model(net, normal(3), double(net.init_state((3,))), reversed_step)


jaxpike("LIF", 3.0, tau=2.0)
jaxpike("ALIF", 3.0, tau=2.0, tau_a=5.0)
jaxpike("LinearLIF", 3.0, tau=2.0)
jaxpike("LeakyIntegrator", tau=2.0)
jaxpike("Izhikevich", 30.0)


# --- spyx: modules of NNX, (x, state) -> (y, state), with a batch axis ---------------------------------


def spyx(name, scale=1.0, size=N, shape=(N,), **options):
    @case("spyx", name)
    def _():
        import spyx.nn as snn
        from flax import nnx

        rngs = nnx.Rngs(0)
        linear = nnx.Linear(3, N, rngs=rngs)
        linear.kernel.set_value(scale * linear.kernel.get_value())
        net = snn.Sequential(linear, getattr(snn, name)(shape, rngs=rngs, **options))
        start = jax.tree.map(lambda a: a[0], net.initial_state(1))
        call = lambda net, state, x: interop.batched(lambda m, x, s: m(x, s))(net, x, state)[::-1]
        model = interop.from_nnx(net, normal(3)[0], carry=double(start), call=call)
        return Model(
            double(model), normal(3), double(model.init_state()), None, "from_nnx, batched"
        )


spyx("IF", 2.0)
spyx("LIF", 2.0)
spyx("LI")
spyx("ALIF", 2.0)
spyx("CuBaLIF", 2.0)
spyx("RIF", 2.0)
spyx("RLIF", 2.0)
spyx("RCuBaLIF", 2.0)


# --- Flax NNX: cells of RNNCellBase, (carry, x) -> (carry, y) --------------------------------------


def nnx_cell(name, **options):
    @case("flax.nnx", name, needs="flax")
    def _():
        from flax import nnx

        cell = getattr(nnx, name)(3, N, rngs=nnx.Rngs(0), param_dtype=jnp.float64, **options)
        model = interop.from_nnx(cell, normal(3)[0])
        return Model(model, normal(3), double(model.init_state()), None, "from_nnx")


nnx_cell("SimpleCell", dtype=jnp.float64)
nnx_cell("GRUCell")
nnx_cell("LSTMCell")
nnx_cell("OptimizedLSTMCell")


# --- Flax Linen: (carry, x) -> (carry, y) ------------------------------------------------------------


def linen_cell(name, shape=(3,), **options):
    @case("flax.linen", name, needs="flax")
    def _():
        from flax import linen

        cell = getattr(linen, name)(N, **options)
        xs = normal(*shape)
        carry = double(cell.initialize_carry(KEY, xs[0].shape))
        model = interop.from_linen(cell, double(cell.init(KEY, carry, xs[0])), carry)
        return Model(model, xs, carry, None, "from_linen")


linen_cell("SimpleCell")
linen_cell("GRUCell")
linen_cell("MGUCell")
linen_cell("LSTMCell")
linen_cell("OptimizedLSTMCell")
linen_cell("ConvLSTMCell", (5, 2), kernel_size=(3,))


# --- memorax: sequence models in Linen with axes (B, T) and a reset mask, (xs, mask, state) -> (state, ys) ------


def memorax_networks():
    """Its sequence models, without what importing the package itself imports: agents, loggers and environments."""
    for name in ("memorax", "memorax.networks"):
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = list(spec.submodule_search_locations or ())
    return importlib.import_module("memorax.networks.sequence_models")


def memorax(name, *, dead=(), tolerance=1e-9, **options):
    dead = tuple(f"['params']['cell']['{path}']" for path in dead)

    @case("memorax", name, dead=dead, tolerance=tolerance)
    def _():
        networks = memorax_networks()
        cell = getattr(networks, name)(**options)
        net = networks.RNN(cell) if hasattr(cell, "num_feature_axes") else networks.Memoroid(cell)

        def of_sequence(params, xs, state):
            state, ys = net.apply(params, xs, jnp.zeros(xs.shape[:2]), state)
            return ys, state

        step = interop.batched(interop.stepwise(of_sequence, axis=0))
        xs = normal(N)
        state = double(net.initialize_carry(KEY, (1, N)))
        params = net.init(KEY, xs[:1, None], jnp.zeros((1, 1)), state)
        state = double(jax.tree.map(lambda a: a[0], state))
        return Model(double(params), xs, state, step, "batched, stepwise")


DOUBLE: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
memorax("LRUCell", features=N, hidden_dim=N)
memorax("S5Cell", tolerance=1e-5, features=N, state_size=N, **DOUBLE)
memorax("MinGRUCell", features=N)
memorax(
    "FFMCell", dead=("a", "b"), features=N, memory_size=3, context_size=2
)  # of the time in a call
INITS: dict[str, Any] = {
    "kernel_init": jax.nn.initializers.lecun_normal(),
    "bias_init": jax.nn.initializers.zeros,
}
memorax("LinearAttentionCell", head_dim=2, num_heads=2, **INITS, **DOUBLE)
memorax("MambaCell", features=N, num_heads=2, head_dim=2, hidden_dim=3, **DOUBLE)
memorax(
    "mLSTMCell", dead=("wi']['bias",), features=N, hidden_dim=N, num_heads=2
)  # a normalised state
memorax("sLSTMCell", dead=("i_bias",), features=N, hidden_dim=N, num_heads=2)
memorax("SHMCell", features=N, output_features=N, num_thetas=3)


# --- Haiku: cores, (x, state) -> (y, state) -----------------------------------------------------------


def haiku_core(name, make, shape=(3,)):
    @case("dm-haiku", name, needs="haiku")
    def _():
        import haiku as hk

        xs = normal(*shape)
        zero = hk.transform(lambda: make(hk).initial_state(None))
        state = double(zero.apply(zero.init(None), None))
        transformed = hk.transform(lambda x, state: make(hk)(x, state))
        params = double(transformed.init(KEY, xs[0], state))
        model = interop.from_haiku(transformed, params, state)
        return Model(model, xs, state, None, "from_haiku")


haiku_core("VanillaRNN", lambda hk: hk.VanillaRNN(N))
haiku_core("GRU", lambda hk: hk.GRU(N))
haiku_core("LSTM", lambda hk: hk.LSTM(N))
haiku_core("DeepRNN", lambda hk: hk.DeepRNN([hk.Linear(N), jnp.tanh, hk.VanillaRNN(N)]))
haiku_core(
    "Conv1DLSTM",
    lambda hk: hk.Conv1DLSTM(input_shape=(5,), output_channels=2, kernel_shape=3),
    (5, 2),
)


# --- noxton: one step of sequence models, (x, state) -> (y, state) -------------------------------------


def slstm_cell(cell, x, state):
    return cell.step(x, state)


def mlstm_cell(cell, x, state):
    q, k, v = jnp.split(x[None], 3, axis=1)
    return cell.step(q, k, v, state)


def noxton(name, size, step, *, dead=(), **options):
    @case("noxton", name, dead=dead)
    def _():
        from noxton.nn import xlstm

        model = double(getattr(xlstm, name)(**options, key=KEY))
        # Its biases begin at zero and its recurrent weights too; here they are drawn.
        leaves, treedef = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
        keys = jax.random.split(KEY, len(leaves))
        drawn = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
        model = eqx.combine(treedef.unflatten(drawn), model)
        return Model(model, normal(size), double(model.init_state()), step)


noxton("sLSTMCell", 4 * N, slstm_cell, hidden_size=N, num_heads=2)
noxton(
    "mLSTMCell",
    3 * N,
    mlstm_cell,
    dead=(".igate.bias",),
    embedding_dim=N,
    num_heads=2,
    max_seq_len=8,
)


# --- eventax: the equations of its neurons, in Euler steps of a fixed length ---------------------------


def euler_step(neuron, x, y):
    y = y + 0.5 * neuron.dynamics(0.0, y, {})
    for i in range(3):
        y = neuron.input_spike(y, N + i, jnp.arange(N), x[i])
    y = neuron.reset_spiked(y, neuron.spike_condition(0.0, y) > 0)
    return neuron.observe(y), y


def eventax(name, module, **options):
    @case("eventax", name)
    def _():
        from eventax import neuron_models

        made = getattr(importlib.import_module(f"{neuron_models.__name__}.{module}"), name)
        model = made(
            KEY, n_neurons=N, in_size=3, wmask=jnp.ones((N + 3, N)), dtype=jnp.float64, **options
        )
        return Model(model, 2 * normal(3), model.init_state(N), euler_step)


TAUS = {"tsyn": 2.0, "tmem": 3.0}
WIDE = {"wlim": 2.0, "blim": 1.0}
eventax("LIF", "lif", thresh=1.0, **TAUS, **WIDE)
eventax("ALIF", "alif", tmem=3.0, ta=5.0, b0=1.0, beta=0.5, **WIDE)
eventax("QIF", "qif", **TAUS, **WIDE)
eventax("EIF", "eif", **TAUS, wlim=2.0, wmean=1.0)
eventax("EGRU", "egru", **TAUS)


# --- diffrax: one step of a solver with a step of a fixed length ----------------------------------------


def diffrax_solver(name):
    @case("diffrax", f"{name}, a neural ODE")
    def _():
        import diffrax

        solver = getattr(diffrax, name)()
        if hasattr(
            solver, "scan_kind"
        ):  # else a loop over stages whose derivative has no transpose
            solver = eqx.tree_at(
                lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda x: x is None
            )

        def step(field, x, y):
            term = diffrax.ODETerm(lambda t, y, x: field(jnp.concatenate([y, x])))
            y, *_ = solver.step(term, 0.0, 0.3, y, x, solver.init(term, 0.0, 0.3, y, x), False)
            return y, y

        return Model(eqx.nn.MLP(N + 3, N, 5, 1, jnp.tanh, key=KEY), normal(3), jnp.zeros(N), step)


diffrax_solver("Euler")
diffrax_solver("Heun")
diffrax_solver("Tsit5")


# --- Jaxley: cells of compartments with ion channels, whose step is public --------------------------------


@case("jaxley", "a branched cell with Hodgkin-Huxley channels")
def _():
    import jaxley as jx
    from jaxley.channels import HH
    from jaxley.integrate import build_init_and_step_fn

    cell = jx.Cell(jx.Branch(jx.Compartment(), ncomp=1), parents=[-1, 0])
    cell.insert(HH())
    cell.make_trainable("HH_gNa", verbose=False)
    cell.make_trainable("HH_gK", verbose=False)
    cell.branch(0).loc(0.0).stimulate(jnp.zeros(3), verbose=False)
    cell.to_jax()
    init, advance = build_init_and_step_fn(cell)

    def step(params, x, state):
        cell.to_jax()  # which leaves its arrays in the cell
        new = advance(state, init(params)[1], {"i": x}, cell.external_inds, delta_t=0.025)
        return new["v"] / 50, new

    params = cell.get_parameters()
    return Model(params, normal(1), init(params)[0], step)
