"""Settings as dataclass fields, apart from the settings of a run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from preprocess.errors import MisuseError
from train.core.settings import check_range, convert, convert_text, describe_settings, format_value, setting, suggest


@dataclass(frozen=True, kw_only=True)
class Example:
    width: int = setting(3, "the width", min=1, max=10)
    rate: float | None = setting(None, "the rate", min=0)
    names: tuple[str, ...] = setting((), "the names")


def test_convert_accepts_the_type_of_the_setting() -> None:
    assert convert(Example, "rate", 2, where="here") == 2.0
    assert convert(Example, "names", ["a"], where="here") == ("a",)
    assert convert(Example, "names", None, where="here") == ()
    with pytest.raises(MisuseError, match="here: width must be a whole number, got 2.5"):
        convert(Example, "width", 2.5, where="here")
    with pytest.raises(MisuseError, match="here: no setting is called 'widht'; did you mean 'width'"):
        convert(Example, "widht", 2, where="here")


def test_convert_text_parses_numbers_none_and_lists() -> None:
    assert convert_text(Example, "width", "1_0") == 10
    assert convert_text(Example, "rate", "none") is None
    assert convert_text(Example, "names", "a, b") == ("a", "b")
    with pytest.raises(MisuseError, match="the command line: rate must be a number or none, got 'x'"):
        convert_text(Example, "rate", "x")


def test_check_range_accepts_both_ends_only() -> None:
    check_range("width", 1, min=1, max=10)
    check_range("width", 10, min=1, max=10)
    check_range("rate", None, min=0, max=10)
    with pytest.raises(MisuseError, match="width must be at least 1, got 0"):
        check_range("width", 0, min=1, max=10)
    with pytest.raises(MisuseError, match="width must be at most 10, got 9999"):
        check_range("width", int("9" * 400), min=1, max=10)
    for text in ("a\x1b[31m", "\udcff"):
        with pytest.raises(MisuseError, match="name must be UTF-8 text without control characters"):
            check_range("name", text, min=None, max=10)


def test_format_value_shows_none_lists_and_unprintable_text() -> None:
    assert [format_value(value) for value in (None, (), ["a", "b"], "", "a b", "a\tb", 3)] == [
        "none", "none", "a, b", "''", "a b", r"'a\tb'", "3",
    ]  # fmt: skip


def test_describe_settings_shows_documentation_and_default() -> None:
    lines = describe_settings(Example)
    assert [line.split() for line in lines] == [
        ["width", "the", "width", "[3]"], ["rate", "the", "rate", "[none]"], ["names", "the", "names", "[none]"],
    ]  # fmt: skip


def test_describe_settings_puts_the_documentation_below_the_name_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "16")
    assert describe_settings(Example)[:3] == ["  width", "      the width", "      [3]"]


def test_suggest_names_the_nearest_or_nothing() -> None:
    assert suggest("widht", ["width", "rate"]) == "did you mean 'width'? " and suggest("zzz", ["width"]) == ""
