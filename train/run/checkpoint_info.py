"""checkpoint.json: its keys, their types and ranges, and the checksum of its content.

The file has everything that determines how a run continues, except the tensors. With a single wrong
digit in `num_samples`, the run would continue with other data. So the file has a `checksum`, the
SHA-256 of the canonical JSON of all other keys, and every value is checked here. Code that has a
`CheckpointInfo` needs no further checks.

Checkpoints of earlier versions have no checksum. They must have exactly the keys that those
versions wrote, so that a file whose key `checksum` is damaged is not taken for one of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.errors import FolioError, MisuseError
from preprocess.shards.files import JsonObject, canonical_json, parse_json, read_small_file, sha256_bytes
from train.config import Config, config_from_saved
from train.data.batches import MAX_WINDOWS
from train.run.metrics import MAX_STEP
from train.run.stored_tensors import part_files

FORMAT = "folio-checkpoint"
VERSION, SHARDED_VERSION = 2, 3  # a sharded one also has num_parts; an earlier Folio says that it cannot read it
INFO_FILE, MODEL_FILE, TRAINING_FILE = "checkpoint.json", "model.safetensors", "training.safetensors"
TENSOR_FILES = (MODEL_FILE, TRAINING_FILE)
EARLY_STOPPING = "watch"  # the key of earlier versions, kept so that their checkpoints can be read
MUON_BY_HEAD = "muon_by_head"  # earlier versions did not write it, and Muon updated whole matrices
CHECKSUM = "checksum"
ADVICE = "; use another checkpoint"
MAX_VOCAB_SIZE = 1 << 32
MAX_SAMPLES = 1 << 53  # the processes exchange the number as a float64, which is exact up to here
MAX_FLOAT32 = 3.4e38
MAX_THREADS = 1 << 16
MAX_PARTS = 1 << 16
SHA256 = re.compile(r"[0-9a-f]{64}")
KEYS = {
    "format", "version", "step", "num_samples", "micro_batch", "streams", "skipped_updates", "scaler", "settings",
    "build_id", "tokenizer_sha256", "vocab_size", "files", EARLY_STOPPING,
}  # fmt: skip


class CheckpointError(FolioError):
    """Raised for a checkpoint that is damaged or does not fit the model."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The settings and the data of a run. They are the same in all checkpoints of the run."""

    settings: JsonObject
    build_id: str
    tokenizer_sha256: str  # builds with the same value encode text by the same ids, except control tokens


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The checked content of checkpoint.json."""

    step: int  # optimizer steps done
    num_samples: int  # samples used
    micro_batch: int | None  # windows per forward pass; None if not known
    num_threads: int | None  # of the CPU; None if not known
    has_muon_by_head: bool  # whether Muon updates queries, keys and values of each head separately
    streams: list[JsonObject] | None  # the resume state of each process's stream; None for builds
    skipped_updates: int  # in the whole run
    scaler: JsonObject  # of the gradient scaler; empty if it is off
    best_step: int | None  # the step of the run's best evaluation so far
    best_loss: float  # of that evaluation; infinite if there is none
    num_since: int  # evaluations since the last one that was an improvement beyond noise
    vocab_size: int
    config: Config  # of the run: the settings of `origin`
    origin: Origin
    num_parts: int  # files that each of TENSOR_FILES is divided into; 1 unless the checkpoint is sharded
    sha256: Mapping[str, str]  # of each file
    size_bytes: Mapping[str, int]  # of each file

    def is_extended_by(self, config: Config) -> bool:
        """Return whether the run was finished with this checkpoint, and `config` has a larger max_steps."""
        return self.config.max_steps <= self.step < config.max_steps

    @property
    def model_sha256(self) -> str:
        """The hash of the file of the weights or, if the checkpoint is sharded, of the hashes of its parts."""
        hashes = [self.sha256[name] for name in part_files(MODEL_FILE, self.num_parts)]
        return hashes[0] if self.num_parts == 1 else sha256_bytes(canonical_json(hashes))


def seal_info(fields: JsonObject) -> JsonObject:
    """Return the content of checkpoint.json: `fields`, and the checksum of all of them."""
    content = {key: value for key, value in fields.items() if key != CHECKSUM}
    return content | {CHECKSUM: sha256_bytes(canonical_json(content))}


def read_info(folder: Path) -> CheckpointInfo:
    """Return the content of the checkpoint.json in `folder`.

    Raises CheckpointError if it is missing or damaged, FolioError if it has another format version,
    and MisuseError if it is intact but has settings that this version of Folio does not accept.
    """
    path = folder / INFO_FILE
    try:
        content = parse_json(read_small_file(path))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise CheckpointError(f"{folder} has no {INFO_FILE}{ADVICE}") from e
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read ({e.strerror}){ADVICE}") from e
    except ValueError as e:
        raise CheckpointError(f"{path} is not JSON ({e}){ADVICE}") from e
    except FolioError as e:  # not a regular file, or too large
        raise CheckpointError(f"{e}{ADVICE}") from e
    try:
        is_sealed = _check_seal(content)
    except ValueError as e:
        raise CheckpointError(f"{path} {e}{ADVICE}") from e
    if content["version"] not in (VERSION, SHARDED_VERSION):
        raise FolioError(
            f"{path} has version {content['version']!r:.40}, this Folio reads versions {VERSION} and "
            f"{SHARDED_VERSION}; use the Folio that wrote it"
        )
    try:
        config = config_from_saved(content.get("settings"), str(path))
    except MisuseError as e:
        if is_sealed:
            raise
        raise CheckpointError(f"{e}{ADVICE}") from e
    try:
        return _parse(content, config)
    except ValueError as e:
        raise CheckpointError(f"{path} is malformed: {e}{ADVICE}") from e


def _check_seal(content: Any) -> bool:
    """Return whether `content` has a checksum. Raise ValueError if the checksum or the keys are wrong."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"does not have the format {FORMAT!r}, so it is damaged or not a checkpoint of Folio")
    if CHECKSUM in content:
        if seal_info(content)[CHECKSUM] != content[CHECKSUM]:
            raise ValueError("does not have the checksum that it states, so it is damaged or was edited")
    elif content.keys() != KEYS:
        missing = sorted(KEYS - content.keys())
        raise ValueError(f"is malformed: it has no {missing[0]}" if missing else f"has no {CHECKSUM}")
    if "version" not in content:
        raise ValueError("is malformed: it has no version")
    return CHECKSUM in content


