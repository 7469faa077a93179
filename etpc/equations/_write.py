"""Writes the equations as text and as LaTeX."""

import re
from typing import Any

import sympy as sp
from sympy.core.alphabets import greeks
from sympy.printing.conventions import split_super_sub
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from ._functions import COMPARISONS
from ._lines import Lines, base

GREEK = {*greeks, "lambda"} - {"lamda", "omicron"}
SIGNS = {"==": "=", "!=": r"\ne", "<=": r"\le", ">=": r"\ge"}
HEADS = "e", "epsilon", "ebar", "epsilonbar", "low", "L", "c", "xbar"
"""Letters below which a name that is the same everywhere is left out, beside indices."""
OVER = {"ebar": r"\bar{e}", "epsilonbar": r"\bar{\epsilon}", "low": r"\bar{e}", "xbar": r"\bar{x}"}
"""Letters with a bar."""
FRACTIONS = {
    "dl": r"\frac{{\partial \ell}}{{\partial {}}}",
    "g": r"\frac{{\mathrm{{d}} E}}{{\mathrm{{d}} {}}}",
    "d": r"\frac{{\partial {}}}{{\partial {}}}",
}
OF_TEXT = {c: rf"\{c}" for c in "#%&${}_"} | {"\\": r"\textbackslash{}"}
OF_TEXT |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
"""What stands for signs that are no text in LaTeX."""
OF_LATEX = "sin", "cos", "tan", "sinh", "cosh", "tanh", "log", "max", "min"
"""Functions that LaTeX has."""
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
        with_letters = lambda b: self._print(sp.Symbol(b + (f"#{letters}" if letters else "")))
        of = [*map(with_letters, below)] if head in FRACTIONS else []
        if head == "dl" and of and letters and self.lines.rule.derivatives.of_eprop:
            target = self._print(sp.Symbol(f"{below[0].removesuffix(chr(39))}#{letters}"))
            return rf"\left({of[0]} - {target}^{{*}}\right)"
        if head in FRACTIONS and of:
            return FRACTIONS[head].format(*of)
        prime = prime and not "".join(below[-1:]).endswith("'")  # it is that of the last name
        above = r"\prime" * bool(prime) + r"\top" * bool(transposed)
        if self.indexed and array is not None and array.tex and head in HEADS:
            below = [b for n, b in enumerate(below, 1) if n not in self._alike[head]]
        if array in self.lines.rule.step.values:  # as papers write feedback weights
            letters = letters and letters[::-1]
        word, _, under = _word(head).partition("_{")
        below = [*filter(None, [under[:-1]]), *map(self._label, below), *filter(None, [letters])]
        text = word + (f"_{{{', '.join(below)}}}" if below else "")
        place = rf"{{\scriptstyle {place}}}" if place else ""
        return text + (f"^{{{above}}}" if above else "") + place

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
        else:
            power = f"^{{{exp}}}" if exp and name in OF_LATEX else ""
            text, exp = rf"{_head(name)}{power}\left({brackets}\right)", None if power else exp
        return text if exp is None else rf"{{{text}}}^{{{exp}}}"

    def _axes(self, value: Any) -> int:
        arrays = [self.lines.arrays.get(base(s)) for s in value.free_symbols]
        return max((len(a.shape) for a in arrays if a is not None), default=0)

    def _print_Float(self, expr: Any) -> str:
        digits, _, power = f"{float(expr):.8g}".partition("e")
        return digits + (rf" \cdot 10^{{{int(power)}}}" if power else "")

    def _print_Mul(self, expr: Any) -> str:
        """Numbers first, then arrays element by element, and last what stands along the columns."""
        sign = "- " if expr.could_extract_minus_sign() else ""
        term = -expr if sign else expr
        commuting, others = term.args_cnc(split_1=False)
        above, below = sp.fraction(sp.Mul(*commuting))
        is_array = lambda f: any(base(s) not in self.lines.scalars for s in f.free_symbols)
        order = lambda f: (
            *(not f.is_Number, is_array(f), f.has(sp.Function("sum"))),
            sp.default_sort_key(f),
        )
        factors = [(f, is_array(f)) for f in sorted(sp.Mul.make_args(above), key=order) if f != 1]
        if below != 1:
            factors = [(sp.Mul(*commuting), is_array(above / below))]
        factors += [(f, not f.is_Symbol or "^T" not in f.name) for f in others]
        text, array_before = "", False
        for f, of_arrays in factors:
            shown = (
                self._print(f)
                if below == 1 or f in others
                else rf"\frac{{{self._print(above)}}}{{{self._print(below)}}}"
            )
            if f.is_Add or (type(f).__name__.startswith(("dot", "sum_")) and f != term):
                shown = rf"\left({shown}\right)"
            elements = array_before and of_arrays and not self.indexed
            text += (r" \odot " if elements else r" \, " if text else "") + shown
            array_before |= of_arrays
        return sign + text

    def rows(self, left: str, sign: str, value: Any, width: int) -> str:
        """An equation in lines of a width."""
        lines, used = [""], size(left) + 2 * len(sign.split())
        for piece in _pieces(self.doprint(value), width - 6):
            if used + size(piece) > width and lines[-1]:
                lines.append("")
                used = 4
            lines[-1] += f" {piece}"
            used += size(piece)
        return f"{left} &{sign}" + " \\nonumber \\\\\n&\\quad".join(lines)


