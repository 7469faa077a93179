"""Kinds of weight operation: where an effective weight meets data, and how its gradient factors.

A kind says, for one operand of one equation, how a perturbation of the operation enters the step,
and which data the weight is multiplied with. Every kind is brought to one canonical form: `G`
groups of `O` outputs, each output fed by `I` inputs, `y[g, o] = sum_i x[g, i] w[g, i, o]`, where
groups may share a weight. The other stages know only this form. A kind is one record, registered
for a primitive with [`register_kind`][etpc.ops.register_kind].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ._jax import Equation, Primitive, prims


@runtime_checkable
class Kind(Protocol):
    """How one operand of one equation acts as a weight."""

    @property
    def name(self) -> str:
        """What the printed program calls it."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether an output reads several positions of the data: D-RTRL then cuts the data."""
        ...

    @property
    def groups(self) -> int:
        """G."""
        ...

    @property
    def inputs(self) -> int:
        """I; 1 where the operation has no factor."""
        ...

    @property
    def outputs(self) -> int:
        """O."""
        ...

    @property
    def data(self) -> Any:
        """Which operand is the data `x` that is multiplied with the weight; `None` if none is."""
        ...

    def shift_inputs(self, values: list[Any], delta: Float[Array, "G O"]) -> list[Any]:
        """The operands with `delta` added, if it acts on the weight (an op that does not mix)."""
        ...

    def shift_outputs(self, outputs: list[Any], delta: Float[Array, "G O"]) -> list[Any]:
        """The outputs with `delta` added, if it acts on them (an op that mixes)."""
        ...

    def factor(self, values: list[Any]) -> Float[Array, "G I"]:
        """`x`, from the values of the equation's operands."""
        ...

    def contract(
        self, x: Float[Array, "N G I"] | None, delta: Float[Array, "N G O"]
    ) -> Float[Array, "..."]:
        """The gradient of the weight, summed over N examples or steps."""
        ...

    def gather(self, entries: Float[Array, "G I O"]) -> Float[Array, "..."]:
        """The gradient of the weight from that of its uses, one for each group."""
        ...


@dataclasses.dataclass(frozen=True)
class Direct:
    """Any operation in which each weight element has a trace of its own.

    The perturbation is added to the weight where it is used, so nothing is assumed of the
    operation: it may be a product, a bias, an exponent, a threshold inside a surrogate, or a whole
    loop. Nothing is cut. G = I = 1, and O is the number of weight elements.
    """

    operand: int
    shape: tuple[int, ...]
    name: str
    mixes = False
    groups = 1
    inputs = 1
    data = None

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)

    def shift_inputs(self, values, delta):
        values = list(values)
        weight = values[self.operand]
        values[self.operand] = weight + delta.reshape(self.shape).astype(weight.dtype)
        return values

    def shift_outputs(self, outputs, delta):
        return outputs

    def factor(self, values):
        raise TypeError("an element-wise operation has no input factor")

    def contract(self, x, delta):
        return delta.sum(axis=(0, 1)).reshape(self.shape)

    def gather(self, entries):
        return entries.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Contraction:
    """`dot_general` of a weight and data, with any dimension numbers, in either order.

    Batch dimensions (h) are shared by both; the data has free dimensions (f), the weight its own
    (o), and i is summed. G = h * f: the groups of one h share a weight.
    """

    operand: int
    name: str
    h: int
    f: int
    i: int
    o: int
    x_order: tuple[int, ...]
    w_order: tuple[int, ...]
    w_dims: tuple[int, ...]
    y_dims: tuple[int, ...]
    mixes = True

    @property
    def groups(self) -> int:
        return self.h * self.f

    @property
    def inputs(self) -> int:
        return self.i

    @property
    def outputs(self) -> int:
        return self.o

    @property
    def data(self) -> int:
        return 1 - self.operand

    def shift_inputs(self, values, delta):
        return values

    def shift_outputs(self, outputs, delta):
        (y,) = outputs
        delta = delta.reshape(self.h, self.f, self.o)
        if self.operand == 0:  # dot_general puts the free dimensions of its first operand first
            delta = delta.transpose(0, 2, 1)
        return [y + delta.reshape(self.y_dims).astype(y.dtype)]

    def factor(self, values):
        x = values[self.data]
        return x.transpose(self.x_order).reshape(self.groups, self.i)

    def contract(self, x, delta):
        x = x.reshape(-1, self.h, self.f, self.i)
        delta = delta.reshape(-1, self.h, self.f, self.o)
        return self._to_weight(jnp.einsum("nhfi,nhfo->hio", x, delta))

    def gather(self, entries):
        return self._to_weight(entries.reshape(self.h, self.f, self.i, self.o).sum(1))

    def _to_weight(self, gradient):
        dims = [self.w_dims[axis] for axis in self.w_order]
        inverse = sorted(range(len(dims)), key=lambda axis: self.w_order[axis])
        return gradient.reshape(dims).transpose(inverse)


def contraction(equation: Equation, operand: int) -> Contraction:
    """The canonical form of a `dot_general` whose operand number `operand` is the weight."""
    contract, batch = equation.params["dimension_numbers"]
    shapes = [v.shape for v in equation.inputs]
    w, x = operand, 1 - operand
    free = [
        tuple(a for a in range(len(shapes[n])) if a not in contract[n] and a not in batch[n])
        for n in (0, 1)
    ]

    def count(shape, axes):
        return math.prod(shape[a] for a in axes)

    return Contraction(
        operand=operand,
        name=equation.primitive.name,
        h=count(shapes[w], batch[w]),
        f=count(shapes[x], free[x]),
        i=count(shapes[w], contract[w]),
        o=count(shapes[w], free[w]),
        x_order=(*batch[x], *free[x], *contract[x]),
        w_order=(*batch[w], *contract[w], *free[w]),
        w_dims=shapes[w],
        y_dims=equation.outputs[0].shape,
    )


def direct(equation: Equation, operand: int) -> Direct:
    """The form that any operation has."""
    name = equation.params.get("name", equation.primitive.name)
    return Direct(operand, equation.inputs[operand].shape, str(name))


KindRule = Callable[[Equation, int], Kind]

_KINDS: dict[Primitive, KindRule] = {}


def register_kind(primitive: Primitive, rule: KindRule) -> None:
    """Give the weight operations of a primitive a kind of their own.

    **Arguments:**

    - `primitive`: the JAX primitive.
    - `rule`: called with the equation and the number of the operand that is the weight; returns
        the [`Kind`][etpc.ops.Kind].

    **Raises** `ValueError` where the primitive has a kind already.
    """
    if primitive in _KINDS:
        raise ValueError(f"the primitive {primitive.name} has a kind already: {_KINDS[primitive]}")
    _KINDS[primitive] = rule


def kind_of(equation: Equation, operand: int) -> Kind:
    """The kind of a weight operation: a registered one, or `Direct`."""
    return _KINDS.get(equation.primitive, direct)(equation, operand)


register_kind(prims.dot_general_p, contraction)

__all__ = ["Contraction", "Direct", "Kind", "contraction", "direct", "kind_of", "register_kind"]
