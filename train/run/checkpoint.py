"""Checkpoints: folders `checkpoints/step-00000500/` of a run, committed by a rename.

    model.safetensors     the weights, by parameter name
    training.safetensors  `<parameter name>.<exp_avg | exp_avg_sq | step | momentum_buffer>`, and the
                          losses that early stopping compares with
    checkpoint.json       format, version, step, num_samples, settings, build_id, …, and size and
                          sha256 of the other two

A checkpoint is written under a hidden temporary name, flushed to the disk, and renamed. So a folder
with the final name is complete, whenever the process or the machine stops. It has no pickles, so
loading a checkpoint from a stranger runs no code.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import JsonObject, parse_json, readable_json, sha256_file, sync_folder, write_durable
from train.config import Config
from train.core.tensors import TensorFileError, read_shapes, read_tensors, write_tensors
from train.data.streams import DataSource
from train.model import make_model
from train.model.base import LanguageModel
from train.run.metrics import MAX_STEP
from train.run.state import (
    EARLY_STOPPING,
    REFERENCE,
    TrainingState,
    load_state,
    optimizer_tensors,
    state_numbers,
    state_tensors,
)

FORMAT = "folio-checkpoint"
VERSION = 2
CHECKPOINTS_DIR = "checkpoints"
INFO_FILE, MODEL_FILE, TRAINING_FILE = "checkpoint.json", "model.safetensors", "training.safetensors"
TENSOR_FILES = (MODEL_FILE, TRAINING_FILE)
COMMITTED = re.compile(r"step-(\d{8,18})")
LEFTOVER = re.compile(r"\.step-.*\.(partial|removed)")
ADVICE = "; use another checkpoint"
MAX_LISTINGS = 5  # tries to open the newest checkpoint of a run that is training and deletes old ones
MAX_VOCAB_SIZE = 1 << 32


class CheckpointError(FolioError):
    """A checkpoint that is damaged or does not fit the model."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run is made from. It is the same in all checkpoints of the run."""

    settings: JsonObject
    build_id: str
    tokenizer_sha256: str  # of the manifest's `tokenizer`: builds with the same value use the same ids for text


