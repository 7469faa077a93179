"""The data of the example tasks is what their descriptions say."""

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from examples.tasks import arms, characters, classify, event_camera, japanese_vowels
from examples.tasks import sequential_digits as digits
from tests.zoo.check import model

TS = """#about the data
@problemName Two
@dimensions 2
@data
1.5,-2,0.25:3,4,5:a

7:8:b
"""


# --- digits, pixel by pixel ---


def test_pixels_come_row_by_row_and_the_last_step_counts():
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    xs, labels, mask = digits.sequences(image, np.array([3]))
    assert xs.shape == (64, 1, 1)
    assert xs[:, 0, 0].tolist() == list(range(64))
    assert mask[:, 0].tolist() == [False] * 63 + [True]
    assert labels.tolist() == [3]


def test_no_image_is_both_trained_on_and_tested():
    (train, train_labels), (test, test_labels) = digits.digits()
    assert (len(train), len(test)) == (1437, 360)
    assert set(train_labels) == set(test_labels) == set(range(10))
    assert train.min() == 0
    assert train.max() == 1
    every = {image.tobytes() for image in np.concatenate([train, test])}
    assert len(every) == 1797  # all differ, so a place in both parts would show


# --- event camera ---


def test_events_are_those_of_a_loop_over_pixels():
    frames = np.random.default_rng(0).uniform(0, 1, (12, 3, 2))
    found = event_camera.events(frames, threshold=0.3)
    assert found.shape == (11, 2, 3, 2)
    assert found.any((0, 2, 3)).all()  # there are events of both kinds
    for i in range(3):
        for j in range(2):
            level = math.log(0.1 + frames[0, i, j])
            for t in range(11):
                now = math.log(0.1 + frames[t + 1, i, j])
                on, off = now >= level + 0.3, now <= level - 0.3
                assert found[t, :, i, j].tolist() == [on, off]
                level += 0.3 if on else -0.3 if off else 0.0


def test_still_image_gives_no_event_and_a_jump_gives_one_a_step():
    frames = np.full((6, 1), 0.2)
    assert not event_camera.events(frames).any()
    frames[1:] = 0.9  # log(1.0 / 0.3) is 4.01 thresholds of 0.3
    on, off = event_camera.events(frames, threshold=0.3)[:, :, 0].T
    assert on.tolist() == [True, True, True, True, False]
    assert not off.any()


def test_image_moves_along_a_closed_triangle():
    places = event_camera.saccades()
    assert places.shape == (event_camera.STEPS + 1, 2)
    assert np.allclose(places[0], places[-1])
    assert np.allclose(places[::10], event_camera.CORNERS)
    steps = np.diff(places, axis=0)
    assert np.allclose(steps[1:10], steps[0])  # each side at a steady speed
    image = np.zeros((1, 8, 8))
    image[0, 4, 4] = 1.0
    still, down, between = event_camera.film(image, np.array([[0, 0], [1, 0], [0, -0.25]]))[:, 0]
    assert np.array_equal(still, image[0])
    assert down[5, 4] == 1.0
    assert between[4, 4] == pytest.approx(0.75)
    assert between[4, 3] == pytest.approx(0.25)
    edge = np.zeros((1, 8, 8))
    edge[0, 0, 0] = 1.0
    (moved,) = event_camera.film(edge, np.array([[0.25, 0.0]]))[:, 0]
    assert moved[:2, 0] == pytest.approx([0.75, 0.25])  # black comes in from outside


def test_on_lines_come_before_off_lines_in_the_recording():
    images = np.random.default_rng(1).uniform(0, 1, (3, 8, 8))
    xs, _, mask = event_camera.recordings(images, np.zeros(3, int))
    seen = event_camera.events(event_camera.film(images, event_camera.saccades()))
    assert xs.shape == (30, 3, 128)
    assert np.array_equal(xs[7, 2, :64], seen[7, 0, 2].ravel())
    assert np.array_equal(xs[7, 2, 64:], seen[7, 1, 2].ravel())
    assert mask[:, 0].tolist() == [False] * 20 + [True] * 10


