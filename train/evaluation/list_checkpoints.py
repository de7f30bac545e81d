"""Which checkpoints of a run are evaluated, while a process may train in it that keeps only the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preprocess.errors import FolioError, MisuseError
from train.core.cli import warn
from train.run.checkpoint import (
    ADVICE,
    CHECKPOINTS_DIR,
    INFO_FILE,
    MOST_LISTINGS,
    Checkpoint,
    find_checkpoint,
    list_checkpoints,
    open_checkpoint,
)


def folder_of(run: Path) -> Path:
    """The folder of the run that `run` is, or is a checkpoint of."""
    if not (run / INFO_FILE).exists():
        if not list_checkpoints(run):
            raise MisuseError(
                f"{run} is neither a checkpoint nor a run that has one; name the out_dir of a run that has saved"
            )
        return run
    folder = run.resolve().parent
    if folder.name != CHECKPOINTS_DIR:
        raise MisuseError(
            f"{run} lies in no run, where its evaluations would be kept; name a checkpoint inside its run"
        )
    return folder.parent


def checkpoints_of(run: Path, which: str) -> Iterator[Checkpoint]:
    """The checkpoints that `which` names: of all, those that are whole, oldest first; else that one, again each time it is asked for.

    A process that trains keeps only the last ones. Where one has been deleted meanwhile, there are newer ones: they are listed
    again, at most MOST_LISTINGS times.
    """
    if which == "all" and (run / INFO_FILE).exists():
        raise MisuseError(f"{run} is one checkpoint, --all takes those of a run; name the run, or leave --all out")
    seen: set[Path] = set()
    for _ in range(MOST_LISTINGS):
        if which != "all":
            yield find_checkpoint(run, warn, best=which == "best")
            continue
        folders = [folder for folder in list_checkpoints(run) if folder not in seen]
        for folder in folders:
            try:
                checkpoint = open_checkpoint(folder)
            except FolioError as e:
                pass_over(e)
            else:
                yield checkpoint
        if all(folder.exists() for folder in folders):
            return
        seen.update(folders)


def pass_over(error: FolioError) -> None:
    warn(f"{str(error).removesuffix(ADVICE)}; passed over")
