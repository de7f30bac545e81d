"""Log evaluations to MLflow, one MLflow run each.

MLFLOW_TRACKING_URI names the server and MLFLOW_EXPERIMENT_NAME the experiment (by default the name
of the run directory). Each MLflow run has a tag with the key of its evaluation. With it an
evaluation is logged only once, and logging that failed halfway is completed.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from preprocess.errors import FolioError
from train.evaluation.results import BUILD_LOSS, COUNT_FIELDS, METRICS, TEXT_FIELDS, EvaluationRow
from train.trackers.mlflow_backend import (
    MAX_PARAM_CHARACTERS,
    find_or_create_experiment,
    format_metric_name,
    open_client,
)
from train.trackers.redact import describe_error

KEY_TAG = "folio_evaluation"


def log_evaluation(out_dir: Path, row: EvaluationRow) -> bool:
    """Log a row of the run in `out_dir`. Return False if it has already been logged.

    Raises FolioError if MLflow fails.
    """
    try:
        return _log(out_dir.resolve().name, row)
    except Exception as e:  # MLflow and its stores raise many kinds of exceptions
        raise FolioError(
            f"MLflow did not accept step {row.step:,} ({describe_error(e)}); "
            "run the same command again to log what is missing"
        ) from e


def _log(name: str, row: EvaluationRow) -> bool:
    from mlflow.entities import Metric, Param

    client = open_client()
    experiment = find_or_create_experiment(client, name)
    existing = client.search_runs([experiment], f"tags.{KEY_TAG} = '{row.key}'", max_results=1)
    if existing and existing[0].info.status == "FINISHED":
        return False
    if existing:
        run = existing[0]
    else:
        run = client.create_run(experiment, run_name=f"{name} step {row.step}", tags={KEY_TAG: row.key})
    run_id, now_ms, values = run.info.run_id, round(time.time() * 1000), row.as_dict()
    metrics = {key: value for key, value in values.items() if key in METRICS or key.startswith(BUILD_LOSS)}
    client.log_batch(
        run_id,
        metrics=[
            Metric(format_metric_name(key), value, now_ms, row.step)
            for key, value in metrics.items()
            if value is not None
        ],
        params=[Param(key, str(values[key])[:MAX_PARAM_CHARACTERS]) for key in (*TEXT_FIELDS, *COUNT_FIELDS)],
    )
    if row.completions:
        completions = [dataclasses.asdict(completion) for completion in row.completions]
        client.log_dict(run_id, {"completions": completions}, "completions.json")
    client.set_terminated(run_id)
    return True
