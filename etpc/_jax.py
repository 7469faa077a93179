"""Everything that `etpc` needs of JAX beyond its public transformations, in one place.

No other module imports `jax.extend` or JAX internals. What JAX can do is asked of the objects it
offers, not of its version number. Here are the marker primitive `etp`, the small program
representation that the later stages read (`Variable`, `Equation`), and the canonicalisation of a
Python function into it: a jaxpr with `jit`, `remat` and other plain calls inlined, and with fresh
variables, because JAX shares the variables of a cached inner jaxpr between its calls.
"""

import dataclasses
import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import equinox
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import jaxtyping
import numpy as np
from jax.core import Tracer
from jax.extend import source_info_util
from jax.extend.core import primitives as prims
from jax.interpreters import ad, batching, mlir

from ._errors import UnsupportedError

Primitive = jex.Primitive

# Lines that errors and tables name are the user's, not those of libraries in between.
for _file in (__file__, equinox.__file__, jaxtyping.__file__):
    source_info_util.register_exclusion(os.path.dirname(_file))
_spec = importlib.util.find_spec("saiunit")
if _spec is not None and _spec.origin is not None:
    source_info_util.register_exclusion(os.path.dirname(_spec.origin))

# --- the marker ---------------------------------------------------------------------------------

etp_p = Primitive("etp")
etp_p.def_impl(lambda x: x)
etp_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(etp_p, lambda ctx, x: [x])
ad.deflinear2(etp_p, lambda ct, x: [ct])
batching.defvectorized(etp_p)


def mark(weight: jax.Array | np.ndarray) -> jax.Array:
    """Mark a weight, where it is used, as one that learns by an eligibility trace where not all do.

    An identity: the marked value equals `weight`, at no cost when the model runs on its own. It
    survives `jit`, `vmap` and `grad`. Whatever operation consumes the marked value, or something
    computed from it and other parameters alone, is an ETP weight operation.
    `etpc.compile(..., weights="marked")` gives a trace to those alone; by default every weight that
    reaches a hidden state has one.

    **Arguments:**

    - `weight`: a float array of any shape.

    **Returns** the same array.

    ```pycon
    >>> import jax.numpy as jnp, etpc
    >>> etpc.mark(jnp.ones(3)).shape
    (3,)

    ```
    """
    return etp_p.bind(jnp.asarray(weight))


# --- values without a derivative ---

no_derivative_p = Primitive("no_derivative")
"""Stands for the derivative of a value that has none, and raises where it is read."""


def _raise_no_derivative(*_: Any, message: str, **__: Any) -> Any:
    raise UnsupportedError(message)


no_derivative_p.def_impl(_raise_no_derivative)
no_derivative_p.def_abstract_eval(lambda tangent, message: tangent)
mlir.register_lowering(no_derivative_p, _raise_no_derivative)
ad.deflinear2(no_derivative_p, _raise_no_derivative)
batching.defvectorized(no_derivative_p)


def without_derivative(tree: Any, message: str) -> Any:
    """The same values; an `UnsupportedError` with this message where their derivative is asked for.

    The derivatives of other values that are computed beside them stay as they are.
    """

    @jax.custom_jvp
    def same(value):
        return value

    @same.defjvp
    def _(primals, tangents):
        return primals[0], no_derivative_p.bind(tangents[0], message=message)

    floats = lambda a: hasattr(a, "dtype") and is_float(a.dtype)
    return jax.tree.map(lambda a: same(a) if floats(a) else a, tree)


# --- the program representation -----------------------------------------------------------------


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


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """One operation: `outputs = primitive(inputs)`, and the user's line it comes from."""

    primitive: Primitive
    params: Mapping[str, Any]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    source: str
    traceback: Any = None
    in_branch: bool = False
    """Whether a branch of the model, which may not be taken, computes it from parameters alone."""

    def bind(self, *values: Any) -> list[Any]:
        """Apply the operation to arrays or tracers."""
        bound = self.primitive.get_bind_params(dict(self.params))
        with source_info_util.user_context(self.traceback):
            out = self.primitive.bind(*values, **bound)
        return list(out) if self.primitive.multiple_results else [out]

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


def is_float(dtype: Any) -> bool:
    """Whether values of this dtype are differentiated."""
    return jnp.issubdtype(dtype, jnp.inexact)


