"""HTML pages become their main text, whatever their charset, and hostile pages do no harm."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.detect import detect_format
from preprocess.readers import html_text, page_process
from preprocess.stream import TokenStream
from tests.conftest import assert_one_line
from tests.helpers.file_builds import build_files, read_stats, read_texts
from tests.helpers.warc_files import make_page
from tests.preprocess.readers.helpers import list_texts
from tests.preprocess.stream.helpers import open_files, read_documents

NEEDS_RESILIPARSE = pytest.mark.skipif(
    html_text.importlib.util.find_spec("resiliparse") is None, reason="the extra html is not installed"
)
CYRILLIC = "Привет, мир"
# A page with n unclosed elements of this kind and n paragraphs has n² elements.
UNCLOSED = "".join(f"<font size={i}><p>x" for i in range(9_000))


@NEEDS_RESILIPARSE
@pytest.mark.parametrize("name", ["a.html", "a.HTM", "a.xhtml", "a.txt", "noname", "a.html.gz"])
def test_page_is_its_main_text_under_any_name(tmp_path: Path, name: str) -> None:
    page = make_page("The main text.")
    (tmp_path / name).write_bytes(gzip.compress(page) if name.endswith(".gz") else page)
    assert list_texts(tmp_path / name) == ["The main text."]


@NEEDS_RESILIPARSE
def test_pages_in_folders_and_archives_are_documents_and_pages_without_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.html").write_bytes(make_page("one"))
    (tmp_path / "in/b.html").write_bytes(b"<!doctype html><html><body><script>run()</script></body></html>")
    (tmp_path / "in/c.html").write_bytes(b"")
    (tmp_path / "in/d.txt").write_text("plain")
    with zipfile.ZipFile(tmp_path / "in/z.zip", "w") as archive:
        archive.writestr("page.html", make_page("two"))
    result = build_files(tmp_path, tmp_path / "in")
    assert read_texts(result) == ["one", "plain", "two"]
    assert read_stats(result)["documents"]["empty"] == 2
    assert result.manifest.made_with["resiliparse"] not in ("", "absent")


def test_other_builds_do_not_name_the_libraries(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two")
    result = build_files(tmp_path, tmp_path / "a.txt", split="contiguous")
    assert not {"resiliparse", "fastwarc"} & set(result.manifest.made_with)


@NEEDS_RESILIPARSE
@pytest.mark.parametrize(
    ("declaration", "encoding"),
    [
        ('<meta charset="windows-1251">', "cp1251"),
        ('<META http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        ('<!-- <meta charset="koi8-r"> --><meta charset="windows-1251">', "cp1251"),  # a comment
        ('<!--><meta charset=cp866><meta content="a>b" charset=koi8-r>', "cp866"),  # an empty comment
        ('<meta name="description" content="charset=koi8-r"><meta charset=cp866>', "cp866"),
        ("<meta data-charset=koi8-r name=a><meta charset='cp866'>", "cp866"),
        ("<meta charset=nonsense><meta http-equiv=content-type content=text/html;charset=cp866>", "cp866"),
        ("<meta http-equiv=content-type content=text/html; charset=cp866>", "cp866"),  # an attribute, without quotes
        ("<meta charset=utf-16>", "utf-8"),  # impossible, so the standard reads UTF-8
        ("<meta charset=nonsense>", "utf-8"),
        ("<meta charset=rot13>", "utf-8"),
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("<meta charset=windows-1251>", "utf-8-sig"),  # a byte order mark takes precedence
        ("", "utf-16"),
        ("<meta charset=windows-1251>", "utf-16-le"),  # known by its NULs
    ],
)
def test_charset_of_the_page_is_used(tmp_path: Path, declaration: str, encoding: str) -> None:
    page = f"<!doctype html><html><head>{declaration}</head><body><p>{CYRILLIC}</p></body></html>"
    (tmp_path / "a.html").write_bytes(page.encode(encoding))
    assert list_texts(tmp_path / "a.html") == [CYRILLIC]


@NEEDS_RESILIPARSE
def test_encoding_of_the_recipe_takes_precedence_and_invalid_bytes_follow_the_recipe(tmp_path: Path) -> None:
    page = f"<html><head><meta charset=latin-1></head><body><p>{CYRILLIC}</p></body></html>".encode("cp1251")
    path = tmp_path / "a.html"
    path.write_bytes(page)
    assert list_texts(path, encoding="cp1251") == [CYRILLIC]
    assert list_texts(path, encoding="utf-8", invalid_utf8="skip") == []
    assert "\ufffd" in list_texts(path, encoding="utf-8", invalid_utf8="replace")[0]
    path.write_bytes(page.replace(b"<meta charset=latin-1>", b""))
    with pytest.raises(FolioError, match="a.html is not UTF-8: byte 0xcf at offset .* --encoding") as error:
        list_texts(path)
    assert_one_line(str(error.value))
    path.write_bytes(b"<html><meta charset=utf-8><p>\xff")
    with pytest.raises(
        FolioError, match="the page is not valid in its charset utf-8 .*--invalid-utf8 replace"
    ) as error:
        list_texts(path)
    assert_one_line(str(error.value))


@NEEDS_RESILIPARSE
def test_page_is_read_by_every_command(tmp_path: Path, preprocess: Callable[..., Any]) -> None:
    for i in range(4):
        (tmp_path / f"{i}.html").write_bytes(make_page(f"Page {i} has some text."))
    files = [tmp_path / f"{i}.html" for i in range(4)]
    result = build_files(tmp_path, *files)
    texts = [f"Page {i} has some text." for i in range(4)]
    assert read_texts(result) == texts
    stream = TokenStream(open_files(*files, val_fraction=0), block_size=64, stream_buffer=0, tail="pad")
    assert read_documents(stream) == [text.encode() for text in texts]
    estimate = preprocess("estimate", "--input", "*.html", "--tokenizer", "byte", "--json")
    assert json.loads(estimate.stdout)["documents"] == 4
    arguments = ("--input", "*.html", "--tokenizer", "char", "--val-fraction", "0", "--output", "tok")
    assert preprocess("tokenizer", "train", *arguments).returncode == 0


def test_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_text.importlib.util, "find_spec", lambda name: None)
    for name, content, extra in (("a.html", b"<html>", "html"), ("a.warc", b"WARC/1.0\r\n", "warc")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MisuseError, match=rf"needs the package resiliparse; .*folio-lm\[{extra}\]") as error:
            build_files(tmp_path, tmp_path / name)
        assert_one_line(str(error.value))


@NEEDS_RESILIPARSE
def test_settings_of_text_and_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes(make_page("one"))
    for settings in ({"document": "line"}, {"where": 'lang == "en"'}, {"text_column": "body"}):
        with pytest.raises(MisuseError, match="has no effect on html files"):
            build_files(tmp_path, tmp_path / "a.html", **settings)
    (tmp_path / "b.jsonl").write_text('{"text": "two"}')
    with pytest.raises(MisuseError, match="where and template apply to tables, but .*a.html is html"):
        build_files(tmp_path, tmp_path / "a.html", tmp_path / "b.jsonl", template="{text}")
    with pytest.raises(FolioError, match="is an HTML page, expected csv"):
        (tmp_path / "c.csv").write_bytes(make_page("error"))
        build_files(tmp_path, tmp_path / "c.csv")
    assert list_texts(tmp_path / "a.html", format="text") == [make_page("one").decode()]


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbf\n<!DOCTYPE html>", "html"),
        ("a.txt", b"<?xml version='1.0'?>\n<!-- a > b -->\n<HTML lang=en>", "html"),
        ("a.txt", b"<htmlx>", "text"),
        ("a.txt", b"see <html>", "text"),
        ("a.php", b"<!doctype html><?php", "text"),
        ("a.md", b"<html>", "text"),
    ],
)
def test_html_is_known_by_its_beginning_but_source_code_stays_text(name: str, head: bytes, expected: str) -> None:
    assert detect_format(name, name, head, "auto") == expected


@NEEDS_RESILIPARSE
@pytest.mark.parametrize(
    ("limit", "value", "page", "reason"),
    [
        ("MAX_MEMORY_BYTES", 200_000_000, UNCLOSED, "needs more than 200 MB of memory"),
        pytest.param("MAX_CPU_S", 1, "<div>" * 20_000, "takes more than 1 s", marks=pytest.mark.slow),
    ],
)
def test_hostile_page_is_an_error_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, page: str, reason: str
) -> None:
    code = page_process.CHILD_CODE.replace(
        "import main\n", f"import main\nimport preprocess.readers.page_process as p\np.{limit} = {value}\n"
    )
    monkeypatch.setattr(page_process, "CHILD_CODE", code)
    monkeypatch.setattr(page_process, limit, value)
    monkeypatch.setattr(page_process, "_children", {})
    (tmp_path / "a.html").write_bytes(make_page("one"))
    (tmp_path / "b.html").write_text(f"<html><body>{page}")
    (tmp_path / "c.html").write_bytes(make_page("three"))
    files = [tmp_path / f"{name}.html" for name in "abc"]
    if limit == "MAX_MEMORY_BYTES":
        with pytest.raises(FolioError, match=f"b.html: the page {reason}; pass --oversized skip"):
            build_files(tmp_path, *files)
    result = build_files(tmp_path, *files, oversized="skip")
    assert read_texts(result) == ["one", "three"]
    assert read_stats(result)["documents"]["oversized"] == 1


@NEEDS_RESILIPARSE
def test_long_page_is_oversized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.readers.html.MAX_PAGE_BYTES", 1_000)
    monkeypatch.setattr(page_process, "MAX_PAGE_BYTES", 1_000)
    (tmp_path / "a.html").write_bytes(make_page("long " * 1_000))
    with pytest.raises(FolioError, match="a.html: the page has more than 1,000 bytes; pass --oversized skip"):
        list_texts(tmp_path / "a.html")
    assert list_texts(tmp_path / "a.html", oversized="skip") == []


def test_memory_of_two_pages_is_bounded() -> None:
    """The promise is 1 GB for two workers, which need about 350 MB besides their pages and the children."""
    assert 2 * (page_process.MAX_MEMORY_BYTES + page_process.MAX_PAGE_BYTES) < 650_000_000
