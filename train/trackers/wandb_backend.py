"""Weights & Biases: a run kept in the run's folder until `wandb sync`, unless WANDB_MODE says otherwise."""

from __future__ import annotations

import html
import os
import uuid

from train.trackers.client import MOST_CALL_S, Event
from train.trackers.progress_file import DEFAULT_PROJECT, Told, keep_run_id, kept, read_run_id, run_name


class WeightsAndBiases:
    def __init__(self, begin: Event) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        before = read_run_id(begin, "wandb.json")
        run_id = before or uuid.uuid4().hex
        self._told_path = kept(begin, "wandb.told.json")
        self._told = Told.kept_in(self._told_path) if before else Told({})
        config = {**begin["config"], "build_id": begin["build_id"], "build_name": begin["build_name"]}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=os.environ.get("WANDB_NAME") or run_name(begin),
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or begin["out_dir"],
            mode=os.environ.get("WANDB_MODE") or "offline",
            # The process that is seen from here is not the run's: neither its output nor its code tells anything.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, init_timeout=MOST_CALL_S
            ),
        )
        keep_run_id(begin, "wandb.json", run_id)
        self._run.config.update(config, allow_val_change=True)
        # Its own count of steps only rises; ours goes back to a checkpoint.
        self._run.define_metric("*", step_metric="step")

    def rows(self, rows: list[Event]) -> None:
        for row in rows:
            if values := self._told.new_values(row):
                self._run.log({"step": row["step"], **values})
        self._told.keep(self._told_path)

    def sample(self, event: Event) -> None:
        if self._told.is_new("sample", event["step"]):
            text = f'<pre style="white-space: pre-wrap">{html.escape(event["text"])}</pre>'
            self._run.log({"step": event["step"], "sample": self._wandb.Html(text, inject=False)})
            self._told.keep(self._told_path)

    def rolled_back(self, step: int) -> None:
        """Nothing: what was told stays."""

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)
