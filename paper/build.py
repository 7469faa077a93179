"""Sets the paper as `paper/paper.pdf`, to be looked at: `make paper`. Needs no network.

The journal's own program has its style, and runs in the workflow `paper.yml`. Both read `paper.md`.
"""

import re
from pathlib import Path

import pypandoc
import typst
import yaml

FOLDER = Path(__file__).parent
STYLE = """
#set page(paper: "a4", margin: (x: 2.6cm, y: 2.4cm), numbering: "1")
#set text(size: 11pt)
#set par(justify: true)
#show heading: set block(above: 1.4em, below: 0.8em)
#show raw.where(block: true): set text(size: 9pt)
#show figure: set block(breakable: false, above: 1.6em, below: 1.6em)
#show figure: set text(size: 9.5pt)
#set table(stroke: (x, y) => if y == 0 { (top: 0.8pt, bottom: 0.5pt) } else { (bottom: 0.2pt + gray) })
#show table: set par(justify: false)
"""


def main() -> None:
    """Writes the PDF, and says how long the text is."""
    _, header, text = (FOLDER / "paper.md").read_text().split("---\n", 2)
    paper = yaml.safe_load(header)
    tables = re.findall(r"\\label\{(.*?)\}", text)
    for number, label in enumerate(tables, 1):
        text = text.replace(rf"\autoref{{{label}}}", f"Table {number}")
    text = re.sub(r" \\label\{.*?\}", "", text)
    body = pypandoc.convert_text(
        text,
        "typst",
        "markdown",
        extra_args=["--citeproc", f"--bibliography={FOLDER / paper['bibliography']}"],
    )
    authors = ", ".join(author["name"] for author in paper["authors"])
    title = f"#align(center)[#text(15pt)[*{paper['title']}* ] \\ {authors}, {paper['date']}]\n"
    rule = "#let horizontalrule = line(length: 100%)\n"
    (FOLDER / "paper.pdf").write_bytes(typst.compile((STYLE + rule + title + body).encode()))
    words = len(re.findall(r"\b\w[\w'-]*", text.partition("# References")[0]))
    print(f"wrote {FOLDER / 'paper.pdf'}: about {words} words")


if __name__ == "__main__":
    main()
