"""Operations by element."""

import re
from collections.abc import Callable
from typing import Any

from ..._jax.mlir import integer
from ._helpers import Missing, helper, helpers_for, wrapping
from ._program import SIZES, Body, Operation, Program, Value, type_of

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

        formula(c_type, values[0].c_type, *"x" * len(values))  # which may refuse a type
        return Value(shape, c_type, element)

    return handler


def _call(name: str) -> Formula:
    """A function of libm, under the name that it has for a type."""

    def formula(c_type: str, of: str, *arguments: str) -> str:
        if of not in FLOATS and "complex" not in of:
            raise Missing(f"{name} of {of}")
        prefix = "c" if "complex" in of and name not in ("creal", "cimag") else ""
        suffix = "f" if of.startswith("float") else ""
        return f"{prefix}{name}{suffix}({', '.join(arguments)})"

    return formula


def _infix(operator: str) -> Formula:
    """An operator. Integers wrap around."""

    def formula(t: str, of: str, a: str, b: str) -> str:
        u = f"({wrapping(t)})" if "int" in t else ""
        return f"({t})({u}{a} {operator} {u}{b})"

    return formula


def _helped(name: str, otherwise: Formula | None = None) -> Formula:
    """A helper, or something else for the types that it is not for."""

    def formula(t: str, of: str, *arguments: str) -> str:
        if otherwise is not None and name not in helpers_for(of):
            return otherwise(t, of, *arguments)
        return f"{helper(name, of)}({', '.join(arguments)})"

    return formula


def _converted(t: str, of: str, a: str) -> str:
    if t in ("bool", of):
        return a if t == of else f"(bool)({a} != 0)"
    if "complex" in of and "complex" not in t:
        a, of = _call("creal")(t, of, a), of.split()[0]
    return f"{helper('convert', t, of)}({a})" if "int" in t and of in FLOATS else f"({t}){a}"


def _clamped(t: str, of: str, low: str, a: str, high: str) -> str:
    return f"{helper('minimum', t)}({helper('maximum', t)}({low}, {a}), {high})"


def _bitcast(t: str, of: str, a: str) -> str:
    if "bool" in (t, of) or SIZES[t] != SIZES[of]:
        raise Missing(f"a bitcast from {of} to {t}")
    return f"((union {{ {of} from; {t} to; }}){{ .from = {a} }}).to"


def _part(name: str) -> Formula:
    real = lambda a: a if name == "real" else "0"
    return lambda t, of, a: _call(f"c{name}")(t, of, a) if "complex" in of else real(a)


def _compared(program: Program, op: Any, values: list[Value]) -> Any:
    signs = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
    (name,) = re.findall(r"\b[A-Z]{2}\b", str(op.attributes["comparison_direction"]))
    if "TOTALORDER" in str(op.attributes.get("compare_type", "")) and values[0].c_type in FLOATS:
        raise Missing("a comparison by the total order of floats")

    def formula(t: str, of: str, a: str, b: str) -> str:
        # Compilers warn of `u < 0` and `a == a`, unless it is in a function.
        fixed = of[0] in "ub" and any(x[0].isdigit() for x in (a, b))
        if of not in FLOATS and "complex" not in of and (fixed or a == b):
            return f"{helper(name.lower(), of)}({a}, {b})"
        return f"{a} {signs[name]} {b}"

    return _by_element(formula)(program, op, values)


def _rounded(program: Program, op: Any, values: list[Value]) -> Any:
    exponent, mantissa = integer(op, "exponent_bits"), integer(op, "mantissa_bits")
    sizes = {"float": (8, 23), "double": (11, 52)}
    if exponent != sizes[values[0].c_type][0]:
        raise Missing(f"reduce_precision with {exponent} bits of exponent")
    bits = min(mantissa, sizes[values[0].c_type][1])
    return _by_element(lambda t, of, a: f"{helper('rounded', t)}({a}, {bits})")(program, op, values)


FORMULAS: dict[str, Formula] = {
    "add": _infix("+"),
    "subtract": _infix("-"),
    "multiply": _helped("multiply", _infix("*")),
    "divide": _helped("divide", _infix("/")),
    "remainder": _helped("remainder", _call("fmod")),
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "not": lambda t, of, a: f"!{a}" if t == "bool" else f"({t})~{a}",
    "maximum": _helped("maximum"),
    "minimum": _helped("minimum"),
    "shift_left": _helped("shift_left"),
    "shift_right_logical": _helped("shift_logical"),
    "shift_right_arithmetic": _helped("shift_arithmetic"),
    "negate": lambda t, of, a: f"({t})(-{f'({wrapping(t)})' if 'int' in t else ''}{a})",
    "abs": _helped("absolute", _call("fabs")),
    "sign": _helped("sign"),
    "select": lambda t, of, p, a, b: f"{p} ? {a} : {b}",
    "clamp": _clamped,
    "convert": _converted,
    "bitcast_convert": _bitcast,
    "is_finite": lambda t, of, a: f"isfinite({a}) != 0",
    "real": _part("real"),
    "imag": _part("imag"),
    "complex": lambda t, of, a, b: f"{helper('made', t)}({a}, {b})",
    "rsqrt": lambda t, of, a: f"({t})(1 / {_call('sqrt')(t, of, a)})",
    "power": _helped("power", _call("pow")),
    "exponential_minus_one": _helped("expm1", _call("expm1")),
    "log_plus_one": _helped("log1p", _call("log1p")),
    **{name: _call(c) for name, c in {
        "exponential": "exp", "log": "log", "tanh": "tanh",
        "sqrt": "sqrt", "cbrt": "cbrt", "sine": "sin", "cosine": "cos", "tan": "tan", "atan2": "atan2",
        "floor": "floor", "ceil": "ceil", "round_nearest_even": "rint", "round_nearest_afz": "round",
    }.items()},
}  # fmt: skip
ELEMENTS: dict[str, Operation] = {
    **{f"stablehlo.{name}": _by_element(formula) for name, formula in FORMULAS.items()},
    "stablehlo.compare": _compared,
    "stablehlo.reduce_precision": _rounded,
}
