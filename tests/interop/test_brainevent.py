"""Products of brainevent and saiunit, of data or events and a matrix that is sparse or not: as those of a BCOO or of a
dense matrix, with a trace of one number for each stored value."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("braintrace")

import brainevent
import brainstate
import braintools
import brainunit as u

import etpc
from etpc import interop
from etpc._jax import canonicalise, evaluate
from tests.helpers import alive, by_path, close, loss, normal
from tests.interop import brainstate_zoo as zoo
from tests.zoo.check import compiled, online
from tests.zoo.check import normal as sequence

pytestmark = pytest.mark.peer

ROWS, COLUMNS = np.nonzero(np.random.default_rng(3).random((5, 6)) < 0.3)
MATRIX = np.zeros((5, 6))
MATRIX[ROWS, COLUMNS] = normal(len(ROWS))
OF_ROWS = jnp.array([[0, 1], [1, 2], [0, 3], [2, 4], [5, 1]])  # where each row has two values

FORMATS = {
    "CSR": brainevent.CSR.fromdense(jnp.asarray(MATRIX)),
    "CSC": brainevent.CSC.fromdense(jnp.asarray(MATRIX)),
    "rows of two": brainevent.FixedNumPerPre((normal(5, 2), OF_ROWS), shape=(5, 6)),
    "columns of two": brainevent.FixedNumPerPost((normal(5, 2), OF_ROWS), shape=(6, 5)),
    "dense": brainevent.Dense(jnp.asarray(MATRIX)),
    **{
        f"saiunit {name}": getattr(u.sparse, name).fromdense(jnp.asarray(MATRIX))
        for name in ("CSR", "CSC", "COO")
    },
}
EVENTS = {
    "data": jnp.asarray,
    "events": brainevent.BinaryArray,
    "weighted": brainevent.WeightedArray,
}


@pytest.fixture(autouse=True, scope="module")
def _in_64_bits():
    brainevent.config.set_backend(
        "cpu", "jax_raw"
    )  # for their own products; the default needs numba
    with zoo.in_64_bits():
        yield
    brainevent.config.clear_backends()


def one_value_for_all(matrix):
    connections = [getattr(matrix, a) for a in ("indices", "indptr") if hasattr(matrix, a)]
    return type(matrix)((jnp.array([0.7]), *connections), shape=matrix.shape)


FORMATS |= {f"{n}, one value": one_value_for_all(FORMATS[n]) for n in [*FORMATS][:4]}

CASES = [
    (name, events)
    for name in FORMATS
    for events in EVENTS
    if events == "data" or not name.startswith("saiunit")
]


@pytest.mark.parametrize(("name", "events"), CASES, ids=map(" ".join, CASES))
def test_values_and_derivatives_are_theirs(name, events):
    matrix, of = FORMATS[name], EVENTS[events]
    rows, columns = matrix.shape
    products = {
        (rows,): lambda w, x: of(x) @ matrix.with_data(w),
        (columns,): lambda w, x: matrix.with_data(w) @ of(x),
        (3, rows): lambda w, x: of(x) @ matrix.with_data(w),
        (columns, 3): lambda w, x: matrix.with_data(w) @ of(x),
    }
    for n, (shape, product) in enumerate(products.items()):
        x = normal(*shape, seed=n) * (normal(*shape, seed=n + 10) > 0)
        flat = canonicalise(product, [matrix.data, x])
        names = {eqn.primitive.name for eqn in flat.equations}
        assert not [a for a in names if a.startswith(("binary", "csr", "coo", "ell"))]

        def ours(w, x, flat=flat):
            return evaluate(flat.equations, flat.environment([w, x]))[flat.outputs[0]]

        close(ours(matrix.data, x), product(matrix.data, x))
        credit = normal(*product(matrix.data, x).shape, seed=5)
        one, other = (jax.vjp(f, matrix.data, x)[1](credit) for f in (ours, product))
        close(one, other)


class Network(brainstate.nn.Module):
    """Two populations of spiking neurons, which send their spikes to each other through matrices of one format."""

    def __init__(self, matrix, events, is_dense):
        super().__init__()
        self.matrix, self.events, self.is_dense = matrix, events, is_dense
        numbers = jnp.arange(1.0, 1 + matrix.data.size).reshape(matrix.data.shape)
        self.number = np.asarray(matrix.with_data(numbers).todense()).astype(int)
        self.w_in = brainstate.ParamState(normal(3, matrix.shape[0], seed=1))
        self.w_to = brainstate.ParamState(normal(*matrix.data.shape, seed=2))
        self.w_fro = brainstate.ParamState(normal(*matrix.data.shape, seed=3))

    def init_state(self, batch_size=None, **_):
        self.v, self.u = (brainstate.HiddenState(jnp.zeros(n)) for n in self.matrix.shape)

    def update(self, x):
        spikes = (braintools.surrogate.ReluGrad(width=2.0)(s.value - 0.3) for s in (self.v, self.u))
        v, u = spikes if self.is_dense else map(EVENTS[self.events], spikes)
        to, fro = (self.matrix.with_data(w.value) for w in (self.w_to, self.w_fro))
        if self.is_dense:
            stored = (
                jnp.concatenate([jnp.zeros(1), w.value.ravel()]) for w in (self.w_to, self.w_fro)
            )
            to, fro = (values[self.number] for values in stored)
        self.v.value = 0.8 * self.v.value + x @ self.w_in.value + fro @ u
        self.u.value = 0.8 * self.u.value + v @ to
        return self.v.value, self.u.value


SOME = [
    (name, events)
    for name, events in CASES
    if "one value" not in name and (name == "CSR" or events == "events" or "saiunit" in name)
]


@pytest.mark.parametrize(("name", "events"), SOME, ids=map(" ".join, SOME))
def test_a_trace_has_a_number_for_each_stored_value(name, events):
    """RTRL is BPTT through the module, and D-RTRL that of the same network with dense matrices."""
    found = {}
    xs = sequence(3)
    for is_dense in (False, True):
        module = Network(FORMATS[name], events, is_dense)
        brainstate.nn.init_all_states(module)
        model = interop.from_brainstate(module, xs[0])
        programs = [
            etpc.compile(model, rule(window=2), inputs=xs[0], weights="all")
            for rule in (etpc.RTRL, etpc.D_RTRL)
        ]
        of_rules = compiled(
            lambda m, programs=programs: [online(p, m, xs, loss) for p in programs], model
        )
        found[is_dense] = [by_path(grads) for grads in of_rules]
        if is_dense:
            continue
        stored = module.matrix.data.size
        traces = dict(programs[1].memory().traces)
        assert max(traces[f".params.{w}"] for w in ("w_to", "w_fro")) <= 8 * stored
        exact = by_path(interop.Named.of(zoo.own_gradient(module, model, xs)))
    alive(exact)
    for one, other in zip(found[False], found[True], strict=True):
        close(one, other, 1e-11)
    close(list(found[False][0].values()), list(exact.values()), 1e-11)


LAYERS = {
    "FixedNumConn": ((6, 5, 2), {}),
    "FixedNumConn from some": ((6, 5, 2), {"afferent_ratio": 0.5}),
    "EventFixedNumConn": ((6, 5, 2), {}),
    "EventFixedProb": ((6, 5, 0.4), {}),
    "EventLinear": ((6, 5), {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_brainstate(name):
    """A trace of one number for each weight, where all neurons decay by themselves."""
    sizes, options = LAYERS[name]
    options |= {"seed": 0} if "Conn" in name or "Prob" in name else {}
    cls = getattr(brainstate.nn, name.split()[0])

    class Leaky(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = cls(*sizes, braintools.init.Normal(0.0, 1.0), **options)

        def init_state(self, batch_size=None, **_):
            self.h = brainstate.HiddenState(jnp.zeros(5))

        def update(self, x):
            self.h.value = 0.9 * self.h.value + self.layer(x)
            return self.h.value

    module = Leaky()
    brainstate.nn.init_all_states(module)
    model = interop.from_brainstate(module, jnp.zeros(6))
    (op,) = etpc.compile(model, inputs=jnp.zeros(6), weights="all", passes=()).plan.ops
    assert math.prod(op.trace_shape) == module.layer.weight.value.size
