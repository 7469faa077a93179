"""All that `etpc` needs of JAX beyond its public transformations. No other module imports JAX's internals.

What JAX can do is asked of the objects that it offers, and not of its version number.

- `_marker`: the primitive behind `etpc.mark`, and values whose derivative is refused, or is added to.
- `_program`: the program that the stages read (`Variable`, `Equation`, `Flat`), and how it is evaluated.
- `params`: the parameters of JAX's equations, by name. A new version of JAX changes these.
- `_listed`: primitives that `jax.extend` does not list.
- `primitives`: what is known of each primitive.
- `_meanings`: what operations stand for, those of other packages too, once they are registered.
- `_flatten`: from a function or a jaxpr to such a program.
- `_control`: loops, and functions with derivatives of their own.
- `_loops`: loops of unknown length, with a reverse mode.
- `mlir`: modules of StableHLO, read by the bindings of MLIR in `jax.extend`; it is imported where C is written.
- `_backward`: the tangent map of a `custom_vjp`, which JAX does not have.
"""

from jax.core import Tracer
from jax.extend.core import primitives as prims

from . import params
from ._backward import forward_mode, linear_transpose, nonlinear_p
from ._control import is_checkpointed_loop, is_spike, of_one_example, unrolled
from ._flatten import canonicalise, flatten, in_place_of, without_prints
from ._listed import (
    bcoo_dot_general_primitive,
    optimization_barrier_p,
    primitive_of,
    pvary_p,
    scatter_sub_p,
    shard_map_p,
    split_p,
    stack_p,
    tile_p,
)
from ._loops import ColumnTangents, is_unbounded, with_loops_reversed, with_reverse_mode
from ._marker import derivative_added, etp_p, mark, without_derivative
from ._meanings import FOREIGN, register_meaning
from ._program import (
    Equation,
    Flat,
    Primitive,
    Rule,
    Variable,
    by_parts,
    evaluate,
    is_complex,
    is_float,
    is_key,
    leading,
    manual_axes,
    of_real_parts,
    partition,
    promoting,
    propagate,
    prune,
    real_avals,
    real_parts,
    replaced,
    result_type,
)

__all__ = [
    "FOREIGN",
    "ColumnTangents",
    "Equation",
    "Flat",
    "Primitive",
    "Rule",
    "Tracer",
    "Variable",
    "bcoo_dot_general_primitive",
    "by_parts",
    "canonicalise",
    "derivative_added",
    "etp_p",
    "evaluate",
    "flatten",
    "forward_mode",
    "in_place_of",
    "is_checkpointed_loop",
    "is_complex",
    "is_float",
    "is_key",
    "is_spike",
    "is_unbounded",
    "leading",
    "linear_transpose",
    "manual_axes",
    "mark",
    "nonlinear_p",
    "of_one_example",
    "of_real_parts",
    "optimization_barrier_p",
    "params",
    "partition",
    "primitive_of",
    "prims",
    "promoting",
    "propagate",
    "prune",
    "pvary_p",
    "real_avals",
    "real_parts",
    "register_meaning",
    "replaced",
    "result_type",
    "scatter_sub_p",
    "shard_map_p",
    "split_p",
    "stack_p",
    "tile_p",
    "unrolled",
    "with_loops_reversed",
    "with_reverse_mode",
    "without_derivative",
    "without_prints",
]
