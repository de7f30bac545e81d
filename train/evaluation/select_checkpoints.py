"""Selection of the checkpoints of a run to evaluate.

Another process may train the run meanwhile and delete its older checkpoints. So a checkpoint that
was listed may be deleted when it is opened. Then there are newer ones, and the folder is listed
again. The weights of a checkpoint that is yielded can be read even if it is deleted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from train.core.cli import few_warnings, warn
from train.run.checkpoint import (
    CHECKPOINTS_DIR,
    MAX_LISTINGS,
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    map_weights,
    open_checkpoint,
)
from train.run.checkpoint_info import ADVICE, INFO_FILE


def find_run_dir(path: Path) -> Path:
    """Return the run directory: `path` itself, or the one that contains the checkpoint `path`.

    Raises MisuseError if `path` is neither.
    """
    if not (path / INFO_FILE).exists():
        if not list_checkpoints(path):
            raise MisuseError(
                f"{path} is neither a checkpoint nor a run that has one; name the out_dir of a run that has saved"
            )
        return path
    folder = path.resolve().parent
    if folder.name != CHECKPOINTS_DIR:
        raise MisuseError(
            f"{path} is not inside a run, where its evaluations would be stored; name a checkpoint inside its run"
        )
    return folder.parent


def iter_checkpoints(path: Path, which: str) -> Iterator[Checkpoint]:
    """Yield the checkpoints to evaluate of the run, or the checkpoint, at `path`.

    For `which` "newest" or "best", yield that checkpoint. For "all", yield every checkpoint that is
    not damaged, oldest first. If one is deleted meanwhile, the folder is listed again for new ones,
    up to MAX_LISTINGS times in all. Raises MisuseError and FolioError as `find_checkpoint` does.
    """
    if which != "all":
        yield find_checkpoint(path, warn, best=which == "best")
        return
    if (path / INFO_FILE).exists():
        raise MisuseError(f"{path} is one checkpoint, but --all evaluates those of a run; name the run, or omit --all")
    seen: set[Path] = set()
    for _ in range(MAX_LISTINGS):
        folders = [folder for folder in list_checkpoints(path) if folder not in seen]
        with few_warnings(warn, "checkpoint") as warn_of_some:
            for folder in folders:
                try:
                    checkpoint = map_weights(open_checkpoint(folder))
                except FolioError as e:
                    warn_of_some(_describe_skipped(e))
                else:
                    yield checkpoint
        if all(folder.exists() for folder in folders):
            return
        seen.update(folders)


def warn_skipped(error: FolioError) -> None:
    """Warn that a checkpoint is not evaluated because of `error`."""
    warn(_describe_skipped(error))


def _describe_skipped(error: FolioError) -> str:
    return f"{str(error).removesuffix(ADVICE)}; skipped"
