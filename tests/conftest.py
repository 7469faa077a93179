"""How every test runs: on the CPU, in float64, with annotations checked."""

import contextlib
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Nearly all time of the tests is compilation, of which LLVM's optimisation is a third.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Importing braintrace turns float64 off for the whole process, so it comes first where it is there.
with contextlib.suppress(ModuleNotFoundError):
    import braintrace  # noqa: F401

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)

# Before anything imports etpc: from here on its annotations are checked when it is called.
install_import_hook("etpc", "beartype.beartype")

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("ETPC_HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True, scope="module")
def _compiled_code_is_dropped():
    """A compiled function takes about 15 memory mappings, and Linux gives a process 65,530 of them."""
    yield
    jax.clear_caches()
