"""What is shown, as data for JSON."""

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value without what JSON does not have: tuples, keys that are no text, and numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def record(schema: str, **fields: Any) -> dict[str, Any]:
    """Fields as a record for JSON, with the name and version of what it holds."""
    return {"schema": schema, **plain(fields)}
