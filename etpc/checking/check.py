"""`etpc.check`: which rule's gradient a gradient is, from wherever it comes."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..algorithms import D_RTRL, ES_D_RTRL, TBPTT, Algorithm, SnAp, resolve
from ..errors import checked_list
from ..files.record import record
from ..gradient.agreement import (
    TOTAL,
    KnownGradient,
    Nearness,
    Row,
    Vectors,
    agrees,
    default_tolerance,
    flat,
    remarks_on,
    whole,
)
from ..show import each_once, table
from ..trace import StepFunction, is_complex, is_float
from ._faults import Mistakes, Variant
from ._lags import Lag, cosines_by_lag
from ._progress import progress
from ._terms import Terms
from ._trial import Outcome, Trial
from .compare import short_name

RULES = (
    D_RTRL(),
    SnAp(1),
    D_RTRL(backprop="full"),
    *(ES_D_RTRL(decay=decay) for decay in (0.9, 0.95, 0.99)),
)
"""The rules that a gradient is compared with, after BPTT and TBPTT."""

LONGEST = 64
"""The longest block of truncated BPTT of which each length is tried."""

CHANCE = 1e-5
"""How likely it may be that numbers that are no rule's agree with a mistake, of which some thousand are tried."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A typical mistake that explains a gradient.

    - `kind`: `"factor"`, `"transpose"`, `"conjugate"`, `"shift"`, `"spike"`, `"twice"` or `"path"`.
    - `rule`: whose gradient it is but for the mistake.
    - `factor`: what that gradient, with the mistake, is multiplied with.
    - `text`: the mistake in words: each that it may be, where several have the same factor.
    """

    kind: str
    rule: Algorithm
    factor: float
    text: str


@dataclasses.dataclass(frozen=True)
class CheckedRow(Nearness):
    """One parameter of a check.

    - `path`, `cosine`, `error`, `ratio`, `norm`: against BPTT, as of a [`Row`][etpc.Row].
    - `equals`: the rule whose gradient it is, but for rounding; `None` where it is that of none. BPTT is `TBPTT(T)`.
    - `nearest`: the rule whose gradient is nearest.
    - `distance`: the relative error against it.
    - `fault`: a [`Fault`][etpc.Fault] that explains it where it equals no rule, or `None`.
    """

    equals: Algorithm | None
    nearest: Algorithm
    distance: float
    fault: Fault | None


@dataclasses.dataclass(frozen=True, eq=False)
class Check:
    """The result of [`etpc.check`][]. `print` it for a table and sentences.

    - `rows`: a [`CheckedRow`][etpc.CheckedRow] for each parameter of which a gradient was given.
    - `total`: all of these as one vector, against BPTT.
    - `equals`: the first rule that every row equals, or `None`. BPTT is `TBPTT(T)`.
    - `missing`: what is left out, in words, by the path of the parameter: in the rule that it equals, where that is not
        BPTT.
    - `notes`: what makes the check say less than it seems to.
    - `remarks`: what BPTT goes back through, where its derivative is not that of the value.
    - `tolerance`: the largest relative error that counts as equal.
    - `loss`: that of the sequence.
    - `search`: how it was found.
    """

    rows: tuple[CheckedRow, ...]
    total: Row
    equals: Algorithm | None
    missing: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    remarks: tuple[str, ...]
    tolerance: float
    loss: float
    search: "Search" = dataclasses.field(repr=False)

    @property
    def exact(self) -> bool:
        """Whether every row is the gradient of BPTT, and none of them emptily."""
        return not self.notes and self.equals is not None and self._is_bptt(self.equals)

    def is_of(self, rule: Algorithm | str) -> bool:
        """Whether every row equals the gradient of a rule, which is computed if it was not."""
        return self.search.equals(resolve(rule))

    @cached_property
    def by_lag(self) -> Mapping[Lag, float]:
        """The cosine with BPTT by how far back the gradient reaches.

        As of a [`Comparison`][etpc.Comparison.by_lag]: that of the rule that it equals; of a gradient that equals none,
        the cosine of what is left when the other parts are projected out. Computed when it is first asked for.
        """
        search = self.search
        found = search.tried.get(self.equals) if self.equals else None
        given = self.equals, found and found.program, search.whole
        return next(cosines_by_lag(search.trial, [given]))

    def as_dict(self) -> dict[str, Any]:
        """What it says, ready for JSON: rules by their names, and `None` for numbers that are not finite."""
        name = self._name

        def named(row: CheckedRow) -> dict[str, Any]:
            fault = row.fault and dataclasses.asdict(row.fault) | {"rule": name(row.fault.rule)}
            rules = dict(equals=name(row.equals), nearest=name(row.nearest), fault=fault)
            return dataclasses.asdict(row) | rules

        return record(
            "etpc-check/1",
            loss=self.loss,
            tolerance=self.tolerance,
            equals=name(self.equals),
            exact=self.exact,
            rows=[named(row) for row in self.rows],
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
            unknown = explained or not np.isfinite(row.distance)
            nearest = "" if unknown else f"{self._name(row.nearest)}, {row.distance:.1e}"
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
    a transpose, the complex conjugate (PyTorch's convention), data or the derivative of a spike of another step, a
    path that is counted twice, or one or two paths of influence that are missing: terms of a derivation by hand.

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
    more = [resolve(rule) for rule in checked_list("rules", rules, "algorithms or their names")]
    trial = Trial(
        *(model, xs, targets, loss_fn), state=state, step=step, batch_size=batch_size, mask=mask
    )
    arrays = trial.arrays_of(gradient)
    search = Search(trial, arrays)
    values, equals = search.values, search.run(more)
    rows = tuple(search.row(path, equals) for path in values)
    total = Row.of(TOTAL, whole(values), whole(trial.bptt.values, values), "-")
    notes = [
        f"the gradient of {path} is not finite, first at {np.argwhere(bad)[0].tolist()}"
        for path, array in arrays.items()
        if (bad := ~np.isfinite(array)).any()
    ]
    notes += trial.doubts(values)
    return Check(
        *(rows, total, equals, search.missing(rows), tuple(notes)),
        (*search.remarks, *remarks_on(row.cosine for row in rows if row.equals)),
        *(search.tolerance, trial.bptt.loss, search),
    )


class Search:
    """The search for the rule whose gradient a gradient is.

    - `arrays`: the gradient, of the parameters that it gives. It is taken to be computed as the model is, or in
        float32 or more, and rounded when it was stored.
    """

    def __init__(self, trial: Trial, arrays: Mapping[str, np.ndarray]):
        self.trial, self.values = trial, {path: flat(array) for path, array in arrays.items()}
        stored = {path: np.real(a).dtype for path, a in arrays.items() if is_float(a.dtype)}
        allowed = [
            min(default_tolerance(d), default_tolerance(jnp.float32)) for d in stored.values()
        ]
        self.tolerance = max([trial.tolerance, *allowed])
        spacing = {path: np.spacing(abs(self.values[path]).astype(d)) for path, d in stored.items()}
        self._given = KnownGradient(
            self.values, {path: s.astype(float) / 2 for path, s in spacing.items()}
        )
        self._low = {d.name for d in stored.values() if default_tolerance(d) > self.tolerance}
        self._resolution = max([self.tolerance, *(float(jnp.finfo(d).eps) for d in self._low)])
        self.bptt, self.immediate = TBPTT(trial.steps), TBPTT(1)
        self.tried: dict[Algorithm, Outcome] = {}
        """What was tried, without blocks of more than one step."""
        self._first = self.bptt
        """The rule in which mistakes are looked for first: one that explains all parameters, if there is one."""
        self._distances: dict[str, dict[Algorithm, float]] = {path: {} for path in arrays}
        self.equal: dict[str, list[Algorithm]] = {path: [] for path in arrays}

    def run(self, rules: Sequence[Algorithm]) -> Algorithm | None:
        """Try rule after rule, until one explains the whole gradient, perhaps but for a factor.

        **Returns** the rule that the gradient equals, if there is one.
        """
        first = [*dict.fromkeys([self.bptt, self.immediate, *rules])]
        blocks = [TBPTT(n) for n in _lengths(self.trial.steps)]
        for stage in (first, blocks, [rule for rule in RULES if rule not in first]):
            equal: list[Algorithm] = []
            for rule in progress(stage, "rules"):
                found = self.trial.of(rule)
                if stage is not blocks:
                    self.tried[rule] = found
                if self._is(rule, found.gradient):
                    equal.append(rule)
                    if stage is not blocks:
                        break
                elif self._is_multiple(rule, found.gradient.values):
                    self._first, self.tried[rule] = rule, found
                    return None
            if equal:  # of blocks the nearest
                return min(equal, key=lambda rule: max(d[rule] for d in self._distances.values()))
        return None

    def _is(self, rule: Algorithm, gradient: KnownGradient) -> bool:
        """Whether the gradient is that of a rule; each parameter is noted."""
        for path, value in self.values.items():
            want = gradient.values[path]
            off, size = float(np.linalg.norm(value - want)), float(np.linalg.norm(want))
            self._distances[path][rule] = off / size if size else (float("inf") if off else 0.0)
            if agrees(self._given, gradient, path, self.tolerance, self.trial.dtype):
                self.equal[path].append(rule)
        return all(rule in equal for equal in self.equal.values())

    def _is_multiple(self, rule: Algorithm, values: Vectors) -> bool:
        """Whether each parameter, or its conjugate, is that of a rule, times a factor that has a name."""
        either = [Variant(rule, "factor", "", v) for v in (values, self._conjugate(values))]
        return self._is_enough(self.values) and all(
            rule in self.equal[path] or any(self._explained(path, v, True) for v in either)
            for path in self.values
        )

    def row(self, path: str, equals: Algorithm | None) -> CheckedRow:
        """What was found of a parameter."""
        got, want = self.values[path], self.trial.bptt.values[path]
        distances = self._distances[path]
        nearest = min(distances, key=lambda rule: distances[rule])
        # A few numbers agree with one of so many blocks by chance.
        paths = lambda rule: [p for p, rules in self.equal.items() if rule in rules]
        equal = [r for r in self.equal[path] if r in self.tried or self._is_enough(paths(r))]
        found = equals or next(iter(equal), None)
        fault = None if found else self._fault(path)
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

    @property
    def remarks(self) -> tuple[str, ...]:
        """Of the trial, and on how the gradient is stored."""
        text = "the gradient is stored in {0}. If it was computed in {0} too, give the model that dtype"
        return (*self.trial.remarks, *map(text.format, sorted(self._low)))

    @cached_property
    def whole(self) -> np.ndarray:
        """All parameters as one vector; zero where no gradient was given."""
        want = self.trial.bptt.values.items()
        return np.concatenate([self.values.get(path, np.zeros_like(b)) for path, b in want])

    # --- faults ---

    def _fault(self, path: str) -> Fault | None:
        """The first mistake that explains the gradient of a parameter: with a factor that has a name, or with any.

        A few numbers agree with one of so many by chance. Without enough of them, only a factor is named, as possible.
        """
        for named in (True, False):
            for variant in self._variants(named):
                fault = self._explained(path, variant, named)
                if fault is None:
                    continue
                found = {p: self._explained(p, variant, named) for p in self.values}
                near = lambda one, a: abs(one.factor / a.factor - 1) <= 4 * self._resolution
                alike = [p for p, f in found.items() if f and near(f, fault)]
                if self._is_enough([p for p in alike if self._is_changed(variant, p)], named):
                    return fault
        equal = [rules for p, rules in self.equal.items() if p != path]
        rule = next((r for r in self.tried if all(r in rules for rules in equal)), self.bptt)
        as_it_is = Variant(rule, "factor", "", self.tried[rule].gradient.values)
        if fault := self._explained(path, as_it_is, True):
            text = (
                f"possibly {fault.text} (of too few numbers to be sure: check another sequence too)"
            )
            return dataclasses.replace(fault, text=text)
        return None

    def _is_changed(self, variant: Variant, path: str) -> bool:
        """Whether a path that is left out changes the gradient of a parameter, so that this one tells of it."""
        base = self.tried[variant.rule].gradient.values[path]
        off = float(np.linalg.norm(variant.values[path] - base))
        return variant.kind != "path" or off > 10 * self.tolerance * float(np.linalg.norm(base))

    def _is_enough(self, paths: Iterable[str], named: bool = True) -> bool:
        """Whether the numbers of these parameters hardly agree by chance with what has no free factor, if `named`."""
        count = sum(self.values[path].size for path in paths) - (not named)
        return self._resolution**count <= CHANCE

    def _variants(self, named: bool) -> Iterator[Variant]:
        """What the gradients of rules become by mistakes."""
        tried = {self._first: self.tried[self._first], **self.tried}
        bases = {rule: outcome.gradient.values for rule, outcome in tried.items()}
        for rule, values in bases.items():
            yield Variant(rule, "factor", "", values)
        for rule, values in bases.items():
            yield Variant(rule, "transpose", "as its transpose", self._transposed(values))
            text = "as its complex conjugate (the convention of PyTorch: pass its `.conj()`)"
            yield Variant(rule, "conjugate", text, self._conjugate(values))
        now = bases.get(self.immediate)
        for rule, values in bases.items():
            if now is not None and rule != self.immediate:
                text = (
                    "without the part of the current step: shifted by one step, as if traces were read "
                    "before they move"
                )
                yield Variant(rule, "shift", text, {p: values[p] - now[p] for p in values})
                text = "with a path counted twice: the part of the current step, which is in the traces already"
                yield Variant(rule, "twice", text, {p: values[p] + now[p] for p in values})
        if named:
            yield from self._of_steps
            yield from self._without_paths

    @cached_property
    def _without_paths(self) -> Iterable[Variant]:
        """The gradients of BPTT and of D-RTRL without some paths, each computed when it is first asked for."""
        terms = Terms(self._mistakes)
        off = lambda rule: sum(of.get(rule, np.inf) for of in self._distances.values())
        return Kept(v for rule in sorted(self._defined, key=off) for v in terms.variants(rule))

    @cached_property
    def _of_steps(self) -> list[Variant]:
        """The mistakes that are made within the steps, of BPTT and of D-RTRL."""
        return [v for rule in self._defined for v in self._mistakes.variants(rule)]

    @cached_property
    def _mistakes(self) -> Mistakes:
        if D_RTRL() not in self.tried:
            self.tried[D_RTRL()] = self.trial.of(D_RTRL())
        program = self.tried[D_RTRL()].program
        assert program is not None
        return Mistakes(self.trial, program.plan.analysis)

    @cached_property
    def _defined(self) -> list[Algorithm]:
        """Of BPTT and D-RTRL, those whose gradient the definition gives, without a mistake."""
        found, mistakes = list[Algorithm](), self._mistakes
        for rule in (self.bptt, D_RTRL()):
            want, right = self.tried[rule].gradient, KnownGradient(mistakes.gradient(rule))
            near = lambda path, a=right, b=want: agrees(
                *(a, b, path, self.tolerance), self.trial.dtype
            )
            found += [rule] if all(map(near, want.values)) else []
        return found

    def _transposed(self, values: Vectors) -> Vectors:
        """Of square matrices of more than one number; zero for others."""

        def turned(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
            if len(shape) != 2 or shape[0] != shape[1] or value.size == 1:
                return np.zeros_like(value)
            return value.reshape(-1, *shape).swapaxes(1, 2).reshape(-1)

        return {path: turned(value, self.trial.shapes[path]) for path, value in values.items()}

    def _conjugate(self, values: Vectors) -> Vectors:
        """Of complex parameters; zero for others."""
        avals = self.trial.leaves.float_avals
        sign = lambda path: np.repeat([1, -1], values[path].size // 2)
        return {
            path: value * sign(path) if is_complex(avals[path]) else np.zeros_like(value)
            for path, value in values.items()
        }

    @np.errstate(invalid="ignore", over="ignore")
    def _explained(self, path: str, variant: Variant, named: bool) -> Fault | None:
        """The fault, if the gradient is a multiple of what one would make of it; `named`: by a factor with a name."""
        got, want = self.values[path], variant.values[path]
        size = float(want @ want)
        factor = float(got @ want) / size if size else 0.0
        is_multiple = lambda by: (
            self._given.distance(path, by * want) <= self.tolerance * abs(by) * size**0.5
        )
        if not factor or not is_multiple(factor):
            return None
        sign = np.sign(factor)
        causes = [cause for cause in self._causes if is_multiple(sign * cause[0])]
        if causes:
            name = _named(causes)
        elif is_multiple(sign):
            name = ""
        elif named:
            return None
        else:
            name, sign = f"{factor:.{2 if self._low else 4}g} times as large", 1
        wrong = "with the wrong sign" if sign < 0 else ""
        text = variant.text
        if variant.kind == "path":
            off = float(np.linalg.norm(got - factor * want)) / float(np.linalg.norm(got))
            digits = np.ceil(np.log10(max(off, float(jnp.finfo(self.trial.dtype).eps))))
            text += f", it is yours to {10**digits:.0e}"
        texts = [text for text in (text, name, wrong) if text]
        if not texts:  # near the rule, and not near enough to be called equal
            return None
        return Fault(variant.kind, variant.rule, factor, ", and ".join(texts))

    @cached_property
    def _causes(self) -> list[tuple[float, str, str]]:
        """Factors of typical mistakes: the factor, the mistake, and what changes the factor, if anything does."""
        mask, batch = self.trial.mask, self.trial.batch_size or 1
        steps = self.trial.steps if mask is None else float(np.sum(np.asarray(mask, float))) / batch
        outputs = sum(v.size for v in self.trial.shown.plan.analysis.step.outputs if v.is_float)
        counts = [(steps, "the steps", "T"), (batch, "the examples", "B")]
        if 1 not in (steps, batch):
            counts.append((steps * batch, "steps and examples", "T"))
        causes = [(2.0, "the factor of a square", ""), (2.0, "each path counted twice", "")]
        causes.append((0.5, "that of half a squared error", ""))
        for count, what, varied in counts:
            causes.append((count, f"a sum over {what} in the place of the mean", varied))
            causes.append((1 / count, f"divided by the number of {what} twice", varied))
        for factor, one, other in ((outputs, "sum", "mean"), (1 / outputs, "mean", "sum")):
            text = f"a {one} over the outputs in the place of the {other}"
            causes.append((factor, text, "number of outputs"))
        return [(float(factor), text, varied) for factor, text, varied in causes if factor != 1]


class Kept:
    """What an iterator gives, more than once."""

    def __init__(self, of: Iterator[Variant]):
        self._of, self._found = of, list[Variant]()

    def __iter__(self) -> Iterator[Variant]:
        yield from self._found
        for one in self._of:
            self._found.append(one)
            yield one


def _named(causes: Sequence[tuple[float, str, str]]) -> str:
    """A factor, with all mistakes that have it, and what tells them apart."""
    factor = causes[0][0]
    size = f"{factor:g} times as large" if factor > 1 else f"{1 / factor:g} times too small"
    size = {2.0: "twice as large", 0.5: "half as large"}.get(factor, size)
    varied = dict.fromkeys(what for _, _, what in causes if what)
    apart = f" (another {' or '.join(varied)} tells which)" if len(causes) > 1 and varied else ""
    return f"{size}: {', or '.join(text for _, text, _ in causes)}{apart}"


def _lengths(steps: int) -> list[int]:
    """Of the blocks of truncated BPTT that are tried."""
    longer = {n for n in range(LONGEST, steps) if not n & (n - 1) or n % 50 == 0 or not steps % n}
    return sorted({*range(2, min(LONGEST, steps - 1) + 1), *longer})
