"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from train.core.cli import add_path_to_errors
from train.trackers.client import TENSORBOARD_DIR, Event
from train.trackers.progress_file import Told, kept


class TensorBoard:
    """Event files; those of a continued run begin with a mark, by which readers forget what came after it."""

    def __init__(self, begin: Event) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = Path(begin["out_dir"]) / TENSORBOARD_DIR
        with add_path_to_errors(self._folder):
            self._writer = EventFileWriter(str(self._folder))
        self._told_path = kept(begin, "tensorboard.told.json")
        self._told = Told.kept_in(self._told_path)
        # What lies there from before the metrics.jsonl that begins now is of another run.
        self.rolled_back(-1 if begin["is_new"] else begin["step"])
        config = "\n".join(f"{key} = {value!r}" for key, value in begin["config"].items())
        for tag, text in (("config", config), ("build", f"{begin['build_name']}\n{begin['build_id']}")):
            self._text(tag, text, step=max(begin["step"] + 1, 0), time_s=time.time())
        self._flush()

    def rows(self, rows: list[Event]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for row in rows:
            values = [Summary.Value(tag=key, simple_value=value) for key, value in self._told.new_values(row).items()]
            self._add(row["step"], row["time_s"], summary=Summary(value=values))
        self._flush()
        self._told.keep(self._told_path)

    def sample(self, event: Event) -> None:
        self._text("sample", event["text"], step=event["step"], time_s=event["time_s"])
        self._flush()

    def rolled_back(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step + 1, time.time(), session_log=SessionLog(status=SessionLog.START))
        self._told.cut(step)

    def end(self, status: str) -> None:
        with add_path_to_errors(self._folder):
            self._writer.close()

    def _flush(self) -> None:
        with add_path_to_errors(self._folder):
            self._writer.flush()

    def _text(self, tag: str, text: str, *, step: int, time_s: float) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        # TensorBoard shows Markdown: indented, a text is shown as it is.
        self._add(step, time_s, summary=text_pb(tag, "".join(f"    {line}\n" for line in text.splitlines())))

    def _add(self, step: int, time_s: float, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record

        with add_path_to_errors(self._folder):  # what the thread that writes met since the last call
            self._writer.add_event(Record(step=step, wall_time=time_s, **content))
