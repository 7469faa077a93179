"""What a command works on: a model, and the data that it is compared or timed on."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..errors import EtpcError
from ..run import Program, compile
from ..testing import claims_record
from ..trace import is_float, is_key, trace
from ._algorithm import parse
from ._errors import CommandError, described
from ._find import find

STEPS, BATCH = 50, 8
"""Of random data, unless others are asked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a function named on the command line may return, where a model alone is not enough.

    - `model`, `inputs`, `state`, `step`, `weights`: as in [`etpc.compile`][].
    - `xs`, `targets`, `loss_fn`: as in [`etpc.verify`][], with leading axes T and B, or T alone where
        `inputs` has so many axes. `targets` and `loss_fn` go together.
    - `score`: as in [`etpc.suggest`][].

    Without `xs` the data is random, and without `loss_fn` the loss is a mean square.
    """

    model: Any
    inputs: Any = None
    xs: Any = None
    targets: Any = None
    loss_fn: Callable[[Any, Any], Array] | None = None
    state: Any = None
    step: Callable[..., Any] | None = None
    weights: Any = None
    score: Callable[[Any, Any], Any] | None = None

    @property
    def called(self) -> dict[str, Any]:
        """How the model is called, and which of its weights have traces: arguments of `etpc.compile` and others."""
        return dict(state=self.state, step=self.step, weights=self.weights)

    def compile(self, algorithm: Any, memory: int | None = None, batch_size: int = 1) -> Program:
        """The program of the task's model."""
        return compile(
            *(self.model, algorithm),
            inputs=self.inputs,
            **self.called,
            memory=memory,
            batch_size=batch_size,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A sequence and a loss. `text` says where they come from."""

    xs: Any
    targets: Any
    loss_fn: Callable[[Any, Any], Array]
    steps: int
    batch_size: int | None
    text: str


def load_task(target: str, inputs: str | None, seed: int) -> Task:
    """The task that `package.module:name` means.

    **Raises** `CommandError`, also for what the user's code raises, unless that is an `EtpcError`.
    """
    try:
        made = _made(find(target), target, seed)
    except EtpcError:
        raise
    except Exception as error:
        raise CommandError(described(error)) from error
    if isinstance(made, Task):
        task = made
    elif type(made) is tuple and len(made) == 2:
        task = Task(*made)
    else:
        task = Task(made)
    if task.model is None:
        raise CommandError(f"{target} gives None in the place of a model. Does it return one?")
    if inputs is not None:
        task = dataclasses.replace(task, inputs=_shape(inputs))
    if task.inputs is None and task.xs is not None:
        step_inputs = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[2:], a.dtype), task.xs
        )
        task = dataclasses.replace(task, inputs=step_inputs)
    if task.inputs is None:
        raise CommandError(
            f"{target} does not say what the model reads in one step. Pass --inputs, such as "
            "--inputs 20 or --inputs 'int32[3,4]', or have a function return (model, inputs)."
        )
    return task


def claims_of(
    target: str,
    algo: str = "d_rtrl",
    inputs: str | None = None,
    seed: int = 0,
    memory: int | None = None,
) -> dict[str, Any]:
    """The claims of a model, ready for JSON, with how they are found again.

    - `target`, `algo`, `inputs`, `seed`, `memory`: as `etpc claims` takes them.

    **Raises** `EtpcError`, also for what the user's code raises.
    """
    task = load_task(target, inputs, seed)  # this may register a rule
    found_by = dict(algo=algo, inputs=inputs, seed=seed, memory=memory)
    return found_by | claims_record(task.compile(parse(algo), memory))


def _made(value: Any, target: str, seed: int) -> Any:
    """What a factory returns; a model as it is."""
    if isinstance(value, Task) or not callable(value):
        return value
    parameters = inspect.signature(value).parameters.values()
    given = {"key": jax.random.key, "seed": int}
    own = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    keywords = {
        p.name: given[p.name](seed) for p in own if p.name in given and p.kind != p.POSITIONAL_ONLY
    }
    needed = [p.name for p in own if p.default is p.empty and p.name not in keywords]
    if not needed:
        return value(**keywords)
    if inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, functools.partial):
        raise CommandError(
            f"{target} needs {', '.join(needed)}. Only `key` and `seed` are passed. Name a function "
            "without other arguments, such as `def make(key): return Network(..., key=key)`."
        )
    return value


def _shape(text: str) -> jax.ShapeDtypeStruct:
    """The shape and dtype that `20`, `3,4` or `float32[20]` means."""
    match = re.fullmatch(r"(?:(?P<dtype>[a-z]+\d*)\[(?P<inner>[\d, ]*)\]|(?P<bare>[\d, ]+))", text)
    if match is None:
        raise CommandError(
            f"--inputs {text} is no shape. Write 20, or 3,4 for two axes, or with a dtype "
            "'int32[3,4]'; 'float32[]' is a single number."
        )
    try:
        dtype = jnp.dtype(match["dtype"] or float)
    except TypeError as error:
        raise CommandError(f"--inputs {text}: there is no dtype {match['dtype']!r}.") from error
    sizes = (match["inner"] if match["bare"] is None else match["bare"]).split(",")
    shape = tuple(int(size) for size in sizes if size.strip())
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


def make_data(task: Task, *, seed: int, steps: int | None, batch: int | None) -> Data:
    """The task's own data, or random data in its place.

    `steps` and `batch` are how much of it; `None` is all of what the task has.
    """
    if (task.targets is None) != (task.loss_fn is None):
        raise CommandError("A task has both targets and loss_fn, or none of them.")
    if task.targets is not None and task.xs is None:
        raise CommandError("A task with targets and loss_fn needs xs too.")
    x_key, target_key = jax.random.split(jax.random.key(seed))
    if task.xs is None:
        text = f"random normal inputs (integers are 0 or 1), seed {seed}"
        steps = STEPS if steps is None else steps
        batch_size: int | None = BATCH if batch is None else batch
        xs = _random(task.inputs, (steps, batch_size), x_key)
        targets = None
    else:
        text = "inputs of the task"
        (xs, targets), steps, batch_size = _own(task, steps, batch)
    if task.loss_fn is not None:
        return Data(xs, targets, task.loss_fn, steps, batch_size, f"{text}; its loss")
    lead = (steps,) if batch_size is None else (steps, batch_size)
    outputs = trace(task.model, task.inputs, task.state, task.step).output_leaves.avals
    outputs = [a for a in outputs if is_float(a.dtype)]
    if not outputs:
        raise CommandError(
            "The model has no output that is a float, so there is no mean square to take. Have a "
            "function return an `etpc.cli.Task` with targets and loss_fn."
        )
    targets = _random(outputs, lead, target_key)
    text += "; the loss is a mean square against random targets"
    return Data(xs, targets, mean_square, steps, batch_size, text)


def mean_square(y: Any, targets: list[Array]) -> Array:
    """The mean square of the difference, over all outputs that are floats."""
    ys = [a for a in map(jnp.asarray, jax.tree.leaves(y)) if is_float(a.dtype)]
    differences = [a - b for a, b in zip(ys, targets, strict=True)]
    squares = [jnp.sum(jnp.real(d * jnp.conj(d))) for d in differences]
    return sum(squares[1:], squares[0]) / sum(d.size for d in differences)


def _own(task: Task, steps: int | None, batch: int | None) -> tuple[Any, int, int | None]:
    """The data of a task, cut to size, with its numbers of steps and of examples."""
    x, step_shape = (jnp.shape(jax.tree.leaves(tree)[0]) for tree in (task.xs, task.inputs))
    lead = len(x) - len(step_shape)
    if lead not in (1, 2):
        raise CommandError(
            f"xs has a leaf of shape {list(x)}, and one step of one example has {list(step_shape)}. It "
            "should begin with T, B or with T."
        )
    if lead == 1 and batch is not None:
        raise CommandError("--batch was given, and xs has no batch axis.")
    for name, wanted, available in zip(("steps", "examples"), (steps, batch), x, strict=False):
        if wanted is not None and wanted > available:
            raise CommandError(
                f"xs has {available} {name}, and {wanted} were asked for. Ask for at most {available}."
            )
    cut = (slice(steps), slice(batch))[:lead]
    xs, targets = jax.tree.map(lambda a: a[cut], (task.xs, task.targets))
    x = jnp.shape(jax.tree.leaves(xs)[0])
    return (xs, targets), x[0], x[1] if lead == 2 else None


def _random(shapes: Any, lead: tuple[int, ...], key: Array) -> Any:
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(key, max(1, len(leaves)))

    def random(leaf: Any, key: Array) -> Array:
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        shape = (*lead, *leaf.shape)
        if is_key(leaf):
            return jax.random.split(key, shape)
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if jnp.issubdtype(dtype, jnp.inexact):
            return jax.random.normal(key, shape, dtype)
        return jax.random.bernoulli(key, shape=shape).astype(dtype)

    return treedef.unflatten([*map(random, leaves, keys)])
