"""Refuses the one release of jaxlib that computes wrong Jacobians of normalised values on CPUs.

In jaxlib 0.10.2 an XLA fusion for CPUs gives wrong numbers where vectors of cotangents are an outer
axis of the derivative of `v * g(reduce(v))`, from some size on: layer, RMS and group norms. That is how
the Jacobians of a step are read. The releases before and after it are right, and so is that one
without the fusion.
"""

import functools
import importlib.metadata
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from .._errors import UnsupportedError
from .._jax import Equation, flatten, params, prims
from ..analyse import Analysis

AFFECTED = "0.10.2"
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def refuse_wrong_fusion(analysis: Analysis) -> None:
    """Check that XLA computes the Jacobians of this step correctly here.

    **Raises** `UnsupportedError` on jaxlib 0.10.2 and a CPU, for a step that reduces over values.
    """
    if importlib.metadata.version("jaxlib") != AFFECTED or jax.default_backend() != "cpu":
        return
    reduction = first_reduction(analysis)
    if reduction is None or _fuses_correctly():
        return
    raise UnsupportedError(
        f"jaxlib {AFFECTED} would compute a wrong gradient of this model, which has a reduction "
        f"({reduction.primitive.name}) at {reduction.source}. This is because an XLA fusion of that "
        "release gives wrong Jacobians of normalised values on CPUs. Install another release, as by "
        f"`pip install 'jaxlib!={AFFECTED}'`, or set XLA_FLAGS={FLAG} before JAX starts, which turns "
        "the fusion off."
    )


_REDUCTIONS = frozenset(
    getattr(prims, name + "_p")
    for name in (
        *(
            "reduce_sum",
            "reduce_max",
            "reduce_min",
            "reduce_prod",
            "reduce_window_sum",
            "reduce_window_max",
        ),
        *("reduce", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
    )
    if hasattr(prims, name + "_p")
)


def first_reduction(analysis: Analysis) -> Equation | None:
    """The first operation of the step that sums, or reduces in another way, over computed values."""
    split = analysis.split
    alone = (
        {v for eqn in split.prefix for v in eqn.outputs} | set(split.weights) | set(split.others)
    )
    for eqn in split.body:
        products = [v for v in eqn.inputs if v.is_float and v not in alone]
        if eqn.primitive is prims.dot_general_p and len(products) == 2:
            return eqn
        if eqn.primitive in _REDUCTIONS or _reduces(params.inner_jaxprs(eqn)):
            return eqn
    return None


def _reduces(jaxprs: Iterable[object]) -> bool:
    """Whether an operation inside one of these programs is a reduction."""
    return any(
        eqn.primitive in {*_REDUCTIONS, prims.dot_general_p} or _reduces(params.inner_jaxprs(eqn))
        for jaxpr in jaxprs
        for eqn in flatten(jaxpr).equations
    )


@functools.cache
def _fuses_correctly() -> bool:
    """Whether XLA computes the smallest function right, of 1024 rows, that the fusion computes wrongly."""
    rows = np.linspace(-2.0, 2.0, 1024 * 8, dtype=np.float32).reshape(-1, 8)

    def jacobian(h: jax.Array) -> jax.Array:
        _, pull = jax.vjp(jax.vmap(lambda v: v * jax.lax.rsqrt((v * v).mean() + 0.1)), h)
        return jax.vmap(lambda e: pull(jnp.broadcast_to(e, h.shape))[0])(jnp.eye(8, dtype=h.dtype))

    with jax.ensure_compile_time_eval():
        compiled = jax.jit(jacobian)
        in_one, in_parts = compiled(rows), [compiled(part) for part in np.split(rows, 64)]
    return bool(np.allclose(in_one, np.concatenate(in_parts, 1), atol=1e-4))
