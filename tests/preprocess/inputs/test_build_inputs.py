"""Which files a build reads."""

from __future__ import annotations

import errno
import gzip
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from preprocess.build.plan import make_plan
from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.find_inputs import is_larger
from preprocess.recipes.catalog import load_recipe
from preprocess.shards.files import sha256_bytes
from tests.helpers.file_builds import QUIET, build_files, read_stats, read_texts


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
        (tmp_path / "gone.txt", "does not exist; name a file"),
        (tmp_path / ("x" * 5_000), "cannot be the path of a file"),
        ("bad\0name", r"--input bad\\x00name cannot be the path of a file"),
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


@pytest.mark.parametrize("settings", [{}, {"document": "passage"}, {"split": "contiguous"}])
@pytest.mark.parametrize("name", ["empty.txt", "empty.txt.gz"])
def test_empty_text_file_is_counted_as_an_empty_document(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    for text in ("one", "two"):
        (tmp_path / f"in/{text}.txt").write_text(text)
    documents = read_stats(build_files(tmp_path, tmp_path / "in", **settings))["documents"]
    assert (documents["empty"], documents["kept"]) == (1, 4 if "split" in settings else 2)


def test_empty_files_without_documents_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    for name in ("b.txt", "c.jsonl"):
        (tmp_path / name).touch()
    result = build_files(tmp_path, *tmp_path.glob("?.*"), document="line")
    assert "2 of 3 input files have no content" in capsys.readouterr().err
    assert read_stats(result)["documents"]["read"] == 2


def test_file_that_is_too_long_is_not_counted_as_empty(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 100)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    stats = read_stats(build_files(tmp_path, *tmp_path.glob("*.txt"), max_document_bytes=50, oversized="skip"))
    assert (stats["documents"]["empty"], stats["documents"]["oversized"]) == (0, 1)


def test_skipped_files_are_reported_and_builds_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}')
    for name in ("doc.pdf", "tab.xyz", "more.xyz"):
        (data / name).write_text("x")
    result = build_files(data / "shards", data)
    assert "skipped 3 files of unknown format: 2 .xyz, 1 .pdf" in capsys.readouterr().err
    assert build_files(data / "shards", data, name="again").build_id == result.build_id
    (data / "a.jsonl").unlink()
    with pytest.raises(MisuseError, match="matches no file; the format of 3 files is unknown: pass --format; name"):
        build_files(tmp_path, data)
    with pytest.raises(MisuseError, match="--input '' matches no file"):
        build_files(tmp_path, "")
    for name in ("a.tar.gz", "a.zip"):
        (data / name).write_bytes(b"x")
        with pytest.raises(FolioError, match="is not an archive, although its name ends in"):
            build_files(tmp_path, data / name, format="jsonl")


@pytest.mark.parametrize(("function", "entry"), [("scandir", "in"), ("listdir", "in/**/*.txt")])
def test_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, entry: str
) -> None:
    """Without its files the build would be smaller, and nobody would notice."""
    (tmp_path / "in/closed").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("text")
    list_folder = getattr(os, function)

    def list_unless_closed(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))  # tests may run as root
        return list_folder(path)

    monkeypatch.setattr(os, function, list_unless_closed)
    with pytest.raises(FolioError, match="the folder .*closed cannot be listed .Permission denied"):
        build_files(tmp_path, tmp_path / entry)


def test_folder_is_read_through_links_to_folders(tmp_path: Path) -> None:
    (tmp_path / "disk2/deep").mkdir(parents=True)
    (tmp_path / "disk2/deep/b.txt").write_text("two")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("one")
    for link in ("part", "again"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "disk2")
    (tmp_path / "disk2/loop").symlink_to(tmp_path / "in")
    result = build_files(tmp_path, tmp_path / "in")
    assert [source["name"] for source in result.manifest.sources] == ["disk2/deep/b.txt", "in/a.txt"]


