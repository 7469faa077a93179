"""What bad input gets: an error that names the place, says why, and what to do."""

import functools
import inspect
import os
import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import loss

X = jnp.zeros(2)
W = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)))


class Cell(eqx.Module):
    weight: jax.Array
    gain: float = 0.5
    name: str = "cell"

    def __call__(self, x, state):
        h = jnp.tanh(self.gain * state["h"] + self.weight @ x)
        return h, {"h": h}

    def init_state(self):
        return {"h": jnp.zeros(3)}


@functools.cache
def compiled(**options):
    return etpc.compile(Cell(W), inputs=X, **options)


def recurrent(n=4):
    """Each unit reaches every other; a trace of RTRL holds n numbers for each use of a weight."""
    step = lambda w, x, h: (0.5 * h + jnp.tanh(w @ h + x),) * 2
    model = jax.ShapeDtypeStruct((n, n), jnp.float32)
    state = jax.ShapeDtypeStruct((n,), jnp.float32)
    return dict(model=model, step=step, inputs=state, state=state)


def unchecked(function):
    """Without the type checker of the tests, which users do not have."""
    return inspect.unwrap(function)


@pytest.mark.skipif(not os.environ.get("ETPC_CHECKED"), reason="annotations are not checked")
def test_annotations_are_checked_in_tests():
    """Those of functions, methods and dataclasses."""
    given = Cell(W), jnp.zeros((4, 2)), jnp.zeros((4, 3)), loss
    calls = (
        lambda: etpc.bptt(*given, window="2"),
        lambda: compiled().init("2"),
        lambda: etpc.SnAp(n="2"),
    )
    for call in calls:
        with pytest.raises(jaxtyping.TypeCheckError):
            call()


CONTRACT = {
    "structure": (
        lambda m, x, s: (x, {"v": s["v"]}),
        {"v": jnp.zeros(2), "u": jnp.zeros(2)},
        r"(?s)changes the structure of the state.*\['u'\], \['v'\].*Return a state with the struct",
    ),
    "shape": (
        lambda m, x, s: (x, {"v": jnp.zeros(3), "u": s["u"]}),
        {"v": jnp.zeros(2), "u": jnp.zeros(2)},
        r"state \['v'\] from float64\[2\] to float64\[3\]\. Return a state",
    ),
    "dtype": (
        lambda m, x, s: (x, {"v": s["v"].astype(jnp.float32)}),
        {"v": jnp.zeros(2)},
        r"state \['v'\] from float64\[2\] to float32\[2\]\. Return",
    ),
    "two at once": (
        lambda m, x, s: (x, {"v": jnp.zeros(3), "u": jnp.zeros(2, jnp.float32)}),
        {"v": jnp.zeros(2), "u": jnp.zeros(2)},
        r"(?s)2 problems.*\['u'\] from float64.*\['v'\] from",
    ),
    "static leaf": (
        lambda m, x, s: (x, {"v": s["v"], "mode": "b"}),
        {"v": jnp.zeros(2), "mode": "a"},
        r"changes state \['mode'\], which is no array.*from 'a' to 'b'\. Return a state",
    ),
    "no pair": (
        lambda m, x, s: s,
        {"v": jnp.zeros(2)},
        r"pair `\(y, new_state\)`, and returned a dict.*`step=`",
    ),
    "no float state": (
        lambda m, x, s: (x, s),
        {"count": jnp.zeros((), jnp.int32)},
        r"no float leaf.*\['count'\].*make the hidden state a float",
    ),
    "empty state": (lambda m, x, s: (x, s), (), r"no float leaf.*none.*`jax\.grad` alone"),
    "state without neurons": (
        lambda m, x, s: (x, s),
        {"v": jnp.zeros(0), "count": jnp.zeros(2, jnp.int32)},
        r"empty \(\['v'\]: float64\[0\]\).*at least one neuron",
    ),
}


STATES = ("no float state", "empty state", "state without neurons")


