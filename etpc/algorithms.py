"""Learning rules, as data: what is cut, which trace each kind of weight operation carries.

An algorithm is a frozen record. The compiler asks it for `cut`, for the form of the trace of each
kind of operation (`trace_form`), and for the window. [`register_algorithm`][etpc.algorithms.
register_algorithm] gives one a name.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from ._errors import AlgorithmError, InputTypeError, checked_count, whole_number
from .ops import Kind
from .traces import CreditSubspace, Decay, Directions, Full, LowRank, Trace

InWindow = Literal["truncated", "exact"]


TraceForm = Trace

PROBED = 64
"""The rank from which a lower one is chosen where that is left open."""


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What every learning rule has.

    - `window`: how many steps of `value_and_grad` are processed at once; `"auto"` chooses.
    - `in_window`: how credit flows inside a window. `"truncated"` cuts as the trace does, and its
        gradient does not depend on the window. `"exact"` is plain reverse mode inside the window.
    - `lookback`: K, the number of steps, the window among them, through which the credit of its
        losses goes back exactly; no less than the window. Windows are exact then, and the traces
        carry what is older. The inputs and states of K - W steps are kept, and run again each window,
        with the weights of now at the states as they were.
    """

    window: int | Literal["auto"] = dataclasses.field(default="auto", kw_only=True)
    in_window: InWindow = dataclasses.field(default="truncated", kw_only=True)
    lookback: int | None = dataclasses.field(default=None, kw_only=True, repr=False)
    name: ClassVar[str] = "algorithm"
    cut: ClassVar[bool] = True
    """Whether the data of operations that mix positions is held constant in the trace."""

    @property
    def reach(self) -> int | None:
        """In how many steps a trace follows influence; `None` for any number."""
        return None

    def __post_init__(self) -> None:
        window = self.window
        if isinstance(window, str):
            if window != "auto":
                raise AlgorithmError(f'window must be "auto" or an int >= 1, not {window!r}.')
        else:
            why = "It is the number of steps that are processed at once."
            count = checked_count("window", window, '"auto" or an int >= 1', why, AlgorithmError)
            object.__setattr__(self, "window", count)
        if self.lookback is not None:
            why = "It is the number of steps through which credit goes back exactly."
            count = checked_count(
                "lookback", self.lookback, "None or an int >= 1", why, AlgorithmError
            )
            if self.window != "auto" and count < self.window:
                raise AlgorithmError(
                    f"lookback={count} is less than window={self.window}. Credit goes back through the "
                    "whole window anyway: pass a larger lookback= or a smaller window=."
                )
            object.__setattr__(self, "lookback", count)
            object.__setattr__(self, "in_window", "exact")
        if self.in_window not in ("truncated", "exact"):
            raise AlgorithmError(
                f'in_window must be "truncated" or "exact", not {self.in_window!r}.'
            )

    def trace_form(self, kind: Kind) -> TraceForm | None:
        """The form of the trace of a kind of weight operation; `None` for no trace."""
        return Full()

    def directions(self, size: int) -> Directions | None:
        """Along which the influence is followed that the cut drops, of a program with `size` states."""
        return None

    def __str__(self) -> str:
        fields = sorted(dataclasses.fields(self), key=lambda f: f.kw_only is True)
        shown = [f for f in fields if f.repr or getattr(self, f.name) != f.default]
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in shown)
        return f"{type(self).__name__}({settings})"


@dataclasses.dataclass(frozen=True)
class D_RTRL(Algorithm):
    """Diagonal real-time recurrent learning: the trace of the cut step.

    Each operation that mixes positions has its data held constant, so a trace holds the states that
    an output reaches without passing through another weight: O(weights x block) numbers. The
    gradient equals that of BPTT where no influence escapes, which the program says for each weight.

    **Source:** Wang et al., Nature Communications 2026, doi:10.1038/s41467-026-68453-w. Deviation:
    the block of states is derived from the program and is not assumed to be diagonal; every path is
    counted once also where a state reads another's new value.
    """

    name: ClassVar[str] = "d_rtrl"


