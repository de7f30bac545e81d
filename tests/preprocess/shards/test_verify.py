"""Verification finds every change to a build."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from preprocess.errors import FolioError
from preprocess.progress import Progress
from preprocess.shards import verify as verify_module
from preprocess.shards.files import replace_directory
from preprocess.shards.format import Build, find_build
from preprocess.shards.replaced import MAX_READS, ReplacedError
from preprocess.shards.verify import check_known, verify, verify_newest
from preprocess.sharing.pull import pull
from tests.conftest import assert_one_line
from tests.helpers.runs import make_build


def test_verify_finds_every_flipped_bit(build_text: Callable[..., Build]) -> None:
    build = build_text(tokenizer="char")
    assert list(verify(build)) == []
    for path in sorted(
        p for p in build.folder.rglob("*") if p.is_file() and p.name not in ("build_log.json", "manifest.json")
    ):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert any(path.name in fault or path.stem in fault for fault in verify(build)), path
        path.write_bytes(good)
    manifest = build.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert list(verify(Build(build.folder))) == [
        "manifest.json is not formatted as a builder formats it: it was edited"
    ]


TEXT = "".join(f"Line {i}.\n" for i in range(300))


def flip_bits(build: Build, num_flips: int) -> Iterator[Path]:
    """Flip random bits, one at a time: in every file, and more of them in larger files."""
    rng = np.random.default_rng(19)
    paths = sorted(path for path in build.folder.rglob("*") if path.is_file() and path.name != "build_log.json")
    sizes = np.array([path.stat().st_size for path in paths])
    chosen = [*range(len(paths)), *rng.choice(len(paths), num_flips - len(paths), p=sizes / sizes.sum())]
    for index in chosen:
        path, bit = paths[index], int(rng.integers(8 * sizes[index]))
        good = path.read_bytes()
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        yield path
        path.write_bytes(good)


def is_found(folder: Path) -> bool:
    try:
        return any(verify(Build(folder)))
    except FolioError as e:
        assert_one_line(str(e))
        return True


@pytest.mark.slow
def test_verify_finds_200_random_flips(build_text: Callable[..., Build]) -> None:
    build = build_text(TEXT, split="exact", document="line", tokenizer="char", shard_tokens=700)
    assert not is_found(build.folder)
    assert all(is_found(build.folder) for _ in flip_bits(build, 200))
    assert not is_found(build.folder)


@pytest.mark.slow
def test_pull_refuses_200_random_flips(
    build_text: Callable[..., Build], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLIO_SHARDS", str(tmp_path / "received"))
    build = build_text(TEXT, split="exact", document="line", tokenizer="char", shard_tokens=700)
    for path in flip_bits(build, 200):
        with pytest.raises(FolioError) as caught:
            pull(str(build.folder), None, replace=False, progress=Progress(quiet=True))
        assert_one_line(str(caught.value))
        assert path.name in str(caught.value) and not (tmp_path / "received/own").exists()
        shutil.rmtree(tmp_path / "received/.own.pull", ignore_errors=True)  # it has the files that were right
    assert pull(str(build.folder), None, replace=False, progress=Progress(quiet=True))[1]


@pytest.mark.parametrize("is_same", [False, True])
def test_verify_newest_starts_over_if_the_build_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    """The old build's files vanish after the first hash, also if the new build has the same bytes."""
    folder = make_build(tmp_path / "own")
    new = make_build(tmp_path / "new", train_repeats=40 if is_same else 50)
    expected_id = Build(new).build_id
    hash_file, replacements = verify_module.sha256_file, [new]

    def hash_then_replace(path: Path) -> str:
        sha256 = hash_file(path)
        if replacements:
            os.rename(folder, tmp_path / "gone")  # the moment between the two renames of a replacement
            assert not path.exists()
            os.rename(replacements.pop(), folder)
        return sha256

    monkeypatch.setattr(verify_module, "sha256_file", hash_then_replace)
    build, faults = verify_newest(folder)
    assert faults == [] and build.build_id == expected_id and not replacements


def test_verify_newest_gives_up_if_the_build_is_replaced_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_build(tmp_path / "own")
    hash_file, builds = verify_module.sha256_file, [make_build(tmp_path / f"new{i}") for i in range(MAX_READS)]

    def hash_and_replace(path: Path) -> str:
        if path.name == "stats.json" and builds:
            replace_directory(builds.pop(), folder)
        return hash_file(path)

    monkeypatch.setattr(verify_module, "sha256_file", hash_and_replace)
    with pytest.raises(ReplacedError, match=f"was replaced {MAX_READS} times while it was read") as raised:
        verify_newest(folder)
    assert_one_line(str(raised.value))
    assert verify_newest(folder)[1] == []


def test_verify_newest_waits_for_the_second_rename(tmp_path: Path) -> None:
    """Between the two renames of a replacement no build has the name."""
    folder = make_build(tmp_path / "own")
    os.rename(folder, tmp_path / ".own.1.replaced")
    timer = threading.Timer(0.05, os.rename, (tmp_path / ".own.1.replaced", folder))
    timer.start()
    assert find_build(str(folder)) == folder
    timer.join()
    assert verify_newest(folder)[1] == []


def test_verify_newest_reports_damage_of_a_build_that_is_not_replaced(tmp_path: Path) -> None:
    folder = make_build(tmp_path / "own")
    (folder / "stats.json").write_bytes(b"[]\n")
    assert [fault.split()[0] for fault in verify_newest(folder)[1]] == ["stats.json"]


def test_numbers_are_looked_up_without_reading_all_names(build_text: Callable[..., Build]) -> None:
    class Names:
        """Names that can only be looked up. There may be a million, and 20,000 shards whose numbers are checked."""

        def __contains__(self, number: object) -> bool:
            return True

    build = build_text()
    check_known(build, "source", {0, 7}, Names())
    with pytest.raises(FolioError, match="has documents of source 7, which is not in its manifest"):
        check_known(build, "source", {1, 9, 7}, range(5))
