"""Weights & Biases: runs are stored in the run directory for `wandb sync`; see also WANDB_MODE."""

from __future__ import annotations

import html
import os
import uuid

from train.trackers.progress_file import (
    DEFAULT_PROJECT,
    SentSteps,
    get_run_name,
    read_run_id,
    sent_steps_file,
    write_run_id,
)
from train.trackers.protocol import MAX_CALL_S, Event

RUN_ID_FILE = "wandb.json"


class WeightsAndBiases:
    """Logs to one W&B run, over all restarts; see worker.Backend for the methods."""

    def __init__(self, begin: Event) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        continued_id = read_run_id(begin, RUN_ID_FILE)
        run_id = continued_id or uuid.uuid4().hex
        self._sent_path = sent_steps_file(begin, "wandb")
        self._sent = SentSteps.load(self._sent_path) if continued_id else SentSteps({})
        config = {**begin["config"], "build_id": begin["build_id"], "build_name": begin["build_name"]}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=os.environ.get("WANDB_NAME") or get_run_name(begin),
            id=run_id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or begin["out_dir"],
            mode=os.environ.get("WANDB_MODE") or "offline",
            # W&B would record the output and the code of this worker process, which are not those
            # of the run.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, init_timeout=MAX_CALL_S
            ),
        )
        write_run_id(begin, RUN_ID_FILE, run_id)
        self._run.config.update(config, allow_val_change=True)
        # W&B's step counter cannot decrease, but the step of a run does after a rollback. Log it as
        # a metric, and let W&B plot the others against it.
        self._run.define_metric("*", step_metric="step")

    def log_rows(self, rows: list[Event]) -> None:
        for row in rows:
            if values := self._sent.mark_row(row):
                self._run.log({"step": row["step"], **values})
        self._sent.save(self._sent_path)

    def log_completion(self, event: Event) -> None:
        if self._sent.mark("completion", event["step"]):
            text = f'<pre style="white-space: pre-wrap">{html.escape(event["text"])}</pre>'
            self._run.log({"step": event["step"], "completion": self._wandb.Html(text, inject=False)})
            self._sent.save(self._sent_path)

    def roll_back(self, step: int) -> None:
        """Do nothing. W&B cannot delete values: the first value of a repeated step stays."""

    def end(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)
