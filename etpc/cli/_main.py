"""The commands: what they take, do, and print."""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import __version__
from ..checking.compare import compare
from ..checking.suggest import suggest
from ..errors import EtpcError
from ..estimating.estimate import estimate
from ..files.disk import new_folder
from ..files.record import plain
from ..run import Program
from ..show import table
from ..testing import add_claims
from ._algorithm import FORM, OPTIMISER, parse, parse_optimiser
from ._bench import bench
from ._errors import CommandError, described, is_of_user
from ._export import compiled, exported
from ._task import BATCH, STEPS, Data, Task, claims_of, load_task, make_data

OK, FAILED, MISTAKE, UNFORESEEN = range(4)
"""Exit statuses."""

STATUS = """\
exit status: 0 if all is well, 1 if a claim of exactness did not hold, a comparison showed nothing, or no
rule is suggested or fits, 2 if the command or the model cannot be used, 3 for an error that etpc did not foresee."""

PROSE = 100
"""The longest line of sentences, however wide the terminal."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command found, for people and for programs."""

    text: str
    record: dict[str, Any]
    ok: bool = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, with the arguments of the process by default.

    **Returns** the exit status: 0 if all is well; 1 if a claim of exactness did not hold, a
    comparison showed nothing, or no rule is suggested or fits; 2 for a mistake in the command or in
    the user's own code; 3 for an error that etpc did not foresee.
    """
    arguments = _arguments(argv)
    try:
        folder = os.getcwd()
        if sys.path[:1] not in ([""], [folder]):
            sys.path.insert(0, folder)  # as for `python -m`
        as_is = contextlib.nullcontext()
        x64 = jax.enable_x64(True) if arguments.x64 else as_is
        # What the user's code prints must not mix with JSON.
        stdout = contextlib.redirect_stdout(sys.stderr) if arguments.json else as_is
        with x64, stdout:
            command = COMMANDS[arguments.command]
            if _is_terminal(sys.stderr):
                _tell(f"{command.doing} {arguments.target} ...")
            answer = command.run(arguments)
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Its encoding may lack a letter of a parameter's name.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(json.dumps(plain(answer.record), indent=2) if as_json else answer.text, flush=True)
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
    _tell(f"etpc {arguments.command}: error: {text}")
    return MISTAKE


def _is_terminal(stream: Any) -> bool:
    """Whether a stream, `None` where it is closed, is a terminal."""
    return stream is not None and stream.isatty()


def _tell(text: str) -> None:
    """Print to stderr, where there is one that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


# --- commands -------------------------------------------------------------------------------------


def _explain(arguments: argparse.Namespace) -> Answer:
    program = _program(arguments)
    path = arguments.parameter
    if path is None:
        text = str(program)
    else:
        columns = shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else PROSE
        text = program.explain(path, min(PROSE, columns))
    record: dict[str, Any] = {"model": arguments.target, **program.as_dict()}
    if arguments.ir:
        text = f"{text}\n\n{program.ir}"
    if arguments.passes:
        text = f"{text}\n\n{program.passes}"
        record["passes"] = [dataclasses.asdict(report) for report in program.passes]
    if path is not None:
        record |= {
            "parameter": path,
            "explanation": text,
            "weights": [w for w in record["weights"] if w["path"] == path],
            "untraced": {p: why for p, why in record["untraced"].items() if p == path},
            "claims": {p: claim for p, claim in record["claims"].items() if p == path},
        }
    return Answer(text, record)


def _claims(arguments: argparse.Namespace) -> Answer:
    """Add the claims of a model to a file."""
    path = arguments.output
    options = (arguments.algo, arguments.inputs, arguments.seed, arguments.memory)
    entry = claims_of(arguments.target, *options)
    with _writing(path):
        models = add_claims(path, arguments.target, entry)
    found = entry["claims"].items()
    rows = [[of, claim["claim"], "; ".join(claim["left_out"])] for of, claim in found]
    lines = [*table(["parameter", "claim", "left out"], rows), "", f"wrote {path}"]
    return Answer("\n".join(lines), {"schema": "etpc-claims/1", "models": models})


