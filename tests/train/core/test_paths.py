"""Paths that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from tests.conftest import assert_one_line
from train.core.paths import expand_home, parse_path


def test_home_directories_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_path("~/runs/a", "RUN") == tmp_path / "runs" / "a" and parse_path("~", "RUN") == tmp_path
    assert parse_path("a/~", "RUN") == Path("a/~") and parse_path("./~nosuchuser", "RUN") == Path("~nosuchuser")
    assert expand_home("~/a", "RUN") == str(tmp_path / "a") and expand_home("./a", "RUN") == "./a"


def test_path_of_bytes_that_are_not_utf8_is_accepted(tmp_path: Path) -> None:
    assert parse_path("run\udcff", "RUN") == Path("run\udcff")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "RUN is empty; name a file or a folder"),
        ("~nosuchuser/a", "RUN is '~nosuchuser/a', but the home directory of '~nosuchuser' is not known"),
        ("a\0b", r"RUN must be a path, got 'a\x00b'"),
        ("\ud800", r"RUN must be a path, got '\ud800'"),
        ("x" * 300, "RUN is longer than this system allows, 300 characters, got 'xxx"),
        ("x/" * 5000, "RUN is longer than this system allows, 10,000 characters"),
    ],
)
def test_text_that_cannot_be_a_path_is_rejected(text: str, message: str) -> None:
    for parse in (parse_path, expand_home):
        with pytest.raises(MisuseError) as error:
            parse(text, "RUN")
        assert message in str(error.value)
        assert_one_line(str(error.value))


def test_symbolic_links_in_a_circle_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "run"):
        with pytest.raises(MisuseError, match="whose symbolic links form a cycle; name another path"):
            parse_path(str(path), "RUN")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert parse_path(str(tmp_path / "dangling"), "RUN") == tmp_path / "dangling"
