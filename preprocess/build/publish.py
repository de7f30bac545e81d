"""Decides whether a build may be made at a path, and moves a finished build there.

A build is made in the work directory and renamed as the last step, so a directory with the build's
name is always a whole build. Replacing a build takes two renames: the old build is renamed first,
then the new one takes its name. If the process is killed between the two, no build has that name,
and the next attempt begins by renaming the old one back (`replace_directory` and
`restore_replaced_directory` in shards/files.py).

A lock file keeps two processes from making the same build at once. The operating system releases
the lock when a process ends, even if it is killed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import JsonObject, find_blocking_file, replace_directory
from preprocess.shards.format import BUILD_LOG, MANIFEST, STATS, TOKENIZER_DIR, Build, read_manifest
from preprocess.shards.manifest import drop_origins

BUILD_FILE = re.compile(rf"{MANIFEST}|{STATS}|{BUILD_LOG}|{TOKENIZER_DIR}|(train|val)-\d{{5}}\.(bin|ends|docs|mask)")


@contextmanager
def lock_build(output_dir: Path) -> Iterator[None]:
    """Hold the lock of the build `output_dir` during the `with` block. Creates the folder that contains it.

    Raises FolioError if another process holds it, and MisuseError if `output_dir` is a file or is in one.
    """
    import filelock

    lock = filelock.FileLock(output_dir.parent / f".{output_dir.name}.lock", timeout=0)
    if (blocking := find_blocking_file(output_dir)) is not None:
        raise MisuseError(f"{blocking} is a file; pass a directory that does not exist yet")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except filelock.Timeout as e:
        if not Path(lock.lock_file).exists():  # as in /proc
            raise MisuseError(f"no file can be made in {output_dir.parent}; choose another --output") from e
        raise FolioError(f"another build of {output_dir} is running; wait for it, or choose another --name") from e
    try:
        yield
    finally:
        lock.release()


def is_already_built(output_dir: Path, recipe: JsonObject, sources: list[JsonObject], *, replace: bool) -> bool:
    """Return whether `output_dir` contains the build of `recipe` and `sources`.

    `recipe` and `sources` are as in a manifest. Returns False if the directory is empty or does not
    exist, or if it contains any build and `replace` is true. Raises MisuseError if it contains
    anything else, and FolioError if the build in it is damaged.
    """
    if not output_dir.exists() and not output_dir.is_symlink():
        return False
    if output_dir.is_dir() and not any(output_dir.iterdir()):
        return False
    if not contains_only_a_build(output_dir):
        raise MisuseError(f"{output_dir} exists and is not a build; move it away, or choose another --name or --output")
    if replace:
        return False
    manifest = read_manifest(output_dir, advice="pass --replace to build it again")
    if manifest.recipe != recipe or drop_origins(manifest.sources) != drop_origins(sources):
        changed = sorted(k for k, v in recipe.items() if manifest.recipe.get(k) != v) or ["sources"]
        raise MisuseError(
            f"{output_dir} holds another build (other {', '.join(changed)}); pass --replace, or choose another --name"
        )
    try:
        Build(output_dir)
    except FolioError as e:
        problem = str(e).split(";")[0]
        raise FolioError(f"{output_dir} is damaged ({problem}); pass --replace to build it again") from e
    return True


def contains_only_a_build(output_dir: Path) -> bool:
    """Return whether `output_dir` has a manifest and only files of a build, maybe damaged."""
    return (
        output_dir.is_dir()
        and (output_dir / MANIFEST).is_file()
        and all(BUILD_FILE.fullmatch(path.name) for path in output_dir.iterdir())
    )


def publish(staging_dir: Path, output_dir: Path) -> None:
    """Move the finished build to `output_dir`, and delete a build that was there.

    Raises FolioError if another program, such as an export, has put other files there meanwhile.
    """
    if output_dir.is_dir() and any(output_dir.iterdir()) and not contains_only_a_build(output_dir):
        raise FolioError(f"{output_dir} got other files meanwhile; move them away, and run the same command again")
    replace_directory(staging_dir, output_dir)