@pytest.mark.parametrize("case", CONTRACT)
def test_contract(case):
    step, state, words = CONTRACT[case]
    with pytest.raises(etpc.ModelError, match=words) as caught:
        etpc.compile({"w": W}, inputs=X, state=state, step=step)
    assert isinstance(caught.value, ValueError)
    codes = {"no pair": "model", **dict.fromkeys(STATES, "no-float-state")}
    assert caught.value.code == codes.get(case, "state-changes")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.code) == (
        etpc.ModelError,
        str(caught.value),
        caught.value.code,
    )


def test_every_error_has_a_code():
    """The code of its kind, which the documentation of the codes names, or a nearer one."""
    kinds = [kind for kind in vars(etpc.errors).values() if isinstance(kind, type)]
    kinds = [k for k in kinds if issubclass(k, etpc.EtpcError) and k is not etpc.EtpcError]
    assert len({kind("text").code for kind in kinds}) == len(kinds) == 9
    assert etpc.InputError("text", code=etpc.Code.EFFECTS).code is etpc.Code.EFFECTS
    with pytest.raises(etpc.AlgorithmError) as caught:
        etpc.compile(Cell(W), "d_rtl", inputs=X)
    assert caught.value.code == "unknown-algorithm"
    with pytest.raises(etpc.ModelError) as caught:
        etpc.compile({"w": W}, inputs=X, step=lambda m, x, s: (x, s))
    assert caught.value.code == "no-initial-state"


def test_a_name_is_registered_once(monkeypatch):
    """A class that is defined again, as by a cell of a notebook that is run again, replaces the first."""
    monkeypatch.setattr(etpc.algorithms._algorithm, "_NAMES", etpc.algorithms.registered())

    def define(number):
        class Mine(etpc.RTRL):
            name = "mine"
            value = number

        return etpc.algorithms.register_algorithm(Mine)

    for number in (1, 2):
        assert define(number)() == etpc.algorithms.resolve("mine")
        assert etpc.algorithms.registered()["mine"].value == number

    class Other(etpc.RTRL):
        name = "mine"

    for other, name in ((Other, "mine"), (type("Rtrl", (etpc.D_RTRL,), {"name": "rtrl"}), "rtrl")):
        with pytest.raises(ValueError, match=f"'{name}' is registered already, .*another `name`"):
            etpc.algorithms.register_algorithm(other)


# --- arguments of a program -----------------------------------------------------------------------


XS4 = jnp.zeros((4, 2))


def run(xs=XS4, targets=None, *, batch=None, model=None, loss=loss):
    program = compiled()
    lead = jnp.shape(xs)[: 1 if batch is None else 2] if not isinstance(xs, dict) else (4,)
    targets = jnp.zeros((*lead, 3)) if targets is None else targets
    model = Cell(W) if model is None else model
    return program.value_and_grad(loss)(model, xs, targets, program.init(batch))


def given(*data, **changes):
    return lambda: run(*data, **changes)


@pytest.mark.slow
def test_good_arguments_raise_nothing():
    """Negative control for all that follows."""
    run()
    run(jnp.zeros((4, 5, 2)), batch=5)
    run(np.zeros((4, 2), np.float32))


