"""What is said where SymPy is missing."""

import sys

import jax.numpy as jnp
import pytest

import etpc


def test_equations_say_what_they_need(monkeypatch):
    for name in [
        n for n in sys.modules if n.split(".")[0] == "sympy" or n.startswith("etpc.equations._")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sympy", None)
    step = lambda w, x, h: (w * h + x,) * 2
    program = etpc.compile(jnp.ones(()), inputs=jnp.ones(()), state=jnp.zeros(()), step=step)
    with pytest.raises(etpc.UnsupportedError, match=r"pip install 'etpc\[equations\]'"):
        program.equations()