@dataclasses.dataclass(frozen=True)
class ES_D_RTRL(Algorithm):
    """D-RTRL with factored traces (pp-prop): O(I + O m) numbers for a weight matrix, times a rank.

    With a decay `a`, `eps_x' = a eps_x + x`, `eps_f' = a D eps_f + (1 - a) F`, and the gradient of
    step t is `eps_x (L eps_f) / (1 - a^t)`. With a rank R, the trace is R pairs of factors: D acts
    on the second ones, exactly; each window adds its own pairs, and then the sum is reduced to its
    R leading modes, the best approximation of that rank. Inside a window nothing is reduced, so the
    gradient is nearer to that of D-RTRL the longer the window. Element-wise weights keep the full
    trace, which is no larger, and so does a weight whose trace cannot have a higher rank.

    - `decay_or_rank`: a float in (0, 1], the decay; or an int >= 1, the rank; or `"auto"`: where the
        program proves that a trace has a low rank, as that of a leaky readout has, that rank, which
        is exact; and elsewhere the smallest rank that keeps `error`, measured on `sample` of
        [`etpc.compile`][].
    - `error`: with `"auto"`, how far a trace may be from the best one, relative to its norm, by one
        reduction; in (0, 1). The gradient is nearer, as it is a sum over steps and examples.
    - `certificate`: with a rank, carry a bound of what was left out, for `program.certificate`.

    **Source:** Wang et al. 2026, as above, for the decay form. `eps_f` is stored without the factor
    `1 - a`, so that a = 1 is allowed. In that work an int renames a decay; here it is a rank.
    Low-rank influence matrices: Benzing et al., "Optimal Kronecker-sum approximation of real time
    recurrent learning", arXiv 1902.03993.
    """

    decay_or_rank: float | int | str = 0.99
    error: float = dataclasses.field(default=0.05, kw_only=True, repr=False)
    certificate: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    name: ClassVar[str] = "es_d_rtrl"

    def __post_init__(self) -> None:
        super().__post_init__()
        value = _plain_number(self.decay_or_rank)
        object.__setattr__(self, "decay_or_rank", value)
        object.__setattr__(self, "error", _plain_number(self.error))
        if not 0 < self.error < 1:
            raise AlgorithmError(f"error must lie in (0, 1), and is {self.error!r}.")
        if self.certificate and isinstance(value, float):
            raise AlgorithmError(
                "certificate=True needs a rank: what a decay leaves out has no such bound."
            )
        if value == "auto":
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputTypeError(
                'decay_or_rank must be a float in (0, 1] (a decay), an int >= 1 (a rank) or "auto", '
                f"not {value!r}."
            )
        if isinstance(value, int) and value < 1:
            raise AlgorithmError(
                f"decay_or_rank={value} is an int and so a rank, which must be at least 1. For "
                "a decay pass a float in (0, 1]."
            )
        if isinstance(value, float) and not (math.isfinite(value) and 0 < value <= 1):
            raise AlgorithmError(
                f"A decay must lie in (0, 1], and decay_or_rank is {value}. For a rank pass an int, "
                "such as ES_D_RTRL(2)."
            )

    def trace_form(self, kind: Kind) -> TraceForm:
        if kind.data is None:
            return Full()
        value = self.decay_or_rank
        if isinstance(value, float):
            return Decay(value)
        rank = PROBED if isinstance(value, str) else value
        return LowRank(rank, certificate=self.certificate)


@dataclasses.dataclass(frozen=True)
class CreditRTRL(Algorithm):
    """D-RTRL with exact windows, and what it cuts along the directions in which credit arrives.

    Credit, the derivative of later losses by a hidden state, lies in few directions of state space.
    Beside the trace of D-RTRL, a weight from which influence escapes carries that influence's
    projection on `q` of them. It passes from unit to unit and from layer to layer. The directions
    follow the credit as windows of `value_and_grad` or `etpc.online` bring it; calls of the program
    and `scan` leave them as they are. Where nothing escapes it is D-RTRL; with as many directions as
    there are states, RTRL.

    - `q`: the number of directions.
    - `rank`: R, of the traces from which influence escapes: R pairs of factors, O(R (I + (m + q) O))
        numbers for a weight matrix. `None` for whole traces, O((m + q) I O).
    - `rate`, `ahead`, `clip`: as of [`CreditSubspace`][etpc.traces.CreditSubspace].

    **Source:** none that we know for the rule. Near are certified low-rank RTRL (Yi and Wang,
    preprint, SSRN 7070381), which takes its directions from the influence matrix of a dense network,
    and Benzing et al., arXiv 1902.03993.
    """

    q: int = 4
    rank: int | None = 4
    rate: float = dataclasses.field(default=0.05, kw_only=True, repr=False)
    ahead: float = dataclasses.field(default=0.9, kw_only=True, repr=False)
    clip: bool = dataclasses.field(default=True, kw_only=True, repr=False)
    in_window: InWindow = dataclasses.field(default="exact", kw_only=True)
    name: ClassVar[str] = "credit"

    def directions(self, size: int) -> Directions | None:
        return CreditSubspace(self.q, self.rate, self.ahead, self.clip).settle(size)

    def trace_form(self, kind: Kind) -> TraceForm:
        return Full() if kind.data is None or self.rank is None else LowRank(self.rank)


