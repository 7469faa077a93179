"""Primitives that `jax.extend` does not list, found by tracing functions that use them."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import params
from ._program import Primitive


def primitive_of(function: Callable[..., Any], *args: Any) -> Primitive | None:
    """The primitive of a function that is a single operation, for those that JAX does not list."""
    eqns = jax.make_jaxpr(function)(*args).eqns
    while len(eqns) == 1 and (inner := params.grouped(eqns[0])) is not None:
        eqns = inner.eqns
    return eqns[0].primitive if len(eqns) == 1 else None


_pair = np.ones((1, 2), np.float32)
split_p = primitive_of(lambda x: jax.lax.split(x, (1, 1), 1), _pair)
stack_p = primitive_of(lambda x, y: jnp.stack([x, y]), _pair, _pair)
tile_p = primitive_of(lambda x: jnp.tile(x, (2, 1)), _pair)
optimization_barrier_p = primitive_of(jax.lax.optimization_barrier, _pair)
_rows = jax.lax.ScatterDimensionNumbers((), (0,), (0,))
scatter_sub_p = primitive_of(
    lambda x, i, u: jax.lax.scatter_sub(x, i, u, _rows), _pair[0], np.zeros(1, "int32"), _pair[0, 0]
)
_mesh = jax.sharding.AbstractMesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
_sharded = jax.shard_map(
    lambda x, y: x + y, mesh=_mesh, in_specs=(jax.P(), jax.P("d")), out_specs=jax.P("d")
)
shard_map_p = primitive_of(_sharded, _pair, _pair)
# in its body, what is the same on all devices is made to vary before it meets what varies
_body = params.inner_jaxprs(jax.make_jaxpr(_sharded)(_pair, _pair).eqns[0])[0]
pvary_p: Primitive = _body.eqns[0].primitive


def bcoo_dot_general_primitive() -> Primitive | None:
    """The product of a sparse and a dense array; `None` as long as nothing imported it."""
    return getattr(sys.modules.get("jax.experimental.sparse"), "bcoo_dot_general_p", None)
