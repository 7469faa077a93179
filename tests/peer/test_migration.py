"""The page for those who come from braintrace: its blocks for braintrace run, and agree with the others."""

import jax
import pytest

pytest.importorskip("braintrace")

from tests.pages import ROOT, run_page

pytestmark = [
    pytest.mark.peer,
    # The peer says this of every weight that it leaves out.
    pytest.mark.filterwarnings("ignore:ETP primitive etp_m[mv] :UserWarning"),
]


def test_the_page_runs_with_braintrace() -> None:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        run_page(ROOT / "docs/migration.md", "python|py")
