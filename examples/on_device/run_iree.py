"""An exported learner under IREE, in a process without JAX: python run_iree.py learner/ data.npz results.npz

`data.npz` has an array for each argument that is no state (`xs`, `targets`), with one more leading axis: the calls.
`results.npz` gets the state after the last call, and of each other result (`losses`) all calls, by name.
"""

import json
import sys
from pathlib import Path
from typing import Any

import iree.compiler  # pyright: ignore[reportMissingImports]
import iree.runtime  # pyright: ignore[reportMissingImports]
import numpy as np


class Learner:
    """An exported learner, or functions of one state, with the state that they have now, by name."""

    def __init__(self, folder: str | Path, target: str = "llvm-cpu"):
        self.folder = Path(folder)
        self.files = json.loads((self.folder / "manifest.json").read_text())["files"]
        with np.load(self.folder / "state.npz") as stored:
            self.state = {name: stored[name] for name in stored.files}
        self.target, self.compiled = target, {}

    def call(self, function: str, **data: Any) -> dict[str, np.ndarray]:
        """One call of `update`, `predict`, or another function: its results that are no state, by name."""
        name = f"{function}.mlirbc"
        if name not in self.compiled:
            self.compiled[name] = compiled(self.folder / name, self.target)
        values = {**self.state, **data}
        arguments, results = (self.files[name][side] for side in ("arguments", "results"))
        given = [np.asarray(values[a["name"]], a["dtype"]) for a in arguments]
        given = [a.astype(np.int8) if a.dtype == bool else a for a in given]  # as IREE takes them
        new = self.compiled[name](*given)
        new = [new] if len(results) == 1 else new
        found = {
            r["name"]: np.asarray(a).astype(r["dtype"]).reshape(r["shape"])
            for r, a in zip(results, new, strict=True)
        }
        self.state |= {r["name"]: found[r["name"]] for r in results if r["role"] == "state"}
        return {r["name"]: found[r["name"]] for r in results if r["role"] != "state"}


def compiled(path: Path, target: str) -> Any:
    """The function of a module, for a target such as "llvm-cpu"."""
    options = ["--iree-llvmcpu-target-cpu=host"] if target == "llvm-cpu" else []
    binary = iree.compiler.compile_file(
        str(path), input_type="stablehlo", target_backends=[target], extra_args=options
    )
    config = iree.runtime.Config("local-sync")
    module = iree.runtime.VmModule.copy_buffer(config.vm_instance, binary)
    return iree.runtime.load_vm_module(module, config)["main"]


def main(folder: str, data: str, results: str) -> None:
    learner = Learner(folder)
    with np.load(data) as stored:
        calls = {name: stored[name] for name in stored.files}
    found = [
        learner.call("update", **{name: a[k] for name, a in calls.items()})
        for k in range(len(next(iter(calls.values()))))
    ]
    each: dict[str, Any] = {name: np.stack([f[name] for f in found]) for name in found[0]}
    np.savez(results, **learner.state, **each)
    assert "jax" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
