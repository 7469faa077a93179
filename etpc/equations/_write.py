"""Writes the equations as text and as LaTeX."""

import re
from typing import Any

import sympy as sp
from sympy.core.alphabets import greeks
from sympy.printing.conventions import split_super_sub
from sympy.printing.latex import LatexPrinter
from sympy.printing.str import StrPrinter

from ._functions import COMPARISONS
from ._lines import SLOPE, Lines, base
from ._nodes import Array

GREEK = {*greeks, "lambda"} - {"lamda", "omicron"}
HEADS = "e", "epsilon", "ebar", "epsilonbar", "low", "L", "c", "xbar"
"""Letters below which a name that is the same everywhere is left out, beside indices."""
OVER = {"ebar": r"\bar{e}", "epsilonbar": r"\bar{\epsilon}", "low": r"\bar{e}", "xbar": r"\bar{x}"}
"""Letters with a bar."""
FRACTIONS = {
    "dl": r"\frac{{\partial \ell}}{{\partial {}}}",
    "g": r"\frac{{\mathrm{{d}} E}}{{\mathrm{{d}} {}}}",
    "d": r"\frac{{\partial {}}}{{\partial {}}}",
}
FORMS = {
    **{n: rf"\left[{{}} {COMPARISONS[n]} {{}}\right]" for n in ("lt", "gt")},
    **{n: rf"\left[{{}} \{n} {{}}\right]" for n in ("ne", "le", "ge")},
    "eq": r"\left[{} = {}\right]",
    "above": r"\left[{} > {}\right]_{{\frac{{1}}{{2}}}}",
    "abs": r"\left|{}\right|",
}
"""Functions with a form of their own."""
WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum"}
"""Signs that are no text in LaTeX."""
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
        def key(term: Any) -> Any:
            symbols = term.atoms(sp.Symbol)
            has_trace = any(not s.is_commutative and not s.name.endswith("^T") for s in symbols)
            is_last = term.could_extract_minus_sign(), term.is_Number, not has_trace
            return *is_last, sp.default_sort_key(term)

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
            within = lambda a, of: f"({a})" if of.is_Add or of.is_Mul else a
            return " @ ".join(map(within, arguments, expr.args))
        return f"{name}({', '.join(arguments)})"


class Latex(InOrder, LatexPrinter):
    """Expressions as LaTeX: of whole arrays, or with indices."""

    def __init__(self, lines: Lines):
        super().__init__({"full_prec": False})
        self.lines, self.indexed = lines, lines.indexed

    def _array(self, name: str) -> Array | None:
        """The array of a name that is made of more than one."""
        found = self.lines.arrays.get(name) or self.lines.arrays.get(name + "'")
        return found if found is not None and found.tex else None

    def _is_alike(self, head: str, n: int) -> bool:
        """Whether a name below a letter is the same wherever that stands: with indices it is left out."""
        every = (a.tex for a in self.lines.arrays.values() if a.tex[:1] == (head,))
        return len({tex[n] for tex in every if n < len(tex)}) < 2

    def _print_Symbol(self, expr: Any, style: str = "plain") -> str:
        found: Any = SYMBOL.fullmatch(expr.name)
        name, prime, place, transposed, letters = found.groups("")
        array = self._array(name + prime)
        head, *below = (name,) if array is None else array.tex
        if head in FRACTIONS and below:
            of = [self._print(sp.Symbol(f"{b}#{letters}" if letters else b)) for b in below]
            if head == "dl" and letters and self.lines.rule.derivatives.of_eprop:
                target = self._print(sp.Symbol(f"{below[0].removesuffix(chr(39))}#{letters}"))
                return rf"\left({of[0]} - {target}^{{*}}\right)"
            return FRACTIONS[head].format(*of)
        is_primed = prime and not "".join(below[-1:]).endswith("'")  # it is that of the last name
        above = r"\prime" * bool(is_primed) + r"\top" * bool(transposed)
        if self.indexed and head in HEADS:
            below = [b for n, b in enumerate(below, 1) if not self._is_alike(head, n)]
        if self.lines.arrays.get(name) in self.lines.rule.step.values:
            letters = letters[::-1]  # as papers write feedback weights
        word, _, under = _word(head).partition("_{")
        labels = [_word(b) if self._array(b) is None else self._print(sp.Symbol(b)) for b in below]
        below = [*filter(None, [under[:-1], *labels, letters])]
        text = word + (f"_{{{', '.join(below)}}}" if below else "")
        return text + (f"^{{{above}}}" if above else "") + (place and rf"{{\scriptstyle {place}}}")

    def _print_Function(self, expr: Any, exp: Any = None) -> str:
        name, arguments = type(expr).__name__, [self._print(a) for a in expr.args]
        if name in FORMS:
            text = FORMS[name].format(*arguments)
        elif name == "where" and expr.args[1:] == (1, -1):
            text = rf"\left(2 {arguments[0]} - 1\right)"
        elif name == "dot":
            within = lambda a, of: rf"\left({a}\right)" if of.is_Add or of.is_Mul else a
            first, second = map(within, arguments, expr.args)
            rows, columns = map(self._axes, expr.args)
            is_primed = second.endswith(r"^{\prime}")  # one superscript has both
            turned = rf"{second[:-1]}\top}}" if is_primed else rf"{second}^{{\top}}"
            text = f"{turned} {first}" if columns > rows == 1 else rf"{first} \, {second}"
        elif name.startswith("sum_"):
            brackets = r"\left({}\right)" if expr.args[0].is_Add else "{}"
            text = rf"\sum_{{{name[4:]}}} {brackets.format(*arguments)}"
        else:
            power = f"^{{{exp}}}" if exp and name in OF_LATEX else ""
            text = rf"{_head(name)}{power}\left({', '.join(arguments)}\right)"
            exp = None if power else exp
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
        is_last = lambda f: (not f.is_Number, is_array(f), f.has(sp.Function("sum")))
        order = lambda f: (*is_last(f), sp.default_sort_key(f))
        given = [f for f in sorted(sp.Mul.make_args(above), key=order) if f != 1]
        factors = [(self._factor(f, term), is_array(f)) for f in given]
        if below != 1:
            text = rf"\frac{{{self._print(above)}}}{{{self._print(below)}}}"
            factors = [(text, is_array(above / below))]
        by_columns = lambda f: f.is_Symbol and "^T" in f.name
        factors += [(self._factor(f, term), not by_columns(f)) for f in others]
        text, array_before = "", False
        for shown, of_arrays in factors:
            elements = array_before and of_arrays and not self.indexed
            text += (r" \odot " if elements else r" \, " if text else "") + shown
            array_before |= of_arrays
        return sign + text

    def _factor(self, factor: Any, term: Any) -> str:
        """A factor of a term, in brackets where it needs them."""
        is_sum = type(factor).__name__.startswith(("dot", "sum_")) and factor != term
        text = self._print(factor)
        return rf"\left({text}\right)" if factor.is_Add or is_sum else text

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
    name, prime = name.removesuffix("'"), r"^{\prime}" * name.endswith("'")
    if name in OVER:
        return OVER[name]
    parts: Any = split_super_sub(name)
    first, *below = [_letter(part) for part in (parts[0], *parts[2])]
    return first + (f"_{{{', '.join(below)}}}" if below else "") + prime


