"""docs/formats.md lists exactly what is read, and everything that it lists is read or refused here."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs import detect
from preprocess.inputs.compressions import MAGIC
from preprocess.recipes.schema import CHOICES
from tests.conftest import ROOT, assert_one_line
from tests.helpers.refused_files import REFUSED_FILES
from tests.helpers.warc_files import make_page, make_record
from tests.preprocess.readers.helpers import list_texts

PAGE = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
SUFFIX = re.compile(r"`(\.\w+)`")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
TAR_MODES = {".tar": "w", ".tgz": "w:gz", ".tbz2": "w:bz2", ".txz": "w:xz"}
MODULES = {"html": "resiliparse", "warc": "fastwarc"}
DELIMITERS = {".tsv": "\t", ".tab": "\t", ".psv": "|"}


def read_table(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table whose first heading is `heading`."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" |")])
    return rows


FORMATS = {row[0].strip("`"): SUFFIX.findall(row[1]) for row in read_table("format")}
KINDS = {row[0]: SUFFIX.findall(row[1]) for row in read_table("kind")}
REFUSED = [name.strip() for row in read_table("file") for name in row[0].split(",")]


def make_file(format_: str, suffix: str) -> bytes:
    """Return a file of a format with the document "one two"."""
    buffer = io.BytesIO()
    table = pa.table({"id": [1], "text": ["one two"]})
    if format_ == "parquet":
        pq.write_table(table, buffer)
    elif format_ == "arrow":
        with (pa.ipc.new_stream if suffix == ".arrows" else pa.ipc.new_file)(buffer, table.schema) as writer:
            writer.write_table(table)
    elif format_ == "csv":
        delimiter = DELIMITERS.get(suffix, ",")
        return f"id{delimiter}text\n1{delimiter}one two\n".encode()
    else:
        return {
            "text": b"one two", "jsonl": b'{"id": 1, "text": "one two"}\n', "html": make_page("one two"),
            "warc": make_record("conversion", b"one two"),
        }[format_]  # fmt: skip
    return buffer.getvalue()


def skip_without_library(format_: str) -> None:
    if format_ in MODULES and importlib.util.find_spec(MODULES[format_]) is None:
        pytest.skip(f"the extra {format_} is not installed")


def test_page_lists_all_formats_suffixes_and_kinds() -> None:
    suffixes = {suffix: format_ for format_, listed in FORMATS.items() for suffix in listed}
    assert suffixes == detect.SUFFIXES and sum(map(len, FORMATS.values())) == len(suffixes)
    assert set(FORMATS) == set(CHOICES["format"]) - {"auto", "synthetic"}
    archives = {kind: KINDS[kind] for kind in ("zip", "tar")}
    assert {s for listed in archives.values() for s in listed} == set(detect.ARCHIVE_SUFFIXES)
    compressions = {kind: listed for kind, listed in KINDS.items() if kind not in archives}
    assert set(compressions) == set(MAGIC.values()) == set(COMPRESS)
    assert {s for listed in compressions.values() for s in listed} == set(detect.COMPRESSION_SUFFIXES)
    refused = {description for description, _ in (*detect.REFUSED_MAGIC.values(), *detect.ZIPPED_DOCUMENTS.values())}
    assert set(REFUSED) == refused | {"a Git LFS pointer"} and len(REFUSED) == len(set(REFUSED))


@pytest.mark.parametrize(
    ("format_", "suffix"), [(format_, suffix) for format_, suffixes in FORMATS.items() for suffix in suffixes]
)
def test_every_listed_suffix_is_read(tmp_path: Path, format_: str, suffix: str) -> None:
    skip_without_library(format_)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(make_file(format_, suffix))
    assert list_texts(path) == ["one two"]


@pytest.mark.parametrize("format_", [*FORMATS])
@pytest.mark.parametrize("kind", [*COMPRESS])
def test_every_format_is_read_from_every_compression(tmp_path: Path, format_: str, kind: str) -> None:
    skip_without_library(format_)
    (suffix,), (first, *_) = KINDS[kind], FORMATS[format_]
    path = tmp_path / f"a{first}{suffix}"
    path.write_bytes(COMPRESS[kind](make_file(format_, first)))
    if format_ in ("parquet", "arrow"):
        with pytest.raises(MisuseError, match="is a compressed .* file; decompress it"):
            list_texts(path)
    else:
        assert list_texts(path) == ["one two"]


def write_archive(path: Path, name: str, data: bytes) -> None:
    suffix = path.suffix
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, data)
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=TAR_MODES.get(suffix, "w")) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    path.write_bytes(COMPRESS["zstd"](buffer.getvalue()) if suffix == ".tzst" else buffer.getvalue())


@pytest.mark.parametrize("format_", [*FORMATS])
@pytest.mark.parametrize("suffix", [suffix for kind in ("zip", "tar") for suffix in KINDS[kind]])
def test_every_format_is_read_from_every_archive(tmp_path: Path, format_: str, suffix: str) -> None:
    skip_without_library(format_)
    first = FORMATS[format_][0]
    path = tmp_path / f"a{suffix}"
    write_archive(path, f"in/a{first}", make_file(format_, first))
    if format_ in ("parquet", "arrow"):
        with pytest.raises(MisuseError, match="in an archive; unpack"):
            list_texts(path)
    else:
        assert list_texts(path) == ["one two"]


def make_zip(*names: str, first: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, name in enumerate(names):
            archive.writestr(name, first if not i else b"<xml/>", zipfile.ZIP_STORED if not i else None)
    return buffer.getvalue()


EPUB = make_zip("mimetype", "META-INF/container.xml", "a.xhtml", first=b"application/epub+zip")
ODT = make_zip("mimetype", "content.xml", first=b"application/vnd.oasis.opendocument.text")
DOCX = make_zip("[Content_Types].xml", "_rels/.rels", "word/document.xml")


@pytest.mark.parametrize(
    ("data", "description"),
    [
        (EPUB, "an EPUB book"),
        (ODT, "an OpenDocument file"),
        (DOCX, "an Office document"),
        (make_zip("_rels/.rels", "docProps/app.xml"), "an Office document"),
        *((REFUSED_FILES[magic], description) for magic, (description, _) in detect.REFUSED_MAGIC.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["a.bin", "a.txt", "a.zip"])
def test_every_file_that_is_not_read_is_refused_as_what_it_is(
    tmp_path: Path, data: bytes, description: str, name: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MisuseError, match=re.escape(f"{name} is {description}, expected text or a table; ")) as error:
        list_texts(tmp_path / name)
    assert_one_line(str(error.value))
    write_archive(tmp_path / "outer.tar", "a.txt", data)
    with pytest.raises(MisuseError, match=re.escape(f"a.txt is {description}, expected")):
        list_texts(tmp_path / "outer.tar")


def test_archives_of_folders_with_similar_names_and_git_lfs_pointers(tmp_path: Path) -> None:
    for i, names in enumerate([("word/a.txt",), ("mimetype", "a.txt"), ("docProps/a.txt",)]):
        path = tmp_path / f"{i}.zip"
        path.write_bytes(make_zip(*names, first=b"<xml/>"))
        assert list_texts(path) == ["<xml/>"]
    (tmp_path / "a.txt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\n")
    with pytest.raises(FolioError, match="is a Git LFS pointer"):
        list_texts(tmp_path / "a.txt")