# --- speech ---


def test_reading_ts():
    series, labels = japanese_vowels.read_ts(TS.splitlines())
    assert labels == ["a", "b"]
    assert series[0].tolist() == [[1.5, 3], [-2, 4], [0.25, 5]]
    assert series[1].tolist() == [[7, 8]]


def test_text_that_is_not_ts_is_refused():
    with pytest.raises(ValueError, match="no line @data"):
        japanese_vowels.read_ts(["1,2:a"])
    with pytest.raises(ValueError, match="series 1"):
        japanese_vowels.read_ts(["@data", "1,2:3,4:a", "1,2:3:a"])


def test_padding_is_zero_and_not_counted():
    series, _ = japanese_vowels.read_ts(TS.splitlines())
    xs, mask = japanese_vowels.pad(series, 4)
    assert xs.shape == (4, 2, 2)
    assert mask.T.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert np.array_equal(xs[:3, 0], series[0])
    assert not xs[~mask].any()


@pytest.mark.skipif(importlib.util.find_spec("aeon") is None, reason="aeon is not installed")
def test_recordings_are_the_published_ones():
    found = japanese_vowels.recordings()
    assert found is not None
    train, test = found
    assert train.xs.shape == (30, 270, 12)
    assert test.xs.shape == (30, 370, 12)
    assert np.bincount(train.labels).tolist() == [30] * 9
    assert np.bincount(test.labels).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    lengths = np.concatenate([train.mask.sum(0), test.mask.sum(0)])
    assert (lengths.min(), lengths.max()) == (7, 29)
    assert train.xs[train.mask].mean(0) == pytest.approx(0, abs=1e-5)
    assert train.xs[train.mask].std(0) == pytest.approx(1, abs=1e-5)


def test_without_the_package_there_is_no_task(monkeypatch):
    monkeypatch.setattr(japanese_vowels, "find", lambda part: None)
    assert japanese_vowels.make_task() is None


# --- classes ---


def small() -> tuple[classify.Examples, classify.Examples]:
    xs = np.arange(12.0).reshape(2, 6, 1)  # T, N, I
    train = classify.Examples(xs, np.array([0, 1, 2, 0, 1, 2]), np.ones((2, 6), bool))
    test = classify.Examples(xs[:, :3], np.array([2, 2, 0]), np.ones((2, 3), bool))
    return train, test


@pytest.mark.slow
def test_batch_keeps_sequences_labels_and_masks_together():
    train, test = small()
    train.mask[1] = [True, False, True, False, True, False]
    task = classify.classification(
        "a", lambda key: None, train, test, rate=0.1, updates=1, batch_size=4
    )
    xs, targets, mask = task.batch(jax.random.key(0))
    assert mask is not None
    chosen = np.asarray(xs[0, :, 0], int)  # the number of an example is its first input
    assert len(set(chosen)) == 4
    assert np.array_equal(xs, train.xs[:, chosen])
    assert np.array_equal(targets, np.stack([train.labels[chosen]] * 2))
    assert np.array_equal(mask, train.mask[:, chosen])
    assert task.chance == pytest.approx(2 / 3)


