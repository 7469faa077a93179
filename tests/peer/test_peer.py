"""The gradients of etpc beside those of braintrace, on the same networks, weights and data, in float64.

Three comparisons hang together here. The peer and etpc are each compared with the definition of a rule, and with each
other. Where the peer's own gradient is known to be off, the test asserts what etpc gives
and only prints what the peer gives (`pytest -rP`).
"""

import dataclasses
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("braintrace")

import brainstate
import braintrace

import etpc
from tests.helpers import loss_of_sequence
from tests.peer import networks, peers
from tests.peer.networks import Model, Weights

pytestmark = [
    pytest.mark.peer,
    # The peer says this of every weight that it leaves out.
    pytest.mark.filterwarnings("ignore:ETP primitive etp_m[mv] :UserWarning"),
    # And this of SnAp, which then is RTRL within each group of states.
    pytest.mark.filterwarnings("ignore:The SnAp-n position analysis :UserWarning"),
]

T, B, DECAY = 12, 3, 0.9
CUT, FULL = etpc.D_RTRL(window=1), etpc.D_RTRL(window=1, backprop="full")
SMOOTHED = etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=5)
LOSSES = {
    "squared": lambda y, target: 0.5 * jnp.sum((y - target) ** 2),
    "entropy": lambda y, target: -jnp.sum(jax.nn.softmax(target) * jax.nn.log_softmax(y)),
}

# No state reads another's new value but through a weight: the peer's gradient is that of the paper.
AGREEING = (networks.ALIF, networks.RNN, networks.Gated, networks.LearnedLeak)
# A state reads another's new value: the peer counts the path twice in its default mode.
CASCADED = (networks.Conductance, networks.Cascade, networks.LSTM)
# The hidden state is moved between neurons or normalised: the peer's Jacobian is off in every mode.
MIXED = (networks.Permuted, networks.MeanFree)
# Nothing escapes a trace: D-RTRL equals BPTT.
EXACT = (networks.LearnedLeak, networks.Cascade, *MIXED)
# Between them these have element-wise weights, two states per neuron, spikes and rates.
SOME = (networks.ALIF, networks.RNN, networks.LearnedLeak)


def by_network(cases):
    return pytest.mark.parametrize("network", cases, ids=lambda network: network.__name__)


def by_network_and_batch(cases):
    """Each network with a batch in one graph; some also with one sequence, and with a batch that is mapped over."""
    pairs = [(network, "batch") for network in cases]
    pairs += [(network, batch) for network in SOME for batch in ("one", "vmap")]
    ids = [f"{network.__name__}-{batch}" for network, batch in pairs]
    return pytest.mark.parametrize(("network", "batch"), pairs, ids=ids)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with weights and data: "one" sequence, a "batch", or a batch that the peer is to "vmap"."""

    network: type[Model]
    batch: str = "batch"
    loss: str = "squared"
    seed: int = 0

    @ft.cached_property
    def weights(self) -> Weights:
        return networks.random_weights(self.network, self.seed)

    @ft.cached_property
    def model(self) -> Model:
        return self.network(**{name: jnp.asarray(w) for name, w in self.weights.items()})

    @ft.cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, leading axis T, then B."""
        rng = np.random.default_rng(self.seed + 1)
        lead = (T,) if self.batch == "one" else (T, B)
        y, _ = jax.eval_shape(self.model, jnp.zeros(networks.N_IN), self.model.init_state())
        return rng.standard_normal((*lead, networks.N_IN)), rng.standard_normal((*lead, y.size))

    def run(self) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Outputs and states of a batch, leading axes B and T."""

        def sequence(xs):
            def step(state, x):
                y, state = self.model(x, state)
                return state, (y, state)

            return jax.lax.scan(step, self.model.init_state(), xs)[1]

        return jax.vmap(sequence, in_axes=1)(self.data[0])


def by_name(grads: Model) -> Weights:
    """Gradients of a model's structure, by weight name."""
    return {name: np.asarray(value) for name, value in vars(grads).items()}


@ft.cache
def expected(case: Case, rule: etpc.algorithms.Algorithm) -> Weights:
    """The gradient by the definition of a rule."""
    batch_size = None if case.batch == "one" else B
    loss = LOSSES[case.loss]
    sequence = case.model, *map(jnp.asarray, case.data)
    return by_name(etpc.reference(*sequence, loss, rule, batch_size=batch_size, reduction="sum")[1])


