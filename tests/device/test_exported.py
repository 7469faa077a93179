"""Exported learners under JAX, without the code of their models; and their files."""

import copy
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

import etpc
from etpc import nn
from etpc.cli import main
from tests.device.learners import CALLS, CASES, KEY, Case, H, I, Spiking, case, distance

FILES = ["manifest.json", "predict.mlirbc", "state.npz", "update.mlirbc"]


@pytest.fixture(scope="module")
def small() -> tuple[Case, etpc.Exported]:
    with jax.enable_x64(False):
        made = case(nn.MinGRU(I, H, key=KEY), every=2)
        return made, made.exported()


def text_of(code: bytes) -> str:
    context = ir.Context()
    stablehlo.register_dialect(context)
    with context:
        return str(mlir.deserialize_portable_artifact(code))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_update_and_predict(name: str, tmp_path: Path) -> None:
    """Both give what the learner and its program do, from a folder, with nothing else."""
    made = CASES[name]()
    made.exported().save(tmp_path / "learner")
    exported = etpc.load_exported(tmp_path / "learner")
    state, kept, spikes = made.start(), exported.state, 0
    for k in range(CALLS):
        call = made.call(k)
        y, carry = made.learner.program(state[0], call["xs"][0], state[2])
        after, outputs = exported.predict(kept, call["xs"][0])
        for a, b in zip(jax.tree.leaves(y), outputs, strict=True):
            assert distance(b, a) < 1e-5
        predicted = exported.state_of(
            *state[:2], eqx.tree_at(lambda c: c.state, state[2], carry.state)
        )
        hidden = [path for path in predicted if path.startswith("carry.state")]
        assert hidden
        for path in hidden:
            assert distance(after[path], predicted[path]) < 1e-5, path
        if isinstance(made.model, Spiking):
            spikes += int(jnp.sum(carry.state[1] > 0))
        *state, losses = (result := made.learner.update(*state, **call))[:4]
        kept, found, *more = exported.update(kept, **call)
        assert distance(found, losses) < 1e-5
        for a, b in zip(*map(jax.tree.leaves, (result[4:], more)), strict=True):
            assert distance(b, a) < 1e-5
    wanted = exported.state_of(*state)
    assert wanted.keys() == kept.keys()
    for path in made.compared(wanted):
        assert distance(kept[path], wanted[path]) < 1e-5, path
    assert spikes or not isinstance(made.model, Spiking)
    for path in wanted:
        learns = distance(wanted[path], exported.state[path]) > 1e-3
        assert learns or path[0] not in ".[", path


def test_manifest_says_what_the_modules_are(small) -> None:
    _, exported = small
    manifest = json.loads(json.dumps(exported.manifest))
    assert manifest["schema"] == "etpc-learner/1"
    assert (manifest["every"], manifest["window"], manifest["batch_size"]) == (2, 2, None)
    assert manifest["claims"][".weight_ih"]["claim"] == "exact"
    assert manifest["bytes"]["total"] == manifest["bytes"]["state"] + sum(
        t["bytes"] for t in manifest["bytes"]["traces"]
    )
    types = {"float32": "f32", "int32": "i32", "bool": "i1"}
    for name, code in exported.modules.items():
        entry = manifest["files"][name]
        arguments, results = re.search(r"@main\((.*)\) -> \(?(.*?)\)? \{\n", text_of(code)).groups()
        for text, leaves in ((arguments, entry["arguments"]), (results, entry["results"])):
            wanted = ["x".join([*map(str, a["shape"]), types[a["dtype"]]]) for a in leaves]
            assert re.findall(r"tensor<([^>]+)>", text) == wanted
    update = manifest["files"]["update.mlirbc"]
    for argument in update["arguments"]:
        if argument["role"] == "state":
            assert update["results"][argument["next"]]["name"] == argument["name"]
        else:
            assert "next" not in argument
    roles = [(a["name"], a["role"]) for a in update["arguments"] if a["role"] != "state"]
    assert roles == [("xs", "input"), ("targets", "target")]
    assert [r["role"] for r in update["results"] if r["role"] != "state"] == ["loss"]
    predict = manifest["files"]["predict.mlirbc"]["arguments"]
    assert {a["name"] for a in predict if "next" in a} == {"carry.state"}


