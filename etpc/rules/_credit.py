"""The directions of state space along which credit arrives, and the rule that follows them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from ..algorithms import RTRL, Algorithm, Backprop, Choice, Context
from ..errors import AlgorithmError, checked_count
from ..forms import Carry, Full, LowRank, Trace, size_of
from ..ops import summed
from ._directions import Directions
from ._orthonormal import orthonormal

SPARE = 4
"""The moment is estimated along twice as many directions as are followed, and along so many more."""
SQUARINGS = 8
"""`tr((A^T A)^p)^(1/2p)` with p = 2^8 is an upper bound of the norm of A, and at most 1.003 times the norm for q = 4.
It must be near, as its error is multiplied from window to window."""
OLD = float(jnp.finfo(jnp.float32).eps) ** 0.5
"""The weight of the old directions in the new ones. It is the same in all dtypes, so that float32 follows the same
directions as float64."""
GROWTH = 10.0
"""How large the product of the bounds of the last transitions of the virtual states may become, over any number of
windows."""

COARSE = 10
"""Units of states are powers of two to the power of this. So states of sizes from 1/32 to 32, as in most networks,
have the unit one, and only states whose sizes differ by a thousand are scaled."""

Q = "It is the number of directions of credit that are followed."

FAR = 15
"""The exponent of two by which the size of a state differs from its unit before it gets another one."""


@dataclasses.dataclass(frozen=True)
class CreditRTRL(Algorithm):
    """D-RTRL with full windows, and what it cuts along the directions in which credit arrives.

    Credit, the derivative of later losses by a hidden state, lies in few directions of state space.
    Beside the trace of D-RTRL, a weight from which influence escapes carries its whole influence on
    `q` of them. It passes from unit to unit and from layer to layer. The directions
    follow the credit as windows of `value_and_grad` or `etpc.online` bring it; calls of the program
    and `scan` leave them as they are. Where nothing escapes it is D-RTRL. It follows at most as many
    directions as there are states. As the growth of influence along them is bounded, that is not exact
    either: the exact rule is [`RTRL`][etpc.RTRL]. Where the simulation of a network becomes unstable, as
    that of conductances in steps that are too long, directions along which influence overflows are
    dropped, and `credit_lost` counts them.

    - `q`: the number of directions. `program.credit_lost(carry)` says how much of the energy of the credit
        lies in none of them.
    - `rank`: R, of the traces from which influence escapes: R pairs of factors, O(R (I + (m + q) O))
        numbers for a weight matrix. `None` for whole traces, O((m + q) I O).

    **Source:** none that we know for the rule. Near are certified low-rank RTRL (Yi and Wang,
    preprint, SSRN 7070381), which takes its directions from the influence matrix of a dense network,
    and Benzing et al., arXiv 1902.03993.
    """

    q: int = 4
    rank: int | None = 4
    backprop: Backprop = dataclasses.field(default="full", kw_only=True)
    name: ClassVar[str] = "credit"
    checks: ClassVar[Mapping[str, Any]] = {
        "q": lambda name, value: checked_count(name, value, "an int >= 1", Q, AlgorithmError),
        "rank": RTRL.checks["rank"],
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backprop != "full":
            raise AlgorithmError(
                'CreditRTRL has backprop="full": the credit that its directions are of is that '
                "which passes through all units."
            )

    def choose(self, context: Context) -> Choice:
        directions = CreditSubspace(min(self.q, context.analysis.hidden.size))
        forms: dict[int, Trace | None] = {op.number: Full() for op in context.ops}
        for op in context.ops:
            if self.rank is not None and op.kind.data is not None and context.escapes(op):
                site, low = context.site(op), LowRank(self.rank)
                site = dataclasses.replace(site, block=site.block + directions.count)
                if size_of(low, site) < size_of(Full(), site):
                    forms[op.number] = low
        return Choice(forms, extension=directions)


class Shared(NamedTuple):
    """What the batch shares, by name; in a carry it is a plain tuple."""

    basis: Float[Array, "q S"]
    """V, in units of the states."""
    u: Float[Array, "k S"]
    h: Float[Array, "k k"]
    """The moment is `U^T H U`."""
    counts: Float[Array, "2"]
    """The number of windows with credit, and of all windows since the first of these."""
    energy: Float[Array, ""]
    """The running mean of `|lambda_0|^2`."""
    outside: Float[Array, ""]
    """The part of it that lies in no direction of V."""
    sizes: Float[Array, " S"]
    """The sizes of the states in the last windows."""
    units: Float[Array, " S"]
    """Zero for states that were always zero."""


@dataclasses.dataclass(frozen=True)
class CreditSubspace(Directions):
    """The leading directions of the second moment of the credit of all later windows.

    Credit `lambda_0` at the start of windows lies in few directions of state space. Its moment follows
    the recursion of an observability Gramian,

        M' = M + r [<lambda_0 lambda_0^T / |lambda_0|> + gamma <Lambda^T (V M V^T) Lambda> - M]

    with the mean over the batch, the first term divided by lengths so that the few examples with the largest
    credit do not choose the directions alone, and the trace of the second term at most gamma times that of
    `V M V^T`. So that M lasts for as many windows with credit however rare they are, `r` is `rate`
    times the share of windows that had some, and at least 1 / windows. M is kept on a few more
    directions than are followed, `M = U^T H U`. The directions of the next window are one step of
    subspace iteration, `V' = orth(M V^T)^T`.

    A direction that grows by more than 1 / precision in one window is dropped, as its influence would be little but
    rounding; `lost` counts it.

    Each example carries the largest product of the bounds of the norms of any number of the last transitions of the
    virtual states, which are scaled down where it would otherwise become more than 10; and which directions were not
    dropped in the last window.

    States may have different units, so credit is measured in units of the states' own sizes, as `lambda s`. Here s is
    the power of 2^10 next to the size of a state at the end of the first window in which it is not zero. It is
    chosen again where the size has become more than 2^15 times as large or as small. What is followed is `V / s`.
    """

    count: int
    rate: float = 0.05
    ahead: float = 0.9

    @property
    def left_out(self) -> str:
        many = "direction" if self.count == 1 else f"{self.count} directions"
        return f"followed along {many} of credit"

    def init(self, size: int, batch: int, dtype: Any) -> tuple[Carry, Carry]:
        spare = min(size, 2 * self.count + SPARE)
        # drawn in one dtype, so that float32 begins with the directions that float64 does
        drawn = jax.random.normal(jax.random.key(0), (size, spare), jnp.float32)
        basis, _ = orthonormal(drawn.astype(dtype).T)
        zero = jnp.zeros((), dtype)
        moment, counts = jnp.zeros((spare, spare), dtype), jnp.zeros(2, dtype)
        sizes = jnp.zeros((2, size), dtype)
        shared = Shared(basis[: self.count], basis, moment, counts, zero, zero, *sizes)
        return tuple(shared), (jnp.ones(batch, dtype), jnp.ones((batch, self.count), dtype))

    def lost(self, shared: Carry) -> float | None:
        energy, outside = float(Shared(*shared).energy), float(Shared(*shared).outside)
        return max(outside, 0.0) / energy if energy > 0 else None

    def ends(
        self, shared: Carry, each: Carry, states: Float[Array, "B S"]
    ) -> tuple[Float[Array, "1 q S"], Carry]:
        """Also the directions in units of the states, the states' sizes and these units."""
        v, u, h, _, _, _, sizes, old_units = Shared(*shared)
        largest = jnp.max(jnp.abs(states), 0)
        largest = jnp.where(jnp.isfinite(largest), largest, sizes)
        fallen = jnp.where(
            largest > 0, jnp.sqrt(largest) * jnp.sqrt(sizes), (1 - self.rate) * sizes
        )
        sizes = jnp.maximum(largest, fallen)
        off = jnp.abs(jnp.log2(jnp.where(sizes > 0, sizes, 1) / _or_one(old_units))) > FAR
        units = jnp.where((old_units > 0) & ~off, old_units, _units(sizes))
        old_units = jnp.where(old_units > 0, old_units, units)
        u, h = _in_other_units(u, h, _or_one(units) / _or_one(old_units))
        size = jnp.trace(h)
        with jax.default_matmul_precision("highest"):
            iterated = ((v @ u.T) @ h.T) @ u / jnp.where(size > 0, size, 1)
            # the old directions are kept where no credit has come from others
            basis, _ = orthonormal(iterated + OLD * v)
        basis = jnp.where((size > 0) & jnp.isfinite(basis).all(), basis, v)
        return (basis / _or_one(units)[None])[None], (basis, u, h, sizes, old_units, units)

    def keeps(
        self, shared: Carry, each: Carry, starts: Float[Array, "B q S"]
    ) -> Bool[Array, "B q"]:
        """The directions that do not grow by more than 1 / precision, beyond which all is rounding."""
        known = Shared(*shared)
        sizes = jnp.maximum(known.sizes, _or_one(known.units))
        largest = jnp.max(jnp.abs(starts * sizes[None, None]), -1)
        return largest * jnp.finfo(starts.dtype).eps < 1

    def basis(self, shared: Carry, each: Carry) -> Float[Array, "1 q S"]:
        known = Shared(*shared)
        return (known.basis / _or_one(known.units)[None])[None]

    def coefficients(
        self, shared: Carry, each: Carry, credit: Float[Array, "B S"]
    ) -> Float[Array, "B q"]:
        known = Shared(*shared)
        return (credit * _or_one(known.units)[None]) @ known.basis.T

    def advance(
        self,
        shared: Carry,
        each: Carry,
        chosen: Carry,
        starts: Float[Array, "B q S"],
        credit: Float[Array, "B S"] | None,
        push: Callable[[Array], Array],
    ) -> tuple[Float[Array, "B q q"], Carry, Carry]:
        basis, u, h, sizes, old_units, units = chosen
        v, _, _, counts, energy, outside, _, _ = Shared(*shared)
        moment, (growth, kept) = (u, h, counts, energy, outside), each
        keeps = jnp.isfinite(starts).all(-1)
        starts = jnp.where(keeps[..., None], starts, 0)
        transition = (starts * _or_one(old_units)[None, None]) @ v.T
        growth = growth * _norm_bound(transition)
        transition = transition / jnp.maximum(growth / GROWTH, 1)[:, None, None]
        growth = jnp.clip(growth, 1, GROWTH)
        each = growth, keeps.astype(kept.dtype)
        if credit is not None:
            scaled = starts * _or_one(units)[None, None], credit * _or_one(units)[None]
            moment = self._with_credit(v, kept, basis, moment, *scaled)
        return transition, (basis, *moment, sizes, units), each

    def _with_credit(
        self,
        v: Float[Array, "q S"],
        kept: Float[Array, "B q"],
        ends: Float[Array, "q S"],
        moment: Carry,
        starts: Float[Array, "B q S"],
        credit: Float[Array, "B S"],
    ) -> Carry:
        """The moment and the energies after a window with this credit."""
        u, h, counts, mean_energy, mean_outside = moment
        batch = credit.shape[0]
        with jax.default_matmul_precision("highest"):
            image = ends @ u.T
            inner = image @ h @ image.T  # V' M V'^T
            propagated = jnp.einsum("pq,bqs->bps", inner, starts)
            predicted = jnp.sum(propagated * starts) / batch
            squares = jnp.sum(credit**2, 1)
            energy = jnp.sum(squares) / batch
            lengths = jnp.sqrt(squares)
            by_length = credit / jnp.where(lengths > 0, lengths, 1)[:, None]
            has_credit = energy > 0
            bound = jnp.trace(inner) / jnp.where(predicted > 0, predicted, 1)
            scale = self.ahead * jnp.minimum(1, bound)
            counts = counts + jnp.stack([has_credit, jnp.ones_like(has_credit)])
            rate = jnp.maximum(self.rate * counts[0], 1) / counts[1]

            def times(a: Float[Array, "S k"]) -> Float[Array, "S k"]:
                ahead = summed("bqs,bqk->sk", propagated, starts @ a)
                new = (summed("bs,bk->sk", by_length, credit @ a) + scale * ahead) / batch
                return (1 - rate) * (u.T @ (h @ (u @ a))) + rate * new

            basis, _ = orthonormal(times(u.T).T)
            image = basis @ times(basis.T)
            symmetric = (image + image.T) / 2
        # squares of credit may overflow where the moment does not
        valid = jnp.isfinite(symmetric).all() & jnp.isfinite(energy) & (jnp.trace(symmetric) > 0)
        outside = energy - jnp.sum(kept * (credit @ v.T) ** 2) / batch
        weight = jnp.where(has_credit, jnp.maximum(self.rate, 1 / jnp.maximum(counts[0], 1)), 0)
        new = (
            basis,
            symmetric,
            counts,
            mean_energy + weight * (energy - mean_energy),
            mean_outside + weight * (outside - mean_outside),
        )
        return tuple(jnp.where(valid, a, b) for a, b in zip(new, moment, strict=True))


