"""A run's folder: who may write in it, and whether a run in it begins, continues or is over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import readable_json, write_durable
from preprocess.shards.format import MANIFEST, read_manifest
from train.config import Config, changed_settings, config_from_saved
from train.data.builds import tokenizer_sha256
from train.data.streams import DataSource, StreamedText
from train.run.checkpoint import (
    CHECKPOINTS_DIR,
    Checkpoint,
    Origin,
    check_shapes,
    find_checkpoint,
    find_newest_checkpoint,
    list_checkpoints,
    remove_leftovers,
    run_of,
)
from train.run.metrics import METRICS_FILE
from train.trackers.client import forget_trackers

SETTINGS_FILE = "settings.json"
VOCABULARY_DIR = (
    "build"  # the manifest and the tokenizer of the build: all that text needs, so that a run can leave its machine
)
LOCK_FILE = ".lock"
EVALUATIONS_FILE, EVALUATIONS_DIR = "evaluations.jsonl", "evaluations"  # what evaluate.py writes
FORGOTTEN = ".checkpoints.removed"
SHORT_ID = 12  # hexadecimal digits that tell two builds apart in a message


@contextmanager
def locked(out_dir: Path) -> Iterator[None]:
    """Make `out_dir` and hold it for this process. Raises MisuseError where it cannot be a folder, FolioError where another run has it."""
    is_new = not out_dir.exists()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise MisuseError(
            f"out_dir {out_dir} cannot be a folder, a file is in the way; choose another --out_dir"
        ) from e
    lock = FileLock(out_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as e:
        raise FolioError(
            f"another process is training in {out_dir}; wait until it ends, or choose another --out_dir"
        ) from e
    try:
        yield
    finally:
        lock.release()
        if is_new and [path.name for path in out_dir.iterdir()] == [LOCK_FILE]:  # nothing came of it
            shutil.rmtree(out_dir, ignore_errors=True)


def find_start(config: Config, builds: DataSource, *, restart: bool, warn: Callable[[str], None]) -> Checkpoint | None:
    """The checkpoint to continue from; None to begin at step 0. Changes nothing on the disk.

    Raises MisuseError where out_dir holds a run that this one is not, FolioError where its checkpoints are damaged.
    """
    out_dir = Path(config.out_dir)
    has_run = bool(list_checkpoints(out_dir)) or _has_rows(out_dir)
    if config.resume != "auto":
        _check_empty(config, has_run=has_run and not restart)
        checkpoint = None if config.resume == "never" else _other_start(config, warn)
    else:
        checkpoint = None if restart else find_newest_checkpoint(out_dir, warn)
    if checkpoint is None:
        if config.resume == "auto" and has_run and not restart:
            _check_same_settings(out_dir, config)
        return None
    _check_vocabulary(checkpoint, builds)
    if config.resume == "auto":
        _check_same(checkpoint.origin, config, builds=builds)
    check_shapes(checkpoint, config)
    return checkpoint


def what_is_finished(start: Checkpoint, config: Config) -> str | None:
    """Why a run that is found at `start` has nothing left to do; None where it has."""
    if config.resume != "auto":
        return None
    if start.step >= config.max_steps:
        return f"{config.out_dir} is finished: all {config.max_steps:,} steps are done, nothing is left to do; --restart trains again"
    if config.patience is not None and start.num_since >= config.patience:
        return (
            f"{config.out_dir} stopped early, after step {start.step:,}: {start.num_since} evaluations without an improvement "
            "beyond noise; a higher --patience goes on, --restart trains again"
        )
    return None


def _has_rows(out_dir: Path) -> bool:
    path = out_dir / METRICS_FILE
    return path.is_file() and path.stat().st_size > 0


def _check_same_settings(out_dir: Path, config: Config) -> None:
    """A run that was cut short before its first checkpoint begins anew, but not with other settings over its rows."""
    path = out_dir / SETTINGS_FILE
    if not path.is_file():
        return
    try:
        saved = json.loads(path.read_bytes())
    except ValueError as e:
        raise FolioError(f"{path} is not JSON ({e}); begin again with --restart, or choose another --out_dir") from e
    if changes := changed_settings(config_from_saved(saved, str(path)), config):
        raise MisuseError(_other_settings(config, changes))


def _other_settings(config: Config, changes: list[str]) -> str:
    return (
        f"{config.out_dir} holds a run with other settings ({', '.join(changes)}); "
        "go back to them to continue it, begin again with --restart, or choose another --out_dir"
    )


def _check_empty(config: Config, *, has_run: bool) -> None:
    if has_run:
        raise MisuseError(
            f"{config.out_dir} already holds a run, resume={config.resume} wants an empty folder; "
            "continue it with --resume=auto, begin again with --restart, or choose another --out_dir"
        )


def _other_start(config: Config, warn: Callable[[str], None]) -> Checkpoint:
    path = Path(config.resume)
    if path.resolve().is_relative_to(Path(config.out_dir).resolve()):
        raise MisuseError(f"resume={path} lies in out_dir {config.out_dir}; choose another --out_dir, or --resume=auto")
    checkpoint = find_checkpoint(path, warn)
    if (theirs := checkpoint.origin.settings.get("optimizer")) != config.optimizer:
        raise MisuseError(
            f"{checkpoint.folder} is of the optimizer {theirs}; set --optimizer={theirs}, or take its weights by --init_from"
        )
    if checkpoint.step >= config.max_steps:
        raise MisuseError(
            f"{checkpoint.folder} has done {checkpoint.step:,} steps; raise --max_steps, {config.max_steps:,}, above it"
        )
    return checkpoint


def _check_vocabulary(checkpoint: Checkpoint, builds: DataSource) -> None:
    _check_tokenizer(checkpoint, builds)
    if builds.vocab_size > checkpoint.vocab_size:
        raise MisuseError(
            f"the vocabulary of {builds.name}, {builds.vocab_size:,} ids, is larger than the model's "
            f"{checkpoint.vocab_size:,} in {checkpoint.folder}; "
            "train on the build it began with, or take its weights alone into a new run, by --init_from"
        )


def _check_tokenizer(checkpoint: Checkpoint, builds: DataSource) -> None:
    if checkpoint.origin.tokenizer_sha256 != builds.tokenizer_sha256:
        raise MisuseError(
            f"{builds.name} has another tokenizer than {checkpoint.folder} was trained with, so that every id means something else; "
            "train on a build that shares its tokenizer, or begin again with --restart or another --out_dir"
        )


def _check_same(origin: Origin, config: Config, *, builds: DataSource) -> None:
    changes = changed_settings(config_from_saved(origin.settings, config.out_dir), config)
    if origin.build_id != builds.build_id:
        before = origin.settings.get("data")
        told = _other_text(config, builds) if isinstance(builds, StreamedText) else None
        ids = [build_id[:SHORT_ID] for build_id in (origin.build_id, builds.build_id)]
        changes.append(f"{config.data}: {told}" if told else f"data {before} {ids[0]} → {config.data} {ids[1]}")
    if changes:
        raise MisuseError(_other_settings(config, changes))


def _other_text(config: Config, stream: StreamedText) -> str | None:
    """What the run in out_dir streamed otherwise, by the vocabulary that it left; None where it streamed nothing."""
    try:
        before = read_manifest(Path(config.out_dir) / VOCABULARY_DIR)
    except FolioError:
        return "its recipe or its files changed"
    return None if any(entry["shards"] for entry in before["splits"].values()) else stream.difference(before)


def write_run(config: Config, builds: DataSource) -> None:
    """Put into out_dir what every checkpoint in it shares: the settings, and what turns ids into text."""
    out_dir = Path(config.out_dir)
    builds.save_vocabulary(out_dir / VOCABULARY_DIR)
    write_durable(out_dir / SETTINGS_FILE, readable_json(config.as_dict()))


def is_run(out_dir: Path) -> bool:
    """Whether what write_run wrote is still there."""
    return (out_dir / SETTINGS_FILE).is_file() and (out_dir / VOCABULARY_DIR / MANIFEST).is_file()


def read_vocabulary(run: Path) -> dict[str, Any]:
    """The manifest that a run keeps, whose tokenizer lies beside it in the run's VOCABULARY_DIR. Raises FolioError."""
    return read_manifest(run / VOCABULARY_DIR)


