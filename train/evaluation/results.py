"""What evaluations leave in a run's folder: a row each, and the loss of each window."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from preprocess.errors import FolioError
from preprocess.shards.files import canonical_json, parse_json, sha256_bytes, write_durable
from train.core.cli import add_path_to_errors
from train.run.run_dir import EVALUATIONS_DIR, EVALUATIONS_FILE
from train.run.validation import Evaluation, Strata

SHORT_KEY = 12  # hexadecimal digits of a file's name
IDENTITY = ("step", "model_sha256", "build_id", "block_size", "precision")  # what a window's loss follows from
KINDS = {"key": str, "data": str, "device": str, "num_windows": int, "num_parameters": int} | dict.fromkeys(
    IDENTITY, str
)
KINDS |= {"step": int, "block_size": int}
NUMBERS = ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte")  # null where there is none
Row = dict[str, Any]


def losses_file(identity: Row) -> str:
    """The name of the file that holds the losses of the windows; the same for all questions."""
    key = sha256_bytes(canonical_json({name: identity[name] for name in IDENTITY}))
    return f"{identity['step']:08d}-{key[:SHORT_KEY]}.safetensors"


def write_losses(path: Path, result: Evaluation) -> None:
    """Each window's loss, (W,) float32; how many are of each build, (B,) int64; and the builds' shares, (B,) float64."""
    counts = np.bincount(result.strata.source, minlength=len(result.strata.shares))
    shares = torch.tensor(result.strata.shares, dtype=torch.float64)
    with add_path_to_errors(path):
        write_durable(path, save({"losses": result.losses, "num_windows": torch.from_numpy(counts), "shares": shares}))


def read_losses(path: Path) -> tuple[Tensor, Strata] | None:
    """What write_losses wrote; None where there is nothing, or nothing whole."""
    try:
        tensors = load_file(path)
        losses, counts, shares = tensors["losses"], tensors["num_windows"], tensors["shares"]
        if (
            losses.dtype != torch.float32
            or losses.shape != (int(counts.sum()),)
            or counts.shape != shares.shape
            or counts.min() < 1
        ):
            return None
        return losses, Strata(source=np.repeat(np.arange(len(counts)), counts.numpy()), shares=tuple(shares.tolist()))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def losses_of(out_dir: Path, row: Row) -> tuple[Tensor, Strata] | None:
    """The losses of the windows of an evaluation of the run in `out_dir`; None where they are missing or damaged."""
    kept = read_losses(out_dir / EVALUATIONS_DIR / losses_file(row))
    return kept if kept is not None and len(kept[0]) == row["num_windows"] else None


def read_evaluations(out_dir: Path) -> list[Row]:
    """The rows of a run's EVALUATIONS_FILE; none where there is no file. A torn last line is left out.

    Raises FolioError for a line before that is no row, OSError where it is no file.
    """
    path = out_dir / EVALUATIONS_FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise TypeError("it is no object")
            if lacking := [key for key in (*KINDS, *NUMBERS) if key not in row]:
                raise TypeError(f"it has no {lacking[0]}")
            if bad := [key for key, kind in KINDS.items() if type(row[key]) is not kind]:
                raise TypeError(f"{bad[0]} is {row[bad[0]]!r:.40}")
            if bad := [key for key in NUMBERS if type(row[key]) not in (int, float, type(None))]:
                raise TypeError(f"{bad[0]} is no number")
            rows.append(row | {key: None if row[key] is None else float(row[key]) for key in NUMBERS})
        except (ValueError, TypeError, RecursionError, OverflowError) as e:
            raise FolioError(f"{path}, line {number} is no evaluation ({e}); take the line out") from e
    return rows


def append_row(out_dir: Path, row: Row) -> None:
    """Add a row, and cut off a torn one before it. The file is replaced whole: a crash leaves it as it was or with the row."""
    path = out_dir / EVALUATIONS_FILE
    before = path.read_bytes() if path.is_file() else b""
    with add_path_to_errors(path):
        write_durable(path, before[: before.rfind(b"\n") + 1] + json.dumps(row, allow_nan=False).encode() + b"\n")


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
