"""`Online.check` with targets, and `etpc.fit(verify=True)`: a program that checks itself where it runs."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.checking.test_verify import I, Spiking, Wrong, data, leaky, squared
from tests.marks import few, first
from tests.zoo.check import model

B = 2


@functools.partial(model, start=(jnp.zeros(4), jax.random.key(3), jnp.zeros((), jnp.int32)))
def Noisy(x, state, win):
    """Leaky units with noise, whose key is in the state, and that count their steps."""
    h, key, count = state
    key, noise_key = jax.random.split(key)
    h = 0.9 * jnp.tanh(h) + win @ x + 0.1 * jax.random.normal(noise_key, h.shape)
    return h[:2], (h, key, count + 1)


def learner(model, algo="d_rtrl", every=4, **options):
    program = etpc.compile(model, algo, inputs=jnp.zeros(I))
    return etpc.online(program, squared, optax.adam(1e-2), every, **options)


def quietly(check, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return check(*arguments, **options)


def check(learns, model, xs, targets, wrong=None, **options):
    """From a fresh carry; refused with these words if the program is `wrong`."""
    carry = learns.init(model, B)[1]
    if wrong is None:
        assert quietly(learns.check, model, carry, xs, targets, **options) == ()
        return None
    with pytest.raises(etpc.VerificationError, match=wrong) as caught:
        learns.check(model, carry, xs, targets, **options)
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "algo", "every", "batch"),
    [
        *((leaky, "d_rtrl", every, batch) for every in (1, 4, 24) for batch in (None, B)),
        (leaky, etpc.D_RTRL(window=2, lookback=4), 2, B),  # back to before the check
        (Spiking, "rtrl", 4, B),
        (lambda: Noisy(leaky().win), "rtrl", 4, B),
        (lambda: leaky(rec=True), "d_rtrl", 4, B),  # of which little is claimed
    ],
)
def test_a_program_that_keeps_its_claims_passes_from_any_carry(build, algo, every, batch):
    """Also in the middle of a stream, of whose traces the check takes none."""
    model, (xs, targets) = build(), data(batch)
    learns = learner(model, algo, every, has_aux=False)
    opt_state, carry = learns.init(model, batch)
    assert quietly(learns.check, model, carry, xs, targets) == ()
    after, _, carry, _ = learns.update(model, opt_state, carry, xs, targets)
    before = jax.tree.map(jnp.copy, carry)
    assert any(jnp.abs(trace).max() > 0 for trace in jax.tree.leaves(carry.traces))
    assert quietly(learns.check, after, carry, xs, targets) == ()
    assert eqx.tree_equal(carry, before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_the_dtype_of_the_model(dtype):
    step = lambda w, x, h: (0.8 * h + w @ x,) * 2
    w = leaky().win.astype(dtype)
    xs, targets = (a.astype(dtype) for a in data(B, outputs=4))
    said = rf"in {jnp.dtype(dtype).name}, for a batch of 2 and 9 steps:\n  model "
    for rule, wrong in (("d_rtrl", None), (Wrong(-1.0), said)):
        program = etpc.compile(w, rule, inputs=xs[0, 0], state=jnp.zeros(4, dtype), step=step)
        check(etpc.online(program, squared, optax.sgd(0.1), every=3), w, xs, targets, wrong)


@pytest.mark.parametrize(
    ("every", "steps", "when_moved"),
    few(
        [(e, s, m) for e, s in ((1, 3), (4, 12), (24, 48)) for m in (False, True)],
        (1, 3, True),
    ),
)
def test_a_wrong_trace_is_refused(every, steps, when_moved):
    """In as many updates as are needed to see it; the 24 steps of data are taken twice for two of 24."""
    model, (xs, targets) = leaky(), data(B)
    learns = learner(model, Wrong(0.0, when_moved=when_moved), every)
    error = check(learns, model, xs, targets, f"for a batch of {B} and {steps} steps")
    assert "\n  .win is claimed to be exact, and its relative error against BPTT is " in str(error)
    assert ".out is claimed" not in str(error)  # it has no trace
    assert isinstance(error, ArithmeticError)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 9, 23])
def test_a_loss_that_a_mask_lets_count_seldom(first):
    model, (xs, targets) = leaky(), data(B)
    targets = targets.at[:first].set(jnp.nan).at[first + 1 :].set(jnp.nan)
    mask = jnp.zeros((24, B)).at[first, 1].set(2.0)
    for rule, wrong in (("d_rtrl", None), (Wrong(-1.0), r"\.win is claimed")):
        check(learner(model, rule, every=2), model, xs, targets, wrong, mask=mask)


@pytest.mark.slow
def test_what_could_not_be_checked_is_said():
    model, (xs, targets) = leaky(), data(B)
    learns = learner(model)
    _, carry = learns.init(model, B)
    with pytest.warns(etpc.UncheckedWarning, match="no loss counts") as found:
        notes = learns.check(model, carry, xs, targets, mask=jnp.zeros((24, B)))
    assert len(notes) == len(found) == 1
    with pytest.raises(etpc.InputError, match="A target has shape"):
        learns.check(model, carry, xs, targets[:3])


@pytest.mark.parametrize("step", first([3, 15]))
def test_data_that_is_not_finite_is_no_wrong_claim(step):
    """Of the steps that are compared, which a mask may put off."""
    model, (xs, targets) = leaky(), data(B)
    learns = learner(model, every=2)
    _, carry = learns.init(model, B)
    broken, mask = xs.at[step, 1, 0].set(jnp.nan), jnp.ones((24, B)).at[: step - 1].set(step < 5)
    said = rf"BPTT gradient of \.win.* is not finite.* NaN or infinity is in xs\[{step}, 1, 0\]"
    with pytest.warns(etpc.UncheckedWarning, match=said):
        learns.check(model, carry, broken, targets, mask=mask)
    block = dict(xs=broken, targets=targets, mask=mask)
    with pytest.warns(etpc.UncheckedWarning, match=said):
        etpc.fit(learns, model, [block], batch_size=B, independent=False, verify=True)


@pytest.mark.slow
def test_fit_checks_before_the_first_block():
    model, blocks = leaky(), [data(B)] * 2
    fit = functools.partial(etpc.fit, batch_size=B, independent=False)
    wrong, seen = learner(model, Wrong(-1.0)), []
    with pytest.raises(etpc.VerificationError, match=r"\.win is claimed to be exact"):
        fit(wrong, model, blocks, verify=True, callbacks=[seen.append])
    assert not seen
    right = learner(model)
    runs = [fit(right, model, blocks, verify=v) for v in (True, False)]
    for a, b in zip(*(jax.tree.leaves(run.model) for run in runs), strict=True):
        np.testing.assert_array_equal(a, b)
    assert fit(wrong, model, blocks).block == 2
    still = eqx.tree_at(lambda m: m.out, model, jnp.zeros((2, 4)))
    with pytest.warns(etpc.UncheckedWarning, match="is zero"):
        fit(right, still, blocks, verify=True)
