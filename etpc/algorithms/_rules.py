"""The learning rules."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._errors import AlgorithmError, InputTypeError, checked_count, whole_number
from ..ops import Kind
from ..traces import CreditSubspace, Decay, Full, LowRank, Rounded, Stepwise, Trace
from ._algorithm import Algorithm, Choice, Context, InWindow, TraceForm
from ._ranks import asked_rank, settle_ranks

LEFT_OUT = 0.05
"""Of the energy of credit, where the number of directions is chosen."""
STEPWISE = 2
"""Up to so many numbers in all traces of element-wise weights, for each entry of the step's Jacobian, they are read at
each step under a decay. Beyond, as in an LSTM, whose four gates act on the same states, it is faster to pass credit
back through those entries."""


@dataclasses.dataclass(frozen=True, repr=False)
class Whole(Algorithm):
    """A rule whose traces are whole, and may be carried in the dtype that `trace_dtype` names."""

    trace_dtype: DTypeLike | None = dataclasses.field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "trace_dtype", _checked_dtype(self.trace_dtype))

    def trace_form(self, kind: Kind) -> TraceForm | None:
        return Full() if self.trace_dtype is None else Rounded()

    @property
    def main(self) -> dict[str, Any]:
        settings = {} if self.trace_dtype is None else {"trace_dtype": self.trace_dtype}
        return super().main | settings


@dataclasses.dataclass(frozen=True, repr=False)
class D_RTRL(Whole):
    """Diagonal real-time recurrent learning: the trace of the cut step.

    Each operation that mixes positions has its data held constant, so a trace holds the states that
    an output reaches without passing through another weight: O(weights x block) numbers. The
    gradient equals that of BPTT where no influence escapes, which the program says for each weight.

    - `trace_dtype`: the dtype in which traces are carried between windows. `None`: that of their arithmetic,
        at least float32. `"bfloat16"`: half the bytes; traces are read, moved and added to in float32 and
        rounded after each window, so no gradient through a trace is exact, and what a step adds to a trace
        that decays slowly may be lost.

    **Source:** Wang et al., Nature Communications 2026, doi:10.1038/s41467-026-68453-w. Deviation:
    the block of states is derived from the program and is not assumed to be diagonal; every path is
    counted once also where a state reads another's new value.
    """

    name: ClassVar[str] = "d_rtrl"


@dataclasses.dataclass(frozen=True, repr=False)
class ES_D_RTRL(Algorithm):
    """D-RTRL with factored traces (pp-prop): O(I + O m) numbers for a weight matrix, times a rank.

    With a decay `a`, `eps_x' = a eps_x + x`, `eps_f' = a D eps_f + (1 - a) F`, and the gradient of
    step t is `eps_x (L eps_f) / (1 - a^t)`. With a rank R, the trace is R pairs of factors: D acts
    on the second ones, exactly; each window adds its own pairs, and then the sum is reduced to its
    R leading modes, the best approximation of that rank. Inside a window nothing is reduced, so the
    gradient is nearer to that of D-RTRL the longer the window. Element-wise weights keep the full
    trace, which is no larger, and so does a weight whose trace cannot have a higher rank. Where outputs are proved to
    share their transitions, and that takes no more memory, the trace is a sum of filtered inputs, which are exact.

    - `decay`: a float in (0, 1]; 0.99 where neither it nor a rank is given.
    - `rank`: an int >= 1; or `"auto"`: filtered inputs where they are proved, elsewhere the smallest rank that keeps
        `error`, measured on `sample` of [`etpc.compile`][].
    - `decay_or_rank`: either, without a name: a float is a decay, an int or `"auto"` a rank.
    - `error`: with `rank="auto"`, how far a trace may be from the best one, relative to its norm, by one
        reduction; in (0, 1). The gradient is nearer, as it is a sum over steps and examples.
    - `certificate`: with a rank, carry a bound of what was left out, for `program.certificate`.

    **Source:** Wang et al. 2026, as above, for the decay form. `eps_f` is stored without the factor
    `1 - a`, so that a = 1 is allowed. In that work an int renames a decay; here it is a rank.
    Low-rank influence matrices: Benzing et al., "Optimal Kronecker-sum approximation of real time
    recurrent learning", arXiv 1902.03993.
    """

    decay_or_rank: float | int | str | None = dataclasses.field(default=None, repr=False)
    decay: float | None = dataclasses.field(default=None, kw_only=True, compare=False, repr=False)
    rank: int | Literal["auto"] | None = dataclasses.field(
        default=None, kw_only=True, compare=False, repr=False
    )
    error: float = dataclasses.field(default=0.05, kw_only=True, repr=False)
    certificate: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    name: ClassVar[str] = "es_d_rtrl"

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments = {
            name: value
            for name in ("decay_or_rank", "decay", "rank")
            if (value := _plain_number(getattr(self, name))) is not None
        }
        decay, rank = self._checked(arguments)
        set_field = object.__setattr__
        set_field(self, "decay", decay)
        set_field(self, "rank", rank)
        set_field(self, "decay_or_rank", rank if decay is None else decay)
        set_field(self, "error", checked_error(self.error))
        if self.certificate and rank is None:
            raise AlgorithmError(
                "certificate=True needs a rank: what a decay leaves out has no such bound."
            )

    @property
    def main(self) -> dict[str, Any]:
        return {"rank": self.rank} if self.decay is None else {"decay": self.decay}

    @staticmethod
    def _checked(arguments: dict[str, Any]) -> tuple[float | None, Any]:
        """The decay or the rank of the arguments that were given."""
        if not arguments:
            return 0.99, None
        if len(set(map(repr, arguments.values()))) > 1:
            shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise AlgorithmError(f"ES_D_RTRL takes a decay or a rank, and not {shown}.")
        ((name, value),) = list(arguments.items())[:1]
        if value == "auto" and name != "decay":
            return None, value
        if name == "decay" and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            expected = {
                "decay_or_rank": 'a float in (0, 1] (a decay), an int >= 1 (a rank) or "auto"',
                "decay": "a float in (0, 1]",
                "rank": 'an int >= 1 or "auto"',
            }
            raise InputTypeError(f"{name} must be {expected[name]}, not {value!r}.")
        if isinstance(value, float) and name == "rank":
            raise InputTypeError(
                f'rank must be an int >= 1 or "auto", not {value!r}. For a decay pass decay={value!r}.'
            )
        if isinstance(value, int):
            return None, checked_rank(name, value)
        if not (math.isfinite(value) and 0 < value <= 1):
            raise AlgorithmError(
                f"A decay must lie in (0, 1], and {name} is {value}. For a rank pass an int, "
                "such as ES_D_RTRL(rank=2)."
            )
        return value, None

    def trace_form(self, kind: Kind) -> TraceForm:
        if kind.data is None:
            return Full()
        if self.decay is not None:
            return Decay(self.decay)
        return LowRank(asked_rank(self.rank), certificate=self.certificate)

    @property
    def bounded(self) -> bool:
        return self.certificate

    def choose(self, context: Context) -> Choice:
        choice = super().choose(context)
        if self.rank is not None:
            return settle_ranks(
                context, choice, self.rank, self.error, self.in_window == "truncated"
            )
        if self.in_window == "exact":
            return choice
        direct = [op for op in context.ops if choice.forms[op.number] == Full()]
        sites = [context.site(op) for op in direct]
        if (
            sum(site.block * site.count for site in sites)
            > STEPWISE * context.analysis.transition.nnz
        ):
            return choice
        return Choice({**choice.forms, **{op.number: Stepwise() for op in direct}})


@dataclasses.dataclass(frozen=True)
class CreditRTRL(Algorithm):
    """D-RTRL with exact windows, and what it cuts along the directions in which credit arrives.

    Credit, the derivative of later losses by a hidden state, lies in few directions of state space.
    Beside the trace of D-RTRL, a weight from which influence escapes carries its whole influence on
    `q` of them. It passes from unit to unit and from layer to layer. The directions
    follow the credit as windows of `value_and_grad` or `etpc.online` bring it; calls of the program
    and `scan` leave them as they are. Where nothing escapes it is D-RTRL; with as many directions as
    there are states, RTRL. Where the simulation of a network becomes unstable, as that of conductances in
    steps that are too long, the influence along the directions may grow until it overflows, and D-RTRL's
    stays finite.

    - `q`: the number of directions; or `"auto"`: the smallest one for which less than 5 % of the energy
        of the credit lies in no direction, measured at compile time on `sample` of
        [`etpc.compile`][] with random cotangents of the outputs, as no loss is known there.
        `program.credit_lost(carry)` says how much it is in training.
    - `rank`: R, of the traces from which influence escapes: R pairs of factors, O(R (I + (m + q) O))
        numbers for a weight matrix. `None` for whole traces, O((m + q) I O).
    - `rate`, `ahead`, `clip`: as of [`CreditSubspace`][etpc.traces.CreditSubspace].

    **Source:** none that we know for the rule. Near are certified low-rank RTRL (Yi and Wang,
    preprint, SSRN 7070381), which takes its directions from the influence matrix of a dense network,
    and Benzing et al., arXiv 1902.03993.
    """

    q: int | Literal["auto"] = 4
    rank: int | None = 4
    rate: float = dataclasses.field(default=0.05, kw_only=True, repr=False)
    ahead: float = dataclasses.field(default=0.9, kw_only=True, repr=False)
    clip: bool = dataclasses.field(default=True, kw_only=True, repr=False)
    in_window: InWindow = dataclasses.field(default="exact", kw_only=True)
    name: ClassVar[str] = "credit"
    follows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_window != "exact":
            raise AlgorithmError(
                'CreditRTRL has in_window="exact": the credit that its directions are of is that '
                "which passes through all units."
            )
        set_field = object.__setattr__
        if self.q != "auto":
            why = "It is the number of directions of credit that are followed."
            set_field(
                self, "q", checked_count("q", self.q, 'an int >= 1 or "auto"', why, AlgorithmError)
            )
        if self.rank is not None:
            set_field(self, "rank", checked_rank("rank", self.rank))
        for name in ("rate", "ahead"):
            value = _plain_number(getattr(self, name))
            if not (
                isinstance(value, int | float) and 0 <= value <= 1 and (value or name == "ahead")
            ):
                raise AlgorithmError(f"{name} must lie in (0, 1], and is {value!r}.")
            set_field(self, name, float(value))

    def choose(self, context: Context) -> Choice:
        followed = [op for op in context.ops if context.escapes(op)]
        low = Full() if self.rank is None else LowRank(self.rank)
        forms: dict[int, Trace | None] = {op.number: Full() for op in context.ops}
        forms |= {op.number: low for op in followed if op.kind.data is not None}
        q, why = self.q, {}
        if q == "auto" and not followed:
            q = 1
        elif q == "auto":
            if context.credit is None:
                raise AlgorithmError(
                    'q="auto" measures in how many directions credit lies. Pass sample= to '
                    "etpc.compile, the inputs of some steps of one example, or name a number."
                )
            squares = context.credit(dataclasses.replace(self, q=1, rank=None)) ** 2
            outside = 1 - np.cumsum(squares) / squares.sum()
            q = int(np.argmax(outside < LEFT_OUT)) + 1
            text = f"{q} directions leave out {max(outside[q - 1], 0):.2g} of the energy of credit"
            why = {op.number: f"{text} on the sample, of {LEFT_OUT:g}" for op in followed}
        directions = CreditSubspace(q, self.rate, self.ahead, self.clip)
        return Choice(forms, why, None, directions.settle(context.analysis.hidden.size))


@dataclasses.dataclass(frozen=True, repr=False)
class RTRL(Whole):
    """Real-time recurrent learning: nothing is cut, and every gradient equals that of BPTT.

    The trace of a weight holds all states that it can ever reach: O(weights x S) numbers. With a rank
    R, it is kept as R pairs of factors, O(R (I + S O)) numbers for a weight matrix: after each window
    it is reduced to its R leading modes. Nothing is cut, so what is left out is that reduction.

    - `rank`: `None` for the whole trace; an int >= 1; or `"auto"`, as of [`ES_D_RTRL`][etpc.ES_D_RTRL].
    - `error`: with `rank="auto"`, as there.
    - `certificate`: with a rank, carry a bound of what was left out, for `program.certificate`.
    - `trace_dtype`: without a rank, as of [`D_RTRL`][etpc.D_RTRL].

    **Source:** Williams and Zipser, Neural Computation 1(2), 1989. Of a low rank: Benzing et al.,
    "Optimal Kronecker-sum approximation of real time recurrent learning", arXiv 1902.03993; there the
    reduction is random and unbiased, here it is the best one of its rank.
    """

    rank: int | Literal["auto"] | None = None
    error: float = dataclasses.field(default=0.05, kw_only=True, repr=False)
    certificate: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    name: ClassVar[str] = "rtrl"
    cut: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "error", checked_error(self.error))
        if self.rank is not None and self.rank != "auto":
            object.__setattr__(self, "rank", checked_rank("rank", self.rank))
        if self.certificate and self.rank is None:
            raise AlgorithmError("certificate=True needs a rank: nothing is left out without one.")
        if self.rank is not None and self.trace_dtype is not None:
            raise AlgorithmError(
                f"trace_dtype={self.trace_dtype!r} is for whole traces, and those with a rank are pairs "
                "of factors, which are small and are reduced after each window. Leave one of them out."
            )

    def trace_form(self, kind: Kind) -> TraceForm | None:
        if kind.data is None or self.rank is None:
            return super().trace_form(kind)
        return LowRank(asked_rank(self.rank), certificate=self.certificate)

    @property
    def bounded(self) -> bool:
        return self.certificate

    def choose(self, context: Context) -> Choice:
        choice = super().choose(context)
        return (
            choice
            if self.rank is None
            else settle_ranks(context, choice, self.rank, self.error, self.in_window == "truncated")
        )

    @property
    def main(self) -> dict[str, Any]:
        return {name: value for name, value in super().main.items() if value is not None}


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

    @property
    def in_blocks(self) -> bool:
        return self.every is None

    def trace_form(self, kind: Kind) -> TraceForm | None:
        return None

    @property
    def main(self) -> dict[str, Any]:
        every = {} if self.every is None else {"every": self.every}
        return {"steps": self.steps} | every

    def __str__(self) -> str:
        return self.short


@dataclasses.dataclass(frozen=True, repr=False)
class SnAp(Whole):
    """The sparse n-step approximation of RTRL: nothing is cut, influence is kept within n steps.

    The trace of a weight holds the states that it reaches in fewer than `n` transitions after the
    step in which it is used, and the transitions among those alone. It is exact where a weight
    reaches no other states, and equals RTRL for a large enough `n`.

    - `n`: the number of steps, at least 1.
    - `trace_dtype`: as of [`D_RTRL`][etpc.D_RTRL].

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


