"""Each kind of weight operation against the derivative of the operation itself.

A kind says how a weight enters `y = op(x, w)`: by its factor `x`, and by a perturbation of the
output. So for any cotangent of `y`, the gradient of the weight is `contract` of the factor with the
cotangent in canonical form, and `gather` of the product of the two for each use.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import sparse

import etpc
from etpc import ops
from etpc._jax import canonicalise, evaluate, prims
from etpc._jax.primitives import FACTS, Facts, facts
from etpc.analyse._weights import split
from etpc.trace import trace
from tests.helpers import normal


def found(function, model, x):
    """The operation in which the model's float array meets data, and its operands' values."""
    step = trace(model, x, jnp.zeros(()), lambda m, x, s: (function(m, x), s))
    (op,) = split(step).ops
    env = dict(step.constants)
    leaves = [leaf for leaf in jax.tree.leaves(model) if hasattr(leaf, "dtype")]
    env.update(zip(step.parameters, leaves, strict=True))
    env.update(zip(step.inputs, jax.tree.leaves(x), strict=True))
    env.update(zip(step.state, [jnp.zeros(())], strict=True))
    evaluate(step.equations, env)
    return op, [env[v] for v in op.equation.inputs]


def check(function, model, x, kind):
    op, values = found(function, model, x)
    assert type(op.kind) is kind
    assert isinstance(op.kind, ops.Kind)

    @jax.jit
    def run(values):
        (y,) = op.equation.bind(*values)
        delta = jnp.zeros(op.delta.shape, op.delta.dtype)
        (shifted,), back = jax.vjp(lambda d: op.kind.shift_outputs([y], d), delta)
        bar = normal(*y.shape, seed=8).astype(y.dtype)
        (credit,) = back([bar])

        def of_weight(w):
            return op.equation.bind(*[w if i == op.operand else v for i, v in enumerate(values)])[0]

        (expected,) = jax.vjp(of_weight, values[op.operand])[1](bar)
        factor = op.kind.factor([v if i == op.kind.data else None for i, v in enumerate(values)])
        assert factor.shape == (op.kind.groups, op.kind.inputs)
        links = op.kind.links
        if links is None:
            uses = factor[:, :, None] * credit[:, None, :]
        else:
            uses = factor[:, links.inputs] * credit[:, links.outputs]
        summed = op.kind.contract(factor[None], credit[None])
        return y, shifted, expected, summed, op.kind.gather(uses)

    y, shifted, expected, summed, gathered = run(values)
    np.testing.assert_array_equal(shifted, y)
    assert np.abs(expected).max() > 0
    for one in (summed, gathered):
        np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12)
    return op.kind


CONTRACTIONS = {
    "matrix times vector": ("oi,i->o", (4, 3), (3,)),
    "vector times matrix": ("i,io->o", (3, 4), (3,)),
    "two axes summed": ("oij,ij->o", (4, 2, 3), (2, 3)),
    "data with free axes": ("oi,fig->fog", (4, 3), (2, 3, 5)),
    "groups": ("gi,gio->go", (2, 3, 4), (2, 3)),
    "groups and free axes": ("hoi,hif->hof", (2, 4, 3), (2, 3, 5)),
    "scalar output": ("i,i->", (3,), (3,)),
    "outer product, with an axis of size 1": ("oi,fi->of", (4, 1), (3, 1)),
    "complex": ("oi,i->o", (4, 3), (3,)),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_contraction(name):
    formula, weight, data = CONTRACTIONS[name]
    w, x = normal(*weight), normal(*data, seed=1)
    if name == "complex":
        w, x = w + 1j * normal(*weight, seed=2), x + 1j * normal(*data, seed=3)
    weight_first = formula.split(",")[0] not in ("i", "gi") or name == "scalar output"

    def function(m, x):
        return jnp.einsum(formula, *((m, x) if weight_first else (x, m)))

    check(function, w, x, ops.Contraction)


EMPTY = {
    "no inputs": ("ij,ijo->o", (0, 3, 2), (0, 3)),
    "no groups": ("hgi,hgio->hgo", (0, 3, 4, 2), (0, 3, 4)),
    "no outputs": ("i,iop->op", (2, 0, 3), (2,)),
    "no data": ("fi,io->fo", (2, 3), (0, 2)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_contraction_of_nothing(name):
    formula, weight, data = EMPTY[name]
    op, values = found(
        lambda m, x: jnp.einsum(formula, x, m), jnp.zeros(weight), normal(*data, seed=1)
    )
    kind = op.kind
    assert isinstance(kind, ops.Contraction)
    credit = normal(1, kind.groups, kind.outputs, seed=2)
    summed = kind.contract(kind.factor(values)[None], credit)
    np.testing.assert_array_equal(summed, jnp.zeros(values[op.operand].shape))


@st.composite
def gathers(draw):
    """Arguments of a `gather` of whole rows from a weight, of which some axes are collapsed."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    axes = range(len(shape))
    rows = draw(st.permutations([axis for axis in axes if draw(st.booleans())] or [0]))
    sizes = [1 if axis in rows else shape[axis] for axis in axes]
    ones = [axis for axis in axes if sizes[axis] == 1]
    collapsed = [axis for axis in ones if draw(st.booleans())]
    lead = draw(st.lists(st.integers(1, 3), max_size=2))
    count = len(shape) - len(collapsed)
    places = sorted(draw(st.permutations(range(count + len(lead))))[:count])
    numbers = lax.GatherDimensionNumbers(tuple(places), tuple(collapsed), tuple(rows))
    return shape, numbers, tuple(sizes), (*lead, len(rows))


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(gathers())
def test_any_gather_of_rows(drawn):
    shape, numbers, sizes, index_shape = drawn
    rows = np.array([shape[axis] for axis in numbers.start_index_map])
    index = np.random.default_rng(1).integers(0, 3, index_shape) % rows

    def function(w, i):
        return lax.gather(w, i, numbers, sizes, mode="clip")

    check(function, normal(*shape), jnp.asarray(index), ops.Lookup)


