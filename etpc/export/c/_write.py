"""The two files: `learner.h` and `learner.c`."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..._jax.mlir import read_module
from ...errors import InputError, UnsupportedError
from ...files.disk import replacing
from ...files.words import comment, identifier
from ..modules import Leaf, Modules
from ._control import CONTROL
from ._elements import ELEMENTS
from ._helpers import SHORT, helpers_of
from ._moves import MOVES
from ._program import (
    C_OF_NUMPY,
    SIZES,
    Buffer,
    Program,
    fixed_array,
    is_filled,
    literal,
    size_of,
    stored,
)
from ._sums import SUMS

OPERATIONS = {**ELEMENTS, **MOVES, **SUMS, **CONTROL}


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
    names: tuple[str, str],
    code: bytes,
    leaves: tuple[list[Leaf], list[Leaf]],
    fields: Mapping[str, str],
) -> Function:
    """A module as a C function.

    - `names`: of the files, and of the function.
    - `fields`: the member of the state for the name of each state argument.
    """
    module, (prefix, name) = read_module(code), names
    parameters = {"state": f"{prefix}_state *state", "work": f"{prefix}_work *work"}
    known = {*parameters}
    with module.context:
        program = Program(module, name, OPERATIONS)

        def buffer_of(leaf: Leaf, qualifier: str) -> Buffer:
            c_type, size = _array_of(leaf)
            own = f"state->{fields[leaf.name]}" if leaf.role == "state" else ""
            if not own:
                own = identifier(leaf.name, known)
                parameters[own] = f"{qualifier}{_public(c_type, prefix)} *{own}"
            return program.buffers.get(own) or program.new(c_type, size, own, fixed=True)

        arguments = [stored(buffer_of(leaf, "const "), leaf.shape) for leaf in leaves[0]]
        results = [buffer_of(leaf, "") for leaf in leaves[1]]
        values = program.run(program.functions["main"].regions[0].blocks[0], arguments)
    program.write_back(values, results, 0)
    program.drop_unread()
    places, needs = _placed(program)
    codes = [s.code for s in program.statements]
    read = set(re.findall(r"@([^@]+)@", "\n".join(codes)))
    put = lambda m: places[program.buffers[m[1]].end.name]
    codes = [re.sub(r"@([^@]+)@\[", put, code) for code in codes]
    unused = [p for p in parameters if not re.search(rf"\b{p}\b", "\n".join(codes))]
    lines = _commented([s.line for s in program.statements], codes)
    return Function(
        f"void {name}({', '.join(parameters.values())})",
        _indented([*(f"(void){p};" for p in unused), *lines]),
        [code for name, code in program.constants.items() if name in read],
        needs,
    )


def _commented(of_user: Iterable[str], codes: Iterable[str]) -> Iterator[str]:
    """The lines of all statements, with the lines of the user's code that they come from, where known."""
    last = ""
    for line, code in zip(of_user, codes, strict=True):
        if line not in ("", last):
            yield f"/* {comment(line)} */"
        last = line
        yield from code.split("\n")


def _indented(lines: Iterable[str]) -> str:
    """The lines of a function, each as far to the right as it is deep in braces."""
    depth, indented = 1, list[str]()
    for line in lines:
        indented.append("    " * (depth - line.startswith("}")) + line)
        depth += 0 if line.startswith("/*") else line.count("{") - line.count("}")
    return "\n".join(indented)


def _placed(program: Program) -> tuple[dict[str, str], Counter[str]]:
    """Each array in C, up to the index, and how many elements of each type are needed for those without a place."""
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
    places = {name: f"{name}[" for name, buffer in program.buffers.items() if buffer.fixed}
    needs: Counter[str] = Counter()
    taken: list[tuple[str, int, int, list[int]]] = []
    free = [b for b in lives if not b.fixed]
    for buffer in sorted(free, key=lambda b: -b.size):
        at, life, size = 0, lives[buffer], max(1, buffer.size)
        others = sorted(
            t for t in taken if t[0] == buffer.c_type and t[3][0] <= life[1] and life[0] <= t[3][1]
        )
        for _, begin, end, _ in others:
            if begin < at + size and at < end:
                at = end
        taken.append((buffer.c_type, at, at + size, life))
        needs[buffer.c_type] = max(needs[buffer.c_type], at + size)
        places[buffer.name] = f"work->{_member(buffer.c_type)}[" + (f"{at} + " if at else "")
    return places, needs


def _member(c_type: str) -> str:
    """The array to work in of a type, in the struct of them."""
    return f"of_{SHORT.get(c_type, c_type)}"


def _public(c_type: str, prefix: str) -> str:
    """A type as the header names it, where C++ has its own complex numbers."""
    return f"{prefix}_{SHORT[c_type]}" if c_type in SHORT else c_type


def _struct(members: Iterable[tuple[str, str, int, str]], prefix: str) -> str:
    """The members of a struct, from type, name, number of elements and a comment of each."""
    rows = (f"    {_public(t, prefix)} {name}[{size}];{about}" for t, name, size, about in members)
    return "\n".join(rows)


