"""`etpc.check`: which rule's gradient a gradient is, from wherever it comes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ._agreement import (
    TOTAL,
    Known,
    Nearness,
    Row,
    Vectors,
    agrees,
    default_tolerance,
    flat,
    whole,
)
from ._compare import short_name
from ._faults import Rewritten, Variant
from ._jax import is_float
from ._progress import progress
from ._record import record
from ._trial import Lag, Outcome, Trial, cosines, partial_cosines
from .algorithms import D_RTRL, ES_D_RTRL, TBPTT, Algorithm, SnAp, resolve
from .show import each_once, table
from .trace import StepFunction

RULES = (
    D_RTRL(),
    SnAp(1),
    D_RTRL(backprop="full"),
    *(ES_D_RTRL(decay=decay) for decay in (0.9, 0.95, 0.99)),
)
"""The rules that a gradient is compared with, after BPTT and TBPTT."""

LONGEST = 64
"""The longest block of truncated BPTT of which each length is tried."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A typical mistake that explains a gradient.

    - `kind`: `"factor"`, `"transpose"`, `"shift"`, `"spike"` or `"twice"`.
    - `rule`: whose gradient it is but for the mistake.
    - `factor`: what that gradient, with the mistake, is multiplied with.
    - `text`: the mistake in words.
    """

    kind: str
    rule: Algorithm
    factor: float
    text: str


@dataclasses.dataclass(frozen=True)
class CheckedRow(Nearness):
    """One parameter of a check.

    - `cosine`, `error`, `ratio`, `norm`: against BPTT, as of a [`Row`][etpc.Row].
    - `equals`: the rule whose gradient it is, but for rounding; `None` where it is that of none. BPTT is `TBPTT(T)`.
    - `nearest`: the rule whose gradient is nearest, and `distance` the relative error against it.
    - `fault`: a [`Fault`][etpc.Fault] that explains it where it equals no rule, or `None`.
    """

    equals: Algorithm | None
    nearest: Algorithm
    distance: float
    fault: Fault | None


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """The result of [`etpc.check`][]. `print` it for a table and sentences."""

    rows: tuple[CheckedRow, ...]
    """One for each parameter of which a gradient was given."""
    total: Row
    """All of these as one vector, against BPTT."""
    equals: Algorithm | None
    """The first rule that every row equals, or `None`. BPTT is `TBPTT(T)`."""
    missing: Mapping[str, tuple[str, ...]]
    """What is left out, in words, by the path of the parameter: in the rule that it equals, where that is not BPTT."""
    notes: tuple[str, ...]
    """What makes the check say less than it seems to."""
    remarks: tuple[str, ...]
    """What BPTT goes back through, where its derivative is not that of the value."""
    tolerance: float
    loss: float
    search: "Search" = dataclasses.field(repr=False)
    """How it was found."""

    @property
    def exact(self) -> bool:
        """Whether every row is the gradient of BPTT, and none of them emptily."""
        return not self.notes and self.equals is not None and self._is_bptt(self.equals)

    def is_of(self, rule: Algorithm) -> bool:
        """Whether every row equals the gradient of a rule, which is computed if it was not."""
        return self.search.equals(rule)

    @cached_property
    def by_lag(self) -> Mapping[Lag, float]:
        """The cosine with BPTT by how far back the gradient reaches.

        As of a [`Comparison`][etpc.Comparison.by_lag]: that of the rule that it equals; of a gradient that equals none,
        the cosine of what is left when the other parts are projected out. Computed when it is first asked for.
        """
        trial = self.search.trial
        of_bptt = trial.parts()
        if self.equals is None:
            values = partial_cosines(self.search.whole, of_bptt)
        else:
            found = self.search.tried.get(self.equals)
            values = cosines(trial.parts(self.equals, found and found.program), of_bptt)
        return dict(zip(trial.lags, values, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON: rules by their names, and `None` for numbers that are not finite."""
        rows = [
            {
                **dataclasses.asdict(dataclasses.replace(row, fault=None)),
                "equals": self._name(row.equals),
                "nearest": self._name(row.nearest),
                "fault": row.fault
                and {**dataclasses.asdict(row.fault), "rule": self._name(row.fault.rule)},
            }
            for row in self.rows
        ]
        return record(
            "etpc-check/1",
            loss=self.loss,
            tolerance=self.tolerance,
            equals=self._name(self.equals),
            exact=self.exact,
            rows=rows,
            total=dataclasses.asdict(self.total),
            missing=self.missing,
            notes=self.notes,
            remarks=self.remarks,
        )

    def _is_bptt(self, rule: Algorithm) -> bool:
        return isinstance(rule, TBPTT) and rule.in_blocks and rule.steps >= self.search.trial.steps

    def _name(self, rule: Algorithm | None) -> str | None:
        if rule is None:
            return None
        return "BPTT" if self._is_bptt(rule) else short_name(rule)

    def __str__(self) -> str:
        columns = ["parameter", "cosine", "rel. error", "ratio", "equals", "nearest"]
        rows = []
        for row in self.rows:
            explained = row.equals is not None or row.fault is not None
            nearest = "" if explained else f"{self._name(row.nearest)}, {row.distance:.1e}"
            rows.append([row.path, *row.cells, self._name(row.equals) or "-", nearest])
        rows.append([TOTAL, *self.total.cells, self._name(self.equals) or "-", ""])
        lines = [f"against BPTT (loss {self.loss:.6g})", "", *table(columns, rows), ""]
        if self.equals is not None:
            lines.append(f"It is the gradient of {self._name(self.equals)}.")
        else:
            lines.append("It is the gradient of no rule that was tried.")
        faults = [
            (f"{self._name(row.fault.rule)}, {row.fault.text}", row.path)
            for row in self.rows
            if row.fault is not None
        ]
        missing = [(text, path) for path, texts in self.missing.items() for text in texts]
        for head, found in (("what explains it", faults), ("left out, of what BPTT has", missing)):
            lines += ["", head, *(f"  {line}" for line in each_once(found))] if found else []
        lines += [f"remark: {text}" for text in self.remarks]
        lines += [f"note: {text}" for text in self.notes]
        return "\n".join(lines)

    __repr__ = __str__


