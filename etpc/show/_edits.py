"""Advice on how a model could be changed so that no influence escapes, where the analysis tells it."""

import numpy as np

from ..analyse import Analysis


def edits(analysis: Analysis, number: int) -> list[str]:
    """Changes of the model that would close the paths along which influence escapes from an operation.

    There is advice for two kinds of path: a path that leads back to where it begins, as in a recurrent layer, and
    a path that ends in a state that only the output reads, as in a leaky readout.
    """
    escapes = [e for e in analysis.reach[number].escapes if e.through]
    if not escapes:
        return []
    place = {f"hidden {path}": n for n, path in enumerate(analysis.hidden.paths)}
    step, uncut = _influence(analysis)
    onward = uncut.copy()
    for _ in range(len(onward)):
        onward |= onward @ onward
    texts = []
    for escape in escapes:
        weight, target = escape.through[0], place[escape.target]
        source = place.get(escape.source)
        others = np.arange(len(uncut)) != target
        if source is not None and (source == target or onward[source, target]):
            state = escape.source.removeprefix("hidden ")
            texts.append(
                f"The next step reads {state} through {weight}. Recurrence of each unit with itself alone, as "
                f"in etpc.nn.MinGRU, IndRNN or LRU, keeps this influence; so does a block-diagonal {weight} "
                "under RTRL, whose traces then hold a block."
            )
        elif not uncut[others, target].any() and step[target, target] == uncut[target, target]:
            state = escape.target.removeprefix("hidden ")
            texts.append(
                f"Only the output reads {state}. A readout without memory in its place keeps this influence."
            )
    return list(dict.fromkeys(texts))


def _influence(analysis: Analysis) -> tuple[np.ndarray, np.ndarray]:
    """Two boolean arrays [new, old]: whether the new value of a leaf of the state depends on the old value of
    another, in the cut step and in the uncut one."""
    hidden, count = analysis.hidden, len(analysis.hidden.paths)
    leaf = hidden.leaf_of(np.arange(hidden.size))
    step = np.zeros((count, count), bool)
    new, old = analysis.transition.nonzero()
    step[leaf[new], leaf[old]] = True
    enters, reads = (np.zeros((len(analysis.ops), count), bool) for _ in range(2))
    for k, reach in enumerate(analysis.reach):
        enters[k, leaf[np.unique(analysis.immediate[k].nonzero()[0])]] = True
        reads[k, leaf[np.flatnonzero(reach.reads.states)]] = True
    reads_ops = np.array([reach.reads.ops for reach in analysis.reach])
    for _ in analysis.ops:
        enters |= reads_ops.T @ enters
    return step, step | (enters.T @ reads)
