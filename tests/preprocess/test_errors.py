"""What is printed of names and texts from elsewhere."""

from __future__ import annotations

import errno

import pytest

from preprocess.errors import explain_os_error, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ñ я 日 👩‍👩‍👧\tx\n", "plain ñ я 日 👩‍👩‍👧\tx\n"),
        ("a\x1b[31mb\x07\x7f\x9b", "a\\x1b[31mb\\x07\\x7f\\x9b"),
        ("\r\u202eevil\u2028", "\\r\\u202eevil\\u2028"),
    ],
)
def test_a_terminal_shows_and_does_not_obey(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_field_stays_on_its_line() -> None:
    assert one_line("kind\nforged\trow") == "kind\\nforged\\trow"


def test_the_systems_refusals_name_a_cure() -> None:
    assert "free some" in explain_os_error(OSError(errno.ENOSPC, "No space left on device", "x.bin"))
    assert "choose a folder that is yours" in explain_os_error(PermissionError(errno.EACCES, "Permission denied", "x"))
    assert explain_os_error(OSError(errno.EISDIR, "Is a directory", "x")) == "Is a directory (x)"
