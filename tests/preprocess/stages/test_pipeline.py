"""Passages, and splits given by files, columns and groups."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.build import build
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError
from preprocess.readers.records import Rejects
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.format import Build
from preprocess.stages.pipeline import read_documents
from preprocess.tokenizers import load_tokenizer
from tests.helpers.file_builds import QUIET, WORDS, build_files, read_stats, read_texts


def test_passages_joined_are_the_file(tmp_path: Path) -> None:
    text = "".join(f"{w} is here.\n\n" for w in WORDS)
    (tmp_path / "a.txt").write_text(text)
    result = build_files(tmp_path, tmp_path / "a.txt", document="passage", passage_characters=60)
    assert "".join(read_texts(result)) == text and len(read_texts(result)) > 5


def test_group_by_position_keeps_pairs_on_one_side(mirror: Path, tmp_path: Path) -> None:
    recipe = load_recipe("pud", num_pieces=600)
    build(recipe, tmp_path / "pud", name="pud", replace=False, progress=QUIET)
    result = Build(tmp_path / "pud")
    sides = {s: set(result.docs(s)["position"].tolist()) for s in ("train", "val")}
    assert len(sides["val"]) == 100 and not sides["train"] & sides["val"]
    assert read_stats(result)["languages"]["ru"]["documents"] == 1000


def test_given_split_from_file_names(mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    build(load_recipe("wikitext-2", tokenizer="byte"), tmp_path / "w", name="w", replace=False, progress=QUIET)
    result = Build(tmp_path / "w")
    texts = {n: (mirror / f"wikitext-2/{n}.txt").read_bytes() for n in ("test", "valid")}
    tokenizer = load_tokenizer(result.folder, result.manifest)
    assert tokenizer.decode_bytes(result.document("train", 0)[:-1]) == texts["test"]
    assert tokenizer.decode_bytes(result.document("val", 0)[:-1]) == texts["valid"]
    assert "its test documents are used for training" in capsys.readouterr().err


def test_given_split_from_a_column(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "s": s} for i, s in enumerate(["train", "validation", "test", "train", "dev"])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = build_files(tmp_path, tmp_path / "a.jsonl", split="given", split_column="s")
    assert [result.manifest.splits[s].documents for s in ("train", "val")] == [2, 2]
    assert read_stats(result)["documents"]["held_out"] == 1
    (tmp_path / "a.jsonl").write_text('{"text": "t", "s": "exam"}')
    with pytest.raises(FolioError, match="contains the split 'exam', expected one of train, val"):
        build_files(tmp_path, tmp_path / "a.jsonl", split="given", split_column="s")


def test_a_single_group_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": w}) for w in WORDS))
    with pytest.raises(FolioError, match="all 40 documents are one group"):
        build_files(tmp_path, tmp_path / "a.jsonl", group_by="source")


SMALL_FILE_SETTINGS = [
    {},
    {"document": "line", "min_characters": 9, "group_by": "source"},
    {"document": "line", "group_by": "position"},
    {"document": "passage", "passage_characters": 20},
    {"split": "contiguous"},
    {"split": "given", "name_pattern": r"(?P<split>train|val)-(?P<author>\w+?)-(?P<year>\d+)"},
    {"clean": ("white_space", "trim"), "tokenizer": "char", "author": "Anna", "lang": "en"},
]


def write_small_files(folder: Path) -> None:
    folder.mkdir()
    for number in range(30):
        author = "AB"[number % 2]
        text = f"  text {number % 20} of {author}\n\n{'more  text ' * (number % 5)}\nline {number}\n\n"
        (folder / f"{'val' if number % 3 else 'train'}-{author}-{1990 + number % 4}-{number:02}.txt").write_text(text)


@pytest.mark.parametrize("settings", SMALL_FILE_SETTINGS)
def test_merged_batches_and_small_partitions_change_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    write_small_files(tmp_path / "in")
    ids = []
    for merged_bytes, partition_files in ((4 << 20, 2_048), (0, 2_048), (3_000, 2_048), (4 << 20, 7)):
        monkeypatch.setattr("preprocess.stages.pipeline.MERGED_BYTES", merged_bytes)
        monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_FILES", partition_files)
        ids.append(build_files(tmp_path, tmp_path / "in", **settings).build_id)
    assert len(set(ids)) == 1


def test_documents_of_small_files_share_a_batch(tmp_path: Path) -> None:
    write_small_files(tmp_path / "in")
    plan = make_plan(load_recipe(None, inputs=(str(tmp_path / "in"),), tokenizer="byte"), None, QUIET)
    spans = [(plan.input_files[span.file_number], span) for span in plan.partitions[0].spans]
    rejects = Rejects(None)
    [(batch, sides)] = read_documents(spans, plan.recipe, rejects, Counter())
    assert batch.column("source").to_pylist() == list(range(30)) and len(sides) == 30
    assert rejects.finished_spans == [(number, 1) for number in range(30)]
