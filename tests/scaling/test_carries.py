"""Streams that join and leave, fleets of learners, and carries that outlive their program."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import in_a_process, normal

I, N, T = 3, 4, 6


def step(cell, x, h):
    h = cell(x, h)
    return h, h


def loss(y, target):
    return jnp.sum((y - target) ** 2)


CELL = eqx.nn.GRUCell(I, N, key=jax.random.key(0))


def compiled(rule="D_RTRL", cell=CELL, step=step, state=jnp.zeros(N), **options):
    return etpc.compile(cell, rule, inputs=jnp.zeros(I), state=state, step=step, **options)


def learner(rule="D_RTRL"):
    return etpc.online(compiled(rule), loss, optax.sgd(0.1), every=3)


def same(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.extended):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, **tolerance)


def moved_on(rule="D_RTRL", batch=5, seed=0):
    """A carry that is not fresh."""
    program, xs = compiled(rule), normal(T, batch, I, seed=seed)
    (_, carry), _ = program.value_and_grad(loss)(CELL, xs, normal(T, batch, N), program.init(batch))
    assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(carry.traces))
    return program, carry


RULES = [etpc.D_RTRL(window=2), etpc.ES_D_RTRL(decay=0.9), etpc.D_RTRL(window=2, lookback=2)]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_streams_that_are_cut_go_on_as_they_would_have(rule):
    program, carry = moved_on(rule)
    which = [3, 0]
    xs = normal(T, 5, I, seed=2)
    run = lambda carry, which: program.scan(CELL, xs[:, which], carry)
    ys, after = run(carry, slice(None))
    cut_ys, cut_after = run(etpc.take_streams(carry, which), np.array(which))
    np.testing.assert_allclose(cut_ys, ys[:, np.array(which)], rtol=1e-12)
    same(etpc.take_streams(after, which), cut_after, rtol=1e-12)


def test_cut_and_joined_is_the_same():
    _, carry = moved_on()
    where = np.array([True, False, True, False, False])
    parts = [etpc.take_streams(carry, w) for w in (where, ~where)]
    joined = etpc.join_streams(parts)
    assert len(joined.fresh) == 5
    same(etpc.take_streams(joined, [0, 2, 1, 3, 4]), carry)
    same(etpc.take_streams(carry, slice(1, 3)), etpc.take_streams(carry, [1, 2]))
    same(etpc.take_streams(carry, -1), etpc.take_streams(carry, [4]))


def test_a_stream_joins_a_fleet_that_learns():
    one = learner()
    opt_state, carry = one.init(CELL, 3)
    xs, targets = normal(T, 4, I), normal(T, 4, N, seed=1)
    model, opt_state, carry, _ = one.update(CELL, opt_state, carry, xs[:, :3], targets[:, :3])
    grown = etpc.join_streams([carry, one.init(model, 1)[1]])
    assert grown.fresh.tolist() == [False, False, False, True]
    *_, after, losses = one.update(model, opt_state, grown, xs, targets)
    _, alone = one.program.scan(model, xs[:3, 3:], one.init(model, 1)[1])
    assert np.isfinite(losses).all()
    assert len(after.fresh) == 4
    assert len(alone.fresh) == 1


def test_streams_of_another_process(tmp_path):
    """Which another process wrote, join those of this one."""
    script = f"""
