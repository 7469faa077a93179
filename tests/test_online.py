"""Training on a stream: against loops and backpropagation that are written by hand."""

import functools
import inspect
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc.trace import shape_of
from tests.helpers import arrays, close, loss, same
from tests.marks import few
from tests.zoo.check import model

T, B, I, O = 6, 3, 4, 6
D = etpc.D_RTRL(window=2)
RULES = {
    "D": D,
    "full windows": etpc.D_RTRL(window=2, backprop="full"),
    "decay": etpc.ES_D_RTRL(decay=0.8, window=2),
    "rank": etpc.ES_D_RTRL(rank=1, window=2),
}


class Net(eqx.Module):
    """Leaky units with a readout; recurrent, with a key and a counter in the state, if so asked."""

    win: jax.Array
    rec: jax.Array | None
    out: jax.Array
    name: str = "net"

    def __call__(self, x, state):
        drive = 0.7 * state["h"] + self.win @ x
        if self.rec is None:
            h = jnp.tanh(drive)
            return self.out @ h, {"h": h}
        h = jnp.tanh(drive + self.rec @ state["h"])
        return self.out @ h, {"h": h, "key": state["key"], "n": state["n"] + 1}

    def init_state(self):
        state = {"h": jnp.full(O, 0.3)}
        if self.rec is not None:
            state |= {"key": jax.random.key(3), "n": jnp.zeros((), jnp.int32)}
        return state


def build(recurrent):
    rng = np.random.default_rng(0)
    win, rec, out = (jnp.asarray(rng.normal(size=s)) / 2 for s in [(O, I), (O, O), (1, O)])
    return Net(win, rec if recurrent else None, out)


PLAIN, RECURRENT = build(False), build(True)
"""D-RTRL is exact for the first one."""


def data(steps=T, batch: int | None = B, seed=1):
    rng = np.random.default_rng(seed)
    lead = (steps,) if batch is None else (steps, batch)
    return jnp.asarray(rng.normal(size=(*lead, I))), jnp.asarray(rng.normal(size=(*lead, 1)))


_PROGRAMS = {}


def program_of(model=PLAIN, algo=D):
    key = model is RECURRENT, algo
    if key not in _PROGRAMS:
        _PROGRAMS[key] = etpc.compile(model, algo, inputs=jnp.zeros(I))
    return _PROGRAMS[key]


def differ(one, other):
    pairs = zip(arrays(one), arrays(other), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def entry(carry, b):
    """The arrays of one example of a batch, as a tree."""
    return jax.tree.map(lambda a: a[b], (carry.state, carry.traces, carry.fresh))


_LEARNERS = {}


def learner_of(program, every, loss_fn=loss, **options):
    """Plain descent with rate one, compiled once for a function; other losses may have no hash."""
    make = functools.partial(etpc.online, program, loss_fn, optax.sgd(1.0), every, **options)
    if not inspect.isfunction(loss_fn):
        return make()
    key = program, loss_fn, every, *options.items()
    if key not in _LEARNERS:
        _LEARNERS[key] = make()
    return _LEARNERS[key]


def gradient(model, xs, targets, *, program=None, carry=None, every=None, **options):
    """Loss, gradient, carry and aux of one update: what plain descent with rate one takes away."""
    weights = {name: options.pop(name, None) for name in ("mask", "begins")}
    learner = learner_of(program or program_of(model), every or len(xs), **options)
    batch = xs.shape[1] if xs.ndim == 3 else None
    opt_state, fresh = learner.init(model, batch)
    carry = fresh if carry is None else carry
    after, _, carry, losses, *aux = learner.update(model, opt_state, carry, xs, targets, **weights)
    grads = jax.tree.map(
        lambda a, b: a - b, *(eqx.filter(m, eqx.is_inexact_array) for m in (model, after))
    )
    return losses, grads, carry, *aux


# --- updates --------------------------------------------------------------------------------------


OPTIMISERS = {
    "adamw": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.05)),
    # they ask for the loss
    "polyak_sgd": optax.polyak_sgd(),
    "plateau": optax.chain(optax.adam(0.05), optax.contrib.reduce_on_plateau(patience=1)),
    "momo": optax.contrib.momo(),
}
LOOPS = [("adamw", 1, "mean", B), ("adamw", 3, "sum", B), ("adamw", 2, "mean", None)]
LOOPS += [(name, 2, "mean", B) for name in OPTIMISERS]


