"""What jaxlib 0.10.2 gets, whose XLA computes wrong Jacobians of norms: `make test-affected-jaxlib`.

Run as a script, in an environment that holds that release. Without an argument a norm must be refused; with
`off` XLA runs without its fusion, and the gradient must agree with BPTT at a size where it was wrong.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxlib

import etpc

N, B, T = 64, 8, 40


def step(model, x, h):
    h = model["norm"](jax.nn.sigmoid(model["leak"]) * h + jnp.tanh(model["w"] @ x))
    return h, h


def loss(y, target):
    return jnp.sum((y - target) ** 2)


def main() -> None:
    assert jaxlib.__version__ == "0.10.2", jaxlib.__version__
    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (N, 8))
    model = {"norm": eqx.nn.LayerNorm(N), "leak": jnp.ones(N), "w": w}
    xs = jax.random.normal(keys[1], (T, B, 8))
    targets = jax.random.normal(keys[2], (T, B, N))
    options = dict(state=jnp.zeros(N), step=step, batch_size=B)
    if sys.argv[1:] == ["off"]:
        report = etpc.verify(model, xs, targets, loss, **options)
        print(report)
        assert report.ok
        return
    try:
        etpc.verify(model, xs, targets, loss, **options)
    except etpc.UnsupportedError as error:
        assert "pip install 'jaxlib!=0.10.2'" in str(error), error  # noqa: PT017
        print(error)
    else:
        sys.exit("jaxlib 0.10.2 computes a wrong gradient of this model, and was not refused")


if __name__ == "__main__":
    main()
