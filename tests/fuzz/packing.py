"""A model whose hidden states are stored in another way. A learning rule is of values, and does not depend on that."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.fuzz.grammar import DrawnModel


def _order(v):
    return np.random.default_rng(v.size).permutation(v.size)


def _padded(v):
    return jnp.concatenate([jnp.ones(1, v.dtype), v, jnp.zeros(1, v.dtype)])


def _where(v):
    return np.arange(v.size) % 2 == 0


def _as_complex(v):
    return lax.complex(*jnp.split(jnp.pad(v, (0, v.size % 2)), 2))


# How a vector is stored, and how it is read again.
WAYS = {
    "rolled": (lambda v: jnp.roll(v, 1), lambda s: jnp.roll(s, -1)),
    "in two": (lambda v: (v[: v.size // 2], v[v.size // 2 :]), jnp.concatenate),
    "unstacked": (lambda v: [v[i] for i in range(v.size)], jnp.stack),
    "in a column": (lambda v: v[::-1, None], lambda s: s[::-1, 0]),
    "gathered": (lambda v: v[_order(v)], lambda s: s[np.argsort(_order(s))]),
    "scattered": (lambda v: jnp.zeros_like(v).at[_order(v)].set(v), lambda s: s[_order(s)]),
    "padded": (_padded, lambda s: s[1:-1]),
    "by where": (
        lambda v: [jnp.where(_where(v), v, 0), jnp.where(_where(v), 0, v)],
        lambda s: jnp.where(_where(s[0]), *s),
    ),
    "clipped": (lambda v: jnp.clip(v, -jnp.inf, jnp.inf), lambda s: s),
    "times one": (lambda v: v * jnp.ones((), v.dtype), lambda s: s),
    "in complex numbers": (_as_complex, lambda s: jnp.concatenate([s.real, s.imag])),
}
REAL, WIDE = ("clipped", "in complex numbers"), (np.float32, np.float64)
"""Ways for some dtypes; states of others are rolled."""
# The same with copies, so that there is more to carry.
COPIES = {
    "whole and in part": (
        lambda v: (v[::-1], v[:2]),
        lambda s: jnp.concatenate([s[1], s[0][::-1][2:]]),
    ),
    "twice": (lambda v: jnp.stack([v, v], 1), lambda s: jnp.concatenate([s[:1, 0], s[1:, 1]])),
}


class Packed(eqx.Module):
    """A drawn model with its float states packed: each leaf in one of some ways, in turn from a number."""

    model: DrawnModel
    ways: tuple[str, ...] = eqx.field(static=True)
    number: int = eqx.field(static=True)

    def init_state(self):
        return self.pack(self.model.init_state())

    def pack(self, state):
        leaves = enumerate(jax.tree.leaves(state), self.number)
        pack = lambda i, a: self._way(i, a)[0](a.ravel())
        return [pack(i, a) if eqx.is_inexact_array(a) else a for i, a in leaves]

    def unpack(self, stored):
        like, tree = jax.tree.flatten(self.model.init_state())
        leaves = zip(like, stored, strict=True)
        return jax.tree.unflatten(
            tree,
            [
                self._way(i, a)[1](s)[: a.size].reshape(a.shape) if eqx.is_inexact_array(a) else s
                for i, (a, s) in enumerate(leaves, self.number)
            ],
        )

    def _way(self, i, a):
        way = self.ways[i % len(self.ways)]
        return (WAYS | COPIES)["rolled" if way in REAL and a.dtype not in WIDE else way]

    def __call__(self, x, state):
        y, new = self.model(x, self.unpack(state))
        return y, self.pack(new)
