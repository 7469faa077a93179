"""Annotations of `etpc` are checked while tests run.

Functions inside functions are left to pyright: jaxtyping would wrap them anew each time the outer one runs, which was
a third of the time of all tests.
"""

import ast

import beartype
from jaxtyping import _import_hook, install_import_hook

checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
"""A whole number is a `float`. By another name than beartype's own, as jaxtyping keeps compiled modules by the name of
the checker."""


def check_annotations() -> None:
    """From here on, what is imported from `etpc` checks its arguments and results."""
    visit = _import_hook.JaxtypingTransformer.visit_FunctionDef

    def visit_outermost(self, node: ast.FunctionDef) -> ast.FunctionDef:
        inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return node if inside else visit(self, node)

    _import_hook.JaxtypingTransformer.visit_FunctionDef = visit_outermost
    install_import_hook("etpc", "tests.annotations.checked")