def _bytes(members: Iterable[tuple[str, str, int, str]]) -> int:
    """The bytes of a struct, as C aligns it on most machines."""
    numpy = {c_type: name for name, c_type in C_OF_NUMPY.items()}
    fields = [(name, numpy[t], size) for t, name, size, _ in members]
    return np.dtype(fields, align=True).itemsize


COMPLEX = """\
#ifdef __cplusplus
#include <complex>
typedef std::complex<float> {name}_cfloat;
typedef std::complex<double> {name}_cdouble;
#else
#include <complex.h>
typedef float complex {name}_cfloat;
typedef double complex {name}_cdouble;
#endif
"""
HEADER = """\
/* {about} Written by etpc. */
#ifndef {upper}_H
#define {upper}_H
#include <stdbool.h>
#include <stdint.h>
{complex}#ifdef __cplusplus
extern "C" {{
#endif

/* Of this build: its code and its first values. */
#define {upper}_ID {id}

/* What a device keeps from call to call: {sizes[state]} bytes. */
typedef struct {{
    uint32_t id; /* of the build: see {name}_check */
{members}
}} {name}_state;

/* What a call works in: {sizes[work]} bytes. None of it is kept, so between calls it may be used for something else. */
typedef struct {{
{work}
}} {name}_work;

/* Gives a state its first values. */
void {name}_init({name}_state *state);
/* Whether a state from elsewhere is one of this build. No function may be called with another one. */
bool {name}_check(const {name}_state *state);
{prototypes}

#ifdef __cplusplus
}}
#endif
#endif
"""
SOURCE = """\
#include "{name}.h"
{includes}#include <math.h>
#include <string.h>

{definitions}

void {name}_init({name}_state *state) {{
    memset(state, 0, sizeof *state);
    state->id = {upper}_ID;
{init}}}

bool {name}_check(const {name}_state *state) {{
    return state->id == {upper}_ID;
}}

{bodies}
"""


def write_c(exported: Modules, folder: Path, name: str) -> dict[str, int]:
    """What [`Exported.to_c`][etpc.Exported.to_c] does."""
    if identifier(str(name), set()) != name:
        raise InputError(
            f"C has no files and functions of the name {name!r}. Pass letters, digits and single underscores, "
            "which mean nothing in C, such as 'learner'."
        )
    leaves, known = exported.state_leaves(), {"id"}
    fields = {leaf.name: identifier(leaf.name, known) for leaf in leaves}
    known = {f"{name}_{word}" for word in ("init", "check", "state", "work", *SHORT.values())}
    needs, constants, functions = Counter[str](), list[str](), list[Function]()
    for module, code in exported.modules.items():
        names = name, identifier(f"{name}_{module.split('.')[0]}", known)
        functions.append(f := _function(names, code, exported.leaves(module), fields))
        needs |= f.needs
        constants += f.constants
    init = ""
    members = list[tuple[str, str, int, str]]()
    for n, leaf in enumerate(leaves):
        (c_type, size), field = _array_of(leaf), fields[leaf.name]
        about = f" /* {comment(leaf.name)} {list(leaf.shape)} */"
        members.append((c_type, field, max(1, size), about))
        numbers = exported.state[leaf.name].reshape(-1)
        if not any(numbers.tobytes()):
            continue
        if is_filled(numbers):
            first = literal(numbers[0], c_type)
            init += f"    for (int i = 0; i < {size}; i++) state->{field}[i] = {first};\n"
        else:
            code, first = fixed_array(f"c{n}_{name}_init", numbers, c_type)
            constants.append(code)
            init += f"    memcpy(state->{field}, {first}, sizeof {first});\n"
    largest_first = sorted(needs, key=lambda t: (-SIZES[t], t))
    work = [(t, _member(t), needs[t], "") for t in largest_first] or [("bool", "none", 1, "")]
    sizes = {"state": _bytes([("uint32_t", "id", 1, ""), *members]), "work": _bytes(work)}
    struct, bodies = _struct(members, name), [f"{f.prototype} {{\n{f.body}\n}}" for f in functions]
    prototypes = "\n".join(f"{f.prototype};" for f in functions)
    space, of_complex = _struct(work, name), rf"\b{name}_c(float|double)\b"
    code = re.sub(r"/\*.*?\*/", "", "\n".join([struct, space, *constants, init, *bodies]))
    digest = hashlib.sha256(code.encode()).hexdigest()
    header = HEADER.format(
        name=name,
        upper=name.upper(),
        about=comment(exported.about),
        id=f"{1 + int(digest, 16) % 0xFFFFFFFE:#010x}u",  # nothing that erased memory has
        members=struct,
        work=space,
        sizes=sizes,
        prototypes=prototypes,
        complex=COMPLEX.format(name=name) if re.search(of_complex, code) else "",
    )
    source = SOURCE.format(
        name=name,
        upper=name.upper(),
        includes="#include <complex.h>\n" if re.search(r"(float|double) complex\b", code) else "",
        definitions="\n\n".join([*helpers_of(code), *constants]),
        init=init,
        bodies="\n\n".join(bodies),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in ((f"{name}.h", header), (f"{name}.c", source)):
        with replacing(folder / file) as written:
            written.write(text.encode())
    return sizes
