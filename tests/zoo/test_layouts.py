"""Hidden states of every layout."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.zoo import layouts as zoo
from tests.zoo.check import T, check, normal, weights

pytestmark = pytest.mark.slow

V = jnp.zeros(3)


def test_nested():
    model = zoo.Nested(weights(2, 2), weights(3))
    program = check(model, normal(2), model.init_state(), exact=True)
    states = {state for op in program.ops for state in op.states}
    assert ".layers[0]['n'].v" in states
    assert ".layers[0]['s'].i" in states


@pytest.mark.parametrize(
    ("model", "state"),
    [(zoo.Stacked, jnp.zeros((2, 3))), (zoo.Columns, jnp.zeros((3, 2)))],
    ids=["rows", "columns"],
)
def test_membrane_and_adaptation_in_one_array(model, state):
    program = check(model(weights(3, 2)), normal(2), state, exact=True)
    assert {op.block for op in program.ops} == {2}


@pytest.mark.parametrize("model", [zoo.Delay, zoo.RolledDelay])
def test_delay_lines(model):
    program = check(model(weights(3, 2)), normal(2), jnp.zeros((3, 3)), exact=True)
    assert {op.block for op in program.ops} == {3}


def test_ring_buffer():
    state = (jnp.zeros((2, 3)), jnp.ones((), jnp.int32))
    model = zoo.RingBuffer(weights(3, 2))
    check(model, normal(2), state, exact=True, smoothed=True, every=True)


def test_ring_buffer_by_slices():
    state = (jnp.zeros((4, 3)), jnp.zeros((), jnp.int32))
    check(zoo.SlicedRingBuffer(weights(3, 2), (1, 3, 2)), normal(2), state, exact=True)


def test_learned_delays():
    model = zoo.LearnedDelay(weights(3, 2), jnp.linspace(0.0, 2.0, 3))
    check(model, normal(2), jnp.zeros((3, 3)), exact=True)


COUPLED = {  # the number of states that one reaches
    **dict.fromkeys((zoo.permuted, zoo.sorted_, zoo.cumulated, zoo.centred, zoo.inhibited), 4),
    **dict.fromkeys((zoo.rolled, zoo.normalised, zoo.neighbours, zoo.diffused, zoo.fourier), 4),
    zoo.reversed_: 2,
    zoo.winner: 1,
    zoo.pooled: 2,
    zoo.scattered: 3,
}


def test_coupled_states():
    """All are parts of one model."""
    model = {f.__name__: weights(4, 2) for f in COUPLED}
    state = {f.__name__: jnp.linspace(-0.4, 0.5, 4) for f in COUPLED}

    def step(m, x, h):
        new = {}
        for f in COUPLED:
            new[f.__name__] = 0.8 * f(h[f.__name__]) + m[f.__name__] @ x
        return jax.tree.map(jnp.tanh, new), new

    program = check(model, normal(2), state, step, exact=True)
    blocks = {op.path: op.block for op in program.ops}
    assert blocks == {f"['{f.__name__}']": block for f, block in COUPLED.items()}


def test_a_scalar_for_all():
    state = (V, jnp.zeros(()))
    check(zoo.SharedScalar(weights(3, 2), jnp.asarray(0.5)), normal(2), state, exact=True)


def test_refractory_counters():
    state = (V, jnp.zeros(3, jnp.int32), jnp.zeros(3, bool))
    check(zoo.Refractory(weights(3, 2, scale=2.0)), normal(2), state, exact=True, every=True)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_noise(make):
    model = zoo.Noisy(weights(3, 2), weights(3), eqx.nn.Dropout(0.3))
    every = make is jax.random.key
    check(model, normal(2), (V, make(3)), exact=True, every=every, batched=False)


def test_keys_as_inputs():
    inputs = (normal(2), jax.random.split(jax.random.key(0), T))
    check(zoo.NoisyByInput(weights(3, 2)), inputs, V, exact=True, every=True)


def test_state_index():
    model, state = eqx.nn.make_with_state(zoo.Stateful)(weights(3, 2))
    check(model, normal(2), state, exact=True, every=True)


def test_spectral_normalisation():
    layer, state = eqx.nn.make_with_state(eqx.nn.SpectralNorm)(
        eqx.nn.Linear(2, 3, key=jax.random.key(0)), "weight", key=jax.random.key(1)
    )
    check(zoo.Spectral(layer), normal(2), (V, state))


def test_bystanders():
    state = {"trace": jnp.zeros(2), "h": V, "fixed": V + 0.1, "sink": V, "empty": jnp.zeros(0)}
    program = check(zoo.Bystanders(weights(3, 2)), normal(2), state)
    assert all("['fixed']" not in op.states for op in program.ops)


def test_groups():
    model = zoo.Groups((weights(2, 2), weights(3, 2), weights(4, 2)))
    state = {"h": jnp.zeros(2), "v": V, "u": V, "line": jnp.zeros((3, 4))}
    program = check(model, normal(2), state, exact=True, smoothed=True)
    # of the line, the two places that a later step moves on
    assert sorted(op.block for op in program.ops) == [1, 2, 2]
    assert len(program.groups) == 3


def test_leaves_that_change_places():
    check(zoo.Swapped(weights(3, 2)), normal(2), (V, V), exact=True)


def test_output_from_the_old_state():
    check(zoo.Old(weights(3, 2), jnp.linspace(1.0, 2.0, 3)), normal(2), V, exact=True)


def test_one_flat_vector():
    program = check(zoo.Packed(weights(3, 2), weights(2)), normal(2), jnp.zeros(9), exact=True)
    assert {op.block for op in program.ops} == {3}


def test_one_scalar_state():
    step = lambda model, x, h: (jnp.tanh(h), 0.7 * h + jnp.dot(model, x))
    check(weights(2), normal(2), jnp.zeros(()), step, exact=True)


def test_numpy_states_and_parameters():
    step = lambda model, x, h: (jnp.tanh(h), 0.7 * h + model["w"] @ x)
    model = {"w": np.asarray(weights(3, 2)), "name": "net", "f": jnp.tanh}
    check(model, normal(2), np.zeros(3), step, exact=True)


def test_order_as_a_leaf_of_the_model():
    step = lambda model, x, h: (jnp.tanh(h), 0.7 * h[model["order"]] + model["w"] @ x)
    model = {"w": weights(4, 2), "order": jnp.array([1, 0, 2, 3])}
    program = check(model, normal(2), jnp.zeros(4), step, exact=True)
    assert isinstance(program, etpc.Program)
