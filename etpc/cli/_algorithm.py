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
    head, *rest = text.split(",")
    name, _, value = head.partition(":")
    rule: Any = TBPTT if name.strip().lower() == "tbptt" else named(name)
    if rule is None:
        known = [*registered(), "tbptt"]
        raise CommandError(
            f"There is no algorithm {name!r}.{near(name, known)} Known: {', '.join(known)}."
        )
    name = rule.name
    fields = [field for field in dataclasses.fields(rule) if field.init]
    first = [field.name for field in fields if field.kw_only is not True][:1]
    names = [field.name for field in fields]
    settings: dict[str, Any] = {}
    if "=" in value:
        rest = [value, *rest]
    elif value:
        if not first:
            raise CommandError(
                f"{name} takes no value without a name, and {text!r} gives it {value!r}. Its settings: "
                f"{', '.join(names)}. An algorithm is written {FORM}."
            )
        settings[first[0]] = _literal(value)
    for part in rest:
        setting, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or setting not in names:
            raise CommandError(
                f"{part!r} is no setting of {name}.{near(setting, names)} Its settings: "
                f"{', '.join(names)}. An algorithm is written {FORM}."
            )
        settings[setting] = _literal(value)
    missing = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in settings
    ]
    if missing:
        raise CommandError(f"{name} needs {', '.join(missing)}: write {name}:VALUE.")
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
