"""The pictures of programs in the documentation are those that its code draws.

`ETPC_WRITE_PICTURES=1` writes them anew, and the charts too, which differ with the version of
Matplotlib and are not compared.
"""

import os
import re
import sys
import types
from pathlib import Path

import jax
import pytest

plt = pytest.importorskip("matplotlib.pyplot")

DOCS = Path(__file__).parents[2] / "docs"
WHITE = {"figure.facecolor": "white", "svg.hashsalt": "pictures", "font.size": 9}
"""The style of the charts, so that they are legible on a dark page too."""


def without_lines(svg: str) -> str:
    """A picture without source lines, which move with the text of the page."""
    return re.sub(r" at pictures\.md:\d+:\d+", " at pictures.md", svg)


@pytest.mark.slow
def test_the_pictures_are_current(tmp_path, monkeypatch):
    page = (DOCS / "pictures.md").read_text()
    shown = re.findall(r"\]\(pictures/(.*?)\)", page)
    code = page if WRITE else page.split("\n## Charts\n")[0]
    module = types.ModuleType("pictures_page")
    monkeypatch.setitem(sys.modules, "pictures_page", module)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # Matplotlib writes the date
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), plt.rc_context(WHITE):
        for match in re.finditer(r"^```python\n(.*?)^```$", code, re.MULTILINE | re.DOTALL):
            lines = "\n" * page.count("\n", 0, match.start(1))
            exec(compile(lines + match[1], str(DOCS / "pictures.md"), "exec"), module.__dict__)
    plt.close("all")
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    if WRITE:
        for name, text in drawn.items():
            (DOCS / "pictures" / name).write_text(text)
    kept = {path.name: path.read_text() for path in (DOCS / "pictures").iterdir()}
    assert sorted(kept) == sorted(shown)
    of_programs = {name for name, text in kept.items() if 'class="etpc"' in text}
    assert of_programs == {name for name, text in drawn.items() if 'class="etpc"' in text}
    for name in sorted(of_programs):
        assert without_lines(drawn[name]) == without_lines(kept[name]), f"{name} is stale"


WRITE = os.environ.get("ETPC_WRITE_PICTURES") == "1"
