"""Kernels for TPUs, by Pallas, which a program takes as passes of its own: `passes=(*etpc.plan.DEFAULT, FUSED)`."""

from ._fused import FUSED, Fused, fused

__all__ = ["FUSED", "Fused", "fused"]
