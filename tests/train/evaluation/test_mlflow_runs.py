"""Evaluations in MLflow, with a stand-in for its client."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import invoke
from tests.train.evaluation.helpers import CPU, check_error, read_rows
from train.evaluation import mlflow_runs
from train.trackers import check


class Server:
    """A stand-in for MLflow's client and its server. Requests named in `refused` fail."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()

    def get_experiment_by_name(self, name: str) -> Any:
        return types.SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        tag, value = filter_string.removeprefix("tags.").split(" = ")
        found = [
            i
            for i, run in self.runs.items()
            if run["experiment"] in experiment_ids and run["tags"].get(tag) == value.strip("'")
        ]
        return [self._info(i) for i in found[:max_results]]

    def _info(self, i: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=i, status=self.runs[i]["status"]))

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        i = f"run{len(self.runs)}"
        self.runs[i] = {
            "experiment": experiment_id,
            "name": run_name,
            "tags": tags,
            "status": "RUNNING",
            "metrics": {},
            "params": {},
        }
        return self._info(i)

    def log_batch(self, run_id: str, metrics: list[Any], params: list[Any]) -> None:
        if "log_batch" in self.refused:
            raise ConnectionError("no connection to http://me:secret@host\nto it")
        self.runs[run_id]["metrics"] |= {m.key: (m.value, m.step) for m in metrics}
        for param in params:
            assert self.runs[run_id]["params"].setdefault(param.key, param.value) == param.value

    def log_dict(self, run_id: str, content: dict[str, Any], file: str) -> None:
        self.runs[run_id][file] = content

    def set_terminated(self, run_id: str) -> None:
        self.runs[run_id]["status"] = "FINISHED"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = lambda *values: types.SimpleNamespace(
        **dict(zip(("key", "value", "timestamp", "step"), values, strict=True))
    )  # type: ignore[attr-defined]
    entities.Param = lambda key, value: types.SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    exceptions = types.ModuleType("mlflow.exceptions")
    exceptions.MlflowException = OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", exceptions)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(check, "_is_installed", lambda _: True)
    monkeypatch.setattr(mlflow_runs, "open_client", lambda: server)
    return server


def test_each_checkpoint_is_logged_once(run: Path, server: Server) -> None:
    assert invoke("evaluate.py", run, *CPU).returncode == 0
    for _ in range(2):
        assert invoke("evaluate.py", run, "--all", "--mlflow", *CPU).returncode == 0
        assert list(server.experiments) == ["run"]
        assert [each["name"] for each in server.runs.values()] == ["run step 12", "run step 18", "run step 24"]
    by_key = {row["key"]: row for row in read_rows(run)}
    for each in server.runs.values():
        row = by_key[each["tags"]["folio_evaluation"]]
        assert each["status"] == "FINISHED" and each["metrics"]["val_loss"] == (row["val_loss"], row["step"])
        assert set(each["metrics"]) == {"val_loss", "val_loss_stderr", "perplexity", "bits_per_byte"}
        assert each["params"]["build_id"] == row["build_id"] and each["params"]["data"] == "tiny"
    assert invoke("evaluate.py", run, "--mlflow", "--prompts", 1, *CPU).returncode == 0
    assert (
        len(server.runs) == 4
        and server.runs["run3"]["completions.json"]["completions"] == read_rows(run)[-1]["completions"]
    )


def test_failed_logging_is_completed_by_the_next_call(run: Path, server: Server) -> None:
    server.refused.add("log_batch")
    result = invoke("evaluate.py", run, "--mlflow", *CPU)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "MLflow did not accept step 24 (no connection to http://host); run the same command again" in result.stderr
    assert len(read_rows(run)) == 1 and server.runs["run0"]["status"] == "RUNNING"
    server.refused.clear()
    assert "step 24 is logged to MLflow" in invoke("evaluate.py", run, "--mlflow", *CPU).stdout
    assert (
        len(server.runs) == 1
        and server.runs["run0"]["status"] == "FINISHED"
        and len(server.runs["run0"]["metrics"]) == 4
    )


def test_mlflow_variable_names_the_experiment(run: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert invoke("evaluate.py", run, "--mlflow", *CPU).returncode == 0
    assert list(server.experiments) == ["mine"]


def test_missing_mlflow_is_reported_before_evaluating(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_is_installed", lambda _: False)
    message = "--mlflow needs mlflow, which is not installed; pip install 'folio-lm[mlflow]', or leave it out"
    check_error(invoke("evaluate.py", run, "--mlflow", *CPU), 2, message)
    monkeypatch.setattr(check, "_is_installed", lambda name: name == "mlflow")
    check_error(invoke("evaluate.py", run, "--mlflow", *CPU), 2, "MLFLOW_TRACKING_URI is not set")
    assert not (run / "evaluations.jsonl").exists()
