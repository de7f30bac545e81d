"""Find what `folio serve` serves: an exported folder, or a run, which is exported first.

The export of a run is kept in RUN/served/, so that the next start is faster:

    receipt.json    what the export was made of, and the sizes of its files
    model/          the files of `folio export`

The folder is written under another name and renamed when it is complete. It is used again if the
receipt fits the checkpoint and this version of Folio.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from preprocess import __version__
from preprocess.errors import FolioError
from preprocess.shards.files import (
    JsonObject,
    open_new_directory,
    parse_json,
    read_small_file,
    readable_json,
    write_durable,
)
from train.config import Config
from train.model.modern import EXPORT_TYPE, EXPORT_VERSION
from train.run.checkpoint import Checkpoint, check_shapes, run_of
from train.run.export_folder import export_model, write_folder
from train.run.huggingface_folder import CONFIG_FILE
from train.run.run_dir import RECEIPT_FILE, SERVED_DIR, vocabulary_of

MODEL_DIR = "model"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A folder that transformers loads, and how the server uses the model."""

    name: str  # in requests
    folder: Path
    bos_token: str = ""  # before each prompt; "" if the model was trained without
    # What holds if a request does not say otherwise.
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def open_exported_folder(folder: Path) -> ServedModel:
    """Return the model in an exported folder, which has a config.json.

    Raises FolioError if config.json is damaged, or if an earlier version of Folio exported the model in
    a format that transformers cannot load.
    """
    path = folder / CONFIG_FILE
    try:
        config = parse_json(read_small_file(path))
    except ValueError as e:
        raise FolioError(f"{path} is not JSON ({e!s:.80}); export the model again") from e
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise FolioError(f"{path} has no model_type; export the model again")
    if config["model_type"] == EXPORT_TYPE and config.get("version") != EXPORT_VERSION:
        raise FolioError(
            f"{path} has version {config.get('version')!r:.40} of {EXPORT_TYPE}, expected {EXPORT_VERSION}; export "
            "the model again"
        )
    return ServedModel(name=folder.resolve().name, folder=folder)


def export_run(checkpoint: Checkpoint) -> ServedModel:
    """Return the model of a checkpoint, exported to the folder `served` of its run.

    Raises MisuseError if the weights do not fit, and FolioError if the run is damaged or its folder
    cannot be written.
    """
    config, run = checkpoint.info.config, run_of(checkpoint)
    check_shapes(checkpoint, config)
    _, manifest = vocabulary_of(checkpoint)
    source = {
        "folio": __version__,
        "export": EXPORT_VERSION,  # it may change during the development of a version
        "step": checkpoint.info.step,
        "weights_sha256": checkpoint.info.model_sha256,
        "vocabulary": manifest.build_id,
    }
    target = run / SERVED_DIR
    if os.path.lexists(target) and not (target / RECEIPT_FILE).is_file():
        raise FolioError(f"{target} is in the way, which Folio did not write; move it elsewhere")
    if not _is_current(target, source):
        try:
            _export(checkpoint, target, source)
        except OSError as e:
            raise FolioError(
                f"{target} cannot be written ({e.strerror}); export the run elsewhere by `folio export RUN --output "
                "FOLDER`, and serve FOLDER"
            ) from e
    bos_id = manifest.bos_id if manifest.recipe.get("bos") is True else None
    names = {i: name for name, i in manifest.special_tokens.items()}
    return ServedModel(
        name=run.name,
        folder=target / MODEL_DIR,
        bos_token="" if bos_id is None else names.get(bos_id, ""),
        **_sampling(config),
    )


def _sampling(config: Config) -> JsonObject:
    return {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}


def _export(checkpoint: Checkpoint, target: Path, source: JsonObject) -> None:
    with open_new_directory(target) as temporary:
        folder = temporary / MODEL_DIR
        folder.mkdir()
        write_folder(folder, checkpoint, export_model(checkpoint))
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        write_durable(temporary / RECEIPT_FILE, readable_json({"source": source, "sizes": sizes}))


def _is_current(target: Path, source: JsonObject) -> bool:
    """Return whether `target` has an export of `source` with all of its files."""
    try:
        receipt = parse_json(read_small_file(target / RECEIPT_FILE))
        sizes = {path.name: path.stat().st_size for path in (target / MODEL_DIR).iterdir()}
    except (FileNotFoundError, ValueError):
        return False
    return bool(receipt == {"source": source, "sizes": sizes})
