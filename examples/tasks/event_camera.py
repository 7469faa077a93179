"""Digits as an event camera sees them: the image moves, and pixels report changes of brightness.

The sensor stands still, and an 8 x 8 digit of scikit-learn makes three small saccades along a triangle.
A pixel gives an ON or an OFF event when its log brightness has risen or fallen by a threshold. No step
shows the whole digit. A recurrent layer of adaptive LIF neurons (ALIF) sees the events, and the loss
counts during the last saccade only.

Source: the saccades of N-MNIST (Orchard et al., "Converting static image datasets to spiking neuromorphic
datasets using saccades", Frontiers in Neuroscience 9, 2015), and the pixel of Lichtsteiner et al., "A
128 x 128 120 dB 15 us latency asynchronous temporal contrast vision sensor", IEEE Journal of Solid-State
Circuits 43, 2008, without its noise. 8 x 8 pixels in place of 34 x 34, in 30 steps.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from scipy.ndimage import shift

from etpc import nn

from .arms import Task, main
from .classify import Examples, classification
from .sequential_digits import CLASSES, digits

STEPS, COUNTED = 30, 10  # steps in all, and those at the end at which the loss counts
CORNERS = np.array([[-0.7, -1.0], [1.3, 0.0], [-0.7, 1.0], [-0.7, -1.0]])  # pixels: down, right
DARK = 0.1  # of the brightest pixel: what the logarithm sees of a black one
THRESHOLD = 0.3  # of log brightness
NEURONS = 64


class State(NamedTuple):
    alif: Any
    r: Float[Array, " 10"]


class Network(eqx.Module):
    """ALIF neurons that see the events and each other's last spikes, and a leaky readout."""

    hidden: eqx.nn.Linear
    alif: nn.ALIF
    readout: nn.LeakyRateReadout

    def __init__(self, key: PRNGKeyArray):
        k1, k2 = jax.random.split(key)
        n_in = 2 * 8 * 8
        hidden = eqx.nn.Linear(n_in + NEURONS, NEURONS, key=k1)
        self.hidden = nn.init(hidden, "lecun_normal", k1)
        self.alif = nn.ALIF(NEURONS, tau=20.0, tau_a=100.0, beta=0.2, R=20.0)
        readout = nn.LeakyRateReadout(NEURONS, CLASSES, tau=10.0, key=k2)
        self.readout = nn.init(readout, "kaiming_normal", k2, gain=0.1)

    def init_state(self) -> State:
        return State(self.alif.init_state(), self.readout.init_state())

    def __call__(self, x: Float[Array, " 128"], state: State) -> tuple[Array, State]:
        current = self.hidden(jnp.concatenate([x, self.alif.spike(state.alif)]))
        spikes, alif = self.alif(current, state.alif)
        y, r = self.readout(spikes, state.r)
        return y, State(alif, r)


def saccades(steps: int = STEPS) -> Float[np.ndarray, "T+1 2"]:
    """Where the image stands before the first step and after each: three sides of a triangle."""
    time = np.linspace(0, len(CORNERS) - 1, steps + 1)
    return np.stack([np.interp(time, range(len(CORNERS)), c) for c in CORNERS.T], axis=1)


def film(
    images: Float[np.ndarray, "N 8 8"], places: Float[np.ndarray, "F 2"]
) -> Float[np.ndarray, "F N 8 8"]:
    """The images, moved to each place in turn; between pixels brightness is interpolated.

    What is around an image is black.
    """
    return np.stack([shift(images, (0, *place), order=1, mode="grid-constant") for place in places])


def events(
    frames: Float[np.ndarray, "F *P"], threshold: float = THRESHOLD
) -> Bool[np.ndarray, "F-1 2 *P"]:
    """ON and OFF events of each pixel between frames.

    A pixel remembers a level of log brightness, at first that of the first frame. Where a frame is
    a threshold or more above (below) it, there is one ON (OFF) event and the level moves by one
    threshold, so that a large change takes several steps to report.
    """
    brightness = np.log(DARK + frames)
    level, frame_events = brightness[0], []
    for frame in brightness[1:]:
        on, off = frame - level >= threshold, level - frame >= threshold
        level = level + threshold * on - threshold * off
        frame_events.append(np.stack([on, off]))
    return np.stack(frame_events)


def recordings(images: Float[np.ndarray, "N 8 8"], labels: np.ndarray) -> Examples:
    """What the camera gives of each image: 64 ON and 64 OFF lines, 0 or 1 at each step."""
    seen = events(film(images, saccades()))  # T, 2, N, 8, 8
    xs = seen.swapaxes(1, 2).reshape(STEPS, len(images), -1)
    late = np.arange(STEPS)[:, None] >= STEPS - COUNTED
    return Examples(xs, labels, np.broadcast_to(late, xs.shape[:2]))


def make_task() -> Task:
    train, test = digits()
    return classification(
        "Digits, seen by an event camera",
        Network,
        recordings(*train),
        recordings(*test),
        updates=400,
        rate=5e-3,
        uncut=False,
    )


if __name__ == "__main__":
    main(make_task())
