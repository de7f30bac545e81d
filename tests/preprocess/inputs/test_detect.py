"""The compression, encoding and format of a file are found in its first bytes, then in its name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs import compressions
from preprocess.inputs.compressions import DecompressedStream, detect_compression
from preprocess.inputs.detect import REFUSED_MAGIC, detect_encoding
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_texts
from tests.helpers.refused_files import REFUSED_FILES

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def import_zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


@pytest.mark.parametrize("is_compressed", [True, False])
@pytest.mark.parametrize("input_bytes", [1, 7, 1 << 20])
def test_dictionary_in_the_first_frame_of_a_zstd_file_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compressed: bool, input_bytes: int
) -> None:
    monkeypatch.setattr(compressions, "INPUT_BYTES", input_bytes)
    zstd, records = import_zstd(), [f'{{"text": "common words, number {i}"}}\n'.encode() for i in range(200)]
    dictionary = zstd.train_dict(records, 4_000)
    content = zstd.compress(dictionary.dict_content) if is_compressed else dictionary.dict_content
    frames = b"".join(zstd.compress(record, zstd_dict=dictionary) for record in records)
    first = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(first + frames)
    assert read_texts(build_files(tmp_path, path)) == [json.loads(record)["text"] for record in records]
    data_frame = b"\x5d\x2a\x4d\x18\x05\0\0\0other"  # without a dictionary
    path.write_bytes(data_frame + zstd.compress(records[0]) + zstd.compress(records[1]))
    assert len(read_texts(build_files(tmp_path, path))) == 2
    wrong_size, wrong_content = b"\x5d\x2a\x4d\x18" + b"\xff" * 4, first[:16] + b"\xff" * 20 + first[36:]
    for damaged in (frames, wrong_content + frames, first[:12], wrong_size + first[8:] + frames):
        path.write_bytes(damaged)
        with pytest.raises(FolioError, match="cannot be read as a zstd file") as error:
            build_files(tmp_path, path)
        assert_one_line(str(error.value))


def compress_zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "zstd": compress_zstd, "bzip2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.zst", "a.jsonlines", "a.ndjson.xz", "noname"])
@pytest.mark.parametrize("compression", [*COMPRESS, ""])
def test_compression_is_known_by_content_whatever_the_name(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESS[compression](LINES) if compression else LINES)
    assert read_texts(build_files(tmp_path, path)) == ["one", "two"]


@given(
    st.sampled_from(sorted(COMPRESS)), st.lists(st.binary(max_size=50), min_size=1, max_size=3), st.integers(0, 9),
    st.integers(1, 40), st.integers(1, 9),
)  # fmt: skip
def test_streams_with_zeros_between_them_are_read_in_any_block_size(
    compression: str, parts: list[bytes], num_zeros: int, num_bytes: int, input_bytes: int
) -> None:
    data = b"".join(COMPRESS[compression](part) + bytes(4 * num_zeros) for part in parts)
    assert detect_compression(data) == compression
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressions, "INPUT_BYTES", input_bytes)
        stream = DecompressedStream(io.BytesIO(data), compression)
        blocks = list(iter(lambda: stream.read(num_bytes), b""))
    assert b"".join(blocks) == b"".join(parts) and all(len(block) <= num_bytes for block in blocks)


@pytest.mark.parametrize("compression", COMPRESS)
def test_truncated_and_damaged_files_raise(compression: str) -> None:
    data = COMPRESS[compression](random.Random(0).randbytes(5_000))
    for end in range(1, len(data), 97):
        with pytest.raises(EOFError, match="ends too early"):
            _read_all(data[:end], compression)
    with pytest.raises(ValueError, match=r"."):
        _read_all(data + b"something else", compression)


def _read_all(data: bytes, compression: str) -> bytes:
    stream = DecompressedStream(io.BytesIO(data), compression)
    return b"".join(iter(lambda: stream.read(1 << 16), b""))


def test_zstd_window_beyond_the_default_is_read(tmp_path: Path) -> None:
    zstd = compressions.import_zstd()
    parameters = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=parameters)
    data = b"".join(compressor.compress(line) for line in LINES.splitlines(keepends=True)) + compressor.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    with pytest.raises(zstd.ZstdError, match="memory"):
        zstd.ZstdDecompressor().decompress(data)
    assert read_texts(build_files(tmp_path, tmp_path / "a.jsonl.zst")) == ["one", "two"]


def test_xz_that_needs_much_memory_is_one_line(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(LINES, filters=filters))
    with pytest.raises(FolioError, match=r"read as a xz file .it needs more than 512 MB of memory.; decomp") as error:
        build_files(tmp_path, tmp_path / "a.jsonl.xz")
    assert_one_line(str(error.value))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", ["one two\nthree\n", "Мой дядя самых честных правил,\nКогда не в шутку занемог,\n"])
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "txt.gz"])
def test_utf16_and_utf32_are_recognised_in_every_format(tmp_path: Path, encoding: str, text: str, suffix: str) -> None:
    lines = text.splitlines()
    if suffix == "jsonl":
        content = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in lines)
    else:
        content = "\n".join(['text,"x"', *(f'"{line}",1' for line in lines)]) if suffix == "csv" else text
    data = content.encode(encoding)
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    document = "line" if suffix.startswith("txt") else None
    assert read_texts(build_files(tmp_path, tmp_path / f"a.{suffix}", document=document)) == lines


def test_encoding_is_read_as_asked(tmp_path: Path) -> None:
    text = "Мой дядя самых честных правил,\nКогда не в шутку занемог,\n"
    (tmp_path / "a.txt").write_bytes(text.encode("cp1251"))
    result = build_files(tmp_path, tmp_path / "a.txt", document="line", encoding="windows-1251")
    assert read_texts(result) == text.splitlines() and result.manifest.recipe["encoding"] == "cp1251"
    (tmp_path / "a.txt").write_bytes(text.encode())
    plain = build_files(tmp_path, tmp_path / "a.txt", document="line", name="plain")
    assert "encoding" not in plain.manifest.recipe
    for encoding in ("no-such", "idna", "rot13", "base64", "unicode_escape", "utf-7", "\0"):
        with pytest.raises(MisuseError, match="encoding must be auto, utf-8, .* got ") as error:
            build_files(tmp_path, tmp_path / "a.txt", encoding=encoding)
        assert_one_line(str(error.value))


@pytest.mark.parametrize("policy", ["error", "replace", "skip"])
def test_bytes_that_are_invalid_in_the_encoding_follow_the_rule_for_invalid_utf8(tmp_path: Path, policy: str) -> None:
    data = "one\nt_o\nthree\nfour\n".encode("utf-16").replace(b"_\0", b"\x00\xd8")  # half of a pair of surrogates
    (tmp_path / "a.txt").write_bytes(data)
    settings = {"document": "line", "invalid_utf8": policy}
    if policy == "error":
        with pytest.raises(FolioError, match="a.txt is not valid UTF-16-LE at offset"):
            build_files(tmp_path, tmp_path / "a.txt", **settings)
    else:
        texts = ["one", "t\ufffdo", "three", "four"] if policy == "replace" else ["one", "three", "four"]
        assert read_texts(build_files(tmp_path, tmp_path / "a.txt", **settings)) == texts


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["Āda gāja mājās.", "cafe\u0301 voila\u0300", "Это Ѐ", "ἄνδρα μοι", "你好，世界 ok"])
def test_utf16_with_nuls_in_low_bytes_is_recognised(tmp_path: Path, encoding: str, text: str) -> None:
    lines = [f"{text}{i}" for i in range(20)]
    (tmp_path / "a.txt").write_bytes("\n".join(lines).encode(encoding))
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document="line")) == lines


@pytest.mark.parametrize(
    "text", ["one\0two\0ten\0" * 20, "a sentence with one\0 NUL", "the last line is padded\n" + "\0" * 9]
)
@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_utf8_with_nuls_is_not_utf16(tmp_path: Path, text: str, suffix: str) -> None:
    data = text.encode()
    data += b"." * max(40 - len(data), 0)
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix == "txt.gz" else data)
    (tmp_path / "b.txt").write_text("another document")
    result = build_files(tmp_path, tmp_path / f"a.{suffix}", tmp_path / "b.txt")
    assert read_texts(result) == [data.decode(), "another document"]


def test_a_short_file_with_nuls_needs_an_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello\0world\nmore\n")
    with pytest.raises(MisuseError, match="a.txt may be UTF-16, or UTF-8 with NULs; pass --encoding") as error:
        build_files(tmp_path, tmp_path / "a.txt", document="line")
    assert_one_line(str(error.value))
    result = build_files(tmp_path, tmp_path / "a.txt", document="line", encoding="utf-8")
    assert read_texts(result) == ["hello\0world", "more"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Привет, мир! ", "hello world\n", "ภาษาไทย", "смех 😂 "])
def test_an_encoding_without_a_mark_is_recognised_or_asked_for(encoding: str, text: str) -> None:
    assert detect_encoding((text * 40).encode(encoding)) == encoding
    assert detect_encoding((text * 400).encode(encoding)[:4_095]) == encoding  # within a character
    if text.isascii():
        for size in range(4, 16, 4):
            assert detect_encoding(text.encode(encoding)[:size]) is None


@pytest.mark.parametrize("text", ["a\0", "\0a", "a\0b\0", "\0a\0b", "a\0\0\0", "ab\0\0c\0"])
def test_a_few_letters_with_nuls_are_not_read_as_utf16_or_utf32(text: str) -> None:
    assert not detect_encoding(text.encode())


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_a_compressed_file_that_is_cut_in_its_first_bytes_is_an_error(tmp_path: Path, suffix: str) -> None:
    magic = {"gz": b"\x1f\x8b\x08", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh91AY&SY", "xz": b"\xfd7zXZ\0"}[suffix]
    path = tmp_path / f"a.txt.{suffix}"
    for size in range(1, len(magic)):
        path.write_bytes(magic[:size])
        with pytest.raises(FolioError, match=f"a.txt.{suffix} is not a compressed file, although its name ends in"):
            build_files(tmp_path, path, invalid_utf8="replace")


@pytest.mark.parametrize("word", ["ORC", "GGUF"])
def test_a_text_may_begin_with_the_name_of_a_format(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.txt").write_text(f"{word}HESTRA\nsecond\n")
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document="line")) == [f"{word}HESTRA", "second"]


@pytest.mark.parametrize("data", [b"plain text", "наш текст".encode(), b"a\0b", b"", b"\0", b"\xff\xfe"[:1]])
def test_utf8_is_not_mistaken_for_another_encoding(data: bytes) -> None:
    assert detect_encoding(data * 50) == ""


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_git_lfs_pointer_is_named_in_every_format(tmp_path: Path, suffix: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
    (tmp_path / f"a.{suffix}").write_bytes(pointer)
    with pytest.raises(FolioError, match=f"a.{suffix} is a Git LFS pointer, .*run `git lfs pull`"):
        build_files(tmp_path, tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("magic", REFUSED_MAGIC)
def test_known_formats_that_are_not_read_are_named(tmp_path: Path, magic: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(REFUSED_FILES[magic])
    with pytest.raises(
        MisuseError, match=f"a.txt is {re.escape(REFUSED_MAGIC[magic][0])}, expected text or a table"
    ) as error:
        build_files(tmp_path, tmp_path / "a.txt")
    assert_one_line(str(error.value))


@pytest.mark.parametrize(
    "start",
    [
        "ORC",
        "GGUF",
        "FEA1",
        "PAR1",
        "PK",
        "BM",
        "MZ",
        "BZh9",
        "%PDF-",
        "%PDF-1.7",
        "{\\rtf",
        "WARC/1.",
        "WARC/1.0",
        "Obj",
        "Rar!",
        "SQLite format 3",
        "7z",
        "яШя",
        "ARROW1",
        "version https://git-lfs.github.com/spec/v1",
        "x" * 257 + "ustar",
    ],
)
@pytest.mark.parametrize("suffix", ["txt", "md", "csv", "jsonl", "txt.gz"])
def test_text_that_begins_like_a_binary_format_is_read(tmp_path: Path, start: str, suffix: str) -> None:
    texts = [f"{start} is how the first text begins.", "The second does not."]
    if suffix == "jsonl":
        content, expected = "\n".join(f'{{"text": "{i}"}}' for i in range(2)), ["0", "1"]
    elif suffix == "csv":  # the letters are the name of a column
        content, expected = f"{start},text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)), texts
    else:
        content, expected = "\n".join(texts), texts
    data = content.encode()
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    document = None if suffix in ("csv", "jsonl") else "line"
    assert read_texts(build_files(tmp_path, tmp_path / f"a.{suffix}", document=document)) == expected


def test_text_in_cp1251_that_begins_like_an_image_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("яШя — первая строка.\nВторая.\n".encode("cp1251"))
    result = build_files(tmp_path, tmp_path / "a.txt", document="line", encoding="cp1251")
    assert read_texts(result) == ["яШя — первая строка.", "Вторая."]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_may_have_characters_whose_low_byte_is_nul(tmp_path: Path, encoding: str) -> None:
    texts = ["一二三 一日一善", "Ā word", "smile 😀 and dash \u2000"]
    (tmp_path / "a.txt").write_bytes("\n".join(texts).encode(encoding))
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document="line")) == texts


@pytest.mark.parametrize("first_length", [4_000, 4_095, 4_096, 5_000, 65_536 + 4_095, 300_000])
@pytest.mark.parametrize("line_end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("suffix", ["txt", "txt.gz"])
def test_line_ends_after_a_long_first_line_are_recognised(
    tmp_path: Path, first_length: int, line_end: str, suffix: str
) -> None:
    lines = ["x" * first_length, "second", "third"]
    data = line_end.join(lines).encode()
    (tmp_path / f"a.{suffix}").write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    assert read_texts(build_files(tmp_path, tmp_path / f"a.{suffix}", document="line")) == lines


def test_carriage_return_in_the_first_line_is_not_a_line_end_if_line_feeds_follow(tmp_path: Path) -> None:
    line = "z" * 5_000 + "\r" + "y" * 3_000
    (tmp_path / "a.txt").write_bytes(f"{line}\nsecond".encode())
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt", document="line")) == [line, "second"]


def test_parquet_under_another_name_is_read_and_a_wrong_format_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.txt")
    assert read_texts(build_files(tmp_path, tmp_path / "a.txt")) == ["one", "two"]
    with pytest.raises(MisuseError, match="a.txt is a parquet file, but format is csv; leave --format out"):
        build_files(tmp_path, tmp_path / "a.txt", format="csv")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_html_page_instead_of_a_table_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_text("\n<!DOCTYPE html><html><title>404</title></html>")
    with pytest.raises(FolioError, match="is an HTML page, expected .*download it again"):
        build_files(tmp_path, tmp_path / f"a.{suffix}")


def test_zip_in_a_gzip_file_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "text")
    (tmp_path / "a.zip.gz").write_bytes(gzip.compress(buffer.getvalue()))
    with pytest.raises(MisuseError, match="a.zip.gz is a compressed zip archive; decompress it"):
        build_files(tmp_path, tmp_path / "a.zip.gz")
