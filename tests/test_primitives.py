"""One record of facts for each primitive of JAX."""

import pytest

from etpc._jax import prims
from etpc._jax.primitives import FACTS, Facts, facts, named, register


def test_a_name_that_jax_does_not_have_is_an_error():
    with pytest.raises(AttributeError, match="no_such_p"):
        named("add", "no_such")


def test_a_fact_is_registered_once(monkeypatch):
    monkeypatch.setitem(FACTS, prims.sort_p, Facts())
    register([prims.sort_p], heavy=True)
    assert facts(prims.sort_p) == Facts(heavy=True)
    with pytest.raises(ValueError, match="sort has a heavy already"):
        register([prims.sort_p], heavy=True)


def test_the_sparse_product_is_known_once_its_module_is_imported():
    from jax.experimental import sparse

    known = facts(sparse.bcoo_dot_general_p)
    assert known.kind is not None
    assert known.pattern is not None
    assert known.by_step
