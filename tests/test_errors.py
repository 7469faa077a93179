"""What bad input gets: an error that names the place, says why, and what to do."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import etpc

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


def compiled(**options):
    return etpc.compile(Cell(W), inputs=X, **options)


def unchecked(function):
    """Without the type checker of the tests, which users do not have."""
    return inspect.unwrap(function)


def squared(y, target):
    return jnp.sum((y - target) ** 2)


# --- the model's contract -------------------------------------------------------------------------


def leaky(state):
    return jax.tree.map(lambda a: 0.5 * a, state)


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
        r"changes the static state leaf.*Return a state",
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
}


@pytest.mark.parametrize("case", CONTRACT)
def test_contract(case):
    step, state, words = CONTRACT[case]
    with pytest.raises(etpc.ModelError, match=words) as caught:
        etpc.compile({"w": W}, inputs=X, state=state, step=step)
    assert isinstance(caught.value, ValueError)


def test_no_initial_state():
    with pytest.raises(etpc.ModelError, match=r"Identity has no `init_state\(\)`.*Pass `state=`"):
        etpc.compile(eqx.nn.Identity(), inputs=X)


def test_model_that_cannot_be_called():
    with pytest.raises(etpc.ModelError, match=r"A dict is not callable.*Pass `step="):
        etpc.compile({"w": W}, inputs=X, state=jnp.zeros(3))


def loop(w, h):
    return lax.while_loop(lambda c: c[1].sum() < 1, lambda c: (w, c[1] + w), (w, h))[1]


def test_while_loop_around_a_weight():
    def step(model, x, h):
        return h, loop(model["rec"], h)

    words = r"\['rec'\] is used inside a `while_loop` \(.*test_errors\.py.*fori_loop.*lax\.scan"
    with pytest.raises(etpc.UnsupportedError, match=words) as caught:
        etpc.compile({"rec": jnp.ones(3)}, inputs=X, state=jnp.zeros(3), step=step)
    line = loop.__code__.co_firstlineno + 1
    assert f"test_errors.py:{line}" in str(caught.value)
    assert isinstance(caught.value, NotImplementedError)


# --- algorithms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_decay_out_of_range(decay):
    with pytest.raises(etpc.AlgorithmError, match=rf"\(0, 1\], and decay is {decay}"):
        etpc.ES_D_RTRL(decay=decay)


@pytest.mark.parametrize("decay", [1e-3, 1.0])
def test_decay_in_range(decay):
    assert etpc.ES_D_RTRL(decay=decay).decay == decay


@pytest.mark.parametrize("rank", [0, -3])
def test_rank_below_one(rank):
    with pytest.raises(etpc.AlgorithmError, match=rf"rank={rank} is less than 1.*pass decay="):
        etpc.ES_D_RTRL(rank=rank)


@pytest.mark.parametrize("value", [True, False])
def test_decay_that_is_a_bool(value):
    with pytest.raises(
        etpc.InputTypeError, match=rf"decay must be a float in \(0, 1\], not {value}"
    ) as e:
        inspect.unwrap(etpc.ES_D_RTRL.__init__)(object.__new__(etpc.ES_D_RTRL), decay=value)
    assert isinstance(e.value, TypeError)


@pytest.mark.parametrize("number", [0.9, 4])
def test_a_number_without_a_name_is_neither_a_decay_nor_a_rank(number):
    words = rf"ES_D_RTRL\({number}\) does not say.*decay=0.99.*rank=4"
    with pytest.raises(etpc.AlgorithmError, match=words):
        etpc.ES_D_RTRL(number)
    with pytest.raises(etpc.AlgorithmError, match=r"a decay or a rank, and not decay=0\.9, rank=4"):
        etpc.ES_D_RTRL(decay=0.9, rank=4)


def test_unknown_name():
    with pytest.raises(etpc.AlgorithmError, match=r"'rtlr'.*Known names: 'es_d_rtrl'|'d_rtrl'"):
        compiled(algo="rtlr")


def test_class_in_place_of_an_instance():
    with pytest.raises(etpc.InputTypeError, match=r"not <class.*D_RTRL.*Call it: D_RTRL\(\)"):
        unchecked(etpc.algorithms.resolve)(etpc.D_RTRL)


def test_algorithm_of_a_wrong_type():
    with pytest.raises(etpc.InputTypeError, match=r"algorithm or its name, not 3"):
        unchecked(etpc.algorithms.resolve)(3)


@pytest.mark.parametrize("window", [0, -1, True])
def test_window_out_of_range(window):
    with pytest.raises(etpc.AlgorithmError, match=rf'"auto" or an int >= 1, not {window}'):
        etpc.D_RTRL(window=window)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'rtrl' is registered already"):
        etpc.algorithms.register_algorithm(etpc.RTRL)


# --- selectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "words"),
    [
        (lambda m: (), r"selects nothing.*Return one or more parameters"),
        (lambda m: m.name, r"selects \.name, which is no array"),
        (lambda m: m.gain, r"selects \.gain, which is no array"),
    ],
)
def test_selector(select, words):
    with pytest.raises(etpc.SelectionError, match=words) as caught:
        compiled(weights=select)
    assert isinstance(caught.value, ValueError)


def test_marked_where_nothing_is():
    with pytest.raises(etpc.SelectionError, match=r'no weight passes through `etpc\.mark`.*"all"'):
        compiled(weights="marked")


# --- arguments of a program -----------------------------------------------------------------------


def run(xs, targets=None, *, batch=None, model=None, carry=None, loss=squared, mask=None):
    program = compiled()
    carry = program.init(batch) if carry is None else carry
    lead = jnp.shape(xs)[: 1 if batch is None else 2] if not isinstance(xs, dict) else (4,)
    targets = jnp.zeros((*lead, 3)) if targets is None else targets
    model = Cell(W) if model is None else model
    return program.value_and_grad(loss)(model, xs, targets, carry, mask=mask)


def test_good_arguments_raise_nothing():
    """Negative control for all that follows."""
    run(jnp.zeros((4, 2)))
    run(jnp.zeros((4, 5, 2)), batch=5)
    run(np.zeros((4, 2), np.float32))


INPUTS = {
    "shape": (lambda: run(jnp.zeros((4, 3))), r"Input x has shape \[4, 3\].*\[T\] \+ \[2\]"),
    "no time axis": (lambda: run(jnp.zeros(2), jnp.zeros((4, 3))), r"Input x has shape \[2\]"),
    "batch where there is none": (
        lambda: run(jnp.zeros((4, 5, 2))),
        r"Input x has shape \[4, 5, 2\].*carry has no batch axis",
    ),
    "no batch where there is one": (
        lambda: run(jnp.zeros((4, 2)), jnp.zeros((4, 5, 3)), batch=5),
        r"Input x has shape \[4, 2\].*\[T, B\].*carry has a batch axis",
    ),
    "batch size": (
        lambda: run(jnp.zeros((4, 6, 2)), batch=5),
        r"a batch of 6; the carry has 5.*init\(batch_size=6\)",
    ),
    "dtype": (
        lambda: run(jnp.zeros((4, 2), complex)),
        r"Input x is complex128, and was compiled as float64\. Convert",
    ),
    "structure": (lambda: run({"a": jnp.zeros((4, 2))}), r"input does not have the structure"),
    "no steps": (lambda: run(jnp.zeros((0, 2))), r"no steps \(T = 0\)"),
    "targets": (
        lambda: run(jnp.zeros((4, 2)), jnp.zeros((5, 3))),
        r"target has shape \[5, 3\], and should begin with \[4\]",
    ),
    "targets of a batch": (
        lambda: run(jnp.zeros((4, 5, 2)), jnp.zeros((4, 3)), batch=5),
        r"target has shape \[4, 3\], and should begin with \[4, 5\].*T, B",
    ),
    "carry of another program": (
        lambda: run(jnp.zeros((4, 2)), carry=compiled(algo="es_d_rtrl").init()),
        r"carry belongs to another program.*this program's `init`",
    ),
    "loss of an array": (
        lambda: run(jnp.zeros((4, 2)), loss=lambda y, t: (y - t) ** 2),
        r"loss_fn must return one float.*returns float64\[3\]\. Sum or average",
    ),
    "loss of an integer": (
        lambda: run(jnp.zeros((4, 2)), loss=lambda y, t: jnp.argmax(y)),
        r"loss_fn must return one float.*returns int",
    ),
    "loss of a pair": (
        lambda: run(jnp.zeros((4, 2)), loss=lambda y, t: (squared(y, t), y)),
        r"loss_fn must return one float.*Pass has_aux=True",
    ),
    "mask": (
        lambda: run(jnp.zeros((4, 5, 2)), batch=5, mask=jnp.ones(4)),
        r"mask has shape \[4\], and should have \[T, B\] = \[4, 5\]",
    ),
    "structure of the model": (
        lambda: run(jnp.zeros((4, 2)), model={"weight": W}),
        r"(?s)structure of the one that was compiled.*Missing: \.weight.*Compile it again",
    ),
    "shape of a parameter": (
        lambda: run(jnp.zeros((4, 2)), model=Cell(jnp.zeros((3, 4)))),
        r"Parameter \.weight is float64\[3, 4\].*compiled as float64\[3, 2\]\. Compile again",
    ),
    "dtype of a parameter": (
        lambda: run(jnp.zeros((4, 2)), model=Cell(W.astype(jnp.float32))),
        r"Parameter \.weight is float32\[3, 2\].*Compile again",
    ),
    "a number of the model": (
        lambda: run(jnp.zeros((4, 2)), model=Cell(W, gain=0.7)),
        r"model holds 0\.7 where 0\.5 was compiled in.*compile again, or make it an array",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_arguments(case):
    call, words = INPUTS[case]
    with pytest.raises(etpc.InputError, match=words) as caught:
        call()
    assert isinstance(caught.value, ValueError)


# --- integers of other types than were compiled ---------------------------------------------------


def read(dtype, token, *, jit=False, x64=True):
    """The row of a table of 256 rows that is read by a token, given a dtype that was compiled."""
    with jax.enable_x64(x64):
        table = jnp.arange(256.0)[:, None]
        step = lambda m, x, h: (m[x] + 0 * h, m[x] + 0 * h)
        inputs = jax.ShapeDtypeStruct((), dtype)
        program = etpc.compile(table, inputs=inputs, state=jnp.zeros(1), step=step)
        run = lambda token: program(table, token, program.init())[0]
        (found,) = (jax.jit(run) if jit else run)(token)
        sequence = token if isinstance(token, int) else token[None, None]
        if not isinstance(token, int):
            loss = lambda y, t: y.sum()
            run = lambda tokens: program.value_and_grad(loss)(
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


def test_an_integer_beyond_any_type():
    with pytest.raises(etpc.InputError, match=r"Input x is object, and was compiled as int32"):
        read("int32", 2**70)


def test_floats_for_integers_are_refused():
    with pytest.raises(etpc.InputError, match=r"x is float64, and was compiled as int32. Convert"):
        read("int32", np.array(3.0))


def test_state_in_the_place_of_a_carry():
    with pytest.raises(etpc.InputTypeError, match=r"carry is a dict.*program\.init") as caught:
        compiled().arguments.check_carry({"h": jnp.zeros(3)})
    assert isinstance(caught.value, TypeError)


def test_one_step_is_checked_as_a_sequence_is():
    program = compiled()
    with pytest.raises(etpc.InputError, match=r"Input x has"):
        program(Cell(W), jnp.zeros(3), program.init())


@pytest.mark.parametrize("batch_size", [0, -1, True])
def test_batch_size(batch_size):
    with pytest.raises(etpc.InputError, match=rf"int >= 1, not {batch_size}"):
        compiled().init(batch_size)


@pytest.mark.parametrize("batch_size", [1.5, "2", np.bool_(True)])
def test_batch_size_of_another_type(batch_size):
    init = inspect.unwrap(etpc.Program.init)
    with pytest.raises(etpc.InputError, match=r"batch_size must be None or an int >= 1, not"):
        init(compiled(), batch_size)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, jnp.int32])
def test_integers_of_other_types(kind):
    """They count as ints: what they make is the same, and prints and hashes the same."""
    program, init, memory = (
        compiled(),
        *map(inspect.unwrap, (etpc.Program.init, etpc.Program.memory)),
    )
    assert init(program, kind(2)).fresh.shape == (2,)
    assert str(memory(program, kind(2))) == str(program.memory(2))
    given = recurrent()
    compile_ = inspect.unwrap(etpc.compile)
    sizes = {"memory": kind(200), "batch_size": kind(2)}
    assert str(compile_(**given, **sizes)) == str(etpc.compile(**given))
    with pytest.raises(etpc.MemoryLimitError, match=r"for 4 examples, and memory=200 "):
        compile_(**given, memory=kind(200), batch_size=kind(4))
    arguments = Cell(W), jnp.zeros((4, 2, 2)), jnp.zeros((4, 2, 3)), squared
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


def test_inputs_that_never_fit_keep_their_error():
    with pytest.raises(TypeError, match="dot_general"):
        etpc.compile(Cell(W), inputs=jnp.zeros((5, 7)))


BATCHES = {
    "verify": lambda *given, **more: etpc.verify(*given, **more),
    "compare": lambda *given, **more: etpc.compare(*given, ["d_rtrl", etpc.TBPTT(2)], **more),
    "compare, TBPTT alone": lambda *given, **more: etpc.compare(*given, [etpc.TBPTT(2)], **more),
    "bptt": lambda *given, **more: etpc.bptt(*given, **more),
}


@pytest.mark.parametrize("call", BATCHES.values(), ids=BATCHES)
def test_a_batch_size_that_was_forgotten(call):
    given = Cell(W), jnp.zeros((4, 5, 2)), jnp.zeros((4, 5, 3)), squared
    words = r"xs has shape \[4, 5, 2\], and as batch_size= is not given.*takes \[2\].*batch_size=5"
    with pytest.raises(etpc.InputError, match=words):
        call(*given)
    call(*given, batch_size=5)
    words = (
        r"xs has shape \[4, 2\], and as batch_size=4 is given.*it takes \[2\]\. Leave batch_size"
    )
    with pytest.raises(etpc.InputError, match=words):
        call(Cell(W), jnp.zeros((4, 2)), jnp.zeros((4, 3)), squared, batch_size=4)
    with pytest.raises(TypeError, match="dot_general"):
        call(Cell(W), jnp.zeros((4, 5, 7)), jnp.zeros((4, 5, 3)), squared)


def test_reduction():
    with pytest.raises(etpc.InputError, match='"sum" or "mean", not \'max\''):
        compiled().value_and_grad(squared, "max")
    with pytest.raises(etpc.InputError, match='"sum" or "mean", not \'max\''):
        etpc.bptt(Cell(W), jnp.zeros((2, 2)), jnp.zeros((2, 3)), squared, reduction="max")


def test_input_problems_are_raised_together():
    def step(model, x, h):
        h = 0.5 * h + model["w"] @ x["a"] + x["b"]
        return h, h

    program = etpc.compile(
        {"w": W}, inputs={"a": X, "b": jnp.zeros(3)}, state=jnp.zeros(3), step=step
    )
    xs = {"a": jnp.zeros((4, 5)), "b": jnp.zeros((4, 3), complex)}
    with pytest.raises(etpc.InputError, match=r"(?s)2 problems.*\['a'\].*\['b'\] is complex"):
        program.scan({"w": W}, xs, program.init())
    disagree = {"a": jnp.zeros((4, 2)), "b": jnp.zeros((5, 3))}
    with pytest.raises(etpc.InputError, match=r"disagree about their leading axes"):
        program.scan({"w": W}, disagree, program.init())


def test_verify_with_no_time_axis():
    with pytest.raises(etpc.InputError, match=r"shape \[2\].*begin with T, B"):
        etpc.verify(Cell(W), jnp.zeros(2), jnp.zeros(3), squared, batch_size=3)


def test_not_a_number_passes_through():
    (loss, carry), grads = run(jnp.full((4, 2), jnp.nan))
    assert jnp.isnan(loss)
    assert jnp.isnan(grads.weight).any()
    assert jnp.isnan(carry.state["h"]).all()


def test_a_derivative_through_a_loop_of_unknown_length_is_refused():
    def step(w, x, h):
        h = w * h + x
        h = jax.lax.while_loop(lambda c: c.sum() > 10.0, lambda c: 0.5 * c, h)
        return h, h

    with pytest.raises(etpc.UnsupportedError, match=r"while_loop.*test_errors\.py:\d+") as caught:
        etpc.compile(jnp.ones(3), inputs=jnp.ones(3), state=jnp.ones(3), step=step)
    assert isinstance(caught.value, NotImplementedError)
    assert "stop_gradient" in str(caught.value)


def test_a_model_needs_an_input_that_counts_the_steps():
    with pytest.raises(etpc.ModelError, match=r"inputs= has no array.*jnp\.zeros"):
        etpc.compile(jnp.ones(3), inputs=None, state=jnp.ones(3), step=lambda w, x, h: (h, w * h))


# --- memory ---------------------------------------------------------------------------------------


def recurrent(n=4):
    """Each unit reaches every other; a trace of RTRL holds n numbers for each use of a weight."""

    def step(w, x, h):
        h = jnp.tanh(w @ h + x)
        return h, h

    model = jax.ShapeDtypeStruct((n, n), jnp.float32)
    state = jax.ShapeDtypeStruct((n,), jnp.float32)
    return dict(model=model, step=step, inputs=state, state=state)


def test_a_program_over_the_memory_limit_is_refused():
    size = 4 * 4 * 4 * 4  # uses, block, bytes
    etpc.compile(algo="rtrl", memory=size, **recurrent())
    words = rf"(?s)would take {size} bytes.*memory={size - 1} .*model \(dot_general\): .*auto"
    with pytest.raises(etpc.MemoryLimitError, match=words) as caught:
        etpc.compile(algo="rtrl", memory=size - 1, **recurrent())
    assert isinstance(caught.value, MemoryError)
    with pytest.raises(etpc.MemoryLimitError, match=rf"would take {8 * size:,} bytes for 8 examp"):
        etpc.compile(algo="rtrl", memory=size, batch_size=8, **recurrent())


def test_the_default_limit_refuses_what_no_one_would_want():
    """A trace of 32 GiB, and a pattern of 10^10 entries: neither is formed."""
    with pytest.raises(etpc.MemoryLimitError, match="the default limit of 17,179,869,184"):
        etpc.compile(algo="rtrl", **recurrent(2048))
    etpc.compile(algo="d_rtrl", **recurrent(2048))
    words = r"(?s)influence among hidden states.*entries.*test_errors\.py.*D_RTRL"
    with pytest.raises(etpc.MemoryLimitError, match=words):
        etpc.compile(algo="rtrl", **recurrent(100_000))


def test_auto_that_does_not_fit():
    with pytest.raises(etpc.MemoryLimitError, match=r"smallest traces take \d+ bytes.*memory=10 "):
        etpc.compile(algo="auto", memory=10, **recurrent())


@pytest.mark.parametrize("name", ["memory", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_sizes(name, value):
    with pytest.raises(etpc.InputError, match=f"{name} must be an int >= 1"):
        etpc.compile(**recurrent(), **{name: value})


@pytest.mark.parametrize("n", [0, -2])
def test_steps_of_snap(n):
    with pytest.raises(etpc.AlgorithmError, match=f"n must be at least 1, and is {n}"):
        etpc.SnAp(n)


def test_steps_of_snap_of_a_wrong_type():
    with pytest.raises(etpc.InputTypeError, match="n must be an int >= 1, not True"):
        etpc.SnAp(True)


def test_explain_of_no_parameter():
    with pytest.raises(etpc.SelectionError, match=r"no parameter '\.w'. Its parameters: \.weight"):
        compiled().explain(".w")
