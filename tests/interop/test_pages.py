"""The blocks of the pages on other libraries, each of which runs where its library is."""

from pathlib import Path

import jax
import pytest

from tests.pages import ROOT, run_page

PAGES = {
    "flax-haiku.md": (["flax", "haiku"], pytest.mark.third_party),
    "nir.md": (["nir"], pytest.mark.third_party),
    "snntorch.md": (["nir", "nirtorch", "sklearn", "snntorch"], pytest.mark.third_party),
    "check.md": (["torch"], pytest.mark.third_party),
    "brainstate.md": (["braintrace"], pytest.mark.peer),
}


@pytest.mark.parametrize("page", [pytest.param(p, marks=m) for p, (_, m) in PAGES.items()])
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in PAGES[page][0]:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False):
        assert run_page(ROOT / "docs" / page, "python|py") > 1
