"""Glob patterns: the same files as the standard library's glob, also if links form a loop."""

from __future__ import annotations

import glob
import os
import random
from pathlib import Path

import pytest

from preprocess.inputs.expand_glob import expand_glob

NAMES = ["a", "b", "ab", ".h", "x.txt", "a.b"]
COMPONENTS = ["**", "*", "a", "?", "[ab]*", "[!a]*", "*.txt", ".*", "l*", "..", ".h"]


def make_random_tree(root: Path, rng: random.Random) -> None:
    folders = [root]
    for _ in range(rng.randint(1, 12)):
        path = rng.choice(folders) / rng.choice(NAMES)
        if not path.exists():
            path.mkdir()
            folders.append(path)
    for _ in range(rng.randint(1, 12)):
        path = rng.choice(folders) / (rng.choice(NAMES) + rng.choice(["", ".txt"]))
        if not path.exists():
            path.touch()
    link, target = rng.choice(folders) / "link", rng.choice(folders)
    if target not in (link, *link.parents):
        link.symlink_to(target)


def find_real_files(paths: list[str]) -> set[str]:
    return {os.path.realpath(path) for path in paths if os.path.isfile(path)}


@pytest.mark.parametrize("seed", range(10))
def test_matches_are_those_of_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    root = tmp_path / "1/2/3/4/5"  # so that `..` stays below tmp_path
    root.mkdir(parents=True)
    make_random_tree(root, rng)
    monkeypatch.chdir(root)
    for _ in range(40):
        pattern = "/".join(rng.choice(COMPONENTS) for _ in range(rng.randint(1, 5)))
        for text in (pattern, f"{root}/{pattern}"):
            assert find_real_files(list(expand_glob(text))) == find_real_files(glob.glob(text, recursive=True)), text


@pytest.mark.timeout(20)
def test_links_that_form_loops_end(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").touch()
    for name in ("loop1", "loop2"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "deep/up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    for pattern in ("**/*.txt", "**/**/deep/*.txt", "**/deep/**/up/**/*.txt", "/".join(["*"] * 30) + "/*.txt", "**"):
        found = find_real_files(list(expand_glob(f"{tmp_path}/{pattern}")))
        assert found == {str(tmp_path / "deep/a.txt")}, pattern


def test_name_that_looks_like_a_pattern_is_found_if_the_pattern_matches_nothing(tmp_path: Path) -> None:
    (tmp_path / "[data]").mkdir()
    (tmp_path / "[data]/a.txt").touch()
    assert list(expand_glob(f"{tmp_path}/[data]/*.txt")) == [f"{tmp_path}/[data]/a.txt"]
    (tmp_path / "t").mkdir()
    assert list(expand_glob(f"{tmp_path}/[data]/*.txt")) == []


@pytest.mark.parametrize("pattern", ["", "/", "[" * 100_000, "a*\0b", "*/" * 2000 + "x"])
def test_odd_patterns_match_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(expand_glob(pattern)) == []
