"""What the user's code calls the values of a step: the statements that made its equations."""

import ast
import functools
import linecache
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

LIBRARIES = tuple(os.path.dirname(module.__file__ or "") for module in (jax, np))
HERE = os.path.dirname(os.path.dirname(__file__))


class Statement(NamedTuple):
    """A statement of a file."""

    file: str
    first: int
    """Its first line."""
    name: str = ""
    """What it assigns to, where that is a single name."""
    tree: ast.stmt | None = None


def assigned(equations: Iterable[Any]) -> dict[Any, str]:
    """The name that the user's code gives to a variable, where it assigns it to one."""
    last: dict[tuple[str, int], tuple[Any, str]] = {}
    for eqn in equations:
        found = statement_of(eqn)
        if found is not None and len(eqn.outputs) == 1:
            last[found.file, found.first] = eqn.outputs[0], found.name
    return {v: name for v, name in last.values() if name}


def statement_of(eqn: Any) -> Statement | None:
    """The statement of the user's that made an equation."""
    for file, line, _ in eqn.traceback.places:
        own = any(f"{HERE}/{part}/" in file for part in ("trace", "_jax"))
        if file.startswith(LIBRARIES) or own or file.endswith("surrogate.py"):
            continue
        found = [s for s in _statements(file) if s.first <= line <= (s.tree.end_lineno or line)]
        return max(found, key=lambda s: s.first, default=Statement(file, line))
    return None


@functools.cache
def _statements(file: str) -> list[Any]:
    """The assignments and other simple statements of a file; of a page, those of its blocks of Python."""
    text = "".join(linecache.getlines(file))
    if file.endswith(".md"):
        code = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
        ends, pieces = 0, list[str]()
        for block in code.finditer(text):
            pieces += ["\n" * text.count("\n", ends, block.start(1)), block[1]]
            ends = block.end(1)
        text = "".join(pieces)
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    found: list[Statement] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr):
            target, *more = node.targets if isinstance(node, ast.Assign) else [None]
            name = target.id if isinstance(target, ast.Name) and not more else ""
            found.append(Statement(file, node.lineno, name, node))
    return found