@pytest.mark.parametrize(("name", "every", "reduction", "batch"), few(LOOPS, *LOOPS[1:3]))
def test_updates_are_those_of_a_loop(name, every, reduction, batch):
    program, (xs, targets) = program_of(), data(batch=batch)
    optimizer = OPTIMISERS[name]
    learner = etpc.online(program, loss, optimizer, every, reduction=reduction)
    start = learner.init(PLAIN, batch)
    got = learner.update(PLAIN, *start, xs, targets)

    model, carry, losses = PLAIN, program.init(batch), []
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    same(start, (opt_state, carry))
    update = optax.with_extra_args_support(optimizer).update
    value_and_grad = program.value_and_grad(loss, reduction)
    for t in range(0, T, every):
        (value, carry), grads = value_and_grad(
            model, xs[t : t + every], targets[t : t + every], carry
        )
        parameters = eqx.filter(model, eqx.is_inexact_array)
        changes, opt_state = update(grads, opt_state, parameters, value=value)
        model = eqx.apply_updates(model, changes)
        losses.append(value)
    assert differ(model, PLAIN)
    close(got, (model, opt_state, carry, jnp.stack(losses)))
    assert got[0].name == "net"


def test_integer_arrays_of_a_model_stay():
    step = lambda m, x, h: (0.5 * h + m["w"][m["of"]] * x,) * 2
    model = {"of": jnp.array([1, 0, 1]), "w": jnp.array([0.5, -0.5])}
    program = etpc.compile(model, inputs=jnp.zeros(3), state=jnp.zeros(3), step=step)
    learner = etpc.online(program, loss, optax.sgd(0.01), 2)
    after, *_ = learner.update(model, *learner.init(model), jnp.ones((4, 3)), jnp.zeros((4, 3)))
    assert list(after["of"]) == [1, 0, 1]
    assert differ(after["w"], model["w"])


def test_complex_parameters_go_downhill():
    step = lambda w, x, h: (0.5j * h + w * x,) * 2
    target = jnp.full((40, 2), 0.3 + 1.2j)
    w, h = jnp.array([0.1 + 0.2j, -0.4j]), jnp.zeros(2, complex)
    program = etpc.compile(w, inputs=jnp.zeros(2), state=h, step=step)
    learner = etpc.online(program, lambda y, t: jnp.sum(jnp.abs(y - t) ** 2), optax.sgd(0.1), 1)
    *_, losses = learner.update(w, *learner.init(w), jnp.ones((40, 2)), target)
    assert losses[-1] < losses[0] / 100


@pytest.mark.slow
@pytest.mark.parametrize("algo", [D, RULES["decay"], RULES["rank"]], ids=["D", "decay", "rank"])
def test_what_is_no_number_stays_in_its_example(algo):
    program, (xs, targets) = program_of(RECURRENT, algo), data()
    bad = xs.at[2, 1].set(jnp.nan)
    _, clean_grads, clean = gradient(RECURRENT, xs, targets, program=program)
    losses, grads, carry = gradient(RECURRENT, bad, targets, program=program)
    assert np.isnan(losses).all()
    assert np.isnan(grads.win).any()
    assert np.isnan(carry.state["h"][1]).all()
    assert any(np.isnan(a[1]).any() for trace in carry.traces for a in trace)
    for b in (0, 2):
        same(entry(carry, b), entry(clean, b))
    if algo == D:
        bad_ys, good_ys = (program.scan(RECURRENT, x, program.init(B))[0] for x in (bad, xs))
        same(bad_ys[:, [0, 2]], good_ys[:, [0, 2]])

    # Masked from there on, it is as if the input had been zero, and the others learn.
    mask = np.ones((T, B), bool)
    mask[2:, 1] = False
    one = gradient(RECURRENT, bad, targets, program=program, mask=mask)
    zero = gradient(RECURRENT, xs.at[2, 1].set(0), targets, program=program, mask=mask)
    same(one, zero)
    assert all(np.isfinite(a).all() for a in arrays(one))
    assert differ(one[1], clean_grads)

    # Set back, the example begins anew, and nothing of it is left.
    again = program.reset(carry, jnp.arange(B) == 1)
    assert np.isfinite(again.state["h"]).all()
    assert all(np.isfinite(a).all() for trace in again.traces for a in trace[:3])
    for trace in again.traces:  # of the gradients so far nothing is known
        assert all(np.isnan(bound[1]).any() for bound in trace[3:])
    for b in (0, 2):
        same(entry(again, b), entry(carry, b))


