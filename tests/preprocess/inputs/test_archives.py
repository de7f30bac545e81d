"""zip and tar archives are read like the folders that they contain."""

from __future__ import annotations

import copy
import gzip
import io
import json
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs import archives
from preprocess.inputs.disk_file import NO_SHA256, DiskFile
from preprocess.recipes.catalog import load_recipe
from preprocess.stream.corpus import open_corpus
from preprocess.stream.token_stream import TokenStream
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_texts

FILES = {f"data/{i // 5}/{i:02}.txt": f"text {i} " * (i % 7 + 1) for i in (*range(12, 20), *range(12))}
FILES["data/rows.jsonl"] = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(30))
FILES["data/README"] = "not read: no known suffix"
FILES["data/.hidden.txt"] = FILES["__MACOSX/data/._a.txt"] = "hidden"
MODES = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz"}


# Of a file in a tar archive. tarfile searches each position of the first two again from every digit before
# it, which takes hours and fills any memory.
ATTRIBUTES = {
    "attributes of digits": b"1" * 900_000,
    "short attributes": b"2 " * 450_000 + b"=\n",
    "an attribute beyond the end": b"999999999 path=b.txt\n",
    "an attribute without a value": b"9 comment\n",
}


def make_header(name: str, num_bytes: int, kind: bytes, content: bytes = b"") -> bytes:
    """Return the header of an entry of `num_bytes`, and the blocks of its content."""
    info = tarfile.TarInfo(name)
    info.size, info.type = num_bytes, kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def write_tar(path: Path, mode: str, prefix: str = "") -> None:
    with tarfile.open(path, mode) as tar:
        for name, text in FILES.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for kind, name in ((tarfile.SYMTYPE, "link.txt"), (tarfile.LNKTYPE, "hard.txt"), (tarfile.CHRTYPE, "tty.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("empty")
        for name, text in FILES.items():
            archive.writestr(name, text)


def write_folder(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "no_suffix"])
def test_archive_gives_the_build_of_its_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_FILES", 4)  # several tasks read the archive
    write_zip(tmp_path / name) if name != "a.tar" else write_tar(tmp_path / name, "w", prefix="./")
    result = build_files(tmp_path, tmp_path / name)
    assert "skipped 1 file of unknown format: 1 no suffix" in capsys.readouterr().err
    expected = build_files(tmp_path, write_folder(tmp_path / "folder") / "data", name="b")
    assert read_texts(result) == read_texts(expected)
    assert result.build_id == expected.build_id


def count_opened_tars(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the path of each tar archive is added when it is opened."""
    opened: list[str] = []
    open_tar = archives.open_tar

    def count(path, compression):
        opened.append(path)
        return open_tar(path, compression)

    monkeypatch.setattr(archives, "open_tar", count)
    return opened


@pytest.mark.parametrize("name", [*(name for name in MODES if name != "a.tar"), "a.tar.zst"])
def test_compressed_tar_is_read_in_its_order_and_decompressed_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    monkeypatch.setattr("preprocess.inputs.input_files.PARTITION_FILES", 4)
    monkeypatch.setattr("preprocess.inputs.describe.MAX_KEPT_BYTES", 0)  # small files are read from the archive, too
    write_tar(tmp_path / name, MODES.get(name, "w"))
    if name == "a.tar.zst":
        (tmp_path / name).write_bytes(pa.compress((tmp_path / name).read_bytes(), codec="zstd", asbytes=True))
    opened = count_opened_tars(monkeypatch)
    texts = read_texts(build_files(tmp_path, tmp_path / name))
    rows = [f"row {i}" for i in range(30)]
    expected = [text for key, text in FILES.items() if key.startswith("data/") and key[5].isdigit()]
    assert texts == expected + rows
    assert len(opened) == 3  # to list the files, to check the head of the table, and to read


def test_compressed_tar_whose_files_are_read_twice_is_opened_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.inputs.describe.MAX_KEPT_BYTES", 0)
    monkeypatch.setattr("preprocess.stream.reading.SMALL_FILE_BYTES", 0)  # streams check each file before they read it
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for i in range(9):
            for name, text in ((f"{i}.txt", f"text {i} " * 9), (f"{i}.csv", f"text,n\ntable {i} of a file,1\n")):
                info = tarfile.TarInfo(name)
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    opened = count_opened_tars(monkeypatch)
    texts = read_texts(build_files(tmp_path, tmp_path / "a.tar.gz", format="text", split="contiguous"))
    assert texts[0][:7] == "text 0 " and len(texts) == 18  # both parts of each text
    assert len(opened) == 3  # to list the files, to count the characters, and to read
    opened.clear()
    recipe = load_recipe(
        None, inputs=(str(tmp_path / "a.tar.gz"),), format="csv", tokenizer="byte", split="threshold", dedup=False
    )
    num_tokens = sum(map(len, TokenStream(open_corpus(recipe, log=[].append), block_size=1, stream_buffer=1)))
    assert num_tokens > 100
    assert len(opened) == 3  # to list the files, to check the columns, and to read


def test_archives_among_files_in_a_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_zip(folder / "b.zip")
    write_tar(folder / "c.tar.gz", "w:gz")
    (folder / "a.txt").write_text("first")
    result = build_files(tmp_path, folder, dedup=False)
    names = [source["name"] for source in result.manifest.sources]
    assert names[:2] == ["a.txt", "b.zip/data/0/00.txt"] and names[22] == "c.tar.gz/data/2/12.txt"
    assert len(names) == 1 + 2 * 21


def test_compressed_files_in_an_archive_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}'))
        archive.writestr("b.txt", "three".encode("utf-16"))
    assert read_texts(build_files(tmp_path, tmp_path / "a.zip")) == ["one", "two", "three"]


def write_hostile(path: Path, kind: str) -> None:
    if kind == "encrypted":
        data = bytearray(make_zip(b"text"))
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
    elif kind == "damaged":
        data = bytearray(make_zip(b"text" * 1000))
        data[40] ^= 0xFF
        path.write_bytes(data)
    elif kind == "twice":
        with tarfile.open(path, "w") as tar:
            for _ in range(2):
                tar.addfile(tarfile.TarInfo("a.txt"))
    elif kind == "overlap":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "text " * 20)
            archive.filelist.append(copy.copy(archive.filelist[0]))
            archive.filelist[1].filename = "b.txt"
    elif kind == "long list":
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(1100):
                info = zipfile.ZipInfo(f"{i}.txt")
                info.comment = b"c" * 65_000
                archive.writestr(info, b"text")
    elif kind == "nested":
        path.write_bytes(make_zip(make_zip(b"text")))
    elif kind == "many headers":
        header = tarfile.TarInfo.create_pax_global_header({"comment": "x"})
        path.write_bytes(header * 2000 + make_tar(1))
    elif kind == "nothing after a header":
        path.write_bytes(make_tar(1)[:1024] + tarfile.TarInfo.create_pax_global_header({"comment": "x"}) + bytes(1024))
    elif kind in ATTRIBUTES:
        path.write_bytes(make_header("a", len(ATTRIBUTES[kind]), tarfile.XHDTYPE, ATTRIBUTES[kind]) + make_tar(1))
    elif kind == "long name":
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo("n" * 5000 + ".txt"))
    elif kind == "long header":
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = {"comment": "x" * (2 << 20)}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(info)
    else:
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("a.txt")
            info.size = 100_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        path.write_bytes(path.read_bytes()[:60_000])


def make_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("encrypted", "is encrypted .a.txt.; unpack it with its password"),
        ("damaged", "cannot be read as a zip archive .*copy it again"),
        ("overlap", "cannot be read as a zip archive .a.txt overlaps with b.txt"),
        ("twice", "contains two files of the name '.*a.txt'; unpack it"),
        ("long list", "has a list of files of 71,.* bytes, expected at most 67,108,864; unpack it"),
        ("nested", "a.txt is an archive in an archive; unpack"),
        ("long header", "cannot be read as a tar archive .an entry has 2,09.* bytes of attributes"),
        ("many headers", "an entry has more than 16 headers"),
        ("nothing after a header", "it ends after a header of attributes"),
        *((kind, "an entry has damaged attributes") for kind in ATTRIBUTES),
        ("long name", "contains nnn.*a name of 5,004 characters, expected at most 4,096, .* in all names; shorten"),
        ("truncated", "cannot be read as a tar archive .*copy it again"),
    ],
)
def test_archive_that_cannot_be_read_is_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / ("a.zip" if kind in ("encrypted", "damaged", "overlap", "nested", "long list") else "a.tar")
    write_hostile(path, kind)
    with pytest.raises((FolioError, MisuseError), match=message) as error:
        build_files(tmp_path, path)
    assert_one_line(str(error.value))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "contains no file of a known format; pass --format, or unpack it"),
        ({"format": "csv"}, "contains no file of the format csv; leave --format out, or choose another"),
    ],
)
def test_archive_without_files_of_a_format_names_it(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt" if settings else "a.png", "one")
    with pytest.raises(MisuseError, match=message):
        build_files(tmp_path, tmp_path / "a.zip", **settings)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("start", "stop", "replacement", "message"),
    [
        (5 * 1024, 5 * 1024 + 512, b"x" * 512, "at byte 5,120: "),  # a header that is overwritten
        (5 * 1024 + 3, 5 * 1024 + 4, b"?", "at byte 5,120: bad checksum"),
        (5 * 1024, None, b"", "at byte 5,120: empty header"),
        (5 * 1024 + 200, None, b"", "at byte 5,120: truncated header"),
        (5 * 1024, 5 * 1024 + 512, bytes(512), "more data follow its end"),
    ],
)
def test_tar_archive_with_a_damaged_header_is_not_read_as_a_shorter_one(
    tmp_path: Path, name: str, start: int, stop: int | None, replacement: bytes, message: str
) -> None:
    data = make_tar(10)
    damaged = data[:start] + replacement + (b"" if stop is None else data[stop:])
    (tmp_path / name).write_bytes(gzip.compress(damaged) if name.endswith(".gz") else damaged)
    with pytest.raises(FolioError, match=message) as error:
        build_files(tmp_path, tmp_path / name)
    assert_one_line(str(error.value))


def test_second_archive_behind_a_tar_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar(2) + make_tar(2))
    with pytest.raises(FolioError, match="perhaps a second archive"):
        build_files(tmp_path, tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(make_tar(2) + bytes(3 << 20))  # padding
    assert len(read_texts(build_files(tmp_path, tmp_path / "a.tar"))) == 2


def make_tar(num_files: int) -> bytes:
    """Return a tar archive in which each file takes 1,024 bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for i in range(num_files):
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = len(f"text {i}")
            tar.addfile(info, io.BytesIO(f"text {i}".encode()))
    return buffer.getvalue()


def test_names_in_an_archive_are_never_paths(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../../outside.txt", "/etc/absolute.txt", "a/./b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(name[-8:-4].encode()))
    result = build_files(tmp_path, tmp_path / "a.tar")
    assert [source["name"] for source in result.manifest.sources] == ["a/b.txt", "etc/absolute.txt", "outside.txt"]


def test_damaged_bzip2_in_a_zip_archive_names_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.txt", "some text " * 100)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    found = 0
    for offset in range(data.index(b"BZh"), data.index(b"PK\x01\x02"), 5):
        damaged = data.copy()
        damaged[offset] ^= 4
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(FolioError, match="a.zip cannot be read as a zip archive .*copy it again") as error:
            build_files(tmp_path, tmp_path / "a.zip")
        assert_one_line(str(error.value))
        found += 1
    assert found > 5


def make_sparse(name: str, form: str) -> bytes:
    """Return the entry of a sparse file with a map that takes 20 MB in memory if it is read."""
    if form == "pax":
        content = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
        numbers = b"300000\n" + b"0\n" * 600_000
        header = make_header("attributes", len(content), tarfile.XHDTYPE, content)
        return header + make_header(name, len(numbers), tarfile.REGTYPE, numbers)
    header = bytearray(make_header(name, 512, tarfile.GNUTYPE_SPARSE))
    header[482] = 1  # the map continues
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = (b"%011o\0" % 1) * 42
    return bytes(header) + (block + b"\1" + bytes(7)) * 10_000 + block + bytes(8 + 512)


@pytest.mark.parametrize("form", ["GNU", "pax"])
def test_map_of_a_sparse_file_is_not_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_sparse(".hidden.txt", form) + make_tar(2) + bytes(512))
    disk = DiskFile(str(path), path.stat().st_size, 0, 0, NO_SHA256)
    tracemalloc.start()
    try:
        assert [member.name for member, _ in archives.iter_members(disk, "tar", "")] == ["0.txt", "1.txt"]
        path.write_bytes(make_sparse("s.txt", form) + make_tar(2))
        tracemalloc.reset_peak()
        with pytest.raises(MisuseError, match="contains s.txt as a sparse file; unpack it"):
            list(archives.iter_members(disk, "tar", ""))
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", list(ATTRIBUTES))
def test_attributes_of_a_file_take_linear_time(tmp_path: Path, kind: str) -> None:
    write_hostile(tmp_path / "a.tar", kind)
    started = time.process_time()
    with pytest.raises(FolioError):
        list(archives.iter_members(DiskFile(str(tmp_path / "a.tar"), 0, 0, 0, NO_SHA256), "tar", ""))
    assert time.process_time() - started < 1


def test_attributes_of_files_and_archives_are_applied(tmp_path: Path) -> None:
    names = ["\u00e4" * 150 + ".txt", "b" * 300 + ".txt", "c.txt"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(name), 0.5
            tar.addfile(info, io.BytesIO(name.encode()[: len(name)]))
    disk = DiskFile(str(tmp_path / "a.tar"), 0, 0, 0, NO_SHA256)
    members = [(member.name, stream.read(1000)) for member, stream in archives.iter_members(disk, "tar", "")]
    assert members == [(name, name.encode()[: len(name)]) for name in names]
