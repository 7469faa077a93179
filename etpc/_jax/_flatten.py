"""From a Python function, or a jaxpr, to the canonical program that the stages read.

`jit`, `remat` and other calls that only group operations are inlined, and variables are fresh, because JAX
shares the variables of a cached inner jaxpr between its calls.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import primitives as prims

from . import params
from ._listed import bcoo_dot_general_primitive, scatter_sub_p, split_p
from ._meanings import Meaning, meaning_of
from ._program import NOWHERE, Equation, Flat, Primitive, Traceback, Variable

# Lines that errors and tables name are the user's, not those of libraries in between.
_files = [os.path.dirname(__file__), equinox.__file__, jaxtyping.__file__]
_saiunit = importlib.util.find_spec("saiunit")
for _file in [*_files, *([_saiunit.origin] if _saiunit is not None and _saiunit.origin else [])]:
    source_info_util.register_exclusion(os.path.dirname(_file))

Place = tuple[str | None, Traceback]
"""The user's line, `None` where JAX knows of none, and the traceback."""


def canonicalise(function: Callable[..., Any], avals: Sequence[Any]) -> Flat:
    """Trace `function` on flat arguments, given as arrays or as shapes, and inline what only groups other
    operations."""
    return flatten(jax.make_jaxpr(function)(*avals))


def in_place_of(equation: Equation, function: Callable[..., Any]) -> Flat:
    """A function of the operands of an equation, as equations from these to its output."""
    flat = canonicalise(function, [v.aval for v in equation.inputs])
    actual = dict(zip(flat.inputs, equation.inputs, strict=True))
    actual |= dict(zip(flat.outputs, equation.outputs, strict=True))
    named = lambda variables: tuple(actual.get(v, v) for v in variables)
    place = {"source": equation.source, "traceback": equation.traceback}
    equations = [
        dataclasses.replace(e, inputs=named(e.inputs), outputs=named(e.outputs), **place)
        for e in flat.equations
    ]
    return dataclasses.replace(flat, equations=tuple(equations))


def flatten(jaxpr: params.Jaxpr, *, rewritten: bool = True) -> Flat:
    """A jaxpr, such as the body of a loop, in canonical form.

    `rewritten`: whether operations are replaced by what they stand for, which compiles to the same or to faster code.

    The jaxpr of `lambda x: jax.jit(jnp.sin)(2 * x)` has the equations

        b = mul 2.0 a
        c = jit[jaxpr={ lambda ; d. let e = sin d in (e,) }] b

    and its canonical form, with the input v0, the constant v1 = 2.0 and the output v3, has

        v2 = mul v1, v0
        v3 = sin v2
    """
    flattening = _Flattening(rewritten)
    inputs = tuple(flattening.fresh(v.aval) for v in open_jaxpr(jaxpr)[0].invars)
    outputs = flattening.inline(jaxpr, inputs, (None, NOWHERE))
    return Flat(tuple(flattening.equations), inputs, tuple(outputs), flattening.constants)


class _Flattening:
    """Equations and constants, as they are added."""

    def __init__(self, rewritten: bool) -> None:
        self.rewritten = rewritten
        self.equations: list[Equation] = []
        self.constants: dict[Variable, Any] = {}
        self._count = 0

    def fresh(self, aval: Any) -> Variable:
        self._count += 1
        return Variable(self._count - 1, jax.ShapeDtypeStruct(aval.shape, aval.dtype))

    def constant(self, value: Any, aval: Any) -> Variable:
        variable = self.fresh(aval)
        self.constants[variable] = value
        return variable

    def inline(
        self, jaxpr: params.Jaxpr, operands: Sequence[Variable], around: Place
    ) -> list[Variable]:
        """Add the equations of a jaxpr that is called at `around`; the variables of its results."""
        opened, consts = open_jaxpr(jaxpr)
        held = [self.constant(value, jax.typeof(value)) for value in consts]
        env: dict[Any, Variable] = dict(zip(opened.constvars, held, strict=True))
        env.update(zip(opened.invars, operands, strict=True))

        def read(atom: Any) -> Variable:
            if isinstance(atom, jex.Literal):
                aval: Any = atom.aval
                return self.constant(np.asarray(atom.val, aval.dtype), aval)
            return env[atom]

        for eqn in opened.eqns:
            env.update(
                zip(eqn.outvars, self.add(eqn, [read(v) for v in eqn.invars], around), strict=True)
            )
        return [read(v) for v in opened.outvars]

    def add(self, eqn: Any, operands: list[Variable], around: Place) -> list[Variable]:
        """Add an equation of JAX, or what it stands for; the variables of its results."""
        place: Place = _line(eqn.source_info), Traceback(eqn.source_info.traceback)
        if place[0] is None:  # as in a function of a library that JAX has traced before
            place = around
        grouped, meaning = params.grouped(eqn), _meaning(eqn) if self.rewritten else None
        if grouped is not None:
            return self.inline(grouped, operands, place)
        if meaning is not None:
            call = functools.partial(meaning, **eqn.params)
            return self.inline(jax.make_jaxpr(call)(*(v.aval for v in operands)), operands, place)
        outputs = [self.fresh(v.aval) for v in eqn.outvars]
        for n in _indices(eqn.primitive, len(operands)) if self.rewritten else ():
            index = operands[n]
            if _is_narrow(index.aval.dtype):
                (operands[n],) = self.inline(jax.make_jaxpr(_wide)(index.aval), [index], place)
        line, traceback = place
        self.equations.append(
            Equation(
                *(eqn.primitive, eqn.params, tuple(operands), tuple(outputs)),
                *(line or "an unknown line", traceback),
            )
        )
        return outputs


