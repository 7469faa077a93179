"""The program that the stages read, and how it is evaluated: equations over variables."""

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import source_info_util
from jax.extend.core import primitives as prims

from ..errors import Code, EtpcError, UnsupportedError

Primitive = jex.Primitive
P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True, eq=False)
class Variable:
    """A value of a traced program: written once, by an equation or as an argument.

    Numbers tell the variables of one program apart when it is printed, and mean nothing else.
    """

    number: int
    aval: jax.ShapeDtypeStruct

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.aval.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_float(self) -> bool:
        return is_float(self.aval.dtype)

    def __repr__(self) -> str:
        return f"v{self.number}:{self.aval.dtype}{list(self.shape)}"


class Traceback:
    """Where JAX made an equation. `dataclasses.asdict` of a claim copies it, and JAX's own object refuses that."""

    def __init__(self, of: Any = None):
        self.of = of

    def __deepcopy__(self, memo: dict[int, Any]) -> "Traceback":
        return self

    @property
    def places(self) -> list[tuple[str, int, str]]:
        """File, line and function of each call that led there, the innermost first."""
        frames = [] if self.of is None else self.of.frames
        return [(frame.file_name, frame.line_num, frame.function_name) for frame in frames]


NOWHERE = Traceback()


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One operation: `outputs = primitive(inputs)`, and the user's line it comes from."""

    primitive: Primitive
    params: Mapping[str, Any]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    source: str
    traceback: Traceback = NOWHERE
    in_branch: bool = False
    """Whether a branch of the model, which may not be taken, computes it from parameters alone."""
    real: tuple[int, ...] = ()
    """The operands of a product that are complex by type, and real numbers by value."""

    def bind(self, *values: Any) -> list[Any]:
        """Apply the operation to arrays or tracers."""
        bound = self.primitive.get_bind_params(dict(self.params))
        try:
            with source_info_util.user_context(self.traceback.of):
                if self.primitive is prims.dot_general_p and is_complex(self.outputs[0].aval):
                    return [self._complex_product(values, bound)]
                out = self.primitive.bind(*values, **bound)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise self._refused(error) from error
        return list(out) if self.primitive.multiple_results else [out]

    def _refused(self, error: Exception) -> Exception:
        """The error where JAX has no derivative or no batching rule for the operation."""
        if isinstance(error, EtpcError):
            return error
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        return UnsupportedError(
            f"JAX refuses the {self.primitive.name} at {self.source}: {reason}. This is because a derivative passes "
            "through it, from a hidden state or a weight to a state or to the output, or a batch does. Give it a "
            "derivative by `jax.custom_jvp`, or pass what enters it through `jax.lax.stop_gradient`.",
            code=Code.NO_DERIVATIVE,
        )

    def _complex_product(self, values: Sequence[Any], params: dict[str, Any]) -> jax.Array:
        dtype = self.outputs[0].aval.dtype

        def product(a: Any, b: Any) -> jax.Array:
            of_parts = not (is_complex(a) or is_complex(b))
            summed_in = jnp.finfo(dtype).dtype if of_parts else dtype
            return self.primitive.bind(a, b, **{**params, "preferred_element_type": summed_in})

        left, right = (a.real if n in self.real else a for n, a in enumerate(values))
        return by_parts(product, left, right).astype(dtype)

    def __repr__(self) -> str:
        out = ", ".join(map(repr, self.outputs))
        args = ", ".join(f"v{v.number}" for v in self.inputs)
        return f"{out} = {self.primitive.name} {args}"


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A function in canonical form: equations over variables, and the constants among them."""

    equations: tuple[Equation, ...]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    constants: Mapping[Variable, Any]

    def environment(self, operands: Iterable[Any]) -> dict[Variable, Any]:
        """The values that the equations start from."""
        return {**self.constants, **dict(zip(self.inputs, operands, strict=True))}

    def run(self, operands: Iterable[Any], rule: "Rule | None" = None) -> list[Any]:
        """The values of the outputs. `rule` may take over an equation, as in `evaluate`."""
        env = evaluate(self.equations, self.environment(operands), rule)
        return [env[v] for v in self.outputs]


Rule = Callable[[Equation, list[Any]], "list[Any] | None"]


def evaluate(
    equations: Iterable[Equation], env: dict[Variable, Any], rule: Rule | None = None
) -> dict[Variable, Any]:
    """Run equations over `env` (in place). `rule` may take over an equation, or return `None`.

    Products keep the precision that they were traced with, also where what calls this sets another one by
    `jax.default_matmul_precision`: those of a derivative, which is taken outside of this, have that.
    """
    with jax.default_matmul_precision(None):
        for eqn in equations:
            values = [env.get(v) for v in eqn.inputs]
            out = rule(eqn, values) if rule is not None else None
            if out is None:
                out = eqn.bind(*values)
            env.update(zip(eqn.outputs, out, strict=True))
    return env


def prune(
    equations: Sequence[Equation],
    wanted: Iterable[Variable],
    given: Iterable[Equation] = (),
    known: Container[Variable] = (),
) -> tuple[Equation, ...]:
    """The equations, in order, that the wanted variables need.

    The outputs of equations in `given` are given, so that their inputs are not needed. Variables that
    are known need nothing.
    """
    needed, stops = {v for v in wanted if v not in known}, set(given)
    kept: list[Equation] = []
    for eqn in reversed(equations):
        if not needed.isdisjoint(eqn.outputs):
            kept.append(eqn)
            if eqn not in stops:
                needed.update(v for v in eqn.inputs if v not in known)
    return tuple(reversed(kept))


def propagate(
    equations: Iterable[Equation],
    seeds: Iterable[Variable],
    stop: Callable[[Equation, Variable], bool] = lambda eqn, v: False,
) -> set[Variable]:
    """The seeds, and all variables that depend on them through floats.

    An output for which `stop` is true does not count, nor does what depends on it alone.
    """
    reached = set(seeds)
    for eqn in equations:
        if not reached.isdisjoint(eqn.inputs):
            reached.update(v for v in eqn.outputs if v.is_float and not stop(eqn, v))
    return reached


def partition(
    equations: Iterable[Equation], known: Iterable[Variable]
) -> tuple[list[Equation], list[Equation], set[Variable]]:
    """The equations that read known variables alone, the other equations, and the variables that are known then."""
    alone: list[Equation] = []
    others: list[Equation] = []
    known = set(known)
    for eqn in equations:
        if all(v in known for v in eqn.inputs):
            alone.append(eqn)
            known.update(eqn.outputs)
        else:
            others.append(eqn)
    return alone, others, known


def leading(mask: Any, a: Any) -> jax.Array:
    """A mask over the leading axes of an array, with an axis of length one for each other axis."""
    return jnp.reshape(mask, (*jnp.shape(mask), *[1] * (jnp.ndim(a) - jnp.ndim(mask))))


def replaced(values: Iterable[Any], places: Iterable[int], new: Iterable[Any]) -> list[Any]:
    """Values, with new ones at some places."""
    by_place = dict(zip(places, new, strict=True))
    return [by_place.get(i, value) for i, value in enumerate(values)]


# --- dtypes ---


def is_float(dtype: Any) -> bool:
    """Whether values of this dtype are differentiated."""
    return jnp.issubdtype(dtype, jnp.inexact)


def is_complex(value: Any) -> bool:
    """Whether an array, or the type of one, is complex."""
    return jnp.issubdtype(value.dtype, jnp.complexfloating)


def is_key(value: Any) -> bool:
    """Whether it is an array of PRNG keys, or the type of one."""
    return jnp.issubdtype(getattr(value, "dtype", bool), jax.dtypes.prng_key)


def real_avals(avals: Iterable[Any]) -> list[jax.ShapeDtypeStruct]:
    """The types of the real arrays that make up arrays: a complex one is its real, then its imaginary part."""
    real = lambda a: jax.ShapeDtypeStruct(a.shape, jnp.finfo(a.dtype).dtype)
    return [real(a) for a in avals for _ in range(1 + is_complex(a))]


def real_parts(arrays: Iterable[Any]) -> list[Any]:
    """The real arrays that make up arrays."""
    return [part for a in arrays for part in ((a.real, a.imag) if is_complex(a) else (a,))]


def of_real_parts(parts: Iterable[Any], avals: Iterable[Any]) -> list[Any]:
    """Arrays of these types, from the real ones that make them up."""
    given = iter(parts)
    return [
        jax.lax.complex(next(given), next(given)) if is_complex(a) else next(given) for a in avals
    ]


def by_parts(product: Callable[[Any, Any], jax.Array], a: Any, b: Any) -> jax.Array:
    """A bilinear product of two arrays, as products of their real and imaginary parts: on CPUs a product of complex
    matrices takes two to five times as long, and XLA makes the same parts of it for TPUs."""
    if is_complex(a) and is_complex(b):
        real = product(a.real, b.real) - product(a.imag, b.imag)
        return jax.lax.complex(real, product(a.real, b.imag) + product(a.imag, b.real))
    if is_complex(a) and not is_complex(b):
        return jax.lax.complex(product(a.real, b), product(a.imag, b))
    if is_complex(b) and not is_complex(a):
        return jax.lax.complex(product(a, b.real), product(a, b.imag))
    return product(a, b)


def promoting(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` under JAX's standard promotion of dtypes, whatever the user has set."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped


def result_type(*values: Any) -> Any:
    """The dtype that holds all of them, also where JAX is told to promote none by itself."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*values)


def manual_axes(tree: Any) -> list[str]:
    """The mesh axes of `jax.shard_map` over which arrays are known to vary: with its `check_vma` alone."""
    avals = [jax.typeof(a) for a in jax.tree.leaves(tree) if isinstance(a, Tracer)]
    kinds = (getattr(aval, "manual_axis_type", None) for aval in avals)
    return sorted({str(axis) for kind in kinds for axis in getattr(kind, "varying", ())})
