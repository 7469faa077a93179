"""Models of other libraries as models of `etpc`. Nothing is imported before it is asked for."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._brainstate import from_brainstate, into_brainstate
    from ._haiku import from_haiku
    from ._linen import from_linen
    from ._model import Adapted, Named
    from ._nir import NIRModel, from_nir
    from ._nir_export import to_nir
    from ._nnx import from_nnx, into_nnx
    from ._shapes import batched, keyed, stepwise
else:
    _NAMES = {
        "_brainstate": "from_brainstate into_brainstate",
        "_haiku": "from_haiku",
        "_linen": "from_linen",
        "_model": "Adapted Named",
        "_nir": "NIRModel from_nir",
        "_nir_export": "to_nir",
        "_nnx": "from_nnx into_nnx",
        "_shapes": "batched keyed stepwise",
    }
    _PLACES = {name: place for place, names in _NAMES.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_PLACES})


__all__ = [
    "Adapted",
    "NIRModel",
    "Named",
    "batched",
    "from_brainstate",
    "from_haiku",
    "from_linen",
    "from_nir",
    "from_nnx",
    "into_brainstate",
    "into_nnx",
    "keyed",
    "stepwise",
    "to_nir",
]