# --- episodes -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_reset_of_one_example(name):
    algo = RULES[name]
    program, (xs, targets) = program_of(RECURRENT, algo), data()
    _, _, carry = gradient(RECURRENT, xs, targets, program=program)
    other = jax.random.split(jax.random.key(9), B)
    carry, fresh = eqx.tree_at(lambda c: c.state["key"], carry, other), program.init(B)
    again = program.reset(carry, np.array([False, True, False]))
    for b in (0, 2):
        same(entry(again, b), entry(carry, b))
    same(again.state["h"][1], fresh.state["h"][1])
    assert again.state["n"].tolist() == [T, 0, T]
    assert again.fresh.tolist() == [False, True, False]
    same(again.state["key"], carry.state["key"])  # noise goes on
    assert not any(a[1].any() for a in jax.tree.leaves(again.traces))
    if algo == RULES["rank"]:
        assert any(len(trace) == 2 for trace in again.traces)
    if algo == D:
        alone = program.init()
        (_, moved), _ = program.value_and_grad(loss, "sum")(
            RECURRENT, xs[:, 0], targets[:, 0], alone
        )
        same(program.reset(moved, False), moved)
        key = moved.state["key"]
        expected = eqx.tree_at(lambda c: c.state["key"], alone, key)
        same(program.reset(moved, True), expected)


def test_resets_at_any_step_against_backpropagation():
    """Episodes that end at steps of their own: the gradient is that of each of them alone."""
    xs, targets = data()
    begins = np.zeros((T, B), bool)
    begins[0] = True
    begins[[2, 5], 0] = begins[3, 1] = True
    expected, total = None, 0.0
    for b in range(B):
        starts = [*np.flatnonzero(begins[:, b]), T]
        for one, end in itertools.pairwise(starts):
            value, grads = etpc.bptt(
                PLAIN, xs[one:end, b], targets[one:end, b], loss, reduction="sum"
            )
            total = total + value / B
            grads = jax.tree.map(lambda g: g / B, grads)
            expected = grads if expected is None else jax.tree.map(jnp.add, expected, grads)
    for algo in (D, etpc.D_RTRL(window=1, backprop="full")):
        losses, grads, _ = gradient(
            PLAIN, xs, targets, begins=begins, reduction="sum", program=program_of(PLAIN, algo)
        )
        close((losses[0], grads), (total, expected))
    without = gradient(PLAIN, xs, targets, begins=begins & False, reduction="sum")
    assert abs(float(without[0][0] - total)) > 1e-3


WITH_RESETS = (
    *(D, RULES["decay"], etpc.SnAp(1), etpc.RTRL(window=3), etpc.TBPTT(3, every=1)),
    *(etpc.TBPTT(3), etpc.TBPTT(3, every=2), etpc.D_RTRL(window=2, lookback=3)),
    *(RULES["full windows"], RULES["rank"], etpc.RTRL(rank=1), etpc.CreditRTRL(2)),
)


@pytest.mark.parametrize("algo", few(WITH_RESETS, D, WITH_RESETS[6]))
def test_a_reset_at_each_step_changes_no_rule(algo):
    """Where no stream begins, the gradient is that without resets."""
    (xs, targets), none = data(), np.zeros((T, B), bool)
    take = functools.partial(gradient, RECURRENT, xs, targets, program=program_of(RECURRENT, algo))
    close(take(begins=none)[:2], take()[:2])


