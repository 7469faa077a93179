"""Checkpoints: any PyTree of arrays in one file, which is replaced as a whole or not at all.

A file begins with a magic number, and the length and SHA-256 of all that follows: one line of JSON
that describes each leaf, and then the leaves in NumPy's npy format, one after another, as
`equinox.tree_serialise_leaves` writes them. Nothing in it is code, and nothing is unpickled: `load`
compares the descriptions with those of `like`, and reads only arrays that `like` has too.
"""

import collections
import dataclasses
import enum
import hashlib
import io
import itertools
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy

from .errors import CheckpointError, raise_together
from .files.disk import from_npy, key_impl, npy_dtype, read_npy, replacing, to_npy
from .run import Carry
from .trace import Tracer, is_key

_MAGIC = b"\x89etpc2\r\n"
_START = struct.Struct("<8sQ32s")  # magic number, length and SHA-256 of what follows
_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
_NUMBERS = (bool, int, float, complex)
_INT_BYTES = 128


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a PyTree to a file, such as `(model, opt_state, carry)`.

    The file at `path` is replaced atomically: whenever the process is killed or the disk is full, it
    holds all of what was saved last, or all of what was saved before. While it is written it is
    in a folder beside it, `.<name>.saving` (of a long name, its hash); one that a killed process
    left is removed by the next save. A file that is replaced keeps its mode, and where `path` is a
    link, what it points to is replaced.

    **Arguments:**

    - `path`: of the file. Its folder must exist.
    - `tree`: any PyTree. Arrays of any dtype of JAX, PRNG keys and Python numbers are saved, with the
        units of quantities and the programs of carries. Strings and members of enums are
        configuration: `load` checks that `like` has the same. Functions, such as activation functions,
        and classes are not saved: `load` takes those of `like`.

    **Raises** `etpc.CheckpointError` where a leaf is anything else, and `OSError` where the file
    cannot be written, or `path` is something other than a regular file. What was at `path` is still
    there then.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> etpc.save("run.etpc", {"w": jnp.arange(3.0), "updates": 7})
    >>> etpc.load("run.etpc", like={"w": jnp.zeros(3), "updates": 0})
    {'updates': 7, 'w': Array([0., 1., 2.], dtype=float32)}

    ```
    """
    described = list(_described(tree))
    reasons = ((where, _why_not(leaf)) for where, _, leaf in described)
    raise_together((f"{where} is {why}" for where, why in reasons if why), CheckpointError)
    header = json.dumps({"leaves": [entry[:2] for entry in described]})

    try:
        with replacing(path) as file:
            file.write(bytes(_START.size) + header.encode() + b"\n")
            for _, _, leaf in described:
                if _stored_as(leaf) is not None:
                    npy.write_array(file, _to_npy(leaf), allow_pickle=False)
            length = file.tell() - _START.size
            file.seek(_START.size)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0)
            file.write(_START.pack(_MAGIC, length, digest))
    except OSError as error:
        error.add_note(f"The checkpoint {path} was not saved. What was there before still is.")
        raise


@dataclasses.dataclass(frozen=True)
class AnyLength:
    """Stands for a vector of any length in what `etpc.load` compares a file with.

    - `dtype`: of its elements.
    """

    dtype: Any


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Read what [`etpc.save`][] wrote.

    **Arguments:**

    - `path`: of the file.
    - `like`: a PyTree with the structure, shapes and dtypes of what was saved: what a new run would
        start from. Arrays may be `jax.ShapeDtypeStruct`s, and a vector of any length an
        `etpc.checkpoint.AnyLength` of its dtype.

    **Returns** a PyTree with the structure of `like`. Arrays have the shardings of those of `like`, of
    `jax.ShapeDtypeStruct`s too; functions are those of `like`.

    **Raises** `etpc.CheckpointError` where the file is not a checkpoint, is cut short or damaged, was
    written in another format, or does not fit `like`: other leaves, shapes, dtypes, units or strings,
    or a carry of another program. The message names the first twenty differences; where the file has
    more than `like`, such as a whole run, it names [`etpc.load_weights`][]. `OSError` where the file
    cannot be read.
    """
    return _read(Path(path), like, weights=False)


def load_weights(path: str | os.PathLike[str], like: Any) -> Any:
    """Read the model alone from a file that [`etpc.fit`][] wrote, or `etpc.save` of `(model, ...)` or of a model.

    The optimiser's state and the carry are passed over. So the weights outlive an edit of the step's
    code, another learning rule or another optimiser, each of which makes the carry or the state of the
    optimiser unfit.

    **Arguments:**

    - `path`: of the file.
    - `like`: a model with the structure, shapes and dtypes of the one that was saved.

    **Returns** `like` with the values of the file, as [`etpc.load`][] gives them.

    **Raises** `etpc.CheckpointError` and `OSError` as `load` does.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> etpc.save("run.etpc", ({"w": jnp.arange(3.0)}, "state of an optimiser", 7))
    >>> etpc.load_weights("run.etpc", like={"w": jnp.zeros(3)})
    {'w': Array([0., 1., 2.], dtype=float32)}

    ```
    """
    return _read(Path(path), like, weights=True)


FIRST = "[0]"
"""The path of the model in what `fit` saves, and in `(model, opt_state, carry)`."""


def _read(path: Path, like: Any, *, weights: bool) -> Any:
    """What a file holds; with `weights` the first part of it, where it has several."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a pipe may never end
        raise CheckpointError(f"{path} is not a checkpoint of etpc: it is not a regular file.")
    described = list(_described(like))
    with path.open("rb") as file:
        _check_whole(path, file)
        try:
            entries = [(where, text) for where, text in json.loads(file.readline())["leaves"]]
            texts = dict(entries)
            room = os.fstat(file.fileno()).st_size
            described = [_of_length(entry, texts.get(entry[0], ""), room) for entry in described]
            if weights and _parts(entries) and entries != [(w, text) for w, text, _ in described]:
                described = list(_described(like, FIRST))
                entries = [entry for entry in entries if entry[0].startswith(FIRST)]
            differences = list(itertools.islice(_differences(entries, described), 20))
            stored = [] if differences else [_stored_as(leaf) for _, _, leaf in described]
            values = [None if how is None else read_npy(file, *how) for how in stored]
            if not differences and not weights and file.read(1):
                raise ValueError
        except (OSError, MemoryError):
            raise
        except Exception:  # whatever Python and NumPy say of what `save` does not write
            reason = "has contents that etpc does not write. Use another copy."
            raise CheckpointError(f"{path} {reason}") from None
    heading = f"{path} does not fit `like`. Pass what has the structure of what was saved."
    if not weights and _parts(entries) > 1 and not isinstance(like, tuple | list):
        heading += (
            f" The file holds a tuple of {_parts(entries)}, as `etpc.fit` writes (model, opt_state, carry, "
            "block, stopped, history). For the model alone, call `etpc.load_weights(path, like=model)`."
        )
    raise_together(differences, CheckpointError, heading)
    pairs = zip(values, described, strict=True)
    leaves = [_restored(value, leaf) for value, (_, _, leaf) in pairs if leaf is not None]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _parts(entries: list[tuple[str, str]]) -> int:
    """How many members the tuple or list has that a file holds, as far as they have leaves; 0 for another tree."""
    numbers = [re.match(r"\[(\d+)\]", where) for where, _ in entries]
    return len({number[1] for number in numbers if number}) if all(numbers) else 0


