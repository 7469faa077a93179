"""What a kind of weight operation is, the form that any operation has, and the registry."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from .._jax import Equation, Variable, params
from .._jax.primitives import facts

Values = list[Any]
"""The values of the operands, or of the results, of one equation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Links:
    """Which inputs feed which outputs, where not all do: U pairs, in the order of the trace."""

    inputs: np.ndarray
    """The input i of each pair; int [U]."""
    outputs: np.ndarray
    """The output o of each pair; int [U]."""


@runtime_checkable
class Kind(Protocol):
    """How one operand of one equation acts as a weight.

    A kind may also have `uses`, which is hashable: two operations on one weight share a trace where it is
    equal and not `None`. It is equal only where `gather` takes the entries of both to the same elements
    of the weight. And it may have `inputs_last`: true where the axes of inputs come last in the weight, so that a
    trace in the same order gives a gradient without a transpose.
    """

    @property
    def name(self) -> str:
        """What the printed program calls it."""
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
    def data(self) -> int | None:
        """Which operand is the data `x` that is multiplied with the weight, and that D-RTRL cuts; `None` if
        the operation has no such factor."""
        ...

    @property
    def links(self) -> Links | None:
        """The `Links` of one group; `None` where every input feeds every output."""
        ...

    def shift_inputs(self, values: Values, delta: Inexact[Array, "G O"]) -> Values:
        """The operands with `delta` added to the weight, where the operation has no data."""
        ...

    def shift_outputs(self, outputs: Values, delta: Inexact[Array, "G O"]) -> Values:
        """The outputs with `delta` added, where the operation has data."""
        ...

    def factor(self, values: Values) -> Inexact[Array, "G I"]:
        """`x`, from the values of the equation's operands; only that of `data` is given."""
        ...

    def contract(
        self, x: Inexact[Array, "*n G I"] | None, delta: Inexact[Array, "*n G O"]
    ) -> Inexact[Array, "..."]:
        """The gradient of the weight, summed over all leading axes: steps and examples."""
        ...

    def gather(self, entries: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        """The gradient of the weight from that of its uses: [G, I, O], or [G, U] with `links`."""
        ...


def summed(subscripts: str, *operands: Array) -> Array:
    """`einsum` with sums over steps and examples.

    Where a mesh has explicit axes, JAX asks what a sum over one of them shall be: whole, on every
    device. Other axes stay spread as they are.
    """
    inputs, out = subscripts.split("->")
    types = [jax.typeof(operand) for operand in operands]
    spread = {
        letter: axis
        for letters, aval in zip(inputs.split(","), types, strict=True)
        for letter, axis in zip(letters, aval.sharding.spec, strict=True)
        if axis is not None
    }
    whole = None
    if spread:
        mesh = next(aval.sharding.mesh for aval in types if any(aval.sharding.spec))
        whole = jax.sharding.NamedSharding(mesh, jax.P(*(spread.get(letter) for letter in out)))
    return jnp.einsum(subscripts, *operands, out_sharding=whole)


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """Any operation in which each weight element has a trace of its own.

    The perturbation is added to the weight where it is used, so nothing is assumed of the
    operation: it may be a product, a bias, an exponent, a threshold inside a surrogate, or a whole
    loop. Nothing is cut. G = I = 1, and O is the number of weight elements.
    """

    operand: int
    shape: tuple[int, ...]
    name: str
    groups = 1
    inputs = 1
    data = None
    links = None

    @property
    def outputs(self) -> int:
        return math.prod(self.shape)

    @property
    def uses(self) -> Hashable:
        return self.shape

    def shift_inputs(self, values: Values, delta: Array) -> Values:
        values = list(values)
        weight = values[self.operand]
        values[self.operand] = weight + delta.reshape(self.shape).astype(weight.dtype)
        return values

    def shift_outputs(self, outputs: Values, delta: Array) -> Values:
        return outputs

    def factor(self, values: Values) -> Array:
        raise TypeError("an element-wise operation has no input factor")

    def contract(self, x: Array | None, delta: Array) -> Array:
        return delta.sum(axis=tuple(range(delta.ndim - 1))).reshape(self.shape)

    def gather(self, entries: Array) -> Array:
        return entries.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Rearrangement:
    """Reshape, transpose, reshape: between canonical axes and those of an array."""

    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, x: Array) -> Array:
        return x.reshape(self.split).transpose(self.order).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Factored:
    """`y[h, f, o] = sum_i x[h, f, i] w[h, i, o]`: what dense operations that mix have in common.

    Groups are pairs (h, f), and those of one h share a weight.
    """

    name: str
    data: int
    h: int
    f: int
    i: int
    o: int
    to_weight: Rearrangement
    """From [h, i, o] to the weight's own axes."""
    to_output: Rearrangement
    """From [h, f, o] to the output's."""
    links = None

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
    def uses(self) -> Hashable:
        return self.h, self.f, self.i, self.o, self.to_weight

    @property
    def inputs_last(self) -> bool:
        """Whether the weight's last axis is one of inputs."""
        first, second = _runs_of(self.to_weight.split, (self.h, self.i, self.o))
        return bool(self.to_weight.order) and self.to_weight.order[-1] in range(first, second)

    def shift_inputs(self, values: Values, delta: Array) -> Values:
        return values

    def shift_outputs(self, outputs: Values, delta: Array) -> Values:
        (y,) = outputs
        return [y + self.to_output(delta).astype(y.dtype)]

    def contract(self, x: Array | None, delta: Array) -> Array:
        # One product that has the weight's own order of axes, as a transpose of the result is a pass
        # over the weight. The leading axes stay apart, so that a batch may be spread over devices.
        assert x is not None
        lead, split = x.shape[:-2], self.to_weight.split
        axes = "hijklmnopqrstuvwxyz"[: len(split)]
        first, second = _runs_of(split, (self.h, self.i, self.o))
        h, i, o = axes[:first], axes[first:second], axes[second:]
        x = x.reshape(*lead, *split[:first], self.f, *split[first:second])
        delta = delta.reshape(*lead, *split[:first], self.f, *split[second:])
        n = "abcde"[: len(lead)]
        out = "".join(axes[axis] for axis in self.to_weight.order)
        return summed(f"{n}{h}f{i},{n}{h}f{o}->{out}", x, delta).reshape(self.to_weight.shape)

    def gather(self, entries: Array) -> Array:
        return self.to_weight(entries.reshape(self.h, self.f, self.i, self.o).sum(1))


def _runs_of(shape: tuple[int, ...], sizes: tuple[int, int, int]) -> tuple[int, int]:
    """Where to cut the axes of a shape into three runs that hold so many places each."""
    places = itertools.combinations_with_replacement(range(len(shape) + 1), 2)
    return next(
        (a, b)
        for a, b in places
        if (math.prod(shape[:a]), math.prod(shape[a:b]), math.prod(shape[b:])) == sizes
    )


def elementwise(equation: Equation, operand: int) -> Elementwise:
    """The form that any operation has."""
    return Elementwise(operand, equation.inputs[operand].shape, params.shown_name(equation))


Known = Callable[[Variable], "np.ndarray | None"]
"""The value of a variable that neither a parameter nor data changes; `None` for others."""

KindRule = Callable[[Equation, int, Known], "Kind | None"]


def kind_of(equation: Equation, operand: int, known: Known) -> Kind:
    """The kind of a weight operation: a registered one, or `Elementwise`."""
    rule = facts(equation.primitive).kind
    kind = rule(equation, operand, known) if rule is not None else None
    return elementwise(equation, operand) if kind is None else kind
