"""Estimates: bytes beside those of the programs that are really run, what does not fit, and what a mistake gets."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import optax
import pytest

import etpc
from etpc.cli import main
from etpc.estimating import chips
from etpc.estimating import estimate as estimating
from etpc.estimating.results import size_text
from tests.helpers import in_a_process

N, I, T, B = 24, 5, 40, 8
W = {"rec": jnp.zeros((N, N)), "win": jnp.zeros((N, I))}
RULES = [etpc.D_RTRL(), etpc.ES_D_RTRL(decay=0.9)]
FLOAT = W["rec"].dtype.itemsize


def step(w, x, h):
    h = jnp.tanh(w["rec"] @ h + w["win"] @ x)
    return h, h


def loss(y, target):
    return jnp.mean((y - target) ** 2)


CALLED = dict(inputs=jnp.zeros(I), state=jnp.zeros(N), step=step)
USUAL = dict(on="cpu", steps=T, batch_size=B, loss_fn=loss, targets=jnp.zeros(N)) | CALLED


def estimate(model=W, rules=RULES, **options):
    return etpc.estimate(model, rules, **USUAL | options)


@pytest.fixture(scope="module")
def found():
    return estimate(optimiser=optax.adam(1e-3), every=10)


def memory(compiled):
    sizes = compiled.memory_analysis()
    whole = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return sizes.temp_size_in_bytes, whole - sizes.alias_size_in_bytes


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [1, 2])
def test_the_bytes_are_those_of_the_update_that_one_runs(found, row):
    program = etpc.compile(W, RULES[row - 1], **CALLED, target="cpu")
    learner = etpc.online(program, loss, optax.adam(1e-3), every=10)
    xs, ts = jnp.zeros((T, B, I)), jnp.zeros((T, B, N))
    after = learner.lower(W, *learner.init(W, B), xs, ts, donate=True).compile()
    row = found.rows[row]
    assert (row.temporary, row.peak) == memory(after)
    assert row.traces == program.memory(B).total
    assert row.window == 10
    carry, opt_state = program.init(B), learner.init(W, B)[0]
    assert row.traces == sum(a.nbytes for a in jax.tree.leaves(carry))
    assert row.moments == sum(a.nbytes for a in jax.tree.leaves(opt_state))
    assert row.weights == FLOAT * (N * N + N * I)
    assert row.data == FLOAT * T * B * (I + N)


def test_bptt_is_that_of_a_user(found):
    optimiser = optax.adam(1e-3)

    def update(w, opt_state, xs, ts):
        called = dict(state=CALLED["state"], step=step, batch_size=B)
        value, grads = etpc.bptt(w, xs, ts, loss, **called)
        changes, opt_state = optimiser.update(grads, opt_state, w)
        return optax.apply_updates(w, changes), opt_state, value

    xs, ts = jnp.zeros((T, B, I)), jnp.zeros((T, B, N))
    jitted = jax.jit(update, donate_argnums=(0, 1))
    temporary, peak = memory(jitted.lower(W, optimiser.init(W), xs, ts).compile())
    row = found.rows[0]
    assert row.name == "BPTT"
    assert row.window is None
    assert row.temporary == pytest.approx(temporary, rel=0.02)
    assert row.peak == pytest.approx(peak, rel=0.02)
    assert row.peak == row.weights + row.moments + row.data + sum(row.parts.values()) - sum(
        list(row.parts.values())[:3]
    )


def test_bptt_grows_with_the_steps_and_a_rule_does_not():
    few, many = (estimate(rules="d_rtrl", every=10, steps=steps).rows for steps in (40, 400))
    assert many[0].temporary > 8 * few[0].temporary
    assert many[1].temporary <= 1.01 * few[1].temporary
    assert many[1].data == 10 * few[1].data


def test_a_model_may_be_given_by_its_shapes(found):
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), W)
    of_shapes = estimate(shapes, optimiser=optax.adam(1e-3), every=10)
    for a, b in zip(found.rows, of_shapes.rows, strict=True):
        assert dataclasses.replace(a, seconds=0.0) == dataclasses.replace(b, seconds=0.0)


def test_one_example_several_lengths_and_plain_descent_without_a_loss():
    alone = dict(batch_size=None, loss_fn=None, targets=None)
    found = estimate(rules="rtrl", **alone, steps=[10, np.int64(20)])
    assert [(row.name, row.steps) for row in found.rows] == [
        *(("BPTT", 10), ("RTRL()", 10), ("BPTT", 20), ("RTRL()", 20))
    ]
    assert {row.moments for row in found.rows} == {0}
    assert found.rows[0].data == 10 * I * FLOAT
    assert "one example" in str(found)


def test_truncated_bptt_and_integer_arrays():
    model = {"w": jnp.zeros(N), "from": jnp.arange(N)[::-1]}

    def step(m, x, h):
        h = jnp.tanh(m["w"] * h[m["from"]] + x)
        return h, h

    called = dict(inputs=jnp.zeros(N), step=step, optimiser=optax.adam(1e-3))
    found = estimate(model, ["d_rtrl", etpc.TBPTT(4), etpc.TBPTT(8, every=4)], **called)
    assert [row.fits for row in found.rows] == [True] * 4
    assert [row.window for row in found.rows] == [None, 20, None, 4]
    assert {row.weights for row in found.rows} == {FLOAT * N}


MESH = """
import jax
import jax.numpy as jnp
import optax
import etpc
from tests.estimating.test_estimate import estimate
jax.config.update("jax_enable_x64", True)

