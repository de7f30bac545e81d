"""Copy a build from a folder or a service, and check every byte against its manifest.

The manifest is read first: it says which files there are, how large they are, and their hashes.
Several files are copied at once to a hidden folder, `.NAME.pull/BUILD_ID/` beside the target. Each
is hashed while it arrives and gets its name only if the hash is right. At last the manifest is
written, and the folder is renamed to the target. So a reader finds the whole build or none.

After an interruption, whole files are hashed and kept, and a file that was copied in part continues
at its last byte.
"""

from __future__ import annotations

import functools
from pathlib import Path

from preprocess.errors import FolioError, format_quantity
from preprocess.inputs.remote.fetch import get_results, several_at_once
from preprocess.inputs.remote.remote_file import TransferBroken
from preprocess.inputs.remote.transfer import Transfers
from preprocess.progress import Progress
from preprocess.shards.manifest import Manifest
from preprocess.shards.manifest_file import MANIFEST, MAX_FILE_BYTES, check_manifest
from preprocess.sharing.build_files import BuildFile, check_space, count_bytes, list_build_files
from preprocess.sharing.checked_file import CheckedFile, has_file
from preprocess.sharing.publish import choose_target, has_build, lock_target, open_work, publish
from preprocess.sharing.sources import Source, open_source

NUM_TRANSFERS = 8  # at once; each has some blocks of several megabytes in memory
ADVICE = "get another copy of the build"


def pull(address: str, name: str | None, *, replace: bool, progress: Progress) -> tuple[Path, bool]:
    """Copy the build at a path or a URL, and return its folder and whether anything had to be copied.

    `name`: of the build here, by default that in its manifest. Raises MisuseError if the folder
    contains another build and `replace` is false, and FolioError if the build cannot be read or is
    not what its manifest says.
    """
    source, manifest_data, manifest = open_build_source(address)
    target = choose_target(name, manifest)
    return target, copy_build(source, manifest_data, manifest, target, replace=replace, progress=progress)


def open_build_source(address: str) -> tuple[Source, bytes, Manifest]:
    """Return the source with a path or a URL, and the manifest there, as it is stored and parsed.

    Raises MisuseError and FolioError as `pull` does.
    """
    with several_at_once(lambda num_bytes: None) as (transfers, _):
        source = transfers.try_again(lambda: open_source(address), shown=address)
        manifest_data = _read_manifest(source, transfers)
    return source, manifest_data, check_manifest(manifest_data, source.show(MANIFEST), advice=ADVICE)


def copy_build(
    source: Source, manifest_data: bytes, manifest: Manifest, target: Path, *, replace: bool, progress: Progress
) -> bool:
    """Copy a build to the folder `target`, and return whether this was necessary. Errors are as for `pull`."""
    files = list_build_files(manifest, source.show(MANIFEST))
    with lock_target(target):
        if has_build(target, manifest.build_id, replace=replace):
            return False
        with open_work(target, manifest.build_id) as work:
            total = count_bytes(files)
            check_space(work, total - sum(path.stat().st_size for path in work.rglob("*") if path.is_file()))
            progress.log(f"copying {format_quantity(len(files) + 1, 'file')} ({total:,} bytes) to {target}")
            copy_files(source, files, work, progress)
            publish(work, manifest_data, target)
    return True


def copy_files(source: Source, files: list[BuildFile], work: Path, progress: Progress) -> None:
    """Copy files of a build to the folder `work`, several at once. Errors are as for `pull`."""
    with (
        progress.bar("copy", total=count_bytes(files), unit="B") as bar,
        several_at_once(bar.update, NUM_TRANSFERS) as (transfers, submit),
    ):
        get_results([submit(functools.partial(_copy_file, source, file, work, transfers)) for file in files])


def _read_manifest(source: Source, transfers: Transfers) -> bytes:
    """Return the content of the manifest of a build."""

    def read() -> bytes:
        data = bytearray()
        with source.open(MANIFEST, 0) as body:
            for chunk in body.chunks:
                data += chunk
                if len(data) > MAX_FILE_BYTES:
                    raise FolioError(f"{source.show(MANIFEST)} has more than {MAX_FILE_BYTES:,} bytes; {ADVICE}")
        return bytes(data)

    return transfers.try_again(read, shown=source.show(MANIFEST))


def _copy_file(source: Source, file: BuildFile, work: Path, transfers: Transfers) -> None:
    """Copy one file to the folder `work`, or continue its copy. Raises FolioError if its content is wrong."""
    report = transfers.report if file.size_bytes is not None else (lambda num_bytes: None)
    if has_file(work, file):
        report((work / file.name).stat().st_size)
        return
    with CheckedFile(work, file, source.show(file.name)) as out:
        is_continued = out.position > 0
        report(out.position)

        def copy_rest() -> None:
            if out.position == file.size_bytes:
                return
            with source.open(file.name, out.position) as body:
                if body.start != out.position:  # the service knows no ranges
                    report(body.start - out.position)
                    out.rewind(body.start)
                for chunk in body.chunks:
                    transfers.check_cancelled()
                    out.write(chunk)
                    report(len(chunk))
            if out.position < (file.size_bytes or 0):
                raise TransferBroken(f"it ended after {out.position:,} of {file.size_bytes:,} bytes")

        copy_all = functools.partial(
            transfers.try_again, copy_rest, shown=source.show(file.name), get_position=lambda: out.position
        )
        copy_all()
        if is_continued and not out.is_right():  # the part from an earlier attempt may be damaged
            report(-out.position)
            out.rewind(0)
            copy_all()
        out.finish()