def _split(text: str, between: str) -> list[str]:
    """A formula in parts, at spaces before these signs that stand outside of all brackets."""
    depth, ends = 0, [0]
    for token in re.finditer(rf"\\left|\\right|[{{}}]| (?=(?:{between}) )", text):
        depth += {r"\left": 1, "{": 1, r"\right": -1, "}": -1}.get(token[0], 0)
        ends += [token.end()] if token[0] == " " and depth == 0 else []
    return [text[a:b].strip() for a, b in zip(ends, [*ends[1:], None], strict=True)]


def _pieces(text: str, room: float) -> list[str]:
    """A formula in pieces that are no longer than there is room, at any of which a line may end."""
    found: list[str] = []
    for term in _split(text, r"[-+]"):
        for factor in [term] if size(term) <= room else _split(term, r"\\odot|\\,"):
            inner = re.fullmatch(r"(.*?)\\left([(|])(.*)\\right(.)(.*)", factor)
            is_open = inner and inner[1].count("{") == inner[1].count("}")
            parts = _pieces(inner[3], room) if inner and is_open and size(factor) > room else []
            if inner and len(parts) > 1:
                parts[0] = rf"{inner[1]}\bigl{inner[2]}{parts[0]}"
                parts[-1] += rf"\bigr{inner[4]}{inner[5]}"
            found += parts if len(parts) > 1 else [factor]
    return found


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
    parts: Any = split_super_sub(name)
    first, _, below = parts
    words = [
        rf"\{w}"
        if w in GREEK
        else rf"\mathrm{{{_escaped(w)}}}"
        if w[1:] and not w.isdigit()
        else _escaped(w)
        for w in (first, *below)
    ]
    return words[0] + (f"_{{{', '.join(words[1:])}}}" if words[1:] else "") + prime


def _head(name: str) -> str:
    """A function."""
    is_word = len(name) > 1 and name not in GREEK
    word = rf"\operatorname{{{_escaped(name)}}}" if is_word else _word(name)
    return f"\\{name}" if name in OF_LATEX else word


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
    slopes = (line.note.split(" stands for the derivative of ") for line in lines.functions)
    notes = [
        f"${_head(of[0])}$ stands for the derivative of ${_head(of[1])}$."
        for of in slopes
        if of[1:]
    ]
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
    hidden = [f"hidden {path}" for path in step.step.state_paths]
    leaves = (step.step.model_leaves.paths, step.parameters), (hidden, step.state)
    pairs = (pair for of in leaves for pair in zip(*of, strict=True))
    names = {path: parts[0].text.removesuffix("_re") for path, parts in pairs} | {"->": r"\to"}
    longest = sorted(map(re.escape, names), key=len, reverse=True)
    found = re.split(rf"(?<!\w)({'|'.join(longest)})(?![\w.])", text)
    shown = lambda path: r"\to" if path == "->" else printer.doprint(sp.Symbol(names[path]))
    return "".join(f"${shown(t)}$" if n % 2 else _escaped(t) for n, t in enumerate(found))
