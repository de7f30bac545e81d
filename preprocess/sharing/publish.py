"""Decide whether a received build may take a place, and give it its name when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from preprocess.build.publish import contains_only_a_build, lock_build
from preprocess.build.publish import publish as publish_build
from preprocess.errors import FolioError, MisuseError, shorten
from preprocess.shards.files import restore_replaced_directory, sync_file, sync_folder, write_durable
from preprocess.shards.format import BUILD_NAME, TOKENIZER_DIR, Build, check_name, default_root
from preprocess.shards.manifest import Manifest
from preprocess.shards.manifest_file import MANIFEST
from preprocess.shards.verify import verify

NUM_SYNCS = 4  # at once: one flush of the disk serves the files that wait for it


def choose_target(name: str | None, manifest: Manifest) -> Path:
    """Return the folder of a received build: `name`, by default that in its manifest, among the other builds."""
    if name is None and not BUILD_NAME.fullmatch(manifest.name):
        raise MisuseError(f"the build is named {shorten(manifest.name)!r}, which cannot be used here; pass --name")
    return default_root() / check_name(manifest.name if name is None else name)


@contextmanager
def lock_target(target: Path) -> Iterator[None]:
    """Hold the lock of the folder `target`, and undo an interrupted replacement of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_build(target):
        restore_replaced_directory(target)
        yield


def has_build(target: Path, build_id: str, *, replace: bool, advice: str = "") -> bool:
    """Return whether `target` contains the build `build_id`, so that nothing has to be moved.

    With `replace`, every byte of it is checked. Raises MisuseError if `target` contains anything
    but a build, or another build and `replace` is false, and FolioError if the build is damaged and
    `replace` is false. `advice`: what to do then, by default what the commands of builds can do.
    """
    if not target.exists() and not target.is_symlink():
        return False
    if target.is_dir() and not any(target.iterdir()):
        return False
    if not contains_only_a_build(target):
        advice = advice or "move it away, or choose another name or folder"
        raise MisuseError(f"{target} exists and is not a build; {advice}")
    try:
        found = Build(target)
        if found.build_id == build_id:
            return not replace or not any(verify(found))
    except FolioError as e:
        if not replace:
            reason = str(e).split(";")[0]
            raise FolioError(f"{target} is damaged ({reason}); {advice or 'pass --replace to replace it'}") from e
        return False
    if not replace:
        raise MisuseError(
            f"{target} holds another build ({found.build_id[:12]}, not {build_id[:12]}); "
            + (advice or "pass --replace, or choose another name or folder")
        )
    return False


@contextmanager
def open_work(target: Path, build_id: str) -> Iterator[Path]:
    """Yield the hidden folder beside `target` in which an interrupted transfer continues.

    What an interrupted transfer of another build has left is deleted.
    """
    root = target.parent / f".{target.name}.pull"
    root.mkdir(exist_ok=True)
    for stale in root.iterdir():
        if stale.name != build_id:
            shutil.rmtree(stale)
    work = root / build_id
    work.mkdir(exist_ok=True)
    try:
        yield work
    finally:
        if not any(root.iterdir()):
            root.rmdir()


def publish(work: Path, manifest_data: bytes, target: Path) -> None:
    """Flush the files in the folder `work`, write the manifest there, and rename the folder to `target`."""
    pool = ThreadPoolExecutor(NUM_SYNCS)
    try:
        list(pool.map(sync_file, [path for path in work.rglob("*") if path.is_file()]))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C and an error wait only for the flushes that have begun
    if (work / TOKENIZER_DIR).is_dir():
        sync_folder(work / TOKENIZER_DIR)
    write_durable(work / MANIFEST, manifest_data)
    publish_build(work, target)
