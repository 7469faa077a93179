"""The commands: what they take, do, and print."""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from .. import __version__
from .._agreement import Row
from .._compare import TBPTT, Result, compare
from .._errors import EtpcError
from ..algorithms import Algorithm
from ..run import Program
from ..show import table
from ._algorithm import FORM, parse
from ._bench import Timing, bench
from ._errors import CommandError, described, is_of_user
from ._show import PROSE, columns, is_terminal, show, wrapped
from ._task import BATCH, STEPS, Data, load_task, make_data

OK, FAILED, MISTAKE, UNFORESEEN = range(4)
"""Exit statuses."""

STATUS = """\
exit status: 0 if all is well, 1 if a claim of exactness did not hold or the comparison showed
nothing, 2 if the command or the model cannot be used, 3 for an error that etpc did not foresee."""

DOING = {
    "explain": "compiling",
    "draw": "compiling",
    "verify": "compiling and comparing",
    "bench": "compiling and timing",
}
"""What a command says on a terminal before it has an answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command found, for people and for programs."""

    text: str
    record: dict[str, Any]
    ok: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, with the arguments of the process by default.

    **Returns** the exit status: 0 if all is well; 1 if a claim of exactness did not hold, or a
    comparison showed nothing; 2 for a mistake in the command or in the user's own code; 3 for an
    error that etpc did not foresee.
    """
    arguments = _arguments(argv)
    try:
        folder = os.getcwd()
        if sys.path[:1] not in ([""], [folder]):
            sys.path.insert(0, folder)  # as for `python -m`
        with _setting(arguments):
            if is_terminal(sys.stderr):
                _tell(f"{DOING[arguments.command]} {arguments.target} ...")
            answer: Answer = arguments.run(arguments)
        return _given(answer, arguments.json)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # by itself Python would exit with 1, which is a verdict
        return _refused(error, arguments)


def _given(answer: Answer, as_json: bool) -> int:
    """Print an answer. **Returns** the exit status."""
    status = OK if answer.ok else FAILED
    if sys.stdout is None:
        raise CommandError("The answer cannot be written: stdout is closed.")
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # its encoding may lack a letter of a parameter's name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if as_json:
            print(json.dumps(_plain(answer.record), indent=2))
        else:
            show(answer.text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, and the answer is what it is
        _without_stdout()
        return status
    except OSError as error:
        _without_stdout()
        raise CommandError(f"The answer cannot be written: {error.strerror}.") from error
    return status


def _without_stdout() -> None:
    """Let Python find no fault when it closes a stdout that cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(error: BaseException, arguments: argparse.Namespace) -> int:
    """Print an error. **Returns** the exit status."""
    if isinstance(error, SystemExit):
        text = f"{arguments.target} calls sys.exit({error.code!r}) in place of returning."
    elif isinstance(error, EtpcError) or is_of_user(error):
        text = described(error)
    else:
        _tell("".join(traceback.format_exception(error)).rstrip())
        return UNFORESEEN
    if arguments.traceback:
        _tell("".join(traceback.format_exception(error)).rstrip())
    text = f"etpc {arguments.command}: error: {text}"
    if is_terminal(sys.stderr):
        text = "\n".join(wrapped(line, columns()) for line in text.splitlines())
    _tell(text)
    return MISTAKE


def _tell(text: str) -> None:
    """Print to stderr, where there is one that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _setting(arguments: argparse.Namespace) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if arguments.x64:
            stack.enter_context(jax.enable_x64(True))
        if arguments.json:  # what the user's code prints must not mix with it
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _plain(value: Any) -> Any:
    """A record without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- commands -------------------------------------------------------------------------------------


def _explain(arguments: argparse.Namespace) -> Answer:
    program = _program(arguments)
    path = arguments.parameter
    if path is None:
        text = str(program)
    else:
        width = min(PROSE, columns()) if is_terminal(sys.stdout) else PROSE
        text = program.explain(path, width)
    record: dict[str, Any] = {"model": arguments.target, **_program_record(program)}
    if path is not None:
        record |= {
            "parameter": path,
            "explanation": text,
            "weights": [w for w in record["weights"] if w["path"] == path],
            "untraced": {p: why for p, why in record["untraced"].items() if p == path},
            "claims": {p: claim for p, claim in record["claims"].items() if p == path},
        }
    return Answer(text, record)


