"""The curves of a run, read from its metrics.jsonl."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.errors import MisuseError
from preprocess.shards.manifest_file import MANIFEST
from train.plotting.thin_rows import ThinRows, keep_extremes
from train.run.metrics import METRICS_FILE, open_rows

METRICS = ("train_loss", "val_loss", "learning_rate", "tokens_per_s")
# A row with this key reports a rollback: its value is the step from which the run returned to the
# step of the row.
ROLLBACK_KEY = "went_back_from_step"
MAX_ROLLBACKS = 1_000  # of a run; the last ones
MAX_VALUE = 1e30  # the arithmetic of matplotlib's axes overflows long before a float does


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The data of a run that is plotted."""

    name: str
    points: dict[str, tuple[np.ndarray, np.ndarray]]  # steps, (P,) int64, and values, (P,) float64, of each of METRICS
    rollbacks: list[tuple[int, int]]  # (step that the run returned to, step that it came from)


def read_curves(run: Path, name: str, *, warn: Callable[[str], None]) -> Curves:
    """Return the curves of the run directory `run`, which is called `name` in the plot.

    Of many steps, those with the extremes of their neighbours are kept; see ThinRows. Values beyond
    ±MAX_VALUE are left out, and `warn` is called with one line. Raises MisuseError if
    there is no run or it has no losses, and FolioError if a row of its metrics.jsonl is damaged.
    """
    thinned = {key: ThinRows(2, keep_extremes) for key in METRICS}
    rollbacks: deque[tuple[int, int]] = deque(maxlen=MAX_ROLLBACKS)
    num_left_out = 0
    for row in open_rows(find_metrics(run)):
        for key, of_key in thinned.items():
            if (value := row.values.get(key)) is None:
                continue
            if abs(value) <= MAX_VALUE:
                of_key.add((row.step, value))
            else:
                num_left_out += 1
        if (from_step := row.values.get(ROLLBACK_KEY)) is not None and 0 <= from_step <= MAX_VALUE:
            rollbacks.append((row.step, int(from_step)))
    of_metrics = {}
    for key in METRICS:
        rows = thinned.pop(key).as_array()
        of_metrics[key] = rows[:, 0].astype(np.int64), rows[:, 1].copy()
    if not len(of_metrics["train_loss"][0]) and not len(of_metrics["val_loss"][0]):
        raise MisuseError(f"{run} has no losses to plot in {METRICS_FILE}; train it further, or name another run")
    if num_left_out:
        warn(f"{name}: {num_left_out:,} values beyond {MAX_VALUE:g} are left out of the plot")
    return Curves(name=name, points=of_metrics, rollbacks=list(rollbacks))


def find_metrics(run: Path) -> Path:
    """Return the path of a run's metrics.jsonl. Raises MisuseError if there is none."""
    if not run.exists():
        raise MisuseError(f"there is no run {run}; name the out_dir of a run, such as runs/demo")
    if run.is_file():
        raise MisuseError(f"{run} is a file; name the folder of a run, such as {run.parent}")
    path = run / METRICS_FILE
    if not path.is_file():
        if (run / MANIFEST).is_file():
            raise MisuseError(f"{run} is a build, not a run; name a run's out_dir, or use `preprocess report`")
        raise MisuseError(
            f"{run} has no losses: it has no {METRICS_FILE}; name the out_dir of a run, such as runs/demo"
        )
    return path