def promoting(function: Callable) -> Callable:
    """The function, in which JAX promotes dtypes, also where the user told JAX not to."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
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


_INLINED = {prims.jit_p: "jaxpr", prims.closed_call_p: "call_jaxpr", prims.remat_p: "jaxpr"}


def canonicalise(function: Callable, avals: Sequence[Any]) -> Flat:
    """Trace `function` on flat arguments, given as arrays or as shapes, and inline what only groups other
    operations."""
    return flatten(jax.make_jaxpr(function)(*avals))


def flatten(jaxpr: Any) -> Flat:
    """A jaxpr, such as the body of a loop, in canonical form."""
    numbers = iter(range(1 << 62))
    constants: dict[Variable, Any] = {}
    equations: list[Equation] = []

    def fresh(aval: Any) -> Variable:
        return Variable(next(numbers), jax.ShapeDtypeStruct(aval.shape, aval.dtype))

    def constant(value: Any, aval: Any) -> Variable:
        variable = fresh(aval)
        constants[variable] = value
        return variable

    def walk(
        inner: Any, consts: Sequence[Variable], args: Sequence[Variable], around: Any
    ) -> list[Variable]:
        env: dict[Any, Variable] = dict(zip(inner.constvars, consts, strict=True))
        env.update(zip(inner.invars, args, strict=True))

        def read(atom: Any) -> Variable:
            if isinstance(atom, jex.Literal):
                aval: Any = atom.aval
                return constant(np.asarray(atom.val, aval.dtype), aval)
            return env[atom]

        for eqn in inner.eqns:
            operands = tuple(read(v) for v in eqn.invars)
            grouped = _INLINED.get(eqn.primitive)
            # A function of a library that JAX has traced before has no line of the user's.
            source, traceback = _line(eqn.source_info), eqn.source_info.traceback
            if source is None and around is not None:
                source, traceback = around
            around_this = source, traceback
            meaning = _meaning(eqn.primitive)
            if grouped is not None:
                outs = descend(eqn.params[grouped], operands, around_this)
            elif meaning is not None:
                call = functools.partial(meaning, **eqn.params)
                avals = [v.aval for v in operands]
                outs = descend(jax.make_jaxpr(call)(*avals), operands, around_this)
            else:
                outs = [fresh(v.aval) for v in eqn.outvars]
                where = source or "an unknown line"
                operands = tuple(
                    descend(jax.make_jaxpr(_wide)(v.aval), (v,), around_this)[0]
                    if n in _indices(eqn.primitive, len(operands)) and _is_narrow(v.aval.dtype)
                    else v
                    for n, v in enumerate(operands)
                )
                equations.append(
                    Equation(eqn.primitive, eqn.params, operands, tuple(outs), where, traceback)
                )
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in inner.outvars]

    def descend(inner: Any, args: Sequence[Variable], around: Any = None) -> list[Variable]:
        opened, consts = open_jaxpr(inner)
        return walk(opened, [constant(c, jax.typeof(c)) for c in consts], args, around)

    inputs = tuple(fresh(v.aval) for v in open_jaxpr(jaxpr)[0].invars)
    outputs = descend(jaxpr, inputs)
    return Flat(tuple(equations), inputs, tuple(outputs), constants)


# --- effects ------------------------------------------------------------------------------------


def without_prints(jaxpr: Any) -> tuple[Any, list[tuple[str, str]]]:
    """A jaxpr without the operations that have an effect and no result, such as `jax.debug.print`, in its
    loops and branches too; and all others that have an effect: the primitive's name and the user's line.

    Mutable arrays are among these. JAX has no public function that makes values of them.
    """
    others: list[tuple[str, str]] = []

    def stripped(jaxpr: Any, around: str) -> Any:
        if isinstance(jaxpr, tuple | list):
            return type(jaxpr)(stripped(member, around) for member in jaxpr)
        if not isinstance(jaxpr, jex.ClosedJaxpr | jex.Jaxpr):
            return jaxpr
        opened, _ = open_jaxpr(jaxpr)
        equations = []
        for eqn in opened.eqns:
            if eqn.effects and eqn.primitive in _prints():
                continue
            if eqn.effects:
                line = _line(eqn.source_info) or around
                if inner_jaxprs(eqn):
                    params = {name: stripped(value, line) for name, value in eqn.params.items()}
                    eqn = eqn.replace(params=params, effects=frozenset())
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
    from jax.experimental import checkify

    effects = (
        lambda x: jax.debug.print("{}", x),
        lambda x: jax.debug.callback(lambda x: None, x),
        lambda x: checkify.check(x, ""),
    )
    jaxprs = [open_jaxpr(jax.make_jaxpr(effect)(True))[0] for effect in effects]
    return frozenset(jaxpr.eqns[-1].primitive for jaxpr in jaxprs)


def bcoo_dot_general_primitive() -> Primitive | None:
    """The product of a sparse and a dense array; `None` as long as nothing imported it."""
    return getattr(sys.modules.get("jax.experimental.sparse"), "bcoo_dot_general_p", None)


def _indices(primitive: Primitive, count: int) -> range:
    """Which operands of a primitive, that has so many, are indices."""
    if primitive is prims.dynamic_slice_p:
        return range(1, count)
    if primitive is prims.dynamic_update_slice_p:
        return range(2, count)
    if primitive in (*_INDEXED, scatter_sub_p, bcoo_dot_general_primitive()):
        return range(1, 2)
    return range(0)


_INDEXED = {
    *(prims.gather_p, prims.scatter_p, prims.scatter_add_p, prims.scatter_mul_p),
    *(prims.scatter_min_p, prims.scatter_max_p),
}


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 32


def _wide(index: Any) -> jax.Array:
    """An index in a type that holds the size of any axis.

    XLA compares an index with sizes in the index's own type: on CPUs a scatter into 300 rows by
    `uint8` leaves out what lies beyond 300 - 256.
    """
    return jax.lax.convert_element_type(index, jnp.int32)


def _meaning(primitive: Primitive) -> Callable | None:
    """The function that a marker of braintrace stands for, such as the product of its `etp_mm`."""
    braintrace = sys.modules.get("braintrace")
    if isinstance(primitive, getattr(braintrace, "ETPPrimitive", ())):
        return primitive.impl
    return None


def _line(info: Any) -> str | None:
    """The user's line; `None` where JAX knows of none."""
    text = source_info_util.summarize(info)
    return text if text and text != "unknown" else None


