"""The learning rules."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..analyse import Analysis, Step
from ..errors import AlgorithmError, InputError
from ..forms import Decay, Full, LowRank, size_of
from ..ops import Kind
from ._algorithm import Algorithm, Backprop, Choice, Context, TraceForm
from ._settings import Check, check, checked_decays, checked_flag, checked_rank, count


def _through(analysis: Analysis) -> Analysis:
    from ..analyse import through

    return through(analysis)


@dataclasses.dataclass(frozen=True, repr=False)
class D_RTRL(Algorithm):
    """Diagonal real-time recurrent learning: the trace of the cut step.

    Each operation that mixes positions has its data held constant, so a trace holds the states that
    an output reaches without passing through another weight: O(weights x block) numbers, and fewer
    where outputs are proved to share their transitions. The
    gradient equals that of BPTT where no influence escapes, which the program says for each weight.

    - `through`: whether influence is followed through a product whose outputs share a linear memory, such as a leaky
        readout: its data is filtered by that memory, `r' = d r + W z` as `r = W q` with `q' = d q + z`. A weight
        before it has one number more for each of these, and the product needs no trace. Where weights move in the
        middle of a stream, what was summed before is read with the new ones.

    **Source:** Wang et al., Nature Communications 2026, doi:10.1038/s41467-026-68453-w. Deviation:
    the block of states is derived from the program and is not assumed to be diagonal; every path is
    counted once also where a state reads another's new value. `through` is not in it.
    """

    through: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    name: ClassVar[str] = "d_rtrl"
    checks: ClassVar[Mapping[str, Check]] = {"through": checked_flag}

    def analysis(self, step: Step) -> Analysis:
        return _through(super().analysis(step)) if self.through else super().analysis(step)


@dataclasses.dataclass(frozen=True, repr=False)
class ES_D_RTRL(Algorithm):
    """D-RTRL with factored traces (pp-prop): O(I + O m) numbers for a weight matrix, times a rank.

    With a decay `a`, `eps_x' = a eps_x + x`, `eps_f' = a D eps_f + (1 - a) F`, and the gradient of
    step t is `eps_x (L eps_f) / (1 - a^t)`. With two, the first is that of `eps_x`, the second that of `eps_f`, and the
    root of their product is in the normaliser. With a rank R, the trace is R pairs of factors: D acts
    on the second ones, exactly; each window adds its own pairs, and then the sum is reduced to its
    R leading modes, the best approximation of that rank. Inside a window nothing is reduced, so the
    gradient is nearer to that of D-RTRL the longer the window.

    A weight keeps the whole trace where that takes no more memory than the factors: an element-wise weight, a small
    matrix, and one whose trace is proved to fit into as little, as that of a leaky readout, all outputs of which have
    the same trace; the printed program says so. With `everywhere`, each matrix has factors, as published.

    - `decay`: a float in (0, 1], or two, of data and of states; 0.99 where neither it nor a rank is given.
    - `rank`: an int >= 1.
    - `everywhere`: whether the trace of each weight that mixes positions is factored, also where the whole trace takes
        no more memory.
    - `through`: as in [`D_RTRL`][etpc.D_RTRL].

    **Source:** Wang et al. 2026, as above, for the decay form. `eps_f` is stored without the factor
    `1 - a`, so that a = 1 is allowed; two decays are not in it. In that work each weight has factors, element-wise ones
    too, and an int renames a decay; here it is a rank.
    Low-rank influence matrices: Benzing et al., "Optimal Kronecker-sum approximation of real time
    recurrent learning", arXiv 1902.03993.
    """

    unnamed: dataclasses.InitVar[Any] = None
    decay: float | tuple[float, float] | None = dataclasses.field(
        default=None, kw_only=True, repr=False
    )
    rank: int | None = dataclasses.field(default=None, kw_only=True, repr=False)
    everywhere: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    through: bool = dataclasses.field(default=False, kw_only=True, repr=False)
    name: ClassVar[str] = "es_d_rtrl"
    checks: ClassVar[Mapping[str, Check]] = {
        "decay": checked_decays,
        "rank": checked_rank,
        "everywhere": checked_flag,
        "through": checked_flag,
    }

    def __post_init__(self, unnamed: Any) -> None:
        super().__post_init__()
        if unnamed is not None:
            raise AlgorithmError(
                f"ES_D_RTRL({unnamed!r}) does not say whether the number is a decay or a rank. Write "
                "ES_D_RTRL(decay=0.99) or ES_D_RTRL(rank=4)."
            )
        if self.decay is not None and self.rank is not None:
            raise AlgorithmError(
                f"ES_D_RTRL takes a decay or a rank, and not decay={self.decay!r}, rank={self.rank!r}."
            )
        if self.decay is None and self.rank is None:
            object.__setattr__(self, "decay", 0.99)

    @property
    def main(self) -> dict[str, Any]:
        everywhere = {"everywhere": True} if self.everywhere else {}
        return ({"rank": self.rank} if self.decay is None else {"decay": self.decay}) | everywhere

    def analysis(self, step: Step) -> Analysis:
        return _through(super().analysis(step)) if self.through else super().analysis(step)

    def trace_form(self, kind: Kind) -> TraceForm:
        if kind.data is None:
            return Full()
        if self.decay is not None:
            return Decay(self.decay)
        assert self.rank is not None
        return LowRank(self.rank)

    def choose(self, context: Context) -> Choice:
        choice = super().choose(context)
        return choice if self.everywhere else _whole_where_no_larger(choice, context)


def _whole_where_no_larger(choice: Choice, context: Context) -> Choice:
    """The same choice, but the whole trace where it takes no more memory than the form that is given."""
    forms, reasons = dict(choice.forms), dict(choice.reasons)
    for op in context.ops:
        form = forms[op.number]
        if form is None or form == Full():
            continue
        if context.whole_size(op) <= size_of(form, context.site(op)):
            forms[op.number] = Full()
            reasons[op.number] = f"the whole trace, which takes no more memory than {form.held}"
    return dataclasses.replace(choice, forms=forms, reasons=reasons)


@dataclasses.dataclass(frozen=True, repr=False)
class RTRL(Algorithm):
    """Real-time recurrent learning: nothing is cut, and every gradient equals that of BPTT.

    The trace of a weight holds all states that it can ever reach: O(weights x S) numbers. With a rank
    R, it is kept as R pairs of factors, O(R (I + S O)) numbers for a weight matrix: after each window
    it is reduced to its R leading modes. Nothing is cut, so what is left out is that reduction. A weight keeps the
    whole trace where that takes no more memory, as under ES-D-RTRL.

    - `rank`: `None` for the whole trace, or an int >= 1.

    **Source:** Williams and Zipser, Neural Computation 1(2), 1989. Of a low rank: Benzing et al.,
    "Optimal Kronecker-sum approximation of real time recurrent learning", arXiv 1902.03993; there the
    reduction is random and unbiased, here it is the best one of its rank.
    """

    rank: int | None = None
    name: ClassVar[str] = "rtrl"
    cut: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, Check]] = {"rank": checked_rank}

    def trace_form(self, kind: Kind) -> TraceForm | None:
        if kind.data is None or self.rank is None:
            return super().trace_form(kind)
        return LowRank(self.rank)

    def choose(self, context: Context) -> Choice:
        return _whole_where_no_larger(super().choose(context), context)

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
    backprop: Backprop = dataclasses.field(default="full", init=False, repr=False)
    lookback: int | None = dataclasses.field(default=None, init=False, repr=False)
    name: ClassVar[str] = "tbptt"
    checks: ClassVar[Mapping[str, Check]] = {
        "steps": count(
            "It is the number of steps that credit goes back through.", error=InputError
        ),
        "every": count(
            "It is the number of steps that are processed at once.", None, error=InputError
        ),
    }

    def __post_init__(self) -> None:
        check(self)
        every = self.steps if self.every is None else self.every
        if every > self.steps:
            raise AlgorithmError(
                f"every={every} is more than steps={self.steps}: the credit of a loss would not reach the "
                "start of its own window."
            )
        object.__setattr__(self, "window", every)
        object.__setattr__(self, "lookback", self.steps)
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
class SnAp(Algorithm):
    """The sparse n-step approximation of RTRL: nothing is cut, influence is kept within n steps.

    The trace of a weight holds the states that it reaches in fewer than `n` transitions after the
    step in which it is used, and the transitions among those alone. It is exact where a weight
    reaches no other states, and equals RTRL for a large enough `n`. Where influence leaves
    its traces a sequence is processed step by step, and with `backprop="cut"` no longer `window` is taken.

    - `n`: the number of steps, at least 1.

    **Source:** Menick et al., "Practical real time recurrent learning with a sparse approximation",
    ICLR 2021, section 3.
    """

    n: int = 1
    name: ClassVar[str] = "snap"
    cut: ClassVar[bool] = False
    checks: ClassVar[Mapping[str, Check]] = {
        "n": count("It is the number of steps within which influence is kept.")
    }

    @property
    def reach(self) -> int | None:
        return self.n
