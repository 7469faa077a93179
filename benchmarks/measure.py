"""Time, memory and compilation of compiled functions, and what they ran on."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp

ALLOCATOR = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
"""Options of `mallopt` by their numbers: give nothing back, and ask for nothing that is given back."""


def keep_memory() -> bool:
    """Have glibc keep the memory that it was given; whether it does. Before JAX starts its threads.

    Else it gives large blocks back after each call, and the next one waits for the pages to be
    mapped and zeroed: up to half of the time of a call, for every contestant. On accelerators XLA
    keeps its memory by itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, value) for option, value in ALLOCATOR.values())


def interleaved(calls: Sequence[Callable[[], Any]], repeats: int) -> list[dict[str, float]]:
    """Minimal and median milliseconds of each call.

    They take turns, so that whatever slows the machine down for a while slows all of them.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(1e3 * (time.perf_counter() - start))
    return [{"min_ms": min(taken), "median_ms": statistics.median(taken)} for taken in times]


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and the seconds until it is ready."""
    start = time.perf_counter()
    value = jax.block_until_ready(call())
    return value, time.perf_counter() - start


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that XLA allocates for a compiled function.

    `alias` are those of the outputs that are written over donated arguments.
    """
    stats: Any = compiled.memory_analysis()
    return {
        kind: getattr(stats, f"{kind}_size_in_bytes")
        for kind in ("argument", "output", "alias", "temp")
    }


@contextlib.contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Count what JAX does inside: programs that are traced, `"trace"`, and compiled, `"compile"`."""
    counts: Counter[str] = Counter()

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        match event:
            case "/jax/core/compile/jaxpr_trace_duration":
                counts["trace"] += 1
            case "/jax/core/compile/backend_compile_duration":
                counts["compile"] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def difference(got: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Relative error and cosine of each gradient. Raises where a wanted one is zero."""
    differences = {}
    for name, reference in want.items():
        a, b = (jnp.ravel(jnp.asarray(v, jnp.float32)) for v in (got[name], reference))
        norm, size = float(jnp.linalg.norm(b)), float(jnp.linalg.norm(a))
        if not norm > 0:
            raise ValueError(f"The gradient of {name} is zero, so there is nothing to compare.")
        differences[name] = {
            "error": float(jnp.linalg.norm(a - b)) / norm,
            "cosine": float(jnp.vdot(a, b)) / (norm * size) if size else 0.0,
        }
    return differences


def environment(kept: bool = False) -> dict[str, str]:
    """What the numbers were measured on. `kept`: what `keep_memory` said."""
    device = jax.devices()[0]
    packages = "jax jaxlib equinox etpc braintrace brainstate norse torch libtpu jax-cuda12-plugin"
    return {
        "device": f"{device.platform}, {device.device_kind} x {jax.device_count()}",
        "cpu": _cpu(),
        "cores": str(_cores()),
        "allocator": "keeps its memory" if kept else "as the system has it",
        "python": platform.python_version(),
        **{name: version for name in packages.split() if (version := _version(name))},
        "matmul precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 0


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "etpc":  # run from the source tree
            import etpc

            return getattr(etpc, "__version__", "source tree")
        return None
