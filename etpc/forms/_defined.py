"""What a form of trace means, as data: the definition of a rule computes it, and its equations are written from it."""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

Of = Literal["uses", "outputs", "inputs", "steps"]
"""What an array of a recursion has a number for: each use of a weight and each state of its block (e), each output and
each state (f), each input (x); or one number in all (c)."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One array that is carried, `new = kept old + moved D old + what the step adds`.

    The step adds `F x` to an array of uses, F to one of outputs, x to one of inputs, and one to a number.
    """

    name: str
    of: Of
    kept: float = 0.0
    moved: float = 0.0
    """D passes states on to states, so it is zero for inputs and for a number."""
    plus: str = ""
    """The array whose new value is added in the place of what the step adds; an earlier one."""


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The recursions that a form stands for, and what credit meets.

    The gradient of a step is `L new + o old + d x`: the learning signal L of the new states meets what is carried after
    the step, and credit o of old states past the new ones what was carried before it; credit d of the operation past
    the new states meets the data of the step.
    """

    lines: tuple[Line, ...]
    meets: str = ""
    """The array that credit of states meets, of uses or of outputs. Without a name it is F of the step itself, and then
    credit of old states meets nothing."""
    data: str = ""
    """The array of inputs that an array of outputs is multiplied with."""
    over: str = ""
    """The number that they are divided by, or one where that is less."""
    rank: int | None = None
    """To how many leading modes the trace of one operation is reduced after each window, as a matrix of its inputs by
    states and outputs."""
    drawn: str = ""
    """What reduces it at random in their place, so that its mean is the trace: `"signs"` makes the pair of factors of a
    trace and that of a step one, and another word names a function of the rank and the matrix."""
    shared: tuple[int, ...] | None = None
    """For each output, over all groups, the number of one whose trace is equal, and is carried for both."""
    holomorphic: bool = False
    """Whether the derivatives by the imaginary part of a complex weight are those by the real part times i, and are not
    carried."""


@runtime_checkable
class Defined(Protocol):
    """A form of trace that has a definition, by which [`etpc.reference`][] and `program.equations` know it."""

    def meaning(self) -> Meaning:
        """What the form means for one operation. One that is random, and unbiased, means its mean."""
        ...


WHOLE_TRACE = Meaning((Line("e", "uses", moved=1.0),), "e")
"""The whole trace, `e' = D e + F x`."""