def _program_record(program: Program) -> dict[str, Any]:
    return {
        "algorithm": str(program.algorithm),
        "window": program.plan.window,
        "hidden_states": list(program.plan.analysis.hidden.paths),
        "carry_bytes": program.memory().total,
        "weights": [
            {
                "path": p.path,
                "operation": p.kind,
                "source": p.op.equation.source,
                "states": list(p.states),
                "block": p.block,
                "trace_shape": p.trace_shape,
                "trace_bytes": p.trace_bytes,
                "exact": p.exact,
                "left_out": list(p.escapes),
                "choice": p.choice,
            }
            for p in program.ops
        ],
        "untraced": dict(program.untraced),
        "exact": program.exact,
        "claims": {
            path: {
                "claim": claim.claim,
                "reasons": [{"kind": r.kind, "text": r.text} for r in claim.reasons],
            }
            for path, claim in program.claims.items()
        },
    }


def _verify(arguments: argparse.Namespace) -> Answer:
    task = load_task(arguments.target, arguments.inputs, arguments.seed)
    algorithms: list[Algorithm] = [parse(text) for text in arguments.algo]
    algorithms += [TBPTT(window) for window in arguments.tbptt]
    data = make_data(task, seed=arguments.seed, steps=arguments.steps, batch=arguments.batch)
    comparison = compare(
        task.model,
        data.xs,
        data.targets,
        data.loss_fn,
        algorithms,
        state=task.state,
        step=task.step,
        weights=task.weights,
        batch_size=data.batch_size,
        memory=arguments.memory,
    )
    text = f"{_data_text(arguments, data)}\n{comparison}"
    record = {
        **_data_record(arguments, data),
        "loss": comparison.loss,
        "tolerance": comparison.tolerance,
        "ok": comparison.ok,
        "notes": list(comparison.notes),
        "results": [_result_record(result) for result in comparison.results],
    }
    return Answer(text, record, comparison.ok)


def _result_record(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "algorithm": str(result.algorithm),
        "carry_bytes": result.carry_bytes,
        "parameters": [_row_record(row) for row in result.rows],
        "total": _row_record(result.total),
    }


def _row_record(row: Row) -> dict[str, Any]:
    return dataclasses.asdict(row)


def _draw(arguments: argparse.Namespace) -> Answer:
    from ..draw import write

    try:
        write(_program(arguments), arguments.output)
    except OSError as error:
        raise CommandError(f"{arguments.output} cannot be written: {error.strerror}.") from error
    record = {"model": arguments.target, "written": arguments.output}
    return Answer(f"wrote {arguments.output}", record)


def _bench(arguments: argparse.Namespace) -> Answer:
    task = load_task(arguments.target, arguments.inputs, arguments.seed)
    algorithms: list[Algorithm] = []
    for text in arguments.algo:
        algorithm = parse(text)
        if arguments.window and algorithm.takes_window:
            algorithms += [dataclasses.replace(algorithm, window=w) for w in arguments.window]
        else:
            algorithms.append(algorithm)
    algorithms += [TBPTT(window) for window in arguments.tbptt]
    data = make_data(task, seed=arguments.seed, steps=arguments.steps, batch=arguments.batch)
    timings = bench(task, data, algorithms, memory=arguments.memory, repeats=arguments.repeats)
    where = jax.devices()[0].device_kind
    lines = [_data_text(arguments, data), f"on {where}, shortest of {arguments.repeats}", ""]
    columns = ["gradient", "ms/step", "to BPTT", "compile s", "carry bytes", "temp bytes"]
    columns += ["rel. error", "cosine"]
    rows = [_timing_row(timing, timings[0]) for timing in timings]
    record = {
        **_data_record(arguments, data),
        "device": where,
        "repeats": arguments.repeats,
        "results": [dataclasses.asdict(timing) for timing in timings],
    }
    return Answer("\n".join([*lines, *table(columns, rows)]), record)


def _timing_row(timing: Timing, bptt: Timing) -> list[str]:
    return [
        timing.name,
        f"{timing.step_ms:.4f}",
        f"{timing.step_ms / bptt.step_ms:.2f}",
        f"{timing.compile_s:.2f}",
        f"{timing.carry_bytes:,}",
        "-" if timing.temp_bytes is None else f"{timing.temp_bytes:,}",
        f"{timing.error:.2e}",
        f"{timing.cosine:.6f}",
    ]


def _program(arguments: argparse.Namespace) -> Program:
    task = load_task(
        arguments.target, arguments.inputs, arguments.seed
    )  # which may register a rule
    return task.compile(parse(arguments.algo), arguments.memory)


def _data_text(arguments: argparse.Namespace, data: Data) -> str:
    batch = "" if data.batch_size is None else f", batch {data.batch_size}"
    return f"{arguments.target}: {data.steps} steps{batch}\n{data.text}"


