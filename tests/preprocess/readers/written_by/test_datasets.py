"""Files and folders of Hugging Face's `datasets` give the documents of their data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import MisuseError
from tests.helpers.file_builds import build_files, read_texts
from tests.preprocess.readers.written_by.helpers import DOCUMENTS, ROWS, TEXTS, check_documents

datasets = pytest.importorskip("datasets")
NESTED: dict[str, list[Any]] = {
    **ROWS, "tags": [["a", "b"]] * len(TEXTS), "meta": [{"lang": "en", "body": text} for text in TEXTS],
    "turns": [[{"role": "user", "content": "hello"}]] * len(TEXTS),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("type_", ["string", "large_string"])
def test_folders_of_save_to_disk_are_read(tmp_path: Path, num_shards: int, type_: str) -> None:
    features = datasets.Features({"id": datasets.Value("int64"), "text": datasets.Value(type_)})
    datasets.Dataset.from_dict(ROWS, features).save_to_disk(tmp_path / "in", num_shards=num_shards)
    check_documents(tmp_path, tmp_path / "in")


def test_dataset_dict_is_read_as_a_folder_and_by_split(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(ROWS)
    splits = {"train": rows.select(range(10)), "test": rows.select(range(10, len(TEXTS)))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "in")
    expected = [[text for text in part if text] for part in (TEXTS[:10], TEXTS[10:])]
    assert read_texts(build_files(tmp_path, tmp_path / "in")) == expected[1] + expected[0]  # test, then train
    for name, texts in zip(("train", "test"), expected, strict=True):
        assert read_texts(build_files(tmp_path, tmp_path / "in" / name)) == texts


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("a.jsonl", "to_json", {}), ("a.json", "to_json", {"lines": False}),
        ("a.json.gz", "to_json", {"compression": "gzip"}), ("a.csv", "to_csv", {}), ("a.parquet", "to_parquet", {}),
    ],
)  # fmt: skip
def test_exported_files_are_read(tmp_path: Path, name: str, method: str, options: dict[str, Any]) -> None:
    getattr(datasets.Dataset.from_dict(ROWS), method)(str(tmp_path / name), **options)
    check_documents(tmp_path, tmp_path / name)


@pytest.mark.parametrize(("name", "method"), [("a.jsonl", "to_json"), ("a.parquet", "to_parquet"), ("a", "")])
def test_columns_of_structs_and_lists_do_not_disturb(tmp_path: Path, name: str, method: str) -> None:
    rows = datasets.Dataset.from_dict(NESTED)
    (getattr(rows, method) if method else rows.save_to_disk)(str(tmp_path / name))
    check_documents(tmp_path, tmp_path / name, where='meta.lang == "en"')
    assert read_texts(build_files(tmp_path, tmp_path / name, text_column="meta.body")) == DOCUMENTS
    with pytest.raises(MisuseError, match=r"'turns' of .* has a list in each row, so 'turns.content' is not one text"):
        build_files(tmp_path, tmp_path / name, text_column="turns.content")
