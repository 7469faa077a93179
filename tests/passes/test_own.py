"""Passes of other authors: how they are given, what they may change, and the check of one."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import etpc
from etpc.forms import Trace
from etpc.ir import Change, terms_of
from etpc.plan import DEFAULT, Pass, chosen
from etpc.testing import check_pass
from tests.helpers import distance, loss, normal
from tests.passes.test_passes import (
    BATCH,
    NETWORKS,
    RULES,
    compiled,
    data,
    plain,
    results,
)


def in_dtype(dtype, only=""):
    """A pass that carries traces in another dtype."""

    def run(program):
        found = {
            node: dataclasses.replace(node, dtype=jnp.dtype(dtype))
            for node in program.traces
            if node.op.path.startswith(only)
        }
        changes = [
            Change("narrow", old.op.path, f"in {new.dtype}", old.bytes - new.bytes)
            for old, new in found.items()
        ]
        return program.replaced(found).noted(*changes)

    return Pass("narrow", "traces in another dtype", run)


def checked(pass_, network, rule, **options):
    model, state, step = NETWORKS[network]
    return check_pass(
        *(pass_, model, *data(), loss, RULES[rule]),
        **dict(state=state, step=step, batch_size=BATCH, **options),
    )


NARROW = [
    ("GRU", "windows"),
    ("GRU", "decay"),
    ("GRU", "full windows"),
    ("GRU", "look-back"),
    ("GRU", "rank"),
    ("adaptive", "steps"),
    ("spiking", "decay, steps"),
    ("matrix", "whole"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "rule"), NARROW)
def test_traces_in_another_dtype_change_no_more_than_its_rounding(network, rule):
    report = checked(in_dtype("float32"), network, rule, tolerance=1e-5)
    whole = compiled(network, rule, ())
    assert 2 * report.bytes == sum(node.bytes for node in whole.ir.traces)


@pytest.mark.slow
@pytest.mark.parametrize(("network", "rule"), NARROW)
def test_their_carry_has_that_dtype_after_all_other_passes_too(network, rule):
    program = compiled(network, rule, (*DEFAULT, in_dtype("float32")))
    carry, run = program.init(BATCH), program.value_and_grad(loss)
    (_, after), _ = run(NETWORKS[network][0], *data(), carry)
    assert distance(results(program, network), plain(network, rule)) < 1e-5
    for array in jax.tree.leaves((carry.traces, after.traces)):
        assert array.dtype in (jnp.float32, jnp.complex64)  # two states as one number


@pytest.mark.slow
def test_a_layer_alone_may_be_in_half_precision():
    narrow = in_dtype("float16", ".weight_hh")
    checked(narrow, "GRU", "windows", tolerance=1e-2)
    program = compiled("GRU", "windows", (narrow,))
    dtypes = {node.op.path: node.dtype.name for node in program.ir.traces}
    assert dtypes == dict.fromkeys(dtypes, "float64") | {".weight_hh": "float16"}
    assert "Full float16[18 x 1]" in str(program.ir)
    assert str(program.passes).startswith("narrow: traces in another dtype")


def test_a_trace_that_is_rounded_is_not_exact():
    """Under rules that are exact there, and beside what a form leaves out."""
    claims = lambda rule, *passes: compiled("adaptive", rule, passes).claims.values()
    assert all(c.claim == "exact" for c in claims("windows"))
    for claim in claims("windows", in_dtype("float32")):
        assert claim.claim == "approximate"
        assert {*claim.left_out} == {"carried in float32, and so rounded after each window"}
    texts = [t for c in claims("rank", in_dtype("float16")) for t in c.left_out]
    assert all(t.endswith("carried in float16, and so rounded after each window") for t in texts)


def of_step(program):
    """A program without traces, which is valid and has other gradients."""
    terms = {op: terms_of(op, None, "step") for op in program.grads}
    return dataclasses.replace(program, traces=(), grads=terms, step_grads=terms)


def test_a_pass_that_changes_a_gradient_is_found():
    with pytest.raises(AssertionError, match="more than rounding") as info:
        checked(Pass("of step", "no traces", of_step), "GRU", "windows")
    text = str(info.value)
    assert "  the gradient of .weight_hh, in windows: by " in text
    assert "the gradient of .weight_hh, step by step: by " in text
    assert "the state" not in text
    with pytest.raises(AssertionError, match=r"\(1e-09\)"):
        checked(in_dtype("float32"), "GRU", "windows")


@pytest.mark.slow
def test_a_pass_is_checked_beside_the_default_ones_too():
    """A pass that finds something there alone, and takes it for what it is not."""

    def after(program):
        return (
            of_step(program).noted(Change("late", "", "no traces")) if program.changes else program
        )

    with pytest.raises(AssertionError, match="'late', after the default passes, changes more"):
        checked(Pass("late", "no traces", after), "GRU", "windows")

    def same(program):
        return program.noted(Change("late", "", "nothing")) if program.changes else program

    assert (
        str(checked(Pass("late", "x", same), "GRU", "windows")) == "late: x\n  the program: nothing"
    )
    idle = Pass("idle", "nothing", lambda program: program)
    assert str(checked(idle, "GRU", "windows")) == "nothing to do: idle"


@dataclasses.dataclass(frozen=True)
class Same(Trace):
    """Another form, without what only some forms can do."""

    inner: Trace
    times: float = 1.0
    exact = True

    def init(self, site, batch):
        return self.inner.init(site, batch)

    def follow(self, site, factors, carry):
        return self.inner.follow(site, factors, carry)

    def read(self, site, signals, path, carry):
        return self.inner.read(site, signals, path, carry)

    def past(self, site, start, carry):
        return self.inner.past(site, self.times * start, carry)

    def move(self, site, passage, path, carry, start):
        return self.inner.move(site, passage, path, carry, start)


def in_form(form):
    """A pass that puts another form in the place of each."""

    def run(program):
        new = {n: dataclasses.replace(n, form=form(n.form)) for n in program.traces}
        changes = [Change("other", n.op.path, "another form") for n in new]
        return program.replaced(new).noted(*changes)

    return Pass("other", "another form", run)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["steps", "decay", "decay, steps"])
def test_a_form_that_a_pass_puts_there_is_asked_for_what_it_has_alone(rule):
    other = in_form(Same)
    assert checked(other, "GRU", rule).changes
    want = plain("GRU", rule)
    assert distance(results(compiled("GRU", rule, (other, *DEFAULT)), "GRU"), want) < 1e-11
    method = "first_data" if "decay" in rule else "read_end"
    with pytest.raises(etpc.AlgorithmError, match=f"'other' made (.*\n)*.*Same has no `{method}`"):
        compiled("GRU", rule, (*DEFAULT, other))


def test_a_form_that_a_pass_puts_there_is_checked():
    class Unsaid(Trace):
        exact = False
        init = past = move = lambda self, site, batch, *_: ()

    with pytest.raises(
        etpc.AlgorithmError, match=r"form of trace Unsaid(.*\n)*.*`left_out` does not"
    ):
        compiled("GRU", "windows", (in_form(lambda _: Unsaid()),))


def test_a_learner_names_the_pass_that_may_be_wrong():
    step = lambda w, x, v: ((v := 0.9 * v + w @ x), v)
    w, xs, targets = normal(3, 2), normal(12, 2, seed=1), normal(12, 3, seed=2)
    options = dict(inputs=xs[0], state=jnp.zeros(3), step=step)
    program = etpc.compile(w, **options, passes=(in_form(lambda form: Same(form, 2.0)),))
    learner = etpc.online(program, loss, optax.sgd(0.1), every=2)
    words = (
        r"a form of its traces or a pass, such as 'other', is wrong, .*`passes=\(\)`.*check_pass"
    )
    with pytest.raises(etpc.VerificationError, match=words):
        learner.check(w, learner.init(w)[1], xs, targets)


def test_a_name_of_a_pass_of_ones_own_is_answered_with_how_it_is_given():
    with pytest.raises(
        etpc.InputError, match=r"'mine'.* given itself, as .*\(\"read_after\", mine\)"
    ):
        chosen(("mine",))


def test_a_pass_that_makes_no_program_is_refused():
    for run, words in [
        (lambda program: None, "The pass 'broken' returned None"),
        (
            lambda program: dataclasses.replace(program, traces=()),
            "broken' made .* that is not one",
        ),
    ]:
        with pytest.raises(etpc.AlgorithmError, match=words):
            compiled("GRU", "windows", (Pass("broken", "", run),))


def test_passes_run_in_the_order_in_which_they_are_given():
    mine = Pass("mine", "nothing", lambda program: program)
    names = lambda *passes: [p.name for p in chosen(passes)]
    default = [p.name for p in DEFAULT]
    assert names(mine) == ["mine"]
    assert names(*DEFAULT, mine) == [*default, "mine"]
    assert names(mine, *DEFAULT) == ["mine", *default]
    assert names("filtered", mine, "read_after", "filtered") == ["filtered", "mine", "read_after"]
    assert names("read_after", "filtered") == ["filtered", "read_after"]
    assert [p.name for p in chosen({"read_after", "filtered"})] == ["filtered", "read_after"]
    with pytest.raises(etpc.InputTypeError, match="run in the order given"):
        chosen({mine, "filtered"})


def test_a_pass_that_breaks_what_default_ones_made_is_told():
    """It is no matter of the order: no other place would mend it."""

    def none(program):
        lacking = dict.fromkeys(program.grads, ())
        return dataclasses.replace(program, step_grads=lacking) if program.changes else program

    with pytest.raises(etpc.AlgorithmError, match=r"'x \* direct' is missing"):
        checked(Pass("none", "no terms", none), "GRU", "windows")


@pytest.mark.slow
def test_a_pass_that_others_may_not_follow_is_checked_where_it_may_be():
    """Before the default passes it would be refused, as one that it names runs after it."""
    mine = Pass("mine", "nothing", lambda program: program, after=("filtered", "read_after"))
    assert str(checked(mine, "GRU", "windows")) == "nothing to do: mine"


@pytest.mark.slow
def test_the_pass_of_the_example_takes_half_of_the_memory():
    """Also of two states that another pass carries as one complex number."""
    from examples import narrow

    with jax.enable_x64(False):
        for model in narrow.models().values():
            passes = (*DEFAULT, narrow.narrow())
            whole, size, _ = narrow.gradients(model, etpc.D_RTRL(), None)
            rounded, fewer, _ = narrow.gradients(model, etpc.D_RTRL(), passes)
            assert 2 * fewer == size
            assert 1e-6 < narrow.error(rounded, whole) < 1e-3
