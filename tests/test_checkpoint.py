"""A checkpoint is whole, or it is refused with the reason; and what was there before stays."""

import decimal
import enum
import errno
import json
import os
import stat
import threading
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import etpc
from etpc import checkpoint
from etpc._jax import is_key
from etpc.checkpoint import AnyLength
from tests.helpers import in_a_process, loss

OLD = b"\x89etpc\r\n\x1a"  # the magic number of the format before


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
        array = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        values = array.tobytes() if hasattr(leaf, "dtype") else repr(leaf)
        found.append((type(leaf), array.dtype, array.shape, values))
    return found


def same(path, like, tree):
    assert bits(etpc.load(path, like)) == bits(tree)


# --- what comes back ------------------------------------------------------------------------------


DTYPES = [
    *("bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64"),
    *("complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, tmp_path):
    a = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 3)), dtype)
    tree = [a, np.asarray(a), a[:0], a[0, 0], np.asarray(a).T, np.asarray(a)[1, 1]]
    zeros = [jnp.zeros_like(a), *(np.zeros_like(x) for x in tree[1:5]), tree[5].dtype.type(0)]
    zeros[2:4] = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tree[2:4])
    etpc.save(tmp_path / "a", tree)
    same(tmp_path / "a", zeros, tree)


Mode, Bits = enum.IntEnum("Mode", "A B"), enum.IntFlag("Bits", "A B")
Text, Plain = enum.StrEnum("Text", {"A": "a"}), enum.Enum("Plain", {"PAIR": (1, jnp.tanh)})
CONFIGURATION = [Mode.B, Bits(3), Bits(0), Text.A, Plain.PAIR, "text", np.str_("x"), "\ud800\n"]


class Key:
    """A key of a dict, whose text names a place in memory."""

    def __lt__(self, other):
        return True


def test_leaves_of_every_kind(tmp_path):
    def tree(n, x, seed):
        return {
            "python": [n, -n - 1, bool(n), x, complex(x, -0.0), complex(-0.0, x), None, (), {}],
            "numpy": [np.float32(x), np.bool_(n), np.asarray([x, np.nan])],
            "big-endian": np.asarray([seed, 2, 3], ">i4"),
            "keys": (jax.random.split(jax.random.key(seed), 3), jax.random.key(seed, impl="rbg")),
            "no keys": jax.random.split(jax.random.key(seed), 0),
            "functions": [jnp.tanh, jnp.float32],
            "configuration": CONFIGURATION,
            "module": eqx.nn.Linear(2, 3, key=jax.random.key(seed)),
            "paths": {Key(): {7: {Mode.A: jnp.full(2, x)}}},
        }

    for values in ((2**1000, float("-inf"), 1), (0, float("nan"), 3), (1, -0.0, 4)):
        saved = tree(*values)
        etpc.save(tmp_path / "a", saved)
        found = etpc.load(tmp_path / "a", tree(5, 5.0, 2))
        assert found["functions"].pop() is saved["functions"].pop() is jnp.float32
        assert bits(found) == bits(saved)
    for saved in ({}, (None, [{}]), jnp.ones(2), 3):
        etpc.save(tmp_path / "a", saved)
        same(tmp_path / "a", saved, saved)


class Reordered:
    """A node whose children have one path."""

    def __init__(self, *children):
        self.children = children


jax.tree_util.register_pytree_with_keys(
    Reordered,
    lambda node: ([(jax.tree_util.GetAttrKey("x"), child) for child in node.children], None),
    lambda _, children: Reordered(*children),
)


def test_leaves_with_one_path(tmp_path):
    etpc.save(tmp_path / "a", Reordered(jnp.ones(2), jnp.zeros(3)))
    same(tmp_path / "a", Reordered(jnp.zeros(2), jnp.ones(3)), [jnp.ones(2), jnp.zeros(3)])
    refused(tmp_path / "a", Reordered(jnp.ones(7), jnp.zeros(3)), r"\.x is float64\[7\]")
    refused(tmp_path / "a", Reordered(jnp.ones(2), jnp.zeros(4)), r"\.x \(2\) is float64\[4\]")
    refused(tmp_path / "a", Reordered(jnp.zeros(3), jnp.ones(2)), r"\.x is float64\[3\]")