def _verify(arguments: argparse.Namespace) -> Answer:
    task, data = _task_and_data(arguments)
    comparison = compare(
        *(task.model, data.xs, data.targets, data.loss_fn, [*map(parse, arguments.algo)]),
        **task.called,
        batch_size=data.batch_size,
        memory=arguments.memory,
    )
    return _on_data(arguments, data, str(comparison), comparison.as_dict(), comparison.ok)


def _draw(arguments: argparse.Namespace) -> Answer:
    from ..draw import write

    program = _program(arguments)
    with _writing(arguments.output):
        write(program, arguments.output)
    record = {"schema": "etpc-draw/1", "model": arguments.target, "written": arguments.output}
    return Answer(f"wrote {arguments.output}", record)


def _view(arguments: argparse.Namespace) -> Answer:
    arguments.algo = arguments.rule or arguments.algo
    options = dict(batch_size=arguments.batch, hlo=not arguments.no_hlo, on=arguments.on)
    view = _program(arguments).view(title=arguments.target, **options)
    with _writing(arguments.output):
        view.write(arguments.output)
    written = {"model": arguments.target, "written": arguments.output}
    return Answer(f"wrote {arguments.output}", {**view.as_dict(), **written})


def _equations(arguments: argparse.Namespace) -> Answer:
    equations = _program(arguments).equations(arguments.parameter)
    record = {"model": arguments.target, **equations.as_dict()}
    if arguments.latex:
        return Answer(equations.latex(), record | {"latex": equations.latex()})
    if arguments.numpy:
        return Answer(equations.to_numpy(), record | {"numpy": equations.to_numpy()})
    return Answer(str(equations), record)


def _bench(arguments: argparse.Namespace) -> Answer:
    task, data = _task_and_data(arguments)
    algorithms = [*map(parse, arguments.algo)]
    timings = bench(task, data, algorithms, memory=arguments.memory, repeats=arguments.repeats)
    where = jax.devices()[0].device_kind
    columns = ["gradient", "ms/step", "to BPTT", "compile s", "carry bytes", "temp bytes"]
    columns += ["rel. error", "cosine"]
    rows = [
        [
            timing.name,
            f"{timing.step_ms:.4f}",
            f"{timing.step_ms / timings[0].step_ms:.2f}",
            f"{timing.compile_s:.2f}",
            f"{timing.carry_bytes:,}",
            "-" if timing.temp_bytes is None else f"{timing.temp_bytes:,}",
            f"{timing.error:.2e}",
            f"{timing.cosine:.6f}",
        ]
        for timing in timings
    ]
    head = f"on {where}, shortest of {arguments.repeats}"
    results = [dataclasses.asdict(timing) for timing in timings]
    record = dict(device=where, repeats=arguments.repeats, results=results)
    text = "\n".join([head, "", *table(columns, rows)])
    return _on_data(arguments, data, text, {"schema": "etpc-bench/1", **record})


def _suggest(arguments: argparse.Namespace) -> Answer:
    task, data = _task_and_data(arguments)
    suggestion = suggest(
        *(task.model, data.xs, data.targets, data.loss_fn),
        **task.called,
        batch_size=data.batch_size,
        memory=arguments.memory,
        time=arguments.time,
        optimiser=arguments.optimiser and parse_optimiser(arguments.optimiser),
        score=task.score,
        every=arguments.every,
        updates=arguments.updates,
        budget=arguments.budget,
    )
    fits = suggestion.rule is not None
    return _on_data(arguments, data, str(suggestion), suggestion.as_dict(), fits)


