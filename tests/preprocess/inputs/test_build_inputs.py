"""Which files a build reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from tests.helpers.file_builds import build_files, read_texts


def test_folders_and_globs_give_files_with_relative_names(tmp_path: Path) -> None:
    for name in ("b/two.txt", "b/deep/three.txt", "a.txt", ".hidden.txt", "b/.git/x.txt", "picture.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    result = build_files(tmp_path, tmp_path / "in")
    names = ["a.txt", "b/deep/three.txt", "b/two.txt"]
    assert read_texts(result) == names == [source["name"] for source in result.manifest.sources]
    assert str(tmp_path) not in (result.folder / "manifest.json").read_text()
    again = build_files(
        tmp_path, tmp_path / "in/b/*.txt", tmp_path / "in/*.txt", tmp_path / "in/b/**/*.txt", name="again"
    )
    assert read_texts(again) == read_texts(result)


def test_missing_inputs_and_unknown_formats_are_errors(tmp_path: Path) -> None:
    (tmp_path / "odd.xyz").write_text("text")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none*.txt", "matches no file"),
        (tmp_path / "empty", "matches no file"),
        (tmp_path / "odd.xyz", "is not clear from its name; pass --format"),
    ):
        with pytest.raises(MisuseError, match=message):
            build_files(tmp_path, path)
    path = tmp_path / "odd.xyz"
    assert read_texts(build_files(tmp_path, path, path, format="text", split="contiguous")) == ["te", "xt"]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_empty_file_alone_and_among_others(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"" if suffix != "csv" else b"text\n")
    with pytest.raises(FolioError, match="no document is left of own"):
        build_files(tmp_path, tmp_path / f"a.{suffix}")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    assert read_texts(build_files(tmp_path, tmp_path / f"a.{suffix}", tmp_path / "b.jsonl")) == ["one", "two"]


def test_skipped_files_are_reported_and_builds_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    for name in ("doc.pdf", "tab.tsv", "more.tsv"):
        (data / name).write_text("x")
    result = build_files(data / "shards", data)
    assert "3 files were skipped because their format is unknown: 2 .tsv, 1 .pdf" in capsys.readouterr().err
    assert build_files(data / "shards", data, name="again").build_id == result.build_id
    (data / "a.jsonl").unlink()
    with pytest.raises(
        MisuseError, match="matches no file; the format of 3 files is unknown: pass a glob and --format"
    ):
        build_files(tmp_path, data)
    with pytest.raises(MisuseError, match="--input '' matches no file"):
        build_files(tmp_path, "")
    for name in ("a.tar.gz", "a.zip", "a.jsonl.bz2"):
        (data / name).write_bytes(b"x")
        with pytest.raises(MisuseError, match="is an archive or has an unsupported compression"):
            build_files(tmp_path, data / name, format="jsonl")
