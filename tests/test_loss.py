"""The loss of a sequence, in everything that takes one: masks, reductions, aux, and losses with arrays."""

import dataclasses
import functools
import gc
import inspect
import itertools
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import arrays, close, loss
from tests.test_online import PLAIN, RECURRENT, RULES, B, I, T, data, differ, gradient, program_of

D = RULES["D"]


def by_program(loss_fn, model, xs, targets, *, algo=D, batch=B, mask=None, has_aux=False, **more):
    """Loss, aux and gradient of a program from a fresh carry."""
    run = program_of(model, algo).value_and_grad(loss_fn, has_aux=has_aux, **more)
    carry = program_of(model, algo).init(batch)
    (value, rest), grads = run(model, xs, targets, carry, mask=mask)
    return value, rest[1] if has_aux else None, grads


def by_online(loss_fn, model, xs, targets, *, batch=B, has_aux=False, **more):
    """The same as the one update of a learner."""
    options = dict(loss_fn=loss_fn, has_aux=has_aux, **more)
    losses, grads, _, *aux = gradient(model, xs, targets, **options)
    return losses[0], aux[0] if has_aux else None, grads


def by_bptt(loss_fn, model, xs, targets, *, batch=B, mask=None, has_aux=False, **more):
    value, grads = etpc.bptt(
        model, xs, targets, loss_fn, batch_size=batch, mask=mask, has_aux=has_aux, **more
    )
    return (*value, grads) if has_aux else (value, None, grads)


WAYS = {"program": by_program, "online": by_online, "bptt": by_bptt}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def single(way, loss_fn, model, xs, targets, mask, **options):
    """As a batch of one example after the other, without a batch axis: sums over all of them."""
    found = [
        way(
            loss_fn, model, xs[:, b], targets[:, b],
            batch=None, mask=mask[:, b], reduction="sum", **options,
        )
        for b in range(xs.shape[1])
    ]  # fmt: skip
    return jax.tree.map(lambda *a: sum(a), *[(value, grads) for value, _, grads in found])


# --- masks ----------------------------------------------------------------------------------------

# A weight may be negative, as a reward is.
MASK = np.array([[1, 1, 1], [1, 0, 0], [0, -2, 0], [0.5, 1, 0], [1, 0, 0], [1, 0, 0]])


@functools.cache
def masked_bptt():
    """`sum(mask * loss)` and its gradient, through each sequence on its own for as long as it is."""
    (xs, targets), mask = data(), MASK

    def total(model):
        out = 0.0
        for b in range(xs.shape[1]):
            state = model.init_state()
            for t in range(len(xs)):
                if not mask[t:, b].any():
                    break
                y, state = model(xs[t, b], state)
                if mask[t, b]:
                    out = out + mask[t, b] * loss(y, targets[t, b])
        return out

    return eqx.filter_jit(eqx.filter_value_and_grad(total))(PLAIN)


def padded():
    """Sequences of lengths 6, 4 and 1, padded with what is not finite."""
    xs, targets = data()
    for b, length in enumerate([6, 4, 1]):
        xs = xs.at[length:, b].set(jnp.nan)
        targets = targets.at[length:, b].set(jnp.inf)
    return xs, targets


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_mask_against_backpropagation_by_hand(way, reduction):
    total = MASK.sum() if reduction == "mean" else B
    expected = jax.tree.map(lambda a: a / total, masked_bptt())
    assert min(jnp.abs(g).max() for g in arrays(expected[1])) > 1e-2
    value, _, grads = way(loss, PLAIN, *padded(), mask=MASK, reduction=reduction)
    close((value, grads), expected)
    unmasked = way(loss, PLAIN, *padded(), reduction=reduction)[2]
    assert all(np.isnan(g).any() for g in arrays(unmasked))


def test_a_mask_without_a_batch_axis(way):
    close(single(way, loss, PLAIN, *padded(), MASK), masked_bptt())


@pytest.mark.slow
@pytest.mark.parametrize("algo", [r for r in RULES.values() if r != D], ids=str)
def test_a_mask_under_other_rules(algo):
    """What is masked is as if the loss had been multiplied with the mask, and the data were numbers."""
    xs, targets = data()
    plain = by_program(
        lambda y, given: given[1] * loss(y, given[0]),
        PLAIN, xs * (MASK != 0)[..., None], (targets, jnp.asarray(MASK)), algo=algo, reduction="sum",
    )  # fmt: skip
    xs, targets = (jnp.where(jnp.asarray(MASK != 0)[..., None], a, jnp.nan) for a in (xs, targets))
    found = by_program(loss, PLAIN, xs, targets, algo=algo, mask=MASK, reduction="sum")
    close(found, plain)
    assert differ(found[2], by_program(loss, PLAIN, xs, targets, mask=MASK, reduction="sum")[2])


