"""`etpc.fit` against the loop that it stands for."""

import functools
import re
import shutil
import warnings
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc import nn
from tests.helpers import loss, same
from tests.marks import few
from tests.zoo.check import model as of_step

B, I = 3, 4
fit = functools.partial(etpc.fit, independent=False)


@functools.partial(of_step, start=(jnp.zeros(5), jax.random.key(7)))
def Noisy(x, state, into, back):
    """Recurrent units with noise, whose key is in the state."""
    h, key = state
    key, noise_key = jax.random.split(key)
    noise = 0.1 * jax.random.normal(noise_key, h.shape)
    h = jnp.tanh(0.8 * h + into @ x + back @ h + noise)
    return h, (h, key)


@functools.cache
def build(every=5, has_aux=False, reduction="mean"):
    keys = jax.random.split(jax.random.key(0), 2)
    model = Noisy(jax.random.normal(keys[0], (5, I)) / 2, jax.random.normal(keys[1], (5, 5)) / 3)
    program = etpc.compile(model, inputs=jnp.zeros(I))
    loss_fn = (lambda y, t: (loss(y, t), {"y": y})) if has_aux else loss
    optimizer = optax.adam(1e-2)
    options = dict(has_aux=has_aux, reduction=reduction)
    learner = etpc.online(program, loss_fn, optimizer, every, **options)
    return model, learner


def make_blocks(count=6, batch_size=B):
    lead = (10,) if batch_size is None else (10, batch_size)
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(*lead, I)), rng.normal(size=(*lead, 5))) for _ in range(count)]


def trained(blocks=6, **options):
    """A run on some blocks, or on so many."""
    model, learner = build()
    blocks = make_blocks(blocks) if isinstance(blocks, int) else blocks
    return fit(learner, model, blocks, **dict(batch_size=B) | options)


def assert_same(run, other):
    """Bit by bit, PRNG keys too."""
    assert len(run.history) == run.block
    trees = [(r.model, r.opt_state, r.carry, r.block, r.stopped, r.history) for r in (run, other)]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])
    same(*trees)


@pytest.mark.parametrize("batch_size", few([None, B], B))
def test_is_the_loop_of_its_docstring(batch_size):
    model, learner = build()
    blocks = make_blocks(batch_size=batch_size)
    run = trained(iter(blocks), batch_size=batch_size)
    opt_state, carry = learner.init(model, batch_size)
    means = []
    for xs, targets in blocks:
        model, opt_state, carry, losses = learner.update(model, opt_state, carry, xs, targets)
        means.append(losses.mean())
    expected = etpc.Run(model, opt_state, carry, 6, losses, None, run.history, False)
    assert_same(run, expected)
    np.testing.assert_array_equal(run.losses, losses)
    np.testing.assert_allclose(run.history, means, rtol=1e-12)
    assert run.aux is None


@pytest.mark.slow
def test_blocks_as_dicts_with_masks_and_resets_and_an_auxiliary_output():
    model, learner = build(has_aux=True)
    mask = np.ones((10, B))
    mask[7:, 1] = 0
    begins = np.zeros((2, B), bool)
    begins[1, 2] = True
    blocks = [dict(xs=x, targets=t, mask=mask, begins=begins) for x, t in make_blocks(2)]
    run = fit(learner, model, blocks, batch_size=B)
    opt_state, carry = learner.init(model, B)
    for block in blocks:
        model, opt_state, carry, losses, aux = learner.update(model, opt_state, carry, **block)
    assert_same(run, etpc.Run(model, opt_state, carry, 2, losses, aux, run.history, False))
    np.testing.assert_array_equal(run.aux["y"], aux["y"])


@pytest.mark.slow
def test_streams_that_are_left_out_have_no_part_in_the_history():
    model, learner = build()
    learner = etpc.online(learner.program, loss, optax.adam(1e-2), 5, skip_nonfinite=True)
    xs, targets = make_blocks(1)[0]
    xs[1, 2] = xs[6, :] = np.nan  # a stream in the first update, and all in the second
    run = fit(learner, model, [(xs, targets)], batch_size=B)
    np.testing.assert_array_equal(run.left_out, [[False, False, True], [True, True, True]])
    np.testing.assert_array_equal(run.history, run.losses[:1])
    assert run.aux is None


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, B])
def test_independent_sequences_begin_anew_with_other_noise(batch_size):
    model, learner = build(every=10)
    blocks = make_blocks(3, batch_size)
    runs = [
        fit(learner, model, blocks, batch_size=batch_size, independent=independent)
        for independent in (True, False)
    ]
    assert not np.allclose(runs[0].model.back, runs[1].model.back, rtol=1e-6)
    opt_state, first = learner.init(model, batch_size)
    keys = []
    for xs, targets in blocks:
        key = first.state[1]
        keys.append(np.asarray(jax.random.key_data(key)))
        model, opt_state, carry, _ = learner.update(model, opt_state, first, xs, targets)
        # A new carry, but for the key.
        _, fresh = learner.init(model, batch_size)
        first = eqx.tree_at(lambda c: c.state[1], fresh, carry.state[1])
    np.testing.assert_allclose(runs[0].model.back, model.back, rtol=1e-12)
    assert len({key.tobytes() for key in keys}) == len(blocks)


