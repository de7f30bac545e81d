"""Runs to plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_metrics(run: Path, *, tail: str = "", rows: list[dict[str, Any]] | None = None, scale: float = 1.0) -> Path:
    """Write a metrics.jsonl with `rows` (by default 50 steps of falling losses) and `tail`."""
    run.mkdir(parents=True)
    if rows is None:
        rows = [
            {"step": s, "train_loss": scale * 4 / (1 + s / 10), "learning_rate": 1e-3, "tokens_per_s": 900.0 + s}
            for s in range(1, 50)
        ]
        rows += [{"step": s, "val_loss": scale * 4.2 / (1 + s / 11)} for s in (0, 25, 50)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return run
