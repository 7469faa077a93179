"""Gradients that somebody else computed, brought into the form of a model's."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InputError, InputTypeError, near, raise_together
from ..trace import Leaves, paths_of

FORMS = (
    "Pass a PyTree like the model, with an array in the place of each parameter or None, or a dict from the paths of "
    "parameters to arrays, or a function (model, xs, targets) that returns one of these"
)


def given_gradient(
    gradient: Any, leaves: Leaves, model: Any, xs: Any, targets: Any
) -> dict[str, np.ndarray]:
    """The array of each parameter that a gradient has, by path.

    - `gradient`: as in [`etpc.check`][]. - `leaves`: of the model.

    **Raises** `InputError` and `InputTypeError` that name the paths which do not fit.
    """
    if callable(gradient) and type(gradient) is not type(model):
        gradient = gradient(model, xs, targets)
    values = _by_path(gradient, leaves)
    problems, found = [], {}
    for path, aval in leaves.float_avals.items():
        value = values.get(path)
        if value is None:
            continue
        try:
            array = np.asarray(value)
        except Exception as error:  # whatever another library raises
            problems.append(
                f"The gradient of {path} is a {type(value).__name__} that NumPy can't read ({error}). Pass "
                "an array; of a tensor of PyTorch, `.detach().cpu()`."
            )
            continue
        if not jnp.issubdtype(array.dtype, jnp.number):
            problems.append(f"The gradient of {path} is {array.dtype}, and should be numbers.")
        elif array.shape != aval.shape:
            turned = array.ndim == 2 and array.T.shape == aval.shape
            advice = (
                "It has the shape of the transpose: pass its `.T`."
                if turned
                else "Sum it over time and batch, as the loss is, and give it the axes of the parameter."
            )
            problems.append(
                f"The gradient of {path} has shape {list(array.shape)}, and the parameter "
                f"{list(aval.shape)}. {advice}"
            )
        elif np.iscomplexobj(array) != np.issubdtype(aval.dtype, np.complexfloating):
            advice = "Pass its `.real`" if np.iscomplexobj(array) else "Pass a complex array"
            problems.append(
                f"The gradient of {path} is {array.dtype}, and the parameter {aval.dtype}. {advice}."
            )
        else:
            found[path] = array
    raise_together(problems, InputError)
    if not found:
        known = ", ".join(leaves.float_avals)
        raise InputError(
            f"The gradient has no array for any parameter of the model, which are {known}. {FORMS}."
        )
    return found


def _by_path(gradient: Any, leaves: Leaves) -> Mapping[str, Any]:
    """The leaves of a gradient by path: of a tree like the model, or of a dict of paths."""
    paths = list(leaves.float_avals)
    if not isinstance(gradient, Mapping) or not any(path in gradient for path in paths):
        try:
            return dict(zip(paths, leaves.floats_of(gradient), strict=True))
        except (ValueError, TypeError) as error:
            # A dict like the model may have fewer keys.
            own = dict(zip(paths_of(gradient, ""), jax.tree.leaves(gradient), strict=True))
            if not isinstance(gradient, Mapping) or not any(path in own for path in paths):
                pair = isinstance(gradient, tuple) and len(gradient) == 2
                advice = " Of a pair (value, gradient), pass the second." if pair else ""
                raise InputTypeError(
                    f"The gradient is a {type(gradient).__name__} and no tree like the model, whose parameters "
                    f"are {', '.join(paths)}: {error}.{advice} {FORMS}."
                ) from error
            gradient = own
    problems = (
        f"The gradient has {path!r}, and the model no such parameter.{near(str(path), paths)} Its "
        f"parameters: {', '.join(paths)}."
        for path in gradient
        if path not in leaves.paths
    )
    raise_together(problems, InputError)
    return gradient
