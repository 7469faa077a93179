"""The folder of an exported learner, or of exported functions, read."""

import dataclasses
import io
import math
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import CheckpointError
from ..files.disk import from_npy, npy_dtype, read_npy
from ..files.record import read_record
from .functions import SCHEMA as FUNCTIONS
from .functions import ExportedFunctions
from .learner import SCHEMA as LEARNER
from .learner import Exported
from .modules import MANIFEST, NO_HASH, STATE, Leaf, hash_of

KINDS = {LEARNER: Exported, FUNCTIONS: ExportedFunctions}


def load_exported(folder: str | os.PathLike[str]) -> Any:
    """Read what [`Exported.save`][etpc.Exported.save] wrote, without the code of the model.

    **Returns** the [`Exported`][etpc.Exported], or the [`ExportedFunctions`][etpc.ExportedFunctions].

    **Raises** `etpc.CheckpointError` where a file is missing or not a regular one, was changed by as much as a byte, or
    has contents that this version of etpc does not write.
    """
    folder = Path(folder)
    text = _read(folder, MANIFEST)
    own = re.search(rb'"sha256": "([0-9a-f]{64})"\n}$', text)
    if own is None or hash_of(text.replace(own[1], NO_HASH.encode())).encode() != own[1]:
        raise CheckpointError(f"{folder / MANIFEST} is not as it was written. Use another copy.")
    try:
        manifest = read_record(text, *KINDS)
    except ValueError as error:
        raise CheckpointError(
            f"{folder / MANIFEST} is of no exported learner: {error}. Load it with the version that wrote it."
        ) from error
    data = {name: _read(folder, name) for name in manifest["files"]}
    for name, content in data.items():
        if hash_of(content) != manifest["files"][name]["sha256"]:
            raise CheckpointError(f"{folder / name} is not as it was written. Use another copy.")
    packed = data.pop(STATE)
    exported = KINDS[manifest["schema"]](manifest, {}, data)
    try:
        state = _unpacked(packed, exported.state_leaves())
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
    values = dict[str, np.ndarray]()
    sizes = [abs(math.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves]
    # `save` compresses nothing, so that a small file never takes much memory.
    if sum(sizes) > len(packed):
        raise ValueError(f"it has fewer than {sum(sizes)} bytes")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for name, shape, dtype, *_ in leaves:
            with archive.open(f"{name}.npy") as member:
                array = read_npy(member, shape, npy_dtype(dtype))
            values[name] = from_npy(array, jnp.dtype(dtype))
    return values