@st.composite
def convolutions(draw):
    n = draw(st.integers(1, 3))
    small = st.integers(1, 2)
    groups = draw(small)
    kernel = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    names = "DHW"[-n:]
    return dict(
        groups=groups,
        weight=(groups * draw(small), draw(small), *kernel),
        batch=draw(small),
        shape=draw(st.lists(st.integers(3, 5), min_size=n, max_size=n)),
        strides=draw(st.lists(small, min_size=n, max_size=n)),
        padding=draw(
            st.lists(
                st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(lambda p: sum(p) > 0)
                | st.just((2, 2)),
                min_size=n,
                max_size=n,
            )
        ),
        lhs_dilation=draw(st.lists(small, min_size=n, max_size=n)),
        rhs_dilation=draw(st.lists(small, min_size=n, max_size=n)),
        layout=draw(
            st.sampled_from(
                [
                    ("NC" + names, "OI" + names, "NC" + names),
                    ("N" + names + "C", names + "IO", "N" + names + "C"),
                    (names + "NC", "I" + names + "O", "C" + names + "N"),
                ]
            )
        ),
    )


@pytest.mark.slow
@given(convolutions())
@settings(max_examples=12)
def test_convolution(c):
    n = len(c["shape"])
    plain_x = normal(c["batch"], c["groups"] * c["weight"][1], *c["shape"], seed=1)
    plain_w = normal(*c["weight"])
    logical_x = "NC" + "DHW"[-n:]
    logical_w = "OI" + "DHW"[-n:]
    x = plain_x.transpose([logical_x.index(a) for a in c["layout"][0]])
    w = plain_w.transpose([logical_w.index(a) for a in c["layout"][1]])

    def function(w, x):
        return lax.conv_general_dilated(
            x,
            w,
            c["strides"],
            c["padding"],
            c["lhs_dilation"],
            c["rhs_dilation"],
            c["layout"],
            feature_group_count=c["groups"],
        )

    if function(w, x).size and np.abs(jax.grad(lambda w: function(w, x).sum())(w)).max() > 0:
        check(function, w, x, ops.Convolution)


def test_transposed_convolution():
    def function(w, x):
        return lax.conv_transpose(x, w, (2,), "SAME", dimension_numbers=("NCH", "OIH", "NCH"))

    check(function, normal(2, 3, 3), normal(1, 3, 4, seed=1), ops.Convolution)


