"""Models of other libraries as models of `etpc`. Nothing is imported before it is asked for."""

from typing import TYPE_CHECKING, Any

from etpc import later
from etpc.errors import UnsupportedError, not_installed

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
    _EXTRAS = {"_linen": "flax", "_nir_export": "nir", "_nnx": "flax"}
    """Those that have another name than the module."""
    _PLACES = {name: place for place, names in _NAMES.items() for name in names.split()}
    _named = later.names(__name__, _NAMES)

    def __getattr__(name: str) -> Any:
        try:
            return _named(name)
        except ModuleNotFoundError as error:
            # Said where it is called, as `help` looks at all names.
            place = _PLACES[name]
            text = not_installed(f"`{name}`", error.name, _EXTRAS.get(place, place[1:]))

            def missing(*_: Any, **__: Any) -> Any:
                raise UnsupportedError(text)

            return missing

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