def open_jaxpr(jaxpr: params.Jaxpr) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, whether it is closed, open, or both in one class."""
    if isinstance(jaxpr, jex.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def _line(info: Any) -> str | None:
    text = source_info_util.summarize(info)
    return text if text and text != "unknown" else None


def _meaning(eqn: Any) -> Meaning | None:
    """The function that an operation stands for; `None` for most."""
    if eqn.primitive is split_p:
        sizes = {*params.sizes_of_parts(eqn)}
        return _split if len(sizes) == 1 and sizes != {1} else None
    return meaning_of(eqn.primitive)


def _split(array: jax.Array, *, sizes: Sequence[Any], axis: int) -> list[jax.Array]:
    """The equal parts of an array along an axis, as a split of an axis of parts.

    It is transposed to a concatenation of whole parts. XLA's CPU backend copies these, where it generates code for
    each concatenation along the axis itself.
    """
    lead, rest = array.shape[:axis], (int(sizes[0]), *array.shape[axis + 1 :])
    parts = jax.lax.split(array.reshape(*lead, len(sizes), *rest), (1,) * len(sizes), axis)
    return [part.reshape(*lead, *rest) for part in parts]


_INDEXED = {
    *(prims.gather_p, prims.scatter_p, prims.scatter_add_p, prims.scatter_mul_p),
    *(prims.scatter_min_p, prims.scatter_max_p, scatter_sub_p),
}


def _indices(primitive: Primitive, count: int) -> range:
    """The numbers of the operands, of `count`, that are indices."""
    if primitive is prims.dynamic_slice_p:
        return range(1, count)
    if primitive is prims.dynamic_update_slice_p:
        return range(2, count)
    if primitive in _INDEXED or primitive is bcoo_dot_general_primitive():
        return range(1, 2)
    return range(0)


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 32


def _wide(index: Any) -> jax.Array:
    """An index in a type that holds the size of any axis.

    XLA compares an index with sizes in the index's own type: on CPUs a scatter into 300 rows by
    `uint8` leaves out what lies beyond 300 - 256.
    """
    return jax.lax.convert_element_type(index, jnp.int32)


# --- effects ---


def without_prints(jaxpr: params.Jaxpr) -> tuple[params.Jaxpr, list[tuple[str, str]]]:
    """A jaxpr without the operations that have an effect and no result, such as `jax.debug.print`, in its
    loops and branches too; and all others that have an effect: the primitive's name and the user's line.

    Mutable arrays are among these. JAX has no public function that makes values of them.
    """
    others: list[tuple[str, str]] = []

    def stripped(jaxpr: Any, around: str) -> Any:
        if isinstance(jaxpr, tuple | list):
            return type(jaxpr)(stripped(member, around) for member in jaxpr)
        if not params.is_jaxpr(jaxpr):
            return jaxpr
        opened, _ = open_jaxpr(jaxpr)
        equations = []
        for eqn in opened.eqns:
            if eqn.effects and eqn.primitive in _prints():
                continue
            if eqn.effects:
                line = _line(eqn.source_info) or around
                if params.inner_jaxprs(eqn):
                    inner = {name: stripped(value, line) for name, value in eqn.params.items()}
                    eqn = eqn.replace(params=inner, effects=frozenset())
                else:
                    others.append((eqn.primitive.name, line))
            equations.append(eqn)
        opened = opened.replace(eqns=equations, effects=frozenset())
        is_closed = isinstance(jaxpr, jex.ClosedJaxpr) and not isinstance(jaxpr, jex.Jaxpr)
        return jaxpr.replace(jaxpr=opened) if is_closed else opened

    return (stripped(jaxpr, "an unknown line") if jaxpr.effects else jaxpr), others


@functools.cache
def _prints() -> frozenset[Primitive]:
    """The primitives that have an effect and no result, and that change no value."""
    from jax.experimental import checkify  # which takes a while to import

    effects = (
        lambda x: jax.debug.print("{}", x),
        lambda x: jax.debug.callback(lambda x: None, x),
        lambda x: checkify.check(x, ""),
    )
    jaxprs = [open_jaxpr(jax.make_jaxpr(effect)(True))[0] for effect in effects]
    return frozenset(jaxpr.eqns[-1].primitive for jaxpr in jaxprs)
