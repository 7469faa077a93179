"""How every test runs: on the CPU, in float64, with annotations checked."""

import contextlib
import os
import zlib
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Nearly all time of the tests is compilation, of which LLVM's optimisation is a third.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)

import hypothesis
import jax
import jaxtyping
import pytest

from tests.annotations import check_annotations

# Importing braintrace turns float64 off for the whole process, so it comes first where it is there.
with contextlib.suppress(ModuleNotFoundError):
    import braintrace  # noqa: F401

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", "JAX_COMPILATION_CACHE_DIR" in os.environ)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Before anything imports etpc.
if os.environ.get("ETPC_CHECKED"):
    check_annotations()

MAPPINGS, MEMORY = Path("/proc/self/maps"), Path("/proc/self/statm")

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("ci")


OF_THE_PEER = "core.Jaxpr is missing a DebugInfo"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--share",
        metavar="I/N",
        help="of the tests marked slow, peer, device or third_party run the I-th of N parts alone, I from 0",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the slow tests that are not in the share asked for."""
    for item in items:
        if item.get_closest_marker("peer"):  # braintrace 0.2.8 under JAX 0.12
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{OF_THE_PEER}:DeprecationWarning"))
    if not (share := config.getoption("--share")):
        return
    try:
        part, parts = map(int, share.split("/"))
    except ValueError:
        part = parts = 0
    if not 0 <= part < parts:
        raise pytest.UsageError(f"--share {share}: give I/N, with I from 0 to N - 1")

    def chosen(item: pytest.Item) -> bool:
        marked = any(
            item.get_closest_marker(name) for name in ("slow", "peer", "third_party", "device")
        )
        return not marked or zlib.crc32(item.nodeid.encode()) % parts == part

    config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
    items[:] = [item for item in items if chosen(item)]


@pytest.fixture(autouse=True, scope="module")
def _compiled_code_is_dropped():
    """A compiled function takes up to 15 memory mappings, and Linux gives a process 65,530 of them.

    What the next module compiles too is kept, up to 2 GB of memory.
    """
    yield
    if (
        not MAPPINGS.exists()
        or MAPPINGS.read_bytes().count(b"\n") > 20_000
        or int(MEMORY.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > 2 << 30
    ):
        jax.clear_caches()


@pytest.fixture
def without_type_checks(monkeypatch):
    """Users do not have those of the tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
