"""The optimisations of a trace program, one file each: pattern, proof, rewrite, and what it saves."""

from collections.abc import Collection, Sequence
from typing import Any

from ...errors import Code, InputError, InputTypeError, near, raise_together
from ._pass import Pass
from .by_columns import BY_COLUMNS
from .choose_window import CHOOSE_WINDOW
from .commute import COMMUTE
from .drop_ended import DROP_ENDED
from .drop_unlasting import DROP_UNLASTING
from .filtered import FILTERED
from .holomorphic import HOLOMORPHIC
from .join_past import JOIN_PAST
from .join_products import JOIN_PRODUCTS
from .outputs_last import OUTPUTS_LAST
from .pair_states import PAIR_STATES
from .read_after import READ_AFTER
from .scans import SCANS
from .schedule import SCHEDULE
from .share_uses import SHARE_USES
from .states_apart import STATES_APART
from .unroll import UNROLL

DEFAULT = (
    COMMUTE,
    DROP_UNLASTING,
    DROP_ENDED,
    SHARE_USES,
    FILTERED,
    HOLOMORPHIC,
    JOIN_PRODUCTS,
    STATES_APART,
    PAIR_STATES,
    OUTPUTS_LAST,
    BY_COLUMNS,
    CHOOSE_WINDOW,
    READ_AFTER,
    JOIN_PAST,
    SCHEDULE,
    UNROLL,
    SCANS,
)
"""All passes, in the order in which they run."""
PASSES = {p.name: p.does for p in DEFAULT}
"""What each does, by name."""


def chosen(passes: Collection[str | Pass] | None) -> tuple[Pass, ...]:
    """The passes that run: all where `passes` is `None`.

    Names alone run in the order of `DEFAULT`; where passes themselves are among them, all run in the order given.

    **Raises** `InputTypeError` for what is no collection of passes, `InputError` for a name that no pass has, and for
    an order in which a pass runs before one that it has to come after.
    """
    if passes is None:
        return DEFAULT
    example = 'such as ("filtered", "read_after"); () leaves all out, and None takes all'
    given: Any = passes
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InputTypeError(f"passes= takes the names of passes, {example}, not {passes!r}.")
    unknown = [p for p in passes if not isinstance(p, Pass) and p not in PASSES]
    if unknown:
        hint = near(str(unknown[0]), list(PASSES))
        raise InputError(
            f"There is no pass {unknown[0]!r}.{hint} passes= takes the names of passes, {example}. "
            f"The passes: {', '.join(PASSES)}. A pass of your own is given itself, as an `etpc.plan.Pass`, also among "
            'names, as in ("read_after", mine).'
        )
    if not any(isinstance(p, Pass) for p in passes):
        return tuple(p for p in DEFAULT if p.name in passes)
    if not isinstance(given, Sequence):
        raise InputTypeError(
            f"passes= is a {type(passes).__name__}, and passes run in the order given: pass a tuple, such as "
            "(*etpc.plan.DEFAULT, mine)."
        )
    named = {p.name: p for p in DEFAULT}
    in_order = tuple(dict.fromkeys(p if isinstance(p, Pass) else named[p] for p in passes))
    raise_together(
        [
            f"The pass {p.name!r} has to run before {earlier.name!r}. This is because {earlier.name!r} goes by what it "
            f"leaves: put it before {earlier.name!r}, or give names alone, which run in the order of "
            "`etpc.plan.DEFAULT`."
            for place, p in enumerate(in_order)
            for earlier in in_order[:place]
            if p.name in earlier.after
        ],
        InputError,
        code=Code.PASS_ORDER,
    )
    return in_order


__all__ = ["DEFAULT", "PASSES", "Pass", "chosen"]