def _units(sizes: Float[Array, " S"]) -> Array:
    """The powers of 2^10 next to the sizes of states; zero for those that are zero."""
    exponent = jnp.log2(jnp.where(sizes > 0, sizes, 1)) / COARSE
    return jnp.where(sizes > 0, jnp.exp2(COARSE * jnp.round(exponent)), 0)


def _in_other_units(
    u: Float[Array, "k S"], h: Float[Array, "k k"], ratio: Float[Array, " S"]
) -> tuple[Array, Array]:
    """The moment `U^T H U` where units have become `ratio` times as large; none where that overflows."""

    def moved() -> tuple[Array, Array]:
        basis, triangle = orthonormal(u * ratio[None])
        new = triangle.T @ h @ triangle
        finite = jnp.isfinite(new).all() & jnp.isfinite(basis).all()
        return jnp.where(finite, basis, u), jnp.where(finite, new, 0)

    return lax.cond(jnp.any(ratio != 1), moved, lambda: (u, h))


def _or_one(units: Float[Array, " S"]) -> Array:
    """Units, and one for states that were always zero."""
    return jnp.where(units > 0, units, 1)


def _norm_bound(a: Float[Array, "B q q"]) -> Float[Array, " B"]:
    """A bound of the largest singular value of each matrix."""
    largest = jnp.max(jnp.abs(a), (1, 2))
    a = a / jnp.where(largest > 0, largest, 1)[:, None, None]
    power, log = a.swapaxes(-1, -2) @ a, jnp.zeros(a.shape[0], a.dtype)
    for n in range(SQUARINGS + 1):
        power = power if n == 0 else power @ power
        trace = jnp.trace(power, axis1=-2, axis2=-1)
        log = log + jnp.log(trace) / 2**n
        power = power / jnp.where(trace > 0, trace, 1)[:, None, None]
    return largest * jnp.exp(log / 2)
