"""A trace that is moved and read in one pass over its memory, in windows of one step on a TPU.

- Pattern: a TPU of one device, as XLA does not partition a kernel; windows of one step; a large whole trace of one
  dense operation, real, of one group, each of whose states is an array, and whose gradient is read at its end.
- Proof: each entry is computed as the form that is replaced computes it.
- Rewrite: the form. XLA has two loops over the trace, one that overwrites it and one that multiplies it with the credit
  and sums over examples, and the second computes the first again.
- By the bundles of its schedule (libtpu 0.0.50.1, N = 2048, B = 16, v5e) a tile of 2 MB takes 1,200 cycles, and its
  way from and to HBM 8,200: the kernel is as fast as the memory. XLA estimates 2.6 times that for its two loops.

Nothing of it has run on a TPU: the tests run it by Pallas's interpreter, and compile it for a v5e and a v6e.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from ..forms import Carry, Full, Meaning, Passage, Site, Trace, times
from ..ir import Change, TraceNode, TraceProgram, end_of
from ..plan import Pass

LARGE = 1 << 18
"""Bytes of the trace of one example from which on it has the kernel; a smaller one stays in VMEM."""
ROWS, COLUMNS = 256, 1024
"""Of a tile, at most: 1 MiB, of which a kernel holds eight and six for each further state."""


@dataclasses.dataclass(frozen=True)
class Fused(Trace):
    """Another form, whose whole traces of dense operations are moved and read at once.

    - `inner`: the form, with an array for each state.
    - `interpret`: run the kernel by Pallas's interpreter, on any platform. It is a TPU's otherwise, and elsewhere the
        program is that of the form.
    """

    inner: Full
    interpret: bool = False
    exact = True

    @property
    def held(self) -> str:
        return self.inner.held

    def meaning(self) -> Meaning:
        return self.inner.meaning()

    def shapes(self, site: Site) -> tuple[tuple[int, ...], ...]:
        return self.inner.shapes(site)

    def init(self, site: Site, batch: int) -> Carry:
        return self.inner.init(site, batch)

    def shown(self, site: Site, carry: Carry) -> dict[str, Array]:
        return self.inner.shown(site, carry)

    def past(self, site: Site, start: Array, carry: Carry) -> Any:
        return self.inner.past(site, start, carry)

    def move(
        self, site: Site, passage: Passage, path: Any, carry: Carry, start: Array | None
    ) -> Carry:
        return self.inner.move(site, passage, path, carry, start)

    def read_end(self, site: Site, credit: Array, carry: Carry) -> Array:
        return self.inner.read_end(site, credit, carry)

    def move_and_read(
        self, site: Site, passage: Passage, path: Any, carry: Carry, credit: Array
    ) -> tuple[Carry, Array]:
        """The trace at the end of a step, and the gradient of the weight from the new states' credit, [B, m, O]."""
        kind, dtype = site.kind, carry[0].dtype
        # Before the branches, as a passage keeps what it computes.
        (x,), (parts,), whole = passage.xs, passage.moved(), passage.whole()
        added = jnp.concatenate(parts, 2)[0]
        whole = jnp.broadcast_to(whole, added.shape[:1] + whole.shape[1:2] + added.shape[2:])
        operands = [a.astype(dtype) for a in (whole, added, credit, site.data(x)[0])]
        inputs_last = self.inner.laid_out(site).inputs_last

        def by_kernel(carry: Carry, *operands: Array) -> tuple[Carry, Array]:
            whole, added, credit, x = operands
            of_x = x, inputs_last, self.interpret
            new, entries = moved_and_read(carry, whole, added, credit, *of_x)
            entries = entries[None]
            return new, kind.gather(entries.swapaxes(1, 2) if inputs_last else entries)

        def plain(carry: Carry, *_: Array) -> tuple[Carry, Array]:
            new = self.inner.move(site, passage, path, carry, None)
            return new, self.inner.read_end(site, credit, new)

        if self.interpret:
            return by_kernel(carry, *operands)
        return lax.platform_dependent(carry, *operands, tpu=by_kernel, default=plain)


