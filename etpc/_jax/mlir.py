"""Portable StableHLO, as the bindings of MLIR read it that come with JAX: `jax.extend.mlir`, and nothing below it."""

import re
from typing import Any

import numpy as np
from jax.extend import mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import chlo, stablehlo

__all__ = ["integer", "integers", "numbers", "read_module", "stablehlo"]


def read_module(code: bytes) -> Any:
    """A module, which is whole as long as its context is open: `with module.context`."""
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        chlo.register_dialect(context)
        try:
            return mlir.deserialize_portable_artifact(code)
        except TypeError:  # in some versions of JAX the context is an argument
            return mlir.deserialize_portable_artifact(context, code)


def integer(op: Any, name: str) -> int:
    """An attribute that is a number."""
    return ir.IntegerAttr(op.attributes[name]).value


def integers(op: Any, name: str) -> list[int]:
    """An attribute that is a list of numbers; none where it is missing."""
    given = op.attributes
    return [int(i) for i in ir.DenseI64ArrayAttr(given[name])] if name in given else []


def numbers(op: Any, name: str = "value") -> np.ndarray:
    """An attribute that is an array of numbers, in one axis; one number where all numbers of a constant are complex and
    the same."""
    of_complex = re.search(r"complex<f(\d+)>", str(op.results[0].type))
    if name != "value" or of_complex is None:
        return np.array(ir.DenseElementsAttr(op.attributes[name])).reshape(-1)
    text, dtype = str(op), np.dtype(f"c{int(of_complex[1]) // 4}")  # the bindings have none
    if packed := re.search(r'"0x([0-9A-F]+)"', text):
        return np.frombuffer(bytes.fromhex(packed[1]), dtype)
    part = np.finfo(dtype).dtype
    bits = lambda t: np.array(int(t, 16), f"u{part.itemsize}").view(part)  # of what is not finite
    pairs = re.findall(r"\(([^,()]+),([^,()]+)\)", text.split(" : ")[0])
    parts = [bits(t) if "0x" in t else part.type(t) for pair in pairs for t in map(str.strip, pair)]
    return np.array(parts, part).view(dtype)