def _data_record(arguments: argparse.Namespace, data: Data) -> dict[str, Any]:
    return {
        "model": arguments.target,
        "steps": data.steps,
        "batch_size": data.batch_size,
        "data": data.text,
    }


# --- arguments ------------------------------------------------------------------------------------


class _Append(argparse.Action):
    """Like `append`, but the first value takes the place of the default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        current = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*([] if current is self.default else current), values])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _window(text: str) -> int | str:
    return text if text == "auto" else _count(text)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was typed, where PARAMETER may stand behind options, which argparse itself does not see."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if getattr(arguments, "parameter", "") is None and rest and not rest[0].startswith("-"):
        arguments.parameter = rest.pop(0)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="etpc",
        description="Eligibility-trace programs of JAX models: explain, verify, draw and time them.",
        epilog=f"example: etpc verify models.py:make --inputs 20 --algo d_rtrl --x64\n\n{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"etpc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, about: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example: etpc {name} {example}\n\n{STATUS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        made.add_argument(
            "target",
            metavar="MODEL",
            help="package.module:name or path/to/file.py:name, the name of a model or of a function "
            "that returns a model, (model, inputs) or an etpc.cli.Task; it may take key or seed",
        )
        return made

    for made in (*_looking(command), *_comparing(command)):
        _add_common(made)
    return parser


Command = Callable[[str, Callable[..., Answer], str, str], argparse.ArgumentParser]


def _looking(command: Command) -> list[argparse.ArgumentParser]:
    """The commands that show a program."""
    explain = command(
        "explain",
        _explain,
        "print what each weight's trace holds, and what it leaves out",
        "models.py:make .cell.weight_hh --inputs 20",
    )
    explain.add_argument(
        "parameter", nargs="?", metavar="PARAMETER", help="a path, such as .cell.weight_hh"
    )
    draw = command(
        "draw",
        _draw,
        "draw the dependency graph of inputs, weights, states and outputs",
        "models.py:make --inputs 20 -o graph.svg",
    )
    draw.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .svg, .html or .mmd file"
    )
    for made in (explain, draw):
        made.add_argument("--algo", default="d_rtrl", metavar="ALGO", help=f"{FORM} (d_rtrl)")
    return [explain, draw]


def _comparing(command: Command) -> list[argparse.ArgumentParser]:
    """The commands that compare its gradients, or their times, with others."""
    verify = command(
        "verify",
        _verify,
        "compare gradients with those of backpropagation through time (BPTT)",
        "models.py:make --inputs 20 --algo d_rtrl --algo es_d_rtrl:rank=8 --x64",
    )
    timing = command(
        "bench",
        _bench,
        "time gradients, with their memory and their error, beside BPTT",
        "models.py:make --inputs 20 --algo d_rtrl --window 1 --window 10 --steps 100",
    )
    for made in (verify, timing):
        made.add_argument(
            "--algo",
            action=_Append,
            default=["d_rtrl", "es_d_rtrl"],
            metavar="ALGO",
            help=f"{FORM}; may be given several times (d_rtrl and es_d_rtrl)",
        )
        made.add_argument(
            "--tbptt",
            action=_Append,
            type=_count,
            default=[10, 1] if made is verify else [],
            metavar="W",
            help="also BPTT that is cut every W steps, 1 being the gradient of each step alone; "
            f"may be given several times ({'10 and 1' if made is verify else 'none'})",
        )
        made.add_argument(
            "--steps",
            type=_count,
            metavar="T",
            help=f"more than the window, or traces are not used; {STEPS}, or those of the task",
        )
        made.add_argument("--batch", type=_count, metavar="B", help=f"{BATCH}, or that of the task")
    timing.add_argument(
        "--window",
        action=_Append,
        type=_window,
        default=[],
        metavar="W",
        help="steps that are processed at once, or auto; each algorithm is timed with each",
    )
    timing.add_argument(
        "--repeats", type=_count, default=10, metavar="N", help="of each timing (10)"
    )
    return [verify, timing]


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inputs",
        metavar="SHAPE",
        help="what the model reads in one step, such as 20, 3,4 or 'int32[3,4]'",
    )
    parser.add_argument(
        "--memory", type=_count, metavar="BYTES", help="at most so many bytes of traces (16 GiB)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of random data, and of a function's key or seed (0)"
    )
    parser.add_argument("--x64", action="store_true", help="compute in float64")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error was raised, in full"
    )


__all__ = ["main"]
