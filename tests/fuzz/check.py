"""One drawn structure at many points: parameters, data and states other than those that it was compiled at.

A program is compiled and traced once, and so are its references (`tests.stepwise`); all points share these.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import etpc
from tests import evaluate, fast, grammar, stepwise
from tests.stepwise import Point

T = 4
TOLERANCE = 1e-9
SMALL = 1e-7
"""A gradient that is smaller shows nothing."""
SAMPLES = 5
"""How often a reference is computed with rounding at random."""
RARE = 2000
"""Where a comparison fails: is there a rare branch that few points have not found?"""
HOW = ("as compiled", "moved", "far", "zeros", "negative")
ENTRIES = ("learn", "call", "scan", "inside a scan", "batch")


def moved(rng, how, parameter):
    """Other values of a parameter."""
    p = np.asarray(parameter)
    noise = rng.normal(size=p.shape)
    new = {
        "as compiled": lambda: p,
        "moved": lambda: p * (1 + 0.4 * noise) + 0.2 * rng.normal(size=p.shape),
        "far": lambda: 2.5 * noise,
        "zeros": lambda: p * (rng.random(p.shape) < 0.5) * (rng.random() < 0.8),
        "negative": lambda: -p,
    }[how]()
    return np.asarray(new, p.dtype)


class Result(NamedTuple):
    """What became of a structure."""

    points: int  # where the gradient was alive, and all was compared
    dead: int
    unsettled: int  # where rounding alone explains the error: `References.uncertainty`
    errors: dict[str, float]  # the largest of each property
    failures: tuple[str, ...]  # of which it was too large
    seconds: float  # of the processor


class Structure:
    """A drawn model, its references and its points."""

    def __init__(self, program: grammar.Program):
        self.program = program
        self.model = grammar.DrawnModel(program, fast.treatment())
        self.state = jax.tree.map(np.asarray, self.model.init_state())
        self.x = self.data(np.random.default_rng(0), 1, 1.0)
        self.x = jax.tree.map(lambda a: a[0], self.x)
        given = self.model, self.x, self.state, grammar.loss
        self.reference = stepwise.Reference(*given, program.untraced, program.rounded)
        self.of_model, self.of_x = self.reference.of_model, self.reference.of_x
        self.of_state = self.reference.of_state
        self.own = self.of_model.values(self.model)
        self.to_state = None

    def data(self, rng, steps, scale):
        return {
            "x": scale * rng.normal(0.3, 1, (steps, self.program.n_in)),
            "i": rng.integers(0, grammar.N_INT, steps).astype(np.int32),
        }

    def points(self, count, rng=None, kinds=HOW, steps=T):
        """Points in the ways of `kinds` in turn."""
        rng = np.random.default_rng(self.program.seed) if rng is None else rng
        y = [a for a in jax.tree.leaves(self.reference.hooked[1][0]) if stepwise.is_float(a)]
        parameters = [
            np.stack([moved(rng, kinds[k % len(kinds)], p) for k in range(count)]) for p in self.own
        ]
        each = [self.data(rng, steps, rng.choice([1.0, 1.0, 2.5])) for _ in range(count)]
        xs = jax.tree.map(lambda *a: np.stack(a), *each)
        floats = [0.7 * stepwise.like(rng, a, count) for a in self.of_state.values(self.state)]
        floats = [
            np.asarray(a, np.result_type(b))
            for a, b in zip(floats, self.of_state.values(self.state), strict=True)
        ]
        rest = [a[None] for a in self.of_state.rest(self.state)]
        targets = [rng.normal(0, 0.5, (count, steps, *a.shape)) for a in y]
        return Point(parameters, xs, targets, self.of_state.join(floats, rest))

    def beside(self, point: Point):
        """Other data and another state, at the same parameters."""
        floats = [(0.9 - 0.7 * a).astype(a.dtype) for a in self.of_state.values(point.state)]
        state = self.of_state.join(floats, self.of_state.rest(point.state))
        xs = {"x": 0.2 - 0.8 * point.xs["x"][:, ::-1], "i": point.xs["i"][:, ::-1]}
        return Point(point.parameters, xs, [a[:, ::-1] for a in point.targets], state)

    def find_reach(self, count):
        """Whether an operation reaches a state is asked at random points.

        Parameters and states decide which branch is taken: parameters are moved in all ways of `HOW`, and float
        states are random at even steps and those of a rollout at odd ones. Integer states are always of the rollout.
        """
        at = self.points(count // T, np.random.default_rng(self.program.seed + 1))
        found = frozenset()
        for t, state in enumerate(self.reference.forward(at)[0]):
            x = jax.tree.map(lambda a, t=t: a[:, t], at.xs)
            if t % 2 == 0:
                floats = [2 * a for a in self.of_state.values(at.state)]
                state = self.of_state.join(floats, self.of_state.rest(state))
            found |= self.reference.reach(at.parameters, x, state)
        self.to_state = found
        return found


# Ways into a program --------------------------------------------------------------------------------------------------


class Online:
    """The gradient of a program, by one of several ways in."""

    def __init__(self, structure: Structure, program: etpc.Program, entry, parts=2):
        self.structure, self.program, self.entry, self.parts = structure, program, entry, parts
        fresh = evaluate.run(lambda: program.init(2 if entry == "batch" else None))()
        self.fresh = jax.tree.map(lambda a: np.asarray(a)[None], fresh)

    def carry(self, *states):
        arrays = [jax.tree.leaves(state) for state in states]
        new = (
            arrays[0]
            if self.entry != "batch"
            else [np.stack(a, 1) for a in zip(*arrays, strict=True)]
        )
        leaves, tree = jax.tree.flatten(self.fresh)  # the state comes first
        return jax.tree.unflatten(tree, [*new, *leaves[len(new) :]])

    @functools.cached_property
    def traced(self):
        s, program = self.structure, self.program

        if self.entry in ("learn", "batch"):

            def call(parameters, xs, targets, carry):
                run = program.value_and_grad(grammar.loss, reduction="sum")
                (loss, carry), grads = run(s.of_model.join(parameters), xs, targets, carry)
                return loss, jax.tree.leaves(grads), [], carry

            return evaluate.at_points(call)

        def by_inputs(parameters, xs, targets, carry):
            rest = s.of_x.rest(xs)

            def total(parameters, floats):
                return self.total(
                    s.of_model.join(parameters), s.of_x.join(floats, rest), targets, carry
                )

            grad = jax.value_and_grad(total, (0, 1), has_aux=True)
            (loss, after), grads = grad(parameters, s.of_x.values(xs))
            return loss, *grads, after

        return evaluate.at_points(by_inputs)

    def total(self, model, xs, targets, carry):
        """The loss of some steps, and the carry."""
        if self.entry == "call":
            y, carry = self.program(model, xs, carry)
            return grammar.loss(y, targets), carry
        if self.entry == "scan":
            ys, carry = self.program.scan(model, xs, carry)
            return jnp.sum(jax.vmap(grammar.loss)(ys, targets)), carry

        def body(carry, given):
            y, carry = self.program(model, given[0], carry)
            return carry, grammar.loss(y, given[1])

        carry, losses = jax.lax.scan(body, carry, (xs, targets))
        return jnp.sum(losses), carry

    def __call__(self, point: Point, other: Point | None = None):
        """The loss, the gradient, the gradient by inputs (or none)."""
        xs, targets, carry = point.xs, point.targets, None
        if self.entry == "batch":
            assert other is not None
            xs, targets = jax.tree.map(
                lambda a, b: np.stack([a, b], 2), (xs, targets), (other.xs, other.targets)
            )
            carry = self.carry(point.state, other.state)
        else:
            carry = self.carry(point.state)
        whole = len(xs["i"][0])
        steps = 1 if self.entry == "call" else whole // self.parts
        loss, total, inputs = 0.0, None, []
        for start in range(0, whole, steps):
            at = start if self.entry == "call" else slice(start, start + steps)
            here = jax.tree.map(lambda a, at=at: a[:, at], (xs, targets))
            value, grads, by_x, carry = self.traced(point.parameters, *here, carry)
            loss = loss + value
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
            inputs.append([a[:, None] for a in by_x] if self.entry == "call" else by_x)
        inputs = [np.concatenate(evaluate.level(a), 1) for a in zip(*inputs, strict=True)]
        return stepwise.Gradients(loss, total, inputs)


# The comparison -------------------------------------------------------------------------------------------------------


def claims(program: etpc.Program):
    """What is claimed of each float parameter, in the order of the leaves."""
    leaves = program.plan.analysis.step.model_leaves
    paths = [leaves.paths[i] for i in leaves.floats]
    if hasattr(program, "claims"):
        return [program.claims[path].claim for path in paths]
    exact = set(fast.exact_paths(program))
    return ["exact" if path in exact else "approximate" for path in paths]


def off(found, wanted, chosen=None):
    """The largest difference of two lists of arrays, at each point."""
    pairs = zip(found, wanted, chosen or [True] * len(wanted), strict=True)
    return largest([a - b for a, b, one in pairs if one])


def largest(arrays):
    """Of all arrays, at each point; NaN where one of them is NaN."""
    each = [np.max(np.abs(a.reshape(len(a), -1)), axis=1, initial=0.0) for a in arrays]
    return np.max(np.stack(evaluate.level([np.zeros(1), *each])), axis=0)


def rules(number):
    """The second rule of a structure is one of several in turn."""
    return (
        etpc.RTRL(window=2),
        etpc.ES_D_RTRL(rank=1 + number // 20 % 4, window=2),
        etpc.SnAp(1 + number // 20 % 2, window=2),
        etpc.D_RTRL(window=T, backprop="full"),
        etpc.ES_D_RTRL(decay=fast.DECAY, window=2),
    )[number // 4 % 5]


class References(NamedTuple):
    alone: stepwise.Gradients  # of each step, its old state held constant
    bptt: stepwise.Gradients
    d_rtrl: stepwise.Gradients

    @classmethod
    def at(cls, structure: Structure, point: Point, cut):
        states, alone = structure.reference.forward(point)
        bptt = structure.reference.bptt(point, states)
        return cls(alone, bptt, structure.reference.d_rtrl(point, states, cut))

    def uncertainty(self, structure: Structure, point: Point, cut):
        """How far rounding may move these at each point, relative to the gradient; infinite where nothing is certain.

        Ten times the largest difference from `SAMPLES` computations with rounding at random. It is large where the
        computation is ill-conditioned: with a decay of 1e60, a state that is the difference of two products with it
        has no correct digit, and neither has a gradient.
        """
        rng = np.random.default_rng(0)
        apart = np.zeros(1)
        for _ in range(SAMPLES):
            with evaluate.rounding_at_random(rng):
                other = References.at(structure, point, cut)
            for a, b in zip(self, other, strict=True):
                scale = largest(self.bptt.parameters)
                each = [
                    np.abs(a.loss - b.loss) / np.maximum(1, np.abs(a.loss)),
                    off(a.parameters, b.parameters) / scale,
                    off(a.inputs, b.inputs) / np.maximum(scale, largest(self.bptt.inputs)),
                ]
                apart = functools.reduce(np.maximum, each, apart)
        return np.where(np.isfinite(apart), 10 * apart, np.inf)


def check(program: grammar.Program, number=0, count=10, second=True, reach=32) -> Result:
    """`number` says in which way the program is entered, and what the second rule is."""
    begin = time.process_time()
    with np.errstate(all="ignore"), evaluate.wide():
        found = _check(program, number, count, second, reach)
    return found._replace(seconds=time.process_time() - begin)


def _check(program, number, count, second, reach) -> Result:
    structure = Structure(program)
    try:
        to_state = structure.find_reach(reach)
    except (TypeError, FutureWarning):  # derivatives of narrow types that JAX itself refuses
        if not program.narrow:
            raise
        return _check(program.widened, number, count, second, reach)
    try:
        compiled = fast.compiled(structure.model, etpc.D_RTRL(window=2))
    except etpc.SelectionError:  # no use that is marked has an effect
        return _check(dataclasses.replace(program, weights="all"), number, count, second, reach)
    runs = [Online(structure, compiled, entry_of(number))]
    if second:
        rule = rules(number)
        parts = 1 if rule.backprop == "full" else 2
        entry = "scan" if number // 20 % 4 == 3 else "learn"
        runs.append(Online(structure, fast.compiled(structure.model, rule), entry, parts))
    cut = structure.reference.cut(to_state)
    point = structure.points(count)
    wanted = References.at(structure, point, cut)
    if any(online.entry == "batch" for online in runs):
        beside = structure.beside(point)
        both = jax.tree.map(mean, wanted, References.at(structure, beside, cut))
    scale = largest(wanted.bptt.parameters)
    alive = np.broadcast_to(np.isfinite(scale) & (scale > SMALL), (count,))
    errors = {
        "oracle loss": (wanted.d_rtrl.loss - wanted.bptt.loss) / np.maximum(1, wanted.bptt.loss)
    }
    for online in runs:
        if online.entry == "batch":
            scale = largest(both.bptt.parameters)
            alive = alive & np.isfinite(scale) & (scale > SMALL)
            errors |= compare(online, online(point, beside), both)
        else:
            errors |= compare(online, online(point), wanted)
    for name, error in errors.items():
        error = np.where(np.isfinite(error), np.abs(error), np.inf)
        errors[name] = np.broadcast_to(error, alive.shape)
    largest_error = np.max(np.stack([*errors.values()]), axis=0)
    unsettled = np.zeros_like(alive)
    wrong = alive & ~(largest_error < TOLERANCE)
    if wrong.any():
        uncertain = wanted.uncertainty(structure, point, cut)
        if any(online.entry == "batch" for online in runs):
            other = References.at(structure, beside, cut).uncertainty(structure, beside, cut)
            uncertain = np.maximum(uncertain, other)
        unsettled = wrong & np.isfinite(largest_error) & (largest_error <= uncertain)
        alive = alive & ~unsettled
    worst = {name: float(np.max(a[alive], initial=0.0)) for name, a in errors.items()}
    failures = tuple(name for name, error in worst.items() if not error < TOLERANCE)
    unsure = set(structure.reference.names("y")) - structure.to_state
    if reach < RARE and unsure and any("reference" in name for name in failures):
        return _check(program, number, count, second, RARE)
    left_out = int(unsettled.sum())
    return Result(int(alive.sum()), int((~alive).sum()) - left_out, left_out, worst, failures, 0.0)


def entry_of(number):
    """Most programs learn, and the others are entered in other ways in turn, which takes longer."""
    return "learn" if number % 5 else ENTRIES[1:][number // 5 % 4]


def mean(a, b):
    return (a + b) / 2


def compare(online: Online, found: stepwise.Gradients, wanted: References):
    """The errors of one program at each point."""
    rule, bptt = online.program.algorithm, wanted.bptt
    scale = largest(bptt.parameters)
    claimed = claims(online.program)
    exact = [claim == "exact" for claim in claimed]
    errors = {"loss": (found.loss - bptt.loss) / np.maximum(1, np.abs(bptt.loss))}
    errors["exact"] = off(found.parameters, bptt.parameters, exact) / scale
    unused = [claim == "unused" for claim in claimed]
    for grads in (found.parameters, bptt.parameters):
        zero = [np.zeros((1,) * a.ndim) for a in grads]
        errors["unused"] = np.maximum(errors.get("unused", 0), off(grads, zero, unused) / scale)
    if rule.backprop == "cut":
        step = [claim == "current step" for claim in claimed]
        errors["step"] = off(found.parameters, wanted.alone.parameters, step) / scale
    all_traced = online.structure.program.weights == "all"
    if (isinstance(rule, etpc.RTRL) and all_traced) or (
        rule.backprop == "full" and online.parts == 1
    ):
        errors["bptt"] = off(found.parameters, bptt.parameters) / scale
    elif isinstance(rule, etpc.D_RTRL):
        errors["reference"] = off(found.parameters, wanted.d_rtrl.parameters) / scale
    if found.inputs:
        by_inputs = bptt.inputs if rule.backprop == "full" else wanted.alone.inputs
        errors["inputs"] = off(found.inputs, by_inputs) / np.maximum(scale, largest(bptt.inputs))
    return {f"{rule.name} {name}": error for name, error in errors.items()}


# With other connections -----------------------------------------------------------------------------------------------


def check_rewired(program: grammar.Program, count=3) -> float:
    """The error of the gradient after the model's connections were changed in place; zero where that is refused."""
    structure = Structure(program)
    whole = [a for a in jax.tree.leaves(structure.model) if isinstance(a, np.ndarray)]
    if not whole:
        return 0.0
    online = Online(structure, fast.compiled(structure.model, etpc.D_RTRL(window=2)), "learn")
    for array in whole:
        array[...] = np.roll(array, 1, axis=0)
    point = structure.points(count)
    try:
        found = online(point)
    except etpc.InputError:
        return 0.0
    with np.errstate(all="ignore"):
        states, _ = structure.reference.forward(point)
        bptt = structure.reference.bptt(point, states)
        exact = [claim == "exact" for claim in claims(online.program)]
        error = off(found.parameters, bptt.parameters, exact) / largest(bptt.parameters)
    return float(np.nanmax(error))


