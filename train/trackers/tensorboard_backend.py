"""TensorBoard: event files in the run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from train.core.cli import add_path_to_errors
from train.trackers.progress_file import SentSteps, sent_steps_file
from train.trackers.protocol import TENSORBOARD_DIR, Event


class TensorBoard:
    """Writes event files; see worker.Backend for the methods.

    Each start of the run adds an event file. A SessionLog record undoes steps: readers discard the
    values of its step and of later steps that were written before it.
    """

    def __init__(self, begin: Event) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = Path(begin["out_dir"]) / TENSORBOARD_DIR
        with add_path_to_errors(self._folder):
            self._writer = EventFileWriter(str(self._folder))
        self._sent_path = sent_steps_file(begin, "tensorboard")
        self._sent = SentSteps.load(self._sent_path)
        # The folder may have rows after the checkpoint that the run continues from, or rows of
        # another run.
        self.roll_back(-1 if begin["is_new"] else begin["step"])
        config = "\n".join(f"{key} = {value!r}" for key, value in begin["config"].items())
        for tag, text in (("config", config), ("build", f"{begin['build_name']}\n{begin['build_id']}")):
            self._add_text(tag, text, step=max(begin["step"] + 1, 0), time_s=time.time())
        self._flush()

    def log_rows(self, rows: list[Event]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in self._sent.mark_row(row).items()]
            self._add(row["step"], row["time_s"], summary=Summary(value=values))
        self._flush()
        self._sent.save(self._sent_path)

    def log_completion(self, event: Event) -> None:
        self._add_text("completion", event["text"], step=event["step"], time_s=event["time_s"])
        self._flush()

    def roll_back(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step + 1, time.time(), session_log=SessionLog(status=SessionLog.START))
        self._sent.roll_back(step)

    def end(self, status: str) -> None:
        with add_path_to_errors(self._folder):
            self._writer.close()

    def _flush(self) -> None:
        with add_path_to_errors(self._folder):
            self._writer.flush()

    def _add_text(self, tag: str, text: str, *, step: int, time_s: float) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        # TensorBoard renders texts as Markdown. Indented lines are a code block, which is shown
        # unchanged.
        self._add(step, time_s, summary=text_pb(tag, "".join(f"    {line}\n" for line in text.splitlines())))

    def _add(self, step: int, time_s: float, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record

        # The writer writes in a thread. add_event raises an error that occurred there since the last
        # call.
        with add_path_to_errors(self._folder):
            self._writer.add_event(Record(step=step, wall_time=time_s, **content))
