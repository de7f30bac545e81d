"""Save checkpoints, and delete those that a run does not keep; checkpoint.py describes the files.

A checkpoint is written under a hidden temporary name, flushed to the disk, and renamed. So a folder
with the final name is always complete, even if the process or the machine stops during a save.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from preprocess.errors import FolioError, one_line
from preprocess.shards.files import readable_json, sha256_file, sync_folder, write_durable
from train.config import Config
from train.core.tensors import write_tensors
from train.data.streams import DataSource
from train.run.checkpoint import CHECKPOINTS_DIR, list_checkpoints, step_folder, step_of
from train.run.checkpoint_info import (
    FORMAT,
    INFO_FILE,
    MODEL_FILE,
    TENSOR_FILES,
    TRAINING_FILE,
    VERSION,
    Origin,
    seal_info,
)
from train.run.state import TrainingState, state_numbers, state_tensors

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


def save(state: TrainingState, out_dir: Path, *, origin: Origin, keep: int) -> Path:
    """Save a checkpoint of `state`, and delete all except the last `keep` and the best one.

    Returns the folder of the checkpoint. Raises FolioError if it cannot be written. Earlier
    checkpoints are then unchanged, and no partial checkpoint remains.
    """
    target = step_folder(out_dir, state.step)
    folder = target.parent
    temporary = folder / f".{target.name}.{os.getpid()}.partial"
    tensors = {MODEL_FILE: state.model.state_dict(), TRAINING_FILE: state_tensors(state)}
    try:
        temporary.mkdir(parents=True)
        _write(temporary, tensors, state=state, origin=origin)
        _remove(target)  # exists only if it is damaged and the run rolled back past it
        temporary.rename(target)
        sync_folder(folder)
        sync_folder(out_dir)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FolioError(_describe_failed_save(e, out_dir, tensors=tensors, step=state.step)) from e
    _prune(out_dir, step=state.step, keep=keep, best_step=state.early_stopping.best_step)
    return target


def _prune(out_dir: Path, *, step: int, keep: int, best_step: int | None) -> None:
    # The run has rolled back past the checkpoints of later steps: do not continue from those.
    later = [p for p in list_checkpoints(out_dir) if step_of(p) > step]
    others = [p for p in list_checkpoints(out_dir) if step_of(p) <= step]
    for folder in later + [p for p in others[:-keep] if step_of(p) != best_step]:
        _remove(folder)


def _write(folder: Path, tensors: Mapping[str, dict[str, Tensor]], *, state: TrainingState, origin: Origin) -> None:
    files = {}
    for name, content in tensors.items():
        write_tensors(folder / name, content)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    info = {
        "format": FORMAT,
        "version": VERSION,
        **state_numbers(state),
        **dataclasses.asdict(origin),
        "vocab_size": state.model.vocab_size,
        "files": files,
    }
    write_durable(folder / INFO_FILE, readable_json(seal_info(info)))
    for name in TENSOR_FILES:  # safetensors writes files that only their owner can read
        shutil.copymode(folder / INFO_FILE, folder / name)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, if it exists.

    It is renamed first, so that an interrupted deletion does not leave an incomplete checkpoint.
    """
    if folder.exists():
        removed = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _describe_failed_save(
    error: OSError | SafetensorError, out_dir: Path, *, tensors: Mapping[str, dict[str, Tensor]], step: int
) -> str:
    number = error.errno if isinstance(error, OSError) else _errno_in(str(error))
    reason, advice = os.strerror(number) if number else one_line(str(error)), "solve that"
    if number in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        needed_mb = sum(t.nbytes for content in tensors.values() for t in content.values()) / 1e6
        free_mb = shutil.disk_usage(out_dir).free / 1e6
        advice = f"it needs {needed_mb:,.1f} MB, {free_mb:,.1f} MB are free; free some"
    kept = list_checkpoints(out_dir)
    start = f"{kept[-1].name}, which is complete" if kept else "the beginning"
    return (
        f"cannot save the checkpoint of step {step:,} in {out_dir}: {reason}; {advice}, then run the same command "
        f"again: it continues from {start}"
    )


def _errno_in(message: str) -> int | None:
    """Return the number in a message of safetensors such as `I/O error: File too large (os error 27)`."""
    match = re.search(r"os error (\d+)", message)
    return int(match[1]) if match else None
