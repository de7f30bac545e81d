"""Files of a web server: versions, ranges, broken connections, and every kind of refusal."""

from __future__ import annotations

import errno
import gzip
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.remote.fetch import FetchedFile
from tests.conftest import ROOT
from tests.helpers.file_server import Fault, FileServer

Fetch = Callable[..., list[FetchedFile]]
DATA = bytes(range(256)) * 4_000 + b"the end"


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".json"))


def test_fetch_copies_a_file_once_per_version(server: FileServer, fetch: Fetch, remote_cache: Path) -> None:
    server.files["/data/a.txt"] = DATA
    [file] = fetch(f"{server.url}/data/a.txt")
    assert Path(file.path).read_bytes() == DATA and Path(file.path).name == "a.txt"
    assert file.origin is not None and file.origin.url == f"{server.url}/data/a.txt" and len(file.origin.version) == 34
    num_requests = len(server.requests)
    assert fetch(f"{server.url}/data/a.txt") == [file]
    assert len(server.requests) == num_requests + 1  # for the version only
    server.files["/data/a.txt"] = b"new"
    [changed] = fetch(f"{server.url}/data/a.txt")
    assert Path(changed.path).read_bytes() == b"new" and Path(file.path).read_bytes() == DATA
    assert list_files(remote_cache) == ["a.txt", "a.txt"]


def test_fetch_reads_a_file_without_a_version_anew(server: FileServer, fetch: Fetch) -> None:
    server.has_versions = False
    server.files["/a.txt"] = b"old"
    fetch(f"{server.url}/a.txt")
    server.files["/a.txt"] = b"new"
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == b"new" and file.origin is not None and file.origin.version == ""
    number = os.stat(file.path).st_ino
    fetch(f"{server.url}/a.txt")
    assert os.stat(file.path).st_ino == number  # equal content: another process may be reading the file


@pytest.mark.parametrize("data", [b"", b"x", DATA])
@pytest.mark.parametrize("has_ranges", [True, False])
def test_fetch_copies_files_of_every_size(server: FileServer, fetch: Fetch, data: bytes, has_ranges: bool) -> None:
    server.files["/a.txt"], server.has_ranges = data, has_ranges
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == data


def test_fetch_continues_after_every_break(server: FileServer, fetch: Fetch) -> None:
    server.files["/a.txt"] = DATA
    server.faults = [Fault(cut_after=n) for n in (100_000, 0, 1, 300_000)]
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA
    assert [request.start for request in server.requests] == [0, None, 100_000, 100_000, 100_001, 400_001]


def test_fetch_begins_again_if_the_server_has_no_ranges(server: FileServer, fetch: Fetch) -> None:
    server.files["/a.txt"], server.has_ranges = DATA, False
    server.faults = [Fault(is_probe_spared=False), Fault(cut_after=100_000)]
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA


def test_fetch_begins_again_if_a_file_has_no_version(server: FileServer, fetch: Fetch) -> None:
    server.files["/a.txt"], server.has_versions = DATA, False
    server.faults = [Fault(cut_after=100_000)]
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA and [r.start for r in server.requests] == [0, None, None]


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("has_versions", [True, False])
def test_fetch_gives_the_whole_file_whatever_breaks(
    server: FileServer, fetch: Fetch, has_ranges: bool, has_versions: bool
) -> None:
    random = Random(has_ranges + 2 * has_versions)
    server.has_ranges, server.has_versions = has_ranges, has_versions
    for number in range(10):
        data = random.randbytes(random.randrange(300_000))
        server.files[f"/{number}.txt"] = data
        server.faults = [
            random.choice(
                [Fault(cut_after=random.randrange(len(data) + 1)), Fault(503), Fault(429, {"Retry-After": "0"})]
            )
            for _ in range(random.randrange(6))
        ]
        [file] = fetch(f"{server.url}/{number}.txt")
        assert Path(file.path).read_bytes() == data


def test_fetch_ends_after_many_breaks_in_a_row_and_continues_later(server: FileServer, fetch: Fetch) -> None:
    server.files["/a.txt"] = DATA
    server.faults = [Fault(cut_after=100_000), *[Fault(cut_after=0)] * 7]
    with pytest.raises(FolioError, match=r"/a\.txt: the connection was lost; run the same command again, it continues"):
        fetch(f"{server.url}/a.txt")
    server.faults = []
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA and server.requests[-1].start == 100_000


def test_fetch_does_not_mix_two_versions(server: FileServer, fetch: Fetch, remote_cache: Path) -> None:
    server.files["/a.txt"] = DATA
    server.faults = [Fault(cut_after=100_000)]

    def change(request: object) -> None:
        if len(server.requests) == 3:
            server.files["/a.txt"] = DATA[::-1]

    server.before_answer = change
    with pytest.raises(FolioError, match=r"/a\.txt changed while it was downloaded; .*run the same command again"):
        fetch(f"{server.url}/a.txt")
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA[::-1]


