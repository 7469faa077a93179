"""How long an update takes on a cluster, and what failures and stragglers add: a model, and simulations of its parts.

Times are in seconds, sizes in bytes. The model is closed formulas; `simulated_failures` and `simulated_stragglers` play
the same through, and a test holds one to the other.

**Source:** a ring's all-reduce: Patarasu and Yuan, J. Parallel Distrib. Comput. 69, 2009; when to save: Young, Commun.
ACM 17(9), 1974, and Daly, Future Gener. Comput. Syst. 22(3), 2006, equations 20 and 37; normal order statistics: Blom,
Statistical Estimates and Transformed Beta-Variables, 1958.
"""

import dataclasses
import math
from statistics import NormalDist

import numpy as np

HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What the model takes of the machines.

    - `clock`: of a chip, in Hz. `link`: one way, of one of the links of a chip. `axes`: how many rings it is in.
    - `hop`: seconds from one chip to the next, and `start`, of an operation.
    - `pod`: the largest number of chips with such links; pods exchange over the network.
    - `network`: of a host, bytes a second, for pods and for data; `away`: seconds from one host to another.
    - `per_host`: chips of a host. `disk`: what a host writes of a checkpoint, in bytes a second. `copy`: what a host
      copies from its chips for one that is written in the background.
    - `between_failures`: of one chip with its part of all else, in seconds. `restart`: after a failure.
    - `pause`, `pauses`: how long a host stands still now and then, and the probability that it does in a second.
    """

    clock: float
    memory: float
    link: float
    axes: int
    hop: float
    start: float
    pod: int
    network: float
    away: float
    per_host: int
    disk: float
    copy: float
    between_failures: float
    restart: float
    pause: float
    pauses: float

    def hosts(self, chips: int) -> int:
        return -(-chips // self.per_host)


V5E = Cluster(
    clock=197e12 / (4 * 128 * 128 * 2),  # 197 TFLOP/s of four units for products of 128 x 128
    memory=16_911_433_728,
    link=400e9 / 4 / 2,  # 400 GB/s of four ports, in both directions
    axes=2,
    hop=1e-6,
    start=2e-6,
    pod=256,
    network=25e9,  # two of 100 Gbit/s
    away=50e-6,
    per_host=8,
    disk=1e9,
    copy=10e9,
    between_failures=54 * 24 * HOUR * 16_384 / 419,
    restart=300.0,
    pause=0.1,
    pauses=1e-3,
)
"""Of https://docs.cloud.google.com/tpu/docs/v5e. What that does not say (`hop`, `start`, `away`, `disk`, `copy`,
`restart`, `pause`, `pauses`) is assumed, and failures are the 419 unexpected ones of 16,384 H100 in 54 days (Llama 3,
arXiv 2407.21783)."""


# --- exchanges ---


def all_gather(cluster: Cluster, chips: int, size: float) -> float:
    """Seconds until each chip has an array of so many bytes, of which it had its part: by rings along each axis of a
    pod's torus, in all directions at once, and before that by a ring of pods, each host for its chips."""
    inside, pods = min(chips, cluster.pod), -(-chips // cluster.pod)
    seconds = 0.0
    if inside > 1:
        side = math.sqrt(inside)
        closed = side >= 16  # ends of an axis are connected in a whole pod alone
        links = cluster.axes * (2 if closed else 1)
        hops = cluster.axes * (side / 2 if closed else side - 1)
        seconds = (inside - 1) / inside * size / (links * cluster.link)
        seconds += cluster.start + hops * cluster.hop
    if pods > 1:
        each_host = size / inside * cluster.per_host
        seconds += (pods - 1) * (each_host / pods / cluster.network + cluster.away)
    return seconds


def all_reduce(cluster: Cluster, chips: int, size: float) -> float:
    """Seconds of a sum: its parts are scattered as they are added up, and gathered."""
    return 2 * all_gather(cluster, chips, size)


# --- failures ---


def best_interval(save: float, between: float) -> float:
    """Seconds of work between two checkpoints that lose least: Young's square root, with Daly's next terms."""
    if save >= 2 * between:
        return between
    ratio = save / (2 * between)
    return math.sqrt(2 * save * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def slower(
    work: float, save: float, restart: float, between: float, in_background: float = 0.0
) -> float:
    """How many times as long a job takes that saves after each `work` seconds, for exponential times between failures.

    - `save`: how long the work waits for a checkpoint. `in_background`: until that is on the disk, while the work goes
      on; a failure takes back so much more.
    """
    again = math.exp((restart + in_background) / between)
    return between * again * math.expm1((work + save) / between) / work


def simulated_failures(
    work: float,
    save: float,
    restart: float,
    between: float,
    intervals: int,
    rng: np.random.Generator,
    in_background: float = 0.0,
) -> float:
    """How many times as long a job of so many intervals takes, played through failure by failure; arguments as those of
    `slower`, with a checkpoint on the disk before the next one is due."""
    clock, next_failure = 0.0, rng.exponential(between)
    done, durable, durable_at = 0, 0, math.inf
    while done < intervals:
        if clock + work + save <= next_failure:
            if durable_at <= clock + work:  # of the interval before
                durable = done
            clock += work + save
            done += 1
            durable_at = clock + in_background
            if in_background == 0:
                durable = done
            continue
        if durable_at <= next_failure:
            durable = done
        done = durable
        clock, durable_at = next_failure, math.inf
        while True:  # a restart may fail too
            next_failure = clock + rng.exponential(between)
            if clock + restart <= next_failure:
                clock += restart
                break
            clock = next_failure
    return clock / (intervals * work)


# --- stragglers ---


def slowest(hosts: int, spread: float) -> float:
    """By how much the slowest of some hosts exceeds the mean, whose times are normal with this standard deviation."""
    if hosts == 1:
        return 0.0
    return spread * NormalDist().inv_cdf((hosts - 0.375) / (hosts + 0.25))


def paused(hosts: int, seconds: float, pause: float, pauses: float) -> float:
    """The mean time that an update of so many seconds waits for pauses, if all hosts wait for the one that has one."""
    return pause * -math.expm1(hosts * seconds * math.log1p(-pauses))


def simulated_stragglers(
    hosts: int,
    seconds: float,
    spread: float,
    pause: float,
    pauses: float,
    updates: int,
    rng: np.random.Generator,
) -> float:
    """The mean time of an update that ends when the last host has."""
    times = rng.normal(seconds, spread, (updates, hosts))
    times += pause * (rng.random((updates, hosts)) < -math.expm1(seconds * math.log1p(-pauses)))
    return float(times.max(1).mean())


# --- an update ---


@dataclasses.dataclass(frozen=True)
class Load:
    """What an update asks of each chip.

    - `cycles`: as XLA compiles it. `reads`: bytes that a chip gets from its host. `saves`: bytes of its checkpoint.
    - `reduces`, `gathers`, `passes`: how many all-reduces there are, all-gathers or exchanges among all, and transfers
      to another chip, and the bytes of their results.
    """

    cycles: float
    reads: float
    saves: float
    reduces: tuple[int, float] = (0, 0.0)
    gathers: tuple[int, float] = (0, 0.0)
    passes: tuple[int, float] = (0, 0.0)


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one update by what takes them.

    - `save`, `interval`: of a checkpoint that an update waits for, and between two. `failures`: how many times as long
      all takes for them; `in_background` the same with checkpoints that are written while the work goes on.
    """

    chip: float
    exchange: float
    feed: float
    pauses: float
    save: float
    interval: float
    failures: float
    in_background: float

    @property
    def update(self) -> float:
        """A host reads the data of the next update while the chips compute this one."""
        return (max(self.chip + self.exchange, self.feed) + self.pauses) * self.in_background

    @property
    def limit(self) -> str:
        """What takes most of the time."""
        work = self.chip + self.exchange
        parts = {"chip": self.chip, "exchange": self.exchange, "pauses of hosts": self.pauses}
        parts["host's network"] = self.feed if self.feed > work else 0.0
        parts["failures"] = self.update * (1 - 1 / self.in_background)
        return max(parts, key=lambda name: parts[name])


def times(cluster: Cluster, chips: int, load: Load) -> Times:
    """The model: an update on so many chips."""
    chip = load.cycles / cluster.clock
    mean = lambda count, size: size / max(1, count)
    exchange = load.reduces[0] * all_reduce(cluster, chips, mean(*load.reduces))
    exchange += load.gathers[0] * all_gather(cluster, chips, mean(*load.gathers))
    passes, size = load.passes
    exchange += passes * (cluster.start + cluster.hop) + size / cluster.link
    of_host = min(chips, cluster.per_host)
    feed = of_host * load.reads / cluster.network
    hosts = -(-chips // cluster.per_host)
    pauses = paused(hosts, max(chip + exchange, feed), cluster.pause, cluster.pauses)
    between = cluster.between_failures / chips
    save = of_host * load.saves / cluster.disk
    copied = of_host * load.saves / cluster.copy
    interval = best_interval(save, between)
    after = max(best_interval(copied, between), save)
    return Times(
        chip,
        exchange,
        feed,
        pauses,
        save,
        interval,
        failures=slower(interval, save, cluster.restart, between),
        in_background=slower(after, copied, cluster.restart, between, save),
    )
