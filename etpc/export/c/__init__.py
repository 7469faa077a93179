"""Exported functions as C99.

No allocation, no library but libm, and nothing of JAX or etpc. What a call needs beside the state is a struct that the
caller gives, with one array for each type of number, in which arrays that are not alive at the same time share their
places. The next value of a state is written over the old one where nothing reads that any more, so that a trace is
there once.

Operations by element, and those that only move elements, are computed where they are read; contractions, reductions
and what is read several times have an array each. An operation that is in none of the tables is refused by its name.

- `_program`: a function as statements, and which array is written over which.
- `_elements`, `_moves`, `_sums`, `_control`: what each operation of StableHLO is in C, in a table of each.
- `_helpers`: functions of C for what StableHLO defines otherwise, such as divisions by zero.
- `_write`: which arrays share a place, and the two files.
"""

from ._write import write_c

__all__ = ["write_c"]
