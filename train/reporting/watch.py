"""Write the page of runs, once or again and again while they are trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from preprocess.pages.render import render_page
from preprocess.shards.files import write_durable
from train.reporting.describe import describe_page
from train.reporting.read_run import ReportedRun, list_watched_files, read_run

WATCH_S = 5  # between two looks at the files of the runs, and between two reloads of the page
MAX_SHARE = 0.1  # of the time that reading and writing take


def write_page(folders: Sequence[Path], names: Sequence[str], path: Path, *, reload_s: int | None = None) -> int:
    """Write the page of the runs in `folders` to `path`. Return its bytes. `reload_s` is as in `describe_page`.

    Raises MisuseError if there is no run, and FolioError if a file of a run is damaged.
    """
    runs = _read_runs(folders, names)
    return _write(runs, path, reload_s=reload_s)


def watch(folders: Sequence[Path], names: Sequence[str], path: Path, *, on_start: Callable[[], None]) -> int:
    """Write the page whenever a run has written something, until all runs have done their last step.

    `on_start` is called after the page is written for the first time. When the function ends, also by an
    exception such as that of Ctrl-C, the page no longer reloads itself. Returns the bytes of the page.
    """
    runs, seen = _read_runs(folders, names), _stat_files(folders)
    try:
        _write(runs, path, reload_s=WATCH_S)
        on_start()
        while not all(run.last_step >= run.config.max_steps for run in runs):
            time.sleep(WATCH_S)
            if (found := _stat_files(folders)) != seen:
                began = time.monotonic()
                seen, runs = found, _read_runs(folders, names)
                _write(runs, path, reload_s=WATCH_S)
                time.sleep((time.monotonic() - began) * (1 / MAX_SHARE - 1))
    finally:
        size_bytes = _write(runs, path, reload_s=None)
    return size_bytes


def _read_runs(folders: Sequence[Path], names: Sequence[str]) -> list[ReportedRun]:
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _write(runs: Sequence[ReportedRun], path: Path, *, reload_s: int | None) -> int:
    data = render_page(describe_page(runs, reload_s=reload_s), "train.reporting", "runs.html")
    write_durable(path, data)
    return len(data)


def _stat_files(folders: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Return the size and the time of the last change of each file that decides the page; None if there is none."""
    paths = [path for folder in folders for path in list_watched_files(folder)]
    stats = [path.stat() if path.exists() else None for path in paths]
    return [None if stat is None else (stat.st_size, stat.st_mtime_ns) for stat in stats]
