"""A run that is already finished: report why, and send its trackers the rows that they do not have."""

from __future__ import annotations

import functools

from preprocess.errors import one_line
from train.config import Config
from train.core.cli import warn
from train.run.checkpoint import Checkpoint
from train.run.context import Run
from train.run.metrics import METRICS_FILE, read_rows
from train.trackers.client import send_missing_rows


def report_finished(run: Run, checkpoint: Checkpoint | None) -> bool:
    """Return whether the run is finished. If so, print why, and send its trackers the missing rows.

    `checkpoint` is the one to continue from, if any; it is given in the main process only.
    """
    reason = describe_finished(checkpoint, run.config) if checkpoint else None
    if not run.world.all_reduce_max(reason is not None):
        return False
    if reason is not None:
        _update_trackers(run)
        if not run.console.quiet:
            print(one_line(reason))
    return True


def describe_finished(checkpoint: Checkpoint, config: Config) -> str | None:
    """Return why a run that would continue from `checkpoint` is finished, or None if it is not."""
    if config.resume != "auto":
        return None
    info = checkpoint.info
    if info.step >= config.max_steps:
        return (
            f"{config.out_dir} is finished: all {config.max_steps:,} steps are done; "
            "start again with --restart, or choose another --out_dir"
        )
    if config.patience is not None and info.num_since >= config.patience:
        return (
            f"{config.out_dir} stopped early, after step {info.step:,}: {info.num_since} "
            "evaluations without an improvement beyond noise; raise --patience to continue, or start again "
            "with --restart"
        )
    return None


def _update_trackers(run: Run) -> None:
    log = functools.partial(print, flush=True) if not run.console.quiet else lambda line: None
    rows = read_rows(run.out_dir / METRICS_FILE)
    sent = send_missing_rows(run.config.track, run.out_dir, run_info=run.info.as_dict(), rows=rows, log=log, warn=warn)
    for name in sent:
        log(f"{name} has received the rows that it did not have")
