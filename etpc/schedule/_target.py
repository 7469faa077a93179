"""What a program is compiled for."""

import dataclasses
from typing import Any

import jax
from jax import export

from ..errors import InputError, InputTypeError, near

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
PRECISIONS = ("default", "high", "highest")


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for. Nothing else of the machine that compiles is asked.

    - `platform`: `"cpu"`, `"cuda"`, `"rocm"` or `"tpu"`, as JAX names the platforms that it exports for.
    - `devices`: over how many devices a batch may be spread.
    - `precision`: of the products that traces, credit and Jacobians are computed by, in JAX's names. At `"highest"`
        they are float32 on every platform, as a claim of exact gradients needs. At `"default"` a TPU rounds the
        factors to bfloat16, and some GPUs to TensorFloat-32: the program says so, and claims no exact gradient. CPUs
        compute all in float32. The products of the forward pass have the precision that the model gives them.
    - `cache`: bytes of a trace that stay in the cache of a CPU, for which loops over traces are cut into pieces; `None`
        for 3 MiB on a CPU, and for whole loops elsewhere.

    **Raises** `etpc.InputError` for a precision that JAX does not have.
    """

    platform: str
    devices: int = 1
    precision: str = "highest"
    cache: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"precision= is one of {', '.join(PRECISIONS)}, not {self.precision!r}."
            )
        if self.cache is None and self.platform == "cpu":
            object.__setattr__(self, "cache", 3 << 20)

    @classmethod
    def here(cls) -> "Target":
        """That of this process: JAX's default platform, and all of its devices."""
        return cls(export.default_export_platform(), len(jax.devices()))

    @property
    def left_out(self) -> str:
        """What products lose there, in words; empty where they are float32."""
        if self.platform == "cpu" or self.precision == "highest":
            return ""
        return f'products of traces and credit are rounded by precision="{self.precision}" on {self.platform}'

    def __str__(self) -> str:
        devices = f", {self.devices} devices" if self.devices > 1 else ""
        cache = f", {self.cache:,} bytes of cache" if self.cache is not None else ""
        return f"{self.platform}{devices}{cache}, products at precision {self.precision}"


def target_of(target: Any) -> Target:
    """The target that `target=` of [`etpc.compile`][] stands for.

    **Raises** `InputTypeError` and `InputError` where it is none.
    """
    if target is None:
        return Target.here()
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise InputTypeError(
            f"target= is None, the name of a platform or an `etpc.Target`, not {target!r}."
        )
    if target not in PLATFORMS:
        hint = ' Did you mean "cuda"?' if target == "gpu" else near(target, PLATFORMS)
        raise InputError(
            f"There is no platform {target!r}.{hint} Pass one of {', '.join(PLATFORMS)}."
        )
    return Target(target)