def _letter(name: str) -> str:
    """A letter, or a word, of a name."""
    if name in GREEK:
        return f"\\{name}"
    return rf"\mathrm{{{_escaped(name)}}}" if name[1:] and not name.isdigit() else _escaped(name)


def _head(name: str) -> str:
    """A function."""
    if name in OF_LATEX:
        return f"\\{name}"
    is_word = name[1:] and name not in GREEK
    return rf"\operatorname{{{_escaped(name)}}}" if is_word else _word(name)


def _escaped(text: str) -> str:
    """Text, with signs that are none in LaTeX."""
    sign = lambda c: rf"\text{WORDS[c]}{{}}" if c in WORDS else f"\\{c}"
    return re.sub(r"[\\~^#%&${}_]", lambda found: sign(found[0]), text)


def as_text(lines: Lines) -> str:
    shown, parts = Text({"full_prec": False}).doprint, list[str]()
    for title, of in lines.sections.items():
        sides = [f"    {shown(x.left)} {x.sign} {shown(x.right)}" for x in of]
        notes = [f"    ({x.note})" if x.note else "" for x in of]
        parts.append("\n".join([title, *map(str.__add__, sides, notes)]))
    if lines.left_out:
        parts.append("\n    ".join(["what is left out", *lines.left_out]))
    return "\n\n".join(parts)


def as_latex(lines: Lines, width: int) -> str:
    """A heading and a block of `align` for each section, and a paragraph on notation."""
    printer, parts = Latex(lines), list[str]()
    for title, of in lines.sections.items():
        given = dict[Any, Any]()
        for line in of:
            given[line.left] = given.get(line.left, 0) + line.right
        rows = [printer.rows(*_sides(printer, *sides), width) for sides in given.items()]
        block = "\\begin{align}\n" + " \\\\\n".join(rows) + "\n\\end{align}"
        if title == "constants":
            block = ", ".join(f"${row.replace(' &', ' ')}$" for row in rows) + "."
        parts.append(f"{_in_words(title[:1].upper() + title[1:], printer)}:\n{block}")
    text = "\n\n".join(parts)
    slopes = [x.note.split(SLOPE) for of in lines.sections.values() for x in of if SLOPE in x.note]
    notes = [f"${_head(a)}${SLOPE}${_head(b)}$." for a, b in slopes]
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
    is_other = lambda term: any(map(is_gradient, term.free_symbols))
    others = sp.Add(*filter(is_other, sp.Add.make_args(right)))
    total = sp.Function("sum_t")(right - others) if right != others else 0
    return name, r"\approx" if lines.left_out else "=", total + others


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
