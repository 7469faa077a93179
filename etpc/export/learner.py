"""A learner of `etpc.online` as files: one call of `update`, and one step without learning."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import InputError, InputTypeError, raise_together
from ..files.record import record
from ..run import Carry, Online
from ..schedule import Target
from ..trace import Leaves, is_key
from .modules import (
    Module,
    Modules,
    Tree,
    check_platforms,
    closed,
    described,
    hash_of,
    joined,
    module,
    split,
    values_of,
)

SCHEMA = "etpc-learner/1"
UPDATE, PREDICT = "update.mlirbc", "predict.mlirbc"


@dataclasses.dataclass(frozen=True, eq=False)
class Exported(Modules):
    """A learner as portable StableHLO. Made by `export` of a learner, or by [`etpc.load_exported`][].

    It runs under JAX without the code of the model. Data are arrays in the order of the manifest, or trees of them
    that flatten in this order, as those do that were exported.

    - `manifest`: what is written to `manifest.json`, ready for JSON.
    - `state`: the first value of each state argument, by name.
    - `modules`: portable StableHLO, by the name of the file.
    """

    @property
    def about(self) -> str:
        return (
            f"A learner: {self.manifest['rule']}, an update every {self.manifest['every']} steps."
        )

    def update(
        self,
        state: Mapping[str, Any],
        xs: Any,
        targets: Any,
        *,
        mask: Any = None,
        begins: Any = None,
    ) -> tuple[Any, ...]:
        """One call of `learner.update`, by JAX.

        **Arguments:**

        - `state`: the value of each state argument by name, such as `state` of this object.
        - `xs`, `targets`, `mask`, `begins`: of the shapes that were exported.

        **Returns** `(state, losses)`; where the learner has `has_aux=True` also what the loss returned besides, a list
        of arrays; and with `skip_nonfinite=True` last, which streams each update left out.

        **Raises** `etpc.InputError` where an argument is missing or does not fit, or on a platform that it was not
        exported for.
        """
        data = {"input": xs, "target": targets, "mask": mask, "begins": begins}
        state, (losses, *aux) = self._run(UPDATE, state, data)
        roles = [leaf.role for leaf in self.leaves(UPDATE)[1]]
        left_out = [aux.pop()] if roles[-1] == "left_out" else []
        return (state, losses, *([aux] if "output" in roles else []), *left_out)

    def predict(self, state: Mapping[str, Any], x: Any) -> tuple[dict[str, Any], list[Array]]:
        """One step of the model without learning, by JAX.

        **Arguments:** `state` as in `update`; `x`, the input of one step.

        **Returns** `(state, outputs)`, with the hidden state after the step, and the arrays of the output.

        **Raises** `etpc.InputError` as `update` does.
        """
        return self._run(PREDICT, state, {"input": x})

    def into(
        self, model: Any, opt_state: Any, carry: Any, state: Mapping[str, Any] | None = None
    ) -> tuple[Any, Any, Any]:
        """A state as what a learner goes on with.

        **Arguments:**

        - `model`, `opt_state`, `carry`: of the learner that was exported, with any values.
        - `state`: by name, as a device returns it; by default the one that was exported.

        **Returns** `(model, opt_state, carry)`, for `learner.update` or [`etpc.save`][].

        **Raises** `etpc.InputError` where they are of another learner, or the state does not fit.
        """
        trees = self._trees(model, opt_state, carry)
        model, opt_state, carry = self._into(trees, state)
        return model, opt_state, carry

    def state_of(self, model: Any, opt_state: Any, carry: Any) -> dict[str, np.ndarray]:
        """The values of what a learner goes on with, by name: the state that `update` and a device take.

        **Raises** `etpc.InputError` where they are of another learner.
        """
        trees = self._trees(model, opt_state, carry)
        return values_of(trees, (model, opt_state, carry))

    def _trees(self, model: Any, opt_state: Any, carry: Any) -> list[Tree]:
        trees = training(model, opt_state, carry)
        problems = self._missing(trees)
        if carry.program != self.manifest["program"]:
            problems.append("The carry belongs to another program.")
        if _constants(model) != self.manifest["constants"]:
            problems.append("An array of the model that is not trained has other values.")
        raise_together(problems, InputError, "" if not problems else "This is another learner.")
        return trees


def training(model: Any, opt_state: Any, carry: Any) -> list[Tree]:
    """What an update changes."""
    if not isinstance(carry, Carry):
        raise InputTypeError(
            f"carry is a {type(carry).__name__}. Pass one of `learner.init` or of an update."
        )
    rest = ((opt_state, "opt_state"), (carry, "carry"))
    return [Tree.of_model(model), *(Tree.of(tree, root, "state") for tree, root in rest)]


def export_learner(
    learner: Online,
    model: Any,
    opt_state: Any,
    carry: Any,
    data: tuple[Any, Any, Any, Any],
    platforms: Sequence[str],
) -> Exported:
    """What [`Online.export`][etpc.Online.export] returns. `data`: inputs, targets, mask and `begins`."""
    check_platforms(platforms)
    learner = _planned_for(learner, platforms)
    state = training(model, opt_state, carry)
    roles = ("xs", "input"), ("targets", "target"), ("mask", "mask"), ("begins", "begins")
    pairs = zip(data, roles, strict=True)
    read = [Tree.of(tree, root, role) for tree, (root, role) in pairs]

    def update(*arrays: Any) -> tuple[dict[str, Array], *tuple[Any, ...]]:
        model, opt_state, carry, xs, targets, mask, begins = joined([*state, *read], arrays)
        new = learner.update(model, opt_state, carry, xs, targets, mask=mask, begins=begins)
        aux = 4 + learner.has_aux
        return dict(zip(first, split(state, new[:3]), strict=True)), new[3], new[4:aux], *new[aux:]

    program, batch = learner.program, carry.fresh.shape[0] if carry.batched else None
    first = values_of(state, (model, opt_state, carry))
    results = [("losses", "loss"), ("aux", "output")]
    results += [("left_out", "left_out")] * learner.skip_nonfinite
    update_module = module(update, described([*state, *read]), results, platforms)
    predict_module = _predict(learner, state[0], carry, data[0], platforms)
    claims = {
        path: {"claim": claim.claim, "left_out": [*claim.left_out]}
        for path, claim in program.claims.items()
    }
    manifest = record(
        SCHEMA,
        etpc=importlib.metadata.version("etpc"),
        jax=jax.__version__,
        platforms=list(platforms),
        program=carry.program,
        rule=str(program.algorithm),
        window=program.ir.window.for_sequence(learner.every),
        every=learner.every,
        batch_size=batch,
        claims=claims,
        bytes=program.memory(batch).as_dict(),
        constants=_constants(model),
        files={UPDATE: update_module.described, PREDICT: predict_module.described},
    )
    return Exported(manifest, first, {UPDATE: update_module.code, PREDICT: predict_module.code})


def _planned_for(learner: Online, platforms: Sequence[str]) -> Online:
    """The learner with the program of these platforms.

    **Raises** `InputError` where they have several, as a module has one.
    """
    given = learner.program.ir.target
    targets = [
        given if p == given.platform else Target(p, given.devices, given.precision)
        for p in platforms
    ]
    programs = [learner.program if t == given else learner.program.for_target(t) for t in targets]
    first, *others = ({**p.ir.as_dict(), "target": None} for p in programs)
    if any(other != first for other in others):
        by = [{change.by for change in p.ir.changes} for p in programs]
        names = ", ".join(sorted(set.union(*by) - set.intersection(*by)))
        raise InputError(
            f"platforms={tuple(platforms)}: a module has one program, and these platforms have different ones, by the "
            f"passes {names or 'that go by the target'}. Export once for each, or leave these passes out of `passes=`."
        )
    if programs[0] is learner.program:
        return learner
    rest = learner.loss_fn, learner.optimizer, learner.every, learner.reduction
    return Online(programs[0], *rest, learner.has_aux, learner.skip_nonfinite)


def _predict(
    learner: Online, model: Tree, carry: Carry, xs: Any, platforms: Sequence[str]
) -> Module:
    """One step of the model, without learning."""
    arguments, step = learner.program.arguments, learner.program.plan.step
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    state = [Tree.of(carry.state, "carry.state", "state")]
    if step.initial is not None:
        state.append(Tree.of(carry.fresh, "carry.fresh", "state"))
    trees = [model, *state, Tree.of(x, "x", "input")]
    names = [leaf.name for leaf in described(state)]

    def predict(*arrays: Any) -> tuple[dict[str, Array], Any]:
        model, hidden, *fresh, x = joined(trees, arrays)
        parameters = arguments.parameters(model)
        pairs = zip(step.input_leaves.split(x), step.input_leaves.avals, strict=True)
        inputs = [a if is_key(a) else jnp.asarray(a, aval.dtype) for a, aval in pairs]

        def one(inputs: list[Any], hidden: list[Any], fresh: list[Any]) -> Any:
            env = step.values(parameters, [*inputs, *fresh], hidden)
            return [env[v] for v in step.outputs], [env[v] for v in step.next_state]

        run = jax.vmap(one) if carry.batched else one
        outputs, new = run(inputs, step.state_leaves.split(hidden), fresh)
        begun = [jnp.zeros_like(flag) for flag in fresh]
        moved = zip(names, [*map(closed, new), *begun], strict=True)
        return dict(moved), step.output_leaves.join(outputs)

    return module(predict, described(trees), [("y", "output")], platforms)


def _constants(model: Any) -> dict[str, str]:
    """A hash of each array of a model that is not trained: those are in the modules."""
    leaves = Leaves.of(model, "model")
    values = leaves.split(model)
    fixed = [i for i in range(len(values)) if i not in leaves.floats]
    return {leaves.paths[i]: hash_of(np.asarray(closed(values[i])).tobytes()) for i in fixed}
