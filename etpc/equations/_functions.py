"""Functions of elements: what each operation of JAX is in SymPy, and in NumPy where that has no such function."""

import functools
from collections.abc import Callable
from typing import Any

import sympy as sp


def function(name: str, *derivatives: Any) -> Any:
    """A function with these derivatives, each a number or a function of its arguments."""

    def fdiff(self: Any, argindex: int = 1) -> Any:
        found = derivatives[argindex - 1]
        return found(*self.args) if callable(found) else sp.Integer(found)

    fields = dict(fdiff=fdiff, nargs=len(derivatives), is_real=True, is_commutative=True)
    return type(name, (sp.Function,), fields)


COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
INTEGERS = {
    f"{kind}{bits}": (-(2 ** (bits - 1)) * is_signed, 2 ** (bits - is_signed) - 1)
    for kind, is_signed in (("int", 1), ("uint", 0))
    for bits in (8, 16, 32, 64)[: 3 + is_signed]
}
"""The least and the largest number of each dtype whose arithmetic is written: in NumPy as int64."""
WRAPPING = ("add", "add_any", "sub", "mul", "neg", "abs", "square", "integer_pow")
"""Operations whose result may lie outside of a dtype of integers. The result of an operation of `WITHIN` is one of its
arguments, or a sign."""
WITHIN = ("max", "min", "clamp", "select_n", "sign", "convert_element_type")


def _saturated(least: int, most: int) -> str:
    """A float as an integer, as XLA converts it: the nearest one where it lies outside, and NaN as zero."""
    below = most if most < 2**53 else most - 1023  # the largest one that is a float
    inside = f"np.nan_to_num(np.clip(np.asarray(a, float), {least}, {below})).astype(int)"
    return f"np.where(np.asarray(a, float) >= {most}, {most}, {inside})"


_BODIES = {
    **{n: f"np.asarray(a).astype(np.{n}).astype(int)" for n in INTEGERS},
    **{f"to_{n}": _saturated(*ends) for n, ends in INTEGERS.items()},
    **{n: f"1.0 * (a {text} b)" for n, text in COMPARISONS.items()},
    "real": "np.asarray(a, float)",
    "above": "np.where(a == b, 0.5, 1.0 * (a > b))",
    "sigma": "1 / (1 + np.exp(-a))",
    "where": "np.where(a, b, c)",
    "stop": "a",
    "with_derivative": "a",
    "norm": "np.sqrt(sum(np.sum(np.square(b)) for b in a))",
    "ratio": "np.where((a > 0) & (b > 0), a / np.where(b > 0, b, 1), 1.0)",
    "signs": "np.random.choice((-1.0, 1.0), int(a))",
    "max": "np.maximum(a, b)",
    "min": "np.minimum(a, b)",
    "erf": "np.vectorize(math.erf)(a)",
    "is_finite": "1.0 * np.isfinite(a)",
    "clamp": "np.clip(b, a, c)",
    **{
        n: f"np.{n}(a)" for n in ("sign", "abs", "expm1", "log1p", "cbrt", "floor", "ceil", "trunc")
    },
}
"""Functions that are none of SymPy, or have another derivative at a kink, in NumPy. Conditions are 0 or 1; `above` is
1/2 where both are equal, as JAX has the derivative of a maximum; `with_derivative` is a, and has both derivatives.
`norm` is that of all its arguments together, and `ratio` one where one of two is zero."""
_SLOPES: dict[str, tuple[Any, ...]] = {
    "sigma": (lambda a: _of["sigma"](a) * (1 - _of["sigma"](a)),),
    "where": (0, lambda a, b, c: a, lambda a, b, c: 1 - a),
    "max": (lambda a, b: _of["above"](a, b), lambda a, b: _of["above"](b, a)),
    "min": (lambda a, b: _of["above"](b, a), lambda a, b: _of["above"](a, b)),
    "abs": (lambda a: _of["where"](_of["ge"](a, 0), 1, -1),),
    "erf": (lambda a: 2 * sp.exp(-(a**2)) / sp.sqrt(sp.pi),),
    "expm1": (sp.exp,),
    "log1p": (lambda a: 1 / (1 + a),),
    "cbrt": (lambda a: _of["cbrt"](a) / (3 * a),),
    "clamp": (
        lambda low, a, high: _of["gt"](low, a) * _of["lt"](low, high),
        lambda low, a, high: _of["gt"](a, low) * _of["lt"](a, high),
        lambda low, a, high: _of["lt"](high, a),
    ),
    "with_derivative": (1, 1),
    **dict.fromkeys(("above", "ratio", *COMPARISONS), (0, 0)),
}
"""Their derivatives; of others they are zero."""
_of: dict[str, Any] = {n: function(n, *_SLOPES.get(n, (0,))) for n in _BODIES}
_of["norm"] = sp.Function("norm", real=True)
FUNCTIONS: dict[str, tuple[Any, str]] = {n: (_of[n], body) for n, body in _BODIES.items()}
"""Each with its body in NumPy."""
dot = sp.Function("dot", nargs=2, real=True)
"""The product of two whole arrays, over the last axis of one and the first of the other."""
_of_sympy = "exp log sin cos tan tanh sinh cosh asin acos atan asinh acosh atanh atan2 sqrt"

ELEMENTS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "add_any": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: a**b,
    "square": lambda a: a**2,
    "rsqrt": lambda a: 1 / sp.sqrt(a),
    "exp2": lambda a: 2**a,
    "logistic": _of["sigma"],
    **{name: getattr(sp, name) for name in _of_sympy.split()},
    "and": lambda a, b: a * b,
    "or": _of["max"],
    "not": lambda a: 1 - a,
    "xor": _of["ne"],
    "stop_gradient": _of["stop"],
    "select": lambda which, no, yes: _of["where"](which, yes, no),
    **{n: of for n, of in _of.items() if n not in ("sigma", "stop", "above")},
}
"""Operations of JAX on real numbers, by the names of their primitives."""
COMPLEX = ("add", "add_any", "sub", "mul", "div", "neg", "exp", "square", "sin", "cos", "expm1")
"""Those that are written for complex numbers too, part by part."""


@functools.cache
def parts_of(name: str, arguments: int) -> tuple[Callable[..., Any], ...]:
    """An operation on complex numbers, as two on their real and imaginary parts, which follow one another."""
    parts = sp.symbols(f"a:{2 * arguments}", real=True)
    numbers = [parts[2 * n] + sp.I * parts[2 * n + 1] for n in range(arguments)]
    if name == "expm1":  # without the cancellation of exp(a) cos(b) - 1
        a, b = parts
        both = ELEMENTS[name](a) * sp.cos(b) - 2 * sp.sin(b / 2) ** 2, sp.exp(a) * sp.sin(b)
    else:
        both = sp.expand_complex(ELEMENTS[name](*numbers)).as_real_imag()
    of = lambda part, values: part.xreplace(dict(zip(parts, values, strict=True)))
    return tuple(lambda *values, part=part: of(part, values) for part in both)
