"""Exported functions of one state under JAX, and their files."""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import etpc
from examples.on_device.agent import begin
from tests.device.agents import OVER, REWARDS, XS, exported_agent, lives, lives_as_in_python
from tests.device.learners import KEY
from tests.device.test_exported import resealed
from tests.test_testing import check_schema


@pytest.mark.slow
def test_an_agent_acts_and_learns_as_in_python(tmp_path: Path) -> None:
    """From a folder, with 240 steps, of which a fifth ends an episode."""
    agent, functions = exported_agent()
    functions.save(tmp_path / "agent")
    loaded = etpc.load_exported(tmp_path / "agent")
    state = loaded.state

    def call(name: str, **data: Any) -> Any:
        nonlocal state
        state, outputs = getattr(loaded, name)(state, *data.values())
        return outputs

    actions = lives(call)
    lives_as_in_python(agent, loaded, actions, state)
    home = loaded.into(begin(jax.random.key(5)), state)
    assert all(np.array_equal(a, state[name]) for name, a in loaded.state_of(home).items())


def test_what_a_function_leaves_as_it_is_is_not_written() -> None:
    _, functions = exported_agent()
    moved = {
        name: {leaf["name"] for leaf in entry["arguments"] if "next" in leaf}
        for name, entry in functions.manifest["files"].items()
    }
    part = lambda names: {name.split(".")[1] for name in names}
    assert part(moved["act.mlirbc"]) == {"traces", "carry", "key", "value"}
    assert part(moved["learn.mlirbc"]) == {"model", "carry", "begins"}
    assert functions.temporaries("act.mlirbc") > 0


@pytest.mark.slow
def test_copies() -> None:
    _, functions = exported_agent()
    _, (action,) = functions.act(functions.state, XS[0])
    for again in (copy.deepcopy(functions), pickle.loads(pickle.dumps(functions))):
        assert int(again.act(again.state, XS[0])[1][0]) == int(action)
    with pytest.raises(AttributeError, match=r"no 'update'\. Functions of one state: act, learn"):
        functions.update(functions.state, XS[0])
    with pytest.raises(etpc.InputError, match="over is missing"):
        functions.learn(functions.state, REWARDS[0, 0])
    with pytest.raises(etpc.InputError, match="more arrays"):
        functions.learn(functions.state, REWARDS[0, 0], OVER[0], XS[0], XS[0])
    with pytest.raises(
        etpc.InputError, match=r"model\.encoder\.weight of the exported one is missing"
    ):
        functions.into(begin(KEY)._replace(model=None))


def given(state: Any, x: Any) -> Any:
    return {**state, "n": state["n"] + x}, x


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda s, x: s, etpc.InputTypeError, "f returns a dict, and not a tuple"),
        (lambda s, x: ({**s, "n": 1.5}, x), etpc.InputError, r"f makes float32\[\] of \['n'\]"),
        (
            lambda s, x: ({**s, "m": x}, x),
            etpc.InputError,
            "f returns a state of another structure",
        ),
        (
            lambda s, x: ({**s, "flag": x > 0}, x),
            etpc.InputError,
            "f changes False, .* Make it one",
        ),
        (
            lambda s, x: (s, jax.pure_callback(np.sin, x, x)),
            etpc.UnsupportedError,
            r"pure_callback:?\) at .*test_functions\.py:\d+",
        ),
        (3, etpc.InputTypeError, "f is .3, .*Pass a tuple of a function"),
    ],
)
def test_functions_that_do_not_fit(function, error, words) -> None:
    state = {"n": jnp.int32(0), "flag": False}
    with pytest.raises(error, match=words):
        etpc.export_functions(state, f=(function, jnp.zeros(())))


def test_names() -> None:
    functions = etpc.export_functions(
        {"n": jnp.int32(0)}, f=(lambda s, *xs: (s, xs), 1.0, {"a": 2})
    )
    leaves = functions.manifest["files"]["f.mlirbc"]
    assert [a["name"] for a in leaves["arguments"]] == ["['n']", "x0", "x1['a']"]
    assert [a["name"] for a in leaves["results"]] == ["y[0]", "y[1]['a']"]
    for name in ("save", "modules", "init", "_f", "λ", "", "a b", "a.b", "../../x", "if", "f\n"):
        with pytest.raises(etpc.InputError, match=re.escape(f"have the name {name!r}")):
            etpc.export_functions({"n": jnp.int32(0)}, **{name: (given, jnp.int32(0))})
    with pytest.raises(etpc.InputError, match="There is no function"):
        etpc.export_functions({"n": jnp.int32(0)})
    with pytest.raises(etpc.InputError, match="platforms must be"):
        etpc.export_functions({"n": jnp.int32(0)}, platforms="cpu", f=(given, jnp.int32(0)))


def test_the_manifest_has_its_schema_and_names_no_file_elsewhere(tmp_path: Path) -> None:
    functions = etpc.export_functions({"n": jnp.int32(0)}, f=(given, jnp.int32(0)))
    functions.save(tmp_path / "f")
    is_valid = check_schema(json.loads((tmp_path / "f" / "manifest.json").read_text()))
    resealed(tmp_path / "f", lambda m: m["files"].update({"../f.mlirbc": m["files"]["f.mlirbc"]}))
    with pytest.raises(etpc.CheckpointError, match=r"has '../f\.mlirbc'"):
        etpc.load_exported(tmp_path / "f")
    assert not is_valid(json.loads((tmp_path / "f" / "manifest.json").read_text()))
