"""Names of columns with dots, which lead into nested values: `meta.lang` is `lang` in the object `meta`.

A column whose name is exactly `meta.lang` takes precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def split_path(name: str) -> tuple[str, ...]:
    """Return the names of the nested objects that a column name leads through, such as ("meta", "lang")."""
    return tuple(name.split("."))


def get_nested(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of the column `name` in a record, or None if it has none."""
    if name in record or "." not in name:
        return record.get(name)
    value: Any = record
    for key in split_path(name):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def has_nested(record: Mapping[str, Any], name: str) -> bool:
    """Return whether a record has the column `name`, whose value may be null."""
    if name in record:
        return True
    *parents, last = split_path(name)
    value: Any = record
    for key in parents:
        value = value.get(key) if isinstance(value, dict) else None
    return isinstance(value, dict) and last in value
