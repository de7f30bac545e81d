"""Evaluations in MLflow: a run each, found again by the evaluation's key.

Where MLflow is, its own variables say: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (else the name of the run's folder).
"""

from __future__ import annotations

import time
from pathlib import Path

from preprocess.errors import FolioError
from train.evaluation.results import KINDS, NUMBERS, Row
from train.trackers.mlflow_backend import PARAM_CHARACTERS, experiment_id, metric_name, open_client
from train.trackers.redact import describe

TAG = "folio_evaluation"  # holds the key


def log_evaluation(out_dir: Path, row: Row) -> bool:
    """Take a row to MLflow; returns whether it was not there yet, or not whole. Raises FolioError."""
    try:
        return _log(out_dir.resolve().name, row)
    except Exception as e:  # whatever MLflow and its stores raise
        raise FolioError(
            f"MLflow did not take step {row['step']:,} ({describe(e)}); run the same command again, it logs what is missing"
        ) from e


def _log(name: str, row: Row) -> bool:
    from mlflow.entities import Metric, Param

    client = open_client()
    experiment = experiment_id(client, name)
    found = client.search_runs([experiment], f"tags.{TAG} = '{row['key']}'", max_results=1)
    if found and found[0].info.status == "FINISHED":
        return False
    run = (
        found[0]
        if found
        else client.create_run(experiment, run_name=f"{name} step {row['step']}", tags={TAG: row["key"]})
    )
    run_id, now_ms = run.info.run_id, round(time.time() * 1000)
    numbers = {key: row[key] for key in row if key in NUMBERS or key.startswith("val_loss/")}
    client.log_batch(
        run_id,
        metrics=[
            Metric(metric_name(key), value, now_ms, row["step"]) for key, value in numbers.items() if value is not None
        ],
        params=[Param(key, str(row[key])[:PARAM_CHARACTERS]) for key in KINDS],
    )
    if row.get("answers"):
        client.log_dict(run_id, {"answers": row["answers"]}, "answers.json")
    client.set_terminated(run_id)
    return True
