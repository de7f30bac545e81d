"""Trackers: what TensorBoard, MLflow and W&B read back, over restarts and returns; and that none that fails touches a run."""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preprocess.errors import MisuseError
from tests.helpers.runs import REPO, command, environment, invoke, losses, make_build, rows, small_disk, write_config
from train.config import load_config
from train.data.batches import TrainingData
from train.data.builds import open_builds
from train.model import ARCHITECTURES
from train.model.gpt2 import GPT2
from train.run.checkpoint import list_checkpoints
from train.run.metrics import Report, Work
from train.trackers import client as trackers
from train.trackers.client import check_trackers
from train.trackers.mlflow_backend import experiment_id
from train.trackers.progress_file import Told, read_run_id
from train.trackers.redact import describe, without_secrets


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}; run by `make test-trackers`")


MLFLOW_SERVER = needs("mlflow", "sqlalchemy", "uvicorn", "fastapi")
WANDB = needs("wandb")
LONG = {"max_steps": 100_000, "checkpoint_interval": 10, "eval_interval": 10}


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this user's environment says of trackers is none of the tests'."""
    for key in [key for key in os.environ if key.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    # A machine that is busy with something else starts MLflow in half a minute.
    monkeypatch.setattr(trackers, "MOST_CALL_S", 120.0)
    monkeypatch.setattr(trackers, "MOST_END_S", 120.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers")
    make_build(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def untracked(folder: Path) -> Path:
    result = invoke("train.py", write_config(folder / "untracked.py", folder / "tiny"))
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "untracked"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, range], None]:
    """Makes the loss of the samples of some steps no number, so that the run goes back."""

    def spoil(config: Path, steps: range) -> None:
        settings = load_config(config, {})
        data = TrainingData(open_builds(settings.data), settings, device=torch.device("cpu"))
        size, micro = settings.windows_per_step, settings.batch_size
        bad = {
            data.batch(sample, micro)[0].numpy().tobytes()
            for step in steps
            for sample in range(step * size, (step + 1) * size, micro)
        }

        class Poisoned(GPT2):
            def forward(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> tuple[Tensor, Tensor]:
                loss, losses = super().forward(ids, targets, documents)
                return loss * (torch.nan if self.training and ids.numpy().tobytes() in bad else 1), losses

        monkeypatch.setitem(ARCHITECTURES, "gpt2", Poisoned)

    return spoil


def expected(out_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The values of metrics.jsonl by name, in the order of steps; those that are null are left out."""
    values: dict[str, list[tuple[int, float]]] = {}
    for row in rows(out_dir):
        for key, value in row.items():
            if key != "step" and value is not None:
                values.setdefault(key, []).append((row["step"], value))
    return values


def stop_at(config: Path, beginning: str, signum: signal.Signals, **variables: str) -> int:
    """Start a run in a process of its own and send it a signal at the line that begins so. Returns its status."""
    process = subprocess.Popen(
        command("train.py", config), stdout=subprocess.PIPE, text=True, env=environment() | variables
    )
    assert process.stdout
    while not process.stdout.readline().startswith(beginning):
        assert process.poll() is None
    process.send_signal(signum)
    process.communicate(timeout=150)
    return process.returncode


def assert_untouched(
    result: subprocess.CompletedProcess[str], out_dir: Path, untracked: Path, *complaints: str
) -> None:
    """The run's losses are those of one without trackers, and each complaint is one line."""
    assert result.returncode == 0, result.stderr
    assert losses(out_dir) == losses(untracked)
    lines = result.stderr.splitlines()
    assert len(lines) == len(complaints), result.stderr
    for complaint in complaints:
        assert any(line.startswith("warning: ") and complaint in line for line in lines), result.stderr


# TensorBoard


