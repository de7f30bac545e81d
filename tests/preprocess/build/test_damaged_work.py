"""Damaged work: what the disk has changed since an interruption is made again, and never published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from preprocess.build.work_dir import REJECTS_FILE, get_work_root
from tests.conftest import file_bytes
from tests.preprocess.build.helpers import build_corpus

BIT = 1 << 4


def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def interrupt_build(corpus: Path, output_dir: Path, phase: str, **settings_: object) -> Path:
    """Interrupt a build at the start of `phase`, and return its work directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"preprocess.build.build.{phase}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(corpus, output_dir, **settings_)
    return next(path for path in get_work_root(output_dir).iterdir() if path.is_dir())


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= BIT
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["bin", "ends", "docs"])
def test_finished_shard_with_a_flipped_bit_is_written_again(corpus: Path, tmp_path: Path, suffix: str) -> None:
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x").folder)
    work_dir = interrupt_build(corpus, tmp_path / "x", "publish")
    flip_bit(work_dir / f"build/train-00001.{suffix}")
    modified_ns = (work_dir / "build/train-00000.bin").stat().st_mtime_ns
    build = build_corpus(corpus, tmp_path / "x")
    assert file_bytes(build.folder) == expected
    assert (build.folder / "train-00000.bin").stat().st_mtime_ns == modified_ns  # this one is used as it is


def test_damaged_rejects_are_collected_again(corpus: Path, tmp_path: Path) -> None:
    build_corpus(corpus, tmp_path / "expected/x")
    work_dir = interrupt_build(corpus, tmp_path / "x", "dedup_and_split")
    flip_bit(work_dir / "part-00000.rejects")
    build_corpus(corpus, tmp_path / "x")
    found, expected = (get_work_root(tmp_path / name) / REJECTS_FILE for name in ("x", "expected/x"))
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("tokenizer", "phase"), [("gpt2", "publish"), ("char", "publish"), ("char", "lay_out_shards")])
def test_flipped_bit_in_any_file_of_the_work_changes_no_byte(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str, phase: str
) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 40_000)
    expected = file_bytes(build_corpus(corpus, tmp_path / "expected/x", tokenizer=tokenizer).folder)
    rejects = (get_work_root(tmp_path / "expected/x") / REJECTS_FILE).read_bytes()
    work_dir = interrupt_build(corpus, tmp_path / "x", phase, tokenizer=tokenizer)
    shutil.copytree(work_dir, tmp_path / "kept")
    names = [str(path.relative_to(work_dir)) for path in sorted(work_dir.rglob("*")) if path.is_file()]
    assert len(names) > 20
    for name in names:
        shutil.copytree(tmp_path / "kept", work_dir, dirs_exist_ok=True)
        if not (work_dir / name).stat().st_size:
            continue
        flip_bit(work_dir / name)
        assert file_bytes(build_corpus(corpus, tmp_path / "x", tokenizer=tokenizer).folder) == expected, name
        assert (get_work_root(tmp_path / "x") / REJECTS_FILE).read_bytes() == rejects, name
        shutil.rmtree(tmp_path / "x")