def _plain_number(value: Any) -> Any:
    """A scalar of NumPy or JAX as the Python number that it is, so that it prints and hashes so."""
    count = whole_number(value)
    if count is not None:
        return count
    if getattr(value, "shape", None) == () and jnp.issubdtype(value.dtype, jnp.floating):
        return float(value)
    return value


def _checked_dtype(dtype: Any) -> str | None:
    """A dtype in which traces may be carried, by name."""
    if dtype is None:
        return None
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        raise InputTypeError(f'trace_dtype must be None or "bfloat16", not {dtype!r}.') from None
    if name != "bfloat16":
        raise AlgorithmError(
            f'trace_dtype must be None or "bfloat16", and is {name}. float16 holds no number above 65,504, '
            "which a trace may exceed; without trace_dtype= a trace is carried as it is computed, in float32 "
            "or float64."
        )
    return name


def checked_error(value: Any) -> float:
    """How far a trace may be from the best one."""
    error = _plain_number(value)
    if not 0 < error < 1:
        raise AlgorithmError(f"error must lie in (0, 1), and is {error!r}.")
    return error


def checked_rank(name: str, value: Any) -> int:
    """A rank that was given, as an int."""
    rank = whole_number(value)
    if rank is None:
        raise InputTypeError(f'{name} must be an int >= 1 or "auto", not {value!r}.')
    if rank < 1:
        raise AlgorithmError(
            f"{name}={rank} is an int and so a rank, which must be at least 1. For a decay pass a "
            "float in (0, 1]."
        )
    return rank


__all__ = ["D_RTRL", "ES_D_RTRL", "RTRL", "TBPTT", "CreditRTRL", "SnAp"]
