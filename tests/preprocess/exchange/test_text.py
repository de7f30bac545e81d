"""Export to plain text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.exchange.text import export_text
from preprocess.shards.format import Build
from tests.conftest import VERSE


def test_export_text_writes_all_documents_in_order(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text(VERSE * 4, document="passage", passage_characters=50)
    paths = export_text(build, tmp_path / "out", by_language=False, replace=False)
    assert [path.name for path in paths] == ["train.txt", "val.txt"]
    documents = "".join(path.read_text(encoding="utf-8") for path in paths).split("\n\n")
    assert "".join(documents).replace("\n", "") == (VERSE * 4).replace("\n", "")
    by_language = export_text(build, tmp_path / "out", by_language=True, replace=False)
    assert [path.name for path in by_language] == ["train_unknown.txt", "val_unknown.txt"]
    assert [path.read_bytes() for path in by_language] == [path.read_bytes() for path in paths]


def test_export_text_keeps_existing_files_without_replace(build_text: Callable[..., Build], tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("mine")
    build = build_text()
    with pytest.raises(MisuseError, match=r"train\.txt exists already; pass --replace"):
        export_text(build, tmp_path, by_language=False, replace=False)
    assert (tmp_path / "train.txt").read_text() == "mine"
    with pytest.raises(MisuseError, match="is a build, which must not contain other files"):
        export_text(build, build.folder, by_language=False, replace=True)


def test_export_text_rejects_id_outside_the_vocabulary(build_text: Callable[..., Build], tmp_path: Path) -> None:
    build = build_text()
    with open(build.folder / "val-00000.bin", "r+b") as file:
        file.write(b"\xff\xff")
    with pytest.raises(
        FolioError, match="holds id 65535, but its vocabulary ends at 256; check it with `preprocess verify`"
    ):
        export_text(build, tmp_path / "out", by_language=False, replace=False)
