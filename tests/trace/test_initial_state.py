"""The initial state of a module is what `init_state` returns, and is made by one compilation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from benchmarks import measure
from tests.helpers import numbers


class Leaky(eqx.Module):
    """A state of arrays of all kinds; its potential begins at a value that is asked for, if so wanted."""

    w: jax.Array
    rest: jax.Array
    ask: bool

    def init_state(self):
        start = float(self.rest) if self.ask else self.rest
        h = jnp.full(3, 0.1) + start + jax.random.normal(jax.random.key(1), (3,))
        return {"h": h, "np": np.arange(2.0), "n": 0, "x": 0.5, "key": jax.random.key(3), "s": "s"}

    def __call__(self, x, state):
        h = 0.9 * state["h"] + self.w * x + state["np"].sum() + state["x"]
        return h, state | {"h": h, "n": state["n"] + 1}


def model(ask):
    return Leaky(jnp.ones(3), jnp.asarray(0.3), ask)


@pytest.mark.parametrize("ask", [False, True])
def test_it_is_that_of_the_model(ask):
    m = model(ask)
    state = etpc.compile(m, inputs=np.ones(3)).init().state
    wanted = [a for a in jax.tree.leaves(m.init_state()) if not isinstance(a, str)]
    for one, other in zip(numbers(state), numbers(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_under_jit():
    """Where the model is traced, so is its state."""

    @jax.jit
    def start(rest):
        m = eqx.tree_at(lambda m: m.rest, model(False), rest)
        return etpc.compile(m, inputs=np.ones(3)).init().state["h"]

    np.testing.assert_allclose(start(jnp.asarray(0.3)), model(False).init_state()["h"], rtol=1e-6)


def test_an_error_of_the_model_is_its_own():
    class Broken(Leaky):
        def init_state(self):
            raise ZeroDivisionError("as its author wrote it")

    broken = Broken(jnp.ones(3), jnp.asarray(0.3), ask=False)
    with pytest.raises(ZeroDivisionError, match="as its author wrote it"):
        etpc.compile(broken, inputs=np.ones(3))


class Zeros(eqx.Module):
    w: jax.Array

    def init_state(self):
        return [jnp.zeros(n) for n in range(31, 37)]

    def __call__(self, x, state):
        return state[0], [0.9 * h + self.w * x for h in state]


def test_one_compilation():
    zeros = Zeros(jnp.asarray(1.0))
    jax.clear_caches()
    with measure.compilations() as counts:
        etpc.compile(zeros, inputs=np.ones(()))
    assert counts["compile"] == 1


def test_bptt_that_is_called_again_traces_nothing():
    zeros, xs, loss = Zeros(jnp.asarray(1.0)), np.ones((2, 1)), lambda y, t: jnp.sum((y - t) ** 2)
    call = lambda: etpc.bptt(zeros, xs, xs, loss, batch_size=1)
    call()
    with measure.compilations() as counts:
        call()
    assert not counts["trace"]
