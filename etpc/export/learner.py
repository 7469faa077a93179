"""A learner as a file: one call of `update` as portable StableHLO, with a description of its arrays."""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from .._jax import is_key
from ..errors import CheckpointError, InputError, InputTypeError, UnsupportedError, raise_together
from ..files.disk import from_npy, key_impl, new_folder, npy_dtype, to_npy
from ..files.record import read_record, record
from ..run import Carry, Online
from ..trace import Leaves

SCHEMA = "etpc-learner/1"
UPDATE, PREDICT, STATE, MANIFEST = "update.mlirbc", "predict.mlirbc", "state.npz", "manifest.json"
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


def _closed(value: Any) -> Any:
    """The integers that a key consists of; an array as it is."""
    return jax.random.key_data(value) if is_key(value) else value


class Tree(NamedTuple):
    """Array leaves of a tree, with names."""

    leaves: Leaves
    chosen: Sequence[int]
    values: list[Any]
    """All array leaves, the others too."""
    described: list[Leaf]

    @classmethod
    def of(cls, tree: Any, root: str, role: str) -> "Tree":
        leaves = Leaves.of(tree, root, numbers=True)
        values = [a if hasattr(a, "dtype") else jnp.asarray(a) for a in leaves.split(tree)]
        names = [path if path == root else root + path for path in leaves.paths]
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
        return [_closed(jnp.asarray(values[i])) for i in self.chosen]


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


def training(model: Any, opt_state: Any, carry: Any) -> list[Tree]:
    """What an update changes."""
    if not isinstance(carry, Carry):
        raise InputTypeError(
            f"carry is a {type(carry).__name__}. Pass one of `learner.init` or of an update."
        )
    rest = ((opt_state, "opt_state"), (carry, "carry"))
    return [Tree.of_model(model), *(Tree.of(tree, root, "state") for tree, root in rest)]


# --- from a learner -------------------------------------------------------------------------------


def export_learner(
    learner: Online,
    model: Any,
    opt_state: Any,
    carry: Any,
    data: tuple[Any, Any, Any, Any],
    platforms: Sequence[str],
) -> "Exported":
    """What [`Online.export`][etpc.Online.export] returns. `data`: inputs, targets, mask and resets."""
    names = platforms if isinstance(platforms, list | tuple) else ()
    if not names or sum(name in names for name in PLATFORMS) < len(names):
        raise InputError(
            f"platforms must be a tuple of one or more of {', '.join(PLATFORMS)}, such as ('cpu',), not {platforms!r}."
        )
    state = training(model, opt_state, carry)
    roles = ("xs", "input"), ("targets", "target"), ("mask", "mask"), ("reset", "reset")
    pairs = zip(data, roles, strict=True)
    read = [Tree.of(tree, root, role) for tree, (root, role) in pairs]

    def update(*arrays: Any) -> tuple[list[Array], *tuple[Any, ...]]:
        model, opt_state, carry, xs, targets, mask, reset = joined([*state, *read], arrays)
        new = learner.update(model, opt_state, carry, xs, targets, mask=mask, reset=reset)
        return split(state, new[:3]), new[3], new[4:]

    program, batch = learner.program, carry.fresh.shape[0] if carry.batched else None
    first = zip(described(state), split(state, (model, opt_state, carry)), strict=True)
    moved = [leaf.name for leaf in described(state)]
    results = [("losses", "loss"), ("aux", "output")]
    update_module = module(update, described([*state, *read]), moved, results, platforms)
    predict_module = _predict(learner, state[0], carry, data[0], platforms)
    claims = {
        path: {"claim": claim.claim, "left_out": [*claim.left_out]}
        for path, claim in program.claims.items()
    }
    manifest = record(
        SCHEMA,
        etpc=importlib.metadata.version("etpc"),
        jax=jax.__version__,
        platforms=list(platforms),
        program=carry.program,
        rule=str(program.algorithm),
        window=program.ir.window.for_sequence(learner.every),
        every=learner.every,
        batch_size=batch,
        claims=claims,
        bytes=program.memory(batch).as_dict(),
        constants=_constants(model),
        files={UPDATE: update_module.described, PREDICT: predict_module.described},
    )
    values = {leaf.name: np.array(value) for leaf, value in first}
    return Exported(manifest, values, {UPDATE: update_module.code, PREDICT: predict_module.code})


