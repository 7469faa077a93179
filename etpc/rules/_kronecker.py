"""Unbiased approximations of RTRL by Kronecker factors: KF-RTRL, and OK."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ..algorithms import Algorithm, Check, checked_rank, checked_seed
from ..ops import Kind
from ._random_pairs import KroneckerFactor, KroneckerSum


@dataclasses.dataclass(frozen=True, repr=False)
class KFRTRL(Algorithm):
    """Kronecker-factored RTRL: the influence of a weight matrix, nothing cut, as one pair of factors.

    The pair a [I], which is like the data, and b [S O] is moved through the transition of all states at each step, and
    the pair of the step is added to it by random signs: `(c1 p1 a + c2 p2 x) (c1 b / p1 + c2 F / p2)^T`, whose mean is
    the sum of both. A weight without data, such as a bias, has its whole influence.

    **Cost:** I + S·O numbers for a weight matrix, and the time of moving S·O numbers by S x S transitions.

    - `seed`: of the signs.

    **Source:** Mujika, Meier and Steger, "Approximating real-time recurrent learning with random Kronecker factors",
    NeurIPS 2018, algorithm 1. Deviation: what the steps of a window add is exact in the gradient of that window, while
    it is mixed already in the source; each weight matrix has a pair of its own, and all have the same signs.
    """

    seed: int = dataclasses.field(default=0, kw_only=True, repr=False)
    name: ClassVar[str] = "kf_rtrl"
    cut: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, Check]] = {"seed": checked_seed}

    def trace_form(self, kind: Kind) -> KroneckerFactor:
        return KroneckerFactor(self.seed)


@dataclasses.dataclass(frozen=True, repr=False)
class OK(Algorithm):
    """Optimal Kronecker sums: the influence of a weight matrix, nothing cut, as R pairs of factors.

    Each step adds a pair, and R + 1 pairs are reduced to R at random, such that the mean is their sum and the variance
    is the least of all unbiased reductions to R pairs.

    **Cost:** R·(I + S·O) numbers for a weight matrix, and a singular value decomposition for each step and matrix.

    - `rank`: R, an int >= 1.
    - `seed`: of the signs.

    **Source:** Benzing et al., "Optimal Kronecker-sum approximation of real time recurrent learning", ICML 2019 (arXiv
    1902.03993), theorem 1. Deviation: as for [`KFRTRL`][etpc.KFRTRL].
    """

    rank: int = 2
    seed: int = dataclasses.field(default=0, kw_only=True, repr=False)
    name: ClassVar[str] = "ok"
    cut: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, Check]] = {"rank": checked_rank, "seed": checked_seed}

    def trace_form(self, kind: Kind) -> KroneckerSum:
        return KroneckerSum(self.rank, self.seed)