def vocabulary_of(checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
    """The folder that holds the tokenizer, in TOKENIZER_DIR, and the manifest by which the ids of a checkpoint's model become text.

    Raises MisuseError for a checkpoint that lies in no run, FolioError where what the run keeps is damaged or another's.
    """
    run = run_of(checkpoint)
    folder = run / VOCABULARY_DIR
    if not (folder / MANIFEST).is_file():
        raise MisuseError(
            f"{folder / MANIFEST} is missing, which {checkpoint.folder} needs to turn ids into text; "
            f"name a checkpoint inside its run, or copy the run's folder {VOCABULARY_DIR} there"
        )
    manifest = read_vocabulary(run)
    is_own = tokenizer_sha256(manifest) == checkpoint.origin.tokenizer_sha256
    if not is_own or manifest["vocab_size"] > checkpoint.vocab_size:
        raise FolioError(
            f"{folder} is of another tokenizer than {checkpoint.folder}; copy the folder {VOCABULARY_DIR} of its run there"
        )
    return folder, manifest


def forget(out_dir: Path) -> None:
    """Delete what a run wrote into its folder, and nothing else that lies there."""
    # Renamed first: a deletion cut short must not leave some of the checkpoints, to be continued from.
    if (out_dir / CHECKPOINTS_DIR).is_dir():
        os.rename(out_dir / CHECKPOINTS_DIR, out_dir / f"{FORGOTTEN}.{os.getpid()}")
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        (out_dir / name).unlink(missing_ok=True)
    shutil.rmtree(out_dir / EVALUATIONS_DIR, ignore_errors=True)
    forget_trackers(out_dir)
    (out_dir / SETTINGS_FILE).unlink(missing_ok=True)


def tidy(out_dir: Path) -> None:
    """Delete what saves and deletions that were cut short left behind."""
    for path in out_dir.glob(f"{FORGOTTEN}.*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(out_dir)