def _parse(content: JsonObject, config: Config) -> CheckpointInfo:
    """Return the values of checkpoint.json. Raises ValueError for a value that no run writes."""
    step = _get_int(content, "step", 0, min(config.max_steps, MAX_STEP))
    num_samples = _get_int(content, "num_samples", step, MAX_SAMPLES)  # a step has one sample at least
    best_step, best_loss, num_since = _parse_early_stopping(_get(content, EARLY_STOPPING, dict), step=step)
    files = _get(content, "files", dict)
    num_parts = 1 if content["version"] == VERSION else _get_int(content, "num_parts", 2, MAX_PARTS)
    names = [name for kind in TENSOR_FILES for name in part_files(kind, num_parts)]
    entries = {name: _get(files, name, dict) for name in names}
    return CheckpointInfo(
        step=step,
        num_samples=num_samples,
        micro_batch=_parse_micro_batch(content, config),
        num_threads=_parse_num_threads(content),
        has_muon_by_head=_get(content, MUON_BY_HEAD, bool) if MUON_BY_HEAD in content else False,
        streams=_parse_streams(content, config),
        skipped_updates=_get_int(content, "skipped_updates", 0, num_samples),
        scaler=_parse_scaler(_get(content, "scaler", dict)),
        best_step=best_step,
        best_loss=best_loss,
        num_since=num_since,
        vocab_size=_get_int(content, "vocab_size", 1, MAX_VOCAB_SIZE),
        config=config,
        origin=Origin(
            settings=content["settings"],
            build_id=_get_sha256(content, "build_id"),
            tokenizer_sha256=_get_sha256(content, "tokenizer_sha256"),
        ),
        num_parts=num_parts,
        sha256={name: _get_sha256(entry, "sha256") for name, entry in entries.items()},
        size_bytes={name: _get_int(entry, "bytes", 0, 1 << 62) for name, entry in entries.items()},
    )