def root(y, target):
    """Has no finite derivative where the target is zero, and is infinite where it is minus one."""
    return jnp.sum(jnp.sqrt(jnp.abs(y) * target) - jnp.log(1 + target))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_where_it_is_masked(way):
    xs, targets = data()
    targets, mask = jnp.abs(targets), np.ones((T, B))
    mask[2, 1] = mask[4:, 2] = 0
    expected = way(root, PLAIN, xs, targets, mask=mask)
    assert all(np.isfinite(a).all() and a.any() for a in arrays(expected[2]))
    for bad in (0.0, -1.0, jnp.nan, jnp.inf, -jnp.inf):
        hidden = jnp.where(mask[..., None] == 0, bad, targets)
        close(way(root, PLAIN, xs, hidden, mask=mask), expected)
        assert all(np.isnan(a).any() for a in arrays(way(root, PLAIN, xs, hidden)[2]))


def reciprocal(w, x, h):
    h = 0.5 * h + w * x
    return 1e3 * h / x, h


@pytest.mark.slow
@pytest.mark.parametrize("way", ["program", "bptt"])
def test_an_output_that_overflows_where_it_is_masked(way):
    w, zero = jnp.linspace(0.5, 1.5, I), jnp.zeros(I)
    xs, _ = data()
    xs, targets = xs.at[3, 1].set(3e-308), jnp.ones((T, B, I))
    program = etpc.compile(w, D, inputs=zero, state=zero, step=reciprocal)

    def gradient(**mask):
        if way == "program":
            (value, _), grads = program.value_and_grad(loss)(
                w, xs, targets, program.init(B), **mask
            )
            return value, grads
        return etpc.bptt(w, xs, targets, loss, state=zero, step=reciprocal, batch_size=B, **mask)

    ys, _ = program.scan(w, xs, program.init(B))
    assert not np.isfinite(ys[3, 1]).all()
    mask = np.ones((T, B))
    mask[3, 1] = 0
    value, grads = gradient(mask=mask)
    assert np.isfinite(value)
    assert np.isfinite(grads).all()
    assert grads.all()
    assert not np.isfinite(gradient()[0])


@pytest.mark.slow
def test_zeros_and_booleans(way):
    xs, targets = data()
    plain = way(loss, RECURRENT, xs, targets)
    close(way(loss, RECURRENT, xs, targets, mask=np.ones((T, B), bool)), plain)
    close(way(loss, RECURRENT, xs, targets, mask=np.ones((T, B), np.int32)), plain)
    value, _, grads = way(loss, RECURRENT, xs, targets, mask=np.zeros((T, B), bool))
    assert value == 0
    assert not any(g.any() for g in arrays(grads))


def test_the_state_moves_on_at_masked_steps():
    xs, targets = data()
    run, start = program_of().value_and_grad(loss), program_of().init(B)
    (_, carry), _ = run(PLAIN, xs, targets, start, mask=np.zeros((T, B)))
    close(carry, run(PLAIN, xs, targets, start)[0][1])


def test_the_mean_is_the_default_everywhere(way):
    functions = etpc.bptt, etpc.verify, etpc.compare, etpc.online, etpc.Program.value_and_grad
    for function in functions:
        parameters = inspect.signature(inspect.unwrap(function)).parameters
        assert parameters["reduction"].default == "mean", function
    xs, targets = data()
    total = way(loss, PLAIN, xs, targets, reduction="sum")
    mean = jax.tree.map(lambda a: a / T, total)
    close(way(loss, PLAIN, xs, targets), mean)
    close(way(loss, PLAIN, xs, targets, reduction="mean"), mean)


# --- aux ------------------------------------------------------------------------------------------


def with_aux(y, target):
    """Something that could be differentiated, a boolean, and a number that is always the same."""
    return loss(y, target), {"y": y, "above": jnp.sum(y) > jnp.sum(target), "one": 1}


def expected_aux(model, xs, targets, batch: int | None = B, mask=None):
    program = program_of(model)
    ys, _ = program.scan(model, xs, program.init(batch))
    lead = xs.shape[:-1]
    return {"y": ys, "above": ys.sum(-1) > targets.sum(-1), "one": jnp.ones(lead, int)}


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "masked"), list(itertools.product([B, None], [False, True])))
def test_aux_has_axes_of_time_and_batch(way, batch, masked):
    xs, targets = data(batch=batch)
    mask = (MASK if batch else MASK[:, 1]) if masked else None
    value, aux, grads = way(with_aux, PLAIN, xs, targets, batch=batch, mask=mask, has_aux=True)
    close(aux, expected_aux(PLAIN, xs, targets, batch))
    close((value, grads), way(loss, PLAIN, xs, targets, batch=batch, mask=mask)[::2])


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 4, 5, 9])
def test_aux_in_windows(window):
    """One step, a divisor, with a remainder, one step left over, and longer than the sequence."""
    xs, targets = data()
    algo = dataclasses.replace(D, window=window)
    _, aux, grads = by_program(with_aux, RECURRENT, xs, targets, algo=algo, has_aux=True)
    close(aux, expected_aux(RECURRENT, xs, targets))
    close(grads, by_program(loss, RECURRENT, xs, targets, algo=algo)[2])
    (_, aux), grads = etpc.bptt(
        PLAIN, xs, targets, with_aux, batch_size=B, window=window, has_aux=True
    )
    close(aux, expected_aux(PLAIN, xs, targets))
    close(grads, etpc.bptt(PLAIN, xs, targets, loss, batch_size=B, window=window)[1])


