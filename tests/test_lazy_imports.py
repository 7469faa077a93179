"""`import etpc` takes hardly longer than `import jax, equinox`, and everything is there all the same."""

import ast
import importlib
from pathlib import Path

import pytest

import etpc
from tests.helpers import in_a_process

SOURCE = Path(etpc.__file__)

# What is slow to import, or installed by an extra.
LATER = (
    *("scipy", "networkx", "jax.experimental.sparse", "argparse", "rich", "matplotlib", "optax"),
    *("saiunit", "brainunit", "braintrace", "tqdm", "sklearn"),
    *("brainstate", "flax", "haiku", "nir"),
)


def new_modules(code: str) -> set[str]:
    """What code imports in a new process, beyond JAX and Equinox."""
    script = (
        "import sys, jax, equinox\nbefore = set(sys.modules)\n"
        f"{code}\nprint(*set(sys.modules) - before)"
    )
    return set(in_a_process("-c", script).split())


def test_importing_the_package_imports_little() -> None:
    found = new_modules("import etpc")
    ours = {".".join(m.split(".")[:2]) for m in found if m.split(".")[0] == "etpc"}
    assert ours == {"etpc", "etpc.later", "etpc.errors", "etpc._jax"}
    assert not [m for m in found if m.startswith(LATER)]


@pytest.mark.slow
def test_layers_do_not_import_the_compiler() -> None:
    found = new_modules("import etpc.nn")
    assert "etpc.nn" in found
    assert not [m for m in found if m.startswith(("networkx", "etpc.run", "etpc.plan", "etpc.cli"))]


@pytest.mark.slow
def test_adapters_import_no_library_before_one_is_asked_for() -> None:
    found = new_modules("import etpc; etpc.interop; etpc.interop.batched; etpc.interop.Named")
    assert {"etpc.interop", "etpc.interop._shapes"} <= found
    assert not [m for m in found if m.startswith(LATER)]


@pytest.mark.slow
def test_compiling_imports_no_extra() -> None:
    found = new_modules(
        "import etpc, jax.numpy as jnp; etpc.verify; etpc.compare; etpc.draw; etpc.nn\n"
        "etpc.compile(etpc.nn.MinGRU(2, 2, key=jax.random.key(0)), inputs=jnp.zeros(2))"
    )
    assert {"scipy", "networkx", "etpc.run", "etpc.draw"} <= found  # the control of the test
    extras = ("rich", "matplotlib", "optax", "saiunit", "braintrace", "tqdm", "sklearn")
    others = ("etpc.cli", "etpc.interop", "scipy.optimize")
    assert not [m for m in found if m.startswith((*extras, *others))]


@pytest.mark.slow
def test_what_needs_an_extra_says_which() -> None:
    """And without any, `help` shows what there is."""
    script = """
import inspect, pydoc, sys
extras = "matplotlib saiunit brainstate flax haiku nir"
sys.modules.update(dict.fromkeys(extras.split()))
import etpc
for module in (etpc, etpc.interop):
    assert inspect.getmembers(module) and pydoc.render_doc(module)
assert not hasattr(etpc, "units") and not hasattr(etpc, "plot")
calls = [f"etpc.interop.{name}(None, None)" for name in etpc.interop.__all__ if "_" in name]
for code in ("etpc.units", "import etpc.units", "etpc.plot", "from etpc import plot", *calls):
    try:
        exec(code)
    except (AttributeError, ImportError, etpc.UnsupportedError) as error:
        print(error)
"""
    found = in_a_process("-c", script).splitlines()
    extras = "units units plot plot brainstate haiku flax nir flax brainstate flax nir"
    for line, extra in zip(found, extras.split(), strict=True):
        assert f"which is not installed. Run `pip install 'etpc[{extra}]'`." in line


def test_every_name_is_what_type_checkers_see() -> None:
    """The imports under `TYPE_CHECKING` and the names that are imported late are the same."""
    tree = ast.parse(SOURCE.read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            home = f"etpc.{node.module}" if node.module else f"etpc.{alias.name}"
            module = importlib.import_module(home)
            seen[alias.name] = getattr(module, alias.name) if node.module else module
    late = etpc._FOLDERS | {*" ".join(etpc._NAMES.values()).split()}
    assert {name: getattr(etpc, name) for name in late} == seen
    assert {*etpc.__all__} <= {*dir(etpc)}
    assert all(hasattr(etpc, name) for name in etpc.__all__)


@pytest.mark.parametrize("folder", ["analyse", "ops", "run", "trace"])
def test_every_late_name_of_a_folder_is_what_type_checkers_see(folder: str) -> None:
    package = importlib.import_module(f"etpc.{folder}")
    tree = ast.parse((SOURCE.parent / folder / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    found = [
        (n.module, alias.name)
        for n in ast.walk(block)
        if isinstance(n, ast.ImportFrom)
        for alias in n.names
    ]
    assert found
    for module, name in found:
        home = importlib.import_module(f"etpc.{folder}.{module}")
        assert getattr(package, name) is getattr(home, name)
        assert name in package.__all__


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'etpc' has no attribute 'compil'"):
        _ = etpc.compil  # pyright: ignore[reportAttributeAccessIssue]