rules = [etpc.D_RTRL(), etpc.CreditRTRL(2, 2)]
for mesh in ({}, {"batch": 8}, {"a": 2, "b": 4}):
    found = estimate(rules=rules, mesh=mesh, optimiser=optax.adam(1e-3), every=20)
    print([(row.weights, row.traces, row.data, dict(row.collectives)) for row in found.rows], found.devices)
print(found)
"""


@pytest.mark.slow
def test_a_mesh_has_one_all_reduce_an_update_of_the_bytes_of_the_gradient():
    flags = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
    *lines, table = in_a_process("-c", MESH, XLA_FLAGS=flags).split("\n", 3)
    (one, alone), *spread = map(eval, (f"({line.replace('] ', '], ')})" for line in lines))
    assert alone == 1
    for rows, devices in spread:
        assert devices == 8
        for (weights, traces, data, collectives), whole in zip(rows, one, strict=True):
            assert (weights, 8 * data) == (whole[0], whole[2])
            assert traces <= whole[1] / 4 or traces == 0
            ((count, size),) = collectives.values()
            assert weights <= size <= weights + 16
            assert count <= 3
    assert "batch 8 over 8 devices, bytes on each" in table


# --- what does not fit ----------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Of the CPU, a memory of so many bytes."""

    def of(size):
        where = chips.place("cpu")
        chip = dataclasses.replace(where.chip, memory=size)
        monkeypatch.setattr(estimating, "place", lambda on: where._replace(chip=chip))

    return of


def test_what_does_not_fit_is_a_row_that_says_by_how_much_and_what_to_change(small, found):
    small(found.rows[0].peak - 1000)
    bptt, rule, _ = estimate(optimiser=optax.adam(1e-3), every=10).rows
    assert (bptt.fits, bptt.over, bptt.peak) == (False, 1000, found.rows[0].peak)
    assert "it does not fit" in bptt.limits
    assert "temporaries" in bptt.limits
    assert "take less" in bptt.limits
    assert rule.fits
    assert "does not" not in rule.limits


def test_what_its_arguments_alone_exceed_is_not_compiled(small, monkeypatch):
    small(70_000)
    monkeypatch.setattr(estimating, "compile_for", None)
    (bptt, rtrl) = (row for row in estimate(rules="rtrl").rows)
    for row in (bptt, rtrl):
        assert row.fits is False
        assert row.temporary is None
        assert row.over == row.peak - 70_000 > 0
    assert "pass fewer steps" in bptt.limits
    assert "ES_D_RTRL(rank=4)" in rtrl.limits
    assert "> " in str(estimate(rules="rtrl"))


REFUSALS = {
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (30.52G) exceeds available HBM (15.75G). HLO module: jit_f.\nSee https://...": 30.52,
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.10G of 15.75G hbm. Exceeded.": 18.10,
}


@pytest.mark.parametrize("said", REFUSALS)
def test_what_xla_refuses_has_the_bytes_that_it_says(said, monkeypatch):
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(estimating, "compile_for", refuse)
    row = estimate(rules=[]).rows[0]
    assert row.peak == round(REFUSALS[said] * 2**30)
    assert not row.fits
    assert row.refusal.startswith("Ran out of memory")
    assert row.refusal in row.limits
    assert "HLO module" not in row.refusal


