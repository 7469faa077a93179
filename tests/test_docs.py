"""The README, the documentation and the examples in docstrings do what they say."""

import ast
import dataclasses
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import shlex
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import etpc
from etpc.cli import main
from etpc.definition import Definition
from tests.pages import OUTPUT_OPTIONS, ROOT, Output, code_blocks, run_page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CLI = (ROOT / "docs" / "cli.md").read_text()
# `make test` runs this one alone, and continuous integration all.
OFTEN = {"README.md"}
# The check for leaked tracers leaves these out.
UNCHECKED = {"docs/tutorial.md", "docs/choose.md", "docs/pictures.md"}
MODULES = sorted(
    ["etpc", *(module.name for module in pkgutil.walk_packages(etpc.__path__, "etpc."))]
)


@pytest.fixture(autouse=True)
def _as_a_reader_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX's defaults in place of the tests' own, and a folder to write in."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def _pages() -> Iterator[Any]:
    for page in PAGES:
        name, has_code = str(page.relative_to(ROOT)), "```python" in page.read_text()
        slow = [pytest.mark.slow] if has_code and name not in OFTEN else []
        leaks = [pytest.mark.leaks] if name not in UNCHECKED else []
        yield pytest.param(page, id=name, marks=[*slow, *leaks])


@pytest.mark.parametrize("page", list(_pages()))
def test_page(page: Path) -> None:
    if page.name == "equations.md":
        pytest.importorskip("sympy")
    run_page(page)


COMMANDS = re.findall(r"```console\n\$ etpc ((?:.*\\\n)*.*)\n([^`]+)```", CLI)
# Of a row of `etpc bench`: its times, and the bytes that depend on the version of XLA.
MEASURED = re.compile(r"\d+\.\d+ +\d+\.\d+ +\d+\.\d+( +[\d,]+ +)[\d,]+(?= +\d\.\d+e)")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "says"), COMMANDS, ids=[text[:40] for text, _ in COMMANDS])
def test_commands(
    command: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the page says that they print, with numbers to two digits."""
    models = "\n".join(code for code, _ in code_blocks(CLI))
    (tmp_path / "models.py").write_text(models)
    main(shlex.split(command.replace("\\\n", " ")))
    said = "".join(capfd.readouterr())
    for shown, printed in zip(_words(says), _words(said), strict=True):
        if shown != printed:
            assert float(shown) == pytest.approx(float(printed), rel=0.01, abs=1e-12)


def _words(text: str) -> list[str]:
    text = re.sub(r"\S*models\.py:\d+:\d+", "models.py", MEASURED.sub(r"\1", text))
    return re.sub(r"-{4,}", "", text).split()


@pytest.mark.slow
@pytest.mark.leaks
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(("etpc.interop.", "etpc.equations.")):
            raise
        pytest.skip(f"needs {error.name}")
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=OUTPUT_OPTIONS)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module):
        runner.run(example, out=report.write)
    if runner.failures:
        pytest.fail(report.getvalue())


@pytest.mark.parametrize("name", ["etpc", "etpc.interop", "etpc.nn", "etpc.surrogate"])
def test_every_public_name_is_in_the_reference(name: str) -> None:
    pages = [*(ROOT / "docs/reference").glob("*.md")]
    pages += [ROOT / "docs" / name for name in ("brainstate.md", "flax-haiku.md", "nir.md")]
    page = "\n".join(path.read_text() for path in pages)
    # A name that is taken over from JAX is named in the text.
    documented = {a or b for a, b in re.findall(r"^::: (\S+)$|`(etpc\.\S+)`", page, re.M)}
    module = importlib.import_module(name)
    parts = [n for n in module.__all__ if not isinstance(_get(module, n), types.ModuleType)]
    assert not [part for part in parts if f"{name}.{part}" not in documented]


def _get(module: types.ModuleType, name: str) -> object:
    try:
        return getattr(module, name)
    except ModuleNotFoundError:  # an adapter, whose library is not installed
        return None


def test_code_blocks_are_found_with_their_place_and_output() -> None:
    page = "a\n```python\nx\n```\n\n```text\n1\n```\nb\n```text\nc\n```\n```python\ny\n```\n"
    assert list(code_blocks(page)) == [
        ("\n\nx\n", Output("1\n")),
        ("\n" * 13 + "y\n", None),
    ]


def test_numbers_of_training_are_compared_with_the_tolerance_that_the_page_gives() -> None:
    page = "```python\nx\n```\n\n<!-- numbers to 10 % -->\n\n```text\nloss 1.00 of 8, 2e-07\n```\n"
    ((_, output),) = code_blocks(page)
    assert output is not None
    assert output.tolerance == 0.1
    assert output.agrees("loss  1.09 of 8, 2e-07")
    for other in (
        "loss 1.12 of 8, 2e-07",
        "loss 1.00 of 9, 2e-07",
        "loss 1.00",
        "lost 1.00 of 8, 2e-07",
    ):
        assert not output.agrees(other)
    assert not Output("1.00").agrees("1.01")


def test_blocks_of_another_language_are_left_out() -> None:
    page = "```py\nx\n```\n```python\ny\n```\n"
    assert [code.strip() for code, _ in code_blocks(page)] == ["y"]
    assert [code.strip() for code, _ in code_blocks(page, "python|py")] == ["x", "y"]


@pytest.mark.slow
def test_an_indented_block_is_an_error() -> None:
    with pytest.raises(AssertionError, match="indented"):
        list(code_blocks("  ```python\n  x\n  ```\n"))


# --- help -----------------------------------------------------------------------------------------

PUBLIC = {name: getattr(etpc, name) for name in etpc.__all__}
RECORDS = [n for n, c in PUBLIC.items() if isinstance(c, type) and dataclasses.is_dataclass(c)]


@pytest.mark.parametrize("name", RECORDS)
def test_help_of_a_record_describes_its_fields(name):
    """Each in a list of the class, or of the rule in general for the settings that every rule has."""
    record, rules = PUBLIC[name], etpc.algorithms.Algorithm
    texts = [inspect.getdoc(record), inspect.getdoc(rules) if issubclass(record, rules) else ""]
    listed = re.findall(r"^- ((?:`\w+`(?:, )?)+): \S", "\n".join(texts), re.MULTILINE)
    names = re.findall(r"`(\w+)`", "".join(listed))
    fields = [f.name for f in dataclasses.fields(record) if not f.name.startswith("_")]
    assert [f for f in fields if f not in names] == []


@pytest.mark.parametrize("name", ["_step", "_moved"])
def test_the_definition_is_shown_as_it_is(name: str) -> None:
    """But for its layout: a page has other widths of lines than a method."""
    shown = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs" / "theory.md").read_text(), re.M | re.S)
    source = textwrap.dedent(inspect.getsource(getattr(Definition, name)))
    assert ast.unparse(ast.parse(source)) in [ast.unparse(ast.parse(code)) for code in shown]
