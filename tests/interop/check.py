"""What must hold of any model of the catalogue."""

import jax
import numpy as np

import etpc
from tests.helpers import loss
from tests.interop.catalogue import Case, lines
from tests.zoo.check import bptt, by_path, call, compiled, online

COLUMNS = ("package", "model", "wrapper", "parameters", "states", "exact under D-RTRL")


def outcome(case: Case) -> tuple[str, ...]:
    """The row of a model in the table. **Raises** `AssertionError` where something does not hold."""
    model, xs, state, step, adapter = case.build()
    state = model.init_state() if state is None else state
    one = jax.tree.map(lambda a: a[0], xs)

    def program(algorithm):
        return etpc.compile(model, algorithm, inputs=one, state=state, step=step, weights="all")

    rtrl, d_rtrl = program(etpc.RTRL(window=2)), program(etpc.D_RTRL(window=2))

    def gradients(model, xs, state):
        return {
            "bptt": bptt(model, xs, state, step or call, loss),
            "rtrl": online(rtrl, model, xs, loss),
            "d_rtrl": online(d_rtrl, model, xs, loss),
        }

    got = compiled(gradients, model, xs, state)
    sizes = {path: float(np.max(np.abs(g), initial=0)) for path, g in by_path(got["bptt"]).items()}
    assert all(np.isfinite(s) for s in sizes.values()), sizes
    dead = {path for path, size in sizes.items() if size <= 1e-12}
    assert dead == set(case.dead), f"{dead} have no gradient"
    rtrl_grads, d_rtrl_grads, reference = (by_path(got[k]) for k in ("rtrl", "d_rtrl", "bptt"))
    for path in sizes.keys() - dead:
        wrong = np.max(np.abs(rtrl_grads[path] - reference[path]), initial=0) / sizes[path]
        assert wrong < case.tolerance, f"{path}: RTRL differs from BPTT by {wrong:.1e}"
    found = {path: claim.claim for path, claim in d_rtrl.claims.items()}
    assert found.keys() == sizes.keys()
    assert {p for p, claim in found.items() if claim == "unused"} <= set(case.dead)
    exact = [path for path, claim in found.items() if claim == "exact"]
    for path in set(exact) - dead:
        wrong = np.max(np.abs(d_rtrl_grads[path] - reference[path]), initial=0) / sizes[path]
        assert wrong < case.tolerance, f"{path} was said to be exact, and differs by {wrong:.1e}"
    states = d_rtrl.plan.analysis.transition.shape[0]
    return (
        case.package,
        case.name,
        adapter or {0: "none", 1: "1 line"}.get(lines(step), f"{lines(step)} lines"),
        str(len(sizes)),
        str(states),
        "all" if len(exact) == len(sizes) else f"{len(exact)}",
    )
