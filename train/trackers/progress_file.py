"""What a tracker's process remembers over restarts: what the run is called there, and what was told of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from preprocess.shards.files import parse_json, readable_json, write_durable
from train.trackers.client import TRACKERS_DIR, Event

DEFAULT_PROJECT = "folio"
RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Told:
    """Each value of each step once, over restarts."""

    def __init__(self, last: dict[str, int]) -> None:
        """`last`: of each name the last step that has it."""
        self.last = last

    @classmethod
    def kept_in(cls, path: Path) -> Told:
        return cls({key: step for key, step in _read(path).items() if type(step) is int})

    def keep(self, path: Path) -> None:
        """For trackers whose files cannot be asked. Not made durable: a machine that crashes may tell a few rows twice."""
        aside = path.with_suffix(".partial")
        aside.write_bytes(readable_json(self.last))
        os.replace(aside, path)

    def is_new(self, key: str, step: int) -> bool:
        """Whether `key` of `step` is to be told; from now on it is told."""
        if step <= self.last.get(key, -1):
            return False
        self.last[key] = step
        return True

    def new_values(self, row: Event) -> dict[str, float]:
        return {key: value for key, value in row["values"].items() if self.is_new(key, row["step"])}

    def cut(self, step: int) -> None:
        """What was told of later steps is undone."""
        self.last = {key: min(last, step) for key, last in self.last.items()}


def kept(begin: Event, name: str) -> Path:
    """A file of a tracker's own in the run's folder."""
    return Path(begin["out_dir"]) / TRACKERS_DIR / name


def read_run_id(begin: Event, name: str) -> str | None:
    """How the tracker called the run that is continued; None where none is."""
    run_id = None if begin["is_new"] else _read(kept(begin, name)).get("run_id")
    return run_id if isinstance(run_id, str) and RUN_ID.fullmatch(run_id) else None


def keep_run_id(begin: Event, name: str, run_id: str) -> None:
    write_durable(kept(begin, name), readable_json({"run_id": run_id}))


def run_name(begin: Event) -> str:
    return Path(begin["out_dir"]).resolve().name


def _read(path: Path) -> dict[str, Any]:
    """What a file of a tracker's own holds; nothing where it is not there, or was not written by it."""
    try:
        saved = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return saved if isinstance(saved, dict) else {}
