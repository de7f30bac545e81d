"""Checkpoints: folders `checkpoints/step-00000500/`, committed by a rename.

    model.safetensors      the weights, by parameter name
    optimizer.safetensors  `<parameter name>.<exp_avg | exp_avg_sq | step>`, and the random generators' states
    checkpoint.json        format, version, step, settings, build_id, …, and the size and sha256 of the two others

Nothing is pickled, so loading one from a stranger runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
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

from config import Config
from model import GPT
from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import readable_json, sha256_file, sync_folder, write_durable

FORMAT = "folio-checkpoint"
VERSION = 1
CHECKPOINTS_DIR = "checkpoints"
INFO_FILE, MODEL_FILE, OPTIMIZER_FILE = "checkpoint.json", "model.safetensors", "optimizer.safetensors"
TENSOR_FILES = (MODEL_FILE, OPTIMIZER_FILE)
COMMITTED = re.compile(r"step-(\d{8,18})")
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
LEFTOVER = re.compile(r"\.step-.*\.(partial|removed)")
RNG_PREFIX = "rng."
LARGEST_STEP, LARGEST_VOCAB_SIZE = 10**15, 1 << 32


class CheckpointError(FolioError):
    """A checkpoint that is not whole, or does not fit the model."""


@dataclass
class Training:
    """All that an optimizer step changes."""

    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    step: int = 0  # optimizer steps done


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run is made from: the same in all of its checkpoints."""

    settings: dict[str, Any]
    build_id: str
    tokenizer_sha256: str  # of the manifest's `tokenizer`: two builds that share it mean the same by an id


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are whole; its tensors are not read yet."""

    folder: Path
    step: int
    vocab_size: int
    scaler: dict[str, Any]
    origin: Origin


def committed(out_dir: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first. What a save did not finish has another name and is not among them."""
    folder = out_dir / CHECKPOINTS_DIR
    found = [p for p in folder.iterdir() if COMMITTED.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=_step_of)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def remove_leftovers(out_dir: Path) -> None:
    """Delete what saves and deletions that were cut short left behind."""
    folder = out_dir / CHECKPOINTS_DIR
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def save(training: Training, out_dir: Path, *, origin: Origin, keep: int) -> Path:
    """Commit a checkpoint of `training`, then delete all but the last `keep`.

    Raises FolioError when it cannot be written; then what was committed before is untouched and nothing partial stays.
    """
    folder = out_dir / CHECKPOINTS_DIR
    target = folder / f"step-{training.step:08d}"
    aside = folder / f".{target.name}.{os.getpid()}.partial"
    tensors = {MODEL_FILE: training.model.state_dict(), OPTIMIZER_FILE: _optimizer_tensors(training)}
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
    _prune(out_dir, step=training.step, keep=keep)
    return target


def _prune(out_dir: Path, *, step: int, keep: int) -> None:
    # One of a later step is of a future that the run went back behind: it must not push out a good one.
    later = [p for p in committed(out_dir) if _step_of(p) > step]
    rest = [p for p in committed(out_dir) if _step_of(p) <= step]
    for folder in later + rest[:-keep]:
        _remove(folder)


def _write(folder: Path, tensors: Mapping[str, dict[str, Tensor]], *, training: Training, origin: Origin) -> None:
    files = {}
    for name, content in tensors.items():
        save_file(content, folder / name)
        with open(folder / name, "r+b") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    info = {
        "format": FORMAT,
        "version": VERSION,
        "step": training.step,
        "settings": origin.settings,
        "build_id": origin.build_id,
        "tokenizer_sha256": origin.tokenizer_sha256,
        "vocab_size": training.model.vocab_size,
        "scaler": training.scaler.state_dict(),
        "files": files,
    }
    write_durable(folder / INFO_FILE, readable_json(info))
    for name in TENSOR_FILES:  # safetensors lets none but the owner read what it writes
        shutil.copymode(folder / INFO_FILE, folder / name)


def _remove(folder: Path) -> None:
    """Renamed first, so that a deletion cut short leaves nothing that counts."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.removed")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _cannot_save(error: Exception, out_dir: Path, *, tensors: Mapping[str, dict[str, Tensor]], step: int) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    need_mb = sum(t.nbytes for content in tensors.values() for t in content.values()) / 1e6
    free_mb = shutil.disk_usage(out_dir).free / 1e6
    kept = committed(out_dir)
    return (
        f"cannot save the checkpoint of step {step:,} in {out_dir}: {reason}; it needs {need_mb:,.1f} MB, {free_mb:,.1f} MB are free; "
        f"free some, then run the same command again: it continues from "
        + (f"{kept[-1].name}, which is whole" if kept else "the beginning")
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its version, files, sizes and hashes checked.

    Raises CheckpointError for one that is damaged, FolioError for one of another format or version.
    """
    info = _read_info(folder)
    # Not damage, so never passed over or deleted: a person put it there. Hidden files are some system's own.
    if extra := sorted(p.name for p in folder.iterdir() if p.name not in (INFO_FILE, *TENSOR_FILES) and not p.name.startswith(".")):
        raise FolioError(f"{folder} holds {extra[0]!r}, which is no part of a checkpoint; take it out if you trust the rest")
    try:
        for name in TENSOR_FILES:
            _check_file(folder / name, info["files"][name])
        named = COMMITTED.fullmatch(folder.name)
        return Checkpoint(
            folder=folder,
            step=_whole(info["step"], int(named[1]) if named else 0, int(named[1]) if named else LARGEST_STEP),
            vocab_size=_whole(info["vocab_size"], 1, LARGEST_VOCAB_SIZE),
            scaler=_typed(info["scaler"], dict),
            origin=Origin(**{f.name: _typed(info[f.name], dict if f.name == "settings" else str) for f in dataclasses.fields(Origin)}),
        )
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder / INFO_FILE} is malformed ({type(e).__name__}: {e}); use another checkpoint") from e


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / INFO_FILE
    try:
        info = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as e:
        raise CheckpointError(f"{folder} has no {INFO_FILE}; use another checkpoint") from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} is not JSON ({e}); use another checkpoint") from e
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise FolioError(f"{path} is not of the format {FORMAT!r}; this is no checkpoint of Folio's")
    if info.get("version") != VERSION:
        raise FolioError(f"{path} has version {info.get('version')!r}, this Folio reads version {VERSION}; use the Folio that wrote it")
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


