"""What is shown, as data for JSON, and back, with the schemas of files."""

import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from ..errors import InputError


def plain(value: Any) -> Any:
    """A value without what JSON does not have: tuples, keys that are no text, and numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def record(name: str, /, **fields: Any) -> dict[str, Any]:
    """Fields as a record for JSON, with the name and version of what it holds."""
    return {"schema": name, **plain(fields)}


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema, of draft 2020-12, of a file that `etpc` writes.

    **Arguments:** `name`: what the file has as `schema`: `"etpc-claims/1"`, of [`etpc claims`](../cli.md);
    `"etpc-learner/1"`, the [manifest of an exported learner](../device.md); `"etpc-functions/1"`, that of
    [functions of one state](../device.md#an-agent-that-acts-and-learns); `"etpc-draw/1"`, of `etpc draw --json`;
    `"etpc-estimate/1"`, of [`etpc estimate`](../estimate.md); or `"etpc-view/1"`, of
    [a view](../viewer.md#your-own-viewer).

    **Raises** `etpc.InputError` for another name.

    ```pycon
    >>> import etpc
    >>> etpc.files.schema("etpc-claims/1")["required"]
    ['schema', 'models']

    ```
    """
    files = resources.files("etpc.files") / "schemas"
    # of a name such as "etpc-claims-1.json"
    known = {"/".join(f.name[:-5].rsplit("-", 1)): f for f in files.iterdir()}
    if name not in known:
        raise InputError(f"There is no schema {name!r}, but {', '.join(sorted(known))}.")
    return json.loads(known[name].read_text())


def read_record(text: bytes, *names: str) -> dict[str, Any]:
    """A record from JSON that its schema, one of these names, allows. **Raises** `ValueError` that says why not."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    named = {"required": ["schema"], "properties": {"schema": {"type": "string"}}}
    _check(data, {"type": "object", **named}, {})
    if (found := data["schema"]) not in names:
        known = " and ".join(map(repr, names))
        raise ValueError(f"it has the schema {found!r}, and this version of etpc reads {known}")
    form = schema(found)
    _check(data, form, form["$defs"])
    return data


_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "null": type(None)}


def _check(value: Any, form: Any, defined: Any, where: str = "") -> None:
    """Check that a schema allows a value, by the words of JSON Schema that ours use. **Raises** `ValueError`."""
    if "$ref" in form:
        form = defined[form["$ref"].rpartition("/")[2]]
    types = form.get("type", ())
    types = tuple(_TYPES[name] for name in ([types] if isinstance(types, str) else types))
    if (types and not isinstance(value, types)) or value not in form.get("enum", [value]):
        raise ValueError(f"{where or 'it'} is {value!r:.60}")
    if isinstance(value, dict):
        for key in form.get("required", ()):
            if key not in value:
                raise ValueError(f"{where}[{key!r}] is missing")
        for key, part in value.items():
            inner = form.get("properties", {}).get(key, form.get("additionalProperties", {}))
            named = re.search(form.get("propertyNames", {}).get("pattern", ""), key)
            if inner is False or not named:
                raise ValueError(f"{where} has {key!r}")
            _check(part, inner, defined, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for i, member in enumerate(value):
            _check(member, form.get("items", {}), defined, f"{where}[{i}]")