def test_an_array_spread_over_devices_comes_back_so(tmp_path):
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("batch",))
    spread = NamedSharding(mesh, PartitionSpec("batch"))
    tree = [
        jax.device_put(a, spread) for a in (jnp.arange(4.0), jax.random.split(jax.random.key(0), 4))
    ]
    etpc.save(tmp_path / "a", tree)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=spread) for a in tree]
    for like in (tree, shapes):
        assert [a.sharding for a in etpc.load(tmp_path / "a", like)] == [spread] * 2
    free = etpc.load(tmp_path / "a", [jnp.zeros(4), jax.random.split(jax.random.key(1), 4)])
    assert not any(a.committed for a in free)


@pytest.mark.parametrize("value", [2**40 + 5, 0.1, 0.1j])
@pytest.mark.parametrize("shapes", [False, True])
def test_64_bits_stay_where_jax_makes_32(value, shapes, tmp_path):
    tree = jnp.asarray([value, 1])
    assert tree.dtype.itemsize >= 8
    etpc.save(tmp_path / "a", tree)
    like = jax.ShapeDtypeStruct(tree.shape, tree.dtype) if shapes else jnp.zeros_like(tree)
    with jax.enable_x64(False):
        same(tmp_path / "a", like, tree)


def test_quantities(tmp_path):
    u = pytest.importorskip("saiunit")
    etpc.save(tmp_path / "a", {"v": jnp.ones(3) * u.mV})
    assert etpc.load(tmp_path / "a", {"v": jnp.zeros(3) * u.mV})["v"].to_decimal(u.mV).sum() == 3
    refused(tmp_path / "a", {"v": jnp.zeros(3) * u.volt}, r"\['v'\] is a quantity in V.*in mV")
    words = r"\['v'\] is float64\[3\] in `like`, and a quantity in mV in the file"
    refused(tmp_path / "a", {"v": jnp.zeros(3)}, words)


def test_equinox_reads_the_arrays(tmp_path):
    tree = [jnp.arange(3.0), np.ones((2, 2), np.int8)]
    etpc.save(tmp_path / "a", tree)
    with (tmp_path / "a").open("rb") as file:
        file.seek(checkpoint._START.size)
        assert json.loads(file.readline())["leaves"] == [
            ["[0]", "float64[3]"],
            ["[1]", "int8[2, 2]"],
        ]
        assert bits(eqx.tree_deserialise_leaves(file, [a * 0 for a in tree])) == bits(tree)


RESUMED = ["d_rtrl", etpc.ES_D_RTRL(decay=0.9), etpc.ES_D_RTRL(rank=2)]


@pytest.mark.slow
@pytest.mark.parametrize("algo", RESUMED)
def test_to_go_on_is_not_to_have_stopped(algo, tmp_path):
    """Saved amid a sequence and loaded into a new program: every bit is the same."""
    rng = np.random.default_rng(0)
    xs, targets = jnp.asarray(rng.normal(size=(12, 2, 2))), jnp.asarray(rng.normal(size=(12, 2, 3)))

    def learner():
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


def test_weights_of_a_run(tmp_path):
    """They are found where the optimiser, the rule and the loss of `like` would be others."""
    learner = etpc.online(compiled(), loss, optax.adam(0.01), every=2)
    block = jnp.ones((4, 2, 2)), jnp.zeros((4, 2, 3))
    run = etpc.fit(
        learner, MODEL, [block], batch_size=2, independent=False, checkpoint=tmp_path / "run"
    )
    assert bits(run.model) != bits(MODEL)
    assert bits(etpc.load_weights(tmp_path / "run", MODEL)) == bits(run.model)
    words = r"(?s)a tuple of 6.*`etpc\.load_weights\(path, like=model\)`.*1\. \['f'\]"
    refused(tmp_path / "run", MODEL, words)


