"""Archives of builds: what `pack` writes and `unpack` reads, and archives that are forged."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess.errors import FolioError, MisuseError
from preprocess.inputs.compressions import import_zstd
from preprocess.shards.format import Build
from preprocess.shards.manifest_file import MANIFEST, ShardError
from preprocess.sharing import pack as pack_module
from preprocess.sharing import unpack as unpack_module
from preprocess.sharing.pack import pack
from preprocess.sharing.unpack import unpack
from tests.conftest import assert_one_line, file_bytes
from tests.preprocess.sharing.helpers import QUIET, edit_manifest, flip_bit, list_all

zstd = import_zstd()
Entry = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def archive(build: Build, tmp_path: Path) -> Path:
    path = tmp_path / "own.tar.zst"
    pack(build, path, replace=False, progress=QUIET)
    return path


def read_entries(archive: Path) -> list[Entry]:
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(archive.read_bytes()))) as tar:
        return [(entry, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]


def write_entries(path: Path, entries: list[Entry], end: bytes = b"") -> Path:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    path.write_bytes(zstd.compress(out.getvalue() + end))
    return path


def make_entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, data


def check_refused(archive: Path, shards: Path, message: str, error: type[FolioError] = FolioError) -> None:
    """Check that an archive is refused with one line, and that nothing is left of it."""
    outside = [name for name in list_all(shards.parent) if not name.startswith("received/")]
    with pytest.raises(error, match=message) as caught:
        unpack(archive, None, replace=False, progress=QUIET)
    assert_one_line(str(caught.value))
    assert list_all(shards) == []
    assert [name for name in list_all(shards.parent) if not name.startswith("received/")] == outside


def test_unpack_gives_the_files_that_were_packed(build: Build, archive: Path, shards: Path) -> None:
    folder, is_new = unpack(archive, None, replace=False, progress=QUIET)
    assert is_new and folder == shards / "own" and file_bytes(folder) == file_bytes(build.folder)
    assert list_all(folder) == sorted([*file_bytes(build.folder), "tokenizer"])
    assert unpack(archive, None, replace=False, progress=QUIET) == (folder, False)
    assert unpack(archive, "other", replace=False, progress=QUIET) == (shards / "other", True)
    assert list_all(shards)[0] == "other"  # and nothing hidden


@pytest.mark.parametrize("threads", [1, 3])
def test_pack_writes_the_same_bytes_again(
    build: Build, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(pack_module, "MAX_THREADS", threads)
    copy = tmp_path / "elsewhere/copy"
    shutil.copytree(build.folder, copy)
    (copy / "build_log.json").write_bytes(b"{}")
    pack(Build(copy), tmp_path / "again.tar.zst", replace=False, progress=QUIET)
    assert (tmp_path / "again.tar.zst").read_bytes() == archive.read_bytes()


def test_pack_writes_an_archive_that_tar_reads(build: Build, archive: Path) -> None:
    entries = read_entries(archive)
    assert entries[0][0].name == f"own/{MANIFEST}"
    assert {entry.name.removeprefix("own/"): data for entry, data in entries} == file_bytes(build.folder)
    assert {(entry.mtime, entry.uid, entry.uname, entry.mode) for entry, _ in entries} == {(0, 0, "", 0o644)}


def test_pack_refuses_existing_files_and_damaged_builds(build: Build, archive: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(MisuseError, match="exists already; pass --replace"):
        pack(build, archive, replace=False, progress=QUIET)
    with pytest.raises(MisuseError, match="exists and is not a regular file; remove it, or"):
        pack(build, archive.parent, replace=True, progress=QUIET)
    path = build.folder / "train-00001.docs"
    path.write_bytes(flip_bit(path.read_bytes(), 100))
    with pytest.raises(ShardError, match=r"train-00001\.docs does not have the size and sha256 in its manifest; copy"):
        pack(build, archive, replace=True, progress=QUIET)
    assert archive.read_bytes() == before and not [p for p in archive.parent.iterdir() if p.name.endswith(".partial")]


def test_pack_keeps_an_archive_that_another_command_wrote_meanwhile(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tar.zst"
    monkeypatch.setattr("preprocess.sharing.pack._add", lambda *_: path.write_bytes(b"another archive"))
    with pytest.raises(FolioError, match=r"x\.tar\.zst was written by another program meanwhile; choose another"):
        pack(build, path, replace=False, progress=QUIET)
    assert path.read_bytes() == b"another archive" and not list(tmp_path.glob(".x*"))


def test_unpack_replaces_another_build_only_if_it_is_told_to(
    archive: Path, shards: Path, build_text: Callable[..., Build], build: Build
) -> None:
    whole = file_bytes(build.folder)
    other = build_text("Another text.\n\nAnd more.\n" * 20, name="other")
    shutil.copytree(other.folder, shards / "own")
    with pytest.raises(MisuseError, match=r"own holds another build \(.{12}, not .{12}\); pass --replace, or choose"):
        unpack(archive, None, replace=False, progress=QUIET)
    assert file_bytes(shards / "own") == file_bytes(other.folder)
    assert unpack(archive, None, replace=True, progress=QUIET) == (shards / "own", True)
    assert file_bytes(shards / "own") == whole and list_all(shards)[0] == "own"


def test_unpack_repairs_a_damaged_build(archive: Path, shards: Path) -> None:
    folder, _ = unpack(archive, None, replace=False, progress=QUIET)
    whole = file_bytes(folder)
    (folder / "train-00000.bin").write_bytes(flip_bit(whole["train-00000.bin"], 5))
    assert unpack(archive, None, replace=True, progress=QUIET) == (folder, True)
    assert file_bytes(folder) == whole
    assert unpack(archive, None, replace=True, progress=QUIET) == (folder, False)
    (folder / "train-00000.bin").unlink()
    with pytest.raises(FolioError, match=r"is damaged \(.*train-00000\.bin is missing\); pass --replace"):
        unpack(archive, None, replace=False, progress=QUIET)


def test_unpack_leaves_other_folders_alone(archive: Path, shards: Path) -> None:
    (shards / "own").mkdir()
    (shards / "own/thesis.txt").write_text("mine")
    for replace in (False, True):
        with pytest.raises(MisuseError, match="exists and is not a build; move it away"):
            unpack(archive, None, replace=replace, progress=QUIET)
    assert (shards / "own/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(("entry", "message"), [
    (make_entry("own/../../evil"), r"holds 'own/\.\./\.\./evil', which its manifest does not name"),
    (make_entry("/tmp/evil"), "holds '/tmp/evil', which its manifest does not name"),
    (make_entry("own/train-00000.bin/../../evil"), "which its manifest does not name"),
    (make_entry("own/notes.txt", b"x"), "holds 'own/notes.txt', which its manifest does not name"),
    (make_entry("own/build_log.json", b"{}"), "which its manifest does not name"),
    (make_entry("own/tokenizer", type=tarfile.DIRTYPE), "which is not a plain file"),
    (make_entry("own/stats.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "which is not a plain file"),
    (make_entry("own/stats.json", type=tarfile.LNKTYPE, linkname="own/manifest.json"), "which is not a plain file"),
    (make_entry("own/tokenizer", type=tarfile.SYMTYPE, linkname="/tmp"), "which is not a plain file"),
    (make_entry("own/stats.json", type=tarfile.FIFOTYPE), "which is not a plain file"),
    (make_entry("own/stats.json", type=tarfile.CHRTYPE), "which is not a plain file"),
    (make_entry("own/stats.json", type=tarfile.BLKTYPE), "which is not a plain file"),
    (make_entry("own/stats.json", b"8 1\n", pax_headers={"GNU.sparse.major": "1"}), "which is not a plain file"),
    (make_entry("own/\x1b[31m\u202eevil"), r"holds 'own/\\+x1b\[31m\\+u202eevil'"),
    (make_entry("own/train-00000.bin", b"123"), "'own/train-00000.bin' with 3 bytes, its manifest says 1,"),
])  # fmt: skip
def test_unpack_refuses_entries_that_are_no_files_of_the_build(
    archive: Path, shards: Path, entry: Entry, message: str
) -> None:
    entries = read_entries(archive)
    check_refused(write_entries(archive, [entries[0], entry, *entries[1:]]), shards, message, ShardError)


def test_unpack_refuses_missing_repeated_and_changed_files(archive: Path, shards: Path) -> None:
    entries = read_entries(archive)
    check_refused(write_entries(archive, entries[:-1]), shards, "lacks 'own/val-0000")
    check_refused(write_entries(archive, [*entries, entries[-1]]), shards, "which its manifest does not name, or twice")
    check_refused(write_entries(archive, entries[1:]), shards, "begins with 'own/stats.json', expected NAME/manifest")
    check_refused(write_entries(archive, []), shards, "is empty, expected NAME/manifest")
    for number in (1, 2, 3, 4, 5):  # statistics, tokenizer, and the files of a shard
        entry, data = entries[number]
        changed = [*entries[:number], (entry, flip_bit(data, 8 * len(data) - 3)), *entries[number + 1 :]]
        check_refused(write_entries(archive, changed), shards, "does not have the size and sha256 in its manifest; get")
    check_refused(write_entries(archive, entries, end=b"more"), shards, "more data follow its end")


def test_unpack_refuses_forged_manifests(archive: Path, shards: Path) -> None:
    entries = read_entries(archive)
    (_, manifest), rest = entries[0], entries[1:]

    def check(edit: Callable[[dict[str, Any]], object], message: str) -> None:
        data = edit_manifest(manifest, edit)
        check_refused(write_entries(archive, [make_entry(f"own/{MANIFEST}", data), *rest]), shards, message)

    check(lambda m: m["tokenizer"]["files"].update({"../evil": "0" * 64}), "tokenizer file '../evil', which is not a")
    check(lambda m: m["splits"]["val"]["shards"][0].update(file="../x.bin"), "it names the file '../x.bin', expected")
    check(
        lambda m: m["splits"]["val"]["shards"][0].update(bytes=1 << 40), "gives val-00000.bin 1,099,511,627,776 bytes"
    )
    check(lambda m: m.update(name="../evil"), "is named '../evil', which cannot be used here; pass --name")
    check(lambda m: m.update(dtype="<u4"), "has dtype '<u4', expected '<u2'")
    check(lambda m: m.update(stats_sha256=""), "it has no statistics")

    def claim_terabytes(m: dict[str, Any]) -> None:
        split = m["splits"]["val"]
        shard = split["shards"][0]
        more = (1 << 50) - shard["tokens"]
        shard["tokens"], split["tokens"], shard["bytes"] = 1 << 50, split["tokens"] + more, 1 << 51

    check(claim_terabytes, r"no space left on the disk: .*another disk \(FOLIO_SHARDS, or the target of a push\)")
    damaged = [make_entry(f"own/{MANIFEST}", flip_bit(manifest, 8 * manifest.index(b'"tokens"') + 1)), *rest]
    check_refused(write_entries(archive, damaged), shards, "manifest.json of .*own.tar.zst ")


def test_unpack_refuses_files_that_are_no_archive(archive: Path, shards: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2], whole[:-1], zstd.compress(b"text"), zstd.compress(b"")):
        archive.write_bytes(data)
        check_refused(archive, shards, "own.tar.zst is (damaged or not a .tar.zst archive|empty)")
    archive.write_bytes(flip_bit(whole, 4 * len(whole)))
    check_refused(archive, shards, "own.tar.zst|manifest")
    check_refused(tmp_path / "none.tar.zst", shards, "none.tar.zst does not exist")
    check_refused(tmp_path, shards, "is not a regular file")


def test_unpack_refuses_bombs(archive: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = read_entries(archive)
    zeros = bytes(40 << 20)
    check_refused(write_entries(archive, entries, end=zeros), shards, "decompresses to more bytes than its manifest")
    bomb = make_entry(f"own/{MANIFEST}", zeros)
    monkeypatch.setattr(unpack_module, "MAX_FILE_BYTES", 30 << 20)
    check_refused(write_entries(archive, [bomb]), shards, "manifest.json of .* has 41,943,040 bytes, expected at most")
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    archive.write_bytes(compressor.compress(zstd.decompress(archive.read_bytes())) + compressor.flush())
    check_refused(archive, shards, "damaged or not a .tar.zst archive .*(memory|window)")


def test_unpack_begins_anew_after_it_was_killed(archive: Path, shards: Path, build: Build) -> None:
    work = shards / ".own.pull" / build.build_id
    work.mkdir(parents=True)
    (work / ".train-00000.bin.partial").write_bytes(b"rubbish")
    (work / "left.txt").write_bytes(b"rubbish")
    (shards / ".own.pull/of another build").mkdir()
    folder, _ = unpack(archive, None, replace=False, progress=QUIET)
    assert file_bytes(folder) == file_bytes(build.folder)
    assert list_all(shards)[0] == "own" and (folder / "left.txt").exists() is False