@pytest.mark.parametrize("name", few(RULES, "decay", "rank"))
def test_an_example_that_begins_anew_is_a_stream_of_its_own(name):
    algo, (xs, targets) = RULES[name], data()
    program = program_of(PLAIN, algo)
    begins = np.zeros((T, B), bool)
    begins[3, 1] = True
    _, _, carry = gradient(PLAIN, xs, targets, program=program, begins=begins)
    _, _, others = gradient(PLAIN, xs, targets, program=program, begins=begins & False)
    for b in (0, 2):
        same(entry(carry, b), entry(others, b))
    _, _, alone = gradient(
        PLAIN, xs, targets, program=program, begins=begins | (np.arange(T) == 3)[:, None]
    )
    for p, got, want in zip(program.ops, carry.traces, alone.traces, strict=True):
        same([a[1] for a in got[:3]], [a[1] for a in want[:3]]), p.path
    close(carry.state["h"][1], alone.state["h"][1])


@pytest.mark.slow
def test_resets_where_the_weights_move():
    """[T / W, B]: as by hand between calls, with windows as long as ever."""
    program, (xs, targets) = program_of(), data()
    learner = etpc.online(program, loss, optax.sgd(0.1), 2)
    begins = np.zeros((3, B), bool)
    begins[1, 0] = begins[2, 2] = True
    start = learner.init(PLAIN, B)
    got = learner.update(PLAIN, *start, xs, targets, begins=begins)
    now = PLAIN, *start
    for n, where in enumerate(begins):
        piece = slice(2 * n, 2 * n + 2)
        *now, carry = now
        *now, _ = learner.update(*now, program.reset(carry, where), xs[piece], targets[piece])
    close(got[:3], now)
    assert differ(got[:3], learner.update(PLAIN, *start, xs, targets)[:3])
    by_step = np.zeros((T, B), bool)
    by_step[::2] = begins
    close(got, learner.update(PLAIN, *start, xs, targets, begins=by_step))


# --- bad input ------------------------------------------------------------------------------------


def made(every=2, optimizer=None, **options):
    return etpc.online(program_of(), loss, optimizer or optax.sgd(0.1), every, **options)


def updated(steps=T, learner=None, opt_state=None, carry=None, **options):
    learner = learner or made()
    start = learner.init(PLAIN, B)
    xs, targets = data(steps)
    return learner.update(PLAIN, opt_state or start[0], carry or start[1], xs, targets, **options)


MADE = [
    (lambda: made(0), "every must be an int >= 1, not 0", etpc.InputError),
    (lambda: made(True), "every must be an int >= 1, not True", etpc.InputError),
    (lambda: made(reduction="max"), '"sum" or "mean", not \'max\'', etpc.InputError),
    (
        lambda: made(optimizer=0.1),
        "optimizer is 0.1, which has no `init` and `update`.*optax",
        etpc.InputTypeError,
    ),
    (
        lambda: inspect.unwrap(etpc.online)(program_of(), 3, optax.sgd(0.1)),
        "loss_fn must be a function",
        etpc.InputTypeError,
    ),
    (
        lambda: program_of().reset(program_of().init(B), True),
        r"where has shape \[\], and should have \[B\] = \[3\]",
        etpc.InputError,
    ),
]
UPDATES = [
    (lambda: dict(steps=5), "xs has 5 steps, and the weights move every 2. Pass a multiple of 2"),
    (lambda: dict(mask=jnp.ones((T, 1))), r"mask has shape \[6, 1\], .* have \[T, B\] = \[6, 3\]"),
    (lambda: dict(mask=jnp.ones((T, B), complex)), "mask is complex128, .* booleans or real numb"),
    (
        lambda: dict(begins=jnp.zeros((T,), bool)),
        r"begins has shape \[6\].*\[T, B\] = \[6, 3\] or \[T / W, B\] = \[3, 3\]",
    ),
    (lambda: dict(begins=jnp.zeros((T, B))), r"begins is float64\[6, 3\], and should be booleans"),
    (
        lambda: dict(carry=program_of(PLAIN, RULES["decay"]).init(B)),
        "carry belongs to another program",
    ),
    (
        lambda: dict(opt_state=optax.adam(0.1).init(eqx.filter(PLAIN, eqx.is_array))),
        "opt_state is not one of this optimizer",
    ),
]


@pytest.mark.parametrize(("call", "words", "kind"), MADE)
def test_what_is_no_learner(call, words, kind):
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize(("options", "words"), UPDATES)
def test_bad_input(options, words):
    with pytest.raises(etpc.InputError, match=words):
        updated(**options())


