"""Checkpoints: any PyTree of arrays in one file, which is whole or is not there.

The file: a magic number, the version of the format, the length of the header and its SHA-256; the
header, JSON that describes each leaf; the bytes of the arrays, little-endian. Nothing in it is code.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from ._carry import Carry
from ._errors import CheckpointError, raise_together
from ._jax import Tracer

try:
    import fcntl
except ImportError:  # not there on Windows
    fcntl = None

_MAGIC = b"\x89etpc\r\n\x1a"
_VERSION = 1
_START = struct.Struct("<8sIQ32s")  # magic, version, length and SHA-256 of the header

Bytes = bytes | memoryview


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a PyTree to a file, such as `(model, opt_state, carry)`.

    The file at `path` is replaced in one go: whenever the process is killed or the disk is full, it
    holds all of what was saved last, or all of what was saved before. While it is written it is
    beside it, as `.<name>.saving`; one that was left by a process that was killed is removed by the
    next save. A file that is replaced keeps its mode, and where `path` is a link, what it points to is
    replaced.

    **Arguments:**

    - `path`: of the file. Its folder must be there.
    - `tree`: any PyTree. Arrays of any dtype of JAX, PRNG keys and Python numbers are saved, with the
        units of quantities and the programs of carries. Other leaves, such as activation functions,
        are not; only that they were there.

    **Raises** `etpc.CheckpointError` where a leaf cannot be saved, and `OSError` where the file
    cannot be written, or `path` is there and no regular file. What was at `path` is still there then.

    ```pycon
    >>> import etpc, jax.numpy as jnp
    >>> etpc.save("run.etpc", {"w": jnp.arange(3.0), "updates": 7})
    >>> etpc.load("run.etpc", like={"w": jnp.zeros(3), "updates": 0})
    {'updates': 7, 'w': Array([0., 1., 2.], dtype=float32)}

    ```
    """
    from . import __version__

    problems, entries, arrays = [], [], []
    for where, leaf in _leaves(tree):
        try:
            entry, array = _stored(leaf)
        except CheckpointError as error:
            problems.append(f"{where} {error}")
            continue
        entries.append({"path": where, **entry})
        if array is not None:
            arrays.append(array)
    raise_together(problems, CheckpointError)
    checksum = hashlib.sha256()
    for array in arrays:
        checksum.update(_bytes(array))
    header = {
        "versions": {"etpc": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "leaves": entries,
        "notes": _notes(tree),
        "bytes": sum(a.nbytes for a in arrays),
        "sha256": checksum.hexdigest(),
    }
    text = json.dumps(header).encode()
    start = _START.pack(_MAGIC, _VERSION, len(text), hashlib.sha256(text).digest())
    _replace(Path(os.path.realpath(path)), [start, text, *map(_bytes, arrays)])


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Read what [`etpc.save`][] wrote.

    **Arguments:**

    - `path`: of the file.
    - `like`: a PyTree with the structure, shapes and dtypes of what was saved: what a new run would
        start from. Arrays may be `jax.ShapeDtypeStruct`s.

    **Returns** a PyTree with the structure of `like`. Arrays are on the devices of those of `like`
    and spread over them in the same way; leaves that are not saved are those of `like`.

    **Raises** `etpc.CheckpointError` where the file is no checkpoint, is cut short or damaged, has a
    header that `etpc` does not write, or does not fit `like`: other leaves, shapes, dtypes or units,
    or a carry of another program. The message names each. `OSError` where the file cannot be read.
    """
    path = Path(path)
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(
        mode
    ):  # reading a pipe or a device may never end
        raise CheckpointError(f"{path} is no checkpoint of etpc: it is no regular file.")
    content = memoryview(path.read_bytes())
    header, payload = _checked(path, content)
    leaves, treedef = jax.tree.flatten(like)
    expected = [(where, _described(leaf)) for where, leaf in _leaves(like)]
    raise_together(
        _differences(header, expected, _notes(like)),
        CheckpointError,
        f"{path} does not fit `like`. Pass what has the structure of what was saved.",
    )
    values, place = [], 0
    for entry, leaf in zip(header["leaves"], leaves, strict=True):
        size = entry.get("bytes", 0)
        values.append(_restored(entry, payload[place : place + size], leaf))
        place += size
    return treedef.unflatten(values)


# --- the file ---


def _replace(path: Path, chunks: list[Bytes]) -> None:
    """Write a file beside `path`, see to it that it is on the disk, and put it in its place."""
    temporary = path.with_name(f".{path.name}.saving")
    try:
        mode = _mode(path)
        file = _opened_alone(temporary)
        with file:
            try:
                if mode is not None and hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), mode)
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                if fcntl is not None:
                    os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        if fcntl is None:  # an open file cannot be moved there
            os.replace(temporary, path)
    except OSError as error:
        error.add_note(f"The checkpoint {path} was not saved. What was there before still is.")
        raise
    _sync_folder(path.parent)


def _mode(path: Path) -> int | None:
    """Who may do what with the file at `path`; `None` where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileExistsError(errno.EEXIST, "It is no regular file, and is not replaced", str(path))
    return stat.S_IMODE(status.st_mode)


def _opened_alone(path: Path) -> IO[bytes]:
    """A new file to write, which no other process writes as long as it is open.

    One that a killed process left is removed. A link that someone placed there is not followed, and
    what has a second name is not written to.
    """
    flags = os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    exists = flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        is_new = True
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            is_new = False
            try:
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                    reason = "It is no file that a save left; remove it"
                    raise FileExistsError(errno.EEXIST, reason, str(path)) from None
                descriptor = os.open(path, exists)
            except FileNotFoundError:
                continue  # another save has just ended
        file = os.fdopen(descriptor, "wb")
        try:
            if fcntl is None:
                file.truncate(0)
                return file
            with contextlib.suppress(OSError):  # some network disks have no locks
                fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, or the process ends
            if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                if is_new:
                    return file
                path.unlink()
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()  # it was left by a killed process, or another save put it in its place


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(path: Path, content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Header and payload, if the file is what was written."""

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path} {reason}")

    damaged = "Its contents changed after it was written: use another copy."
    if content[: len(_MAGIC)] != _MAGIC[: len(content)] or not content:
        raise refuse("is no checkpoint of etpc: it begins with other bytes.")
    if len(content) < _START.size:
        raise refuse(f"is cut short: it has {len(content)} bytes. Use another copy.")
    _, version, length, digest = _START.unpack_from(content)
    if version != _VERSION:
        raise refuse(
            f"has format {version}, and this version of etpc reads {_VERSION}. Load it with the "
            "version that wrote it."
        )
    text, payload = content[_START.size :][:length], content[_START.size :][length:]
    if len(text) < length:
        raise refuse(
            f"is cut short: it has {len(text)} of the {length} bytes of its header. Use another "
            "copy."
        )
    if hashlib.sha256(text).digest() != digest:
        raise refuse(f"is damaged: the checksum of its header is wrong. {damaged}")
    header = _parsed(text)
    if header is None:
        raise refuse("has a header that etpc does not write. Use another copy.")
    if len(payload) != header["bytes"]:
        word = "cut short" if len(payload) < header["bytes"] else "damaged"
        raise refuse(
            f"is {word}: it has {len(payload)} bytes of arrays, and {header['bytes']} were "
            "written. Use another copy."
        )
    if hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise refuse(f"is damaged: the checksum of its arrays is wrong. {damaged}")
    return header, payload


def _parsed(text: memoryview) -> dict[str, Any] | None:
    """The header, if all that is read of it is there and of the right type; else `None`."""
    try:
        header = json.loads(bytes(text))
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number of too many digits
        return None
    fields = {"leaves": list, "notes": dict, "bytes": int, "sha256": str}
    if not _has(header, fields) or not all(
        isinstance(note, str) for note in header["notes"].values()
    ):
        return None
    if not all(_is_entry(entry) for entry in header["leaves"]):
        return None
    total = sum(entry.get("bytes", 0) for entry in header["leaves"])
    return header if total == header["bytes"] else None


def _has(value: Any, fields: dict[str, type]) -> bool:
    """Whether a value is a dict with fields of these types. A bool is no int here."""
    return isinstance(value, dict) and all(type(value.get(k)) is kind for k, kind in fields.items())


def _is_entry(entry: Any) -> bool:
    """Whether an entry is one that describes a leaf."""
    if not _has(entry, {"path": str, "kind": str}):
        return False
    kind = entry["kind"]
    if kind not in ("array", "key"):
        if "bytes" in entry or kind == "not saved":
            return "bytes" not in entry
        return _has(entry, {"value": str}) and _is_value(kind, entry["value"])
    if not _has(entry, {"shape": list, "dtype": str, "bytes": int}):
        return False
    if not all(type(size) is int and size >= 0 for size in entry["shape"]):
        return False
    count = math.prod(entry["shape"])
    try:
        if kind == "array":
            return entry["bytes"] == count * jnp.dtype(entry["dtype"]).itemsize
        key = jax.eval_shape(lambda: jax.random.key(0, impl=entry["impl"]))
        words = jax.eval_shape(jax.random.key_data, key).size
        return entry["bytes"] == count * words * 4 and str(key.dtype) == entry["dtype"]
    except Exception:  # whatever NumPy and JAX say of a name that they do not know
        return False


def _is_value(kind: str, text: str) -> bool:
    """Whether a text stands for a number of Python as `repr` writes it, or is one."""
    if kind == "str":
        return True
    try:
        return kind in _READ and repr(_READ[kind](text)) == text
    except ValueError:
        return False


# --- leaves ---


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path) or "the leaf", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _notes(tree: Any, root: str = "") -> dict[str, str]:
    """What parts of a tree have to agree on beside their arrays, in words."""

    def special(node: Any) -> bool:
        return isinstance(node, Carry) or (hasattr(node, "mantissa") and hasattr(node, "unit"))

    notes = {}
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=special):
        where = root + jax.tree_util.keystr(path)
        if isinstance(node, Carry):
            batch = "with a batch axis" if node.batched else "without a batch axis"
            notes[where or "the tree"] = f"a carry {batch} of the program {node.program}"
            notes |= _notes(node.state, f"{where}.state")
        elif special(node):
            notes[where or "the tree"] = f"a quantity in {node.unit}"
    return notes


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jax.dtypes.prng_key)


def _described(leaf: Any) -> dict[str, Any]:
    """What the header says of a leaf."""
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        return {"kind": type(leaf).__name__}
    if isinstance(leaf, str):
        return {"kind": "str", "value": leaf}
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return {"kind": "not saved"}
    if _is_key(leaf):
        return {"kind": "key", "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return {"kind": "array", "shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}


def _stored(leaf: Any) -> tuple[dict[str, Any], np.ndarray | None]:
    """The entry of a leaf in the header, and its bytes as an array."""
    entry = _described(leaf)
    if entry["kind"] not in ("array", "key"):
        if entry["kind"] not in ("not saved", "str"):
            try:
                entry["value"] = repr(leaf)
            except ValueError:
                raise CheckpointError(
                    "is an int of more digits than Python writes. Save it as an array or as text."
                ) from None
        return entry, None
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise CheckpointError("is a shape, which has no values to save.")
    if isinstance(leaf, Tracer):
        raise CheckpointError("is traced. Save outside of jax.jit and other transformations.")
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise CheckpointError(
            "is spread over several processes. Gather it first, by "
            "`jax.experimental.multihost_utils.process_allgather`, and save in one of them."
        )
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    if array.dtype.hasobject or array.dtype.names or array.dtype.kind in "SU":
        raise CheckpointError(f"is an array of {array.dtype}, which JAX does not have.")
    if array.dtype.byteorder == ">" or (sys.byteorder == "big" and array.dtype.byteorder == "="):
        array = array.byteswap().view(array.dtype.newbyteorder("<"))
    if _is_key(leaf):
        entry["impl"] = str(jax.random.key_impl(leaf))
    return {**entry, "bytes": array.nbytes}, np.ascontiguousarray(array)


def _bytes(array: np.ndarray) -> Bytes:
    return array.reshape(-1).view(np.uint8).data


_READ = {"bool": lambda text: text == "True", "int": int, "float": float, "complex": complex}


def _restored(entry: dict[str, Any], data: memoryview, like: Any) -> Any:
    kind = entry["kind"]
    if kind in ("str", "not saved"):
        return like
    if kind in _READ:
        return _READ[kind](entry["value"])
    if kind == "key":
        words = np.frombuffer(data, "<u4").reshape(*entry["shape"], -1)
        value = jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32), impl=entry["impl"])
    else:
        value = np.frombuffer(data, jnp.dtype(entry["dtype"])).reshape(entry["shape"])
        if sys.byteorder == "big":
            value = value.byteswap()
        if isinstance(like, np.generic):
            return value[()]
        if isinstance(like, np.ndarray):
            return value.copy()
        value = jnp.array(value)
    return jax.device_put(value, like.sharding) if getattr(like, "committed", False) else value


def _differences(
    header: dict[str, Any], expected: list[tuple[str, dict[str, Any]]], notes: dict[str, str]
) -> Iterator[str]:
    """Where a file and `like` do not agree."""
    wanted = {where: _text(entry) for where, entry in expected}
    stored = {entry["path"]: _text(entry) for entry in header["leaves"]}
    for ours, theirs in ((wanted, stored), (notes, header["notes"])):
        for where in dict.fromkeys([*ours, *theirs]):
            in_like, in_file = ours.get(where, "not there"), theirs.get(where, "not there")
            if in_like != in_file:
                yield f"{where} is {in_like} in `like`, and {in_file} in the file."
    order = [where for where, _ in expected], [entry["path"] for entry in header["leaves"]]
    if wanted == stored and order[0] != order[1]:
        yield "The leaves have another order."


def _text(entry: dict[str, Any]) -> str:
    if entry["kind"] in ("array", "key"):
        return f"{entry['dtype']}{entry['shape']}"
    if entry["kind"] == "str":
        return repr(entry["value"])
    return (
        "a leaf that is not saved" if entry["kind"] == "not saved" else f"a Python {entry['kind']}"
    )


__all__ = ["load", "save"]