@pytest.mark.slow
def test_keys_are_integers() -> None:
    exported = CASES["keys of a batch"]().exported()
    (key,) = [a for a in exported.manifest["files"]["update.mlirbc"]["arguments"] if "key" in a]
    assert (key["shape"], key["dtype"], key["key"]) == ([2, 2], "uint32", "threefry2x32")
    assert exported.state[key["name"]].dtype == np.uint32


@pytest.mark.slow
def test_modules_are_portable_and_own_their_arguments() -> None:
    """Versioned, without donation, though a part of the learner and its first values are donated."""
    donating = jax.jit(lambda y, t: jnp.mean((y - t) ** 2), donate_argnums=0)
    made = case(nn.MinGRU(I, H, key=KEY), loss=donating)
    start = made.start()
    exported = made.learner.export(*start, **made.call(0))
    for code in exported.modules.values():
        assert code.startswith(b"ML\xefR")
        assert b"StableHLO_v" in code
        text = text_of(code)
        assert "aliasing_output" not in text
        assert "buffer_donor" not in text
    before = {path: value.copy() for path, value in exported.state.items()}
    donated = jax.jit(lambda tree: jax.tree.map(lambda a: a + 1, tree), donate_argnums=0)
    donated(eqx.filter(start, eqx.is_inexact_array))
    assert all(np.array_equal(before[path], exported.state[path]) for path in before)


def test_float64_stays() -> None:
    with jax.enable_x64(True):
        made = case(nn.MinGRU(I, H, key=KEY))
        made.data = {name: a.astype(np.float64) for name, a in made.data.items()}
        exported, (after, _) = made.exported(), made.by_jax(calls=range(2))
    state = exported.state
    for k in range(2):
        state, _ = exported.update(state, made.data["xs"][k], made.data["targets"][k])
    with jax.enable_x64(True):
        for path, wanted in exported.state_of(*after).items():
            assert state[path].dtype == wanted.dtype
            assert distance(state[path], wanted) < 1e-12


@pytest.mark.slow
def test_resumes_both_ways(small, tmp_path: Path) -> None:
    """JAX, then the file, then JAX again through a checkpoint, is JAX all the way."""
    made, exported = small
    wanted, _ = made.by_jax()
    first, _ = made.by_jax(calls=range(3))
    state = exported.state_of(*first)
    for k in range(3, 6):
        state, _ = exported.update(state, **made.call(k))
    start = made.start()
    etpc.save(tmp_path / "home.etpc", exported.into(*start, state))
    start = etpc.load(tmp_path / "home.etpc", like=start)
    last, _ = made.by_jax(tuple(start), range(6, CALLS))
    for path, value in exported.state_of(*last).items():
        assert distance(value, exported.state_of(*wanted)[path]) < 1e-6, path
    first_again = exported.state_of(*exported.into(*start))
    assert all(np.array_equal(first_again[path], exported.state[path]) for path in exported.state)


@pytest.mark.slow
def test_of_another_learner(small) -> None:
    _, exported = small
    other = case(nn.MinGRU(I, H, key=KEY), etpc.ES_D_RTRL(decay=0.9), every=2)
    with pytest.raises(
        etpc.InputError, match=r"another learner(.|\n)*carry belongs to another program"
    ):
        exported.into(*other.start())
    sgd = case(nn.MinGRU(I, H, key=KEY), optimizer=optax.sgd(0.1), every=2)
    with pytest.raises(
        etpc.InputError, match=r"opt_state\[0\]\.mu\.weight_ih of the exported one is missing"
    ):
        exported.state_of(*sgd.start())
    noisy = CASES["keys"]()
    exported = noisy.exported()
    model, *rest = noisy.start()
    with pytest.raises(etpc.InputError, match="not trained has other values"):
        exported.into(eqx.tree_at(lambda m: m.mask, model, ~model.mask), *rest)


