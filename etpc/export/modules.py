"""Functions of one state as files: portable StableHLO, and a description of their arrays."""

import dataclasses
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from ..errors import InputError, UnsupportedError, raise_together
from ..files.disk import key_impl, new_folder, to_npy
from ..trace import Leaves, is_key

STATE, MANIFEST = "state.npz", "manifest.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
NO_HASH = "0" * 64
"""In the place of the manifest's own hash while that is computed."""


class Leaf(NamedTuple):
    """An argument or a result of a module. A PRNG key is the integers that it consists of."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    key: str | None = None
    """The implementation of a PRNG key, as `jax.random.wrap_key_data` takes it."""

    @classmethod
    def of(cls, name: str, value: Any, role: str) -> "Leaf":
        kind = None
        if is_key(value):
            value, kind = jax.eval_shape(jax.random.key_data, value), str(key_impl(value))
        return cls(name, tuple(value.shape), np.dtype(value.dtype).name, role, kind)

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> "Leaf":
        name, shape, dtype, role = (entry[field] for field in ("name", "shape", "dtype", "role"))
        return cls(name, tuple(shape), jnp.dtype(dtype).name, role, entry.get("key"))

    def written(self) -> dict[str, Any]:
        fields = {**self._asdict(), "shape": list(self.shape)}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, jnp.dtype(self.dtype))

    def opened(self, data: Any) -> Any:
        """The key that consists of these integers; an array as it is."""
        return data if self.key is None else jax.random.wrap_key_data(data, impl=self.key)


def closed(value: Any) -> Any:
    """The integers that a key consists of; an array as it is."""
    return jax.random.key_data(value) if is_key(value) else value


class Tree(NamedTuple):
    """Array leaves of a tree, with names."""

    leaves: Leaves
    chosen: Sequence[int]
    values: list[Any]
    """All array leaves, chosen or not."""
    described: list[Leaf]

    @classmethod
    def of(cls, tree: Any, root: str, role: str) -> "Tree":
        """All leaves, Python's numbers among them."""
        leaves = Leaves.of(tree, root, numbers=True)
        values = [a if hasattr(a, "dtype") else jnp.asarray(a) for a in leaves.split(tree)]
        names = [path if path == root else root + path for path in leaves.paths]
        return cls._all(leaves, values, names, role)

    @classmethod
    def of_state(cls, state: Any) -> "Tree":
        """The arrays, which are named by their paths."""
        leaves = Leaves.of(state, "state")
        return cls._all(leaves, leaves.split(state), leaves.paths, "state")

    @classmethod
    def _all(cls, leaves: Leaves, values: list[Any], names: Sequence[str], role: str) -> "Tree":
        kinds = [v if is_key(v) else a for v, a in zip(values, leaves.avals, strict=True)]
        described = [Leaf.of(name, kind, role) for name, kind in zip(names, kinds, strict=True)]
        return cls(leaves, range(len(values)), values, described)

    @classmethod
    def of_model(cls, model: Any) -> "Tree":
        """The leaves that are trained, which are named by their paths."""
        leaves = Leaves.of(model, "model")
        described = [Leaf.of(path, aval, "state") for path, aval in leaves.float_avals.items()]
        return cls(leaves, leaves.floats, leaves.split(model), described)

    def joined(self, values: Sequence[Any]) -> Any:
        """The tree, with other values in the places of its chosen leaves."""
        arrays = list(self.values)
        for i, leaf, value in zip(self.chosen, self.described, values, strict=True):
            arrays[i] = leaf.opened(value)
        return self.leaves.join(arrays)

    def split(self, tree: Any) -> list[Array]:
        """The chosen leaves of another tree like this one."""
        values = self.leaves.split(tree)
        return [closed(jnp.asarray(values[i])) for i in self.chosen]


def described(trees: Sequence[Tree]) -> list[Leaf]:
    """The chosen leaves of all trees, one after another."""
    return [leaf for tree in trees for leaf in tree.described]


