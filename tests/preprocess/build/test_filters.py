"""Builds with filters: which documents they keep, what stats.json says, and that nothing else changes the bytes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.estimate import estimate_build, format_estimate
from preprocess.build.filter_stats import format_filter_counts
from preprocess.build.plan import plan_estimate
from preprocess.build.stats import format_stats
from preprocess.build.try_filters import format_trial, try_filters
from preprocess.errors import FolioError, MisuseError
from preprocess.filters.counts import MAX_EXAMPLES
from preprocess.filters.word_count import WordCountFilter
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.stream import TokenStream
from tests.conftest import assert_one_line, file_bytes
from tests.helpers.file_builds import read_stats, read_texts
from tests.preprocess.build.helpers import QUIET, run_build
from tests.preprocess.stream.helpers import open_files, read_documents

PROSE = "It was to be the day that we have seen, and one of the men had come with a dog to the house by the river. "
FILTERS = (
    "word_count:min_words=12,max_words=40",
    "gopher_quality:min_words=5,min_mean_word_length=2,max_ellipsis_lines=0.5,max_symbol_ratio=none",
    "c4:min_sentences=2",
)


def make_texts(count: int) -> list[str]:
    rng = random.Random(1)
    words = PROSE.split()
    texts = []
    for number in range(count):
        lines = [
            " ".join(rng.choices(words, k=rng.randint(1, 12))) + rng.choice([".", ".", "", "..."]) for _ in range(3)
        ]
        texts.append(f"{number} is " + "\n".join(lines))
    return texts


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files, of which the first two are divided into partitions if these are small."""
    texts = make_texts(300)
    paths = []
    for i, part in enumerate((texts[:140], texts[140:290], texts[290:])):
        paths.append(tmp_path / f"{i}.jsonl")
        paths[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    return paths


def build_filtered(folder: Path, files: list[Path], *, workers: int = 1, **overrides: Any) -> Build:
    settings = {"tokenizer": "byte", "filters": FILTERS, **overrides}
    recipe = load_recipe(None, inputs=tuple(map(str, files)), **settings)
    run_build(recipe, folder, name="x", workers=workers)
    return Build(folder)


def test_bytes_do_not_depend_on_workers_and_partitions(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = file_bytes(build_filtered(tmp_path / "whole", files).folder)
    stats = json.loads(expected["stats.json"])
    assert all(sum(entry["dropped"].values()) > 10 for entry in stats["filters"])
    assert all(entry["examples"] for entry in stats["filters"])
    for workers, partition_bytes in ((1, 700), (2, 3_000), (3, 1_000)):
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", partition_bytes)
        found = build_filtered(tmp_path / f"{workers}", files, workers=workers)
        assert file_bytes(found.folder) == expected


def test_a_later_filter_sees_what_earlier_ones_have_kept(tmp_path: Path, files: list[Path]) -> None:
    build = build_filtered(tmp_path / "x", files)
    stats = read_stats(build)
    first, second, third = stats["filters"]
    assert first["documents"] == 300
    assert second["documents"] == 300 - sum(first["dropped"].values())
    assert third["documents"] == second["documents"] - sum(second["dropped"].values())
    num_kept = third["documents"] - sum(third["dropped"].values())
    assert stats["documents"]["kept"] + stats["documents"]["duplicates"] == num_kept
    assert stats["documents"]["by_filters"] == 300 - num_kept
    assert third["changed"] > 10 and third["counts"]["lines_without_punctuation"] > 10


def test_the_shards_have_the_edited_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = [f"Document {i} has one good line.\nand one that goes on" for i in range(10)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build = build_filtered(tmp_path / "x", [path], filters=("c4:min_sentences=1",))
    assert sorted(read_texts(build)) == sorted(text.partition("\n")[0] for text in texts)


def test_examples_are_the_first_documents_of_the_input(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 1_000)
    entry = read_stats(build_filtered(tmp_path / "x", files, filters=("word_count:min_words=12",), workers=2))[
        "filters"
    ][0]
    texts = [json.loads(line)["text"] for path in files[:1] for line in path.read_text().splitlines()]
    dropped = [i for i, text in enumerate(texts) if len(text.split()) < 12]
    examples = entry["examples"]["too_few_words"]
    assert [(each["file"], each["document"]) for each in examples] == [("0.jsonl", i) for i in dropped[:MAX_EXAMPLES]]
    assert [each["value"] for each in examples] == [len(texts[i].split()) for i in dropped[:MAX_EXAMPLES]]
    assert [each["text"] for each in examples] == [texts[i][:200] for i in dropped[:MAX_EXAMPLES]]
    assert entry["settings"] == {"min_words": 12, "max_words": 100_000}


def test_a_filter_can_hide_its_examples(tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WordCountFilter, "hides_examples", True)
    stats = read_stats(build_filtered(tmp_path / "x", files, filters=("word_count:min_words=12",)))
    assert stats["filters"][0]["dropped"]["too_few_words"] > 10 and not stats["filters"][0]["examples"]
    recipe = load_recipe(None, inputs=(str(files[0]),), tokenizer="byte", filters=("word_count:min_words=12",))
    [entry] = try_filters(plan_estimate(recipe, None, QUIET), 100, 3)
    assert entry["dropped"]["too_few_words"] and not entry["dropped_examples"] and not entry["kept_examples"]


def test_control_characters_of_examples_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("\x1b[31m\x9b\u202e bad", PROSE, PROSE + "x"))
    )
    build = build_filtered(tmp_path / "x", [path], filters=("word_count:min_words=5",), clean=(), val_fraction=0.0)
    stats = (build.folder / "stats.json").read_text()
    assert "\\\\x1b[31m\\\\x9b\\\\u202e bad" in stats and not {"\x1b", "\x9b", "\u202e"} & {*stats}
    recipe = load_recipe(None, inputs=(str(path),), tokenizer="byte", clean=(), filters=("word_count:min_words=5",))
    entries = try_filters(plan_estimate(recipe, None, QUIET), 100, 3)
    shown = json.dumps(entries, ensure_ascii=False) + "".join(format_trial(entries[0]))
    assert "\\x1b[31m" in shown and not {"\x1b", "\x9b", "\u202e"} & {*shown}


def test_a_build_that_is_there_is_not_made_again(tmp_path: Path, files: list[Path]) -> None:
    recipe = load_recipe(None, inputs=tuple(map(str, files)), tokenizer="byte", filters=FILTERS)
    assert run_build(recipe, tmp_path / "x") and not run_build(recipe, tmp_path / "x")


def test_the_statistics_show_the_counts_of_filters(tmp_path: Path, files: list[Path]) -> None:
    build = build_filtered(tmp_path / "x", files)
    data = (build.folder / "stats.json").read_bytes()
    lines = [line for line in format_stats(data) if line.startswith("filter")]
    assert lines == format_filter_counts(json.loads(data)["filters"]) and len(lines) == 3
    assert lines[0].startswith("filter      word_count: read 300, dropped ") and "too_few_words" in lines[0]


def test_a_build_of_which_filters_leave_nothing_says_why(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(
        FolioError, match="300 by filters; the reason of all 300: filter word_count: too_few_words"
    ) as e:
        build_filtered(tmp_path / "x", files, filters=("word_count:min_words=1000",))
    assert_one_line(str(e.value))


def test_an_estimate_reports_what_each_filter_drops(files: list[Path]) -> None:
    recipe = load_recipe(None, inputs=tuple(map(str, files)), tokenizer="byte", filters=FILTERS)
    estimate = estimate_build(plan_estimate(recipe, None, QUIET), 50, workers=1)
    assert estimate["filters"][0]["documents"] == 300
    lines = [line for line in format_estimate(estimate) if line.startswith("filter")]
    assert lines == format_filter_counts(estimate["filters"]) and len(lines) == 3


def test_a_stream_has_the_documents_of_the_build(tmp_path: Path, files: list[Path]) -> None:
    settings: dict[str, Any] = {"filters": FILTERS, "split": "threshold", "val_fraction": 0.2, "dedup": False}
    build = build_filtered(tmp_path / "x", files, **settings, clean=())
    corpus = open_files(*files, **settings)
    found = [
        text.decode()
        for split in ("train", "val")
        for text in read_documents(TokenStream(corpus, block_size=16, split=split, tail="pad", stream_buffer=0))
    ]
    assert sorted(found) == sorted(read_texts(build)) and len(found) > 50


def test_chats_are_judged_by_their_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "a b " * i}, {"role": "assistant", "content": "c."}]} for i in (1, 9)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build = build_filtered(
        tmp_path / "x", [path], filters=("word_count:min_words=10",), val_fraction=0.0, tokenizer="gpt2"
    )
    [example] = read_stats(build)["filters"][0]["examples"]["too_few_words"]
    assert example["text"] == "a b c." and example["value"] == 3.0