def read_events(out_dir: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, str]]]]:
    """Scalars and texts by tag, as TensorBoard's own reader shows them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(out_dir / "tensorboard"), tensor_size_guidance={"scalars": 0, "text": 0})
    reader.Reload()
    scalars: dict[str, list[tuple[int, float]]] = {}
    texts: dict[str, list[tuple[int, str]]] = {}
    for tag in reader.Tags()["tensors"]:
        for event in reader.Tensors(tag):
            value = make_ndarray(event.tensor_proto)
            if value.dtype == object:
                texts.setdefault(tag, []).append((event.step, value.item().decode()))
            else:
                scalars.setdefault(tag, []).append((event.step, float(value)))
    return {tag: sorted(values) for tag, values in scalars.items()}, texts


def assert_same(told: dict[str, list[tuple[int, float]]], out_dir: Path) -> None:
    wanted = expected(out_dir)
    assert {key: [step for step, _ in values] for key, values in told.items()} == {
        key: [step for step, _ in values] for key, values in wanted.items()
    }
    for key, values in wanted.items():
        assert [value for _, value in told[key]] == pytest.approx([value for _, value in values], rel=1e-6), key


@needs("tensorboard")
def test_tensorboard_reads_back_what_metrics_jsonl_holds(folder: Path, untracked: Path) -> None:
    config = write_config(folder / "board.py", folder / "tiny", track=["tensorboard"], completion_interval=9)
    result = invoke("train.py", config)
    assert_untouched(result, folder / "board", untracked)
    assert "\ntrack                        tensorboard\n" in result.stdout
    assert json.loads((folder / "board" / "settings.json").read_text())["track"] == ["tensorboard"]
    scalars, texts = read_events(folder / "board")
    assert_same(scalars, folder / "board")
    assert {
        "train_loss",
        "val_loss",
        "perplexity",
        "bits_per_byte",
        "learning_rate",
        "grad_norm",
        "skipped_updates",
        "tokens_per_s",
    } <= {*scalars}
    assert [step for step, _ in texts["sample"]] == [9, 18, 24]
    assert all(" ".join(text.split()) in " ".join(result.stdout.split()) for _, text in texts["sample"])
    assert "    max_steps = 24\n" in texts["config"][0][1]
    assert json.loads((folder / "tiny" / "manifest.json").read_text())["build_id"] in texts["build"][0][1]


@needs("tensorboard")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_tensorboard_has_each_step_once_after_a_restart(folder: Path, signum: signal.Signals) -> None:
    config = write_config(folder / f"again_{signum.name}.py", folder / "tiny", track=["tensorboard"], **LONG)
    stop_at(config, "step 27/", signum)
    out_dir = config.with_suffix("")
    told_to = rows(out_dir)[-1]["step"]
    stop_at(config, f"step {told_to + 5}/", signal.SIGTERM)
    scalars, _ = read_events(out_dir)
    assert_same(scalars, out_dir)
    assert len([*(out_dir / "tensorboard").iterdir()]) == 2


@needs("tensorboard")
def test_tensorboard_after_a_return_and_a_restart_from_nothing(
    folder: Path, poison: Callable[[Path, range], None]
) -> None:
    config = write_config(
        folder / "back.py", folder / "tiny", track=["tensorboard"], dropout=0.0, max_steps=30, checkpoint_interval=5
    )
    poison(config, range(11, 16))
    result = invoke("train.py", config)
    assert result.returncode == 0 and "back from step 16 to the checkpoint of step 10" in result.stdout, result.stderr
    scalars, _ = read_events(folder / "back")
    assert_same(scalars, folder / "back")
    assert [step for step, _ in scalars["train_loss"]] == list(range(1, 31))
    assert invoke("train.py", config, "--restart", "--max_steps=6").returncode == 0
    assert_same(read_events(folder / "back")[0], folder / "back")


@needs("tensorboard")
def test_what_a_tracker_was_not_told_it_is_told_by_the_next_start(folder: Path) -> None:
    config = write_config(folder / "later.py", folder / "tiny", **LONG)
    stop_at(config, "step 17/", signal.SIGINT)
    last = rows(folder / "later")[-1]["step"]
    config = write_config(folder / "later.py", folder / "tiny", track=["tensorboard"], **LONG)
    stop_at(config, f"step {last + 5}/", signal.SIGKILL)
    stop_at(config, f"step {last + 15}/", signal.SIGINT)
    assert_same(read_events(folder / "later")[0], folder / "later")


@needs("tensorboard")
def test_what_a_tracker_was_not_told_of_a_finished_run_it_is_told_by_the_same_command(folder: Path) -> None:
    config, out_dir = write_config(folder / "rest.py", folder / "tiny", track=["tensorboard"]), folder / "rest"
    out_dir.mkdir()
    (out_dir / "tensorboard").write_text("in the way")
    for _ in range(2):  # the second finds the run finished, and the cause still there
        result = invoke("train.py", config)
        assert (result.returncode, result.stderr.count("\n")) == (0, 1) and "is told" not in result.stdout
        assert "once that is put right, the same command tells it what it misses" in result.stderr
    told = (out_dir / "metrics.jsonl").read_bytes()
    (out_dir / "tensorboard").unlink()
    end = result.stdout
    assert end.startswith(f"{out_dir} is finished")
    assert invoke("train.py", config).stdout == "tensorboard is told what it was not told before\n" + end
    files = [*(out_dir / "tensorboard").iterdir()]
    assert invoke("train.py", config).stdout == end and [*(out_dir / "tensorboard").iterdir()] == files
    assert_same(read_events(out_dir)[0], out_dir)
    assert (out_dir / "metrics.jsonl").read_bytes() == told


@needs("tensorboard")
def test_a_tracker_named_after_the_end_is_told_all(folder: Path, untracked: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "after.py", folder / "tiny")
    shutil.copytree(untracked, tmp_path / "after")
    assert "tensorboard is told" in invoke("train.py", config, "--track=tensorboard").stdout
    assert "told" not in invoke("train.py", config, "--track=tensorboard").stdout
    assert_same(read_events(tmp_path / "after")[0], tmp_path / "after")


@pytest.mark.parametrize(
    "saved", [b"", b"[]", b"{}", b'{"step": "x"}', b'{"step": null}', b'{"step": 1e999}', b"[" * 100_000]
)
def test_what_does_not_say_how_far_a_tracker_was_told_says_nothing(tmp_path: Path, saved: bytes) -> None:
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "wandb.finished.json").write_bytes(saved)
    assert trackers._told_to(tmp_path, "wandb") is None and trackers._told_to(tmp_path, "mlflow") is None


@needs("tensorboard")
def test_a_run_that_was_begun_again_without_a_tracker_is_another_run_to_it(folder: Path) -> None:
    config, out_dir = folder / "anew.py", folder / "anew"
    assert (
        invoke("train.py", write_config(config, folder / "tiny", track=["tensorboard"], max_steps=40)).returncode == 0
    )
    (out_dir / "trackers" / "mlflow.json").write_text('{"run_id": "of_the_run_before"}')
    assert invoke("train.py", write_config(config, folder / "tiny", seed=7), "--restart").returncode == 0
    assert not [*(out_dir / "trackers").glob("*.json")]
    shutil.rmtree(list_checkpoints(out_dir)[-1])
    assert invoke("train.py", write_config(config, folder / "tiny", seed=7, track=["tensorboard"])).returncode == 0
    assert_same(read_events(out_dir)[0], out_dir)


@needs("tensorboard")
def test_the_losses_of_each_build_are_told(folder: Path, tmp_path: Path) -> None:
    make_build(tmp_path / "other", train_repeats=30, val_repeats=6)
    config = write_config(
        tmp_path / "mixed.py", folder / "tiny", data=f"{folder / 'tiny'}:1,{tmp_path / 'other'}:1", max_steps=6
    )
    assert invoke("train.py", config, "--track=tensorboard").returncode == 0
    scalars, texts = read_events(tmp_path / "mixed")
    assert_same(scalars, tmp_path / "mixed")
    assert {"val_loss/tiny", "val_loss/other"} <= {*scalars}
    assert "tiny 50.0%, other 50.0%" in texts["build"][0][1]


# MLflow


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a server of the tests' own."""
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
            _wait_for(port, process, log_path=folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(port: int, process: subprocess.Popen[bytes], *, log_path: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log_path.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError(log_path.read_text())


def mlflow_runs(uri: str, experiment: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def mlflow_metrics(uri: str, run: Any) -> dict[str, list[tuple[int, float]]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return {
        key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
        for key in run.data.metrics
    }


@MLFLOW_SERVER
def test_mlflow_reads_back_one_run_over_a_restart(
    folder: Path, untracked: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = write_config(folder / "flow.py", folder / "tiny", track=["mlflow"], **LONG)
    assert (
        stop_at(config, "step 17/", signal.SIGINT, MLFLOW_TRACKING_URI=mlflow_server, MLFLOW_EXPERIMENT_NAME="own")
        == 130
    )
    (run,) = mlflow_runs(mlflow_server, "own")
    assert (run.info.run_name, run.info.status) == ("flow", "KILLED")
    assert json.loads((folder / "flow" / "trackers" / "mlflow.json").read_text()) == {"run_id": run.info.run_id}
    told_to = rows(folder / "flow")[-1]["step"]
    variables = {"MLFLOW_TRACKING_URI": mlflow_server, "MLFLOW_EXPERIMENT_NAME": "own"}
    assert stop_at(config, f"step {told_to + 3}/", signal.SIGKILL, **variables) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while mlflow_runs(mlflow_server, "own")[0].info.status != "KILLED":  # as the process that outlives it says
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert stop_at(config, f"step {told_to + 20}/", signal.SIGTERM, **variables) == 128 + signal.SIGTERM
    (run,) = mlflow_runs(mlflow_server, "own")
    steps = {key: [step for step, _ in values] for key, values in mlflow_metrics(mlflow_server, run).items()}
    last = rows(folder / "flow")[-1]["step"]
    assert steps["train_loss"] == [*range(1, last + 1)]


@MLFLOW_SERVER
def test_mlflow_has_all_that_a_run_tells(
    folder: Path, untracked: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    config = write_config(folder / "told.py", folder / "tiny", track=["mlflow"], completion_interval=9)
    result = invoke("train.py", config)
    assert_untouched(result, folder / "told", untracked)
    (run,) = mlflow_runs(mlflow_server, "folio")
    assert_same(mlflow_metrics(mlflow_server, run), folder / "told")
    assert (run.info.run_name, run.info.status) == ("told", "FINISHED")
    assert (run.data.params["max_steps"], run.data.params["track"]) == ("24", "['mlflow']")
    manifest = json.loads((folder / "tiny" / "manifest.json").read_text())
    assert (run.data.tags["build_id"], run.data.tags["build_name"]) == (manifest["build_id"], "tiny")
    client = MlflowClient(mlflow_server)
    samples = sorted(file.path for file in client.list_artifacts(run.info.run_id, "samples"))
    assert samples == [f"samples/step-{step:08d}.txt" for step in (9, 18, 24)]
    text = Path(client.download_artifacts(run.info.run_id, samples[-1])).read_text()
    assert " ".join(text.split()) in " ".join(result.stdout.split())
    settings = json.loads(Path(client.download_artifacts(run.info.run_id, "settings.json")).read_text())
    assert settings == json.loads((folder / "told" / "settings.json").read_text())


@MLFLOW_SERVER
def test_mlflow_knows_a_run_that_failed_and_one_that_went_back(
    folder: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, poison: Callable[[Path, range], None]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "returns")
    settings = {"track": ["mlflow"], "dropout": 0.0, "max_steps": 30, "checkpoint_interval": 5}
    config = write_config(folder / "failing.py", folder / "tiny", **settings)
    poison(config, range(11, 200))
    assert invoke("train.py", config).returncode == 1
    (run,) = mlflow_runs(mlflow_server, "returns")
    assert run.info.status == "FAILED"
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "returns")
    assert invoke("train.py", config).returncode == 0
    (run,) = mlflow_runs(mlflow_server, "returns")
    assert run.info.status == "FINISHED"
    metrics = mlflow_metrics(mlflow_server, run)
    assert [step for step, _ in metrics["train_loss"]] == list(range(1, 31))
    assert metrics["went_back_from_step"][0] == (10, 16.0)


@MLFLOW_SERVER
def test_mlflow_without_a_server_keeps_runs_in_the_working_folder(
    folder: Path, untracked: Path, tmp_path: Path
) -> None:
    config = write_config(folder / "local.py", folder / "tiny", track=["mlflow"])
    assert_untouched(invoke("train.py", config), folder / "local", untracked)
    (run,) = mlflow_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "folio")
    assert run.info.status == "FINISHED" and run.data.metrics["val_loss"] == rows(folder / "local")[-1]["val_loss"]


@MLFLOW_SERVER
def test_mlflow_of_two_runs_that_begin_at_once_has_one_experiment(mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    class Slower(MlflowClient):  # type: ignore[misc]
        """Asks whether there is the experiment just before the other run makes it."""

        def create_experiment(self, name: str) -> str:
            MlflowClient(mlflow_server).create_experiment(name)
            return str(super().create_experiment(name))

    first = experiment_id(Slower(mlflow_server), "at once")
    assert first == experiment_id(MlflowClient(mlflow_server), "at once")


@needs("mlflow", "sqlalchemy")
def test_mlflow_of_runs_that_begin_at_once_makes_its_file_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    about = {"config": {}, "build_id": "", "build_name": ""}
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    runs = [
        trackers.Trackers(["mlflow"], folder, about=about, step=-1, history=None, warn=warnings.append)
        for folder in folders
    ]
    for run in runs:
        run.close("finished")
    assert warnings == [] and len(mlflow_runs(f"sqlite:///{tmp_path / 'mlflow.db'}", "folio")) == 3


@MLFLOW_SERVER
def test_mlflow_has_one_run_a_checkpoint_however_often_it_is_evaluated(
    untracked: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    run, client = Path(shutil.copytree(untracked, tmp_path / "judged")), MlflowClient(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    line = ("evaluate.py", run, "--all", "--mlflow", "--questions", 1, "--device", "cpu")
    assert "step 12 is logged to MLflow" in invoke(*line).stdout
    client.update_run(
        mlflow_runs(mlflow_server, "judged")[0].info.run_id, status="RUNNING"
    )  # as if it had been cut short
    results = [invoke(*line) for _ in range(2)]
    assert [(result.returncode, result.stderr, result.stdout.count("is logged")) for result in results] == [
        (0, "", 1),
        (0, "", 0),
    ]
    found = {run.data.tags["folio_evaluation"]: run for run in mlflow_runs(mlflow_server, "judged")}
    told = {row["key"]: row for row in map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())}
    assert found.keys() == told.keys() and len(found) == 3
    for key, row in told.items():
        assert (found[key].info.run_name, found[key].info.status) == (f"judged step {row['step']}", "FINISHED")
        assert found[key].data.metrics == {
            name: row[name] for name in ("val_loss", "val_loss_stderr", "perplexity", "bits_per_byte")
        }
        assert found[key].data.params["build_id"] == row["build_id"] and found[key].data.params["step"] == str(
            row["step"]
        )
        answers = Path(client.download_artifacts(found[key].info.run_id, "answers.json")).read_text()
        assert json.loads(answers) == {"answers": row["answers"]}


@needs("mlflow", "sqlalchemy")
@pytest.mark.parametrize("uri", ["http://me:se:cret@127.0.0.1:9/x", "nosuch://place", "sqlite:////proc/nosuch/runs.db"])
def test_mlflow_that_cannot_be_had_is_one_line_of_an_evaluation(
    uri: str, untracked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = shutil.copytree(untracked, tmp_path / "judged")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    result = invoke("evaluate.py", run, "--mlflow", "--device", "cpu")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1) and "MLflow did not take step 24 (" in result.stderr
    assert "cret" not in result.stderr and time.monotonic() - began < 60
    assert len((run / "evaluations.jsonl").read_text().splitlines()) == 1


# Weights & Biases


def read_wandb(folder: Path) -> Iterator[Any]:
    """The records of an offline run's file, which are laid in blocks as LevelDB's log is."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def wandb_history(out_dir: Path) -> dict[str, list[tuple[int, Any]]]:
    """The values of all of a run's offline folders by name."""
    values: dict[str, list[tuple[int, Any]]] = {}
    for folder in sorted((out_dir / "wandb").glob("offline-run-*")):
        for record in read_wandb(folder):
            if record.HasField("history"):
                row = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for key, value in row.items():
                    if key != "step" and not key.startswith("_"):
                        values.setdefault(key, []).append((row["step"], value))
    return values


@WANDB
def test_wandb_keeps_all_that_a_run_tells(folder: Path, untracked: Path) -> None:
    config = write_config(folder / "biases.py", folder / "tiny", track=["wandb"], completion_interval=9)
    result = invoke("train.py", config)
    assert_untouched(result, folder / "biases", untracked)
    history = wandb_history(folder / "biases")
    samples = history.pop("sample.path")
    history = {key: values for key, values in history.items() if not key.startswith("sample.")}
    assert_same(
        {key: [(step, float(value)) for step, value in values] for key, values in history.items()}, folder / "biases"
    )
    (run_folder,) = (folder / "biases" / "wandb").glob("offline-run-*")
    assert [step for step, _ in samples] == [9, 18, 24]
    text = html.unescape((run_folder / "files" / samples[-1][1]).read_text()).partition(">")[2].removesuffix("</pre>")
    assert " ".join(text.split()) in " ".join(result.stdout.split())
    (begun,) = [record.run for record in read_wandb(run_folder) if record.HasField("run")][:1]
    assert (begun.display_name, begun.project) == ("biases", "folio")
    assert json.loads((folder / "biases" / "trackers" / "wandb.json").read_text()) == {"run_id": begun.run_id}
    updates = [r.config.update for r in read_wandb(run_folder) if r.HasField("config")] + [begun.config.update]
    settings = {item.key or item.nested_key[0]: json.loads(item.value_json) for items in updates for item in items}
    assert (settings["max_steps"], settings["build_name"], settings["track"]) == (24, "tiny", ["wandb"])
    assert [r.exit.exit_code for r in read_wandb(run_folder) if r.HasField("exit")] == [0]


@WANDB
def test_wandb_continues_one_run_and_has_each_step_once(folder: Path) -> None:
    config = write_config(folder / "once.py", folder / "tiny", track=["wandb"], **LONG)
    assert stop_at(config, "step 17/", signal.SIGINT) == 130
    before = (folder / "once" / "trackers" / "wandb.json").read_text()
    shutil.rmtree(sorted((folder / "once" / "checkpoints").iterdir())[-1])  # so that rows are cut off
    told_to = rows(folder / "once")[-1]["step"]
    assert stop_at(config, f"step {told_to + 5}/", signal.SIGTERM) == 128 + signal.SIGTERM
    assert (folder / "once" / "trackers" / "wandb.json").read_text() == before
    assert len([*(folder / "once" / "wandb").glob("offline-run-*")]) == 2
    last = rows(folder / "once")[-1]["step"]
    assert [step for step, _ in wandb_history(folder / "once")["train_loss"]] == list(range(1, last + 1))


# What fails


@needs("tensorboard")
def test_a_folder_that_cannot_be(folder: Path, untracked: Path) -> None:
    config = write_config(folder / "blocked.py", folder / "tiny", track=["tensorboard"])
    (folder / "blocked").mkdir()
    (folder / "blocked" / "tensorboard").write_text("in the way")
    place = folder / "blocked" / "tensorboard"
    complaint = f"tensorboard is switched off for the rest of this run: a file is in the way at {place}; once that is put right, the same command"
    assert_untouched(invoke("train.py", config), folder / "blocked", untracked, complaint)


@needs("tensorboard")
def test_a_library_of_the_same_name_is_in_no_trackers_way(
    folder: Path, untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trackers", "tracker_tensorboard", "redact"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a stranger')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPO)]))
    config = write_config(folder / "namesake.py", folder / "tiny", track=["tensorboard"])
    assert_untouched(invoke("train.py", config), folder / "namesake", untracked)
    assert_same(read_events(folder / "namesake")[0], folder / "namesake")


@needs("tensorboard")
def test_a_full_disk_switches_tensorboard_off(folder: Path, untracked: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        config = write_config(folder / "full.py", folder / "tiny", track=["tensorboard"])
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        (folder / "full").mkdir()
        (folder / "full" / "tensorboard").symlink_to(disk)
        complaint = f"this run: No space left on device ({folder / 'full' / 'tensorboard'}); once that is put right, the same command"
        assert_untouched(invoke("train.py", config), folder / "full", untracked, complaint)


@needs("mlflow", "sqlalchemy")
def test_mlflow_on_a_port_that_nobody_listens_on(
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
    """A port whose server takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@needs("mlflow", "sqlalchemy")
def test_mlflow_whose_server_never_answers(
    folder: Path, untracked: Path, silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent_server}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1000")
    monkeypatch.setattr(trackers, "MOST_END_S", 3.0)
    config = write_config(folder / "silent.py", folder / "tiny", track=["mlflow"])
    began = time.monotonic()
    result = invoke("train.py", config)
    assert_untouched(
        result,
        folder / "silent",
        untracked,
        "mlflow is switched off for the rest of this run: it did not end within 3 s",
    )
    assert time.monotonic() - began < 30


def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """A tracker of this code instead of TensorBoard's, as a process of its own that is told and asked alike."""
    path = tmp_path / "fake.py"
    path.write_text(code)
    monkeypatch.setattr(trackers, "PROCESS", path)


ANSWER = "import os, sys, time\nfor number, line in enumerate(sys.stdin):\n "
FAULTS = {
    "dies": (ANSWER + "os._exit(3)", "its process ended with status 3"),
    "dies at once": ("raise SystemExit(4)", "its process ended with status 4"),
    "is killed": (ANSWER + "os.kill(os.getpid(), 9)", "its process ended with status -9"),
    "talks nonsense": (ANSWER + "print('hello', flush=True)", "Expecting value"),
    "fails later": (
        ANSWER + """print('{"run_id": null}' if number < 1 else '{"error": "enough\\\\u001b"}', flush=True)""",
        r"this run: enough\x1b",
    ),
    "never answers": (ANSWER + "time.sleep(1000)", "no answer for 0.2 s"),
    "never reads": ("import time\ntime.sleep(1000)", "no answer for 0.2 s"),
    "lags": (ANSWER + "time.sleep(1000)", "20 rows behind the run"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_tracker_that(
    name: str, folder: Path, untracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, complaint = FAULTS[name]
    fake(monkeypatch, tmp_path, code)
    monkeypatch.setattr(trackers, "MOST_END_S", 10.0)
    if name == "lags":
        monkeypatch.setattr(trackers, "MOST_WAITING", 20)
    elif "never" in name:
        monkeypatch.setattr(trackers, "MOST_CALL_S", 0.2)
    config = write_config(tmp_path / "run.py", folder / "tiny", track=["tensorboard"])
    began = time.monotonic()
    assert_untouched(invoke("train.py", config), tmp_path / "run", untracked, complaint)
    assert time.monotonic() - began < 9, "given up while the run went on, not at its end"


@pytest.mark.parametrize(("most_quiet_s", "is_told"), [(0.1, True), (60.0, False)])
def test_a_run_that_waits_for_a_tracker_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_quiet_s: float, is_told: bool
) -> None:
    """One that never answers, then one that does at once."""
    fake(monkeypatch, tmp_path, ANSWER + ("time.sleep(1000)" if is_told else "print('{}', flush=True)"))
    monkeypatch.setattr(trackers, "MOST_QUIET_S", most_quiet_s)
    if is_told:
        monkeypatch.setattr(trackers, "MOST_END_S", 3.0)
    result = invoke("train.py", write_config(tmp_path / "run.py", folder / "tiny", track=["tensorboard"]))
    assert result.stdout.count("\nwaiting for tensorboard, 3 s at most\n") == is_told
    assert ("it did not end within 3 s of the run" in result.stderr) == is_told and (
        "waiting" in result.stdout
    ) == is_told


def test_what_is_not_installed_is_told_before_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("wandb", "sqlalchemy") else find(name)
    )
    config = write_config(folder / "lacking.py", folder / "tiny", track=["wandb"])
    result = invoke("train.py", config)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "which is not installed; pip install 'folio-lm[wandb]'" in result.stderr
    assert not (folder / "lacking").exists()


def test_a_folder_of_runs_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs_of_somebody").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MisuseError, match="not installed"):
        check_trackers(["runs_of_somebody"])


def test_other_processes_than_the_main_one_tell_nothing(tmp_path: Path) -> None:
    work = Work(tokens_per_step=1, flops_per_token=1.0, peak_flops=None, memory_bytes=lambda: None)
    about: dict[str, Any] = {"config": {}, "build_id": "", "build_name": ""}
    with Report(None, step=-1, max_steps=5, work=work, track=["tensorboard"], about=about) as report:
        report.training(1, loss=1.0, learning_rate=1.0, grad_norm=1.0, skipped_updates=0)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("saved", [b"", b"[]", b'{"run_id": 3}', b'{"run_id": "../up"}', b"[" * 100_000])
def test_strange_ids_are_no_ids(tmp_path: Path, saved: bytes) -> None:
    begin = {"out_dir": str(tmp_path), "is_new": False}
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "mlflow.json").write_bytes(b'{"run_id": "a1"}')
    assert read_run_id(begin, "mlflow.json") == "a1" and read_run_id(begin | {"is_new": True}, "mlflow.json") is None
    (tmp_path / "trackers" / "mlflow.json").write_bytes(saved)
    assert read_run_id(begin, "mlflow.json") is None


def test_secrets_are_not_told() -> None:
    told = {"MLFLOW_TRACKING_URI": "https://me:s3/cr@t!@host/x", "WANDB_API_KEY": "0123abcd"}
    assert (
        without_secrets("GET https://me:s3/cr@t!@host/x refused, s3/cr@t! 0123abcd", told)
        == "GET https://host/x refused, *** ***"
    )
    assert without_secrets("http://who:what@host/path?a@b https://host", {}) == "http://host/path?a@b https://host"


def test_a_long_message_shows_no_part_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert "0123" not in describe(OSError("x" * 290 + "0123456789abcdef"))
    assert describe(OSError("  \n\ta\x1bb\nc")) == "a\\x1bb" and describe(OSError()) == "OSError"


def test_what_is_no_finite_number_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about: dict[str, Any] = {"config": {}, "build_id": "", "build_name": ""}
    told: list[dict[str, Any]] = []
    none = trackers.Trackers((), tmp_path, about=about, step=-1, history=None, warn=lambda _: None)
    monkeypatch.setattr(none, "_send", told.append)
    none.row(1, {"a": float("nan"), "b": float("-inf"), "c": None, "d": 10**400, "e": -1.5, "f": 2})
    assert [event["values"] for event in told] == [{"e": -1.5, "f": 2}]


def test_each_value_is_told_once() -> None:
    told = Told({"loss": 3})
    assert [told.is_new("loss", step) for step in (2, 3, 4, 4, 2, 5)] == [False, False, True, False, False, True]
    assert told.is_new("norm", 1)
