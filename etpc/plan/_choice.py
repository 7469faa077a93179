"""What a learning rule chose, checked before anything is made of it: errors for the authors of rules and forms."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax

from ..algorithms import Algorithm, Choice
from ..analyse import WeightOp
from ..errors import AlgorithmError, raise_together
from ..forms import Extension, Settles, Site, Trace


def check_choice(algorithm: Algorithm, choice: Choice, ops: Collection[WeightOp]) -> None:
    """**Raises** `AlgorithmError` for a choice that is not one."""
    name = type(algorithm).__name__
    if not isinstance(choice, Choice) or not isinstance(choice.forms, Mapping):
        raise AlgorithmError(
            f"{name}.choose returned {choice!r}. Return an `etpc.algorithms.Choice`, with a form of trace for the "
            "`number` of each operation of `context.ops`."
        )
    if missing := [op.path for op in ops if op.number not in choice.forms]:
        raise AlgorithmError(
            f"{name}.choose gives no form for {', '.join(dict.fromkeys(missing))}. Give each operation of "
            "`context.ops` one by its `number`, or `None` for no trace."
        )
    method = "trace_form" if type(algorithm).choose is Algorithm.choose else "choose"
    given: list[tuple[str, Any, type]] = [
        *((f"for {op.path}", choice.forms[op.number], Trace) for op in ops),
        ("as an extension", choice.extension, Extension),
    ]
    for where, value, base in given:
        if value is not None and not isinstance(value, base):
            hint = f" Call it: {value.__name__}(...)." if isinstance(value, type) else ""
            raise AlgorithmError(
                f"{name}.{method} gives {value!r} {where}, which is no `etpc.forms.{base.__name__}`.{hint}"
            )
    if choice.extension is not None and algorithm.backprop != "full":
        raise AlgorithmError(
            f"{name} has an extension, {type(choice.extension).__name__}, in windows that are cut. This is because an "
            'extension is moved by windows with nothing cut. Set backprop="full" in the rule.'
        )


def settled(form: Trace, site: Site, path: str) -> Trace:
    """The form that an operation gets. **Raises** `AlgorithmError` where it lacks something, with all that it lacks."""
    found: Any = form.settle(site) if isinstance(form, Settles) else form
    if not isinstance(found, Trace):
        raise AlgorithmError(
            f"{type(form).__name__}.settle returned {found!r} for {path}. Return `self`, or another form of trace."
        )
    check_form(found, site, path)
    return found


def check_form(form: Trace, site: Site, path: str) -> None:
    """**Raises** `AlgorithmError` where a form of trace lacks something, with all that it lacks."""
    problems = list(_problems(form, site))
    heading = f"The form of trace {type(form).__name__}, of {path}, cannot be used:"
    raise_together(problems, AlgorithmError, heading if problems else "")


def _problems(form: Trace, site: Site) -> Iterator[str]:
    gives = lambda name: getattr(type(form), name) is not getattr(Trace, name)
    exact = getattr(form, "exact", None)
    if not isinstance(exact, bool):
        yield (
            "Its class does not say whether it is exact. Each class does, as gradients are claimed to be exact on its "
            "word. Write `exact = False` in the class, and `left_out`, what it leaves out, in words; or `exact = True` "
            "if its gradient is that of the whole trace."
        )
    elif not exact and not form.left_out:
        yield "It has `exact = False`, and `left_out` does not say what it leaves out. Say it in words."
    if not gives("move"):
        yield "It has no `move`, which returns the carry at the end of a window."
    if not gives("init"):
        yield "It has no `init`, which returns the carry: a tuple of arrays with a leading batch axis."
        return
    carry = jax.eval_shape(lambda: form.init(site, 2))
    if not isinstance(carry, tuple) or any(a.shape[:1] != (2,) for a in jax.tree.leaves(carry)):
        text = eqx.tree_pformat(carry, struct_as_array=True)
        yield f"`init` returns {text} for 2 examples. Let it return a tuple of arrays [2, ...]."
    elif carry and not gives("past"):
        yield "It has no `past`, so that nothing of what it carries enters the gradient."
