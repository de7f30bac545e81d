"""Errors and untrusted text in messages."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from preprocess.errors import (
    FULL_DISK,
    MAX_SHOWN,
    explain_os_error,
    first_line,
    hide_credentials,
    name_file_in_errors,
    one_line,
    printable,
    shorten,
)
from preprocess.inputs.describe import describe_input_files
from preprocess.recipes.schema import Recipe


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
    assert explain_os_error(PermissionError(errno.EACCES, "Permission denied", "x")) == (
        "cannot read or write (x): Permission denied; change its permissions, or choose another path"
    )
    assert explain_os_error(OSError(errno.EIO, "Input/output error", "x")) == (
        "the disk could not read or write (x): Input/output error; check the disk, or use another copy of the file"
    )
    assert explain_os_error(OSError(errno.EISDIR, "Is a directory", "x")).startswith(
        "a folder is in the way at x; move"
    )
    assert explain_os_error(OSError(errno.EEXIST, "File exists", "x")).startswith("a file is in the way at x; move it")
    assert explain_os_error(OSError(errno.ENOTDIR, "Not a directory", "a/x")) == (
        "a folder in the path a/x is a file; move it elsewhere, or choose another path"
    )
    assert explain_os_error(OSError(errno.EISDIR, "Is a directory")) == "Is a directory"


def test_shorten_keeps_short_text_and_cuts_long_text() -> None:
    assert shorten("a\nb") == "a\\nb"
    assert shorten("x" * MAX_SHOWN) == "x" * MAX_SHOWN
    assert shorten("x" * (MAX_SHOWN + 1)) == "x" * MAX_SHOWN + "…"


def test_first_line_of_an_error_without_a_message_is_its_type() -> None:
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(EOFError()) == "EOFError"


@pytest.mark.parametrize(("text", "shown"), [
    ("no recipe http:/u:p@h/a.jsonl?X=1&Y=2; name a", "no recipe http:/h/a.jsonl?…; name a"),
    ("got 'https://user@host/a?b=c', expected", "got 'https://host/a?…', expected"),
    ("s3://bucket/a.txt: no connection", "s3://bucket/a.txt: no connection"),
    ("what? a@b.org: C:/x@y?", "what? a@b.org: C:/x@y?"),
])  # fmt: skip
def test_hide_credentials_removes_logins_and_queries_of_urls(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown
    assert shorten(text) == shown


def test_shorten_hides_a_login_that_is_longer_than_what_is_shown() -> None:
    assert shorten(f"https://user:{'s' * 200}@host/a.txt") == "https://host/a.txt"


def test_hide_credentials_is_fast_for_long_text() -> None:
    start = time.perf_counter()
    hide_credentials("ab:/x?" * 2_000 + "a" * 1_000_000 + "ab://" * 2_000)
    assert time.perf_counter() - start < 5


def test_name_file_in_errors_names_the_file_only_if_none_is_named() -> None:
    with pytest.raises(OSError, match="Input/output error") as unnamed, name_file_in_errors("a"):
        raise OSError(errno.EIO, "Input/output error")
    assert unnamed.value.filename == "a"
    with pytest.raises(OSError, match="Input/output error") as named, name_file_in_errors("a"):
        raise OSError(errno.EIO, "Input/output error", "b")
    assert named.value.filename == "b"
    with pytest.raises(OSError, match="error") as other, name_file_in_errors("a", only=FULL_DISK):
        raise OSError(errno.EIO, "Input/output error")
    assert other.value.filename is None


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs /proc")
def test_a_read_error_of_an_input_file_names_the_file() -> None:
    with pytest.raises(OSError, match="/proc/self/mem") as error:  # reading its first byte fails
        describe_input_files([("mem", "/proc/self/mem")], Recipe(corpus="own"), {}, num_threads=1)
    assert error.value.errno == errno.EIO
