"""Save checkpoints, and delete those that a run does not keep; checkpoint.py describes the files.

A checkpoint is written under a hidden temporary name, flushed to the disk, and renamed. So a folder
with the final name is always complete, even if the process or the machine stops during a save. If
the state is sharded, every process writes its part, and the main process, when all have done so,
checkpoint.json. So no process needs more memory than its part, and writing takes less time.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from preprocess.errors import FolioError, one_line
from preprocess.shards.files import JsonObject, readable_json, sha256_file, sync_folder, write_durable
from train.config import Config
from train.core.distributed import World
from train.core.tensors import write_tensors
from train.data.streams import DataSource
from train.run.checkpoint import CHECKPOINTS_DIR, list_checkpoints, step_folder, step_of
from train.run.checkpoint_info import (
    FORMAT,
    INFO_FILE,
    MODEL_FILE,
    SHARDED_VERSION,
    TRAINING_FILE,
    VERSION,
    Origin,
    seal_info,
)
from train.run.state import TrainingState, checkpoint_bytes, state_numbers, state_tensors
from train.run.stored_tensors import part_files, write_part

Result = TypeVar("Result")
LEFTOVER = re.compile(r"\.step-.*\.(partial|removed)")


def origin_of(config: Config, source: DataSource) -> Origin:
    """Return the Origin of a run of `config` on `source`."""
    return Origin(settings=config.as_dict(), build_id=source.build_id, tokenizer_sha256=source.tokenizer_sha256)


def remove_leftovers(out_dir: Path) -> None:
    """Delete what interrupted saves and deletions left."""
    folder = out_dir / CHECKPOINTS_DIR
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def save(state: TrainingState, out_dir: Path, *, origin: Origin, keep: int, world: World | None = None) -> Path:
    """Save a checkpoint of `state`, and delete all except the last `keep` and the best one.

    All processes of `world` call it; the `out_dir` of the main process counts. Returns the folder of
    the checkpoint. Raises FolioError if it cannot be written. Earlier checkpoints are then unchanged,
    and no partial checkpoint remains.
    """
    world = world or World()
    main_dir, main_pid = world.broadcast([str(out_dir.absolute()), os.getpid()])
    out_dir = out_dir if world.is_main else Path(main_dir)
    target = step_folder(out_dir, state.step)
    temporary = target.with_name(f".{target.name}.{main_pid}.partial")
    num_parts = world.size if state.is_sharded else 1

    def translated(action: Callable[[], Result]) -> Result:
        try:
            return action()
        except (OSError, SafetensorError) as e:
            raise FolioError(_describe_failed_save(e, out_dir, state)) from e

    try:
        world.run_on_main(lambda: translated(lambda: temporary.mkdir(parents=True)))
        files = world.gather(
            world.run_in_all(lambda: translated(lambda: _write(temporary, state, world.rank, num_parts)))
        )
        world.run_on_main(lambda: translated(lambda: _commit(temporary, target, _info(state, origin, files))))
    except BaseException:  # also if another process could not write its part
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    if world.is_main:
        _prune(out_dir, step=state.step, keep=keep, best_step=state.early_stopping.best_step)
    return target


def _prune(out_dir: Path, *, step: int, keep: int, best_step: int | None) -> None:
    # The run has rolled back past the checkpoints of later steps: do not continue from those.
    later = [p for p in list_checkpoints(out_dir) if step_of(p) > step]
    others = [p for p in list_checkpoints(out_dir) if step_of(p) <= step]
    for folder in later + [p for p in others[:-keep] if step_of(p) != best_step]:
        _remove(folder)


def _write(folder: Path, state: TrainingState, rank: int, num_parts: int) -> JsonObject:
    """Write the files of process `rank` to `folder`. Return the size and the hash of each by its name."""
    if rank >= num_parts:
        return {}
    files: JsonObject = {}
    for kind, tensors in ((MODEL_FILE, state.model.state_dict()), (TRAINING_FILE, state_tensors(state))):
        path = folder / part_files(kind, num_parts)[rank]
        if state.is_sharded:
            write_part(path, tensors, is_main=rank == 0)
        else:
            write_tensors(path, tensors)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return files


def _info(state: TrainingState, origin: Origin, files: list[JsonObject]) -> JsonObject:
    """Return the content of checkpoint.json. `files`: what `_write` returned in each process."""
    parts = {"version": SHARDED_VERSION, "num_parts": len(files)} if state.is_sharded else {"version": VERSION}
    return {
        "format": FORMAT,
        **parts,
        **state_numbers(state),
        **dataclasses.asdict(origin),
        "vocab_size": state.model.vocab_size,
        "files": {name: entry for entries in files for name, entry in entries.items()},
    }


def _commit(temporary: Path, target: Path, info: JsonObject) -> None:
    """Write checkpoint.json to the folder `temporary`, and rename the folder to `target`."""
    write_durable(temporary / INFO_FILE, readable_json(seal_info(info)))
    for name in info["files"]:  # safetensors writes files that only their owner can read
        shutil.copymode(temporary / INFO_FILE, temporary / name)
    _remove(target)  # exists only if it is damaged and the run rolled back past it
    temporary.rename(target)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, if it exists.

    It is renamed first, so that an interrupted deletion does not leave an incomplete checkpoint.
    """
    if folder.exists():
        removed = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _describe_failed_save(error: OSError | SafetensorError, out_dir: Path, state: TrainingState) -> str:
    number = error.errno if isinstance(error, OSError) else _errno_in(str(error))
    reason, advice = os.strerror(number) if number else one_line(str(error)), "solve that"
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        needed_mb = checkpoint_bytes(state) / 1e6
        free_mb = shutil.disk_usage(out_dir).free / 1e6
        advice = f"it needs {needed_mb:,.1f} MB, {free_mb:,.1f} MB are free; free some"
    kept = list_checkpoints(out_dir)
    start = f"{kept[-1].name}, which is complete" if kept else "the beginning"
    return (
        f"cannot save the checkpoint of step {state.step:,} in {out_dir}: {reason}; {advice}, then run the same "
        f"command again: it continues from {start}"
    )


def _errno_in(message: str) -> int | None:
    """Return the number in a message of safetensors such as `I/O error: File too large (os error 27)`."""
    match = re.search(r"os error (\d+)", message)
    return int(match[1]) if match else None
