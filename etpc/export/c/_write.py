"""The two files: `learner.h` and `learner.c`."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..._jax.mlir import read_module
from ...errors import UnsupportedError
from ...files.disk import replacing
from ..modules import Leaf, Modules
from ._control import CONTROL
from ._elements import ELEMENTS
from ._moves import MOVES
from ._program import C_OF_NUMPY, Buffer, Program, literal, size_of, stored
from ._sums import SUMS

OPERATIONS = {**ELEMENTS, **MOVES, **SUMS, **CONTROL}
RESERVED = re.compile(
    "auto|bool|break|case|char|complex|const|continue|default|do|double|else|enum|extern|false|float|for|goto|if|inline"
    "|int|long|register|restrict|return|short|signed|sizeof|static|struct|switch|true|typedef|union|unsigned|void"
    "|volatile|while|I|atan2|cabs|cbrt|ceil|cexp|cimag|clog|cos|cpow|creal|csqrt|ctanh|exp|expm1|fabs|floor|fmod"
    "|isfinite|log|log1p|memcpy|memset|pow|rint|round|sin|sqrt|tan|tanh|state|sum|[bcikst][0-9]+"
)
"""Names that mean something in C, or in the code that is written."""


def _identifier(name: str, known: set[str]) -> str:
    """A name of the manifest as one of C, and none of those that are known."""
    text = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    text = text if text[0].isalpha() else f"p_{text}"
    while text in known or RESERVED.fullmatch(text):
        text += "_"
    known.add(text)
    return text


def _array_of(leaf: Leaf) -> tuple[str, int]:
    """The C type and the number of elements of an argument or a result."""
    if leaf.dtype not in C_OF_NUMPY:
        raise UnsupportedError(
            f"There is no C for {leaf.name}, which is {leaf.dtype}. Convert it to float32, "
            "or run the exported file under IREE."
        )
    return C_OF_NUMPY[leaf.dtype], size_of(leaf.shape)


class Function(NamedTuple):
    """A function of the C file."""

    prototype: str
    body: str
    constants: list[str]
    needs: Counter[str]
    """How many elements of each type it takes beside its arguments."""


def _function(
    name: str, code: bytes, leaves: tuple[list[Leaf], list[Leaf]], fields: Mapping[str, str]
) -> Function:
    """A module as a C function. `fields`: the member of the state for the name of each state argument."""
    module = read_module(code)
    with module.context:
        program = Program(module, name, OPERATIONS)
        parameters: list[str] = []
        known: set[str] = set()

        def buffer_of(leaf: Leaf, qualifier: str) -> Buffer:
            c_type, size = _array_of(leaf)
            own = f"state->{fields[leaf.name]}" if leaf.role == "state" else ""
            if not own:
                own = _identifier(leaf.name, known)
                parameters.append(f"{qualifier}{c_type} *{own}")
            return program.buffers.get(own) or program.new(c_type, size, own, fixed=True)

        arguments = [stored(buffer_of(leaf, "const "), leaf.shape) for leaf in leaves[0]]
        results = [buffer_of(leaf, "") for leaf in leaves[1]]
        values = program.run(program.functions["main"].regions[0].blocks[0], arguments)
    program.write_back(values, results, 0)
    program.drop_unread()
    places, needs = _placed(program)
    text = "\n".join(s.code for s in program.statements)
    read = set(re.findall(r"@([^@]+)@", text))
    text = re.sub(r"@([^@]+)@", lambda m: places[program.buffers[m[1]].end.name], text)
    return Function(
        f"void {name}(learner_state *state{''.join(', ' + p for p in parameters)})",
        text,
        [code for name, code in program.constants.items() if name in read],
        needs,
    )


def _placed(program: Program) -> tuple[dict[str, str], Counter[str]]:
    """The C name of each array, and how many elements of each type are needed for those without a place."""
    lives: dict[Buffer, list[int]] = {}
    loops: list[tuple[int, int]] = []
    open_at: list[int] = []
    for n, s in enumerate(program.statements):
        if s.opens > 0:
            open_at.append(n)
        elif s.opens < 0:
            loops.append((open_at.pop(), n))
        for buffer, _ in [*s.writes, *s.reads]:
            lives.setdefault(buffer.end, [n, n])[1] = n
    for begin, end in loops:  # what a loop reads, each of its rounds reads
        for life in lives.values():
            if life[0] < begin <= life[1] < end:
                life[1] = end
    places = {name: name for name, buffer in program.buffers.items() if buffer.fixed}
    needs: Counter[str] = Counter()
    taken: list[tuple[str, int, int, list[int]]] = []
    free = [b for b in lives if not b.fixed]
    for buffer in sorted(free, key=lambda b: -b.size):
        at, life = 0, lives[buffer]
        others = sorted(
            t for t in taken if t[0] == buffer.c_type and t[3][0] <= life[1] and life[0] <= t[3][1]
        )
        for _, begin, end, _ in others:
            if begin < at + buffer.size and at < end:
                at = end
        taken.append((buffer.c_type, at, at + buffer.size, life))
        needs[buffer.c_type] = max(needs[buffer.c_type], at + buffer.size)
        places[buffer.name] = f"({_work(buffer.c_type)} + {at})"
    return places, needs


def _work(c_type: str) -> str:
    """The array to work in of a type."""
    return f"work_{c_type.replace(' ', '_')}"


HELPERS = """\
static inline float rounded_float(float a, int bits) {
    uint32_t u, unit = (uint32_t)1 << (23 - bits);
    memcpy(&u, &a, sizeof u);
    if (a != a || unit == 1) return a;
    u = (u + unit / 2 - 1 + (u / unit & 1)) & ~(unit - 1);
    memcpy(&a, &u, sizeof u);
    return a;
}
static inline double rounded_double(double a, int bits) {
    uint64_t u, unit = (uint64_t)1 << (52 - bits);
    memcpy(&u, &a, sizeof u);
    if (a != a || unit == 1) return a;
    u = (u + unit / 2 - 1 + (u / unit & 1)) & ~(unit - 1);
    memcpy(&a, &u, sizeof u);
    return a;
}
static inline double complex cexpm1(double complex a) {
    const double x = creal(a), y = cimag(a), half = sin(y / 2);
    return expm1(x) * cos(y) - 2 * half * half + I * (exp(x) * sin(y));
}
static inline float complex cexpm1f(float complex a) {
    const float x = crealf(a), y = cimagf(a), half = sinf(y / 2);
    return expm1f(x) * cosf(y) - 2 * half * half + I * (expf(x) * sinf(y));
}
static inline double complex clog1p(double complex a) {
    const double x = creal(a), y = cimag(a);
    return log1p(x * (2 + x) + y * y) / 2 + I * atan2(y, 1 + x);
}
static inline float complex clog1pf(float complex a) {
    const float x = crealf(a), y = cimagf(a);
    return log1pf(x * (2 + x) + y * y) / 2 + I * atan2f(y, 1 + x);
}"""
"""What C99 lacks."""

HEADER = """\
/* {about} Written by etpc. */
#ifndef LEARNER_H
#define LEARNER_H
#include <complex.h>
#include <stdbool.h>
#include <stdint.h>