def check(
    gradient: Any,
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    *,
    state: Any = None,
    step: StepFunction | None = None,
    batch_size: int | None = None,
    mask: Any = None,
    rules: Sequence[Algorithm | str] | None = None,
) -> Check:
    """Say whether a gradient is right: against BPTT, and which rule's gradient it is.

    The gradient may come from anywhere: from another library, or from code that was written by hand. It should be
    that of the mean of the loss over time and batch; of another multiple the check says by which factor it is off.

    **Arguments:**

    - `gradient`: a PyTree like the model with an array in the place of each parameter, or a dict from the paths of
        parameters, such as `".cell.weight_hh"`, to arrays. Arrays are those of NumPy or JAX, or whatever `np.asarray`
        reads, such as tensors of PyTorch on the CPU. `None`, or no entry, where none is given: that parameter is
        left out. Or a function `(model, xs, targets)` that returns one of these.
    - `model`, `xs`, `targets`, `loss_fn`, `state`, `step`, `batch_size`, `mask`: as in [`etpc.verify`][].
    - `rules`: more rules to compare with, which are tried first.

    It is compared with BPTT; with BPTT that is truncated to blocks, of one step (the immediate gradient), of two
    to 64, and of some longer ones; with `rules`; and then with D-RTRL, SnAp(1), D-RTRL with full windows and
    ES-D-RTRL with a decay of 0.9, 0.95 or 0.99, until it equals one. RTRL has the gradient of BPTT. Where it equals
    none, it is compared with what these become by a typical mistake: a factor (a sum in the place of a mean, a sign),
    a transpose, data or the derivative of a spike of another step, a path that is counted twice.

    **Returns** a [`Check`][etpc.Check]: `print` shows a row for each parameter, what the gradient is, and what it
    leaves out, as paths of influence.

    **Raises** `InputError` and `InputTypeError` that name the path where the gradient does not fit the model; what
    `etpc.verify` raises.

    ```pycon
    >>> import jax, jax.numpy as jnp, etpc
    >>> def step(w, x, h):
    ...     h = jnp.tanh(w * h + x)
    ...     return h, h
    >>> def loss(y, target):
    ...     return jnp.sum((y - target) ** 2)
    >>> w, xs = jnp.full(3, 0.9), jax.random.normal(jax.random.key(0), (40, 3))
    >>> _, truncated = etpc.bptt(w, xs, 0 * xs, loss, state=jnp.zeros(3), step=step, window=5)
    >>> report = etpc.check(truncated, w, xs, 0 * xs, loss, state=jnp.zeros(3), step=step)
    >>> report.equals == etpc.TBPTT(5)
    True

    ```
    """
    more = [resolve(rule) for rule in rules or ()]
    trial = Trial(
        *(model, xs, targets, loss_fn), state=state, step=step, batch_size=batch_size, mask=mask
    )
    arrays = trial.arrays_of(gradient)
    values = {path: flat(array) for path, array in arrays.items()}
    dtypes = [a.dtype for a in arrays.values() if is_float(a.dtype)]
    search = Search(trial, values, max([trial.tolerance, *map(default_tolerance, dtypes)]))
    equals = search.run(more)
    rows = tuple(search.row(path, equals) for path in values)
    total = Row.of(TOTAL, whole(values), whole(trial.bptt.values, values), "-")
    notes = [
        f"the gradient of {path} is not finite"
        for path, value in values.items()
        if not np.isfinite(value).all()
    ]
    notes += trial.doubts(values)
    return Check(
        *(rows, total, equals, search.missing(rows), tuple(notes), trial.remarks),
        *(search.tolerance, trial.bptt.loss, search),
    )