@dataclasses.dataclass(frozen=True)
class RTRL(Algorithm):
    """Real-time recurrent learning: nothing is cut, and every gradient equals that of BPTT.

    The trace of a weight holds all states that it can ever reach: O(weights x S) numbers.

    **Source:** Williams and Zipser, Neural Computation 1(2), 1989.
    """

    name: ClassVar[str] = "rtrl"
    cut: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class TBPTT(Algorithm):
    """Truncated backpropagation through time: no trace, and credit of each window through K steps.

    The gradient of each parameter is that through the last `steps` steps alone. `TBPTT(1)` is the
    gradient of the current step (SnAp-0).

    - `steps`: K, at least 1.
    - `every`: W, the window: how many steps are processed at once, at most K. The credit of the
        losses of each window goes back through K steps, so windows overlap where W < K ("rolling").
        By default K: the sequence is cut into blocks.

    **Source:** Williams and Peng, "An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories", Neural Computation 2(4), 1990: BPTT(h; h') with h = `steps` and
    h' = `every`.
    """

    steps: int
    every: int | None = None
    window: int | Literal["auto"] = dataclasses.field(default="auto", init=False, repr=False)
    in_window: InWindow = dataclasses.field(default="exact", init=False, repr=False)
    lookback: int | None = dataclasses.field(default=None, init=False, repr=False)
    name: ClassVar[str] = "tbptt"

    def __post_init__(self) -> None:
        why = "It is the number of steps that credit goes back through."
        steps = checked_count("steps", self.steps, "an int >= 1", why)
        every = steps
        if self.every is not None:
            why = "It is the number of steps that are processed at once."
            every = checked_count("every", self.every, "None or an int >= 1", why)
            object.__setattr__(self, "every", every)
        if every > steps:
            raise AlgorithmError(
                f"every={every} is more than steps={steps}: the credit of a loss would not reach the "
                "start of its own window."
            )
        for field, value in (("steps", steps), ("window", every), ("lookback", steps)):
            object.__setattr__(self, field, value)
        super().__post_init__()

    def trace_form(self, kind: Kind) -> TraceForm | None:
        return None

    def __str__(self) -> str:
        return f"TBPTT({self.steps}{'' if self.every is None else f', every={self.every}'})"


@dataclasses.dataclass(frozen=True)
class SnAp(Algorithm):
    """The sparse n-step approximation of RTRL: nothing is cut, influence is kept within n steps.

    The trace of a weight holds the states that it reaches in fewer than `n` transitions after the
    step in which it is used, and the transitions among those alone. It is exact where a weight
    reaches no other states, and equals RTRL for a large enough `n`.

    - `n`: the number of steps, at least 1.

    **Source:** Menick et al., "Practical real time recurrent learning with a sparse approximation",
    ICLR 2021, section 3.
    """

    n: int = 1
    name: ClassVar[str] = "snap"
    cut: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        count = whole_number(self.n)
        if count is None:
            raise InputTypeError(f"n must be an int >= 1, not {self.n!r}.")
        object.__setattr__(self, "n", count)
        if count < 1:
            raise AlgorithmError(
                f"n must be at least 1, and is {self.n}. It is the number of steps within which "
                "influence is kept."
            )

    @property
    def reach(self) -> int | None:
        return self.n


@dataclasses.dataclass(frozen=True)
class Auto(Algorithm):
    """For each weight operation the most exact trace that fits into a memory limit.

    Nothing is cut as long as it fits; then the data of operations is cut, as in D-RTRL, one after
    the other, each time where that saves most; then the largest traces are kept to fewer and fewer
    modes, down to rank 1. The limit is `memory` of [`etpc.compile`][]. The printed program says
    what was chosen, and why.
    """

    name: ClassVar[str] = "auto"


def _plain_number(value: Any) -> Any:
    """A scalar of NumPy or JAX as the Python number that it is, so that it prints and hashes so."""
    count = whole_number(value)
    if count is not None:
        return count
    if getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating):
        return float(value)
    return value


_NAMES: dict[str, type[Algorithm]] = {}


def register_algorithm(algorithm: type[Algorithm]) -> type[Algorithm]:
    """Let `etpc.compile` find an algorithm by its `name`.

    **Raises** `ValueError` where the name is taken.
    """
    if algorithm.name in _NAMES:
        raise ValueError(f"an algorithm named {algorithm.name!r} is registered already")
    _NAMES[algorithm.name] = algorithm
    return algorithm


def registered() -> dict[str, type[Algorithm]]:
    """The algorithms that have a name, by name."""
    return dict(_NAMES)


def resolve(algo: Algorithm | str) -> Algorithm:
    """The algorithm that an argument `algo` means."""
    if isinstance(algo, Algorithm):
        return algo
    if isinstance(algo, str):
        if algo not in _NAMES:
            known = ", ".join(repr(name) for name in _NAMES)
            raise AlgorithmError(
                f"There is no algorithm {algo!r}. Known names: {known}. A name has no settings: "
                "pass an algorithm for those, such as etpc.ES_D_RTRL(0.9)."
            )
        return _NAMES[algo]()
    hint = " Call it: D_RTRL()." if isinstance(algo, type) and issubclass(algo, Algorithm) else ""
    raise InputTypeError(f"algo must be an algorithm or its name, not {algo!r}.{hint}")


for _algorithm in (D_RTRL, ES_D_RTRL, CreditRTRL, RTRL, SnAp, Auto):
    register_algorithm(_algorithm)

__all__ = [
    "D_RTRL",
    "ES_D_RTRL",
    "RTRL",
    "TBPTT",
    "Algorithm",
    "Auto",
    "CreditRTRL",
    "Decay",
    "Full",
    "LowRank",
    "SnAp",
    "TraceForm",
    "register_algorithm",
    "registered",
    "resolve",
]
