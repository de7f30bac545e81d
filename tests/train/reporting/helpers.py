"""Run directories that look as if they had been trained, for the tests of the page of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from preprocess.shards.files import readable_json
from tests.helpers.runs import make_build, make_config
from train.run.completions import CompletionRow, append_completion

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \u202eevil \x1b[31m 'q\" & Tom"


def write_run(folder: Path, *, num_steps: int = 40, loss: float = 3.0, **settings: Any) -> Path:
    """Write a run directory with rows of metrics, completions, settings and a build."""
    config = make_config(out_dir=str(folder), **{"max_steps": 40, **settings})
    folder.mkdir(parents=True)
    make_build(folder / "build")
    (folder / "settings.json").write_bytes(readable_json(config.as_dict()))
    rows = []
    for step in range(num_steps + 1):
        if step:
            values = {"train_loss": loss * math.exp(-step / 30), "learning_rate": 1e-3, "grad_norm": 1.0}
            rows.append({"step": step, **values, "tokens_per_s": 64.0, "mfu": None, "peak_memory_bytes": 10**8})
        if step % 10 == 0:
            values = {"val_loss": loss * math.exp(-step / 40), "val_loss_stderr": 0.01, "bits_per_byte": 2.0}
            rows.append({"step": step, **values})
            append_completion(folder, CompletionRow(step=step, text=f"{HOSTILE} after {step}"))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
