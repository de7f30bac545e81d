"""Errors and untrusted text in messages."""

from __future__ import annotations

import errno

import pytest

from preprocess.errors import MAX_SHOWN, explain_os_error, first_line, one_line, printable, shorten


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ñ я 日 👩‍👩‍👧\tx\n", "plain ñ я 日 👩‍👩‍👧\tx\n"),
        ("a\x1b[31mb\x07\x7f\x9b", "a\\x1b[31mb\\x07\\x7f\\x9b"),
        ("\r\u202eevil\u2028", "\\r\\u202eevil\\u2028"),
    ],
)
def test_printable_escapes_what_a_terminal_would_execute(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_one_line_escapes_tabs_and_line_feeds() -> None:
    assert one_line("kind\nforged\trow") == "kind\\nforged\\trow"


def test_explain_os_error_gives_advice() -> None:
    assert "free some" in explain_os_error(OSError(errno.ENOSPC, "No space left on device", "x.bin"))
    assert "choose a directory that you can write to" in explain_os_error(
        PermissionError(errno.EACCES, "Permission denied", "x")
    )
    assert explain_os_error(OSError(errno.EISDIR, "Is a directory", "x")) == "Is a directory (x)"


def test_shorten_keeps_short_text_and_cuts_long_text() -> None:
    assert shorten("a\nb") == "a\\nb"
    assert shorten("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert shorten("x" * (MAX_SHOWN + 1)) == "x" * MAX_SHOWN + "…"


def test_first_line_of_an_error_without_a_message_is_its_type() -> None:
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(EOFError()) == "EOFError"