@pytest.mark.parametrize("tree", [small(), [jnp.ones(2), 3], (small(),), (small(), 2), [[1, 2]]])
def test_weights_of_any_tree(tree, tmp_path):
    """A whole model, also one that is a tuple; or the first member of a tuple."""
    etpc.save(tmp_path / "a", tree)
    like = jax.tree.map(lambda a: 0 * a, tree)
    assert bits(etpc.load_weights(tmp_path / "a", like)) == bits(tree)
    if isinstance(tree, tuple):
        assert bits(etpc.load_weights(tmp_path / "a", like[0])) == bits(tree[0])


def test_weights_that_do_not_fit(tmp_path):
    etpc.save(tmp_path / "a", (small(), 2))
    with pytest.raises(etpc.CheckpointError, match=r"1\. \[0\]\['a'\] is float64\[4\] in `like`"):
        etpc.load_weights(tmp_path / "a", small() | {"a": jnp.zeros(4)})


# --- what is refused ------------------------------------------------------------------------------


MISFITS = {
    "shape": ({"a": jnp.zeros(4)}, r"\['a'\] is float64\[4\] in `like`, and float64\[3\] in the"),
    "dtype": ({"a": jnp.zeros(3, jnp.float32)}, r"\['a'\] is float32\[3\] .*float64\[3\] in the"),
    "array for a number": ({"n": jnp.zeros(())}, r"\['n'\] is float64\[\] .* a Python int in the"),
    "float for an int": ({"n": 1.0}, r"\['n'\] is a Python float in .* a Python int in the file"),
    "bool for an int": ({"n": True}, r"\['n'\] is a Python bool in .* a Python int in the file"),
    "an enum for an int": ({"n": Mode.A}, r"\['n'\] is Mode\.A in .* a Python int in the file"),
    "another leaf": ({"n": decimal.Decimal(1)}, r"\['n'\] is a Decimal in .* a Python int in"),
    "one more": ({"c": 1}, r"\['c'\] is a Python int in `like`, and not there in the file"),
    "one less": ({"a": None}, r"\['a'\] is not there in `like`, and float64\[3\] in the file"),
    "two things": (
        {"a": jnp.zeros(4), "n": None},
        r"(?s)does not fit.*1\. \['a'\] is .*2\. \['n'\] is not there",
    ),
    "many": (dict.fromkeys(map(str, range(90)), 0), r"(?s)1\. .*20\. .*not there in the file\.$"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit(case, tmp_path):
    other, words = MISFITS[case]
    etpc.save(tmp_path / "a", small())
    refused(tmp_path / "a", small() | other, words)


@pytest.mark.parametrize("place", range(len(CONFIGURATION)))
def test_another_configuration(place, tmp_path):
    etpc.save(tmp_path / "a", CONFIGURATION)
    for other in (Mode.A, Bits.A, "other", 2, jnp.tanh):
        like = [*CONFIGURATION[:place], other, *CONFIGURATION[place + 1 :]]
        refused(tmp_path / "a", like, rf"1\. \[{place}\] is")


def test_the_carry_of_another_program(tmp_path):
    etpc.save(tmp_path / "a", (MODEL, compiled().init(2)))
    refused(
        tmp_path / "a",
        (MODEL, compiled(etpc.D_RTRL(window=3)).init(2)),
        r"\[1\] is a carry with a batch axis of the program \w+ in `like`, and a carry",
    )
    refused(tmp_path / "a", (MODEL, compiled().init()), r"\[1\] is a carry without a batch axis")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x93NUMPY\x01\x00v\x00", "is not a checkpoint of etpc"),
        (OLD, "has a format of another version of etpc. Load it with the version"),
        (b"\x89etpc3\r\n", "has a format of another version of etpc"),
    ],
    ids=["numpy", "earlier", "later"],
)
def test_what_is_no_checkpoint(content, words, tmp_path):
    (tmp_path / "a").write_bytes(content + bytes(100))
    refused(tmp_path / "a", small(), words)


