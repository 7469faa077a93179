"""A checkpoint is whole, or it is refused with the reason; and what was there before stays."""

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import etpc
from etpc import checkpoint

ROOT = Path(__file__).parents[1]


def step(m, x, h):
    h = 0.5 * h + m["w"] @ x + m["rec"] @ jnp.tanh(h)
    return h, h


MODEL = {"w": jnp.ones((3, 2)) / 3, "rec": jnp.eye(3) / 4, "f": jnp.tanh}


def compiled(algo="d_rtrl"):
    return etpc.compile(MODEL, algo, inputs=jnp.zeros(2), state=jnp.zeros(3), step=step)


def small():
    return {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.int8), "n": 3}


def refused(path, like, words):
    with pytest.raises(etpc.CheckpointError, match=words) as caught:
        etpc.load(path, like)
    assert isinstance(caught.value, ValueError)


def bits(tree):
    found = []
    for leaf in jax.tree.leaves(tree):
        if checkpoint._is_key(leaf):
            leaf = jax.random.key_data(leaf)
        if not hasattr(leaf, "dtype"):
            found.append((type(leaf), repr(leaf)))
            continue
        found.append((type(leaf), np.asarray(leaf).dtype, np.asarray(leaf).tobytes()))
    return found


# --- what comes back ------------------------------------------------------------------------------


DTYPES = [
    *("bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, 2, (4, 3))
    a = jnp.asarray(values, dtype)
    etpc.save(tmp_path / "a", [a, np.asarray(a), a[:0], a[0, 0]])
    zeros = [jnp.zeros_like(a), np.zeros_like(a), a[:0], jnp.zeros_like(a[0, 0])]
    found = etpc.load(tmp_path / "a", zeros)
    assert isinstance(found[0], jax.Array)
    assert isinstance(found[1], np.ndarray)
    assert bits(found) == bits([a, np.asarray(a), a[:0], a[0, 0]])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), zeros)
    assert bits(etpc.load(tmp_path / "a", shapes)[0]) == bits(a)


def test_leaves_of_every_kind(tmp_path):
    def tree(n, x, seed):
        return {
            "python": [n, bool(n), x, complex(x, 1), None, "text"],
            "numpy": [
                np.float32(x),
                np.asarray([x, np.nan, -np.inf]),
                np.asarray([seed, 2, 3], ">i4"),
            ],
            "keys": (jax.random.split(jax.random.key(seed), 3), jax.random.key(seed, impl="rbg")),
            "function": jnp.tanh,
            "module": eqx.nn.Linear(2, 3, key=jax.random.key(seed)),
        }

    saved = tree(10**30, 0.1, 1)
    etpc.save(tmp_path / "a", saved)
    found = etpc.load(tmp_path / "a", tree(0, 5.0, 2))
    assert found["function"] is jnp.tanh
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    big = found["numpy"].pop(), saved["numpy"].pop()
    assert list(big[0]) == list(big[1])
    assert bits(found) == bits(saved)
    same = [jax.random.bits(k) for k in (found["keys"][1], saved["keys"][1])]
    assert same[0] == same[1]


def test_an_array_spread_over_devices_comes_back_so(tmp_path):
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("batch",))
    spread = NamedSharding(mesh, PartitionSpec("batch"))
    a = jax.device_put(jnp.arange(4.0), spread)
    etpc.save(tmp_path / "a", a)
    assert etpc.load(tmp_path / "a", a * 0).sharding == spread
    assert not etpc.load(tmp_path / "a", jnp.zeros(4)).committed


def test_quantities(tmp_path):
    u = pytest.importorskip("saiunit")
    etpc.save(tmp_path / "a", {"v": jnp.ones(3) * u.mV})
    assert etpc.load(tmp_path / "a", {"v": jnp.zeros(3) * u.mV})["v"].to_decimal(u.mV).sum() == 3
    refused(tmp_path / "a", {"v": jnp.zeros(3) * u.volt}, r"\['v'\] is a quantity in V.*in mV")
    refused(
        tmp_path / "a",
        {"v": jnp.zeros(3)},
        r"\['v'\] is not there in `like`, and a quantity in mV in the file",
    )


