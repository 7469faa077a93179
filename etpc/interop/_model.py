"""What every adapter gives: a model whose parameters are a PyTree, and what names its parts."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from etpc.errors import InputError, raise_together


@jax.tree_util.register_pytree_with_keys_class
class Named:
    """Values by path: a PyTree that prints and is read as the object that the paths are of.

    ```pycon
    >>> from etpc.interop import Named
    >>> tree = Named.of({("cell", "w"): 1.0, ("cell", "b"): 2.0})
    >>> tree.cell.w
    1.0
    >>> {path: value for path, value in tree.items()}
    {('cell', 'w'): 1.0, ('cell', 'b'): 2.0}

    ```
    """

    def __init__(self, parts: dict[Any, Any]):
        self._parts = parts

    @classmethod
    def of(cls, values: dict[tuple[Any, ...], Any]) -> "Named":
        """The tree of some values, each with its path: names, and numbers of list items."""
        parts: dict[Any, Any] = {}
        for first in dict.fromkeys(path[0] for path in values):
            inside = {path[1:]: v for path, v in values.items() if path[0] == first}
            parts[first] = inside[()] if () in inside else cls.of(inside)
        return cls(parts)

    def items(self) -> Iterable[tuple[tuple[Any, ...], Any]]:
        """The paths and values that the tree was made of."""
        for name, part in self._parts.items():
            if isinstance(part, Named):
                yield from (((name, *path), value) for path, value in part.items())
            else:
                yield (name,), part

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_parts"][name]
        except KeyError:
            known = ", ".join(map(str, self.__dict__.get("_parts", ())))
            raise AttributeError(f"There is no {name!r} here, but: {known}.") from None

    def __getitem__(self, name: Any) -> Any:
        return self._parts[name]

    def __repr__(self) -> str:
        return "Named(" + ", ".join(f"{k}={v!r}" for k, v in self._parts.items()) + ")"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        return [(_key(k), v) for k, v in self._parts.items()], tuple(self._parts)

    def tree_flatten(self) -> tuple[list[Any], tuple[Any, ...]]:
        return list(self._parts.values()), tuple(self._parts)

    @classmethod
    def tree_unflatten(cls, names: tuple[Any, ...], values: Iterable[Any]) -> "Named":
        return cls(dict(zip(names, values, strict=True)))


def _key(name: Any) -> Any:
    if isinstance(name, int):
        return SequenceKey(name)
    return GetAttrKey(name) if isinstance(name, str) and name.isidentifier() else DictKey(name)


def written(path: Iterable[Any]) -> str:
    """A path as the tree of its values prints it."""
    return jax.tree_util.keystr(tuple(map(_key, path)))


class Held:
    """A value that is no part of a PyTree: it is equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value


class Adapted(eqx.Module):
    """A model of another library as a model of `etpc`: `model(x, state) -> (y, new_state)`.

    A PyTree whose leaves are those of `params`. It goes wherever a model goes: to
    [`etpc.compile`][], [`etpc.verify`][], [`etpc.compare`][], [`etpc.online`][], checkpoints and the
    command line.
    """

    params: Any
    """The parameters, in the structure that the library gives them, or by their path."""
    shared: tuple[tuple[str, ...], ...] = eqx.field(
        static=True, repr=False, kw_only=True, default=()
    )
    """For each parameter that the module holds at several paths, all of them. It is one parameter, at the first."""
    _step: Callable[[Any, Any, Any], tuple[Any, Any]] = eqx.field(static=True, repr=False)
    _start: Held = eqx.field(static=True, repr=False)

    def init_state(self) -> Any:
        """The state of one example before its first step."""
        return self._start.value

    def __call__(self, x: Any, state: Any) -> tuple[Any, Any]:
        """One step of one example.

        **Returns** the output and the new state.
        """
        return self._step(self.params, x, state)


def of_batch(layer: str, remedy: str) -> str:
    """The problem of a layer of batch normalisation in training."""
    return (
        f"The layer {layer} normalises by the statistics of a batch, as in training, and a step has one example, of "
        f"which nothing would be left. {remedy}, so that running averages are used, or take a layer that "
        "normalises each example, such as LayerNorm or GroupNorm."
    )


def shared_paths(
    module: Any,
    parameter: type,
    children: Callable[[Any], Iterable[tuple[Any, Any]]],
    first: Iterable[tuple[Any, ...]],
) -> tuple[tuple[str, ...], ...]:
    """All paths of each parameter that a module holds at several, of which a path in `first` is written first.

    **Arguments:** the module; the type of a parameter; the names and values in a part of the module; the paths that
    the parameters go by.
    """
    paths_of: dict[int, list[tuple[Any, ...]]] = {}

    def visit(part: Any, path: tuple[Any, ...], above: frozenset[int]) -> None:
        if isinstance(part, parameter):
            paths_of.setdefault(id(part), []).append(path)
        elif id(part) not in above:
            for name, child in children(part):
                visit(child, (*path, name), above | {id(part)})

    visit(module, (), frozenset())
    first_paths = set(first)
    return tuple(
        tuple(map(written, sorted(paths, key=lambda path: path not in first_paths)))
        for paths in paths_of.values()
        if len(paths) > 1
    )


def all_paths(path: Iterable[Any], shared: Iterable[tuple[str, ...]]) -> str:
    """A path, with the other paths of the same parameter."""
    text = written(path)
    others = [p for paths in shared if text in paths for p in paths if p != text]
    return text + (f" (also {', '.join(others)})" if others else "")


def arrays(tree: Any) -> Any:
    """A tree whose Python numbers and NumPy arrays are JAX arrays."""
    others = (bool, int, float, complex, np.ndarray, np.generic)
    return jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, others) else a, tree)


def shape_text(value: Any) -> str:
    """Dtypes and shapes of the leaves of a value."""
    return ", ".join(
        f"{a.dtype if hasattr(a, 'dtype') else jnp.result_type(a)}{list(np.shape(a))}"
        for a in jax.tree.leaves(value)
    )


def same_form(a: Any, b: Any) -> bool:
    """Whether two values have one structure, and leaves of the same dtypes and shapes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and shape_text(a) == shape_text(b)


def check_written(
    into: dict[Any, Any], model: Adapted, shared: Iterable[tuple[str, ...]]
) -> dict[Any, Any]:
    """The values of a model by path, where they fit into a module.

    **Arguments:** the values that are in the module now, by path; the model; the paths of what the module shares.

    **Raises** `InputError` where they do not fit, with the paths.
    """
    values = dict(model.params.items())
    problems = []
    for path in dict.fromkeys([*values, *into]):
        if path not in into:
            problems.append(
                f"The module has no parameter {written(path)}, which the model has."
                + _one_there(path, shared, "module")
            )
        elif path not in values:
            problems.append(
                f"The model has no parameter {written(path)}, which the module has."
                + _one_there(path, model.shared, "model")
            )
        elif not same_form(into[path], values[path]):
            problems.append(
                f"{written(path)} is {shape_text(into[path])} in the module and "
                f"{shape_text(values[path])} in the model."
            )
    raise_together(
        problems,
        InputError,
        "The values of the model do not fit into the module. Write them into the module that the "
        "model was made from, or into another one of its kind:"
        if problems
        else "",
    )
    return values


def _one_there(path: Any, shared: Iterable[tuple[str, ...]], where: str) -> str:
    text = written(path)
    return "".join(
        f" In the {where}, {' and '.join(paths)} are one parameter."
        for paths in shared
        if text in paths
    )
