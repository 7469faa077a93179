"""Writes the address of the repository to every place that names it.

    python .ci/address.py https://github.com/OWNER/NAME

Until it has run, these places say OWNER, which stands for nobody. The workflows run it with the repository that they
run in, so that a release is right wherever that is.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNSET = ("OWNER", "etpc")
PLACES = (
    "pyproject.toml",
    "CITATION.cff",
    "README.md",
    "mkdocs.yml",
    "docs/examples.md",
    "benchmarks/asv.conf.json",
)
FORMS = ("//github.com/{}/{}", "google.com/github/{}/{}", "//{}.github.io/{}")
"""Of the repository, of a notebook in Colab, and of the documentation."""


def parsed(address: str) -> tuple[str, str]:
    """The owner and the name in an address. Raises `SystemExit` where it is none."""
    found = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+?)(?:\.git)?/?", address)
    if not found:
        raise SystemExit(f"{address!r} is not of the form https://github.com/OWNER/NAME")
    return found[1], found[2]


def present(root: Path = ROOT) -> tuple[str, str]:
    """The owner and the name in `pyproject.toml`."""
    text = (root / "pyproject.toml").read_text()
    return parsed(re.findall(r'^Source = "(.*)"$', text, re.MULTILINE)[0])


def write(address: str, root: Path = ROOT) -> None:
    """Put an address in the place of the present one, and of OWNER."""
    new, olds = parsed(address), {present(root), UNSET}
    for place in PLACES:
        text = (root / place).read_text()
        for form in FORMS:
            names = "|".join(re.escape(form.format(*old)) for old in olds)
            text = re.sub(rf"(?:{names})(?![\w-])", form.format(*new), text)
        (root / place).write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(sys.argv[1])
