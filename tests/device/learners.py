"""Learners of every rule and family of cells, to be exported, with the data of some calls."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import etpc
from etpc import nn

CALLS = 10
I, H = 3, 6
KEY = jax.random.key(0)
DELAYS = np.arange(H * I).reshape(H, I) % 4


@dataclasses.dataclass
class Case:
    """A learner, and the data of `CALLS` updates, with a leading axis of them."""

    learner: etpc.Online
    model: Any
    data: dict[str, np.ndarray]
    batch_size: int | None = None
    low_rank: bool = False

    def start(self) -> tuple[Any, Any, Any]:
        return (self.model, *self.learner.init(self.model, self.batch_size))

    def call(self, k: int) -> dict[str, Any]:
        """The arguments of the k-th update."""
        return {name: jnp.asarray(a[k]) for name, a in self.data.items()}

    def exported(self, **more: Any) -> etpc.Exported:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self.call(0))
        return self.learner.export(*self.start(), **shapes, **more)

    def compared(self, state: Any) -> list[str]:
        """The names of what two runs have in common.

        Of a low-rank trace, and of the directions of credit, only products are determined, which are in the gradients,
        and so in the weights.
        """
        factors = ("carry.traces", "carry.shared") if self.low_rank else ()
        return [name for name in state if not name.startswith(factors)]

    def by_jax(self, start: Any = None, calls: range = range(CALLS)) -> tuple[Any, list[Any]]:
        """What the learner has after these calls, and their losses."""
        state, losses = start or self.start(), []
        for k in calls:
            *state, loss = self.learner.update(*state, **self.call(k))[:4]
            losses.append(np.asarray(loss))
        return tuple(state), losses


class Spiking(eqx.Module):
    """Neurons that a recurrent weight and the input reach, and a readout. The gain is such that they spike."""

    hidden: eqx.nn.Linear
    neuron: Any
    readout: nn.LeakyRateReadout
    gain: float = eqx.field(static=True)

    def __init__(self, neuron: Any, gain: float):
        self.neuron, self.gain = neuron, gain
        self.hidden = eqx.nn.Linear(I + H, H, key=KEY)
        self.readout = nn.LeakyRateReadout(H, 2, key=KEY)

    def init_state(self) -> Any:
        return self.neuron.init_state(), jnp.zeros(H), self.readout.init_state()

    def __call__(self, x: Any, state: Any) -> Any:
        s, z, r = state
        z, s = self.neuron(self.gain * self.hidden(jnp.concatenate([x, z])), s)
        y, r = self.readout(z, r)
        return y, (s, z, r)


class Noisy(eqx.Module):
    """A cell with noise, from a PRNG key in its state, and a mask that is not trained."""

    cell: nn.MinGRU
    mask: jax.Array

    def init_state(self) -> Any:
        return self.cell.init_state(), jax.random.key(7)

    def __call__(self, x: Any, state: Any) -> Any:
        h, key = state
        key, now = jax.random.split(key)
        y, h = self.cell(x + 0.1 * jax.random.normal(now, x.shape), h)
        return jnp.where(self.mask, y, 0), (h, key)


class Words(eqx.Module):
    """An embedding of integer inputs, a cell, and a state that counts."""

    embedding: eqx.nn.Embedding
    cell: nn.MinLSTM

    def init_state(self) -> Any:
        return self.cell.init_state(), jnp.int32(0)

    def __call__(self, x: Any, state: Any) -> Any:
        h, steps = state
        y, h = self.cell(self.embedding(x), h)
        return y, (h, steps + 1)


class LearnedStart(eqx.Module):
    """A cell whose initial state is a parameter."""

    start: jax.Array
    weight: jax.Array

    def init_state(self) -> Any:
        return self.start

    def __call__(self, x: Any, h: Any) -> Any:
        h = 0.8 * h + jnp.tanh(self.weight @ x)
        return h, h


def gru(x: int = I) -> eqx.nn.GRUCell:
    return eqx.nn.GRUCell(x, H, key=KEY)


def step(cell: Any, x: Any, h: Any) -> Any:
    h = cell(x, h)
    return h[0] if isinstance(h, tuple) else h, h


def rotating(model: Any, x: Any, h: Any) -> Any:
    h = model["decay"] * h + model["gain"] * x
    return h.real, h


def squared(y: Any, target: Any) -> Any:
    return jnp.mean((y - target) ** 2)


def case(
    model: Any,
    rule: Any = "d_rtrl",
    *,
    every: int = 1,
    steps: int | None = None,
    batch_size: int | None = None,
    optimizer: Any = None,
    x: Any = None,
    loss: Callable[..., Any] = squared,
    outputs: int = H,
    mask: bool = False,
    begins: bool = False,
    has_aux: bool = False,
    skip_nonfinite: bool = False,
    seed: int = 0,
    **options: Any,
) -> Case:
    rng = np.random.default_rng(seed)
    lead = (CALLS, steps or every, *(() if batch_size is None else (batch_size,)))
    xs = rng.uniform(0, 1, (*lead, I)).astype(np.float32) if x is None else x(rng, lead)
    program = etpc.compile(model, rule, inputs=xs[(0,) * len(lead)], **options)
    returns: Any = dict(has_aux=has_aux, skip_nonfinite=skip_nonfinite)
    learner = etpc.online(program, loss, optimizer or optax.adam(1e-2), every, **returns)
    targets = rng.uniform(0, 1, (*lead, outputs)).astype(np.float32)
    data = dict(xs=xs, targets=targets)
    if mask:
        data["mask"] = rng.uniform(0, 1, lead) < 0.7
    if begins:
        data["begins"] = rng.uniform(0, 1, lead) < 0.2
    low_rank = any(rule is RULES[name] for name in LOW_RANK)
    return Case(learner, model, data, batch_size, low_rank)


def with_state(cell: Any, state: Any, **options: Any) -> Case:
    return case(cell, state=state, step=step, **options)


def complex_and_real(optimizer: Any) -> Case:
    model = {"decay": jnp.full(I, 0.5 + 0.3j, jnp.complex64), "gain": jnp.ones(I)}
    state = jnp.zeros(I, jnp.complex64)
    return case(model, optimizer=optimizer, every=2, outputs=I, state=state, step=rotating)


def words(rng: np.random.Generator, lead: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 5, lead).astype(np.int32)


RULES = {
    "d_rtrl": "d_rtrl",
    "full": etpc.D_RTRL(backprop="full"),
    "look-back": etpc.D_RTRL(lookback=3),
    "decay": etpc.ES_D_RTRL(decay=0.9),
    "rank": etpc.ES_D_RTRL(rank=2),
    "snap": etpc.SnAp(2),
    "rtrl": etpc.RTRL(),
    "rtrl of a rank": etpc.RTRL(rank=2),
    "credit": etpc.CreditRTRL(q=2, rank=2),
    "tbptt": etpc.TBPTT(2),
}
LOW_RANK = ("rank", "rtrl of a rank", "credit")
NEURONS = {
    nn.LIF: 60,
    nn.AdEx: 60,
    nn.EIF: 600,
    nn.QIF: 2000,
    nn.GIF: 60,
    nn.Izhikevich: 800,
    nn.ResonateAndFire: 10,
}
"""Kinds of neurons, with a gain."""
STEP = {nn.Izhikevich: {"dt": 0.1}}  # of 1 ms, float32 would keep four digits of the trace

CASES: dict[str, Callable[[], Case]] = {
    **{
        f"rule: {name}": lambda rule=rule: with_state(gru(), jnp.zeros(H), rule=rule, every=2)
        for name, rule in RULES.items()
    },
    **{
        f"spiking, {name}": lambda rule=rule: case(
            Spiking(nn.ALIF(H, tau=10.0, R=5.0), 10),
            rule,
            outputs=2,
            optimizer=optax.adam(1e-2, eps=1e-4),  # else rounding of a gradient of zero is a step
        )
        for name, rule in RULES.items()
        if name != "credit"  # there rounding turns the directions, and steps of Adam with them
    },
    **{
        f"neuron: {kind.__name__}": lambda kind=kind, gain=gain: case(
            Spiking(kind(H, **STEP.get(kind, {})), gain), outputs=2, every=2
        )
        for kind, gain in NEURONS.items()
    },
    **{
        f"cell: {kind.__name__}": lambda kind=kind: case(kind(I, H, key=KEY), every=3)
        for kind in (nn.VanillaRNN, nn.MGU, nn.MinGRU, nn.MinLSTM, nn.IndRNN)
    },
    "cell: LSTM": lambda: with_state(
        eqx.nn.LSTMCell(I, H, key=KEY), (jnp.zeros(H), jnp.zeros(H)), batch_size=2
    ),
    "cell: LRU": lambda: case(nn.LRU(I, H, 4, key=KEY), every=2),
    "cell: RTU": lambda: case(nn.RTU(I, H, key=KEY), every=2, outputs=2 * H),
    "cell: S5": lambda: case(nn.S5(I, H, 4, key=KEY), every=4),
    "batch, mask and begins": lambda: with_state(
        gru(), jnp.zeros(H), batch_size=3, every=2, steps=4, mask=True, begins=True
    ),
    "mask": lambda: case(nn.MinGRU(I, H, key=KEY), mask=True, begins=True),
    "integers": lambda: case(
        Words(eqx.nn.Embedding(5, I, key=KEY), nn.MinLSTM(I, H, key=KEY)), x=words, every=2
    ),
    "keys": lambda: case(
        Noisy(nn.MinGRU(I, H, key=KEY), jnp.arange(H) != 1), optimizer=optax.sgd(0.1)
    ),
    "keys of a batch": lambda: case(
        Noisy(nn.MinGRU(I, H, key=KEY), jnp.arange(H) != 1), batch_size=2
    ),
    "complex and real parameters": lambda: complex_and_real(
        optax.contrib.split_real_and_imaginary(optax.adam(1e-2))
    ),
    "learned start": lambda: case(
        LearnedStart(jnp.ones(H), 0.5 * jnp.ones((H, I))), every=2, begins=True
    ),
    "aux": lambda: case(
        nn.MinGRU(I, H, key=KEY),
        loss=lambda y, t: (squared(y, t), {"right": y > t, "y": y}),
        has_aux=True,
    ),
    "left out": lambda: case(
        nn.MinGRU(I, H, key=KEY),
        loss=lambda y, t: (jnp.where(t[0] < 0.8, squared(y, t), jnp.nan), y),
        batch_size=3,
        has_aux=True,
        skip_nonfinite=True,
    ),
    "delays": lambda: case(
        nn.Sequential([nn.DelayedLinear(I, H, DELAYS, key=KEY), nn.MinGRU(H, H, key=KEY)])
    ),
}


def distance(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest number; infinite where integers differ."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    if a.dtype.kind in "iub":
        return 0.0 if np.array_equal(a, b) else np.inf
    return float(np.max(np.abs(a - b), initial=0) / (1e-6 + np.max(np.abs(b), initial=0)))