import jax, etpc
jax.config.update("jax_enable_x64", True)
from tests.scaling.test_carries import moved_on
_, carry = moved_on(batch=2, seed=7)
etpc.save({str(tmp_path / "two.etpc")!r}, carry)
"""
    in_a_process("-c", script)
    program, carry = moved_on()
    two = etpc.load(tmp_path / "two.etpc", like=program.init(2))
    joined = etpc.join_streams([carry, two])
    same(etpc.take_streams(joined, slice(5, 7)), moved_on(batch=2, seed=7)[1], rtol=1e-9)


def test_a_stream_that_is_nan_leaves_the_others_alone():
    """Their states and traces; the gradient, which sums over the batch, is another thing."""
    program, carry = moved_on()
    xs, targets = normal(T, 5, I, seed=2), normal(T, 5, N, seed=3)
    gradient = program.value_and_grad(loss)
    (_, sound), _ = gradient(CELL, xs, targets, carry)
    (value, broken), _ = gradient(CELL, xs.at[1, 2].set(jnp.nan), targets, carry)
    assert np.isnan(value)
    others = [0, 1, 3, 4]
    same(etpc.take_streams(sound, others), etpc.take_streams(broken, others), rtol=1e-12)
    assert np.isnan(etpc.take_streams(broken, 2).state).all()


@pytest.mark.slow
def test_a_fleet_of_a_thousand_learners():
    """Weights, optimiser and carry of its own each: the updates of each one alone."""
    count = 1000
    keys = jax.random.split(jax.random.key(1), count)
    models = eqx.filter_vmap(lambda key: eqx.nn.GRUCell(I, N, key=key))(keys)
    arrays, rest = eqx.partition(models, eqx.is_array)
    one = etpc.online(compiled(), loss, optax.adam(1e-2), every=3)
    xs, targets = normal(count, T, I), normal(count, T, N, seed=1)

    @jax.jit
    @jax.vmap
    def start(arrays):
        return one.init(eqx.combine(arrays, rest))

    @jax.jit
    @jax.vmap
    def update(arrays, opt_state, carry, xs, targets):
        after = one.update(eqx.combine(arrays, rest), opt_state, carry, xs, targets)
        return eqx.filter(after[0], eqx.is_array), *after[1:]

    fleet = update(arrays, *start(arrays), xs, targets)
    assert fleet[3].shape == (count, 2)
    for n in (0, 617, 999):
        row = lambda tree, n=n: jax.tree.map(lambda a: a[n], tree)
        model = eqx.combine(row(arrays), rest)
        alone = one.update(model, *one.init(model), xs[n], targets[n])
        alone = eqx.filter(alone[0], eqx.is_array), *alone[1:]
        same(row(fleet), alone, rtol=1e-9)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ([0, 5], "has \\[5\\], and the carry has the streams 0 to 4"),
        ([True, False], "booleans \\[5\\]"),
        ([0.5], "float64"),
        ([False] * 5, "chooses no stream"),
    ],
)
def test_streams_that_are_not_there(which, message):
    with pytest.raises(etpc.InputError, match=message):
        etpc.take_streams(moved_on()[1], which)


def test_carries_that_do_not_join():
    program, carry = moved_on()
    for given, message in (
        (carry, "one carry"),
        ([], "empty"),
        ([carry, program.init()], "no batch axis"),
        ([carry, compiled("e-prop").init(2)], "several programs"),
    ):
        with pytest.raises(etpc.InputError, match=message):
            etpc.join_streams(given)
    with pytest.raises(etpc.InputTypeError, match="carry is of type list"):
        etpc.take_streams([carry], 0)


def test_shared_directions_join_where_they_are_equal():
    _, carry = moved_on(etpc.CreditRTRL(1, 1, window=1))
    joined = etpc.join_streams(
        [etpc.take_streams(carry, [0]), etpc.take_streams(carry, [1, 2, 3, 4])]
    )
    same(joined, carry)
    other = dataclasses.replace(carry, shared=jax.tree.map(lambda a: a + 1, carry.shared))
    with pytest.raises(etpc.UnsupportedError, match="directions that differ"):
        etpc.join_streams([carry, other])


# --- other programs -------------------------------------------------------------------------------

TWO = {"win": normal(N, I), "tau": jnp.linspace(0.5, 0.9, N)}


def two_states(m, x, state):
    g, v = state
    g = m["tau"] * g + m["win"] @ x
    v = jnp.tanh(0.7 * v + g)
    return v, (g, v)


def on_device(target, inputs, rule=etpc.D_RTRL(window=2)):
    """Two states for each unit, or the complex ones of an LRU with so many inputs: a model and its program."""
    if inputs is None:
        return TWO, compiled(rule, TWO, two_states, (jnp.zeros(N),) * 2, target=target)
    model = etpc.nn.Sequential([etpc.nn.LRU(inputs, N, 4, key=jax.random.key(0))])
    return model, etpc.compile(model, rule, inputs=jnp.zeros(inputs), target=target)


@pytest.mark.parametrize("inputs", [None, I, 4])
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize(
    "targets", [("cpu", "tpu"), ("tpu", "cpu"), ("cuda", "cpu")], ids=" to ".join
)
def test_a_carry_goes_from_device_to_device(tmp_path, targets, batch, inputs):
    """A TPU's program carries each state of a block as an array of its own, and outputs last, which no shape says where
    an LRU has as many inputs as states; the stream goes on as on one device."""
    (model, one), (_, other) = (on_device(target, inputs) for target in targets)
    shapes = lambda program: [a.shape for a in jax.tree.leaves(program.init(batch).traces)]
    assert (shapes(one) != shapes(other)) == (inputs is None or (inputs == I and "tpu" in targets))
    lead = (T,) if batch is None else (T, batch)
    xs = normal(*lead, inputs or I)
    _, carry = one.scan(model, xs, one.init(batch))
    etpc.save(tmp_path / "fleet.etpc", etpc.portable(one, carry))
    saved = etpc.load(tmp_path / "fleet.etpc", like=etpc.portable(other, other.init(batch)))
    moved = etpc.from_portable(other, saved)
    assert moved.program == other.init().program
    gradients = [
        program.value_and_grad(loss)(model, xs, normal(*lead, N), carry)
        for program, carry in ((one, carry), (other, moved))
    ]
    same(gradients[0][1], gradients[1][1], rtol=1e-9)
    after = [
        etpc.portable(program, found[0][1])
        for program, found in zip((one, other), gradients, strict=True)
    ]
    same(*({k: v for k, v in tree.items() if k != "program"} for tree in after), rtol=1e-9)


@pytest.mark.parametrize("rule", [*RULES, etpc.ES_D_RTRL(rank=2), etpc.CreditRTRL(1, 1)], ids=str)
def test_what_is_portable_is_all_of_a_carry(rule):
    program, carry = moved_on(rule)
    same(etpc.from_portable(program, etpc.portable(program, carry)), carry)


def test_a_program_whose_equations_are_written_another_way():
    """As another version of JAX may trace them."""

    def other_step(cell, x, h):
        h = cell(x, 1.0 * h)
        return h, h

    (program, carry), other = moved_on(), compiled(step=other_step)
    assert program.init().program != other.init().program
    moved = etpc.from_portable(other, etpc.portable(program, carry))
    same(moved.traces, carry.traces)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: compiled("e-prop"), r"\['program'\]\[0\] is D_RTRL.*and the program has E"),
        (
            lambda: etpc.compile(
                eqx.nn.GRUCell(I, 5, key=jax.random.key(0)),
                inputs=jnp.zeros(I),
                state=jnp.zeros(5),
                step=step,
            ),
            r"\['state'\]\['state'\] is float64\[5, 4\], and the program has float64\[5, 5\]",
        ),
    ],
)
def test_the_carry_of_another_model_or_rule_is_refused(other, message):
    with pytest.raises(etpc.InputError, match=message):
        etpc.from_portable(other(), etpc.portable(*moved_on()))


def test_what_is_not_portable_is_refused():
    with pytest.raises(etpc.InputTypeError, match="not what `etpc"):
        etpc.from_portable(compiled(), {"state": 1})