@ft.cache
def bptt(case: Case, stop: bool = False) -> Weights:
    """The gradient of a batch; with `stop` that of each step alone, which a parameter without a trace gets."""

    def total(model, xs, targets):
        return loss_of_sequence(
            model, xs, targets, model.init_state(), loss=LOSSES[case.loss], stop=stop
        )

    of_batch = jax.vmap(jax.grad(total), in_axes=(None, 1, 1))
    return by_name(jax.tree.map(lambda g: g.mean(0), jax.jit(of_batch)(case.model, *case.data)))


@ft.cache
def peer(
    case: Case, algo="d_rtrl", vjp_method="single-step", decay=None, n=None, plain=False
) -> Weights:
    return peers.peer_gradient(
        case.network,
        case.weights,
        *case.data,
        algo,
        decay,
        vjp_method,
        loss=LOSSES[case.loss],
        vmap=case.batch == "vmap",
        n=n,
        plain=plain,
    )


def ours(case: Case, algo, **options) -> Weights:
    xs, targets = map(jnp.asarray, case.data)
    one, batch_size = (xs[0], None) if case.batch == "one" else (xs[0, 0], B)
    program = etpc.compile(case.model, algo, inputs=one, **options)
    gradient = eqx.filter_jit(program.value_and_grad(LOSSES[case.loss], reduction="sum"))
    _, grads = gradient(case.model, xs, targets, program.init(batch_size=batch_size))
    return by_name(grads)


def differences(got: Weights, wanted: Weights) -> dict[str, float]:
    """Relative difference of each weight's gradient; the wanted ones must be alive."""
    found = {}
    for name, value in wanted.items():
        norm = np.linalg.norm(value)
        assert np.isfinite(norm), f"gradient of {name} is not finite"
        assert norm > 1e-3, f"gradient of {name} is dead"
        found[name] = float(np.linalg.norm(got[name] - value) / norm)
    return found


def assert_same(got: Weights, wanted: Weights, names=None, tolerance=1e-9) -> None:
    names = wanted.keys() if names is None else names
    off = differences(got, {name: wanted[name] for name in names})
    assert max(off.values()) < tolerance, off


def products(case: Case) -> list[str]:
    """The weights that multiply data as matrices; the others are element-wise."""
    return [name for name, w in case.weights.items() if w.ndim == 2]


def record_peer(case: Case, wanted: Weights, **options) -> None:
    """Print the peer's gradient as a factor of the wanted one (least squares) and its error; `pytest -rP` shows it."""
    got = peer(case, **options)
    error = differences(got, wanted)
    for name, value in wanted.items():
        factor = np.vdot(got[name], value) / np.vdot(value, value)
        print(f"braintrace {name}: factor {factor:.4f}, relative error {error[name]:.1e}")


# --- the networks are alive, and the same ----------------------------------------------------------------------------


@by_network((*AGREEING, *CASCADED, *MIXED, networks.Vanilla, networks.GRU))
def test_networks_are_alive_and_the_same_for_both(network):
    case = Case(network)
    ys, states = case.run()
    for name, values in states.items():
        assert np.std(values) > 0.1, f"state {name} hardly moves"
    if "v" in states:
        assert 0.02 < np.mean(states["v"] > 1.0) < 0.8, "silent, or always firing"

    with jax.numpy_rank_promotion("allow"):
        twin = peers.PeerModel(network, case.weights)
        brainstate.nn.init_all_states(twin, batch_size=B)
        twin_ys = brainstate.transform.for_loop(twin.update, jnp.asarray(case.data[0]))
    np.testing.assert_allclose(jnp.swapaxes(twin_ys, 0, 1), ys, rtol=1e-12, atol=1e-12)


# --- both against the definition ------------------------------------------------------------------------------------


@by_network_and_batch(AGREEING)
def test_d_rtrl_in_single_step_mode(network, batch):
    case = Case(network, batch)
    wanted = expected(case, CUT)
    assert_same(peer(case), wanted)
    for window in (1, 5):
        assert_same(ours(case, etpc.D_RTRL(window=window, backprop="cut")), wanted)


