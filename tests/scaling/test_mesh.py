"""`learner.over`: the results of one device, and what moves between eight, in a process of its own."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import etpc
from tests.helpers import in_a_process
from tests.scaling.on_eight import CASES

QUICK = "streams"


@pytest.mark.parametrize(
    "case", [c if c == QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_over_eight_devices(case):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    arguments = ("-m", "tests.scaling.on_eight", case)
    said = in_a_process(*arguments, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    assert said == "the same on eight devices"


def step(w, x, h):
    h = jnp.tanh(w @ h + x)
    return h, h


def learner(rule="D_RTRL"):
    w = jnp.eye(2)
    program = etpc.compile(w, rule, inputs=jnp.zeros(2), state=jnp.zeros(2), step=step)
    return w, etpc.online(program, lambda y, t: jnp.sum((y - t) ** 2), optax.sgd(0.1))


MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1,), etpc.InputTypeError, "mesh is a int. Pass a `jax.sharding.Mesh`"),
        (
            (MESH, "data"),
            etpc.InputError,
            r"streams is 'data', and the mesh has the axes \['batch'\]",
        ),
        ((MESH, None, "x"), etpc.InputError, "hidden is 'x'"),
        ((MESH, None), etpc.InputError, "streams and hidden are both None"),
        ((MESH, "batch", "batch"), etpc.InputError, "or None for one of them"),
    ],
)
def test_what_is_no_mesh_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        learner()[1].over(*arguments)


def test_a_carry_without_streams_is_refused():
    w, one = learner()
    with pytest.raises(etpc.InputError, match="has no batch axis"):
        one.over(MESH).init(w)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_a_learner_over_a_mesh_compiles_by_itself(transform):
    w, one = learner()
    over = one.over(MESH)
    assert (
        repr(over)
        == f"OverMesh({over.program.algorithm}, {{'batch': 1}}, streams='batch', hidden=None)"
    )
    args = w, *over.init(w, 2), jnp.ones((3, 2, 2)), jnp.ones((3, 2, 2))
    with pytest.raises(etpc.UnsupportedError, match="map the learner that it was made from"):
        transform(over.update)(
            *jax.tree.map(lambda a: a[None] if transform is jax.vmap else a, args)
        )


def test_shared_directions_are_refused():
    w, one = learner(etpc.CreditRTRL(1, 1, window=1))
    with pytest.raises(etpc.UnsupportedError, match="directions that all examples share"):
        one.over(MESH).init(w, 2)
