"""Modules of brainstate as models: the tutorial network of braintrace, states of all kinds, errors, and back."""

import re
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("braintrace")

import brainpy.state
import brainstate
import braintools
import braintrace
import brainunit as u

import etpc
from etpc import interop
from etpc.trace import trace
from tests.interop.brainstate_zoo import in_64_bits
from tests.pages import ROOT, code_blocks

pytestmark = pytest.mark.peer

T, B = 40, 3
DT = 1.0 * u.ms


@pytest.fixture(autouse=True, scope="module")
def _in_64_bits() -> Iterator[None]:
    with in_64_bits(DT):
        yield


@pytest.fixture(scope="module")
def tutorial() -> dict:
    """The classes and functions of the page on braintrace, character by character."""
    found: dict = {}
    for code, _ in code_blocks((ROOT / "docs/migration.md").read_text(), "py"):
        if "class LIF_SNN" in code or "def their_gradient" in code:
            exec(code, found)
    brainstate.environ.set(dt=DT)
    return found


def squared(y, target):
    leaves = [u.get_mantissa(a) for a in jax.tree.leaves(y, is_leaf=u.math.is_quantity)]
    return sum(jnp.sum((a - target) ** 2) for a in leaves if jnp.issubdtype(a.dtype, jnp.inexact))


def spikes(n, steps=T, p=0.3, batch=()):
    return jax.random.bernoulli(jax.random.key(1), p, (steps, *batch, n)).astype(float)


def verified(model, xs, algorithm="rtrl", loss=squared, targets=None, **options):
    targets = jnp.linspace(0.0, 1.0, len(jax.tree.leaves(xs)[0])) if targets is None else targets
    report = etpc.verify(model, xs, targets, loss, algorithm, weights="all", **options)
    assert report.ok, report
    return report


# --- the tutorial --------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["d_rtrl", "es_d_rtrl"])
def test_the_tutorial_network_has_the_gradients_of_braintrace(tutorial, algorithm):
    net = tutorial["LIF_SNN"](12, 16, 4)
    xs = spikes(12, batch=(B,))
    labels = jnp.broadcast_to(jnp.arange(B) % 4, (T, B))
    options = {"decay_or_rank": 0.9} if algorithm == "es_d_rtrl" else {}
    wanted = tutorial["their_gradient"](net, algorithm, xs, labels, **options)

    brainstate.nn.init_all_states(net)
    model = interop.from_brainstate(net, xs[0, 0])
    ours = etpc.ES_D_RTRL(decay=0.9, everywhere=True) if options else etpc.D_RTRL()
    program = etpc.compile(model, ours, inputs=xs[0, 0], weights="all")
    loss = optax.softmax_cross_entropy_with_integer_labels
    _, grads = program.value_and_grad(loss, "sum")(model, xs, labels, program.init(B))
    for path in (("linear", "weight"), ("readout", "W")):
        one, other = (u.get_mantissa(g) for g in (dict(grads.params.items())[path], wanted[path]))
        if path[0] == "linear":
            # Its rule smooths the bias as well; here the bias keeps its full trace.
            keys = ["weight"] if options else ["weight", "bias"]
            one, other = ([u.get_mantissa(g[k]) for k in keys] for g in (one, other))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert np.abs(b).max() > 1e-6
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())


def test_their_operations_are_read_as_what_they_stand_for(tutorial):
    """The weights' trace is one of a matrix product, and not one of each element of an unknown operation."""
    net = tutorial["LIF_SNN"](12, 16, 4)
    brainstate.nn.init_all_states(net)
    model = interop.from_brainstate(net, jnp.zeros(12))
    program = etpc.compile(model, "d_rtrl", inputs=jnp.zeros(12), weights="all")
    operations = str(program)
    assert "etp_" not in operations
    found = dict(program.memory().traces)
    assert max(found.values()) == 8 * 28 * 16  # one number for each weight


def test_their_operations_are_read_in_a_step_of_ones_own_too():
    """In loops and under `vmap` as well, and without the adapter."""

    def step(w, x, h):
        def inner(h, _):
            return 0.9 * h + braintrace.matmul(x, w), None

        return (h := jax.lax.scan(inner, h, None, 3)[0]), h

    w = jnp.ones((3, 2))
    traced = trace(w, jnp.zeros(3), jnp.zeros(2), step)
    names = {e.primitive.name for e in traced.equations}
    assert "dot_general" in names
    assert not [name for name in names if name.startswith("etp_")]


# --- states of all kinds ---------------------------------------------------------------------------