def test_fetch_rejects_a_file_that_is_longer_than_it_said(server: FileServer, fetch: Fetch, remote_cache: Path) -> None:
    server.files["/a.txt"], server.has_versions = b"x" * 10, False
    server.before_answer = lambda request: server.files.update({"/a.txt": b"x" * 10 * len(server.requests)})
    with pytest.raises(FolioError, match=r"changed while it was downloaded \(10 bytes, now 20\)"):
        fetch(f"{server.url}/a.txt")
    assert "a.txt" not in list_files(remote_cache)


def test_fetch_waits_as_long_as_the_server_asks(
    server: FileServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.txt"] = DATA
    server.faults = [
        Fault(429, {"Retry-After": "1"}, is_probe_spared=False),
        Fault(429, {"Retry-After": "1"}),
        Fault(503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    ]
    begin = os.times().elapsed
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA and os.times().elapsed - begin >= 2
    server.faults = [Fault(429, {"Retry-After": "86400"}, is_probe_spared=False)]
    with pytest.raises(FolioError, match=r"answered 429 Too Many Requests and asks to wait 86,400 s; run .* later"):
        fetch(f"{server.url}/a.txt")


def test_fetch_follows_redirects(server: FileServer, fetch: Fetch) -> None:
    server.files["/stored/1"] = DATA
    redirect = Fault(302, {"Location": f"{server.url}/stored/1"}, is_probe_spared=False)
    server.faults = [redirect, Fault(is_probe_spared=False), redirect]
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA and Path(file.path).name == "a.txt"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, r"/a\.txt answered 404 Not Found: the file does not exist; check the address"),
        (403, r"answered 403 Forbidden: it needs a login or a newer link; put user name and password into ~/\.netrc"),
        (401, r"answered 401 Unauthorized: it needs a login"),
        (500, r"answered 500 Internal Server Error; run the same command again"),
        (418, r"answered 418 I'm a Teapot, expected the file; check the address"),
    ],
)
def test_fetch_explains_refusals(
    server: FileServer, fetch: Fetch, remote_cache: Path, status: int, message: str
) -> None:
    server.files["/a.txt"] = DATA
    server.faults = [Fault(status, is_probe_spared=False)] * 8
    with pytest.raises(FolioError, match=message) as error:
        fetch(f"{server.url.replace('//', '//user:secret@')}/a.txt?token=secret")
    assert "secret" not in str(error.value) and not list_files(remote_cache)


@pytest.mark.parametrize("has_size", [False, True])
def test_fetch_warns_if_a_copy_that_ends_too_early_cannot_be_noticed(
    server: FileServer, fetch: Fetch, capfd: pytest.CaptureFixture, has_size: bool
) -> None:
    server.files["/a.txt"] = DATA
    server.headers = {} if has_size else {"Content-Range": "bytes 0-0/*"}
    [file] = fetch(f"{server.url}/a.txt")
    assert Path(file.path).read_bytes() == DATA
    assert ("/a.txt: the server does not say the size of the file" in capfd.readouterr().err) != has_size


@pytest.mark.parametrize("has_size", [False, True])
def test_fetch_rejects_an_html_page_that_comes_after_the_first_answer(
    server: FileServer, fetch: Fetch, has_size: bool
) -> None:
    server.files["/a.txt"], server.has_versions = b"a line of text\n", False
    server.headers = {} if has_size else {"Content-Range": "bytes 0-0/*"}
    body, kind = b"<html>log in now</html>"[: len(server.files["/a.txt"])], {"Content-Type": "text/html"}
    server.faults = [Fault(status=200, headers=kind, body=body)]
    with pytest.raises(FolioError, match=r"/a.txt is an HTML page, not the file: perhaps a login"):
        fetch(f"{server.url}/a.txt")


def test_fetch_rejects_an_html_page_in_place_of_a_file(server: FileServer, fetch: Fetch) -> None:
    server.files |= {"/a.jsonl": b"<html>log in</html>", "/a.txt": b"<html>log in</html>"}
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    for name in ("a.jsonl", "a.txt"):
        with pytest.raises(FolioError, match=rf"/{name} is an HTML page, not the file: perhaps a login"):
            fetch(f"{server.url}/{name}")


def test_fetch_keeps_the_bytes_of_a_compressed_file(server: FileServer, fetch: Fetch) -> None:
    server.files["/a.txt.gz"], server.headers = gzip.compress(DATA), {"Content-Encoding": "gzip"}
    [file] = fetch(f"{server.url}/a.txt.gz")
    assert gzip.decompress(Path(file.path).read_bytes()) == DATA