def newest(out_dir: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None where none was committed.

    A damaged one is told to `warn` and the one before is taken. Raises FolioError when all are damaged.
    """
    folders = committed(out_dir)
    for folder in reversed(folders):
        try:
            return open_checkpoint(folder)
        except CheckpointError as e:
            warn(f"{e}; passed over")
    if folders:
        raise FolioError(f"none of the {len(folders)} checkpoints in {out_dir} is whole; restore one, or begin again with --restart")
    return None


def find_checkpoint(path: Path, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint that `path` is, or the newest of the run that it is. Raises MisuseError where it is neither."""
    if (path / INFO_FILE).exists():
        return open_checkpoint(path)
    checkpoint = newest(path, warn)
    if checkpoint is None:
        raise MisuseError(f"{path} is neither a checkpoint nor a run that has one; name the out_dir of a run that has saved")
    return checkpoint


def require_shapes(checkpoint: Checkpoint, config: Config) -> None:
    """Raise MisuseError unless the checkpoint's weights are those of a model of `config`; neither is allocated for it."""
    with torch.device("meta"):
        wanted = {name: list(p.shape) for name, p in GPT(config, checkpoint.vocab_size).state_dict().items()}
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
                f"{path} has {shapes[0]} for {name}, the settings ask for {shapes[1]}; train with the settings it was made with"
            )


def load_model(checkpoint: Checkpoint, model: GPT) -> None:
    """Copy the checkpoint's weights into `model`, on whatever device it is. Raises CheckpointError."""
    parameters = model.state_dict()
    tensors = _load_tensors(checkpoint.folder / MODEL_FILE, {name: tuple(p.shape) for name, p in parameters.items()})
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def restore(checkpoint: Checkpoint, training: Training) -> None:
    """Bring `training` to where it was when it was saved, the random generators included. Raises CheckpointError."""
    load_model(checkpoint, training.model)
    parameters = _parameters(training)
    slots = {f"{name}.{key}": tuple(p.shape) if key != "step" else () for name, p in parameters for key in ADAMW_STATE}
    tensors = _load_tensors(checkpoint.folder / OPTIMIZER_FILE, slots)
    # Cloned: what is mapped from a file may lie unaligned, and then the last bit of a vectorised sum can differ.
    states = {i: {key: tensors[f"{name}.{key}"].clone() for key in ADAMW_STATE} for i, (name, _) in enumerate(parameters)}
    try:
        training.optimizer.load_state_dict({"state": states, "param_groups": training.optimizer.state_dict()["param_groups"]})
        if checkpoint.scaler and training.scaler.is_enabled():
            training.scaler.load_state_dict(checkpoint.scaler)
        _set_random_states(tensors, training.device, seed=checkpoint.step)
    except (KeyError, TypeError, ValueError, RuntimeError) as e:
        raise CheckpointError(f"{checkpoint.folder} cannot be continued ({e}); use another checkpoint") from e
    training.step = checkpoint.step


def _load_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of `path`: exactly those of `shapes`, and the states of random generators."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as e:
        raise CheckpointError(f"{path} is no safetensors file ({e}); use another checkpoint") from e
    for name in sorted(shapes.keys() | tensors.keys()):
        got = tuple(tensors[name].shape) if name in tensors else "nothing"
        wanted = shapes.get(name, "nothing")
        if got != wanted and not name.startswith(RNG_PREFIX):
            raise CheckpointError(f"{path} has {got} for {name}, the model needs {wanted}; use a checkpoint of a model of these settings")
    return tensors


def _parameters(training: Training) -> list[tuple[str, Tensor]]:
    """Name and parameter, in the order by which the optimizer numbers them."""
    names = {parameter: name for name, parameter in training.model.named_parameters()}
    return [(names[p], p) for group in training.optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(training: Training) -> dict[str, Tensor]:
    state = training.optimizer.state
    tensors = {f"{name}.{key}": state[p][key] for name, p in _parameters(training) for key in ADAMW_STATE}
    return tensors | _random_states(training.device)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of each generator that training draws from, uint8."""
    states = {RNG_PREFIX + "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[RNG_PREFIX + "cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states[RNG_PREFIX + "mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(tensors: Mapping[str, Tensor], device: torch.device, *, seed: int) -> None:
    """`seed`: where the run comes from another device, whose generator has no state for this one."""
    torch.manual_seed(seed)
    torch.set_rng_state(tensors[RNG_PREFIX + "cpu"].clone())
    state = tensors.get(RNG_PREFIX + device.type)
    if device.type == "cuda" and state is not None:
        torch.cuda.set_rng_state(state.clone(), device)
    if device.type == "mps" and state is not None:
        torch.mps.set_rng_state(state.clone())
