"""Checkpoints: folders `checkpoints/step-00000500/` of a run. save_checkpoint.py writes them.

    model.safetensors     the weights, by parameter name
    training.safetensors  `<parameter name>.<exp_avg | exp_avg_sq | step | momentum_buffer>`, and the
                          losses that early stopping compares with
    checkpoint.json       format, version, step, num_samples, settings, build_id, …, size and sha256
                          of the other files, and its own checksum

In a sharded checkpoint, each of N processes has written its rows of the tensors to files of its own,
`model-00001-of-0000N.safetensors` and `training-00001-of-0000N.safetensors` (stored_tensors.py).
Such a checkpoint is used like any other one.

A checkpoint has no pickles, so loading one of unknown origin runs no code. If a checkpoint is
damaged, a run continues from the previous one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import sha256_file
from train.config import Config
from train.core.cli import few_warnings
from train.core.distributed import World
from train.core.tensors import TensorFileError
from train.model import make_model
from train.model.base import LanguageModel
from train.run.checkpoint_info import (
    ADVICE,
    INFO_FILE,
    MODEL_FILE,
    TRAINING_FILE,
    CheckpointError,
    CheckpointInfo,
    read_info,
)
from train.run.state import REFERENCE, TrainingState, load_state, optimizer_tensors
from train.run.stored_tensors import StoredTensor, map_tensors, part_files

CHECKPOINTS_DIR = "checkpoints"
COMMITTED = re.compile(r"step-(\d{8,18})")
MAX_LISTINGS = 20  # attempts to open a checkpoint while the process that trains the run deletes old ones


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose files are complete."""

    folder: Path
    info: CheckpointInfo
    # Memory-mapped, so that they can be read after the files were deleted. None: not mapped yet.
    weights: Mapping[str, StoredTensor] | None = field(default=None, compare=False, repr=False)


