"""Layers one after another against the same layers called by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import nn
from tests.nn.online import KEY, marks, normal

KEYS = jax.random.split(KEY, 5)
FIRST, SECOND = nn.MinGRU(3, 4, key=KEYS[0]), eqx.nn.LSTMCell(4, 4, key=KEYS[1])
LINEAR, PLAIN = eqx.nn.Linear(4, 4, key=KEYS[2]), eqx.nn.Linear(4, 2, key=KEYS[3])


def test_calls_each_layer_with_its_own_state() -> None:
    model = nn.Sequential([FIRST, jax.nn.relu, LINEAR, SECOND, PLAIN])
    state = model.init_state()
    assert isinstance(state, tuple)
    assert [type(s) for s in state[1:]] == [type(None), type(None), tuple, type(None)]
    h, lstm = FIRST.init_state(), (jnp.zeros(4), jnp.zeros(4))
    run = eqx.filter_jit(model)
    for x in normal(3, 3):
        y, state = run(x, state)
        z, h = FIRST(x, h)
        z, _ = lstm = SECOND(LINEAR(jax.nn.relu(z)), lstm)
        np.testing.assert_allclose(y, PLAIN(z), rtol=1e-12)
        np.testing.assert_allclose(state[0], h, rtol=1e-12)
        np.testing.assert_allclose(state[3][1], lstm[1], rtol=1e-12)
    assert marks(model, normal(3), model.init_state()) == 2


def test_nested_is_the_same_as_flat() -> None:
    flat = nn.Sequential([FIRST, jnp.tanh, SECOND, LINEAR])
    inner = nn.Sequential((FIRST, jnp.tanh))
    nested = nn.Sequential([inner, nn.Sequential([nn.Sequential([SECOND]), LINEAR])])
    a, b = flat.init_state(), nested.init_state()
    assert jax.tree.leaves(a)[0].shape == jax.tree.leaves(b)[0].shape
    for x in normal(3, 3):
        y, a = flat(x, a)
        z, b = nested(x, b)
        np.testing.assert_array_equal(y, z)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a), jax.tree.leaves(b))


def test_without_any_state() -> None:
    model = nn.Sequential([LINEAR, jnp.tanh])
    y, state = model(normal(4), model.init_state())
    assert state == model.init_state() == (None, None)
    np.testing.assert_array_equal(y, jnp.tanh(LINEAR(normal(4))))


def test_state_that_does_not_fit() -> None:
    model = nn.Sequential([FIRST, LINEAR])
    with pytest.raises(etpc.InputError, match="called with 1 states where it has 2 layers"):
        model(normal(3), (FIRST.init_state(),))


def with_dropout() -> nn.Sequential:
    return nn.Sequential([eqx.nn.Dropout(0.5), LINEAR, eqx.nn.Dropout(0.5), LAST])


LAST = nn.MinGRU(4, 3, key=KEYS[0])


def test_dropout_draws_anew_at_each_step() -> None:
    model = with_dropout()
    first, _, second, _ = model.layers
    state, seen = model.init_state(), []
    for _ in range(2):
        keys = [jax.random.split(state[n])[1] for n in (0, 2)]
        inner = second(LINEAR(first(jnp.ones(4), key=keys[0])), key=keys[1])
        y, h = LAST(inner, state[3])
        out, state = model(jnp.ones(4), state)
        np.testing.assert_array_equal(out, y)
        np.testing.assert_array_equal(state[3], h)
        seen.append(inner)
    assert not np.array_equal(*seen)


@pytest.mark.slow
def test_dropout_of_a_program() -> None:
    """Examples of a batch drop other units; in inference none does."""
    model = with_dropout()
    program = etpc.compile(model, inputs=jnp.ones(4))
    ys, _ = program.predict(model, jnp.ones((2, 6, 4)), program.init(6))
    assert len(np.unique(np.asarray(ys[0]), axis=0)) > 1
    still, _ = program.predict(eqx.nn.inference_mode(model), jnp.ones((1, 6, 4)), program.init(6))
    y, _ = LAST(LINEAR(jnp.ones(4)), LAST.init_state())
    np.testing.assert_allclose(still[0], jnp.broadcast_to(y, (6, 3)), rtol=1e-12)