def test_another_error_of_the_compiler_is_not_taken_for_one_of_memory(monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    monkeypatch.setattr(estimating, "compile_for", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        estimate()


def test_patterns_that_are_too_large_are_a_row_too(monkeypatch):
    def refuse(*_, **__):
        raise etpc.MemoryLimitError("The influence would have too many entries.\nMore.")

    monkeypatch.setattr(estimating, "compile", refuse)
    found = estimate(rules="rtrl")
    row = found.rows[1]
    assert (row.fits, row.peak, row.over) == (False, None, None)
    assert "too many entries" in row.limits
    assert " NO " in str(found)


@pytest.mark.parametrize("start", [8, 64])
def test_the_largest_batch_fits_and_the_next_does_not(small, monkeypatch, start):
    of = lambda batch: estimate(rules="d_rtrl", batch_size=batch).rows[1].peak
    small(between := (of(37) + of(38)) // 2)
    compile_for, calls = estimating.compile_for, []
    counted = lambda *args, **options: calls.append(args) or compile_for(*args, **options)
    monkeypatch.setattr(estimating, "compile_for", counted)
    row = estimate(rules="d_rtrl", batch_size=start, largest_batch=True).rows[1]
    assert row.largest == (37, 38)
    assert len(calls) <= 2 * (1 + estimating.COMPILATIONS)
    assert of(row.largest[0]) <= between < of(row.largest[1])


def test_no_batch_may_fit_and_a_search_ends():
    row = estimate(rules=[]).rows[0]
    never = lambda batch: dataclasses.replace(row, fits=False, over=10**12 * batch)
    assert estimating._largest(never(8), never, 8, 1) == (0, 1)
    tried = []
    always = lambda batch: tried.append(batch) or dataclasses.replace(row, over=-1)
    assert estimating._largest(always(16), always, 16, 4)[1] is None
    assert len(tried) == 1 + estimating.COMPILATIONS
    assert all(batch % 4 == 0 for batch in tried[1:])


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (dict(on="v5f:2x2"), etpc.InputError, r"names no chip that is known\..*v5e:4x4.*h100:8"),
        (dict(on="h10"), etpc.InputError, "Did you mean h100"),
        (dict(mesh={"batch": 4096}, batch_size=4096), etpc.InputError, "device_count=4096"),
        (dict(mesh={"batch": 0}), etpc.InputError, r"mesh\['batch'\] must be"),
        (dict(mesh={"batch": 1}, batch_size=None), etpc.InputError, "need a batch axis"),
        (dict(largest_batch=True, batch_size=None), etpc.InputError, "need a batch axis"),
        (dict(every=7), etpc.InputError, "steps=40 is no multiple of every=7"),
        (dict(steps=0), etpc.InputError, "steps must be"),
        (dict(optimiser=3), etpc.InputTypeError, "optimiser is 3"),
        (dict(rules="d_rtl"), etpc.AlgorithmError, "d_rtrl"),
    ],
)
def test_mistakes_are_named(options, error, says):
    with pytest.raises(error, match=says):
        estimate(**options)


@pytest.mark.parametrize(("on", "extra"), [("v5e:2x2", "tpu"), ("h100", "cuda")])
def test_a_compiler_that_is_not_installed_has_an_extra(on, extra, monkeypatch):
    monkeypatch.setattr(chips, "COMPILERS", {"tpu": {"no-libtpu"}, "cuda": {"no-plugin"}})
    with pytest.raises(etpc.UnsupportedError, match=rf"etpc\[{extra}\]"):
        chips.place.__wrapped__(on)


LOCK = (
    'ABORTED: Internal error when accessing libtpu multi-process lockfile. Run "$ sudo rm /tmp/l".'
)
LAYOUT = 'INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible by the given "2x2x1"'


@pytest.mark.parametrize(
    ("said", "error", "says"),
    [
        (LOCK, etpc.UnsupportedError, "Leave that file.*unset ALLOW_MULTIPLE_LIBTPU_LOAD"),
        (LAYOUT, etpc.InputError, "no topology of TPU v5 lite.*Known are v5e:1x1, v5e:2x2"),
    ],
)
def test_what_the_compiler_of_a_tpu_refuses(said, error, says, monkeypatch):
    def refuse(**_):
        assert os.environ["TPU_SKIP_MDS_QUERY"]
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(chips, "COMPILERS", {"tpu": {"jax"}})
    monkeypatch.setattr(chips, "get_topology_desc", refuse)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    before = dict(os.environ)
    with pytest.raises(error, match=says):
        chips.place.__wrapped__("v5e:3x3")
    assert dict(os.environ) == before


# --- what is said ---------------------------------------------------------------------------------


def test_every_chip_has_its_memory_and_where_it_is_stated():
    assert [*chips.CHIPS] == ["v5e", "v6e", "v5p", "tpu7x", "h100", "a100"]
    for chip in chips.CHIPS.values():
        assert chip.source.startswith("https://")
        assert chip.memory > 15e9
        assert chip.bandwidth > 500
        assert chip.stated
        assert bool(chip.description) == bool(chip.cache) == (chip.platform == "cuda")
        if chip.description:
            size = int(chip.stated.split()[0])
            assert f"device_memory_size: {size} " in chip.description
            assert chip.memory == int(0.75 * size)  # JAX's XLA_PYTHON_CLIENT_MEM_FRACTION
            assert f"memory_bandwidth: {round(1e9 * chip.bandwidth)} " in chip.description


def test_the_text_has_what_the_record_has(found):
    text = str(found)
    assert (
        f"cpu: {found.chip}, {size_text(found.memory)} for a program; 40 steps, batch 8\n" in text
    )
    assert (
        f"(jax {found.versions['jax']}, jaxlib {found.versions['jaxlib']}). Nothing was run."
        in text
    )
    for row in found.rows:
        assert row.name in text
        assert size_text(row.peak) in text
        assert "% of its bytes are" in row.limits
    for absent in ("cycles", "kernels", "collectives", "largest"):
        assert absent not in text


def test_a_record_is_what_its_schema_says(found):
    schema = etpc.files.schema("etpc-estimate/1")
    jsonschema.Draft202012Validator.check_schema(schema)
    for of in (found, estimate(rules="d_rtrl", batch_size=2, largest_batch=True)):
        record = json.loads(json.dumps(of.as_dict()))
        jsonschema.validate(record, schema)
        assert {*schema["$defs"]["row"]["properties"]} == {*record["rows"][0]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record | {"more": 1}, schema)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (102_400, "100 KiB"),
        (16_911_433_728, "15.8 GiB"),
        (2**50, "1024 TiB"),
        (None, ""),
    ],
)
def test_sizes(size, text):
    assert size_text(size) == text


