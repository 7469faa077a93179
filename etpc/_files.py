"""What is on a disk: files and folders that are whole or not there, and arrays as every machine reads them."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` for a new file or folder, which is put in the place of `path` where no error is raised.

    It is `.<name>.saving` (of a long name, its hash). What a killed process left there is removed. No other process
    writes in this way to the same folder meanwhile.
    """
    name = path.name
    if len(os.fsencode(name)) > 100:  # with more around it, a name may be too long for the disk
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = path.with_name(f".{name}.saving")
    with _locked(path.parent) as folder:
        _remove(temporary)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        if folder is not None:
            os.fsync(folder)


def flush(file: IO[bytes]) -> None:
    """Write what a file holds to the disk."""
    file.flush()
    os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder, in which no other save writes meanwhile; `None` on Windows."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        with contextlib.suppress(OSError):  # a process forked meanwhile would keep the lock
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def key_impl(key: Any) -> Any:
    """The implementation of PRNG keys, of which there may be shapes alone; it is hashable."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]


def npy_dtype(dtype: Any) -> np.dtype:
    """Little-endian, and unsigned integers for what NumPy does not have, such as bfloat16."""
    dtype = np.dtype(dtype)
    is_number_of_jax = dtype.isbuiltin == 2 and jnp.issubdtype(dtype, np.number)
    return np.dtype(f"<u{dtype.itemsize}") if is_number_of_jax else dtype.newbyteorder("<")


def to_npy(array: np.ndarray) -> np.ndarray:
    """An array as one of `npy_dtype`."""
    dtype = npy_dtype(array.dtype)
    return array.view(dtype) if array.dtype.isbuiltin == 2 else array.astype(dtype, copy=False)


def from_npy(array: np.ndarray, dtype: Any) -> np.ndarray:
    """What `to_npy` was given, of this dtype."""
    dtype = np.dtype(dtype)
    return array.view(dtype) if dtype.isbuiltin == 2 else array.astype(dtype, copy=False)