class Net(brainstate.nn.Module):
    """A matrix, a layer with a state, and whatever a test needs."""

    def __init__(self, layer=None, n=5):
        super().__init__()
        rng = np.random.default_rng(0)
        self.w = brainstate.ParamState(jnp.asarray(rng.normal(size=(3, n))) * u.mA)
        self.layer = layer

    def update(self, x):
        return self.layer(x @ self.w.value)


def lif(n=5, **options):
    return brainpy.state.LIF(
        n,
        tau=5.0 * u.ms,
        R=2.0 * u.ohm,
        V_th=0.4 * u.mV,
        V_rest=0.0 * u.mV,
        V_reset=0.0 * u.mV,
        V_initializer=braintools.init.Constant(0.0 * u.mV),
        **options,
    )


def initialised(net):
    brainstate.nn.init_all_states(net)
    return net


def test_paths_units_and_values():
    net = initialised(Net(lif()))
    model = interop.from_brainstate(net, jnp.zeros(3))
    assert isinstance(model, eqx.Module)
    assert model.params.w.unit == u.mA
    assert model.init_state().layer.V.unit == u.mV
    leaves = jax.tree_util.tree_leaves_with_path(model)
    assert [jax.tree_util.keystr(p[:-1]) for p, _ in leaves] == [".params.w"]
    verified(model, spikes(3))


def test_the_module_is_left_as_it_was():
    net = initialised(Net(lif()))
    before = {path: s.value for path, s in net.states().items()}
    model = interop.from_brainstate(net, jnp.zeros(3))
    verified(model, spikes(3))
    for path, state in net.states().items():
        assert state.value is before[path]


def test_the_outputs_are_those_of_the_module():
    net = initialised(Net(lif()))
    model = interop.from_brainstate(net, jnp.zeros(3))
    state = model.init_state()
    for x in spikes(3):
        y, state = model(x, state)
        np.testing.assert_array_equal(y, net(x))
        np.testing.assert_allclose(state.layer.V.mantissa, net.layer.V.value.mantissa, rtol=1e-12)


def test_random_numbers_are_those_of_each_example():
    class Noisy(Net):
        def update(self, x):
            noise = brainstate.random.randn(5)
            self.h.value = 0.9 * self.h.value + u.get_mantissa(x @ self.w.value) + noise
            return self.h.value

        def init_state(self, **_):
            self.h = brainstate.HiddenState(jnp.zeros(5))

    model = interop.from_brainstate(initialised(Noisy()), jnp.zeros(3))
    keys = [
        a for a in jax.tree.leaves(model.init_state()) if not jnp.issubdtype(a.dtype, jnp.floating)
    ]
    assert len(keys) == 1
    program = etpc.compile(model, inputs=jnp.zeros(3), weights="all")
    carry = program.init(2)
    y, carry = program(model, jnp.zeros((2, 3)), carry)
    z, _ = program(model, jnp.zeros((2, 3)), carry)
    assert np.abs(y[0] - y[1]).max() > 0.1
    assert np.abs(z - 0.9 * y - y).max() > 0.1
    verified(model, spikes(3))


def test_delays():
    class Delayed(Net):
        def __init__(self):
            super().__init__(lif())
            self.delay = brainstate.nn.Delay(jax.ShapeDtypeStruct((5,), float), 4 * u.ms)
            self.delay.register_entry("late", 3 * u.ms)

        def update(self, x):
            spike = self.layer(x @ self.w.value)
            self.delay.update(spike)
            return self.delay.at("late")

    net = initialised(Delayed())
    model = interop.from_brainstate(net, jnp.zeros(3))
    state, ys = model.init_state(), []
    for x in spikes(3):
        y, state = model(x, state)
        ys.append(y)
    reference = interop.from_brainstate(initialised(Net(lif())), jnp.zeros(3))
    state, undelayed = reference.init_state(), []
    for x in spikes(3):
        y, state = reference(x, state)
        undelayed.append(y)
    assert np.any(np.stack(undelayed))
    np.testing.assert_array_equal(np.stack(ys)[3:], np.stack(undelayed)[:-3])
    verified(model, spikes(3))


def test_the_time_is_counted_for_layers_that_ask():
    class Timed(Net):
        def init_state(self, **_):
            self.h = brainstate.HiddenState(jnp.zeros(5))

        def update(self, x):
            t = brainstate.environ.get("t")
            drive = u.get_mantissa(x @ self.w.value)
            self.h.value = 0.9 * self.h.value + drive * jnp.sin(t / (3.0 * u.ms))
            return self.h.value

    model = interop.from_brainstate(initialised(Timed()), jnp.zeros(3))
    assert model.init_state().i == 0
    state = model.init_state()
    y, state = model(jnp.ones(3), state)
    assert not np.any(y)  # at t = 0
    y, state = model(jnp.ones(3), state)
    np.testing.assert_allclose(y, np.sin(1 / 3) * model.params.w.mantissa.sum(0))
    assert state.i == 2
    verified(model, spikes(3))
    with brainstate.environ.context(t=0.0 * u.ms):
        fixed = interop.from_brainstate(initialised(Timed()), jnp.zeros(3))
    assert [p for p, _ in fixed.init_state().items()] == [("h",)]