LOOKUPS = {
    "take": lambda w, i: jnp.take(w, i[:2], axis=0),
    "take along the second axis": lambda w, i: jnp.take(w, i[:2], axis=1),
    "clip": lambda w, i: jnp.take(w, i[:3] + 2, axis=0, mode="clip"),
    "two indices": lambda w, i: w[i[:2], i[1:3]],
    "a batch of indices": lambda w, i: w[i.reshape(2, 2)],
    "out of range is zero": lambda w, i: w.at[i + 2].get(mode="fill", fill_value=0),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookup(name):
    weight = normal(4, 5, 2) if name != "two indices" else normal(4, 5)
    check(LOOKUPS[name], weight, jnp.array([2, 0, 3, 0]), ops.Lookup)


def test_row_by_a_moving_index():
    check(lambda w, i: w[i], normal(4, 3), jnp.array(2), ops.Lookup)
    check(lambda w, i: lax.dynamic_slice(w, (0, i), (4, 1)), normal(4, 3), jnp.array(9), ops.Lookup)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_sparse_product(shape):
    at = jnp.array([[0, 1], [3, 2], [1, 1], [3, 0], [0, 1]])  # one place twice
    matrix = sparse.BCOO((normal(5), at), shape=(4, 3))
    check(lambda m, x: m @ x, matrix, normal(*shape, seed=1), ops.Sparse)
    other = sparse.BCOO((normal(5), at[:, ::-1]), shape=(3, 4))
    check(lambda m, x: x @ m, other, normal(*shape[::-1], seed=1), ops.Sparse)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
@pytest.mark.parametrize("format", [sparse.COO, sparse.CSR, sparse.CSC])
def test_sparse_products_of_other_formats(format, shape):
    dense = normal(4, 3) * (normal(4, 3, seed=2) > 0)
    check(lambda m, x: m @ x, format.fromdense(dense), normal(*shape, seed=1), ops.Sparse)


@pytest.mark.parametrize(
    ("function", "model", "x"),
    [
        (lambda w, x: w * x, normal(3), normal(3)),
        (lambda w, x: jnp.power(jnp.abs(x), w), normal(3), normal(3)),
        (lambda w, i: lax.dynamic_slice(w, (i,), (2,)), normal(4), jnp.array(1)),
        (lambda w, i: jnp.zeros(4).at[i].add(w), normal(2), jnp.array([1, 3])),
        (lambda w, x: lax.cumsum(w) * 1.0 + x, normal(3), normal(3)),
    ],
    ids=["product", "power", "part of a row", "scatter", "sum"],
)
def test_what_has_no_form_of_its_own_is_direct(function, model, x):
    op, values = found(function, model, x)
    assert isinstance(op.kind, ops.Elementwise)
    assert isinstance(op.kind, ops.Kind)
    delta = normal(*op.delta.shape, seed=4)
    moved = op.kind.shift_inputs(values, delta)
    np.testing.assert_allclose(moved[op.operand], values[op.operand] + delta.reshape(op.kind.shape))


def test_connections_that_are_not_known_give_no_sparse_form():
    matrix = sparse.BCOO((normal(2), jnp.array([[0, 1], [1, 0]])), shape=(2, 2))

    def step(model, x, state):
        return sparse.BCOO((model["w"], x[1]), shape=(2, 2)) @ x[0], state

    traced = trace({"w": matrix.data}, (normal(2), matrix.indices), jnp.zeros(()), step)
    (op,) = split(traced).ops
    assert isinstance(op.kind, ops.Elementwise)


def test_a_primitive_has_one_kind():
    rule = facts(prims.dot_general_p).kind
    with pytest.raises(ValueError, match="has a kind already"):
        ops.register_kind(
            prims.dot_general_p, lambda *args: rule(*args), jnp.dot, jnp.ones((3, 2)), jnp.ones(2)
        )


def test_a_kind_that_is_defined_again_takes_the_place_of_the_one_before(monkeypatch):
    """As where a cell of a notebook is run once more."""
    monkeypatch.setitem(FACTS, prims.sort_p, Facts())
    for name in ("first", "second"):

        def rule(equation, operand, known, name=name):
            return dataclasses.replace(ops.elementwise(equation, operand), name=name)

        ops.register_kind(prims.sort_p, rule, jnp.sort, jnp.ones(3))
    equation = canonicalise(jnp.sort, [jnp.ones(3)]).equations[0]
    assert facts(prims.sort_p).kind(equation, 0, None).name == "second"


@dataclasses.dataclass(frozen=True, eq=False)
class RowProduct:
    """The product of a compressed-row matrix and a vector, as a user writes it; it does not say its `uses`."""

    links: ops.Links
    inputs: int
    outputs: int
    name = "bcsr_dot_general"
    groups = 1
    data = 3

    def shift_inputs(self, values, delta):
        return values

    def shift_outputs(self, outputs, delta):
        return [outputs[0] + delta[0]]

    def factor(self, values):
        return values[self.data][None]

    def contract(self, x, delta):
        uses = x[..., self.links.inputs] * delta[..., self.links.outputs]
        return uses.sum(axis=tuple(range(uses.ndim - 1)))

    def gather(self, entries):
        return entries.sum(0)


class Sharing(RowProduct):
    @property
    def uses(self):
        return self.links.inputs.tobytes(), self.links.outputs.tobytes()


MATRIX = sparse.BCSR.fromdense(jnp.array([[0.0, 0.5, 0.1], [0.2, 0.0, 0.3], [0.0, 0.0, 0.4]]))


def product(values, x):
    return sparse.BCSR((values, MATRIX.indices, MATRIX.indptr), shape=MATRIX.shape) @ x


@pytest.fixture
def primitive(monkeypatch):
    """That of `product`, without a kind."""
    primitive = ops.primitive_of(product, MATRIX.data, jnp.ones(3))
    monkeypatch.setitem(FACTS, primitive, Facts())
    return primitive


def rule_of(kind):
    def rule(equation, operand, known):
        columns, starts = known(equation.inputs[1]), known(equation.inputs[2])
        rows = np.repeat(np.arange(3), np.diff(starts))
        return kind(ops.Links(np.asarray(columns), rows), 3, 3) if operand == 0 else None

    return rule


def without(name):
    """The kind without one of its parts."""
    parts = {n: part for n, part in vars(RowProduct).items() if n != name}
    return lambda *args: type("Own", (), parts)(*args)


WRONG = {
    "a word": (lambda *args: "kind", "kind str of bcsr_dot_general lacks name, groups, .* gather"),
    "no `gather`": (without("gather"), r"lacks gather\."),
    "the factor": (
        {"factor": lambda self, values: 2 * values[self.data][None]},
        "by `contract` .* and by `gather` .* may be in `factor`",
    ),
    "the shape of the factor": (
        {"factor": lambda self, values: values[self.data]},
        r"gives \[3\] as `factor`, not \[G, I\] = \[1, 3\]",
    ),
    "what is added": (
        {"shift_outputs": lambda self, outputs, delta: [outputs[0] + 2 * delta[0]]},
        "by `contract` .* and by `gather`",
    ),
    "what it is added to": (
        {"shift_outputs": lambda self, outputs, delta: [delta[0]]},
        "changes the operation where .* adds zero",
    ),
    "the links": (
        {"factor": lambda self, values: values[self.data][None, ::-1]},
        "by `contract` .* and by `gather` .* `links`",
    ),
    "a sum that lacks an axis": (
        {"contract": lambda self, x, delta: RowProduct.contract(self, x[0], delta[0])},
        r"JAX by `contract` \(a relative error of [0-9.e+-]+\)\. ",
    ),
    "axes that are left": (
        {"contract": lambda self, x, delta: jnp.zeros((2, 5))},
        r"JAX by `contract` \(of shape \[2, 5\], not \[5\]\)\. ",
    ),
    "the order of the entries": (
        {"gather": lambda self, entries: entries.sum(0)[::-1]},
        r"JAX by `gather` \(a relative error of [0-9.e+-]+\)\. ",
    ),
}


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kind_is_refused(name, primitive):
    own, words = WRONG[name]
    kind = type("Own", (RowProduct,), own) if isinstance(own, dict) else own
    with pytest.raises(etpc.InputError, match=words):
        ops.register_kind(primitive, rule_of(kind), product, MATRIX.data, jnp.ones(3))
    assert facts(primitive).kind is None


@pytest.mark.parametrize(
    ("rule", "function", "error", "words"),
    [
        (lambda *args: None, product, etpc.InputError, "was not checked"),
        (rule_of(RowProduct), lambda w, x: w[:3] * x, etpc.InputError, "was not checked"),
        (
            lambda equation: None,
            product,
            etpc.InputTypeError,
            r"`rule\(equation, operand, known\)`",
        ),
    ],
)
def test_a_kind_that_cannot_be_checked_is_refused(rule, function, error, words, primitive):
    with pytest.raises(error, match=words):
        ops.register_kind(primitive, rule, function, MATRIX.data, jnp.ones(3))
    assert facts(primitive).kind is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RowProduct, Sharing])
