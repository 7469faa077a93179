"""Writes the equations as text and as LaTeX."""

import re
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from ._functions import COMPARISONS
from ._lines import Line, Lines, base

GREEK = re.findall(
    r"\w+",
    "alpha beta gamma delta epsilon eta theta kappa lambda mu nu omega phi psi rho sigma tau xi",
)
SIGNS = {"==": "=", "!=": r"\ne", "<=": r"\le", ">=": r"\ge"}
HEADS = "e", "epsilon", "ebar", "epsilonbar", "low", "L", "c", "xbar"
"""Letters below which a name that is the same everywhere is left out, beside indices."""
OVER = {"ebar": r"\bar{e}", "epsilonbar": r"\bar{\epsilon}", "low": r"\bar{e}", "xbar": r"\bar{x}"}
"""Letters with a bar."""
OF_TEXT = {c: rf"\{c}" for c in "#%&${}_"} | {"\\": r"\textbackslash{}"}
OF_TEXT |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
"""What stands for signs that are no text in LaTeX."""
CLOSING = {"(": ")", "|": "|"}
SYMBOL = re.compile(r"(.+?)('?)(\[[^#^]*\])?(\^T)?(?:#(\w+))?")
NOTATION = (
    (r"^{\prime}", "A prime marks a value after the step."),
    (
        r"\odot",
        r"$\odot$ multiplies element by element; a vector before a matrix multiplies its rows.",
    ),
    (r"\operatorname{stop}", r"$\operatorname{stop}$ is the identity, without a derivative."),
    (r"\left[", r"A condition in brackets is 1 where it holds, and 0 elsewhere."),
    (r"\right]_{\frac", r"With $\frac{1}{2}$ below it is that where both sides are equal."),
    (r"\mathrm{d} E", r"$E$ is the sum of the losses $\ell$ of all steps."),
    (r"\approx", r"The gradient is approximate, as it leaves some influence out."),
    (
        r"y_{k}^{*}",
        r"$y_{k} - y_{k}^{*}$ is the derivative of half a squared error by $y_{k}$; another loss has its own.",
    ),
)
"""What is said of signs, where they stand."""


class InOrder:
    """Sums with traces first, then what enters them; numbers and what is subtracted last."""

    def _as_ordered_terms(self, expr: Any, order: Any = None) -> list[Any]:
        is_trace = lambda s: not s.is_commutative and not s.name.endswith("^T")
        of_trace = lambda term: any(map(is_trace, term.atoms(sp.Symbol)))
        key = lambda term: (
            *(term.could_extract_minus_sign(), term.is_Number, not of_trace(term)),
            sp.default_sort_key(term),
        )
        return sorted(expr.args, key=key)


class Text(InOrder, StrPrinter):
    """Expressions as text; a condition is in brackets."""

    def _print_Float(self, expr: Any) -> str:
        return f"{float(expr):.8g}"

    def _print_Mul(self, expr: Any) -> str:
        dots = [f for f in expr.args if type(f).__name__ == "dot"]
        within = {f: sp.Symbol(f"({self._print(f)})") for f in dots}
        return super()._print_Mul(expr.xreplace(within))

    def _print_Function(self, expr: Any) -> str:
        name, arguments = type(expr).__name__, [self._print(a) for a in expr.args]
        if name in COMPARISONS:
            return f"[{arguments[0]} {COMPARISONS[name]} {arguments[1]}]"
        if name == "dot":
            return " @ ".join(arguments)
        return f"{name}({', '.join(arguments)})"


