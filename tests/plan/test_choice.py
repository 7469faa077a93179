"""Mistakes of the authors of rules and of forms of traces: errors that name the class, what it gave and what to do."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc.algorithms import Algorithm, Choice, Full
from etpc.forms import Trace, zeros
from etpc.rules import CreditSubspace, Presynaptic
from tests.helpers import loss, normal

pytestmark = pytest.mark.usefixtures("without_type_checks")

B, I, N = 2, 3, 4
W, XS = normal(N, I), normal(2, B, I, seed=1)


def step(w, x, v):
    v = 0.8 * v + w @ x
    return jnp.sin(v), v


def rule(**own):
    """A rule with some attributes and methods of its own."""
    return dataclasses.dataclass(frozen=True)(type("Mine", (Algorithm,), own))


def gives(form, **settings):
    return rule(trace_form=lambda self, kind: form)(**{"window": 2, **settings})


GIVEN = ("left_out", "init", "follow", "read", "past", "move")
METHODS = {"decay": 0.8, **{name: getattr(Presynaptic, name) for name in GIVEN}}


def form(without=(), **own):
    """`Presynaptic` with some attributes and methods of its own, and without others."""
    methods = {"exact": False, **METHODS, **own}
    return type("Own", (Trace,), {n: m for n, m in methods.items() if n not in without})()


def chooses(choose, **settings):
    made = lambda self, context: choose({op.number: Full() for op in context.ops})
    return rule(choose=made)(**settings)


MISTAKES = {
    "a word for a form": (lambda: gives("full"), r"Mine\.trace_form gives 'full' for model"),
    "the class of a form": (lambda: gives(Full), r"Full'> for model, .*Call it: Full\(\.\.\.\)"),
    "forms for a choice": (lambda: chooses(dict), r"Mine\.choose returned \{0: Full\("),
    "no form": (lambda: chooses(lambda forms: Choice({})), "gives no form for model.*`number`"),
    "a word for an extension": (
        lambda: chooses(lambda f: Choice(f, extension=CreditSubspace), backprop="full"),
        r"Mine\.choose gives .*CreditSubspace'> as an extension, which is no `etpc\.forms\.Ext",
    ),
    "an extension in windows that are cut": (
        lambda: chooses(lambda forms: Choice(forms, extension=CreditSubspace(1))),
        'Set backprop="full"',
    ),
    "reach of no step": (rule(cut=False, reach=0), "reach must be None or an int >= 1, not 0"),
    "a word for cut": (rule(cut="no"), "cut must be True or False, not 'no'"),
    "a form that settles for none": (
        lambda: gives(form(settle=lambda self, site: None)),
        r"Own\.settle returned None for model",
    ),
    "no `exact`": (lambda: gives(form(without=["exact"])), "not say whether it is exact"),
    "a word for exact": (lambda: gives(form(exact="no")), "not say whether it is exact"),
    "no `left_out`": (lambda: gives(form(left_out="")), "`left_out` does not say"),
    "no `init`": (lambda: gives(form(without=["init"])), "no `init`"),
    "nothing moves it": (
        lambda: gives(form(without=["move", "past"])),
        r"(?s)1\. It has no `move`.*2\. It has no `past`",
    ),
    "nothing reads it": (lambda: gives(form(without=["past"])), "no `past`, so that nothing"),
    "a carry without a batch axis": (
        lambda: gives(form(init=lambda self, site, batch: zeros(1, [(I,)], site.dtype))),
        r"`init` returns \(f64\[1,3\],\) for 2 examples",
    ),
    "a carry of one array": (
        lambda: gives(form(init=lambda self, site, batch: jnp.zeros((batch, I)))),
        r"`init` returns f64\[2,3\] .*tuple",
    ),
    "a carry of another shape": (
        lambda: gives(form(move=lambda self, *args: (Presynaptic.move(self, *args)[0][:, :1],))),
        r"Own\.move returned \(f64\[2,1\],\) for the trace of model.* `init`, \(f64\[2,3\],\)",
    ),
    "a carry of another dtype": (
        lambda: gives(form(move=lambda self, *args: [args[3][0].astype("float32")])),
        r"Own\.move returned \[f32\[2,3\]\].* `init`, \(f64\[2,3\],\)",
    ),
    "credit alone": (
        lambda: gives(form(read=lambda self, *args: Presynaptic.read(self, *args)[0])),
        r"Own\.read returned f64\[2,2,4\] .*\[2, 2, 4\], and that of the carry",
    ),
    "credit in another order": (
        lambda: gives(
            form(read=lambda self, *args: tuple(a.T for a in Presynaptic.read(self, *args)))
        ),
        r"Own\.read returned \(f64\[4,2,2\], f64\[4,2\]\)",
    ),
    "signals of steps where nothing is cut": (
        lambda: gives(form(), backprop="full"),
        r"Own\.read asks for the learning signals .* model\. .*`signals\.at_start`",
    ),
    "credit of steps where nothing is cut": (
        lambda: gives(form(read=lambda self, *args: (args[2], args[2])), backprop="full"),
        r"Own\.read returned \(\(\), \(\)\)",
    ),
    "a row that is no list": (
        lambda: gives(form(past=lambda self, *args: Presynaptic.past(self, *args)[0])),
        r"Own\.past returned \(f64\[1,2,3\], f64\[1,2,4\]\).* list of pairs",
    ),
    "rows without an axis": (
        lambda: gives(form(past=lambda self, site, start, carry: [(carry[0], start)])),
        r"Own\.past returned \[\(f64\[2,3\], f64\[2,4\]\)\].*\[n, B, 1, 3\].*\[n, B, 4\]",
    ),
    "a gradient of another shape": (
        lambda: gives(form(past=lambda self, site, start, carry: carry[0])),
        r"Own\.past returned f64\[2,3\] .* or the gradient of the weight, \[4, 3\]",
    ),
    "a gradient of another shape at the end": (
        lambda: gives(form(read_end=lambda self, site, credit, carry: carry[0]), window=1),
        r"Own\.read_end returned f64\[2,3\] .* the gradient of the weight, \[4, 3\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name):
    """In the first window at the latest: none of these takes a second one to be found."""
    make, words = MISTAKES[name]
    with pytest.raises(etpc.AlgorithmError, match=words):
        run_one_window(make())


def run_one_window(algo):
    program = etpc.compile(W, algo, inputs=XS[0, 0], state=jnp.zeros(N), step=step)
    run = program.value_and_grad(loss)
    jax.eval_shape(lambda carry: run(W, XS, jnp.zeros((2, B, N)), carry), program.init(B))


def test_what_is_registered_is_a_rule_with_a_name():
    for value in (etpc.D_RTRL(), Full):
        with pytest.raises(etpc.InputTypeError, match="A subclass of Algorithm is registered"):
            etpc.algorithms.register_algorithm(value)
    with pytest.raises(etpc.AlgorithmError, match="Mine has no `name`"):
        etpc.algorithms.register_algorithm(rule())
