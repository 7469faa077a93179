"""The check of a learner's gradients against BPTT, on the machine and the data on which it learns."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import UncheckedWarning, VerificationError
from ..gradient.agreement import (
    Gradient,
    Row,
    compare_all,
    default_tolerance,
    precision,
)
from ..gradient.bptt import Objective, gradient_of
from ..gradient.loss import Loss
from ..plan import DEFAULT
from ..trace import Step, warn_of_silence
from ._carry import Carry
from ._doubts import doubts, first_read
from ._program import Program, without_past

if TYPE_CHECKING:
    from ._online import Online


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """The step that a program was compiled from, as a function of its model and of lists of arrays."""

    step: Step

    def __call__(self, model: Any, x: list[Any], state: list[Any]) -> tuple[Any, list[Any]]:
        step = self.step
        values = step.values(step.model_leaves.split(model), x, state)
        y = step.output_leaves.join([values[v] for v in step.outputs])
        return y, [values[v] for v in step.next_state]


def check_first(
    learner: "Online",
    model: Any,
    carry: Carry,
    xs: Any,
    targets: Any,
    mask: Any,
    *,
    stacklevel: int,
) -> tuple[str, ...]:
    """What [`Online.check`][etpc.Online.check] does, with warnings that point to its caller's caller."""
    silent = learner.program.silent(model, xs, carry, mask=mask)
    warn_of_silence(silent, stacklevel=stacklevel + 1)
    if targets is None:
        return silent
    unchecked = _check_updates(learner, model, carry, xs, targets, mask)
    if unchecked:
        text = "; ".join(unchecked) + ". Check again with other data, or after some updates."
        warnings.warn(text, UncheckedWarning, stacklevel=stacklevel + 1)
    return (*silent, *unchecked)


def _check_updates(
    learner: "Online", model: Any, carry: Carry, xs: Any, targets: Any, mask: Any
) -> tuple[str, ...]:
    """Compare the gradients of some updates, added up, with BPTT of the same steps.

    Three windows are needed, in two updates or more: one fills a trace, the next one moves it, and a loss
    in the third gives credit to it. Both begin with the hidden state of the carry, which is a constant to
    both. The traces of the carry are left out, and begin at zero: they hold influence from before the
    steps that BPTT sees.

    **Returns** a sentence for each parameter of which nothing was compared, or for all that are not finite.

    **Raises** `VerificationError` where a claim does not hold; `InputError`, `InputTypeError`.
    """
    program, every, loss = learner.program, learner.every, Loss.of(learner.loss_fn, learner.has_aux)
    _, leaves, mask, lead = program.arguments.of_call(model, xs, carry, targets=targets, mask=mask)
    where = _chosen_steps(program, every, lead[0], mask)
    if where is None:
        return ("no loss counts on this sequence, so no gradient was checked",)
    leaves, targets, mask = jax.tree.map(lambda a: jnp.asarray(a)[where], (leaves, targets, mask))
    lead = (len(where), *lead[1:])
    start = without_past(program, carry)
    step = program.plan.step
    xs = step.input_leaves.join(leaves)

    def online(model: Any, mask: Any) -> tuple[Any, Any]:
        return learner.summed(model, start, xs, targets, mask)

    def reverse(model: Any, mask: Any) -> tuple[Any, Any]:
        state = step.state_leaves.split(carry.state)
        first = jnp.zeros(lead, bool).at[0].set(carry.fresh)
        inputs = step.with_begins(leaves, first)
        objective = Objective(
            *(inputs, targets, mask, loss, state, TracedStep(step), carry.batched)
        )
        return gradient_of(model, objective, "sum")[:2]

    got, want = (Gradient(run, step.model_leaves, model, mask, lead) for run in (online, reverse))
    dtype = precision(step)
    tolerance = default_tolerance(dtype)
    claims = {path: claim.claim for path, claim in program.claims.items()}
    rows = compare_all(got, want, claims, tolerance, dtype)
    if wrong := [row for row in rows if row.held is False]:
        raise VerificationError(_refusal(program, wrong, carry, dtype, tolerance, len(where)))
    return doubts(program, want.values, model, carry.state, xs, targets, mask, where)


def _chosen_steps(
    program: Program, every: int, steps: int, mask: Array | None
) -> np.ndarray | None:
    """The numbers of the steps to compare: the first stretch at whose end a loss counts.

    The sequence is taken again where it is too short. **Returns** `None` where no loss counts.
    """
    read = max(first_read(program, every) + program.window_for(every), every)
    count = -(-(read + 1) // every) * every
    counts = (
        np.ones(steps, bool) if mask is None else (np.asarray(mask) != 0).reshape(steps, -1).any(1)
    )
    for start in range(0, steps, every):
        where = (start + np.arange(count)) % steps
        if counts[where[read:]].any():
            return where
    return None


def _refusal(
    program: Program, wrong: list[Row], carry: Carry, dtype: Any, tolerance: float, steps: int
) -> str:
    device = next(iter(carry.fresh.devices()))
    batch = f"a batch of {carry.fresh.shape[0]}" if carry.batched else "one example"
    size = f"on {device.device_kind}, in {jnp.dtype(dtype).name}, for {batch} and {steps} steps"
    head = f"A gradient of {program.algorithm} is not what the program claims, {size}:"
    lines = [
        f"  {row.path} is claimed to be {row.claim}, and its relative error against BPTT is "
        f"{row.error:.2g}, where {tolerance:.0e} is allowed."
        for row in wrong
    ]
    own = ", ".join(repr(each.name) for each in program.plan.passes if each not in DEFAULT)
    such = f", such as {own}," if own else ""
    why = (
        f"This is because the rule, a form of its traces or a pass{such} is wrong, or XLA compiles the program wrongly "
        "for this machine, dtype or size. Run `etpc.verify` of the model in float64: where it holds "
        "there, it is the compilation, and another `window=` or version of jaxlib may be right. To see whether a pass "
        "is wrong, do so with `passes=()` too; `etpc.testing.check_pass` checks one."
    )
    return "\n".join([head, *lines, why])
