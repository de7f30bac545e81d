"""WARC files: pages and texts are documents, other records are counted, and damage is rejected with its place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.inputs.find_inputs import find_input_files
from preprocess.progress import Progress
from preprocess.readers.warc import read_warc
from preprocess.recipes.schema import Recipe
from preprocess.stream import TokenStream
from tests.conftest import assert_one_line
from tests.helpers.file_builds import FEW_EXAMPLES, build_files, read_stats, read_texts
from tests.helpers.warc_files import HTML_HEAD, make_page, make_record, make_response
from tests.preprocess.readers.helpers import RejectsInMemory, list_texts
from tests.preprocess.stream.helpers import open_files, read_documents

pytest.importorskip("resiliparse")
pytest.importorskip("fastwarc")

TEXT_HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
RECORDS = [
    make_record("warcinfo", b"software: x\r\n", "application/warc-fields"),
    make_record("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
    make_response(make_page("page one")),
    make_response(b"\x89PNG", "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"),
    make_response(make_page("not found"), "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n"),
    make_record("response", b"dns answer", "text/dns"),
    make_response(b"plain <b>text</b>", TEXT_HEAD),
    make_record("conversion", "wet text, Привет".encode()),
    make_record("metadata", b"fetchTimeMs: 1\r\n", "application/warc-fields"),
]
TEXTS = ["page one", "plain <b>text</b>", "wet text, Привет"]


def compress_zstd_members(records: list[bytes]) -> bytes:
    return b"".join(pa.compress(record, codec="zstd", asbytes=True) for record in records)


@pytest.mark.usefixtures("partition_sizes")
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.warc", b"".join(RECORDS)),
        ("a.warc.gz", b"".join(map(gzip.compress, RECORDS))),
        ("a.warc.wet.gz", gzip.compress(b"".join(RECORDS))),
        ("a.warc.zst", compress_zstd_members(RECORDS)),
        ("a.warc.bz2", bz2.compress(b"".join(RECORDS))),
        ("a.txt", b"".join(RECORDS)),
        ("noname", b"".join(map(gzip.compress, RECORDS))),
    ],
)
def test_pages_and_texts_are_documents_and_other_records_are_counted(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    result = build_files(tmp_path, tmp_path / name)
    assert read_texts(result) == TEXTS
    assert read_stats(result)["documents"]["other_records"] == 6
    assert {"resiliparse", "fastwarc"} <= set(result.manifest.made_with)


def test_warc_in_an_archive_and_by_every_command(tmp_path: Path, preprocess: Callable[..., Any]) -> None:
    (tmp_path / "a.warc").write_bytes(b"".join(RECORDS))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("in/a.warc.gz", gzip.compress(b"".join(RECORDS)))
    assert list_texts(tmp_path / "a.zip") == TEXTS
    corpus = open_files(tmp_path / "a.warc", val_fraction=0)
    documents = read_documents(TokenStream(corpus, block_size=64, stream_buffer=0, tail="pad"))
    assert documents == [text.encode() for text in TEXTS]
    estimate = preprocess("estimate", "--input", "a.warc", "--tokenizer", "byte", "--json")
    assert json.loads(estimate.stdout)["documents"] == 3
    arguments = ("--input", "a.warc", "--tokenizer", "char", "--val-fraction", "0", "--output", "tok")
    assert preprocess("tokenizer", "train", *arguments).returncode == 0


def compress_brotli(body: bytes) -> bytes:
    import brotli  # fastwarc needs it

    return brotli.compress(body)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize(
    ("header", "encode"),
    [
        ("Content-Encoding: gzip", gzip.compress),
        ("Content-Encoding: deflate", zlib.compress),
        ("Content-Encoding: br", compress_brotli),
        ("Content-Encoding: zstd", lambda body: compress_zstd_members([body])),
        ("Transfer-Encoding: chunked", chunk),
        ("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", lambda body: chunk(gzip.compress(body))),
        ("Content-Encoding: gzip", bytes),  # some crawlers keep the header of a decoded body
        ("Content-Encoding: unheard-of", bytes),
    ],
)
def test_bodies_are_decoded_as_their_headers_say(tmp_path: Path, header: str, encode: Callable[[bytes], bytes]) -> None:
    response = make_response(encode(make_page("the text")), f"{HTML_HEAD}{header}\r\n")
    (tmp_path / "a.warc").write_bytes(response + RECORDS[2])
    assert list_texts(tmp_path / "a.warc") == ["the text", "page one"]


@pytest.mark.parametrize(
    ("content_type", "page", "encoding"),
    [
        ('text/html; charset="windows-1251"', "<html><p>Привет", "cp1251"),
        ("text/html; charset=windows-1251", "<html><meta charset=utf-8><p>Привет", "cp1251"),
        ("text/html", "<html><meta charset=koi8-r><p>Привет", "koi8-r"),
        ("TEXT/HTML", "<html><p>Привет", "utf-8"),
        ("application/xhtml+xml", "<html><p>Привет", "utf-16"),
        ("text/plain; charset=koi8-r", "Привет", "koi8-r"),
    ],
)
def test_charset_is_that_of_the_mark_the_server_or_the_page(
    tmp_path: Path, content_type: str, page: str, encoding: str
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n"
    (tmp_path / "a.warc").write_bytes(make_response(page.encode(encoding), head))
    assert list_texts(tmp_path / "a.warc") == ["Привет"]


def test_encoding_of_the_recipe_is_for_pages_that_name_none_and_invalid_bytes_follow_the_recipe(
    tmp_path: Path,
) -> None:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
    path = tmp_path / "a.warc"
    path.write_bytes(make_response("<html><p>Привет".encode("cp1251"), head) + RECORDS[2])
    assert list_texts(path, encoding="cp1251") == ["Привет", "page one"]
    with pytest.raises(FolioError, match="a.warc: the record at byte 0 is not UTF-8 and names no charset") as error:
        list_texts(path)
    assert_one_line(str(error.value))
    assert list_texts(path, invalid_utf8="skip") == ["page one"]
    assert "\ufffd" in list_texts(path, invalid_utf8="replace")[0]


def replace_length(record: bytes, length: str) -> bytes:
    head, _, rest = record.partition(b"Content-Length: ")
    return head + b"Content-Length: " + length.encode() + rest[rest.index(b"\r\n") :]


@pytest.mark.parametrize(
    "damaged",
    [
        b"garbage\r\nbetween records\r\n\r\n",
        make_response(make_page("x")).replace(b"WARC/1.0", b"WARC/9.0"),
        make_response(make_page("x")).replace(b"Content-Length", b"Length"),
        replace_length(make_response(make_page("x")), "-5"),
        replace_length(make_response(make_page("x")), "9" * 30),
        make_response(make_page("x")).replace(b"WARC-Date", b"X" * 50_000),
    ],
    ids=["garbage", "version", "no length", "negative", "huge", "long header"],
)
@pytest.mark.usefixtures("partition_sizes")
def test_damaged_record_is_rejected_with_its_place_and_the_others_are_read(tmp_path: Path, damaged: bytes) -> None:
    before, after = RECORDS[2] + RECORDS[7], RECORDS[6] + RECORDS[2]
    path, rejects = tmp_path / "a.warc", RejectsInMemory()
    path.write_bytes(before + damaged + after + damaged + RECORDS[7])
    assert list_texts(path, rejects) == ["page one", TEXTS[2], TEXTS[1], "page one", TEXTS[2]]
    assert rejects.counts["malformed"] >= 2
    places = [int(place.removeprefix("byte ")) for place, *_ in rejects.malformed]
    starts = (len(before), len(before + damaged + after))
    for start in starts:  # the place is the record, or the end of the one before
        assert any(start - 600 <= place <= start + len(damaged) for place in places)


@FEW_EXAMPLES
@given(st.binary(max_size=200), st.integers(1, 100))
def test_any_bytes_between_records_leave_the_others_readable(tmp_path: Path, damage: bytes, block_bytes: int) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(RECORDS[7] + damage + RECORDS[6] + damage + RECORDS[7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocess.inputs.open_input.BLOCK_BYTES", block_bytes)
        assert list_texts(path) == [TEXTS[2], TEXTS[1], TEXTS[2]]


@pytest.mark.parametrize("cut", [3, 60, 200])
def test_file_that_ends_within_a_record_has_a_reject(tmp_path: Path, cut: int) -> None:
    path, rejects = tmp_path / "a.warc", RejectsInMemory()
    path.write_bytes(RECORDS[7] + (RECORDS[2] + b"")[: -4 - cut])
    assert list_texts(path, rejects) == [TEXTS[2]]
    assert [place for place, *_ in rejects.malformed] == [f"byte {len(RECORDS[7])}"]
    assert "ends after" in rejects.malformed[0][1]


def test_truncated_compressed_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(map(gzip.compress, RECORDS))[:-20])
    with pytest.raises(FolioError, match="cannot be read as a gzip file .*it ends too early") as error:
        build_files(tmp_path, path)
    assert_one_line(str(error.value))


@pytest.mark.parametrize(
    "response",
    [
        make_response(b"zz\r\nnot chunks", HTML_HEAD + "Transfer-Encoding: chunked\r\n"),
        make_response(b"\x1f\x8b\x08 not gzip", HTML_HEAD + "Content-Encoding: gzip\r\n"),
    ],
)
def test_response_that_cannot_be_decoded_is_rejected(tmp_path: Path, response: bytes) -> None:
    rejects = RejectsInMemory()
    (tmp_path / "a.warc").write_bytes(response + RECORDS[2])
    assert list_texts(tmp_path / "a.warc", rejects) == ["page one"]
    ((place, reason, _),) = rejects.malformed
    assert place == "byte 0" and reason.startswith("the body of the response cannot be decoded: ")


@pytest.mark.parametrize(
    "large", [make_page("x" * 5_000), gzip.compress(make_page("x" * 5_000))], ids=["record", "decoded body"]
)
def test_large_record_is_oversized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bytes) -> None:
    for module in ("warc", "record_sizes"):
        monkeypatch.setattr(f"preprocess.readers.{module}.get_max_record_bytes", lambda recipe: 2_000)
    for module in ("warc", "page_process"):
        monkeypatch.setattr(f"preprocess.readers.{module}.MAX_PAGE_BYTES", 2_000)
    header = "Content-Encoding: gzip\r\n" if large.startswith(b"\x1f\x8b") else ""
    (tmp_path / "a.warc").write_bytes(RECORDS[2] + make_response(large, HTML_HEAD + header) + RECORDS[6])
    with pytest.raises(FolioError, match=f"the record at byte {len(RECORDS[2])} has more than 2,000 bytes"):
        list_texts(tmp_path / "a.warc")
    assert list_texts(tmp_path / "a.warc", oversized="skip") == ["page one", TEXTS[1]]


def test_long_encoded_body_and_text_that_grows_when_it_is_decoded_are_oversized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.readers.warc.MAX_ENCODED_BYTES", 500)
    for module in ("warc", "record_sizes"):
        monkeypatch.setattr(f"preprocess.readers.{module}.get_max_record_bytes", lambda recipe: 1_000)
    chunked = make_response(chunk(b"x" * 500), TEXT_HEAD + "Transfer-Encoding: chunked\r\n")
    koi8 = make_response(
        "Привет ".encode("koi8-r") * 100, "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=koi8-r\r\n"
    )
    path = tmp_path / "a.warc"
    path.write_bytes(RECORDS[2] + chunked + RECORDS[6])
    with pytest.raises(
        FolioError, match="the record at byte .* has a compressed or chunked body of more than 500 bytes"
    ):
        list_texts(path)
    assert list_texts(path, oversized="skip") == ["page one", TEXTS[1]]
    path.write_bytes(RECORDS[2] + koi8 + RECORDS[6])
    with pytest.raises(FolioError, match="the record at byte .* has more than 1,000 bytes"):
        list_texts(path)
    assert list_texts(path, oversized="skip") == ["page one", TEXTS[1]]


def test_zstd_file_with_a_dictionary_written_by_fastwarc_is_read(tmp_path: Path) -> None:
    from fastwarc.stream_io import ZstdWriter, zstd_train_dictionary_from_samples

    pages = [make_response(make_page(f"page {i}")) for i in range(100)]
    dictionary, buffer = zstd_train_dictionary_from_samples(pages, 2_000), io.BytesIO()
    with ZstdWriter(buffer, dictionary=dictionary, compress_dictionary_frame=True) as writer:
        for page in pages:
            writer.write(page)
    (tmp_path / "a.warc.zst").write_bytes(buffer.getvalue())
    assert list_texts(tmp_path / "a.warc.zst") == [f"page {i}" for i in range(100)]


def test_records_written_by_fastwarc_are_read(tmp_path: Path) -> None:
    from fastwarc.stream_io import GzipWriter
    from fastwarc.warc import WarcRecord, WarcRecordType

    buffer = io.BytesIO()
    for i in range(3):
        record = WarcRecord()
        record.init_headers(WarcRecordType.response, content_length=0)
        record.headers["Content-Type"] = "application/http; msgtype=response"
        record.set_bytes_content(HTML_HEAD.encode() + b"\r\n" + make_page(f"page {i}"))
        with GzipWriter(buffer) as member:
            record.write(member, checksum_data=True)
    (tmp_path / "a.warc.gz").write_bytes(buffer.getvalue())
    assert list_texts(tmp_path / "a.warc.gz") == ["page 0", "page 1", "page 2"]


def test_long_text_with_one_wide_character_needs_little_memory(tmp_path: Path) -> None:
    """As a Python string, each character of such a text takes four bytes."""
    text = "\U0001f600" + "word " * 4_000_000
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
    (tmp_path / "a.warc").write_bytes(make_response(text.encode(), head))
    recipe = Recipe(corpus="own", inputs=(str(tmp_path / "a.warc"),))
    (file,) = find_input_files(recipe, None, Progress(quiet=True))
    tracemalloc.start()
    try:
        (records,) = read_warc(file, recipe, RejectsInMemory())
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)  # the block of the record, twice while it grows
    finally:
        tracemalloc.stop()
    assert records.columns["text"].to_pylist() == [text]
