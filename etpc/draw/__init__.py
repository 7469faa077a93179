"""Pictures of a program: its operations, states, and what the traces keep, cut and leave out.

An arrow is solid where the traces follow it, dotted where they are cut and nothing is lost, and
dashed, in a colour of its own, where influence of a weight leaves its trace. Nothing beside `etpc`
is needed; charts of numbers are in [`etpc.plot`][].
"""

import os
from pathlib import Path

from ..errors import InputError
from ..files.disk import replacing
from ..run import Program
from ._graph import to_dot, to_graphml, to_node_link
from ._html import fragment, to_html
from ._layout import layout
from ._picture import picture
from ._svg import Svg, draw


def to_svg(program: Program) -> Svg:
    """The dependency graph of a program as SVG.

    Weights stand in the operations that use them. Pointing at a box shows its numbers: shape,
    block, bytes, what is left out, and the source line. The picture follows the light or dark
    scheme of the page, has a background of its own, and loads nothing. The same program gives the
    same text.

    **Returns** the text of an SVG file, which notebooks show as the picture.
    """
    return draw(picture(program))


_FORMATS = {
    ".svg": to_svg,
    ".html": to_html,
    ".graphml": to_graphml,
    ".dot": to_dot,
    ".json": to_node_link,
}


def write(program: Program, path: str | os.PathLike[str]) -> None:
    """Write the picture of a program to a file, or its dependency graph for another program.

    **Arguments:**

    - `path`: ends in `.svg` or `.html` for a picture, in `.graphml`, `.dot` or `.json` (node-link) for the
        graph. A file that is there is replaced once the new one is complete.

    **Raises** `etpc.InputError` for other endings; `OSError` where the file cannot be written.
    """
    path = Path(path)
    to_text = _FORMATS.get(path.suffix.lower())
    if to_text is None:
        raise InputError(
            f"The graph cannot be written to {path.name!r}: the format is not known from the ending "
            f"{path.suffix!r}. Use one of {', '.join(_FORMATS)}."
        )
    text = to_text(program)
    with replacing(path) as file:
        file.write(text.encode())


__all__ = [
    "Svg",
    "fragment",
    "layout",
    "picture",
    "to_dot",
    "to_graphml",
    "to_html",
    "to_node_link",
    "to_svg",
    "write",
]
