"""An extension of Griffe, which reads the signatures in the reference."""

from typing import Any

import griffe


class InheritedInit(griffe.Extension):
    """A class with `__init__ = Base.__init__`, as type checkers need it, has the parameters of its base."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        if "__init__" in cls.members and cls.members["__init__"].is_attribute:
            cls.del_member("__init__")
