"""Records longer than a document may be: all parts of one are on one side of a random split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.tokenizers import load_tokenizer
from tests.helpers.file_builds import WORDS, build_files, read_texts

NUM_RECORDS = 20
RECORDS = [" ".join(f"record{i}-{word}" for word in WORDS[: 9 + i % 3]) for i in range(NUM_RECORDS)]
MAX_BYTES = 100  # cuts every record into two parts


def write_records(folder: Path, kind: str, records: list[str] = RECORDS) -> tuple[str, dict[str, Any]]:
    """Write the records to files, and return their glob with the settings to read them."""
    table = pa.table({"text": records, "year": [f"{1000 + i // 2}" for i in range(len(records))]})
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=3)
    elif kind == "csv":
        pa.csv.write_csv(table, folder / "a.csv")
    elif kind == "jsonl":
        (folder / "a.jsonl").write_text("\n".join(map(json.dumps, table.to_pylist())))
    elif kind == "file":
        for i, record in enumerate(records):
            (folder / f"{i:02}.txt").write_text(record)
    else:
        separator = {"line": "\n", "paragraph": "\n\n", "separator": "=*="}[kind]
        (folder / "a.txt").write_text(separator.join(records))
    settings = {"document": kind} if kind in ("line", "paragraph", "separator") else {}
    if kind == "separator":
        settings["separator"] = "=*="
    return str(folder / "*.*"), settings


def count_sides(result: Build, name_record: Callable[[str], str]) -> dict[str, Counter[str]]:
    """Return the number of documents by side for each record."""
    tokenizer = load_tokenizer(result.folder, result.manifest)
    counts: dict[str, Counter[str]] = {}
    for side in ("train", "val"):
        for number in range(len(result.docs(side))):
            ids = result.document(side, number)
            text = tokenizer.decode_bytes(ids[ids < 256]).decode()
            counts.setdefault(name_record(text), Counter())[side] += 1
    return counts


def find_record(text: str) -> str:
    """Return the record to which a part belongs."""
    return text.split()[0].partition("-")[0]


KINDS = ["line", "paragraph", "separator", "file", "jsonl", "csv", "parquet"]


@pytest.mark.parametrize("split", ["exact", "threshold"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_parts_of_a_record_are_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, split: str
) -> None:
    glob, settings = write_records(tmp_path, kind)
    settings |= {"max_document_bytes": MAX_BYTES, "split": split, "val_fraction": 0.3, "dedup": True}
    result = build_files(tmp_path / "out", glob, **settings)
    counts = count_sides(result, find_record)
    assert len(counts) == NUM_RECORDS and all(len(sides) == 1 for sides in counts.values())
    assert sum(sides.total() for sides in counts.values()) == 2 * NUM_RECORDS
    if split == "exact":
        assert sum("val" in sides for sides in counts.values()) == round(0.3 * NUM_RECORDS)
    # The groups do not depend on the blocks and the partitions in which the records are read.
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_BYTES", 300)
    monkeypatch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", 11)
    assert build_files(tmp_path / "out", glob, name="small", **settings).build_id == result.build_id


def test_parts_in_a_group_of_the_user_stay_in_it(tmp_path: Path) -> None:
    glob, settings = write_records(tmp_path, "jsonl")
    result = build_files(
        tmp_path / "out", glob, max_document_bytes=MAX_BYTES, group_column="year", val_fraction=0.3, **settings
    )
    groups = count_sides(result, lambda text: str(int(find_record(text).removeprefix("record")) // 2))
    assert len(groups) == NUM_RECORDS // 2 and all(len(sides) == 1 for sides in groups.values())
    assert sum("val" in sides for sides in groups.values()) == 3


@pytest.mark.parametrize("kind", ["file", "line", "separator"])
def test_parts_of_the_only_document_are_split_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    glob, settings = write_records(tmp_path, kind, [" ".join(RECORDS)])
    for split in ("exact", "threshold"):
        result = build_files(tmp_path / "out", glob, max_document_bytes=MAX_BYTES, split=split, **settings)
        num_parts = [result.manifest.splits[side].documents for side in ("train", "val")]
        assert min(num_parts) > 0.2 * sum(num_parts) and "".join(read_texts(result)) == " ".join(RECORDS)
        message = capsys.readouterr().err
        assert f"the corpus is one long document, whose {sum(num_parts):,} parts are split at random" in message
        assert "--split contiguous" in message


def test_two_long_documents_cannot_be_split_by_their_parts(tmp_path: Path) -> None:
    glob, settings = write_records(tmp_path, "file", [" ".join(RECORDS), " ".join(RECORDS).upper()])
    with pytest.raises(FolioError, match=r"2 documents cannot be split .* --split contiguous"):
        build_files(tmp_path / "out", glob, max_document_bytes=MAX_BYTES, val_fraction=0.1, **settings)


def test_passages_are_documents_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(RECORDS))
    result = build_files(
        tmp_path / "out", tmp_path / "a.txt", document="passage", passage_characters=100, max_document_bytes=900
    )
    sides = {side: result.docs(side)["position"].tolist() for side in ("train", "val")}
    assert len(sides["val"]) == round(0.5 * len(sides["train"] + sides["val"])) > 5


def test_equal_long_documents_are_on_one_side_without_dedup(tmp_path: Path) -> None:
    records = [*RECORDS, RECORDS[3], RECORDS[5]]
    glob, settings = write_records(tmp_path, "line", records)
    result = build_files(tmp_path / "out", glob, max_document_bytes=MAX_BYTES, dedup=False, **settings)
    counts = count_sides(result, find_record)
    assert len(counts) == NUM_RECORDS and all(len(sides) == 1 for sides in counts.values())


@pytest.mark.parametrize("kind", ["line", "jsonl"])
def test_a_long_record_among_documents_that_are_grouped_by_position_is_an_error(tmp_path: Path, kind: str) -> None:
    glob, settings = write_records(tmp_path, kind)
    message = rf"is longer than max_document_bytes \({MAX_BYTES}\), and cutting it would shift the positions"
    with pytest.raises(FolioError, match=message):
        build_files(tmp_path / "out", glob, max_document_bytes=MAX_BYTES, group_by="position", **settings)


def test_positions_of_parts_are_consecutive(tmp_path: Path) -> None:
    glob, settings = write_records(tmp_path, "parquet", ["short", *RECORDS, "x" * 150, "last"])
    result = build_files(tmp_path / "out", glob, max_document_bytes=MAX_BYTES, oversized="skip", **settings)
    positions = np.sort(np.concatenate([result.docs(side)["position"] for side in ("train", "val")]))
    texts = read_texts(result)
    assert "".join(texts[1:-1]) == "".join(RECORDS) and (texts[0], texts[-1]) == ("short", "last")
    assert positions.tolist() == [*range(len(texts) - 1), len(texts)]  # that of the dropped text is missing
