"""Every layer, and what the compiler makes of it, where JAX promotes no dtype by itself; what layers refuse."""

import functools
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
from tests.nn.online import KEY, KINDS, N, made, marks, parameters

SPIKING = ["LIF", "ALIF", "GIF", "QIF", "EIF", "AdEx", "Izhikevich", "ResonateAndFire"]
LEARNED = dict.fromkeys(("LeakyRateReadout", "MembraneReadout", "ExponentialSynapse"), ("tau", 5.0))
LEARNED |= {"DualExponentialSynapse": ("tau_decay", 9.0), "ShortTermPlasticity": ("U", 0.3)}
LEARNED |= (
    {"COBA": ("E", 1.0)} | dict.fromkeys(SPIKING, ("tau", 20.0)) | {"Izhikevich": ("a", 0.02)}
)
HALF = {"state_size": N // 2}
LAYERS = {name: functools.partial(made, kind) for name, kind in KINDS.items()} | {
    f"{name}, learned": functools.partial(made, KINDS[name], **{parameter: np.full(N, value)})
    for name, (parameter, value) in LEARNED.items()
}
LAYERS |= {
    "RTU": functools.partial(made, nn.RTU, **HALF),
    "RTU, non-linear": functools.partial(made, nn.RTU, linear=False, **HALF),
    "Sequential": lambda dtype: nn.Sequential(
        [
            eqx.nn.Linear(N, N, dtype=dtype, key=KEY),
            jnp.tanh,
            eqx.nn.GRUCell(N, N, dtype=dtype, key=KEY),
        ]
    ),
}


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


DTYPES = [("float32", True), ("float32", False), ("float64", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "x64"), DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer(name, dtype, x64):
    """Two steps and their derivative, in the dtype of the layer; then the same as a program."""
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        layer = LAYERS[name](dtype=dtype)
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
        model = Network(
            MODELS[name](dtype="float32"), eqx.nn.Linear(N, 2, dtype="float32", key=KEY)
        )
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


def called(name, **options):
    """A layer, and what it is called with beside an input."""
    layer = LAYERS[name](**options)
    has_state = hasattr(layer, "init_state")
    state = layer.init_state() if has_state else jnp.ones(N)
    return layer, (state,) if has_state or isinstance(layer, nn.COBA) else ()


ALONE = pytest.mark.parametrize("name", [name for name in LAYERS if name != "Sequential"])


@ALONE
def test_input_that_does_not_fit(name, without_type_checks):
    layer, state = called(name)
    message = rf"{type(layer).__name__} was called with .* of shape \(7,\)"
    with pytest.raises(etpc.InputError, match=message + r" where \(4,\) is needed"):
        layer(jnp.ones(7), *state)
    if state:
        with pytest.raises(etpc.InputError, match=message):
            layer(jnp.ones(N), jax.tree.map(lambda a: jnp.ones(7), *state))


@ALONE
def test_every_parameter_is_marked(name):
    layer, state = called(name)
    uses = 2 if name in ("DualExponentialSynapse, learned", "ResonateAndFire, learned") else 1
    assert marks(layer, jnp.ones(N), *state) == uses * parameters(layer)
    assert parameters(layer) > 0 or "learned" not in name
    if "use_bias" in inspect.signature(type(layer)).parameters:
        plain, _ = called(name, use_bias=False)
        assert plain.bias is None
        assert marks(plain, jnp.ones(N), *state) == parameters(layer) - 1
