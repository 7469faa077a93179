"""The training loop around `etpc.online`: callbacks, and a checkpoint to go on from."""

import dataclasses
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import AnyLength, load, save
from ..errors import CheckpointError, InputError, InputTypeError, checked_count, raise_together
from ..run import Online, check_first


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Where a run of [`etpc.fit`][] is: what callbacks get, and what it returns.

    - `model`, `opt_state`, `carry`: after the last update, to go on with.
    - `block`: how many blocks were trained on, those before a resume among them.
    - `losses`: the loss before each update of the last block, [N]; `None` where this call had no block.
    - `aux`: what the loss function returned besides, for the last block, with `has_aux`; else `None`.
    - `history`: the mean loss of each of these blocks, [block]: over the weights where it has a `mask`, and
        `nan` where no loss counts.
    - `stopped`: whether a callback ended the run.
    - `left_out`: which streams each update of the last block left out, with `skip_nonfinite`; else `None`.
    """

    model: Any
    opt_state: Any
    carry: Any
    block: int
    losses: Any
    aux: Any
    history: np.ndarray
    stopped: bool
    left_out: Any = None


def fit(
    learner: Online,
    model: Any,
    blocks: Iterable[Any],
    *,
    batch_size: int | None = None,
    opt_state: Any = None,
    carry: Any = None,
    independent: bool | None = None,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 100,
    verify: bool = False,
) -> Run:
    """Train on block after block of data. It is this loop, and nothing that it does is hidden:

    ```py
    opt_state, carry = learner.init(model, batch_size)
    for xs, targets in blocks:
        model, opt_state, carry, losses = learner.update(model, opt_state, carry, xs, targets)
    ```

    with callbacks, a checkpoint from which the same call goes on, and a check of the first block, which
    warns where a layer of neurons is silent, and with `verify=True` compares its gradients with BPTT. It
    doesn't donate arrays, as a callback may keep them, and the checkpoint needs those of the last block.

    **Arguments:**

    - `learner`: from [`etpc.online`][].
    - `model`: with the parameters to begin with.
    - `blocks`: an iterable of pairs `(xs, targets)`, or of dicts with the arguments of
        [`Online.update`][etpc.Online.update] that come with data: `xs`, `targets`, `mask` and
        `begins`. Each has leading axes T, B, or T alone where `batch_size` is not given. A block of
        many updates keeps the device busy; one that differs in T compiles again.
    - `batch_size`, `opt_state`, `carry`: of `learner.init`. Pass `opt_state` and `carry` to go on with
        those of a run before.
    - `independent`: has to be given. `True` where each block holds new sequences, as minibatches that are drawn
        from a data set do: they begin in the initial state and with traces of zeros; PRNG keys in the state go on.
        `False` where each block is the next part of a stream.
    - `callbacks`: functions that get the [`Run`][etpc.Run] after each block. Where one returns True, of
        Python, NumPy or JAX, the run ends; the other callbacks are called first.
    - `checkpoint`: a file. It is written by [`etpc.save`][] after every `save_every` blocks and at the
        end, be that an error or Ctrl-C; whether it can be written is tried before the first block.
        Where it is there already, the run goes on from it: `blocks` should be the same again, and
        those that were trained on are skipped; of `model`, `opt_state` and `carry` only the structure
        counts. A run that was stopped, or has come to the end of `blocks`, is returned as it is. What
        callbacks remember is not saved.
    - `save_every`: a number of blocks.
    - `verify`: whether to compare the gradients of the first updates with BPTT before the first block, as
        [`Online.check`][etpc.Online.check] does, which says what it costs.

    **Returns** the [`Run`][etpc.Run] after the last block.

    **Raises** `etpc.InputTypeError` and `etpc.InputError`; `etpc.CheckpointError` where the file is
    of another run; `OSError` where it cannot be written; `etpc.VerificationError` with `verify=True`
    where a claim does not hold; what `learner.update` raises. Warns with `etpc.SilentNetworkWarning`
    and, with `verify=True`, `etpc.UncheckedWarning`.

    ```pycon
    >>> import etpc, jax.numpy as jnp, optax
    >>> def step(w, x, h):
    ...     h = 0.9 * h + w * x
    ...     return h, h
    >>> w = jnp.zeros(3)
    >>> program = etpc.compile(w, inputs=w, state=w, step=step)
    >>> learner = etpc.online(program, lambda y, t: jnp.sum((y - t) ** 2), optax.sgd(0.01), every=5)
    >>> blocks = [(jnp.ones((20, 2, 3)), jnp.ones((20, 2, 3)))] * 5  # T, B, I
    >>> run = etpc.fit(learner, w, blocks, batch_size=2, independent=False)
    >>> run.block, bool(run.history[-1] < run.history[0] / 10)
    (5, True)

    ```
    """
    _check(learner, callbacks, blocks, independent)
    save_every = checked_count("save_every", save_every, why="It is a number of blocks.")
    fresh_opt_state, fresh_carry = learner.init(model, batch_size)
    opt_state = fresh_opt_state if opt_state is None else opt_state
    carry = fresh_carry if carry is None else carry
    block, stopped, means = 0, False, np.zeros(0)
    if checkpoint is not None and Path(checkpoint).exists():
        try:
            history = AnyLength(means.dtype)
            *found, means = load(checkpoint, (model, opt_state, carry, block, stopped, history))
            model, opt_state, carry, block, stopped = found
        except CheckpointError as error:
            _explain(error, checkpoint)
            raise
    means = np.array(means)
    run = Run(model, opt_state, carry, block, None, None, means, stopped)
    remaining = () if stopped else itertools.islice(blocks, block, None)
    with _Saves(None if stopped else checkpoint, run) as saves:
        for data in remaining:
            arguments = _arguments(data, run.block)
            carry = learner.restarted(run.carry) if independent else run.carry
            if run.losses is None:  # the first block of this call
                xs, mask = arguments["xs"], arguments.get("mask")
                targets = arguments["targets"] if verify else None
                check_first(learner, run.model, carry, xs, targets, mask, stacklevel=2)
            model, opt_state, carry, losses, *more = learner.update(
                run.model, run.opt_state, carry, **arguments
            )
            aux = more[0] if learner.has_aux else None
            left_out = more[-1] if learner.skip_nonfinite else None
            block = run.block + 1
            if block > len(means):  # each run has a part of one array, which is seldom copied
                means = np.concatenate([means, np.zeros(max(64, len(means)))])
            means[run.block] = _mean_loss(learner, losses, arguments.get("mask"), left_out)
            run = Run(
                *(model, opt_state, carry, block, losses, aux),
                *(means[:block], False, left_out),
            )
            saves.run = run
            answers = [_is_true(callback(run)) for callback in callbacks]
            if any(answers):
                saves.run = run = dataclasses.replace(run, stopped=True)
            if not run.block % save_every:
                saves.save()
            if run.stopped:
                break
    return run


class _Saves:
    """Keeps the last run in a checkpoint: now and then, and where the loop ends, whatever ends it.

    - `path`: of the checkpoint; `None` for none.
    - `run`: the last one. That with which it begins is there already, or is what anyone can make again.
    """

    def __init__(self, path: str | os.PathLike[str] | None, run: Run):
        self.path, self.run, self._saved = path, run, run

    def __enter__(self) -> "_Saves":
        if self.path is None:
            return self
        path = Path(os.path.realpath(self.path))
        try:  # beside the file, so that no other process takes it for a run that has begun
            with tempfile.TemporaryDirectory(prefix=".etpc-", dir=path.parent) as trial:
                self._write(Path(trial) / path.name)
        except OSError as error:
            error.add_note(
                f"This is a trial before the first block: the checkpoint {self.path} could not be saved "
                "after it."
            )
            raise
        return self

    def save(self) -> None:
        if self.path is not None and self.run is not self._saved:
            self._write(self.path)
            self._saved = self.run

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            return self.save()
        try:
            self.save()
        except Exception as unsaved:  # what ended the run says more
            error.add_note(f"The run of {self.run.block} blocks was not saved: {unsaved!r}")

    def _write(self, path: str | os.PathLike[str]) -> None:
        run = self.run
        save(path, (run.model, run.opt_state, run.carry, run.block, run.stopped, run.history))


def _mean_loss(learner: Online, losses: Any, mask: Any, left_out: Any) -> float:
    """The mean loss of a block, in which an update without a loss does not count."""
    losses = np.asarray(losses, np.float64)
    weights, updates = np.ones((len(losses), 1, 1)), len(losses)  # [N, W, B]
    if mask is not None:
        weights = np.asarray(mask, np.float64).reshape(updates, learner.every, -1)
    if left_out is not None:
        weights = weights * ~np.asarray(left_out).reshape(updates, 1, -1)
    weights = weights.reshape(updates, -1)
    # The loss of an update is a mean over its weights; or a sum, which is as it is.
    weights = weights.sum(1) if learner.reduction == "mean" else (weights != 0).any(1)
    total = weights.sum()
    return float((weights * losses).sum() / total) if total else float("nan")


def _is_true(answer: Any) -> bool:
    """Whether a callback returned True: Python's, or an array of NumPy or JAX that is a boolean."""
    if isinstance(answer, bool) or getattr(answer, "dtype", None) != np.bool_:
        return answer is True
    if answer.ndim:
        raise InputTypeError(
            f"A callback returned booleans of shape {list(answer.shape)}. Let it return one, by `.all()` or "
            "`.any()`: True ends the run."
        )
    return bool(answer)


