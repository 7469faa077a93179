"""The one release of jaxlib whose XLA computes wrong Jacobians of norms is not used for them."""

import importlib.metadata

import jax
import jax.numpy as jnp
import pytest

import etpc
from etpc.run import _fusion


def normalised(w, x, h):
    h = 0.5 * h + w @ x
    h = h * jax.lax.rsqrt(jnp.mean(h * h) + 1e-3)
    return h, h


def softmax(w, x, h):
    h = jax.nn.softmax(0.5 * h + w @ x)
    return h, h


def product_of_states(w, x, h):
    h = 0.5 * h / (1.0 + jnp.dot(h, h)) + w @ x
    return h, h


def in_a_loop(w, x, h):
    h = jax.lax.fori_loop(0, 3, lambda _, v: v / (1.0 + v.sum()), 0.5 * h + w @ x)
    return h, h


def in_a_branch(w, x, h):
    h = jax.lax.cond(x[0] > 0, lambda v: v - v.mean(), lambda v: v, 0.5 * h + w @ x)
    return h, h


def plain(w, x, h):
    h = 0.5 * h + jnp.tanh(w @ x)
    return h, h


REDUCING = [normalised, softmax, product_of_states, in_a_loop, in_a_branch]


def compiled(step):
    return etpc.compile(jnp.ones((4, 2)), inputs=jnp.ones(2), state=jnp.ones(4), step=step)


@pytest.fixture
def affected(monkeypatch):
    """As if this were the affected release, with the fusion on."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: _fusion.AFFECTED)
    monkeypatch.setattr(_fusion, "_fuses_correctly", lambda: False)


@pytest.mark.parametrize("step", REDUCING)
def test_a_model_that_reduces_is_refused_with_what_to_install(affected, step):
    with pytest.raises(
        etpc.UnsupportedError, match=r"test_fusion.py:.*pip install 'jaxlib!=0.10.2'"
    ):
        compiled(step)


def test_a_model_that_reduces_nothing_compiles(affected):
    compiled(plain)


@pytest.mark.parametrize("step", REDUCING)
def test_the_flag_that_turns_the_fusion_off_is_seen(affected, monkeypatch, step):
    monkeypatch.setattr(_fusion, "_fuses_correctly", lambda: True)
    compiled(step)


def test_other_releases_are_right_where_that_one_is_wrong():
    """On 0.10.2 this fails, which is why it is not supported."""
    assert _fusion._fuses_correctly()


def test_accelerators_are_not_affected(affected, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compiled(normalised)