def test_a_kind_of_a_user_shares_a_trace_if_it_says_its_uses(kind, primitive):
    """As the built-in kinds do: two uses of one weight that reach the same states have one trace."""
    matrix = MATRIX
    ops.register_kind(primitive, rule_of(kind), product, matrix.data, jnp.ones(3))
    step = lambda m, x, h: (0.5 * h + jnp.tanh(m @ x) + m @ (x * x),) * 2
    xs = normal(7, 3, seed=1)
    loss = lambda y, target: jnp.sum((y - target) ** 2)
    program = etpc.compile(
        matrix, etpc.D_RTRL(window=3), inputs=xs[0], state=jnp.zeros(3), step=step
    )
    assert [type(p.op.kind) for p in program.ops] == [kind, kind]
    assert [p.owns for p in program.ops] == [True, kind is not Sharing]
    assert len(program.ir.traces) == (1 if kind is Sharing else 2)
    assert program.exact
    run = program.value_and_grad(loss, "sum")
    _, grads = run(matrix, xs, 0 * xs, program.init())
    _, expected = etpc.bptt(
        matrix, xs, 0 * xs, loss, state=jnp.zeros(3), step=step, reduction="sum"
    )
    np.testing.assert_allclose(grads.data, expected.data, rtol=1e-9)
    assert np.abs(expected.data).min() > 0