def _predict(
    learner: Online, model: Tree, carry: Carry, xs: Any, platforms: Sequence[str]
) -> "Module":
    """One step of the model, without learning."""
    arguments, step = learner.program.arguments, learner.program.runner.step
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    state = [Tree.of(carry.state, "carry.state", "state")]
    if step.initial is not None:
        state.append(Tree.of(carry.fresh, "carry.fresh", "state"))
    trees = [model, *state, Tree.of(x, "x", "input")]

    def predict(*arrays: Any) -> tuple[list[Array], Any]:
        model, hidden, *fresh, x = joined(trees, arrays)
        parameters = arguments.parameters(model)
        pairs = zip(step.input_leaves.split(x), step.input_leaves.avals, strict=True)
        inputs = [a if is_key(a) else jnp.asarray(a, aval.dtype) for a, aval in pairs]

        def one(inputs: list[Any], hidden: list[Any], fresh: list[Any]) -> Any:
            env = step.values(parameters, [*inputs, *fresh], hidden)
            return [env[v] for v in step.outputs], [env[v] for v in step.next_state]

        run = jax.vmap(one) if carry.batched else one
        outputs, new = run(inputs, step.state_leaves.split(hidden), fresh)
        begun = [jnp.zeros_like(flag) for flag in fresh]
        return [*map(_closed, new), *begun], step.output_leaves.join(outputs)

    moved = [leaf.name for leaf in described(state)]
    return module(predict, described(trees), moved, [("y", "output")], platforms)


class Module(NamedTuple):
    """A function of arrays as portable StableHLO."""

    code: bytes
    described: dict[str, Any]


def module(
    function: Callable[..., tuple[list[Array], *tuple[Any, ...]]],
    arguments: Sequence[Leaf],
    moved: Sequence[str],
    others: Sequence[tuple[str, str]],
    platforms: Sequence[str],
) -> Module:
    """A function as a module.

    - `function`: from arrays to the next values of some of them, and other trees.
    - `moved`: the names of the arguments whose next values it returns.
    - `others`: root and role of each of the other trees.

    **Raises** `UnsupportedError` where the module would call something outside of it.
    """
    results: list[Leaf] = []

    def learner(*arrays: Any) -> list[Array]:
        new, *trees = function(*arrays)
        of = [Tree.of(tree, *other) for tree, other in zip(trees, others, strict=True)]
        by_name = {leaf.name: leaf for leaf in arguments}
        results[:] = [*(by_name[name] for name in moved), *described(of)]
        return [*new, *split(of, trees)]

    avals = [leaf.aval for leaf in arguments]
    jitted = jax.jit(learner, keep_unused=True)
    exported = _without_calls(jitted, avals, platforms)
    places = {name: {"next": place} for place, name in enumerate(moved)}
    index = Leaf("platform", (), "int32", "platform")  # as JAX has it for several
    several = [index.written()] if len(platforms) > 1 else []
    entries = dict(
        arguments=several + [leaf.written() | places.get(leaf.name, {}) for leaf in arguments],
        results=[leaf.written() for leaf in results],
    )
    return Module(bytes(exported.mlir_module_serialized), entries)


def _without_calls(
    function: Any, avals: Sequence[jax.ShapeDtypeStruct], platforms: Sequence[str]
) -> export.Exported:
    """A compiled function as portable StableHLO, which calls nothing outside of itself."""
    lowered = function.trace(*avals).lower(lowering_platforms=tuple(platforms))
    calls = _calls(lowered.as_text(debug_info=True))
    if calls:
        raise UnsupportedError(
            f"The learner can't be exported: it calls {', '.join(calls)}, which is outside of what StableHLO "
            "describes. A callback is Python, and a custom call is code of JAX's for one kind of device, such as a "
            "decomposition of matrices. Compute it by other operations of JAX, or leave it to the code that feeds "
            "the learner."
        )
    return export.export(function, platforms=tuple(platforms))(*avals)


def _calls(text: str) -> list[str]:
    """What a module, as text with places, calls that is not in it: each with JAX's operation and its place."""
    places: dict[str, str] = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.M))

    def spelled(place: str, depth: int = 0) -> str:
        inner = places.get(place, "")
        if depth < 20:
            inner = re.sub(r"#loc\d*", lambda part: spelled(part[0], depth + 1), inner)
        return inner

    found = []
    for target, place in re.findall(r"custom_call @([\w.$]+).*?loc\((#loc\d*)\)$", text, re.M):
        where = spelled(place)
        name = re.search(r'"(?:[^"]*/)?([^"/]+)"', where)
        line = re.search(r'"([^"]+\.py)":(\d+)', where)
        found.append(
            target
            + (f" ({name[1]})" if name else "")
            + (f" at {line[1]}:{line[2]}" if line else "")
        )
    return list(dict.fromkeys(found))