def test_chats_that_are_recognised_cannot_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    with pytest.raises(MisuseError, match="the filter c4 removes lines from texts, but these documents are chats"):
        build_filtered(tmp_path / "x", [path], filters=("c4",))


@pytest.fixture
def word_list(tmp_path: Path) -> Path:
    path = tmp_path / "bad.txt"
    path.write_text("badger\nold river (x)\n中文\n\n")
    return path


@pytest.mark.parametrize(
    ("text", "is_dropped"),
    [
        ("a Badger.", True), ("badgers are fine", False), ("_badger", False), ("badger2", False), ("badger", True),
        ("the OLD RIVER (x) here", True), ("old river x", False), ("这是中文吗", True), ("中 文", False),
        ("«badger»", True), ("ÄBADGER", False), ("a\nbadger\nb", True),
    ],
)  # fmt: skip
def test_bad_words_are_whole_words_of_the_list(tmp_path: Path, word_list: Path, text: str, is_dropped: bool) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in (text, "nothing here")))
    recipe = load_recipe(None, inputs=(str(path),), tokenizer="byte", filters=(f"bad_words:file={word_list}",))
    [entry] = try_filters(plan_estimate(recipe, None, QUIET), 10, 3)
    assert entry["dropped"]["bad_word"] == is_dropped


