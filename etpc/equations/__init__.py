"""The program as equations: the step, the recursion of each trace, the learning signals, and the gradient by its terms.

`_step` evaluates the traced step on scalars (`_nodes`, `_functions`, `_products`). `_derivatives` takes D, F and the
learning signals from these, and finds which elements have one expression, so that each equation is one of arrays.
`_traces` has the recursions that the form of each trace means, and `_rule` takes what the trace program asks for;
`_eprop` has the names and lines of e-prop. `_lines` finds what a gradient needs, and names what several lines have.
`_write` writes them as text, as LaTeX and as NumPy. They read the step, the analysis and the trace program, and no
stage reads them. SymPy is imported when equations are asked for.
"""

from typing import TYPE_CHECKING, Any

from .. import later
from ..errors import UnsupportedError, not_installed
from ..ir import TraceProgram

if TYPE_CHECKING:
    from ._equations import Equations, Evaluated


def equations(program: TraceProgram, path: str | None = None, names: Any = None) -> "Equations":
    """The equations of a trace program; [`Program.equations`][etpc.Program.equations] calls it.

    **Raises** `UnsupportedError` where SymPy is missing, and for a rule whose equations are not written; `InputError`
    where no weight has this path.
    """
    try:
        from ._equations import Equations
    except ImportError as error:
        missing = not_installed("`Program.equations`", "SymPy", "equations")
        raise UnsupportedError(missing) from error
    return Equations(program, path, names)


__getattr__ = later.names(__name__, {"_equations": "Equations Evaluated"})

__all__ = ["Equations", "Evaluated", "equations"]
