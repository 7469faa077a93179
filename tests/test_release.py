"""What a release is made of agrees: versions, the address of the repository, and the files that workflows name."""

import re
import runpy
import shutil
import tomllib

import pytest
import yaml

from tests.helpers import ROOT

ADDRESS = runpy.run_path(str(ROOT / ".ci" / "address.py"))
RELEASE = runpy.run_path(str(ROOT / ".ci" / "release.py"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def test_versions_agree():
    assert RELEASE["faults"]() == []


def test_a_tag_of_another_version_is_a_fault():
    assert "the tag has version 7.0.0" in RELEASE["faults"]("v7.0.0")[0]


@pytest.fixture
def places(tmp_path):
    """A copy of all files that have the address."""
    for place in ADDRESS["PLACES"]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    return tmp_path


def test_the_address_is_written_everywhere_and_taken_back(places):
    read = lambda: {place: (places / place).read_text() for place in ADDRESS["PLACES"]}
    before = read()
    ADDRESS["write"]("https://github.com/some-one/traces.git", places)
    after = read()
    assert ADDRESS["present"](places) == ("some-one", "traces")
    for place, text in after.items():
        assert "OWNER" not in text
        assert place == "README.md" or "some-one" in text
    urls = tomllib.loads(after["pyproject.toml"])["project"]["urls"]
    assert urls["Documentation"] == "https://some-one.github.io/traces/"
    assert urls["Issues"] == "https://github.com/some-one/traces/issues"
    owner, name = ADDRESS["present"]()
    ADDRESS["write"](f"https://github.com/{owner}/{name}", places)
    assert read() == before


def test_what_one_clones_is_the_address():
    owner, name = ADDRESS["present"]()
    cloned = re.findall(r"^git clone (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {url.removesuffix(".git") for url in cloned} <= {f"https://github.com/{owner}/{name}"}


@pytest.mark.parametrize("address", ["github.com/a/b", "https://github.com/a", "https://a.org/a/b"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(SystemExit, match="OWNER/NAME"):
        ADDRESS["parsed"](address)


def test_links_of_the_readme_hold_on_an_index():
    """As the build does it, from the settings in pyproject.toml."""
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"][
        "hooks"
    ]
    text = (ROOT / "README.md").read_text()
    for substitution in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    assert re.findall(r'(?:\]\(|src=")(?!https://)([^)"]*)', text) == []
    assert "/raw/v$HFPR_VERSION/docs/demo.png)" in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_names_is_there(path):
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", f"none@{0:040}"))
            run = step.get("run", "")
            named = re.findall(r"(?<![\w$/])(?:tests|\.ci)/[\w./-]+", run)
            named += [file for file in step.get("with", {}).values() if "paper.md" in str(file)]
            assert [file for file in named if not (ROOT / file).exists()] == []
            kinds = ("dev", "release") if "$KIND" in run else ("",)
            for target in re.findall(r"\bmake \"?([\w-]+)", run):
                for kind in kinds:
                    assert re.search(rf"^{target}{kind}:", MAKEFILE, re.MULTILINE), target + kind
