"""Optimisers as text: `adam:1e-3`."""

import math
from typing import Any

from ._errors import CommandError

FORM = "an optimiser of Optax and its learning rate, such as adam:1e-3"


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
        raise CommandError(f"--optimiser {text}: write {FORM}.") from error
