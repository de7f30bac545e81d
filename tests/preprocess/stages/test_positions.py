"""Documents that are grouped by their positions in several files: no record may shift those after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.estimate import estimate_build
from preprocess.build.plan import make_plan
from preprocess.errors import FolioError
from preprocess.recipes.catalog import load_recipe
from preprocess.stream import TokenStream, open_corpus
from tests.helpers.file_builds import QUIET, build_files, read_stats

NUM_RECORDS = 20
MAX_BYTES = 40


def write_pair(folder: Path, kind: str, record: str) -> tuple[list[Path], dict[str, Any]]:
    """Write two parallel files, the second with `record` as one of its records; return them and their settings."""
    suffix, settings = {
        "jsonl": (".jsonl", {}),
        "csv": (".csv", {}),
        "line": (".txt", {"document": "line", "max_document_bytes": MAX_BYTES, "oversized": "skip"}),
    }[kind]
    paths = []
    for language in ("en", "ru"):
        records = [f"{language} {i}" for i in range(NUM_RECORDS)]
        if kind == "jsonl":
            records = [json.dumps({"text": text}) for text in records]
        if language == "ru":
            records[7] = record
        paths.append(folder / f"{language}{suffix}")
        paths[-1].write_bytes("\n".join((["text"] if kind == "csv" else []) + records).encode("latin-1"))
    return paths, {**settings, "group_by": "position"}


SHIFTING = [
    ("jsonl", '{"text": "cut sho', "ru.jsonl, byte 119: a record is left out .invalid JSON"),
    ("jsonl", '{"text": "caf\xe9"}', "ru.jsonl, byte 119: a record is left out .not UTF-8"),
    ("csv", "a,b", "ru.csv, row 9: a record is left out .expected 1 values, got 2"),
    ("line", "x" * 2 * MAX_BYTES, "ru.txt, the record at byte 35: a record is left out .longer than"),
]


@pytest.mark.parametrize(("kind", "record", "message"), SHIFTING)
def test_a_record_that_would_shift_the_positions_is_an_error(
    tmp_path: Path, kind: str, record: str, message: str
) -> None:
    paths, settings = write_pair(tmp_path, kind, record)
    message += ".* shifts the positions by which documents are grouped"
    with pytest.raises(FolioError, match=message):
        build_files(tmp_path, *paths, invalid_utf8="skip", **settings)
    inputs = tuple(map(str, paths))
    settings |= {"invalid_utf8": "skip", "tokenizer": "byte", "dedup": False}
    with pytest.raises(FolioError, match=message):
        plan = make_plan(load_recipe(None, inputs=inputs, **settings), None, QUIET)
        estimate_build(plan, 2 * NUM_RECORDS, workers=1)
    with pytest.raises(FolioError, match=message):
        list(TokenStream(open_corpus(None, inputs=inputs, **settings), block_size=4))


@pytest.mark.parametrize(("kind", "record", "message"), SHIFTING)
def test_such_a_record_is_left_out_if_documents_are_not_grouped(
    tmp_path: Path, kind: str, record: str, message: str
) -> None:
    paths, settings = write_pair(tmp_path, kind, record)
    result = build_files(tmp_path, *paths, invalid_utf8="skip", **{**settings, "group_by": "content"})
    assert read_stats(result)["documents"]["kept"] == 2 * NUM_RECORDS - 1


def test_a_record_that_keeps_its_position_does_not_shift_others(tmp_path: Path) -> None:
    paths, settings = write_pair(tmp_path, "jsonl", '{"text": null}')
    result = build_files(tmp_path, *paths, **settings)
    sides = {side: set(result.docs(side)["position"].tolist()) for side in ("train", "val")}
    assert not sides["train"] & sides["val"] and sum(map(len, sides.values())) == NUM_RECORDS


def test_files_with_different_numbers_of_documents_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, settings = write_pair(tmp_path, "csv", "")  # an empty row is no record
    build_files(tmp_path, *paths, **settings)
    message = "en.csv has 20 documents, but ru.csv has 19, so documents at the same position may not belong together"
    assert message in capsys.readouterr().err
    build_files(tmp_path, *paths, **{**settings, "group_by": "content"})
    assert message not in capsys.readouterr().err
