"""Builds that remove lines and paragraphs which other documents have too."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.build import build_tokenizer
from preprocess.build.stats import format_stats
from preprocess.errors import MisuseError
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.shards.verify import verify
from preprocess.stream import TokenStream
from tests.conftest import file_bytes
from tests.helpers.file_builds import read_texts
from tests.preprocess.build.helpers import QUIET, run_build

MIN_CHARACTERS = 30
COMMON = [f"this line number {i} is in several of the documents of the corpus" for i in range(40)]


def make_texts(count: int = 200) -> list[str]:
    rng = random.Random(4)
    texts = []
    for number in range(count):
        own = [f"only document {number} has line {k}, with more than 30 characters" for k in range(rng.randint(1, 4))]
        lines = [*own, *rng.choices(COMMON, k=rng.randint(0, 3)), *(["a short line"] if number % 3 else [])]
        if number % 2:
            lines.append("We use cookies to improve your experience on this site.")
        rng.shuffle(lines)
        texts.append("\n".join(lines))
    return texts


def remove_lines(texts: list[str], max_documents: int | None) -> list[str]:
    """Return the expected texts."""
    counts = Counter(line for text in texts for line in set(text.split("\n")))
    seen: set[str] = set()
    result = []
    for text in texts:
        lines = text.split("\n")
        is_removed = seen.__contains__ if max_documents is None else lambda line: counts[line] > max_documents
        result.append("\n".join(line for line in lines if len(line) < MIN_CHARACTERS or not is_removed(line)))
        seen.update(lines)
    return result


def write_records(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def make_recipe(path: Path, **settings_: Any) -> Any:
    return load_recipe(None, inputs=(str(path),), **{"tokenizer": "byte", "dedup_lines": "line", **settings_})


def make_build(path: Path, output_dir: Path, *, workers: int = 1, **settings_: Any) -> Build:
    run_build(make_recipe(path, **settings_), output_dir, workers=workers)
    build = Build(output_dir)
    assert list(verify(build)) == []
    return build


@pytest.mark.parametrize("max_documents", [None, 1, 5])
def test_repeated_lines_are_removed(tmp_path: Path, max_documents: int | None) -> None:
    texts = make_texts()
    path = write_records(tmp_path / "a.jsonl", texts)
    build = make_build(path, tmp_path / "x", dedup_lines_max_documents=max_documents)
    expected = remove_lines(texts, max_documents)
    assert sorted(read_texts(build)) == sorted(set(expected)) and expected != texts
    stats = json.loads((build.folder / "stats.json").read_bytes())["repeated_lines"]
    counts = Counter(line for text in texts for line in set(text.split("\n")) if len(line) >= MIN_CHARACTERS)
    limit = max_documents or 1
    assert stats["repeated"] == sum(n > limit for n in counts.values())
    num_lines, num_kept = (
        sum(len(line) >= MIN_CHARACTERS for text in each for line in text.split("\n")) for each in (texts, expected)
    )
    assert (stats["unit"], stats["units"], stats["removed"]) == ("line", num_lines, num_lines - num_kept)
    assert stats["documents"] == sum(a != b for a, b in zip(texts, expected, strict=True))
    text = "\n".join(format_stats((build.folder / "stats.json").read_bytes()))
    assert f"{num_lines - num_kept:,} of {num_lines:,} were removed from {stats['documents']:,} documents" in text


def test_repeated_paragraphs_are_removed(tmp_path: Path) -> None:
    paragraph = "the first line of a paragraph\nand its second line"
    texts = [f"{paragraph}\n\ndocument {i} has this paragraph of its own" for i in range(20)]
    build = make_build(write_records(tmp_path / "a.jsonl", texts), tmp_path / "x", dedup_lines="paragraph")
    assert sorted(read_texts(build)) == sorted([texts[0], *(text.split("\n\n")[1] for text in texts[1:])])


@pytest.mark.parametrize("settings_", [{}, {"dedup_lines_max_documents": 3}, {"tokenizer": "char"}])
def test_workers_partitions_and_buckets_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings_: dict[str, Any]
) -> None:
    path = write_records(tmp_path / "a.jsonl", make_texts())
    expected = file_bytes(make_build(path, tmp_path / "expected/x", **settings_).folder)
    monkeypatch.setattr("preprocess.build.buckets.ROWS_PER_BUCKET", 50)
    monkeypatch.setattr("preprocess.build.repeated_lines.MAX_ROWS", 20)
    for number, (workers, partition_bytes) in enumerate([(1, 2_000), (5, 6_000)]):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        build = make_build(path, tmp_path / str(number) / "x", workers=workers, **settings_)
        assert file_bytes(build.folder) == expected


def test_text_that_is_cut_at_a_fraction_has_the_same_bytes_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(make_texts()))
    settings_ = {"split": "contiguous", "max_document_bytes": 1000}
    expected = file_bytes(make_build(path, tmp_path / "expected/x", **settings_).folder)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)
    assert file_bytes(make_build(path, tmp_path / "x", workers=2, **settings_).folder) == expected


@pytest.mark.parametrize("place", ["find_repeated_units", "dedup_and_split"])
def test_interrupted_build_continues_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    path = write_records(tmp_path / "a.jsonl", make_texts())
    expected = file_bytes(make_build(path, tmp_path / "expected/x").folder)
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 3000)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"preprocess.build.build.{place}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_build(path, tmp_path / "x")
    damaged = sorted((tmp_path / ".x.work").glob("*/part-*.lines"))[1]
    damaged.write_bytes(bytes(damaged.stat().st_size))  # as after a power failure
    assert file_bytes(make_build(path, tmp_path / "x").folder) == expected
    assert {each.name for each in tmp_path.glob(".x*")} <= {".x.lock"}


def test_document_without_other_lines_is_empty(tmp_path: Path) -> None:
    texts = [*make_texts(), COMMON[0], f"{COMMON[0]}\n{COMMON[1]}"]
    build = make_build(write_records(tmp_path / "a.jsonl", texts), tmp_path / "x")
    assert json.loads((build.folder / "stats.json").read_bytes())["documents"]["empty"] == 2


def test_tokenizer_is_trained_without_the_lines(tmp_path: Path) -> None:
    texts = [*make_texts(), *[f"{'Ж' * 40}\ndocument {i} is here" for i in range(5)]]
    path = write_records(tmp_path / "a.jsonl", texts)
    arguments: dict[str, Any] = {"source": None, "replace": False, "progress": QUIET, "workers": 1}
    sizes = [
        build_tokenizer(
            make_recipe(path, tokenizer="char", dedup_lines_max_documents=n), tmp_path / str(n), **arguments
        ).vocab_size
        for n in (4, 100)
    ]
    assert sizes[0] < sizes[1]


def test_stream_and_chats_reject_it(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", ["a", "b"])
    with pytest.raises(MisuseError, match="a stream cannot find repeated lines; leave dedup_lines out"):
        TokenStream(make_recipe(path), block_size=4)
    with pytest.raises(MisuseError, match="dedup_lines removes lines from texts, but these documents are chats"):
        make_recipe(path, chat_columns="messages")
    with pytest.raises(MisuseError, match="dedup_lines_max_documents has no effect"):
        make_recipe(path, dedup_lines=None, dedup_lines_max_documents=3)
