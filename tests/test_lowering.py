"""Programs for a platform that is not there: what is lowered, and what it is planned by."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from etpc import nn
from etpc.plan import DEFAULT
from etpc.schedule import target_of
from tests.helpers import loss
from tests.marks import few

RULES = [
    etpc.D_RTRL(window=2),
    etpc.D_RTRL(window=2, backprop="full"),
    etpc.ES_D_RTRL(decay=0.9, window=2),
    etpc.ES_D_RTRL(rank=2, window=2),
    etpc.CreditRTRL(2, 2, window=2),
    etpc.D_RTRL(window=2, lookback=4),
    etpc.SnAp(1, window=1),
    etpc.RTRL(window=2),
]
CELL = nn.Sequential([eqx.nn.LSTMCell(2, 3, key=jax.random.key(0))])
DATA = jnp.zeros((5, 4, 2)), jnp.zeros((5, 4, 3))


def lowered(program, platform, model=CELL, data=DATA):
    run = jax.jit(program.value_and_grad(loss))
    traced = run.trace(model, *data, program.init(data[0].shape[1]))
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_program_lowers_for_an_accelerator(rule, platform):
    """XLA does not compile it here: what is shown is that no operation is asked for that the platform lacks."""
    program = etpc.compile(CELL, rule, inputs=jnp.zeros(2), target=platform)
    run = program.value_and_grad(loss)
    carry = program.init(4)
    exported = jax.export.export(jax.jit(run), platforms=(platform,))(CELL, *DATA, carry)
    assert exported.platforms == (platform,)
    assert len(exported.out_avals) == len(jax.tree.leaves(jax.eval_shape(run, CELL, *DATA, carry)))


@pytest.mark.parametrize("rule", few(RULES, RULES[0], RULES[2]), ids=str)
def test_nothing_is_asked_of_the_machine_that_compiles(rule, monkeypatch):
    """The same program where JAX's default platform is a TPU, and where it is a CPU of one device or of eight."""
    given = etpc.compile(CELL, rule, inputs=jnp.zeros(2), target="tpu")
    text = lowered(given, "tpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr("jax.export.default_export_platform", lambda: "tpu")
    default = etpc.compile(CELL, rule, inputs=jnp.zeros(2))
    assert str(default.ir) == str(given.ir)
    assert lowered(default, "tpu") == text
    assert lowered(given, "tpu") == text


@pytest.mark.slow
def test_a_program_for_a_tpu_has_no_pieces():
    """A layer whose traces of two states are cut into pieces on a CPU."""
    step = lambda w, x, s: (h := jnp.tanh(w @ x + 0.5 * s[0] - 0.1 * s[1]), (h, 0.9 * s[1] + h))
    model, data = jnp.zeros((512, 64)), (jnp.zeros((4, 32, 64)), jnp.zeros((4, 32, 512)))
    options = dict(inputs=jnp.zeros(64), state=(jnp.zeros(512),) * 2, step=step)
    texts = {}
    for platform in ("cpu", "tpu"):
        program = etpc.compile(model, **options, target=platform)
        texts[platform] = lowered(program, "tpu", model, data)
        assert ("in pieces" in str(program.ir)) == (platform == "cpu")
    loops = {platform: text.count("stablehlo.while") for platform, text in texts.items()}
    assert loops["tpu"] < loops["cpu"]


def learner(**options):
    model = {"w": jnp.ones((3, 2)), "r": 0.1 * jnp.ones((3, 3))}
    step = lambda m, x, h: (h := jnp.tanh(m["w"] @ x + m["r"] @ h),) * 2
    options = dict(inputs=jnp.zeros(2), state=jnp.zeros(3), step=step) | options
    program = etpc.compile(model, etpc.D_RTRL(), **options)
    return etpc.online(program, loss, optax.sgd(0.1), every=2), model


def exported(platforms, **options):
    one, model = learner(**options)
    data = jnp.ones((2, 4, 2)), jnp.ones((2, 4, 3))
    return one.export(model, *one.init(model, 4), *data, platforms=platforms)


def test_an_export_is_planned_for_its_platform():
    cases = (("tpu",), "cpu"), (("tpu",), "tpu"), (("tpu", "cuda"), None), (("tpu", "cuda"), "cuda")
    # One line, as modules say where they come from.
    code = [exported(to, target=target).modules["update.mlirbc"] for to, target in cases]
    assert code[0] == code[1]
    assert code[2] == code[3]
    with pytest.raises(
        etpc.InputError, match=r"by the passes scans, schedule, unroll\. Export once for each"
    ):
        exported(("cpu", "tpu"))
    of_target = "schedule", "unroll", "states_apart", "scans"
    plain = tuple(p.name for p in DEFAULT if p.name not in of_target)
    assert exported(("cpu", "tpu"), passes=plain).manifest["platforms"] == ["cpu", "tpu"]


def test_an_export_for_this_platform_is_what_runs_here():
    one, model = learner()
    data = jnp.ones((2, 4, 2)), jnp.ones((2, 4, 3))
    start = one.init(model, 4)
    _, losses = (file := exported(("cpu",))).update(file.state, *data)
    _, _, _, wanted = one.update(model, *start, *data)
    np.testing.assert_allclose(losses, wanted, rtol=1e-12)


def test_what_is_no_target():
    compiled = lambda target: etpc.compile(CELL, inputs=jnp.zeros(2), target=target)
    with pytest.raises(etpc.InputError, match=r"no platform 'gpu'\. Did you mean \"cuda\""):
        compiled("gpu")
    with pytest.raises(etpc.InputError, match="tpu"):
        compiled("tpuu")
    with pytest.raises(etpc.InputTypeError, match=r"etpc\.Target"):
        target_of(3)
    with pytest.raises(etpc.InputError, match="precision= is one of"):
        etpc.Target("tpu", precision="low")


def test_less_precision_is_said_and_nothing_is_claimed_exact():
    given = lambda **options: etpc.compile(
        CELL, etpc.RTRL(), inputs=jnp.zeros(2), target=etpc.Target(**options)
    )
    exact = given(platform="tpu")
    assert exact.exact
    assert "HIGHEST" in lowered(exact, "tpu")
    rounded = given(platform="tpu", precision="default")
    assert not rounded.exact
    assert "HIGHEST" not in lowered(rounded, "tpu")
    for claim in rounded.claims.values():
        assert claim.claim == "approximate"
        assert {*claim.left_out} == {
            'products of traces and credit are rounded by precision="default" on tpu'
        }
    assert "products at precision default" in str(rounded.ir)
    assert 'rounded by precision="default" on tpu' in str(rounded)
    assert given(platform="cpu", precision="default").exact


def test_the_products_of_the_model_keep_their_precision():
    """Forward, the products have what the model gives them; those of its derivatives are products of credit."""
    step = lambda w, x, h: (h := jnp.tanh(w @ h + x),) * 2
    options = dict(inputs=jnp.zeros(3), state=jnp.zeros(3), step=step, target="tpu")
    for rule in (etpc.D_RTRL(), etpc.D_RTRL(backprop="full")):
        program = etpc.compile(jnp.ones((3, 3)), rule, **options)
        arguments = jnp.ones((3, 3)), jnp.zeros((4, 3)), program.init()
        forward = str(jax.make_jaxpr(program.predict)(*arguments[:2], jnp.zeros(3)))
        assert "dot_general" in forward
        assert "HIGHEST" not in forward
        run = program.value_and_grad(lambda y, t: jnp.sum((y - t) ** 2))
        given = arguments[0], arguments[1], arguments[1], arguments[2]
        products = str(jax.make_jaxpr(run)(*given)).split("dot_general[")[1:]
        highest = ["HIGHEST" in p.split("preferred_element_type")[0] for p in products]
        assert 0 < sum(highest) < len(highest)