def test_fetch_reads_the_cache_if_there_is_no_connection(
    server: FileServer, fetch: Fetch, capfd: pytest.CaptureFixture
) -> None:
    server.files |= {"/a.txt": DATA, "/b.txt": DATA}
    [file] = fetch(f"{server.url}/a.txt")
    server.close()
    assert fetch(f"{server.url}/a.txt") == [file]
    assert "/a.txt: no connection; the copies in the cache are read" in capfd.readouterr().err
    with pytest.raises(FolioError, match=r"/b\.txt: no connection; go online, or set PREPROCESS_MIRROR"):
        fetch(f"{server.url}/b.txt")
    Path(file.path).write_bytes(b"damaged")
    with pytest.raises(FolioError, match="no connection"):
        fetch(f"{server.url}/a.txt")


def test_fetch_sends_logins_and_stores_none(
    server: FileServer, fetch: Fetch, remote_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    server.files["/a.txt"] = DATA
    [file] = fetch(f"{server.url.replace('//', '//user:pass-secret@')}/a.txt?token=query-secret")
    assert all(request.headers["Authorization"].startswith("Basic ") for request in server.requests)
    assert server.requests[0].path.endswith("?token=query-secret")
    stored = b"".join(path.read_bytes() + str(path).encode() for path in remote_cache.rglob("*") if path.is_file())
    assert b"secret" not in stored and "secret" not in str(file) and "pass-secret" not in caplog.text
    fetch(f"{server.url}/a.txt?token=query-secret")
    assert len(list((remote_cache / "listings").iterdir())) == 1  # a login is not even a part of a hash
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password netrc-secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    fetch(f"{server.url}/a.txt?2")
    assert server.requests[-1].headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://[x/a.txt", r"is not a URL; check it"),
        ("https://", r"not a URL; check the address"),
        ("http://127.0.0.1:9/a.txt", r"http://127\.0\.0\.1:9/a\.txt: no connection; go online"),
    ],
)
@pytest.mark.parametrize("has_mirror", [False, True])
def test_fetch_explains_what_is_no_url(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str, has_mirror: bool
) -> None:
    if has_mirror:
        monkeypatch.setenv("PREPROCESS_MIRROR", str(tmp_path))
    with pytest.raises(FolioError, match=message):
        fetch(url)


def test_fetch_explains_a_glob(server: FileServer, fetch: Fetch) -> None:
    with pytest.raises(FolioError, match=r"404 Not Found: the file does not exist; a glob needs s3:// or hf://"):
        fetch(f"{server.url}/*.txt")


def test_fetch_names_the_setting_of_an_unwritable_cache(
    server: FileServer, fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/a.txt"] = DATA
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOLIO_CACHE", str(tmp_path / "file"))
    with pytest.raises(FolioError, match="FOLIO_CACHE chooses the folder of the cache"):
        fetch(f"{server.url}/a.txt")


def test_fetch_explains_a_full_disk_at_once(server: FileServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.files["/a.txt"] = DATA
    fetch(f"{server.url}/a.txt")
    server.files["/a.txt"] = DATA[1:]
    monkeypatch.setattr("preprocess.inputs.remote.transfer.os.fsync", fail)
    with pytest.raises(FolioError, match=r"no space left on the disk.*FOLIO_CACHE chooses the folder of the cache"):
        fetch(f"{server.url}/a.txt")
    assert [request.start for request in server.requests].count(None) <= 2


def test_fetch_checks_the_space_on_the_disk(server: FileServer, fetch: Fetch) -> None:
    server.files["/a.txt"] = b"x"
    server.headers = {"Content-Range": f"bytes 0-0/{1 << 60}"}
    with pytest.raises(FolioError, match="no space left on the disk: .* set FOLIO_CACHE to a folder on another disk"):
        fetch(f"{server.url}/a.txt")


def test_fetch_by_several_processes_copies_once(server: FileServer, tmp_path: Path) -> None:
    server.files["/a.txt"], server.delay_s = DATA, 0.02
    code = (
        "import sys; from preprocess.inputs.remote.fetch import fetch_inputs; "
        "from preprocess.progress import Progress; "
        "print(fetch_inputs([sys.argv[1]], 'auto', Progress(quiet=True))[0].path)"
    )
    command = [sys.executable, "-c", code, f"{server.url}/a.txt"]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == DATA
    assert [request.start for request in server.requests].count(None) == 1


def test_fetch_rejects_two_files_of_the_same_name(server: FileServer, fetch: Fetch) -> None:
    server.files["/download"] = DATA
    with pytest.raises(MisuseError, match="two of the inputs mean different files named"):
        fetch(f"{server.url}/download?id=1", f"{server.url}/download?id=2")


def test_fetch_copies_several_files_at_once(server: FileServer, fetch: Fetch) -> None:
    server.files |= {f"/{i}.txt": bytes([i]) * 200_000 for i in range(8)}
    server.delay_s = 0.05
    files = fetch(*[f"{server.url}/{i}.txt" for i in range(8)])
    assert [Path(file.path).read_bytes()[:1] for file in files] == [bytes([i]) for i in range(8)]
    assert 2 <= server.max_active <= 8
