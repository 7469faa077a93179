"""On a TPU, whole traces have the outputs of a layer along the last axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc.forms import Full
from tests.helpers import alive, distance, loss, normal
from tests.schedule.test_accelerator import two_states

PASS = ("outputs_last",)


def leaky(m, x, h):
    """One state for each unit."""
    h = 0.5 * h + jnp.tanh(m["w"] @ x + m["r"] @ h)
    return jnp.sum(m["out"] * h)[None], h


MODEL = {"w": normal(4, 3), "r": 0.3 * normal(4, 4, seed=1), "out": normal(4, seed=2)}
XS, TARGETS = normal(6, 3, 3, seed=3), normal(6, 3, 1, seed=4)
ZEROS = jnp.zeros(4)
CELLS = [(leaky, ZEROS), (two_states, (ZEROS, ZEROS))]


def compiled(step, state, rule, passes, target="tpu"):
    options = dict(inputs=XS[0, 0], state=state, step=step, target=target)
    return etpc.compile(MODEL, rule, passes=passes, **options)


def twice(program, model, of_loss=loss):
    """Gradients from a fresh carry and from the one after it, and what is carried then, as it is shown."""
    run = program.value_and_grad(of_loss, "sum")
    (_, carry), first = run(model, XS, TARGETS, program.init(3))
    (_, carry), later = run(model, XS, TARGETS, carry)
    nodes = zip(program.ir.traces, carry.traces, strict=True)
    shown = [jax.vmap(lambda c, n=n: n.form.shown(n.site, c))(own) for n, own in nodes]
    return first, later, carry.state, shown


@pytest.mark.parametrize("others", [(), ("states_apart",), ("pair_states",), ("read_after",)])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize(("step", "state"), CELLS)
def test_the_order_of_axes_changes_no_number(step, state, window, others):
    rule = etpc.D_RTRL(window=window)
    programs = [compiled(step, state, rule, passes) for passes in ((), (*others, *PASS))]
    shapes = {a.shape[-2:] for own in programs[1].init(3).traces for a in own}
    assert (3, 4) in shapes
    found = [twice(program, MODEL) for program in programs]
    assert alive(found[0][1])
    assert distance(*found) < 1e-11


def test_what_is_shown_has_the_order_of_the_weight():
    program = compiled(*CELLS[1], etpc.D_RTRL(window=1), None)
    (node, *_), (own, *_) = program.ir.traces, program.init().traces
    assert node.form == Full(apart=True, outputs_last=True)
    kind = node.site.kind
    assert {a.shape for a in own} == {(kind.inputs, 4)}
    assert node.form.shown(node.site, own)["trace"].shape == (2, 4, kind.inputs)


def test_a_carry_of_another_order_is_refused():
    """Where a layer has as many inputs as outputs, no shape says which order it is."""
    square = lambda w, x, h: (h := 0.5 * h + jnp.tanh(w @ x),) * 2
    weight = normal(3, 3)
    of = dict(inputs=XS[0, 0], state=jnp.zeros(3), step=square)
    on_tpu, on_gpu = (etpc.compile(weight, etpc.D_RTRL(), target=t, **of) for t in ("tpu", "cuda"))
    shapes = [jax.tree.map(np.shape, p.init(2).traces) for p in (on_tpu, on_gpu)]
    assert shapes[0] == shapes[1]
    with pytest.raises(etpc.InputError, match="carry"):
        on_tpu.value_and_grad(loss)(weight, XS, normal(6, 3, 3), on_gpu.init(3))


def test_complex_weights_of_holomorphic_states():
    """Their trace is that of a whole one with complex numbers."""
    model = etpc.nn.Sequential([etpc.nn.LRU(3, 4, 5, key=jax.random.key(0))])
    found = []
    for passes in (("holomorphic",), ("holomorphic", *PASS), None):
        program = etpc.compile(
            *(model, etpc.D_RTRL(window=1)), inputs=XS[0, 0], passes=passes, target="tpu"
        )
        found.append(twice(program, model, lambda y, target: loss(y[:1], target)))
    assert alive(found[0][1])
    turned = [getattr(node.form, "inner", Full()).outputs_last for node in program.ir.traces]
    assert any(turned)
    assert distance(*found[:2]) < 1e-11
    assert distance(found[0][:3], found[2][:3]) < 1e-11


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_other_targets_keep_the_order_of_the_weight(platform):
    program = compiled(*CELLS[0], etpc.D_RTRL(window=1), None, platform)
    assert all(not getattr(node.form, "outputs_last", False) for node in program.ir.traces)


def test_a_weight_with_its_outputs_last_stays_as_it_is():
    step = lambda w, x, h: (h := 0.5 * h + jnp.tanh(x @ w),) * 2
    of = dict(inputs=XS[0, 0], state=ZEROS, step=step, target="tpu")
    program = etpc.compile(normal(3, 4), etpc.D_RTRL(window=1), passes=PASS, **of)
    assert [node.form for node in program.ir.traces] == [Full()]
