"""Where a class or a function is defined, which tells a redefinition from another one."""

import os
import sys
from typing import Any


def origin(definition: Any) -> tuple[str, str]:
    """The file, or the module, and the qualified name; the same for a file that was loaded under two names.

    So a cell of a notebook that is run once more defines the same thing again.
    """
    module = getattr(definition, "__module__", "")
    file = getattr(sys.modules.get(module), "__file__", None)
    place = module if file is None else os.path.realpath(file)
    return place, getattr(definition, "__qualname__", repr(definition))
