"""The run directory: its lock, its files, and whether a run in it starts, continues or is rejected.

    settings.json      all settings
    build/             the manifest and the tokenizer, which turn ids into text without the build
    metrics.jsonl      one row per logged step and evaluation
    completions.jsonl  the texts that the model has written between its steps
    checkpoints/       see checkpoint.py
    evaluations.jsonl, evaluations/, task_evaluations.jsonl    written by evaluate.py
    trackers/, tensorboard/            written by the trackers
    served/            the export that `folio serve` made

The same command continues the run in its directory. A directory whose run has other settings is
therefore rejected, not overwritten.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import parse_json, read_small_file, readable_json, write_durable
from preprocess.shards.format import MANIFEST, read_manifest
from preprocess.shards.manifest import Manifest
from preprocess.shards.runs import SETTINGS_FILE, VOCABULARY_DIR, is_run
from train.config import Config, changed_settings, config_from_saved
from train.core.distributed import World
from train.data.builds import check_same_control_tokens, has_tokenizer
from train.data.streams import DataSource, StreamedText
from train.model.sampler import RUN_COPY_ADVICE
from train.run.checkpoint import (
    CHECKPOINTS_DIR,
    Checkpoint,
    check_shapes,
    find_checkpoint,
    find_newest_checkpoint,
    list_checkpoints,
    run_of,
)
from train.run.checkpoint_info import CheckpointInfo
from train.run.completions import COMPLETIONS_FILE
from train.run.metrics import METRICS_FILE
from train.run.save_checkpoint import remove_leftovers
from train.trackers.client import reset_trackers

LOCK_FILE, PROBE = ".lock", ".probe-"
EVALUATIONS_FILE, EVALUATIONS_DIR = "evaluations.jsonl", "evaluations"
TASKS_FILE = "task_evaluations.jsonl"
SERVED_DIR, RECEIPT_FILE = "served", "receipt.json"  # see train/serving/served_model.py
REMOVED_CHECKPOINTS = ".checkpoints.removed"
SHORT_ID = 12  # hexadecimal digits of a build id in a message


@contextmanager
def lock_run_dir(out_dir: Path) -> Iterator[None]:
    """Create `out_dir` and hold its lock inside the block.

    A new directory is removed after the block if no file was written to it. Raises MisuseError if a
    file is in the way, and FolioError if another process holds the lock.
    """
    is_new = not out_dir.exists()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise MisuseError(
            f"out_dir {out_dir} must be a folder, but a file is in the way; choose another --out_dir"
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
        if is_new and [path.name for path in out_dir.iterdir()] == [LOCK_FILE]:
            shutil.rmtree(out_dir, ignore_errors=True)


def check_shared(out_dir: Path, world: World) -> None:
    """Raise FolioError unless every process can write to the main process's `out_dir`.

    With a sharded state, each writes its part of a checkpoint there.
    """
    path = Path(world.broadcast(str(out_dir.absolute() / f"{PROBE}{secrets.token_hex(8)}")))
    world.run_on_main(path.touch)

    def find_probe() -> None:
        if not path.exists() or not os.access(path.parent, os.W_OK):
            raise FolioError(
                f"process {world.rank} cannot write to {path.parent}, where the main process writes; with parallel = "
                "fsdp out_dir must be a folder that all machines share"
            )

    try:
        world.run_in_all(find_probe)
    finally:
        if world.is_main:
            path.unlink(missing_ok=True)


def find_start(config: Config, source: DataSource, *, restart: bool, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the checkpoint to continue from, or None to start at step 0. No file is written.

    `warn` is called with a line for each damaged checkpoint that is skipped. Raises MisuseError if
    out_dir contains a run with other settings or data, and FolioError if all its checkpoints are
    damaged.
    """
    out_dir = Path(config.out_dir)
    if restart:
        check_deletable(out_dir)
    has_run = bool(list_checkpoints(out_dir)) or _has_rows(out_dir)
    if config.resume != "auto":
        _check_empty(config, has_run=has_run and not restart)
        checkpoint = None if config.resume == "never" else _find_other_start(config, warn)
    else:
        checkpoint = None if restart else find_newest_checkpoint(out_dir, warn)
    if checkpoint is None:
        if config.resume == "auto" and has_run and not restart:
            _check_saved_settings(out_dir, config)
        return None
    _check_vocabulary(checkpoint, source)
    if config.resume == "auto":
        _check_same_run(checkpoint.info, config, source=source)
    elif checkpoint.info.origin.build_id != source.build_id:
        _check_control_tokens(checkpoint, source)
    check_shapes(checkpoint, config)
    return checkpoint