# In the types that a model asks for -----------------------------------------------------------------------------------

LONG = 512
"""Steps after which a sum in bfloat16 has stopped growing."""


def check_narrow(program: grammar.Program, count=9) -> Result:
    """Losses and gradients rounded as the types of a model say, against BPTT rounded so.

    A state that is stored in fewer bits leaves the outputs of its step as they are. Where data or weights are cast,
    rounding depends on the order of operations: then the median over some points is compared, by the narrowest type.
    The gradient of a long sequence is compared with that in float64: summed in a narrow type it would be far off.
    """
    begin = time.process_time()
    with np.errstate(all="ignore"):
        found = _check_narrow(program, count)
    return found._replace(seconds=time.process_time() - begin)


def _check_narrow(program: grammar.Program, count) -> Result:
    structure = Structure(program)
    try:
        structure.reference.forward(structure.points(1))
    except (TypeError, FutureWarning):  # derivatives of narrow types that JAX itself refuses
        return Result(0, count, 0, {}, (), 0.0)
    online = Online(structure, fast.compiled(structure.model, etpc.D_RTRL(window=2)), "learn")
    exact = [claim == "exact" for claim in claims(online.program)]
    point = structure.points(count)
    states, alone = structure.reference.forward(point)
    bptt = structure.reference.bptt(point, states)
    scale = largest(bptt.parameters)
    alive = np.broadcast_to(np.isfinite(scale) & (scale > 1e-4) & (scale < 1e4), (count,))
    if not alive.any():
        return Result(0, count, 0, {}, (), 0.0)
    found = online(point)
    eps = float(jnp.finfo(program.narrowest).eps)
    rounded = any(op.low or op.cast or op.store for op in program.ops)
    loss = np.abs(found.loss - alone.loss) / np.maximum(1, np.abs(alone.loss))
    grads = off(found.parameters, bptt.parameters, exact) / scale
    middle = lambda error: float(np.median(np.broadcast_to(error, alive.shape)[alive]))
    errors = {"narrow loss": middle(loss) / (32 * eps if rounded else TOLERANCE)}
    errors["narrow exact"] = middle(grads) / (32 * eps)
    if eps > 1e-4 and any(op.cast or op.store for op in program.ops) and any(exact):
        errors["long sum"] = long_sum(structure, exact) / (6 * eps)
    failures = tuple(name for name, error in errors.items() if not error < 1)
    return Result(int(alive.sum()), int((~alive).sum()), 0, errors, failures, 0.0)


def long_sum(structure: Structure, exact, count=3):
    """The relative error of a sum of gradients over many steps, in the middle of some points."""
    program = fast.compiled(structure.model, etpc.D_RTRL(window=1))
    point = structure.points(count, kinds=HOW[:1], steps=LONG)
    point = point._replace(targets=[a + 2 for a in point.targets])
    found = Online(structure, program, "learn", 1)(point)
    with evaluate.wide():
        states, _ = structure.reference.forward(point)
        wanted = structure.reference.bptt(point, states)
    each = [
        np.max(np.abs(a - b)) / np.max(np.abs(b))
        for a, b, one in zip(found.parameters, wanted.parameters, exact, strict=True)
        if one and np.max(np.abs(b)) > 1e-3
    ]
    return float(np.median(each)) if each else 0.0