def test_states_that_a_step_only_reads_are_constants():
    class Scaled(Net):
        def __init__(self):
            super().__init__(lif())
            self.scale = brainstate.LongTermState(jnp.asarray(2.0))

        def update(self, x):
            return self.layer(self.scale.value * (x @ self.w.value))

    net = initialised(Scaled())
    model = interop.from_brainstate(net, jnp.zeros(3))
    net.scale.value = jnp.asarray(100.0)  # later changes do not reach the model
    assert [p for p, _ in model.init_state().items()] == [("layer", "V")]
    verified(model, spikes(3))


class Tied(Net):
    """A parameter at two paths, the second in a list."""

    def __init__(self, tied=True):
        super().__init__(lif(3), n=3)
        self.more = [self.w if tied else brainstate.ParamState(2 * self.w.value)]

    def update(self, x):
        y = self.layer(x @ self.w.value)
        return y @ self.more[0].value


def test_a_parameter_of_two_layers_is_one():
    net = initialised(Tied())
    model = interop.from_brainstate(net, jnp.zeros(3))
    (path,) = (jax.tree_util.keystr(p[1:-1]) for p, _ in jax.tree_util.tree_leaves_with_path(model))
    assert [sorted(paths) for paths in model.shared] == [[".more[0]", ".w"]]
    assert model.shared[0][0] == path
    verified(model, spikes(3))
    interop.into_brainstate(jax.tree.map(lambda a: 2 * a, model), net)
    assert net.w is net.more[0]
    np.testing.assert_array_equal(net.w.value.mantissa, 2 * jax.tree.leaves(model)[0])


def test_shared_and_separate_parameters_do_not_fit_each_other():
    tied, untied = (
        interop.from_brainstate(initialised(Tied(t)), jnp.zeros(3)) for t in (True, False)
    )
    for model, module, where in ((tied, Tied(False), "model"), (untied, Tied(), "module")):
        with pytest.raises(etpc.InputError) as caught:
            interop.into_brainstate(model, module)
        message = str(caught.value)
        assert f"In the {where}, {' and '.join(tied.shared[0])} are one parameter." in message