@pytest.mark.parametrize("algo", ["d_rtrl", etpc.ES_D_RTRL(decay=0.9), etpc.ES_D_RTRL(rank=2)])
def test_to_go_on_is_not_to_have_stopped(algo, tmp_path):
    """Saved amid a sequence and loaded into a new program: every bit is the same."""
    rng = np.random.default_rng(0)
    xs, targets = jnp.asarray(rng.normal(size=(12, 2, 2))), jnp.asarray(rng.normal(size=(12, 2, 3)))

    def learner():
        loss = lambda y, target: jnp.sum((y - target) ** 2)
        return etpc.online(compiled(algo), loss, optax.adam(0.01), every=2)

    first = learner()
    *now, _ = first.update(MODEL, *first.init(MODEL, 2), xs[:6], targets[:6])
    etpc.save(tmp_path / "run.etpc", tuple(now))
    whole = first.update(*now, xs[6:], targets[6:])

    second = learner()
    begin = jax.tree.map(lambda a: a * 0 if eqx.is_array(a) else a, MODEL)
    loaded = etpc.load(tmp_path / "run.etpc", (begin, *second.init(begin, 2)))
    assert bits(loaded) == bits(tuple(now))
    assert bits(second.update(*loaded, xs[6:], targets[6:])) == bits(whole)
    assert bits(whole[0]) != bits(now[0])


# --- what is refused ------------------------------------------------------------------------------