class Latex(InOrder, LatexPrinter):
    """Expressions as LaTeX: of whole arrays, or with indices."""

    def __init__(self, lines: Lines):
        super().__init__({"full_prec": False})
        self.lines, self.indexed = lines, lines.indexed
        heads = dict[str, list[tuple[str, ...]]]()
        for array in lines.arrays.values():
            heads.setdefault(array.tex[0], []).append(array.tex) if array.tex else None
        alike = lambda several, n: len({t[n] for t in several if n < len(t)}) < 2
        self._alike = {
            head: {n for n in range(1, 4) if alike(several, n)} for head, several in heads.items()
        }
        """The places of names below a letter that are the same wherever it stands: with indices they are left out."""

    def _print_Symbol(self, expr: Any, style: str = "plain") -> str:
        found = SYMBOL.fullmatch(expr.name)
        assert found is not None
        name, prime, place, transposed, letters = found.groups()
        array = self.lines.arrays.get(name + prime) or self.lines.arrays.get(name + "'")
        head, *below = array.tex if array is not None and array.tex else (name,)
        of = lambda n: self._print(sp.Symbol(below[n] + (f"#{letters}" if letters else "")))
        if head == "dl" and below and letters and self.lines.rule.of_eprop:
            target = self._print(sp.Symbol(f"{below[0].removesuffix(chr(39))}#{letters}"))
            return rf"\left({of(0)} - {target}^{{*}}\right)"
        if head == "dl" and below:
            return rf"\frac{{\partial \ell}}{{\partial {of(0)}}}"
        if head == "g" and below:
            return rf"\frac{{\mathrm{{d}} E}}{{\mathrm{{d}} {of(0)}}}"
        if head == "d" and below:
            parts = (rf"\mathrm{{d}} {of(0)}",) if len(below) < 2 else (of(0), of(1))
            return (
                parts[0]
                if len(parts) < 2
                else r"\frac{{\partial {}}}{{\partial {}}}".format(*parts)
            )
        if self.indexed and array is not None and array.tex and head in HEADS:
            below = [b for n, b in enumerate(below, 1) if n not in self._alike[head]]
        if array in self.lines.rule.step.values:  # as papers write feedback weights
            letters = letters and letters[::-1]
        below = [*map(self._label, below), *([letters] if letters else [])]
        above = r"\prime" * bool(prime) + r"\top" * bool(transposed)
        word, _, under = _word(head).partition("_{")
        below = [*([under[:-1]] if under else []), *below]
        text = word + (f"_{{{', '.join(below)}}}" if below else "")
        return (
            text
            + (f"^{{{above}}}" if above else "")
            + (rf"{{\scriptstyle {place}}}" if place else "")
        )

    def _label(self, name: str) -> str:
        """A name that stands below another one."""
        array = self.lines.arrays.get(name) or self.lines.arrays.get(name + "'")
        return self._print(sp.Symbol(name)) if array is not None and array.tex else _word(name)

    def _print_Function(self, expr: Any, exp: Any = None) -> str:
        name, arguments = type(expr).__name__, [self._print(a) for a in expr.args]
        first, brackets = next(iter(arguments), ""), ", ".join(arguments)
        if name in COMPARISONS:
            sign = COMPARISONS[name]
            text = rf"\left[{first} {SIGNS.get(sign, sign)} {arguments[1]}\right]"
        elif name == "above":
            text = rf"\left[{first} > {arguments[1]}\right]_{{\frac{{1}}{{2}}}}"
        elif name == "where" and expr.args[1:] == (1, -1):
            text = rf"\left(2 {first} - 1\right)"
        elif name == "abs":
            text = rf"\left|{first}\right|"
        elif name == "dot":
            rows, columns = (self._axes(a) for a in expr.args)
            text = (
                rf"{arguments[1]}^{{\top}} {first}"
                if columns > rows
                else rf"{first} \, {arguments[1]}"
            )
        elif name.startswith("sum_"):
            first = rf"\left({first}\right)" if expr.args[0].is_Add else first
            text = rf"\sum_{{{name[4:]}}} {first}"
        elif name in ("max", "min"):
            text = rf"\{name}\left({brackets}\right)"
        elif hasattr(sp, name):
            return super()._print_Function(expr, exp)
        else:
            text = rf"{_word(name) if len(name) < 2 or name in GREEK else _named(name)}\left({brackets}\right)"
        return text if exp is None else rf"{{{text}}}^{{{exp}}}"

    def _axes(self, value: Any) -> int:
        arrays = [self.lines.arrays.get(base(s)) for s in value.free_symbols]
        return max((len(a.shape) for a in arrays if a is not None), default=0)

    def _print_Float(self, expr: Any) -> str:
        digits, _, power = f"{float(expr):.8g}".partition("e")
        return digits + (rf" \cdot 10^{{{int(power)}}}" if power else "")

    def _print_Add(self, expr: Any, order: Any = None) -> str:
        return " ".join(self._pieces(expr, float("inf")))

    def _print_Mul(self, expr: Any) -> str:
        sign = "- " if expr.could_extract_minus_sign() else ""
        return sign + " ".join(
            f"{between}{text}" for between, text, _ in self._factors(-expr if sign else expr)
        )

    def _factors(self, term: Any) -> list[tuple[str, str, Any]]:
        """The factors of a product, each with the sign before it: numbers first, then arrays element by element, and
        last what stands along the columns."""
        commuting, others = term.args_cnc(split_1=False)
        above, below = sp.fraction(sp.Mul(*commuting))
        is_array = lambda f: any(base(s) not in self.lines.scalars for s in f.free_symbols)
        parts = [a for a in sp.Mul.make_args(above) if a != 1 or below != 1]
        key = lambda f: (
            not f.is_Number,
            is_array(f),
            f.has(sp.Function("sum")),
            sp.default_sort_key(f),
        )
        parts = sorted(parts, key=key)
        if below != 1:
            product = self._print(sp.Mul(*parts)) if parts else "1"
            fraction = sp.Mul(*parts) / below
            found = [
                ("", rf"\frac{{{product}}}{{{self._print(below)}}}", fraction, is_array(fraction))
            ]
        else:
            found = [("", self._in_product(f, term), f, is_array(f)) for f in parts]
        found += [
            ("", self._in_product(f, term), f, not f.is_Symbol or "^T" not in f.name)
            for f in others
        ]
        texts: list[tuple[str, str, Any]] = []
        array_before = False
        for _, text, f, is_of_arrays in found:
            elements = array_before and is_of_arrays and not self.indexed
            texts.append((r"\odot " if elements else r"\, " if texts else "", text, f))
            array_before |= is_of_arrays
        return texts

    def _in_product(self, factor: Any, term: Any) -> str:
        text = self._print(factor)
        sums = type(factor).__name__ == "dot" or type(factor).__name__.startswith("sum_")
        return rf"\left({text}\right)" if factor.is_Add or (sums and factor != term) else text

    def _pieces(self, value: Any, room: float) -> list[str]:
        """A sum in pieces that are no longer than there is room, at any of which a line may end."""
        found: list[str] = []
        for n, term in enumerate(self._as_ordered_terms(value) if value.is_Add else [value]):
            minus = term.could_extract_minus_sign()
            lead, term = "- " if minus else "+ " if n else "", -term if minus else term
            whole = size(text := self._print(term)) <= room
            factors = self._factors(term) if term.is_Mul and not whole else [("", text, term)]
            for between, text, factor in factors:
                head, inner, bracket = "", factor, "("
                if size(text) > room and factor.is_Function and len(factor.args) == 1:
                    (inner,) = factor.args
                    shape = self._print(factor.func(sp.Symbol("u") - 1))  # none of a power of e
                    around = re.fullmatch(r"(.*?)\{?\\left(.)u - 1 ?\\right.\}?", shape)
                    head, bracket = around.groups() if around else (r"\exp", "(")
                if size(text) > room and inner.is_Add:
                    pieces = self._pieces(inner, room)
                    pieces[0] = rf"{head}\bigl{bracket}{pieces[0]}"
                    pieces[-1] += rf"\bigr{CLOSING[bracket]}"
                else:
                    pieces = [text]
                found += [lead + between + pieces[0], *pieces[1:]]
                lead = ""
        return found

    def rows(self, left: str, sign: str, value: Any, width: int) -> str:
        """An equation in lines of a width."""
        lines, used = [""], size(left) + 2 * len(sign.split())
        for piece in self._pieces(value, width - 6):
            if used + size(piece) > width and lines[-1]:
                lines.append("")
                used = 4
            lines[-1] += f" {piece}"
            used += size(piece)
        return f"{left} &{sign}" + " \\nonumber \\\\\n&\\quad".join(lines)