LOSSES = [
    (lambda y, t: (y - t) ** 2, r"float64\[3\]\. Sum or average"),
    (lambda y, t: jnp.argmax(y), r"int64\[\]\. This is because it needs a derivative"),
    (lambda y, t: loss(y, t) + 0j, r"complex128\[\]\. Take its real part"),
    (lambda y, t: None, r"None\. It ends without a value"),
    (lambda y, t: "y", r"'y'\. Return one number"),
]
ARRAYS = eqx.filter(Cell(W), eqx.is_array)
MODELS = [
    ({"weight": W}, r"(?s)structure of the one .* compiled.*Missing: \.weight.*Compile it again"),
    (Cell(jnp.zeros((3, 4))), r"\.weight is float64\[3, 4\].*as float64\[3, 2\]\. Compile again"),
    (Cell(W.astype(jnp.float32)), r"Parameter \.weight is float32\[3, 2\].*Compile again"),
    (ARRAYS, r"`None` where numbers.*`eqx\.partition`.*`eqx\.combine\(arrays, rest\)`.*filter_jit"),
    (
        Cell(W, gain=0.7),
        r"holds 0\.7 where 0\.5 was compiled in.*compile again, or make it an array",
    ),
]
INPUTS = [
    (given(jnp.zeros((4, 3))), r"Input x has shape \[4, 3\].*\[T\] \+ \[2\]"),
    (given(jnp.zeros(2), jnp.zeros((4, 3))), r"Input x has shape \[2\]"),
    (given(jnp.zeros((4, 5, 2))), r"Input x has shape \[4, 5, 2\].*carry has no batch axis"),
    (
        given(XS4, jnp.zeros((4, 5, 3)), batch=5),
        r"Input x has shape \[4, 2\].*\[T, B\].*carry has a batch axis",
    ),
    (given(jnp.zeros((4, 6, 2)), batch=5), r"a batch of 6; the carry has 5.*`batch_size=6`"),
    (given(XS4 + 0j), r"Input x is complex128, and was compiled as float64\. Convert"),
    (given({"a": XS4}), r"input does not have the structure"),
    (given(jnp.zeros((0, 2))), r"no steps \(T = 0\)"),
    (given(XS4, jnp.zeros((5, 3))), r"target has shape \[5, 3\], and should begin with \[4\]"),
    (
        given(jnp.zeros((4, 5, 2)), jnp.zeros((4, 3)), batch=5),
        r"target has shape \[4, 3\], and should begin with \[4, 5\].*T, B",
    ),
    *((given(loss=f), f"loss_fn must return one float.*returns {words}") for f, words in LOSSES),
    *((given(model=model), words) for model, words in MODELS),
]


def test_dropout_without_a_key():
    layer = eqx.nn.Dropout(0.5)
    step = lambda w, x, h: (h, h + layer(w * x))
    with pytest.raises(RuntimeError, match="requires a key") as caught:
        etpc.compile(jnp.ones(()), inputs=jnp.ones(2), state=jnp.zeros(2), step=step)
    assert any("keep the key in the state" in note for note in caught.value.__notes__)
    keyed = etpc.interop.keyed(lambda w, x, h, key: (h, h + layer(w * x, key=key)))
    state = (jnp.zeros(2), jax.random.key(0))
    etpc.compile(jnp.ones(()), inputs=jnp.ones(2), state=state, step=keyed)


def test_batch_normalisation_in_training():
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(2, "batch", mode="ema")
    with pytest.raises(NameError, match="unbound axis name") as caught:
        etpc.compile(norm, inputs=X, state=state)
    assert any("`inference=True`" in note for note in caught.value.__notes__)


def test_an_error_in_the_loss_says_what_it_was_called_with():
    note = r"loss_fn with y float64\[3\] and target float64\[3\]: one example at one step"
    fails = lambda y, t: jnp.mean((y - t) ** 2, axis=2)
    optimizer = optax.sgd(1e-2)
    learner = etpc.online(compiled(), fails, optimizer)
    targets = jnp.zeros((4, 3))
    calls = (
        given(loss=fails),
        lambda: learner.update(Cell(W), *learner.init(Cell(W)), XS4, targets),
        lambda: etpc.bptt(Cell(W), XS4, targets, fails),
    )
    for call in calls:
        with pytest.raises(IndexError, match="out of range") as caught:
            call()
        notes = [text for text in caught.value.__notes__ if "etpc" in text]
        assert len(notes) == 1
        assert re.search(note, notes[0])


# --- integers of other types than were compiled ---------------------------------------------------


def summed(y, target):
    return y.sum()


@functools.cache
def reader(dtype, x64):
    """A table of 256 rows, and the program that reads it by a token."""
    table = jnp.arange(256.0)[:, None]
    step = lambda m, x, h: (m[x] + 0 * h, m[x] + 0 * h)
    inputs = jax.ShapeDtypeStruct((), dtype)
    return table, etpc.compile(table, inputs=inputs, state=jnp.zeros(1), step=step)