@by_network_and_batch((*AGREEING, *CASCADED, networks.GRU))
def test_d_rtrl_in_multi_step_mode(network, batch):
    """The peer's is D-RTRL with exact windows of one step."""
    case = Case(network, batch)
    wanted = expected(case, FULL)
    assert_same(peer(case, vjp_method="multi-step"), wanted)
    assert_same(ours(case, FULL), wanted)


@by_network_and_batch(AGREEING)
def test_es_d_rtrl(network, batch):
    """Of all matrices, leaky readouts too. Element-wise weights aside: the peer smooths their trace too, etpc keeps the
    trace of D-RTRL for them."""
    case = Case(network, batch)
    wanted, whole = expected(case, SMOOTHED), expected(case, CUT)
    found = ours(case, SMOOTHED)
    theirs = peer(case, "es_d_rtrl", decay=DECAY)
    assert_same(theirs, wanted, products(case))
    assert_same(found, theirs, products(case), 5e-14)
    elementwise = case.weights.keys() - set(products(case))
    if elementwise:
        assert_same(found, whole, elementwise)


@by_network((networks.ALIF, networks.Gated))
def test_a_leaky_readout_is_that_of_d_rtrl_where_factors_save_nothing(network):
    case, w_out = Case(network), ["w_out"]
    whole, es = expected(case, CUT), etpc.ES_D_RTRL(decay=DECAY, window=5)
    assert_same(ours(case, es), whole, w_out)
    theirs = peer(case, "es_d_rtrl", decay=DECAY)
    assert differences(theirs, {"w_out": whole["w_out"]})["w_out"] > 0.1


def test_es_d_rtrl_without_memory_of_its_own():
    """As published, inputs of before are added to those of the step, also where no later step reads a trace."""
    case = Case(networks.Vanilla)
    theirs, whole = peer(case, "es_d_rtrl", decay=DECAY), expected(case, CUT)
    assert_same(theirs, expected(case, SMOOTHED), ["w_in", "w_rec"])
    published = SMOOTHED
    assert_same(ours(case, published), theirs, tolerance=5e-14)
    assert_same(ours(case, etpc.ES_D_RTRL(decay=DECAY, window=5)), whole)
    off = differences(theirs, {name: whole[name] for name in ("w_in", "w_rec")})
    assert min(off.values()) > 0.3
    print(f"braintrace, relative difference: {off}")


@by_network((networks.LearnedLeak, networks.GRU, networks.Vanilla))
def test_snap_where_all_states_are_one_group_of_the_peer(network):
    case = Case(network)
    for n in (1, 2):
        wanted = ours(case, etpc.SnAp(n))
        wanted.pop(
            "w_reset", None
        )  # which acts through another weight: the peer gives it exactly zero
        assert_same(peer(case, braintrace.SnAp, n=n), wanted)


def test_snap_between_groups_of_the_peer():
    """The peer follows nothing from one group to the next, here the memory of the readout, whatever n is."""
    case = Case(networks.RNN)
    exact = bptt(case)
    assert_same(ours(case, etpc.SnAp(2)), exact)
    record_peer(case, exact, algo=braintrace.SnAp, n=8)


@by_network((networks.ALIF, networks.RNN))
def test_e_prop_with_symmetric_feedback_is_d_rtrl(network):
    case = Case(network)
    assert_same(peer(case, "eprop"), ours(case, etpc.D_RTRL()))


def test_a_third_factor_is_a_mask():
    """It takes the place of the derivative by each state, and is not averaged over the batch."""
    case, modulator = Case(networks.LearnedLeak), np.random.default_rng(3).standard_normal(T)
    loss, (xs, targets) = LOSSES["squared"], case.data
    data = (case.network, case.weights, xs, targets, "three_factor")
    theirs = peers.peer_gradient(*data, loss=loss, modulator=modulator)

    def states(model, x, state):
        state = model(x, state)[1]
        return state["v"], state

    program = etpc.compile(case.model, inputs=xs[0, 0], step=states)
    mask = jnp.broadcast_to(B * modulator[:, None], (T, B))
    gradient = program.value_and_grad(lambda v, _: v.sum(), "sum")
    _, grads = gradient(case.model, jnp.asarray(xs), None, program.init(B), mask=mask)
    assert_same(theirs, by_name(grads))