@pytest.mark.slow
def test_cut_short_at_every_length(tmp_path):
    path = tmp_path / "a"
    etpc.save(path, small())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, small(), "is cut short" if length else "is not a checkpoint")
    path.write_bytes(whole + b"\0")
    refused(path, small(), "is damaged")
    path.write_bytes(whole)
    same(path, small(), small())


def test_every_byte_changed(tmp_path):
    path, rng = tmp_path / "a", np.random.default_rng(0)
    etpc.save(path, small())
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        refused(path, small(), "is damaged|is not a checkpoint|is cut short|has a format")


class Rate(float):
    pass


UNSAVABLE = {
    "objects": (np.asarray([object()]), r"is an array of object, which JAX does not have"),
    "bytes": (np.bytes_(b"a"), r"is an array of \|S1"),
    "dates": (np.zeros(2, "M8[s]"), "is an array of datetime64"),
    "durations": (np.timedelta64(1, "s"), "is an array of timedelta64"),
    "no tangent": (np.zeros(2, jax.dtypes.float0), r"is an array of \[\('float0'"),
    "masked": (np.ma.zeros(2), r"is a MaskedArray, which is more than its array"),
    "shape": (jax.ShapeDtypeStruct((2,), jnp.float32), r"is a shape, which has no values"),
    "large int": (-(2**1023) - 1, "is an int of more than 128 bytes"),
    "float of its own": (Rate(1.0), "is a Rate, which cannot be saved. Make it a Python number"),
    "decimal": (decimal.Decimal("0.1"), "is a Decimal, which cannot be saved"),
    "raw": (b"a", "is a bytes, which cannot be saved"),
    "dtype": (np.dtype("f4"), "is a .*, which cannot be saved"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_cannot_be_saved(case, tmp_path):
    leaf, words = UNSAVABLE[case]
    etpc.save(tmp_path / "a", small())
    with pytest.raises(etpc.CheckpointError, match=rf"\['x'\] {words}"):
        etpc.save(tmp_path / "a", {"x": leaf})
    same(tmp_path / "a", small(), small())


def test_arrays_that_have_no_values_here(tmp_path, monkeypatch):
    with pytest.raises(etpc.CheckpointError, match=r"is traced\. Save outside of jax\.jit"):
        jax.jit(lambda a: etpc.save(tmp_path / "a", a))(jnp.ones(2))
    a = jnp.ones(2)
    monkeypatch.setattr(type(a), "is_fully_addressable", False)
    with pytest.raises(etpc.CheckpointError, match=r"is spread over several processes\. .*gather"):
        etpc.save(tmp_path / "a", a)
    a.delete()
    with pytest.raises(etpc.CheckpointError, match=r"is an array that was deleted or donated"):
        etpc.save(tmp_path / "a", a)
    assert os.listdir(tmp_path) == []


# --- what the system refuses ----------------------------------------------------------------------


def fails(error):
    def raising(*_):
        raise OSError(error, os.strerror(error))

    return raising


@pytest.mark.parametrize(
    ("name", "error"), [("fsync", errno.ENOSPC), ("replace", errno.EACCES), ("fsync", errno.EIO)]
)
def test_a_save_that_fails_leaves_what_was_there(name, error, tmp_path, monkeypatch):
    path = tmp_path / "a"
    etpc.save(path, small())
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails(error))
        with pytest.raises(OSError, match=os.strerror(error)) as caught:
            etpc.save(path, {"other": 1})
    assert f"{path} was not saved. What was there before still is" in caught.value.__notes__[0]
    assert os.listdir(tmp_path) == ["a"]
    same(path, small(), small())


def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch):
    """The file is in its place by then."""
    sync = os.fsync
    is_folder = lambda descriptor: stat.S_ISDIR(os.fstat(descriptor).st_mode)
    refuse = lambda d: fails(errno.EINVAL)() if is_folder(d) else sync(d)
    etpc.save(tmp_path / "a", {"other": 1})
    monkeypatch.setattr(os, "fsync", refuse)
    etpc.save(tmp_path / "a", small())
    same(tmp_path / "a", small(), small())


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
    same(tmp_path / "a", small(), small())
    etpc.save(tmp_path / "a", large)


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        etpc.save(tmp_path / "none" / "a", small())
    assert "was not saved" in caught.value.__notes__[0]
    with pytest.raises(FileNotFoundError):
        etpc.load(tmp_path / "a", small())
    with pytest.raises(IsADirectoryError):
        etpc.load(tmp_path, small())
    with pytest.raises(FileExistsError, match="not a regular file"):
        etpc.save(tmp_path, small())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        etpc.save(tmp_path / "file" / "a", small())
    assert sorted(os.listdir(tmp_path)) == ["file"]
    assert not [name for name in os.listdir(tmp_path.parent) if name.endswith(".saving")]


