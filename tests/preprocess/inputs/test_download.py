"""Getting a corpus' file: every place it may come from, and every way that fails."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.download import find_file, safe_url
from preprocess.progress import Progress
from preprocess.recipes.schema import CorpusFile

DATA = b"the real text\n" * 100
QUIET = Progress(quiet=True)
BROKEN = -1  # an answer that ends before it said it would


class Server:
    """An HTTP server on loopback that answers with the statuses and bodies it is given, in turn, the last for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = [(200, DATA)]
        self.asked: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(self.path)
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
    made = Server()
    yield made
    made.http.shutdown()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PREPROCESS_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("preprocess.inputs.download.RETRIES", 1)
    return tmp_path / "cache"


def file_at(url: str) -> CorpusFile:
    return CorpusFile(name="input.txt", sha256=hashlib.sha256(DATA).hexdigest(), bytes=len(DATA), url=url)


def find(url: str, source: Path | None = None) -> Path:
    return find_file("corpus", file_at(url), source=source, progress=QUIET)


def test_it_is_downloaded_once_and_kept(server: Server, empty_cache: Path) -> None:
    path = find(f"{server.url}/x")
    assert path.read_bytes() == DATA and path == empty_cache / "corpus/input.txt"
    assert find(f"{server.url}/x") == path and server.asked == ["/x"]
    assert [p.name for p in path.parent.iterdir()] == ["input.txt"]


def test_a_damaged_copy_in_the_cache_is_fetched_again(server: Server, capsys: pytest.CaptureFixture) -> None:
    find(f"{server.url}/x").write_bytes(b"half")
    assert find(f"{server.url}/x").read_bytes() == DATA
    assert "is damaged and is fetched again" in capsys.readouterr().err


def test_a_passing_fault_is_tried_again(server: Server) -> None:
    server.answers = [(503, b"busy"), (200, DATA)]
    assert find(f"{server.url}/x").read_bytes() == DATA


def test_an_answer_that_breaks_off_is_asked_for_again(server: Server, empty_cache: Path) -> None:
    server.answers = [(BROKEN, DATA[:100]), (200, DATA)]
    assert find(f"{server.url}/x").read_bytes() == DATA and len(server.asked) == 2
    find(f"{server.url}/x").unlink()
    server.answers = [(BROKEN, DATA[:100])]
    with pytest.raises(FolioError, match="the connection broke off; go online"):
        find(f"{server.url}/x")
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("mirror", ["http://[x", "HTTP://127.0.0.1:9/x"])
def test_a_mirror_that_is_no_place(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREPROCESS_MIRROR", mirror)
    with pytest.raises(FolioError, match="could not get"):
        find("http://127.0.0.1:9/y")


def test_a_cache_that_cannot_be_written_names_its_setting(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "file"))
    with pytest.raises(FolioError, match="set FOLIO_CACHE to a folder with room"):
        find(f"{server.url}/x")


def test_a_404_page_is_no_file(server: Server, empty_cache: Path) -> None:
    server.answers = [(404, b"<html>no such page</html>")]
    with pytest.raises(
        FolioError, match=r"could not get corpus/input\.txt: http://127.*/x answered 404 Not Found; .*--source FILE"
    ):
        find(f"{server.url}/x")
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


@pytest.mark.parametrize("body", [b"<html>please log in</html>", DATA + b"!", DATA[:-1], DATA * 5000])
def test_a_wrong_checksum_is_told_and_not_kept(server: Server, empty_cache: Path, body: bytes) -> None:
    server.answers = [(200, body)]
    with pytest.raises(FolioError, match=r"has sha256 \w{64} and [\d,]+ bytes, wanted"):
        find(f"{server.url}/x")
    assert not [p for p in empty_cache.rglob("*") if p.is_file()]


def test_no_network_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(
        FolioError,
        match=r"http://127\.0\.0\.1:9/x: no connection; go online, or pass --source FILE, or set PREPROCESS_MIRROR",
    ):
        find("http://127.0.0.1:9/x")


def test_a_folder_mirror_is_asked_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("PREPROCESS_MIRROR", str(mirror))
    assert find(f"{server.url}/x").read_bytes() == DATA and server.asked == ["/x"]  # it lacks the file: the URL is next
    (mirror / "corpus").mkdir(parents=True)
    (mirror / "corpus/input.txt").write_bytes(DATA)
    assert find("http://127.0.0.1:9/x") == mirror / "corpus/input.txt"
    (mirror / "corpus/input.txt").write_bytes(b"other")
    with pytest.raises(FolioError, match="get another copy"):
        find(f"{server.url}/x")


def test_a_url_mirror_is_asked_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREPROCESS_MIRROR", f"{server.url}/all/")
    assert find("http://127.0.0.1:9/x").read_bytes() == DATA
    assert server.asked == ["/all/corpus/input.txt"]


def test_source_skips_everything_and_is_checked(server: Server, tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(DATA)
    assert find(f"{server.url}/x", source=copy) == copy and server.asked == []
    copy.write_bytes(DATA[:-1])
    with pytest.raises(FolioError, match=r"copy\.txt has sha256"):
        find(f"{server.url}/x", source=copy)
    with pytest.raises(MisuseError, match="is not a file"):
        find(f"{server.url}/x", source=tmp_path)


def test_credentials_are_never_shown(server: Server) -> None:
    server.answers = [(403, b"")]
    with pytest.raises(FolioError) as caught:
        find(f"{server.url.replace('//', '//user:secret@')}/x?signature=abc")
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)
    assert safe_url("https://u:p@host:8/a?b=c#d") == "https://host:8/a"
