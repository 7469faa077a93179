"""State-space layers against the dense recurrences that they stand for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import etpc
from etpc import nn
from etpc.nn._init import SCHEMES
from tests import helpers
from tests.nn.online import KEY, normal, outputs, shuffled

I, O, N, T = 3, 2, 4, 11
SIZES = {"in_features": I, "out_features": O, "key": KEY}
BUILD = {
    nn.LRU: lambda **more: nn.LRU(**(SIZES | {"state_size": N} | more)),
    nn.RTU: lambda **more: nn.RTU(**({"in_features": I, "state_size": N, "key": KEY} | more)),
    nn.S5: lambda **more: nn.S5(**(SIZES | {"state_size": 2 * N, "step_max": 1.0} | more)),
}


def dense(A, B, C, D, xs):
    """The outputs of a linear recurrence with a real matrix."""
    h, ys = np.zeros(len(A)), []
    for x in np.asarray(xs):
        h = A @ h + B @ x
        ys.append(C @ h + D @ x)
    return np.array(ys)


def real(a):
    """A complex diagonal as a real matrix that acts on (real parts, imaginary parts)."""
    return np.block([[np.diag(a.real), -np.diag(a.imag)], [np.diag(a.imag), np.diag(a.real)]])


@pytest.mark.slow
def test_lru_equation() -> None:
    layer = shuffled(nn.LRU(I, O, N, key=KEY))
    p = jax.tree.map(np.asarray, layer)
    radius, angle = np.exp(-np.exp(p.nu_log)), np.exp(p.theta_log)
    A = real(radius * np.cos(angle) + 1j * radius * np.sin(angle))
    gamma = np.tile(np.exp(p.gamma_log), 2)[:, None]
    B, C = gamma * np.concatenate([p.B_re, p.B_im]), np.concatenate([p.C_re, -p.C_im], 1)
    xs = normal(T, I)
    np.testing.assert_allclose(outputs(layer, xs), dense(A, B, C, p.D, xs), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LRU, nn.RTU])
def test_starts_on_the_ring(kind) -> None:
    ring = dict(r_min=0.4, r_max=0.9, max_phase=0.5)
    layer = BUILD[kind](in_features=1, state_size=20_000, **ring)
    radius, angle = np.exp(-np.exp(layer.nu_log)), np.exp(layer.theta_log)
    # Uniform on the ring: the squares of the radii are uniform.
    places = np.arange(1, 10) / 10
    np.testing.assert_allclose(np.quantile(radius**2, places), 0.16 + 0.65 * places, atol=0.01)
    np.testing.assert_allclose(np.quantile(angle, places), 0.5 * places, atol=0.01)
    if kind is nn.LRU:
        np.testing.assert_allclose(np.exp(layer.gamma_log), np.sqrt(1 - radius**2), rtol=1e-12)
    assert radius.min() >= 0.4
    assert radius.max() < 0.9


def test_lru_has_states_of_unit_variance() -> None:
    layer = nn.LRU(1, 1, 64, r_min=0.5, r_max=0.9, key=KEY)
    # B x of variance one, half in each part
    layer = eqx.tree_at(lambda m: (m.B_re, m.B_im), layer, 2 * (jnp.full((64, 1), np.sqrt(0.5)),))
    step = lambda h, x: (layer(x, h)[1],) * 2
    _, hs = jax.lax.scan(step, layer.init_state(), normal(20_000, 1))
    np.testing.assert_allclose(np.mean(np.abs(hs[100:]) ** 2, 0), 1, atol=0.15)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_lru_is_finite_at_both_ends_of_the_ring(dtype) -> None:
    layer = nn.LRU(1, 1, 100_000, dtype=dtype, key=KEY)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(layer))


@pytest.mark.parametrize("linear", [True, False])
def test_rtu_equation(linear) -> None:
    """The two real states of the paper's equation 4, one unit after the other."""
    layer = shuffled(nn.RTU(I, N, linear, activation=jnp.tanh, key=KEY))
    p, xs = jax.tree.map(np.asarray, layer), normal(T, I)
    expected = np.zeros((T, 2 * N))
    for n in range(N):
        r, theta = np.exp(-np.exp(p.nu_log[n])), np.exp(p.theta_log[n])
        g, phi, norm = r * np.cos(theta), r * np.sin(theta), np.sqrt(1 - r**2)
        a = b = 0.0
        for t, x in enumerate(np.asarray(xs)):
            a, b = (g * a - phi * b + norm * p.W_re[n] @ x, g * b + phi * a + norm * p.W_im[n] @ x)
            expected[t, [n, N + n]] = np.tanh(a), np.tanh(b)
            if not linear:
                a, b = expected[t, [n, N + n]]
    np.testing.assert_allclose(outputs(layer, xs), expected, rtol=1e-12)


def test_rtu_starts_with_phases_on_a_logarithmic_scale() -> None:
    layer = nn.RTU(1, 20_000, max_phase=1.0, min_phase=0.01, key=KEY)
    assert layer.theta_log.min() >= np.log(0.01)
    assert layer.theta_log.max() <= 0
    places = np.arange(1, 10) / 10
    wanted = np.log(0.01) * (1 - places)
    np.testing.assert_allclose(np.quantile(layer.theta_log, places), wanted, atol=0.05)


