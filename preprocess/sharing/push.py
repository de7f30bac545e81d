"""Copy a build to a folder, an object store, or a dataset of the Hugging Face hub.

A folder on this machine is written as `pull` writes one. In an object store, the files are written
first, several at once, and the manifest last, so that a reader finds the whole build or none. If a
build is replaced, its manifest is deleted first.

An object store does not say the SHA-256 of an object. So the versions (ETags, generations) that the
pushed objects got are noted in RECEIPTS, an object beside them. A push that continues an
interrupted one keeps the objects that still have these versions. RECEIPTS is deleted at the end.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from preprocess.build.publish import BUILD_FILE
from preprocess.errors import FolioError, MisuseError, format_quantity, shorten
from preprocess.inputs.remote.addresses import find_hub_address, get_scheme, is_remote, resolve_file_url, show_url
from preprocess.inputs.remote.fetch import get_results, several_at_once
from preprocess.inputs.remote.transfer import Transfers
from preprocess.progress import Progress
from preprocess.shards.files import canonical_json, parse_json, read_small_file
from preprocess.shards.format import Build
from preprocess.shards.manifest_file import MANIFEST, MAX_FILE_BYTES, ShardError, check_manifest
from preprocess.sharing.build_files import BuildFile, count_bytes, list_build_files
from preprocess.sharing.object_folder import ObjectFolder
from preprocess.sharing.pull import NUM_TRANSFERS, copy_build
from preprocess.sharing.push_to_hub import push_to_hub
from preprocess.sharing.sources import LocalFolder

RECEIPTS = ".folio-push.json"
MAX_RECEIPTS_BYTES = 64 << 20
NOTE_BYTES = 32 << 20  # pushed between two writes of RECEIPTS


def push(build: Build, address: str, *, replace: bool, progress: Progress) -> bool:
    """Copy a build to a path or a URL, and return whether anything had to be copied.

    `address`: the folder that will have the files of the build. Raises MisuseError if nothing can be
    written there, or if it has another build and `replace` is false, and FolioError if the build is
    damaged or cannot be copied.
    """
    address = find_hub_address(address) or address
    scheme = get_scheme(address) if is_remote(address) else ""
    if scheme in ("http", "https"):
        raise MisuseError(
            f"{show_url(address)}: builds can be pulled from {scheme}://, and not pushed; name a folder, s3://, gs:// "
            "or hf://datasets/OWNER/NAME"
        )
    with build.reading():
        manifest_data = read_small_file(build.folder / MANIFEST, MAX_FILE_BYTES)
        if scheme == "hf":
            return push_to_hub(build, manifest_data, address, replace=replace, progress=progress)
        if scheme:
            return _ObjectPush(build, manifest_data, ObjectFolder(address), progress).run(replace=replace)
        target = Path(resolve_file_url(address)).resolve()
        if build.folder.resolve() in target.parents:
            raise MisuseError(f"{target} is inside the build; choose another folder")
        source = LocalFolder(build.folder)
        return copy_build(source, manifest_data, build.manifest, target, replace=replace, progress=progress)


class _ObjectPush:
    """A push of one build to a folder of an object store."""

    def __init__(self, build: Build, manifest_data: bytes, folder: ObjectFolder, progress: Progress) -> None:
        self._build, self._manifest_data, self._folder, self._progress = build, manifest_data, folder, progress
        self._files = list_build_files(build.manifest, str(build.folder / MANIFEST))
        self._lock = threading.Lock()
        self._versions: dict[str, str] = {}  # of the objects that are what they should be
        self._num_new_bytes = 0  # since RECEIPTS was written

    def run(self, *, replace: bool) -> bool:
        """Copy the build, and return whether this was necessary."""
        with several_at_once(lambda num_bytes: None) as (transfers, _):
            shown = self._folder.shown
            found = transfers.try_again(self._folder.list, shown=shown)
            if transfers.try_again(functools.partial(self._has_build, found, replace=replace), shown=shown):
                return False
            self._versions = transfers.try_again(functools.partial(self._read_receipts, found), shown=shown)
        missing = [file for file in self._files if file.name not in self._versions]
        self._progress.log(
            f"copying {format_quantity(len(missing) + 1, 'file')} ({count_bytes(missing):,} bytes) to {shown}"
        )
        total = sum((self._build.folder / file.name).stat().st_size for file in missing)
        with (
            self._progress.bar("copy", total=total, unit="B") as bar,
            several_at_once(bar.update, NUM_TRANSFERS) as (transfers, submit),
        ):
            get_results([submit(functools.partial(self._upload, file, transfers)) for file in missing])
            transfers.try_again(functools.partial(self._finish, transfers), shown=shown)
        return True

    def _has_build(self, found: dict[str, tuple[int, str]], *, replace: bool) -> bool:
        """Return whether the folder has this build. If it is to be replaced, its manifest is deleted."""
        names = {name: name.partition("/")[0] for name in found if name != RECEIPTS}
        if strangers := [name for name, first in names.items() if not BUILD_FILE.fullmatch(first)]:
            raise MisuseError(
                f"{self._folder.shown} has other files, such as {shorten(strangers[0])!r}; choose an empty folder"
            )
        if MANIFEST not in found:
            return False
        if not replace:
            self._check_same_build(found)
            return True
        self._folder.delete(MANIFEST)
        return False

    def _check_same_build(self, found: dict[str, tuple[int, str]]) -> None:
        """Raise MisuseError if the folder has another build, ShardError if it is not whole."""
        shown = self._folder.show(MANIFEST)
        data = self._folder.read(MANIFEST, MAX_FILE_BYTES + 1)
        build_id = check_manifest(data, shown, advice="pass --replace to replace it").build_id
        if build_id != self._build.build_id:
            raise MisuseError(
                f"{self._folder.shown} holds another build ({build_id[:12]}, not {self._build.build_id[:12]}); pass "
                "--replace, or choose another folder"
            )
        for file in self._files:
            if file.name not in found or file.size_bytes not in (None, found[file.name][0]):
                raise ShardError(
                    f"{self._folder.show(file.name)} is missing or has another size; pass --replace to push it again"
                )

    def _read_receipts(self, found: dict[str, tuple[int, str]]) -> dict[str, str]:
        """Return the versions of those objects that an interrupted push of this build has written."""
        if RECEIPTS not in found:
            return {}
        try:
            value = parse_json(self._folder.read(RECEIPTS, MAX_RECEIPTS_BYTES))
        except ValueError:  # everything is pushed again
            return {}
        if not isinstance(value, dict) or value.get("build_id") != self._build.build_id:
            return {}
        noted = value.get("versions")
        versions = noted if isinstance(noted, dict) else {}
        return {
            file.name: version
            for file in self._files
            if file.name in found
            for size_bytes, version in [found[file.name]]
            if version and versions.get(file.name) == version and file.size_bytes in (None, size_bytes)
        }

    def _upload(self, file: BuildFile, transfers: Transfers) -> None:
        num_reported = 0

        def report(num_bytes: int) -> None:
            nonlocal num_reported
            num_reported += num_bytes
            transfers.report(num_bytes)

        def upload() -> str:
            report(-num_reported)  # of an attempt that failed
            counted = Transfers(transfers.is_cancelled, report)
            return self._folder.upload(file, self._build.folder / file.name, counted)

        version = transfers.try_again(upload, shown=self._folder.show(file.name))
        with self._lock:
            self._versions[file.name] = version
            self._num_new_bytes += num_reported
            if self._num_new_bytes >= NOTE_BYTES:
                transfers.try_again(self._write_receipts, shown=self._folder.show(RECEIPTS))
                self._num_new_bytes = 0

    def _write_receipts(self) -> None:
        value: dict[str, Any] = {"build_id": self._build.build_id, "versions": self._versions}
        self._folder.write(RECEIPTS, canonical_json(value))

    def _finish(self, transfers: Transfers) -> None:
        """Check that all objects are those that were pushed, and write the manifest."""
        found = self._folder.list()
        # There was no manifest when the push began. A failed attempt of this method may have written it.
        if MANIFEST in found and self._folder.read(MANIFEST, MAX_FILE_BYTES + 1) != self._manifest_data:
            raise FolioError(
                f"{self._folder.shown} got another build during the push, by another push; run the same command again"
            )
        for file in self._files:
            _, version = found.get(file.name, (0, "missing"))
            if version != self._versions[file.name]:
                raise FolioError(
                    f"{self._folder.show(file.name)} was changed or deleted during the push, perhaps by another one; "
                    "run the same command again"
                )
        wanted = {file.name for file in self._files}
        for name in found.keys() - wanted - {MANIFEST, RECEIPTS}:  # of a build that is replaced
            transfers.check_cancelled()
            self._folder.delete(name)
        self._folder.write(MANIFEST, self._manifest_data)
        if RECEIPTS in found:
            self._folder.delete(RECEIPTS)