def read(dtype, token, *, jit=False, x64=True):
    """The row that is read by a token, given a dtype that was compiled."""
    with jax.enable_x64(x64):
        table, program = reader(dtype, x64)
        run = lambda token: program(table, token, program.init())[0]
        (found,) = (jax.jit(run) if jit else run)(token)
        sequence = token if isinstance(token, int) else token[None, None]
        if not isinstance(token, int):
            run = lambda tokens: program.value_and_grad(summed)(
                table, tokens, jnp.zeros((1, 1)), program.init(1)
            )
            (_, carry), _ = (jax.jit(run) if jit else run)(sequence)
            assert carry.state == found
        return int(found)


FITTING = [
    ("uint8", np.array(255, np.int64)),
    ("uint8", np.array(200, np.uint64)),
    ("int8", np.array(7, np.uint8)),
    ("int32", np.array(255, np.int64)),
    ("int32", np.array(255, np.uint32)),
    ("uint64", np.array(255, np.int16)),
    ("int16", np.array(True)),
    ("uint8", 255),
    ("int32", 255),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "token"), FITTING)
def test_integers_that_fit_are_cast(dtype, token):
    assert read(dtype, token) == int(token)


@pytest.mark.parametrize(
    ("dtype", "token"),
    [
        ("uint8", np.array(256)),
        ("uint8", np.array(-1)),
        ("int8", np.array(128, np.uint8)),
        ("int8", np.array(-129, np.int16)),
        ("int32", np.array(2**32 + 1)),
        ("int32", np.array(2**31, np.uint32)),
        ("uint32", np.array(-1, np.int32)),
        ("int64", np.array(2**63, np.uint64)),
        ("uint8", 256),
        ("int32", 2**32 + 1),
    ],
)
@pytest.mark.parametrize("x64", [True, False])
def test_integers_that_do_not_fit_are_refused(dtype, token, x64):
    """They would wrap around, so that 256 reads row 0."""
    if dtype == "int64" and not x64:
        pytest.skip("there is none")
    words = rf"Input x is \w+ with values from {int(token)} to .*compiled as {dtype}.*wrap around"
    with pytest.raises(etpc.InputError, match=words):
        read(dtype, token, x64=x64)


@pytest.mark.parametrize(("dtype", "token"), [("uint8", "uint16"), ("int8", "uint8")])
def test_integers_that_are_not_known_are_refused(dtype, token):
    words = rf"Input x is {token}, and was compiled as {dtype}.*not known.*astype\('{dtype}'\)"
    with pytest.raises(etpc.InputError, match=words):
        read(dtype, np.array(3, token), jit=True)
    assert read("int32", np.array(3, token), jit=True) == 3
    assert read(dtype, np.array(3, dtype), jit=True) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [np.int32, jnp.int32])
def test_integers_of_other_types(kind):
    """They count as ints: what they make is the same, and prints and hashes the same."""
    program, init, memory = (
        compiled(),
        *map(inspect.unwrap, (etpc.Program.init, etpc.Program.memory)),
    )
    assert init(program, kind(2)).fresh.shape == (2,)
    assert type(inspect.unwrap(etpc.online)(program, loss, optax.sgd(0.1), kind(2)).every) is int
    assert str(memory(program, kind(2))) == str(program.memory(2))
    given = recurrent()
    compile_ = inspect.unwrap(etpc.compile)
    sizes = {"memory": kind(200), "batch_size": kind(2)}
    assert str(compile_(**given, **sizes)) == str(etpc.compile(**given))
    with pytest.raises(etpc.MemoryLimitError, match=r"for 4 examples, and memory=200 "):
        compile_(**given, memory=kind(200), batch_size=kind(4))
    arguments = Cell(W), jnp.zeros((4, 2, 2)), jnp.zeros((4, 2, 3)), loss
    for name in ("verify", "compare", "bptt"):
        inspect.unwrap(getattr(etpc, name))(*arguments, batch_size=kind(2))
    window = inspect.unwrap(etpc.bptt)(*arguments, batch_size=2, window=kind(3))
    expected = etpc.bptt(*arguments, batch_size=2, window=3)
    np.testing.assert_array_equal(window[1].weight, expected[1].weight)


