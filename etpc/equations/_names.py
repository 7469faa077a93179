"""Constants by name: as the caller says, or as the user's code calls them."""

import ast
import dataclasses
import inspect
import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import sympy as sp

from ..errors import InputError
from ..files.source import Statement
from ..files.words import python_name

OPERATORS = dict(Add=operator.add, Sub=operator.sub, Mult=operator.mul, Div=operator.truediv)
OPERATORS |= dict(Pow=operator.pow, USub=operator.neg)
NUMBERS = (int, float, np.integer, np.floating)
Values = dict[str, dict[float, None]]
"""The numbers that a name stands for, in order."""


def checked_names(names: Mapping[Any, str] | None) -> dict[float, str]:
    """What the caller calls some numbers. **Raises** `InputError` where one is no number, or has no name of a letter or
    a word."""
    for value, name in (names or {}).items():
        is_name = isinstance(name, str) and python_name(name, "q") == name
        if not (is_name and isinstance(value, NUMBERS) and math.isfinite(value)):
            what = "Pass a dict from numbers to names such as 'alpha', 'tau_m'."
            raise InputError(f"names= has {value!r}: {name!r}. {what}")
    return {float(value): name for value, name in (names or {}).items()}


def numbers_of(model: Any, step: Any) -> Values:
    """The numbers that a model has as attributes, and that its methods, or a step function, read from around them."""
    found, functions = Values(), [step]
    seen: set[int] = set()

    def look(node: Any, name: str) -> None:
        if isinstance(node, NUMBERS) and not isinstance(node, bool):
            found.setdefault(name, {})[float(node)] = None
        elif id(node) not in seen:
            seen.add(id(node))
            if is_module := dataclasses.is_dataclass(node):
                functions.append(getattr(type(node), "__call__", None))  # noqa: B004
            pairs = enumerate(node) if isinstance(node, list | tuple) else ()
            pairs = node.items() if isinstance(node, dict) else pairs
            if hasattr(node, "__dict__") and (is_module or not callable(node)):
                pairs = (*vars(node).items(), *pairs)
            for key, value in pairs:
                look(value, str(key))

    look(model, "")
    for function in functions:
        try:
            around = inspect.getclosurevars(inspect.unwrap(function))
        except TypeError:
            continue
        for name, value in {**around.globals, **around.nonlocals}.items():
            if isinstance(value, NUMBERS):
                look(value, name)
    return found


def in_names(value: float, statement: Statement | None, known: Values) -> Any:
    """A number as the part of a statement that gives it, in symbols of what that names; `None` where there is none, or
    where the statement has the number itself."""
    nodes = [*ast.walk(statement.tree)] if statement is not None and statement.tree else []
    if any(isinstance(n, ast.Constant) and n.value == value for n in nodes):
        return None
    for expression in filter(None, map(_symbolic, nodes)):
        names = sorted(map(str, expression.free_symbols))
        for values in itertools.product(*(known.get(n, ()) for n in names)) if names else ():
            given = expression.subs(dict(zip(names, values, strict=True)))
            if given.is_number and is_close(complex(given).real, value):
                return dict(zip(names, values, strict=True)), expression
    return None


def is_close(a: float, b: float) -> bool:
    """Whether numbers are equal, but for the rounding of float32."""
    return math.isclose(a, b, rel_tol=1e-6)


def _symbolic(node: ast.AST) -> Any:
    """Arithmetic of names and numbers as an expression; `None` of anything else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return sp.Symbol(name)
        case ast.Constant(value=value) if isinstance(value, NUMBERS):
            return sp.sympify(value)
        case ast.BinOp(left, operation, right):
            of, operands = OPERATORS.get(type(operation).__name__), [left, right]
        case ast.UnaryOp(operation, operand):
            of, operands = OPERATORS.get(type(operation).__name__), [operand]
        case ast.Call(ast.Attribute(attr="exp"), operands):
            of = sp.exp
        case _:
            return None
    inner = [*map(_symbolic, operands)]
    return None if of is None or None in inner else of(*inner)
