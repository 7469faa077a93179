"""A drawn model, compiled once for each rule, against its references at several points.

A point has parameters, data and an initial state other than those that the model was compiled at: what is proved of a
model holds at all of them. The references are backpropagation through time (`tests.helpers`) and the definition of
each approximation (`etpc.reference`).
"""

import dataclasses
import functools
import zlib
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import etpc
from etpc.plan import PASSES
from tests import helpers
from tests.fuzz import grammar, packing
from tests.helpers import by_path, quickly

T = 4
TOLERANCE = 1e-9
SMALL = 1e-7
"""A gradient that is smaller shows nothing."""
DECAY = 0.8
HOW = ("as compiled", "moved", "far", "zeros", "negative")
ENTRIES = ("learn", "scan", "inside a scan", "batch")
RULES = (
    etpc.ES_D_RTRL(decay=DECAY, everywhere=True, window=2),
    etpc.ES_D_RTRL(rank=2, everywhere=True, window=2),
    etpc.ES_D_RTRL(decay=DECAY, window=2),
    etpc.SnAp(2, window=1),
    etpc.D_RTRL(window=T, backprop="full"),
    etpc.D_RTRL(window=2, backprop="full"),
    etpc.D_RTRL(window=1, lookback=T),
    etpc.CreditRTRL(q=2, rank=None, window=2),
    etpc.EProp(window=2),
    etpc.D_RTRL(window=2, through=True),
    etpc.EProp(kappa=DECAY, window=2),
    etpc.OSTL(window=2),
    etpc.RFLO(DECAY, "symmetric", window=2),
    etpc.OTTT(DECAY, window=2),
    etpc.OTPE(DECAY, window=2),
)
"""The third rule of a structure is one of these in turn."""


class Point(NamedTuple):
    model: grammar.DrawnModel
    xs: dict
    targets: list
    state: object


class Result(NamedTuple):
    points: int  # where the gradient was alive, and all was compared
    errors: dict[str, float]  # the largest of each property
    failures: tuple[str, ...]  # of which it was too large


