"""Gradients of models whose parameters are `saiunit` quantities. Needs the extra `units`.

A quantity is a PyTree of one array whose unit is part of the tree's structure. So a model of
quantities compiles unchanged, and its gradients have the structure of the model, as `jax.grad`
gives them and as Optax takes them: each is labelled with the unit of its parameter, and its number
is the derivative by the number of the parameter in that unit.
"""

from typing import Any

import jax

from .errors import not_installed

try:
    import saiunit
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(not_installed("`etpc.units`", "saiunit", "units")) from error


def physical(grads: Any, loss_unit: Any = saiunit.UNITLESS) -> Any:
    """Gradients labelled as physics does: with the unit of the loss over that of the parameter.

    For reading and for `saiunit`'s own optimisers; Optax takes them as they come.

    **Arguments:**

    - `grads`: from a program or from [`etpc.bptt`][].
    - `loss_unit`: the unit of the loss; none by default.

    **Returns** `grads`, where the gradient by a parameter in mV has the unit `loss_unit` / mV.

    **Source:** the convention is that of `saiunit.autograd.grad`.
    """

    def labelled(leaf: Any) -> Any:
        if not isinstance(leaf, saiunit.Quantity):
            return leaf
        return saiunit.Quantity(leaf.mantissa, unit=loss_unit / leaf.unit)

    return jax.tree.map(labelled, grads, is_leaf=lambda x: isinstance(x, saiunit.Quantity))


__all__ = ["physical"]
