"""An extension of Griffe, which reads the signatures in the reference."""

import inspect
from typing import Any

import griffe

from etpc import nn


class Constructors(griffe.Extension):
    """Gives classes the signatures of their constructors."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """With `__init__ = Base.__init__`, as type checkers need it, a class has the parameters of its base."""
        if "__init__" in cls.members and cls.members["__init__"].is_attribute:
            cls.del_member("__init__")

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Layers that are declared as fields have a constructor only when they run."""
        for module in pkg["nn"].modules.values():
            for cls in module.classes.values():
                made = getattr(nn, cls.name, None) if "constant(" in cls.source else None
                if made is not None:
                    cls.set_member("__init__", _constructor(made))


def _constructor(made: type) -> griffe.Function:
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for given in inspect.signature(made).parameters.values():
        required = given.default is given.empty
        kind = "keyword_only" if given.kind == given.KEYWORD_ONLY else "positional_or_keyword"
        annotation = inspect.formatannotation(getattr(given.annotation, "type", given.annotation))
        parameters.append(
            griffe.Parameter(
                given.name,
                kind=griffe.ParameterKind[kind],
                annotation=annotation,
                default=None if required else repr(given.default),
            )
        )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters))
