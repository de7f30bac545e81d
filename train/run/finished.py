"""A run that is already finished: report why, and send its trackers the rows that they do not have."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex
from dataclasses import dataclass

from preprocess.errors import one_line
from train.config import Config
from train.core.arguments import program_name
from train.core.cli import warn
from train.run.checkpoint import Checkpoint
from train.run.context import Run
from train.run.messages import describe_longer_schedule
from train.run.metrics import METRICS_FILE, open_rows
from train.trackers.client import send_missing_rows


def report_finished(run: Run, checkpoint: Checkpoint | None, arguments: list[str]) -> bool:
    """Return whether the run is finished. If so, print why, and send its trackers the missing rows.

    `checkpoint` is the one to continue from, if any; it is given in the main process only.
    `arguments` are those of the command line.
    """
    reason = describe_finished(checkpoint, run.config, _Command(arguments, run.world.size)) if checkpoint else None
    if not run.world.all_reduce_max(reason is not None):
        return False
    if reason is not None:
        _update_trackers(run)
        run.console.line(one_line(reason))
    return True


@dataclass(frozen=True)
class _Command:
    """The command line of this run."""

    arguments: list[str]
    num_processes: int

    def with_setting(self, key: str, value: object) -> str:
        """Return the command with another value of a setting."""
        option = f"--{key}={value}"
        if self.num_processes > 1:  # started by torchrun, whose arguments are not known here
            return f"the same command with {option}"
        earlier = re.compile(f"--{key.replace('_', '[-_]')}=.*", re.DOTALL)
        arguments = [argument for argument in self.arguments if not earlier.fullmatch(argument)]
        return f"{program_name('python train/train.py')} {shlex.join([*arguments, option])}"


def describe_finished(checkpoint: Checkpoint, config: Config, command: _Command) -> str | None:
    """Return why a run that would continue from `checkpoint` is finished, or None if it is not.

    The text also says how to train it further.
    """
    if config.resume != "auto":
        return None
    info = checkpoint.info
    if info.step >= config.max_steps:
        longer = dataclasses.replace(config, max_steps=2 * info.step)
        line, schedule = command.with_setting("max_steps", longer.max_steps), describe_longer_schedule(info, longer)
        return (
            f"{config.out_dir} is finished: all {config.max_steps:,} steps are done; to train it further, raise "
            f"max_steps: {line} ({schedule}); or start again with --restart, or choose another --out_dir"
        )
    if config.patience is not None and info.num_since >= config.patience:
        return (
            f"{config.out_dir} stopped early, after step {info.step:,}: {info.num_since} "
            "evaluations without an improvement beyond noise; to train it further, raise patience: "
            f"{command.with_setting('patience', info.num_since + config.patience)}; or start again with --restart"
        )
    return None


def _update_trackers(run: Run) -> None:
    log = functools.partial(print, flush=True) if not run.console.quiet else lambda line: None
    open_history = functools.partial(open_rows, run.out_dir / METRICS_FILE)
    sent = send_missing_rows(
        run.config.track, run.out_dir, run_info=run.info.as_dict(), open_history=open_history, log=log, warn=warn
    )
    for name in sent:
        log(f"{name} has received the rows that it did not have")
