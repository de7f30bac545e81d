"""Checkpoints: folders `checkpoints/step-00000500/`, list_checkpoints by a rename.

    model.safetensors     the weights, by parameter name
    training.safetensors  `<parameter name>.<exp_avg | exp_avg_sq | step | momentum_buffer>`, and the losses that patience compares with
    checkpoint.json       format, version, step, num_samples, settings, build_id, …, and the size and sha256 of the two others

Nothing is pickled, so loading one from a stranger runs nothing.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import parse_json, readable_json, sha256_file, sync_folder, write_durable
from train.config import Config
from train.data.streams import DataSource
from train.model import make_model
from train.model.base import LanguageModel
from train.run.state import REFERENCE, Training, load_training, slots, training_numbers, training_tensors

FORMAT = "folio-checkpoint"
VERSION = 2
CHECKPOINTS_DIR = "checkpoints"
INFO_FILE, MODEL_FILE, TRAINING_FILE = "checkpoint.json", "model.safetensors", "training.safetensors"
TENSOR_FILES = (MODEL_FILE, TRAINING_FILE)
COMMITTED = re.compile(r"step-(\d{8,18})")
LEFTOVER = re.compile(r"\.step-.*\.(partial|removed)")
ADVICE = "; use another checkpoint"
MOST_LISTINGS = 5  # of a run whose checkpoints are deleted while they are opened, since it still trains
LARGEST_STEP, LARGEST_VOCAB_SIZE = 10**15, 1 << 32


class CheckpointError(FolioError):
    """A checkpoint that is not whole, or does not fit the model."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run is made from: the same in all of its checkpoints."""

    settings: dict[str, Any]
    build_id: str
    tokenizer_sha256: str  # of the manifest's `tokenizer`: two builds that share it mean the same by an id


def origin_of(config: Config, builds: DataSource) -> Origin:
    """What every checkpoint of a run of `config` on `builds` says it was made from."""
    return Origin(settings=config.as_dict(), build_id=builds.build_id, tokenizer_sha256=builds.tokenizer_sha256)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are whole; its tensors are not read yet."""

    folder: Path
    step: int
    vocab_size: int
    best_step: int | None  # of the run's best evaluation so far
    num_since: int  # evaluations since one that was better beyond noise
    numbers: dict[str, Any]  # as checkpoint.json holds them
    origin: Origin


def list_checkpoints(out_dir: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first. What a save did not finish has another name and is not among them."""
    folder = out_dir / CHECKPOINTS_DIR
    found = [p for p in folder.iterdir() if COMMITTED.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=_step_of)


def step_folder(out_dir: Path, step: int) -> Path:
    return out_dir / CHECKPOINTS_DIR / f"step-{step:08d}"


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def remove_leftovers(out_dir: Path) -> None:
    """Delete what saves and deletions that were cut short left behind."""
    folder = out_dir / CHECKPOINTS_DIR
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def save(training: Training, out_dir: Path, *, origin: Origin, keep: int) -> Path:
    """Commit a checkpoint of `training`, then delete all but the last `keep` and the best.

    Raises FolioError when it cannot be written; then what was list_checkpoints before is untouched and nothing partial stays.
    """
    target = step_folder(out_dir, training.step)
    folder = target.parent
    aside = folder / f".{target.name}.{os.getpid()}.partial"
    tensors = {MODEL_FILE: training.model.state_dict(), TRAINING_FILE: training_tensors(training)}
    try:
        aside.mkdir(parents=True)
        _write(aside, tensors, training=training, origin=origin)
        _remove(target)  # only a damaged one that the run went back behind can be in the way
        aside.rename(target)
        sync_folder(folder)
        sync_folder(out_dir)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(aside, ignore_errors=True)
        raise FolioError(_cannot_save(e, out_dir, tensors=tensors, step=training.step)) from e
    _prune(out_dir, step=training.step, keep=keep, best_step=training.early_stopping.best_step)
    return target


def _prune(out_dir: Path, *, step: int, keep: int, best_step: int | None) -> None:
    # One of a later step is of a future that the run went back behind: it must not push out a good one.
    later = [p for p in list_checkpoints(out_dir) if _step_of(p) > step]
    rest = [p for p in list_checkpoints(out_dir) if _step_of(p) <= step]
    for folder in later + [p for p in rest[:-keep] if _step_of(p) != best_step]:
        _remove(folder)