@by_network((networks.ALIF, networks.RNN, networks.Gated))
def test_the_rules_differ_on_recurrent_networks(network):
    """Controls: agreement below is no accident of networks on which all rules are one."""
    case = Case(network)
    rules = {
        "bptt": bptt(case),
        "cut": expected(case, CUT),
        "full": expected(case, FULL),
        "smoothed": expected(case, SMOOTHED),
        "smoothed more": expected(case, dataclasses.replace(SMOOTHED, decay=0.5)),
    }
    recurrent = "w_cand" if network is networks.Gated else "w_rec"
    for a in rules:
        for b in rules:
            if a < b:
                off = differences(rules[a], {recurrent: rules[b][recurrent]})
                assert off[recurrent] > 1e-3, (a, b)


@by_network((networks.ALIF, networks.RNN))
def test_agreement_with_another_loss_and_other_weights(network):
    case = Case(network, loss="entropy", seed=1)
    assert_same(ours(case, etpc.D_RTRL(window=5)), peer(case))
    assert_same(ours(case, FULL), peer(case, vjp_method="multi-step"))
    es = ours(case, etpc.ES_D_RTRL(decay=0.5, everywhere=True, window=5))
    assert_same(es, peer(case, "es_d_rtrl", decay=0.5), products(case), 5e-14)


# --- where the peer's gradient is off --------------------------------------------------------------------------------


@by_network(EXACT)
def test_d_rtrl_is_bptt_where_nothing_escapes(network):
    case = Case(network)
    exact = bptt(case)
    for backprop in ("cut", "full"):
        for window in (1, 5):
            assert_same(ours(case, etpc.D_RTRL(window=window, backprop=backprop)), exact)
    record_peer(case, exact)


@by_network(CASCADED)
def test_a_state_that_reads_another_s_new_value_counts_once(network):
    """The peer's factor is 2 for the LSTM's w_i, w_g and w_f, and 3 for the cascade."""
    case = Case(network)
    wanted = expected(case, CUT)
    assert_same(ours(case, etpc.D_RTRL(window=5)), wanted)
    es = ours(case, SMOOTHED)
    assert_same(es, expected(case, SMOOTHED))
    record_peer(case, wanted)


def test_a_readout_that_no_state_follows_learns():
    """The peer gives it exactly zero in its default mode."""
    case = Case(networks.GRU)
    exact, truncated = bptt(case), expected(case, CUT)
    for algo in (etpc.D_RTRL(window=5), etpc.ES_D_RTRL(decay=DECAY, window=5)):
        assert_same(ours(case, algo), exact, ["w_out"])
    assert_same(ours(case, etpc.D_RTRL(window=5)), truncated, ["w_gate", "w_cand"])
    record_peer(case, {"w_out": exact["w_out"]})


def test_a_gate_that_acts_through_another_weight_learns():
    """A GRU's reset gate has no trace: it gets the gradient of each step. The peer gives it exactly zero."""
    case = Case(networks.GRU)
    wanted = {"w_reset": bptt(case, stop=True)["w_reset"]}
    assert_same(ours(case, etpc.D_RTRL(window=5)), wanted)
    record_peer(case, wanted)


def test_a_plain_weight_learns():
    """A weight used outside the peer's operations gets exactly zero there. In etpc it needs no operation of its own."""
    case = Case(networks.LearnedLeak)
    exact, immediate = bptt(case), bptt(case, stop=True)
    assert_same(ours(case, etpc.D_RTRL(window=5)), exact)
    chosen = ours(case, etpc.D_RTRL(window=5), weights=lambda model: model.w_in)
    assert_same(chosen, exact, ["w_in"])
    assert_same(chosen, immediate, ["leak", "threshold"])
    assert min(differences(immediate, {k: exact[k] for k in ("leak", "threshold")}).values()) > 1e-3

    record_peer(case, exact, plain=True)


@by_network(MIXED)
def test_hidden_states_that_mix_neurons_are_exact(network):
    """The peer takes column sums of the Jacobian for its diagonal, in either mode."""
    case = Case(network)
    exact = bptt(case)
    assert_same(ours(case, etpc.D_RTRL(window=5, backprop="full")), exact)
    record_peer(case, exact, vjp_method="multi-step")