def _has_rows(out_dir: Path) -> bool:
    path = out_dir / METRICS_FILE
    return path.is_file() and path.stat().st_size > 0


def _check_saved_settings(out_dir: Path, config: Config) -> None:
    """Raise MisuseError if a run without a checkpoint has other settings: its rows would be lost.

    Raises FolioError if settings.json cannot be read.
    """
    path = out_dir / SETTINGS_FILE
    if not path.exists():
        return
    try:
        saved = parse_json(read_small_file(path))
    except ValueError as e:
        raise FolioError(f"{path} is not JSON ({e}); start again with --restart, or choose another --out_dir") from e
    if changes := changed_settings(config_from_saved(saved, str(path)), config):
        raise MisuseError(_describe_changes(config, changes))


def _describe_changes(config: Config, changes: list[str]) -> str:
    return (
        f"{config.out_dir} holds a run with other settings ({', '.join(changes)}); use those to continue it, "
        "start again with --restart, or choose another --out_dir"
    )


def _check_empty(config: Config, *, has_run: bool) -> None:
    if has_run:
        raise MisuseError(
            f"{config.out_dir} already holds a run, but resume={config.resume} needs an empty folder; "
            "continue the run with --resume=auto, start again with --restart, or choose another --out_dir"
        )


def _find_other_start(config: Config, warn: Callable[[str], None]) -> Checkpoint:
    """Return the checkpoint that the setting `resume` names.

    Raises MisuseError if it is inside out_dir, or does not fit the optimizer or max_steps.
    """
    path = Path(config.resume)
    if path.resolve().is_relative_to(Path(config.out_dir).resolve()):
        raise MisuseError(
            f"resume={path} is inside out_dir {config.out_dir}; choose another --out_dir, or --resume=auto"
        )
    checkpoint = find_checkpoint(path, warn)
    if (optimizer := checkpoint.info.config.optimizer) != config.optimizer:
        raise MisuseError(
            f"{checkpoint.folder} has the state of the optimizer {optimizer}; set --optimizer={optimizer}, or "
            "use its weights only, by --init_from"
        )
    if checkpoint.info.step >= config.max_steps:
        raise MisuseError(
            f"max_steps must be more than the {checkpoint.info.step:,} steps of {checkpoint.folder}, got "
            f"{config.max_steps:,}; raise --max_steps"
        )
    return checkpoint


def _check_vocabulary(checkpoint: Checkpoint, source: DataSource) -> None:
    """Raise MisuseError unless the ids of `source` mean the same text as those of the checkpoint."""
    if not has_tokenizer(source.manifest, checkpoint.info.origin.tokenizer_sha256):
        raise MisuseError(
            f"{source.name} has another tokenizer than {checkpoint.folder} was trained with, so the same id "
            "means different text; train on a build with that tokenizer, or start again with --restart or "
            "another --out_dir"
        )
    if source.vocab_size > checkpoint.info.vocab_size:
        raise MisuseError(
            f"the vocabulary of {source.name} has {source.vocab_size:,} ids, more than the "
            f"{checkpoint.info.vocab_size:,} of the model in {checkpoint.folder}; train on the build that the run "
            "started with, or start a new run with its weights, by --init_from"
        )


def _check_control_tokens(checkpoint: Checkpoint, source: DataSource) -> None:
    """Raise MisuseError unless the control tokens of `source` have the ids of the checkpoint's build.

    Otherwise an author's id could continue with the embedding of another author.
    """
    _, manifest = vocabulary_of(checkpoint)
    try:
        check_same_control_tokens(source.name, source.manifest, other_name=str(checkpoint.folder), other=manifest)
    except MisuseError as e:
        raise MisuseError(f"{e}, or start a new run with its weights, by --init_from") from e


def _check_same_run(info: CheckpointInfo, config: Config, *, source: DataSource) -> None:
    """Raise MisuseError if the run of the checkpoint `info` had other settings or other data.

    A finished run may have a larger max_steps now, which continues it.
    """
    changes, origin = changed_settings(info.config, config), info.origin
    if info.is_extended_by(config) and not changed_settings(replace(info.config, max_steps=config.max_steps), config):
        changes = []
    if origin.build_id != source.build_id:
        difference = _describe_stream_change(config, source) if isinstance(source, StreamedText) else None
        old_id, new_id = origin.build_id[:SHORT_ID], source.build_id[:SHORT_ID]
        builds = f"data {info.config.data} {old_id} → {config.data} {new_id}"
        changes.append(f"{config.data}: {difference}" if difference else builds)
    if changes:
        raise MisuseError(_describe_changes(config, changes))