def test_a_list_of_thousands_of_words_is_searched(tmp_path: Path, files: list[Path]) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("".join(f"word{i} and.{i}\n" for i in range(3_000)) + "299\n")
    stats = read_stats(build_filtered(tmp_path / "x", files, filters=(f"bad_words:file={path}",)))
    assert stats["filters"][0]["dropped"] == {"bad_word": 1}
    assert stats["filters"][0]["settings"]["file"] == "bad.txt"


def test_the_content_of_a_list_decides_the_build(tmp_path: Path, files: list[Path], word_list: Path) -> None:
    first = build_filtered(tmp_path / "x", files, filters=(f"bad_words:file={word_list}",))
    moved = tmp_path / "elsewhere" / "bad.txt"
    moved.parent.mkdir()
    moved.write_bytes(word_list.read_bytes())
    same = build_filtered(tmp_path / "y", files, filters=(f"bad_words:file={moved}",))
    assert first.build_id == same.build_id
    moved.write_text("other\n")
    assert build_filtered(tmp_path / "z", files, filters=(f"bad_words:file={moved}",)).build_id != first.build_id


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "the filter bad_words names the file .*, which does not exist"),
        (b"", "has no words; add one per line"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_faulty_list_is_explained(tmp_path: Path, files: list[Path], content: bytes | None, expected: str) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FolioError, match=expected) as e:
        build_filtered(tmp_path / "x", files, filters=(f"bad_words:file={path}",))
    assert_one_line(str(e.value))
