"""Each leaf of a model, an input or a state has a path of its own."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import sparse

import etpc
from etpc.trace import paths_of


def node(*names, keys=None):
    """A class of PyTree nodes with these attributes, without keys unless some are given."""

    class Node:
        def __init__(self, *children):
            for name, child in zip(names, children, strict=True):
                setattr(self, name, child)

    flatten = lambda n: (tuple(getattr(n, name) for name in names), None)
    build = lambda _, children: Node(*children)
    if keys is None:
        jax.tree_util.register_pytree_node(Node, flatten, build)
    else:
        keyed = lambda n: (tuple(zip(keys, flatten(n)[0], strict=True)), None)
        jax.tree_util.register_pytree_with_keys(Node, keyed, build)
    return Node


def strict(value):
    """A class that does not take other objects for its children."""

    class Strict:
        def __init__(self, w, b):
            self.w, self.b = w.astype(float), b.astype(float)

    jax.tree_util.register_pytree_node(
        Strict, lambda s: ((s.w, s.b), None), lambda _, c: Strict(*c)
    )
    return Strict(value, value + 0)


X, Y = jnp.zeros(2), jnp.ones(2)
ATTRIBUTE = jax.tree_util.GetAttrKey
TREES = {
    "one array twice": (node("a", "b")(X, X), (".a", ".b")),
    "flattened in another order": (node("b", "a")(X, X), (".b", ".a")),
    "a private attribute": (node("_w")(X), (".w",)),
    "a private and a public attribute": (node("w", "_w")(X, Y), (".w", "._w")),
    "two nodes, one twice": ([n := node("a", "b")(X, Y), n], ("[0].a", "[0].b", "[1].a", "[1].b")),
    "nodes in nodes": (node("a", "b")((X, {"c": X}), X), (".a[0]", ".a[1]['c']", ".b")),
    "a key twice": (node("a", "b", keys=[ATTRIBUTE("w")] * 2)(X, Y), (".w<leaf 0>", ".w<leaf 1>")),
    "a key twice, of nodes": (
        node("a", "b", keys=[ATTRIBUTE("w")] * 2)(node("c")(X), [Y]),
        (".w.c", ".w[0]"),
    ),
    "a dot and brackets in a name": (
        node("a", "b", "c", "d", keys=list(map(ATTRIBUTE, ["p", "p.q", "r", "r['s']"])))(
            node("q", keys=[ATTRIBUTE("q")])(X), X, {"s": X}, Y
        ),
        (".p.q<leaf 0>", ".p.q<leaf 1>", ".r['s']<leaf 2>", ".r['s']<leaf 3>"),
    ),
    "a name like a number of a leaf": (
        node("a", "b", "c", keys=list(map(ATTRIBUTE, ["w", "w", "w<leaf 1>"])))(X, Y, X),
        (".w<leaf 0>", ".w<leaf 1><leaf 1>", ".w<leaf 1><leaf 2>"),
    ),
    "strings and numbers": (({1: X}, {"1": X}), ("[0][1]", "[1]['1']")),
    "a sparse matrix": (
        sparse.BCOO((X, jnp.array([[0, 0], [1, 1]])), shape=(2, 2)),
        (".data", ".indices"),
    ),
    "a class that looks at its children": (strict(X), (".w", ".b")),
    "an array": (X, ("model",)),
    "nothing": (None, ()),
}


@pytest.mark.parametrize("name", TREES)
def test_paths(name):
    tree, expected = TREES[name]
    assert paths_of(tree, "model") == expected
    assert paths_of(tree, "model") == paths_of(jax.tree.map(lambda x: x + 1, tree), "model")


@pytest.mark.parametrize("names", [("a", "b"), ("w", "_w")])
def test_claims_selectors_and_states_keep_tied_leaves_apart(names):
    pair = node(*names)
    first, second = (lambda m, name=name: getattr(m, name) for name in names)

    def step(m, x, s):
        h = 0.5 * first(s) + first(m) @ jnp.tanh(first(s)) + x
        return second(m) @ h + second(s), pair(h, h)

    w, state = jnp.eye(2), pair(X, X)
    program = etpc.compile(pair(w, w), etpc.D_RTRL(window=2), inputs=X, state=state, step=step)
    assert {path: claim.claim for path, claim in program.claims.items()} == {
        f".{names[0]}": "approximate",
        f".{names[1]}": "exact",
    }
    assert program.plan.analysis.hidden.paths == tuple(f".{name}" for name in names)
    model = pair(w, w)
    only = etpc.compile(model, "d_rtrl", inputs=X, state=state, step=step, weights=first)
    assert [p.path for p in only.plan.traced] == [f".{names[0]}"]
