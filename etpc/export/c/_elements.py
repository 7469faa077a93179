"""Operations by element."""

import re
from collections.abc import Callable
from typing import Any

from ..._jax.mlir import integer
from ._program import Body, Missing, Operation, Program, Value, type_of

Formula = Callable[..., str]
"""C from the C types of the result and of the first operand, and the operands."""
FLOATS = ("float", "double")


def _by_element(formula: Formula) -> Operation:
    def handler(program: Program, op: Any, values: list[Value]) -> Value:
        shape, c_type = type_of(op.results[0])
        values = [v if v.shape == shape else program.readable(v) for v in values]

        def element(index: list[str], body: Body) -> str:
            operands = (v.at(index if v.shape else [], body) for v in values)
            return formula(c_type, values[0].c_type, *operands)

        return Value(shape, c_type, element)

    return handler


def _call(name: str) -> Formula:
    """A function of libm, under the name that it has for a type."""

    def formula(c_type: str, of: str, *arguments: str) -> str:
        prefix = "c" if "complex" in of and name not in ("creal", "cimag", "cabs") else ""
        suffix = "f" if of.startswith("float") else ""
        return f"{prefix}{name}{suffix}({', '.join(arguments)})"

    return formula


def _infix(operator: str) -> Formula:
    return lambda t, of, a, b: f"({t})({a} {operator} {b})"


def _extreme(operator: str) -> Formula:
    def formula(t: str, of: str, a: str, b: str) -> str:
        is_nan = f" || {a} != {a}" if t in FLOATS else ""  # as in XLA, NaN wins
        return f"({a} {operator} {b}{is_nan}) ? {a} : {b}"

    return formula


def _shifted(operator: str, unsigned: bool = True) -> Formula:
    def formula(t: str, of: str, a: str, b: str) -> str:
        bits = int("".join(c for c in t if c.isdigit()))
        number = f"(u{t.lstrip('u')}){a}" if unsigned else a
        beyond = "0" if unsigned else f"({a} < 0 ? -1 : 0)"
        return f"({t})((uint64_t){b} < {bits} ? ({number} {operator} {b}) : {beyond})"

    return formula


def _remainder(t: str, of: str, a: str, b: str) -> str:
    return _call("fmod")(t, of, a, b) if t in FLOATS else f"({t})({a} % {b})"


def _absolute(t: str, of: str, a: str) -> str:
    if t not in FLOATS:
        return f"({t})({a} < 0 ? -{a} : {a})"
    return _call("cabs" if "complex" in of else "fabs")(t, of, a)


def _sign(t: str, of: str, a: str) -> str:
    return f"({t})({a} != {a} ? {a} : ({t})(({a} > 0) - ({a} < 0)))"


def _converted(t: str, of: str, a: str) -> str:
    if "complex" in of and "complex" not in t:
        a = _call("creal")(t, of, a)
    return f"({t})({a} != 0)" if t == "bool" else f"({t}){a}"


def _clamped(t: str, of: str, low: str, a: str, high: str) -> str:
    return f"{a} < {low} ? {low} : ({a} > {high} ? {high} : {a})"


def _complemented(t: str, of: str, a: str) -> str:
    return f"!{a}" if t == "bool" else f"({t})~{a}"


def _bitcast(t: str, of: str, a: str) -> str:
    return f"((union {{ {of} from; {t} to; }}){{ .from = {a} }}).to"


def _part(name: str) -> Formula:
    real = lambda a: a if name == "real" else "0"
    return lambda t, of, a: _call(f"c{name}")(t, of, a) if "complex" in of else real(a)


def _compared(program: Program, op: Any, values: list[Value]) -> Any:
    signs = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
    (name,) = re.findall(r"\b[A-Z]{2}\b", str(op.attributes["comparison_direction"]))
    return _by_element(_infix(signs[name]))(program, op, values)


def _rounded(program: Program, op: Any, values: list[Value]) -> Any:
    exponent, mantissa = integer(op, "exponent_bits"), integer(op, "mantissa_bits")
    if {"float": 8, "double": 11}.get(values[0].c_type) != exponent:
        raise Missing(f"reduce_precision with {exponent} bits of exponent")
    name = f"rounded_{values[0].c_type}"
    return _by_element(lambda t, of, a: f"{name}({a}, {mantissa})")(program, op, values)


FORMULAS: dict[str, Formula] = {
    "add": _infix("+"),
    "subtract": _infix("-"),
    "multiply": _infix("*"),
    "divide": _infix("/"),
    "remainder": _remainder,
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "not": _complemented,
    "maximum": _extreme(">"),
    "minimum": _extreme("<"),
    "shift_left": _shifted("<<"),
    "shift_right_logical": _shifted(">>"),
    "shift_right_arithmetic": _shifted(">>", unsigned=False),
    "negate": lambda t, of, a: f"({t})(-{a})",
    "abs": _absolute,
    "sign": _sign,
    "select": lambda t, of, p, a, b: f"{p} ? {a} : {b}",
    "clamp": _clamped,
    "convert": _converted,
    "bitcast_convert": _bitcast,
    "is_finite": lambda t, of, a: f"isfinite({a}) != 0",
    "real": _part("real"),
    "imag": _part("imag"),
    "complex": lambda t, of, a, b: f"{a} + {b} * I",
    "logistic": lambda t, of, a: f"1 / (1 + {_call('exp')(t, of, f'-{a}')})",
    "rsqrt": lambda t, of, a: f"1 / {_call('sqrt')(t, of, a)}",
    "power": _call("pow"),
    **{name: _call(c) for name, c in {
        "exponential": "exp", "exponential_minus_one": "expm1", "log": "log", "log_plus_one": "log1p", "tanh": "tanh",
        "sqrt": "sqrt", "cbrt": "cbrt", "sine": "sin", "cosine": "cos", "tan": "tan", "atan2": "atan2",
        "floor": "floor", "ceil": "ceil", "round_nearest_even": "rint", "round_nearest_afz": "round",
    }.items()},
}  # fmt: skip
ELEMENTS: dict[str, Operation] = {
    **{f"stablehlo.{name}": _by_element(formula) for name, formula in FORMULAS.items()},
    "stablehlo.compare": _compared,
    "stablehlo.reduce_precision": _rounded,
}