def inner_jaxprs(equation: Any) -> list[Any]:
    """The jaxprs in the parameters of an equation, of `flatten` or of JAX: bodies of loops, branches,
    functions with own derivatives."""
    values = itertools.chain.from_iterable(
        value if isinstance(value, tuple | list) else (value,) for value in equation.params.values()
    )
    return [value for value in values if is_jaxpr(value)]


def is_jaxpr(value: Any) -> bool:
    """Whether a value is a traced function, with its constants or without."""
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)


def primitive_of(function: Callable, *args: Any) -> Primitive | None:
    """The primitive of a function that is a single operation, for those that JAX does not list."""
    equations = flatten(jax.make_jaxpr(function)(*args)).equations
    return equations[0].primitive if len(equations) == 1 else None


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, whether it is closed, open, or both in one class."""
    if isinstance(jaxpr, jex.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


scatter_sub_p: Primitive | None = None  # until it is found
_pair = np.ones((1, 2), np.float32)
split_p = primitive_of(lambda x: jax.lax.split(x, (1, 1), 1), _pair)
stack_p = primitive_of(lambda x, y: jnp.stack([x, y]), _pair, _pair)
tile_p = primitive_of(lambda x: jnp.tile(x, (2, 1)), _pair)
optimization_barrier_p = primitive_of(jax.lax.optimization_barrier, _pair)
_mesh = jax.sharding.AbstractMesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
_sharded = jax.shard_map(
    lambda x, y: x + y, mesh=_mesh, in_specs=(jax.P(), jax.P("d")), out_specs=jax.P("d")
)
shard_map_p = primitive_of(_sharded, _pair, _pair)
# in its body, what is the same on all devices is made to vary before it meets what varies
pvary_p = jax.make_jaxpr(_sharded)(_pair, _pair).eqns[0].params["jaxpr"].eqns[0].primitive
_first = jax.lax.ScatterDimensionNumbers((), (0,), (0,))
scatter_sub_p = primitive_of(
    lambda x, i, u: jax.lax.scatter_sub(x, i, u, _first),
    _pair[0],
    np.zeros(1, "int32"),
    _pair[0, 0],
)


# --- evaluation ---------------------------------------------------------------------------------

Rule = Callable[[Equation, list[Any]], "list[Any] | None"]


def evaluate(
    equations: Iterable[Equation], env: dict[Variable, Any], rule: Rule | None = None
) -> dict[Variable, Any]:
    """Run equations over `env` (in place). `rule` may take over an equation, or return `None`."""
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
        if any(v in needed for v in eqn.outputs):
            kept.append(eqn)
            if eqn not in stops:
                needed.update(v for v in eqn.inputs if v not in known)
    return tuple(reversed(kept))


def propagate(
    equations: Iterable[Equation],
    seeds: Iterable[Variable],
    stop: Callable[[Equation, Variable], bool] = lambda eqn, v: False,
) -> set[Variable]:
    """The seeds, and all that depends on them through floats; not what an equation stops at an output."""
    reached = set(seeds)
    for eqn in equations:
        if any(v in reached for v in eqn.inputs):
            reached.update(v for v in eqn.outputs if v.is_float and not stop(eqn, v))
    return reached


def partition(
    equations: Iterable[Equation], known: Iterable[Variable]
) -> tuple[list[Equation], list[Equation], set[Variable]]:
    """The equations that read known variables alone, the others, and all that is known then."""
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


# --- control flow -------------------------------------------------------------------------------


def scan_counts(equation: Equation) -> tuple[int, int]:
    """How many operands of a `scan` are constants and how many its carry, in this order."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def unrolled(equation: Equation) -> Flat:
    """A `scan` as the operations of its iterations, one after another.

    What depends on the loop's constants alone is computed once.
    """
    count_consts, count_carry = scan_counts(equation)
    length, reverse = equation.params["length"], equation.params["reverse"]
    body = flatten(equation.params["jaxpr"])
    fixed = [*body.constants, *body.inputs[:count_consts]]
    invariant, varying, _ = partition(body.equations, fixed)

    def run(*operands: Any) -> list[Any]:
        env: dict[Variable, Any] = dict(body.constants)
        env.update(zip(body.inputs[:count_consts], operands, strict=False))
        evaluate(invariant, env)
        carry = list(operands[count_consts : count_consts + count_carry])
        xs = operands[count_consts + count_carry :]
        ys: list[Any] = [None] * length
        for t in reversed(range(length)) if reverse else range(length):
            slices = [jax.lax.index_in_dim(x, t, 0, keepdims=False) for x in xs]
            bindings = zip(body.inputs[count_consts:], [*carry, *slices], strict=True)
            values = evaluate(varying, {**env, **dict(bindings)})
            out = [values[v] for v in body.outputs]
            carry, ys[t] = out[:count_carry], out[count_carry:]
        return [*carry, *(jnp.stack(several) for several in zip(*ys, strict=True))]

    return canonicalise(run, [v.aval for v in equation.inputs])


