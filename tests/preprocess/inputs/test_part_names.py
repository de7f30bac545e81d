"""Names of files that say that others are missing, or that they are those of several splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.errors import MisuseError
from preprocess.inputs.find_inputs import find_input_files, find_sample
from preprocess.inputs.part_names import find_gaps, find_missing_parts, find_mixed_splits
from preprocess.progress import Progress
from preprocess.recipes.schema import Recipe

PARTS = [f"data/train-{i:05}-of-00004.parquet" for i in range(4)]
HASH = "-0123456789abcdef"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (PARTS, []),
        ([*PARTS[:1], *PARTS[2:]], ["1 of the 4 files data/train-*-of-00004.parquet is missing, such as number 1"]),
        (PARTS[:2], ["2 of the 4 files data/train-*-of-00004.parquet are missing, such as number 2"]),
        ([f"a-{i}-of-3.txt" for i in (1, 2, 3)], []),  # numbered from 1
        ([f"a-{i}-of-3.txt" for i in (1, 3)], ["1 of the 3 files a-*-of-3.txt is missing, such as number 2"]),
        ([f"x/{i:05}-of-00002{HASH}.parquet" for i in range(2)], []),
        (["a-0-of-1.txt", "b-0-of-1.txt"], []),
        (["a-0-of-1.txt", "a-0-of-2.txt", "a-1-of-2.txt"], ["files a-*.txt of a set of 1 and 2 files, perhaps of two"]),
        (["two-of-three.txt", "1-of-99999999999.txt", "plain.txt"], []),
    ],
)
def test_missing_parts(names: list[str], expected: list[str]) -> None:
    lines = find_missing_parts(names)
    assert len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines, strict=True)), lines


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["a_000000.bin", "a_000001.bin", "a_000002.bin"], None),
        (["a_000000.bin", "a_000002.bin"], "a_000001.bin"),
        (["t/00001.ds", "t/00003.ds", "v/00000.ds"], "t/00002.ds"),
        (["wiki_2019.bin", "wiki_2021.bin"], None),  # not numbered from 0 or 1
        (["a_00.bin", "b_02.bin"], None),
        (PARTS[::3], None),  # reported by `find_missing_parts`
    ],
)
def test_gaps_in_numbered_files(names: list[str], missing: str | None) -> None:
    lines = find_gaps(names)
    assert len(lines) == (missing is not None) and all(line.startswith(f"{missing} is missing") for line in lines)


@pytest.mark.parametrize(
    ("names", "splits", "pattern"),
    [
        (["train.txt", "valid.txt", "test.txt"], "train, validation and test", "train|valid|test"),
        (["data/train-0.parquet", "data/test-0.parquet"], "train and test", ""),  # --split given needs validation
        (["train/a.arrow", "dev/a.arrow"], "train and validation", "train|dev"),
        (["vale-train.txt", "vale-val.txt"], "train and validation", "(?:^|[^a-z])(?P<split>train|val)(?:[^a-z]|$)"),
        (["Train.txt", "Val.txt"], "train and validation", ""),  # no pattern finds the lower-case names of splits
        (["train/a.txt", "train/b.txt"], "", ""),
        (["test/a.txt", "test/train.txt", "train/b.txt"], "", ""),  # one name says two splits
        (["train.txt", "test.txt", "notes.txt"], "", ""),  # as in a repository with source code
        (["test/train.txt"], "", ""),
    ],
)
def test_mixed_splits(names: list[str], splits: str, pattern: str) -> None:
    lines = find_mixed_splits(names)
    assert len(lines) == bool(splits)
    pattern = pattern if "(" in pattern or not pattern else f"(?P<split>{pattern})"
    advice = f"--split given --name-pattern '{pattern}' to keep the splits, or name" if pattern else "split again; name"
    assert all(f"files say {splits}, but" in line and advice in line for line in lines), lines


class Warnings(Progress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize("find", [find_input_files, find_sample])
def test_a_folder_is_warned_about_and_named_files_are_not(tmp_path: Path, find: Callable[..., object]) -> None:
    for name in ("train-0-of-2.txt", "val-0-of-1.txt"):
        (tmp_path / name).write_text(name)

    def warnings(*inputs: str, **settings: str) -> list[str]:
        progress = Warnings()
        find(Recipe(corpus="own", inputs=inputs, **settings), None, progress)  # type: ignore[arg-type]
        return progress.lines

    missing, mixed = warnings(str(tmp_path))
    assert "1 of the 2 files train-*-of-2.txt is missing" in missing and "pass --split given" in mixed
    (tmp_path / "val-0-of-1.txt").unlink()
    assert warnings(str(tmp_path / "*-of-2.txt")) == [missing]
    assert warnings(str(tmp_path / "train-0*-of-2.txt")) == []  # the missing file does not match
    (tmp_path / "val-0-of-1.txt").write_text("val")
    pattern = {"split": "given", "name_pattern": "(?P<split>train|val)"}
    assert warnings(str(tmp_path), **pattern) == [missing]
    assert warnings(str(tmp_path / "train-0-of-2.txt")) == []


def test_nothing_is_warned_about_without_files(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="matches no file"):
        find_input_files(Recipe(corpus="own", inputs=(str(tmp_path),)), None, Warnings())  # type: ignore[arg-type]