def test_answer_is_that_of_the_steps_that_count():
    ys = jnp.array([[[5.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [2.0, 0.0]]])  # T, B, classes
    targets = jnp.array([[1, 1], [1, 1]])
    assert classify.accuracy(ys, targets, jnp.ones((2, 2))) == 0.5
    assert classify.accuracy(ys, targets, jnp.array([[0.0, 1.0], [1.0, 1.0]])) == 1.0


# --- characters ---


def test_text_is_pinned():
    text = characters.read()
    if not characters.is_pinned(text):
        pytest.skip("this Python has another text")
    assert len(text) == 43455
    assert not characters.is_pinned(text + " ")


def test_topics_come_in_order_and_others_are_left_out():
    assert characters.read({"with": "b", "if": "a", "NUMBERS": "c"}) == "ab"


def test_codes_are_places_in_the_sorted_alphabet():
    codes, size = characters.encode("cab\na")
    assert codes.tolist() == [3, 1, 2, 0, 1]
    assert size == 4


def test_frequencies_are_those_of_a_hand_count():
    """Training "aab", test "ab": an a is followed by an a or a b, each once."""
    single, pairs = characters.frequencies(np.array([0, 0, 1]), np.array([0, 1]), 2)
    b = (1 + 1 / 2) / 4
    assert single == pytest.approx(-math.log2(b))
    assert pairs == pytest.approx(-math.log2((1 + b) / 3))


def test_stream_goes_on_from_batch_to_batch_and_round():
    codes = jnp.arange(16 * 40)
    xs, targets = (
        np.concatenate(parts)
        for parts in zip(
            *(characters.stream(codes, jnp.asarray(n))[:2] for n in range(25)), strict=True
        )
    )
    t = np.arange(25 * characters.STEPS)
    for reader in range(characters.READERS):
        assert np.array_equal(xs[:, reader], (40 * reader + t) % 640)
    assert np.array_equal(targets, (xs + 1) % 640)


def test_test_text_is_read_whole_and_in_order():
    text = characters.read()
    task = characters.make_task(text)
    codes, _ = characters.encode(text)
    held_out = characters.split(codes)[1]
    assert task.test is not None
    xs, targets, _ = task.test
    read = np.asarray(xs).T.ravel()
    assert len(held_out) - len(read) <= characters.TEST_READERS
    assert np.array_equal(read, held_out[: len(read)])
    assert np.array_equal(np.asarray(targets).T.ravel(), held_out[1 : len(read) + 1])


def test_even_scores_cost_the_logarithm_of_the_alphabet():
    ys, targets = jnp.zeros((3, 2, 8)), jnp.zeros((3, 2), int)
    assert characters.bits_per_character(ys, targets, jnp.ones((3, 2))) == pytest.approx(3)


# --- the harness: streams and held-out data ---


@functools.partial(model, start=jnp.zeros(()))
def Counter(x, state, weight):
    """Adds up its inputs, times a weight."""
    state = state + weight * x
    return state, state


@pytest.mark.slow
@pytest.mark.parametrize("rule", [None, etpc.D_RTRL()])
@pytest.mark.parametrize("stream", [False, True])
def test_stream_carries_the_state_on(rule, stream):
    """The loss of the second batch shows what the state was when it began."""

    def batch(key, number=0):
        return jnp.ones((2, 1)) * (1 + number), jnp.zeros((2, 1)), None

    task = arms.Task(
        name="count",
        make_model=lambda key: Counter(jnp.ones(())),
        batch=batch,
        loss_fn=lambda y, target: y - target,
        rate=0.0,
        batch_size=1,
        stream=stream,
    )
    learner = arms.Learner(task, arms.Arm("a", rule))
    weights = jax.tree.map(jnp.asarray, Counter(jnp.ones(())))
    start = (weights, learner.optimiser(0.0).init(weights), learner.begin)
    _, losses = learner.train(0.0, start, jax.random.split(jax.random.key(0), 2))
    second = 5.0 if stream else 1.5  # states 2 + 2 and 2 + 2 + 2; or 1 and 2 again
    assert losses.tolist() == pytest.approx([1.5, second])


def test_score_is_measured_on_held_out_data():
    def never(key):
        raise AssertionError("a new batch was drawn")

    task = arms.Task(
        name="held out",
        make_model=lambda key: Counter(jnp.ones(())),
        batch=never,
        loss_fn=lambda y, target: y,
        score=lambda ys, targets, mask: (ys * mask).sum(),
        test=(jnp.ones((3, 5)), jnp.zeros((3, 5)), None),
    )
    assert arms.evaluator(task)(Counter(jnp.ones(()))) == 5 * (1 + 2 + 3)