# --- the file ---


def _check_whole(path: Path, file: io.BufferedReader) -> None:
    """Refuse what is not, byte for byte, what was written; leave the file at its header."""
    start, size = file.read(_START.size), os.fstat(file.fileno()).st_size
    length, digest = _START.unpack(start)[1:] if size >= _START.size else (0, b"")
    whole = _START.size + length
    if not start or start[:5] != _MAGIC[: len(start)][:5]:
        problem = "is not a checkpoint of etpc: it begins with other bytes."
    elif start[:8] != _MAGIC[: len(start)]:
        problem = "has a format of another version of etpc. Load it with the version that wrote it."
    elif size < whole:
        problem = f"is cut short: it has {size} of at least {whole} bytes. Use another copy."
    elif size > whole or hashlib.file_digest(file, "sha256").digest() != digest:
        problem = "is damaged: its checksum is wrong. Use another copy."
    else:
        file.seek(_START.size)
        return
    raise CheckpointError(f"{path} {problem}")


# --- leaves ---


def _described(tree: Any, above: str = "") -> Iterator[tuple[str, str, Any]]:
    """Path, description and value of each leaf, and of each node that says more than its leaves do.

    The value of a node is `None`, which no leaf is. Where leaves have one path, they are counted. `above` is the
    path of the tree itself.
    """
    seen = collections.Counter()
    for where, text, leaf in _walk(tree, above):
        where = re.sub(" at 0x[0-9a-fA-F]+", "", where) or "the tree"  # the same in each process
        seen[where] += 1
        yield where if seen[where] == 1 else f"{where} ({seen[where]})", text, leaf


def _walk(tree: Any, above: str = "") -> Iterator[tuple[str, str, Any]]:
    def is_inner(node: Any) -> bool:
        return node is not tree and _note(node) != ""

    if note := _note(tree):
        yield above, note, None
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_inner):
        where = above + jax.tree_util.keystr(path)
        if is_inner(node):
            yield from _walk(node, where)
        else:
            yield where, _text(node), node


def _note(node: Any) -> str:
    """What a node has to agree on beside its leaves."""
    if isinstance(node, Carry):
        batch = "with a batch axis" if node.batched else "without a batch axis"
        return f"a carry {batch} of the program {node.program}"
    if hasattr(node, "mantissa") and hasattr(node, "unit"):
        return f"a quantity in {node.unit}"
    return ""


