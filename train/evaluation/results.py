"""The results of evaluations, as evaluate.py stores them in a run directory.

evaluations.jsonl has one row per evaluation. evaluations/STEP-KEY.safetensors has the loss of each
window; evaluations that differ only in their prompts or sampling settings share one such file. Two
runs are compared window by window: the difference between two models on the same window varies far
less than the loss itself, so a small improvement can be distinguished from noise.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.files import (
    MAX_ROW_BYTES,
    JsonObject,
    canonical_json,
    read_json_lines,
    read_small_file,
    sha256_bytes,
    write_durable,
)
from train.run.metrics import MAX_STEP
from train.run.run_dir import EVALUATIONS_DIR, EVALUATIONS_FILE
from train.run.validation import Evaluation, Strata

MAX_LOSSES_BYTES = 256 << 20  # of a file with the losses of 67 million windows
SHORT_KEY = 12  # hexadecimal digits of a hash in a file name or a message
BUILD_LOSS = "val_loss/"  # prefix of the keys that hold the loss on each build of a mixture
TEXT_FIELDS = ("model_sha256", "build_id", "precision", "data", "device", "key")
COUNT_FIELDS = ("step", "block_size", "num_windows", "num_parameters")
METRICS = ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte")


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Everything that the losses of an evaluation's windows depend on, except rounding on a device."""

    step: int
    model_sha256: str
    build_id: str
    block_size: int
    precision: str
    # Of the files of a stream, whose build_id says their sizes only. None for builds, and in earlier versions.
    times_sha256: str | None = None

    def identify(self) -> JsonObject:
        """Return the fields that identify the losses, without the times if there are none."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(LossInputs)}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def losses_file(self) -> str:
        """The name of the file with the losses, in the folder evaluations/ of the run."""
        key = sha256_bytes(canonical_json(self.identify()))
        return f"{self.step:08d}-{key[:SHORT_KEY]}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and the text that the model continued it with."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class EvaluationRow(LossInputs):
    """A row of evaluations.jsonl.

    Losses are in nats per token. A metric is None if it is not finite or not defined.
    """

    key: str  # equal for evaluations with the same inputs, prompts and sampling settings
    val_loss: float | None = None
    val_loss_stderr: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    data: str  # the name of the data of the evaluation
    num_windows: int  # 0 in a row that has only completions, which is not stored
    num_parameters: int
    device: str
    is_packed: bool = False  # whether the windows are rows of whole documents (data_order "documents")
    val_loss_by_build: dict[str, float | None] = field(default_factory=dict)  # empty unless a mixture
    completions: tuple[Completion, ...] = ()
    elapsed_s: float | None = None

    def as_dict(self) -> JsonObject:
        """Return the row as a JSON object, as it is stored."""
        values = dataclasses.asdict(self)
        by_build = values.pop("val_loss_by_build")
        return values | {f"{BUILD_LOSS}{name}": loss for name, loss in by_build.items()}

    @classmethod
    def from_dict(cls, row: JsonObject) -> EvaluationRow:
        """Return the row that `as_dict` stored. Raises TypeError for a missing key or a bad value."""
        values: dict[str, Any] = {key: _get(row, key, str) for key in TEXT_FIELDS}
        values |= {key: _get_count(row, key) for key in COUNT_FIELDS}
        values |= {key: _get_number(row, key) for key in (*METRICS, "elapsed_s")}
        by_build = [key for key in row if key.startswith(BUILD_LOSS)]
        return cls(
            times_sha256=_get(row, "times_sha256", str, type(None)) if "times_sha256" in row else None,
            val_loss_by_build={key.removeprefix(BUILD_LOSS): _get_number(row, key) for key in by_build},
            completions=_read_completions(row),
            is_packed="is_packed" in row and _get(row, "is_packed", bool),  # earlier versions have no such rows
            **values,
        )


def _get(row: JsonObject, key: str, *kinds: type) -> Any:
    if key not in row:
        raise TypeError(f"it has no {key}")
    if type(row[key]) not in kinds:
        raise TypeError(f"{key} is {row[key]!r:.40}")
    return row[key]


def _get_count(row: JsonObject, key: str) -> int:
    value: int = _get(row, key, int)
    if not 0 <= value <= MAX_STEP:
        raise TypeError(f"{key} is {str(value)[:40]}")
    return value


def _get_number(row: JsonObject, key: str) -> float | None:
    value = _get(row, key, int, float, type(None))
    return None if value is None else float(value)


def _read_completions(row: JsonObject) -> tuple[Completion, ...]:
    """Return the `completions` of a row, which earlier versions called `answers`."""
    key = "completion" if "completions" in row else "answer"
    entries = _get(row, f"{key}s", list)
    if any(not isinstance(entry, dict) for entry in entries):
        raise TypeError(f"{key}s is {entries!r:.40}")
    return tuple(Completion(prompt=_get(e, "prompt", str), completion=_get(e, key, str)) for e in entries)


def read_evaluations(out_dir: Path) -> list[EvaluationRow]:
    """Return the rows of a run's evaluations.jsonl, oldest first.

    A last line without a line feed was not written completely and is ignored. Raises FolioError if
    another line is not an evaluation, and OSError if the file cannot be read.
    """
    path = out_dir / EVALUATIONS_FILE
    return read_json_lines(path, EvaluationRow.from_dict, row_name="an evaluation", advice="delete the line")


def find_last_times(rows: Sequence[EvaluationRow], inputs: LossInputs) -> str | None:
    """Return the `times_sha256` of the newest row that has the other fields of `inputs`, None if there is none."""
    wanted = dataclasses.replace(inputs, times_sha256=None).identify()
    same = (row.times_sha256 for row in reversed(rows) if row.identify() | wanted == row.identify())
    return next(same, None)


def append_evaluation(out_dir: Path, row: EvaluationRow) -> None:
    """Append a row to evaluations.jsonl, as `append_rows` does."""
    append_rows(out_dir / EVALUATIONS_FILE, [row.as_dict()])


def append_rows(path: Path, rows: Sequence[JsonObject]) -> None:
    """Append JSON objects as lines, after deleting a last line that was not written completely.

    The whole file is replaced, so that a crash leaves it without the rows or with all of them. Raises
    FolioError, without a change of the file, for a row that is too long to be read again.
    """
    content = path.read_bytes() if path.is_file() else b""
    lines = [json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows]
    if (size_bytes := max(map(len, lines), default=0)) > MAX_ROW_BYTES:
        raise FolioError(
            f"the evaluation has {size_bytes:,} bytes, expected at most {MAX_ROW_BYTES:,}; pass fewer --prompts or "
            "--tokens"
        )
    write_durable(path, content[: content.rfind(b"\n") + 1] + b"".join(lines))


def write_losses(path: Path, result: Evaluation) -> None:
    """Write the loss of each window, and the build that the window comes from, to the file `path`.

    The file contains the tensors losses (W,) float32, num_windows of each of N builds (N,) int64,
    shares of the builds (N,) float64, and sha256 of these three (32,) uint8.
    """
    num_windows = np.bincount(result.strata.build_index, minlength=len(result.strata.shares))
    shares = torch.tensor(result.strata.shares, dtype=torch.float64)
    tensors = {"losses": result.losses, "num_windows": torch.from_numpy(num_windows), "shares": shares}
    tensors["sha256"] = _hash(tensors)
    write_durable(path, save(tensors))


def _hash(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the SHA-256 of the three tensors of an evaluation, (32,) uint8."""
    content = b"".join(tensors[name].contiguous().numpy().tobytes() for name in ("losses", "num_windows", "shares"))
    return torch.frombuffer(bytearray.fromhex(sha256_bytes(content)), dtype=torch.uint8)


