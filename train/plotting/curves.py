"""The curves of a run, read from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from preprocess.errors import MisuseError
from train.run.metrics import METRICS_FILE, read_rows

METRICS = ("train_loss", "val_loss", "learning_rate", "tokens_per_s")
# A row with this key reports a rollback: its value is the step from which the run returned to the
# step of the row.
ROLLBACK_KEY = "went_back_from_step"
MAX_VALUE = 1e30  # the arithmetic of matplotlib's axes overflows long before a float does


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The data of a run that is plotted."""

    name: str
    points: dict[str, tuple[list[int], list[float]]]  # steps and values of each of METRICS
    rollbacks: list[tuple[int, int]]  # (step that the run returned to, step that it came from)


def read_curves(run: Path, name: str, *, warn: Callable[[str], None]) -> Curves:
    """Return the curves of the run directory `run`, which is called `name` in the plot.

    Values beyond ±MAX_VALUE are left out, and `warn` is called with one line. Raises MisuseError if
    there is no run or it has no losses, and FolioError if a row of its metrics.jsonl is damaged.
    """
    rows = read_rows(_find_metrics(run))
    all_points = {
        key: [(row.step, value) for row in rows if (value := row.values.get(key)) is not None] for key in METRICS
    }
    points = {key: [(step, float(v)) for step, v in pairs if abs(v) <= MAX_VALUE] for key, pairs in all_points.items()}
    if not points["train_loss"] and not points["val_loss"]:
        raise MisuseError(f"{run} has no losses to plot in {METRICS_FILE}; train it further, or name another run")
    if num_left_out := sum(len(all_points[key]) - len(points[key]) for key in METRICS):
        warn(f"{name}: {num_left_out:,} values beyond {MAX_VALUE:g} are left out of the plot")
    return Curves(
        name=name,
        points={key: ([step for step, _ in pairs], [value for _, value in pairs]) for key, pairs in points.items()},
        rollbacks=[
            (row.step, int(step))
            for row in rows
            if (step := row.values.get(ROLLBACK_KEY)) is not None and 0 <= step <= MAX_VALUE
        ],
    )


def _find_metrics(run: Path) -> Path:
    if not run.exists():
        raise MisuseError(f"there is no run {run}; name the out_dir of a run, such as runs/demo")
    if run.is_file():
        raise MisuseError(f"{run} is a file; name the folder of a run, such as {run.parent}")
    path = run / METRICS_FILE
    if not path.is_file():
        raise MisuseError(
            f"{run} has no losses: it has no {METRICS_FILE}; name the out_dir of a run, such as runs/demo"
        )
    return path
