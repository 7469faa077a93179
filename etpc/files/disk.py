"""What is on a disk: files and folders that are whole or not there, and arrays as every machine reads them."""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib import format as npy

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place for a new file or folder, which is put in the place of `path` where no error is raised.

    It is in a folder beside `path`, `.<name>.saving` (of a long name, its hash). No other process writes in this way to
    the same path meanwhile.
    """
    name = path.name
    if len(os.fsencode(name)) > 100:  # with more around it, a name may be too long for the disk
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    with _own_folder(path.with_name(f".{name}.saving")) as folder:
        yield folder / path.name
        os.replace(folder / path.name, path)
        # After a power cut, too, there is what was written or what was there before. Some disks write no folder on
        # demand, Windows opens none, and one may be allowed to write to a folder and not to read it.
        with contextlib.suppress(OSError):
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[io.BufferedRandom]:
    """A new file, to be written, which takes the place of the one at `path` where no error is raised.

    It gets the mode of that one. Where `path` is a link, what it points to is replaced.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        reason = "It is not a regular file, and is not replaced"
        raise FileExistsError(errno.EEXIST, reason, str(path))
    with whole(path) as temporary, temporary.open("x+b") as file:
        if path.exists() and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        yield file
        _flush(file)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place for a new folder of files, which is put at `path` where no error is raised.

    **Raises** `FileExistsError` where there is something else than an empty folder.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        reason = "It is there already, and not empty. Remove it, or write to another folder"
        raise FileExistsError(errno.EEXIST, reason, str(path))
    with whole(path) as temporary:
        yield temporary
        for written in filter(Path.is_file, temporary.rglob("*")):
            with written.open("r+b") as file:
                _flush(file)


def _flush(file: IO[bytes]) -> None:
    """Write what a file holds to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """A new folder, which no other process has meanwhile. What was there, of a killed one, is removed."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                folder.unlink()
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        with _locked(folder) as is_there:
            if is_there:  # or else another process had it, and has removed it
                try:
                    for left in folder.iterdir():
                        is_folder = left.is_dir() and not left.is_symlink()
                        shutil.rmtree(left) if is_folder else left.unlink()
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait until no other process has the folder, and say whether it is still there."""
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        with contextlib.suppress(OSError):  # some network disks have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        is_there = False
        with contextlib.suppress(FileNotFoundError):
            is_there = os.path.samestat(os.fstat(descriptor), os.stat(folder))
        yield is_there
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


def read_npy(file: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The next array of a file, of which nothing is read before it is known to be this one. **Raises** any error."""
    version = npy.read_magic(file)
    found, is_fortran, found_dtype = npy.read_array_header_1_0(file)
    if version != (1, 0) or (found, found_dtype) != (shape, dtype):
        raise ValueError("another array")
    array = np.empty(shape, dtype, order="F" if is_fortran else "C")
    if file.readinto(array.reshape(-1, order="A").view(np.uint8)) != array.nbytes:
        raise ValueError("it is cut short")
    return array


def from_npy(array: np.ndarray, dtype: Any) -> np.ndarray:
    """What `to_npy` was given, of this dtype."""
    dtype = np.dtype(dtype)
    return array.view(dtype) if dtype.isbuiltin == 2 else array.astype(dtype, copy=False)
