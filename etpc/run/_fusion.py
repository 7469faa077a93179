"""Refuses the one release of jaxlib that computes wrong Jacobians of normalised values on CPUs.

In jaxlib 0.10.2 an XLA fusion for CPUs gives wrong numbers where vectors of cotangents are an outer
axis of the derivative of `v * g(reduce(v))`, from some size on: layer, RMS and group norms. That is how
the Jacobians of a step are read. The releases before and after it are right, and so is that one
without the fusion.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import Code, UnsupportedError
from ..schedule import Target

AFFECTED = "0.10.2"
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def refuse_wrong_fusion(target: Target) -> None:
    """**Raises** `UnsupportedError` on jaxlib 0.10.2 and a CPU, unless the fusion is turned off."""
    if importlib.metadata.version("jaxlib") != AFFECTED or target.platform != "cpu":
        return
    if not _fuses_correctly():
        raise UnsupportedError(
            f"jaxlib {AFFECTED} computes wrong gradients of models with a norm or a softmax, and is refused. "
            "This is because an XLA fusion of that release gives wrong Jacobians of normalised values on "
            f"CPUs. Install another release, as by `pip install 'jaxlib!={AFFECTED}'`, or set "
            f"XLA_FLAGS={FLAG} before JAX starts, which turns the fusion off.",
            code=Code.REFUSED_JAXLIB,
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
