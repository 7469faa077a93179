"""`Program.predict` runs the model alone, as a loop by hand does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from tests.helpers import weights
from tests.test_initial_state import XS, model
from tests.zoo.check import model as of_step

T, B = XS.shape[:2]


def by_hand(net, xs, state):
    """The outputs and the last state of one example."""
    ys = []
    for x in xs:
        y, state = net(x, state)
        ys.append(y)
    return jnp.stack(ys), state


@pytest.fixture(scope="module")
def program():
    return etpc.compile(model(recurrent=True), inputs=XS[0, 0])


@pytest.mark.slow
def test_one_example(program):
    net = model(recurrent=True)
    ys, state = program.predict(net, XS[:, 0], program.init())
    wanted, last = by_hand(net, XS[:, 0], net.init_state())
    np.testing.assert_allclose(ys, wanted, rtol=1e-12)
    np.testing.assert_allclose(state[0], last[0], rtol=1e-12)
    np.testing.assert_array_equal(*(jax.random.key_data(s[2]) for s in (state, last)))


def test_streams_begin_with_the_state_of_the_model_that_runs(program):
    other = model(recurrent=True, seed=7)
    ys, _ = program.predict(other, XS, program.init(B))  # the carry shows the state of the first
    for b in range(B):
        np.testing.assert_allclose(
            ys[:, b], by_hand(other, XS[:, b], other.init_state())[0], rtol=1e-9
        )


@pytest.mark.slow
def test_goes_on_from_a_carry_of_training_and_from_its_own_state(program):
    net = model(recurrent=True)
    whole, last = program.predict(net, XS, program.init(B))
    first, carry = program.scan(net, XS[:6], program.init(B))
    for state in (carry, carry.state, program.predict(net, XS[:6], program.init(B))[1]):
        ys, after = program.predict(net, XS[6:], state)
        np.testing.assert_allclose(jnp.concatenate([first, ys]), whole, rtol=1e-12)
        np.testing.assert_allclose(after[1], last[1], rtol=1e-12)


@of_step
def Flagged(x, h, weight, gain, inference):
    """Adds `gain` to its output, which is a part of the program, if it trains."""
    h = 0.5 * h + weight @ x
    return (h if inference else gain + h), h


def test_a_model_with_other_flags_and_numbers():
    net = Flagged(weights(3, 2), 1.0, False)
    program = etpc.compile(net, inputs=jnp.zeros(2), state=jnp.zeros(3))
    xs, start = XS[:4, 0], program.init()
    training, _ = program.predict(net, xs, start)
    still, _ = program.predict(eqx.nn.inference_mode(net), xs, start)
    np.testing.assert_allclose(training, still + 1, rtol=1e-12)
    with pytest.raises(etpc.InputError, match="compile again"):
        program.scan(eqx.nn.inference_mode(net), xs, start)


def test_a_step_of_the_user_s_own_and_numbers_in_the_state():
    step = lambda w, x, s: (
        s["h"] + s["n"],
        {"h": 0.5 * s["h"] + w * x, "n": s["n"] + 1, "tag": "a"},
    )
    start = {"h": jnp.zeros(()), "n": 0, "tag": "a"}
    program = etpc.compile(jnp.ones(()), inputs=jnp.zeros(()), state=start, step=step)
    ys, state = program.predict(jnp.asarray(2.0), jnp.ones(3), start)
    np.testing.assert_allclose(ys, [0, 3, 5])
    assert (state["n"], state["tag"], float(state["h"])) == (3, "a", 3.5)


def test_under_jit_with_a_derivative(program):
    net = model(recurrent=True)
    run = lambda net: program.predict(net, XS, program.init(B))[0].sum()
    grads = eqx.filter_jit(eqx.filter_grad(run))(net)
    alone = lambda net: sum(by_hand(net, XS[:, b], net.init_state())[0].sum() for b in range(B))
    wanted = eqx.filter_grad(alone)(net)
    for path in ("h0", "scale", "weight", "leak"):  # all of time, as nothing is cut
        np.testing.assert_allclose(getattr(grads, path), getattr(wanted, path), rtol=1e-9)


def test_what_is_no_state_of_the_model(program):
    net, (h, c, key) = model(recurrent=True), program.init().state
    for state, words in (
        ((h, c), r"a tuple with another structure.*\[0\], \[1\], \[2\].*program\.init"),
        ((h[:2], c, key), r"State \[0\] is float64\[2\], and should be float64\[4\]"),
        ((h.astype(jnp.float32), c, key), r"State \[0\] is float32\[4\], and should be float64"),
    ):
        with pytest.raises(etpc.InputError, match=words):
            program.predict(net, XS[:, 0], state)
    with pytest.raises(etpc.InputError, match=r"\[T, B\] \+ \[2\]: the carry has a batch axis"):
        program.predict(net, XS[:, 0], program.init(B))