@pytest.mark.slow
def test_aux_under_transformations():
    xs, targets = data()
    program = program_of()
    run, start = program.value_and_grad(with_aux, has_aux=True), program.init(B)
    plain = run(PLAIN, xs, targets, start)
    close(eqx.filter_jit(run)(PLAIN, xs, targets, start), plain)
    each = etpc.Carry(start.state, start.traces, start.fresh, start.program, False)
    (_, (_, aux)), _ = jax.vmap(lambda x, t, c: run(PLAIN, x, t, c), in_axes=(1, 1, 0))(
        xs, targets, each
    )
    close(jax.tree.map(lambda a: a.swapaxes(0, 1), aux), expected_aux(PLAIN, xs, targets))
    with jax.checking_leaks():
        close(program.value_and_grad(with_aux, has_aux=True)(PLAIN, xs, targets, start), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "case"), list(itertools.product([1, 2, 6], ["plain", "by step", "by update"]))
)
def test_aux_of_a_stream(every, case):
    xs, targets = data()
    weights: dict[str, Any] = {"mask": MASK}
    if case != "plain":
        weights["begins"] = np.zeros((T if case == "by step" else T // every, B), bool)
        weights["begins"][0, 1] = True
    found = []
    for loss_fn, has_aux in ((loss, False), (with_aux, True)):
        learner = etpc.online(program_of(), loss_fn, optax.sgd(0.1), every, has_aux=has_aux)
        start = learner.init(PLAIN, B)
        found.append(learner.update(PLAIN, *start, xs, targets, **weights))
    close(found[0], found[1][:4])  # two programs, which XLA may round differently
    aux = found[1][4]
    assert (aux["y"].shape, aux["one"].shape) == ((T, B, 1), (T, B))
    # The outputs of the steps before the first update are those of the first weights.
    expected = expected_aux(PLAIN, xs[:every], targets[:every])
    close(jax.tree.map(lambda a: a[:every], aux), expected)
    first = expected_aux(PLAIN, xs, targets)["y"]
    assert (every < T) == (float(jnp.abs(aux["y"] - first).max()) > 1e-6)


@pytest.mark.parametrize(
    ("loss_fn", "has_aux", "words"),
    [
        (with_aux, False, r"loss_fn must return one float.*Pass has_aux=True"),
        (loss, True, r"With has_aux=True loss_fn must return a pair \(loss, aux\).*float64\[\]"),
        (lambda y, t: (y, t), True, r"loss_fn must return one float.*float64\[1\]\. Sum or"),
        (lambda y, t: (1, t), True, r"loss_fn must return one float"),
    ],
)
def test_pairs_that_are_none(loss_fn, has_aux, words):
    with pytest.raises(etpc.InputError, match=words):
        by_program(loss_fn, PLAIN, *data(), has_aux=has_aux)


# --- losses with arrays ---------------------------------------------------------------------------


class Weighted(eqx.Module):
    """A loss with an array of its own, a NumPy one, and a number."""

    scale: jax.Array
    table: np.ndarray
    power: int = 2

    def __call__(self, y, target):
        return self.scale.sum() * self.table[0] * jnp.sum((y - target) ** self.power)


@pytest.mark.slow
def test_a_loss_that_is_a_module(way):
    xs, targets = data()
    module = Weighted(jnp.array([1.0, 2.0]), np.array([0.5]))
    expected = way(lambda y, t: 1.5 * loss(y, t), PLAIN, xs, targets)
    close(way(module, PLAIN, xs, targets), expected)
    other = eqx.tree_at(lambda m: m.scale, module, jnp.array([4.0, 2.0]))
    close(way(other, PLAIN, xs, targets), jax.tree.map(lambda a: 2 * a, expected))
    assert differ(way(eqx.tree_at(lambda m: m.power, module, 4), PLAIN, xs, targets), expected)


def test_a_loss_is_compiled_once_whatever_its_arrays():
    traced = []

    def counted(y, target):
        traced.append(1)
        return loss(y, target)

    class Scaled(eqx.Module):
        scale: jax.Array

        def __call__(self, y, target):
            return self.scale * counted(y, target)

    xs, targets = data()
    for one, other in ((counted, counted), (Scaled(jnp.array(1.0)), Scaled(jnp.array(3.0)))):
        before = len(traced)
        first = by_program(one, PLAIN, xs, targets)
        count = len(traced)
        second = by_program(other, PLAIN, xs, targets)
        assert before < count == len(traced)
        factor = 1 if one is other else 3
        close(second[2], jax.tree.map(lambda g, factor=factor: factor * g, first[2]))


def test_a_loss_that_cannot_be_hashed(way):
    @dataclasses.dataclass
    class Unhashable:
        scale: float

        def __call__(self, y, target):
            return self.scale * loss(y, target)

    with pytest.raises(
        etpc.InputTypeError, match=r"loss_fn is a Unhashable, which cannot be hashed"
    ):
        way(Unhashable(2.0), PLAIN, *data())


# --- precision ------------------------------------------------------------------------------------


def slow(w, x, h):
    h = 0.5 * h + w * x
    return h, h


def of_fours(way, dtype, steps, batch, **options):
    """Loss and gradient of `slow` at weights of zero, where all data are four."""
    w, lead = jnp.zeros(I, dtype), (steps,) if batch is None else (steps, batch)
    xs = jnp.full((*lead, I), 4, dtype)
    if way == "bptt":
        return etpc.bptt(w, xs, xs, loss, state=w, step=slow, batch_size=batch, **options)
    program = etpc.compile(w, D, inputs=w, state=w, step=slow)
    if way == "program":
        run = program.value_and_grad(loss, options.pop("reduction", "mean"))
        (value, _), grads = run(w, xs, xs, program.init(batch), **options)
        return value, grads
    mask = options.pop("mask", None)
    learner = etpc.online(program, loss, optax.sgd(1.0), steps, **options)
    after, _, _, losses = learner.update(w, *learner.init(w, batch), xs, xs, mask=mask)
    return losses[0], w - after


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "steps", "batch"),
    [
        (name, dtype, *size)
        for name in WAYS
        for dtype in (jnp.bfloat16, jnp.float16)
        for size in ((5_000, None), (8, 5_000))
    ],
)
def test_sums_of_low_precision(name, dtype, steps, batch):
    """A sum of 5,000 squares of four stops at 4,096 in bfloat16, and float16 ends at 65,504."""
    lead = (steps,) if batch is None else (steps, batch)
    # The gradient of a step t is -2 (1 + 1/2 + ... + 1/2^t), for data that are one.
    gradient = 16 * -4 * (1 - (1 - 0.5**steps) / steps)
    for options in {}, {"mask": jnp.ones(lead, dtype)}:
        value, grads = of_fours(name, dtype, steps, batch, **options)
        assert value.dtype == jnp.float32
        assert grads.dtype == dtype
        np.testing.assert_allclose(value, 16 * I, rtol=1e-6)
        np.testing.assert_allclose(np.asarray(grads, float), gradient, rtol=1e-2)


