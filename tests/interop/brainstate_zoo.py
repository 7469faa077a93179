"""Every neuron, synapse and recurrent cell that braintrace, brainstate and brainpy.state export.

Each is put behind a matrix and a bias, converted by `etpc.interop.from_brainstate`, and held against BPTT through the
module itself. `tests/interop/test_brainstate_zoo.py` runs them; this writes the table of `docs/brainstate.md`:

    python -m tests.interop.brainstate_zoo
"""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

warnings.simplefilter("ignore")  # of the packages
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import brainpy.state  # noqa: E402
import brainstate  # noqa: E402
import braintrace  # noqa: E402  (importing it turns 64 bits off)
import brainunit as u  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update("jax_enable_x64", True)

import etpc  # noqa: E402
from etpc import interop  # noqa: E402
from tests.helpers import loss  # noqa: E402
from tests.zoo.check import by_path, compiled, normal, online, targets_of  # noqa: E402

N, INPUTS = 4, 3
DT = 0.5 * u.ms


@contextlib.contextmanager
def in_64_bits(dt: Any = DT) -> Iterator[None]:
    """brainstate's own environment, as everything here needs it."""
    brainstate.environ.set(precision=64, dt=dt)
    jax.config.update("jax_enable_x64", True)
    yield
    brainstate.environ.set(precision=32)
    jax.config.update("jax_enable_x64", True)  # which the line before turned off


MODULE, PAGE = "tests.interop.brainstate_zoo", "brainstate.md"
COLUMNS = ("package", "class", "gradient", "")


class Kind(NamedTuple):
    """A class, and how to make one of N units that gets an input of a size in a unit."""

    package: str
    name: str
    options: dict[str, Any] = {}
    unit: Any = None
    """`None`: the first of `UNITS` that the class accepts."""
    scale: float | None = None

    @property
    def cls(self) -> Any:
        module = {"brainpy.state": brainpy.state, "brainstate.nn": brainstate.nn}
        return getattr(module.get(self.package, braintrace.nn), self.name)

    @property
    def id(self) -> str:
        return f"{self.package}.{self.name}"


UNITS = {
    "1": (1.0, 1.0),
    "mA": (u.mA, 20.0),
    "pA": (u.pA, 300.0),
    "mV": (u.mV, 10.0),
    "mS": (u.mS, 1.0),
    "uA/cm2": (u.uA / u.cm**2, 10.0),
    "Hz": (u.Hz, 10.0),
}

CELLS = ("CFNCell", "GRUCell", "LRUCell", "LSTMCell", "MGUCell", "MiniGRU", "MiniLSTM")
CELLS = (*CELLS, "MinimalRNNCell", "URLSTMCell", "ValinaRNNCell")
SIZES: dict[str, dict[str, Any]] = {
    "LRUCell": {"d_model": N, "d_hidden": N},
    "LeakyRateReadout": {"in_size": N, "out_size": N},
}
# Options and inputs of some. Inputs in the range of a neuron, where the ones above are not.
INPUTS_OF: dict[str, dict[str, Any]] = {
    "HH": {"unit": u.mA, "scale": 0.02},
    "MorrisLecar": {"unit": u.mA, "scale": 0.02},
    "WangBuzsakiHH": {"unit": u.mA, "scale": 0.002},
    "Izhikevich": {"unit": u.mV / u.ms, "scale": 10.0},
    "IzhikevichRef": {"unit": u.mV / u.ms, "scale": 10.0},
    "gauss_rate_ipn": {"options": {"in_size": N, "sigma": 1.0}},  # its width, by default 0
}


def kinds() -> list[Kind]:
    """All of them, by package."""
    sized = {name: SIZES.get(name, {"in_size": N, "out_size": N}) for name in CELLS}
    found = [Kind("braintrace.nn", name, sized[name], 1.0) for name in CELLS]
    sized = {name: {"num_in": N, "num_out": N} for name in CELLS}
    found.append(Kind("braintrace.nn", "LeakyRateReadout", SIZES["LeakyRateReadout"], 1.0))
    own = [name for name in CELLS if hasattr(brainstate.nn, name)]
    found += [Kind("brainstate.nn", name, sized[name], 1.0) for name in own]
    state = brainpy.state
    # Without those of NEST since 0.2.
    names = ("Neuron", "Synapse", "NESTNeuron", "NESTSynapse", "NESTPlasticity")
    bases = tuple(getattr(state, name) for name in names if hasattr(state, name))
    for name in state.__all__:
        cls = getattr(state, name)
        if isinstance(cls, type) and issubclass(cls, bases) and cls not in bases:
            found.append(Kind("brainpy.state", name, **INPUTS_OF.get(name, {})))
    found.append(Kind("brainpy.state", "LeakyRateReadout", SIZES["LeakyRateReadout"], 1.0))
    return found


class Network(brainstate.nn.Module):
    """A matrix and a bias in front of a layer; its output, and the layer's states."""

    def __init__(self, kind: Kind, unit: Any, scale: float):
        super().__init__()
        rng = np.random.default_rng(0)
        self.w = brainstate.ParamState(jnp.asarray(scale * rng.normal(size=(INPUTS, N))) * unit)
        self.b = brainstate.ParamState(jnp.asarray(scale * rng.random(N)) * unit)
        self.layer = kind.cls(**kind.options) if kind.options else kind.cls(N)

    def update(self, x):
        y = self.layer(x @ self.w.value + self.b.value)
        states = brainstate.graph.states(self.layer).values()
        return y, [s.value for s in states if not isinstance(s, brainstate.ParamState)]


