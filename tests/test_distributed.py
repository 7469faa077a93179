"""A job of two processes trains as one process does."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "distributed.py"
TIMEOUT = 300  # seconds


def has_gloo() -> bool:
    """Whether processes on CPUs can exchange arrays."""
    return hasattr(importlib.import_module("jaxlib._jax"), "make_gloo_tcp_collectives")


@pytest.mark.skipif(not has_gloo(), reason="this jaxlib has no Gloo")
def test_two_processes():
    pytest.importorskip("sklearn")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "ETPC_EXAMPLE_FAST": "1",
        "PYTHONPATH": str(ROOT),
    }
    job = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its processes end with it
    )
    try:
        out, err = job.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    assert job.returncode == 0, out + err
    assert "2 processes, 2 devices" in out
    assert "weights of all processes: identical" in out
