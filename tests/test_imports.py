"""The stages stay in order, and one module alone touches JAX's internals."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "etpc"
STAGES = ["trace", "analyse", "traces", "plan", "emit"]
INTERNALS = ("jax.extend", "jax._src")


def modules(package: Path) -> dict[str, ast.Module]:
    """The syntax tree of every module of a package, by dotted name."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        trees[".".join(parts)] = ast.parse(path.read_text(), str(path))
    return trees


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Every dotted name that a module imports, and every `jax.` attribute that it reads.

    `from a import b` gives `a.b`, as `b` may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The module `a.b` and the package `a.__init__` are both in the package `a`.
            package = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jax":
            yield f"jax.{node.attr}"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def loaded(name: str, trees: dict[str, ast.Module]) -> set[str]:
    """The modules of the package that importing a dotted name runs.

    `etpc/__init__.py` always runs and names everything, so it counts only where the name is its own.
    """
    parts = name.split(".")
    prefixes = [".".join(parts[:end]) for end in range(2, len(parts) + 1)]
    found = {module for prefix in prefixes for module in (prefix, f"{prefix}.__init__")}
    return found & trees.keys() or {f"{parts[0]}.__init__"} & trees.keys()


def reached(module: str, trees: dict[str, ast.Module]) -> set[str]:
    """The modules of the package that a module imports, directly or through others."""
    seen: set[str] = set()
    todo = {module}
    while todo:
        current = todo.pop()
        seen.add(current)
        for name in imports(current, trees[current]):
            todo |= loaded(name, trees) - seen
    return seen


def order_violations(package: Path) -> list[str]:
    trees = modules(package)
    stages = [f"{package.name}.{stage}" for stage in STAGES]
    return [
        f"{module} imports {other}"
        for position, stage in enumerate(stages)
        for module in trees
        if within(module, stage)
        for other in sorted(reached(module, trees))
        if any(within(other, later) for later in stages[position + 1 :])
    ]


def internals_violations(package: Path) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, tree in modules(package).items()
        if not within(module, f"{package.name}._jax")
        for name in imports(module, tree)
        if any(within(name, internal) for internal in INTERNALS)
    ]


def test_every_stage_is_there() -> None:
    trees = modules(PACKAGE)
    missing = [s for s in STAGES if not any(within(module, f"etpc.{s}") for module in trees)]
    assert not missing


def test_stages_are_in_order() -> None:
    assert not order_violations(PACKAGE)


def test_internals_are_touched_in_one_module() -> None:
    assert not internals_violations(PACKAGE)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that keeps the rules."""
    sources = {
        "__init__.py": "from etpc.emit import run",
        "_jax.py": "from jax.extend import core",
        "names.py": "import jax",
        "trace/__init__.py": "from etpc import _jax, names",
        "analyse.py": "from etpc.trace import step",
        "plan/__init__.py": "from ..analyse import patterns",
        "plan/blocks.py": "from . import groups",
        "plan/groups.py": "import etpc.trace",
        "emit.py": "from etpc.plan.blocks import block",
    }
    for name, source in sources.items():
        path = tmp_path / "etpc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "etpc"


def test_a_package_that_keeps_the_rules(package: Path) -> None:
    assert not order_violations(package)
    assert not internals_violations(package)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("analyse.py", "import etpc.plan.blocks"),
        ("analyse.py", "from etpc import plan"),
        ("trace/__init__.py", "from ..emit import run"),
        ("trace/__init__.py", "from etpc import run"),
        ("plan/groups.py", "def late():\n    from .. import emit"),
        ("names.py", "from etpc.plan import blocks"),
    ],
)
def test_an_import_of_a_later_stage_is_found(package: Path, name: str, source: str) -> None:
    (package / name).write_text(source)
    assert order_violations(package)


@pytest.mark.parametrize(
    "source",
    [
        "import jax.extend.core",
        "from jax import extend",
        "from jax.extend.core import Primitive",
        "from jax._src import core",
        "import jax\n\njax._src.core",
    ],
)
def test_an_import_of_internals_is_found(package: Path, source: str) -> None:
    (package / "emit.py").write_text(source)
    assert internals_violations(package)
