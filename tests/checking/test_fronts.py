"""What all that take a sequence take alike, `bptt`, `verify`, `compare`, `check`, `suggest` and `reference`."""

import json
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.checking.test_verify import Spiking, leaky
from tests.helpers import by_path, distance, mean_loss, normal, weights
from tests.helpers import loss as squared
from tests.marks import few, first
from tests.test_initial_state import model as learned

T, B = 24, 3


class RunningMean(eqx.Module):
    """Subtracts a running mean of its own outputs, which is in an `eqx.nn.State`, and through which influence lasts."""

    weight: jax.Array
    mean: eqx.nn.StateIndex
    count: eqx.nn.StateIndex

    def __init__(self, weight):
        self.weight = weight
        self.mean = eqx.nn.StateIndex(jnp.zeros(len(weight)))
        self.count = eqx.nn.StateIndex(jnp.zeros((), jnp.int32))

    def __call__(self, x, state):
        current = self.weight @ x
        mean = 0.9 * state.get(self.mean) + 0.1 * current
        state = state.set(self.mean, mean)
        state = state.set(self.count, state.get(self.count) + 1)
        return jnp.tanh(current - mean), state


def moded(w, x, state):
    h = jnp.tanh(0.5 * state["h"] + w @ x)
    return h, {"h": h, "mode": state["mode"]}


def rotating(w, x, h):
    h = w["turn"] * h + w["into"] @ x
    return jnp.concatenate([h.real, h.imag]), h


RUNNING = eqx.nn.make_with_state(RunningMean)(weights(2, 3))
COMPLEX = {
    "turn": jnp.asarray([0.5 + 0.4j, 0.7j]),
    "into": weights(2, 3) + 1j * weights(2, 3, seed=1),
}
LATE = np.ones((T, B)) * (np.arange(T) > 18)[:, None]
SEQUENCES = {
    # a model, its number of outputs, and options
    "one example": (leaky(), 2, dict(batch_size=None)),
    "a batch": (leaky(), 2, {}),
    "a loss that counts late": (leaky(), 2, dict(mask=LATE)),
    "a sum": (leaky(), 2, dict(reduction="sum")),
    "aux": (leaky(), 2, dict(has_aux=True)),
    "an initial state that is learned": (learned(inputs=3), 4, {}),
    "a state of Equinox": (RUNNING[0], 2, dict(state=RUNNING[1])),
    "a state with a leaf that is no array": (
        *(weights(4, 3), 4),
        dict(state={"h": jnp.zeros(4), "mode": "sum"}, step=moded),
    ),
    "complex parameters": (COMPLEX, 4, dict(state=jnp.zeros(2, complex), step=rotating)),
    "float32": (jax.tree.map(jnp.float32, leaky()), 2, dict(state=jnp.zeros(4, jnp.float32))),
}


def sequence_of(name):
    model, outputs, options = SEQUENCES[name]
    options = dict(batch_size=B) | options
    xs, targets = normal(T, B, 3, seed=1), normal(T, B, outputs, seed=2)
    if options["batch_size"] is None:
        xs, targets = xs[:, 0], targets[:, 0]
    if "mask" in options:
        targets = targets.at[:19].set(jnp.nan)
    if name == "float32":
        xs, targets = xs.astype(jnp.float32), targets.astype(jnp.float32)
    loss = (lambda y, t: (squared(y, t), {"y": y})) if "has_aux" in options else squared
    return (model, xs, targets, loss), options


def check(*sequence, **options):
    gradient = lambda *given: etpc.bptt(*given, sequence[3], **options)[1]
    return etpc.check(gradient, *sequence, rules=["d_rtrl"], **options)


FRONTS = {
    "bptt": etpc.bptt,
    "verify": lambda *sequence, **options: etpc.verify(*sequence, "rtrl", **options),
    "compare": lambda *sequence, **options: etpc.compare(
        *sequence, ["rtrl", etpc.TBPTT(5)], **options
    ),
    "check": check,
    "suggest": lambda *sequence, **options: etpc.suggest(*sequence, budget=1e-9, **options),
    "reference": etpc.reference,
}
SCHEMAS = dict.fromkeys(("verify", "compare"), "etpc-comparison/1")
SCHEMAS |= {"check": "etpc-check/1", "suggest": "etpc-suggestion/1"}
PAIRS = [
    (name, front)
    for name, (_, _, options) in SEQUENCES.items()
    for front in FRONTS
    if not ({"reduction", "has_aux"} & options.keys() and front in ("check", "suggest"))
    and not ("has_aux" in options and front == "reference")
]


