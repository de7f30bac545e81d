"""What a tracker stores in the run directory: its id of the run, and which steps it has been sent.

A run that continues sends all its earlier rows again, because it does not know which of them
arrived before it was stopped. The worker must therefore recognize rows that it has already sent.
Steps only increase between rollbacks, so one number per metric is enough: the last step at which it
was sent. MLflow's server can be asked for this number. For TensorBoard and W&B, which only append
to files, the worker stores it as RUN/trackers/NAME.told.json after every line of events.

The file is written after the rows. If the worker is killed between the two, the rows of one line of
events are sent twice. The file and TensorBoard's files are not fsynced. After a crash of the
machine a tracker may therefore have more rows twice, or lack some; metrics.jsonl is complete.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from preprocess.errors import FolioError
from preprocess.shards.files import JsonObject, parse_json, read_small_file, readable_json, write_durable
from train.trackers.protocol import TRACKERS_DIR, Event

DEFAULT_PROJECT = "folio"
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class SentSteps:
    """The last step at which each metric was sent, so that restarts send no value twice."""

    def __init__(self, last_steps: dict[str, int]) -> None:
        self._last_steps = last_steps

    @classmethod
    def load(cls, path: Path) -> SentSteps:
        """Read what `save` wrote. If the file is missing or damaged, no value counts as sent."""
        return cls({key: step for key, step in read_object(path).items() if type(step) is int})

    def save(self, path: Path) -> None:
        """Write the steps to `path`. The file is replaced atomically, but not fsynced, to save time."""
        partial = path.with_suffix(".partial")
        partial.write_bytes(readable_json(self._last_steps))
        os.replace(partial, path)

    def mark(self, key: str, step: int) -> bool:
        """Mark the metric `key` as sent at `step`. Return whether it must be sent, being unsent so far."""
        if step <= self._last_steps.get(key, -1):
            return False
        self._last_steps[key] = step
        return True

    def mark_row(self, row: Event) -> dict[str, float]:
        """Mark all values of a row as sent, and return those that were unsent."""
        return {key: value for key, value in row["values"].items() if self.mark(key, row["step"])}

    def roll_back(self, step: int) -> None:
        """Forget what was sent at later steps, because the tracker has discarded it."""
        self._last_steps = {key: min(last_step, step) for key, last_step in self._last_steps.items()}


def tracker_file(begin: Event, name: str) -> Path:
    """Return the path of the file `name` that a tracker stores in the run directory."""
    return Path(begin["out_dir"]) / TRACKERS_DIR / name


def sent_steps_file(begin: Event, tracker: str) -> Path:
    """Return the path of the SentSteps of `tracker`."""
    return tracker_file(begin, f"{tracker}.told.json")


def read_run_id(begin: Event, name: str) -> str | None:
    """Return the tracker's id of the run from the file `name`, or None if there is no valid one."""
    run_id = None if begin["is_new"] else read_object(tracker_file(begin, name)).get("run_id")
    return run_id if isinstance(run_id, str) and RUN_ID.fullmatch(run_id) else None


def write_run_id(begin: Event, name: str, run_id: str) -> None:
    write_durable(tracker_file(begin, name), readable_json({"run_id": run_id}))


def get_run_name(begin: Event) -> str:
    return Path(begin["out_dir"]).resolve().name


def read_object(path: Path) -> JsonObject:
    """Return the JSON object in the file `path`, or {} if the file is missing or damaged."""
    try:
        content = parse_json(read_small_file(path))
    except (OSError, ValueError, FolioError):
        return {}
    return content if isinstance(content, dict) else {}