def read_losses(path: Path) -> tuple[Tensor, Strata] | None:
    """Return what `write_losses` wrote: the losses, (W,) float32, and the Strata.

    Return None if the file is missing or damaged. Files of earlier versions have no sha256.
    """
    try:
        tensors = load(read_small_file(path, MAX_LOSSES_BYTES))
        losses, num_windows, shares = tensors["losses"], tensors["num_windows"], tensors["shares"]
        if (
            losses.dtype != torch.float32
            or losses.shape != (int(num_windows.sum()),)
            or num_windows.shape != shares.shape
            or num_windows.min() < 1
            or ("sha256" in tensors and not torch.equal(tensors["sha256"], _hash(tensors)))
        ):
            return None
        source = np.repeat(np.arange(len(num_windows)), num_windows.numpy())
        return losses, Strata(build_index=source, shares=tuple(shares.tolist()))
    except (OSError, FolioError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def read_losses_of_row(out_dir: Path, row: EvaluationRow) -> tuple[Tensor, Strata] | None:
    """Return the losses of a row, (W,) float32, and the Strata, or None if they are not complete."""
    saved = read_losses(out_dir / EVALUATIONS_DIR / row.losses_file)
    return saved if saved is not None and len(saved[0]) == row.num_windows else None


def finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
