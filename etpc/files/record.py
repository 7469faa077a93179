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
    """A record from JSON, which has the form, as `_check_form` takes it. **Raises** `ValueError` that says why not."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    _check_form(data, {"schema": str})
    if (found := data["schema"]) != schema:
        raise ValueError(f"it has the schema {found!r}, and this version of etpc reads {schema!r}")
    _check_form(data, form)
    return data


def _check_form(value: Any, form: Any, where: str = "") -> None:
    """Check that a value of JSON has a form: a dict of the forms of the fields that it has at least; `{str: form}`, of
    all its fields; `[form]`, of its members; a tuple of texts, one of which it is; or a type. **Raises** `ValueError`.
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
