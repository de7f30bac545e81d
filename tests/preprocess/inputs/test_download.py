"""find_file obtains a file from each possible origin, verifies it, and explains every failure."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.download import find_file, redact_url
from preprocess.progress import Progress
from preprocess.recipes.schema import CorpusFile

DATA = b"the real text\n" * 100
QUIET = Progress(quiet=True)
BROKEN = -1  # in place of a status: the body is shorter than its Content-Length


class Server:
    """An HTTP server on loopback that sends `answers`, (status, body), in turn, and repeats the last one."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = [(200, DATA)]
        self.requested: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requested.append(self.path)
                status, body = owner.answers.pop(0) if len(owner.answers) > 1 else owner.answers[0]
                self.send_response(200 if status == BROKEN else status)
                self.send_header("Content-Length", str(len(DATA) if status == BROKEN else len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PREPROCESS_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("preprocess.inputs.download.RETRIES", 1)
    return tmp_path / "cache"


def make_corpus_file(url: str) -> CorpusFile:
    return CorpusFile(name="input.txt", sha256=hashlib.sha256(DATA).hexdigest(), bytes=len(DATA), url=url)


def find(url: str, source: Path | None = None) -> Path:
    return find_file("corpus", make_corpus_file(url), source=source, progress=QUIET)


def test_find_file_downloads_once_and_caches(server: Server, empty_cache: Path) -> None:
    path = find(f"{server.url}/x")
    assert path.read_bytes() == DATA and path == empty_cache / "corpus/input.txt"
    assert find(f"{server.url}/x") == path and server.requested == ["/x"]
    assert [p.name for p in path.parent.iterdir()] == ["input.txt"]


def test_find_file_replaces_a_damaged_file_in_the_cache(server: Server, capsys: pytest.CaptureFixture) -> None:
    find(f"{server.url}/x").write_bytes(b"half")
    assert find(f"{server.url}/x").read_bytes() == DATA
    assert "is damaged and is not used" in capsys.readouterr().err


def test_find_file_retries_a_temporary_failure(server: Server) -> None:
    server.answers = [(503, b"busy"), (200, DATA)]
    assert find(f"{server.url}/x").read_bytes() == DATA


def test_find_file_retries_a_response_that_breaks_off(server: Server, empty_cache: Path) -> None:
    server.answers = [(BROKEN, DATA[:100]), (200, DATA)]
    assert find(f"{server.url}/x").read_bytes() == DATA and len(server.requested) == 2
    find(f"{server.url}/x").unlink()
    server.answers = [(BROKEN, DATA[:100])]
    with pytest.raises(FolioError, match="the connection was lost; go online"):
        find(f"{server.url}/x")
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("mirror", ["http://[x", "HTTP://127.0.0.1:9/x"])
def test_find_file_reports_an_unusable_mirror(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREPROCESS_MIRROR", mirror)
    with pytest.raises(FolioError, match="could not get"):
        find("http://127.0.0.1:9/y")


def test_find_file_names_the_setting_of_an_unwritable_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "file"))
    with pytest.raises(FolioError, match="set FOLIO_CACHE to a folder with enough space"):
        find(f"{server.url}/x")


def test_find_file_does_not_cache_an_error_page(server: Server, empty_cache: Path) -> None:
    server.answers = [(404, b"<html>no such page</html>")]
    with pytest.raises(
        FolioError, match=r"could not get corpus/input\.txt: http://127.*/x answered 404 Not Found; .*--source FILE"
    ):
        find(f"{server.url}/x")
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("body", [b"<html>please log in</html>", DATA + b"!", DATA[:-1], DATA * 5000])
def test_find_file_rejects_a_wrong_checksum(server: Server, empty_cache: Path, body: bytes) -> None:
    server.answers = [(200, body)]
    with pytest.raises(FolioError, match=r"has sha256 \w{64} and [\d,]+ bytes, expected"):
        find(f"{server.url}/x")
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


def test_find_file_gives_advice_without_a_network() -> None:
    with pytest.raises(
        FolioError,
        match=r"http://127\.0\.0\.1:9/x: no connection; go online, or pass --source FILE, or set PREPROCESS_MIRROR",
    ):
        find("http://127.0.0.1:9/x")


def test_find_file_tries_a_mirror_folder_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("PREPROCESS_MIRROR", str(mirror))
    assert find(f"{server.url}/x").read_bytes() == DATA and server.requested == ["/x"]  # the mirror has no such file
    (mirror / "corpus").mkdir(parents=True)
    (mirror / "corpus/input.txt").write_bytes(DATA)
    assert find("http://127.0.0.1:9/x") == mirror / "corpus/input.txt"
    (mirror / "corpus/input.txt").write_bytes(b"other")
    with pytest.raises(FolioError, match="get another copy"):
        find(f"{server.url}/x")


def test_find_file_tries_a_mirror_url_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREPROCESS_MIRROR", f"{server.url}/all/")
    assert find("http://127.0.0.1:9/x").read_bytes() == DATA
    assert server.requested == ["/all/corpus/input.txt"]


def test_find_file_uses_only_the_given_source(server: Server, tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(DATA)
    assert find(f"{server.url}/x", source=copy) == copy and server.requested == []
    copy.write_bytes(DATA[:-1])
    with pytest.raises(FolioError, match=r"copy\.txt has sha256"):
        find(f"{server.url}/x", source=copy)
    with pytest.raises(MisuseError, match="is not a file"):
        find(f"{server.url}/x", source=tmp_path)


def test_messages_never_contain_credentials(server: Server) -> None:
    server.answers = [(403, b"")]
    with pytest.raises(FolioError) as caught:
        find(f"{server.url.replace('//', '//user:secret@')}/x?signature=abc")
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)
    assert redact_url("https://u:p@host:8/a?b=c#d") == "https://host:8/a"