def is_checkpointed_loop(equation: Equation) -> bool:
    """Whether a `custom_vjp` is a loop of Equinox, whose backward rule is the loop's derivative.

    The rule is told by the object that it closes over, and not by a name that others may have too.
    """
    loop_rule = _checkpointed_loop()
    if loop_rule is None or equation.primitive is not prims.custom_vjp_call_p:
        return False
    waiting, seen = [equation.params.get("bwd")], set()
    while waiting:
        value = waiting.pop()
        if value is loop_rule:
            return True
        if value is None or id(value) in seen or len(seen) > 64:
            continue
        seen.add(id(value))
        waiting += [getattr(value, name, None) for name in ("f", "func", "__wrapped__")]
        waiting += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    return False


@functools.cache
def _checkpointed_loop() -> Any:
    """The object behind Equinox's checkpointed loops; `None` where this version has none."""
    try:
        from equinox.internal._loop import checkpointed
    except ImportError:
        return None
    return getattr(checkpointed, "_checkpointed_while_loop", None)


def is_step_function(equation: Equation) -> bool:
    """Whether an operation has a derivative of its own and no true one: a spike.

    Its own rule is `custom_jvp` or `custom_vjp`; inside, no float output depends on a float input
    through floats alone.
    """
    inner = equation.params.get("call_jaxpr")
    if equation.primitive not in (prims.custom_jvp_call_p, prims.custom_vjp_call_p):
        return False
    flat = flatten(inner)
    touched = propagate(flat.equations, (v for v in flat.inputs if v.is_float))
    floats = [v for v in flat.outputs if v.is_float]
    return bool(floats) and not any(v in touched for v in floats)