@pytest.mark.parametrize("lead", [(5,), (4, 5)])
def test_inputs_with_axes_of_time_and_batch(lead):
    words = r"inputs= has shape \[(4, )?5, 2\].*it takes \[2\].*one step of one example.*xs\[0, 0\]"
    with pytest.raises(etpc.InputError, match=words) as caught:
        etpc.compile(Cell(W), inputs=jnp.zeros((*lead, 2)))
    assert "dot_general" in str(caught.value.__cause__)


XS, TARGETS = jnp.zeros((4, 5, 2)), jnp.zeros((4, 5, 3))
SEQUENCE = dict(model=Cell(W), xs=XS, targets=TARGETS, loss_fn=loss, batch_size=5)


def call(function, **changes):
    """A call on the sequence, with some of its arguments changed."""
    return lambda: unchecked(function)(**{**SEQUENCE, **changes})


def fit(blocks):
    learner = etpc.online(compiled(), loss, optax.sgd(1e-2))
    return lambda: unchecked(etpc.fit)(learner, Cell(W), blocks, batch_size=5, independent=False)


CALLS = [
    (
        call(etpc.compare, algos=etpc.D_RTRL()),
        r"algos is a list of algorithms or their names.*not D_RTRL",
    ),
    (call(etpc.compare, algos=[]), "with at least one, not"),
    (call(etpc.compare, algos="d_rtrl"), "with at least one, not"),
    (
        given(XS4, np.full(4, "a")),
        r"targets holds a ndarray.*should hold arrays of numbers",
    ),
    (call(etpc.verify, tolerance="1"), r"tolerance must be None or a number >= 0, not '1'"),
    (call(etpc.compare, tolerance=-1.0), r"tolerance must.*not -1\.0"),
    (fit(None), r"blocks is None\. Pass an iterable of pairs"),
    (
        call(etpc.verify, weights=lambda m: m.wieght),
        r"weights= raised AttributeError.*wieght.*parameters are \.weight: return some",
    ),
    (
        call(etpc.verify, weights=np.ones(3)),
        r'weights= must be None, "all", "marked" or a function',
    ),
    (call(etpc.bptt, reduction=np.ones(3)), r'reduction must be "sum" or "mean", not array'),
    (lambda: unchecked(etpc.compile)(Cell(W), inputs="abc"), r"inputs= has no array"),
    (
        lambda: unchecked(etpc.Program.reset)(compiled(), compiled().init(5), "first"),
        r"where is <U5\[\], and should be booleans",
    ),
]


def raw(algorithm, **options):
    """An algorithm with options that the annotations do not allow."""
    return lambda: unchecked(algorithm.__init__)(object.__new__(algorithm), **options)


def sized(**options):
    return lambda: etpc.compile(**recurrent(), **options)


def stream(opt_state):
    learner = etpc.online(compiled(), loss, optax.sgd(1e-2))
    return lambda: learner.update(Cell(W), opt_state, learner.init(Cell(W), 5)[1], XS, TARGETS)


