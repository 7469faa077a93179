"""An exported learner as C, compiled for this machine."""

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import etpc
from examples.on_device.to_c import write_c

CFLAGS = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-pedantic"]


class Learner:
    """With the state that it has now, by name."""

    def __init__(self, exported: etpc.Exported, folder: Path):
        self.exported = exported
        self.sizes = write_c(exported, folder)
        library = folder / "learner.so"
        command = ["cc", *CFLAGS, "-shared", "-fPIC", "learner.c", "-o", library.name, "-lm"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
        self.library = ctypes.CDLL(str(library))
        fields = [(name, a.dtype, (max(1, a.size),)) for name, a in exported.state.items()]
        self.memory = np.zeros((), np.dtype(fields, align=True))
        self.library.learner_init(self._pointer(self.memory))

    @staticmethod
    def _pointer(array: np.ndarray) -> Any:
        return array.ctypes.data_as(ctypes.c_void_p)

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {
            name: self.memory[name].reshape(-1)[: a.size].reshape(a.shape).copy()
            for name, a in self.exported.state.items()
        }

    def call(self, function: str, **data: Any) -> dict[str, np.ndarray]:
        entry = self.exported.manifest["files"][f"{function}.mlirbc"]
        arguments = [a for a in entry["arguments"] if a["role"] != "state"]
        results = {
            r["name"]: np.zeros(r["shape"], r["dtype"])
            for r in entry["results"]
            if r["role"] != "state"
        }
        given = [np.ascontiguousarray(data[a["name"]], a["dtype"]) for a in arguments]
        pointers = map(self._pointer, [self.memory, *given, *results.values()])
        getattr(self.library, f"learner_{function}")(*pointers)
        return results
