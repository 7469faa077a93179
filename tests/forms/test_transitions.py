"""Products with sparse transitions among block states, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import etpc
from etpc.analyse._reach import closure
from etpc.forms import _transitions as transitions
from etpc.ir import _pairs


def random_transition(seed, states=40, links=1.2):
    rng = np.random.default_rng(seed)
    pattern = sp.random_array((states, states), density=links / states, rng=rng) != 0
    return sp.csr_array((pattern + sp.eye_array(states)).astype(bool))


def blocks(pattern, outputs, seed):
    """Closed blocks of some outputs, as a table padded with -1."""
    rng = np.random.default_rng(seed)
    start = sp.csr_array(
        (
            np.ones(outputs, bool),
            (np.arange(outputs), rng.integers(pattern.shape[0], size=outputs)),
        ),
        shape=(outputs, pattern.shape[0]),
    )
    whole = closure(start, pattern)
    rows = np.full((np.diff(whole.indptr).max(), outputs), -1)
    for o in range(outputs):
        members = whole.indices[whole.indptr[o] : whole.indptr[o + 1]]
        rows[: members.size, o] = members
    return rows


def dense_of(pairs, values):
    """[..., P, O] as matrices [..., O, m, m]."""
    full = np.zeros((*values.shape[:-2], values.shape[-1], pairs.m, pairs.m))
    full[..., pairs.after, pairs.before] = np.swapaxes(values, -1, -2)
    return full


@pytest.mark.slow
@given(st.integers(0, 10_000), st.sampled_from([0.6, 1.0, 1.6, 3.0]))
@settings(max_examples=25)
def test_products(seed, links):
    pattern = random_transition(seed, links=links)
    outputs = 3
    rows = blocks(pattern, outputs, seed)
    m = rows.shape[0]
    used = _pairs.uses(rows, pattern)
    pairs = _pairs.pairs_of(used, m)
    rng = np.random.default_rng(seed)

    # The transitions inside blocks are those of the whole pattern, and composition adds no pair.
    inside = np.zeros((outputs, m, m), bool)
    inside[used.output, used.after, used.before] = True
    whole = pattern.toarray()
    for o in range(outputs):
        real = rows[:, o] >= 0
        expected = np.zeros((m, m), bool)
        expected[np.ix_(real, real)] = whole[np.ix_(rows[real, o], rows[real, o])]
        np.testing.assert_array_equal(inside[o], expected)
    allowed = np.zeros((m, m), bool)
    allowed[pairs.after, pairs.before] = True
    assert not (inside.any(0) & ~allowed).any()
    np.testing.assert_array_equal((allowed.astype(int) @ allowed) > 0, allowed)

    later, earlier = rng.normal(size=(2, 2, pairs.after.size, outputs))
    block = rng.normal(size=(2, m, outputs))
    a, b = dense_of(pairs, later), dense_of(pairs, earlier)
    found = transitions.compose(pairs, jnp.asarray(later), jnp.asarray(earlier))
    np.testing.assert_allclose(dense_of(pairs, np.asarray(found)), a @ b, atol=1e-12)
    found = transitions.apply(pairs, jnp.asarray(later), jnp.asarray(block))
    expected = np.einsum("noab,nbo->nao", a, block)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    found = transitions.apply_back(pairs, jnp.asarray(later), jnp.asarray(block))
    expected = np.einsum("noab,nao->nbo", a, block)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    one = transitions.identity(pairs, jnp.float64)
    same = transitions.compose(pairs, jnp.broadcast_to(one, later.shape), jnp.asarray(earlier))
    np.testing.assert_allclose(same, earlier, atol=1e-12)


def test_all_forms_are_tried():
    """Negative control: the draws above have blocks with all pairs, few of them, and many terms."""
    sizes = []
    for seed in range(20):
        for links in (0.6, 1.0, 1.6, 3.0):
            pattern = random_transition(seed, links=links)
            rows = blocks(pattern, 3, seed)
            pairs = _pairs.pairs_of(_pairs.uses(rows, pattern), rows.shape[0])
            sizes.append((pairs.m, pairs.dense, pairs.into[0].shape[1]))
    assert any(m <= 8 for m, _, _ in sizes)
    assert any(m > 8 and dense for m, dense, _ in sizes)
    assert any(m > 8 and not dense and k <= 8 for m, dense, k in sizes)
    assert any(m > 8 and not dense and k > 8 for m, dense, k in sizes)


@pytest.mark.parametrize(
    ("steps", "m", "entered", "own"),
    [
        *((1, 1, [0], 1), (1, 4, [0, 3], 6), (2, 3, [1], 1), (2, 4, [0, 3], 6), (2, 9, [2], 6)),
        *(
            (5, 1, [0], 6),
            (5, 3, [1], 6),
            (5, 4, [0, 3], 1),
            (5, 4, [0, 1, 2, 3], 6),
            (5, 9, [2], 1),
        ),
    ],
)
def test_products_of_the_transitions_that_follow(steps, m, entered, own):
    """Of those columns alone that are needed, where the others would be multiplied with zeros."""
    rng, batch, outputs = np.random.default_rng(0), 2, 6
    pairs = _pairs.every_pair(m)
    D = rng.normal(size=(steps, batch, m * m, own))
    F = np.zeros((steps, batch, m, outputs))
    F[:, :, entered] = rng.normal(size=(steps, batch, len(entered), outputs))

    @jax.jit
    def moved(D, F):
        move, whole = transitions.suffix_products(pairs, D, entered)
        return move(F), whole

    found, whole = moved(D, F)
    matrices = dense_of(pairs, np.tile(D, outputs // own))  # [W, B, O, m, m]
    product = np.broadcast_to(np.eye(m), matrices.shape[1:])
    for t in reversed(range(steps)):
        wanted = np.einsum("boxy,byo->bxo", product, F[t])
        np.testing.assert_allclose(found[t], wanted, atol=1e-9)
        product = product @ matrices[t]
    of_each = np.tile(np.asarray(whole), outputs // own)
    np.testing.assert_allclose(dense_of(pairs, of_each), product, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 5])
def test_rtrl_of_a_deep_stack_of_independent_units(window):
    """Blocks of an arrow's shape: one unit of a layer and all of the next two."""
    rng = np.random.default_rng(0)
    n, t = 10, 4
    model = [jnp.asarray(rng.normal(size=s)) * 0.4 for s in [(n, 2), (n, n), (n, n)]]

    def step(model, x, state):
        new, below = [], x
        for weight, h in zip(model, state, strict=True):
            below = jnp.tanh(0.7 * h + weight @ below)
            new.append(below)
        return below, new

    xs, state = jnp.asarray(rng.normal(size=(t, 2))), [jnp.zeros(n)] * 3
    loss = lambda y, target: jnp.sum((y - 0.3) ** 2)
    program = etpc.compile(
        model, etpc.RTRL(window=window), inputs=xs[0], state=state, step=step, weights="all"
    )
    assert [op.block for op in program.ops] == [2 * n + 1, n + 1, 1]
    assert not program.ir.site(program.ir.traces[0]).pairs.dense
    _, grads = program.value_and_grad(loss, "sum")(model, xs, jnp.zeros(t), program.init())
    _, expected = etpc.bptt(model, xs, jnp.zeros(t), loss, state=state, step=step, reduction="sum")
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max())
