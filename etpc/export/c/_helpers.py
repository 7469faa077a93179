"""What operators and functions of C do otherwise than StableHLO: as functions of C, of which a file has those it calls.

Each is for one type, or for two, which its name ends with: `etpc_divide_int32`, `etpc_convert_uint8_float`.
"""

import re
from collections.abc import Iterator

SHORT = {"float complex": "cfloat", "double complex": "cdouble"}
LONG = {short: c_type for c_type, short in SHORT.items()}


class Missing(Exception):
    """There is no C for what the text names."""


def helper(name: str, *c_types: str) -> str:
    """The name of a helper for these types. **Raises** `Missing`."""
    if name not in helpers_for(c_types[0]):
        raise Missing(f"{name} of {c_types[0]}")
    return "_".join(["etpc", name, *(SHORT.get(t, t.removesuffix("_t")) for t in c_types)])


def bits_of(c_type: str) -> int:
    """Of an integer type."""
    return int("".join(c for c in c_type if c.isdigit()))


def wrapping(c_type: str) -> str:
    """The unsigned type to compute in, so that what overflows wraps around: C has no result for it in others."""
    return "uint64_t" if bits_of(c_type) == 64 else "uint32_t"


# T is the type and N the end of its name, F the end of functions of <math.h> for it. Of an integer type, U is the one
# that wraps around, S the signed one of its size and B its bits; of a complex one, R is the type of its parts. O is the
# type that a conversion is from.
INTEGERS = {
    "divide": "T etpc_divide_N(T a, T b) {\n    return b == 0 ? (T)-1 : a == MIN && b == (T)-1 ? MIN : (T)(a / b);\n}",
    "remainder": "T etpc_remainder_N(T a, T b) {\n    return b == 0 ? a : a == MIN && b == (T)-1 ? 0 : (T)(a % b);\n}",
    "absolute": "T etpc_absolute_N(T a) {\n    return a > 0 ? a : (T)(0u - (U)a);\n}",
    "sign": "T etpc_sign_N(T a) {\n    return a > 0 ? 1 : a == 0 ? 0 : (T)-1;\n}",
    "shift_left": "T etpc_shift_left_N(T a, T b) {\n    return (uint64_t)b < B ? (T)((U)a << b) : 0;\n}",
    "shift_logical": "T etpc_shift_logical_N(T a, T b) {\n    return (uint64_t)b < B ? (T)((uS)a >> b) : 0;\n}",
    "shift_arithmetic": """\
T etpc_shift_arithmetic_N(T a, T b) {
    const int by = (uint64_t)b < B ? (int)b : B - 1;
    return (T)((S)a < 0 ? ~(~(S)a >> by) : (S)a >> by);
}""",
    "convert": """\
T etpc_convert_N_O(O a) {
    if (a != a) return 0;
    if (a <= (O)MIN) return MIN;
    return a >= (O)(MAX / 2 + 1) * 2 ? MAX : (T)a;
}""",
}
FLOATS = {
    "maximum": "T etpc_maximum_N(T a, T b) {\n    return a > b || a != a || (a == b && !signbit(a)) ? a : b;\n}",
    "minimum": "T etpc_minimum_N(T a, T b) {\n    return a < b || a != a || (a == b && signbit(a)) ? a : b;\n}",
    "sign": "T etpc_sign_N(T a) {\n    return a > 0 ? 1 : a < 0 ? -1 : a;\n}",
    "rounded": """\
T etpc_rounded_N(T a, int bits) {
    U u, unit = (U)1 << (M - bits);
    memcpy(&u, &a, sizeof u);
    if (a != a || unit == 1) return a;
    u = (u + unit / 2 - 1 + (u / unit & 1)) & ~(unit - 1);
    memcpy(&a, &u, sizeof u);
    return a;
}""",
}
ANY = {
    "maximum": "T etpc_maximum_N(T a, T b) {\n    return a > b ? a : b;\n}",
    "minimum": "T etpc_minimum_N(T a, T b) {\n    return a < b ? a : b;\n}",
    **{name: f"bool etpc_{name}_N(T a, T b) {{\n    return a {sign} b;\n}}" for name, sign in {
        "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    }.items()},
}  # fmt: skip
COMPLEX = {
    "made": """\
T etpc_made_N(R a, R b) {
    union {
        R parts[2];
        T number;
    } made = {{a, b}};
    return made.number;
}""",
    "multiply": """\
T etpc_multiply_N(T a, T b) {
    const R u = crealF(a), v = cimagF(a), x = crealF(b), y = cimagF(b);
    return etpc_made_N(u * x - v * y, u * y + v * x);
}""",
    "absolute": """\
R etpc_absolute_N(T a) {
    return isnan(crealF(a)) || isnan(cimagF(a)) ? NAN : cabsF(a);
}""",
    "power": """\
T etpc_power_N(T a, T b) {
    const R x = crealF(b), y = cimagF(b), size = cabsF(a), angle = cargF(a);
    if (size == 0 && y == 0 && x >= 0) return x == 0;
    const R turn = x * angle + y * logF(size), scale = powF(size, x) * expF(-y * angle);
    return etpc_made_N(scale * cosF(turn), scale * sinF(turn));
}""",
    "sign": """\
T etpc_sign_N(T a) {
    const R size = etpc_absolute_N(a);
    return size == 0 ? 0 : etpc_made_N(crealF(a) / size, cimagF(a) / size);
}""",
    "expm1": """\
T etpc_expm1_N(T a) {
    const R x = crealF(a), y = cimagF(a), half = sinF(y / 2);
    return etpc_made_N(expm1F(x) * cosF(y) - 2 * half * half, y == 0 ? y : expF(x) * sinF(y));
}""",
    "log1p": """\
T etpc_log1p_N(T a) {
    const R x = crealF(a), y = cimagF(a);
    return etpc_made_N(log1pF(x * (2 + x) + y * y) / 2, atan2F(y, 1 + x));
}""",
}


def helpers_for(c_type: str) -> dict[str, str]:
    """The helpers for a type, by name."""
    if "complex" in c_type:
        return COMPLEX
    return ANY if c_type == "bool" else ANY | (INTEGERS if "int" in c_type else FLOATS)


def _meanings(c_type: str, other: str) -> dict[str, str]:
    """What the words in the helpers for a type mean."""
    words = {"T": c_type, "O": other, "F": "f" if c_type.startswith("float") else ""}
    if c_type in ("float", "double"):
        size, mantissa = (32, 23) if c_type == "float" else (64, 52)
        return words | {"U": f"uint{size}_t", "M": str(mantissa)}
    if "int" not in c_type:
        return words | {"R": c_type.split()[0]}
    of, signed = c_type.upper().removesuffix("_T"), c_type.lstrip("u")
    limits = {"MIN": "0" if c_type[0] == "u" else f"{of}_MIN", "MAX": f"{of}_MAX"}
    bits = {"U": wrapping(c_type), "S": signed, "uS": f"u{signed}", "B": str(bits_of(c_type))}
    return words | limits | bits


def helpers_of(text: str, known: set[str] | None = None) -> Iterator[str]:
    """The helpers that a text calls, each after those that it calls itself."""
    known = set() if known is None else known
    names = "|".join({**INTEGERS, **FLOATS, **ANY, **COMPLEX})
    ends = "bool|u?int[0-9]+|c?float|c?double"
    for match in re.finditer(rf"\betpc_({names})_({ends})(?:_({ends}))?\(", text):
        if match[0] in known:
            continue
        known.add(match[0])
        full = lambda end: f"{end}_t" if end and "int" in end else LONG.get(end, end or "")
        words = _meanings(full(match[2]), full(match[3]))
        body = (
            helpers_for(words["T"])[match[1]]
            .replace("_N", f"_{match[2]}")
            .replace("_O", f"_{match[3]}")
        )
        body = re.sub(r"\b(?:[TORUSBM]|uS|MIN|MAX)\b", lambda m, words=words: words[m[0]], body)
        body = re.sub(r"([a-z0-9])F\(", rf"\1{words['F']}(", body)
        yield from helpers_of(body.partition("{")[2], known)
        yield f"static inline {body}"