/* What a device keeps from call to call: {state_bytes} bytes. A call works in {work_bytes} bytes beside it. */
typedef struct {{
{members}
}} learner_state;

void learner_init(learner_state *state);
{prototypes}
#endif
"""


def write_c(exported: Modules, folder: Path) -> dict[str, int]:
    """What [`Exported.to_c`][etpc.Exported.to_c] does."""
    known: set[str] = set()
    leaves = exported.state_leaves()
    fields = {leaf.name: _identifier(leaf.name, known) for leaf in leaves}
    functions = [
        _function(f"learner_{name.split('.')[0]}", code, exported.leaves(name), fields)
        for name, code in exported.modules.items()
    ]
    members: list[str] = []
    init = ["memset(state, 0, sizeof *state);"]
    constants: list[str] = []
    needs: Counter[str] = Counter()
    for f in functions:
        needs |= f.needs
        constants += f.constants
    for leaf in leaves:
        (c_type, size), name = _array_of(leaf), fields[leaf.name]
        members.append(
            f"    {c_type} {name}[{max(1, size)}];  /* {leaf.name} {list(leaf.shape)} */"
        )
        numbers = exported.state[leaf.name].reshape(-1)
        if not numbers.any():
            continue
        if (numbers == numbers[0]).all():
            first = literal(numbers[0], c_type)
            init.append(f"for (int i = 0; i < {size}; i++) state->{name}[i] = {first};")
            continue
        text = ", ".join(literal(n, c_type) for n in numbers)
        constants.append(f"static const {c_type} first_{name}[{size}] = {{{text}}};")
        init.append(f"memcpy(state->{name}, first_{name}, sizeof first_{name});")
    sizes = {
        "state": sum(max(1, a.size) * a.itemsize for a in exported.state.values()),
        "work": sum(np.dtype(n).itemsize * needs[c] for n, c in C_OF_NUMPY.items()),
    }
    header = HEADER.format(
        about=exported.about,
        members="\n".join(members),
        prototypes="\n".join(f"{f.prototype};" for f in functions),
        state_bytes=sizes["state"],
        work_bytes=sizes["work"],
    )
    includes = ['#include "learner.h"', "#include <math.h>", "#include <string.h>", HELPERS]
    work = [f"static {c_type} {_work(c_type)}[{size}];" for c_type, size in needs.items() if size]
    start = "void learner_init(learner_state *state) {\n" + "\n".join(init) + "\n}"
    bodies = [f"{f.prototype} {{\n{f.body}\n}}" for f in functions]
    source = "\n".join([*includes, *constants, *work, start, *bodies, ""])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("learner.h", header), ("learner.c", source)):
        with replacing(folder / name) as file:
            file.write(text.encode())
    return sizes
