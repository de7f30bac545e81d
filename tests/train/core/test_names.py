"""Short names for runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from train.core.names import make_run_names, shorten_middle


def test_make_run_names_takes_the_shortest_unique_end_of_each_path(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/run", "b/run", "other", "x/a/run")]
    assert make_run_names(paths) == [f"{tmp_path.name}/a/run", "b/run", "other", "x/a/run"]


def test_make_run_names_rejects_a_run_given_twice(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="is named 2 times; name each run once"):
        make_run_names([tmp_path / "run", tmp_path / "x" / ".." / "run"])


def test_shorten_middle_keeps_both_ends() -> None:
    assert shorten_middle("abcdefgh", 8) == "abcdefgh"
    assert shorten_middle("abcdefgh", 5) == "ab…gh"
    assert shorten_middle("abcdefgh", 1) == "…"
