import jax
import pytest


@pytest.fixture
def as_users_have_it():
    """With the compilers of accelerators, in float32: a TPU has no float64."""
    for package in ("libtpu", "jax_plugins.xla_cuda12"):
        pytest.importorskip(package)
    with jax.enable_x64(False):
        yield
