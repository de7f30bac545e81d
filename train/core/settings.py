"""Settings as dataclass fields: documentation, range, and values from text, files and JSON.

A settings class is a dataclass whose fields are made by `setting`. The functions here convert
values to the type of a field and check its range. No particular setting is known here.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
import textwrap
import typing
from collections.abc import Iterable
from typing import Any

from preprocess.errors import MisuseError, printable
from train.core.config_file import MAX_NUMBER

HELP_INDENT = 31
NONE, TRUE, FALSE = ("none", "None"), ("true", "True", "1"), ("false", "False", "0")
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list of texts such as ['tensorboard']",
}


def setting(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    min: float | None = None,
    max: float = MAX_NUMBER,
    free: bool = False,
) -> Any:
    """Return a dataclass field with the documentation and the range of a setting.

    `free`: a run can be continued with another value, because no loss depends on it.
    """
    return dataclasses.field(default=default, metadata={"doc": doc, "min": min, "max": max, "free": free})


def check(holds: bool, message: str) -> None:
    """Raise MisuseError with `message` unless `holds`."""
    if not holds:
        raise MisuseError(message)


def check_range(key: str, value: Any, *, min: float | None, max: float) -> None:
    """Raise MisuseError if a number is not from `min` to `max`, or text cannot be printed.

    Text must be UTF-8 without control characters.
    """
    if isinstance(value, str):
        is_clean = printable(value) == value and _is_utf8(value)
        check(is_clean, f"{key} must be UTF-8 text without control characters, got {value!r:.80}")
    if min is None or value is None:
        return
    # Compared without conversion: a whole number of 400 digits is too large for a float.
    limit = f"{max:.0e}" if max == MAX_NUMBER else f"{max:,d}"
    check(abs(value) <= max, f"{key} must be at most {limit}, got {str(value)[:40]}")
    check(value >= min, f"{key} must be at least {min}, got {value}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'? ` with the name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def check_known(cls: Any, key: str, where: str) -> None:
    """Raise MisuseError unless `key` is a setting of the class `cls`.

    `where` says where it is set.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    if key not in names:
        raise MisuseError(
            f"{where}: no setting is called {key!r}; {suggest(key, names)}`python train/train.py --help` lists them"
        )


def convert(cls: Any, key: str, value: Any, *, where: str) -> Any:
    """Return `value`, from a file, with the type of the setting `key` of `cls`.

    An int is accepted for a float.

    Raises MisuseError if there is no such setting or the type differs.
    """
    check_known(cls, key, where)
    kind, is_optional = _type_of(cls, key)
    if value is None and is_optional:
        return () if kind is tuple else None
    if kind is tuple and type(value) is list and all(type(item) is str for item in value):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return float(value)
    if type(value) is not kind:
        raise _type_error(cls, key, value, where=where)
    return value


def convert_text(cls: Any, key: str, text: str) -> Any:
    """Return `text`, from the command line, with the type of the setting `key` of `cls`.

    Raises MisuseError if the text cannot be converted.
    """
    kind, is_optional = _type_of(cls, key)
    if kind is tuple:
        items = text[1:-1] if text.startswith("[") and text.endswith("]") else text  # as in a config file
        return () if items.strip() in ("", *NONE) else tuple(item.strip().strip("'\"") for item in items.split(","))
    if is_optional and text in NONE:
        return None
    if kind is bool and text in TRUE + FALSE:
        return text in TRUE
    try:
        if kind is not bool:
            return kind(text)
    except ValueError:
        pass  # raised below
    raise _type_error(cls, key, text, where="the command line")


def _type_of(cls: Any, key: str) -> tuple[type, bool]:
    """Return the type of a setting without None, and whether None is allowed.

    For a tuple, None means an empty one.
    """
    hint = typing.get_type_hints(cls)[key]
    if typing.get_origin(hint) is tuple:
        return tuple, True
    options = typing.get_args(hint) or (hint,)
    return next(t for t in options if t is not type(None)), type(None) in options


def _type_error(cls: Any, key: str, value: Any, *, where: str) -> MisuseError:
    kind, is_optional = _type_of(cls, key)
    expected = TYPE_NAMES[kind] + (" or none" if is_optional else "")
    return MisuseError(f"{where}: {key} must be {expected}, got {value!r:.80}")


def format_value(value: Any) -> str:
    """Return a setting's value as the console shows it."""
    if value is None or value in ([], ()):
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(value)
    return repr(value) if value == "" or not str(value).isprintable() else str(value)


def describe_settings(cls: Any) -> list[str]:
    """Return the lines of `--help` for the settings of `cls`, wrapped to the terminal's width."""
    lines = []
    width = max(shutil.get_terminal_size().columns - 1, 2 * HELP_INDENT)
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f" [{format_value(field.default)}]"
        name = f"  {field.name:<{HELP_INDENT - 3}} "
        text = f"{field.metadata['doc']}{default}"
        indent = " " * HELP_INDENT
        lines.append(textwrap.fill(text, width, initial_indent=name, subsequent_indent=indent, break_on_hyphens=False))
    return lines
