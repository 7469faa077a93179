"""A job of two processes trains as one process does, and goes on where it was after a fault."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TIMEOUT = 600  # seconds


def has_gloo() -> bool:
    """Whether processes on CPUs can exchange arrays."""
    return hasattr(importlib.import_module("jaxlib._jax"), "make_gloo_tcp_collectives")


def run(script: str) -> str:
    """What an example prints; its processes end with it."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "ETPC_EXAMPLE_FAST": "1",
        "PYTHONPATH": str(ROOT),
    }
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = job.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    assert job.returncode == 0, out + err
    return out


@pytest.mark.skipif(not has_gloo(), reason="this jaxlib has no Gloo")
def test_two_processes():
    pytest.importorskip("sklearn")
    out = run("distributed.py")
    assert "2 processes, 2 devices" in out
    assert "weights of all processes: identical" in out


@pytest.mark.skipif(not has_gloo(), reason="this jaxlib has no Gloo")
def test_a_job_that_loses_a_process_goes_on_on_another_mesh():
    """Killed, told to leave, and restored on four devices of one process: the losses are those of no fault."""
    for library in ("sklearn", "orbax.checkpoint", "grain"):
        pytest.importorskip(library)
    out = run("preempted.py")
    assert "process 0 was told to leave" in out
    assert "process 1 was told to leave" in out
    assert "killed after update" in out
