"""Two environments in JAX that hide a part of their state, and evaluation.

An environment is three functions of one episode; `jax.vmap` makes a batch of them. Both are those of
gymnax (a test compares them), but for the velocities that the agent at the pole does not see.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from etpc.optim import RunningStatistics


class Environment(NamedTuple):
    """What an agent sees of an episode, and what it does to it."""

    inputs: int
    actions: int
    steps: int
    """At most so many in an episode."""
    begin: Callable[[PRNGKeyArray], Any]
    see: Callable[[Any], Float[Array, " inputs"]]
    act: Callable[[Any, Int[Array, ""]], tuple[Any, Float[Array, ""], Bool[Array, ""]]]
    """The state after an action, the reward, and whether the episode is over."""

    def step(self, state: Any, action: Array, key: PRNGKeyArray) -> tuple[Any, Array, Array]:
        """As `act`, but where the episode is over the state is that of a new one."""
        state, reward, over = self.act(state, action)
        new = self.begin(key)
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), new, state), reward, over


# --- a bit to remember ---


class Chain(NamedTuple):
    bit: Bool[Array, ""]
    time: Int[Array, ""]


def memory_chain(length: Any) -> Environment:
    """A bit is shown in the first step. In the last one, `length` steps later, action 0 or 1 has to say which it was.

    Seen are the time that is left, which bit is asked for (there is one), and in the first step the bit. A length that
    is traced needs another `steps`, which is a number.

    Source: Osband et al., "Behaviour suite for reinforcement learning", ICLR 2020, section B.5.
    """

    def begin(key: PRNGKeyArray) -> Chain:
        return Chain(jax.random.bernoulli(key), jnp.int32(0))

    def see(chain: Chain) -> Array:
        shown = jnp.where(chain.time == 0, 2.0 * chain.bit - 1.0, 0.0)
        return jnp.stack([1 - chain.time / length, jnp.zeros_like(shown), shown])

    def act(chain: Chain, action: Array) -> tuple[Chain, Array, Array]:
        last = chain.time == length
        right = action == chain.bit
        reward = jnp.where(last, jnp.where(right, 1.0, -1.0), 0.0)
        return Chain(chain.bit, chain.time + 1), reward, last

    return Environment(3, 2, length + 1, begin, see, act)


# --- a pole on a cart ---


class Cart(NamedTuple):
    place: Float[Array, " 4"]
    """Position (m) and velocity (m/s) of the cart, angle (rad) and angular velocity (rad/s) of the pole."""
    time: Int[Array, ""]


def cart_pole(seen: tuple[int, ...] = (0, 2)) -> Environment:
    """A pole on a cart that is pushed left or right: a reward of 1 for each step until the pole is 12 degrees off
    or the cart 2.4 m away, and at most 500.

    `seen` is which of position, velocity, angle and angular velocity the agent sees: by default no velocity, so that
    it has to compare with what it saw before.

    Source: Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve difficult learning control
    problems", 1983; constants of CartPole-v1.
    """
    gravity, cart, pole, half, push, dt = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02  # SI units
    steps = 500

    def begin(key: PRNGKeyArray) -> Cart:
        return Cart(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.int32(0))

    def see(state: Cart) -> Array:
        return state.place[jnp.array(seen)]

    def act(state: Cart, action: Array) -> tuple[Cart, Array, Array]:
        _, v, angle, turn = state.place
        force = jnp.where(action == 1, push, -push)
        sin, cos, mass = jnp.sin(angle), jnp.cos(angle), cart + pole
        common = (force + pole * half * turn**2 * sin) / mass
        turning = (gravity * sin - cos * common) / (half * (4 / 3 - pole * cos**2 / mass))
        moving = common - pole * half * turning * cos / mass
        change = jnp.stack([v, moving, turn, turning])
        after = Cart(state.place + dt * change, state.time + 1)
        fell = (jnp.abs(after.place[0]) > 2.4) | (jnp.abs(after.place[2]) > 12 * jnp.pi / 180)
        return after, jnp.ones(()), fell | (after.time >= steps)

    return Environment(len(seen), 2, steps, begin, see, act)


# --- evaluation ---


def evaluate(
    policy: Callable[[Array, Any], tuple[Array, Any]],
    initial: Any,
    env: Environment,
    seen: RunningStatistics,
    key: PRNGKeyArray,
    remembers: bool = True,
) -> Float[Array, ""]:
    """The mean return of 100 episodes of `policy(x, state) -> (logits, state)`, which does not learn, and takes the
    action that it finds best. Without `remembers` its state is erased at each step."""

    def episode(key: PRNGKeyArray) -> Array:
        def step(carry: Any, _: None) -> Any:
            state, place, going = carry
            logits, new = policy(seen.normalise(env.see(place)), state)
            state = new if remembers else state
            place, reward, over = env.act(place, logits.argmax())
            return (state, place, going & ~over), jnp.where(going, reward, 0.0)

        start = initial, env.begin(key), jnp.array(True)
        return jax.lax.scan(step, start, length=env.steps)[1].sum()

    return jax.vmap(episode)(jax.random.split(key, 100)).mean()
