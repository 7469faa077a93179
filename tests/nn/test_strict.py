"""Every layer, and what the compiler makes of it, where JAX promotes no dtype by itself; what layers refuse."""

import inspect
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.helpers import loss

KEY = jax.random.key(0)
N = 4
AT = np.array([0, 1, 2, 3]), np.array([1, 0, 2, 3])
SPIKING = ["LIF", "ALIF", "GIF", "QIF", "EIF", "AdEx", "Izhikevich", "ResonateAndFire"]
CELLS = ["VanillaRNN", "MGU", "MinGRU", "MinLSTM", "IndRNN"]


def neuron(name, learned):
    """A layer of neurons; `learned`: with a parameter of each neuron."""
    at = "a" if name == "Izhikevich" else "tau"
    more = {at: np.full(N, 0.02 if at == "a" else 20.0)} if learned else {}
    return lambda dtype: getattr(nn, name)(N, dtype=dtype, **more)


LAYERS = {
    "DaleLinear": lambda dtype: nn.DaleLinear(N, N, excitatory=2, dtype=dtype, key=KEY),
    "LowRankLinear": lambda dtype: nn.LowRankLinear(N, N, 2, dtype=dtype, key=KEY),
    "SparseLinear": lambda dtype: nn.SparseLinear(N, N, AT, dtype=dtype, key=KEY),
    "Delay": lambda dtype: nn.Delay(N, np.arange(1, N + 1), dtype=dtype),
    "DelayedLinear": lambda dtype: nn.DelayedLinear(N, N, 2, dtype=dtype, key=KEY),
    "LRU": lambda dtype: nn.LRU(N, N, N, dtype=dtype, key=KEY),
    "RTU": lambda dtype: nn.RTU(N, N // 2, dtype=dtype, key=KEY),
    "RTU, non-linear": lambda dtype: nn.RTU(N, N // 2, linear=False, dtype=dtype, key=KEY),
    "S5": lambda dtype: nn.S5(N, N, N, dtype=dtype, key=KEY),
    "LeakyRateReadout": lambda dtype: nn.LeakyRateReadout(N, N, dtype=dtype, key=KEY),
    "MembraneReadout": lambda dtype: nn.MembraneReadout(N, N, dtype=dtype, key=KEY),
    "LeakyRateReadout, learned": lambda dtype: nn.LeakyRateReadout(
        N, N, tau=np.full(N, 5.0), dtype=dtype, key=KEY
    ),
    "MembraneReadout, learned": lambda dtype: nn.MembraneReadout(
        N, N, tau=np.full(N, 5.0), dtype=dtype, key=KEY
    ),
    "ExponentialSynapse": lambda dtype: nn.ExponentialSynapse(N, dtype=dtype),
    "ExponentialSynapse, learned": lambda dtype: nn.ExponentialSynapse(
        N, tau=np.full(N, 5.0), dtype=dtype
    ),
    "DualExponentialSynapse": lambda dtype: nn.DualExponentialSynapse(N, dtype=dtype),
    "DualExponentialSynapse, learned": lambda dtype: nn.DualExponentialSynapse(
        N, tau_decay=np.full(N, 9.0), dtype=dtype
    ),
    "ShortTermPlasticity": lambda dtype: nn.ShortTermPlasticity(N, dtype=dtype),
    "ShortTermPlasticity, learned": lambda dtype: nn.ShortTermPlasticity(
        N, U=np.full(N, 0.3), dtype=dtype
    ),
    "COBA": lambda dtype: nn.COBA(N, dtype=dtype),
    "COBA, learned": lambda dtype: nn.COBA(N, E=np.full(N, 1.0), dtype=dtype),
    "Sequential": lambda dtype: nn.Sequential(
        [
            eqx.nn.Linear(N, N, dtype=dtype, key=KEY),
            jnp.tanh,
            eqx.nn.GRUCell(N, N, dtype=dtype, key=KEY),
        ]
    ),
}
LAYERS |= {
    name: lambda dtype, name=name: getattr(nn, name)(N, N, dtype=dtype, key=KEY) for name in CELLS
}
LAYERS |= {name: neuron(name, learned=False) for name in SPIKING}
LAYERS |= {f"{name}, learned": neuron(name, learned=True) for name in SPIKING}


class Network(eqx.Module):
    """The layer, a leak if it has no state of its own, and a readout."""

    layer: eqx.Module
    readout: eqx.nn.Linear

    def init_state(self):
        dtype = self.readout.weight.dtype
        leak = jnp.full(N, 0.1, dtype)
        own = getattr(self.layer, "init_state", None)
        return (leak, None if own is None else own())

    def __call__(self, x, state):
        h, own = state
        if own is not None:
            y, own = self.layer(x, own)
        elif isinstance(self.layer, nn.COBA):
            y = self.layer(x, h)
        else:
            y = self.layer(x)
        h = h * 0.5 + y.reshape(N)
        return self.readout(h), (h, own)


def test_all_layers_are_here():
    exported = {
        name
        for name in nn.__all__
        if inspect.isclass(getattr(nn, name)) and issubclass(getattr(nn, name), eqx.Module)
    }
    assert exported == {name.split(",")[0] for name in LAYERS}


DTYPES = [("float32", True), ("float32", False), ("float64", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "x64"), DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name, dtype, x64):
    """Two steps and their derivative, in the dtype of the layer; then the same as a program."""
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        layer = LAYERS[name](dtype)
        x = jnp.full(N, 0.7, dtype)
        model = Network(layer, eqx.nn.Linear(N, 2, dtype=dtype, key=KEY))

        @eqx.filter_jit
        @eqx.filter_value_and_grad
        def two_steps(model):
            state = model.init_state()
            for _ in range(2):
                y, state = model(x, state)
            return y.sum()

        value, grads = two_steps(model)
        assert value.dtype == dtype
        parameters = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        assert [g.dtype for g in jax.tree.leaves(grads)] == [p.dtype for p in parameters]
        y, state = jax.eval_shape(lambda x, s: model(x, s), x, model.init_state())
        assert y.dtype == dtype
        before = jax.tree.map(lambda a: (a.shape, a.dtype), model.init_state())
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == before
        etpc.compile(model, inputs=x, weights="all")


MODELS = {
    "GRU": LAYERS["Sequential"],
    "neurons": LAYERS["ALIF, learned"],
    "complex": LAYERS["LRU"],
    "sparse": LAYERS["SparseLinear"],
    "rows": lambda dtype: eqx.nn.Embedding(300, N, dtype=dtype, key=KEY),
}
RULES = {
    "d_rtrl": etpc.D_RTRL(window=2),
    "decay": etpc.ES_D_RTRL(decay=0.9, window=2),
    "rank": etpc.ES_D_RTRL(rank=2, window=2),
    "exact in windows": etpc.D_RTRL(window=2, backprop="full"),
    "rtrl": etpc.RTRL(window=2),
}


PROGRAMS = list(itertools.product(MODELS, RULES))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rule"), PROGRAMS)
def test_programs(name, rule):
    with jax.numpy_dtype_promotion("strict"):
        model = Network(MODELS[name]("float32"), eqx.nn.Linear(N, 2, dtype="float32", key=KEY))
        x = jnp.full((4, 2, N), 0.7, "float32")
        if name == "rows":
            x = jnp.asarray(np.arange(8).reshape(4, 2) * 20, jnp.uint8)
        program = etpc.compile(model, RULES[rule], inputs=x[0, 0], weights="all")
        targets = jnp.ones((4, 2, 2), "float32")
        run = program.value_and_grad(loss, reduction="mean")
        (value, _), grads = run(model, x, targets, program.init(2))
        assert value.dtype == jnp.float32
        assert {g.dtype for g in jax.tree.leaves(grads)} == {np.dtype("float32")}
        y, _ = program(model, x[0], program.init(2))
        assert y.dtype == jnp.float32


@pytest.mark.parametrize(
    "name", {name.split(",")[0]: name for name in LAYERS if name != "Sequential"}
)
def test_input_that_does_not_fit(name, without_type_checks):
    layer = LAYERS[name]("float64")
    has_state = hasattr(layer, "init_state")
    state = layer.init_state() if has_state else jnp.ones(N)
    given = (state,) if has_state or isinstance(layer, nn.COBA) else ()
    message = rf"{type(layer).__name__} was called with .* of shape \(7,\)"
    with pytest.raises(etpc.InputError, match=message + r" where \(4,\) is needed"):
        layer(jnp.ones(7), *given)
    if given:
        with pytest.raises(etpc.InputError, match=message):
            layer(jnp.ones(N), jax.tree.map(lambda a: jnp.ones(7), state))