def _estimate(arguments: argparse.Namespace) -> Answer:
    if not getattr(jax.config, "jax_platforms", None):
        jax.config.update("jax_platforms", "cpu")  # nothing is run, so no device is looked for
    task = load_task(arguments.target, arguments.inputs, arguments.seed)
    data = make_data(task, seed=arguments.seed, steps=None, batch=None)
    of_step = lambda a: jax.ShapeDtypeStruct(a.shape[1 + (data.batch_size is not None) :], a.dtype)
    optimiser = arguments.optimiser and parse_optimiser(arguments.optimiser)
    found = estimate(
        *(task.model, [*map(parse, arguments.algo)]),
        **dict(on=arguments.on, inputs=task.inputs, **task.called),
        **dict(loss_fn=data.loss_fn, targets=jax.tree.map(of_step, data.targets)),
        **dict(optimiser=optimiser, every=arguments.every, largest_batch=arguments.largest_batch),
        steps=arguments.steps or data.steps,
        batch_size=arguments.batch or data.batch_size,
        mesh=arguments.devices and {"batch": arguments.devices},
    )
    fits = any(row.fits for row in found.rows[1:])
    return Answer(str(found), {"model": arguments.target, **found.as_dict()}, fits)


def _export(arguments: argparse.Namespace) -> Answer:
    task = load_task(arguments.target, arguments.inputs, arguments.seed)
    folder = arguments.output
    options = (arguments.algo, arguments.optimiser, arguments.every, arguments.batch)
    learner = exported(task, *options, arguments.memory)
    state = sum(value.nbytes for value in learner.state.values())
    temporaries = learner.temporaries()
    sizes, allocated = {name: len(code) for name, code in learner.modules.items()}, None
    in_c = None
    with _writing(folder), new_folder(folder) as temporary:
        learner.save(temporary)
        if arguments.compile is not None:
            files, allocated = compiled(temporary, arguments.compile)
            sizes |= files
        if arguments.c is not None:
            place, whole = (Path(os.path.realpath(path)) for path in (arguments.c, folder))
            if place.is_relative_to(whole):  # then it is there with the rest, or not at all
                place = temporary / place.relative_to(whole)
            with _writing(arguments.c):
                in_c = learner.to_c(place)
    lines = [*table(["file", "bytes"], [[name, f"{size:,}"] for name, size in sizes.items()]), ""]
    lines += [
        f"state: {state:,} bytes in {len(learner.state)} arrays",
        f"temporaries of an update: {temporaries:,} bytes at most, as XLA compiles it for this machine",
    ]
    if allocated is not None:
        lines.append(
            f"temporaries and results of an update: {allocated:,} bytes in all, as IREE allocates them for "
            f"{arguments.compile}"
        )
        if any(np.iscomplexobj(value) for value in learner.state.values()):
            lines.append(
                "IREE 3.13 gets some learners with complex numbers wrong: see docs/device.md"
            )
    if in_c is not None:
        lines.append(f"{arguments.c}/learner.c works in {in_c['work']:,} bytes beside the state")
    lines.append(f"wrote {folder}")
    found = dict(
        files=sizes,
        state_bytes=state,
        temporary_bytes=temporaries,
        iree_allocated_bytes=allocated,
        c_bytes=in_c,
    )
    record = {"schema": "etpc-export/1", "model": arguments.target, "written": arguments.output}
    return Answer("\n".join(lines), record | found)


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    """**Raises** `CommandError` where a path cannot be written."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from error


def _program(arguments: argparse.Namespace) -> Program:
    # This may register a rule, which --algo names.
    task = load_task(arguments.target, arguments.inputs, arguments.seed)
    return task.compile(parse(arguments.algo), arguments.memory)


def _task_and_data(arguments: argparse.Namespace) -> tuple[Task, Data]:
    # The task is loaded first: this may register a rule, which --algo names.
    task = load_task(arguments.target, arguments.inputs, arguments.seed)
    return task, make_data(task, seed=arguments.seed, steps=arguments.steps, batch=arguments.batch)


def _on_data(
    arguments: argparse.Namespace, data: Data, text: str, record: dict[str, Any], ok: bool = True
) -> Answer:
    """An answer about gradients of a sequence, with what sequence it is."""
    batch = "" if data.batch_size is None else f", batch {data.batch_size}"
    head = f"{arguments.target}: {data.steps} steps{batch}\n{data.text}"
    size = {"steps": data.steps, "batch_size": data.batch_size}
    about = {"model": arguments.target, **size, "data": data.text}
    return Answer(f"{head}\n{text}", about | record, ok)


# --- arguments ------------------------------------------------------------------------------------


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return number


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was typed, where PARAMETER or RULE may stand behind options, which argparse itself does not see."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    for name in ("parameter", "rule"):
        if getattr(arguments, name, "") is None and rest and not rest[0].startswith("-"):
            setattr(arguments, name, rest.pop(0))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command in DEFAULTS:  # `append` would add to a default
        arguments.algo = arguments.algo or DEFAULTS[arguments.command]
    return arguments


DEFAULTS = {
    "verify": ["d_rtrl", "es_d_rtrl", "tbptt:10", "tbptt:1"],
    "bench": ["d_rtrl", "es_d_rtrl"],
    "estimate": ["d_rtrl", "es_d_rtrl"],
}
"""The algorithms of the commands that take several."""

OUTPUTS = {
    "view": ("FILE", "a .html file, or .json for what it shows (view.html)"),
    "draw": ("FILE", "a .svg or .html file; or .graphml, .dot, .json"),
    "claims": ("FILE", "a .json file, which may have other models"),
    "export": ("FOLDER", "a new folder"),
}
"""What is written by the commands that write something."""


class Command(NamedTuple):
    """What a command runs, what it does, and an example of its arguments."""

    run: Callable[[argparse.Namespace], Answer]
    about: str
    example: str
    doing: str = "compiling"
    """What it says on a terminal before it has an answer."""


COMMANDS = {
    "explain": Command(
        _explain,
        "print what each weight's trace holds, and what it leaves out",
        "models.py:make .cell.weight_hh --inputs 20",
    ),
    "view": Command(
        _view,
        "write one page that shows a compilation from end to end",
        "models.py:make e-prop --inputs 20 -o view.html",
    ),
    "draw": Command(
        _draw,
        "draw the dependency graph of inputs, weights, states and outputs",
        "models.py:make --inputs 20 -o graph.svg",
    ),
    "equations": Command(
        _equations,
        "print the equations of the step, its traces and its gradient",
        "models.py:make .cell.weight_hh --inputs 20 --latex",
    ),
    "claims": Command(
        _claims,
        "write what is claimed of each gradient to a file, for pytest --etpc-claims=FILE",
        "models.py:make --inputs 20 -o claims.json",
    ),
    "verify": Command(
        _verify,
        "compare gradients with those of backpropagation through time (BPTT)",
        "models.py:make --inputs 20 --algo d_rtrl --algo es_d_rtrl:rank=8 --x64",
        "compiling and comparing",
    ),
    "bench": Command(
        _bench,
        "time gradients, with their memory and their error, beside BPTT",
        "models.py:make --inputs 20 --algo d_rtrl,window=1 --algo d_rtrl,window=10 --steps 100",
        "compiling and timing",
    ),
    "suggest": Command(
        _suggest,
        "find which learning rule trains a model best, on its data",
        "models.py:make_task --optimiser adam:1e-3",
        "compiling and training",
    ),
    "estimate": Command(
        _estimate,
        "estimate memory, cycles and kernels on a TPU or a GPU that is not there, beside BPTT",
        "models.py:make --on v5e:2x2 --steps 1000 --batch 64 --optimiser adam:1e-3",
    ),
    "export": Command(
        _export,
        "write a learner to a folder, as StableHLO for where Python is not",
        "models.py:make_task --every 1 --optimiser adam:1e-3 -o learner/",
    ),
}


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="etpc",
        description="Eligibility-trace programs of JAX models: choose a rule, explain, verify, draw and time.",
        epilog=f"example: etpc verify models.py:make --inputs 20 --algo d_rtrl --x64\n\n{STATUS}",
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"etpc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        about = command.about
        of_command = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example: etpc {name} {command.example}\n\n{STATUS}",
            formatter_class=raw,
        )
        of_command.add_argument(
            "target",
            metavar="MODEL",
            help="package.module:name or path/to/file.py:name, the name of a model or of a function "
            "that returns a model, (model, inputs) or an etpc.cli.Task; it may take key or seed",
        )
        _add_options(name, of_command)
    return parser


def _add_options(name: str, command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    if name == "explain":
        add("parameter", nargs="?", metavar="PARAMETER", help="a path, such as .cell.weight_hh")
        add("--ir", action="store_true", help="also the trace program: traces and gradients")
        add("--passes", action="store_true", help="also what each pass of the compiler did")
    if name == "equations":
        add("parameter", nargs="?", metavar="PARAMETER", help="of its trace and gradient alone")
        form = command.add_mutually_exclusive_group()
        form.add_argument("--latex", action="store_true", help="as LaTeX")
        form.add_argument("--numpy", action="store_true", help="as a file of plain NumPy")
    if name == "view":
        add("rule", nargs="?", metavar="RULE", help=f"{FORM}; the same as --algo")
        add(
            "--batch", type=_count, metavar="B", help="of the window that is compiled (one example)"
        )
        add("--no-hlo", action="store_true", help="compile no window, which takes most of the time")
        add("--on", metavar="CHIP", help="that the window is compiled for (the device here)")
    if name in OUTPUTS:
        metavar, what = OUTPUTS[name]
        default = "view.html" if name == "view" else None
        add("-o", "--output", required=not default, default=default, metavar=metavar, help=what)
    if name == "export":
        optimiser = f"{OPTIMISER} (adam:1e-3)"
        add("--optimiser", default="adam:1e-3", metavar="NAME:RATE", help=optimiser)
        add("--every", type=_count, default=1, metavar="W", help="steps between updates (1)")
        batch = "one stream without a batch axis, or B of them"
        add("--batch", type=_count, metavar="B", help=batch)
        target = "also compile it by IREE, for a target such as llvm-cpu"
        add("--compile", metavar="TARGET", help=target)
        add("--c", metavar="FOLDER", help="also write it as C99, learner.h and learner.c")
    if name in DEFAULTS:
        several = f"{FORM}; may be given several times ({', '.join(DEFAULTS[name])})"
        add("--algo", action="append", metavar="ALGO", help=several)
    if name == "estimate":
        add("--on", required=True, metavar="CHIPS", help="cpu, or such as v5e:4x4, tpu7x, h100:8")
        add("--optimiser", metavar="NAME:RATE", help=f"{OPTIMISER} (plain descent)")
        add("--every", type=_count, metavar="W", help="steps between updates (all of them)")
        add("--devices", type=_count, metavar="N", help="spread the batch over so many (one)")
        add("--largest-batch", action="store_true", help="also find the largest that fits")
    if name in DEFAULTS or name == "suggest":
        steps = f"more than the window, or traces are not used; {STEPS}, or those of the task"
        add("--steps", type=_count, metavar="T", help=steps)
        add("--batch", type=_count, metavar="B", help=f"{BATCH}, or that of the task")
    else:
        add("--algo", default="d_rtrl", metavar="ALGO", help=f"{FORM} (d_rtrl)")
    if name == "suggest":
        time = "at most so many ms for a step of the batch"
        add("--time", type=_positive, metavar="MS", help=time)
        add("--optimiser", metavar="NAME:RATE", help=f"{OPTIMISER} (adam:3e-3)")
        every = "steps between updates, where they come within a sequence"
        add("--every", type=_count, metavar="W", help=every)
        updates = "for how many updates you will train (as long as the budget lets it)"
        add("--updates", type=_count, metavar="N", help=updates)
        budget = "how long to train and measure, in s (120)"
        add("--budget", type=_positive, default=120.0, metavar="S", help=budget)
    if name == "bench":
        add("--repeats", type=_count, default=10, metavar="N", help="of each timing (10)")
    inputs = "what the model reads in one step, such as 20, 3,4 or 'int32[3,4]'"
    add("--inputs", metavar="SHAPE", help=inputs)
    if name != "estimate":
        memory = "at most so many bytes of traces (16 GiB)"
        add("--memory", type=_count, metavar="BYTES", help=memory)
    seed = "of random data, and of a function's key or seed (0)"
    add("--seed", type=int, default=0, help=seed)
    add("--x64", action="store_true", help="compute in float64")
    add("--json", action="store_true", help="print JSON, and nothing else")
    add("--traceback", action="store_true", help="show where an error was raised, in full")