MISFITS = {
    "shape": ({"a": jnp.zeros(4)}, r"\['a'\] is float64\[4\] in `like`, and float64\[3\] in the"),
    "dtype": ({"a": jnp.zeros(3, jnp.float32)}, r"\['a'\] is float32\[3\] .*float64\[3\] in the"),
    "array for a number": ({"n": jnp.zeros(())}, r"\['n'\] is float64\[\] .* a Python int in the"),
    "float for an int": ({"n": 1.0}, r"\['n'\] is a Python float in .* a Python int in the file"),
    "one more": ({"c": 1}, r"\['c'\] is a Python int in `like`, and not there in the file"),
    "one less": ({"a": None}, r"\['a'\] is not there in `like`, and float64\[3\] in the file"),
    "two things": (
        {"a": jnp.zeros(4), "n": None},
        r"(?s)does not fit.*1\. \['a'\] is .*2\. \['n'\] is not there",
    ),
    "another name": ({"a": None, "z": jnp.zeros(3)}, r"(?s)\['z'\].*not there.*\['a'\] is not"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit(case, tmp_path):
    other, words = MISFITS[case]
    etpc.save(tmp_path / "a", small())
    refused(tmp_path / "a", small() | other, words)


def test_the_carry_of_another_program(tmp_path):
    etpc.save(tmp_path / "a", (MODEL, compiled().init(2)))
    refused(
        tmp_path / "a",
        (MODEL, compiled(etpc.D_RTRL(window=3)).init(2)),
        r"\[1\] is a carry with a batch axis of the program \w+ in `like`, and a carry",
    )
    refused(tmp_path / "a", (MODEL, compiled().init()), r"\[1\] is a carry without a batch axis")


NO_CHECKPOINTS = {
    "empty": (b"", "is no checkpoint of etpc"),
    "text": (b"hello world " * 20, "is no checkpoint of etpc"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00" + bytes(100), "is no checkpoint of etpc"),
    "zeros": (bytes(1000), "is no checkpoint of etpc"),
    "later": (checkpoint._MAGIC + b"\x02" + bytes(100), "has format 2, and this .* reads 1"),
}


@pytest.mark.parametrize("case", NO_CHECKPOINTS)
def test_what_is_no_checkpoint(case, tmp_path):
    content, words = NO_CHECKPOINTS[case]
    (tmp_path / "a").write_bytes(content)
    refused(tmp_path / "a", small(), words)


def test_cut_short_at_every_length(tmp_path):
    path = tmp_path / "a"
    etpc.save(path, small())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, small(), "is cut short|is no checkpoint")
    path.write_bytes(whole + b"\0")
    refused(path, small(), "is damaged")
    path.write_bytes(whole)
    assert bits(etpc.load(path, small())) == bits(small())


def test_every_byte_changed(tmp_path):
    path, rng = tmp_path / "a", np.random.default_rng(0)
    etpc.save(path, small())
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        refused(path, small(), "is damaged|is no checkpoint|is cut short|has format")


UNSAVABLE = {
    "objects": (np.asarray([object()]), r"\['x'\] is an array of object, which JAX does not have"),
    "text": (np.asarray(["a"]), r"\['x'\] is an array of <U1"),
    "shape": (jax.ShapeDtypeStruct((2,), jnp.float32), r"\['x'\] is a shape, which has no values"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_cannot_be_saved(case, tmp_path):
    leaf, words = UNSAVABLE[case]
    etpc.save(tmp_path / "a", small())
    with pytest.raises(etpc.CheckpointError, match=words):
        etpc.save(tmp_path / "a", {"x": leaf})
    assert bits(etpc.load(tmp_path / "a", small())) == bits(small())


def test_not_under_jit(tmp_path):
    with pytest.raises(etpc.CheckpointError, match=r"is traced\. Save outside of jax\.jit"):
        jax.jit(lambda a: etpc.save(tmp_path / "a", a))(jnp.ones(2))


# --- what the system refuses ----------------------------------------------------------------------


def fails(error):
    def raising(*_):
        raise OSError(error, os.strerror(error))

    return raising


@pytest.mark.parametrize(
    ("name", "error"),
    [("fsync", errno.ENOSPC), ("replace", errno.EACCES), ("fsync", errno.EIO)],
)
def test_a_save_that_fails_leaves_what_was_there(name, error, tmp_path, monkeypatch):
    path = tmp_path / "a"
    etpc.save(path, small())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, name, fails(error))
        with pytest.raises(OSError, match=os.strerror(error)) as caught:
            etpc.save(path, {"other": 1})
    assert f"{path} was not saved. What was there before still is" in caught.value.__notes__[0]
    assert os.listdir(tmp_path) == ["a"]
    assert bits(etpc.load(path, small())) == bits(small())


def test_a_disk_that_is_full_amid_a_save(tmp_path):
    """A limit on the size of files does what a full disk does: a part is written, the rest is not."""
    resource = pytest.importorskip("resource")
    etpc.save(tmp_path / "a", small())
    large = {"a": np.ones(100_000)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            etpc.save(tmp_path / "a", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["a"]
    assert bits(etpc.load(tmp_path / "a", small())) == bits(small())
    etpc.save(tmp_path / "a", large)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        etpc.save(tmp_path / "none" / "a", small())
    assert "was not saved" in caught.value.__notes__[0]
    with pytest.raises(FileNotFoundError):
        etpc.load(tmp_path / "a", small())
    with pytest.raises(IsADirectoryError):
        etpc.save(tmp_path, small())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        etpc.save(tmp_path / "file" / "a", small())
    assert sorted(os.listdir(tmp_path)) == ["file"]
    assert not [name for name in os.listdir(tmp_path.parent) if name.endswith(".saving")]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    etpc.save(tmp_path / "a", small())
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            etpc.save(tmp_path / "a", {"other": 1})
    finally:
        tmp_path.chmod(0o700)
    assert bits(etpc.load(tmp_path / "a", small())) == bits(small())


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    etpc.save(tmp_path / "link", small())
    assert (tmp_path / "link").is_symlink()
    assert bits(etpc.load(tmp_path / "a", small())) == bits(small())


# --- killed ---------------------------------------------------------------------------------------


def test_what_a_killed_save_left_is_overwritten(tmp_path):
    (tmp_path / ".a.saving").write_bytes(bytes(10_000))
    etpc.save(tmp_path / "a", small())
    assert os.listdir(tmp_path) == ["a"]
    assert bits(etpc.load(tmp_path / "a", small())) == bits(small())


def test_many_save_to_one_path(tmp_path):
    """One after the other: a file is never a mixture of two."""

    def tree(n):
        return {"version": n, "a": np.full(20_000, n)}

    def save(n):
        for _ in range(10):
            etpc.save(tmp_path / "a", tree(n))

    threads = [threading.Thread(target=save, args=(n,)) for n in range(4)]
    etpc.save(tmp_path / "a", tree(0))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found = etpc.load(tmp_path / "a", tree(0))
        assert (found["a"] == found["version"]).all()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_time(tmp_path):
    """200 kills, of which many are amid a save; after each the file is one version, whole."""
    command = [sys.executable, "-m", "tests.kill", str(tmp_path), "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 200
    assert found["while_saving"] > 20
    assert found["saved"] > 20
    assert found["most_files"] <= 2
    assert found["left"] == ["run.etpc"]


# --- headers that etpc does not write -------------------------------------------------------------


def varied():
    return {
        "array": jnp.arange(3.0),
        "numpy": [np.ones((2, 1), np.int8), np.float32(2.0)],
        "key": jax.random.key(1),
        "numbers": [True, 7, 0.5, 1j, "text", None, jnp.tanh],
        "carry": etpc.Carry(jnp.ones(2), (), jnp.ones((), bool), "program", False),
    }


def rewritten(path, header):
    """The file with another header, which has the right checksum."""
    content = path.read_bytes()
    _, version, length, _ = checkpoint._START.unpack_from(content)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    digest = checkpoint.hashlib.sha256(text).digest()
    start = checkpoint._START.pack(checkpoint._MAGIC, version, len(text), digest)
    path.write_bytes(start + text + content[checkpoint._START.size + length :])


def header_of(path):
    content = path.read_bytes()
    length = checkpoint._START.unpack_from(content)[2]
    return json.loads(content[checkpoint._START.size :][:length])


def places(node, above=()):
    """Every place in a header, from the outermost."""
    yield above
    for key in (
        node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    ):
        yield from places(node[key], (*above, key))


DELETE = object()
VALUES = [
    *(None, True, -1, 0, 1, 10**15, 10**40, -(10**40), 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "é" * 50, "float64", "array", "key", "int", "1" * 5000, "not saved"),
    *([], [[]], [0], [10**15], [-1], {}, {"path": 1}, {"kind": "array"}, DELETE),
]
HUGE = [10**15, 10**40, -(10**40), 1e308, "1" * 5000, [10**15]]


def changed(header, place, value):
    header = json.loads(json.dumps(header))
    if not place:
        return None if value is DELETE else value
    node = header
    for key in place[:-1]:
        node = node[key]
    if value is DELETE:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    return header


@pytest.mark.slow
def test_every_field_of_a_header_changed(tmp_path):
    """A wrong type, a missing field, a huge number: refused, or of no account, and nothing else."""
    path, tree = tmp_path / "a", varied()
    etpc.save(path, tree)
    header, whole, saved = header_of(path), path.read_bytes(), bits(tree)
    count = 0
    for place in places(header):
        for value in VALUES:
            path.write_bytes(whole)
            rewritten(path, changed(header, place, value))
            count += 1
            huge = value in HUGE  # memory is watched where a number may be taken for a size
            if huge:
                tracemalloc.start()
            try:
                found = etpc.load(path, tree)
            except etpc.CheckpointError:
                continue
            finally:
                if huge:
                    assert tracemalloc.get_traced_memory()[1] < 20_000_000, (place, value)
                    tracemalloc.stop()
            same = bits(found) == saved
            assert same or place[-1] == "value" or place[0] == "versions", (place, value)
    assert count > 2000


RAW = {
    "no JSON": b"{",
    "no UTF-8": b'{"leaves": "\xff"}',
    "nothing": b"",
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep dicts": b'{"leaves":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of many digits": b'{"bytes": ' + b"9" * 10_000 + b"}",
    "a null": b"null",
}


@pytest.mark.parametrize("case", RAW)
def test_what_is_no_header(case, tmp_path):
    etpc.save(tmp_path / "a", small())
    rewritten(tmp_path / "a", RAW[case])
    refused(tmp_path / "a", small(), "has a header that etpc does not write")


def test_entries_twice_or_in_another_order(tmp_path):
    path = tmp_path / "a"
    tree = {"a": 1, "b": 2}
    etpc.save(path, tree)
    header = header_of(path)
    first, second = header["leaves"]
    for leaves, words in (
        ([second, first], "another order"),
        ([first, second, second], "another order"),
        ([first], "not there in the file"),
    ):
        rewritten(path, {**header, "leaves": leaves})
        refused(path, tree, words)


def test_an_int_of_too_many_digits(tmp_path):
    with pytest.raises(etpc.CheckpointError, match=r"\['n'\] is an int of more digits"):
        etpc.save(tmp_path / "a", {"n": 10**5000})


# --- what else may be in a folder -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "folder", "pipe"])
def test_what_was_placed_where_a_save_writes(kind, tmp_path):
    """It is not written to, and the error names it."""
    victim, place = tmp_path / "victim", tmp_path / ".a.saving"
    victim.write_bytes(b"precious")
    {
        "link": lambda: place.symlink_to(victim),
        "dangling link": lambda: place.symlink_to(tmp_path / "none"),
        "second name": lambda: place.hardlink_to(victim),
        "folder": place.mkdir,
        "pipe": lambda: os.mkfifo(place),
    }[kind]()
    with pytest.raises(FileExistsError, match=r"no file that a save left; remove it.*\.a\.saving"):
        etpc.save(tmp_path / "a", small())
    assert victim.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == [".a.saving", "victim"]
    place.rmdir() if kind == "folder" else place.unlink()
    etpc.save(tmp_path / "a", small())
    assert bits(etpc.load(tmp_path / "a", small())) == bits(small())


def test_a_target_that_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match=r"no regular file, and is not replaced.*pipe"):
            etpc.save(tmp_path / name, small())
        refused(tmp_path / name, small(), "it is no regular file")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    refused("/dev/zero", small(), "it is no regular file")
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("leftover", [False, True])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, None])
def test_the_mode_of_a_file_stays(mode, leftover, tmp_path):
    """That of a new file is what the process gives to new files."""
    path, new = tmp_path / "a", tmp_path / "new"
    new.touch()
    if mode is not None:
        etpc.save(path, {"other": 1})
        path.chmod(mode)
    if leftover:
        (tmp_path / ".a.saving").touch()
        (tmp_path / ".a.saving").chmod(0o777)
    etpc.save(path, small())
    expected = stat.S_IMODE(new.stat().st_mode) if mode is None else mode
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_link_to_what_is_not_there_yet(tmp_path):
    (tmp_path / "link").symlink_to("a")
    for tree in (small(), {"other": 1}):
        etpc.save(tmp_path / "link", tree)
        assert (tmp_path / "link").is_symlink()
        assert bits(etpc.load(tmp_path / "a", tree)) == bits(tree)
