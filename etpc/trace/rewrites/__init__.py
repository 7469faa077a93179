"""Rewrites of the step, one file each: pattern, why the result is the same, rewrite, and what for.

A rewrite takes the program of a step, and which of its arguments are parameters. Unlike the passes over a trace program
it has no switch: which operations meet a weight, and so what a rule cuts, follows from it.
"""

from ._expand import expand
from ._merge_products import merge_products
from ._multiply import multiply
from ._real_operands import real_operands
from ._vector_first import vector_first

REWRITES = (expand, merge_products, multiply, real_operands, vector_first)
"""All rewrites, in the order in which they run."""

__all__ = ["REWRITES"]
