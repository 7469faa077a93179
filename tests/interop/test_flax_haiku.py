"""Modules of NNX, cells of Linen and cores of Haiku: what becomes of their states, and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("flax")
pytest.importorskip("haiku")

import haiku as hk
from flax import linen, nnx

import etpc
from etpc import interop
from tests.interop.catalogue import double
from tests.interop.check import loss

pytestmark = pytest.mark.third_party

T, B = 12, 3
xs = jax.random.normal(jax.random.key(1), (T, 3), jnp.float64)
F64 = {"param_dtype": jnp.float64}


def verified(model, xs=xs):
    report = etpc.verify(model, xs, jnp.linspace(0, 1, T), loss, etpc.RTRL(window=4), weights="all")
    assert report.ok, report
    return report


# --- NNX ------------------------------------------------------------------------------------------


class Leaky(nnx.Module):
    def __init__(self, n=4):
        self.linear = nnx.Linear(3, n, rngs=nnx.Rngs(0), **F64)
        self.h = nnx.Variable(jnp.zeros(n))
        self.scale = nnx.Variable(jnp.asarray(0.7))  # only read
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

    def __call__(self, x):
        drive = self.dropout(self.scale[...] * self.linear(x))
        self.h[...] = jnp.tanh(0.9 * self.h[...] + drive)
        return self.h[...]


def test_hidden_states_are_the_variables_that_a_step_writes():
    module = Leaky()
    model = interop.from_nnx(module, jnp.zeros(3))
    assert isinstance(model, eqx.Module)
    paths = {path for path, _ in model.init_state().items()}
    assert paths == {("h",), ("dropout", "rngs", "count"), ("dropout", "rngs", "key")}
    assert not np.any(module.h[...])
    verified(model)
    assert not np.any(module.h[...])  # the module is left as it was


def test_each_example_of_a_batch_draws_its_own_numbers():
    model = interop.from_nnx(Leaky(), jnp.zeros(3))
    program = etpc.compile(model, inputs=xs[0], weights="all")
    y, _ = program(model, jnp.ones((16, 3)), program.init(16))
    assert len(np.unique(np.asarray(y).round(6), axis=0)) > 1


def test_outputs_are_those_of_the_module():
    module = Leaky()
    model = interop.from_nnx(module, jnp.zeros(3))
    state = model.init_state()
    for x in xs:
        y, state = model(x, state)
        np.testing.assert_allclose(y, module(x))


def test_the_carry_of_a_cell():
    cell = nnx.GRUCell(3, 4, rngs=nnx.Rngs(0), **F64)
    model = interop.from_nnx(cell, xs[0], carry=jnp.full(4, 0.5))
    y, state = model(xs[0], model.init_state())
    carry, wanted = cell(jnp.full(4, 0.5), xs[0])
    np.testing.assert_allclose(y, wanted)
    np.testing.assert_allclose(state.carry, carry)
    verified(model)


class Tied(nnx.Module):
    """Two layers with one kernel."""

    def __init__(self, tied=True):
        self.one = nnx.Linear(3, 3, rngs=nnx.Rngs(0), **F64)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(1), **F64)])
        if tied:
            self.layers[0].kernel = self.one.kernel
        self.h = nnx.Variable(jnp.zeros(3))

    def __call__(self, x):
        self.h[...] = 0.5 * self.h[...] + self.one(x)
        return self.layers[0](self.h[...])


def test_a_parameter_of_two_modules_is_one():
    module = Tied()
    model = interop.from_nnx(module, xs[0])
    assert {path for path, _ in model.params.items()} == {
        ("one", "bias"),
        ("layers", 0, "kernel"),
        ("layers", 0, "bias"),
    }
    assert model.shared == ((".layers[0].kernel", ".one.kernel"),)
    verified(model)

    def total(module):  # BPTT through the module itself
        return sum(loss(module(x), 0.0) for x in xs)

    wanted = nnx.grad(total)(Tied())
    program = etpc.compile(model, etpc.RTRL(), inputs=xs[0], weights="all")
    losses = program.value_and_grad(lambda y, _: loss(y, 0.0), "sum")
    _, grads = losses(model, xs[:, None], jnp.zeros((T, 1)), program.init(1))
    got = grads.params.layers[0].kernel
    np.testing.assert_allclose(got, wanted["layers"][0]["kernel"].get_value(), rtol=1e-9)

    interop.into_nnx(jax.tree.map(lambda a: 2 * a, model), module)
    assert module.one.kernel is module.layers[0].kernel
    np.testing.assert_array_equal(module.one.kernel[...], 2 * model.params.layers[0].kernel)


def test_a_module_at_two_paths_has_one_set_of_parameters():
    class Twice(nnx.Module):
        def __init__(self):
            self.a = nnx.Linear(3, 3, rngs=nnx.Rngs(0), **F64)
            self.b = self.a
            self.up = self  # a cycle, which is no other path
            self.h = nnx.Variable(jnp.zeros(3))

        def __call__(self, x):
            self.h[...] = jnp.tanh(self.a(self.h[...]) + self.b(x))
            return self.h[...]

    model = interop.from_nnx(Twice(), xs[0])
    assert set(model.shared) == {(".a.kernel", ".b.kernel"), (".a.bias", ".b.bias")}
    assert len(jax.tree.leaves(model)) == 2
    verified(model)


def test_shared_and_separate_parameters_do_not_fit_each_other():
    tied, untied = (interop.from_nnx(Tied(t), xs[0]) for t in (True, False))
    paths = r"\.layers\[0\]\.kernel and \.one\.kernel are one parameter"
    with pytest.raises(
        etpc.InputError, match=rf"no parameter \.one\.kernel, which(.|\n)*In the model, {paths}"
    ):
        interop.into_nnx(tied, Tied(False))
    with pytest.raises(
        etpc.InputError, match=rf"no parameter \.one\.kernel, which(.|\n)*In the module, {paths}"
    ):
        interop.into_nnx(untied, Tied())


def test_modules_in_lists():
    class Deep(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([Leaky(3), Leaky(3)])

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    model = interop.from_nnx(Deep(), xs[0])
    assert ".params.layers[1].linear.kernel" in {
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(model)
    }
    verified(model)


def test_training_and_the_way_back():
    module = Leaky()
    model = interop.from_nnx(module, xs[0])
    program = etpc.compile(model, inputs=xs[0], weights="all")
    learner = etpc.online(program, loss, optax.adam(1e-2), every=4)
    opt_state, carry = learner.init(model, batch_size=B)
    batch = jnp.stack([xs] * B, 1)
    trained, *_ = learner.update(model, opt_state, carry, batch, jnp.ones((T, B)))
    before = module.linear.kernel[...]
    interop.into_nnx(trained, module)
    assert np.array_equal(module.linear.kernel[...], trained.params.linear.kernel)
    assert np.abs(before - module.linear.kernel[...]).max() > 1e-4


def test_values_that_do_not_fit():
    model = interop.from_nnx(Leaky(), xs[0])
    message = r"\.linear\.kernel is float64\[3, 5\] in the module and float64\[3, 4\] in the model"
    with pytest.raises(etpc.InputError, match=message):
        interop.into_nnx(model, Leaky(5))


class Writes(Leaky):
    def __call__(self, x):
        self.linear.bias[...] = self.linear.bias[...] + 1
        return super().__call__(x)


class Grows(Leaky):
    def __call__(self, x):
        self.h.set_value(jnp.concatenate([self.h[...], x]))
        return self.h[...]


class Makes(Leaky):
    def __call__(self, x):
        self.late = nnx.Variable(x)
        return super().__call__(x)


class WritesTied(Tied):
    def __call__(self, x):
        self.one.kernel[...] = self.one.kernel[...] + 1
        return super().__call__(x)


ERRORS = {
    "a written parameter that is shared": (
        WritesTied,
        etpc.ModelError,
        r"parameter \.layers\[0\]\.kernel \(also \.one\.kernel\)",
    ),
    "a written parameter": (Writes, etpc.ModelError, r"writes the parameter \.linear\.bias"),
    "another shape": (Grows, etpc.ModelError, r"\.h from float64\[4\] to float64\[7\]"),
    "a new variable": (Makes, etpc.ModelError, r"new variable, \.late"),
    "no module": (lambda: jnp.tanh, etpc.InputTypeError, "takes a flax.nnx.Module"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_path(name):
    make, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        interop.from_nnx(make(), xs[0])


# --- Linen ----------------------------------------------------------------------------------------


class Normed(linen.Module):
    """Keeps a running mean, in a collection of its own."""

    @linen.compact
    def __call__(self, carry, x):
        mean = self.variable("stats", "mean", jnp.zeros, 4)
        h = jnp.tanh(linen.Dense(4, **F64)(jnp.concatenate([carry, x])) - mean.value)
        if not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * h
        return h, h


def test_other_collections_are_states():
    cell = Normed()
    variables = cell.init(jax.random.key(0), jnp.zeros(4), xs[0])
    model = interop.from_linen(cell, variables, jnp.zeros(4))
    assert set(model.init_state()) == {"carry", "stats"}
    assert len(jax.tree.leaves(model)) == 2
    _, state = model(xs[0], model.init_state())
    assert np.any(state["stats"]["mean"])
    verified(model)


def test_parameters_alone_and_all_variables_are_the_same():
    cell = linen.GRUCell(4, **F64)
    variables = cell.init(jax.random.key(0), jnp.zeros(4), xs[0])
    one = interop.from_linen(cell, variables, jnp.zeros(4))
    other = interop.from_linen(cell, variables["params"], jnp.zeros(4))
    (y, _), (z, _) = (m(xs[0], m.init_state()) for m in (one, other))
    assert np.array_equal(y, z)
    (_, wanted) = cell.apply({"params": one.params}, jnp.zeros(4), xs[0])
    np.testing.assert_allclose(y, wanted)


def test_a_method_of_a_module():
    class Two(linen.Module):
        def setup(self):
            self.cell = linen.SimpleCell(4, **F64)

        def step(self, carry, x):
            return self.cell(carry, x)

    module = Two()
    variables = module.init(jax.random.key(0), jnp.zeros(4), xs[0], method=Two.step)
    verified(interop.from_linen(module, variables, jnp.zeros(4), call=Two.step))


@pytest.mark.parametrize(
    ("cell", "params", "error", "message"),
    [
        (linen.GRUCell(4), {}, etpc.InputError, "holds no parameter"),
        (linen.GRUCell(4), None, etpc.InputTypeError, "must be a dict"),
        (jnp.tanh, {"w": jnp.zeros(3)}, etpc.InputTypeError, "takes a flax.linen.Module"),
    ],
)
def test_errors_of_linen(cell, params, error, message):
    with pytest.raises(error, match=message):
        interop.from_linen(cell, params, jnp.zeros(4))


@pytest.mark.parametrize("library", ["linen", "haiku"])
def test_a_carry_that_changes_its_shape(library):
    key, short = jax.random.key(0), jnp.zeros(3)

    if library == "linen":

        class Grows(linen.Module):
            @linen.compact
            def __call__(self, carry, x):
                h = linen.Dense(4, **F64)(x) + carry.sum()
                return h, h

        model = interop.from_linen(Grows(), Grows().init(key, short, xs[0]), short)
    else:
        grows = hk.transform(lambda x, h: (hk.Linear(4)(x) + h.sum(),) * 2)
        model = interop.from_haiku(grows, double(grows.init(key, xs[0], short)), short)
    with pytest.raises(etpc.ModelError, match=r"state(.|\n)*float64\[3\](.|\n)*float64\[4\]"):
        etpc.compile(model, inputs=xs[0], weights="all")


# --- Haiku ----------------------------------------------------------------------------------------


def core(x, state):
    return hk.LSTM(4)(x, state)


LSTM = hk.LSTMState(jnp.zeros(4), jnp.zeros(4))


def test_with_and_without_keys():
    transformed = hk.transform(core)
    params = double(transformed.init(jax.random.key(0), xs[0], LSTM))
    one = interop.from_haiku(transformed, params, LSTM)
    other = interop.from_haiku(hk.without_apply_rng(transformed), params, LSTM)
    (y, _), (z, _) = (m(xs[0], m.init_state()) for m in (one, other))
    assert np.array_equal(y, z)
    wanted, _ = transformed.apply(params, None, xs[0], LSTM)
    np.testing.assert_allclose(y, wanted)


def noisy(x, h):
    h = jnp.tanh(hk.Linear(4)(jnp.concatenate([x, h])))
    h = hk.dropout(hk.next_rng_key(), 0.5, h)
    count = hk.get_state("count", (), init=jnp.zeros)
    hk.set_state("count", count + 1)
    return h, h


def test_random_numbers_and_state_of_its_own():
    transformed = hk.transform_with_state(noisy)
    key = jax.random.key(0)
    params, variables = transformed.init(key, xs[0], jnp.zeros(4))
    model = interop.from_haiku(
        transformed, double(params), jnp.zeros(4), variables=double(variables), key=key
    )
    assert set(model.init_state()) == {"core", "variables", "key"}
    (y, state) = model(xs[0], model.init_state())
    z, state = model(xs[0], state)
    assert np.any((y == 0) != (z == 0))  # other units are dropped
    assert float(jax.tree.leaves(state["variables"])[0]) == 2
    verified(model)


def test_one_array_at_two_paths_of_a_dict_is_two_parameters():
    """As for Haiku and Linen themselves, whose parameters are told apart by path alone."""

    def two(x, h):
        h = jnp.tanh(hk.Linear(3, name="one")(h) + hk.Linear(3, name="other")(x))
        return h, h

    transformed = hk.transform(two)
    params = double(transformed.init(jax.random.key(0), xs[0], jnp.zeros(3)))
    model = interop.from_haiku(
        transformed, {"one": params["one"], "other": params["one"]}, jnp.zeros(3)
    )
    program = etpc.compile(model, etpc.RTRL(), inputs=xs[0], weights="all")
    assert set(program.claims) >= {".params['one']['w']", ".params['other']['w']"}
    verified(model)


def test_errors_of_haiku():
    stateful, plain = hk.transform_with_state(noisy), hk.transform(core)
    params = plain.init(jax.random.key(0), xs[0], LSTM)
    with pytest.raises(etpc.InputError, match="as `variables=`"):
        interop.from_haiku(stateful, params, jnp.zeros(4))
    with pytest.raises(etpc.InputError, match="transform_with_state` transformed"):
        interop.from_haiku(plain, params, LSTM, variables={})
    with pytest.raises(etpc.InputError, match="no parameter"):
        interop.from_haiku(plain, {}, LSTM)
    with pytest.raises(etpc.InputTypeError, match="hk\\.transform"):
        interop.from_haiku(core, params, LSTM)


# --- batch normalisation --------------------------------------------------------------------------


class NormedNNX(Leaky):
    def __init__(self, training, at_call):
        super().__init__()
        setting = {} if at_call else {"use_running_average": not training}
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0), **setting, **F64)
        self.call = {"use_running_average": not training} if at_call else {}

    def __call__(self, x):
        return self.norm(super().__call__(x), **self.call)


class NormedLinen(linen.Module):
    training: bool
    at_call: bool

    @linen.compact
    def __call__(self, carry, x):
        carry = linen.GRUCell(4, **F64)(carry, x)[0]
        average = not self.training
        if self.at_call:
            return carry, linen.BatchNorm(**F64)(carry, average)
        return carry, linen.BatchNorm(average, **F64)(carry)


def normed(library, training, at_call):
    """A model with batch normalisation; `at_call` says where it is set that it is in training."""
    if library == "NNX":
        return interop.from_nnx(NormedNNX(training, at_call), xs[0])
    key, h = jax.random.key(0), jnp.zeros(4)
    if library == "Linen":
        cell = NormedLinen(training, at_call)
        return interop.from_linen(cell, cell.init(key, h, xs[0]), h)

    def function(x, h, training=True):
        h = hk.GRU(4)(x, h)[1]
        norm = hk.BatchNorm(True, True, 0.9)
        return (norm(h, training) if at_call else norm(h, False, training)), h

    transformed = hk.transform_with_state(function)
    params, variables = transformed.init(key, xs[0], h)
    if not training:  # the averages are there only after a step in training
        _, variables = transformed.apply(params, variables, key, xs[1], h)
        transformed = hk.transform_with_state(lambda x, h: function(x, h, False))
    return interop.from_haiku(transformed, double(params), h, variables=double(variables), key=key)


@pytest.mark.parametrize("at_call", [True, False])
@pytest.mark.parametrize(
    ("library", "layer"), [("NNX", r"\.norm"), ("Linen", r"\.BatchNorm_0"), ("Haiku", "batch_norm")]
)
def test_batch_normalisation_in_training_is_refused(library, layer, at_call):
    with pytest.raises(etpc.ModelError, match=f"layer {layer} normalises by .* LayerNorm"):
        etpc.compile(normed(library, True, at_call), inputs=xs[0])
    if library == "Haiku" and not at_call:
        return  # without local statistics it has averages alone
    model = normed(library, False, at_call)
    y, _ = model(xs[0], model.init_state())
    assert np.abs(y).max() > 1e-3
