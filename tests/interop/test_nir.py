"""NIR graphs as models: its equations, cycles, errors, round trips and what other libraries make of a file."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("nir")

import copy
import dataclasses
import inspect
import itertools

import nir

import etpc
from etpc import interop, nn
from tests.interop.nir_reference import Reference

pytestmark = pytest.mark.third_party

DT, N, T = 2e-3, 5, 40
rng = np.random.default_rng(0)
METHODS = ("exact", "euler")


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    """Starts the random numbers again, so that no test depends on which others ran before it."""
    global rng
    rng = np.random.default_rng(0)


def between(low, high, shape=(N,)):
    """A parameter that is another one for each neuron."""
    return rng.uniform(low, high, shape)


def neuron(kind, shape=(N,)):
    """A neuron, or layer of them, whose parameters all matter."""
    draw = lambda low, high: between(low, high, shape)
    leaky = {"r": draw(1, 3), "v_leak": draw(-0.2, 0.2)}
    spiking = {"v_threshold": draw(0.5, 1.0), "v_reset": draw(-0.3, 0.1)}
    times = {"tau_syn": draw(3e-3, 1e-2), "tau_mem": draw(5e-3, 2e-2), "w_in": draw(0.5, 2)}
    return {
        "I": lambda: nir.I(r=draw(20, 60)),
        "IF": lambda: nir.IF(r=draw(100, 200), **spiking),
        "LI": lambda: nir.LI(tau=draw(5e-3, 2e-2), **leaky),
        "LIF": lambda: nir.LIF(tau=draw(5e-3, 2e-2), **leaky, **spiking),
        "CubaLI": lambda: nir.CubaLI(**times, **leaky),
        "CubaLIF": lambda: nir.CubaLIF(**times, **leaky, **spiking),
    }[kind]()


def chain(*nodes, shape=(N,), type_check=True, **named):
    """A graph of nodes one after another: of these, `node_0` and so on, and then of those with a name."""
    several = {"input": nir.Input(np.array(shape))}
    several |= {f"node_{n}": node for n, node in enumerate(nodes)} | named
    several |= {"output": nir.Output(None)}
    return nir.NIRGraph(several, list(itertools.pairwise(several)), type_check=type_check)


def order_of(graph):
    """Its nodes as they are written, with the output at the end."""
    return sorted(graph.nodes, key=lambda name: isinstance(graph.nodes[name], nir.Output))


def run(model, xs):
    """The outputs of a model."""
    state, ys = model.init_state(), []
    step = jax.jit(lambda x, s: model(x, s))
    for x in xs:
        y, state = step(jnp.asarray(x), state)
        ys.append(np.asarray(y))
    return np.stack(ys)


def agrees(graph, xs, method="exact"):
    """The outputs of a graph, whose nodes are in order, after they were found to be those of the reference."""
    ys = run(interop.from_nir(graph, dt=DT, method=method), xs)
    reference = Reference(graph, DT, method, order_of(graph))
    wanted = np.stack([reference.step(x) for x in xs])
    np.testing.assert_allclose(ys, wanted, rtol=1e-10, atol=1e-12)
    assert np.any(ys != 0)
    return ys


# --- the nodes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["I", "IF", "LI", "LIF", "CubaLI", "CubaLIF"])
def test_neurons_are_those_of_the_equations(kind, method):
    ys = agrees(chain(neuron(kind)), 1.5 * rng.normal(size=(T, N)) + 0.5, method)
    if kind.endswith("IF"):
        assert 0.05 < ys.mean() < 0.95


def test_methods_differ():
    graph = chain(neuron("LI"))
    xs = rng.normal(size=(T, N))
    exact, euler = (run(interop.from_nir(graph, dt=DT, method=m), xs) for m in METHODS)
    assert np.abs(exact - euler).max() > 1e-3


def test_equal_time_constants():
    """The closed form of a current-based neuron divides by the difference of the two."""
    tau = np.full(N, 5e-3)
    almost = tau * (1 + 1e-9)
    one = np.ones(N)
    for tau_syn in (tau, almost):
        graph = chain(nir.CubaLI(tau_syn=tau_syn, tau_mem=tau, r=one, v_leak=0 * one))
        agrees(graph, rng.normal(size=(T, N)))
        model = interop.from_nir(graph, dt=DT)
        report = etpc.verify(
            model,
            rng.normal(size=(T, N)),
            np.ones(T),
            lambda y, t: jnp.sum((y - t) ** 2),
            weights="all",
        )
        assert report.ok, report


STATELESS = {
    "Affine": ((4,), lambda: nir.Affine(rng.normal(size=(N, 4)), rng.normal(size=N))),
    "Linear": ((4,), lambda: nir.Linear(rng.normal(size=(N, 4)))),
    "Scale": ((4,), lambda: nir.Scale(rng.normal(size=4))),
    "Threshold": ((4,), lambda: nir.Threshold(rng.normal(size=4))),
    "Flatten": ((2, 3, 2), lambda: nir.Flatten(np.array([2, 3, 2]), start_dim=0)),
    "Flatten of some": ((2, 3, 4), lambda: nir.Flatten(np.array([2, 3, 4]), start_dim=1)),
    "SumPool2d": (
        (2, 6, 5),
        lambda: nir.SumPool2d(np.array([2, 3]), np.array([2, 1]), np.array([1, 0])),
    ),
    "AvgPool2d": (
        (2, 6, 5),
        lambda: nir.AvgPool2d(np.array([2, 2]), np.array([1, 2]), np.array([0, 1])),
    ),
    "Conv1d": (
        (4, 9),
        lambda: nir.Conv1d(9, rng.normal(size=(6, 2, 3)), 2, 1, 2, 2, rng.normal(size=6)),
    ),
    "Conv1d, same": (
        (2, 7),
        lambda: nir.Conv1d(7, rng.normal(size=(3, 2, 4)), 1, "same", 1, 1, rng.normal(size=3)),
    ),
    "Conv2d": (
        (2, 6, 7),
        lambda: nir.Conv2d(
            (6, 7), rng.normal(size=(4, 1, 3, 2)), (1, 2), (1, 0), (2, 1), 2, rng.normal(size=4)
        ),
    ),
    "Conv2d, valid": (
        (2, 6, 7),
        lambda: nir.Conv2d(
            (6, 7), rng.normal(size=(4, 2, 3, 2)), 1, "valid", 1, 1, rng.normal(size=4)
        ),
    ),
    "Delay": ((4,), lambda: nir.Delay(DT * np.array([0, 1, 3, 7]))),
    "Delay of whole steps": ((4,), lambda: nir.Delay(DT * np.array([1, 2, 3, 7]))),
}


@pytest.mark.parametrize("name", STATELESS)
def test_other_nodes(name):
    shape, make = STATELESS[name]
    # Its own inference of shapes knows no groups, and square kernels alone.
    type_check = "Flatten" not in name and "Conv" not in name
    agrees(chain(make(), shape=shape, type_check=type_check), rng.normal(size=(12, *shape)))


# --- graphs ----------------------------------------------------------------------------------------


def graph_of(nodes, edges, type_check=True):
    ends = {"input": nir.Input(np.array([N])), "output": nir.Output(np.array([N]))}
    return nir.NIRGraph({**ends, **nodes}, edges, type_check=type_check)


def test_what_comes_in_from_several_nodes_is_summed():
    nodes = {n: nir.Linear(rng.normal(size=(N, N))) for n in ("a", "b")} | {"lif": neuron("LIF")}
    edges = [("input", "a"), ("input", "b"), ("a", "lif"), ("b", "lif"), ("lif", "output")]
    agrees(graph_of(nodes, edges), rng.normal(size=(T, N)))


def recurrent(kind="LIF", through=None):
    nodes = {"in": nir.Linear(rng.normal(size=(N, N))), "cell": neuron(kind)}
    nodes["back"] = through or nir.Affine(rng.normal(size=(N, N)), rng.normal(size=N))
    edges = [
        ("input", "in"),
        ("in", "cell"),
        ("cell", "back"),
        ("back", "cell"),
        ("cell", "output"),
    ]
    return graph_of(nodes, edges)


@pytest.mark.parametrize("kind", ["LIF", "CubaLIF", "LI"])
def test_a_cycle_reads_the_last_step(kind):
    """The matrix reads the last spikes, zeros before the first step: then its bias alone comes in."""
    graph = recurrent(kind)
    reference_order = ["input", "in", "back", "cell", "output"]
    xs = rng.normal(size=(T, N))
    model = interop.from_nir(graph, dt=DT)
    assert {p[-1] for p, _ in model.init_state().items()} <= {"v", "i"}  # no copy of the spikes
    ys = run(model, xs)
    reference = Reference(graph, DT, "exact", reference_order, [("cell", "back")])
    rest = getattr(graph.nodes["cell"], "v_leak", 0)
    reference.values = {"cell": rest if kind == "LI" else np.zeros(N)}
    wanted = np.stack([reference.step(x) for x in xs])
    np.testing.assert_allclose(ys, wanted, rtol=1e-10, atol=1e-12)


def test_the_order_of_nodes_and_edges_does_not_matter():
    graph = recurrent()
    xs = rng.normal(size=(T, N))
    wanted = run(interop.from_nir(graph, dt=DT), xs)
    for _ in range(6):
        names = list(graph.nodes)
        edges = list(graph.edges)
        rng.shuffle(names)
        rng.shuffle(edges)
        other = nir.NIRGraph(
            {n: graph.nodes[n] for n in names}, [tuple(e) for e in edges], type_check=False
        )
        assert np.array_equal(run(interop.from_nir(other, dt=DT), xs), wanted)


def test_a_cycle_without_a_neuron():
    """`y = x + W y'` with the last `y'`: the sum is a state."""
    scale = nir.Scale(0.5 * np.ones(N))
    edges = [("input", "sum"), ("sum", "back"), ("back", "sum"), ("sum", "output")]
    graph = graph_of({"sum": nir.Scale(np.ones(N)), "back": scale}, edges)
    xs = rng.normal(size=(T, N))
    ys = run(interop.from_nir(graph, dt=DT), xs)
    y = np.zeros(N)
    for x, found in zip(xs, ys, strict=True):
        y = x + 0.5 * y
        np.testing.assert_allclose(found, y)


def test_a_cycle_that_nothing_enters():
    """It holds no neuron either, so that no edge of it is the one to be cut."""
    scale = nir.Scale(0.5 * np.ones(N))
    edges = [("input", "sum"), ("sum", "output"), ("there", "back"), ("back", "there")]
    graph = graph_of({"sum": nir.Scale(2 * np.ones(N)), "there": scale, "back": scale}, edges)
    xs = rng.normal(size=(T, N))
    np.testing.assert_allclose(run(interop.from_nir(graph, dt=DT), xs), 2 * xs)


def test_a_delay_breaks_a_cycle_on_its_own():
    """A delay of two steps in a cycle is two steps, and not three."""
    graph = recurrent("LI", nir.Delay(DT * np.full(N, 2)))
    li = graph.nodes["cell"]
    xs = rng.normal(size=(T, N))
    ys = run(interop.from_nir(graph, dt=DT), xs)
    decay, v, past = np.exp(-DT / li.tau), np.array(li.v_leak), [np.zeros(N)] * 2
    for x, found in zip(xs, ys, strict=True):
        drive = graph.nodes["in"].weight @ x + past[-2]
        v = li.v_leak + decay * (v - li.v_leak) + (1 - decay) * li.r * drive
        past.append(v)
        np.testing.assert_allclose(found, v, rtol=1e-10)


def test_nested_graphs():
    edges = [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")]
    nodes = {"lif": neuron("LIF"), "w_rec": nir.Linear(rng.normal(size=(N, N)))}
    inner = graph_of(nodes, edges)
    graph = graph_of({"layer": inner}, [("input", "layer"), ("layer", "output")])
    xs = 2 * rng.normal(size=(T, N))
    flat = interop.from_nir(inner, dt=DT)
    nested = interop.from_nir(graph, dt=DT)
    assert np.array_equal(run(nested, xs), run(flat, xs))
    assert np.array_equal(nested.params.layer.lif.tau, inner.nodes["lif"].tau)


def test_several_inputs_and_outputs():
    graph = nir.NIRGraph(
        {
            "a": nir.Input(np.array([N])),
            "b": nir.Input(np.array([N])),
            "li": neuron("LI"),
            "lif": neuron("LIF"),
            "v": nir.Output(np.array([N])),
            "s": nir.Output(np.array([N])),
        },
        [("a", "li"), ("b", "li"), ("li", "lif"), ("li", "v"), ("lif", "s")],
    )
    model = interop.from_nir(graph, dt=DT)
    for wrong in (np.ones(N), {"a": np.ones(N)}):
        with pytest.raises(etpc.InputError, match=r"several inputs, a, b.*dict"):
            model(wrong, model.init_state())
    y, _ = model({"a": np.ones(N), "b": np.ones(N)}, model.init_state())
    assert set(y) == {"v", "s"}
    whole, _ = model({"a": 2 * np.ones(N), "b": np.zeros(N)}, model.init_state())
    np.testing.assert_allclose(y["v"], whole["v"])


def test_parameters_that_are_one_number_are_those_of_all_neurons():
    numbers = (1e-2, 1.0, 0.0, 0.5)
    scalar = chain(nir.LIF(*map(np.array, numbers)), type_check=False)
    whole = chain(nir.LIF(*(np.full(N, v) for v in numbers)))
    xs = 2 * rng.normal(size=(T, N))
    ys = run(interop.from_nir(scalar, dt=DT), xs)
    assert np.array_equal(ys, run(interop.from_nir(whole, dt=DT), xs))
    assert ys.any()


def test_neurons_begin_at_rest_whatever_their_units():
    """Millivolts: 0 is far above the threshold, and no neuron of this graph spikes."""
    one = np.ones(N)
    graph = chain(
        nir.LIF(tau=1e-2 * one, r=one, v_leak=-65 * one, v_threshold=-50 * one, v_reset=-70 * one)
    )
    assert not run(interop.from_nir(graph, dt=DT), np.zeros((T, N))).any()


def test_gradients():
    """Every parameter of a recurrent network of current-based neurons, against BPTT."""
    graph = recurrent("CubaLIF")
    model = interop.from_nir(graph, dt=DT)
    xs = 2 * rng.normal(size=(T, N))
    loss = lambda y, t: jnp.sum((y - t) ** 2)
    report = etpc.verify(model, xs, np.full(T, 0.3), loss, "rtrl", weights="all")
    assert report.ok, report
    assert len(report.rows) == 10


# --- errors ----------------------------------------------------------------------------------------


class Novel(nir.ir.NIRNode):
    def __init__(self):
        self.input_type = {"input": np.array([N])}
        self.output_type = {"output": np.array([N])}


def edited(*edges, **nodes):
    """A graph with more edges and other nodes than were checked when it was made."""
    graph = chain(neuron("LI"))
    graph.edges += edges
    graph.nodes |= nodes
    return graph


def without(*kinds):
    graph = chain(neuron("LI"))
    graph.nodes = {k: n for k, n in graph.nodes.items() if not isinstance(n, kinds)}
    graph.edges = [e for e in graph.edges if all(n in graph.nodes for n in e)]
    graph.edges += [] if "input" in graph.nodes else [("node_0", "node_0")]
    return graph


def two_ways_in():
    ends = {name: nir.Input(np.array([N])) for name in ("a", "b")}
    inner = nir.NIRGraph(
        {**ends, "output": nir.Output(np.array([N]))}, [("a", "output"), ("b", "output")]
    )
    return graph_of({"net": inner}, [("input", "net"), ("net", "output")], type_check=False)


def fan_in_of_two_shapes():
    nodes = {"w": nir.Linear(np.ones((N + 1, N))), "li": neuron("LI")}
    edges = [("input", "li"), ("input", "w"), ("w", "li"), ("li", "output")]
    return graph_of(nodes, edges, type_check=False)


def strided_same():
    conv = nir.Conv1d(8, np.ones((1, 1, 3)), 2, "same", 1, 1, np.zeros(1))
    return chain(conv, shape=(1, 8), type_check=False)


ERRORS = [
    (lambda: edited(node_0=Novel()), etpc.UnsupportedError, r"\.node_0 is of the type Novel"),
    (lambda: edited(("node_0", "nowhere")), etpc.UnsupportedError, r"to \.nowhere names a node"),
    (
        lambda: edited(("input", "node_0")),
        etpc.InputError,
        r"from \.input to \.node_0 is there 2 times",
    ),
    (lambda: edited(lonely=neuron("LI")), etpc.InputError, r"comes into the node \.lonely"),
    (lambda: without(nir.Input), etpc.InputError, "no Input node"),
    (lambda: without(nir.Output), etpc.InputError, "no Output node"),
    (two_ways_in, etpc.UnsupportedError, r"graph \.net within .* 2 inputs"),
    (
        lambda: chain(nir.Delay(DT * np.array([1, 1.5])), shape=(2,)),
        etpc.UnsupportedError,
        r"\.node_0 \(Delay\) has a delay of 0.003 s",
    ),
    (
        lambda: chain(nir.Delay(-DT * np.ones(2)), shape=(2,)),
        etpc.InputError,
        r"\.node_0 \(Delay\) has delay = -0.002 at \[0\].*at least 0",
    ),
    (
        lambda: chain(nir.LI(np.zeros(N), np.ones(N), np.zeros(N))),
        etpc.InputError,
        r"\.node_0 \(LI\) has tau = 0 at \[0\].*above 0, in seconds",
    ),
    (
        lambda: chain(nir.Delay(np.array([DT, 1e30])), shape=(2,)),
        etpc.UnsupportedError,
        r"\.node_0 \(Delay\) has a delay of 1e\+30 s",
    ),
    (
        lambda: chain(nir.Flatten(None, 1, 5), shape=(2, 3)),
        etpc.ModelError,
        r"\.node_0 \(Flatten\).*no dimensions from 1 to 5",
    ),
    (strided_same, etpc.UnsupportedError, r"\.node_0 \(Conv1d\)"),
    (
        lambda: chain(nir.Scale(np.ones(3)), type_check=False),
        etpc.ModelError,
        r"\.node_0 \(Scale\) cannot take",
    ),
    (fan_in_of_two_shapes, etpc.ModelError, r"\.li is to be summed"),
]


@pytest.mark.parametrize(("make", "error", "message"), ERRORS)
def test_errors_name_the_node(make, error, message):
    graph = make()
    with pytest.raises(error, match=message):
        run(interop.from_nir(graph, dt=DT), np.ones((1, N)))


CONVOLVED = dict(input_shape=None, stride=1, padding=1, dilation=1, groups=1, bias=np.ones(2))
POOL = dict(
    zip(("kernel_size", "stride", "padding"), np.array([[2, 2], [2, 2], [0, 0]]), strict=True)
)
NODES = {
    **{kind: neuron(kind) for kind in ("I", "IF", "LI", "LIF", "CubaLI", "CubaLIF")},
    "Threshold": nir.Threshold(np.ones(N)),
    "Delay": nir.Delay(DT * np.ones(N)),
    "Linear": nir.Linear(np.ones((N, N))),
    "Affine": nir.Affine(np.ones((N, N)), np.ones(N)),
    "Scale": nir.Scale(np.ones(N)),
    "Conv1d": nir.Conv1d(weight=np.ones((2, 1, 3)), **CONVOLVED),
    "Conv2d": nir.Conv2d(weight=np.ones((2, 1, 3, 3)), **CONVOLVED),
    "SumPool2d": nir.SumPool2d(**POOL),
    "AvgPool2d": nir.AvgPool2d(**POOL),
}
SHAPES_IN = {"Conv1d": (1, 6), "Conv2d": (1, 6, 6), "SumPool2d": (1, 6, 6), "AvgPool2d": (1, 6, 6)}
SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups")


def with_value(kind, name, value):
    """A graph of a node that got a value, or a function of its own, after it was made."""
    node = copy.deepcopy(NODES[kind])
    setattr(node, name, value(getattr(node, name)) if callable(value) else value)
    return chain(node, shape=SHAPES_IN.get(kind, (N,)), type_check=False)


def one_step(graph, shape):
    model = interop.from_nir(graph, dt=DT)
    return model(jnp.ones(shape), model.init_state())


def numbers_of(kind):
    fields = {f.name for f in dataclasses.fields(NODES[kind])}
    return sorted(fields - {"input_type", "output_type", "metadata", "input_shape"})


@pytest.mark.parametrize("kind", NODES)
def test_numbers_that_mean_nothing_are_refused(kind):
    """Every number of every node: none is read as something else, or gives NaN."""
    full = lambda value: lambda old: np.full(np.shape(old), value)
    for name in numbers_of(kind):
        assert interop.from_nir(with_value(kind, name, lambda old: old), dt=DT)
        wrong = [full(np.inf), full(np.nan), full(1 + 1j), "abc", object()]
        wrong += [np.ones((7,) * (1 + np.ndim(getattr(NODES[kind], name))))]
        if name in SETTINGS:
            wrong += [full(-1), full(1.5), full(1e30), None] + [full(0)] * (name != "padding")
        if name.startswith("tau"):
            wrong += [full(0.0), full(-1.0)]
        for value in wrong:
            with pytest.raises((etpc.InputError, etpc.ModelError), match=rf"\.node_0 \({kind}\)"):
                one_step(with_value(kind, name, value), SHAPES_IN.get(kind, (N,)))
    trained = interop.from_nir(with_value(kind, name, lambda old: old), dt=DT)
    for path, value in trained.params.items():
        read = lambda m, path=path: getattr(getattr(m.params, path[0]), path[1])
        for bad, words in ((jnp.nan * value, rf"{path[1]} = nan"), (value[None], "Change values")):
            with pytest.raises(etpc.InputError, match=words):
                interop.to_nir(eqx.tree_at(read, trained, bad))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_layers_whose_numbers_mean_nothing_are_refused(value):
    lif = eqx.tree_at(lambda m: m.tau, nn.LIF(N, reset="hard"), jnp.full(N, value))
    linear = eqx.nn.Linear(N, N, key=jax.random.key(0))
    with pytest.raises(etpc.InputError, match=r"^The node \['1_lif'\] \(LIF\) has tau = "):
        interop.to_nir(nn.Sequential([linear, lif]))
    for shape in ((-1,), (0,), (4.0,), ("a",), "abc", 4, ()):
        with pytest.raises((etpc.InputError, etpc.UnsupportedError), match=r"input_shape|shapes"):
            inspect.unwrap(interop.to_nir)(nn.Sequential([linear]), input_shape=shape)


def test_whole_numbers_that_were_trained_are_written_as_they_are():
    graph = chain(nir.Scale(np.ones(N, int)))
    model = interop.from_nir(graph, dt=DT)
    trained = eqx.tree_at(lambda m: m.params.node_0.scale, model, 1.7 * jnp.ones(N))
    np.testing.assert_allclose(interop.to_nir(trained).nodes["node_0"].scale, 1.7, rtol=1e-6)


def test_a_node_at_two_names_is_two_nodes():
    """As in a file, which knows nodes by their names alone."""
    node = nir.Affine(np.eye(N), np.zeros(N))
    model = interop.from_nir(chain(a=node, li=neuron("LI"), b=node), dt=DT)
    params = dict(model.params.items())
    assert {("a", "weight"), ("b", "weight")} <= params.keys()
    trained = eqx.tree_at(lambda m: m.params.a.weight, model, 3 * model.params.a.weight)
    back = interop.to_nir(trained)
    np.testing.assert_array_equal(back.nodes["a"].weight, 3 * np.eye(N))
    np.testing.assert_array_equal(back.nodes["b"].weight, np.eye(N))


def test_dt_has_no_default():
    graph = chain(neuron("LI"))
    with pytest.raises(TypeError, match="dt"):
        interop.from_nir(graph)
    for wrong in (0, -1e-3, float("nan"), True):
        with pytest.raises(etpc.InputError, match="dt must be a number of seconds"):
            interop.from_nir(graph, dt=wrong)
    with pytest.raises(etpc.InputError, match="method"):
        interop.from_nir(graph, dt=DT, method="midpoint")
    with pytest.raises(etpc.InputTypeError, match="NIRGraph"):
        interop.from_nir(neuron("LI"), dt=DT)
    with pytest.raises(etpc.InputTypeError, match="surrogate must be a function"):
        inspect.unwrap(interop.from_nir)(graph, dt=DT, surrogate="relu")


# --- and back ----------------------------------------------------------------------------------------


def test_a_round_trip_through_a_file(tmp_path):
    graph = recurrent("CubaLIF")
    graph.metadata = {"made by": "a test"}
    model = interop.from_nir(graph, dt=DT, method="euler")
    model = jax.tree.map(lambda a: 1.1 * a, model)  # training
    nir.write(tmp_path / "net.nir", interop.to_nir(model))
    read = nir.read(tmp_path / "net.nir")
    meta = read.metadata
    assert (meta["dt"], meta["method"], meta["reset"]) == (DT, "euler", "hard")
    assert meta["made by"] == "a test"
    again = interop.from_nir(read, dt=meta["dt"], method=meta["method"])
    xs = 2 * rng.normal(size=(T, N))
    ys = run(again, xs)
    assert np.array_equal(ys, run(model, xs))
    assert ys.any()
    np.testing.assert_allclose(model.init_state().cell.v, 1.1 * graph.nodes["cell"].v_leak)
    original = interop.from_nir(graph, dt=DT, method="euler")
    assert not np.array_equal(ys, run(original, xs))
    assert np.array_equal(original.params.cell.tau_mem, graph.nodes["cell"].tau_mem)


def sequential(**lif):
    keys = jax.random.split(jax.random.key(0), 4)
    options = {"tau": 8.0, "R": 5.0, "V_rest": 0.1, "V_reset": -0.1, "reset": "hard"} | lif
    return nn.Sequential(
        [
            eqx.nn.Linear(3, N, key=keys[0]),
            nn.LIF(N, **options),
            nn.Delay(N, np.arange(N)),
            nn.LowRankLinear(N, N, 2, key=keys[1]),
            nn.ExponentialSynapse(N, tau=3.0),
            nn.LIF(N, **options),
            nn.MembraneReadout(N, N, tau=10.0, key=keys[2]),
            nn.LeakyRateReadout(N, 2, tau=5.0, key=keys[3]),
        ]
    )


def test_layers_of_etpc():
    model = sequential()
    graph = interop.to_nir(model)
    assert graph.metadata["dt"] == 1e-3
    read = interop.from_nir(graph, dt=graph.metadata["dt"], method=graph.metadata["method"])
    xs = 3 * rng.normal(size=(T, 3))
    ys = run(read, xs)
    np.testing.assert_allclose(ys, run(model, xs), rtol=1e-9, atol=1e-12)
    assert ys.any()


def test_convolutions_of_etpc():
    keys = jax.random.split(jax.random.key(1), 2)
    model = nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, key=keys[0]),
            nn.LIF((4, 3, 4), reset="hard", tau=3.0, R=5.0),
            eqx.nn.Conv2d(4, 1, 3, padding="SAME", use_bias=False, key=keys[1]),
        ]
    )
    with pytest.raises(etpc.InputError, match="input_shape"):
        interop.to_nir(model)
    graph = interop.to_nir(model, input_shape=(2, 6, 7))
    xs = 3 * rng.normal(size=(T, 2, 6, 7))
    read = interop.from_nir(graph, dt=1e-3)
    np.testing.assert_allclose(run(read, xs), run(model, xs), rtol=1e-9, atol=1e-12)


REFUSED = {
    "a soft reset": (lambda: sequential(reset="soft"), r"\.layers\[1\] has a soft reset"),
    "a refractory period": (lambda: sequential(refractory=2.0), r"\.layers\[1\] has a refractory"),
    "two steps": (
        lambda: nn.Sequential([nn.LIF(N, reset="hard"), nn.LIF(N, reset="hard", dt=2.0)]),
        r"1.0 in \.layers\[0\], 2.0 in \.layers\[1\]",
    ),
    "a gated cell": (lambda: nn.MinGRU(N, N, key=jax.random.key(0)), "not a MinGRU"),
    "a function": (
        lambda: nn.Sequential([eqx.nn.Linear(N, N, key=jax.random.key(0)), jnp.tanh]),
        r"\.layers\[1\] is tanh",
    ),
    "a delay without a step": (lambda: nn.Delay(N, 2), r"\.layers\[0\] counts"),
    "a kernel that is not square": (
        lambda: eqx.nn.Conv2d(1, 1, (1, 2), key=jax.random.key(0)),
        "finds other shapes",
    ),
    "padding that is not zeros": (
        lambda: eqx.nn.Conv1d(1, 1, 2, padding_mode="REFLECT", key=jax.random.key(0)),
        r"\.layers\[0\] has the padding mode REFLECT",
    ),
    "a scalar": (
        lambda: eqx.nn.Linear(3, "scalar", key=jax.random.key(0)),
        r"\.layers\[0\] is between scalars",
    ),
    "padding of one side": (
        lambda: eqx.nn.Conv1d(1, 1, 2, padding=((1, 0),), key=jax.random.key(0)),
        r"\.layers\[0\] has the padding",
    ),
}


SHAPES = {
    "padding of one side": (1, 4),
    "padding that is not zeros": (1, 4),
    "a kernel that is not square": (1, 4, 4),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_does_not_have(name):
    make, message = REFUSED[name]
    with pytest.raises((etpc.UnsupportedError, etpc.InputTypeError), match=message):
        interop.to_nir(make(), input_shape=SHAPES.get(name))


def test_an_approximation_is_written_where_it_is_asked_for():
    graph = interop.to_nir(sequential(reset="soft", refractory=2.0), approximate=True)
    assert "soft reset" in graph.metadata["approximations"]
    assert "refractory period of 2 ms" in graph.metadata["approximations"]
    hard = interop.to_nir(sequential())
    assert "approximations" not in hard.metadata
    assert np.array_equal(graph.nodes["1_lif"].v_reset, hard.nodes["1_lif"].v_reset)


# --- other libraries ---------------------------------------------------------------------------------


def test_a_graph_that_jaxpike_wrote_and_one_that_it_reads():
    """jaxpike solves its neurons exactly, in steps of 1 ms."""
    jaxpike = pytest.importorskip("jaxpike")
    from jaxpike.nir import from_nir, to_nir

    keys = jax.random.split(jax.random.key(0))
    net = jaxpike.Sequential(
        jaxpike.Dense(3, N, key=keys[0], gain=8.0),
        jaxpike.LIF(5.0, reset="zero"),
        jaxpike.Dense(N, 2, key=keys[1]),
        jaxpike.LeakyIntegrator(10.0),
    )
    model = interop.from_nir(to_nir(net, (1, 3)), dt=1e-3)
    xs = rng.normal(size=(T, 3))

    def theirs(net):
        state, ys = net.init_state((3,)), []
        for x in xs:
            state, y = net(state, jnp.asarray(x))
            ys.append(np.asarray(y))
        return np.stack(ys)

    ys = run(model, xs)
    np.testing.assert_allclose(ys, theirs(net), rtol=2e-5, atol=1e-6)
    assert ys.any()
    weights = lambda m: [m.params["0"].weight, m.params["2"].weight]
    trained = eqx.tree_at(weights, model, [1.3 * w for w in weights(model)])
    read = from_nir(interop.to_nir(trained))
    again = run(trained, xs)
    np.testing.assert_allclose(again, theirs(read), rtol=2e-5, atol=1e-6)
    assert np.abs(again - ys).max() > 1e-3


def test_spikes_of_a_graph_that_snntorch_wrote():
    """snnTorch takes Euler steps of 0.1 ms, and spikes at once where there is no delay of the reset."""
    torch = pytest.importorskip("torch")
    snn = pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    torch.manual_seed(0)
    linear = torch.nn.Linear(3, N)
    beta, threshold = torch.linspace(0.6, 0.95, N), torch.full((N,), 0.7)
    leaky = snn.Leaky(beta=beta, threshold=threshold, reset_mechanism="zero", reset_delay=False)
    net = torch.nn.Sequential(linear, leaky)
    graph = export_to_nir(net, torch.randn(3))
    model = interop.from_nir(graph, dt=1e-4, method="euler")
    xs = 2 * rng.normal(size=(T, 3))
    membrane, wanted = leaky.init_leaky(), []
    with torch.no_grad():
        for x in xs:
            spikes, membrane = leaky(linear(torch.tensor(x[None], dtype=torch.float32)), membrane)
            wanted.append(spikes[0].numpy())
    ys = run(model, xs)
    assert np.array_equal(ys, np.stack(wanted))
    assert 0.05 < ys.mean() < 0.95