TPU = chips.CHIPS["v5e"]


def test_what_limits_a_step_on_a_tpu_and_a_gpu(found):
    """The traces, once larger than what stays on the chip, pass through memory in each window."""
    row = dataclasses.replace(found.rows[1], window=10, traces=819 * 10**6, kernels=None)
    cost = estimating.Cost(cycles=100)
    cost.by_line.update({"a/mul": 60, "b/mul": 30, "c/dot_general": 10})
    said = estimating._limits(row, TPU, cost)
    assert "90% of its cycles are mul" in said
    assert "200.0 us a step or more at 819 GB/s" in said
    cost.fast = row.traces
    assert "us a step" not in estimating._limits(row, TPU, cost)
    gpu = dataclasses.replace(row, kernels=50.0)
    said = estimating._limits(gpu, chips.CHIPS["h100"], estimating.Cost())
    assert "100 us a step if each kernel takes 2" in said
    said = estimating._limits(
        dataclasses.replace(gpu, kernels=1.0), chips.CHIPS["h100"], estimating.Cost()
    )
    assert "at 3,352 GB/s" in said
    unknown = dataclasses.replace(row, unknown_loops=2)
    assert "2 loops of unknown length" in estimating._limits(unknown, TPU, estimating.Cost())


# --- the command line -----------------------------------------------------------------------------

MODELS = """
import jax.numpy as jnp
from etpc import nn
from etpc.cli import Task

def make(key):
    return nn.MinGRU(3, 8, key=key), jnp.zeros(3)

def task(key):
    xs = jnp.zeros((12, 4, 3))
    return Task(nn.MinGRU(3, 8, key=key), xs=xs, targets=jnp.zeros((12, 4)), loss_fn=lambda y, t: (y.sum() - t) ** 2)
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "estimated.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)


def test_the_command_prints_the_table_or_json(models, capsys):
    options = "--on cpu --steps 20 --every 5 --batch 2 --optimiser adam:1e-3 --algo d_rtrl"
    assert main(["estimate", "estimated.py:make", *options.split()]) == 0
    assert "20 steps, batch 2" in capsys.readouterr().out
    assert main(["estimate", "estimated.py:task", "--on", "cpu", "--json", "--largest-batch"]) == 0
    record = json.loads(capsys.readouterr().out)
    jsonschema.validate(record, etpc.files.schema("etpc-estimate/1"))
    assert record["model"] == "estimated.py:task"
    names = [row["name"] for row in record["rows"]]
    assert names == ["BPTT", "D_RTRL()", "ES_D_RTRL(decay=0.99)"]
    assert (record["batch_size"], record["rows"][0]["steps"]) == (4, 12)
    assert record["rows"][1]["largest"][0] > 1000


def test_the_command_says_by_its_status_that_no_rule_fits(models, small, capsys):
    small(1000)
    assert main(["estimate", "estimated.py:make", "--on", "cpu"]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_mistakes_of_the_command(models, capsys):
    assert main(["estimate", "estimated.py:make", "--on", "v5"]) == 2
    assert "names no chip that is known" in capsys.readouterr().err
    assert main(["estimate", "estimated.py:make", "--on", "cpu", "--devices", "999"]) == 2
    assert "needs 999 devices" in capsys.readouterr().err
    for wrong in (["--on", "cpu", "--devices", "0"], []):
        with pytest.raises(SystemExit):
            main(["estimate", "estimated.py:make", *wrong])
    assert "required: --on" in capsys.readouterr().err