@pytest.mark.parametrize("target", ["there", "not there yet"])
def test_a_link_stays_a_link(target, tmp_path):
    (tmp_path / "link").symlink_to("a")
    if target == "there":
        etpc.save(tmp_path / "a", {"other": 1})
    etpc.save(tmp_path / "link", small())
    assert (tmp_path / "link").is_symlink()
    same(tmp_path / "a", small(), small())


@pytest.mark.parametrize("name", ["x" * 101, "x" * 248, "x" * 255, "é" * 127])
def test_a_long_name(name, tmp_path):
    for tree in ({"other": 1}, small()):
        etpc.save(tmp_path / name, tree)
    assert os.listdir(tmp_path) == [name]
    same(tmp_path / name, small(), small())


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "second name", "pipe", "folder"])
def test_what_was_where_a_save_writes(kind, tmp_path):
    """It is removed, be it what a killed save left or not, and nothing is written to it."""
    victim, place = tmp_path / "victim", tmp_path / ".a.saving"
    victim.write_bytes(b"precious")
    {
        "file": lambda: place.write_bytes(bytes(10_000)),
        "link": lambda: place.symlink_to(victim),
        "dangling link": lambda: place.symlink_to(tmp_path / "none"),
        "second name": lambda: place.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(place),
        "folder": lambda: (place / "half").mkdir(parents=True),
    }[kind]()
    etpc.save(tmp_path / "a", small())
    same(tmp_path / "a", small(), small())
    assert victim.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["a", "victim"]


def test_a_target_that_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(FileExistsError, match=r"not a regular file, and is not replaced.*pipe"):
            etpc.save(tmp_path / name, small())
        refused(tmp_path / name, small(), "it is not a regular file")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    refused("/dev/zero", small(), "it is not a regular file")
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


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int8"])
@pytest.mark.parametrize("length", [0, 1, 37])
def test_a_vector_of_any_length(tmp_path, dtype, length):
    saved = {"a": jnp.arange(length).astype(dtype), "b": 1}
    etpc.save(tmp_path / "a", saved)
    like = {"a": AnyLength(dtype), "b": 0}
    found = etpc.load(tmp_path / "a", like)
    assert found["a"].dtype == dtype
    assert eqx.tree_equal(found, saved)
    refused(tmp_path / "a", like | {"a": AnyLength("int32")}, r"is int32\[")
    etpc.save(tmp_path / "a", {"a": jnp.zeros((1, 2), dtype), "b": 1})
    refused(tmp_path / "a", like, rf"is {dtype}\[None\] in `like`, and {dtype}\[1, 2\]")


# --- killed ---------------------------------------------------------------------------------------


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


def test_a_lock_on_the_folder_is_of_somebody_else(tmp_path):
    """As under `flock FOLDER python train.py`."""
    fcntl = pytest.importorskip("fcntl")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    saving = threading.Thread(target=etpc.save, args=(tmp_path / "a", small()))
    saving.start()
    saving.join(20)
    waits = saving.is_alive()
    os.close(descriptor)
    assert not waits
    same(tmp_path / "a", small(), small())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_time(tmp_path):
    """200 kills, of which many are amid a save; after each the file is one version, whole."""
    found = json.loads(in_a_process("-m", "tests.kill", tmp_path, 200))
    assert found["kills"] == 200
    assert found["while_saving"] > 20
    assert found["saved"] > 20
    assert found["most_files"] <= 2
    assert found["left"] == ["run.etpc"]