def joined(trees: Sequence[Tree], values: Sequence[Any]) -> list[Any]:
    """Trees like these, with these values."""
    rest = iter(values)
    return [tree.joined([next(rest) for _ in tree.chosen]) for tree in trees]


def split(trees: Sequence[Tree], others: Sequence[Any]) -> list[Array]:
    """The chosen leaves of other trees like these."""
    return [a for tree, other in zip(trees, others, strict=True) for a in tree.split(other)]


class Module(NamedTuple):
    """A function of arrays as portable StableHLO."""

    code: bytes
    described: dict[str, Any]


def module(
    function: Callable[..., tuple[dict[str, Array], *tuple[Any, ...]]],
    arguments: Sequence[Leaf],
    others: Sequence[tuple[str, str]],
    platforms: Sequence[str],
) -> Module:
    """A function as a module.

    - `function`: from arrays to the next values of some of them, by name, and other trees.
    - `others`: root and role of each of the other trees.

    **Raises** `UnsupportedError` where the module would call something outside of it.
    """
    results: list[Leaf] = []

    def learner(*arrays: Any) -> list[Array]:
        new, *trees = function(*arrays)
        of = [Tree.of(tree, *other) for tree, other in zip(trees, others, strict=True)]
        by_name = {leaf.name: leaf for leaf in arguments}
        results[:] = [*(by_name[name] for name in new), *described(of)]
        return [*new.values(), *split(of, trees)]

    avals = [leaf.aval for leaf in arguments]
    jitted = jax.jit(learner, keep_unused=True)
    exported = _without_calls(jitted, avals, platforms)
    places = {r.name: {"next": place} for place, r in enumerate(results) if r.role == "state"}
    index = Leaf("platform", (), "int32", "platform")  # as JAX has it for several
    several = [index.written()] if len(platforms) > 1 else []
    entries = dict(
        arguments=several + [leaf.written() | places.get(leaf.name, {}) for leaf in arguments],
        results=[leaf.written() for leaf in results],
    )
    return Module(bytes(exported.mlir_module_serialized), entries)


def check_platforms(platforms: Any) -> None:
    """**Raises** `InputError` where JAX has no such platforms."""
    names = platforms if isinstance(platforms, list | tuple) else ()
    if not names or sum(name in names for name in PLATFORMS) < len(names):
        raise InputError(
            f"platforms must be a tuple of one or more of {', '.join(PLATFORMS)}, such as ('cpu',), not {platforms!r}."
        )


def _without_calls(
    function: Any, avals: Sequence[jax.ShapeDtypeStruct], platforms: Sequence[str]
) -> export.Exported:
    """A compiled function as portable StableHLO, which calls nothing outside of itself."""
    lowered = function.trace(*avals).lower(lowering_platforms=tuple(platforms))
    lowered_module: Any = lowered.compiler_ir("stablehlo")
    with lowered_module.context:
        calls = dict.fromkeys(_calls(lowered_module.operation))
    if calls:
        raise UnsupportedError(
            f"The learner can't be exported: it calls {', '.join(calls)}, which is outside of what StableHLO "
            "describes. A callback is Python, and a custom call is code of JAX's for one kind of device, such as a "
            "decomposition of matrices. Compute it by other operations of JAX, or leave it to the code that feeds "
            "the learner."
        )
    return export.export(function, platforms=tuple(platforms))(*avals)


def _calls(operation: Any) -> Iterator[str]:
    """What an operation calls that is not in the module: each with JAX's operation and its place."""
    for op in (o for region in operation.regions for block in region.blocks for o in block):
        if op.operation.name == "stablehlo.custom_call":
            yield str(op.attributes["call_target_name"]).strip('"') + place_of(str(op.location))
        yield from _calls(op)


def place_of(location: str) -> str:
    """JAX's operation and the line of the user's code, as far as a location of MLIR has them."""
    name = re.search(r'"(?:[^"]*/)?([^"/]+)"', location)
    line = re.search(r'"([^"]+\.py)":(\d+)', location)
    return (f" ({name[1]})" if name else "") + (f" at {line[1]}:{line[2]}" if line else "")


