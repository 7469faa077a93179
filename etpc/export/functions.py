"""Functions of one state as files: for what acts and learns, or whatever else goes on from call to call."""

import dataclasses
import importlib.metadata
import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError, InputTypeError, raise_together
from ..files.record import record
from .modules import (
    Leaf,
    Module,
    Modules,
    Tree,
    check_platforms,
    closed,
    described,
    joined,
    module,
    values_of,
)

SCHEMA = "etpc-functions/1"


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedFunctions(Modules):
    """Functions of one state as portable StableHLO. Made by [`etpc.export_functions`][] or [`etpc.load_exported`][].

    Each is a method, by JAX: `exported.act(state, x)` returns `(state, outputs)`. There `state` is the values by name,
    such as `state` of this object, arguments are those that were exported, or trees that flatten as they do, and
    `outputs` is a list of arrays. It **raises** `etpc.InputError` where an argument is missing or does not fit, or on a
    platform that it was not exported for.

    - `manifest`: what is written to `manifest.json`, ready for JSON.
    - `state`: the first value of each state argument, by name.
    - `modules`: portable StableHLO, by the name of the file.
    """

    @property
    def about(self) -> str:
        return f"Functions of one state: {', '.join(name.split('.')[0] for name in self.modules)}."

    def __getattr__(self, name: str) -> Callable[..., tuple[dict[str, Any], list[Array]]]:
        file = f"{name}.mlirbc"
        if file not in vars(self).get("modules", ()):
            raise AttributeError(f"There is no {name!r}. {self.about}")
        return lambda state, *arguments: self._run(file, state, {"input": arguments})

    def into(self, like: Any, state: Mapping[str, Any] | None = None) -> Any:
        """A state as the tree that functions of Python go on with.

        **Arguments:**

        - `like`: a state of the functions that were exported, with any values.
        - `state`: the values by name, as a device returns them; by default those that were exported.

        **Returns** the tree.

        **Raises** `etpc.InputError` where it is the state of other functions, or a value does not fit.
        """
        return self._into([self._tree(like)], state)[0]

    def state_of(self, tree: Any) -> dict[str, np.ndarray]:
        """The values of a state by name: what the functions and a device take.

        **Raises** `etpc.InputError` where it is the state of other functions.
        """
        return values_of([self._tree(tree)], [tree])

    def _tree(self, state: Any) -> Tree:
        tree = Tree.of_state(state)
        raise_together(self._missing([tree]), InputError)
        return tree


def export_functions(
    state: Any, *, platforms: Sequence[str] = ("cpu",), **functions: Any
) -> ExportedFunctions:
    """Functions of one state, such as `act` and `learn` of an agent, for where Python is not.

    **Arguments:**

    - `state`: what goes on from call to call: a PyTree, whose arrays have their first values. What else is in it,
        such as functions and numbers of Python, is a constant.
    - `functions`: for each name a tuple of a function `f(state, *arguments) -> (state, outputs)` that `jax.jit` takes,
        and arguments of the shapes and dtypes that a call on the device gets: arrays or `jax.ShapeDtypeStruct`s. The
        state that it returns is like the one that it gets; outputs are any PyTree of arrays. What a function
        returns as it got it is not written anew.
    - `platforms`: of JAX, on which [`etpc.load_exported`][] may run it: "cpu", "cuda", "rocm", "tpu".

    **Returns** the [`ExportedFunctions`][etpc.ExportedFunctions], whose `save` writes a folder, and `to_c` C.

    **Raises** `etpc.UnsupportedError` where a function calls what is outside of StableHLO, which is named: a callback,
    or a custom call; `etpc.InputError` where a function returns another state, or has a name that is no identifier
    or that something else has; `etpc.InputTypeError` for another thing than such tuples.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> def add(total, x):
    ...     return total + x, None
    >>> def mean(total, count):
    ...     return total, total / count
    >>> exported = etpc.export_functions(jnp.zeros(2), add=(add, jnp.ones(2)), mean=(mean, 1.0))
    >>> state, _ = exported.add(exported.state, jnp.array([2.0, 4.0]))
    >>> state, (y,) = exported.mean(state, 2.0)
    >>> y.tolist()
    [1.0, 2.0]

    ```
    """
    check_platforms(platforms)
    if not functions:
        raise InputError("There is no function. Pass one by its name: `act=(act, x)`.")
    taken = {*dir(ExportedFunctions), *ExportedFunctions.__dataclass_fields__, "init"}
    tree, modules = Tree.of_state(state), dict[str, Module]()
    for name, given in functions.items():
        is_name = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
        if not is_name or name in taken or name.startswith("_"):
            raise InputError(
                f"No function can have the name {name!r}. Pass it by an identifier that is no attribute, such as `act`."
            )
        if not (isinstance(given, tuple) and given and callable(given[0])):
            raise InputTypeError(
                f"{name} is {given!r:.60}. Pass a tuple of a function and its arguments after the state: `(act, x)`."
            )
        modules[f"{name}.mlirbc"] = _module(name, given[0], tree, given[1:], platforms)
    manifest = record(
        SCHEMA,
        etpc=importlib.metadata.version("etpc"),
        jax=jax.__version__,
        platforms=list(platforms),
        files={name: module.described for name, module in modules.items()},
    )
    code = {name: module.code for name, module in modules.items()}
    return ExportedFunctions(manifest, values_of([tree], [state]), code)


def _module(
    name: str,
    function: Callable[..., Any],
    state: Tree,
    examples: Sequence[Any],
    platforms: Sequence[str],
) -> Module:
    """A function of the state as a module."""
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind < p.VAR_POSITIONAL]
    names = [*named[1:], *(f"x{n}" for n in range(len(examples)))]
    read = [Tree.of(x, root, "input") for root, x in zip(names, examples, strict=False)]

    def run(*arrays: Any) -> tuple[dict[str, Array], Any]:
        before, *arguments = joined([state, *read], arrays)
        returned = function(before, *arguments)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise InputTypeError(
                f"{name} returns a {type(returned).__name__}, and not a tuple of the next state and outputs."
            )
        return _moved(name, state, before, returned[0]), returned[1]

    return module(run, described([state, *read]), [("y", "output")], platforms)


def _moved(name: str, tree: Tree, before: Any, after: Any) -> dict[str, Array]:
    """The values of a state that a function changes. **Raises** `InputError` where it is not like the one before."""
    treedef = tree.leaves.treedef
    try:
        pairs = zip(treedef.flatten_up_to(before), treedef.flatten_up_to(after), strict=True)
    except ValueError as error:
        raise InputError(
            f"{name} returns a state of another structure: {error}. "
            "What changes from call to call has to be an array of the state from the beginning."
        ) from error
    arrays = dict(zip(tree.leaves.places, tree.described, strict=True))
    moved, problems = dict[str, Array](), list[str]()
    for place, (old, new) in enumerate(pairs):
        if new is old:
            continue
        if place not in arrays:
            if hasattr(new, "dtype") or new != old:
                problems.append(
                    f"{name} changes {old!r}, which is no array, to {new}. Make it one."
                )
            continue
        leaf, new = arrays[place], new if hasattr(new, "dtype") else jnp.asarray(new)
        found = Leaf.of(leaf.name, new, "state")
        if found != leaf:
            problems.append(
                f"{name} makes {found.dtype}{list(found.shape)} of {leaf.name}, "
                f"which is {leaf.dtype}{list(leaf.shape)}. Convert it, or begin with another one."
            )
        moved[leaf.name] = closed(new)
    raise_together(problems, InputError)
    return moved
