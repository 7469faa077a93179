"""What a reader gets who installs the wheel, and what the README says: `make test-wheel`.

Run as a script, by the Python of the environment that holds the wheel, where there is no pytest. It
runs the README in an empty folder, so that nothing comes from the source tree, and then the command.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path

from pages import ROOT, run_page  # of the folder of this script

import etpc

README = ROOT / "README.md"
OF_EXTRAS = ("rich", "matplotlib", "saiunit", "pytest")
MODEL = """\
import equinox as eqx
import jax.numpy as jnp
from etpc import nn


def make(key):
    return nn.Sequential([eqx.nn.GRUCell(3, 4, key=key)]), jnp.zeros(3)
"""


def check_environment() -> None:
    assert Path(etpc.__file__).is_relative_to(sys.prefix), f"{etpc.__file__} is not the wheel's"
    assert (Path(etpc.__file__).parent / "py.typed").exists()
    assert etpc.files.schema("etpc-claims/1")["required"] == ["schema", "models"]
    found = [name for name in OF_EXTRAS if importlib.util.find_spec(name)]
    assert not found, f"the environment has packages of extras: {found}"


def check_command() -> None:
    Path("models.py").write_text(MODEL)
    assert command("--version") == f"etpc {version('etpc')}\n"
    explained = command("explain", "models.py:make")
    assert ".weight_hh" in explained, explained


def command(*arguments: str) -> str:
    """What `etpc` prints, as it is installed."""
    program = Path(sysconfig.get_path("scripts")) / "etpc"
    return subprocess.run(
        [program, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    check_environment()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        blocks = run_page(README)
        check_command()
    print(f"the wheel of etpc {etpc.__version__} runs {blocks} blocks of the README, and `etpc`")
