"""What a gradient becomes without some paths of influence, each of which is a term of a derivation by hand.

A path leads from a value that has a name, a state or what the model's code assigns, to the next one. Its derivative is
multiplied with a gate, one or zero, and the gates are data: the gradients of all choices are one compiled function.
"""

import ast
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms import D_RTRL, Algorithm
from ..files.source import assigned, statement_of
from ..gradient.agreement import Vectors, flat_gradients
from ..trace import Equation, Variable
from ._faults import Mistakes, Variant, stop

MOST = 32
"""Of more paths than this, no pairs are tried."""


class Path(NamedTuple):
    """A path of influence in a step."""

    source: str
    target: str
    place: str
    """The statement that reads the source."""
    through: str
    """The weight that it passes through, if it does."""

    def __str__(self) -> str:
        weight = f" through {self.through}" if self.through else ""
        return f"the path from {self.source} to {self.target}{weight}{self.place}"


class Terms:
    """The gradient of BPTT, or of D-RTRL, without some paths."""

    def __init__(self, mistakes: Mistakes):
        self.mistakes, analysis = mistakes, mistakes.cut.analysis
        split, step, hidden = analysis.split, analysis.step, analysis.hidden
        paths = [step.state_paths[i] for i in hidden.leaves[: hidden.stored]]
        names = {v: f"`{name}`" for v, name in assigned(split.body).items()}
        named = lambda text, values, paths: {
            v: text + p for v, p in zip(values, paths, strict=False)
        }
        names |= named("the output ", split.outputs, step.output_leaves.paths)
        names |= named("the new ", hidden.new, paths)
        names |= named("the old ", hidden.old, paths)
        self._names: dict[Variable, str] = {v: n for v, n in names.items() if v.is_float}
        self._of_op = {op.equation: op for op in analysis.ops}
        self._readers: dict[Variable, list[Equation]] = {}
        for eqn in split.body:
            for v in eqn.inputs:
                self._readers.setdefault(v, []).append(eqn)
        self.paths: list[Path] = []
        self.gates: dict[Equation, list[tuple[int, int]]] = {}
        """Of each equation, which operand has which gate."""
        numbers: dict[tuple[str, str, str], int] = {}
        for eqn, (place, v) in ((e, p) for e in split.body for p in enumerate(e.inputs)):
            if v not in self._names:
                continue
            for target in self._targets(eqn):
                op = self._of_op.get(eqn)
                through = op.path if op is not None and place != op.operand else ""
                key = self._names[v], target, through
                if key not in numbers:
                    numbers[key] = len(self.paths)
                    self.paths.append(Path(*key[:2], _statement(eqn), through))
                self.gates.setdefault(eqn, []).append((place, numbers[key]))
                break  # an expression without a name that several read is one path

    def _targets(self, eqn: Equation) -> Iterator[str]:
        """The names of what an equation leads to, past what has none."""
        for v in eqn.outputs:
            if v in self._names:
                yield self._names[v]
                continue
            for reader in self._readers.get(v, ()):
                yield from self._targets(reader)

    def variants(self, rule: Algorithm) -> Iterator[Variant]:
        """What the gradient of a rule becomes without one path, without all from one value, and without two paths."""
        count = len(self.paths)
        gradient = self._gradient(rule)
        whole = gradient(np.ones(count, bool))
        matters: list[int] = []
        of_source: dict[str, list[int]] = {}
        for n, path in enumerate(self.paths):
            of_source.setdefault(path.source, []).append(n)
        differ = lambda a: any((a[p] != whole[p]).any() for p in whole)
        singles = list[tuple[Vectors, list[str]]]()
        for n in range(count):
            values = gradient(np.arange(count) != n)
            if not differ(values):
                continue
            matters.append(n)
            same = (texts for other, texts in singles if _are_close(values, other))
            if (texts := next(same, None)) is None:
                singles.append((values, texts := []))
            texts.append(f"without {self.paths[n]}")
        for values, texts in singles:
            yield Variant(rule, "path", ", or ".join(texts), values)
        for source, several in of_source.items():
            if len(several) > 1:
                values = gradient(~np.isin(np.arange(count), several))
                yield Variant(rule, "path", f"without any path through {source}", values)
        pairs = [*itertools.combinations(matters, 2)] if len(matters) <= MOST else []
        for pair in pairs:
            text = f"without {self.paths[pair[0]]}, and without {self.paths[pair[1]]}"
            values = gradient(~np.isin(np.arange(count), pair))
            yield Variant(rule, "path", text, values)

    def _gradient(self, rule: Algorithm) -> Any:
        """The gradient as a function of the gates, which is compiled once."""
        mistakes, trial = self.mistakes, self.mistakes.trial
        defined = mistakes.cut if rule == D_RTRL() else mistakes.plain
        targets, mask = jax.tree.map(jnp.asarray, trial.targets), trial.mask

        def step(model: Any, x: Any, state: Any) -> tuple[Any, Any]:
            x, gates = x

            def bind(eqn: Equation, values: Sequence[Any]) -> list[Any]:
                values = [*values]
                for place, n in self.gates.get(eqn, ()):
                    values[place] = jnp.where(gates[n], values[place], stop(values[place]))
                return eqn.bind(*values)

            acting = defined.acting(bind)
            return acting.as_step(acting.start(acting.step.model_leaves.split(model), x, state))

        def gradient(gates: np.ndarray) -> Vectors:
            each = jnp.broadcast_to(jnp.asarray(gates), (*trial.lead, gates.size))
            loss = trial.objective.loss
            grads = mistakes.run(step, loss, (mistakes.inputs, each), targets, mask)[1]
            return flat_gradients(defined.step.model_leaves, grads)

        return gradient


def _are_close(one: Vectors, other: Vectors) -> bool:
    """Whether gradients are equal, but for rounding: a path that leads nowhere else is that before it."""
    near = lambda a, b: np.linalg.norm(a - b) <= 100 * np.finfo(a.dtype).eps * np.linalg.norm(b)
    return all(near(one[path], other[path]) for path in one)


def _statement(eqn: Equation) -> str:
    """The statement that made an equation, and its line."""
    found = statement_of(eqn)
    text = "" if found is None or found.tree is None else ast.unparse(found.tree).partition("\n")[0]
    place = eqn.source.rpartition("/")[2].partition(" ")[0]
    return f", in `{text}` ({place})" if text and len(text) < 80 else f" ({place})"
