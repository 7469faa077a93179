"""A learner of a task, written to a folder, and compiled by IREE."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax

from ..export.learner import Exported
from ..run import online
from ._algorithm import parse, parse_optimiser
from ._errors import CommandError
from ._task import Task, make_data

LIKE_THIS = {"llvm-cpu": ["--iree-llvmcpu-target-cpu=host"]}
"""The options of IREE's compiler that are needed for a target."""


def exported(
    task: Task, algo: str, optimiser: str, every: int, batch: int | None, memory: int | None
) -> Exported:
    """The learner of a task, for one stream without a batch axis unless there is a batch."""
    data = make_data(task, seed=0, steps=every, batch=batch)
    xs, targets = data.xs, data.targets
    if batch is None and data.batch_size is not None:
        xs, targets = jax.tree.map(lambda a: a[:, 0], (xs, targets))
    program = task.compile(parse(algo), memory, batch or 1)
    learner = online(program, data.loss_fn, parse_optimiser(optimiser), every)
    return learner.export(task.model, *learner.init(task.model, batch), xs, targets)


def compiled(folder: Path, target: str) -> tuple[dict[str, int], int]:
    """Compile the modules of a learner by IREE, beside them.

    **Returns** the bytes of each file; and those that an update allocates, its results among them, in all.
    """
    try:
        import iree.compiler  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        where = "`pip install '.[device]'`, in the folder of the source"
        raise CommandError(f"--compile needs IREE. Install it by {where}.") from error
    sizes, allocated = {}, {}
    for path in sorted(folder.glob("*.mlirbc")):
        with tempfile.TemporaryDirectory() as place:
            said = Path(place) / "statistics.json"
            try:
                binary: Any = iree.compiler.compile_file(
                    str(path),
                    input_type="stablehlo",
                    target_backends=[target],
                    extra_args=[
                        *LIKE_THIS.get(target, []),
                        "--iree-scheduling-dump-statistics-format=json",
                        f"--iree-scheduling-dump-statistics-file={said}",
                    ],
                )
            except Exception as error:  # whatever IREE says of a target or of an operation
                raise CommandError(
                    f"IREE can't compile {path.name} for {target}: {error}"
                ) from error
            execution = json.loads(said.read_text())["stream-aggregate"]["execution"]
        path.with_suffix(".vmfb").write_bytes(binary)
        sizes[path.with_suffix(".vmfb").name] = len(binary)
        allocated[path.stem] = int(execution["transient-memory-size"])
    return sizes, allocated["update"]