def _constants(model: Any) -> dict[str, str]:
    """A hash of each array of a model that is not trained: those are in the modules."""
    leaves = Leaves.of(model, "model")
    values = leaves.split(model)
    fixed = [i for i in range(len(values)) if i not in leaves.floats]
    return {leaves.paths[i]: _hash(np.asarray(_closed(values[i])).tobytes()) for i in fixed}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- the file -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """A learner as portable StableHLO. Made by `export` of a learner, or by [`etpc.load_exported`][].

    It runs under JAX without the code of the model. Data are arrays in the order of the manifest, or trees of them
    that flatten in this order, as those do that were exported.
    """

    manifest: dict[str, Any]
    """What is written to `manifest.json`, ready for JSON."""
    state: dict[str, np.ndarray]
    """The first value of each state argument, by name."""
    modules: dict[str, bytes]
    """Portable StableHLO, by the name of the file."""
    _functions: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `update.mlirbc`, `predict.mlirbc`, `state.npz` and `manifest.json` to a new folder.

        The folder is there with all of them, or not at all, whenever the process is killed. While it is written
        it is in another one beside it, `.<name>.saving`.

        **Raises** `FileExistsError` where there is something in the folder, which is left as it is; `OSError`
        where it can't be written.
        """
        files = {**self.modules, STATE: self._packed()}
        entries = {name: dict(sha256=_hash(data), size=len(data)) for name, data in files.items()}
        described = self.manifest["files"]
        record = self.manifest | {
            "files": {name: described.get(name, {}) | entry for name, entry in entries.items()},
            "sha256": NO_HASH,
        }
        text = json.dumps(record, indent=1)
        files[MANIFEST] = text.replace(NO_HASH, _hash(text.encode())).encode()
        with new_folder(folder) as temporary:
            temporary.mkdir()
            for name, data in files.items():
                (temporary / name).write_bytes(data)

    def __reduce__(self) -> Any:
        return type(self), (self.manifest, self.state, self.modules)  # without compiled functions

    def _packed(self) -> bytes:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: to_npy(value) for name, value in self.state.items()}
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def update(
        self,
        state: Mapping[str, Any],
        xs: Any,
        targets: Any,
        *,
        mask: Any = None,
        reset: Any = None,
    ) -> tuple[Any, ...]:
        """One call of `learner.update`, by JAX.

        **Arguments:**

        - `state`: the value of each state argument by name, such as `state` of this object.
        - `xs`, `targets`, `mask`, `reset`: of the shapes that were exported.

        **Returns** `(state, losses)`, and what the loss returned besides as a third where the learner has
        `has_aux=True`: a list of arrays.

        **Raises** `etpc.InputError` where an argument is missing or does not fit.
        """
        data = {"input": xs, "target": targets, "mask": mask, "reset": reset}
        state, (losses, *aux) = self._run(UPDATE, state, data)
        return (state, losses, aux) if aux else (state, losses)

    def predict(self, state: Mapping[str, Any], x: Any) -> tuple[dict[str, Any], list[Array]]:
        """One step of the model without learning, by JAX.

        **Arguments:** `state` as in `update`; `x`, the input of one step.

        **Returns** `(state, outputs)`, with the hidden state after the step, and the arrays of the output.

        **Raises** `etpc.InputError` where an argument is missing or does not fit.
        """
        return self._run(PREDICT, state, {"input": x})

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

    def temporaries(self, name: str = UPDATE) -> int:
        """The bytes that a module takes beside its arguments and results, as XLA compiles it for this machine."""
        arguments, _ = self.leaves(name)
        with jax.enable_x64(True):
            avals = [leaf.aval for leaf in arguments]
            analysis = self._compiled(name).lower(*avals).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes)

    def _compiled(self, name: str) -> Any:
        if name not in self._functions:
            arguments, results = self.leaves(name)
            avals = [leaf.aval for leaf in arguments]

            def like(*_: Any) -> list[Array]:
                return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in results]

            # The calling convention of a function with these arguments and results; the code is another.
            platforms = tuple(self.manifest["platforms"])
            shell = export.export(jax.jit(like, keep_unused=True), platforms=platforms)(*avals)
            function = dataclasses.replace(shell, mlir_module_serialized=self.modules[name])
            self._functions[name] = jax.jit(function.call)
        return self._functions[name]

    def into(
        self, model: Any, opt_state: Any, carry: Any, state: Mapping[str, Any] | None = None
    ) -> tuple[Any, Any, Any]:
        """A state as what a learner goes on with.

        **Arguments:**

        - `model`, `opt_state`, `carry`: of the learner that was exported, with any values.
        - `state`: by name, as a device returns it; by default the one that was exported.

        **Returns** `(model, opt_state, carry)`, for `learner.update` or [`etpc.save`][].

        **Raises** `etpc.InputError` where they are of another learner, or the state does not fit.
        """
        trees = self._trees(model, opt_state, carry)
        given, problems = self.state if state is None else state, []
        values = [_fitted(leaf, given.get(leaf.name), problems) for leaf in described(trees)]
        raise_together(problems, InputError)
        model, opt_state, carry = joined(trees, [*map(jnp.asarray, values)])
        return model, opt_state, carry

    def state_of(self, model: Any, opt_state: Any, carry: Any) -> dict[str, np.ndarray]:
        """The values of what a learner goes on with, by name: the state that `update` and a device take.

        **Raises** `etpc.InputError` where they are of another learner.
        """
        trees = self._trees(model, opt_state, carry)
        values = split(trees, (model, opt_state, carry))
        return {
            leaf.name: np.array(value) for leaf, value in zip(described(trees), values, strict=True)
        }

    def _trees(self, model: Any, opt_state: Any, carry: Any) -> list[Tree]:
        trees = training(model, opt_state, carry)
        ours = [leaf for leaf in self.leaves(UPDATE)[0] if leaf.role == "state"]
        theirs = described(trees)
        problems = [
            f"{leaf.name} is not in the exported one." for leaf in theirs if leaf not in ours
        ]
        problems += [
            f"{leaf.name} of the exported one is missing." for leaf in ours if leaf not in theirs
        ]
        if carry.program != self.manifest["program"]:
            problems.append("The carry belongs to another program.")
        if _constants(model) != self.manifest["constants"]:
            problems.append("An array of the model that is not trained has other values.")
        raise_together(problems, InputError, "" if not problems else "This is another learner.")
        return trees


def _fitted(leaf: Leaf, value: Any, problems: list[str]) -> np.ndarray:
    """A value as an argument; where it does not fit, a problem more."""
    if value is None:
        problems.append(f"{leaf.name} is missing: {leaf.dtype}{list(leaf.shape)}.")
        return np.zeros(())
    value = _closed(value) if hasattr(value, "dtype") else value
    array, wanted = np.asarray(value), jnp.dtype(leaf.dtype)
    cast = array.astype(wanted) if np.can_cast(array.dtype, wanted, "same_kind") else None
    changed = cast is not None and array.dtype.kind in "iu" and not np.array_equal(cast, array)
    if cast is None or changed or array.shape != leaf.shape:
        problems.append(
            f"{leaf.name} is {array.dtype}{list(array.shape)}, and was exported as {leaf.dtype}{list(leaf.shape)}."
        )
        return np.zeros(())
    return cast


def load_exported(folder: str | os.PathLike[str]) -> Exported:
    """Read what [`Exported.save`][etpc.Exported.save] wrote, without the code of the model.

    **Returns** the [`Exported`][etpc.Exported].

    **Raises** `etpc.CheckpointError` where a file is missing or not a regular one, was changed by as much as a byte, or
    has contents that this version of etpc does not write.
    """
    folder = Path(folder)
    text = _read(folder, MANIFEST)
    own = re.search(rb'"sha256": "([0-9a-f]{64})"\n}$', text)
    if own is None or _hash(text.replace(own[1], NO_HASH.encode())).encode() != own[1]:
        raise CheckpointError(f"{folder / MANIFEST} is not as it was written. Use another copy.")
    try:
        manifest = read_record(text, SCHEMA)
    except ValueError as error:
        raise CheckpointError(
            f"{folder / MANIFEST} is of no exported learner: {error}. Load it with the version that wrote it."
        ) from error
    data = {name: _read(folder, name) for name in manifest["files"]}
    for name, content in data.items():
        if _hash(content) != manifest["files"][name]["sha256"]:
            raise CheckpointError(f"{folder / name} is not as it was written. Use another copy.")
    packed = data.pop(STATE)
    exported = Exported(manifest, {}, data)
    try:
        leaves = {name: exported.leaves(name) for name in data}
        state = _unpacked(packed, [leaf for leaf in leaves[UPDATE][0] if leaf.role == "state"])
    except Exception as error:  # whatever Python and NumPy say of what `save` does not write
        reason = "has contents that etpc does not write. Use another copy."
        raise CheckpointError(f"{folder} {reason}") from error
    return dataclasses.replace(exported, state=state)


def _read(folder: Path, name: str) -> bytes:
    if not (folder / name).is_file():  # reading a pipe may never end
        raise CheckpointError(
            f"{folder} is no exported learner: it has no {name} that is a regular file. Write one by `Exported.save`."
        )
    return (folder / name).read_bytes()


def _unpacked(packed: bytes, leaves: Sequence[Leaf]) -> dict[str, np.ndarray]:
    """The values of these leaves. **Raises** any error where they are not in it."""
    stored, values = np.load(io.BytesIO(packed), allow_pickle=False), {}
    for name, shape, dtype, *_ in leaves:
        array = stored[name]
        if (array.shape, array.dtype) != (shape, npy_dtype(dtype)):
            raise ValueError(name)
        values[name] = from_npy(array, jnp.dtype(dtype))
    return values
