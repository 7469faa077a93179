"""Kinds of chips, with their memory, and the devices that programs are compiled for without them."""

import contextlib
import dataclasses
import functools
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata, resources
from typing import Any, NamedTuple

import jax
from jax.experimental.topologies import get_topology_desc

from ..errors import InputError, UnsupportedError, near, not_installed

COMPILERS = {"tpu": {"libtpu"}, "cuda": {"jax-cuda12-plugin", "jax-cuda13-plugin"}}
"""The packages that have them, one of which an extra of the platform's name installs."""
LIBTPU = {  # without a TPU, libtpu asks for these
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip; `chips.json` has those that are known. Numbers are those of one device, as JAX counts them.

    - `name`, `kind`, `platform`: as `on=` takes it; what JAX calls the device; as `etpc.compile(target=)` takes it.
    - `memory`: bytes that a program may take: of a TPU, as XLA says; of a GPU, what JAX takes by default.
    - `stated`, `source`: memory and bandwidth, and where they are stated, by the maker or in XLA.
    - `bandwidth`: of the memory, in GB/s; `cache`: bytes of a GPU's L2 cache.
    - `layouts`: some numbers of chips that there are, of TPUs by axis; `description`, what XLA is told of a GPU.
    """

    name: str
    kind: str
    platform: str
    memory: int
    stated: str = ""
    source: str = ""
    bandwidth: float | None = None
    cache: int = 0
    layouts: Sequence[str] = ()
    description: str = ""


_RECORDS = json.loads(resources.files("etpc.estimating").joinpath("chips.json").read_text())
CHIPS = {chip.name: chip for chip in (Chip(**fields) for fields in _RECORDS)}


class Place(NamedTuple):
    """What a program is compiled for: devices of a kind of chip, which need not be there."""

    chip: Chip
    devices: tuple[Any, ...]


@functools.cache
def place(on: str) -> Place:
    """The devices of `"cpu"`, of a kind of chip, such as `"v5e"`, or of so many of them: `"v5e:4x4"`, `"h100:8"`.

    **Raises** `InputError` where there are none such; `UnsupportedError` where their compiler is not installed, or
    may not be loaded.
    """
    if on == "cpu":
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Place(Chip(on, f"{platform.machine()} CPU", on, memory), (*jax.devices(on),))
    name, _, layout = on.partition(":")
    if name not in CHIPS:
        known = ", ".join(f"{c.name} ({c.name}:{c.layouts[3]}, ...)" for c in CHIPS.values())
        known = f"{near(name, CHIPS)} Known are cpu, {known}"
        raise InputError(f"on={on!r} names no chip that is known.{known}.")
    chip = CHIPS[name]
    layout = layout or chip.layouts[0]
    if not versions(chip).keys() & COMPILERS[chip.platform]:
        package = " or ".join(sorted(COMPILERS[chip.platform]))
        raise UnsupportedError(not_installed(f"on={on!r}", package, chip.platform))
    # Only while it is asked for: in a process that has a TPU too, they would be wrong.
    before = dict(os.environ)
    os.environ.update(LIBTPU | before)
    try:
        if chip.platform == "tpu":
            found = get_topology_desc(platform="tpu", topology_name=f"{name}:{layout}")
        else:
            of = dict(target_config=chip.description, topology=f"1x1x{layout}")
            found = get_topology_desc("", "cuda", **of)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        if "lockfile" in said:
            raise UnsupportedError(
                f"on={on!r} needs libtpu, which another process does not share: {said!r}. Leave that file, as a TPU"
                " may be in use. Nothing is run here, so both may have it: unset ALLOW_MULTIPLE_LIBTPU_LOAD or "
                "set it to 1; or wait for the other process."
            ) from error
        known = ", ".join(f"{name}:{layout}" for layout in chip.layouts)
        raise InputError(
            f"on={on!r} is no topology of {chip.kind}: {said}. Known are {known}."
        ) from error
    finally:
        for variable in LIBTPU.keys() - before.keys():
            os.environ.pop(variable, None)
    return Place(chip, tuple(found.devices))


def versions(chip: Chip) -> dict[str, str]:
    """Those of JAX and of the compiler of a chip, as far as they are installed."""
    found: dict[str, str] = {}
    for package in ("jax", "jaxlib", *COMPILERS.get(chip.platform, ())):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
