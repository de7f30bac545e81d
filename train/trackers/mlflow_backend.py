"""MLflow: runs are stored on the server MLFLOW_TRACKING_URI or, by default, in the working folder."""

from __future__ import annotations

import os
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING

from filelock import FileLock

from preprocess.shards.files import readable_json
from train.trackers.progress_file import DEFAULT_PROJECT, SentSteps, get_run_name, read_run_id, write_run_id
from train.trackers.protocol import MAX_CALL_S, Event

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RUN_ID_FILE = "mlflow.json"
DATABASE_LOCK = ".mlflow.lock"  # in the working folder, beside MLflow's default database
MAX_METRICS_PER_REQUEST = 1_000  # MLflow's limit
MAX_PARAM_CHARACTERS = 500  # the limit of every server since 2.0
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}  # of the event "end" → of MLflow


def open_client() -> MlflowClient:
    """Return an MLflow client with short timeouts. Raises whatever MLflow raises."""
    # MLflow's defaults, 120 s and 7 retries, exceed MAX_CALL_S: the worker would be killed before
    # it could report the reason.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    is_sqlite = (os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:")
    # If two processes create the tables of one SQLite file at the same time, one of them fails.
    with FileLock(DATABASE_LOCK, timeout=MAX_CALL_S) if is_sqlite else nullcontext():
        return MlflowClient()


def find_or_create_experiment(client: MlflowClient, default_name: str) -> str:
    """Return the id of the experiment MLFLOW_EXPERIMENT_NAME or, by default, `default_name`."""
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or default_name
    if (experiment := client.get_experiment_by_name(name)) is not None:
        return str(experiment.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another run may have created it a moment ago
        if (experiment := client.get_experiment_by_name(name)) is None:
            raise
        return str(experiment.experiment_id)


def format_metric_name(key: str) -> str:
    """Return `key` with an underscore for each character that MLflow rejects in a metric's name.

    It takes the letters of all languages, so two builds with Russian names remain two metrics.
    """
    return re.sub(r"[^\w\-./ :]", "_", key)


class MLflow:
    """Logs to one MLflow run, over all restarts; see worker.Backend for the methods."""

    def __init__(self, begin: Event) -> None:
        self._client = open_client()
        continued_id = read_run_id(begin, RUN_ID_FILE)
        self._run_id = continued_id if continued_id and self._is_active(continued_id) else self._create_run(begin)
        write_run_id(begin, RUN_ID_FILE, self._run_id)
        # Ask the server for the last step of each metric. A file would be less reliable: the last
        # request of a worker that was killed may or may not have arrived.
        newest = self._client.get_run(self._run_id).to_proto().data.metrics
        self._sent = SentSteps({metric.key: metric.step for metric in newest})
        self._client.update_run(self._run_id, status="RUNNING")
        self._log_settings(begin)

    def _is_active(self, run_id: str) -> bool:
        """Return whether the server has the run and it is not deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _create_run(self, begin: Event) -> str:
        tags = {
            "build_id": begin["build_id"],
            "build_name": begin["build_name"],
            "mlflow.source.name": "train/train.py",
        }
        experiment = find_or_create_experiment(self._client, DEFAULT_PROJECT)
        return str(self._client.create_run(experiment, run_name=get_run_name(begin), tags=tags).info.run_id)

    def _log_settings(self, begin: Event) -> None:
        """Log the settings: as parameters, which MLflow cannot change, and as a file."""
        from mlflow.entities import Param

        logged = self._client.get_run(self._run_id).data.params
        params = {key: str(value)[:MAX_PARAM_CHARACTERS] for key, value in begin["config"].items()}
        self._client.log_batch(
            self._run_id, params=[Param(key, value) for key, value in params.items() if key not in logged]
        )
        self._client.log_text(self._run_id, readable_json(begin["config"]).decode(), "settings.json")

    def log_rows(self, rows: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(format_metric_name(key), value, round(row["time_s"] * 1000), row["step"])
            for row in rows
            for key, value in row["values"].items()
            if self._sent.mark(format_metric_name(key), row["step"])
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + MAX_METRICS_PER_REQUEST])

    def log_completion(self, event: Event) -> None:
        self._client.log_text(self._run_id, event["text"], f"completions/step-{event['step']:08d}.txt")

    def roll_back(self, step: int) -> None:
        """Do nothing. MLflow cannot delete values: the first value of a repeated step stays."""

    def end(self, status: str) -> None:
        self._client.set_terminated(self._run_id, STATUSES[status])
