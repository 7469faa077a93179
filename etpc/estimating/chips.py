"""Kinds of chips, with their memory, and the devices that programs are compiled for without them."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

from ..errors import InputError, UnsupportedError, near, not_installed

GIB = 1 << 30
LIBTPU = {  # without a TPU, libtpu asks for these
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CUDA = ("jax-cuda12-plugin", "jax-cuda13-plugin")
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth}
  l2_cache_size: {cache} clock_rate_ghz: {clock} device_memory_size: {memory}
  shared_memory_per_block_optin: {most_shared} cuda_compute_capability {{ major: {capability} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{kind}"
"""
"""What XLA is told of a GPU, in the form of the files in `xla/backends/gpu/target_config/specs`."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip. Numbers are those of one device, as JAX counts them.

    - `name`: as `on=` takes it.
    - `kind`: what JAX calls the device.
    - `platform`: as `etpc.compile(target=)` takes it.
    - `gib`: of memory that a program may take, in GiB; `None` where it is not known.
    - `stated`: of memory, in GiB, as the maker says.
    - `bandwidth`: of that memory, in GB/s.
    - `layouts`: some numbers of chips that there are, of TPUs by axis.
    - `source`: where memory and bandwidth are stated.
    - `devices`: how many devices JAX makes of a chip, each with its part of the memory.
    - `gpu`: what XLA has to know of a GPU besides.
    """

    name: str
    kind: str
    platform: str
    gib: float | None
    stated: float | None = None
    bandwidth: float | None = None
    layouts: tuple[str, ...] = ()
    source: str = ""
    devices: int = 1
    gpu: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any], repr=False)

    @property
    def memory(self) -> int | None:
        """In bytes."""
        return None if self.gib is None else round(self.gib * GIB)

    def description(self) -> str:
        """What XLA is told of a GPU."""
        assert self.bandwidth is not None
        bandwidth, most_shared = round(self.bandwidth * 1e9), self.gpu["shared"] - 1024
        sizes = dict(memory=self.memory, bandwidth=bandwidth, most_shared=most_shared)
        return GPU.format(kind=self.kind, **sizes, **self.gpu).strip()


_CLOUD = "https://docs.cloud.google.com/tpu/docs"
_XLA = "https://github.com/openxla/xla/blob/main/xla/backends/gpu/target_config/specs"
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_SEVERAL = ("1", "2", "4", "8")

CHIPS = {
    chip.name: chip
    for chip in (
        # Of a TPU, what XLA leaves to a program is what it says where one does not fit.
        Chip("v5e", "TPU v5 lite", "tpu", 15.75, 16, 819, _FLAT, f"{_CLOUD}/v5e"),
        Chip("v6e", "TPU v6 lite", "tpu", 31.24, 32, 1638, _FLAT, f"{_CLOUD}/tpu7x"),
        Chip("v5p", "TPU v5", "tpu", 95.73, 95, 2765, _DEEP, f"{_CLOUD}/tpu7x"),
        Chip("tpu7x", "TPU7x", "tpu", 94.74, 192 / 2, 7380 / 2, _DEEP, f"{_CLOUD}/tpu7x", 2),
        Chip(
            *("h100", "NVIDIA H100 80GB HBM3", "cuda", 84942979072 / GIB, 80, 3352.32, _SEVERAL),
            *(f"{_XLA}/h100_sxm.txtpb", 1),
            dict(shared=233472, cores=132, units=128, cache=52428800, clock=1.98, capability=9),
        ),
        Chip(
            *("a100", "NVIDIA A100-SXM4-80GB", "cuda", 85100068864 / GIB, 80, 2039.04, _SEVERAL),
            *(f"{_XLA}/a100_sxm_80.txtpb", 1),
            dict(shared=167936, cores=108, units=64, cache=41943040, clock=1.41, capability=8),
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Place:
    """What a program is compiled for: devices of a kind of chip, which need not be there."""

    on: str
    chip: Chip
    devices: tuple[Any, ...] = dataclasses.field(repr=False)

    @property
    def versions(self) -> dict[str, str]:
        """Those of the packages whose estimate it is."""
        plugins = {"tpu": ("libtpu",), "cuda": CUDA}.get(self.chip.platform, ())
        found: dict[str, str] = {}
        for name in ("jax", "jaxlib", *plugins):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found


@functools.cache
def place(on: str) -> Place:
    """The devices of `"cpu"`; of a kind of chip, such as `"h100"` or `"v5e"`; or of so many of them, such as `"h100:8"` or
    `"v5e:4x4"`.

    **Raises** `InputError` where there is no such chip, or not so many; `UnsupportedError` where its compiler is not
    installed, or may not be loaded.
    """
    if on == "cpu":
        return Place(on, _cpu(), tuple(jax.devices("cpu")))
    name, _, layout = on.partition(":")
    if name not in CHIPS:
        known = ", ".join(f"{c.name} ({c.name}:{c.layouts[3]}, ...)" for c in CHIPS.values())
        raise InputError(
            f"on={on!r} names no kind of chip that is known.{near(name, CHIPS)} Known are cpu, {known}."
        )
    chip = CHIPS[name]
    layout = layout or chip.layouts[0]
    find = _tpus if chip.platform == "tpu" else _gpus
    try:
        return Place(on, chip, tuple(find(on, chip, layout)))
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        said = str(error).splitlines()[0]
        if "lockfile" in said:
            raise UnsupportedError(
                f"on={on!r} needs libtpu, and another process has it, which lets no other one load it: {said} That "
                "process may use a TPU, so do not remove the file. Nothing is run here, and both can have it: unset "
                "ALLOW_MULTIPLE_LIBTPU_LOAD, which is "
                f"{os.environ.get('ALLOW_MULTIPLE_LIBTPU_LOAD')!r}, or set it to 1; or wait for the other process."
            ) from error
        known = ", ".join(f"{name}:{layout}" for layout in chip.layouts)
        raise InputError(
            f"on={on!r}: XLA knows no such topology of {chip.kind}. It says: {said.rstrip('.')}. Known are {known}."
        ) from error


def _cpu() -> Chip:
    """This machine."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
        return Chip("cpu", f"{platform.machine()} CPU", "cpu", memory)
    return Chip("cpu", f"{platform.machine()} CPU", "cpu", None)


def _tpus(on: str, chip: Chip, layout: str) -> Any:
    if not _installed("libtpu"):
        raise UnsupportedError(not_installed(f"on={on!r}", "libtpu", "tpu"))
    with _environment(LIBTPU):
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip.name}:{layout}"
        ).devices


def _gpus(on: str, chip: Chip, layout: str) -> Any:
    if not _installed(*(f"jax_plugins.xla_{name[4:10]}" for name in CUDA)):
        raise UnsupportedError(not_installed(f"on={on!r}", "JAX's CUDA plugin", "cuda"))
    if not layout.isdecimal() or int(layout) < 1:
        raise ValueError(f"{layout!r} is no number of GPUs.")
    return topologies.get_topology_desc(
        "", "cuda", target_config=chip.description(), topology=f"1x1x{layout}"
    ).devices


def _installed(*modules: str) -> bool:
    """Whether one of some modules can be imported."""
    for module in modules:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(module) is not None:
                return True
    return False


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """With some variables, where they are not set; a process that has a TPU later does not see them."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
