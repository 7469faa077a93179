"""The passes in other orders than that of `DEFAULT`: each is refused, or gives the gradients of no passes at all."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from etpc import Code
from etpc.plan import DEFAULT, Pass, chosen
from tests.helpers import alive, distance, loss
from tests.marks import few
from tests.passes.test_passes import (
    BATCH,
    NETWORKS,
    TOLERANCE,
    compiled,
    data,
    plain,
    results,
)

CASES = list(
    itertools.product(
        ("spiking", "gated", "layers", "adaptive", "tied", "LSTM", "unlasting"),
        ("steps", "windows", "decay, steps", "decay"),
    )
)
"""Networks that have states, traces or terms to drop, or traces to share or join, and rules."""
PAIRS = list(itertools.combinations(DEFAULT, 2))
"""Each pass, and one that runs after it by default."""
COUNT = 24
"""How many orders are drawn."""


def inverted(first, second):
    """All passes, where one runs right after another that it comes before by default."""
    others = [p for p in DEFAULT if p is not first]
    place = others.index(second) + 1
    return (*others[:place], first, *others[place:])


def drawn(number):
    """Some of the passes, and each third time all, in an order that is drawn by a number."""
    random = np.random.default_rng([11, number])
    order = [DEFAULT[n] for n in random.permutation(len(DEFAULT))]
    return tuple(order if number % 3 == 0 else order[: random.integers(3, len(DEFAULT))])


def allowed(passes):
    """The nearest order in which no pass runs before one that it has to come after."""
    left, found = list(passes), []
    while left:
        free = next(p for p in left if not any(other.name in p.after for other in left))
        left.remove(free)
        found.append(free)
    return tuple(found)


def tried(network, rule, passes):
    """A program; `None` where the order is refused as one."""
    try:
        return compiled(network, rule, passes)
    except (etpc.InputError, etpc.AlgorithmError) as error:
        if error.code != Code.PASS_ORDER:
            raise
        return None


def key(program):
    """What equal programs have in common: what is printed, and what is too long for that."""
    blocks = [(n.blocks.indptr.tobytes(), n.blocks.indices.tobytes()) for n in program.traces]
    forms = [repr(n.form) for n in program.traces]
    return str(program), json.dumps(program.as_dict()), *forms, *blocks


def step_by_step(program, network):
    """The gradients and the states of a sequence whose steps come one by one."""
    (model, *_), (xs, targets) = NETWORKS[network], data()
    run, carry, sums = program.value_and_grad(loss, reduction="sum"), program.init(BATCH), None
    for t in range(len(xs)):
        (_, carry), grads = run(model, xs[t : t + 1], targets[t : t + 1], carry)
        sums = grads if sums is None else jax.tree.map(jnp.add, sums, grads)
    return sums, carry.state


@functools.cache
def plain_steps(network, rule):
    return step_by_step(compiled(network, rule, ()), network)


ERRORS = dict[object, float]()


def error(network, rule, program):
    """How far a program is from the one without passes, in windows and step by step; equal ones are run once."""
    which = network, rule, key(program.ir)
    if which not in ERRORS:
        ERRORS[which] = distance(results(program, network), plain(network, rule))
        if program.ir.window.steps > 1:
            of_steps = distance(step_by_step(program, network), plain_steps(network, rule))
            ERRORS[which] = max(ERRORS[which], of_steps)
    return ERRORS[which]


def check_orders(network, rule, orders):
    """Returns which orders are not refused."""
    assert alive(plain(network, rule)[0])
    taken = list[tuple[Pass, ...]]()
    for passes in orders:
        program = tried(network, rule, passes)
        if program is not None:
            names = ", ".join(p.name for p in passes)
            assert error(network, rule, program) < TOLERANCE, f"{names}\n{program.ir}"
            taken.append(passes)
    return taken


def each(*often):
    """All cases with all orders, and one that runs often with each so-many-th of them."""
    return few([*((*case, 1) for case in CASES), often], often)


@pytest.mark.parametrize(("network", "rule", "every"), each("tied", "steps", 6))
def test_two_passes_the_other_way_round_change_no_gradient(network, rule, every):
    pairs = PAIRS[::every]
    taken = check_orders(network, rule, [(second, first) for first, second in pairs])
    assert len(taken) > len(pairs) / 4
    check_orders(network, rule, itertools.starmap(inverted, pairs))


@pytest.mark.parametrize(("network", "rule", "every"), each("gated", "decay, steps", 8))
def test_orders_that_are_drawn_change_no_gradient(network, rule, every):
    numbers = range(0, COUNT, every)
    orders = [allowed(drawn(n)) for n in numbers]
    assert len(set(orders)) == len(orders)
    assert check_orders(network, rule, orders) == orders
    check_orders(network, rule, map(drawn, numbers))


def test_each_pass_comes_after_others_of_the_default_order():
    """So that the default order, and each part of it, is allowed."""
    assert allowed(DEFAULT) == chosen(DEFAULT) == DEFAULT
    assert {name for p in DEFAULT for name in p.after} <= {p.name for p in DEFAULT}


MINE = Pass("mine", "nothing", lambda program: program)


@pytest.mark.parametrize(("first", "second"), [(a, b) for a, b in PAIRS if a.name in b.after])
def test_an_order_that_is_refused_is_answered_with_what_to_do(first, second):
    words = f"'{first.name}' has to run before '{second.name}'.*put it before '{second.name}', or give names alone"
    for passes in ((second, first), (second, MINE, first), (second.name, MINE, first.name)):
        with pytest.raises(etpc.InputError, match=words) as info:
            chosen(passes)
        assert info.value.code == Code.PASS_ORDER
    assert chosen((first.name, MINE, second.name)) == (first, MINE, second)
    assert chosen((second.name, first.name)) == (first, second)  # names alone


def test_all_that_is_wrong_in_an_order_is_told():
    with pytest.raises(etpc.InputError) as info:
        chosen(DEFAULT[::-1])
    told = str(info.value).count("has to run before")
    assert told == sum(p.name in q.after for p, q in PAIRS)


def test_an_order_that_would_change_the_gradient_is_refused():
    """The pass that reads gradients after the step takes it that the traces have all states with credit."""
    with pytest.raises(etpc.InputError, match="'drop_unlasting' has to run before 'read_after'"):
        compiled("LSTM", "steps", ("read_after", MINE, "drop_unlasting"))
    assert compiled("LSTM", "steps", ("drop_unlasting", MINE, "read_after")).passes.fired


def test_a_pass_of_ones_own_says_what_may_not_follow_it():
    mine = Pass("mine", "nothing", lambda program: program, after=("filtered",))
    with pytest.raises(etpc.InputError, match="'filtered' has to run before 'mine'"):
        chosen((mine, *DEFAULT))
    assert chosen((*DEFAULT, mine))[-1] is mine


def test_what_a_pass_of_another_name_leaves_out_too_late_is_refused():
    """Its name says nothing of where it may run: the check of the program does."""
    by = {p.name: p for p in DEFAULT}
    late = Pass("late", "states are left out", by["drop_unlasting"].run)
    with pytest.raises(
        etpc.AlgorithmError, match=r"(?s)'late' made .*before the one that reads it"
    ) as info:
        compiled("LSTM", "steps", ("read_after", late))
    assert info.value.code == Code.PASS_ORDER
    assert "credit at [1]," in str(compiled("LSTM", "steps", (late, "read_after")).ir)
