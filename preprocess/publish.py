"""How a build takes its place: one at a time, aside first, by a rename, and never over what is not a build."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import sync_folder
from preprocess.shards.format import MANIFEST, Build, read_manifest


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the operating system's lock on `folder`'s name; FolioError where another build does."""
    import filelock

    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
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
    if not (folder / MANIFEST).is_file():
        raise MisuseError(f"{folder} is there and is no build; move it away, or choose another --name or --output")
    manifest = read_manifest(folder)
    same = manifest["recipe"] == recipe and manifest["sources"] == sources
    if replace:
        return False
    if not same:
        changed = sorted(k for k, v in recipe.items() if manifest["recipe"].get(k) != v) or ["sources"]
        raise MisuseError(f"{folder} holds another build ({', '.join(changed)} differ); pass --replace, or choose another --name")
    Build(folder)  # raises ShardError where a file is missing or cut short
    return True


def _replaced(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.replaced"


def publish(aside: Path, folder: Path) -> None:
    """Put `aside` in the place of `folder`. Killed between its renames, the next build's first step undoes them."""
    sync_folder(aside)
    if folder.exists():
        os.rename(folder, _replaced(folder))
    os.rename(aside, folder)
    sync_folder(folder.parent)
    shutil.rmtree(_replaced(folder), ignore_errors=True)


def finish_interrupted_replace(folder: Path) -> None:
    old = _replaced(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, folder)