def rewritten(path, header=None, arrays=lambda arrays: arrays):
    """The file with another header or other arrays, and with the right checksum."""
    old_header, old_arrays = path.read_bytes()[checkpoint._START.size :].split(b"\n", 1)
    if isinstance(header, list):
        header = json.dumps({"leaves": header}).encode()
    rest = (old_header if header is None else header) + b"\n" + arrays(old_arrays)
    digest = checkpoint.hashlib.sha256(rest).digest()
    path.write_bytes(checkpoint._START.pack(checkpoint._MAGIC, len(rest), digest) + rest)


LEAVES = [["['a']", "float64[3]"], ["['b']", "int8[2, 2]"], ["['n']", "a Python int"]]
NOT_WRITTEN, HUGE = "has contents that etpc does not write", "9" * 4000
HEADERS = {
    "no JSON": (b"{", NOT_WRITTEN),
    "no UTF-8": (b'{"leaves": "\xff"}', NOT_WRITTEN),
    "nothing": (b"", NOT_WRITTEN),
    "deep lists": (b"[" * 1_000_000, NOT_WRITTEN),
    "a number of many digits": (b'{"leaves": ' + b"9" * 2_000_000 + b"}", NOT_WRITTEN),
    "many long numbers": (f'{{"leaves": [{", ".join([HUGE] * 500)}]}}'.encode(), NOT_WRITTEN),
    "a null": (b"null", NOT_WRITTEN),
    "a leaf that is a number": ([3], NOT_WRITTEN),
    "a list as a path": ([[["['a']"], "float64[3]"]], NOT_WRITTEN),
    "huge sizes": ([["['a']", f"float64[{', '.join([HUGE] * 500)}]"]], "does not fit"),
    "many leaves": ([[str(n), ""] for n in range(1 << 17)], "does not fit"),
    "another order": (LEAVES[::-1], "another order"),
    "a leaf twice": ([LEAVES[0], *LEAVES], "another order"),
    "a leaf twice, at the end": ([*LEAVES, LEAVES[0]], "another order"),
    "too few": (LEAVES[:1], "not there in the file"),
}
ARRAYS = {
    "none": lambda arrays: b"",
    "one byte more": lambda arrays: arrays + b"\0",
    "one byte less": lambda arrays: arrays[:-1],
    "another shape": lambda arrays: arrays.replace(b"(3,), }", b"(2,), }", 1),
    "a huge shape": lambda arrays: arrays.replace(b"(3,), }         ", b"(3000000000,), }", 1),
    "another dtype": lambda arrays: arrays.replace(b"'<f8'", b"'<i8'", 1),
    "objects": lambda arrays: arrays.replace(b"'<f8'", b"'|O' ", 1),
    "another version": lambda arrays: arrays[:6] + b"\x02" + arrays[7:],
    "a pickle": lambda arrays: b"\x80\x04cos\nsystem\n" + arrays,
    "no literal": lambda arrays: arrays.replace(b"{'descr'", b"{" * 8, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*HEADERS, *ARRAYS])
def test_what_etpc_does_not_write(case, tmp_path):
    """It is refused without the memory that its numbers ask for."""
    etpc.save(tmp_path / "a", small())
    before = (tmp_path / "a").read_bytes()
    header, words = HEADERS.get(case, (None, NOT_WRITTEN))
    rewritten(tmp_path / "a", header, ARRAYS.get(case, lambda arrays: arrays))
    assert (tmp_path / "a").read_bytes() != before
    tracemalloc.start()
    refused(tmp_path / "a", small(), words)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()
    rewritten(tmp_path / "a", LEAVES)
    if case in HEADERS:
        same(tmp_path / "a", small(), small())
