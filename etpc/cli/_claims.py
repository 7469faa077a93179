"""What is claimed of a model that is named as on the command line."""

from typing import Any

from ..testing import claims_record
from ._algorithm import parse
from ._task import load_task


def claims_of(target: str, algo: str = "d_rtrl", inputs: str | None = None) -> dict[str, Any]:
    """The claims of a model, ready for JSON, with how they are found again.

    - `target`, `algo`, `inputs`: as `etpc claims` takes them.

    **Raises** `EtpcError`, also for what the user's code raises.
    """
    task = load_task(target, inputs, seed=0)  # this may register a rule
    return {"algo": algo, "inputs": inputs, **claims_record(task.compile(parse(algo)))}