def moved_and_read(
    trace: Carry,
    transition: Array,
    added: Array,
    credit: Array,
    x: Array,
    inputs_last: bool,
    interpret: bool = False,
) -> tuple[Carry, Array]:
    """`e_a' = sum_b D_ab e_b + F_a x^T` for each state a, and `sum_a L_a e_a'` summed over examples.

    - `trace`: an array [B, O, I] for each of m states, or [B, I, O] where `inputs_last` does not hold.
    - `transition`: D, [B, m * m, O]; `added`: F, and `credit`: L, [B, m, O]; `x`: [B, 1, I].

    **Returns** the new arrays and the sum, [O, I] or [I, O].
    """
    states, (batch, rows, columns) = len(trace), trace[0].shape
    tile = min(rows, ROWS), min(columns, COLUMNS)
    of_entries = pl.BlockSpec((1, *tile), lambda r, c, b: (b, r, c))
    along_rows = lambda a: pl.BlockSpec((1, a.shape[1], tile[0]), lambda r, c, b: (b, 0, r))
    along_columns = lambda a: pl.BlockSpec((1, a.shape[1], tile[1]), lambda r, c, b: (b, 0, c))
    of_outputs, of_inputs = (
        (along_rows, along_columns) if inputs_last else (along_columns, along_rows)
    )
    spread = (lambda v: v[:, None]) if inputs_last else (lambda v: v[None, :])
    across = (lambda v: v[None, :]) if inputs_last else (lambda v: v[:, None])

    def kernel(d: Any, f: Any, credit: Any, x: Any, *entries: Any) -> None:
        old, new, total = entries[:states], entries[states:-1], entries[-1]

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            total[...] = jnp.zeros_like(total)

        of_x, sums = across(x[0, 0]), total[...]
        for a in range(states):
            terms = [times(spread(d[0, a * states + b]), old[b][0]) for b in range(states)]
            moved = sum(terms[1:], terms[0]) + spread(f[0, a]) * of_x
            new[a][0] = moved
            sums += times(spread(credit[0, a]), moved)
        total[...] = sums

    numbers = states * batch * rows * columns
    *new, total = pl.pallas_call(
        kernel,
        grid=(math.ceil(rows / tile[0]), math.ceil(columns / tile[1]), batch),
        in_specs=[
            *map(of_outputs, (transition, added, credit)),
            of_inputs(x),
            *[of_entries] * states,
        ],
        out_specs=[*[of_entries] * states, pl.BlockSpec(tile, lambda r, c, b: (r, c))],
        out_shape=[
            *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in trace),
            jax.ShapeDtypeStruct((rows, columns), trace[0].dtype),
        ],
        input_output_aliases={4 + a: a for a in range(states)},
        cost_estimate=pl.CostEstimate(
            flops=(2 * states + 4) * numbers,
            bytes_accessed=2 * numbers * trace[0].dtype.itemsize,
            transcendentals=0,
        ),
        interpret=interpret,
    )(transition, added, credit, x, *trace)
    return tuple(new), total


def fused(interpret: bool = False) -> Pass:
    """The pass; with `interpret`, for any platform, by Pallas's interpreter."""

    def run(program: TraceProgram) -> TraceProgram:
        target = program.target
        if target.devices > 1 or not (interpret or target.platform == "tpu"):
            return program
        new = {
            node: dataclasses.replace(node, form=Fused(node.form, interpret))
            for node in program.traces
            if isinstance(node.form, Full) and _fits(program, node, node.form)
        }
        text = "moved and read in one pass over its memory"
        changes = [Change(NAME, node.op.path, text) for node in new]
        return program.replaced(new).noted(*changes) if new else program

    return Pass(NAME, "on a TPU, a large trace is moved and read in one pass over its memory", run)


def _fits(program: TraceProgram, node: TraceNode, form: Full) -> bool:
    site = program.site(node)
    if form.as_complex or not (form.apart or site.block == 1):
        return False
    is_dense = site.factored and site.kind.links is None and site.kind.groups == 1
    is_read = program.step_grads.get(node.op) == (end_of(node),) and len(node.ops) == 1
    is_real = jnp.issubdtype(site.dtype, jnp.floating)
    return is_dense and is_read and is_real and node.bytes >= LARGE


NAME = "fused"
FUSED = fused()