def linear_transpose(function: Callable, *primals: Any) -> Callable:
    """`jax.linear_transpose`, also where operations are in between that are linear, as they are on values,
    and have no transpose: in backward rules, `stop_gradient`, a name for checkpoints, functions with a
    derivative of their own."""
    flat = _of_leaves(function, primals)
    moving = propagate(flat.equations, flat.inputs)
    if not any(
        _has_no_transpose(eqn) and any(v in moving for v in eqn.inputs) for eqn in flat.equations
    ):
        return jax.linear_transpose(function, *primals)
    results = jax.tree.structure(jax.eval_shape(function, *primals))
    on_values = lambda *args: results.unflatten(_on_values(flat, jax.tree.leaves(args)))
    return jax.linear_transpose(on_values, *primals)


def _of_leaves(function: Callable, primals: Any) -> Flat:
    """A function of PyTrees in canonical form: of their leaves."""
    leaves, treedef = jax.tree.flatten(primals)
    return canonicalise(
        lambda *args: jax.tree.leaves(function(*jax.tree.unflatten(treedef, args))), leaves
    )


def _adds_a_constant(flat: Flat, inputs: Sequence[Any]) -> tuple[bool, list[Any]]:
    """Whether something that may not be zero is added to what depends on the arguments of a program, by any
    operation that puts values together. JAX transposes such a program as if it were linear.

    `inputs` says of each argument whether it is `_MOVING`, or its value, or that it is `None`: another one,
    whose value is not known. Likewise of each result.
    """
    values = {v: a for v, a in flat.constants.items() if not isinstance(a, Tracer)}
    values.update(
        (v, a)
        for v, a in zip(flat.inputs, inputs, strict=True)
        if a is not None and a is not _MOVING
    )
    moving = {v for v, a in zip(flat.inputs, inputs, strict=True) if a is _MOVING}
    alone, _, known = partition(flat.equations, values)

    def state(v: Variable) -> Any:
        if v in moving or v not in known:
            return _MOVING if v in moving else None
        if v not in values:
            with jax.ensure_compile_time_eval():
                evaluate(prune(alone, [v], known=values), values)
        return np.asarray(values[v])

    for eqn in flat.equations:
        if not any(v in moving for v in eqn.inputs):
            continue
        bodies = []
        if eqn.primitive is prims.cond_p:
            bodies = [(flatten(branch), eqn.inputs[1:]) for branch in eqn.params["branches"]]
        elif eqn.primitive is prims.scan_p:
            bodies = [(unrolled(eqn), eqn.inputs)]
        elif eqn.primitive in (prims.custom_jvp_call_p, prims.custom_vjp_call_p):
            bodies = [(flatten(eqn.params["call_jaxpr"]), eqn.inputs)]
        found = [_adds_a_constant(body, [state(v) for v in operands]) for body, operands in bodies]
        if any(adds for adds, _ in found):
            return True, []
        if not bodies:
            if eqn.primitive in _JOINS and _joins([state(v) for v in eqn.inputs if v.is_float]):
                return True, []
            moving.update(v for v in eqn.outputs if v.is_float)
        for place, v in enumerate(eqn.outputs):
            states = [out[place] for _, out in found]
            if _joins(states):
                return True, []
            if any(one is _MOVING for one in states):
                moving.add(v)
    return False, [state(v) for v in flat.outputs]


_MOVING = object()
_JOINS = {
    *(prims.add_p, prims.add_jaxvals_p, prims.sub_p, prims.select_n_p, prims.concatenate_p),
    *(prims.pad_p, prims.dynamic_update_slice_p, prims.scatter_p, prims.scatter_add_p),
    *(scatter_sub_p, stack_p, prims.complex_p),
}


def _joins(states: Sequence[Any]) -> bool:
    """Whether something that depends on arguments is put together with what may not be zero."""
    others = [one for one in states if one is not _MOVING]
    return len(others) < len(states) and any(one is None or np.any(one) for one in others)


def _has_no_transpose(equation: Equation) -> bool:
    if equation.primitive in _ONLY_VALUES or not equation.outputs:
        return True
    bodies = [flatten(inner) for inner in inner_jaxprs(equation)]
    return any(_has_no_transpose(eqn) for body in bodies for eqn in body.equations)


_ONLY_VALUES = {
    *(prims.stop_gradient_p, prims.name_p),
    *(prims.custom_jvp_call_p, prims.custom_vjp_call_p, prims.scatter_p),
}


