"""Assertions for the tests of a model, and claims that may not get worse.

With `pytest --etpc-claims=claims.json`, pytest also checks the claims that `etpc claims` wrote.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .algorithms import Algorithm, resolve
from .checking.check import Check, check
from .checking.compare import Report, verify
from .errors import AlgorithmError, Code, InputError, checked_list
from .files.disk import replacing
from .files.record import read_record, record
from .gradient.agreement import ROUNDING, default_tolerance, flat, flat_gradients, precision
from .gradient.data import check_tolerance, one_step
from .ir import check as check_program
from .plan import DEFAULT, Pass
from .run import Program, compile
from .show import PassReport
from .trace import StepFunction

SCHEMA = "etpc-claims/1"


def assert_gradient(
    gradient: Any,
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    *,
    equals: Algorithm | str | None = None,
    **options: Any,
) -> Check:
    """Assert that a gradient is that of BPTT, or of a rule.

    **Arguments:**

    - `gradient`, `model`, `xs`, `targets`, `loss_fn`, `**options`: as for [`etpc.check`][].
    - `equals`: the rule; `None` for BPTT.

    **Returns** the [`Check`][etpc.Check].

    **Raises** `AssertionError` that shows the check where the gradient is another one, or where nothing was compared
    because it is zero or a layer of neurons is silent; what `etpc.check` raises.
    """
    rule = None if equals is None else resolve(equals)
    rules = checked_list("rules", options.pop("rules", None), "algorithms or their names")
    rules += [] if rule is None else [rule]
    found = check(gradient, model, xs, targets, loss_fn, rules=rules, **options)
    what = "BPTT" if rule is None else str(rule)
    right = found.exact if rule is None else found.is_of(rule)
    if not right or found.notes:
        raise AssertionError(f"The gradient should be that of {what}.\n\n{found}")
    return found


def assert_exact(
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algo: Algorithm | str = "d_rtrl",
    *,
    parameters: Sequence[str] | None = None,
    **options: Any,
) -> Report:
    """Assert that the gradients of a model are exact under a rule: by the claim of its program, and by numbers.

    **Arguments:**

    - `model`, `xs`, `targets`, `loss_fn`, `algo`, `**options`: as for [`etpc.verify`][].
    - `parameters`: the paths of those that have to be exact, such as `".cell.weight_hh"`; `None` for all.

    **Returns** the [`Report`][etpc.Report].

    **Raises** `AssertionError` that says what is left out where a claim is another one, and that shows the report
    where a claim does not hold or nothing was compared; `etpc.InputError` for a path that is none; what
    `etpc.verify` raises.
    """
    paths = checked_list("parameters", parameters, "paths")
    report = verify(model, xs, targets, loss_fn, algo, **options)
    claims = report.program.claims
    paths = list(claims) if parameters is None else paths
    if unknown := [path for path in paths if path not in claims]:
        raise InputError(f"The model has no parameter {unknown[0]!r}, but {', '.join(claims)}.")
    lines = [
        f"  {path} is {claims[path].claim}: {'; '.join(claims[path].left_out)}"
        for path in paths
        if not claims[path].holds_exactly
    ]
    if lines:
        head = f"These gradients should be exact under {report.program.algorithm}:"
        raise AssertionError("\n".join([head, *lines]))
    if not report.ok:
        raise AssertionError(f"A claim does not hold, or nothing was compared.\n\n{report}")
    return report


# --- a pass of the compiler ---


def check_pass(
    pass_: Pass,
    model: Any,
    xs: Any,
    targets: Any,
    loss_fn: Callable[[Any, Any], Any],
    algo: Algorithm | str = "d_rtrl",
    *,
    state: Any = None,
    step: StepFunction | None = None,
    batch_size: int | None = None,
    tolerance: float | None = None,
) -> PassReport:
    """Check that with a pass a program gives the gradients, states and outputs of one without passes.

    It runs alone, before the default passes and after them. A program that `etpc.compile` refuses there, as the form of
    a trace cannot serve what a default pass made of it or a pass may not run before another, is not compared. Each
    program runs the sequence twice, the second time with the traces of the first: in windows, and step by step.

    **Arguments:**

    - `pass_`: the pass.
    - `model`, `xs`, `targets`, `loss_fn`, `algo`, `state`, `step`, `batch_size`: as for [`etpc.verify`][].
    - `tolerance`: the largest relative error that counts as rounding; by default as for `etpc.verify`. A pass that
        rounds more, as one that carries traces in a less precise dtype, needs another one.

    **Returns** what the pass did, alone or else where it did something; that it did is for the test to assert, by
    `changes`.

    **Raises** `AssertionError` that says which gradient, state or output differs and by how much, or that all gradients
    are zero; `etpc.AlgorithmError` where the pass makes no valid program; what `etpc.compile` and `value_and_grad`
    raise.
    """
    check_tolerance(tolerance)
    inputs = jax.tree.map(lambda a: one_step(a, batch_size), xs)
    compiled = lambda *passes: compile(
        model, algo, inputs=inputs, state=state, step=step, passes=passes
    )
    plain, name = compiled(), f"The pass {pass_.name!r}"
    programs = {name: compiled(pass_)}
    if pass_ not in DEFAULT:
        for place, order in (("before", (pass_, *DEFAULT)), ("after", (*DEFAULT, pass_))):
            try:
                programs[f"{name}, {place} the default passes,"] = compiled(*order)
            except (AlgorithmError, InputError) as error:
                if error.code is not Code.PASS_ORDER:
                    raise
    data = model, xs, targets, loss_fn, batch_size
    want = _results(plain, *data)
    dtype = precision(plain.plan.analysis.step)
    limit = default_tolerance(dtype) if tolerance is None else tolerance
    if not any(value.any() for name, value in want.items() if name.startswith("the gradient")):
        raise AssertionError("All gradients are zero on this sequence, so nothing is compared.")
    size = lambda value: float(np.linalg.norm(value))
    least = ROUNDING * float(jnp.finfo(dtype).eps) * size(np.concatenate([*want.values()]))
    for which, program in programs.items():
        check_program(program.ir, which)
        got = _results(program, *data)
        off = {what: (size(got[what] - value), size(value)) for what, value in want.items()}
        lines = [
            f"  {what}: by {by:.1e} of {norm:.1e}"
            for what, (by, norm) in off.items()
            if not by <= limit * norm + least
        ]
        if lines:
            head = f"{which} changes more than rounding ({limit:.0e}) does under {plain.algorithm}:"
            raise AssertionError("\n".join([head, *lines]))
    own = [r for program in programs.values() for r in program.passes if r.name == pass_.name]
    return next((report for report in own if report.changes), own[0])


def _results(
    program: Program, model: Any, xs: Any, targets: Any, loss_fn: Any, batch_size: int | None
) -> dict[str, np.ndarray]:
    """What a program gives for a sequence that comes twice, by what it is: in windows, and step by step."""
    run = program.value_and_grad(lambda y, t: (loss_fn(y, t), y), "sum", has_aux=True)
    leaves, steps = program.plan.analysis.step.model_leaves, len(jax.tree.leaves(xs)[0])
    found: dict[str, np.ndarray] = {}
    for how, length in (("in windows", steps), ("step by step", 1)):
        carry, ys = program.init(batch_size), ()
        for first in [*range(0, steps, length)] * 2:
            part = lambda a, of=slice(first, first + length): jnp.asarray(a)[of]
            inputs, wanted = jax.tree.map(part, (xs, targets))
            (_, (carry, ys)), grads = run(model, inputs, wanted, carry)
            for path, value in flat_gradients(leaves, grads).items():
                name = f"the gradient of {path}, {how}"
                found[name] = found.get(name, 0) + value
        for name, tree in (("the state", carry.state), ("the output", ys)):
            values = [flat(a) for a in jax.tree.leaves(tree)]
            found[f"{name} at the end, {how}"] = np.concatenate([*values, np.zeros(0)])
    return found


# --- claims that may not get worse ---


def claims_record(program: Program) -> dict[str, Any]:
    """The claims of a program, ready for JSON."""
    claims = {
        path: {"claim": claim.claim, "left_out": [*claim.left_out]}
        for path, claim in program.claims.items()
    }
    return {"algorithm": str(program.algorithm), "claims": claims}


WORSE = ("exact", "approximate", "current step")
"""Each is worse than the one before."""


def read_claims(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The models of a file of claims, with what is said of each.

    **Raises** `etpc.InputError` where it is no such file; `OSError` where it cannot be read.
    """
    text = Path(path).read_bytes()
    try:
        return read_record(text, SCHEMA)["models"]
    except ValueError as error:
        raise InputError(
            f"{path} is no file of claims: {error}. Write it anew with `etpc claims`."
        ) from error


def add_claims(
    path: str | os.PathLike[str], target: str, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the claims of a model to a file, which keeps the claims of other models.

    **Returns** the claims of all models. **Raises** what `read_claims` does; `OSError` where it cannot be written.
    """
    with replacing(path) as file:
        models = (read_claims(path) if Path(path).exists() else {}) | {target: entry}
        file.write(json.dumps(record(SCHEMA, models=models), indent=2).encode() + b"\n")
    return models


def worse_claims(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each parameter whose claim is worse than it was, or that is no longer there.

    A claim is worse where it is less exact, or leaves out what it did not leave out. A parameter that has become unused
    is worse too: it does not learn any more. New parameters are not looked at.

    - `before`, `now`: as `claims_record` gives them.
    """
    texts = []
    for path, old in before["claims"].items():
        new = now["claims"].get(path)
        if new is None:
            texts.append(f"{path} was {old['claim']}, and is no parameter any more.")
            continue
        a, b = old["claim"], new["claim"]
        more = [text for text in new["left_out"] if text not in old["left_out"]]
        if a == "unused":
            continue
        if b == "unused" or WORSE.index(b) > WORSE.index(a) or (a == b and more):
            texts.append(f"{path} was {a}, and is {b}: {'; '.join(more)}")
    return texts