class Renaming(Net):
    """Its state begins in a unit, and a step gives it another, with another name or another size."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit

    def init_state(self, **_):
        self.h = brainstate.HiddenState(jnp.zeros(5) * self.unit)

    def update(self, x):
        h = (0.5 * self.h.value).to(u.mA / u.second)
        self.h.value = h + (x @ self.w.value) / u.second
        return self.h.value


def test_another_name_of_the_same_unit_is_no_other_unit():
    assert str(u.uA / u.ms) != str(u.mA / u.second)
    net = initialised(Renaming(u.uA / u.ms))
    model = interop.from_brainstate(net, jnp.zeros(3))
    state = model.init_state()
    for x in spikes(3):
        y, state = model(x, state)
        np.testing.assert_allclose(y.mantissa, net(x).mantissa, rtol=1e-12)
    assert np.any(y.mantissa)
    verified(model, spikes(3))


def test_modules_that_are_called_another_way():
    model = interop.from_brainstate(
        initialised(Net(lif())),
        {"a": jnp.zeros(3), "b": jnp.zeros(3)},
        call=lambda net, x: (net(x["a"] + x["b"]), net.layer.V.value),
    )
    verified(model, {"a": spikes(3), "b": spikes(3)})


def test_shapes_in_the_place_of_an_input():
    net = initialised(Net(lif()))
    shape = jax.ShapeDtypeStruct((3,), jnp.float64)
    model = interop.from_brainstate(net, shape)
    assert len(jax.tree.leaves(model)) == 1


# --- wherever a model goes -----------------------------------------------------------------------------


def test_training_checkpoints_and_the_way_back(tmp_path: Path):
    net = initialised(Net(lif()))
    model = interop.from_brainstate(net, jnp.zeros(3))
    xs, targets = spikes(3, batch=(B,)), jnp.ones((T, B))
    program = etpc.compile(model, inputs=xs[0, 0], weights="all")
    learner = etpc.online(program, squared, optax.adam(1e-2), every=10)
    opt_state, carry = learner.init(model, batch_size=B)
    trained, opt_state, carry, _ = learner.update(model, opt_state, carry, xs, targets)
    assert np.abs(trained.params.w.mantissa - model.params.w.mantissa).max() > 1e-3

    etpc.save(tmp_path / "run.etpc", (trained, opt_state, carry))
    again = etpc.load(tmp_path / "run.etpc", like=(model, opt_state, carry))[0]
    assert np.array_equal(again.params.w.mantissa, trained.params.w.mantissa)

    interop.into_brainstate(trained, net)
    assert net.w.value.unit == u.mA
    assert np.array_equal(net.w.value.mantissa, trained.params.w.mantissa)
    y, _ = interop.from_brainstate(net, jnp.zeros(3))(xs[0, 0], model.init_state())
    z, _ = trained(xs[0, 0], model.init_state())
    assert np.array_equal(y, z)


# --- errors --------------------------------------------------------------------------------------------


class Growing(Net):
    def init_state(self, **_):
        self.h = brainstate.HiddenState(jnp.zeros(5))

    def update(self, x):
        self.h.value = jnp.concatenate([self.h.value, u.get_mantissa(x @ self.w.value)])
        return self.h.value


class Narrowing(Growing):
    def update(self, x):
        self.h.value = self.h.value.astype(jnp.float16)
        return self.h.value


class Plastic(Net):
    def update(self, x):
        self.w.value = 0.9 * self.w.value
        return self.layer(x @ self.w.value)


class PlasticTied(Tied):
    def update(self, x):
        self.w.value = 0.9 * self.w.value
        return super().update(x)


class Lost(Net):
    def update(self, x):
        return brainstate.environ.get("temperature") * self.layer(x @ self.w.value)


class Normed(Net):
    def init_state(self, **_):
        self.norm = brainstate.nn.BatchNorm0d((5,))

    def update(self, x):
        with brainstate.environ.context(fit=True):
            return self.norm(u.get_mantissa(x @ self.w.value))


ERRORS = {
    "the statistics of a batch": (
        lambda: initialised(Normed()),
        etpc.ModelError,
        r"layer \.norm normalises by .* LayerNorm",
    ),
    "no module": (lambda: lambda x: x, etpc.InputTypeError, "takes a brainstate.nn.Module"),
    "not initialised": (lambda: Net(lif()), etpc.ModelError, r"The module\.layer has no 'V'"),
    "another shape": (
        lambda: initialised(Growing()),
        etpc.ModelError,
        r"state \.h from float64\[5\] to",
    ),
    "another unit": (
        lambda: initialised(Renaming(u.nA / u.ms)),
        etpc.ModelError,
        r"state \.h from (.|\n)*nA / ms(.|\n)* to (.|\n)*mA / s",
    ),
    "another dtype": (
        lambda: initialised(Narrowing()),
        etpc.ModelError,
        r"\.h from float64\[5\] to float16",
    ),
    "a written parameter": (
        lambda: initialised(Plastic(lif())),
        etpc.ModelError,
        r"parameter \.w\b",
    ),
    "a written parameter that is shared": (
        lambda: initialised(PlasticTied()),
        etpc.ModelError,
        r"parameter (\.w \(also \.more\[0\]\)|\.more\[0\] \(also \.w\))",
    ),
    "an environment": (lambda: initialised(Lost(lif())), etpc.ModelError, "Key 'temperature'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_path(name):
    make, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        interop.from_brainstate(make(), jnp.zeros(3))


def test_a_missing_dt_is_named():
    net = initialised(Net(lif()))
    brainstate.environ.pop("dt")
    try:
        with pytest.raises(etpc.ModelError, match=r"'dt'(.|\n)*brainstate\.environ\.set"):
            interop.from_brainstate(net, jnp.zeros(3))
    finally:
        brainstate.environ.set(dt=DT)


def test_an_input_of_another_shape():
    model = interop.from_brainstate(initialised(Net(lif())), jnp.zeros(3))
    with pytest.raises(
        etpc.InputError, match=re.escape("for an input of float64[3], and was given float64[4]")
    ):
        model(jnp.zeros(4), model.init_state())


def test_values_that_do_not_fit_the_module():
    model = interop.from_brainstate(initialised(Net(lif())), jnp.zeros(3))
    other, unitless = Net(lif(), n=4), Net(lif())
    unitless.w = brainstate.ParamState(jnp.zeros((3, 5)))
    renamed = Net(lif())
    renamed.v = renamed.w
    del renamed.w
    for wrong, message in (
        (other, r"\.w is float64\[3, 4\] in the module and float64\[3, 5\] in the model"),
        (unitless, r"\.w is float64"),
        (
            renamed,
            r"no parameter \.w, which the model has(.|\n)*no parameter \.v, which the module has",
        ),
    ):
        with pytest.raises(etpc.InputError, match=message):
            interop.into_brainstate(model, wrong)
