"""From `package.module:name` or `path/to/file.py:name` to the object of that name."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import near
from ._errors import CommandError


def find(target: str) -> Any:
    """Import a module and look up a name in it; dots in the name are attributes.

    **Raises** `CommandError` where either does not exist. What the module itself raises passes.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise CommandError(
            f"{target!r} does not name a model. Write package.module:name or path/to/file.py:name, "
            "the name being that of a model or of a function that makes one."
        )
    try:
        module = _file(Path(place)) if place.endswith(".py") else _module(place)
    except SystemExit as error:
        raise CommandError(
            f"{place} calls sys.exit when it is imported. Put what it runs as a script under "
            '`if __name__ == "__main__":`.'
        ) from error
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            where = place if value is module else f"{place}:{name[: name.index('.' + part)]}"
            names = [n for n in dir(value) if not n.startswith("_")]
            raise CommandError(f"There is no {part!r} in {where}.{near(part, names)}")
        value = getattr(value, part)
    return value


def _module(name: str) -> ModuleType:
    if not all(name.split(".")):
        raise CommandError(f"{name!r} is no name of a module. Write it in full, as package.module.")
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != name and not name.startswith(missing + "."):
            raise  # a module that this one imports
        parent, _, leaf = missing.rpartition(".")
        path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
        others = [] if parent and path is None else [m.name for m in pkgutil.iter_modules(path)]
        where = f"in {parent}" if parent else "in this folder, and none is installed"
        raise CommandError(f"There is no module {leaf!r} {where}.{near(leaf, others)}") from error


def _file(path: Path) -> ModuleType:
    """Run a file as a module, with its folder importable, as Python does with a script."""
    if not path.is_file():
        others = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise CommandError(f"There is no file {path}.{near(path.name, others)}")
    name = f"_etpc_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module