def line_of(location: str) -> str:
    """The line of the code of a user, not of a package, as far as a location of MLIR has it."""
    lines = re.findall(
        r'"(?:[^"]*[/\\])?([^"]+\.py)":(\d+)', re.sub(r'"[^"]*-packages[^"]*"', "", location)
    )
    return ":".join(lines[0]) if lines else ""


def hash_of(data: bytes) -> str:
    """What tells data from any other."""
    return hashlib.sha256(data).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Modules:
    """Functions of one state as portable StableHLO, which run under JAX without the code of the model."""

    manifest: dict[str, Any]
    state: dict[str, np.ndarray]
    modules: dict[str, bytes]
    _functions: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `state.npz`, `manifest.json` and each function, such as `update.mlirbc`, to a new folder.

        The folder is there with all of them, or not at all, whenever the process is killed. While it is written
        it is in another one beside it, `.<name>.saving`.

        **Raises** `FileExistsError` where there is something in the folder, which is left as it is; `OSError`
        where it can't be written.
        """
        files = {**self.modules, STATE: self._packed()}
        entries = {name: dict(sha256=hash_of(data), size=len(data)) for name, data in files.items()}
        described = self.manifest["files"]
        record = self.manifest | {
            "files": {name: described.get(name, {}) | entry for name, entry in entries.items()},
            "sha256": NO_HASH,
        }
        text = json.dumps(record, indent=1)
        files[MANIFEST] = text.replace(NO_HASH, hash_of(text.encode())).encode()
        with new_folder(folder) as temporary:
            temporary.mkdir()
            for name, data in files.items():
                (temporary / name).write_bytes(data)

    def __reduce__(self) -> Any:
        return type(self), (self.manifest, self.state, self.modules)  # without compiled functions

    @property
    def about(self) -> str:
        """What this is, in a sentence."""
        raise NotImplementedError

    def to_c(self, folder: str | os.PathLike[str], name: str = "learner") -> dict[str, int]:
        """Write `learner.h` and `learner.c`, in C99: no allocation, no static memory, and no library but libm.

        `learner_state` is all that is kept from call to call, and `learner_init` gives it its first values.
        `learner_check` says whether a state from elsewhere is one of this build. Each function is one of C, such as
        `learner_update`: its arguments are the state, a `learner_work`, in which it works, then the arguments that
        are no state, then the results that are none, in the order of the manifest.

        **Arguments:**

        - `folder`: it is made where it is not there; files of these names in it are replaced.
        - `name`: of the files, and what the names of all types and functions begin with.

        **Returns** the bytes of `learner_state` as `"state"` and of `learner_work` as `"work"`, as most machines align
        them.

        **Raises** `etpc.UnsupportedError` where a function has an operation or a dtype without C, which is named;
        `etpc.InputError` where `name` can't be one in C; `OSError` where the folder can't be written.
        """
        from .c import write_c  # which reads this module

        return write_c(self, Path(folder), name)

    def _packed(self) -> bytes:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: to_npy(value) for name, value in self.state.items()}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def _run(
        self, name: str, state: Mapping[str, Any], data: Mapping[str, Any]
    ) -> tuple[dict[str, Any], list[Array]]:
        arguments, results = self.leaves(name)
        rest = {role: iter(jax.tree.leaves(tree)) for role, tree in data.items()}

        def value_of(leaf: Leaf) -> Any:
            if leaf.role == "state":
                return state.get(leaf.name)
            return next(rest.get(leaf.role, iter(())), None)

        problems: list[str] = []
        values = [_fitted(leaf, value_of(leaf), problems) for leaf in arguments]
        problems += [
            f"There are more arrays of the role {role!r} than were exported."
            for role, unused in rest.items()
            if [*unused]
        ]
        raise_together(problems, InputError)
        with jax.enable_x64(True):  # else it would make float32 of float64
            new = self._compiled(name)(*values)
        moved = {leaf.name: a for leaf, a in zip(results, new, strict=True) if leaf.role == "state"}
        others = [a for leaf, a in zip(results, new, strict=True) if leaf.role != "state"]
        return {**state, **moved}, others

    def leaves(self, name: str) -> tuple[list[Leaf], list[Leaf]]:
        """The arguments and the results of a module, without the number of the platform, which JAX passes."""
        entry = self.manifest["files"][name]
        arguments, results = (map(Leaf.read, entry[of]) for of in ("arguments", "results"))
        return [leaf for leaf in arguments if leaf.role != "platform"], [*results]

    def temporaries(self, name: str = "update.mlirbc") -> int:
        """The bytes that a function takes beside its arguments and results, as XLA compiles it for this machine."""
        arguments, _ = self.leaves(name)
        with jax.enable_x64(True):
            avals = [leaf.aval for leaf in arguments]
            analysis = self._compiled(name).lower(*avals).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)

    def _compiled(self, name: str) -> Any:
        platforms, here = tuple(self.manifest["platforms"]), _platform()
        if here not in platforms:
            raise InputError(
                f"{Path(name).stem} was exported for {' and '.join(platforms)}, and JAX computes on {here}. Export "
                f"it with platforms={(*platforms, here)}, or run it on such a platform."
            )
        if name not in self._functions:
            arguments, results = self.leaves(name)
            avals = [leaf.aval for leaf in arguments]

            def like(*_: Any) -> list[Array]:
                return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in results]

            # The calling convention of a function with these arguments and results; the code is another.
            shell = export.export(jax.jit(like, keep_unused=True), platforms=platforms)(*avals)
            function = dataclasses.replace(shell, mlir_module_serialized=self.modules[name])
            self._functions[name] = jax.jit(function.call)
        return self._functions[name]

    def state_leaves(self) -> list[Leaf]:
        """What all functions keep."""
        arguments = [leaf for name in self.modules for leaf in self.leaves(name)[0]]
        return list(dict.fromkeys(leaf for leaf in arguments if leaf.role == "state"))

    def _missing(self, trees: Sequence[Tree]) -> list[str]:
        """Which leaves of the state and of trees are not in both."""
        ours, theirs = self.state_leaves(), described(trees)
        return [
            *(f"{a.name} is not in the exported one." for a in theirs if a not in ours),
            *(f"{a.name} of the exported one is missing." for a in ours if a not in theirs),
        ]

    def _into(self, trees: Sequence[Tree], state: Mapping[str, Any] | None) -> list[Any]:
        """Trees like these, with the values of a state, by default the first one."""
        given, problems = self.state if state is None else state, list[str]()
        values = [_fitted(leaf, given.get(leaf.name), problems) for leaf in described(trees)]
        raise_together(problems, InputError)
        return joined(trees, [*map(jnp.asarray, values)])


def _platform() -> str:
    """Where JAX puts arrays, by the names of platforms that it exports for."""
    device, *_ = jnp.zeros(()).devices()
    is_default = device.platform == jax.devices()[0].platform
    return export.default_export_platform() if is_default else device.platform


def values_of(trees: Sequence[Tree], others: Sequence[Any]) -> dict[str, np.ndarray]:
    """The values of other trees like these, by name."""
    pairs = zip(described(trees), split(trees, others), strict=True)
    return {leaf.name: np.array(value) for leaf, value in pairs}


def _fitted(leaf: Leaf, value: Any, problems: list[str]) -> np.ndarray:
    """A value as an argument; where it does not fit, a problem more."""
    if value is None:
        problems.append(f"{leaf.name} is missing: {leaf.dtype}{list(leaf.shape)}.")
        return np.zeros(())
    value = closed(value) if hasattr(value, "dtype") else value
    array, wanted = np.asarray(value), jnp.dtype(leaf.dtype)
    cast = array.astype(wanted) if np.can_cast(array.dtype, wanted, "same_kind") else None
    changed = cast is not None and array.dtype.kind in "iu" and not np.array_equal(cast, array)
    if cast is None or changed or array.shape != leaf.shape:
        problems.append(
            f"{leaf.name} is {array.dtype}{list(array.shape)}, and was exported as {leaf.dtype}{list(leaf.shape)}."
        )
        return np.zeros(())
    return cast
