"""Says what in a release does not agree: `python .ci/release.py [TAG]`.

The package, CITATION.cff and the first entry of the changelog have one version. With a tag, it is the tag's, the
entry and CITATION.cff have its date, and the address of the repository is known.
"""

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def faults(tag: str = "") -> list[str]:
    """What does not agree, as sentences."""
    (version,) = _in("etpc/__init__.py", r'^__version__ = "(.*)"$')
    entry, date = _in("CHANGELOG.md", r"^## (.*?) - (.*)$")
    (cited,) = _in("CITATION.cff", r"^version: (.*)$")
    versions = {"CHANGELOG.md": entry, "CITATION.cff": cited}
    if tag:
        versions["the tag"] = tag.removeprefix("v")
    found = [f"{a} has version {b}, etpc {version}" for a, b in versions.items() if b != version]
    if tag:
        dated = f"date-released: {date}\n" in (ROOT / "CITATION.cff").read_text()
        if not dated or not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
            found.append(f"CHANGELOG.md has the date {date}, which CITATION.cff does not have")
        address = runpy.run_path(str(ROOT / ".ci" / "address.py"))
        if address["present"]() == address["UNSET"]:
            found.append("the address of the repository is not known: run .ci/address.py")
    return found


def _in(file: str, pattern: str) -> tuple[str, ...]:
    """The groups of the first match of a pattern in a file."""
    match = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert match, f"{file} has no line {pattern}"
    return match.groups()


if __name__ == "__main__":
    sys.exit("\n".join(faults(*sys.argv[1:])) or 0)