def build(kind: Kind) -> tuple[Any, Any]:
    """The network and its model. **Raises** what the last of the units gave."""
    options = [(kind.unit, kind.scale or 1.0)] if kind.unit is not None else UNITS.values()
    last: Exception | None = None
    for unit, scale in options:
        network = Network(kind, unit, kind.scale or scale)
        brainstate.nn.init_all_states(network)
        try:
            return network, interop.from_brainstate(network, jnp.zeros(INPUTS))
        except Exception as error:
            # The reason is that of the unit it gets furthest with.
            if last is None or "Unit" in type(last).__name__ or "changes the state" in str(last):
                last = error
    assert last is not None
    raise last


def own_gradient(network: Any, model: Any, xs: Any) -> dict[str, Any]:
    """BPTT through the module itself: steps by brainstate, and its gradient, with no part of `etpc`."""
    targets = targets_of(xs)
    parameters = brainstate.graph.states(network, brainstate.ParamState)

    def total():
        losses = []
        for t, (x, target) in enumerate(zip(xs, targets, strict=True)):
            i = jnp.int32(t)
            with brainstate.environ.context(i=i, t=i * DT):
                losses.append(loss(network(x), target))
        return sum(losses)

    try:
        return brainstate.transform.grad(total, parameters)()
    except ValueError as error:  # a solver that chooses its steps has no reverse mode
        if "Reverse-mode" not in str(error):
            raise
        return brainstate.transform.jacfwd(total, parameters)()


def differs(one: Any, other: Any) -> float:
    """The largest difference of two gradients, relative to the parameter's size."""
    worst = 0.0
    for path, b in by_path(other).items():
        size = np.max(np.abs(b), initial=0)
        wrong = np.max(np.abs(by_path(one)[path] - b), initial=0)
        worst = max(worst, float(wrong / size) if size else (np.inf if wrong else 0.0))
    return worst


REASONS = {
    r"argument: 'ctx'|update is not implemented": "no step of its own: a `Simulator` runs it",
    r"takes 1 positional argument|missing \d+ required|unexpected keyword": "no step of one input",
    r"Concretization|TracerArray|TracerBool|TracerInteger|Only scalar arrays can": (
        "its step computes in Python or NumPy, with `float` of inputs, states or the time, and cannot be traced"
    ),
    r"no float leaf": "it has no float state",
    r"changes the state": "a step changes the unit of a state",
    r"carry input and carry output": "a step changes the shape of a state",
    r"Incompatible shapes for broadcasting": ("it has no ports before events name them"),
    r"is not initialised": "it needs its compartments",
    r"UnitMismatch|DimensionMismatch|Only dimensionless|units do not match": "no single input has a unit that it takes",
}


def refusal(error: Exception) -> str:
    """Why a class is refused, in a few words."""
    text = f"{type(error).__name__} {error}"
    for pattern, reason in REASONS.items():
        if re.search(pattern, text):
            return reason
    return " ".join(text.split())[:100]


def row(kind: Kind) -> tuple[str, ...]:
    """The row of a class in the table. **Raises** `AssertionError` where a gradient is wrong."""
    try:
        network, model = build(kind)
    except Exception as error:
        return kind.package, kind.name, "refused", refusal(error)
    xs = normal(INPUTS)
    try:
        rtrl = etpc.compile(model, etpc.RTRL(window=2), inputs=xs[0], weights="all")
        d_rtrl = etpc.compile(model, etpc.D_RTRL(window=2), inputs=xs[0], weights="all")
    except etpc.EtpcError as error:
        return kind.package, kind.name, "refused", refusal(error)

    def gradients(model, xs):
        return online(rtrl, model, xs, loss), online(d_rtrl, model, xs, loss)

    one, other = compiled(gradients, model, xs)
    try:
        found = own_gradient(network, model, xs)
    except Exception as error:
        return kind.package, kind.name, "refused", refusal(error)
    reference = jax.tree.unflatten(
        jax.tree.structure(model), jax.tree.leaves(interop.Named.of(found))
    )
    sizes = [float(np.max(np.abs(g))) for g in by_path(reference).values()]
    if not all(np.isfinite(sizes)):
        return kind.package, kind.name, "no gradient", "its own gradient is NaN"
    if not any(sizes):
        return (
            kind.package,
            kind.name,
            "no gradient",
            "its own gradient is zero: a spike without a surrogate",
        )
    error = differs(one, reference)
    assert error < 1e-9, f"RTRL differs from BPTT by {error:.1e}"
    exact = all(op.exact for op in d_rtrl.plan.ops)
    if exact:
        error = differs(other, reference)
        assert error < 1e-9, f"D-RTRL is said to be exact, and differs by {error:.1e}"
    return kind.package, kind.name, "equal", "D-RTRL is exact" if exact else ""


if __name__ == "__main__":
    from tests.interop.tables import write

    with in_64_bits():
        write(PAGE, MODULE, COLUMNS, [row(kind) for kind in kinds()])
