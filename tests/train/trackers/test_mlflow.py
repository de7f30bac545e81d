"""MLflow: what a real server has of runs and evaluations."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.runs import invoke, read_metric_rows, write_config
from tests.train.trackers.helpers import (
    LONG_RUN,
    RUN_INFO,
    Values,
    assert_same_values,
    assert_untouched,
    needs,
    stop_at,
)
from train.trackers import client as tracker_client
from train.trackers.mlflow_backend import find_or_create_experiment, format_metric_name

pytestmark = [pytest.mark.slow, needs("mlflow", "sqlalchemy", "uvicorn", "fastapi")]


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an MLflow server."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{folder / 'runs.db'}", "--artifacts-destination", str(folder / "files")]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(line, stdout=log, stderr=log, cwd=folder, start_new_session=True) as process,
    ):
        try:
            wait_for_server(port, process, log_path=folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_server(port: int, process: subprocess.Popen[bytes], *, log_path: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log_path.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(log_path.read_text())


def read_runs(uri: str, experiment: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def read_values(uri: str, run: Any) -> Values:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


def test_mlflow_continues_one_run_and_has_each_step_once(
    folder: Path, untracked: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = write_config(folder / "flow.py", folder / "tiny", track=["mlflow"], **LONG_RUN)
    variables = {"MLFLOW_TRACKING_URI": mlflow_server, "MLFLOW_EXPERIMENT_NAME": "own"}
    assert stop_at(config, "step 17/", signal.SIGINT, **variables) == 130
    (run,) = read_runs(mlflow_server, "own")
    assert (run.info.run_name, run.info.status) == ("flow", "KILLED")
    assert json.loads((folder / "flow" / "trackers" / "mlflow.json").read_text()) == {"run_id": run.info.run_id}
    last_step = read_metric_rows(folder / "flow")[-1]["step"]
    assert stop_at(config, f"step {last_step + 3}/", signal.SIGKILL, **variables) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while read_runs(mlflow_server, "own")[0].info.status != "KILLED":  # set by the worker
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert stop_at(config, f"step {last_step + 20}/", signal.SIGTERM, **variables) == 128 + signal.SIGTERM
    (run,) = read_runs(mlflow_server, "own")
    steps = {key: [step for step, _ in values] for key, values in read_values(mlflow_server, run).items()}
    last_step = read_metric_rows(folder / "flow")[-1]["step"]
    assert steps["train_loss"] == [*range(1, last_step + 1)]


def test_mlflow_has_metrics_completions_and_settings_of_a_run(
    folder: Path, untracked: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    config = write_config(folder / "whole.py", folder / "tiny", track=["mlflow"], completion_interval=9)
    result = invoke("train.py", config)
    assert_untouched(result, folder / "whole", untracked)
    (run,) = read_runs(mlflow_server, "folio")
    assert_same_values(read_values(mlflow_server, run), folder / "whole")
    assert (run.info.run_name, run.info.status) == ("whole", "FINISHED")
    assert (run.data.params["max_steps"], run.data.params["track"]) == ("24", "['mlflow']")
    manifest = json.loads((folder / "tiny" / "manifest.json").read_text())
    assert (run.data.tags["build_id"], run.data.tags["build_name"]) == (manifest["build_id"], "tiny")
    client = MlflowClient(mlflow_server)
    completions = sorted(file.path for file in client.list_artifacts(run.info.run_id, "completions"))
    assert completions == [f"completions/step-{step:08d}.txt" for step in (9, 18, 24)]
    text = Path(client.download_artifacts(run.info.run_id, completions[-1])).read_text()
    assert " ".join(text.split()) in " ".join(result.stdout.split())
    settings = json.loads(Path(client.download_artifacts(run.info.run_id, "settings.json")).read_text())
    assert settings == json.loads((folder / "whole" / "settings.json").read_text())


def test_mlflow_keeps_metrics_of_builds_with_russian_names_apart(mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_server)
    run = client.create_run(find_or_create_experiment(client, "names"))
    losses = {"val_loss/старый": 1.0, "val_loss/новый?": 2.0}
    for key, loss in losses.items():
        client.log_metric(run.info.run_id, format_metric_name(key), loss)
    assert client.get_run(run.info.run_id).data.metrics == {"val_loss/старый": 1.0, "val_loss/новый_": 2.0}


def test_mlflow_marks_failed_runs_and_has_rollbacks(
    folder: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, poison: Callable[[Path, range], None]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "returns")
    settings = {"track": ["mlflow"], "dropout": 0.0, "max_steps": 30, "checkpoint_interval": 5}
    config = write_config(folder / "failing.py", folder / "tiny", **settings)
    poison(config, range(11, 200))
    assert invoke("train.py", config).returncode == 1
    (run,) = read_runs(mlflow_server, "returns")
    assert run.info.status == "FAILED"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "returns")
    assert invoke("train.py", config).returncode == 0
    (run,) = read_runs(mlflow_server, "returns")
    assert run.info.status == "FINISHED"
    values = read_values(mlflow_server, run)
    assert [step for step, _ in values["train_loss"]] == list(range(1, 31))
    assert values["went_back_from_step"][0] == (10, 16.0)


def test_mlflow_without_a_server_stores_runs_in_the_working_folder(
    folder: Path, untracked: Path, tmp_path: Path
) -> None:
    config = write_config(folder / "local.py", folder / "tiny", track=["mlflow"])
    assert_untouched(invoke("train.py", config), folder / "local", untracked)
    (run,) = read_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "folio")
    assert (
        run.info.status == "FINISHED"
        and run.data.metrics["val_loss"] == read_metric_rows(folder / "local")[-1]["val_loss"]
    )


def test_find_or_create_experiment_accepts_one_created_meanwhile(mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    class Slower(MlflowClient):  # type: ignore[misc]
        """Another run creates the experiment just before this client does."""

        def create_experiment(self, name: str) -> str:
            MlflowClient(mlflow_server).create_experiment(name)
            return str(super().create_experiment(name))

    first = find_or_create_experiment(Slower(mlflow_server), "at once")
    assert first == find_or_create_experiment(MlflowClient(mlflow_server), "at once")


def test_mlflow_runs_that_start_together_create_one_database(tmp_path: Path) -> None:
    warnings: list[str] = []
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    runs = [
        tracker_client.Trackers(["mlflow"], folder, run_info=RUN_INFO, step=-1, open_history=None, warn=warnings.append)
        for folder in folders
    ]
    for run in runs:
        run.close("finished")
    assert warnings == [] and len(read_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "folio")) == 3


def test_evaluate_logs_each_checkpoint_to_mlflow_once(
    untracked: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    run, client = Path(shutil.copytree(untracked, tmp_path / "judged")), MlflowClient(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    line = ("evaluate.py", run, "--all", "--mlflow", "--prompts", 1, "--device", "cpu")
    assert "step 12 is logged to MLflow" in invoke(*line).stdout
    # As if logging had been interrupted.
    client.update_run(read_runs(mlflow_server, "judged")[0].info.run_id, status="RUNNING")
    results = [invoke(*line) for _ in range(2)]
    assert [(result.returncode, result.stderr, result.stdout.count("is logged")) for result in results] == [
        (0, "", 1),
        (0, "", 0),
    ]
    found = {run.data.tags["folio_evaluation"]: run for run in read_runs(mlflow_server, "judged")}
    expected = {row["key"]: row for row in map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())}
    assert found.keys() == expected.keys() and len(found) == 3
    for key, row in expected.items():
        assert (found[key].info.run_name, found[key].info.status) == (f"judged step {row['step']}", "FINISHED")
        assert found[key].data.metrics == {
            name: row[name] for name in ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte")
        }
        params = found[key].data.params
        assert params["build_id"] == row["build_id"] and params["step"] == str(row["step"])
        completions = Path(client.download_artifacts(found[key].info.run_id, "completions.json")).read_text()
        assert json.loads(completions) == {"completions": row["completions"]}


@pytest.mark.parametrize("uri", ["http://me:se:cret@127.0.0.1:9/x", "nosuch://place", "sqlite:////proc/nosuch/runs.db"])
def test_evaluate_reports_mlflow_errors_on_one_line(
    uri: str, untracked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = shutil.copytree(untracked, tmp_path / "judged")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began_at = time.monotonic()
    result = invoke("evaluate.py", run, "--mlflow", "--device", "cpu")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "MLflow did not accept step 24 (" in result.stderr
    assert "cret" not in result.stderr and time.monotonic() - began_at < 60
    assert len((run / "evaluations.jsonl").read_text().splitlines()) == 1


def test_mlflow_without_a_listening_server_is_switched_off(
    folder: Path, untracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:se:cret@127.0.0.1:9/x")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = write_config(folder / "nobody.py", folder / "tiny", track=["mlflow"])
    result = invoke("train.py", config)
    assert_untouched(result, folder / "nobody", untracked, "mlflow is switched off")
    assert "127.0.0.1" in result.stderr and "cret" not in result.stderr
    assert not any(b"cret" in path.read_bytes() for path in (folder / "nobody").rglob("*") if path.is_file())


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_mlflow_with_a_silent_server_is_switched_off(
    folder: Path, untracked: Path, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent_server}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1000")
    monkeypatch.setattr(tracker_client, "MAX_CLOSE_S", 3.0)
    config = write_config(folder / "silent.py", folder / "tiny", track=["mlflow"])
    began_at = time.monotonic()
    warning = "mlflow is switched off for the rest of this run: it did not finish within 3 s"
    assert_untouched(invoke("train.py", config), folder / "silent", untracked, warning)
    assert time.monotonic() - began_at < 30