class Search:
    """The search for the rule whose gradient a gradient is.

    - `values`: the gradient, of the parameters that it gives.
    """

    def __init__(self, trial: Trial, values: Vectors, tolerance: float):
        self.trial, self.values, self.tolerance = trial, values, tolerance
        self.bptt, self.immediate = TBPTT(trial.steps), TBPTT(1)
        self.tried: dict[Algorithm, Outcome] = {}
        """What was tried, without blocks of more than one step."""
        self._first = self.bptt
        """The rule in which mistakes are looked for first: one that explains all parameters, if there is one."""
        self._distances: dict[str, dict[Algorithm, float]] = {path: {} for path in values}
        self.equal: dict[str, list[Algorithm]] = {path: [] for path in values}

    def run(self, rules: Sequence[Algorithm]) -> Algorithm | None:
        """Try rule after rule, until one explains the whole gradient, perhaps but for a factor.

        **Returns** the rule that the gradient equals, if there is one.
        """
        self.tried[self.bptt] = Outcome(self.trial.bptt, {}, 0, None)
        first = [rule for rule in dict.fromkeys([self.immediate, *rules]) if rule != self.bptt]
        others = [rule for rule in RULES if rule not in first]
        for stage in (
            self._first_of([self.bptt, *first]),
            self._best_block(),
            self._first_of(progress(others, "rules")),
        ):
            for equals in stage:
                return equals
        return None

    def _first_of(self, rules: Iterable[Algorithm]) -> Iterator[Algorithm | None]:
        """The first rule that the gradient equals, or `None` where a factor explains it."""
        for rule in rules:
            if rule not in self.tried:
                self.tried[rule] = self.trial.of(rule)
            values = self.tried[rule].gradient
            if self._is(rule, values):
                yield rule
            elif self._is_multiple(rule, values.values):
                self._first = rule
                yield None

    def _best_block(self) -> Iterator[Algorithm | None]:
        """The nearest block of truncated BPTT that the gradient equals, or `None` where a factor explains it."""
        equal = []
        for rule in progress([TBPTT(n) for n in _lengths(self.trial.steps)], "truncated BPTT"):
            found = self.trial.of(rule)
            if self._is(rule, found.gradient):
                equal.append(rule)
            elif self._is_multiple(rule, found.gradient.values):
                self.tried[rule], self._first = found, rule
                yield None
        if equal:
            yield min(equal, key=lambda rule: max(d[rule] for d in self._distances.values()))

    def _is(self, rule: Algorithm, gradient: Known) -> bool:
        """Whether the gradient is that of a rule; each parameter is noted."""
        for path, value in self.values.items():
            want = gradient.values[path]
            off, size = float(np.linalg.norm(value - want)), float(np.linalg.norm(want))
            self._distances[path][rule] = off / size if size else (float("inf") if off else 0.0)
            if agrees(Known(self.values), gradient, path, self.tolerance, self.trial.dtype):
                self.equal[path].append(rule)
        return all(rule in equal for equal in self.equal.values())

    def _is_multiple(self, rule: Algorithm, values: Vectors) -> bool:
        """Whether each parameter is that of a rule, times a factor that has a name."""
        return all(
            rule in self.equal[path]
            or self._explained(path, rule, "factor", "", values[path], True)
            for path in self.values
        )

    def row(self, path: str, equals: Algorithm | None) -> CheckedRow:
        """What was found of a parameter."""
        got, want = self.values[path], self.trial.bptt.values[path]
        equal, distances = self.equal[path], self._distances[path]
        nearest = min(distances, key=lambda rule: distances[rule])
        found = equals or next(iter(equal), None)
        fault = None if equal else self._fault(path)
        return CheckedRow.of(path, got, want, found, nearest, distances[nearest], fault)

    def missing(self, rows: Sequence[CheckedRow]) -> dict[str, tuple[str, ...]]:
        """What the rule of each row leaves out of BPTT, in words."""
        found = {}
        for row in rows:
            rule = row.equals or (row.fault and row.fault.rule)
            if rule is None or self.bptt in (rule, *self.equal[row.path]):
                continue
            program = self.tried[rule].program if rule in self.tried else None
            if program is not None:
                found[row.path] = program.claims[row.path].left_out
            elif isinstance(rule, TBPTT):
                block = f"its block of {rule.steps} steps"
                what = "the current step" if rule == self.immediate else block
                found[row.path] = (f"influence from before {what}",)
        return {path: texts for path, texts in found.items() if texts}

    def equals(self, rule: Algorithm) -> bool:
        """Whether the whole gradient is that of a rule."""
        if not all(rule in distances for distances in self._distances.values()):
            self._is(rule, self.trial.of(rule).gradient)
        return all(rule in equal for equal in self.equal.values())

    @cached_property
    def whole(self) -> np.ndarray:
        """All parameters as one vector; zero where no gradient was given."""
        want = self.trial.bptt.values.items()
        return np.concatenate([self.values.get(path, np.zeros_like(b)) for path, b in want])

    # --- faults ---

    def _fault(self, path: str) -> Fault | None:
        """The first mistake that explains the gradient of a parameter: with a factor that has a name, or with any."""
        for named in (True, False):
            for rule, kind, text, values in self._mistaken(named):
                fault = self._explained(path, rule, kind, text, values[path], named)
                if fault is not None:
                    return fault
        return None

    def _mistaken(self, named: bool) -> Iterator[tuple[Algorithm, str, str, Vectors]]:
        """What the gradients of rules become by mistakes: the rule, the kind, the text, and the gradient."""
        tried = {self._first: self.tried[self._first], **self.tried}
        bases = {rule: outcome.gradient.values for rule, outcome in tried.items()}
        for rule, values in bases.items():
            yield rule, "factor", "", values
        for rule, values in bases.items():
            yield rule, "transpose", "as its transpose", self._transposed(values)
        now = bases.get(self.immediate)
        for rule, values in bases.items():
            if now is not None and rule != self.immediate:
                text = (
                    "without the part of the current step: shifted by one step, as if traces were read "
                    "before they move"
                )
                yield rule, "shift", text, {p: values[p] - now[p] for p in values}
                text = "with a path counted twice: the part of the current step, which is in the traces already"
                yield rule, "twice", text, {p: values[p] + now[p] for p in values}
        if named:
            for rule, variant in self._rewritten:
                yield rule, variant.kind, variant.text, variant.values

    @cached_property
    def _rewritten(self) -> list[tuple[Algorithm, Variant]]:
        """The mistakes that are made within the steps, of BPTT and of D-RTRL."""
        if D_RTRL() not in self.tried:
            self.tried[D_RTRL()] = self.trial.of(D_RTRL())
        program = self.tried[D_RTRL()].program
        assert program is not None
        rewritten, found = Rewritten(self.trial, program), []
        for rule, cut in ((self.bptt, False), (D_RTRL(), True)):
            want = self.tried[rule].gradient
            right = Known(rewritten.gradient(cut))
            if all(
                agrees(right, want, path, self.tolerance, self.trial.dtype) for path in want.values
            ):
                found += [(rule, variant) for variant in rewritten.variants(cut)]
        return found

    def _transposed(self, values: Vectors) -> Vectors:
        shapes = {path: self.trial.shapes[path] for path in values}
        square = {
            path for path, shape in shapes.items() if len(shape) == 2 and shape[0] == shape[1]
        }
        return {
            path: value.reshape(-1, *shapes[path]).swapaxes(1, 2).reshape(-1)
            if path in square and value.size > 1
            else np.zeros_like(value)
            for path, value in values.items()
        }

    def _explained(
        self, path: str, rule: Algorithm, kind: str, text: str, want: np.ndarray, named: bool
    ) -> Fault | None:
        """The fault, if the gradient is a multiple of what one would make of it; `named`: by a factor with a name."""
        got, size = self.values[path], float(want @ want)
        factor = float(got @ want) / size if size else 0.0
        if not factor or float(np.linalg.norm(got / factor - want)) > self.tolerance * size**0.5:
            return None
        name = next(
            (n for f, n in self._factors.items() if abs(factor / f - 1) <= 4 * self.tolerance), None
        )
        if named and name is None:
            return None
        if name is None:
            if got.size == 1:  # any number is a multiple of another
                return None
            name = f"{factor:.4g} times as large"
        texts = [part for part in (text, name) if part]
        if not texts:  # near the rule, and not near enough to be called equal
            return None
        return Fault(kind, rule, factor, ", and ".join(texts))

    @cached_property
    def _factors(self) -> dict[float, str]:
        """Factors that have a name."""
        mask, batch = self.trial.mask, self.trial.batch_size or 1
        steps = self.trial.steps if mask is None else float(np.sum(np.asarray(mask, float))) / batch
        over = "over {} in the place of the mean"
        factors = {1.0: ""}
        counts = {
            steps: "the steps",
            float(batch): "the examples",
            steps * batch: "steps and examples",
        }
        for count, what in counts.items():
            factors.setdefault(count, f"{count:g} times as large: a sum {over.format(what)}")
            factors.setdefault(
                1 / count, f"{count:g} times too small: divided by the number of {what} twice"
            )
        factors.setdefault(
            2.0, "twice as large: the factor of a square, or each path counted twice"
        )
        factors.setdefault(0.5, "half as large, as that of half a squared error")
        wrong = {
            -f: f"{name}, and with the wrong sign" if name else "with the wrong sign"
            for f, name in factors.items()
        }
        return factors | wrong


def _lengths(steps: int) -> list[int]:
    """Of the blocks of truncated BPTT that are tried."""
    longer = {n for n in range(LONGEST, steps) if not n & (n - 1) or n % 50 == 0 or not steps % n}
    return sorted({*range(2, min(LONGEST, steps - 1) + 1), *longer})
