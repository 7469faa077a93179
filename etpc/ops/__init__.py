"""Kinds of weight operation: where an effective weight meets data, and how its gradient factors.

A kind says, for one operand of one equation, how a perturbation of the operation enters the step,
and which data the weight is multiplied with. Every kind is brought to one canonical form: `G`
groups of `O` outputs, each output fed by `I` inputs, `y[g, o] = sum_i x[g, i] w[g, i, o]`, where
groups may share a weight; or, where only some pairs (i, o) have a weight, the same sum over those.
The other stages know only this form. A kind is one record, registered for a primitive with
[`register_kind`][etpc.ops.register_kind].
"""

from typing import TYPE_CHECKING

from .. import later
from .._jax import primitive_of
from ._contraction import Contraction
from ._convolution import Axis, Convolution, Geometry, geometry
from ._kind import Elementwise, Kind, Links, elementwise, kind_of, summed
from ._lookup import Lookup
from ._sparse import Sparse

if TYPE_CHECKING:
    from ._check import register_kind
else:
    __getattr__ = later.names(__name__, {"_check": "register_kind"})

__all__ = [
    "Axis",
    "Contraction",
    "Convolution",
    "Elementwise",
    "Geometry",
    "Kind",
    "Links",
    "Lookup",
    "Sparse",
    "elementwise",
    "geometry",
    "kind_of",
    "primitive_of",
    "register_kind",
    "summed",
]
