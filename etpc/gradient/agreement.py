"""How a gradient is compared with that of backpropagation through time, parameter by parameter."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .._jax import is_float, params, prims
from ..trace import Leaves, Step, paths_of
from .loss import finite_where_masked

Vectors = Mapping[str, np.ndarray]
"""The gradient of each parameter as a vector of real numbers, by path."""
Run = Callable[[Any, Array | None], tuple[Any, Any]]
"""From a model and a mask to the loss and the gradient, which has the structure of the model."""


def flat_gradients(leaves: Leaves, tree: Any) -> dict[str, np.ndarray]:
    """The gradient of each parameter as a vector of real numbers, by path.

    - `leaves`: of the model, whose structure `tree` has.
    """
    values = leaves.floats_of(tree)
    return {path: flat(a) for path, a in zip(leaves.float_avals, values, strict=True)}


def flat(value: Any) -> np.ndarray:
    """An array as a vector of real numbers: the real parts, and then the imaginary ones."""
    parts = (np.real(value), np.imag(value)) if np.iscomplexobj(value) else (value,)
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])


def whole(vectors: Vectors, paths: Iterable[str] | None = None) -> np.ndarray:
    """All parameters, or those with some paths, as one vector."""
    return np.concatenate([vectors[path] for path in (vectors if paths is None else paths)])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors; `nan` where one is zero."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else float("nan")


Near = TypeVar("Near", bound="Nearness")

TOTAL = "(all)"
"""Stands for the path in the row of all parameters together."""


@dataclasses.dataclass(frozen=True)
class Nearness:
    """How near the gradient of one parameter is to that of BPTT, as in a [`Row`][etpc.Row]."""

    path: str
    cosine: float
    error: float
    ratio: float
    norm: float

    @classmethod
    @np.errstate(invalid="ignore")
    def of(cls: type[Near], path: str, got: np.ndarray, want: np.ndarray, *more: Any) -> Near:
        """The row of one gradient; `more` is what a row has besides."""
        norm = float(np.linalg.norm(want))
        off, size = (float(np.linalg.norm(a)) for a in (got - want, got))
        error, ratio = (off / norm, size / norm) if norm else (float("nan"), float("nan"))
        return cls(path, cosine(got, want), error, ratio, norm, *more)

    @property
    def cells(self) -> list[str]:
        """Cosine, relative error and ratio, for a table."""
        return [f"{self.cosine:.6f}", f"{self.error:.2e}", f"{self.ratio:.4f}"]


LOW = 0.2
"""Below this, a cosine is shown with a remark."""


def remarks_on(cosines: Iterable[float]) -> tuple[str, ...]:
    """What low cosines of rules with BPTT do not say."""
    text = (
        f"a rule with a low cosine (below {LOW}) may train as well as BPTT or better, as where the gradient of BPTT "
        "explodes; `etpc.suggest(..., optimiser=...)` trains with each"
    )
    return (text,) if any(value < LOW for value in cosines) else ()


@dataclasses.dataclass(frozen=True)
class Row(Nearness):
    """One parameter of a comparison.

    - `path`: of the parameter.
    - `cosine`: with the BPTT gradient; `nan` where one of them is zero.
    - `error`, `ratio`: the norm of the difference, and that of the gradient, over `norm`; `nan` where it is zero.
    - `norm`: of the BPTT gradient.
    - `claim`: what the program says.
    - `held`: whether it is so; `None` where nothing was claimed, or where a BPTT gradient that is zero or not finite
        shows nothing.
    """

    claim: str
    held: bool | None = None


class KnownGradient:
    """The gradient of each parameter, of which no more is known.

    - `rounding`: by how much each number may have been rounded when it was stored; `None` for not at all.
    """

    def __init__(self, values: Vectors, rounding: Vectors | None = None):
        self.values, self._rounding = values, rounding or {}

    @np.errstate(invalid="ignore")
    def distance(self, path: str, other: np.ndarray) -> float:
        """The norm of the difference from another gradient of a parameter, but for what storing may have rounded."""
        difference = np.abs(self.values[path] - other)
        return float(np.linalg.norm(np.maximum(difference - self._rounding.get(path, 0.0), 0.0)))

    def noise(self, path: str, unit: float) -> float:
        """How much the gradient of a parameter changes with the last digit of what it is computed from."""
        return 0.0


class Gradient(KnownGradient):
    """The gradient of each parameter, and how far rounding alone moves it.

    - `leaves`: of the model.
    - `lead`: the leading axes [T, B], or [T], of the sequence.
    """

    def __init__(
        self,
        run: Run,
        leaves: Leaves,
        model: Any,
        mask: Array | None,
        lead: tuple[int, ...],
    ):
        self._run, self._leaves = run, leaves
        self._model, self._mask, self._lead = model, mask, lead
        value, grads = run(model, mask)
        self.loss = float(value)
        super().__init__(flat_gradients(leaves, grads))
        self._noise: dict[str, float] | None = None

    def noise(self, path: str, unit: float) -> float:
        """How much the gradient of a parameter changes with the last digit of what it is computed from.

        Each parameter of the model, and the weight of the loss of each example at each step, is made
        larger or smaller by `unit` of itself. What remains of terms that cancel is then another
        number of the same size, while a gradient that is small for another reason hardly changes. The
        median of three such changes is taken, as one of them may let another neuron spike.
        """
        if self._noise is None:
            moved = [
                flat_gradients(self._leaves, self._run(*self._nearby(seed, unit))[1])
                for seed in range(3)
            ]
            self._noise = {
                path: float(np.median([np.linalg.norm(m[path] - value) for m in moved]))
                for path, value in self.values.items()
            }
        return self._noise[path]

    def _nearby(self, seed: int, unit: float) -> tuple[Any, Any]:
        """The model and the mask with their last digits changed at random."""
        rng = np.random.default_rng(seed)

        def near(a: Any, unit: float) -> Any:
            return a * jnp.asarray(1 + rng.choice([-unit, unit], a.shape), jnp.finfo(a.dtype).dtype)

        def near_parameter(a: Any) -> Any:
            a = jnp.asarray(a)
            return near(a, float(jnp.finfo(a.dtype).eps))

        arrays, rest = eqx.partition(self._model, eqx.is_inexact_array)
        mask = jnp.ones(self._lead) if self._mask is None else self._mask.astype(float)
        return eqx.combine(jax.tree.map(near_parameter, arrays), rest), near(mask, unit)


ROUNDING = 64
"""What rounding alone may make of a gradient, in units of the precision, relative to the gradient of all
parameters. A gradient is a sum of many products, rounded in another order by BPTT: that of a parameter
whose terms cancel is noise of a few units."""

NOISE = 16
"""What rounding alone may make of a gradient, relative to how much it and that of BPTT change with the last
digit of the parameters: the same computation in another order rounds as often, and traces more often."""


def compare_all(
    got: KnownGradient,
    want: KnownGradient,
    claims: Mapping[str, str],
    tolerance: float,
    precision: Any,
) -> tuple[Row, ...]:
    """A row for each parameter, and whether its claim holds.

    It does where the relative error is at most `tolerance`, or where rounding explains the difference: it
    is small beside the gradient of all parameters, and no larger than what both gradients change by
    with the last digit of the parameters.
    """
    rows = []
    for path, claim in claims.items():
        row = Row.of(path, got.values[path], want.values[path], claim)
        if claim in ("exact", "unused") and np.isfinite(row.norm):
            held = agrees(got, want, path, tolerance, precision)
            vacuous = held and claim == "exact" and not row.norm
            row = dataclasses.replace(row, held=None if vacuous else held)
        rows.append(row)
    return tuple(rows)


def agrees(
    got: KnownGradient, want: KnownGradient, path: str, tolerance: float, precision: Any
) -> bool:
    """Whether two gradients of a parameter are the same but for rounding."""
    difference = got.distance(path, want.values[path])
    if difference <= tolerance * float(np.linalg.norm(want.values[path])):
        return True
    unit = float(jnp.finfo(precision).eps)
    every = whole(want.values)
    size = float(np.linalg.norm(every[np.isfinite(every)]))
    if not difference <= min(ROUNDING * unit, tolerance) * size:
        return False
    return difference <= NOISE * (got.noise(path, unit) + want.noise(path, unit))


def precision(step: Step) -> Any:
    """The least precise dtype in which a step computes."""
    variables = [*step.program.inputs, *(v for e in step.equations for v in e.outputs)]
    dtypes = {v.aval.dtype for v in variables if is_float(v.aval.dtype)}
    return max(dtypes, key=lambda d: float(jnp.finfo(d).eps))


def default_tolerance(dtype: Any) -> float:
    """The largest relative error that counts as exact, of a gradient that is computed in a dtype.

    - float64: 1e-9. It leaves seven digits to rounding, and a fault of a trace is larger.
    - float32: 1e-3. It leaves four digits to rounding, which a recurrent network of some hundred
        steps takes.
    - Less: the root of the precision, 0.03 in float16 and 0.09 in bfloat16: half of the digits, as
        each step rounds the state and BPTT the credit of each step to three digits or two.
    """
    unit = float(jnp.finfo(dtype).eps)
    return 1e-9 if unit < 1e-15 else 1e-3 if unit < 1e-6 else unit**0.5


def not_finite(
    model: Any, state: Any, xs: Any, targets: Any, mask: Any, steps: Any = None
) -> list[str]:
    """The place of the first number of each array that is not finite; of data, masked ones do not count.

    - `steps`: the number of each step of `xs`, where they are numbered in another way.
    """
    found: list[str] = []
    trees = {"model": model, "state": state, "xs": xs, "targets": targets}
    for name, tree in trees.items():
        in_time = name in ("xs", "targets")
        for path, leaf in zip(paths_of(tree, name), jax.tree.leaves(tree), strict=True):
            if not eqx.is_inexact_array_like(leaf):
                continue
            read = finite_where_masked(leaf, mask if in_time else None)
            for first in np.argwhere(~np.isfinite(read))[:1].tolist():
                if in_time and steps is not None:
                    first[0] = int(steps[first[0]])
                found.append(f"{name * (name not in ('model', path))}{path}{first or ''}")
    return found


def replaced_derivatives(step: Step) -> dict[str, str]:
    """Where the derivative of a step is another one than that of its value, as with feedback weights: by line, how.

    The value of `a - stop_gradient(a)` is zero, and its derivative is that of `a`: so does `etpc.nn.broadcast_readout`
    write feedback weights, and others straight-through estimators. What a `custom_vjp` is given and its value does not
    depend on is for its backward rule alone.
    """
    stopped = {
        e.outputs[0]: e.inputs[0] for e in step.equations if e.primitive is prims.stop_gradient_p
    }
    found: dict[str, str] = {}
    for e in step.equations:
        if e.primitive is prims.sub_p and stopped.get(e.inputs[1]) is e.inputs[0]:
            found[e.source] = "`a - stop_gradient(a)`"
        elif e.primitive is prims.custom_vjp_call_p:
            used = params.is_used(params.custom_body(e))
            if any(
                v.is_float and v.size > 1 and not u for v, u in zip(e.inputs, used, strict=True)
            ):
                found[e.source] = "a `custom_vjp` with an array that only its backward rule reads"
    return found
