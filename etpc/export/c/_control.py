"""Calls, loops and branches."""

from typing import Any

from ._program import Body, Operation, Program, Value, size_of, stored, type_of


def _called(program: Program, op: Any, values: list[Value]) -> list[Value]:
    name = "callee" if "callee" in op.attributes else "decomposition"
    function = program.functions[str(op.attributes[name])[1:].strip('"')]
    return program.run(function.regions[0].blocks[0], [*map(program.readable, values)])


def _looped(program: Program, op: Any, values: list[Value]) -> list[Value]:
    targets = [*map(program.copied, values)]
    carried = [stored(b, v.shape) for b, v in zip(targets, values, strict=True)]
    test, inner = (region.blocks[0] for region in op.regions)
    program.add("for (;;) {", opens=1)
    (go_on,) = program.run(test, carried)
    body = Body(program)
    text = go_on.at([], body)
    program.add("\n".join([*body.lines, f"if (!{text}) break;"]), reads=body.reads)
    first = len(program.statements)
    program.write_back(program.run(inner, carried), targets, first)
    program.add("}", opens=-1)
    return carried


def _branched(program: Program, op: Any, values: list[Value]) -> list[Value]:
    choice, body = program.readable(values[0]), Body(program)
    text, last = choice.at([], body), len(op.regions) - 1
    kinds = [type_of(result) for result in op.results]
    results = [program.new(c_type, size_of(shape)) for shape, c_type in kinds]
    program.add("\n".join([*body.lines, "{"]), reads=body.reads, opens=1)
    for n, region in enumerate(op.regions):
        test = f"if ({text} == {n}) {{" if n < last else "{"  # the last is for all other numbers
        program.add(test if n == 0 else f"}} else {test}")
        for value, buffer in zip(program.run(region.blocks[0], []), results, strict=True):
            program.assign(value.shape, buffer, value.at)
    program.add("}\n}", opens=-1)
    return [stored(b, shape) for b, (shape, _) in zip(results, kinds, strict=True)]


CONTROL: dict[str, Operation] = {
    "func.call": _called,
    "stablehlo.composite": _called,
    "stablehlo.while": _looped,
    "stablehlo.case": _branched,
}