def list_checkpoints(out_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first.

    Unfinished saves have another name and are not included.
    """
    folder = out_dir / CHECKPOINTS_DIR
    committed = [p for p in folder.iterdir() if COMMITTED.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(committed, key=step_of)


def step_folder(out_dir: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`."""
    return out_dir / CHECKPOINTS_DIR / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint folder."""
    return int(folder.name.removeprefix("step-"))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check the version, files, sizes and hashes of the checkpoint in `folder`, and return it.

    Raises CheckpointError if it is damaged, and FolioError if it has another format version or a
    file that is not part of a checkpoint.
    """
    info = read_info(folder)
    if COMMITTED.fullmatch(folder.name) and step_of(folder) != info.step:
        raise CheckpointError(f"{folder / INFO_FILE} is malformed: step is {info.step:,}, unlike its folder's{ADVICE}")
    try:
        _check_no_extra_files(folder, info)
        for name in info.sha256:
            _check_file(folder / name, info)
    except FileNotFoundError as e:
        raise CheckpointError(f"{folder} was deleted while it was opened{ADVICE}") from e
    except OSError as e:
        raise CheckpointError(f"{e.filename or folder} cannot be read ({e.strerror}){ADVICE}") from e
    return Checkpoint(folder=folder, info=info)


def _check_no_extra_files(folder: Path, info: CheckpointInfo) -> None:
    """Raise FolioError for a file that is not part of a checkpoint.

    It is not a CheckpointError, because the checkpoint is not damaged: a person put the file there.
    Hidden files, which operating systems create, are ignored.
    """
    extra = [p.name for p in folder.iterdir() if p.name not in (INFO_FILE, *info.sha256) and not p.name.startswith(".")]
    if extra:
        raise FolioError(
            f"{folder} contains {min(extra)!r:.80}, which is not part of a checkpoint; remove it if you trust the rest"
        )


def _check_file(path: Path, info: CheckpointInfo) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing or not a file{ADVICE}")
    if (size := path.stat().st_size) != info.size_bytes[path.name]:
        raise CheckpointError(f"{path} has {size:,} bytes, but {INFO_FILE} says {info.size_bytes[path.name]:,}{ADVICE}")
    if sha256_file(path) != info.sha256[path.name]:
        raise CheckpointError(f"{path} does not have the sha256 that {INFO_FILE} says{ADVICE}")


def find_newest_checkpoint(out_dir: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run, or None if the run has no checkpoints.

    If a checkpoint is damaged, `warn` is called and the previous checkpoint is tried. If the
    process that trains the run deletes one meanwhile, the checkpoints are listed again, up to
    MAX_LISTINGS times in all. Raises FolioError if all checkpoints are damaged, if one is deleted
    in each of these attempts, or if a checkpoint has another version or a file that is not part of
    a checkpoint.
    """
    for _ in range(MAX_LISTINGS):
        folders = list_checkpoints(out_dir)
        if not folders:
            return None
        if checkpoint := _open_newest(folders, warn):
            return checkpoint
        if all(os.path.lexists(folder) for folder in folders):
            raise FolioError(
                f"all {len(folders)} checkpoints in {out_dir} are damaged; restore one, or start again with --restart"
            )
    raise FolioError(describe_deleted(out_dir))


def _open_newest(folders: Sequence[Path], warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the last complete checkpoint of `folders`, or None if all are damaged or one is gone."""
    with few_warnings(warn, "checkpoint") as warn_of_some:
        for folder in reversed(folders):
            try:
                return open_checkpoint(folder)
            except CheckpointError as e:
                if not os.path.lexists(folder):
                    return None
                warn_of_some(f"{str(e).removesuffix(ADVICE)}; skipped, trying the previous one")
    return None


def describe_deleted(out_dir: Path) -> str:
    """Return the error message for a run whose checkpoints are deleted before they can be read."""
    return (
        f"every checkpoint in {out_dir} was deleted by the process that trains the run before it could be read; "
        "run this command again, or train with a larger --checkpoint_interval or --keep_checkpoints"
    )


def find_checkpoint(path: Path, warn: Callable[[str], None], *, best: bool = False) -> Checkpoint:
    """Return the checkpoint at `path`, or the newest of the run at `path`, with its weights.

    With `best`, return the run's best checkpoint. If the process that trains the run deletes the
    checkpoint meanwhile, look for another one. `warn` is called with a line for each damaged
    checkpoint that is skipped. Raises MisuseError if `path` is neither a checkpoint nor a run that
    has one, or has no best checkpoint, and FolioError if the checkpoint is damaged.
    """
    is_run = not (path / INFO_FILE).exists()
    if best and not is_run:
        raise MisuseError(
            f"{path} is one checkpoint, but --best chooses among those of a run; name the run, or leave --best out"
        )
    for _ in range(MAX_LISTINGS):
        folder = path
        try:
            checkpoint = _find_in_run(path, warn) if is_run else open_checkpoint(path)
            if best:
                folder = _find_best(path, checkpoint)
                checkpoint = open_checkpoint(folder)
            folder = checkpoint.folder
            return map_weights(checkpoint)
        except CheckpointError:
            if not is_run or os.path.lexists(folder):
                raise
    raise FolioError(describe_deleted(path))


def _find_in_run(path: Path, warn: Callable[[str], None]) -> Checkpoint:
    checkpoint = find_newest_checkpoint(path, warn)
    if checkpoint is None:
        raise MisuseError(
            f"{path} is neither a checkpoint nor a run that has one; name the out_dir of a run that has saved"
        )
    return checkpoint


def _find_best(out_dir: Path, newest: Checkpoint) -> Path:
    best_step = newest.info.best_step
    if best_step is None or not (folder := step_folder(out_dir, best_step)).is_dir():
        raise MisuseError(
            f"{out_dir} has no best checkpoint: no evaluation was saved; leave --best out to use the newest"
        )
    return folder


def run_of(checkpoint: Checkpoint) -> Path:
    """Return the run directory that contains a checkpoint."""
    return checkpoint.folder.resolve().parent.parent  # resolved first: "." has no parent


def map_weights(checkpoint: Checkpoint) -> Checkpoint:
    """Return `checkpoint` with its weights mapped, so that they can be read after a deletion.

    Raises CheckpointError if the files are damaged or already deleted.
    """
    return replace(checkpoint, weights=_map_tensors(checkpoint, MODEL_FILE))


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights by name: memory-mapped or, if the checkpoint is sharded, joined in memory.

    Raises CheckpointError if they are damaged.
    """
    return {name: tensor.whole() for name, tensor in _stored_weights(checkpoint).items()}


def _stored_weights(checkpoint: Checkpoint) -> Mapping[str, StoredTensor]:
    return checkpoint.weights if checkpoint.weights is not None else _map_tensors(checkpoint, MODEL_FILE)


def check_shapes(checkpoint: Checkpoint, config: Config) -> None:
    """Raise MisuseError unless the weights have the names and shapes of a model of `config`, and as many heads.

    With another number of heads the shapes would be the same, but the model another one. No memory is
    allocated for the model. Raises CheckpointError if the weights are damaged.
    """
    if (n_head := checkpoint.info.config.n_head) != config.n_head:
        raise MisuseError(
            f"{checkpoint.folder} has n_head {n_head}, but the settings have {config.n_head}, which is another model; "
            f"set --n_head={n_head}"
        )
    with torch.device("meta"):
        parameters = make_model(config, checkpoint.info.vocab_size).state_dict()
    expected = {name: tuple(p.shape) for name, p in parameters.items()}
    shapes = {name: tensor.shape for name, tensor in _stored_weights(checkpoint).items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            got, want = (shapes.get(name) or "nothing", expected.get(name) or "nothing")
            raise MisuseError(
                f"{checkpoint.folder / MODEL_FILE} has {got} for {name:.80}, but the settings need {want}; use the "
                "settings and the Folio that it was made with"
            )


def load_model(checkpoint: Checkpoint, model: LanguageModel) -> None:
    """Copy the checkpoint's weights into `model`, which can be on any device, and can be sharded.

    Raises CheckpointError if the weights are damaged or do not have the shapes of the model's.
    """
    parameters, weights = model.state_dict(), _stored_weights(checkpoint)
    _check_tensors(checkpoint.folder / MODEL_FILE, weights, parameters)
    for name, parameter in parameters.items():
        weights[name].copy_to(parameter)


def restore(checkpoint: Checkpoint, state: TrainingState) -> None:
    """Load the checkpoint into `state`; into this process's rows if it is sharded.

    Raises CheckpointError if the checkpoint is damaged or does not fit.
    """
    load_model(checkpoint, state.model)
    path = checkpoint.folder / TRAINING_FILE
    tensors = _map_tensors(checkpoint, TRAINING_FILE)
    _check_tensors(path, {name: t for name, t in tensors.items() if name != REFERENCE}, dict(optimizer_tensors(state)))
    try:
        load_state(state, checkpoint.info, tensors)
    except ValueError as e:
        raise CheckpointError(f"{path}: {e}{ADVICE}") from e


def share_checkpoint(checkpoint: Checkpoint | None, world: World) -> Checkpoint | None:
    """Return the main process's `checkpoint` in every process, which reads its own rows of it.

    Its hashes are not verified again. Raises FolioError if a process cannot see it.
    """
    folder = world.broadcast(checkpoint and str(checkpoint.folder.absolute()))
    if folder is None:
        return None

    def open_again() -> Checkpoint:
        try:
            return checkpoint or Checkpoint(folder=Path(folder), info=read_info(Path(folder)))
        except CheckpointError as e:
            raise FolioError(
                f"process {world.rank} cannot read {folder}, which the main process can; with parallel = fsdp it must "
                "be in a folder that all machines share"
            ) from e

    return world.run_in_all(open_again)


def _map_tensors(checkpoint: Checkpoint, name: str) -> dict[str, StoredTensor]:
    """Return the tensors of the file `name`, one of TENSOR_FILES, or of its parts, memory-mapped."""
    try:
        return map_tensors([checkpoint.folder / file for file in part_files(name, checkpoint.info.num_parts)])
    except FileNotFoundError as e:
        raise CheckpointError(f"{checkpoint.folder} was deleted while it was read{ADVICE}") from e
    except TensorFileError as e:
        raise CheckpointError(f"{e}{ADVICE}") from e


def _check_tensors(path: Path, tensors: Mapping[str, StoredTensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless the names and shapes of `tensors`, from `path`, are those of `expected`."""
    for name in sorted(tensors.keys() | expected.keys()):
        got = tensors[name].shape if name in tensors else "nothing"
        needed = tuple(expected[name].shape) if name in expected else "nothing"
        if got != needed:
            raise CheckpointError(
                f"{path} has {got} for {name:.80}, but the model needs {needed}; use a checkpoint of a model of "
                "these settings"
            )