def test_goes_on_from_a_run_before():
    _, learner = build()
    half = trained(3)
    state = dict(opt_state=half.opt_state, carry=half.carry)
    rest = fit(learner, half.model, make_blocks()[3:], batch_size=B, **state)
    same(rest.model, trained().model)


# --- callbacks ------------------------------------------------------------------------------------


def test_callbacks_are_called_after_each_block_and_one_may_end_the_run():
    seen, also = [], []

    def stop(run):
        seen.append((run.block, run.stopped, len(run.history), run.losses.shape))
        return run.block == 4

    run = trained(callbacks=[stop, lambda r: also.append(r.block)])
    assert seen == [(n, False, n, (2,)) for n in (1, 2, 3, 4)]
    assert also == [1, 2, 3, 4]
    assert (run.stopped, run.block) == (True, 4)
    same(run.model, trained(4).model)


@pytest.mark.parametrize(
    "true", [lambda r: r.history[-1] < 1e9, lambda r: jnp.mean(r.losses) < 1e9, lambda r: True]
)
def test_a_true_of_any_library_ends_a_run(true):
    run = trained(2, callbacks=[true])
    assert (run.stopped, run.block) == (True, 1)


def test_only_true_ends_a_run():
    answers = iter([1, "yes", jnp.array(3.0), None, np.False_, {}])
    run = trained(callbacks=[lambda r: next(answers)])
    assert (run.stopped, run.block) == (False, 6)
    with pytest.raises(etpc.InputTypeError, match=r"booleans of shape \[2\]. Let it return one"):
        trained(callbacks=[lambda r: r.losses < 0])


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_update_without_a_loss_does_not_count(reduction):
    """The first block has a loss at the last of its steps alone, the second one none, the third one more in
    one update than in the other."""
    model, learner = build(reduction=reduction)
    frozen = etpc.online(learner.program, loss, optax.sgd(0.0), 5, reduction=reduction)
    masks = np.zeros((3, 10, B))
    masks[0, 9], masks[2, 3], masks[2, 6:9, 1] = 1, 2, 1
    blocks = [
        dict(xs=x, targets=t, mask=mask) for (x, t), mask in zip(make_blocks(3), masks, strict=True)
    ]
    run = fit(frozen, model, blocks, batch_size=B)
    run_of = frozen.program.value_and_grad(loss, reduction)
    carry, whole = frozen.program.init(B), []
    for block in blocks:
        (value, carry), _ = run_of(model, carry=carry, **block)
        whole.append(float(value))
    updates = 1 if reduction == "mean" else 2  # with a loss, in the third block
    expected = [whole[0], np.nan, whole[2] / updates]
    np.testing.assert_allclose(run.history, expected, rtol=1e-12)
    assert whole[0] > 0.1


# --- checkpoints ----------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def not_again(run):
    pytest.fail("it was trained on")


