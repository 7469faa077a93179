"""What is read from optimised HLO: trips of loops, branches, bytes and collectives."""

import jax
import jax.numpy as jnp
import pytest

from etpc.estimating import compiled

TEXT = """\
HloModule of_a_tpu

%fused (p: f32[8,128]) -> f32[8,128] {
  ROOT %n = f32[8,128]{1,0} negate(%p)
}

%small (p: f32[8,128]) -> f32[8,128] {
  ROOT %f = f32[8,128]{1,0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
}

%large (p: f32[8,128]) -> f32[8,128] {
  ROOT %g = f32[8,128]{1,0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
}

%inner (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %h = f32[8,128]{1,0:T(8,128)S(1)} fusion(%x), metadata={op_name="f/mul"}, backend_config={"estimated_cycles":"7"}
  %c = f32[8,128]{1,0:T(8,128)} copy(%h), backend_config={"estimated_cycles":"2"}
  ROOT %t = (s32[], f32[8,128]) tuple(%i, %c)
}

%less (p: (s32[], f32[8,128])) -> pred[] {
  %most = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %most), direction=LT
}

%unknown (p: (s32[], f32[8,128])) -> pred[] {
  ROOT %lt.1 = pred[] compare(%i, %j), direction=LT
}

%outer (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %w = (s32[], f32[8,128]{1,0:T(8,128)S(1)}) while(%p), condition=%less, body=%inner
  ROOT %t.1 = (s32[], f32[8,128]) tuple(%i, %y)
}

ENTRY %main (a: f32[8,128]) -> f32[8,128] {
  %v = (s32[], f32[8,128]{1,0}) while(%a), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %u = (s32[], f32[8,128]{1,0}) while(%a), condition=%unknown, body=%inner
  %r = bf16[16]{0} all-reduce(%b), replica_groups={}
  %s = ((f32[8]{0}), f32[8]{0}) all-reduce-start(%d), replica_groups={}
  %e = f32[8]{0} all-reduce-done(%s)
  ROOT %z = f32[8,128]{1,0} conditional(%p, %a, %a), branch_computations={%small, %large}
}
"""


# A product whose factors come from other chips one by one is a loop with an unsigned counter.
@pytest.mark.parametrize("most", ["s32[]", "u32[]{:T(128)}"])
def test_trips_multiply_and_the_last_branch_counts(most):
    assert "s32[] constant(5)" in TEXT
    found = compiled.read(TEXT.replace("s32[] constant(5)", f"{most} constant(5)"))
    assert found.cycles == 3 * 5 * (7 + 2) + (7 + 2) + 100
    assert found.kernels == (3 * 5 + 1) * 2 + 1
    assert found.unknown == ["u"]
    assert found.copies == {8 * 128 * 4: 16}
    assert found.written[8 * 128 * 4] == 33
    assert found.collectives == {"all-reduce": (2, 32 + 32)}
    assert found.fast == 4096
    assert found.by_line["f/mul"] == 16 * 7


@pytest.mark.parametrize("steps", [100, 1000])
def test_a_loop_counts_as_often_as_it_runs(steps):
    def loop(h, xs, w):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), h, xs)[0]

    h, xs, w = jnp.ones((4, 8)), jnp.ones((steps, 4, 8)), jnp.ones((8, 8))
    of_one = compiled.cost(jax.jit(loop).lower(h, xs[:1], w).compile())
    of_all = compiled.cost(jax.jit(loop).lower(h, xs, w).compile())
    assert not of_all.unknown
    assert of_all.kernels >= steps > of_one.kernels
    assert of_all.arguments - of_one.arguments == (steps - 1) * 4 * 8 * xs.dtype.itemsize
