"""From a model to a program, through all the stages."""

from collections.abc import Collection
from typing import Any

import jax

from ..algorithms import Algorithm, resolve
from ..analyse import Analysis, Step
from ..emit import emit
from ..errors import (
    AlgorithmError,
    InputError,
    InputTypeError,
    SelectionError,
    checked_count,
    raise_together,
)
from ..gradient.data import foreign, shapes_text
from ..plan import Pass, plan
from ..plan import chosen as chosen_passes
from ..schedule import Target, target_of
from ..trace import StepFunction, fits, is_array, paths_of, shape_of, trace
from ._fusion import refuse_wrong_fusion
from ._program import Program


def compile(
    model: Any,
    algo: Algorithm | str = "d_rtrl",
    *,
    inputs: Any,
    state: Any = None,
    step: StepFunction | None = None,
    weights: Any = None,
    memory: int | None = None,
    batch_size: int = 1,
    passes: Collection[str | Pass] | None = None,
    target: str | Target | None = None,
) -> Program:
    """Compile a model into an eligibility-trace program.

    A model is any PyTree with `model(x, state) -> (y, new_state)`: one step of one example.

    **Arguments:**

    - `model`: the model. Its float arrays are the parameters.
    - `algo`: an algorithm, such as `etpc.ES_D_RTRL(decay=0.9)`, or its name.
    - `inputs`: the input of one step of one example; arrays or `jax.ShapeDtypeStruct`s.
    - `state`: the initial state of one example, a constant; by default `model.init_state()`, and then
        a parameter that it is computed from is a weight of the first step of a stream.
    - `step`: `step(model, x, state) -> (y, new_state)`, for models that are called another way.
    - `weights`: which weights get a trace. `None` or `"all"`: every one that reaches a hidden
        state. `"marked"`: those that pass through [`etpc.mark`][]. Or a selector as in Equinox,
        `lambda m: (m.cell.weight_hh, m.cell.bias)`.
    - `memory`: at most so many bytes of traces, for `batch_size` examples; 16 GiB by default. A
        program that would need more is refused; [`etpc.suggest`][] measures which rules fit.
    - `batch_size`: the number of examples that `memory` is for.
    - `passes`: the optimisations that run, by [name](../compiler.md#passes), such as
        `("filtered", "read_after")`; `None` for all, `()` for none. With an [`etpc.plan.Pass`][] among them, all
        run in the order given: `(*etpc.plan.DEFAULT, mine)`, or [before them](../extend.md#a-pass) where it gives a
        trace another form. No pass changes a gradient, but for rounding; after `commute`, what was summed before an
        update is read with the new weights. [`program.passes`][etpc.Program.passes] says what each did.
    - `target`: what the program is for: `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`, or an [`etpc.Target`][]; `None` for the
        platform and the devices of this process. A program may be lowered and [exported][etpc.Online.export] for a
        platform that is not there.

    **Returns** the [`Program`][etpc.Program].

    **Raises** `etpc.ModelError`, `etpc.UnsupportedError`, `etpc.SelectionError`,
    `etpc.AlgorithmError`, `etpc.MemoryLimitError`, `etpc.InputError`; each says what, where, why, and what to do.
    """
    target = target_of(target)
    refuse_wrong_fusion(target)
    algorithm = resolve(algo)
    batch_size = checked_count("batch_size", batch_size)
    memory = None if memory is None else checked_count("memory", memory)
    chosen, run = _selected(model, weights), chosen_passes(passes)
    try:
        traced = trace(model, inputs, state, step)
    except Exception as error:
        _blame_axes(error, model, inputs, state, step)
        raise
    planned = plan(
        _analysed(algorithm, traced),
        algorithm,
        chosen,
        memory=memory,
        batch_size=batch_size,
        passes=run,
        target=target,
    )
    return Program(planned, emit(planned.ir), step)


def _analysed(algorithm: Algorithm, step: Step) -> Analysis:
    """What a rule sees of a step.

    **Raises** `AlgorithmError` where it analyses another step, and does not say what that leaves out.
    """
    found: Any = algorithm.analysis(step)
    name = type(algorithm).__name__
    if not isinstance(found, Analysis):
        raise AlgorithmError(
            f"{name}.analysis returned {found!r}. Return an `etpc.analyse.Analysis`."
        )
    if (found.given or found.step) is not step:
        raise AlgorithmError(
            f"{name}.analysis returned the analysis of another step than the one that it was given. This is because a "
            "gradient is claimed to be exact where nothing is known to leave its trace, and what the other step leaves "
            "out is not known. Hold the data of operations by `etpc.analyse.analyse(step, cut=numbers)`. Or say what "
            "is left out, by an `etpc.analyse.Escape` in the `reach` of each operation that it is left out of, and "
            "return the analysis with `given=step`, by which the rule answers for that."
        )
    return found


def _blame_axes(error: Exception, model: Any, inputs: Any, state: Any, step: Any) -> None:
    """Raise `InputError` if the model takes the inputs without their first one or two axes."""
    if foreign("inputs", inputs):
        return
    shapes = jax.tree.map(shape_of, inputs)
    for count in (1, 2):
        if not all(a.ndim >= count for a in jax.tree.leaves(shapes)):
            return
        fewer = jax.tree.map(lambda a, n=count: jax.ShapeDtypeStruct(a.shape[n:], a.dtype), shapes)
        if fits(model, fewer, state, step):
            raise InputError(
                f"inputs= has shape {shapes_text(shapes)}, which the model does not take; it takes "
                f"{shapes_text(fewer)}. `inputs=` is the input of one step of one example: leave axes "
                "for time and batch out, as in `xs[0, 0]` of data with axes [T, B, ...]."
            ) from error


class _Place:
    """Stands for a leaf of the model while a selector runs."""

    def __init__(self, path: str):
        self.path = path


def _selected(model: Any, weights: Any) -> Any:
    """`weights=` as `None`, `"all"`, `"marked"`, or a set of parameter paths."""
    if weights is None or (isinstance(weights, str) and weights in ("all", "marked")):
        return weights
    if not callable(weights):
        raise InputTypeError(
            f'weights= must be None, "all", "marked" or a function of the model, not {weights!r}.'
        )
    leaves, treedef = jax.tree_util.tree_flatten(model)
    places = [_Place(path) for path in paths_of(model, "model")]
    arrays = {place.path for place, leaf in zip(places, leaves, strict=True) if is_array(leaf)}
    try:
        picked = weights(treedef.unflatten(places))
    except (AttributeError, LookupError, TypeError) as error:
        raise SelectionError(
            f"weights= raised {type(error).__name__}: {error}. It is called with the model, whose parameters are "
            f"{', '.join(sorted(arrays)) or 'none'}: return some of these."
        ) from error
    selected = jax.tree_util.tree_leaves(picked, is_leaf=lambda x: isinstance(x, _Place))
    if not selected:
        raise SelectionError(
            "weights= selects nothing. Return one or more parameters of the model, such as "
            "`lambda m: m.cell.weight_hh`."
        )
    problems = []
    for leaf in selected:
        if not isinstance(leaf, _Place):
            problems.append(
                f"weights= returned {leaf!r}, which is no parameter of the model. Return the "
                "model's own leaves, such as `lambda m: m.cell.weight_hh`."
            )
        elif leaf.path not in arrays:
            problems.append(
                f"weights= selects {leaf.path}, which is no array. Only arrays are trained."
            )
    raise_together(problems, SelectionError)
    return {leaf.path for leaf in selected}
