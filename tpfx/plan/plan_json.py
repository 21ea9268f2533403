"""Plans as JSON in which whatever is short has a line of its own."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any


def plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, their values as they are."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def written(value: Any, indent: str = "") -> str:
    """JSON in which whatever is short has a line of its own."""
    line = json.dumps(value)
    if len(line) < 120 or not isinstance(value, (dict, list, tuple)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(str(key))}: {written(item, inner)}" for key, item in value.items()]
        opening, closing = "{", "}"
    else:
        items = [written(item, inner) for item in value]
        opening, closing = "[", "]"
    return opening + "\n" + ",\n".join(inner + item for item in items) + "\n" + indent + closing
