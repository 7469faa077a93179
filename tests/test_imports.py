"""The stages stay in order, and one module alone touches JAX's internals."""

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent.parent / "etpc"
INTERNALS = ("jax.extend", "jax._src")

SEES = {
    # what all of them may use
    "later": "",
    "errors": "",
    "_jax": "errors",
    "files": "errors",
    # the compiler: a stage sees the artefact of the one before it, and what that is made of
    "ops": "later errors _jax",
    "trace": "later errors _jax",
    "analyse": "later errors _jax ops trace",
    "schedule": "errors ops",
    "forms": "errors _jax ops schedule",
    "algorithms": "errors ops forms analyse",
    "ir": "errors _jax ops schedule forms analyse algorithms",
    "plan": "errors _jax files schedule forms analyse algorithms ir",
    "emit": "errors _jax schedule forms analyse ir",
    # a gradient to compare with
    "gradient": "errors _jax trace",
    # what each rule means; of the plan it asks which form each trace has, before passes
    "definition": "gradient errors _jax forms trace analyse algorithms ir plan",
    # the program, and what is done with programs
    "run": "later errors files _jax schedule gradient trace analyse forms algorithms ir plan emit",
    # what is shown of a plan, and of a program
    "show": "errors files trace forms algorithms analyse ir plan",
    "draw": "errors files plan show run",
    "equations": "later errors files forms algorithms analyse ir trace show",
    "export": "errors files _jax schedule trace run",
    # rules with forms or an extension of their own
    "rules": "errors trace ops analyse forms algorithms",
    # kernels of an accelerator, as passes
    "kernels": "forms ir plan",
    "checking": "errors files gradient trace analyse forms algorithms plan show definition run rules",
    "estimating": "errors files gradient trace algorithms show run checking",
    "viewing": "errors files trace analyse ir plan run show draw estimating",
    "checkpoint": "errors files trace run",
    "training": "errors checkpoint run",
    "plot": "errors trace checking estimating plan run",
    "scaling": "errors analyse forms run trace",
    "testing": "errors files gradient checking trace algorithms ir plan show run",
    # models
    "surrogate": "errors",
    "nn": "gradient errors surrogate trace analyse",
    "interop": "later errors trace nn surrogate",
    "optim": "errors",
    "units": "errors",
    # the command line is above the package itself
    "__init__": "later errors _jax gradient export checking estimating training checkpoint definition algorithms"
    " analyse draw emit files interop ir nn ops optim plan plot rules run scaling schedule surrogate testing"
    " trace units viewing",
    "cli": "__init__ errors files gradient export checking estimating algorithms draw run show testing trace",
    "__main__": "cli",
}
"""Which parts of the package each part may import. A part may name only those above it, so there is no cycle."""
COMPILER = "_jax ops trace analyse forms algorithms ir plan emit definition run"
OUTER = {
    *["show", "draw", "viewing", "equations", "export", "rules", "kernels", "checking"],
    *["estimating", "checkpoint", "training", "plot", "scaling", "testing", "nn", "interop"],
    *["optim", "units", "cli"],
}
"""The outer ring."""
LATER = {
    f"etpc.run.{module} imports etpc.{part}.__init__"
    for module, parts in {
        "_online": "export scaling",
        "_program": "draw equations estimating viewing",
        "_shown": "show",
    }.items()
    for part in parts.split()
} | {f"etpc.run._online imports etpc.{module}" for module in ("export.learner", "scaling.mesh")}
LATER.add("etpc.run._program imports etpc.estimating.memory")
"""Imports upwards, in methods of a line or for types alone: a program that is asked to shows and writes itself."""


@functools.cache
def modules(package: Path) -> dict[str, ast.Module]:
    """The syntax tree of every module of a package, by dotted name."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        trees[".".join(parts)] = ast.parse(path.read_text(), str(path))
    return trees


def at_top(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a module is imported: neither functions nor what type checkers alone read."""
    for node in ast.iter_child_nodes(tree):
        of_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (of_types or isinstance(node, ast.FunctionDef)):
            yield from (node, *at_top(node))