@pytest.mark.parametrize("entry", ["in", "in/*.txt", "in/**/b.txt", "in/b.txt"])
def test_input_that_is_not_a_file_is_an_error(tmp_path: Path, entry: str) -> None:
    """Without it the build would be smaller, and nobody would notice."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("one")
    (tmp_path / "in/b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(FolioError, match=r"in/b.txt is a link to '/.*, which does not exist"):
        build_files(tmp_path, tmp_path / entry)
    (tmp_path / "in/b.txt").unlink()
    os.mkfifo(tmp_path / "in/b.txt")
    with pytest.raises(FolioError, match="in/b.txt is not a regular file"):
        build_files(tmp_path, tmp_path / entry)


def test_folder_with_file_names_of_a_build_is_read(tmp_path: Path) -> None:
    (tmp_path / "in/tokenizer").mkdir(parents=True)
    (tmp_path / "in/manifest.json").write_text('{"format": "of another program", "text": "three"}')
    (tmp_path / "in/a.txt").write_text("one")
    (tmp_path / "in/tokenizer/b.txt").write_text("two")
    result = build_files(tmp_path, tmp_path / "in")
    assert [source["name"] for source in result.manifest.sources] == ["a.txt", "manifest.json", "tokenizer/b.txt"]


def test_links_to_files_and_folders_name_the_real_files_once(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "real/deep/a.txt").write_text("one")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.txt").symlink_to(tmp_path / "real/deep/a.txt")
    (tmp_path / "in/b.txt").write_text("two")
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    result = build_files(tmp_path, tmp_path / "in", tmp_path / "alias/deep/a.txt", tmp_path / "alias/*/*.txt")
    assert [source["name"] for source in result.manifest.sources] == ["in/b.txt", "real/deep/a.txt"]


def test_many_files_are_hashed_in_order_and_fill_several_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_text(f"text {number}")
    recipe = load_recipe(None, inputs=(str(tmp_path),), tokenizer="byte")
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_FILES", 100)
    plan = make_plan(recipe, None, QUIET, num_threads=3)
    assert [file.sha256 for file in plan.input_files] == [sha256_bytes(b"text %d" % number) for number in range(300)]
    assert [len(partition.spans) for partition in plan.partitions] == [100, 100, 100]
    assert is_larger(recipe, 1 << 20, 299) and not is_larger(recipe, 1 << 20, 300)
    assert is_larger(recipe, 100, 300) and not is_larger(recipe, 1 << 20, 300)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only names that are UTF-8")
def test_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    for name, content in (("a.txt", b"one"), ("b.csv", b"text\ntwo\n"), ("c.txt.gz", gzip.compress(b"three"))):
        (folder / name).write_bytes(content)
    assert read_texts(build_files(tmp_path, folder)) == ["one", "two", "three"]
    for name in ("a.parquet", "a.arrow"):  # Arrow opens these
        (folder / name).write_bytes(b"")
        with pytest.raises(MisuseError, match=rf"/{name} is not UTF-8, so Arrow cannot open the file; rename"):
            build_files(tmp_path, folder / name)


def test_a_format_holds_for_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.jsonl", "b", "c.dump", "d.json"):
        (data / name).write_text(json.dumps({"text": name}) + "\n")
    (data / "LICENSE").write_text("Public domain")
    (data / "notes.txt").write_text("no JSON")
    (data / "more.txt").write_text("no JSON")
    result = build_files(tmp_path, data, format="jsonl")
    assert read_texts(result) == ["a.jsonl", "b", "c.dump", "d.json"]
    assert "skipped 2 files of a format other than jsonl: 2 .txt" in capsys.readouterr().err
    for name in ("b", "c.dump"):
        (data / name).unlink()
    with pytest.raises(MisuseError, match="the names of 4 files are not those of parquet files: pass a glob, or leave"):
        build_files(tmp_path, data, format="parquet")


def test_files_that_describe_a_data_set_are_no_documents_beside_tables(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    for name in ("README.md", "LICENSE.txt", "dataset_dict.json", "train/dataset_info.json", "train/state.json"):
        (data / name).write_text('{"text": "a description"}')
    (data / "train/a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_texts(build_files(tmp_path, data)) == ["one", "two"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(data.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    assert read_texts(build_files(tmp_path, tmp_path / "a.zip")) == ["one", "two"]
    (data / "train/a.jsonl").rename(data / "train/a.txt")
    assert len(read_texts(build_files(tmp_path, data, format="text"))) == 3  # both descriptions in words


def test_links_and_descriptions_in_a_folder_with_a_format(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (tmp_path / "disk2").mkdir()
    data.mkdir()
    (tmp_path / "disk2/b").write_text('{"text": "two"}\n')
    (tmp_path / "disk2/README").write_text('{"text": "a description"}\n')
    (data / "part").symlink_to(tmp_path / "disk2")
    (data / "LICENSE").symlink_to(tmp_path / "gone")  # beside tables, it would not be read in any case
    (data / "a.json").write_text('{"text": "one"}\n')
    assert sorted(read_texts(build_files(tmp_path, data, format="jsonl"))) == ["one", "two"]
    (data / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(FolioError, match="data/c is a link to '/.*, which does not exist"):
        build_files(tmp_path, data, format="jsonl")
