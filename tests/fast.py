"""One drawn model against its references in about a second: what `tests.test_gradients` checks, without compiling.

Programs and references are traced and evaluated in NumPy (`tests.evaluate`), and the analysis of the model and the
pieces of its steps are shared between what is compared. The sequence is given in two calls, so that each window
ends before the sequence does, and the program is traced once for both.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import etpc
from etpc.emit._step import StepFunctions
from tests import evaluate, grammar, oracle

T = 4
POINTS = 32
MANY_POINTS = 2000
"""Where a comparison fails: is there a rare branch that few points have not found?"""
DECAY = 0.8


class Dead(Exception):
    """The gradient is zero, or not a number: there is nothing to compare."""


def as_dict(grads):
    return {jax.tree_util.keystr(k): np.asarray(g) for k, g in jax.tree.leaves_with_path(grads)}


def distance(a, b, keys=None):
    """The largest difference, over the largest entry of b."""
    a, b = as_dict(a), as_dict(b)
    assert a.keys() == b.keys()
    scale = max(np.max(np.abs(g), initial=0.0) for g in b.values())
    keys = b if keys is None else keys
    return float(max((np.max(np.abs(a[k] - b[k]), initial=0.0) for k in keys), default=0) / scale)


@functools.cache
def treatment() -> grammar.Treatment:
    """Whether the compiler unrolls loops with weights, and what it cuts: asked of small programs."""
    Op = grammar.Op

    def cuts(kind):
        leaf = grammar.Leaf(before=(Op("tanh"), Op(kind)))
        program = grammar.Program((leaf,), readout=False)
        model = grammar.DrawnModel(program)
        return any(op.op.kind.data is not None for op in compiled(model, "d_rtrl").plan.ops)

    families = ("conv", "embedding", "sparse", "branch_by_row")
    uncut = tuple(kind.split("_")[0] for kind in families if not cuts(kind))
    return grammar.Treatment(unrolled=cuts("scan_weight"), uncut=uncut)


def compiled(model, algo) -> etpc.Program:
    x = grammar.data(model.program, 1, at=0)
    weights = model.program.weights if model.program.marked else "all"
    return etpc.compile(model, algo, inputs=x, weights=weights)


def summed(run: Callable, model, xs, targets, carry, parts=2):
    """The loss and the gradient of a stream in several calls."""
    total = None
    steps = T // parts
    for start in range(0, T, steps):
        here = slice(start, start + steps)
        x, target = jax.tree.map(lambda a, here=here: a[here], (xs, targets))
        (loss, carry), grads = run(model, x, target, carry)
        new = loss, grads
        total = new if total is None else jax.tree.map(np.add, total, new)
    return total


class Case:
    """A drawn model with a sequence and its references."""

    def __init__(self, program: grammar.Program, seed=0):
        self.model = model = grammar.DrawnModel(program, treatment())
        self.program = program
        self.xs = grammar.data(program, T, seed)
        self.x = jax.tree.map(lambda a: a[0], self.xs)
        self.state = model.init_state()
        y = jax.eval_shape(model, self.x, self.state)[0]
        rng = np.random.default_rng(program.seed + seed + 2)
        floats = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]
        self.targets = [jnp.asarray(rng.normal(0, 0.5, (T, *a.shape))) for a in floats]

    @functools.cached_property
    def bptt(self):
        with oracle.in_numpy():
            grads = oracle.bptt(self.model, self.xs, self.targets, grammar.loss, self.state)
        sizes = [np.abs(g).max(initial=0.0) for g in as_dict(grads).values()]
        if not np.isfinite(sizes).all() or max(sizes, default=0) < 1e-6:
            raise Dead(f"gradients of size {sizes}")
        return grads

    @functools.cached_property
    def structure(self) -> oracle.Structure:
        return self.structure_at(POINTS)

    def structure_at(self, points) -> oracle.Structure:
        xs = grammar.data(self.program, points, seed=1000)
        xs["x"] = 1.5 * xs["x"]
        with oracle.in_numpy():
            return oracle.structure(self.model, self.x, self.state, xs=xs)

    def pieces(self, to_state) -> oracle.Pieces:
        given = self.model, self.xs, self.targets, grammar.loss, self.state, to_state
        with oracle.in_numpy():
            return oracle.all_pieces(*given)

    @functools.cached_property
    def own_pieces(self):
        return self.pieces(self.structure.to_state)

    def reference(self, algo, pieces=None, **options):
        pieces = self.own_pieces if pieces is None else pieces
        grads = oracle.combine(pieces, algo=algo, decay=DECAY, **options)
        with oracle.in_numpy():
            return oracle.pull_back(self.model, self.x, self.state, grads)

    def program_of(self, algo):
        return compiled(self.model, algo)

    def online(self, program: etpc.Program, parts=2):
        """The gradient of a program."""
        run = evaluate.run(program.value_and_grad(grammar.loss, "sum"))
        carry = evaluate.run(program.init)()
        return summed(run, self.model, self.xs, self.targets, carry, parts)[1]


def batch(case: Case, program: etpc.Program, first):
    """A batch of two against its examples."""
    order = np.array([2, 0, 3, 1])
    other = jax.tree.map(lambda a: a[order], (case.xs, case.targets))
    run = evaluate.run(program.value_and_grad(grammar.loss, "sum"))
    second = summed(run, case.model, *other, evaluate.run(program.init)())[1]
    both = jax.tree.map(lambda a, b: np.stack([a, b], 1), (case.xs, case.targets), other)
    carry = evaluate.run(lambda: program.init(2))()
    together = summed(run, case.model, *both, carry)[1]
    return distance(together, jax.tree.map(lambda a, b: (a + b) / 2, first, second))


def exact_paths(program: etpc.Program):
    """Parameters of which all operations are said to be exact."""
    leaves = program.plan.analysis.step.model_leaves
    inexact = {i for p in program.plan.ops if not p.exact for i in p.op.parameters}
    return [leaves.paths[i] for i in leaves.floats if i not in inexact]


def check(program: grammar.Program, seed=0, thorough=False, points=POINTS) -> dict[str, float]:
    """The largest error of each property."""
    case = Case(program, seed)
    case.structure = case.structure_at(points)
    bptt = case.bptt
    found = {"oracle": distance(case.reference("rtrl"), bptt)}
    found["oracle L"] = distance(
        case.reference("d_rtrl", form="L"), reference := case.reference("d_rtrl")
    )
    found["rtrl"] = distance(case.online(case.program_of(etpc.RTRL(window=2))), bptt)
    compiled = case.program_of(etpc.D_RTRL(window=2))
    online = case.online(compiled)
    found["exact"] = distance(online, bptt, exact_paths(compiled))
    found["d_rtrl"] = distance(online, reference)
    smoothed = case.online(case.program_of(etpc.ES_D_RTRL(decay=DECAY, window=2)))
    found["es_d_rtrl"] = distance(smoothed, case.reference("es_d_rtrl"))
    approximate = max(found["d_rtrl"], found["es_d_rtrl"]) > 1e-9
    if approximate and points < MANY_POINTS:
        return check(program, seed, thorough, MANY_POINTS)
    pattern = compiled.plan.analysis.transition.toarray()
    found["pattern"] = float(np.any(case.structure.D & ~pattern))
    if thorough:
        windowed = case.online(case.program_of(etpc.D_RTRL(window=T, backprop="full")), 1)
        found["full window"] = distance(windowed, bptt)
        single = case.online(case.program_of(etpc.D_RTRL(window=1)), 1)
        found["window 1"] = distance(single, online)
        found["snap"] = distance(case.online(case.program_of(etpc.SnAp(64, window=2))), bptt)
        found["auto"] = distance(case.online(case.program_of(etpc.algorithms.Auto())), bptt)
        found["batch"] = batch(case, compiled, online)
    return found


def check_patterns(program: grammar.Program, seed=0, points=4) -> dict[str, float]:
    """Whether the patterns of D and F hold at random points, with the data of operations cut and not.

    Nothing else is compared, so that this is some times faster than `check`.
    """
    model = grammar.DrawnModel(program, treatment())
    x, state = grammar.data(program, 1, at=0), model.init_state()

    def reading_all(model, x, state):
        """States that no output depends on would be left out."""
        y, new = model(x, state)
        return (y, state), new

    step = etpc.trace.trace(model, x, step=reading_all)
    parameters = step.model_leaves.split(model)
    rng = np.random.default_rng(program.seed + seed)
    found = {}
    for cut in (True, False):
        analysis = etpc.analyse.analyse(step, cut=cut)
        functions = StepFunctions(analysis)

        def jacobians(x, state, functions=functions):
            weights, others = functions.prefix(parameters)
            one = [[a[None, None] for a in x], [a[None] for a in state]]
            course = functions.run(weights, others, *one, outputs=False)
            saved = [a[0, 0] for a in course.wanted]
            parts = functions.parts(state, jnp.float64)
            bounds = np.cumsum([part.size for part in parts])[:-1]

            def new(vector, deltas):
                old = jnp.split(vector, bounds)
                return jnp.concatenate(
                    functions.cut(weights, others, x, state, saved, old, deltas, jnp.float64)
                )

            vector = jnp.concatenate(parts)
            deltas = [jnp.zeros(op.delta.shape, op.delta.dtype) for op in functions.live]
            return jax.jacrev(new, (0, 1))(vector, deltas)

        run = evaluate.run(jacobians)
        outside = 0
        for point in range(points):
            values = step.input_leaves.split(grammar.data(program, 1, seed=500 + point, at=0))
            moved = [
                a + rng.normal(size=np.shape(a)).astype(a.dtype)
                if jnp.issubdtype(a.dtype, jnp.inexact)
                else a
                for a in step.state_leaves.split(state)
            ]
            transition, immediate = run(values, moved)
            outside += np.sum((transition != 0) & ~analysis.transition.toarray())
            for op, entries in zip(functions.live, immediate, strict=True):
                pattern = analysis.immediate[op.number].toarray()
                outside += np.sum((entries.reshape(pattern.shape) != 0) & ~pattern)
        found["cut" if cut else "uncut"] = float(outside)
    return found
