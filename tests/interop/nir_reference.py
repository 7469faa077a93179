"""The equations that NIR publishes, in NumPy, step by step; it shares nothing with `etpc`.

<https://neuroir.org/docs/primitives>: `tau v' = (v_leak - v) + R I` and the like. A neuron spikes where
`v > v_threshold`, and is then put to `v_reset`. Neurons begin at rest: `v_leak`, or `v_reset` of an IF.
"""

import nir
import numpy as np
from scipy.linalg import expm


class Reference:
    """A graph of nodes without nested ones, computed in the order that is given; `last` edges read the last step."""

    def __init__(self, graph, dt, method, order, last=()):
        self.graph, self.dt, self.method, self.order, self.last = (
            graph,
            dt,
            method,
            order,
            set(last),
        )
        self.state = {}
        self.values = {}
        for name, node in graph.nodes.items():
            if isinstance(node, nir.IF):
                self.state[name] = np.array(node.v_reset, float)
            elif isinstance(node, nir.I):
                self.state[name] = np.zeros_like(node.r)
            elif isinstance(node, nir.LI | nir.LIF):
                self.state[name] = np.array(node.v_leak, float)
            elif isinstance(node, nir.CubaLI | nir.CubaLIF):
                self.state[name] = (np.array(node.v_leak, float), np.zeros_like(node.v_leak))
            elif isinstance(node, nir.Delay):
                self.state[name] = []

    def step(self, x):
        before, self.values = self.values, {}
        for name in self.order:
            node = self.graph.nodes[name]
            coming = [
                before.get(a, 0.0) if (a, b) in self.last else self.values[a]
                for a, b in self.graph.edges
                if b == name
            ]
            total = x if isinstance(node, nir.Input) else sum(coming)
            self.values[name] = self.node(name, node, total)
        return self.values[self.order[-1]]

    def node(self, name, node, x):
        match node:
            case nir.Input() | nir.Output():
                return x
            case nir.Affine():
                return node.weight @ x + node.bias
            case nir.Linear():
                return node.weight @ x
            case nir.Scale():
                return node.scale * x
            case nir.Flatten():
                first, last = node.start_dim % x.ndim, node.end_dim % x.ndim
                return x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :])
            case nir.Threshold():
                return (x > node.threshold).astype(float)
            case nir.Conv1d() | nir.Conv2d():
                return convolution(node, x)
            case nir.SumPool2d() | nir.AvgPool2d():
                return pool(node, x)
            case nir.Delay():
                return self.delay(name, node, x)
            case nir.I() | nir.IF():
                v = self.state[name] + self.dt * node.r * x
            case nir.LI() | nir.LIF():
                v = self.linear(
                    -1 / node.tau, (node.v_leak + node.r * x) / node.tau, self.state[name]
                )
            case nir.CubaLI() | nir.CubaLIF():
                v, i = self.current_based(node, x, *self.state[name])
        spikes = None
        if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF):
            spikes = v > node.v_threshold
            kept = np.where(spikes, node.v_reset, v)
        else:
            kept = v
        self.state[name] = (kept, i) if isinstance(node, nir.CubaLI | nir.CubaLIF) else kept
        return v if spikes is None else spikes.astype(float)

    def linear(self, a, b, v):
        """The solution of `v' = a v + b` after a step, or one Euler step."""
        if self.method == "euler":
            return v + self.dt * (a * v + b)
        return np.exp(a * self.dt) * v + np.expm1(a * self.dt) / a * b

    def current_based(self, node, x, v, i):
        drive = node.w_in * x
        if self.method == "euler":
            new_i = i + self.dt / node.tau_syn * (drive - i)
            return v + self.dt / node.tau_mem * (node.v_leak - v + node.r * i), new_i
        new_v, new_i = np.empty_like(v), np.empty_like(i)
        for k in np.ndindex(v.shape):
            # d/dt (v, i, 1) = M (v, i, 1), solved by the matrix exponential.
            m = np.zeros((3, 3))
            m[0] = [-1, node.r[k], node.v_leak[k]]
            m[0] /= node.tau_mem[k]
            m[1] = [0, -1, drive[k]]
            m[1] /= node.tau_syn[k]
            new_v[k], new_i[k], _ = expm(self.dt * m) @ [v[k], i[k], 1]
        return new_v, new_i

    def delay(self, name, node, x):
        self.state[name].append(x)
        steps = np.round(node.delay / self.dt).astype(int)
        past = self.state[name]
        y = np.zeros_like(x)
        for k in np.ndindex(x.shape):
            if steps[k] < len(past):
                y[k] = past[-1 - steps[k]][k]
        return y


def convolution(node, x):
    n = node.weight.ndim - 2
    pairs = [np.broadcast_to(np.asarray(s), (n,)) for s in (node.stride, node.dilation)]
    (stride, dilation), kernel = pairs, node.weight.shape[2:]
    if node.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = [(t // 2, t - t // 2) for t in total]
    else:
        flat = 0 if node.padding == "valid" else node.padding
        padding = [(p, p) for p in np.broadcast_to(np.asarray(flat), (n,))]
    x = np.pad(x, [(0, 0), *padding])
    shape = [
        (size - d * (k - 1) - 1) // s + 1
        for size, d, k, s in zip(x.shape[1:], dilation, kernel, stride, strict=True)
    ]
    outs, per_group = node.weight.shape[0], node.weight.shape[1]
    y = np.zeros((outs, *shape))
    for o in range(outs):
        group = o // (outs // node.groups)
        for place in np.ndindex(*shape):
            for c in range(per_group):
                for k in np.ndindex(*kernel):
                    at = tuple(
                        p * s + a * d for p, s, a, d in zip(place, stride, k, dilation, strict=True)
                    )
                    y[(o, *place)] += node.weight[(o, c, *k)] * x[(group * per_group + c, *at)]
        y[o] += node.bias[o]
    return y


def pool(node, x):
    kernel, stride, padding = (
        np.broadcast_to(np.asarray(v), (2,)) for v in (node.kernel_size, node.stride, node.padding)
    )
    x = np.pad(x, [(0, 0), *((p, p) for p in padding)])
    rows, columns = ((x.shape[1 + d] - kernel[d]) // stride[d] + 1 for d in (0, 1))
    y = np.zeros((x.shape[0], rows, columns))
    for r, c in np.ndindex(rows, columns):
        a, b = r * stride[0], c * stride[1]
        y[:, r, c] = x[:, a : a + kernel[0], b : b + kernel[1]].sum((1, 2))
    return y / kernel.prod() if isinstance(node, nir.AvgPool2d) else y