def size(text: str) -> int:
    """About how many letters wide a formula is; what stands below others is smaller."""
    text = re.sub(r"\\frac\{(.*?)\}\{(.*?)\}", lambda f: max(f.groups(), key=len), text)
    text = re.sub(r"\\(left|right|bigl|bigr|mathrm|operatorname|bar|scriptstyle|,|quad)", "", text)
    text = re.sub(r"\\sum_\{.\}", "xxx", text)
    text = re.sub(r"\\[a-zA-Z]+", "x", text)
    below = re.findall(r"[_^]\{([^{}]*)\}", text)
    signs = len(re.findall(r"(?:^| )[-+=x] ", text))
    return len(re.sub(r"[\s{}_^\\]", "", text)) - sum(len(b) for b in below) // 3 + signs


def _word(name: str) -> str:
    """A name in mathematics: `tau_mem` as a letter with what stands below it."""
    name, prime = name.removesuffix("'"), "^{\\prime}" * name.endswith("'")
    if name in OVER:
        return OVER[name]
    first, *below = name.split("_")
    letter = re.fullmatch(rf"([A-Za-z]|{'|'.join(GREEK)})(\d+)", first)
    if letter:
        first, below = letter[1], [letter[2], *below]
    words = [
        rf"\{w}"
        if w in GREEK
        else rf"\mathrm{{{_escaped(w)}}}"
        if w[1:] and not w.isdigit()
        else _escaped(w)
        for w in (first, *below)
    ]
    return words[0] + (f"_{{{', '.join(words[1:])}}}" if words[1:] else "") + prime