@pytest.mark.slow
@pytest.mark.parametrize(("options", "words"), UPDATES)
def test_bad_input_after_good(options, words):
    """Arguments like those that were checked are not checked again; these are not like them."""
    learner = made()
    for _ in range(2):
        updated(learner=learner, **({"mask": jnp.ones((T, B))} if "mask" in options() else {}))
    assert learner._checked is not None
    with pytest.raises(etpc.InputError, match=words):
        updated(learner=learner, **options())


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_arguments_that_need_no_check(masked, monkeypatch):
    """Repeated calls are checked once, and give what checked calls give."""
    xs, targets = data(5 * T)
    pieces = [slice(n * T, (n + 1) * T) for n in range(5)]
    mask = jnp.ones((T, B)) if masked else None
    checked, repeated, count = made(), made(), []
    inner = type(repeated.program.arguments).of_call
    monkeypatch.setattr(
        type(repeated.program.arguments),
        "of_call",
        lambda *args, **options: count.append(1) or inner(*args, **options),
    )
    one = other = (PLAIN, *checked.init(PLAIN, B))
    for piece in pieces:
        checked._checked = None
        one = checked.update(*one[:3], xs[piece], targets[piece], mask=mask)
    of_checked = len(count)
    for piece in pieces:
        other = repeated.update(*other[:3], xs[piece], targets[piece], mask=mask)
    assert len(count) - of_checked < of_checked == 5
    same(one, other)


@functools.partial(model, start=jnp.zeros(O))
def Gathering(x, h, w, at, times):
    """What it reads is an array that no update changes, which the traces were laid out for."""
    h = 0.5 * h + times * w * x[at]
    return h.sum(keepdims=True), h


@pytest.mark.parametrize("changed", ["at", "times"])
def test_what_no_update_changes_is_checked_each_time(changed):
    model = Gathering(jnp.ones(O), jnp.arange(O) % I, 1.0)
    program = etpc.compile(model, D, inputs=jnp.zeros(I))
    learner = etpc.online(program, loss, optax.sgd(0.1), 2)
    after = (model, *learner.init(model, B))
    for _ in range(3):
        after = learner.update(*after[:3], *data())
    other = {"at": (after[0].at + 1) % I, "times": 2.0}
    model = eqx.tree_at(lambda m: getattr(m, changed), after[0], other[changed])
    if changed == "times":
        with pytest.raises(etpc.InputError, match=r"2\.0 where 1\.0 was compiled in"):
            learner.update(model, *after[1:3], *data())
        return
    fresh = etpc.online(program, loss, optax.sgd(0.1), 2)
    found, wanted = (each.update(model, *each.init(model, B), *data()) for each in (learner, fresh))
    same(found, wanted)
    assert differ(found[0], learner.update(after[0], *learner.init(model, B), *data())[0])


# --- lowering and donation ------------------------------------------------------------------------


def shapes(tree):
    is_array = lambda a: eqx.is_array(a) or isinstance(a, np.ndarray)
    return jax.tree.map(lambda a: shape_of(a) if is_array(a) else a, tree)


LOWERED = [(False, {}), (True, dict(mask=np.ones((T, B)), begins=np.ones((3, B), bool)))]


@pytest.mark.parametrize(("donate", "options"), few(LOWERED, LOWERED[1]))
def test_shapes_are_lowered_as_arrays_are(donate, options):
    """Integers that the traces are laid out for, and weakly typed and NumPy's arrays among them."""
    net = Gathering(jnp.ones(O), np.arange(O) % I, jnp.asarray(1.0))
    program = etpc.compile(net, D, inputs=jnp.zeros(I))
    learner = etpc.online(program, loss, optax.adam(0.1), 2)
    init = eqx.filter_eval_shape(learner.init, net, B)
    arguments = net, *learner.init(net, B), *(np.asarray(a) for a in data())
    of_shapes = shapes(net), *init, *shapes(arguments[3:])
    texts = [
        learner.lower(*each, **more, donate=donate).as_text()
        for each, more in ((arguments, options), (of_shapes, shapes(options)))
    ]
    assert texts[0] == texts[1]
    assert ("tf.aliasing_output" in texts[0]) == donate
    gradient = program.value_and_grad(loss)
    given = lambda of: (of[0], of[3], of[4], of[2])
    one, other = (gradient.lower(*given(each)).as_text() for each in (arguments, of_shapes))
    assert one == other
    for lower in (learner.lower, lambda m, _, c, xs, t: gradient.lower(m, xs, t, c)):
        with pytest.raises(etpc.InputError, match=r"Input x has shape \[6, 3, 5\], and should be"):
            lower(*of_shapes[:3], jax.ShapeDtypeStruct((T, B, I + 1), float), of_shapes[4])