def _explain(error: CheckpointError, checkpoint: Any) -> None:
    """Raise an error in the terms of `fit` where a checkpoint is one of another run."""
    differ = set(re.findall(r"^ *\d+\. (\[2\]\.fresh|\[\d\])", str(error), re.MULTILINE))
    whats = {
        "[3]": "is no run that `etpc.fit` saved",
        "[5]": "is a run of another version of etpc",
        "[0]": "holds a run of another model: its parameters have other names, shapes or dtypes",
        "[1]": "holds a run with another optimizer",
        "[2].fresh": "holds a run with another batch_size",
        "[2]": "holds a run of another program: the step, the rule, weights= or JAX's version is another one",
    }
    what = next((what for part, what in whats.items() if part in differ), None)
    if what is not None:
        raise CheckpointError(
            f"{checkpoint} {what}. Where the file is there already, `etpc.fit` goes on with the run in it: call it as "
            "for that run, or name a new file to begin another. `etpc.load_weights` reads the model alone."
        ) from error


def _check(learner: Any, callbacks: Any, blocks: Any, independent: Any) -> None:
    wrong = []
    if not isinstance(independent, bool | np.bool_):
        wrong.append(
            f"independent is {independent!r}. Pass `independent=True` where each block holds new sequences, as "
            "minibatches that are drawn from a data set do: each begins in the initial state. Pass "
            "`independent=False` where each block is the next part of a stream: state and traces go on in the next."
        )
    if not isinstance(learner, Online):
        wrong.append(f"learner is a {type(learner).__name__}. Pass what `etpc.online` returns.")
    if not isinstance(blocks, Iterable) or isinstance(blocks, str):
        wrong.append(
            f"blocks is {blocks!r}. Pass an iterable of pairs `(xs, targets)`, such as a list."
        )
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        wrong.append(
            f"callbacks is {callbacks!r}. Pass a list of functions, each of which is called with the "
            "`etpc.Run` after every block."
        )
    raise_together(wrong, InputTypeError)


ARGUMENTS = ("xs", "targets", "mask", "begins")


def _arguments(data: Any, block: int) -> dict[str, Any]:
    """The arguments of an update from a block of data."""
    if isinstance(data, tuple | list) and len(data) == 2:
        return dict(zip(("xs", "targets"), data, strict=True))
    if not isinstance(data, dict):
        what = f"{len(data)} parts" if isinstance(data, tuple | list) else type(data).__name__
        raise InputTypeError(
            f"Block {block} of the data is {what}. Let each block be a pair `(xs, targets)`, or a dict with "
            f"{', '.join(ARGUMENTS)}."
        )
    problems = [f"Block {block} of the data has no {n!r}." for n in ARGUMENTS[:2] if n not in data]
    problems += [
        f"Block {block} of the data has {name!r}, which `Online.update` does not take with data. It takes "
        f"{', '.join(ARGUMENTS)}."
        for name in data
        if name not in ARGUMENTS
    ]
    raise_together(problems, InputError)
    return data
