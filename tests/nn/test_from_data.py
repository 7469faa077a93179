"""Firing rates after `nn.init_from_data`, measured by a loop that knows nothing of the compiler."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.marks import few

T, B, I, K = 80, 4, 60, 48
KEY = jax.random.key(0)
NEURONS = {
    "LIF": nn.LIF,
    "refractory LIF": lambda size: nn.LIF(size, refractory=3.0, reset="hard"),
    "ALIF": nn.ALIF,
    "GIF": lambda size: nn.GIF(size, A2=-0.2, A_th=0.1),
    "EIF": nn.EIF,
    "AdEx": nn.AdEx,
    "QIF": nn.QIF,
    "Izhikevich": nn.Izhikevich,
    "ResonateAndFire": nn.ResonateAndFire,
}


class Stack(eqx.Module):
    """Three recurrent layers of neurons, each with a synapse if so asked, and a readout."""

    weights: tuple[eqx.nn.Linear, ...]
    synapses: tuple[nn.ExponentialSynapse | None, ...]
    neurons: tuple
    readout: eqx.nn.Linear

    def __init__(self, neuron, synapse=False, use_bias=True):
        keys = jax.random.split(jax.random.key(0), 4)
        sizes = (I, K, K)
        self.weights = tuple(
            eqx.nn.Linear(size + K, K, use_bias, key=key)
            for size, key in zip(sizes, keys, strict=False)
        )
        self.synapses = (nn.ExponentialSynapse(K) if synapse else None,) * 3
        self.neurons = tuple(neuron(K) for _ in sizes)
        self.readout = eqx.nn.Linear(K, 2, key=keys[3])

    def init_state(self):
        return [
            (neuron.init_state(), None if synapse is None else synapse.init_state())
            for neuron, synapse in zip(self.neurons, self.synapses, strict=True)
        ]

    def __call__(self, x, state):
        after = []
        for linear, synapse, neuron, (s, g) in zip(
            self.weights, self.synapses, self.neurons, state, strict=True
        ):
            x = linear(jnp.concatenate([x, neuron.spike(s)]))
            if synapse is not None:
                x, g = synapse(x, g)
            x, s = neuron(x, s)
            after.append((s, g))
        return self.readout(x), after


def spikes(rate, seed=1, steps=T):
    return jax.random.bernoulli(jax.random.key(seed), rate, (steps, B, I)).astype(float)


def firing_rates(model, xs):
    """The fraction of neurons, steps and examples with a spike, layer by layer."""

    def one_step(state, x):
        _, state = jax.vmap(model)(x, state)
        fired = [
            jax.vmap(neuron.spike)(s).mean()
            for neuron, (s, _) in zip(model.neurons, state, strict=True)
        ]
        return state, jnp.stack(fired)

    start = jax.tree.map(lambda a: jnp.broadcast_to(a, (B, *a.shape)), model.init_state())
    return np.asarray(jax.lax.scan(one_step, start, xs)[1].mean(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rate"), list(itertools.product(["LIF", "ALIF"], [0.02, 0.1, 0.5]))
)
def test_three_recurrent_layers_are_alive_at_low_and_high_input_rates(name, rate):
    model = Stack(NEURONS[name])
    assert firing_rates(model, spikes(rate))[1:].max() < 0.001  # silent as it was made
    model = nn.init_from_data(model, spikes(rate), batch_size=B)
    for seed in (1, 2):  # on the sample, and on other data of its kind
        found = firing_rates(model, spikes(rate, seed))
        assert (found > 0.01).all(), found
        assert (found < 0.2).all(), found


@pytest.mark.slow
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_of_every_type_fire_as_asked(name):
    found = firing_rates(
        nn.init_from_data(Stack(NEURONS[name]), spikes(0.2), batch_size=B), spikes(0.2)
    )
    # The rate is counted over old spikes too, which lag by one step.
    np.testing.assert_allclose(found, 0.05, rtol=0.25)


@pytest.mark.parametrize("rate", few([0.02, 0.15], 0.15))
def test_the_rate_is_that_which_is_asked_for(rate):
    model = nn.init_from_data(Stack(nn.LIF), spikes(0.2), rate, batch_size=B)
    np.testing.assert_allclose(firing_rates(model, spikes(0.2)), rate, rtol=0.2)


@pytest.mark.slow
def test_one_factor_for_the_weights_of_a_layer_and_nothing_else_changes():
    before = Stack(nn.LIF, synapse=True)
    after = nn.init_from_data(before, spikes(0.1), batch_size=B)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(before.weights, after.weights, strict=True):
        factor = new.weight / old.weight
        assert abs(np.log(factor[0, 0])) > 0.1
        np.testing.assert_allclose(factor, factor[0, 0], rtol=1e-6)
        np.testing.assert_array_equal(new.bias, old.bias)
    np.testing.assert_array_equal(after.readout.weight, before.readout.weight)
    np.testing.assert_allclose(firing_rates(after, spikes(0.1)), 0.05, rtol=0.25)


@pytest.mark.slow
def test_a_network_that_fires_too_much_is_calmed():
    model = Stack(nn.LIF)
    loud = eqx.tree_at(
        lambda m: [linear.weight for linear in m.weights],
        model,
        [300 * linear.weight for linear in model.weights],
    )
    assert firing_rates(loud, spikes(0.2)).min() > 0.2
    calmed = nn.init_from_data(loud, spikes(0.2), batch_size=B)
    np.testing.assert_allclose(firing_rates(calmed, spikes(0.2)), 0.05, rtol=0.25)


def test_a_model_that_is_no_layer_of_etpc_with_its_own_step_and_state():
    @jax.custom_jvp
    def fire(v):
        return (v > 0).astype(v.dtype)

    fire.defjvp(lambda primals, tangents: (fire(primals[0]), tangents[0]))

    def step(model, x, v):
        v = 0.9 * v * (1 - fire(v - 1)) + jnp.tanh(model["first"] @ x) @ model["last"]
        return fire(v - 1), v

    keys = jax.random.split(jax.random.key(0), 2)
    model = {
        "first": jax.random.normal(keys[0], (K, I)) / 8,
        "last": np.asarray(jax.random.normal(keys[1], (K, K)) / 30),  # a weight of NumPy's
    }
    xs = spikes(0.2)[:, 0]  # one example without a batch axis
    made = nn.init_from_data(model, xs, 0.1, state=jnp.zeros(K), step=step)
    _, fired = jax.lax.scan(lambda v, x: step(made, x, v)[::-1], jnp.zeros(K), xs)
    np.testing.assert_allclose(fired.mean(), 0.1, rtol=0.2)
    # What is before another matrix product does not drive the neurons.
    np.testing.assert_array_equal(made["first"], model["first"])


@pytest.mark.slow
def test_a_convolution_and_a_product_with_a_sign():
    conv, dale = (
        nn.init(eqx.nn.Conv1d(1, 4, 5, padding="SAME", key=KEY), "kaiming_normal", KEY),
        nn.DaleLinear(4 * I, K, excitatory=2 * I, key=jax.random.key(1)),
    )
    model = nn.Sequential([conv, nn.LIF((4, I)), jnp.ravel, dale, nn.LIF(K)])
    xs = spikes(0.2)[:, 0, None]
    made = nn.init_from_data(model, xs)
    state, rates = made.init_state(), []
    run = eqx.filter_jit(made)
    for x in xs:
        _, state = run(x, state)
        rates.append([made.layers[n].spike(state[n]).mean() for n in (1, 4)])
    np.testing.assert_allclose(np.mean(rates, 0), 0.05, rtol=0.25)


def test_parameters_keep_their_dtype():
    linear = eqx.nn.Linear(I, K, dtype=jnp.float32, key=jax.random.key(0))
    model = nn.Sequential([linear, nn.LIF(K, dtype=jnp.float32)])
    made = nn.init_from_data(model, spikes(0.2)[:, 0].astype(jnp.float32))
    assert made.layers[0].weight.dtype == jnp.float32


def test_errors():
    model = nn.Sequential([eqx.nn.Linear(I, K, key=jax.random.key(0)), nn.LIF(K)])
    xs = spikes(0.2)[:, 0]
    for rate in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(etpc.InputError, match="rate must lie between 0 and 1"):
            nn.init_from_data(model, xs, rate)
    with pytest.raises(etpc.InputError, match=r"fires at 0 where 0\.05") as error:
        nn.init_from_data(model, jnp.zeros_like(xs))
    assert ".layers[0].weight" in str(error.value)
    with pytest.raises(etpc.ModelError, match="has no spike function"):
        nn.init_from_data(nn.MinGRU(I, K, key=jax.random.key(0)), xs)
    with pytest.raises(etpc.ModelError, match="no weights in front of it"):
        nn.init_from_data(nn.LIF(I), xs)
    state = jax.eval_shape(model.init_state)
    with pytest.raises(etpc.InputError, match="shapes without values"):
        nn.init_from_data(model, xs, state=state)