# by the class of the error, and the class of Python that it is too
RAISES = {
    (TypeError, TypeError): [
        (lambda: etpc.compile(Cell(W), inputs=jnp.zeros((5, 7))), "dot_general")  # never fits
    ],
    (etpc.ModelError, ValueError): [
        (
            call(etpc.bptt, step=lambda m, x, s: (x, {"h": s["h"].astype(jnp.float32)})),
            r"changes state \['h'\] from float64\[3\] to float32",
        ),
        (
            lambda: etpc.compile(eqx.nn.Identity(), inputs=X),
            r"Identity has no `init_state\(\)`.*`state=`",
        ),
        (lambda: etpc.compile({"w": W}, inputs=X, state=X), r"A dict is not callable.*Pass `step="),
        (
            lambda: etpc.compile(W, inputs=None, state=X, step=lambda w, x, h: (h, h)),
            r"inputs= has no array.*jnp\.zeros",
        ),
    ],
    (etpc.AlgorithmError, ValueError): [
        *(
            (raw(etpc.ES_D_RTRL, decay=d), rf"\(0, 1\], and decay is {d}")
            for d in (0.0, -0.1, 1.0001, float("nan"), float("inf"))
        ),
        *(
            (raw(etpc.ES_D_RTRL, rank=rank), rf"rank={rank} is less than 1.*pass decay=")
            for rank in (0, -3)
        ),
        *((raw(etpc.D_RTRL, window=w), rf'"auto" or an int >= 1, not {w}') for w in (0, -1, True)),
        (raw(etpc.SnAp, n=-2), "n must be an int >= 1, not -2"),
        (lambda: etpc.ES_D_RTRL(0.9), r"ES_D_RTRL\(0\.9\) does not say.*decay=0.99.*rank=4"),
        (lambda: etpc.ES_D_RTRL(4), r"ES_D_RTRL\(4\) does not say.*decay=0.99.*rank=4"),
        (
            lambda: etpc.ES_D_RTRL(decay=0.9, rank=4),
            r"a decay or a rank, and not decay=0\.9, rank=4",
        ),
        (lambda: compiled(algo="rtlr"), r"'rtlr'.*Known names: 'd_rtrl'"),
        (lambda: compiled(algo="auto"), r"no algorithm 'auto'.*`etpc\.suggest` measures"),
    ],
    (etpc.InputTypeError, TypeError): [
        (raw(etpc.ES_D_RTRL, decay=True), r"decay must be a float in \(0, 1\], not True"),
        (
            lambda: unchecked(etpc.algorithms.resolve)(etpc.D_RTRL),
            r"not <class.*D_RTRL.*Call it: D_RTRL\(\)",
        ),
        (lambda: unchecked(etpc.algorithms.resolve)(etpc.RTRL), r"Call it: RTRL\(\)\."),
        (lambda: unchecked(etpc.algorithms.resolve)(etpc.TBPTT), r"Call it: TBPTT\(steps=\.\.\.\)"),
        (lambda: unchecked(etpc.algorithms.resolve)(3), r"algorithm or its name, not 3"),
        (lambda: compiled().arguments.check_carry({"h": X}), r"carry is a dict.*program\.init"),
        (stream("sgd"), r"opt_state holds a str, 'sgd'"),
    ],
    (etpc.SelectionError, ValueError): [
        (lambda: compiled(weights=lambda m: m.gain), r"selects \.gain, which is no array")
    ],
    (etpc.InputError, ValueError): [
        *INPUTS,
        (lambda: compiled()(Cell(W), jnp.zeros(3), compiled().init()), "Input x has"),
        *((lambda n=n: compiled().init(n), rf"int >= 1, not {n}") for n in (0, -1, True)),
        *(
            (
                lambda n=n: unchecked(etpc.Program.init)(compiled(), n),
                "batch_size must be None or an int >= 1, not",
            )
            for n in (1.5, "2", np.bool_(True))
        ),
        *(
            (sized(**{name: n}), f"{name} must be an int >= 1")
            for name in ("memory", "batch_size")
            for n in (0, -1, True)
        ),
        (lambda: compiled().value_and_grad(loss, "max"), '"sum" or "mean", not \'max\''),
        *((call(etpc.bptt, window=w), "window must be an int >= 1") for w in (0, -1, True, 2.0)),
        (lambda: read("int32", 2**70), r"Input x is object, and was compiled as int32"),
        (lambda: read("int32", np.array(3.0)), r"x is float64, and was compiled as int32. Convert"),
        (
            lambda: compiled().value_and_grad(lambda y, t: (0.0, {"a": "b"}), has_aux=True)(
                Cell(W), XS[:, 0], TARGETS[:, 0], compiled().init()
            ),
            r"aux that loss_fn returns holds 'b'.*arrays",
        ),
    ],
    (etpc.EtpcError, Exception): CALLS,
}


@pytest.mark.parametrize(
    ("classes", "function", "words"),
    [(classes, *case) for classes, cases in RAISES.items() for case in cases],
)
def test_a_wrong_call_says_what_is_wrong(classes, function, words):
    with pytest.raises(classes[0], match=words) as caught:
        function()
    assert isinstance(caught.value, classes[1])