def _parse_early_stopping(content: JsonObject, *, step: int) -> tuple[int | None, float, int]:
    """Return the step and the loss of the best evaluation, and the number of evaluations since."""
    num_since = _get_int(content, "num_since", 0, step)  # at most one evaluation per step
    if _get(content, "best_step", int, type(None)) is None:
        return None, math.inf, num_since
    return _get_int(content, "best_step", 0, step), _get_float(content, "best_loss", math.inf), num_since


def _parse_micro_batch(content: JsonObject, config: Config) -> int | None:
    if _get(content, "micro_batch", int, type(None)) is None:
        return None
    micro_batch = _get_int(content, "micro_batch", 1, MAX_WINDOWS)
    if config.windows_per_step % micro_batch:
        raise ValueError(f"micro_batch must divide a step's {config.windows_per_step:,} windows, got {micro_batch:,}")
    return micro_batch


def _parse_num_threads(content: JsonObject) -> int | None:
    """Return the number of threads; earlier versions did not store it."""
    known = content.get("num_threads") is not None
    return _get_int(content, "num_threads", 1, MAX_THREADS) if known else None


def _parse_streams(content: JsonObject, config: Config) -> list[JsonObject] | None:
    streams: list[JsonObject] | None = _get(content, "streams", list, type(None))
    if streams is None:
        return None
    if not streams or config.windows_per_step % len(streams) or not all(isinstance(item, dict) for item in streams):
        raise ValueError(f"streams must be a list with an object for each process, got {streams!r:.40}")
    return streams


def _parse_scaler(content: JsonObject) -> JsonObject:
    """Return the state of the gradient scaler. Raises ValueError if the scaler cannot use it."""
    if not content:
        return {}
    scaler: JsonObject = {
        key: _get_float(content, key, MAX_FLOAT32) for key in ("scale", "growth_factor", "backoff_factor")
    }
    scaler |= {key: _get_int(content, key, 0, MAX_STEP) for key in ("growth_interval", "_growth_tracker")}
    if not scaler["scale"] > 0 or not scaler["growth_factor"] > 1 > scaler["backoff_factor"] > 0:
        raise ValueError("scaler must have scale > 0, growth_factor > 1 and backoff_factor between 0 and 1")
    if not scaler["_growth_tracker"] < scaler["growth_interval"]:
        raise ValueError("scaler must have a _growth_tracker below its growth_interval")
    return scaler


def _get(content: JsonObject, key: str, *kinds: type) -> Any:
    if key not in content:
        raise ValueError(f"it has no {key}")
    if type(content[key]) not in kinds:
        raise ValueError(f"{key} is {content[key]!r:.40}")
    return content[key]


def _get_int(content: JsonObject, key: str, minimum: int, maximum: int) -> int:
    value: int = _get(content, key, int)
    if not minimum <= value <= maximum:
        raise ValueError(f"{key} must be from {minimum:,} to {maximum:,}, got {str(value)[:40]}")
    return value


def _get_float(content: JsonObject, key: str, maximum: float) -> float:
    value: float = _get(content, key, float)
    if not 0 <= value <= maximum:
        raise ValueError(f"{key} must be from 0 to {maximum:g}, got {value}")
    return value


def _get_sha256(content: JsonObject, key: str) -> str:
    value: str = _get(content, key, str)
    if not SHA256.fullmatch(value):
        raise ValueError(f"{key} must be a SHA-256 in hexadecimal, got {value!r:.40}")
    return value
