"""Rules by the names that they have in the literature."""

import inspect
import re

from ..errors import AlgorithmError, Code, InputTypeError
from ._algorithm import Algorithm, registered
from ._rules import ES_D_RTRL, SnAp

ALIASES: dict[str, tuple[str, type[Algorithm]]] = {
    "ppprop": ("pp-prop", ES_D_RTRL),
    "snap1": ("SnAp-1", SnAp),
}
"""Names of what has another name here: as they are written, and the rule."""
NO_RULES = {
    "bptt": "BPTT is no online rule, as it needs the whole sequence. `etpc.bptt(model, xs, targets, loss)` gives its "
    "gradient, `etpc.verify` and `etpc.compare` compare with it, and truncated to K steps it is etpc.TBPTT(K)",
    "tbptt": "TBPTT needs a number of steps. Write etpc.TBPTT(20), or etpc.TBPTT(20, every=5), where the credit of "
    "each 5 steps goes through 20",
    "snap0": "SnAp-0 is the gradient of the current step. Write etpc.TBPTT(1)",
    "threefactor": "A third factor is a part of the loss, and no rule. Write etpc.D_RTRL(); the recipe is "
    '"Three factors" on the page Recipes',
    "dni": "Synthetic gradients are a part of the training loop, and no rule. Write etpc.TBPTT(5); the recipe is "
    '"Synthetic gradients" on the page Recipes',
}
"""Names of what is no rule, and what to write in their place."""


def spelled(name: str) -> str:
    """A name without what is written in several ways: case, hyphens, underscores and spaces."""
    return re.sub(r"[\s_\-()]", "", name).lower()


def named(name: str) -> type[Algorithm] | None:
    """The class of a rule, by its name in any spelling or by another name that it has; `None` where there is none.

    **Raises** `AlgorithmError` for the name of what is no rule, with what to write.
    """
    spelling, rule = spelled(name), registered(loaded=True).get(name)
    if rule is None and spelling not in ALIASES:
        rule = {spelled(each): rule for each, rule in registered().items()}.get(spelling)
    if rule is None and spelling in NO_RULES:
        raise AlgorithmError(f"{NO_RULES[spelling]}.")
    return ALIASES[spelling][1] if rule is None and spelling in ALIASES else rule


def resolve(algo: Algorithm | str) -> Algorithm:
    """The algorithm that an argument `algo` means."""
    if isinstance(algo, Algorithm):
        return algo
    if isinstance(algo, str):
        rule = named(algo)
        if rule is None:
            names = ", ".join(repr(name) for name in registered())
            raise AlgorithmError(
                f"There is no algorithm {algo!r}. Known names: {names}. A name has no settings: "
                "pass an algorithm for those, such as etpc.ES_D_RTRL(decay=0.9). `etpc.suggest` measures "
                "which one suits a model.",
                code=Code.UNKNOWN_ALGORITHM,
            )
        known = rule()
        if spelled(algo) in ALIASES:
            object.__setattr__(known, "alias", ALIASES[spelled(algo)][0])
        return known
    hint = ""
    if isinstance(algo, type) and issubclass(algo, Algorithm):
        parameters = inspect.signature(algo).parameters.values()
        needed = [f"{p.name}=..." for p in parameters if p.default is p.empty]
        hint = f" Call it: {algo.__name__}({', '.join(needed)})."
    raise InputTypeError(f"algo must be an algorithm or its name, not {algo!r}.{hint}")
