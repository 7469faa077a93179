"""Pattern rules of linear solves and Fourier transforms.

Factorisations (Cholesky, QR, LU, eigenvalues, singular values) need none: their derivatives are
products and solves with the factors.
"""

import itertools

import numpy as np
import scipy.sparse as sp
from scipy.sparse import csgraph

from .._jax import Equation, flatten, params
from ..trace import Known
from ._interpreter import Interpreter, Patterns, Results, rule
from ._pattern import pick, spread, stacked, union
from ._rules_control import inside


@rule("fft")
def _fft(interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known) -> Results:
    (x,), (out,) = eqn.inputs, eqn.outputs
    axes = range(len(x.shape))[len(x.shape) - params.fft_rank(eqn) :]
    return [spread(patterns[0], x.shape, axes, out.shape)]


@rule("triangular_solve")
def _triangular_solve(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    (matrix, right), (out,) = eqn.inputs, eqn.outputs
    row, column = len(out.shape) - 2, len(out.shape) - 1
    of_matrix = spread(patterns[0], matrix.shape, (row, column), out.shape)
    axis = row if params.solves_from_left(eqn) else column
    return [union([of_matrix, spread(patterns[1], right.shape, (axis,))])]


@rule("tridiagonal_solve")
def _tridiagonal_solve(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    (out,) = eqn.outputs
    row, column = len(out.shape) - 2, len(out.shape) - 1
    of_matrix = [
        spread(pattern, (*v.shape, 1), (row, column), out.shape)
        for v, pattern in zip(eqn.inputs[:3], patterns[:3], strict=True)
    ]
    return [union([*of_matrix, spread(patterns[3], out.shape, (row,))])]


@rule("linear_solve")
def _linear_solve(
    interpreter: Interpreter, eqn: Equation, patterns: Patterns, known: Known
) -> Results:
    """`A x = b`: an element of x depends on those of b that the equations connect it with.

    However it is solved, the inverse of a matrix that is block-diagonal, but for the order of its rows
    and columns, has the transposed blocks.
    """
    fixed, matvec_consts, matvec = params.linear_solve(eqn)
    if any(p is not None for p in patterns[:fixed]):
        return None
    right = eqn.inputs[fixed:]
    size = sum(v.size for v in right)
    flat = flatten(matvec)
    product = Interpreter(size + 1)
    known_inside = inside(flat, eqn.inputs[:matvec_consts], known)
    rows = product.run_on_seeds(flat, [v.size for v in right], known_inside)
    if product.opaque or product.unbounded or product.nonlinear:
        return None
    matrix = sp.csr_array(sp.vstack(rows, format="csr"))[:, :size]
    both = sp.block_array([[None, matrix], [matrix.T, None]], format="csr")
    count, block = csgraph.connected_components(both, directed=False)
    given = stacked(patterns[fixed:], [v.size for v in right], interpreter.seeds)
    members = sp.csr_array((np.ones(size, bool), (block[:size], np.arange(size))), (count, size))
    of_block = sp.csr_array(members @ given)
    solution = block[size:]
    ends = np.cumsum([0, *(v.size for v in right)])
    return [pick(of_block, solution[a:b]) for a, b in itertools.pairwise(ends)]