WRONG = (None, "abc", object(), np.full((4, 5, 2), "a"), jnp.zeros((7, 6)), float("nan"), [])
ARGUMENTS = ("xs", "targets", "loss_fn", "algo", "state", "step", "weights", "batch_size")
ARGUMENTS += ("tolerance", "reduction", "mask")


@pytest.mark.slow
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_no_wrong_argument_ends_in_a_bare_error(argument):
    """What fails in the user's own code has a note that says what it was called with."""
    for function in (etpc.verify, etpc.bptt):
        if argument not in inspect.signature(function).parameters:
            continue
        for value in WRONG:
            try:
                call(function, **{argument: value})()
            except (etpc.EtpcError, jaxtyping.TypeCheckError):  # the latter in tests alone
                continue
            except Exception as error:
                notes = getattr(error, "__notes__", [])
                assert any("etpc called" in note for note in notes), (function, argument, value)


def test_input_problems_are_raised_together():
    step = lambda model, x, h: (0.5 * h + model["w"] @ x["a"] + x["b"],) * 2
    program = etpc.compile(
        {"w": W}, inputs={"a": X, "b": jnp.zeros(3)}, state=jnp.zeros(3), step=step
    )
    xs = {"a": jnp.zeros((4, 5)), "b": jnp.zeros((4, 3), complex)}
    with pytest.raises(etpc.InputError, match=r"(?s)2 problems.*\['a'\].*\['b'\] is complex"):
        program.scan({"w": W}, xs, program.init())
    disagree = {"a": jnp.zeros((4, 2)), "b": jnp.zeros((5, 3))}
    with pytest.raises(etpc.InputError, match=r"disagree about their leading axes"):
        program.scan({"w": W}, disagree, program.init())


def test_not_a_number_passes_through():
    (loss, carry), grads = run(jnp.full((4, 2), jnp.nan))
    assert jnp.isnan(loss)
    assert jnp.isnan(grads.weight).any()
    assert jnp.isnan(carry.state["h"]).all()


# --- memory ---------------------------------------------------------------------------------------


def test_a_program_over_the_memory_limit_is_refused():
    size = 4 * 4 * 4 * 4  # uses, block, bytes
    etpc.compile(algo="rtrl", memory=size, **recurrent())
    words = rf"(?s)would take {size} bytes.*memory={size - 1} .*model \(dot_general\): .*suggest"
    with pytest.raises(etpc.MemoryLimitError, match=words) as caught:
        etpc.compile(algo="rtrl", memory=size - 1, **recurrent())
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(etpc.MemoryLimitError, match=rf"would take {8 * size:,} bytes for 8 examp"):
        etpc.compile(algo="rtrl", memory=size, batch_size=8, **recurrent())


@pytest.mark.slow
def test_the_default_limit_refuses_what_no_one_would_want():
    """A trace of 32 GiB, and a pattern of 10^10 entries: neither is formed."""
    with pytest.raises(etpc.MemoryLimitError, match="the default limit of 17,179,869,184"):
        etpc.compile(algo="rtrl", **recurrent(2048))
    etpc.compile(algo="d_rtrl", **recurrent(2048))
    words = r"(?s)influence among hidden states.*entries.*test_errors\.py.*D_RTRL"
    with pytest.raises(etpc.MemoryLimitError, match=words):
        etpc.compile(algo="rtrl", **recurrent(100_000))


@pytest.mark.slow
def test_shard_map_that_checks_what_varies():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    spec = jax.sharding.PartitionSpec
    program = etpc.compile(W, inputs=X, state=jnp.zeros(3), step=lambda m, x, s: (s + m @ x,) * 2)
    mapped = functools.partial(
        jax.shard_map,
        lambda xs, carry: program.scan(W, xs, carry)[0],
        mesh=mesh,
        in_specs=(spec(None, "batch"), spec("batch")),
        out_specs=spec(None, "batch"),
    )
    arguments = jnp.ones((3, 1, *X.shape)), program.init(1)
    with pytest.raises(etpc.UnsupportedError, match=r"varies over batch.*`check_vma=False`"):
        mapped()(*arguments)
    assert mapped(check_vma=False)(*arguments).any()