def _named(name: str) -> str:
    return rf"\operatorname{{{_escaped(name)}}}"


def _escaped(text: str) -> str:
    """Text, with signs that are none in LaTeX."""
    return re.sub(r"[\\~^#%&${}_]", lambda found: OF_TEXT[found[0]], text)


def as_text(lines: Lines) -> str:
    printer, parts = Text({"full_prec": False}), list[str]()
    for title, of in lines.sections.items():
        sides = [f"{printer.doprint(x.left)} {x.sign} {printer.doprint(x.right)}" for x in of]
        notes = [f"    ({x.note})" if x.note else "" for x in of]
        parts.append(
            "\n".join([title, *("    " + a + b for a, b in zip(sides, notes, strict=True))])
        )
    if lines.left_out:
        parts.append("\n    ".join(["what is left out", *lines.left_out]))
    return "\n\n".join(parts)


def as_latex(lines: Lines, width: int) -> str:
    """A heading and a block of `align` for each section, and a paragraph on notation."""
    printer, parts = Latex(lines), list[str]()
    notes: list[str] = [n for line in lines.functions if (n := _remark(printer, line))]
    for title, of in lines.sections.items():
        rows, given = list[str](), dict[Any, Any]()
        for line in of:
            given[line.left] = given.get(line.left, 0) + line.right
        for left, right in given.items():
            rows.append(printer.rows(*_sides(printer, left, right), width))
        block = "\\begin{align}\n" + " \\\\\n".join(rows) + "\n\\end{align}"
        if title == "constants":
            block = ", ".join(f"${row.replace(' &', ' ')}$" for row in rows) + "."
        parts.append(f"{_in_words(title[:1].upper() + title[1:], printer)}:\n{block}")
    text = "\n\n".join(parts)
    notes += [note for sign, note in NOTATION if sign in text]
    left_out = [_in_words(line, printer) for line in lines.left_out]
    notes += [f"Left out: {'; '.join(left_out)}."] if left_out else []
    return text + ("\n\n" + "\n".join(notes) if notes else "")


def _sides(printer: Latex, left: Any, right: Any) -> tuple[str, str, Any]:
    """The left side, the sign and the right side: a gradient is a sum over time."""
    lines, name = printer.lines, printer.doprint(left)
    gradients = {a.text for a in lines.rule.gradient.values()}
    is_gradient = lambda symbol: base(symbol) in gradients
    if not is_gradient(left):
        return name, "=", right
    others = [term for term in sp.Add.make_args(right) if any(map(is_gradient, term.free_symbols))]
    of_steps = right - sp.Add(*others)
    total = sp.Function("sum_t")(of_steps) if of_steps != 0 else 0
    return name, r"\approx" if lines.left_out else "=", total + sp.Add(*others)


def _in_words(text: str, printer: Latex) -> str:
    """A title, or a path that is cut, with what it names in mathematics."""
    step = printer.lines.rule.step
    leaves = (step.step.model_leaves.paths, step.parameters), (step.step.state_paths, step.state)
    pairs = (pair for of in leaves for pair in zip(*of, strict=True))
    names = {path: parts[0].text.removesuffix("_re") for path, parts in pairs} | {"->": r"\to"}
    longest = sorted(map(re.escape, names), key=len, reverse=True)
    found = re.split(rf"(?:hidden )?(?<!\w)({'|'.join(longest)})(?![\w.])", text)
    shown = lambda path: r"\to" if path == "->" else printer.doprint(sp.Symbol(names[path]))
    return "".join(f"${shown(t)}$" if n % 2 else _escaped(t) for n, t in enumerate(found))


def _remark(printer: Latex, line: Line) -> str:
    """What a derivative that a model defines stands for."""
    name, _, of = line.note.partition(" stands for the derivative of ")
    symbols = [
        printer.doprint(sp.Function(n)(sp.Symbol("u"))).partition(r"\left(")[0] for n in (name, of)
    ]
    return f"${symbols[0]}$ stands for the derivative of ${symbols[1]}$." if of else ""
