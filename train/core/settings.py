"""Settings as dataclass fields: documentation, range, and conversion of values from text and files.

A settings class is a dataclass whose fields are made by `setting`. The functions here convert
values to the type of a field and check its range. The settings of a run are in `train/config.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shutil
import textwrap
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from preprocess.errors import MAX_SHOWN, MisuseError, printable
from train.core.arguments import program_name
from train.core.config_file import MAX_NUMBER

HELP_INDENT = 31
MIN_HELP_WIDTH = 70  # in a narrower terminal the documentation of a setting begins below its name
MAX_NUMBER_CHARACTERS = 100  # of a number on the command line
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
ABBREVIATED = re.compile(r"(\d+(?:\.\d+)?)([KkMB])", re.ASCII)  # a whole number such as 1.5M; m could be minutes
NONE, TRUE, FALSE = ("none", "None"), ("true", "True", "1"), ("false", "False", "0")
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list of texts such as ['tensorboard']",
}


@dataclass(frozen=True)
class Need:
    """A condition on the value of another setting; unless it holds, a setting has no effect."""

    key: str  # the other setting
    holds: Callable[[Any], bool]  # whether a value of the other setting meets the condition
    expected: str  # the values that meet it, in words, for a message


def setting(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    min: float | None = None,
    max: float = MAX_NUMBER,
    free: bool = False,
    needs: Need | None = None,
) -> Any:
    """Return a dataclass field with the documentation and the range of a setting.

    `min` and `max` are inclusive; without `min`, the range is not checked. `free`: whether a run
    can be continued with another value. `needs`: the condition under which the setting has an
    effect; None means always.
    """
    metadata = {"doc": doc, "min": min, "max": max, "free": free, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


def effective_values(config: Any) -> dict[str, Any]:
    """Return the value of each setting of `config`, or its default if the setting has no effect."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for field in dataclasses.fields(config):
        need: Need | None = field.metadata["needs"]
        if need is not None and not need.holds(getattr(config, need.key)):
            values[field.name] = field.default
    return values


def check_effects(config: Any) -> None:
    """Raise MisuseError if a setting of `config` differs from its default but has no effect.

    The user who set it expects an effect. Do not call this for the settings of a saved run: earlier
    versions of Folio accepted such settings.
    """
    effective = effective_values(config)
    for field in dataclasses.fields(config):
        need: Need | None = field.metadata["needs"]
        value = getattr(config, field.name)
        if need is not None and value != effective[field.name]:
            other, default = format_value(getattr(config, need.key)), format_value(field.default)
            raise MisuseError(
                f"{field.name} is {format_value(value):.80}, which has no effect because {need.key} is {other:.80}, "
                f"not {need.expected}; change {need.key}, or set {field.name} to {default}"
            )


def check(holds: bool, message: str) -> None:
    """Raise MisuseError with `message` unless `holds`."""
    if not holds:
        raise MisuseError(message)


def check_range(key: str, value: Any, *, min: float | None, max: float) -> None:
    """Raise MisuseError if a number is not from `min` to `max`, or if text cannot be printed.

    The setting `key` is named in the message. With `min` None, numbers are not checked. Text must
    be UTF-8 without control characters.
    """
    if isinstance(value, str):
        is_clean = printable(value) == value and _is_utf8(value)
        check(is_clean, f"{key} must be UTF-8 text without control characters, got {value!r:.80}")
    if min is None or value is None or isinstance(value, str):
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
    """Return `did you mean 'x'? `, where x is the most similar of `known`, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def check_known(cls: Any, key: str, where: str, *, others: Iterable[str] = ()) -> None:
    """Raise MisuseError unless `key` is a setting of the class `cls`.

    `where` is the file and line, or "the command line", for the message. `others` are the names
    besides settings that can be used there, for a suggestion.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    if key not in names:
        raise MisuseError(
            f"{where}: no setting is called {key!r:.80}; {suggest(key[:MAX_SHOWN], [*names, *others])}"
            f"`{program_name('python train/train.py')} --help` lists them"
        )


def convert(cls: Any, key: str, value: Any, *, where: str) -> Any:
    """Return `value`, from a file, with the type of the setting `key` of `cls`.

    Accepts an int for a float, and a list of texts or None for a tuple. `where` is the file, and if
    possible the line, for messages. Raises MisuseError if there is no such setting or if `value`
    has another type.
    """
    check_known(cls, key, where)
    kind, is_optional = _type_of(cls, key)
    if value is None and is_optional:
        return () if kind is tuple else None
    if kind is tuple and type(value) is list and all(type(item) is str for item in value):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER:
        return float(value)
    if type(value) is str and kind is int and _accepts_text(cls, key):
        return value
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
    if kind in (int, float) and len(text) > MAX_NUMBER_CHARACTERS:
        raise MisuseError(f"{key} must be at most {MAX_NUMBER:.0e}, got {len(text):,} characters, {text!r:.40}…")
    try:
        if kind is int and (match := ABBREVIATED.fullmatch(text)):
            return convert_abbreviated(match[1], match[2])
        if kind is not bool:
            return kind(text)
    except ValueError:
        if _accepts_text(cls, key):
            return text
    raise _type_error(cls, key, text, where="the command line")


def convert_abbreviated(number: str, unit: str) -> int:
    """Return, for example, 1,500,000 for "1.5" and "M". Raises ValueError if it is not a whole number."""
    value = Fraction(number) * UNITS[unit.upper()]
    if value.denominator != 1:
        raise ValueError(f"{number}{unit} is not a whole number")
    return value.numerator


def _type_of(cls: Any, key: str) -> tuple[type, bool]:
    """Return the type of a setting without None, and whether None is allowed.

    None is allowed for a tuple and means an empty one.
    """
    hint = typing.get_type_hints(cls)[key]
    if typing.get_origin(hint) is tuple:
        return tuple, True
    options = typing.get_args(hint) or (hint,)
    return next(t for t in options if t is not type(None)), type(None) in options


def _accepts_text(cls: Any, key: str) -> bool:
    """Return whether a setting that is a number may also be text, which the class checks itself."""
    return str in typing.get_args(typing.get_type_hints(cls)[key])


def _type_error(cls: Any, key: str, value: Any, *, where: str) -> MisuseError:
    kind, is_optional = _type_of(cls, key)
    expected = TYPE_NAMES[kind] + (" or none" if is_optional else "")
    return MisuseError(f"{where}: {key} must be {expected}, got {value!r:.80}")


def format_value(value: Any) -> str:
    """Return the value of a setting as text for the console."""
    if value is None or value in ([], ()):
        return "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(value)
    return repr(value) if value == "" or not str(value).isprintable() else str(value)


def describe_settings(cls: Any) -> list[str]:
    """Return the lines of `--help` for the settings of `cls`, wrapped to the terminal's width."""
    lines = []
    width = max(shutil.get_terminal_size().columns - 1, 1)
    for field in dataclasses.fields(cls):
        default = "" if field.default is dataclasses.MISSING else f" [{format_value(field.default)}]"
        lines += describe_option(field.name, f"{field.metadata['doc']}{default}", width=width)
    return lines


def describe_option(name: str, text: str, *, width: int) -> list[str]:
    """Return the lines of `--help` for a setting or an option: its name and its documentation `text`."""
    if width >= MIN_HELP_WIDTH:
        indent, lines = HELP_INDENT, []
        first = f"  {name:<{HELP_INDENT - 3}} "
    else:
        indent, lines = min(6, width // 2), [f"  {name}"]
        first = " " * indent
    wrapped = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [*lines, *wrapped]
