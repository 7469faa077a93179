"""The rule that follows escaping influence along directions of credit, and the directions that it chooses."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.rules import CreditSubspace
from etpc.rules._credit import GROWTH
from tests import helpers, models
from tests.helpers import distance, normal
from tests.marks import few, first

T, B = 8, 2
NAMES = [name for name in models.ALL_NAMED if name != "embedding"]


class Case:
    """A named model with data; what is compiled of it is kept."""

    def __init__(self, name):
        self.model = models.named(name)
        self.xs, self.targets = models.data(self.model, T, B)
        self.programs = {}

    def program(self, algo):
        if algo not in self.programs:
            x = jax.tree.map(lambda a: a[0, 0], self.xs)
            self.programs[algo] = etpc.compile(self.model, algo, inputs=x)
        return self.programs[algo]

    def online(self, algo, parts=2):
        program = self.program(algo)
        carry = program.init(B)
        return helpers.online(program, self.model, self.xs, self.targets, carry, calls=parts)

    def defined(self, algo):
        given = dict(batch_size=B, reduction="sum")
        return etpc.reference(self.model, self.xs, self.targets, models.loss, algo, **given)[1]

    def bptt(self):
        mean = helpers.quickly(eqx.filter_grad(helpers.mean_loss))
        return jax.tree.map(lambda g: T * g, mean(self.model, self.xs, self.targets))


@functools.cache
def case_of(name):
    return Case(name)


@pytest.mark.parametrize("name", few(NAMES, "mingru"))
def test_equals_its_definition(name):
    q, W = ((1, 3), (2, 2))[NAMES.index(name) % 2]
    case, algo = case_of(name), etpc.CreditRTRL(q, None, window=W)
    assert distance(case.online(algo, parts=1), case.defined(algo)) < 1e-9


@pytest.mark.slow
def test_moment_lasts_through_windows_without_credit():
    """Against dense matrices, with as many spare directions as there are states."""
    rng = np.random.default_rng(0)
    size, q, batch, rate, ahead = 6, 2, 3, 0.3, 0.9
    d = CreditSubspace(q, rate, ahead)
    shared, each = d.init(size, batch, jnp.float64)
    M, with_credit = np.zeros((size, size)), 0
    for count in range(1, 30):
        some = count % 5 == 0
        credit = rng.normal(size=(batch, size)) * some
        starts = 0.5 * rng.normal(size=(batch, q, size))
        ends, chosen = d.ends(shared, (), jnp.ones((batch, size)))
        inner = np.asarray(ends[0] @ M @ ends[0].T)
        credits, push = jnp.asarray(credit), lambda ahead: ahead
        _, shared, each = d.advance(shared, each, chosen, jnp.asarray(starts), credits, push)
        if not with_credit and not some:
            assert not shared[2].any()
            continue
        with_credit += some
        counted = count - 4  # from the first window with credit
        later = sum(L.T @ inner @ L for L in starts) / batch
        later *= ahead * min(1, np.trace(inner) / max(np.trace(later), 1e-300))
        r = max(rate * with_credit, 1) / counted
        lengths = np.linalg.norm(credit, axis=1, keepdims=True)
        now = credit.T @ (credit / np.where(lengths > 0, lengths, 1)) / batch
        M = (1 - r) * M + r * (now + later)
        found = shared[1].T @ shared[2] @ shared[1]
        np.testing.assert_allclose(found, M, rtol=1e-9, atol=1e-12)
        assert np.linalg.matrix_rank(M) == size or with_credit < 2
    assert with_credit == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alif", "two_layer_lif", "reset_gate", "mlp", "lstm"])
def test_directions_that_span_all_states_lose_nothing(name):
    """Where influence does not grow too much; there are no more directions than states."""
    case, algo = case_of(name), etpc.CreditRTRL(100, None, window=2)
    plan = case.program(algo).plan
    assert plan.ir.extension.count == plan.analysis.hidden.size
    assert distance(case.online(algo), case.online(etpc.RTRL(window=2))) < 1e-9
    assert not case.program(algo).exact  # RTRL is, whatever the values


def scaled(m, given, s):
    """A dense network of currents, and of potentials as large as the gain that comes in with the input."""
    (x, gain), (current, v) = given, s
    current = 0.8 * current + m["w"] @ jnp.tanh(v / gain) + m["u"] @ x
    v = 0.9 * v + gain * current
    return v / gain, (current, v)


def scaled_gradient(dtype, n=4):
    """From a gain to the credit that is lost and the gradient, along two directions."""
    model = {"w": 0.3 * normal(n, n), "u": normal(n, 2, seed=1)}
    model, xs = jax.tree.map(lambda a: jnp.asarray(a, dtype), (model, normal(40, 2)))
    state, zeros = (jnp.zeros(n, dtype),) * 2, jnp.zeros(len(xs), dtype)
    algo = etpc.CreditRTRL(2, None, window=5)
    program = etpc.compile(model, algo, inputs=(xs[0], zeros[0]), state=state, step=scaled)

    def online(gain):
        run = program.value_and_grad(models.loss)
        (_, carry), grads = run(model, (xs, zeros + gain), zeros, program.init())
        return program.credit_lost(carry), grads

    return online


@pytest.mark.slow
def test_units_of_states():
    """Few directions are the same ones whatever the units are, which are powers of 2^10."""
    online = scaled_gradient(float)
    lost, wanted = online(1.0)
    for gain in (2.0**-20, 2.0**-10, 2.0**30):
        other, found = online(gain)
        assert distance(found, wanted) < 1e-8
        np.testing.assert_allclose(other, lost, 1e-8)
    online = scaled_gradient(jnp.float32)
    assert distance(online(2.0**-20)[1], online(1.0)[1]) < 1e-3


@jax.custom_jvp
def spike(v):
    return (v > 1).astype(v.dtype)


spike.defjvp(lambda p, t: (spike(p[0]), t[0] / (1 + 10 * jnp.abs(p[0] - 1)) ** 2))


def conductances(m, x, s):
    """Two neurons in Euler steps that are too long where conductances are large: potentials grow until they spike."""
    g, v, r = s
    g = 0.9 * g + m["u"] @ x + m["w"] @ spike(v)
    v = v + 0.1 * (jax.nn.relu(g) * (3.0 - v) - v)
    v = v - spike(v)
    r = 0.9 * r + m["out"] @ spike(v)
    return r, (g, v, r)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["rank", "credit"])
def test_an_unstable_network_keeps_its_gradient_finite(rule):
    """Potentials and traces of 1e30 in float32, whose squares overflow, and a gradient of a few units by BPTT."""
    single = lambda a: jnp.asarray(a, jnp.float32)
    u, w, out = np.abs(normal(2, 2)), 0.3 * normal(2, 2, seed=1), normal(1, 2, seed=2)
    model = jax.tree.map(single, {"u": 8 * u, "w": w, "out": out})
    xs, targets = single(np.abs(normal(60, 2, seed=3))), single(np.ones(60))
    state = jax.tree.map(single, (np.zeros(2), np.zeros(2), np.zeros(1)))
    common = {"state": state, "step": conductances}
    _, bptt = etpc.bptt(model, xs, targets, models.loss, **common)
    norm = lambda tree: np.linalg.norm(np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]))
    assert norm([bptt["u"], bptt["w"]]) < 100
    low = etpc.ES_D_RTRL(rank=1, window=10)
    algo = low if rule == "rank" else etpc.CreditRTRL(2, 1, window=10)
    reference = etpc.D_RTRL(window=10, backprop="cut" if rule == "rank" else "full")
    grads = []
    for each in (algo, reference):
        program = etpc.compile(model, each, inputs=xs[0], **common)
        (_, carry), found = program.value_and_grad(models.loss)(model, xs, targets, program.init())
        assert max(np.abs(a).max() for a in jax.tree.leaves(carry.traces)) > 1e20
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((carry, found)))
        grads.append([found["u"], found["w"]])
    error, reference_error = (
        norm(jax.tree.map(np.subtract, g, [bptt["u"], bptt["w"]])) for g in grads
    )
    assert error < 1.1 * reference_error


@pytest.mark.slow
def test_fewer_directions_leave_more_out():
    case, lost = case_of("gru"), []
    for q in (1, 2, 3):
        program = case.program(etpc.CreditRTRL(q, None, window=2))
        carry = program.init(B)
        assert program.credit_lost(carry) is None
        run = program.value_and_grad(models.loss)
        (_, carry), _ = run(case.model, case.xs, case.targets, carry)
        lost.append(program.credit_lost(carry))
    assert 1 >= lost[0] > lost[1] > lost[2] >= 0
    assert lost[2] < 1e-12
    with pytest.raises(etpc.AlgorithmError, match="follows no directions"):
        case.program(etpc.D_RTRL()).credit_lost(case.program(etpc.D_RTRL()).init())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": 0}, "q must be an int >= 1"),
        ({"rank": 0}, "rank=0"),
        ({"backprop": "cut"}, 'backprop="full"'),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(etpc.EtpcError, match=message):
        etpc.CreditRTRL(**given)


def test_claims_say_what_is_followed():
    case = case_of("gru")
    program = case.program(etpc.CreditRTRL(2, None, window=2))
    claim = next(c for c in program.claims.values() if c.claim == "approximate")
    assert claim.reasons[0].kind == "escape"
    assert claim.reasons[0].text.endswith("followed along 2 directions of credit")
    assert "followed along 2 directions of credit" in str(program)


@pytest.mark.slow
def test_a_window_without_the_loss_leaves_the_directions():
    """A call, or `scan`, knows no loss: the traces go on, and the moment of credit stays."""
    case = case_of("gru")
    program = case.program(etpc.CreditRTRL(1, None, window=2))
    run = program.value_and_grad(models.loss)
    (_, carry), _ = run(case.model, case.xs, case.targets, program.init(B))
    _, after = program.scan(case.model, case.xs, carry)
    for a, b in zip(carry.shared[1:6], after.shared[1:6], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(after.traces[0][0] - carry.traces[0][0]).max() > 1e-3


@pytest.mark.slow
def test_a_reset_keeps_what_the_batch_shares():
    case = case_of("gru")
    program = case.program(etpc.CreditRTRL(1, None, window=2))
    (_, carry), _ = program.value_and_grad(models.loss)(
        case.model, case.xs, case.targets, program.init(B)
    )
    after = program.reset(carry, jnp.asarray([True, False]))
    for a, b in zip(carry.shared, after.shared, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.any(after.traces[0][0][0])
    np.testing.assert_array_equal(after.traces[0][0][1], carry.traces[0][0][1])


@functools.partial(jax.jit, static_argnums=0)
def one_window(directions, shared, each, starts, credit=None):
    """What a window makes of the directions and what is carried of them, where all states are of size one."""
    _, chosen = directions.ends(shared, each, jnp.ones_like(starts[:, 0]))
    return directions.advance(shared, each, chosen, starts, credit, lambda ahead: ahead)


@pytest.mark.parametrize("scale", first([0.4, 3.0, 30.0]))
def test_products_of_transitions_are_bounded(scale):
    """And those that do not grow too much are left as they are."""
    rng = np.random.default_rng(0)
    size, q = 6, 2
    d = CreditSubspace(q)
    shared, each = d.init(size, 1, jnp.float64)
    found, wanted = [], []
    for _ in range(20):
        starts = scale * rng.normal(size=(1, q, size)) / np.sqrt(size)
        wanted.append(np.asarray(starts[0] @ shared[0].T))
        transition, shared, each = one_window(d, shared, each, jnp.asarray(starts))
        found.append(np.asarray(transition[0]))
    largest = 0.0
    for begin in range(20):
        product = np.eye(q)
        for N in found[begin:]:
            product = N @ product
            largest = max(largest, np.linalg.norm(product, 2))
    assert largest <= GROWTH * (1 + 1e-9)
    assert np.array_equal(found, wanted) == (scale < 1)


@pytest.mark.slow
def test_what_is_preserved_is_not_forgotten():
    """The bound of a norm is a little too large, and counts anew in each window."""
    d = CreditSubspace(4)
    shared, each = d.init(6, 1, jnp.float64)
    for _ in range(300):
        transition, shared, each = one_window(d, shared, each, shared[0][None])
        np.testing.assert_allclose(transition[0], np.eye(4), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e15, 1e20, 1e30])
def test_one_overflow_does_not_spoil_the_running_means(size):
    rng, d = np.random.default_rng(0), CreditSubspace(2)
    shared, each = d.init(6, 3, jnp.float32)
    for count in range(8):
        starts = jnp.asarray(0.3 * rng.normal(size=(3, 2, 6)), jnp.float32)
        credit = rng.normal(size=(3, 6))
        credit[0] *= size if count == 3 else 1
        _, shared, each = one_window(d, shared, each, starts, jnp.asarray(credit, jnp.float32))
        assert all(np.isfinite(a).all() for a in (*shared, *each))
        assert 0 <= d.lost(shared) <= 1
