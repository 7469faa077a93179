"""What is shown, as data for JSON, and back."""

import json
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


def read_record(text: bytes, schema: str, form: Any) -> dict[str, Any]:
    """What `record` made, from JSON. **Raises** `ValueError` that says why it is no such record.

    - `form`: of the record, for `_check_form`.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    _check_form(data, {"schema": str})
    if data["schema"] != schema:
        found = data["schema"]
        raise ValueError(f"it has the schema {found!r}, and this version of etpc reads {schema!r}")
    _check_form(data, form)
    return data


def _check_form(value: Any, form: Any, where: str = "") -> None:
    """Check what is read of a value: `{"a": form}` has the field, `{str: form}` any fields and `[form]` any members of
    the form, `("a", "b")` is one of these texts, and anything else is a type. **Raises** `ValueError`, with the place.
    """
    if isinstance(form, dict) and isinstance(value, dict):
        for key, inner in (dict.fromkeys(value, form[str]) if str in form else form).items():
            if key not in value:
                raise ValueError(f"{where}[{key!r}] is missing")
            _check_form(value[key], inner, f"{where}[{key!r}]")
    elif isinstance(form, list) and isinstance(value, list):
        for i, member in enumerate(value):
            _check_form(member, form[0], f"{where}[{i}]")
    elif isinstance(form, dict | list) or not (
        value in form if isinstance(form, tuple) else isinstance(value, form)
    ):
        raise ValueError(f"{where or 'it'} is {value!r:.60}")