def _text(leaf: Any) -> str:
    """What has to agree of a leaf."""
    kind = type(leaf).__name__
    if isinstance(leaf, enum.Enum):
        return f"{kind}.{leaf.value if isinstance(leaf, enum.Flag) else leaf.name}"
    if isinstance(leaf, str):
        return str.__repr__(leaf)
    if isinstance(leaf, _ARRAYS):
        return f"{leaf.dtype if is_key(leaf) else np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    if isinstance(leaf, AnyLength):
        return f"{jnp.dtype(leaf.dtype).name}[None]"
    if type(leaf) in _NUMBERS:
        return f"a Python {kind}"
    return "a function" if callable(leaf) else f"a {kind}"


def _of_length(entry: tuple[str, str, Any], in_file: str, room: int) -> tuple[str, str, Any]:
    """An entry of `like`, with the length that it has in a file of `room` bytes where any will do."""
    where, _, leaf = entry
    found = re.fullmatch(r"\w+\[(\d+)\]", in_file)
    if found is None or not isinstance(leaf, AnyLength):
        return entry
    if int(found[1]) * jnp.dtype(leaf.dtype).itemsize > room:
        raise ValueError(f"{where} is longer than the file")
    leaf = jax.ShapeDtypeStruct((int(found[1]),), leaf.dtype)
    return where, _text(leaf), leaf


def _why_not(leaf: Any) -> str:
    """Why a leaf cannot be saved; nothing where it can."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "a shape, which has no values to save."
    if isinstance(leaf, Tracer):
        return "traced. Save outside of jax.jit and other transformations."
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        return "an array that was deleted or donated. Save what the function it went into returned."
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return (
            "spread over several processes. Save such a run with Orbax, as `examples/fleet.py` does; or gather it "
            "first, by `jax.experimental.multihost_utils.process_allgather`, and save in one of them."
        )
    if isinstance(leaf, np.ndarray) and type(leaf) is not np.ndarray:
        return f"a {type(leaf).__name__}, which is more than its array. Save `np.asarray` of it."
    if type(leaf) is int and leaf.bit_length() >= 8 * _INT_BYTES:
        return f"an int of more than {_INT_BYTES} bytes. Save it as an array or as text."
    stored = _stored_as(leaf)
    if stored is not None and stored[1].kind not in "biufc":
        return f"an array of {stored[1]}, which JAX does not have."
    if stored is None and not (isinstance(leaf, str | enum.Enum) or callable(leaf) or leaf is None):
        return (
            f"a {type(leaf).__name__}, which cannot be saved. Make it a Python number, an array or a "
            "string, or keep it out of the tree, such as by `eqx.field(static=True)`."
        )
    return ""


def _stored_as(leaf: Any) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and dtype of a leaf in the file; `None` where no array is stored."""
    if type(leaf) is int:
        return (_INT_BYTES,), np.dtype("u1")
    if type(leaf) in _NUMBERS:
        return (), npy_dtype(type(leaf))
    if not isinstance(leaf, _ARRAYS) or isinstance(leaf, str | enum.Enum):
        return None
    array = jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf
    return tuple(array.shape), npy_dtype(array.dtype)


def _to_npy(leaf: Any) -> np.ndarray:
    if type(leaf) is int:
        return np.frombuffer(leaf.to_bytes(_INT_BYTES, "little", signed=True), np.uint8)
    return to_npy(np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf))


def _restored(value: Any, like: Any) -> Any:
    """A leaf as that of `like` is, with the value that was stored."""
    if value is None:
        return like
    if type(like) in _NUMBERS:
        return int.from_bytes(value, "little", signed=True) if type(like) is int else value.item()
    if is_key(like):
        value = jax.random.wrap_key_data(jnp.asarray(value), impl=key_impl(like))
    else:
        value = from_npy(value, like.dtype)
        if isinstance(like, np.ndarray | np.generic):
            return value[()] if isinstance(like, np.generic) else value
        with jax.enable_x64(True):  # else it would make another number of a large int64
            value = jnp.array(value, like.dtype)
    if isinstance(like, Tracer) or (isinstance(like, jax.Array) and not like.committed):
        return value
    return jax.device_put(value, like.sharding) if like.sharding is not None else value


def _differences(
    entries: list[tuple[str, str]], described: list[tuple[str, str, Any]]
) -> Iterator[str]:
    """Where a file and `like` do not agree."""
    in_file, in_like = dict(entries), {where: text for where, text, _ in described}
    for where in dict.fromkeys([*in_like, *in_file]):
        ours, theirs = in_like.get(where, "not there"), in_file.get(where, "not there")
        if ours != theirs:
            yield f"{where} is {ours} in `like`, and {theirs} in the file."
    if in_file == in_like and [where for where, _ in entries] != list(in_like):
        yield "The leaves have another order."


__all__ = ["load", "load_weights", "save"]