def moved(rng, how, leaf):
    """Other values of a parameter."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    p = np.asarray(leaf)
    noise = rng.normal(size=p.shape)
    new = {
        "as compiled": lambda: p,
        "moved": lambda: p * (1 + 0.4 * noise) + 0.2 * rng.normal(size=p.shape),
        "far": lambda: 2.5 * noise,
        "zeros": lambda: p * (rng.random(p.shape) < 0.5) * (rng.random() < 0.8),
        "negative": lambda: -p,
    }[how]()
    return jnp.asarray(new, p.dtype)


def data(program, rng, steps=T, scale=1.0):
    return {
        "x": jnp.asarray(scale * rng.normal(0.3, 1, (steps, program.n_in))),
        "i": jnp.asarray(rng.integers(0, grammar.N_INT, steps), jnp.int32),
    }


@quickly
def exact_gradients(model, xs, targets, state, stop):
    """The loss, and its gradients by the model and by the inputs; with `stop` those of each step alone."""

    def total(both):
        return helpers.loss_of_sequence(*both, targets, state, stop=stop)

    return eqx.filter_value_and_grad(total)((model, xs))


@quickly
def defined(known, model, xs, targets, state, rule):
    """The gradient by the definition of a rule. The integer arrays of the model are known, as where it is compiled."""
    model = jax.tree.map(lambda a, b: a if eqx.is_inexact_array(a) else b, model, known())
    return etpc.reference(model, xs, targets, helpers.loss, rule, state=state, reduction="sum")[1]


class Case:
    """A drawn model with its points and references."""

    def __init__(self, program: grammar.Program):
        self.program = program
        self.model = grammar.DrawnModel(program)
        self.apart = grammar.Apart(self.model, self.model)
        # functions, as `quickly` makes every array that it is given unknown
        self.known, self.known_apart = (lambda: self.model), (lambda: self.apart)
        self.state = self.model.init_state()
        self.x = jax.tree.map(lambda a: a[0], data(program, np.random.default_rng(0), 1))

    def points(self, count, hows=HOW):
        rng = np.random.default_rng(self.program.seed)
        y = jax.tree.leaves(jax.eval_shape(self.model, self.x, self.state)[0])
        floats = [a.shape for a in y if jnp.issubdtype(a.dtype, jnp.inexact)]
        is_float = lambda a: jnp.issubdtype(a.dtype, jnp.inexact)
        for k in range(count):
            model = jax.tree.map(lambda a, k=k: moved(rng, hows[k % len(hows)], a), self.model)
            state = jax.tree.map(
                lambda a: (
                    a + (0.7 * rng.normal(size=a.shape)).astype(a.dtype) if is_float(a) else a
                ),
                self.state,
            )
            targets = [jnp.asarray(rng.normal(0, 0.5, (T, *shape))) for shape in floats]
            yield Point(model, data(self.program, rng, T, rng.choice([1.0, 2.5])), targets, state)

    def compile(self, rule, passes=None) -> etpc.Program:
        weights = self.program.weights if self.program.marked else "all"
        return etpc.compile(self.model, rule, inputs=self.x, weights=weights, passes=passes)

    def reference(self, point: Point, rule):
        """The gradient by the definition of a rule. What has no trace has that of each step or full window alone."""
        if self.program.weights == "all" or not self.program.marked:
            return defined(self.known, *point, rule)
        apart = point._replace(model=grammar.Apart(point.model, point.model))
        if rule.backprop == "full":
            alone = defined(self.known_apart, *apart, etpc.TBPTT(rule.window))
        else:
            alone = exact_gradients(*apart, True)[1][0]
        return jax.tree.map(jnp.add, defined(self.known_apart, *apart, rule).marked, alone.others)


# Ways into a program --------------------------------------------------------------------------------------------------


def online(program: etpc.Program, entry, point: Point, parts=2):
    """The loss, the gradient, and the gradient by the inputs (or none)."""
    model, xs, targets, state = point
    batch = 2 if entry == "batch" else None
    if batch:  # of a sequence and its reversal
        xs, targets = jax.tree.map(lambda a: jnp.stack([a, a[::-1]], 1), (xs, targets))
        state = jax.tree.map(lambda a: jnp.stack([a, a]), state)
    carry = eqx.tree_at(lambda carry: carry.state, program.init(batch), state)
    run = functools.partial(_learn if entry in ("learn", "batch") else _by_inputs, program, entry)
    total, losses, inputs = None, 0.0, []
    for start in range(0, T, T // parts):
        part = jax.tree.map(lambda a, at=start: a[at : at + T // parts], (xs, targets))
        loss, (grads, by_x), carry = run(model, *part, carry)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        losses, inputs = losses + loss, [*inputs, by_x]
    by_x = None if inputs[0] is None else jax.tree.map(lambda *a: jnp.concatenate(a), *inputs)
    return losses, (total, by_x)


def _learn(program, entry, model, xs, targets, carry):
    run = program.value_and_grad(helpers.loss, reduction="sum")
    (loss, carry), grads = run(model, xs, targets, carry)
    return loss, (grads, None), carry


@quickly
def _by_inputs(program, entry, model, xs, targets, carry):
    def total(both):
        model, xs = both
        if entry == "scan":
            ys, after = program.scan(model, xs, carry)
            return jnp.sum(jax.vmap(helpers.loss)(ys, targets)), after

        def body(carry, step_data):
            y, carry = program(model, step_data[0], carry)
            return carry, helpers.loss(y, step_data[1])

        after, losses = jax.lax.scan(body, carry, (xs, targets))
        return jnp.sum(losses), after

    (loss, after), grads = eqx.filter_value_and_grad(total, has_aux=True)((model, xs))
    return loss, grads, after


# The comparison -------------------------------------------------------------------------------------------------------


def check(program: grammar.Program, number=0, count=5) -> Result:
    """`number` says in which way the program is entered, and what the third rule is."""
    case = Case(program)
    entry = ENTRIES[number % len(ENTRIES)]
    window = 2 - number // len(ENTRIES) % 2
    rules = {etpc.D_RTRL(window=window): entry, etpc.RTRL(window=3 - window): "learn"}
    rules[RULES[number // len(ENTRIES) % len(RULES)]] = "learn"
    try:
        programs = [(case.compile(rule), way) for rule, way in rules.items()]
    except etpc.SelectionError:  # no use that is marked has an effect
        program = case.program = dataclasses.replace(program, weights="all")
        programs = [(case.compile(rule), way) for rule, way in rules.items()]
    others = [
        of_packed(case, *programs[2 * (number % 2)], number),
        of_passes(case, *programs[number // 2 % 3], number),
    ]
    eps = float(jnp.finfo(program.narrowest).eps)
    tolerance = 64 * eps if program.narrow else TOLERANCE
    found: dict[str, list[float]] = {}
    points = 0
    for point in case.points(count):
        wanted = References(case, point)
        if not wanted.settled:
            continue
        points += 1
        errors = others[0](point, wanted) | others[1](point, wanted)
        for online_program, way in programs:
            errors |= compare(case, point, online_program, way, wanted)
        for name, error in errors.items():
            found.setdefault(name, []).append(error if np.isfinite(error) else np.inf)
    # Where types are narrow, rounding depends on the order of operations, and a branch on rounding.
    worst = np.median if program.narrow else np.max
    errors = {name: float(worst(each)) for name, each in found.items()}
    return Result(points, errors, tuple(name for name, e in errors.items() if not e < tolerance))


class References:
    """The gradients of backpropagation through time at a point, and of each step alone."""

    def __init__(self, case: Case, point: Point):
        self.loss, (self.bptt, self.by_inputs) = exact_gradients(*point, False)
        self.alone, self.inputs_alone = exact_gradients(*point, True)[1]
        self.scale = size(self.bptt)
        self.settled = bool(np.isfinite(self.scale)) and self.scale > SMALL
        if self.settled:
            self.settled = self.conditioned(point, case.program.narrow)

    def conditioned(self, point, narrow):
        """Whether the last digit of the parameters does not matter: rounding explains any error where it does.

        With a decay of 1e60, a state that is the difference of two products with it has no correct digit.
        """
        rng = np.random.default_rng(0)
        change = lambda a: (
            a * (1 + float(jnp.finfo(a.dtype).eps) * rng.choice([-1.0, 1.0], a.shape))
        )
        near = lambda a: change(a).astype(a.dtype) if eqx.is_inexact_array(a) else a
        bptt = exact_gradients(jax.tree.map(near, point.model), *point[1:], False)[1][0]
        return narrow or 100 * difference(bptt, self.bptt) / self.scale < TOLERANCE

    def of_batch(self, point: Point):
        """The mean of a sequence and its reversal."""
        backwards = jax.tree.map(lambda a: a[::-1], (point.xs, point.targets))
        loss, (bptt, _) = exact_gradients(point.model, *backwards, point.state, False)
        alone = exact_gradients(point.model, *backwards, point.state, True)[1][0]
        mean = lambda a, b: (a + b) / 2
        return mean(self.loss, loss), *jax.tree.map(mean, (self.bptt, self.alone), (bptt, alone))


def compare(case: Case, point: Point, program: etpc.Program, entry, wanted: References):
    """The errors of one program at one point."""
    rule = program.algorithm
    whole = in_one_window(rule)
    loss, (grads, by_inputs) = online(program, entry, point, 1 if whole else 2)
    loss_wanted, bptt, alone = wanted.loss, wanted.bptt, wanted.alone
    if entry == "batch":
        loss_wanted, bptt, alone = wanted.of_batch(point)
    claims = {path: claim.claim for path, claim in program.claims.items()}
    zero = jax.tree.map(jnp.zeros_like, bptt)

    def off(reference, *wanted_claims):
        return difference(grads, reference, claims, wanted_claims) / wanted.scale

    errors = {
        "loss": abs(float(loss - loss_wanted)) / max(1, abs(float(loss_wanted))),
        "exact": off(bptt, "exact"),
        "unused": max(off(zero, "unused"), difference(bptt, zero, claims, ["unused"])),
    }
    if rule.backprop == "cut":
        errors["step"] = off(alone, "current step")
    all_traced = case.program.weights == "all"
    if (isinstance(rule, etpc.RTRL) and rule.rank is None and all_traced) or whole:
        errors["bptt"] = off(bptt)
    # A program finds the modes of a rank to a few per cent; `tests.test_definition` has it find them.
    if getattr(rule, "rank", None) is None and entry != "batch":
        # 0 times infinity, in a derivative that nothing reads, is NaN in the reference alone.
        read = lambda a, b: jnp.where(jnp.isnan(a) & (b == 0), 0, a)
        errors["reference"] = off(jax.tree.map(read, case.reference(point, rule), bptt))
    if by_inputs is not None:
        reference = wanted.by_inputs if rule.backprop == "full" else wanted.inputs_alone
        scale = max(wanted.scale, size(wanted.by_inputs))
        errors["inputs"] = difference(by_inputs, reference) / scale
    return {f"{rule.name} {name}": error for name, error in errors.items()}


def in_one_window(rule):
    return rule.backprop == "full" and rule.window == T


def of_packed(case: Case, program: etpc.Program, entry, number):
    """The error of a program against that of the same model with its states packed in another way, as a function of a
    point."""
    rule, none = program.algorithm, lambda point, wanted: {}
    # The first draws its directions for the states as they are stored. The other chooses by the size of whole traces,
    # which depends on that too.
    if isinstance(rule, etpc.CreditRTRL) or not getattr(rule, "everywhere", True):
        return none
    # copies count in the norm in which a rank is the best
    has_copies = number // 2 % 2 and getattr(rule, "rank", None) is None
    ways = packing.COPIES if has_copies else packing.WAYS
    pack = functools.partial(packing.Packed, ways=tuple(ways), number=number)
    weights = case.program.weights if case.program.marked else "all"
    other = etpc.compile(pack(case.model), rule, inputs=case.x, weights=weights)

    def error(point: Point, wanted: References):
        parts = 1 if in_one_window(rule) else 2
        _, (plain, _) = online(program, entry, point, parts)
        model = pack(point.model)
        packed = point._replace(model=model, state=model.pack(point.state))
        _, (grads, _) = online(other, entry, packed, parts)
        return {f"{rule.name} packed": difference(grads.model, plain) / wanted.scale}

    return error


def of_passes(case: Case, program: etpc.Program, entry, number):
    """The error of a program against that with a random subset of the passes, or none, as a function of a point."""
    rng = np.random.default_rng([case.program.seed, number])
    chosen = [name for name in PASSES if rng.random() < 0.25 * (number % 3)]
    other = case.compile(program.algorithm, chosen)
    # An error of 1e-11 is too much, where all numbers are double.
    unit = 1.0 if case.program.narrow else 1e-2

    def error(point: Point, wanted: References):
        parts = 1 if in_one_window(program.algorithm) else 2
        _, (all_passes, _) = online(program, entry, point, parts)
        _, (grads, _) = online(other, entry, point, parts)
        name = f"{program.algorithm.name} passes"
        return {name: difference(grads, all_passes) / wanted.scale / unit}

    return error


def size(grads):
    # NumPy warns of NaN in bfloat16, and not in its own types.
    sizes = [np.abs(g).astype(np.float64) for g in by_path(grads).values()]
    return max((a.max(initial=0.0) for a in sizes), default=0.0)


def difference(found, wanted, claims=None, chosen=()):
    """The largest difference of two gradients, of the parameters that have one of some claims."""
    found, wanted = by_path(found), by_path(wanted)
    assert found.keys() == wanted.keys()
    paths = [path for path in wanted if not chosen or claims[path] in chosen]
    each = [np.abs(np.asarray(found[path] - wanted[path])).max(initial=0.0) for path in paths]
    return float(np.max([0.0, *each]))


def check_patterns(program: grammar.Program) -> None:
    """Whether the pattern of a step holds at random points; raises where it does not."""
    case = Case(program)
    etpc.analyse.check_pattern(lambda x, state: case.model(x, state), case.x, case.state)


def check_rewired(program: grammar.Program) -> float:
    """The error of the gradient after the model's connections were changed in place; zero where that is refused."""
    case = Case(program)
    online_program = case.compile(etpc.D_RTRL(window=2))
    for array in jax.tree.leaves(case.model):
        if isinstance(array, np.ndarray):
            array[...] = np.roll(array, 1, axis=0)
    (point,) = case.points(1)
    try:
        _, (grads, _) = online(online_program, "learn", point)
    except etpc.InputError:
        return 0.0
    claims = {path: claim.claim for path, claim in online_program.claims.items()}
    wanted = References(case, point)
    return difference(grads, wanted.bptt, claims, ["exact"]) / wanted.scale


