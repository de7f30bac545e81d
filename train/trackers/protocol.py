"""The protocol between a run and the worker process of a tracker.

The run writes events to the worker's standard input as JSON, one list of events per line. The
worker answers each line with one line on its standard output: `{}` after all events of the line are
handled, or `{"error": reason}`, after which it exits. The events, named by their key `event`, and
their other keys:

    begin       out_dir, step, is_new, config, build_id, build_name     always the first
    row         step, time_s, values {name: number}
    completion  step, time_s, text
    rollback    step
    end         status: finished, failed or killed                      always the last
"""

from __future__ import annotations

from typing import NamedTuple

from preprocess.shards.files import JsonObject

Event = JsonObject


class MetricsRow(NamedTuple):
    """The metrics of a step: a row of metrics.jsonl, which is also what a tracker receives."""

    step: int
    values: dict[str, float | None]


# Folders in a run's out_dir: what each tracker has been sent, and TensorBoard's event files.
TRACKERS_DIR, TENSORBOARD_DIR = "trackers", "tensorboard"
# The time to handle one line. The first one of MLflow, which creates its database, took 14 s on 2
# busy cores.
MAX_CALL_S = 60.0
# The time from the end of the run to the exit of the worker.
MAX_CLOSE_S = 60.0