def origin_of(config: Config, source: DataSource) -> Origin:
    """Return the Origin of a run of `config` on `source`."""
    return Origin(settings=config.as_dict(), build_id=source.build_id, tokenizer_sha256=source.tokenizer_sha256)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are complete. Its tensors are not read yet."""

    folder: Path
    step: int
    vocab_size: int
    best_step: int | None  # the step of the run's best evaluation so far
    num_since: int  # evaluations since one that was better beyond noise
    numbers: JsonObject  # the content of checkpoint.json
    origin: Origin


def list_checkpoints(out_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first.

    Unfinished saves have another name and are not included.
    """
    folder = out_dir / CHECKPOINTS_DIR
    committed = [p for p in folder.iterdir() if COMMITTED.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(committed, key=_step_of)


def step_folder(out_dir: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`."""
    return out_dir / CHECKPOINTS_DIR / f"step-{step:08d}"


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def remove_leftovers(out_dir: Path) -> None:
    """Delete what interrupted saves and deletions left."""
    folder = out_dir / CHECKPOINTS_DIR
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def save(state: TrainingState, out_dir: Path, *, origin: Origin, keep: int) -> Path:
    """Commit a checkpoint of `state`, then delete all except the last `keep` and the best.

    Return its folder.

    Raises FolioError if it cannot be written. Earlier checkpoints are then unchanged, and nothing
    partial remains.
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
    # A checkpoint of a later step was rolled back past: it must not replace a good one.
    later = [p for p in list_checkpoints(out_dir) if _step_of(p) > step]
    others = [p for p in list_checkpoints(out_dir) if _step_of(p) <= step]
    for folder in later + [p for p in others[:-keep] if _step_of(p) != best_step]:
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
    write_durable(folder / INFO_FILE, readable_json(info))
    for name in TENSOR_FILES:  # safetensors writes files that only their owner can read
        shutil.copymode(folder / INFO_FILE, folder / name)


def _remove(folder: Path) -> None:
    """Delete a checkpoint.

    It is renamed first, so that an interrupted deletion leaves no incomplete checkpoint.
    """
    if folder.exists():
        removed = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _describe_failed_save(
    error: OSError | SafetensorError, out_dir: Path, *, tensors: Mapping[str, dict[str, Tensor]], step: int
) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    needed_mb = sum(t.nbytes for content in tensors.values() for t in content.values()) / 1e6
    free_mb = shutil.disk_usage(out_dir).free / 1e6
    kept = list_checkpoints(out_dir)
    full_disk = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    is_full = isinstance(error, SafetensorError) or error.errno in full_disk
    advice = "free some" if is_full else "solve that"
    start = f"{kept[-1].name}, which is complete" if kept else "the beginning"
    return (
        f"cannot save the checkpoint of step {step:,} in {out_dir}: {reason}; it needs {needed_mb:,.1f} MB, "
        f"{free_mb:,.1f} MB are free; {advice}, then run the same command again: it continues from {start}"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check the version, files, sizes and hashes of the checkpoint in `folder`, and return it.

    Raises CheckpointError if it is damaged, and FolioError if it has another format or version.
    """
    info = _read_info(folder)
    try:
        _check_no_extra_files(folder)
        for name in TENSOR_FILES:
            _check_file(folder / name, info["files"][name])
        named = COMMITTED.fullmatch(folder.name)
        min_step, max_step = (int(named[1]), int(named[1])) if named else (0, MAX_STEP)
        early_stopping = info[EARLY_STOPPING]
        best_step = early_stopping["best_step"]
        return Checkpoint(
            folder=folder,
            step=_check_int(info["step"], min_step, max_step),
            vocab_size=_check_int(info["vocab_size"], 1, MAX_VOCAB_SIZE),
            best_step=None if best_step is None else _check_int(best_step, 0, MAX_STEP),
            num_since=_check_int(early_stopping["num_since"], 0, MAX_STEP),
            numbers=info,
            origin=Origin(
                settings=_check_type(info["settings"], dict),
                build_id=_check_type(info["build_id"], str),
                tokenizer_sha256=_check_type(info["tokenizer_sha256"], str),
            ),
        )
    except FileNotFoundError as e:
        raise CheckpointError(f"{folder} was deleted while it was opened{ADVICE}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder / INFO_FILE} is malformed ({type(e).__name__}: {e}){ADVICE}") from e


def _check_no_extra_files(folder: Path) -> None:
    """Raise FolioError for a file that is not part of a checkpoint.

    It is not damage: a person put it there.

    Hidden files, which operating systems create, are ignored.
    """
    extra = [
        p.name for p in folder.iterdir() if p.name not in (INFO_FILE, *TENSOR_FILES) and not p.name.startswith(".")
    ]
    if extra:
        raise FolioError(
            f"{folder} contains {min(extra)!r}, which is not part of a checkpoint; remove it if you trust the rest"
        )


def _read_info(folder: Path) -> JsonObject:
    path = folder / INFO_FILE
    try:
        info = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise CheckpointError(f"{folder} has no {INFO_FILE}{ADVICE}") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not JSON ({e}){ADVICE}") from e
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise FolioError(
            f"{path} does not have the format {FORMAT!r}, so it is not a checkpoint of Folio; name another folder"
        )
    if info.get("version") != VERSION:
        raise FolioError(
            f"{path} has version {info.get('version')!r}, this Folio reads version {VERSION}; use the Folio "
            "that wrote it"
        )
    return info


def _check_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _check_int(value: Any, minimum: int, maximum: int) -> int:
    number: int = _check_type(value, int)
    if not minimum <= number <= maximum:
        raise ValueError(f"expected a number from {minimum} to {maximum}, got {str(number)[:40]}")
    return number


def _check_file(path: Path, entry: JsonObject) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing{ADVICE}")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise CheckpointError(f"{path} has {size:,} bytes, but {INFO_FILE} says {entry['bytes']:,}{ADVICE}")
    if sha256_file(path) != entry["sha256"]:
        raise CheckpointError(f"{path} does not have the sha256 that {INFO_FILE} says{ADVICE}")


def find_newest_checkpoint(out_dir: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or None if the run has no checkpoints.

    If a checkpoint is damaged, `warn` is called and the previous checkpoint is tried. If one was
    deleted meanwhile by the process that trains the run, the checkpoints are listed again (at most
    MAX_LISTINGS listings in all). Raises FolioError if all are damaged, or if a checkpoint has
    another format or version, or a file that is not part of a checkpoint.
    """
    for _ in range(MAX_LISTINGS):
        folders = list_checkpoints(out_dir)
        for folder in reversed(folders):
            try:
                return open_checkpoint(folder)
            except CheckpointError as e:
                if not folder.exists():
                    break
                warn(f"{str(e).removesuffix(ADVICE)}; skipped, trying the previous one")
        else:
            break
    if folders:
        raise FolioError(
            f"all {len(folders)} checkpoints in {out_dir} are damaged; restore one, or start again with --restart"
        )
    return None


def find_checkpoint(path: Path, warn: Callable[[str], None], *, best: bool = False) -> Checkpoint:
    """Return the checkpoint at `path`, or the newest of the run at `path`.

    With `best`, return the run's best checkpoint. Raises MisuseError if `path` is neither a
    checkpoint nor a run that has one.
    """
    if (path / INFO_FILE).exists():
        if best:
            raise MisuseError(
                f"{path} is one checkpoint, but --best chooses among those of a run; name the run, or leave --best out"
            )
        return open_checkpoint(path)
    checkpoint = find_newest_checkpoint(path, warn)
    if checkpoint is None:
        raise MisuseError(
            f"{path} is neither a checkpoint nor a run that has one; name the out_dir of a run that has saved"
        )
    if not best:
        return checkpoint
    if checkpoint.best_step is None or not (folder := step_folder(path, checkpoint.best_step)).is_dir():
        raise MisuseError(f"{path} has no best checkpoint: no evaluation was saved; leave --best out to use the newest")
    return open_checkpoint(folder)


def run_of(checkpoint: Checkpoint) -> Path:
    """Return the directory of the run that a checkpoint is in."""
    return checkpoint.folder.resolve().parent.parent  # resolved first: "." has no parent


def check_shapes(checkpoint: Checkpoint, config: Config) -> None:
    """Raise MisuseError unless the weights have the shapes of a model of `config`.

    No memory is allocated for it.
    """
    with torch.device("meta"):
        parameters = make_model(config, checkpoint.vocab_size).state_dict()
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    path = checkpoint.folder / MODEL_FILE
    try:
        shapes = read_shapes(path)
    except TensorFileError as e:
        raise CheckpointError(f"{e}{ADVICE}") from e
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            got, want = (shapes.get(name) or "nothing", expected.get(name) or "nothing")
            raise MisuseError(
                f"{path} has {got} for {name}, but the settings need {want}; use the settings and the Folio "
                "that it was made with"
            )


def load_model(checkpoint: Checkpoint, model: LanguageModel) -> None:
    """Copy the checkpoint's weights into `model`, on any device.

    Raises CheckpointError if they are damaged or do not fit.
    """
    parameters = model.state_dict()
    tensors = _load_tensors(checkpoint.folder / MODEL_FILE, {name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def restore(checkpoint: Checkpoint, state: TrainingState) -> None:
    """Load the checkpoint into `state`. Raises CheckpointError if it does not fit."""
    load_model(checkpoint, state.model)
    shapes = {name: tuple(tensor.shape) for name, tensor in optimizer_tensors(state)}
    tensors = _load_tensors(checkpoint.folder / TRAINING_FILE, shapes, optional=(REFERENCE,))
    try:
        load_state(state, checkpoint.numbers, tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{checkpoint.folder} cannot be continued ({e}){ADVICE}") from e


def _load_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return the tensors of `path`, which must be exactly those of `shapes`, and any of `optional`."""
    try:
        tensors = dict(read_tensors(path))
    except TensorFileError as e:
        raise CheckpointError(f"{e}{ADVICE}") from e
    for name in sorted(shapes.keys() | tensors.keys() - set(optional)):
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        expected = shapes.get(name, "nothing")
        if got != expected:
            raise CheckpointError(
                f"{path} has {got} for {name}, but the model needs {expected}; use a checkpoint of a model of "
                "these settings"
            )
    return tensors
