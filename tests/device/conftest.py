"""Learners on a device compute in float32."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _single():
    with jax.enable_x64(False):
        yield