@pytest.mark.parametrize(("name", "front"), few(PAIRS, ("a batch", "verify")))
def test_sequences(name, front):
    """Each finds the gradient of BPTT, of which the rule that it compares here claims nothing else."""
    (model, xs, targets, loss), options = sequence_of(name)
    value, grads = etpc.bptt(model, xs, targets, loss, **options)
    value = value[0] if "has_aux" in options else value
    norms = {path: np.linalg.norm(g) for path, g in by_path(grads).items()}
    exact = 1e-3 if name == "float32" else 1e-9
    assert min(norms.values()) > 1e-3
    found = FRONTS[front](model, xs, targets, loss, **options)
    if front == "bptt":
        if not {"mask", "reduction", "has_aux"} & options.keys():  # those are tested in test_loss
            lead = (a if options["batch_size"] else a[:, None] for a in (xs, targets))
            called = {"step": options["step"]} if "step" in options else {}
            wanted = eqx.filter_grad(mean_loss)(model, *lead, options.get("state"), **called)
            assert distance(grads, wanted) < exact
    elif front == "reference":
        assert all(np.isfinite(g).all() for g in by_path(found[1]).values())
        assert float(found[0]) == pytest.approx(float(value), rel=exact)
    else:
        record = found.as_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["schema"] == SCHEMAS[front]
    if front in ("verify", "compare"):
        assert found.ok, str(found)
        assert found.loss == pytest.approx(float(value), rel=exact)
        first, *others = found.results
        assert {row.path: row.norm for row in first.rows} == pytest.approx(norms, rel=exact)
        assert all(row.held for row in first.rows)
        assert all(result.total.error > 1e-3 for result in others)
    if front == "check":
        assert found.exact, str(found)
        assert {row.path for row in found.rows} == norms.keys()
        assert found.as_dict()["equals"] == "BPTT"
        assert all(value == pytest.approx(1.0) for value in found.by_lag.values())
    if front == "suggest":
        assert [row.name for row in found.rows] == ["BPTT", "D_RTRL()"]
        assert found.rows[1].cosine == pytest.approx(1.0, abs=0.3)
    state = options.get("state")
    assert not any(a.is_deleted() for a in jax.tree.leaves(state) if isinstance(a, jax.Array))


GIVEN = dict(
    model=leaky(), xs=normal(4, 5, 3), targets=normal(4, 5, 2), loss_fn=squared, batch_size=5
)
BAD = {
    "no batch size": (
        dict(batch_size=None),
        r"xs has shape \[4, 5, 3\], and as batch_size= is not given.*takes \[3\].*batch_size=5",
    ),
    "a batch size for one example": (
        dict(xs=normal(4, 3), targets=normal(4, 2), batch_size=4),
        r"xs has shape \[4, 3\], and as batch_size=4 is given.*it takes \[3\]\. Leave batch_size",
    ),
    "another batch size": (
        dict(batch_size=3),
        r"xs has a leaf of shape \[4, 5, 3\]; it should begin with T, B = \[4, 3\].*batch_size",
    ),
    "targets of another length": (
        dict(targets=normal(3, 5, 2)),
        r"targets has a leaf of shape \[3, 5, 2\]; it should begin with T, B = \[4, 5\]",
    ),
    "no steps": (dict(xs=normal(0, 5, 3), targets=normal(0, 5, 2)), r"no steps \(T = 0\)"),
    "no batch axis": (dict(xs=normal(3), targets=normal(3)), r"shape \[3\].*begin with T, B"),
    "data that is no array": (dict(xs="abc"), r"xs holds a str, 'abc'.*arrays"),
    "no data": (dict(xs=None), r"xs has no array\. Pass an array with"),
    "a mask of strings": (
        dict(mask=np.full((4, 5), "a")),
        r"mask is <U1, and should be booleans or real numbers",
    ),
    "a state of strings": (dict(state={"h": "zero"}), r"state holds a str, 'zero'"),
    "a `step=` that is no function": (
        dict(step="forward"),
        r"step must be a function `step\(model, x, state\).*not 'forward'",
    ),
    "a model without an initial state": (
        dict(model={"w": jnp.ones(3)}, step=lambda m, x, s: (s, s)),
        r"no initial state: a dict has no `init_state\(\)`.*Pass `state=`",
    ),
    "a model that cannot be called": (
        dict(model={"w": jnp.ones(3)}, state=jnp.zeros(3)),
        r"A dict is not callable.*Pass `step=",
    ),
    "a step that returns three things": (
        dict(step=lambda m, x, s: (s, s, s)),
        r"must return a pair `\(y, new_state\)`, and returned a tuple of 3",
    ),
    "inputs that fit in no way": (dict(xs=normal(4, 5, 7)), "dot_general"),
    "a reduction": (dict(reduction="max"), '"sum" or "mean", not \'max\''),
    "a loss that is no float": (dict(loss_fn=lambda y, t: 1), "one float"),
    "a batch size that is no number": (
        dict(batch_size="5"),
        "batch_size must be an int >= 1, not '5'",
    ),
}
NOT_SAID = {("a reduction", "check"), ("a reduction", "suggest")}
NOT_SAID |= {("a loss that is no float", "reference")}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("name", "front"), [(n, f) for n in BAD for f in FRONTS if (n, f) not in NOT_SAID]
)
def test_bad_input(name, front):
    changes, words = BAD[name]
    options = GIVEN | changes
    sequence = [options.pop(argument) for argument in ("model", "xs", "targets", "loss_fn")]
    with pytest.raises((etpc.EtpcError, TypeError), match=words):
        FRONTS[front](*sequence, **options)