# Runs -----------------------------------------------------------------------------------------------------------------


def drawn(seed, number, kinds=grammar.KINDS) -> grammar.Program:
    """The structure of a number: always the same."""
    rng = np.random.default_rng((seed, number))
    options = {"narrow": number % 7 == 1, "marks": number % 7 < 2, "complex": number % 5 == 0}
    if number % 3 == 0:
        kinds = [kind for kind in kinds if kind in grammar.FIXED_BRANCHES]
    return grammar.random_program(rng, kinds=kinds, **options)


def outcome(program, number, count=5):
    """The result of a structure, and a word for how it failed (empty where it did not)."""
    try:
        # elsewhere a Jacobian has NaN where no influence passes
        if not program.narrow and all(op.kind in grammar.FIXED_BRANCHES for op in program.ops):
            check_patterns(program)
        result = check(program, number, count)
    except Exception as error:  # whatever it is, a run goes on
        trace, place = error.__traceback__, ""
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            place = f"{name.split('etpc/')[-1]}:{trace.tb_lineno}" if "/etpc/" in name else place
            trace = trace.tb_next
        return None, f"{type(error).__name__} at {place}: {zlib.crc32(str(error).encode()):08x}"
    return result, " ".join(result.failures)


def smallest(program, number, failure, budget=40):
    """The smallest structure that is found to fail in the same way."""
    same = failure.split(":")[0]
    fails = lambda candidate: outcome(candidate, number, 2)[1].split(":")[0] == same
    return grammar.shrink(program, fails, budget)
