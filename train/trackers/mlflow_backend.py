"""MLflow: a run on the server that MLFLOW_TRACKING_URI names, or where MLflow keeps runs by default."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING

from filelock import FileLock

from preprocess.shards.files import readable_json
from train.trackers.client import MOST_CALL_S, Event
from train.trackers.progress_file import DEFAULT_PROJECT, Told, keep_run_id, read_run_id, run_name

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

METRICS_A_REQUEST = 1_000  # that MLflow takes
LOCK_FILE = ".mlflow.lock"  # in the working folder, where MLflow's own file is
PARAM_CHARACTERS = 500  # that every server since 2.0 takes
ENDS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}  # of a run, and what MLflow calls it


def open_client() -> MlflowClient:
    """Raises whatever MLflow does."""
    # Its own defaults, 120 s and 7 times, would outlast all patience, and the reason would not be told.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    is_file = (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:")
    # Of two processes that make the tables of one file at once, one fails.
    with FileLock(LOCK_FILE, timeout=MOST_CALL_S) if is_file else nullcontext():
        return MlflowClient()


def experiment_id(client: MlflowClient, default: str) -> str:
    """Of the experiment that MLFLOW_EXPERIMENT_NAME names, else of `default`; made where it is not there."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or default
    if (experiment := client.get_experiment_by_name(name)) is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another run that begins may have made it just now
        if (experiment := client.get_experiment_by_name(name)) is None:
            raise
        return str(experiment.experiment_id)


def metric_name(key: str) -> str:
    """A metric's name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-./ :]", "_", key, flags=re.ASCII)


class MLflow:
    def __init__(self, begin: Event) -> None:
        self._client = open_client()
        before = read_run_id(begin, "mlflow.json")
        self._run_id: str = before if before and self._has(before) else self._create(begin)
        keep_run_id(begin, "mlflow.json", self._run_id)
        # Each name's newest value; a row that was on its way when an earlier process was killed may be there or not.
        self._told = Told(
            {metric.key: metric.step for metric in self._client.get_run(self._run_id).to_proto().data.metrics}
        )
        self._client.update_run(self._run_id, status="RUNNING")
        self._describe(begin)

    def _has(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _create(self, begin: Event) -> str:
        tags = {
            "build_id": begin["build_id"],
            "build_name": begin["build_name"],
            "mlflow.source.name": "train/train.py",
        }
        experiment = experiment_id(self._client, DEFAULT_PROJECT)
        return str(self._client.create_run(experiment, run_name=run_name(begin), tags=tags).info.run_id)

    def _describe(self, begin: Event) -> None:
        """The settings: as parameters, of which MLflow lets none change, and as a file, which tells the newest."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        params = {key: str(value)[:PARAM_CHARACTERS] for key, value in begin["config"].items()}
        self._client.log_batch(
            self._run_id, params=[Param(key, value) for key, value in params.items() if key not in known]
        )
        self._client.log_text(self._run_id, readable_json(begin["config"]).decode(), "settings.json")

    def rows(self, rows: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_name(key), value, round(row["time_s"] * 1000), row["step"])
            for row in rows
            for key, value in row["values"].items()
            if self._told.is_new(metric_name(key), row["step"])
        ]
        for start in range(0, len(metrics), METRICS_A_REQUEST):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + METRICS_A_REQUEST])

    def sample(self, event: Event) -> None:
        self._client.log_text(self._run_id, event["text"], f"samples/step-{event['step']:08d}.txt")

    def rolled_back(self, step: int) -> None:
        """Nothing: what was told stays."""

    def end(self, status: str) -> None:
        self._client.set_terminated(self._run_id, ENDS[status])