@pytest.mark.slow
def test_arguments_that_do_not_fit(small) -> None:
    made, exported = small
    xs, targets = made.data["xs"][0], made.data["targets"][0]
    without = {k: v for k, v in exported.state.items() if k != "carry.fresh"}
    of_integers, large = CASES["integers"]().exported(), np.array([1, 1 << 40])
    data = dict(xs=xs, targets=targets)
    for learner, state, changes, words in (
        (exported, exported.state, dict(xs=xs[:1]), r"xs is float32\[1, 3\].* float32\[2, 3\]"),
        (exported, exported.state, dict(targets=None), "targets is missing"),
        (exported, without, {}, "carry.fresh is missing"),
        (exported, exported.state, dict(mask=np.ones(2)), "more arrays of the role 'mask'"),
        (exported, exported.state, dict(xs=xs + 1j), "xs is complex64"),
        (of_integers, of_integers.state, dict(xs=large), "xs is int64"),
    ):
        with pytest.raises(etpc.InputError, match=words):
            learner.update(state, **data | changes)
    with pytest.raises(etpc.InputTypeError, match="carry is a tuple"):
        made.learner.export(made.model, made.start()[1], (), xs, targets)


@pytest.mark.slow
def test_custom_calls_and_callbacks_are_refused_by_name() -> None:
    def calling(y, t):
        y = y + jax.pure_callback(
            np.zeros_like, jax.ShapeDtypeStruct(t.shape, t.dtype), t, vmap_method="expand_dims"
        )
        return jnp.mean((y - t) ** 2)

    def printing(y, t):
        jax.debug.print("{}", t)
        return jnp.mean((y - t) ** 2)

    def solving(y, t):
        return jnp.mean((jnp.linalg.solve(2 * jnp.eye(H), y) - t) ** 2)

    for loss, name in ((calling, "pure_callback"), (printing, "debug"), (solving, "lapack_sgetrf")):
        made = case(nn.MinGRU(I, H, key=KEY), loss=loss)
        with pytest.raises(etpc.UnsupportedError, match=name) as caught:
            made.exported()
        # Of what JAX compiles as a function of its own, the place is not known.
        if loss is not solving:
            assert f"{Path(__file__).name}:" in str(caught.value)


# --- the folder ---


def test_a_changed_byte_is_refused(small, tmp_path: Path) -> None:
    _, exported = small
    exported.save(tmp_path / "learner")
    assert sorted(os.listdir(tmp_path / "learner")) == FILES
    for name in FILES:
        path = tmp_path / "learner" / name
        whole = path.read_bytes()
        for place in np.linspace(0, len(whole) - 1, 23).astype(int):
            changed = bytearray(whole)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(etpc.CheckpointError, match=name):
                etpc.load_exported(path.parent)
        for other in (whole[:-1], whole + b"\n", b""):
            path.write_bytes(other)
            with pytest.raises(etpc.CheckpointError, match=name):
                etpc.load_exported(path.parent)
        path.unlink()
        with pytest.raises(etpc.CheckpointError, match=f"has no {name}"):
            etpc.load_exported(path.parent)
        path.write_bytes(whole)
    again = etpc.load_exported(tmp_path / "learner")
    again.save(tmp_path / "copy")
    for name in FILES:
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "learner" / name).read_bytes()


def test_another_schema_is_refused(small, tmp_path: Path) -> None:
    _, exported = small
    other = etpc.Exported(
        exported.manifest | {"schema": "etpc-learner/2"}, exported.state, exported.modules
    )
    other.save(tmp_path / "learner")
    with pytest.raises(etpc.CheckpointError, match="etpc-learner/2"):
        etpc.load_exported(tmp_path / "learner")