@pytest.mark.parametrize("window", [None, 30])
def test_bptt_in_windows_of_low_precision(window):
    value, grads = of_fours("bptt", jnp.bfloat16, 4_000, None, reduction="sum", window=window)
    np.testing.assert_allclose(value, 16 * 4_000 * I, rtol=1e-6)
    gradient = 16 * -4 * 4_000
    np.testing.assert_allclose(np.asarray(grads, float), gradient, rtol=0.1 if window else 1e-2)


def test_verify_in_low_precision():
    w, xs = jnp.zeros(I, jnp.bfloat16), jnp.ones((2_000, I), jnp.bfloat16)
    assert etpc.verify(w, xs, xs, loss, D, state=w, step=slow).ok


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [bool, jnp.int8, jnp.float32])
def test_a_mask_where_jax_promotes_no_dtypes(way, dtype):
    mask = jnp.asarray(MASK != 0, dtype)
    expected = way(loss, PLAIN, *padded(), mask=mask)
    with jax.numpy_dtype_promotion("strict"):
        close(way(loss, PLAIN, *padded(), mask=mask), expected)


# --- compiled losses ------------------------------------------------------------------------------


@pytest.mark.slow
def test_losses_that_are_made_anew_are_not_kept(monkeypatch):
    monkeypatch.setattr("etpc.run._program.KEPT", 2)
    w, made = jnp.ones(1), []
    program = etpc.compile(w, D, inputs=w, state=w, step=slow)
    for n in range(4):
        new = lambda y, target, n=n: n * loss(y, target)
        made.append(weakref.ref(new))
        (value, _), _ = program.value_and_grad(new)(w, w[None], 0 * w[None], program.init())
    assert value > 0
    del new
    gc.collect()
    assert 0 < sum(f() is not None for f in made) < len(made)
