"""e-prop in NEST itself, beside `examples/published/eprop.py` and `eprop_online.py`.

The losses that NEST's tests ask for are compared in `tests/test_published.py`; here NEST runs on the same weights and
inputs, by its Python interface. With an update for each sequence, the weights after some of them are compared; with one
at each step, the losses.
"""

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("nest")

import nest

from examples.published import eprop, eprop_online

pytestmark = pytest.mark.peer

UPDATES = 2


def connect(pre, post, model: str, among: str = "all_to_all", **more) -> None:
    how = {"rule": among} | ({"allow_autapses": False} if among == "all_to_all" else {})
    nest.Connect(pre, post, how, dict(synapse_model=model, delay=1.0, **more))


def inputs(xs: np.ndarray):
    """Neurons that fire as [T, I] says."""
    times = [{"spike_times": 1.0 + np.flatnonzero(x)} for x in xs.T]
    source = nest.Create("spike_generator", len(times), times)
    relay = nest.Create("parrot_neuron", len(times))
    connect(source, relay, "static_synapse", "one_to_one")
    return relay


def simulated(
    setting: eprop.Setting,
    weights: Sequence[np.ndarray],
    xs: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    loss: str,
    last: int,
    batch_size: int,
    optimizer: dict,
    on_arrival: bool,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The weights into neurons, among them and to the readout, and which neurons fire in the last sequence.

    Sequences are [T, I] and [T, O]. NEST moves a weight by a sequence when its source fires in a later one.
    """
    steps, (w_in, w_rec, w_out, feedback) = setting.steps, map(np.array, weights)
    np.fill_diagonal(w_rec, 0)
    nest.ResetKernel()
    nest.set(
        resolution=1.0,
        total_num_virtual_procs=1,
        eprop_update_interval=float(steps),
        eprop_learning_window=float(last),
        eprop_reset_neurons_on_update=True,
    )
    cell = dict(C_m=1.0, E_L=0.0, V_m=0.0, I_e=0.0, tau_m=setting.tau)
    spiking = dict(
        **cell,
        V_th=setting.threshold,
        t_ref=float(setting.refractory),
        c_reg=setting.rate_cost,
        f_target=1000 * setting.target_rate,
        regular_spike_arrival=on_arrival,
        surrogate_gradient_function="piecewise_linear",
        surrogate_gradient_height=0.3 / setting.threshold,
        surrogate_gradient_width=setting.threshold,
        flush_event_send_interval=float(steps),
    )
    adaptive = sum(a > 0 for a in setting.adaptation)
    neurons = nest.Create("eprop_iaf_bsshslm_2020", len(w_in) - adaptive, spiking)
    if adaptive:
        slow = dict(adapt_tau=setting.tau_adaptation, adapt_beta=max(setting.adaptation))
        neurons += nest.Create("eprop_iaf_adapt_bsshslm_2020", adaptive, spiking | slow)
    readout = nest.Create(
        "eprop_readout_bsshslm_2020",
        len(w_out),
        dict(**cell, loss=loss, regular_spike_arrival=False),
    )
    relay = inputs(np.concatenate(xs))
    wanted = np.concatenate(targets).astype(float)
    at = 4.0 + np.arange(len(wanted))  # after what comes before the readout
    rates = [dict(amplitude_times=at, amplitude_values=values) for values in wanted.T]
    teacher = nest.Create("step_rate_generator", len(rates), rates)
    rule = "eprop_synapse_bsshslm_2020"
    optimizer = dict(**optimizer, batch_size=batch_size, Wmin=-100.0, Wmax=100.0)
    nest.SetDefaults(rule, dict(average_gradient=last < steps, optimizer=optimizer))

    plastic = [(relay, neurons, w_in), (neurons, neurons, w_rec), (neurons, readout, w_out)]
    for pre, post, w in plastic:
        connect(pre, post, rule, tau_m_readout=setting.tau, weight=w.astype(float))
    back = "eprop_learning_signal_connection_bsshslm_2020"
    connect(readout, neurons, back, weight=feedback.T.astype(float))
    rate = "rate_connection_delayed"
    connect(teacher, readout, rate, "one_to_one", receptor_type=2)
    if loss == "cross_entropy":
        connect(readout, readout, rate, receptor_type=1, weight=1.0)
    recorder = nest.Create("spike_recorder")
    connect(neurons, recorder, "static_synapse")
    nest.Simulate(float(len(wanted) - 50))
    found = []
    for pre, post, w in plastic:
        links = nest.GetConnections(pre, post, rule)
        now = np.zeros(w.shape)
        places = [
            np.asarray(links.get(end)) - min(nodes.tolist())
            for end, nodes in (("target", post), ("source", pre))
        ]
        now[tuple(places)] = links.get("weight")
        found.append(now)
    events = recorder.get("events")
    late = events["senders"][events["times"] > len(wanted) - steps + 10]
    return found, np.unique(late) - min(neurons.tolist())


def compare(
    found: Sequence[np.ndarray],
    fired: np.ndarray,
    model: eprop.Network,
    before: Sequence[np.ndarray],
    tolerance: float,
) -> None:
    """All weights of inputs are equal, and those of neurons that have fired since the update."""
    assert len(fired) > 0.8 * len(model.w_rec)
    w_rec, start = np.array(model.w_rec), np.array(before[1])
    np.fill_diagonal(w_rec, 0)
    np.fill_diagonal(start, 0)
    ours = [model.w_in, w_rec[:, fired], model.w_out[:, fired]]
    theirs = [found[0], found[1][:, fired], found[2][:, fired]]
    starts = [before[0], start[:, fired], before[2][:, fired]]
    for a, b, first in zip(ours, theirs, starts, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance)
        assert np.abs(b - first).max() > 1e-3


def without_first_spikes(given: np.ndarray) -> np.ndarray:
    """No input fires in the first two steps: NEST counts one that does so to the sequence before."""
    return np.where(np.arange(len(given)).reshape(-1, *[1] * (given.ndim - 1)) < 2, 0, given)


def test_the_weights_of_pattern_generation(monkeypatch):
    weights, x, target = eprop.pattern()
    x = without_first_spikes(x)
    monkeypatch.setattr(eprop, "pattern", lambda: (weights, x, target))
    found, fired = simulated(
        eprop.PATTERN,
        weights,
        [x] * (UPDATES + 1),
        [target[:, None]] * (UPDATES + 1),
        loss="mean_squared_error",
        last=eprop.PATTERN.steps,
        batch_size=1,
        optimizer=dict(type="gradient_descent", eta=1e-4),
        on_arrival=False,
    )
    compare(found, fired, eprop.pattern_generation(UPDATES)[1], weights, 1e-14)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_weights_of_evidence_accumulation(batch_size, monkeypatch):
    weights, batches = eprop.evidence(batch_size)
    batches = [(without_first_spikes(xs), labels) for xs, labels in batches]
    monkeypatch.setattr(eprop, "evidence", lambda batch_size: (weights, batches))
    xs = [xs[:, b] for xs, _ in batches for b in range(batch_size)]
    targets = [np.eye(2)[labels[:, b]] for _, labels in batches for b in range(batch_size)]
    found, fired = simulated(
        eprop.EVIDENCE,
        weights,
        xs + xs[:batch_size],
        targets + targets[:batch_size],
        loss="cross_entropy",
        last=eprop.RECALL,
        batch_size=batch_size,
        optimizer=dict(type="adam", eta=5e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-8),
        on_arrival=True,
    )
    compare(found, fired, eprop.evidence_accumulation(batch_size)[1], weights, 1e-12)


# --- with an update at each step ---


def losses_of_nest(neuron: eprop_online.Neuron, cutoff: float) -> np.ndarray:
    """`cutoff`: so many steps after a spike its synapses stop to learn, until the next one."""
    E, (weights, x) = eprop_online, eprop_online.drawn(neuron)
    w_in, w_rec, w_out, feedback = map(np.array, weights)
    np.fill_diagonal(w_rec, 0)
    nest.ResetKernel()
    nest.set(resolution=1.0, total_num_virtual_procs=1)
    cell = dict(C_m=1.0, E_L=0.0, I_e=0.0, tau_m=30.0, V_m=0.0, eprop_isi_trace_cutoff=cutoff)
    shape = dict(
        surrogate_gradient_function="piecewise_linear",
        surrogate_gradient_height=0.3 / E.WIDTH,
        surrogate_gradient_width=E.WIDTH,
    )
    rule = dict(kappa=E.KEPT, kappa_reg=E.KEPT, c_reg=neuron.rate_cost, f_target=1000 * E.RATE)
    spiking = dict(**cell, **shape, **rule, V_th=neuron.threshold, t_ref=0.0)
    kind = "eprop_iaf"
    if neuron.reset is not None:
        kind, spiking["V_reset"] = kind + "_psc_delta", neuron.reset
    if neuron.adaptation:
        kind += "_adapt"
        spiking |= dict(adapt_beta=neuron.adaptation, adapt_tau=neuron.tau_adaptation)
    neurons = nest.Create(kind, E.UNITS, spiking | dict(flush_event_send_interval=float(E.STEPS)))
    readout = nest.Create("eprop_readout", 1, cell)
    relay = inputs(x)
    learns = nest.Create("step_rate_generator", 1)
    learns.set(dict(amplitude_times=[2.0], amplitude_values=[1.0]))
    record = dict(interval=1.0, record_from=["readout_signal"], start=2.0, stop=2.0 + len(x))
    recorder = nest.Create("multimeter", params=record)
    optimizer = dict(type="gradient_descent", eta=E.LEARNING_RATE, optimize_each_step=True)
    if neuron.adam:
        optimizer |= dict(type="adam", beta_1=0.9, beta_2=0.999, epsilon=1e-7)
    nest.SetDefaults("eprop_synapse", dict(optimizer=dict(**optimizer, Wmin=-100.0, Wmax=100.0)))

    for pre, post, w in (
        (relay, neurons, w_in),
        (neurons, neurons, w_rec),
        (neurons, readout, w_out),
    ):
        connect(pre, post, "eprop_synapse", weight=w.astype(float))
    back = feedback.T.astype(float)
    connect(readout, neurons, "eprop_learning_signal_connection", weight=back)
    connect(learns, readout, "rate_connection_delayed", receptor_type=1)
    connect(recorder, readout, "static_synapse")
    nest.Simulate(len(x) + 5.0)
    y = recorder.get("events")["readout_signal"]
    return 0.5 * (y.reshape(E.ROUNDS, E.STEPS) ** 2).sum(1)


@pytest.mark.parametrize("name", eprop_online.NEURONS)
def test_the_losses_with_updates_at_each_step(name):
    """They are what NEST's tests ask for with its cutoff, and ours without."""
    neuron, published = eprop_online.NEURONS[name], eprop_online.PUBLISHED[name]
    np.testing.assert_allclose(losses_of_nest(neuron, 100.0), published, rtol=0, atol=2e-14)
    np.testing.assert_allclose(losses_of_nest(neuron, 1e5), eprop_online.losses(neuron), rtol=1e-13)