ZERO = eqx.tree_at(lambda m: m.out, leaky(), jnp.zeros((2, 4)))
BROKEN = eqx.tree_at(lambda m: m.win, leaky(), leaky().win.at[1, 2].set(jnp.nan))
XS, TARGETS = (a.at[2, 0].set(jnp.nan) for a in (normal(T, 2, 3, seed=1), normal(T, 2, 2, seed=2)))
MASK = np.ones((T, 2))
MASK[2, 0] = 0
DOUBTS = {
    # a model, what is changed, and what is said: of the zeros, and of what is not finite, which the mask leaves out
    "silent": (Spiking(scale=1e-3), {}, "no spike on this sequence: the layer is silent"),
    "zero": (ZERO, {}, "gradient of .win is zero on this sequence, so nothing is compared"),
    "model": (BROKEN, {}, "NaN or infinity is in .win[1, 2]"),
    "state": (
        leaky(),
        dict(state=jnp.zeros(4).at[3].set(jnp.nan)),
        "NaN or infinity is in state[0, 3]",
    ),
    "xs": (leaky(), dict(xs=XS.at[5, 1, 2].set(jnp.nan)), "NaN or infinity is in xs[5, 1, 2]"),
    "targets": (leaky(), dict(targets=TARGETS.at[0, 1, 1].set(jnp.nan)), "is in targets[0, 1, 1]"),
    "loss": (
        *(leaky(), dict(loss_fn=lambda y, t: squared(y, t) * jnp.inf)),
        "it comes from the step or the loss; `jax.config.update('jax_debug_nans', True)`",
    ),
}


@pytest.mark.parametrize("front", first(["verify", "compare", "check", "a learner"]))
@pytest.mark.parametrize("name", few(DOUBTS, "zero", "xs"))
def test_what_cannot_be_compared_is_said_and_no_claim_is_blamed(name, front):
    model, changes, said = DOUBTS[name]
    given = dict(xs=XS, targets=TARGETS, loss_fn=squared, mask=MASK, batch_size=2) | changes
    if front == "a learner":
        if name == "state":
            return  # each example of its carry has its own
        program = etpc.compile(model, inputs=jnp.zeros(3))
        learner = etpc.online(program, given["loss_fn"], optax.sgd(0.1), every=2)
        data = given["xs"], given["targets"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            notes = learner.check(model, learner.init(model, 2)[1], *data, mask=given["mask"])
        assert {w.category for w in caught} <= {etpc.UncheckedWarning, etpc.SilentNetworkWarning}
        assert any(said.partition(":")[0] in str(w.message) for w in caught)
        assert len(notes) >= len(caught) > 0
        return
    sequence = model, *(given.pop(argument) for argument in ("xs", "targets", "loss_fn"))
    if front == "check":
        found = etpc.check(lambda model, *_: model, *sequence, rules=["d_rtrl"], **given)
        assert not found.exact
        assert any(said in note for note in found.notes)
        return
    call = etpc.verify if front == "verify" else etpc.compare
    found = call(*sequence, *([["d_rtrl"]] if front == "compare" else []), **given)
    assert found.vacuous
    assert not found.ok
    assert "NOT ok: the comparison is vacuous in part" in str(found)
    assert any(said in note for note in found.notes)
    assert " NO" not in str(found).replace("NOT", "")
    rows = {row.path: row for row in found.results[0].rows}
    if name in ("silent", "zero"):
        zero, held = (".out.weight", ".out.bias") if name == "silent" else (".win", ".out")
        assert any(f"gradient of {zero} is zero" in note for note in found.notes)
        assert (rows[zero].norm, rows[zero].held, rows[held].held) == (0, None, True)
    else:
        assert len(found.notes) == 1
        assert rows[".win"].held is found.results[0].total.held is None