def resealed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest, and let its own hash be right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    text = json.dumps({**manifest, "sha256": "0" * 64}, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(text.replace("0" * 64, digest))


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


UNREAD = {"etpc", "jax", "rule", "window", "every", "batch_size", "claims", "bytes", "sha256"}
"""Fields of a manifest that say something to people alone."""


def test_contents_that_etpc_does_not_write(small, tmp_path: Path) -> None:
    """Whole, but for a field that is missing or wrong: refused as such, and nothing else is read."""
    _, exported = small
    folder = tmp_path / "learner"

    def refused(change: Callable[[dict[str, Any]], Any], words: str) -> None:
        exported.save(folder)
        resealed(folder, change)
        with pytest.raises(etpc.CheckpointError, match=words):
            etpc.load_exported(folder)
        shutil.rmtree(folder)

    for name in exported.manifest.keys() - UNREAD:
        refused(lambda m, name=name: m.pop(name), rf"\['{name}'\] is missing")
        refused(lambda m, name=name: m.update({name: 1}), rf"\['{name}'\] is 1")
    argument = lambda m: m["files"]["update.mlirbc"]["arguments"][0]
    for name in ("name", "shape", "dtype", "role"):
        refused(lambda m, name=name: argument(m).pop(name), rf"\[0\]\['{name}'\] is missing")
    for name in FILES[1:]:
        refused(lambda m, name=name: m["files"].pop(name), rf"\['{name}'\] is missing")
    outside = {"sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
    refused(lambda m: m["files"].update({__file__: outside}), rf"has '{__file__}'")
    refused(lambda m: argument(m).update(dtype="float33"), "has contents that etpc does not write")
    refused(lambda m: argument(m).update(shape=[1]), "has contents that etpc does not write")
    zeros = {k: np.int8(0) for k in exported.state}
    first, many, bomb = argument(exported.manifest), 1 << 23, io.BytesIO()
    np.savez_compressed(bomb, **{first["name"]: np.zeros(many, first["dtype"])})
    contents = [b"", npz(), npz(**zeros), npz(a=np.array([None])), *[bomb.getvalue()] * 2]
    for content, shape in zip(contents, [first["shape"]] * 5 + [[many]], strict=True):

        def with_state(manifest, content=content, shape=shape):
            (folder / "state.npz").write_bytes(content)
            manifest["files"]["state.npz"].update(sha256=hashlib.sha256(content).hexdigest())
            argument(manifest).update(shape=shape)

        tracemalloc.start()
        refused(with_state, "has contents that etpc does not write")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_read(make, small, tmp_path: Path) -> None:
    _, exported = small
    exported.save(tmp_path / "learner")
    for name in FILES:
        path = tmp_path / "learner" / name
        path.rename(tmp_path / "kept")
        make(path)
        with pytest.raises(etpc.CheckpointError, match=f"no {name} that is a regular file"):
            etpc.load_exported(path.parent)
        path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "kept").rename(path)
    etpc.load_exported(tmp_path / "learner")


def test_a_copy_and_a_pickle_are_without_compiled_functions(small) -> None:
    made, exported = small
    _, losses = exported.update(exported.state, **made.call(0))
    for again in (copy.deepcopy(exported), pickle.loads(pickle.dumps(exported))):
        assert (again.manifest, again.modules) == (exported.manifest, exported.modules)
        np.testing.assert_array_equal(again.update(again.state, **made.call(0))[1], losses)


def test_a_folder_is_whole_or_not_there(small, tmp_path: Path, monkeypatch) -> None:
    _, exported = small
    folder = tmp_path / "learner"
    written = []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            exported.save(folder)
    assert os.listdir(tmp_path) == []
    (tmp_path / ".learner.saving").mkdir()  # of a process that was killed
    (tmp_path / ".learner.saving" / "state.npz").write_bytes(b"half")
    folder.mkdir()
    exported.save(folder)
    assert os.listdir(tmp_path) == ["learner"]
    etpc.load_exported(folder)
    kept = (folder / "state.npz").stat()
    with pytest.raises(FileExistsError, match="there already"):
        exported.save(folder)
    assert (folder / "state.npz").stat() == kept


@pytest.mark.slow
def test_low_precision_is_stored() -> None:
    made = case(
        jax.tree.map(
            lambda a: a.astype(jnp.bfloat16) if eqx.is_array(a) else a, nn.MinGRU(I, H, key=KEY)
        )
    )
    exported = made.exported()
    assert exported.state[".weight_ih"].dtype == jnp.bfloat16


@pytest.mark.parametrize("platforms", ["cpu", (), ("foo",), ("cpu", "foo"), ("cpu", "cpu")])
def test_platforms_that_are_none(platforms, small) -> None:
    made, _ = small
    with pytest.raises(etpc.InputError, match="platforms must be a tuple of one or more of cpu"):
        made.exported(platforms=platforms)


def test_on_another_platform() -> None:
    exported = etpc.export_functions(jnp.zeros(2), platforms=("cuda",), f=(lambda s: (s, s),))
    with pytest.raises(etpc.InputError, match=r"f was exported for cuda, and JAX computes on cpu"):
        exported.f(exported.state)


@pytest.mark.slow
def test_several_platforms() -> None:
    """Where the loops are not cut for a CPU, they have one program."""
    made = case(nn.MinGRU(I, H, key=KEY), passes=())
    exported = made.exported(platforms=("cpu", "cuda"))
    assert exported.manifest["files"]["update.mlirbc"]["arguments"][0]["role"] == "platform"
    _, losses = made.by_jax(calls=range(1))
    assert distance(exported.update(exported.state, **made.call(0))[1], losses[0]) < 1e-5


MODELS = """
import jax
import jax.numpy as jnp
from etpc import nn
from etpc.cli import Task


def task(key):
    xs = jax.random.normal(key, (8, 2, 3))
    loss = lambda y, t: jnp.mean((y - t) ** 2)
    return Task(nn.MinGRU(3, 4, key=key), xs=xs, targets=jnp.ones((8, 2, 4)), loss_fn=loss)
"""


@pytest.mark.slow
def test_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(MODELS)
    command = "export models.py:task --every 2 --optimiser sgd:0.1 -o learner --c build --json"
    assert main(command.split()) == 0
    said = json.loads(capsys.readouterr().out)
    exported = etpc.load_exported("learner")
    assert said["state_bytes"] == sum(a.nbytes for a in exported.state.values())
    assert said["files"] == {name: len(code) for name, code in exported.modules.items()}
    assert said["temporary_bytes"] == exported.temporaries() > 0
    assert said["c_bytes"] == exported.to_c("again")
    for name in ("learner.c", "learner.h"):
        assert (Path("build") / name).read_text() == (Path("again") / name).read_text()
    assert (exported.manifest["every"], exported.manifest["batch_size"]) == (2, None)
    assert main(command.split()) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["export", "models.py:task", "--batch", "2", "-o", "batch", "--c", "batch/c"]) == 0
    assert sorted(os.listdir("batch")) == ["c", *FILES]
    assert etpc.load_exported("batch").manifest["batch_size"] == 2
    assert main(["export", "models.py:task", "-o", "third", "--compile", "abacus"]) == 2
    assert main(["export", "models.py:task", "--optimiser", "nothing:1", "-o", "third"]) == 2
    assert "adam:1e-3" in capsys.readouterr().err
    assert main(["export", "models.py:task", "--every", "9", "-o", "third", "--c", "third"]) == 2
    assert "xs has 8 steps, and 9 were asked for" in capsys.readouterr().err
    assert not Path("third").exists()