def test_what_is_given_away_is_gone_and_the_result_is_the_same():
    """Of an optimizer whose state begins as the parameters: the same memory can't be given away twice."""
    halve = functools.partial(jax.tree.map, lambda a, b: None if a is None else (a + b) / 2)
    average = optax.GradientTransformation(lambda p: p, lambda g, s, p: (g, halve(s, p)))
    learner = etpc.online(program_of(RECURRENT), loss, average, 2)

    def start():
        net = jax.tree.map(lambda a: a.copy() if eqx.is_array(a) else a, RECURRENT)
        _, carry = learner.init(net, B)
        views = lambda a: jax.device_put(a, jax.devices()[0])
        return net, jax.tree.map(views, eqx.filter(net, eqx.is_array)), carry

    xs, targets = data()
    want, given = learner.update(*start(), xs, targets), start()
    for _ in range(2):  # the second time without checks
        got = learner.update(*given, xs, targets, donate=True)
        same(got, want)
        gone = [a.is_deleted() for a in jax.tree.leaves((given[0], given[2])) if eqx.is_array(a)]
        assert all(gone)
        assert not xs.is_deleted()
        with pytest.raises(etpc.InputError, match=r"was deleted.*given away.*donate=True"):
            learner.update(*given, xs, targets)
        given = start()


# --- optimisers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [(optax.lbfgs(), "value_fn.*line searches"), (optax.lookahead(optax.sgd(0.1), 5, 0.5), "wrapped")],
)  # fmt: skip
def test_an_optimiser_that_a_stream_cannot_have(optimizer, words):
    learner = etpc.online(program_of(), loss, optimizer, 2)
    with pytest.raises(etpc.InputError, match=words):
        learner.update(PLAIN, *learner.init(PLAIN, B), *data())


@pytest.mark.slow
def test_an_update_without_a_loss_is_skipped():
    """Momentum, weight decay and a count of updates would move on."""
    optimizer = optax.chain(
        optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.adamw(0.1, weight_decay=0.1)
    )
    learner = etpc.online(program_of(), loss, optimizer, 2)
    xs, targets = data()
    mask = np.ones((T, B))
    mask[2:4] = 0
    start = learner.init(PLAIN, B)
    first = learner.update(PLAIN, *start, xs[:2], targets[:2])
    second = learner.update(*first[:3], xs[2:4], targets[2:4], mask=mask[2:4])
    same(second[:2], first[:2])
    assert second[3] == 0
    assert differ(second[2].state, first[2].state)
    third = learner.update(*second[:3], xs[4:], targets[4:])
    assert differ(third[0], second[0])
    got = learner.update(PLAIN, *start, xs, targets, mask=mask)
    close(got[:3], third[:3])


@pytest.mark.parametrize("every", [2, T])
def test_weakly_typed_leaves_are_compiled_once(every):
    model = {"w": jnp.linspace(0.1, 1.0, I), "gain": jnp.asarray(1.0)}
    assert model["gain"].weak_type
    traced = []

    def counted(y, target):
        traced.append(1)
        return loss(y, target)

    def step(m, x, h):
        h = 0.5 * h + m["w"] * x
        return m["gain"] * h, h

    program = etpc.compile(model, D, inputs=jnp.zeros(I), state=jnp.zeros(I), step=step)
    learner = etpc.online(program, counted, optax.adam(0.1), every)
    after = (model, *learner.init(model, B))
    counts = []
    for _ in range(3):
        after = learner.update(*after[:3], *data())
        counts.append(len(traced))
    assert counts[0] == counts[-1] > 0