def imports(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every dotted name that nodes of a module import, and every `jax.` attribute that they read.

    `from a import b` gives `a.b`, as `b` may be a module.
    """
    for node in nodes:
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


def part(module: str) -> str:
    """The folder or the file of a package that a module is in."""
    return module.split(".")[1]


def layer_violations(package: Path, sees: dict[str, str], nodes: Any = ast.walk) -> list[str]:
    """Imports, of all or some nodes of each module, of a part that `sees` does not give."""
    trees = modules(package)
    return [
        f"{module} imports {other}"
        for module, tree in trees.items()
        for name in imports(module, nodes(tree))
        for other in sorted(loaded(name, trees))
        if part(other) not in {part(module), *sees[part(module)].split()}
    ]


def private_imports(package: Path) -> set[tuple[str, str]]:
    """Imports of a private module of another part, and of a private name of another module."""
    trees = modules(package)
    found = set()
    for module, tree in trees.items():
        for name in imports(module, ast.walk(tree)):
            root, *path = name.split(".")
            if root != package.name or not path:
                continue
            beyond = path[1:] if path[0] != part(module) else path[-1:]
            private = [p for p in beyond if p[0] == "_" and p[:2] != "__"]
            if private and (name not in trees or path[0] != part(module)):
                found.add((module, name))
    return found


def internals_violations(package: Path) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, tree in modules(package).items()
        if not within(module, f"{package.name}._jax")
        for name in imports(module, ast.walk(tree))
        if any(within(name, internal) for internal in INTERNALS)
    ]


def test_the_outer_ring_imports_public_names_alone() -> None:
    """What it takes of JAX's internals is public in `etpc.trace`; StableHLO as text is for `export` alone."""
    trees = modules(PACKAGE)
    found = [
        (module, name)
        for module, tree in trees.items()
        if module.split(".")[1] in OUTER
        for name in imports(module, ast.walk(tree))
        if re.match(r"etpc\._[a-z]", name)
    ]
    assert {name.rpartition(".")[0] for _, name in found} == {"etpc._jax.mlir"}
    assert {module.split(".")[1] for module, _ in found} == {"export"}


def test_every_part_has_its_place() -> None:
    assert {part(module) for module in modules(PACKAGE)} == SEES.keys()
    assert not [*PACKAGE.glob("_[!_]*.py")], "a private module belongs into the folder that uses it"
    for place, (name, seen) in enumerate(SEES.items()):
        assert {*seen.split()} <= {*[*SEES][:place]}, f"{name} sees a part below it"


def test_parts_see_what_is_before_them() -> None:
    assert {*layer_violations(PACKAGE, SEES)} == LATER
    assert not layer_violations(PACKAGE, SEES, at_top)


def test_what_is_private_stays_where_it_is() -> None:
    assert not private_imports(PACKAGE)


def test_no_two_classes_of_the_core_share_a_name() -> None:
    core = {*COMPILER.split(), "schedule", "gradient"}
    names = Counter(
        node.name
        for module, tree in modules(PACKAGE).items()
        if part(module) in core or module == "etpc.checking.compare"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]


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
        "plan/_groups.py": "Group = int",
        "emit.py": "from etpc.plan.blocks import block",
    }
    for name, source in sources.items():
        path = tmp_path / "etpc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path / "etpc"


SMALL = {
    "_jax": "",
    "names": "",
    "trace": "_jax names",
    "analyse": "trace",
    "plan": "trace analyse",
    "emit": "plan",
    "__init__": "emit",
}
"""What the parts of this package see."""


def test_a_package_that_keeps_the_rules(package: Path) -> None:
    assert not layer_violations(package, SMALL)
    assert not private_imports(package)
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
        ("plan/groups.py", "if TYPE_CHECKING:\n    from .. import emit"),
        ("emit.py", "from etpc.trace import step"),
    ],
)
def test_an_import_of_a_part_that_is_not_seen_is_found(package, name, source) -> None:
    (package / name).write_text(source)
    assert layer_violations(package, SMALL)
    assert bool(layer_violations(package, SMALL, at_top)) != ("late" in source or "TYPE" in source)


@pytest.mark.parametrize(
    ("violations", "source"),
    [
        (private_imports, "from etpc.plan._groups import Group"),
        (private_imports, "def late():\n    from .plan import _groups"),
        (private_imports, "from .plan import _chosen"),
        (private_imports, "from .names import _table"),
        (internals_violations, "import jax.extend.core"),
        (internals_violations, "from jax import extend"),
        (internals_violations, "from jax.extend.core import Primitive"),
        (internals_violations, "from jax._src import core"),
        (internals_violations, "import jax\n\njax._src.core"),
    ],
)
def test_an_import_of_what_is_private_is_found(package: Path, violations, source: str) -> None:
    (package / "emit.py").write_text(source)
    assert violations(package)
