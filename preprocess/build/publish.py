"""How a build takes its place: one at a time, aside first, by a rename, and never over what is not a build."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import sync_folder
from preprocess.shards.format import BUILD_LOG, MANIFEST, STATS, TOKENIZER_DIR, Build, read_manifest

REPLACED = ".replaced"
BUILD_FILE = re.compile(rf"{MANIFEST}|{STATS}|{BUILD_LOG}|{TOKENIZER_DIR}|(train|val)-\d{{5}}\.(bin|ends|docs)")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the operating system's lock on `folder`'s name; FolioError where another build does."""
    import filelock

    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
    if folder.exists() and not folder.is_dir():
        raise MisuseError(f"{folder} is a file; name a folder that is not there yet")
    try:
        lock.acquire()
    except filelock.Timeout as e:
        raise FolioError(f"another build of {folder} is running; wait for it, or choose another --name") from e
    try:
        yield
    finally:
        lock.release()


def is_there_already(folder: Path, recipe: dict[str, Any], sources: list[dict[str, Any]], *, replace: bool) -> bool:
    """Whether `folder` holds this very build. Raises where it holds anything else that may not go."""
    if (folder.is_dir() and not any(folder.iterdir())) or not (folder.exists() or folder.is_symlink()):
        return False
    if not _is_builds(folder):
        raise MisuseError(f"{folder} is there and is no build; move it away, or choose another --name or --output")
    if replace:
        return False
    manifest = read_manifest(folder)
    same = manifest["recipe"] == recipe and manifest["sources"] == sources
    if not same:
        changed = sorted(k for k, v in recipe.items() if manifest["recipe"].get(k) != v) or ["sources"]
        raise MisuseError(
            f"{folder} holds another build ({', '.join(changed)} differ); pass --replace, or choose another --name"
        )
    try:
        Build(folder)
    except FolioError as e:
        raise FolioError(f"{folder} is damaged ({str(e).split(';')[0]}); pass --replace to build it anew") from e
    return True


def _is_builds(folder: Path) -> bool:
    """Whether all that lies in `folder` is a build's, however damaged: only then may it be replaced."""
    return (
        folder.is_dir()
        and (folder / MANIFEST).is_file()
        and all(BUILD_FILE.fullmatch(p.name) for p in folder.iterdir())
    )


def publish(aside: Path, folder: Path) -> None:
    """Put `aside` in the place of `folder`. Killed between its renames, the next build's first step undoes them."""
    sync_folder(aside)
    old = folder.parent / f".{folder.name}.{os.getpid()}{REPLACED}"
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(aside, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def finish_interrupted_replace(folder: Path) -> None:
    """Undo, or finish, what a process that was killed while it replaced `folder` left."""
    for old in sorted(folder.parent.glob(f".{folder.name}.*{REPLACED}")):
        if not folder.exists():
            os.rename(old, folder)
        # What cannot be deleted, such as files another process has mapped on Windows, is in nobody's way.
        shutil.rmtree(old, ignore_errors=True)
