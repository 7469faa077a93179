"""Algorithms and optimisers as text: `es_d_rtrl:rank=8,window=10`, `snap:2`, `adam:1e-3`."""

import ast
import dataclasses
import math
from typing import Any

from ..algorithms import TBPTT, Algorithm, named, registered
from ..errors import near
from ._errors import CommandError

FORM = "name[:value][,setting=value...], such as d_rtrl, es_d_rtrl:rank=8,window=10, snap:2"
OPTIMISER = "an optimiser of Optax and its learning rate, such as adam:1e-3"


def parse(text: str) -> Algorithm:
    """The algorithm of a text.

    **Raises** `CommandError` where there is no such algorithm or setting, and what the algorithm
    raises where a value is out of range.
    """
    head, *parts = text.split(",")
    name, _, first = head.partition(":")
    rule: Any = TBPTT if name.strip().lower() == "tbptt" else named(name)
    if rule is None:
        known = [*registered(), "tbptt"]
        raise CommandError(
            f"There is no algorithm {name!r}.{near(name, known)} Known: {', '.join(known)}."
        )
    fields = {field.name: field for field in dataclasses.fields(rule) if field.init}
    unnamed = [setting for setting, field in fields.items() if field.kw_only is not True]
    settings: dict[str, Any] = {}
    for n, part in enumerate([first, *parts] if first else parts):
        setting, equals, value = (piece.strip() for piece in part.partition("="))
        why = f"{part!r} is no setting of {rule.name}.{near(setting, fields)}"
        if first and n == 0 and not equals:
            setting, value = next(iter(unnamed), ""), part
            why = f"{rule.name} takes no value without a name, and {text!r} gives it {part!r}."
        elif not equals:
            setting = ""
        if setting not in fields:
            raise CommandError(
                f"{why} Its settings: {', '.join(fields)}. An algorithm is written {FORM}."
            )
        settings[setting] = _literal(value)
    needed = [s for s, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [s for s in needed if s not in settings]:
        raise CommandError(f"{rule.name} needs {', '.join(missing)}: write {rule.name}:VALUE.")
    return rule(**settings)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_optimiser(text: str) -> Any:
    """The Optax transformation of a text: the name of a function, and its learning rate.

    **Raises** `CommandError` where Optax is missing, or has no such function of a rate above zero.
    """
    try:
        import optax
    except ImportError as error:
        raise CommandError("--optimiser needs Optax. Run `pip install optax`.") from error
    name, _, rate = text.partition(":")
    try:
        if not 0 < float(rate) < math.inf:
            raise ValueError
        return getattr(optax, name)(float(rate))
    except (AttributeError, ValueError, TypeError) as error:
        raise CommandError(f"--optimiser {text}: write {OPTIMISER}.") from error