def _write(folder: Path, tensors: Mapping[str, dict[str, Tensor]], *, training: Training, origin: Origin) -> None:
    files = {}
    for name, content in tensors.items():
        write_tensors(folder / name, content)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    info = {
        "format": FORMAT,
        "version": VERSION,
        **training_numbers(training),
        **dataclasses.asdict(origin),
        "vocab_size": training.model.vocab_size,
        "files": files,
    }
    write_durable(folder / INFO_FILE, readable_json(info))
    for name in TENSOR_FILES:  # safetensors lets none but the owner read what it writes
        shutil.copymode(folder / INFO_FILE, folder / name)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, on the disk when this returns. Raises OSError or SafetensorError."""
    save_file(tensors, path, metadata=metadata)
    with open(path, "r+b") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """Renamed first, so that a deletion cut short leaves nothing that counts."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _cannot_save(
    error: OSError | SafetensorError, out_dir: Path, *, tensors: Mapping[str, dict[str, Tensor]], step: int
) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    need_mb = sum(t.nbytes for content in tensors.values() for t in content.values()) / 1e6
    free_mb = shutil.disk_usage(out_dir).free / 1e6
    kept = list_checkpoints(out_dir)
    is_full = isinstance(error, SafetensorError) or error.errno in (
        errno.ENOSPC,
        getattr(errno, "EDQUOT", errno.ENOSPC),
    )
    cure = "free some" if is_full else "put that right"
    return (
        f"cannot save the checkpoint of step {step:,} in {out_dir}: {reason}; it needs {need_mb:,.1f} MB, {free_mb:,.1f} MB are free; "
        f"{cure}, then run the same command again: it continues from "
        + (f"{kept[-1].name}, which is whole" if kept else "the beginning")
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its version, files, sizes and hashes checked.

    Raises CheckpointError for one that is damaged, FolioError for one of another format or version.
    """
    info = _read_info(folder)
    try:
        # Not damage, so never passed over or deleted: a person put it there. Hidden files are some system's own.
        if extra := sorted(
            p.name for p in folder.iterdir() if p.name not in (INFO_FILE, *TENSOR_FILES) and not p.name.startswith(".")
        ):
            raise FolioError(
                f"{folder} holds {extra[0]!r}, which is no part of a checkpoint; take it out if you trust the rest"
            )
        for name in TENSOR_FILES:
            _check_file(folder / name, info["files"][name])
        named = COMMITTED.fullmatch(folder.name)
        return Checkpoint(
            folder=folder,
            step=_whole(info["step"], int(named[1]) if named else 0, int(named[1]) if named else LARGEST_STEP),
            vocab_size=_whole(info["vocab_size"], 1, LARGEST_VOCAB_SIZE),
            best_step=None
            if info["watch"]["best_step"] is None
            else _whole(info["watch"]["best_step"], 0, LARGEST_STEP),
            num_since=_whole(info["watch"]["num_since"], 0, LARGEST_STEP),
            numbers=info,
            origin=Origin(
                **{
                    f.name: _typed(info[f.name], dict if f.name == "settings" else str)
                    for f in dataclasses.fields(Origin)
                }
            ),
        )
    except FileNotFoundError as e:  # between two looks at it
        raise CheckpointError(f"{folder} has been deleted meanwhile{ADVICE}") from e
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{folder / INFO_FILE} is malformed ({type(e).__name__}: {e}); use another checkpoint"
        ) from e


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    try:
        info = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise CheckpointError(f"{folder} has no {INFO_FILE}; use another checkpoint") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not JSON ({e}); use another checkpoint") from e
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise FolioError(f"{path} is not of the format {FORMAT!r}; this is no checkpoint of Folio's")
    if info.get("version") != VERSION:
        raise FolioError(
            f"{path} has version {info.get('version')!r}, this Folio reads version {VERSION}; use the Folio that wrote it"
        )
    return info


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"got {value!r}, wanted {kind.__name__}")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    number: int = _typed(value, int)
    if not least <= number <= most:
        raise ValueError(f"got {str(number)[:40]}, wanted {least} to {most}")
    return number


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; use another checkpoint")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise CheckpointError(f"{path} has {size:,} bytes, {INFO_FILE} says {entry['bytes']:,}; use another checkpoint")
    if sha256_file(path) != entry["sha256"]:
        raise CheckpointError(f"{path} does not have the sha256 that {INFO_FILE} says; use another checkpoint")


def find_newest_checkpoint(out_dir: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None where none was list_checkpoints.

    A damaged one is told to `warn` and the one before is taken. Where one is deleted by a process that trains, there are newer
    ones: they are listed again. Raises FolioError when all are damaged.
    """
    for _ in range(MOST_LISTINGS):
        folders = list_checkpoints(out_dir)
        for folder in reversed(folders):
            try:
                return open_checkpoint(folder)
            except CheckpointError as e:
                if not folder.exists():
                    break
                warn(f"{str(e).removesuffix(ADVICE)}; passed over, for the one before it")
        else:
            break
    if folders:
        raise FolioError(
            f"none of the {len(folders)} checkpoints in {out_dir} is whole; restore one, or begin again with --restart"
        )
    return None


def find_checkpoint(path: Path, warn: Callable[[str], None], *, best: bool = False) -> Checkpoint:
    """The checkpoint that `path` is, or the newest of the run that it is, or the `best`. Raises MisuseError where it is neither."""
    if (path / INFO_FILE).exists():
        if best:
            raise MisuseError(
                f"{path} is one checkpoint, --best chooses among those of a run; name the run, or leave --best out"
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
        raise MisuseError(
            f"{path} has no checkpoint that an evaluation found the best; leave --best out to take the newest"
        )
    return open_checkpoint(folder)


def run_of(checkpoint: Checkpoint) -> Path:
    """The folder of the run that a checkpoint lies in."""
    return checkpoint.folder.resolve().parent.parent  # "." has no parent but itself


def check_shapes(checkpoint: Checkpoint, config: Config) -> None:
    """Raise MisuseError unless the checkpoint's weights are those of a model of `config`; neither is allocated for it."""
    with torch.device("meta"):
        wanted = {name: list(p.shape) for name, p in make_model(config, checkpoint.vocab_size).state_dict().items()}
    path = checkpoint.folder / MODEL_FILE
    try:
        with safe_open(path, "pt") as file:
            got = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as e:
        raise CheckpointError(f"{path} is no safetensors file ({e}); use another checkpoint") from e
    for name in sorted(got.keys() | wanted.keys()):
        if got.get(name) != wanted.get(name):
            shapes = [tuple(shape) if shape else "nothing" for shape in (got.get(name), wanted.get(name))]
            raise MisuseError(
                f"{path} has {shapes[0]} for {name}, the settings ask for {shapes[1]}; take the settings, and the Folio, it was made with"
            )


def load_model(checkpoint: Checkpoint, model: LanguageModel) -> None:
    """Copy the checkpoint's weights into `model`, on whatever device it is. Raises CheckpointError."""
    parameters = model.state_dict()
    tensors = _load_tensors(checkpoint.folder / MODEL_FILE, {name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def restore(checkpoint: Checkpoint, training: Training) -> None:
    """Bring `training` to where it was when it was saved. Raises CheckpointError."""
    load_model(checkpoint, training.model)
    shapes = {name: tuple(tensor.shape) for name, tensor in slots(training)}
    tensors = _load_tensors(checkpoint.folder / TRAINING_FILE, shapes, optional=(REFERENCE,))
    try:
        load_training(training, checkpoint.numbers, tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{checkpoint.folder} cannot be continued ({e}); use another checkpoint") from e


def _load_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, optional: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The tensors of `path`: exactly those of `shapes`, and any of `optional`."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as e:
        raise CheckpointError(f"{path} is no safetensors file ({e}); use another checkpoint") from e
    for name in sorted(shapes.keys() | tensors.keys() - set(optional)):
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        wanted = shapes.get(name, "nothing")
        if got != wanted:
            raise CheckpointError(
                f"{path} has {got} for {name}, the model needs {wanted}; use a checkpoint of a model of these settings"
            )
    return tensors