def _on_values(flat: Flat, operands: Sequence[Any]) -> list[Any]:
    """The results of a program, computed by operations that have transposes if they are linear."""

    def rule(eqn: Equation, values: list[Any]) -> list[Any] | None:
        if not _has_no_transpose(eqn):
            return None
        if eqn.primitive in (prims.stop_gradient_p, prims.name_p):
            return values
        if (
            eqn.primitive is prims.scatter_p
        ):  # its transpose is of indices alone that JAX knows to be unique
            operand, indices, updates = values
            scatter = lambda *moving: eqn.bind(moving[0], indices, moving[1])[0]
            zeros = jnp.zeros_like(operand), jnp.zeros_like(updates)
            return [jax.jvp(scatter, zeros, (operand, updates))[1]]
        if not eqn.outputs:  # it prints
            return []
        if eqn.primitive is prims.cond_p:
            branches = [functools.partial(_of, flatten(b)) for b in eqn.params["branches"]]
            return jax.lax.switch(jnp.asarray(values[0], jnp.int32), branches, *values[1:])
        if eqn.primitive is prims.scan_p:
            return _on_values(unrolled(eqn), values)
        if "call_jaxpr" in eqn.params:
            return _on_values(flatten(eqn.params["call_jaxpr"]), values)
        return None

    env = {**flat.constants, **dict(zip(flat.inputs, operands, strict=True))}
    evaluate(flat.equations, env, rule)
    return [env[v] for v in flat.outputs]


def _of(flat: Flat, *operands: Any) -> list[Any]:
    return _on_values(flat, operands)


nonlinear_p = Primitive("nonlinear_backward_rule")
"""Stands for the tangent map of a `custom_vjp` that has none, as its rule is not linear."""
nonlinear_p.multiple_results = True
nonlinear_p.def_abstract_eval(lambda *tangents, avals: list(avals))


def forward_mode(equation: Equation) -> Callable[..., list[Any]]:
    """The operation as a function that `jax.jvp` accepts.

    A `custom_vjp` has no forward rule: its tangent map is the transpose of its backward rule. Where
    that is not linear in the cotangent, `nonlinear_p` stands for the tangent map.
    """
    if equation.primitive is not prims.custom_vjp_call_p:
        return lambda *values: equation.bind(*values)
    outs = [i for i, v in enumerate(equation.outputs) if v.is_float]

    @jax.custom_jvp
    def call(*values):
        return equation.bind(*values)

    def call_jvp(values, tangents):
        # Only what moves: a rule may refuse the derivative by what it closes over.
        zero = jax.custom_derivatives.SymbolicZero
        moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, zero)]

        def on_moving(*moving_values):
            full = list(values)
            for i, value in zip(moving, moving_values, strict=True):
                full[i] = value
            out = equation.bind(*full)
            return [out[i] for i in outs]

        primal_out, pullback = jax.vjp(on_moving, *(values[i] for i in moving))
        moving_tangents = tuple(tangents[i] for i in moving)
        try:
            rule = _of_leaves(lambda cts: pullback(cts), (primal_out,))
            adds, results = _adds_a_constant(rule, [_MOVING] * len(rule.inputs))
            if adds or _joins([_MOVING, *results]):
                raise ValueError("what is added to a linear function makes it another")
            pushforward = linear_transpose(lambda cts: pullback(cts), primal_out)
            moved = pushforward(moving_tangents)[0]
        except Exception:  # whatever the transpose of an operation that is not linear raises
            avals = tuple(jax.typeof(o) for o in primal_out)
            with source_info_util.user_context(equation.traceback):
                moved = nonlinear_p.bind(*moving_tangents, avals=avals)
        out = equation.bind(*values)
        full: list[Any] = [np.zeros(o.shape, jax.dtypes.float0) for o in out]
        for i, value in zip(outs, moved, strict=True):
            full[i] = value
        return out, full

    call.defjvp(call_jvp, symbolic_zeros=True)
    return call


__all__ = [
    "Equation",
    "Flat",
    "Primitive",
    "Tracer",
    "Variable",
    "bcoo_dot_general_primitive",
    "canonicalise",
    "etp_p",
    "evaluate",
    "flatten",
    "forward_mode",
    "inner_jaxprs",
    "is_checkpointed_loop",
    "is_float",
    "is_jaxpr",
    "is_step_function",
    "linear_transpose",
    "manual_axes",
    "mark",
    "nonlinear_p",
    "open_jaxpr",
    "optimization_barrier_p",
    "partition",
    "primitive_of",
    "prims",
    "promoting",
    "propagate",
    "prune",
    "pvary_p",
    "result_type",
    "scan_counts",
    "scatter_sub_p",
    "shard_map_p",
    "split_p",
    "stack_p",
    "tile_p",
    "unrolled",
    "without_derivative",
    "without_prints",
]
