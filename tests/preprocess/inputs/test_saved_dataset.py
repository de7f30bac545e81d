"""Folders that `save_to_disk` of Hugging Face datasets wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from preprocess.errors import FolioError
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_texts


def save(folder: Path, texts: list[str], *, num_shards: int) -> None:
    """Write a folder as `Dataset.save_to_disk` does, which leaves the files of an earlier one."""
    folder.mkdir(exist_ok=True)
    names = [f"data-{i:05}-of-{num_shards:05}.arrow" for i in range(num_shards)]
    for i, name in enumerate(names):
        table = pa.table({"text": texts[i::num_shards]})
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_missing_shards_and_those_of_an_earlier_data_set_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder, [f"text {i}" for i in range(20)], num_shards=3)
    assert len(read_texts(build_files(tmp_path, folder))) == 20
    save(folder, [f"new {i}" for i in range(20)], num_shards=2)
    with pytest.raises(FolioError, match=r"has 3 files that its state.json does not list, such as data-00000-of-00003"):
        build_files(tmp_path, folder)
    for path in folder.glob("*-of-00003.arrow"):
        path.unlink()
    assert sorted(read_texts(build_files(tmp_path, folder))) == sorted(f"new {i}" for i in range(20))
    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(FolioError, match=r"lacks 1 file that its state.json lists, such as data-00001-of-00002") as e:
        build_files(tmp_path, folder)
    assert_one_line(str(e.value))


@pytest.mark.parametrize("state", ["{", "[]", '{"epoch": 3}', '{"_data_files": [3]}', '{"_data_files": null}'])
def test_another_state_file_is_ignored(tmp_path: Path, state: str) -> None:
    save(tmp_path / "in", ["one", "two"], num_shards=1)
    (tmp_path / "in/state.json").write_text(state)
    assert len(read_texts(build_files(tmp_path, tmp_path / "in"))) == 2


def test_caches_of_map_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save(folder, ["one", "two"], num_shards=1)
    data = (folder / "data-00000-of-00001.arrow").read_bytes()
    for name in ("cache-0123456789abcdef.arrow", "cache-0123456789abcdef_00000_of_00002.arrow"):
        (folder / name).write_bytes(data)
    assert sorted(read_texts(build_files(tmp_path, folder))) == ["one", "two"]
    (folder / "state.json").unlink()  # as in the folders of the library's own cache
    assert sorted(read_texts(build_files(tmp_path, folder))) == ["one", "two"]
    (folder / "dataset_info.json").unlink()
    assert len(read_texts(build_files(tmp_path, folder))) == 6
