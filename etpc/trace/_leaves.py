"""PyTrees as flat lists of leaves with readable paths."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._jax import is_float, is_key, replaced
from ..errors import in_one_line

_NUMBERS = (bool, int, float, np.generic)


def paths_of(tree: Any, root: str) -> tuple[str, ...]:
    """The path of each leaf of `tree`, as the user would write it after its name; no two are the same.

    A node that tells only the numbers of its children, such as a sparse matrix, has its attributes named.
    `root` is the path of a tree that is a leaf.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if any(isinstance(key, jax.tree_util.FlattenedIndexKey) for path in paths for key in path):
        paths = list(_named(tree))
    texts = [in_one_line(jax.tree_util.keystr(path)) or root for path in paths]
    while len(set(texts)) < len(texts):
        counts = Counter(texts)
        texts = [f"{t}<leaf {n}>" if counts[t] > 1 else t for n, t in enumerate(texts)]
    return tuple(texts)


def _named(node: Any) -> Iterator[tuple[Any, ...]]:
    """The path of each leaf, with the attributes of nodes that have no keys of their own."""
    keyed, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if not any(path for path, _ in keyed):
        yield from (path for path, _ in keyed)
        return
    keys = [key for (key,), _ in keyed]
    if any(isinstance(key, jax.tree_util.FlattenedIndexKey) for key in keys):
        keys = _attribute_keys(node, treedef, keys)
    for key, (_, child) in zip(keys, keyed, strict=True):
        yield from ((key, *rest) for rest in _named(child))


def _attribute_keys(node: Any, treedef: Any, keys: list[Any]) -> list[Any]:
    """The key of each child, by the name of the attribute that holds it; the old key where none does."""
    try:  # two children may be the same object, so each is replaced by an object of its own
        children = [object() for _ in keys]
        node = treedef.unflatten(children)
    except Exception:  # a class may look at what it is given
        children = jax.tree_util.tree_leaves(node, is_leaf=lambda x: x is not node)
    slots = [name for cls in type(node).__mro__ for name in getattr(cls, "__slots__", ())]
    names = sorted({*slots, *getattr(node, "__dict__", ())})
    values = {name: getattr(node, name, None) for name in names}
    shown = Counter(name.lstrip("_") for name in names)
    named = []
    for key, child in zip(keys, children, strict=True):
        holding = [name for name, value in values.items() if value is child]
        if holding:
            public = holding[0].lstrip("_")
            key = jax.tree_util.GetAttrKey(public if shown[public] == 1 else holding[0])
        named.append(key)
    return named


def is_array(leaf: Any) -> bool:
    """Whether a leaf is data (an array or its shape), and not part of the program itself.

    An integer or boolean of NumPy's is a number as Python's is: a size, a flag.
    """
    if isinstance(leaf, np.integer | np.bool_):
        return False
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct | np.ndarray | np.generic)


def frozen(value: Any) -> Any:
    """A copy of a NumPy array, which nobody can write to. Other values are returned as they are."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.setflags(write=False)
    return value


def static_arrays(treedef: Any) -> list[np.ndarray]:
    """The NumPy arrays in the static fields of a tree, in order."""
    arrays: list[np.ndarray] = []

    def look(value: Any) -> None:
        if isinstance(value, np.ndarray):
            arrays.append(value)
        elif isinstance(value, tuple | list):
            for member in value:
                look(member)
        elif isinstance(value, dict):
            look(list(value.values()))

    waiting = [treedef]
    while waiting:
        node = waiting.pop()
        data = node.node_data()
        if data is not None:
            look(data[1])
            waiting += reversed(node.children())
    return arrays


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, a shape or a Python number."""
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = jnp.asarray(leaf) if not hasattr(leaf, "dtype") else leaf
    dtype = leaf.dtype
    if not jnp.issubdtype(dtype, jax.dtypes.extended):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    weak = bool(getattr(leaf, "weak_type", False))
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, weak_type=weak)


def repeat(leaf: Any, batch_size: int) -> jax.Array:
    """A leaf of the state, for a batch: copies of it, or different keys if it is a PRNG key."""
    value = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    if is_key(value):
        split = partial(jax.random.split, num=batch_size)
        return jnp.moveaxis(jnp.vectorize(split, signature="()->(n)")(value), -1, 0)
    return jnp.broadcast_to(value, (batch_size, *jnp.shape(value)))


@dataclasses.dataclass(frozen=True)
class Leaves:
    """The array leaves of a PyTree: where they are, and what is around them."""

    treedef: Any
    paths: tuple[str, ...]
    avals: tuple[jax.ShapeDtypeStruct, ...]
    static: tuple[Any, ...]
    """All leaves in order, with `None` in the place of each array."""
    places: tuple[int, ...]
    static_arrays: tuple[np.ndarray, ...]
    """Copies of the NumPy arrays in static fields, which JAX takes to be part of the structure."""

    @classmethod
    def of(cls, tree: Any, root: str, *, numbers: bool = False) -> "Leaves":
        """Flatten `tree`. With `numbers`, Python numbers count as arrays too."""
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        keep = [is_array(x) or (numbers and isinstance(x, _NUMBERS)) for x in leaves]
        paths = paths_of(tree, root)
        places = tuple(i for i, k in enumerate(keep) if k)
        return cls(
            treedef,
            tuple(paths[i] for i in places),
            tuple(shape_of(leaves[i]) for i in places),
            tuple(None if k else x for x, k in zip(leaves, keep, strict=True)),
            places,
            tuple(frozen(a) for a in static_arrays(treedef)),
        )

    def split(self, tree: Any) -> list[Any]:
        """The array leaves of another tree of the same structure."""
        leaves = self.treedef.flatten_up_to(tree)
        return [leaves[i] for i in self.places]

    def join(self, arrays: Any) -> Any:
        """Put arrays into the places of the array leaves."""
        return self.treedef.unflatten(replaced(self.static, self.places, arrays))

    # --- the array leaves that are differentiated ---

    @cached_property
    def floats(self) -> tuple[int, ...]:
        """The numbers of the float leaves, among all array leaves."""
        return tuple(i for i, a in enumerate(self.avals) if is_float(a.dtype))

    @cached_property
    def float_avals(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of each float leaf, by its path."""
        return {self.paths[i]: self.avals[i] for i in self.floats}

    def floats_of(self, tree: Any) -> list[Any]:
        """The float leaves of another tree of the same structure."""
        leaves = self.treedef.flatten_up_to(tree)
        return [leaves[self.places[i]] for i in self.floats]

    def with_floats(self, tree: Any, floats: Sequence[Any]) -> Any:
        """Another tree of the same structure, with these float leaves."""
        return self._placed(self.treedef.flatten_up_to(tree), floats)

    def replaced(self, arrays: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
        """A list of all array leaves, with these float leaves in it."""
        return replaced(arrays, self.floats, floats)

    def tree_of_floats(self, floats: Sequence[Any]) -> Any:
        """A tree with these float leaves, and with `None` in the places of all others."""
        return self._placed([None] * len(self.static), floats)

    def _placed(self, leaves: list[Any], floats: Sequence[Any]) -> Any:
        places = (self.places[i] for i in self.floats)
        return self.treedef.unflatten(replaced(leaves, places, floats))
