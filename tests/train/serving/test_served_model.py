"""What `folio serve` serves: exported folders, and runs, which are exported once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from preprocess.errors import FolioError
from tests.helpers.runs import AUTHOR_ID, invoke, make_build, read_files, small_disk, train_run, write_config
from train.run.checkpoint import find_checkpoint
from train.serving import served_model
from train.serving.served_model import export_run, open_exported_folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return train_run(folder, "run", temperature=0.5, top_k=7)


def copy_run(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


def test_run_is_exported_to_the_folder_of_the_run(run: Path, tmp_path: Path) -> None:
    copy = copy_run(run, tmp_path)
    served = export_run(find_checkpoint(copy, pytest.fail))
    assert served.folder == copy / "served" / "model"
    assert (served.name, served.bos_token) == ("copy", "")
    assert (served.temperature, served.top_k, served.top_p) == (0.5, 7, None)
    assert invoke("export.py", copy, "--output", tmp_path / "exported").returncode == 0
    assert read_files(served.folder) == read_files(tmp_path / "exported")
    assert [path.name for path in copy.glob(".served*")] == []


def test_export_is_reused_until_the_checkpoint_or_the_version_changes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_run(run, tmp_path)
    weights = export_run(find_checkpoint(copy, pytest.fail)).folder / "model.safetensors"
    first = weights.stat().st_ino, weights.read_bytes()
    export_run(find_checkpoint(copy, pytest.fail))
    assert weights.stat().st_ino == first[0], "an export that is up to date is used again"
    export_run(find_checkpoint(copy / "checkpoints" / "step-00000018", pytest.fail))
    assert weights.read_bytes() != first[1]
    export_run(find_checkpoint(copy, pytest.fail))
    assert weights.read_bytes() == first[1]
    monkeypatch.setattr(served_model, "EXPORT_VERSION", -1)
    inode = weights.stat().st_ino
    export_run(find_checkpoint(copy, pytest.fail))
    assert weights.stat().st_ino != inode, "an export of another version is made again"
    weights.write_bytes(b"")
    export_run(find_checkpoint(copy, pytest.fail))
    assert weights.read_bytes() == first[1], "an export with a file of another size is made again"


def test_build_with_bos_names_the_token_before_a_prompt(tmp_path: Path) -> None:
    recipe = {"bos": True, "eot": "append", "tokenizer": "char"}
    build = make_build(tmp_path / "tiny", bos_id=AUTHOR_ID, recipe=recipe)
    result = invoke("train.py", write_config(tmp_path / "run.py", build, max_steps=2, warmup_steps=0))
    assert result.returncode == 0, result.stderr
    assert export_run(find_checkpoint(tmp_path / "run", pytest.fail)).bos_token == "<author_Anna_Akimova>"


def test_export_of_an_earlier_version_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "folio-modern", "version": 2}')
    with pytest.raises(FolioError, match="has version 2 of folio-modern, expected 3; export the model again"):
        open_exported_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 5}'])
def test_damaged_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FolioError, match="export the model again"):
        open_exported_folder(tmp_path)


def test_file_of_the_user_is_not_replaced(run: Path, tmp_path: Path) -> None:
    copy = copy_run(run, tmp_path)
    (copy / "served").mkdir()
    (copy / "served" / "notes.txt").write_text("mine")
    with pytest.raises(FolioError, match="served is in the way, which Folio did not write; move it elsewhere"):
        export_run(find_checkpoint(copy, pytest.fail))
    assert read_files(copy / "served") == {"notes.txt": b"mine"}


def test_full_disk_gives_advice(run: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mb=2) as disk:
        copy = copy_run(run, disk)
        (disk / "filler").write_bytes(bytes((os.statvfs(disk).f_bavail - 2) * os.statvfs(disk).f_frsize))
        with pytest.raises(FolioError, match="free some|`folio export RUN --output FOLDER`, and serve FOLDER"):
            export_run(find_checkpoint(copy, pytest.fail))
        assert not list(copy.glob("*served*"))
