"""From the patterns of a step to the states that an operation has a lasting influence on."""

import numpy as np
import scipy.sparse as sp
from scipy.sparse import csgraph

from ._interpreter import too_dense
from ._pattern import Pattern, TooDense, afford, empty


def closure(block: Pattern, transition: Pattern) -> Pattern:
    """All states that the states in each row's block reach by any number of transitions.

    States that reach each other are taken as one, so that a network in which all states reach each other costs no
    more than the answer takes. For example, with 0 -> 1 -> 0 and 1 -> 2, states 0 and 1 are component a and state 2
    is component b. The successors are a -> a and a -> b. A block {0} enters a, reaches {a, b} after one pass, and
    the next pass adds nothing: the closure is {0, 1, 2}.
    """
    if not block.nnz:
        return block
    count, label = csgraph.connected_components(transition.T, connection="strong")
    size = transition.shape[0]
    ones = np.ones(size, bool)
    members: Pattern = sp.csr_array((ones, (label, np.arange(size))), shape=(count, size))
    successors = sp.csr_array(members @ sp.csr_array(transition.T) @ members.T)
    reached = sp.csr_array(block @ members.T)
    frontier = reached
    sizes = np.bincount(label, minlength=count)
    try:
        for _ in range(count + 1):
            afford(np.diff(successors.indptr)[frontier.indices].sum())
            grown = sp.csr_array(reached + sp.csr_array(frontier @ successors))
            if grown.nnz == reached.nnz:
                break
            frontier = sp.csr_array(grown > reached)
            reached = grown
        else:
            raise AssertionError("a closure over finitely many states did not end; a bug in etpc")
        afford(sizes[reached.indices].sum())
    except TooDense as error:
        raise too_dense(error.entries, "the states that influence each other") from None
    states = sp.csr_array(reached @ members)
    states.sort_indices()
    return states


def within(block: Pattern, transition: Pattern, steps: int | None) -> tuple[Pattern, Pattern]:
    """The states that each row's block reaches in fewer than `steps` transitions, or in any number, and the states that
    one more transition would add."""
    if steps is None:
        return closure(block, transition), empty(*block.shape)
    successors = sp.csr_array(transition.T)
    try:
        for _ in range(steps - 1):
            afford(np.diff(successors.indptr)[block.indices].sum())
            grown = sp.csr_array(block + sp.csr_array(block @ successors))
            if grown.nnz == block.nnz:
                break
            block = grown
        afford(np.diff(successors.indptr)[block.indices].sum())
    except TooDense as error:
        raise too_dense(error.entries, f"what is reached in {steps} steps") from None
    block.sort_indices()
    beyond = sp.csr_array(sp.csr_array(block + sp.csr_array(block @ successors)) > block)
    return block, beyond