def rtrl_of_rtu(p, linear, xs, signals):
    """The gradient of `sum_t signals_t . y_t` for one unit's parameters, by forward accumulation.

    The influence of (nu_log, theta_log, W_re, W_im) on the two real states is [2, 2 + 2 I], written out
    from the paper's equation 4 with f = tanh.
    """
    r, theta = np.exp(-np.exp(p["nu_log"])), np.exp(p["theta_log"])
    g, phi, norm = r * np.cos(theta), r * np.sin(theta), np.sqrt(1 - r**2)
    by_nu = -np.exp(p["nu_log"]) * r  # of r
    influence, state, grad = np.zeros((2, 2 + 2 * I)), np.zeros(2), 0.0
    turn = np.array([[g, -phi], [phi, g]])
    for x, signal in zip(xs, signals, strict=True):
        drive = np.array([p["W_re"] @ x, p["W_im"] @ x])
        immediate = np.zeros_like(influence)
        immediate[:, 0] = by_nu * (turn @ state / r - r / norm * drive)
        immediate[:, 1] = theta * np.array([[-phi, -g], [g, -phi]]) @ state
        immediate[0, 2 : 2 + I] = immediate[1, 2 + I :] = norm * x
        influence = turn @ influence + immediate
        state = turn @ state + norm * drive
        slope = 1 - np.tanh(state) ** 2
        grad = grad + signal @ (slope[:, None] * influence)
        if not linear:
            state, influence = np.tanh(state), slope[:, None] * influence
    return grad


@pytest.mark.slow
@pytest.mark.parametrize("linear", [True, False])
def test_rtu_has_the_gradient_of_rtrl_by_hand(linear) -> None:
    layer = shuffled(nn.RTU(I, N, linear, activation=jnp.tanh, key=KEY))
    program = etpc.compile(layer, etpc.D_RTRL(window=1), inputs=jnp.zeros(I))
    assert program.exact
    xs, signals = normal(T, I), normal(T, 2 * N, seed=3)
    loss = lambda y, signal: y @ signal
    # a step at a time: all that is older comes from the traces
    total = helpers.online(program, layer, xs, signals, program.init(), loss, calls=T)
    for n in range(N):
        p = {
            name: np.asarray(getattr(layer, name)[n])
            for name in ("nu_log", "theta_log", "W_re", "W_im")
        }
        wanted = rtrl_of_rtu(p, linear, np.asarray(xs), np.asarray(signals)[:, [n, N + n]])
        got = [getattr(total, name)[n].ravel() for name in p]
        np.testing.assert_allclose(np.concatenate(got), wanted, rtol=1e-9)


@pytest.mark.parametrize(("linear", "reals"), [(True, 2), (False, 4)])
def test_the_trace_of_an_rtu(linear, reals) -> None:
    """One complex number for each weight where the recurrence is holomorphic, and two where it is not."""
    layer = nn.RTU(I, N, linear, key=KEY)
    program = etpc.compile(layer, inputs=jnp.zeros(I))
    sizes = dict(program.memory().traces)
    assert sizes[".W_re, .W_im"] == 8 * reals * N * I


def hippo_normal(P):
    """Element by element, as in the paper."""
    A = np.zeros((P, P))
    for n in range(P):
        for k in range(P):
            if n == k:
                A[n, k] = -0.5
            else:
                A[n, k] = np.sqrt((n + 0.5) * (k + 0.5)) * (-1 if n > k else 1)
    return A


def hold(A, B, steps):
    """Zero-order hold by the exponential of the system and its input."""
    n, m = B.shape
    system = np.zeros((n + m, n + m))
    system[:n, :n], system[:n, n:] = steps[:, None] * A, steps[:, None] * B
    moved = scipy.linalg.expm(system)
    return moved[:n, :n], moved[:n, n:]


def test_s5_equation() -> None:
    layer = shuffled(BUILD[nn.S5]())
    p = jax.tree.map(np.asarray, layer)
    A, B = hold(
        real(-np.exp(p.log_decay) + 1j * p.frequency),
        np.concatenate([p.B_re, p.B_im]),
        np.tile(np.exp(p.log_step), 2),
    )
    xs, C = normal(T, I), 2 * np.concatenate([p.C_re, -p.C_im], 1)
    np.testing.assert_allclose(outputs(layer, xs), dense(A, B, C, p.D, xs), rtol=1e-11)


def test_s5_starts_as_hippo_n(monkeypatch) -> None:
    """One step for all states: then the layer is the real system of HiPPO-N, turned."""
    B, C = normal(8, I), normal(O, 8)
    with monkeypatch.context() as patch:
        drawn = iter([B, C, normal(O, I)])
        patch.setitem(SCHEMES, "lecun_normal", lambda *_: next(drawn))
        layer = BUILD[nn.S5](step_min=0.1, step_max=0.1)
    xs, A = normal(T, I), hold(hippo_normal(8), np.asarray(B), np.full(8, 0.1))
    expected = dense(*A, np.asarray(C), np.asarray(layer.D), xs)
    np.testing.assert_allclose(outputs(layer, xs), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_s5_steps() -> None:
    layer = nn.S5(1, 1, 200, step_min=0.01, step_max=1.0, key=KEY)
    assert layer.init_state().shape == layer.log_step.shape == (100,)
    steps = np.exp(layer.log_step)
    assert 0.01 <= steps.min() < 0.02
    assert 0.5 < steps.max() <= 1.0
    assert 0.05 < np.median(steps) < 0.2