def _describe_stream_change(config: Config, stream: StreamedText) -> str | None:
    """Return how `stream` differs from the stream of the run in out_dir, or None if it read builds."""
    try:
        earlier = read_manifest(Path(config.out_dir) / VOCABULARY_DIR)
    except FolioError:
        return "its recipe or its files changed"
    has_shards = any(split.shards for split in earlier.splits.values())
    return None if has_shards else stream.difference(earlier)


def prepare_run_dir(config: Config, source: DataSource, *, restart: bool) -> None:
    """Delete leftovers and, with `restart`, the old run; then write the settings and the vocabulary."""
    out_dir = Path(config.out_dir)
    if restart:
        delete_run(out_dir)
    _delete_leftovers(out_dir)
    write_run(config, source)


def write_run(config: Config, source: DataSource) -> None:
    """Write the settings to settings.json, and the manifest and the tokenizer to build/ in out_dir."""
    out_dir = Path(config.out_dir)
    source.save_vocabulary(out_dir / VOCABULARY_DIR)
    write_durable(out_dir / SETTINGS_FILE, readable_json(config.as_dict()))


def vocabulary_of(checkpoint: Checkpoint) -> tuple[Path, Manifest]:
    """Return the folder build/ of a checkpoint's run, which has the tokenizer, and its manifest.

    Raises MisuseError if there is none, because the checkpoint is not inside a run, and FolioError
    if it is damaged or does not belong to the checkpoint.
    """
    folder = run_of(checkpoint) / VOCABULARY_DIR
    if not (folder / MANIFEST).is_file():
        raise MisuseError(
            f"{folder / MANIFEST} is missing, but {checkpoint.folder} needs it to turn ids into text; name a "
            f"checkpoint inside its run, or copy the run's folder {VOCABULARY_DIR} there"
        )
    manifest = read_manifest(folder, advice=RUN_COPY_ADVICE)
    origin = checkpoint.info.origin
    # The id of a mixture or a stream is not that of its vocabulary.
    is_one_build = not any(character in checkpoint.info.config.data for character in ",:")
    is_other_build = is_one_build and manifest.build_id != origin.build_id
    has_same_tokenizer = has_tokenizer(manifest, origin.tokenizer_sha256)
    if is_other_build or not has_same_tokenizer or manifest.vocab_size > checkpoint.info.vocab_size:
        what = "another tokenizer than" if not has_same_tokenizer else "the vocabulary of another build than that of"
        raise FolioError(f"{folder} has {what} {checkpoint.folder}; copy the folder {VOCABULARY_DIR} of its run there")
    return folder, manifest


def check_deletable(out_dir: Path) -> None:
    """Raise MisuseError if `out_dir` is not a run but has files with the names of a run's files.

    `--restart` must not delete files that Folio did not write.
    """
    files = (METRICS_FILE, COMPLETIONS_FILE, EVALUATIONS_FILE, TASKS_FILE, SETTINGS_FILE)
    names = (CHECKPOINTS_DIR, EVALUATIONS_DIR, *files)
    found = [name for name in names if (out_dir / name).exists()]
    if found and not is_run(out_dir) and not list_checkpoints(out_dir):
        raise MisuseError(
            f"--restart would delete {found[0]} in {out_dir}, which is not a run; move it away, or choose "
            "another --out_dir"
        )


def delete_run(out_dir: Path) -> None:
    """Delete the files that a run has written to `out_dir`, and no others."""
    # Rename first: an interrupted deletion must not leave some checkpoints to continue from.
    if (out_dir / CHECKPOINTS_DIR).is_dir():
        os.rename(out_dir / CHECKPOINTS_DIR, out_dir / f"{REMOVED_CHECKPOINTS}.{os.getpid()}")
    for name in (METRICS_FILE, COMPLETIONS_FILE, EVALUATIONS_FILE, TASKS_FILE):
        (out_dir / name).unlink(missing_ok=True)
    shutil.rmtree(out_dir / EVALUATIONS_DIR, ignore_errors=True)
    if (out_dir / SERVED_DIR / RECEIPT_FILE).is_file():  # otherwise it is not an export of Folio
        shutil.rmtree(out_dir / SERVED_DIR, ignore_errors=True)
    reset_trackers(out_dir)
    (out_dir / SETTINGS_FILE).unlink(missing_ok=True)


def _delete_leftovers(out_dir: Path) -> None:
    """Delete what interrupted saves and deletions left."""
    for path in out_dir.glob(f"{REMOVED_CHECKPOINTS}.*"):
        shutil.rmtree(path, ignore_errors=True)
    remove_leftovers(out_dir)