@pytest.mark.parametrize("killed_at", few([1, 3, 5], 3))
def test_a_run_that_is_killed_goes_on_bit_by_bit(tmp_path, killed_at):
    """From what was saved last: every two blocks, as nothing runs in a process that is killed."""
    path, left = tmp_path / "run.etpc", tmp_path / "left.etpc"

    def kill(run):
        if run.block == killed_at and path.exists():
            shutil.copy(path, left)

    whole = trained(callbacks=[kill], checkpoint=path, save_every=2)
    assert left.exists() == (killed_at > 1)
    model, learner = build.__wrapped__()  # as in another process
    seen = []
    options = dict(callbacks=[seen.append], checkpoint=left, save_every=2)
    resumed = fit(learner, model, iter(make_blocks()), batch_size=B, **options)
    assert [run.block for run in seen] == [*range(2 * (killed_at // 2) + 1, 7)]
    assert_same(resumed, whole)
    for run in seen:  # each has its own, for as long as it is kept
        np.testing.assert_array_equal(run.history, whole.history[: run.block])


def in_callback(run):
    if run.block == 3:
        raise KeyboardInterrupt


def raising(blocks):
    yield from blocks[:3]
    raise Interrupted


def short(blocks):
    yield from blocks[:3]
    yield tuple(a[:9] for a in blocks[3])


@pytest.mark.parametrize(
    ("blocks", "callbacks", "error"),
    [
        (list, [in_callback], KeyboardInterrupt),
        (raising, [], Interrupted),
        (short, [], etpc.InputError),
    ],
)
def test_a_run_that_ends_by_an_error_is_saved(tmp_path, blocks, callbacks, error):
    with pytest.raises(error):
        trained(blocks(make_blocks()), callbacks=callbacks, checkpoint=tmp_path / "run.etpc")
    assert [path.name for path in tmp_path.iterdir()] == ["run.etpc"]
    resumed = trained(checkpoint=tmp_path / "run.etpc")
    assert_same(resumed, trained())


def test_what_ends_a_run_is_raised_where_saving_fails_too(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def lose(run):
        folder.rmdir()
        raise Interrupted

    with pytest.raises(Interrupted) as caught:
        trained(callbacks=[lose], checkpoint=folder / "run.etpc")
    assert "The run of 1 blocks was not saved: FileNotFoundError" in caught.value.__notes__[0]


@pytest.mark.parametrize("name", ["no_folder/run.etpc", "file/run.etpc", "x" * 300])
def test_a_checkpoint_that_cannot_be_written_is_found_before_the_first_block(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"No such file|Not a directory|name too long"):
        trained(1, callbacks=[not_again], checkpoint=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_ended_or_was_stopped_is_returned_as_it_is(tmp_path):
    for name, callbacks in {"end": [], "stop": [lambda r: r.block == 3]}.items():
        options = dict(checkpoint=tmp_path / f"{name}.etpc", save_every=100)
        run = trained(callbacks=callbacks, **options)
        again = trained(callbacks=[not_again], **options)
        assert_same(again, run)
        assert again.losses is None
    assert trained(8, checkpoint=tmp_path / "end.etpc").block == 8


# --- silence --------------------------------------------------------------------------------------


def spiking(variance):
    key = jax.random.key(0)
    linear = nn.init(eqx.nn.Linear(I, 6, key=key), "lecun_normal", key, gain=variance**0.5)
    model = nn.Sequential([linear, nn.LIF(6), eqx.nn.Linear(6, 5, key=jax.random.key(1))])
    program = etpc.compile(model, inputs=jnp.zeros(I))
    return model, etpc.online(program, loss, optax.sgd(1e-3), every=5)


@pytest.mark.slow
def test_warns_once_where_a_layer_is_silent():
    model, learner = spiking(1e-6)
    with pytest.warns(etpc.SilentNetworkWarning, match="gives no spike") as found:
        fit(learner, model, make_blocks(3), batch_size=B)
    assert len(found) == 1
    assert "nn.init_from_data" in str(found[0].message)
    _, carry = learner.init(model, B)
    with pytest.warns(etpc.SilentNetworkWarning):
        silent = learner.check(model, carry, make_blocks(1)[0][0])
    assert len(silent) == 1


class States(NamedTuple):
    first: jax.Array
    second: tuple


@pytest.mark.slow
def test_the_layer_that_is_silent_is_named_by_its_state():
    """Of two layers, where the second reads the spikes of the first and those of its own."""
    first, second = etpc.nn.LIF(3, refractory=2.0), etpc.nn.ALIF(3)

    def step(gain, x, state):
        spikes, a = first(x, state.first)
        drive = gain * (spikes + second.spike(state.second))
        spikes, b = second(drive, state.second)
        return spikes, States(a, b)

    start = States(first.init_state(), second.init_state())
    program = etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=start, step=step)
    strong, weak = 4 * jnp.ones((30, 3)), 0.1 * jnp.ones((30, 3))
    silent = lambda gain, xs: program.silent(gain * jnp.ones(3), xs, program.init())
    assert silent(50.0, strong) == ()
    for gain, xs, names in ((0.1, strong, ["second"]), (50.0, weak, ["first", "second"])):
        found = silent(gain, xs)
        for name in ("first", "second"):
            said = any(f"of hidden .{name}.V" in sentence for sentence in found)
            assert said == (name in names), found


@pytest.mark.slow
def test_does_not_warn_where_all_layers_spike():
    model, learner = spiking(1e4)
    _, carry = learner.init(model, B)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(learner, model, make_blocks(2), batch_size=B)
        assert learner.check(model, carry, make_blocks(1)[0][0]) == ()


def test_a_masked_input_that_is_not_finite_hides_no_silence():
    model, learner = spiking(1e-6)
    xs, _ = make_blocks(1)[0]
    xs[5:, 0] = np.inf
    mask = np.ones((10, B))
    mask[5:, 0] = 0
    _, carry = learner.init(model, B)
    with pytest.warns(etpc.SilentNetworkWarning):
        assert learner.check(model, carry, xs, mask=mask)


# --- errors -------------------------------------------------------------------------------------


GOOD = make_blocks(1)
WRONG = [
    (etpc.InputError, dict(save_every=0), "save_every must be an int >= 1"),
    (etpc.InputTypeError, dict(blocks=[(1, 2, 3)]), "Block 0 of the data is 3 parts"),
    (etpc.InputTypeError, dict(blocks=[*GOOD, GOOD[0][0]]), "Block 1 of the data is ndarray"),
    (etpc.InputError, dict(blocks=[dict(xs=GOOD[0][0])]), "Block 0 of the data has no 'targets'"),
    (
        etpc.InputError,
        dict(blocks=[dict(xs=1, targets=2, masks=3)]),
        "'masks', which `Online.update` does not",
    ),
    (etpc.InputTypeError, dict(learner=loss), "learner is a .*Pass what `etpc.online` returns"),
    (etpc.InputTypeError, dict(callbacks=[3]), r"callbacks is \[3\]"),
    (etpc.InputTypeError, dict(callbacks=len), "callbacks is <built-in function len>"),
    (etpc.InputTypeError, dict(independent="no"), "independent is 'no'"),
    (etpc.InputTypeError, dict(independent=None), "True` where .* new .*False` where .* stream"),
]


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(("error", "changes", "words"), WRONG)
def test_wrong_arguments(error, changes, words):
    model, learner = build()
    given = dict(learner=learner, model=model, blocks=GOOD, batch_size=B, independent=False)
    with pytest.raises(error, match=words):
        etpc.fit(**given | changes)


OTHERS = {
    "model": (dict(model=jnp.zeros(4)), {}, "of another model"),
    "optimizer": (dict(optimizer=optax.sgd(0.1)), {}, "with another optimizer"),
    "batch size": ({}, dict(batch_size=3), "with another batch_size"),
    "no batch": ({}, dict(batch_size=None), "with another batch_size"),
    "rule": (dict(algo="rtrl"), {}, "of another program"),
    "step": (dict(decay=0.8), {}, "of another program"),
}


def small(model=jnp.zeros(3), optimizer=None, algo="d_rtrl", decay=0.9):
    step = lambda w, x, h: (decay * h + w * x,) * 2
    program = etpc.compile(model, algo, inputs=model, state=model, step=step)
    return etpc.online(program, loss, optimizer or optax.adam(0.1)), model


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_refused_in_the_terms_of_fit(tmp_path, name):
    changes, arguments, words = OTHERS[name]
    arguments = {**dict(blocks=[], batch_size=2, checkpoint=tmp_path / "run"), **arguments}
    learner, model = small()
    etpc.save(tmp_path / "run", (model, *learner.init(model, 2), 0, False, np.zeros(0)))
    with pytest.raises(etpc.CheckpointError, match=f"holds a run {words}") as caught:
        fit(*small(**changes), **arguments)
    assert not re.search("like|[0-9a-f]{16}|init", str(caught.value).removeprefix(str(tmp_path)))
    etpc.save(tmp_path / "run", (model, *learner.init(model, 2)))
    with pytest.raises(etpc.CheckpointError, match="is no run that `etpc"):
        fit(learner, model, [], batch_size=2, checkpoint=tmp_path / "run")
    etpc.save(tmp_path / "run", (model, *learner.init(model, 2), 0, False))
    with pytest.raises(etpc.CheckpointError, match="is a run of another version of etpc"):
        fit(learner, model, [], batch_size=2, checkpoint=tmp_path / "run")


def test_the_history_of_a_long_run_is_one_array():
    """So that a callback which keeps its runs does not keep the square of their number."""
    seen = []
    learner, model = small()
    block = (np.ones((1, 3)), np.ones((1, 3)))
    fit(learner, model, [block] * 300, callbacks=[seen.append])
    assert len({id(run.history.base) for run in seen}) < 6


@pytest.mark.parametrize(
    ("lead", "words"), [((4, 2), "pass `batch_size=2`"), ((4,), "leave `batch")]
)
def test_a_batch_size_that_is_not_that_of_the_blocks(lead, words):
    block = (np.ones((*lead, 3)),) * 2
    with pytest.raises(etpc.InputError, match=f"{words}.*in `init` or `etpc.fit`"):
        fit(*small(), [block], batch_size=3)
